# SPDX-License-Identifier: Apache-2.0
"""The same sequences of requests to the original and to ours, on a disk file system: same answers, same trees.

A long run:  VIRTFS_SEQUENCES=20000 pytest tests/conformance/test_differential.py
With the variable set every run draws other sequences (25 a second, about); without it the same 2,000 are run each time.
A failure prints the shortest sequence that shows it.
"""

import ctypes
import errno
import fcntl
import os
import shlex
import shutil
import stat
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from tests.conformance import sequences as draw
from tests.conformance.fixes import (
    FIXES,
    OPENERS,
    STRIPPED,
    UNASKED,
    Fix,
    Seen,
    asked_of_the_original,
    disables_the_original,
)
from tests.conformance.peer import Died, Helper, Reply, Stalled, is_original
from tests.conformance.sequences import Sent
from tests.conformance.tree import Entry, Tree, snapshot
from tests.conftest import ORIGINAL, OURS

pytestmark = pytest.mark.root

SEQUENCES = 2000
STEPS = 25
STARTED_NS = time.time_ns() - 10**9
DAY_NS = 86_400 * 10**9
TMPFS_MAGIC, RAMFS_MAGIC = 0x01021994, 0x858458F6

# By nature another: allocation, what is free on the disk meanwhile, the inode and its generation.
MASKED = frozenset(("ino", "blocks", "bfree", "bavail", "ffree", "generation"))
# Ours adds O_NOFOLLOW; O_ASYNC and O_CREAT's kin mean nothing on a descriptor.
SHOWN_FLAGS = ~(os.O_NOFOLLOW | os.O_ASYNC | os.O_CREAT | os.O_EXCL)

_libc = ctypes.CDLL(None, use_errno=True)


def moment(ns: int) -> int | str:
    """A time: set by a request, or that of the run."""
    return "now" if STARTED_NS <= ns < STARTED_NS + DAY_NS else ns


def comparable(reply: Reply) -> dict[str, Any]:
    """A body's fields without those that differ by nature."""
    fields = {name: value for name, value in reply.fields.items() if name not in MASKED}
    for which in ("atime", "mtime", "ctime"):
        if which + "_s" in fields:
            fields[which] = moment(fields.pop(which + "_s") * 10**9 + fields.pop(which + "_ns"))
    if "value" in fields and fields["value"].endswith(b"\0"):
        fields["value"] = sorted(fields["value"].split(b"\0"))  # llistxattr's order is that of a hash
    return fields


def tree_of(root: Path) -> dict[bytes, Entry]:
    """A snapshot that compares."""
    return {
        name: entry._replace(mtime=moment(entry.mtime), atime=moment(entry.atime))  # type: ignore[arg-type]
        for name, entry in snapshot(root).items()
    }


def kinds(root: int, path: bytes) -> tuple[int, int]:
    """Types of what a path names and of what it leads to, with *root* as root; 0 where it leads nowhere."""
    return _kind(root, path, os.O_NOFOLLOW), _kind(root, path, 0)


def _kind(root: int, path: bytes, flags: int) -> int:
    how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC | flags, 0, 0x10)  # RESOLVE_IN_ROOT
    fd = _libc.syscall(437, root, path, how, len(how))  # openat2, the same number everywhere
    if fd < 0:
        assert ctypes.get_errno() not in {errno.ENOSYS, errno.EINVAL, errno.EAGAIN}, path
        return 0
    try:
        return os.fstat(fd).st_mode
    finally:
        os.close(fd)


