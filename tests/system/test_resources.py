# SPDX-License-Identifier: Apache-2.0
"""What a helper uses, as far as it can be counted: no CPU when idle, no more memory or descriptors with time."""

import contextlib
import errno
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.measure import FILE, UID, descriptors, helper, memory, sample_tree, send_mixture, usage

from virtfs_proxy import ProxyClient
from virtfs_proxy.proxy.frames import FRAMES

pytestmark = pytest.mark.root

FEW_PAGES_KIB = 16 * os.sysconf("SC_PAGE_SIZE") // 1024
LONG_POLL = ("--poll-us", "1000")  # strace makes a round trip longer than the default looks for

Served = tuple[ProxyClient, int]


@pytest.fixture
def tree() -> Iterator[Path]:
    """A directory on a disk, with what send_mixture works on."""
    with sample_tree(None) as root:
        yield root


@pytest.fixture
def served(tree: Path, helper_command: list[str]) -> Iterator[Served]:
    with helper(helper_command, tree) as client_and_pid:
        yield client_and_pid


def looks(command: list[str], tree: Path) -> int:
    """How often a helper calls poll(2) with a timeout of 0 while it serves 300 requests, one after another."""
    with helper(command, tree) as (client, pid):
        line = ["strace", "-qq", "-p", str(pid), "-e", "trace=poll,ppoll"]
        tracer = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
        try:
            for _ in range(1000):
                if "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text():
                    break
                time.sleep(0.01)
            else:
                pytest.fail(f"strace did not attach to {pid}")
            for _ in range(300):
                client.lstat(".")
        finally:
            with contextlib.suppress(ProcessLookupError):
                tracer.send_signal(signal.SIGINT)
            _, trace = tracer.communicate(timeout=20)
    return len(re.findall(r"poll\(.*, 0\) +=", trace))


def test_an_idle_helper_uses_no_cpu_at_all(served: Served) -> None:
    client, pid = served
    send_mixture(client, 200)
    time.sleep(0.5)  # hundreds of times as long as it may look for the next request
    before = usage(pid)
    time.sleep(3)
    assert usage(pid) == before
    client.lstat(".")
    assert usage(pid).switches > before.switches  # the count does count


def test_it_looks_before_it_sleeps_where_another_cpu_is_there(tree: Path, helper_command: list[str]) -> None:
    several = len(os.sched_getaffinity(0)) > 1
    assert (looks([*helper_command, *LONG_POLL], tree) > 0) == several


def test_with_one_cpu_it_sleeps_at_once(tree: Path, helper_command: list[str]) -> None:
    confined = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    assert looks([*confined, *helper_command, *LONG_POLL], tree) == 0


def test_poll_us_0_sleeps_at_once(tree: Path, helper_command: list[str]) -> None:
    assert looks([*helper_command, "--poll-us", "0"], tree) == 0


def test_resident_memory_is_at_most_20_mib(served: Served) -> None:
    client, pid = served
    send_mixture(client, 1000)
    assert memory(pid)["Rss"] <= 20 * 1024


def test_neither_memory_nor_descriptors_grow_with_requests(served: Served) -> None:
    client, pid = served
    send_mixture(client, 10_000)  # every kind of request has been met
    before, files = memory(pid)["Rss"], descriptors(pid)
    send_mixture(client, 200_000)
    assert memory(pid)["Rss"] <= before + FEW_PAGES_KIB
    assert descriptors(pid) == files


def varied(rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Requests without end, as (name of the row, frame), with strings of every length up to 6 KB."""

    def path() -> bytes:
        names = itertools.cycle([b"n" * rng.randint(1, 255)])
        return (b"./" + b"/".join(itertools.islice(names, 200)))[: rng.randint(3, 6_144)].rstrip(b"/")

    while True:
        name, value = b"user.%d" % rng.randrange(100), bytes(rng.randint(0, 6_144))
        new, other = (b"./directory/%b" % (b"new" * 80)[: rng.randint(1, 240)] for _ in range(2))
        yield from (
            ("lstat", FRAMES["lstat"](path())),
            ("rename", FRAMES["rename"](path(), path())),
            ("lsetxattr", FRAMES["lsetxattr"](FILE, name, value, len(value), 0)),
            ("lsetxattr", FRAMES["lsetxattr"](path(), name, value, len(value), 0)),
            ("lgetxattr", FRAMES["lgetxattr"](rng.randint(1, 60_000), FILE, name)),
            ("llistxattr", FRAMES["llistxattr"](60_000, FILE)),
            ("lremovexattr", FRAMES["lremovexattr"](FILE, name)),
            ("symlink", FRAMES["symlink"](UID, UID, path(), new)),
            ("readlink", FRAMES["readlink"](new, rng.randint(1, 60_000))),
            ("rename", FRAMES["rename"](new, other)),
            ("remove", FRAMES["remove"](other)),
        )


def test_20_mib_hold_whatever_the_lengths_are(served: Served) -> None:
    """The allocator keeps blocks of many sizes: memory rises for tens of thousands of requests before it stays."""
    client, pid = served
    answers: Counter[tuple[str, int]] = Counter()
    for row, frame in itertools.islice(varied(random.Random(7)), 200_000):
        kind, body = client.exchange(frame)
        answers[row, kind and -int.from_bytes(body, sys.byteorder, signed=True)] += 1
    assert memory(pid)["Rss"] <= 20 * 1024
    rows = {row for row, _ in answers}
    assert {row for row, code in answers if code == 0} == rows - {"lstat"}
    long = {row for row, code in answers if code == errno.ENAMETOOLONG}
    assert long == {"lstat", "rename", "lsetxattr", "symlink"}
    assert answers.total() == 200_000
