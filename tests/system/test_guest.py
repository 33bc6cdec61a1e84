# SPDX-License-Identifier: Apache-2.0
"""A Linux guest under an ordinary user's QEMU works on shared directories, through either helper.

The guest runs guest/workload.py; what it saw and what the host finds afterwards is held to guest/expected.py.
"""

import hashlib
import json
import os
import shlex
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.system.guest import expected, workload

import guest_image
import guest_run

pytestmark = pytest.mark.root

HERE = Path(__file__).parent / "guest"
ORIGINAL = ["/usr/lib/qemu/virtfs-proxy-helper"]
SHARES = ("share", "setgid", "fifo")
PACKAGES = ("acl", "git", "sqlite3", "qemu-system-common")
# What the workload imports.
IMPORTS = [
    "__future__",
    "collections.abc",
    "errno",
    "json",
    "mmap",
    "os",
    "socket",
    "stat",
    "subprocess",
    "time",
]
IMPORTS += ["traceback", "typing"]
LIMIT = 150.0


@dataclass(frozen=True)
class Run:
    """One boot: what the guest printed, and what it left."""

    seen: dict[str, object]
    shares: Path
    canary: Path
    ends: dict[str, int | None]
    report: str

    @property
    def share(self) -> Path:
        return self.shares / "share"


@pytest.fixture(scope="module")
def image() -> guest_image.Image:
    guest_image.ensure_packages(PACKAGES)
    python, files = guest_image.python_files(IMPORTS)
    init = (HERE / "init").read_text().replace("@PYTHON@", python)
    files |= {f"/workload/tests/system/guest/{path.name}": path for path in HERE.glob("*.py")}
    return guest_image.build(guest_image.Recipe(init, ["git", "setfacl", "getfacl", "sqlite3"], files))


@pytest.fixture(scope="module")
def disk(repository: Path) -> Iterator[Path]:
    """A directory on a disk's file system: tmpfs has no user xattrs before Linux 6.6."""
    for parent in (tempfile.gettempdir(), "/var/tmp", str(repository)):
        kind = subprocess.run(["stat", "-f", "-c", "%T", parent], check=True, capture_output=True, text=True)
        if kind.stdout.strip() in {"ext2/ext3", "xfs", "btrfs"}:
            with tempfile.TemporaryDirectory(dir=parent, prefix="virtfs-test-") as directory:
                yield Path(directory)
            return
    pytest.fail("neither the temporary directories nor the repository is on ext4, xfs or btrfs")


@pytest.fixture(scope="module")
def boot(image: guest_image.Image, disk: Path, request: pytest.FixtureRequest) -> Callable[[str, guest_run.Mode], Run]:
    """Run the workload once for a helper, "ours" or "original", and a mode, and remember what came of it."""
    chosen = request.config.getoption("--helper")
    ours = shlex.split(chosen) if chosen else [str(Path(sys.executable).with_name("virtfs-proxy-helper"))]
    done: dict[tuple[str, guest_run.Mode], Run | Exception] = {}

    def run(helper: str, mode: guest_run.Mode) -> Run:
        if (helper, mode) not in done:
            command = ours if helper == "ours" else ORIGINAL
            try:
                done[helper, mode] = work(image, command, mode, disk / f"run{len(done)}")
            except Exception as error:  # noqa: BLE001 - not to boot again for each test that needs this run
                done[helper, mode] = error
        result = done[helper, mode]
        if isinstance(result, Exception):
            raise result
        return result

    return run


@pytest.fixture(scope="module", params=["socket", "fd"])
def run(request: pytest.FixtureRequest, boot: Callable[[str, guest_run.Mode], Run]) -> Run:
    return boot("ours", request.param)


