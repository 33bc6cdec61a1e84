# SPDX-License-Identifier: Apache-2.0
"""What the guest does with its shares, run inside it as root. Each item prints `RESULT name value`, in JSON.

It knows nothing of what is right: the host compares. An item that fails has the error's name as its value.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import stat
import subprocess
import time
import traceback

from tests.system.guest.basics import (
    ITEMS,
    as_user,
    ask_host,
    attempt,
    facts,
    item,
    item_on,
    read,
    tool,
    write,
)

__all__ = ["ITEMS", "main"]


@item
def mounted() -> object:
    fields = next(line.split() for line in read("/proc/mounts").splitlines() if line.split()[1] == "/mnt/share")
    return [fields[2], all(option in fields[3].split(",") for option in ("access=client", "posixacl"))]


@item
def made_by_host() -> object:
    return [facts("from-host"), read("from-host/file"), facts("from-host/file"),
            os.getxattr("from-host/file", "user.from").decode()]  # fmt: skip


@item
def files() -> object:
    write("file", "one\n")
    with open("file", "a") as file:
        file.write("two\n")
    with open("file", "r+") as file:
        file.truncate(6)
    write("sparse", "")
    os.truncate("sparse", 5 << 20)
    excl = attempt(os.open, "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    return [
        read("file"),
        facts("file"),
        os.stat("sparse").st_size,
        excl,
        attempt(os.open, "absent", os.O_RDONLY),
    ]


@item
def file_modes() -> object:
    os.umask(0o027)
    write("umasked", "")
    os.umask(0o022)
    os.close(os.open("readonly", os.O_CREAT | os.O_WRONLY, 0o400))
    os.chmod("readonly", 0o440)
    return [facts("umasked"), facts("readonly")]


@item
def directories() -> object:
    os.makedirs("directory/a/b", mode=0o750)
    write("directory/a/b/leaf", "leaf")
    full = attempt(os.rmdir, "directory/a")
    os.rename("directory/a", "directory/moved")
    os.mkdir("directory/gone")
    os.rmdir("directory/gone")
    into_itself = attempt(os.rename, "directory", "directory/moved/b/c")
    return [
        facts("directory"),
        sorted(os.listdir("directory")),
        full,
        into_itself,
        read("directory/moved/b/leaf"),
    ]


@item
def names() -> object:
    os.mkdir("names")
    wanted = [
        b"\xff\xfe latin \xe9",
        b"new\nline",
        b"-rf *",
        "\u00fc \u65e5\u672c \U0001f600".encode(),
        b"x" * 255,
    ]
    for name in wanted:
        os.close(os.open(b"names/" + name, os.O_CREAT | os.O_WRONLY, 0o644))
    return [sorted(os.listdir(b"names")) == sorted(wanted), attempt(os.mkdir, "names/" + "y" * 256)]


@item
def owners() -> object:
    write("owned", "owned")
    os.chown("owned", 1234, 5678)
    os.chown("owned", -1, 5679)
    os.mkdir("owned-directory", 0o700)
    os.chown("owned-directory", 4000000000, 1000)
    os.symlink("nowhere", "owned-link")
    os.lchown("owned-link", 1235, 5678)
    return [facts("owned"), facts("owned-directory"), facts("owned-link")]


@item
def special_bits() -> object:
    write("setuid", "#!/bin/sh\n")
    os.chmod("setuid", 0o6755)
    write("cleared", "#!/bin/sh\n")
    os.chmod("cleared", 0o6755)
    os.chown("cleared", 1000, 1000)
    os.mkdir("sticky")
    os.chmod("sticky", 0o1777)
    return [facts("setuid"), facts("cleared"), facts("sticky")]


@item_on("setgid")
def setgid_directory() -> object:
    """Root creates as 0:4242 here: where it is not the group's, the new file's group is the directory's."""
    os.mkdir("setgid")
    os.chown("setgid", 0, 4242)
    os.chmod("setgid", 0o2777)
    write("setgid/file", "")
    os.mkdir("setgid/below")
    return [facts("setgid"), facts("setgid/file"), facts("setgid/below")]


@item
def setgid_directory_of_others() -> object:
    os.mkdir("setgid")
    os.chown("setgid", 0, 4242)
    os.chmod("setgid", 0o2777)
    as_user(1000, write, "setgid/file", "")
    as_user(1000, os.mkdir, "setgid/below")
    return [facts("setgid"), facts("setgid/file"), facts("setgid/below")]


