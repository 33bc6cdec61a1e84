# SPDX-License-Identifier: Apache-2.0
"""`virtfs run` as a process, with QEMU itself or a script that answers as one, and what /proc says of them."""

import json
import os
import select
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from tests.system.conftest import PATIENCE, until

VIRTFS = Path(sys.executable).with_name("virtfs")
QEMU = "qemu-system-x86_64"
# The processor stands still (-S): no guest is needed to see how the processes live and die.
MACHINE = [QEMU, "-accel", "tcg", "-S", "-display", "none", "-nodefaults", "-sandbox", "on"]
QMP = [*MACHINE, "-qmp", "stdio"]
LINE = "virtfs run: in the guest: mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000"

ANSWERS = """#!/bin/sh
case "$*" in
*"-device help") echo 'name "virtio-9p-pci", bus PCI'; exit ;;
*"-machine help") exit ;;
*"-fsdev proxy,id=virtfs -device "*) echo '%s' >&2; exit 1 ;;
esac
%s
"""
KNOWN = "both socket and sock_fd properties are missing"
RECORDER = """
import os, signal, sys
def record(number, frame):
    os.write(1, signal.Signals(number).name.encode() + b"\\n")
    if number == signal.SIGTERM:
        os._exit(42)
for name in "HUP INT QUIT TERM USR1 USR2 WINCH CONT".split():
    signal.signal(getattr(signal, "SIG" + name), record)
os.write(1, b"ready\\n")
while True:
    signal.pause()
"""
PYTHON = f"{sys.base_prefix}/bin/python3"
RECORD = f'exec {PYTHON} -c {shlex.quote(RECORDER)} "$@"'


def fields(pid: int) -> dict[str, str]:
    """/proc/PID/status; empty for a process that is gone, or that only waits to be reaped."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    status = dict(line.split(":", 1) for line in lines)
    return {} if status["State"].split()[0] in "ZX" else {name: value.strip() for name, value in status.items()}


def gone(*pids: int) -> None:
    for pid in pids:
        until(lambda pid=pid: not fields(pid), f"the end of process {pid}")  # type: ignore[misc]


def children(pid: int) -> list[int]:
    every = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return [child for child in every if fields(child).get("PPid") == str(pid)]


def arguments(pid: int) -> list[str]:
    """Its command line; empty for a process that is gone, as one that the launcher asked something."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def descriptors(pid: int) -> dict[int, str]:
    folder = Path(f"/proc/{pid}/fd")
    return {int(name): os.readlink(folder / name) for name in os.listdir(folder)}


def sockets(pid: int) -> list[str]:
    return [target for target in descriptors(pid).values() if target.startswith("socket:")]


class Launch:
    """A running `virtfs run` and its two children."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self.process = process
        self.errors = errors
        self.pid = process.pid
        self.qemu = self.helper = 0

    def find(self) -> None:
        """Wait until both children run their programs."""
        until(lambda: LINE in self.said(), "the line for the guest")
        both = until(lambda: len(found := children(self.pid)) == 2 and found, "two children")
        (self.helper,) = [pid for pid in both if "-n" in arguments(pid) and "-f" in arguments(pid)]
        (self.qemu,) = [pid for pid in both if pid != self.helper]
        until(lambda: any("sock_fd=" in item for item in arguments(self.qemu)), "QEMU's exec")

    def said(self) -> str:
        return self.errors.read_text(encoding="utf-8")

    def line(self) -> str:
        """The next line of QEMU's stdout."""
        assert self.process.stdout
        assert select.select([self.process.stdout], [], [], PATIENCE)[0], "QEMU says nothing"
        return self.process.stdout.readline().strip()

    def qmp(self, command: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"execute": command}) + "\n")
        self.process.stdin.flush()

    def result(self) -> int:
        """Exit status, once all three have ended."""
        status = self.process.wait(timeout=PATIENCE)
        gone(self.qemu, self.helper)
        return status


def ended(pid: int) -> None:
    """See to the end of a process of this test that should not be there."""
    if fields(pid):
        os.kill(pid, signal.SIGKILL)
