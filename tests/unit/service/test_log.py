# SPDX-License-Identifier: Apache-2.0
"""The log: what it lets through, where it goes, and that nobody can make it grow or lie."""

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtfs_proxy.service.log import DEBUG, ERROR, INFO, LEVELS, LIMIT, WARNING, Log


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "log"))
        sock.setblocking(False)
        yield sock


@pytest.fixture
def connected(syslog: socket.socket) -> Iterator[Log]:
    """A log that writes to it, everything."""
    log = Log("name", DEBUG)
    assert log.to_syslog(os.fsencode(syslog.getsockname()))
    yield log
    if log._syslog:
        log._syslog.close()


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("error", ["e"]),
        ("warning", ["e", "w"]),
        ("info", ["e", "w", "i"]),
        ("debug", ["e", "w", "i", "d"]),
    ],
)
def test_levels(capfd: pytest.CaptureFixture[str], level: str, heard: list[str]) -> None:
    log = Log("name", LEVELS[level])
    log.error("e")
    log.warning("w")
    log.info("i")
    log.debug("d")
    assert capfd.readouterr() == ("", "".join(f"name: {text}\n" for text in heard))


def test_priorities_of_syslog(connected: Log, syslog: socket.socket) -> None:
    connected.error("e")
    connected.warning("w")
    connected.info("i")
    connected.debug("d")
    got = [syslog.recv(4096).decode() for _ in range(4)]
    pid = os.getpid()
    assert got == [
        f"<{3 << 3 | priority}>name[{pid}]: {text}"
        for priority, text in [(ERROR, "e"), (WARNING, "w"), (INFO, "i"), (DEBUG, "d")]
    ]


def test_without_a_syslog_it_stays_with_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = Log("name")
    assert not log.to_syslog(os.fsencode(tmp_path / "missing"))
    assert log.descriptors() == set()
    log.info("text")
    assert capfd.readouterr().err == "name: text\n"


def test_refusals_are_bounded(capfd: pytest.CaptureFixture[str]) -> None:
    log = Log("name")
    for n in range(10 * LIMIT):
        log.refusal(f"number {n}")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == LIMIT
    assert lines[0] == "name: refused: number 0"
    assert "counted only" in lines[-1]
    assert "counted only" not in lines[-2]
    assert log.refused == 10 * LIMIT


FORGED = "first\nname: second\r<11>third\x1b[2J\0\x07\x9b2J\u2028end"


def test_a_message_is_one_line_of_text(capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever is in it: a control character can end a line, move the cursor, or hide what stands before it."""
    Log("name").error(FORGED)
    out = capfd.readouterr().err
    assert out.startswith("name: first")
    assert out.endswith("end\n")
    assert len(out.splitlines()) == 1
    assert not [c for c in out[:-1] if not c.isprintable()]


def test_a_message_to_syslog_is_one_line_of_text(connected: Log, syslog: socket.socket) -> None:
    connected.error(FORGED)
    out = syslog.recv(4096).decode()
    assert out.endswith("end")
    assert not [c for c in out if not c.isprintable()]


def test_names_that_are_no_text(capfd: pytest.CaptureFixture[str]) -> None:
    Log("name").error(os.fsdecode(b"a\xff"))
    assert capfd.readouterr().err == "name: a\\udcff\n"


def test_a_long_message_is_cut_for_syslog(connected: Log, syslog: socket.socket) -> None:
    connected.error("x" * 100_000)
    assert len(syslog.recv(4096)) < 2048  # what RFC 3164's receivers take at least is 1024, rsyslog's 8192


def test_it_never_connects_again(connected: Log, syslog: socket.socket, tmp_path: Path) -> None:
    """Once confined, the same path leads into the export, to a socket of the guest's."""
    (tmp_path / "log").unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as guests:
        guests.bind(str(tmp_path / "log"))
        guests.setblocking(False)
        syslog.close()
        for _ in range(3):
            connected.error("text")
        with pytest.raises(BlockingIOError):
            guests.recv(4096)


def test_a_full_syslog_loses_lines_and_nothing_else(connected: Log, syslog: socket.socket) -> None:
    for _ in range(3000):
        connected.error("text")
    assert syslog.recv(4096).endswith(b": text")


def test_a_stderr_that_cannot_be_written(capfd: pytest.CaptureFixture[str]) -> None:
    log = Log("name")
    kept = os.dup(2)
    try:
        os.close(2)
        log.error("lost")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    log.error("heard")
    assert capfd.readouterr().err == "name: heard\n"


def test_no_stderr_at_all(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # Python's, where number 2 was closed at its start: it is another file now
    Log("name").error("text")
    assert capfd.readouterr().err == ""
