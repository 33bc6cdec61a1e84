# SPDX-License-Identifier: Apache-2.0
"""What a request costs within the helper, without a socket: each row's answer against the bare call of os.

The second table answers two questions on the way requests come in: a fresh object a receive or a slice of a buffer
that stays, taking a request off the queue or looking at it first. It decides what service/stream.py does.

    sudo .venv/bin/python -m bench.microbench
"""

import argparse
import os
import socket
import timeit
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench.measure import FILE, LINK, NEW, UID, VALUE, sample_tree

from virtfs_proxy import linux
from virtfs_proxy.codec import Fields
from virtfs_proxy.export.passthrough import Export
from virtfs_proxy.proxy.messages import HEADER_SIZE, MAX_BODY, REQUESTS
from virtfs_proxy.proxy.server import answer
from virtfs_proxy.proxy.session import Session
from virtfs_proxy.service.log import ERROR, Log

LIMIT = HEADER_SIZE + MAX_BODY
TIMES = (1_600_000_000, 123_456_789, 1_700_000_000, 123_456_789)
TIMES_NS = (TIMES[0] * 10**9 + TIMES[1], TIMES[2] * 10**9 + TIMES[3])

Case = tuple[str, dict[str, Any], Callable[[], object]]
CASES: tuple[Case, ...] = (
    ("lstat", {"path": FILE}, lambda: os.lstat(FILE)),
    ("lgetxattr", {"size": 64, "path": FILE, "name": b"user.bench"}, lambda: os.getxattr(FILE, b"user.bench")),
    ("open", {"path": FILE, "flags": 0}, lambda: os.close(os.open(FILE, os.O_RDONLY | os.O_CLOEXEC))),
    ("chmod", {"path": FILE, "mode": 0o640}, lambda: os.chmod(FILE, 0o640)),
    ("statfs", {"path": FILE}, lambda: linux.statfs(FILE)),
    (
        "utime",
        dict(zip(("path", "atime_s", "atime_ns", "mtime_s", "mtime_ns"), (FILE, *TIMES), strict=True)),
        lambda: os.utime(FILE, ns=TIMES_NS),
    ),
    ("readlink", {"path": LINK, "size": 4096}, lambda: os.readlink(LINK)),
    ("llistxattr", {"size": 0, "path": FILE}, lambda: os.listxattr(FILE)),
    (
        "lsetxattr",
        {"path": FILE, "name": b"user.bench", "value": VALUE, "size": len(VALUE), "flags": 0},
        lambda: os.setxattr(FILE, b"user.bench", VALUE),
    ),
    (
        "create",
        {"path": FILE, "flags": os.O_CREAT | os.O_RDWR, "mode": 0o644, "uid": UID, "gid": UID},
        lambda: os.close(os.open(FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)),
    ),
    ("remove", {"path": NEW}, lambda: None),  # refused with ENOENT: what an exception costs
)


def microseconds(call: Callable[[], object], number: int = 20_000) -> float:
    """The least of seven: what else the machine does only adds."""
    return min(timeit.repeat(call, number=number, repeat=7)) / number * 1e6


def frame(name: str, fields: dict[str, Any]) -> bytes:
    """A request's bytes."""
    row = next(row for row in REQUESTS if row.name == name)
    body = Fields("=", row.fields).pack(fields)
    return Fields("=", "type:u32 size:u32").pack({"type": row.opcode, "size": len(body)}) + body


def served(session: Session, request: bytes) -> Callable[[], object]:
    """A call that has a request answered, and closes the descriptor that comes of it."""

    def call() -> None:
        reply = answer(session, request)
        if isinstance(reply, int):
            os.close(reply)

    return call


def requests() -> None:
    """Print a row a request."""
    session = Session(Export(), Log("microbench", ERROR))
    print("| request | answer, µs | bare call, µs | between, µs |\n| --- | ---: | ---: | ---: |")
    for name, fields, bare in CASES:
        ours, theirs = microseconds(served(session, frame(name, fields))), microseconds(bare)
        print(f"| {name} | {ours:.2f} | {theirs:.2f} | {ours - theirs:.2f} |")


def receiving() -> None:
    """Print what the ways to receive a request of 32 bytes cost, with the peer's send."""
    here, peer = socket.socketpair()
    request, buffer = bytes(32), bytearray(LIMIT)
    view = memoryview(buffer)

    def fresh() -> None:
        peer.send(request)
        here.recv(LIMIT)

    def reused() -> None:
        peer.send(request)
        bytes(view[: here.recv_into(buffer)])

    def peeked() -> None:
        peer.send(request)
        here.recv(LIMIT, socket.MSG_PEEK)
        here.recv(len(request), socket.MSG_WAITALL)

    ways = {"a fresh object": fresh, "a slice of a buffer": reused, "a look, then a fresh object": peeked}
    rounds = [[microseconds(way, 5000) for way in ways.values()] for _ in range(3)]
    print("\n| receive into | µs, with the peer's send |\n| --- | ---: |")
    for i, way in enumerate(ways):
        print(f"| {way} | {median(r[i] for r in rounds):.2f} |")
    here.close()
    peer.close()


def main() -> None:
    """Run both."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if os.geteuid() != 0:
        raise SystemExit("needs root, as the helper does")
    before = Path.cwd()
    with sample_tree(None) as root:
        os.chdir(root)
        try:
            requests()
        finally:
            os.chdir(before)
    receiving()


if __name__ == "__main__":
    main()
