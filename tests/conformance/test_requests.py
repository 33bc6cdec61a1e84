# SPDX-License-Identifier: Apache-2.0
"""Each of the twenty requests: what it does, and the errno it fails with, which is the kernel's."""

import errno
import fcntl
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.peer import Helper, Reply
from tests.conformance.tree import Tree, snapshot

pytestmark = pytest.mark.root

ROOT = {"uid": 0, "gid": 0}
USER = {"uid": 1234, "gid": 5678}
LONG = b"n" * 256
WIDE = b"d/" * 2100


def contents(reply: Reply) -> bytes:
    assert reply.fd is not None
    with open(reply.fd, "rb") as file:
        return file.read()


def close(reply: Reply) -> None:
    assert reply.fd is not None
    os.close(reply.fd)


# fmt: off
ERRORS: list[tuple[int, str, dict[str, Any]]] = [
    (errno.ENOENT, "open", {"path": b"missing", "flags": os.O_RDONLY}),
    (errno.ENOENT, "open", {"path": b"dangling/x", "flags": os.O_RDONLY}),
    (errno.ENOTDIR, "open", {"path": b"file/x", "flags": os.O_RDONLY}),
    (errno.ENOTDIR, "open", {"path": b"file/", "flags": os.O_RDONLY}),
    (errno.ENOTDIR, "open", {"path": b"file", "flags": os.O_DIRECTORY}),
    (errno.EISDIR, "open", {"path": b"dir", "flags": os.O_WRONLY}),
    (errno.ENAMETOOLONG, "open", {"path": LONG, "flags": os.O_RDONLY}),
    (errno.ENAMETOOLONG, "open", {"path": WIDE, "flags": os.O_RDONLY}),
    (errno.EEXIST, "create", {"path": b"file", "flags": os.O_CREAT | os.O_EXCL, "mode": 0o600, **USER}),
    (errno.EEXIST, "create", {"path": b"link", "flags": os.O_CREAT | os.O_EXCL, "mode": 0o600, **USER}),
    (errno.EEXIST, "create", {"path": b"fifo", "flags": os.O_CREAT | os.O_EXCL, "mode": 0o600, **USER}),
    (errno.EISDIR, "create", {"path": b"dir", "flags": os.O_CREAT | os.O_RDWR, "mode": 0o600, **USER}),
    (errno.EISDIR, "create", {"path": b"file/", "flags": os.O_CREAT, "mode": 0o600, **USER}),
    (errno.EISDIR, "create", {"path": b"new/", "flags": os.O_CREAT, "mode": 0o600, **USER}),
    (errno.ENOTDIR, "create", {"path": b"file/", "flags": os.O_RDWR, "mode": 0o600, **USER}),
    (errno.ENOENT, "create", {"path": b"missing/x", "flags": os.O_CREAT, "mode": 0o600, **USER}),
    (errno.ENOTDIR, "create", {"path": b"file/x", "flags": os.O_CREAT, "mode": 0o600, **USER}),
    (errno.EEXIST, "mknod", {"path": b"file", "mode": stat.S_IFREG | 0o600, "rdev": 0, **ROOT}),
    (errno.EPERM, "mknod", {"path": b"d", "mode": stat.S_IFDIR | 0o700, "rdev": 0, **ROOT}),
    (errno.EPERM, "mknod", {"path": b"n", "mode": stat.S_IFCHR | 0o600, "rdev": os.makedev(1, 3), **USER}),
    (errno.EPERM, "mknod", {"path": b"n", "mode": stat.S_IFBLK | 0o600, "rdev": os.makedev(7, 0), **USER}),
    (errno.EINVAL, "mknod", {"path": b"n", "mode": stat.S_IFLNK | 0o600, "rdev": 0, **ROOT}),
    (errno.EINVAL, "mknod", {"path": b"n", "mode": stat.S_IFCHR | 0o600, "rdev": 1 << 32, **ROOT}),
    (errno.EEXIST, "mkdir", {"path": b"file", "mode": 0o700, **ROOT}),
    (errno.EEXIST, "mkdir", {"path": b".", "mode": 0o700, **ROOT}),
    (errno.ENOENT, "mkdir", {"path": b"a/b", "mode": 0o700, **ROOT}),
    (errno.ENAMETOOLONG, "mkdir", {"path": LONG, "mode": 0o700, **ROOT}),
    (errno.EEXIST, "symlink", {"target": b"x", "path": b"link", **ROOT}),
    (errno.ENOENT, "symlink", {"target": b"x", "path": b"no/link", **ROOT}),
    (errno.ENAMETOOLONG, "symlink", {"target": b"x" * 4096, "path": b"new", **ROOT}),
    (errno.EEXIST, "link", {"oldpath": b"file", "path": b"hard"}),
    (errno.ENOENT, "link", {"oldpath": b"missing", "path": b"new"}),
    (errno.EPERM, "link", {"oldpath": b"dir", "path": b"new"}),
    (errno.ENOENT, "lstat", {"path": b"missing"}),
    (errno.ENOTDIR, "lstat", {"path": b"file/x"}),
    (errno.ENOTDIR, "lstat", {"path": b"file/."}),
    (errno.ENAMETOOLONG, "lstat", {"path": LONG}),
    (errno.EINVAL, "readlink", {"path": b"file", "size": 4096}),
    (errno.EINVAL, "readlink", {"path": b"dir", "size": 4096}),
    (errno.ENOENT, "readlink", {"path": b"missing", "size": 4096}),
    (errno.EINVAL, "readlink", {"path": b"link", "size": 1}),
    (errno.EINVAL, "readlink", {"path": b"link", "size": 0}),
    (errno.ENOENT, "statfs", {"path": b"missing"}),
    (errno.ENOENT, "chmod", {"path": b"missing", "mode": 0o600}),
    (errno.ENOENT, "chmod", {"path": b"dangling", "mode": 0o600}),
    (errno.ENOENT, "chown", {"path": b"missing", "uid": 1, "gid": 1}),
    (errno.ENOENT, "truncate", {"path": b"missing", "size": 0}),
    (errno.EISDIR, "truncate", {"path": b"dir", "size": 0}),
    (errno.EINVAL, "truncate", {"path": b"fifo", "size": 0}),
    (errno.EINVAL, "truncate", {"path": b"device", "size": 0}),
    (errno.EINVAL, "truncate", {"path": b"file", "size": -1}),
    (errno.EFBIG, "truncate", {"path": b"file", "size": (1 << 63) - 1}),
    (errno.ENOENT, "utime", {"path": b"missing", "atime_s": 0, "atime_ns": 0, "mtime_s": 0, "mtime_ns": 0}),
    (errno.EINVAL, "utime", {"path": b"file", "atime_s": 0, "atime_ns": 10**9, "mtime_s": 0, "mtime_ns": 0}),
    (errno.EINVAL, "utime", {"path": b"file", "atime_s": 0, "atime_ns": 0, "mtime_s": 0, "mtime_ns": -1}),
    (errno.ENOENT, "rename", {"oldpath": b"missing", "path": b"new"}),
    (errno.ENOTEMPTY, "rename", {"oldpath": b"empty", "path": b"dir"}),
    (errno.ENOTDIR, "rename", {"oldpath": b"dir", "path": b"file"}),
    (errno.EISDIR, "rename", {"oldpath": b"file", "path": b"empty"}),
    (errno.EINVAL, "rename", {"oldpath": b"dir", "path": b"dir/below"}),
    (errno.EBUSY, "rename", {"oldpath": b".", "path": b"new"}),
    (errno.ENOENT, "remove", {"path": b"missing"}),
    (errno.ENOTEMPTY, "remove", {"path": b"dir"}),
    (errno.ENOTDIR, "remove", {"path": b"file/x"}),
    (errno.EINVAL, "remove", {"path": b"."}),
    (errno.ENODATA, "lgetxattr", {"size": 100, "path": b"file", "name": b"user.none"}),
    (errno.ENODATA, "lgetxattr", {"size": 0, "path": b"file", "name": b"user.none"}),
    (errno.ERANGE, "lgetxattr", {"size": 3, "path": b"file", "name": b"user.color"}),
    (errno.ENOENT, "lgetxattr", {"size": 100, "path": b"missing", "name": b"user.color"}),
    (errno.ENODATA, "lgetxattr", {"size": 100, "path": b"link", "name": b"user.color"}),
    (errno.EOPNOTSUPP, "lgetxattr", {"size": 100, "path": b"file", "name": b"nonsense"}),
    (errno.ERANGE, "lgetxattr", {"size": 100, "path": b"file", "name": b"user." + LONG}),
    (errno.ERANGE, "llistxattr", {"size": 3, "path": b"file"}),
    (errno.ENOENT, "llistxattr", {"size": 100, "path": b"missing"}),
    (errno.EEXIST, "lsetxattr", {"path": b"file", "name": b"user.color", "value": b"x", "size": 1, "flags": 1}),
    (errno.ENODATA, "lsetxattr", {"path": b"file", "name": b"user.none", "value": b"x", "size": 1, "flags": 2}),
    (errno.EINVAL, "lsetxattr", {"path": b"file", "name": b"user.a", "value": b"x", "size": 1, "flags": 4}),
    (errno.EPERM, "lsetxattr", {"path": b"link", "name": b"user.a", "value": b"x", "size": 1, "flags": 0}),
    (errno.EPERM, "lsetxattr", {"path": b"file", "name": b"trusted.a", "value": b"x", "size": 1, "flags": 0}),
    (errno.EOPNOTSUPP, "lsetxattr", {"path": b"file", "name": b"x.a", "value": b"x", "size": 1, "flags": 0}),
    (errno.ENODATA, "lremovexattr", {"path": b"file", "name": b"user.none"}),
    (errno.ENOENT, "lremovexattr", {"path": b"missing", "name": b"user.color"}),
    (errno.ENOENT, "getversion", {"path": b"missing"}),
]
# fmt: on


