# SPDX-License-Identifier: Apache-2.0
"""Stop: a signal ends a wait at once, and a request not at all."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from virtfs_proxy.service.signals import Stop, Stopped


@pytest.fixture
def stop() -> Iterator[Stop]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    stop = Stop()
    stop.install()
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_while_it_waits_a_signal_raises(stop: Stop, number: signal.Signals) -> None:
    stop.wait()
    with pytest.raises(Stopped, match=number.name):
        signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_while_it_serves_a_signal_is_kept_for_later(stop: Stop, number: signal.Signals) -> None:
    stop.wait()
    stop.waiting = False
    signal.raise_signal(number)
    assert stop.pending == number.name
    with pytest.raises(Stopped, match=number.name):
        stop.wait()


def test_a_signal_before_the_first_wait_counts(stop: Stop) -> None:
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Stopped, match="SIGTERM"):
        stop.wait()


def test_a_second_signal_does_not_disturb_the_end(stop: Stop) -> None:
    """While the first one's exception is under way, another would come up in the middle of cleaning up."""
    stop.wait()
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)


def test_a_hangup_ends_it_unless_it_is_ignored(stop: Stop) -> None:
    """nohup(1) ignores it for whoever is started under it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop.install()
    stop.wait()
    signal.raise_signal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    stop.install()
    with pytest.raises(Stopped, match="SIGHUP"):
        signal.raise_signal(signal.SIGHUP)


def test_a_signal_ends_a_receive_that_sleeps(stop: Stop) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def kill() -> None:
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=kill)
        ours.settimeout(60)
        stop.wait()
        thread.start()
        with pytest.raises(Stopped, match="SIGTERM"):
            ours.recv(1)
        thread.join()