def work(image: guest_image.Image, helper: list[str], mode: guest_run.Mode, home: Path) -> Run:
    """Prepare the shares, boot the guest, and do on the host what the guest asks for."""
    canary = prepare(home)
    seen: dict[str, object] = {}
    exports = {tag: home / tag for tag in SHARES}
    with guest_run.Guest(image, helper, mode, exports, limit=LIMIT) as guest:
        for line in guest.lines():
            word, _, rest = line.partition(" ")
            if word == "RESULT":
                name, _, value = rest.partition(" ")
                seen[name] = json.loads(value)
            elif word == "SYNC":
                swap(home / "fifo", rest)
            elif word == "FINISHED" and (home / "fifo" / "swap").is_fifo():
                # An original that waits for the FIFO's other end gets one: it cannot be ended otherwise.
                os.close(os.open(home / "fifo" / "swap", os.O_RDWR))
    ends = {tag: process.returncode for tag, process in guest.helpers.items()}
    return Run(seen, home, canary, ends, guest.report())


def prepare(home: Path) -> Path:
    """Make the shares and what the guest finds there. :returns: the canary, a file beside them."""
    for share in SHARES:
        (home / share).mkdir(parents=True)
    canary = home / "canary" / "file"
    canary.parent.mkdir()
    canary.write_text("the host's")
    os.utime(canary, (2, 2))
    made = home / "share" / "from-host"
    (made / "many").mkdir(parents=True)
    for number in range(2000):
        (made / "many" / f"{number}").touch()
    content = os.urandom(16 << 20)
    (made / "large").write_bytes(content)
    (made / "large.sum").write_text(hashlib.sha256(content).hexdigest())
    (made / "root").symlink_to("/")
    for place in (made, home / "fifo"):
        (place / "canary-path").write_text(str(canary))
    (made / "times").touch()
    os.utime(made / "times", ns=(1_000_000_000_123_456_789, 1_234_567_890_987_654_321))
    (made / "file").write_text("of the host")
    os.setxattr(made / "file", "user.from", b"the host")
    os.chown(made / "file", 4321, 1234)
    (made / "file").chmod(0o640)
    os.chown(made, 0, 33)
    made.chmod(0o751)
    return canary


def swap(share: Path, what: str) -> None:
    """Put something else in the place of what the guest holds open, and tell the guest."""
    if what == "fifo":
        os.mkfifo(share / "new")
        (share / "new").rename(share / "swap")
    else:
        (share / "swapped-directory").rmdir()
        (share / "swapped-directory").symlink_to("/")
    (share / f"{what}-done").touch()


def test_every_item_has_an_expectation() -> None:
    items = {function.__name__ for _, function in workload.ITEMS}
    assert items == {*expected.GUEST, "statfs", "times"}
    assert len(items) == len(workload.ITEMS)


@pytest.mark.parametrize("item", expected.GUEST)
def test_guest_sees(run: Run, item: str) -> None:
    assert run.seen.get(item) == expected.GUEST[item], run.report


def test_guest_sees_the_file_system(run: Run) -> None:
    found = os.statvfs(run.share)
    size = found.f_frsize * found.f_blocks
    seen = run.seen["statfs"]
    assert isinstance(seen, list)
    # QEMU counts in blocks of about the msize, and drops what does not fill one.
    assert size - (1 << 20) < seen[0] <= size
    assert seen[1:] == [found.f_files, found.f_namemax]


def test_times_arrive(run: Run) -> None:
    """In whole seconds where the guest's kernel sends no more (Linux 6.1 leaves super_block.s_time_gran at
    its default); else QEMU's driver gives the access time the nanoseconds of the other.
    """
    found = os.lstat(run.share / "times")
    assert [found.st_atime_ns, found.st_mtime_ns] == run.seen["times"]
    assert run.seen["times"] in (
        [1_000_000_000_000_000_000, 1_500_000_000_000_000_000],
        [1_000_000_000_222_222_222, 1_500_000_000_222_222_222],
    )


@pytest.mark.parametrize("path", expected.HOST)
def test_host_finds(run: Run, path: str) -> None:
    place = run.share / path
    found = place.lstat()
    content = None
    if expected.HOST[path].content is not None:
        content = os.fsencode(os.readlink(place)) if place.is_symlink() else place.read_bytes()
    owner, rdev = (found.st_uid, found.st_gid), (os.major(found.st_rdev), os.minor(found.st_rdev))
    assert expected.Entry(found.st_mode, owner, found.st_nlink, rdev, content) == expected.HOST[path]


@pytest.mark.parametrize("path", expected.ABSENT)
def test_host_does_not_find(run: Run, path: str) -> None:
    assert run.share.joinpath(path).parent.is_dir()
    assert not os.path.lexists(run.share / path)


