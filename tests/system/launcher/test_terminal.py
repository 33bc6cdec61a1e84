# SPDX-License-Identifier: Apache-2.0
"""The launcher on a terminal: QEMU uses it, and cannot type on it."""

import fcntl
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from tests.system.conftest import PATIENCE, until
from tests.system.launcher.launching import MACHINE, PYTHON, QEMU, RECORD, Launch, children, descriptors, fields

pytestmark = pytest.mark.root


@contextmanager
def teletype() -> Iterator[tuple[int, int]]:
    """A terminal: where a person types and looks, and the device."""
    keyboard, terminal = pty.openpty()
    try:
        yield keyboard, terminal
    finally:
        os.close(keyboard)
        os.close(terminal)


def shown(keyboard: int, pattern: str) -> None:
    """Wait until what appears on the terminal from now on matches."""
    screen = ""
    deadline = time.monotonic() + PATIENCE
    while not re.search(pattern, screen):
        ready = select.select([keyboard], [], [], max(0.0, deadline - time.monotonic()))[0]
        assert ready, f"not within {PATIENCE} s: {pattern!r} on the terminal, which shows {screen!r}"
        screen += os.read(keyboard, 4096).decode(errors="replace")


def typed_at(terminal: int) -> Callable[[], None]:
    """What a child does to have the terminal as its own, its process group in the foreground."""

    def own() -> None:
        os.setsid()
        os.close(os.open(os.ttyname(terminal), os.O_RDWR))  # a session leader's first terminal becomes its own

    return own


TYPES = """
import errno, fcntl, os, termios
try:
    os.close(os.open("/dev/tty", os.O_RDWR))
    print("TERMINAL", end=" ")
except OSError as error:
    print(errno.errorcode[error.errno], end=" ")
try:
    for key in b"touch /typed\\n":
        fcntl.ioctl(0, termios.TIOCSTI, bytes([key]))
    print("TYPED", flush=True)
except OSError as error:
    print(errno.errorcode[error.errno], flush=True)
"""


def test_qemu_cannot_type_at_the_callers_shell(start: Callable[..., Launch], script: Callable[..., str]) -> None:
    with teletype() as (_, terminal):
        types = script(f"exec {PYTHON} -c {shlex.quote(TYPES)}")
        shell = ("sh", "-c", '"$@"; exit $?', "sh")
        launch = start([types], stdin=terminal, preexec_fn=typed_at(terminal), under=shell)
        assert launch.line() in {"ENXIO EPERM", "ENXIO EIO"}  # EIO: sysctl dev.tty.legacy_tiocsti is 0
        assert launch.process.wait(timeout=PATIENCE) == 0
        assert fcntl.ioctl(terminal, termios.FIONREAD, bytes(4)) == bytes(4), "there are keys for the shell to read"


def test_qemus_monitor_is_used_at_the_terminal_and_stops_and_goes_on_as_a_job(start: Callable[..., Launch]) -> None:
    version = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout.split()[3]
    with teletype() as (keyboard, terminal):
        before = termios.tcgetattr(terminal)
        shell = (
            "sh",
            "-m",
            "-c",
            '"$@"; echo "stop:$?"; read line; bg; wait %1; echo "again:$?"; read line; fg; echo "end:$?"',
            "sh",
        )
        monitor = [*MACHINE, "-monitor", "stdio"]
        launch = start(monitor, stdin=terminal, stdout=terminal, preexec_fn=typed_at(terminal), under=shell)
        launch.pid = until(lambda: next(iter(children(launch.process.pid)), 0), "the launcher")
        launch.find()
        shown(keyboard, r"\(qemu\) ")
        raw = termios.tcgetattr(terminal)
        assert raw != before
        os.write(keyboard, b"info version\r")
        shown(keyboard, rf"\n{re.escape(version)}[^\n]*\n.*\(qemu\) ")

        os.write(keyboard, b"\x1a")  # ^Z
        shown(keyboard, r"stop:148")  # SIGTSTP is 20
        until(lambda: fields(launch.qemu)["State"].startswith("T"), "QEMU stopped")
        assert termios.tcgetattr(terminal) == before
        assert os.get_blocking(terminal)
        os.write(keyboard, b"\n")  # bg: what reads the terminal stands still there
        shown(keyboard, r"again:149")  # SIGTTIN is 21
        assert fields(launch.qemu)["State"].startswith("T")
        assert termios.tcgetattr(terminal) == before
        os.write(keyboard, b"\n")  # fg
        until(lambda: not fields(launch.qemu)["State"].startswith("T"), "QEMU goes on")

        os.write(keyboard, b"info name\rquit\r")
        shown(keyboard, r"end:0")
        assert launch.result() == 0
        assert termios.tcgetattr(terminal) == before