@pytest.mark.parametrize(
    ("error", "request_", "values"),
    ERRORS,
    ids=[f"{n}-{name}-{errno.errorcode[error]}" for n, (error, name, _) in enumerate(ERRORS)],
)
def test_error_is_the_kernels_and_nothing_changes(
    helper: Helper, populated: Tree, error: int, request_: str, values: dict[str, Any]
) -> None:
    reply = helper.ask(request_, **values)
    assert reply.name == errno.errorcode[error]
    assert helper.alive()
    assert snapshot(helper.export) == populated


@pytest.mark.usefixtures("populated")
def test_open_gives_a_descriptor_with_the_access_asked_for(helper: Helper) -> None:
    read = helper.ask("open", path=b"file", flags=os.O_RDONLY)
    assert read.raw == b"\xff\xff\xff\x7f"
    assert contents(read) == b"content\n"
    write = helper.ask("open", path=b"./hard", flags=os.O_WRONLY | os.O_APPEND)
    assert write.fd is not None
    assert fcntl.fcntl(write.fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_APPEND) == os.O_WRONLY | os.O_APPEND
    os.write(write.fd, b"more\n")
    close(write)
    assert (helper.export / "file").read_bytes() == b"content\nmore\n"


@pytest.mark.usefixtures("populated")
def test_open_truncates_when_told(helper: Helper) -> None:
    close(helper.ask("open", path=b"file", flags=os.O_RDWR | os.O_TRUNC))
    assert (helper.export / "hard").read_bytes() == b""