class Side:
    """One of the two helpers, its export and the descriptors that it has handed out."""

    def __init__(self, command: list[str], export: Path) -> None:
        export.mkdir()
        self.command, self.export = command, export
        self.root = os.open(export, os.O_PATH | os.O_DIRECTORY)
        self.helper = self._start()
        self.fds: list[int] = []

    def _start(self) -> Helper:
        return Helper(self.command, self.export, extra_groups=[])

    def restart(self) -> None:
        self.helper.close()
        self.helper = self._start()

    def ask(self, sent: Sent) -> tuple[str, Reply]:
        """Outcome and reply. A helper that died or hangs is started anew."""
        try:
            reply = self.helper.ask_raw(sent.name, sent.body(), length_only=sent.values.get("size") == 0)
        except (Died, Stalled) as end:
            self.helper.kill()
            self.restart()
            return type(end).__name__.upper(), Reply(0, b"", {})
        return reply.name, reply

    def close_fds(self) -> None:
        while self.fds:
            os.close(self.fds.pop())

    def close(self) -> None:
        self.close_fds()
        self.helper.close()
        os.close(self.root)


class Pair:
    """The original and ours, on two directories of one file system, for as many sequences as there are."""

    def __init__(self, original: list[str], ours: list[str], base: Path) -> None:
        self.original = Side(original, base / "original")
        self.ours = Side(ours, base / "ours")
        self.count = 0
        self.requests = self.differences = 0
        self.used: set[str] = set()

    def sides(self) -> tuple[Side, Side]:
        return self.original, self.ours

    def close(self) -> None:
        for side in self.sides():
            side.close()


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Both helpers, on a directory of a disk: tmpfs has neither generations nor ext4's limits.

    The original and that of `--helper`; ours where that is none, or the original itself.
    """
    if not ORIGINAL.exists():
        pytest.fail(f"no {ORIGINAL}: install Debian's qemu-system-common (QEMU 7.2)")
    chosen = shlex.split(request.config.getoption("--helper") or "")
    ours = chosen if chosen and not is_original(chosen) else [str(OURS)]
    base = Path(tempfile.mkdtemp(prefix="virtfs-differential-", dir="/var/tmp"))
    pair = Pair([str(ORIGINAL)], ours, base)
    try:
        kind = pair.ours.helper.ask("statfs", path=b".").fields["type"]
        assert kind not in {TMPFS_MAGIC, RAMFS_MAGIC}, f"{base} is no directory of a disk file system"
        yield pair
    finally:
        pair.close()
        shutil.rmtree(base)


WANTED = int(os.environ.get("VIRTFS_SEQUENCES", "0"))


@pytest.mark.timeout(0 if WANTED else 900)
def test_same_answers_and_same_trees(pair: Pair) -> None:
    @settings(
        max_examples=WANTED or SEQUENCES,
        deadline=None,
        derandomize=not WANTED,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(draw.sequences(STEPS))
    @example(draw.Steps([Sent("readlink", {"path": b"", "size": 0})]))
    @example(draw.Steps([Sent("create", {"path": b"f/", "flags": os.O_CREAT, "mode": 0, "uid": 0, "gid": 0})]))
    def run(steps: draw.Steps) -> None:
        Sequence(pair).run(steps)

    run()
    print(f"{pair.count} pairs of trees, {pair.requests} requests, {pair.differences} of them answered otherwise")
    if (WANTED or SEQUENCES) >= SEQUENCES:
        assert {fix.reason for fix in FIXES} - pair.used == set(), "entries that nothing needed"


class Sequence:
    """One sequence: requests, and use of the descriptors that came of them."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.place = b""

    def run(self, steps: draw.Steps) -> None:
        """Take the steps on both sides; afterwards the trees are equal, and gone."""
        self.fresh()
        try:
            for step in steps:
                if isinstance(step, Sent):
                    self.request(step)
                elif step and self.pair.ours.fds:
                    self.use(*step)
            original, ours = self.trees()
            assert ours == original
        finally:
            self.drop()

    def fresh(self) -> None:
        """Go on in two new directories, with one of each kind of file in them."""
        self.pair.count += 1
        self.place = b"s%d" % self.pair.count
        for side in self.pair.sides():
            side.close_fds()
            here = side.export / os.fsdecode(self.place)
            here.mkdir()
            (here / "d").mkdir()
            (here / "f").write_bytes(b"content")
            os.setxattr(here / "f", "user.a", b"value")
            os.symlink("f", here / "l")
            os.mkfifo(here / "p", 0o600)
            os.mknod(here / "c", 0o600 | stat.S_IFCHR, os.makedev(1, 3))

    def trees(self) -> list[Tree]:
        return [tree_of(side.export / os.fsdecode(self.place)) for side in self.pair.sides()]

    def drop(self) -> None:
        for side in self.pair.sides():
            side.close_fds()
            shutil.rmtree(side.export / os.fsdecode(self.place), ignore_errors=True)

    def use(self, which: int, use: str) -> None:
        """What QEMU does with the descriptors: all reads and writes."""
        original, ours = (side.fds[which % len(side.fds)] for side in self.pair.sides())
        assert apply(use, ours) == apply(use, original)
        if use == "close":
            for side in self.pair.sides():
                os.close(side.fds.pop(which % len(side.fds)))

    def request(self, template: Sent) -> None:
        """Send it to both; compare, or find the reason in the table."""
        sent = template.at(self.place)
        pair = self.pair
        itself, opened = kinds(pair.ours.root, _first(sent).split(b"\0")[0])
        original, before = self.trees()
        assert before == original
        asked = asked_of_the_original(sent)
        if stalls(asked, opened):
            was, reply = UNASKED, Reply(0, b"", {})
        else:
            was, reply = pair.original.ask(asked)
            if disables_the_original(sent):
                pair.original.restart()
        now, answer = pair.ours.ask(sent)
        pair.requests += 1
        try:
            self.compare(Seen(sent, was, now, itself, opened), reply, answer, before)
        finally:
            for side, came in zip(pair.sides(), (reply, answer), strict=True):
                if came.fd is not None and came.fd not in side.fds:
                    os.close(came.fd)

    def compare(self, seen: Seen, reply: Reply, answer: Reply, before: Tree) -> None:
        if seen.original == seen.ours and comparable(reply) == comparable(answer):
            if reply.fd is not None and answer.fd is not None:
                shown = [fcntl.fcntl(fd, fcntl.F_GETFL) & SHOWN_FLAGS for fd in (reply.fd, answer.fd)]
                assert shown[0] == shown[1], seen
                if len(self.pair.ours.fds) < 8:
                    self.pair.original.fds.append(reply.fd)
                    self.pair.ours.fds.append(answer.fd)
            return
        fix = find(seen)
        assert fix, f"{seen}\noriginal: {comparable(reply)}\nours:     {comparable(answer)}"
        self.pair.used.add(fix.reason)
        self.pair.differences += 1
        assert tree_of(self.pair.ours.export / os.fsdecode(self.place)) == before, seen
        if fix.diverges and seen.original == "OK":
            self.drop()
            self.fresh()


def _first(sent: Sent) -> bytes:
    """The path that is opened."""
    return sent.paths()[0]


def stalls(sent: Sent, opened: int) -> bool:
    """Whether the original would open a FIFO and wait for its other end, or a block device of the host."""
    flags = sent.values.get("flags", 0)
    if sent.name not in OPENERS or sent.cut or flags & (os.O_DIRECTORY | os.O_PATH) or flags & STRIPPED == STRIPPED:
        return False
    return stat.S_ISFIFO(opened) or stat.S_ISBLK(opened)


def find(seen: Seen) -> Fix | None:
    """The entry that explains a difference."""
    return next((fix for fix in FIXES if fix.applies(seen)), None)


def apply(use: str, fd: int) -> object:
    """Use a descriptor; what came of it, errno included."""
    try:
        if use == "write":
            return os.write(fd, b"written" * 5)
        if use == "read":
            return os.pread(fd, 4096, 3)
        if use == "list":
            return sorted(os.listdir(fd))
        if use == "truncate":
            os.ftruncate(fd, 9)
        st = os.fstat(fd)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return st.st_mode, st.st_uid, st.st_gid, st.st_size, st.st_nlink, st.st_rdev, moment(st.st_mtime_ns)
