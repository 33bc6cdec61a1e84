# SPDX-License-Identifier: Apache-2.0
"""Run a guest under QEMU as an ordinary user, with directories shared through virtfs-proxy-helpers.

Everything that is started here is ended here, by its process id, whatever happens in between.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import selectors
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, Self

from guest_image import GuestUnavailable, Image

QEMU = "qemu-system-x86_64"
START_LIMIT = 10.0
STOP_LIMIT = 5.0
Mode = Literal["socket", "fd"]


def machine(kernel: Path, initrd: Path, append: str = "") -> list[str]:
    """QEMU's command line for a guest whose console is QEMU's standard input and output."""
    # Tracing and speculation defences cost an emulated guest seconds; nokaslr keeps its addresses readable.
    line = f"console=ttyS0 quiet panic=-1 mitigations=off nokaslr random.trust_cpu=on {append}".strip()
    return [
        QEMU, "-accel", "tcg", "-cpu", "max", "-m", "512", "-nodefaults", "-display", "none", "-no-reboot",
        "-sandbox", "on", "-kernel", str(kernel), "-initrd", str(initrd), "-append", line,
    ]  # fmt: skip


def check_driver() -> None:
    """Ask QEMU itself for the driver that the helper serves.

    :raises GuestUnavailable: when there is no QEMU, or it no longer has `-fsdev proxy` (gone since 9.2).
    """
    if shutil.which(QEMU) is None:
        raise GuestUnavailable(f"{QEMU} is not installed")
    probe = [QEMU, "-M", "none", "-nodefaults", "-display", "none", "-fsdev", "proxy,id=probe"]
    told = subprocess.run(probe, capture_output=True, text=True, timeout=START_LIMIT, check=False).stderr
    # A QEMU that has the driver complains that it was given neither socket nor sock_fd.
    if "sock" not in told:
        raise GuestUnavailable(f"this QEMU does not have the proxy driver: {told.strip()}")


def lines_of(console: IO[bytes], deadline: float) -> Iterator[str]:
    """A console's lines as they come, until its end.

    :param deadline: by time.monotonic().
    :raises TimeoutError: at the deadline.
    """
    buffer, chunk = b"", b"-"
    with selectors.DefaultSelector() as selector:
        selector.register(console, selectors.EVENT_READ)
        while chunk:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            chunk = os.read(console.fileno(), 65536)
            *whole, buffer = (buffer + chunk).split(b"\n")
            for line in whole if chunk else filter(None, [*whole, buffer]):
                yield line.decode("utf-8", "backslashreplace").rstrip("\r")


@dataclass
class Guest:
    """A running guest. Use as a context manager; leaving it ends QEMU and the helpers.

    :param image: what to boot.
    :param helper: the helper's command, without options.
    :param mode: "socket" for the helper's -s and QEMU's socket=, "fd" for -f and sock_fd=.
    :param exports: the directories to share, by mount tag; each has a helper of its own.
    :param user: who runs QEMU. Needs this process to be root.
    :param append: more for the kernel's command line.
    :param limit: seconds after which lines() gives up.
    """

    image: Image
    helper: Sequence[str]
    mode: Mode
    exports: Mapping[str, Path]
    user: str = "nobody"
    append: str = ""
    limit: float = 120.0
    transcript: list[str] = field(default_factory=list)
    helpers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    qemu: subprocess.Popen[bytes] | None = None
    _log: str = ""

    def __enter__(self) -> Self:
        self._deadline = time.monotonic() + self.limit
        self._account = pwd.getpwnam(self.user)
        # Short, and in no private directory: QEMU's user must reach it, and sun_path ends at 107 bytes.
        self._home = Path(tempfile.mkdtemp(prefix="virtfs-guest-"))
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def lines(self) -> Iterator[str]:
        """The console's lines as they come, until QEMU ends.

        :raises TimeoutError: when the guest's time is over.
        """
        assert self.qemu is not None
        assert self.qemu.stdout is not None
        try:
            for line in lines_of(self.qemu.stdout, self._deadline):
                self.transcript.append(line)
                yield line
        except TimeoutError:
            raise TimeoutError(f"the guest did not end in {self.limit:.0f} s:\n{self.report()}") from None

    def report(self) -> str:
        """What is known about the run, for a failure's message."""
        ends = [f"{tag}: {process.returncode}" for tag, process in self.helpers.items()]
        lines = ["--- console", *self.transcript[-60:], "--- helpers", *ends, self._read_log()[-4000:]]
        return "\n".join(lines)

    def _read_log(self) -> str:
        path = self._home / "log"
        return path.read_text(errors="backslashreplace") if path.exists() else self._log

    def _start(self) -> None:
        os.chown(self._home, self._account.pw_uid, self._account.pw_gid)
        for name, path in (("kernel", self.image.kernel), ("initrd", self.image.initrd)):
            shutil.copy(path, self._home / name)
            os.chmod(self._home / name, 0o644)
        connections, pass_fds = [], []
        with contextlib.ExitStack() as sockets, (self._home / "log").open("wb") as log:
            for tag in self.exports:
                if self.mode == "socket":
                    connections.append(f"socket={self._listening_helper(tag, log)}")
                else:
                    ours, theirs = map(sockets.enter_context, socket.socketpair())
                    self._start_helper(tag, ["-f", str(ours.fileno())], log, (ours.fileno(),))
                    connections.append(f"sock_fd={theirs.fileno()}")
                    pass_fds.append(theirs.fileno())
            self._start_qemu(connections, pass_fds)

    def _listening_helper(self, tag: str, log: IO[bytes]) -> Path:
        path = self._home / f"{tag}.socket"
        ids = ["-u", str(self._account.pw_uid), "-g", str(self._account.pw_gid)]
        helper = self._start_helper(tag, ["-s", str(path), *ids], log, ())
        limit = time.monotonic() + START_LIMIT
        # The original binds first and gives the socket away afterwards.
        while not (path.is_socket() and path.stat().st_uid == self._account.pw_uid):
            if helper.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"the helper made no socket:\n{self.report()}")
            time.sleep(0.02)
        return path

    def _start_helper(
        self, tag: str, options: Sequence[str], log: IO[bytes], pass_fds: tuple[int, ...]
    ) -> subprocess.Popen[bytes]:
        command = [*self.helper, "-n", "-p", str(self.exports[tag]), *options]
        self.helpers[tag] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=pass_fds
        )  # fmt: skip
        return self.helpers[tag]

    def _start_qemu(self, connections: Sequence[str], pass_fds: Sequence[int]) -> None:
        shares: list[str] = []
        for tag, connection in zip(self.exports, connections, strict=True):
            shares += ["-fsdev", f"proxy,id={tag},{connection}"]
            shares += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
        base = machine(self._home / "kernel", self._home / "initrd", self.append)
        self.qemu = subprocess.Popen(
            [*base, "-serial", "stdio", "-monitor", "none", *shares],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/",
            pass_fds=pass_fds, user=self._account.pw_uid, group=self._account.pw_gid, extra_groups=[],
        )  # fmt: skip

    def _stop(self) -> None:
        """End QEMU; the helpers end with their client, or are ended."""
        if self.qemu is not None:
            self.qemu.terminate()
            reap(self.qemu)
            assert self.qemu.stdout is not None
            self.qemu.stdout.close()
        for helper in self.helpers.values():
            if self.qemu is None:
                helper.terminate()
            reap(helper)
        self._log = self._read_log()
        shutil.rmtree(self._home, ignore_errors=True)


def reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that was told to end; kill it where it does not."""
    try:
        process.wait(STOP_LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