@pytest.mark.usefixtures("populated")
def test_open_of_a_directory_lists_it(helper: Helper) -> None:
    for path, flags in [(b".", os.O_DIRECTORY), (b"./dir/", os.O_RDONLY)]:
        reply = helper.ask("open", path=path, flags=flags)
        assert reply.fd is not None
        assert sorted(os.listdir(reply.fd)) == sorted(os.listdir(helper.export / os.fsdecode(path)))
        close(reply)


@pytest.mark.usefixtures("populated")
def test_descriptor_blocks_unless_nonblock_was_asked_for(helper: Helper) -> None:
    for flags in (0, os.O_NONBLOCK):
        reply = helper.ask("open", path=b"file", flags=flags)
        assert reply.fd is not None
        assert fcntl.fcntl(reply.fd, fcntl.F_GETFL) & os.O_NONBLOCK == flags
        close(reply)


@pytest.mark.parametrize("mode", [0, 0o644, 0o7777, 0o2755, 0o4711])
def test_create_makes_a_file_of_the_caller_with_the_mode(helper: Helper, mode: int) -> None:
    helper.export.chmod(0o700)
    reply = helper.ask("create", path=b"new", flags=os.O_CREAT | os.O_EXCL | os.O_RDWR, mode=mode, **USER)
    assert reply.raw == b"\xff\xff\xff\x7f"
    assert reply.fd is not None
    made = (helper.export / "new").stat()
    assert (stat.S_IMODE(made.st_mode), made.st_uid, made.st_gid) == (mode, 1234, 5678)
    os.write(reply.fd, b"data")
    close(reply)
    assert (helper.export / "new").read_bytes() == b"data"


