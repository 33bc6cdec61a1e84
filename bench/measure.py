# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: a directory with something in it, helpers to start and end, what /proc says of them."""

import argparse
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from virtfs_proxy import ProxyClient, linux
from virtfs_proxy.proxy.client import MAX_VALUE
from virtfs_proxy.proxy.frames import FRAMES
from virtfs_proxy.proxy.messages import SUCCESS

ORIGINAL: Final = "/usr/lib/qemu/virtfs-proxy-helper"
OURS: Final = str(Path(sys.executable).with_name("virtfs-proxy-helper"))
DISK: Final = "/var/tmp"
TMPFS_MAGIC: Final = 0x01021994  # linux/magic.h
END_S: Final = 10
"""Seconds a helper has to end in after its client has gone."""

UID: Final = 1000
FILE: Final = b"./directory/file"
LINK: Final = b"./directory/link"
NEW: Final = b"./directory/new"
VALUE: Final = b"thirty-two bytes of an attribute"


def options(description: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark that compares two helpers."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", metavar="CMD", default=ORIGINAL, help="what to compare with (%(default)s)")
    parser.add_argument("--ours", metavar="CMD", default=OURS, help="what to measure (%(default)s)")
    parser.add_argument("--dir", help=f"directory for the files, made and removed there ({DISK}; no tmpfs)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


def commands(chosen: argparse.Namespace) -> dict[str, list[str]]:
    """The two commands by name. Exits for anyone but root, as the helpers do."""
    if os.geteuid() != 0:
        raise SystemExit("needs root, as the helpers do")
    return {"original": shlex.split(chosen.original), "ours": shlex.split(chosen.ours)}


@contextmanager
def sample_tree(chosen: str | None) -> Iterator[Path]:
    """A directory to export; removed at the end. On tmpfs only where somebody chose it: it hides the disk's share."""
    with tempfile.TemporaryDirectory(prefix="virtfs-bench-", dir=chosen or DISK) as name:
        root = Path(name)
        if chosen is None and linux.statfs(os.fsencode(root))[0] == TMPFS_MAGIC:
            raise SystemExit(f"{DISK} is a tmpfs: choose a directory on a disk with --dir")
        root.chmod(0o755)
        (root / "directory").mkdir(mode=0o755)
        file = root / os.fsdecode(FILE)
        file.write_bytes(bytes(4096))
        os.chown(file, UID, UID)
        os.setxattr(file, "user.bench", VALUE)
        (root / os.fsdecode(LINK)).symlink_to("file")
        yield root


@contextmanager
def helper(command: list[str], root: Path) -> Iterator[tuple[ProxyClient, int]]:
    """A helper that serves root, with ``-f``: its client and its process id."""
    ours, theirs = socket.socketpair()
    with theirs:
        line = [*command, "-n", "-p", str(root), "-f", str(theirs.fileno())]
        process = subprocess.Popen(line, pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL)
    try:
        with ProxyClient(ours) as client:
            client.lstat(".")
            yield client, process.pid
        process.wait(END_S)
    finally:
        process.kill()
        process.wait()


class Usage(NamedTuple):
    """What a process has used since it started."""

    cpu_ns: int
    switches: int


def usage(pid: int) -> Usage:
    """CPU time (scheduler's own count, exact while the process sleeps) and context switches of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    switches = sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)
    return Usage(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]), switches)


class Others:
    """What processes other than this one and its children, ended ones, use of the machine from here on."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.used = self._used()

    def _used(self) -> float:
        user, nice, system, _idle, _wait, *more = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
        busy = (user + nice + system + sum(more[:3])) / os.sysconf("SC_CLK_TCK")
        return busy - sum(os.times()[:4])

    def cpus(self) -> float:
        """CPUs' worth of time used since, hypervisor's included."""
        return max(0.0, (self._used() - self.used) / (time.monotonic() - self.started))


def memory(pid: int) -> dict[str, int]:
    """Resident memory of a process in KiB: Rss, and Pss, which counts a page that N processes map as 1/N."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return {"Rss": found["Rss"], "Pss": found["Pss"]}


def descriptors(pid: int) -> int:
    """Open descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def _plain(client: ProxyClient) -> dict[str, Callable[[], object]]:
    """Those that are one request, answered without a descriptor."""
    frame = FRAMES
    times = (1_600_000_000, 123_456_789, 1_700_000_000, 123_456_789)
    requests = {
        "LSTAT": frame["lstat"](FILE),
        "LGETXATTR": frame["lgetxattr"](MAX_VALUE, FILE, b"user.bench"),
        "CHMOD": frame["chmod"](FILE, 0o640),
        "STATFS": frame["statfs"](FILE),
        "UTIME": frame["utime"](FILE, *times),
    }
    calls: dict[str, Callable[[], object]] = {}
    for name, request in requests.items():
        calls[name] = partial(client.exchange, request)
        if client.exchange(request)[0] != SUCCESS:
            raise SystemExit(f"a helper refuses what is to be measured: {name}")
    return calls


def operations(client: ProxyClient) -> dict[str, Callable[[], object]]:
    """The operations that have a target. Requests are ready-made: what the client does takes from the difference."""
    opening = FRAMES["open"](FILE, os.O_RDONLY)
    creating = FRAMES["create"](NEW, os.O_CREAT | os.O_RDWR | os.O_EXCL, 0o644, UID, UID)
    removing = FRAMES["remove"](NEW)

    def open_close() -> None:
        os.close(client.exchange_fd(opening, FILE))

    def create_remove() -> None:
        os.close(client.exchange_fd(creating, NEW))
        client.exchange(removing)

    return _plain(client) | {"OPEN": open_close, "CREATE+REMOVE": create_remove}


def mixture(client: ProxyClient) -> list[Callable[[], object]]:
    """Requests of many kinds, refused ones too. Called in order, they leave everything as it was."""

    def refused() -> None:
        try:
            client.lstat(b"./directory/missing")
        except FileNotFoundError:
            return
        raise AssertionError("found what is not there")

    return [
        *(call for name, call in operations(client).items() if name != "CREATE+REMOVE"),
        refused,
        lambda: client.readlink(LINK),
        lambda: client.llistxattr(FILE),
        lambda: client.lsetxattr(FILE, b"user.bench", VALUE),
        lambda: os.close(client.create_fd(NEW, os.O_CREAT | os.O_RDWR, 0o600, UID, UID)),
        lambda: client.truncate(NEW, 12),
        lambda: client.rename(NEW, b"./directory/renamed"),
        lambda: client.chown(b"./directory/renamed", 0, 0),
        lambda: client.link(b"./directory/renamed", NEW),
        lambda: client.remove(b"./directory/renamed"),
        lambda: client.remove(NEW),
        lambda: client.mkdir(NEW, 0o700, UID, UID),
        lambda: client.remove(NEW),
        lambda: client.symlink(b"nowhere", NEW, UID, UID),
        lambda: client.remove(NEW),
        lambda: client.getversion(FILE),
    ]


def send_mixture(client: ProxyClient, requests: int) -> int:
    """Send at least so many requests. :returns: how many it were."""
    calls = mixture(client)
    rounds = -(-requests // len(calls))
    for _ in range(rounds):
        for call in calls:
            call()
    return rounds * len(calls)