def test_a_stopped_job_is_ended_by_a_signal(start: Callable[..., Launch], script: Callable[..., str]) -> None:
    """As `kill %1` does it in bash, which continues the job, in the background."""
    with teletype() as (keyboard, terminal):
        shell = ("sh", "-m", "-c", '"$@"; kill %1; bg; wait %1; echo "end:$?"', "sh")
        sleeper = script("sleep 300; exit 0")
        launch = start([sleeper], stdin=terminal, stdout=terminal, preexec_fn=typed_at(terminal), under=shell)
        launch.pid = until(lambda: next(iter(children(launch.process.pid)), 0), "the launcher")
        launch.find()
        os.write(keyboard, b"\x1a")
        shown(keyboard, r"end:143")
        assert launch.result() == 0


def test_started_in_the_background_qemu_leaves_the_terminal_alone(start: Callable[..., Launch]) -> None:
    with teletype() as (_, terminal):
        before = termios.tcgetattr(terminal)
        shell = ("sh", "-m", "-c", '"$@" & wait', "sh")
        launch = start([*MACHINE, "-serial", "stdio"], stdin=terminal, preexec_fn=typed_at(terminal), under=shell)
        launch.pid = until(lambda: next(iter(children(launch.process.pid)), 0), "the launcher")
        launch.find()
        assert descriptors(launch.qemu)[0] == "/dev/null"
        os.kill(launch.pid, signal.SIGTERM)
        assert launch.result() == 0
        assert termios.tcgetattr(terminal) == before


def test_an_interrupt_typed_reaches_qemu_once_and_the_helper_not(
    start: Callable[..., Launch], script: Callable[..., str]
) -> None:
    keyboard, terminal = pty.openpty()
    try:
        recorder = script(RECORD)
        launch = start([recorder], stdin=terminal, preexec_fn=typed_at(terminal))
        launch.find()
        assert launch.line() == "ready"
        os.write(keyboard, b"\x03")
        assert launch.line() == "SIGINT"
        os.kill(launch.pid, signal.SIGUSR1)
        assert launch.line() == "SIGUSR1", "the launcher passed on what the terminal had sent to QEMU already"
        assert fields(launch.helper)
        os.kill(launch.pid, signal.SIGTERM)
        assert launch.line() == "SIGTERM"
        assert launch.result() == 42
    finally:
        os.close(keyboard)
        os.close(terminal)


def test_a_killed_qemu_leaves_the_terminal_as_it_was(start: Callable[..., Launch]) -> None:
    keyboard, terminal = pty.openpty()
    try:
        before = termios.tcgetattr(terminal)
        console = [*MACHINE, "-chardev", "stdio,id=c,signal=off", "-serial", "chardev:c"]
        launch = start(console, stdin=terminal, stdout=terminal, preexec_fn=typed_at(terminal))
        launch.find()
        until(lambda: termios.tcgetattr(terminal) != before, "QEMU has the terminal in raw mode")
        os.kill(launch.qemu, signal.SIGKILL)
        assert launch.result() == 137
        assert termios.tcgetattr(terminal) == before
        assert os.get_blocking(terminal)
    finally:
        os.close(keyboard)
        os.close(terminal)
