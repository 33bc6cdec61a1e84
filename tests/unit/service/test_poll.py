# SPDX-License-Identifier: Apache-2.0
"""The window of polling, with a clock and a poll(2) of the test's own."""

import os
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from virtfs_proxy.service import poll as module
from virtfs_proxy.service.poll import Poll

LOOK_NS = 1000
"""What one look at the socket costs on the test's clock."""


class World:
    """A socket that becomes readable when the test says, and a clock that each look moves on."""

    def __init__(self) -> None:
        self.now = 10**12
        self.ready_at = 0
        self.looks = 0
        self.slept = 0

    def monotonic_ns(self) -> int:
        return self.now

    def poll(self, timeout: int | None = None) -> list[tuple[int, int]]:
        if timeout is None:
            self.slept += 1
            self.now = max(self.now, self.ready_at)
        else:
            self.looks += 1
            self.now += LOOK_NS
        return [(0, 1)] if self.now >= self.ready_at else []

    def register(self, *_: Any) -> None:
        pass


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(module, "monotonic_ns", world.monotonic_ns)
    monkeypatch.setattr(select, "poll", lambda: world)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    return world


def _wait(poll: Poll, world: World, microseconds: float) -> tuple[int, int]:
    """Wait for a request that comes after so long. :returns: looks, and how often it slept."""
    world.looks = world.slept = 0
    world.ready_at = world.now + int(microseconds * 1000)
    poll.wait()
    assert world.now >= world.ready_at
    return world.looks, world.slept


def _longest_look(poll: Poll, world: World) -> int:
    """Microseconds that it looks for what comes long after."""
    return _wait(poll, world, 10**6)[0] * LOOK_NS // 1000


def test_requests_that_come_soon_make_it_look_longer(world: World) -> None:
    poll = Poll(socket.socket.__new__(socket.socket), 50)
    assert _wait(poll, world, 45) == (0, 1)  # at first it sleeps at once
    slept = [_wait(poll, world, 45)[1] for _ in range(5)]
    assert slept[-2:] == [0, 0]
    assert slept[0] == 1


def test_it_never_looks_longer_than_its_limit(world: World) -> None:
    poll = Poll(socket.socket.__new__(socket.socket), 50)
    for _ in range(100):
        _wait(poll, world, 45)
    assert 50 <= _longest_look(poll, world) <= 52


def test_a_request_that_comes_late_makes_it_sleep_at_once_again(world: World) -> None:
    poll = Poll(socket.socket.__new__(socket.socket), 50)
    for _ in range(10):
        _wait(poll, world, 5)
    assert _wait(poll, world, 5) == (5, 0)
    assert _wait(poll, world, 60)[1] == 1
    assert _wait(poll, world, 5) == (0, 1)


@pytest.mark.parametrize(("cpus", "limit", "active"), [({0, 1}, 50, True), ({3}, 50, False), ({0, 1}, 0, False)])
def test_it_polls_only_where_it_may_and_another_cpu_is_free(
    monkeypatch: pytest.MonkeyPatch, cpus: set[int], limit: int, active: bool, pair: tuple[socket.socket, socket.socket]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cpus)
    assert Poll(pair[0], limit).active is active


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_a_real_socket(pair: tuple[socket.socket, socket.socket]) -> None:
    """Readable, and hung up: both end the waiting, asleep or looking."""
    poll = Poll(pair[0], 1000)
    for _ in range(3):
        pair[1].send(b"x")
        poll.wait()
        assert pair[0].recv(1) == b"x"
    pair[1].close()
    poll.wait()
    assert pair[0].recv(1) == b""