def test_create_opens_what_exists_without_changing_owner_or_mode(helper: Helper, populated: Tree) -> None:
    close(helper.ask("create", path=b"file", flags=os.O_CREAT | os.O_RDWR, mode=0o777, **USER))
    assert snapshot(helper.export) == populated


def test_create_in_a_setgid_directory_takes_its_group(helper: Helper) -> None:
    os.chown(helper.export, 0, 77)
    helper.export.chmod(0o2777)
    close(helper.ask("create", path=b"new", flags=os.O_CREAT, mode=0o644, **USER))
    assert helper.ask("mkdir", path=b"sub", mode=0o755, **USER).error == 0
    assert (helper.export / "new").stat().st_gid == 77
    assert (helper.export / "sub").stat().st_gid == 77
    assert (helper.export / "sub").stat().st_mode & stat.S_ISGID


@pytest.mark.parametrize("kind", [stat.S_IFREG, 0, stat.S_IFIFO, stat.S_IFSOCK])
@pytest.mark.parametrize("caller", [ROOT, USER])
def test_mknod(helper: Helper, kind: int, caller: dict[str, int]) -> None:
    assert helper.ask("mknod", path=b"node", mode=kind | 0o640, rdev=0, **caller).error == 0
    made = (helper.export / "node").lstat()
    assert made.st_mode == (kind or stat.S_IFREG) | 0o640
    assert (made.st_uid, made.st_gid) == (caller["uid"], caller["gid"])


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_mknod_of_a_device_is_roots(helper: Helper, kind: int) -> None:
    assert helper.ask("mknod", path=b"node", mode=kind | 0o640, rdev=os.makedev(240, 70_000), **ROOT).error == 0
    made = (helper.export / "node").lstat()
    assert (made.st_mode, made.st_rdev) == (kind | 0o640, os.makedev(240, 70_000))


@pytest.mark.parametrize("caller", [ROOT, USER])
def test_mkdir(helper: Helper, caller: dict[str, int]) -> None:
    assert helper.ask("mkdir", path=b"./a", mode=0o1777, **caller).error == 0
    assert helper.ask("mkdir", path=b"a/b/", mode=0o750, **caller).error == 0
    outer, inner = (helper.export / "a").stat(), (helper.export / "a" / "b").stat()
    assert (stat.S_IMODE(outer.st_mode), stat.S_IMODE(inner.st_mode)) == (0o1777, 0o750)
    assert {(made.st_uid, made.st_gid) for made in (outer, inner)} == {(caller["uid"], caller["gid"])}


@pytest.mark.parametrize("target", [b"x", b"/etc/passwd", b"../../out", b"\xff\xfe", b"t" * 4095])
def test_symlink_and_readlink_carry_any_target(helper: Helper, target: bytes) -> None:
    assert helper.ask("symlink", path=b"new", target=target, **USER).error == 0
    assert os.readlink(os.fsencode(helper.export / "new")) == target
    assert (helper.export / "new").lstat().st_uid == 1234
    assert helper.ask("readlink", path=b"new", size=4097).fields == {"target": target}


@pytest.mark.usefixtures("populated")
def test_readlink_cuts_at_size_less_one(helper: Helper) -> None:
    assert helper.ask("readlink", path=b"dangling", size=4).fields == {"target": b"now"}
    assert helper.ask("readlink", path=b"dangling", size=8).fields == {"target": b"nowhere"}
    assert helper.ask("readlink", path=b"dangling", size=2).fields == {"target": b"n"}


@pytest.mark.usefixtures("populated")
def test_link_makes_another_name_also_of_a_symlink(helper: Helper) -> None:
    assert helper.ask("link", oldpath=b"file", path=b"dir/third").error == 0
    assert (helper.export / "file").stat().st_nlink == 3
    assert helper.ask("link", oldpath=b"dangling", path=b"again").error == 0
    assert os.readlink(helper.export / "again") == "nowhere"


