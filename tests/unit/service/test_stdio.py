# SPDX-License-Identifier: Apache-2.0
"""Descriptors 0, 1 and 2, in a child of their own."""

import os

import pytest
from tests.unit.child import in_child

from virtfs_proxy.service import stdio


def _open() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")}


@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 2], [0, 1, 2], []])
def test_closed_stdio_is_opened(closed: list[int]) -> None:
    def run() -> tuple[set[int], list[str]]:
        for number in closed:
            os.close(number)
        before = _open()
        stdio.ensure()
        return _open() ^ before, [os.readlink(f"/proc/self/fd/{number}") for number in closed]

    assert in_child(run) == (set(closed), ["/dev/null"] * len(closed))


def test_stdio_is_silenced_where_asked() -> None:
    def run() -> list[bool]:
        os.dup2(os.open("/", os.O_RDONLY), 1)
        stdio.silence(0, 2)
        return [os.readlink(f"/proc/self/fd/{number}") == "/dev/null" for number in range(3)]

    assert in_child(run) == [True, False, True]
