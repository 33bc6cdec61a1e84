# SPDX-License-Identifier: Apache-2.0
"""as_caller, each time in a child: it gives capabilities away that the tests need."""

import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.child import Ended, in_child

from virtfs_proxy.export import caller
from virtfs_proxy.export.caller import CAPABILITIES, as_caller, before_confinement
from virtfs_proxy.linux import CAP_DAC_OVERRIDE, CAP_SYS_CHROOT, Capabilities

KEPT = sum(1 << number for number in CAPABILITIES)
WHO = (1234, 1235)
Identity = tuple[int, int, int, int]


def _identity() -> Identity:
    """fsuid, fsgid, effective and permitted capabilities of this thread."""
    text = Path("/proc/thread-self/status").read_text(encoding="utf-8")
    ids = [int(found[1]) for name in ("Uid", "Gid") if (found := re.search(rf"^{name}:.*\t(\d+)$", text, re.M))]
    sets = [int(found[1], 16) for name in ("Eff", "Prm") if (found := re.search(rf"^Cap{name}:\t(\w+)$", text, re.M))]
    return ids[0], ids[1], sets[0], sets[1]


def _as_helper(function: Callable[[], Any]) -> Any:
    """Run it in a child with a helper's groups and capabilities."""

    def run() -> Any:
        os.setgroups([])
        Capabilities(KEPT, KEPT).apply()
        return function()

    return in_child(run)


OWN = (0, 0, KEPT, KEPT)


@pytest.mark.root
@pytest.mark.parametrize("who", [WHO, (1234, 0), (0, 1235), (2**32 - 2, 2**32 - 2)])
def test_within_the_block_it_is_the_caller(who: tuple[int, int]) -> None:
    def run() -> list[Identity]:
        seen = [_identity()]
        with as_caller(who):
            seen.append(_identity())
        return [*seen, _identity()]

    assert _as_helper(run) == [OWN, (*who, 1 << CAP_DAC_OVERRIDE, KEPT), OWN]


@pytest.mark.root
def test_root_is_the_helper_itself() -> None:
    def run() -> Identity:
        with as_caller((0, 0)):
            return _identity()

    assert _as_helper(run) == OWN


def test_root_takes_no_system_call() -> None:
    """Or tests of the export could not run for ordinary users."""
    before = _identity()
    with as_caller((0, 0)):
        assert _identity() == before
    assert _identity() == before


@pytest.mark.root
def test_what_the_block_raises_comes_out_and_the_identity_is_back() -> None:
    def run() -> list[Identity]:
        seen = []
        for error in (OSError(5, "x"), KeyError(), KeyboardInterrupt()):
            with pytest.raises(type(error)) as caught, as_caller(WHO):
                raise error
            assert caught.value is error
            seen.append(_identity())
        return seen

    assert _as_helper(run) == [OWN] * 3


@pytest.mark.root
@pytest.mark.parametrize("who", [(2**32 - 1, 1235), (1234, 2**32 - 1), (2**32 - 1, 2**32 - 1)])
def test_an_identity_that_the_kernel_refuses(who: tuple[int, int]) -> None:
    """Neither call of the kernel reports a failure: the block must not run as root instead."""

    def run() -> tuple[bool, Identity]:
        entered = False
        try:
            with as_caller(who):
                entered = True
        except PermissionError:
            pass
        return entered, _identity()

    assert _as_helper(run) == (False, OWN)


class Broken(Capabilities):
    """A set that the kernel does not take."""

    def __init__(self, error: Exception) -> None:
        super().__init__(0, 0)
        self.error = error

    def apply(self) -> None:
        raise self.error


REFUSED = Broken(OSError(1, "refused"))


@pytest.mark.root
def test_a_failure_on_the_way_in_is_undone() -> None:
    def run() -> tuple[bool, Identity]:
        entered = False
        try:
            with as_caller(WHO, callers=REFUSED):
                entered = True
        except OSError:
            pass
        return entered, _identity()

    assert _as_helper(run) == (False, OWN)


# How the way back may fail: with an error, with something nobody thought of, or silently, as setfsuid(2) does.
WAYS = {"capset": REFUSED, "anything": Broken(ZeroDivisionError()), "setfsuid": None, "setfsgid": None}


def _keep(name: str) -> None:
    """Let a call leave the id as it is when it is to become 0, without a word."""
    real = getattr(caller, name)
    setattr(caller, name, lambda number: real(number or 2**32 - 1))


@pytest.mark.root
@pytest.mark.parametrize("broken", WAYS)
@pytest.mark.parametrize("way", ["in", "out"])
def test_what_cannot_be_undone_aborts(broken: str, way: str) -> None:
    """The next request would be served as somebody else. Python runs no __exit__ when __enter__ fails."""

    def run() -> str:
        if broken.startswith("set"):
            _keep(broken)
        own = WAYS[broken] or Capabilities(KEPT, KEPT)
        callers = REFUSED if way == "in" else Capabilities(1 << CAP_DAC_OVERRIDE, KEPT)
        try:
            with as_caller(WHO, own, callers):
                pass
        except OSError:
            pass
        return "went on"

    with pytest.raises(Ended, match=f"^{-signal.SIGABRT.value}$"):
        _as_helper(run)


@pytest.mark.root
def test_before_the_confinement_nothing_is_lost_that_it_needs() -> None:
    """The socket is bound as its owner by a process that still has to change its root."""

    def run() -> list[Identity]:
        before = _identity()
        with before_confinement(WHO):
            within = _identity()
        return [before, within, _identity()]

    before, within, after = in_child(run)
    assert within == (*WHO, 1 << CAP_DAC_OVERRIDE, before[3])
    assert after == before
    assert before[3] & 1 << CAP_SYS_CHROOT


@pytest.mark.root
def test_other_threads_stay_the_helper() -> None:
    """Worker threads serve open descriptors meanwhile."""

    def run() -> tuple[list[Identity], Identity]:
        seen: list[Identity] = []
        with as_caller(WHO):
            here = _identity()
        entered, looked = threading.Event(), threading.Event()

        def look() -> None:
            entered.wait(60)
            seen.append(_identity())
            looked.set()

        thread = threading.Thread(target=look)
        thread.start()
        with as_caller(WHO):
            entered.set()
            looked.wait(60)
        thread.join(60)
        return seen, here

    assert _as_helper(run) == ([OWN], (*WHO, 1 << CAP_DAC_OVERRIDE, KEPT))


@pytest.mark.root
def test_what_is_made_is_the_callers(tmp_path: Path) -> None:
    """In a directory that only root may write to."""
    tmp_path.chmod(0o700)

    def run() -> None:
        with as_caller(WHO):
            (tmp_path / "made").touch()
            with pytest.raises(PermissionError):
                os.chown(tmp_path / "made", 0, 0)

    _as_helper(run)
    there = (tmp_path / "made").stat()
    assert (there.st_uid, there.st_gid) == WHO