@pytest.mark.usefixtures("populated")
@pytest.mark.parametrize("name", ["file", "dir", "link", "dangling", "fifo", "device", "socket", "."])
def test_lstat_tells_everything(helper: Helper, name: str) -> None:
    os.utime(helper.export / name, ns=(-1_500_000_001, 123_456_789_987_654_321), follow_symlinks=False)
    st = (helper.export / name).lstat()
    assert helper.ask("lstat", path=os.fsencode(name)).fields == {
        "dev": st.st_dev, "ino": st.st_ino, "nlink": st.st_nlink, "mode": st.st_mode, "uid": st.st_uid,
        "gid": st.st_gid, "rdev": st.st_rdev, "size": st.st_size, "blksize": st.st_blksize,
        "blocks": st.st_blocks, "atime_s": st.st_atime_ns // 10**9, "atime_ns": st.st_atime_ns % 10**9,
        "mtime_s": st.st_mtime_ns // 10**9, "mtime_ns": st.st_mtime_ns % 10**9,
        "ctime_s": st.st_ctime_ns // 10**9, "ctime_ns": st.st_ctime_ns % 10**9,
    }  # fmt: skip


@pytest.mark.usefixtures("populated")
def test_statfs(helper: Helper) -> None:
    there = os.statvfs(helper.export)
    for path in (b".", b"file", b"link"):
        told = helper.ask("statfs", path=path).fields
        assert (told["bsize"], told["frsize"], told["blocks"], told["files"], told["namelen"]) == (
            there.f_bsize, there.f_frsize, there.f_blocks, there.f_files, there.f_namemax,
        )  # fmt: skip
        assert told["bfree"] >= told["bavail"] > 0
        fsid = (told["fsid1"] & 0xFFFFFFFF) << 32 | told["fsid0"] & 0xFFFFFFFF
        assert fsid == there.f_fsid


@pytest.mark.usefixtures("populated")
def test_statfs_tells_the_type(helper: Helper) -> None:
    coreutils = subprocess.run(["stat", "-f", "-c", "%t", helper.export], check=True, capture_output=True)
    assert helper.ask("statfs", path=b".").fields["type"] == int(coreutils.stdout, 16)


@pytest.mark.usefixtures("populated")
@pytest.mark.parametrize("mode", [0, 0o644, 0o7777, 0o4755, 0o2000, 0o107777, 0xFFFFF644])
def test_chmod_sets_permission_bits_alone(helper: Helper, mode: int) -> None:
    assert helper.ask("chmod", path=b"file", mode=mode).error == 0
    assert (helper.export / "file").stat().st_mode == stat.S_IFREG | mode & 0o7777


@pytest.mark.usefixtures("populated")
def test_chmod_follows_a_symlink(helper: Helper) -> None:
    assert helper.ask("chmod", path=b"link", mode=0o600).error == 0
    assert (helper.export / "file").stat().st_mode == stat.S_IFREG | 0o600


@pytest.mark.usefixtures("populated")
@pytest.mark.parametrize("name", ["file", "dir", "link", "dangling", "fifo", "."])
def test_chown_sets_owner_of_the_file_itself(helper: Helper, name: str) -> None:
    path = os.fsencode(name)
    assert helper.ask("chown", path=path, uid=10, gid=20).error == 0
    assert helper.ask("chown", path=path, uid=0xFFFFFFFF, gid=0x7FFFFFFF).error == 0
    assert helper.ask("chown", path=path, uid=0xFFFFFFFE, gid=0xFFFFFFFF).error == 0
    st = (helper.export / name).lstat()
    assert (st.st_uid, st.st_gid) == (0xFFFFFFFE, 0x7FFFFFFF)
    after = snapshot(helper.export)
    changed = {key for key in after if (after[key].uid, after[key].gid) != (0, 0)}
    assert changed == {path} | ({b"hard"} if name == "file" else set())


@pytest.mark.usefixtures("populated")
def test_chown_clears_setuid(helper: Helper) -> None:
    (helper.export / "file").chmod(0o6755)
    assert helper.ask("chown", path=b"file", uid=10, gid=20).error == 0
    assert (helper.export / "file").stat().st_mode == stat.S_IFREG | 0o755