@item
def devices() -> object:
    os.mknod("char", 0o640 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod("block", 0o600 | stat.S_IFBLK, os.makedev(259, 1048575))
    numbers = [(os.major(os.stat(name).st_rdev), os.minor(os.stat(name).st_rdev)) for name in ("char", "block")]
    # The guest's own kernel serves the device; its /dev/null takes what is written and gives nothing back.
    write("char", "swallowed")
    return [facts("char"), facts("block"), numbers, read("char")]


@item
def fifo() -> object:
    os.mkfifo("fifo", 0o620)
    child = os.fork()
    if child == 0:
        write("fifo", "through the pipe")
        os._exit(0)
    heard = read("fifo")
    os.waitpid(child, 0)
    return [facts("fifo"), heard]


@item
def unix_socket() -> object:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("socket")
        server.listen()
        client.connect("socket")
        served, _ = server.accept()
        with served:
            served.sendall(b"through the socket")
        return [facts("socket"), client.recv(64).decode()]


@item
def symlinks() -> object:
    """The canary's path is one of the host's: the guest has a file of its own there."""
    canary = read("from-host/canary-path")
    os.makedirs(os.path.dirname(canary), exist_ok=True)
    write(canary, "the guest's")
    climbing = "../" * 30 + canary.lstrip("/")
    os.symlink(canary, "absolute")
    os.symlink(climbing, "climbing")
    os.symlink("file", "relative")
    os.symlink("x" * 4000, "long")
    seen = [read("absolute"), read("climbing"), read("relative")]
    write("absolute", "written by the guest")
    os.chmod("climbing", 0o606)
    os.chown("absolute", 1234, 1234)
    os.utime("climbing", (1, 1))
    back = [os.readlink("absolute") == canary, os.readlink("climbing") == climbing, len(os.readlink("long"))]
    return [seen, back, facts("relative"), attempt(os.open, "relative", os.O_RDONLY | os.O_NOFOLLOW)]


@item
def symlinks_by_host() -> object:
    """A link that the host made to its own root leads to the guest's."""
    return [os.readlink("from-host/root"), read("from-host/root" + read("from-host/canary-path")),
            os.path.exists("from-host/root/workload")]  # fmt: skip


@item
def hard_links() -> object:
    write("hard", "hard")
    os.link("hard", "hard2")
    os.link("hard", "hard3")
    os.unlink("hard")
    same = os.stat("hard2").st_ino == os.stat("hard3").st_ino
    return [
        facts("hard2"),
        same,
        read("hard3"),
        attempt(os.link, "directory", "no"),
        attempt(os.link, "hard2", "hard3"),
    ]


@item
def xattrs() -> object:
    write("xattrs", "")
    os.setxattr("xattrs", "user.plain", b"value")
    os.setxattr("xattrs", "user.binary", bytes(range(256)))
    os.setxattr("xattrs", "user.large", b"L" * 3000)
    os.setxattr("xattrs", "user.gone", b"x")
    os.removexattr("xattrs", "user.gone")
    listed = sorted(os.listxattr("xattrs"))
    values = [os.getxattr("xattrs", name) for name in ("user.plain", "user.binary", "user.large")]
    return [listed, values == [b"value", bytes(range(256)), b"L" * 3000],
            attempt(os.setxattr, "xattrs", "user.plain", b"x", os.XATTR_CREATE),
            attempt(os.setxattr, "xattrs", "user.absent", b"x", os.XATTR_REPLACE),
            attempt(os.getxattr, "xattrs", "user.absent"), attempt(os.removexattr, "xattrs", "user.absent"),
            attempt(os.setxattr, "relative", "user.link", b"x", 0, follow_symlinks=False)]  # fmt: skip


@item
def empty_xattr() -> object:
    """In 9P2000.L, as QEMU reads it, an empty value takes the attribute away."""
    write("empty-xattr", "")
    os.setxattr("empty-xattr", "user.mine", b"something")
    os.setxattr("empty-xattr", "user.mine", b"")
    return [os.listxattr("empty-xattr"), attempt(os.setxattr, "empty-xattr", "user.mine", b"")]


@item
def acls() -> object:
    write("acl", "for 1234")
    os.chmod("acl", 0o600)
    tool("setfacl", "-m", "u:1234:rw,g:77:r", "acl")
    os.mkdir("acl-directory")
    tool("setfacl", "-d", "-m", "u:1234:rwx,o::-", "acl-directory")
    write("acl-directory/inherits", "")
    os.mkdir("acl-directory/below")
    seen = [tool("getfacl", "-n", "-c", "-E", name).split("\n") for name in ("acl", "acl-directory/inherits")]
    below = tool("getfacl", "-n", "-c", "-d", "acl-directory/below").split("\n")
    return [*seen, below, as_user(1234, read, "acl"), as_user(1235, read, "acl")]


@item
def rename_over_open() -> object:
    write("victim", "old")
    write("winner", "new")
    with open("victim") as victim:
        os.rename("winner", "victim")
        return [victim.read(), read("victim"), os.path.exists("winner")]


@item
def rename_open() -> object:
    with open("before", "w") as file:
        file.write("first ")
        file.flush()
        os.rename("before", "after")
        file.write("second")
    return [read("after"), attempt(os.rename, "after", "directory"), attempt(os.rename, "directory", "after")]


@item
def unlinked_open() -> object:
    with open("unlinked", "w+") as file:
        file.write("still ")
        file.flush()
        os.unlink("unlinked")
        file.write("here")
        file.seek(0)
        return [file.read(), os.path.exists("unlinked")]


@item
def unlinked_fstat() -> object:
    with open("unlinked2", "w+") as file:
        os.unlink("unlinked2")
        return attempt(lambda: os.fstat(file.fileno()).st_nlink)


@item
def large_file() -> object:
    subprocess.run(["dd", "if=/dev/urandom", "of=/tmp/large", "bs=1M", "count=16"], check=True, capture_output=True)
    write("large.sum", tool("sha256sum", "/tmp/large").split()[0])
    subprocess.run(["dd", "if=/tmp/large", "of=large", "bs=1M"], check=True, capture_output=True)
    os.unlink("/tmp/large")
    return [tool("sha256sum", "large").split()[0] == read("large.sum"), os.stat("large").st_size]


@item
def large_file_by_host() -> object:
    return tool("sha256sum", "from-host/large").split()[0] == read("from-host/large.sum")


@item
def many_entries() -> object:
    os.mkdir("many")
    for number in range(2000):
        os.close(os.open(f"many/entry-{number:04}", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644))
    found = os.listdir("many")
    return [len(found), sorted(found) == [f"entry-{number:04}" for number in range(2000)]]


@item
def many_entries_by_host() -> object:
    with os.scandir("from-host/many") as entries:
        kinds = [entry.is_file(follow_symlinks=False) for entry in entries]
    return [len(kinds), all(kinds), len(tool("ls", "-l", "from-host/many").splitlines()) - 1]


@item
def statfs() -> object:
    found = os.statvfs(".")
    return [found.f_bsize * found.f_blocks, found.f_files, found.f_namemax]


@item
def times() -> object:
    write("times", "")
    os.utime("times", ns=(1_000_000_000_111_111_111, 1_500_000_000_222_222_222))
    found = os.stat("times")
    return [found.st_atime_ns, found.st_mtime_ns]


@item
def times_now() -> object:
    """The host's clock, nanoseconds and all, set over a time of long ago; in twenty tries not always zero."""
    write("touched", "")
    fractions = set()
    for _ in range(20):
        os.utime("touched", ns=(5, 5))
        os.utime("touched")
        fractions.add(os.stat("touched").st_mtime_ns % 10**9)
    return [abs(os.stat("touched").st_mtime - time.time()) < 300, len(fractions) > 1]


@item
def times_by_host() -> object:
    found = os.stat("from-host/times")
    return [found.st_atime_ns, found.st_mtime_ns]


@item
def other_user() -> object:
    os.mkdir("open")
    os.chmod("open", 0o777)
    os.mkdir("closed", 0o700)
    write("closed/secret", "secret")
    write("others-read-only", "read only")
    made = as_user(1000, write, "open/theirs", "theirs")
    as_user(1000, os.mkdir, "open/directory")
    as_user(1000, os.symlink, "theirs", "open/link")
    as_user(1000, os.mkfifo, "open/fifo")
    kinds = [facts(f"open/{name}")[1:3] for name in ("theirs", "directory", "link", "fifo")]
    denied = [as_user(1000, read, "closed/secret"), as_user(1000, write, "others-read-only", ""),
              as_user(1000, os.unlink, "others-read-only"), as_user(1000, os.chown, "open/theirs", 0, 0),
              as_user(1000, os.chmod, "others-read-only", 0o777), as_user(1000, write, "closed/new", ""),
              as_user(1000, os.mknod, "open/device", stat.S_IFCHR | 0o666, os.makedev(1, 3))]  # fmt: skip
    return [made, kinds, denied, as_user(1001, os.unlink, "sticky"), as_user(1001, read, "open/theirs")]


@item
def sticky_directory() -> object:
    as_user(1000, write, "sticky/theirs", "")
    return [as_user(1001, os.unlink, "sticky/theirs"), as_user(1000, os.unlink, "sticky/theirs")]


@item
def private_mapping() -> object:
    with open("file", "rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as memory:
        return memory[:3].decode()


@item
def git() -> object:
    def run(*words: str) -> str:
        return tool("git", *words, cwd="repository")

    os.mkdir("repository")
    run("init", "-q", "-b", "main")
    run("config", "user.name", "Guest")
    run("config", "user.email", "guest@example.org")
    for number in range(10):
        write(f"repository/file-{number}", f"{number}\n" * 100)
    run("add", ".")
    run("commit", "-q", "-m", "First")
    os.rename("repository/file-0", "repository/renamed")
    run("add", "-A")
    run("commit", "-q", "-m", "Second")
    run("gc", "-q")
    tool("git", "clone", "-q", "repository", "clone")
    tree = run("rev-parse", "HEAD^{tree}")
    cloned = tool("git", "rev-parse", "HEAD^{tree}", cwd="clone")
    status = tool("git", "status", "--porcelain", cwd="clone")
    return [
        tree == cloned,
        tool("git", "fsck", "--full", "--strict", cwd="clone"),
        status,
        run("log", "--format=%s"),
    ]


@item
def sqlite() -> object:
    rows = "".join(f"INSERT INTO t VALUES ({n}, hex(randomblob(20)));\n" for n in range(300))
    script = (
        "PRAGMA journal_mode=DELETE;\nCREATE TABLE t (n INTEGER PRIMARY KEY, s TEXT);\n"
        f"BEGIN;\n{rows}COMMIT;\nBEGIN;\nDELETE FROM t;\nROLLBACK;\n"
        "BEGIN;\nUPDATE t SET n = n + 1000 WHERE n < 10;\nCOMMIT;\n"
        "VACUUM;\nPRAGMA integrity_check;\nSELECT count(*), max(n) FROM t;\n"
    )
    return [tool("sqlite3", "-batch", "base.db", stdin=script).split("\n"), os.path.exists("base.db-journal")]


@item_on("fifo")
def swapped_for_link() -> object:
    """Use a directory that the guest holds open after the host has put a link to its root in its place."""
    os.mkdir("swapped-directory")
    held = os.open("swapped-directory", os.O_RDONLY)
    ask_host("link")
    first = read("canary-path").split("/")[1]
    return [attempt(os.stat, first, dir_fd=held), attempt(os.mkdir, first, dir_fd=held)]


@item_on("fifo")
def swapped_for_fifo() -> object:
    """Open a name that the guest holds as a regular file after the host has put a FIFO in its place.

    The open file keeps the guest's idea of the name alive, so that its kernel sends the open instead of
    opening a pipe of its own. A helper that opens FIFOs answers no more.
    """
    write("file", "still served")
    write("swap", "regular")
    with open("swap"):
        ask_host("fifo")
        child = subprocess.Popen(["cat", "swap"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            return child.communicate(timeout=5)[1].strip() or "read it"
        except subprocess.TimeoutExpired:
            return "stalled"


@item_on("fifo")
def afterwards() -> object:
    """Whether the share still answers, asked by a child that nobody waits for without end."""
    child = subprocess.Popen(["cat", "file"], stdout=subprocess.PIPE, text=True)
    try:
        return child.communicate(timeout=5)[0]
    except subprocess.TimeoutExpired:
        return "stalled"


def main() -> None:
    for share, function in ITEMS:
        os.chdir(f"/mnt/{share}")
        start = time.monotonic()
        try:
            value = function()
        except Exception as error:  # noqa: BLE001 - whatever it was, the next item is worth a try
            value = f"failed: {error!r}"
            traceback.print_exc()
        spent = time.monotonic() - start
        print("RESULT", function.__name__, json.dumps(value, default=repr))
        print(f"SPENT {function.__name__} {spent:.2f}", flush=True)
    # Exit without the interpreter's own goodbye: a child may hang on the share for good.
    os._exit(0)