def test_names_arrive(run: Run) -> None:
    wanted = {
        b"\xff\xfe latin \xe9",
        b"new\nline",
        b"-rf *",
        "\u00fc \u65e5\u672c \U0001f600".encode(),
        b"x" * 255,
    }
    assert set(os.listdir(os.fsencode(run.share / "names"))) == wanted
    assert {f"entry-{number:04}" for number in range(2000)} == set(os.listdir(run.share / "many"))


def test_xattrs_arrive(run: Run) -> None:
    path = run.share / "xattrs"
    values = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    assert values == {"user.plain": b"value", "user.binary": bytes(range(256)), "user.large": b"L" * 3000}
    assert os.listxattr(run.share / "empty-xattr") == []


@pytest.mark.parametrize(("path", "option"), expected.ACLS)
def test_acls_arrive(run: Run, path: str, option: str) -> None:
    command = ["getfacl", "-n", "-c", "-E", option, str(run.share / path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed.split() == expected.ACLS[path, option]


def test_large_file_arrives(run: Run) -> None:
    content = (run.share / "large").read_bytes()
    assert len(content) == 16 << 20
    assert hashlib.sha256(content).hexdigest() == (run.share / "large.sum").read_text()


def test_git_and_sqlite_leave_sound_files(run: Run) -> None:
    check = ["git", "-c", "safe.directory=*", "-C", str(run.share / "clone"), "fsck", "--full", "--strict"]
    env = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(run.shares)}
    subprocess.run(check, check=True, capture_output=True, env=env)
    base = sqlite3.connect(run.share / "base.db")
    try:
        assert base.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert base.execute("SELECT count(*), max(n) FROM t").fetchall() == [(300, 1009)]
    finally:
        base.close()


def test_links_reach_nothing_outside(run: Run) -> None:
    """The guest read, wrote, chmodded, chowned and touched through links that name the canary, and used a
    directory after a link to / had come in its place: what it made there is in the export's root.
    """
    assert os.readlink(run.share / "absolute") == str(run.canary)
    assert os.readlink(run.share / "climbing").endswith(str(run.canary))
    found = run.canary.stat()
    assert run.canary.read_text() == "the host's"
    assert (found.st_mode, found.st_uid, found.st_gid, found.st_mtime) == (0o100644, 0, 0, 2)
    assert os.listdir(run.canary.parent) == ["file"]
    assert (run.shares / "fifo" / run.canary.parts[1]).is_dir()
    assert sorted(os.listdir(run.shares)) == ["canary", *sorted(SHARES)]


def test_helpers_end_with_their_client(run: Run) -> None:
    assert run.ends == dict.fromkeys(SHARES, 0), run.report


@pytest.mark.parametrize("item", [*expected.GUEST, "statfs", "times"])
def test_original_gives_the_guest_the_same(boot: Callable[[str, guest_run.Mode], Run], item: str) -> None:
    ours, original = boot("ours", "socket"), boot("original", "socket")
    if item in expected.DIFFERENCES:
        assert original.seen.get(item) == expected.DIFFERENCES[item].original, original.report
        assert ours.seen.get(item) != original.seen.get(item)
    else:
        assert ours.seen[item] == original.seen.get(item), original.report


def test_original_leaves_the_same(boot: Callable[[str, guest_run.Mode], Run]) -> None:
    ours, original = (tree(boot(helper, "socket").share) for helper in ("ours", "original"))
    assert len(ours) > 4000
    assert ours == original


def tree(top: Path) -> dict[str, tuple[object, ...]]:
    """What two runs of the workload agree in: not times, inodes, random content, .git."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, names, files in os.walk(top):
        if ".git" in names:
            names.remove(".git")
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            info = os.lstat(path)
            size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
            keys = os.listxattr(path, follow_symlinks=False)
            xattrs = {key: os.getxattr(path, key, follow_symlinks=False) for key in keys}
            facts = (info.st_mode, info.st_uid, info.st_gid, info.st_nlink, info.st_rdev, size, xattrs)
            found[os.path.relpath(path, top)] = facts
    return found