@pytest.mark.usefixtures("populated")
def test_truncate_shrinks_grows_and_follows(helper: Helper) -> None:
    assert helper.ask("truncate", path=b"file", size=3).error == 0
    assert (helper.export / "file").read_bytes() == b"con"
    assert helper.ask("truncate", path=b"link", size=5).error == 0
    assert (helper.export / "file").read_bytes() == b"con\0\0"
    assert helper.ask("truncate", path=b"hard", size=5 << 30).error == 0
    assert (helper.export / "file").stat().st_size == 5 << 30


UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2


@pytest.mark.usefixtures("populated")
def test_utime_sets_nanoseconds_and_does_not_follow(helper: Helper) -> None:
    for path in (b"file", b"link", b"dangling", b"dir", b"fifo"):
        assert helper.ask("utime", path=path, atime_s=11, atime_ns=999_999_999, mtime_s=-12, mtime_ns=1).error == 0
        st = os.lstat(os.path.join(os.fsencode(helper.export), path))
        assert (st.st_atime_ns, st.st_mtime_ns) == (11_999_999_999, -11_999_999_999)
    assert (helper.export / "file").stat().st_mtime_ns == -11_999_999_999


@pytest.mark.usefixtures("populated")
def test_utime_omits_and_takes_now(helper: Helper) -> None:
    path = helper.export / "file"
    before = path.stat()
    assert helper.ask("utime", path=b"file", atime_s=5, atime_ns=6, mtime_s=7, mtime_ns=UTIME_OMIT).error == 0
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (5_000_000_006, before.st_mtime_ns)
    assert helper.ask("utime", path=b"file", atime_s=5, atime_ns=UTIME_OMIT, mtime_s=7, mtime_ns=UTIME_NOW).error == 0
    assert path.stat().st_atime_ns == 5_000_000_006
    assert path.stat().st_mtime_ns > 1_500_000_000_000_000_000


@pytest.mark.usefixtures("populated")
def test_rename_moves_and_replaces(helper: Helper) -> None:
    assert helper.ask("rename", oldpath=b"file", path=b"dir/inner").error == 0
    assert helper.ask("rename", oldpath=b"dir", path=b"empty").error == 0
    assert helper.ask("rename", oldpath=b"link", path=b"dangling").error == 0
    assert (helper.export / "empty" / "inner").read_bytes() == b"content\n"
    assert os.readlink(helper.export / "dangling") == "file"
    assert sorted(os.listdir(helper.export)) == [
        "dangling", "device", "dirlink", "empty", "fifo", "hard", "socket",
    ]  # fmt: skip


def test_rename_of_two_names_of_one_file_does_nothing(helper: Helper, populated: Tree) -> None:
    assert helper.ask("rename", oldpath=b"file", path=b"hard").error == 0
    assert snapshot(helper.export) == populated


@pytest.mark.parametrize("name", ["file", "empty", "link", "dangling", "dirlink", "fifo", "device", "socket"])
def test_remove_takes_the_name_itself(helper: Helper, populated: Tree, name: str) -> None:
    assert helper.ask("remove", path=os.fsencode(name)).error == 0
    after = snapshot(helper.export)
    assert set(populated) - set(after) == {os.fsencode(name)}


@pytest.mark.usefixtures("populated")
def test_xattrs_set_get_list_remove(helper: Helper) -> None:
    for value in (b"", b"v", bytes(range(256)), b"x" * 2000):
        reply = helper.ask("lsetxattr", path=b"file", name=b"user.new", value=value, size=len(value), flags=0)
        assert reply.error == 0
        assert helper.ask("lgetxattr", size=0, path=b"file", name=b"user.new").fields == {"length": len(value)}
        assert helper.ask("lgetxattr", size=3000, path=b"file", name=b"user.new").fields == {"value": value}
    exact = helper.ask("lgetxattr", size=2000, path=b"file", name=b"user.new")
    assert exact.fields == {"value": b"x" * 2000}
    assert helper.ask("llistxattr", size=0, path=b"file").fields == {"length": 20}
    names = helper.ask("llistxattr", size=20, path=b"file").fields["value"]
    assert sorted(names.split(b"\0")) == [b"", b"user.color", b"user.new"]
    assert helper.ask("lremovexattr", path=b"file", name=b"user.color").error == 0
    assert helper.ask("llistxattr", size=65535, path=b"file").fields == {"value": b"user.new\0"}


@pytest.mark.usefixtures("populated")
def test_xattrs_of_a_file_without_any(helper: Helper) -> None:
    for path in (b"dir", b"link", b"fifo"):
        assert helper.ask("llistxattr", size=0, path=path).fields == {"length": 0}
        assert helper.ask("llistxattr", size=100, path=path).fields == {"value": b""}


@pytest.mark.usefixtures("populated")
def test_lsetxattr_takes_the_first_size_bytes(helper: Helper) -> None:
    assert helper.ask("lsetxattr", path=b"file", name=b"user.a", value=b"abcdef", size=3, flags=1).error == 0
    assert os.getxattr(helper.export / "file", "user.a") == b"abc"


@pytest.mark.usefixtures("populated")
def test_acl_is_set_and_shows_in_the_mode(helper: Helper) -> None:
    acl = bytes.fromhex("02000000 01000600ffffffff 0200040064000000 04000400ffffffff 10000600ffffffff 20000000ffffffff")
    name = b"system.posix_acl_access"
    assert helper.ask("lsetxattr", path=b"file", name=name, value=acl, size=len(acl), flags=0).error == 0
    assert stat.S_IMODE((helper.export / "file").stat().st_mode) == 0o660
    assert helper.ask("lgetxattr", size=100, path=b"file", name=name).fields == {"value": acl}


def test_non_utf8_names_are_bytes_throughout(helper: Helper) -> None:
    name = b"\xff\xc3(\x80 \n\x7f"
    assert helper.ask("mkdir", path=name, mode=0o700, **ROOT).error == 0
    close(helper.ask("create", path=name + b"/\xfe", flags=os.O_CREAT, mode=0o600, **ROOT))
    reply = helper.ask("lsetxattr", path=name, name=b"user.\xff", value=b"\xfd", size=1, flags=0)
    assert reply.error == 0
    assert helper.ask("llistxattr", size=100, path=name).fields == {"value": b"user.\xff\0"}
    assert os.listdir(os.fsencode(helper.export)) == [name]
    assert os.listdir(os.path.join(os.fsencode(helper.export), name)) == [b"\xfe"]


def test_longest_path_the_kernel_takes(helper: Helper) -> None:
    deep = b"/".join([b"d" * 250] * 16)  # 4,015 bytes of the 4,095
    for depth in range(1, 17):
        assert helper.ask("mkdir", path=b"/".join([b"d" * 250] * depth), mode=0o700, **ROOT).error == 0
    assert stat.S_ISDIR(helper.ask("lstat", path=deep).fields["mode"])
    assert stat.S_ISDIR(helper.ask("lstat", path=b"./" * 40 + deep).fields["mode"])
    assert helper.ask("lstat", path=b"./" * 41 + deep).name == "ENAMETOOLONG"


def test_callers_have_no_more_than_dac_override(helper: Helper) -> None:
    """A caller writes where modes forbid it, as with the original: the guest's kernel has checked them."""
    helper.export.chmod(0o500)
    assert helper.ask("mkdir", path=b"d", mode=0o700, **USER).error == 0
    # ... but O_NOATIME on somebody else's file takes CAP_FOWNER.
    (helper.export / "roots").write_bytes(b"")
    reply = helper.ask("create", path=b"roots", flags=os.O_CREAT | os.O_NOATIME, mode=0o600, **USER)
    assert reply.name == "EPERM"
    close(helper.ask("open", path=b"roots", flags=os.O_NOATIME))


def test_identity_of_one_request_is_gone_with_the_next(helper: Helper) -> None:
    for uid, gid in [(1, 2), (0, 0), (3, 3), (0xFFFFFFFE, 0xFFFFFFFE), (5, 0)]:
        assert helper.ask("mkdir", path=b"d", mode=0o700, uid=uid, gid=gid).error == 0
        made = (helper.export / "d").stat()
        assert (made.st_uid, made.st_gid) == (uid, gid)
        assert helper.ask("chown", path=b"d", uid=7, gid=8).error == 0
        assert helper.ask("remove", path=b"d").error == 0


def test_a_replaced_export_is_still_the_one_served(helper: Helper, tmp_path: Path) -> None:
    assert helper.alive()
    helper.export.rename(tmp_path / "moved")
    helper.export.mkdir()
    assert helper.ask("mkdir", path=b"d", mode=0o700, **ROOT).error == 0
    assert (tmp_path / "moved" / "d").is_dir()
