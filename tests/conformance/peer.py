# SPDX-License-Identifier: Apache-2.0
"""A helper process and the raw end of its socket: exact bytes out, exact bytes in, a bound on every wait.

Unlike ProxyClient it sends whatever it is told to, and takes no reply on trust.
"""

import array
import errno
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from virtfs_proxy.codec import Fields, Request
from virtfs_proxy.proxy.messages import FD, REQUESTS, SIZED, STATUS

ROWS = {row.name: row for row in REQUESTS}
BODIES = {row.name: Fields("=", row.fields) for row in REQUESTS}
REPLIES = {row.name: Fields("=", row.reply) for row in REQUESTS if row.reply not in {STATUS, FD, SIZED}}

INT_MAX = 0x7FFFFFFF
WAIT_S = 10.0
"""What no request of these tests takes; longer is a helper that hangs."""


class Died(Exception):
    """The helper closed the connection instead of answering."""


class Stalled(Exception):
    """The helper did not answer in time."""


class Reply(NamedTuple):
    """A reply taken apart.

    ``error`` is 0 or a positive errno; ``raw`` the bytes as they came; ``fields`` those of a body that succeeded;
    ``fd`` the descriptor that came, which is the caller's to close.
    """

    error: int
    raw: bytes
    fields: dict[str, Any]
    fd: int | None = None

    @property
    def name(self) -> str:
        """The errno's name, or OK."""
        return errno.errorcode.get(self.error, str(self.error)) if self.error else "OK"


def frame(kind: int | str, body: bytes = b"", size: int | None = None) -> bytes:
    """Header and body; *size* in the header may be a lie."""
    opcode = ROWS[kind].opcode if isinstance(kind, str) else kind
    return struct.pack("=II", opcode, len(body) if size is None else size) + body


def body_of(request: str, /, **values: Any) -> bytes:
    """The body of a request, values by field name."""
    return BODIES[request].pack(values)


def status(error: int) -> bytes:
    """The reply in shape *status* for an errno, or 0."""
    return struct.pack("=IIi", 1 if error else 0, 4, -error)


def is_original(command: list[str]) -> bool:
    """Whether a command is QEMU's own helper: the name, and a binary."""
    path = Path(shutil.which(command[0]) or command[0])
    with path.open("rb") as file:
        return path.name == "virtfs-proxy-helper" and file.read(4) == b"\x7fELF"


class Helper:
    """A helper that serves *export* over one half of a socketpair; the other half is ours.

    ``ends_with`` is the exit status that its test expects.
    """

    def __init__(self, command: list[str], export: Path, **popen: Any) -> None:
        self.export = export
        self.original = is_original(command)
        self.ends_with = 0
        self.said = ""
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(WAIT_S)
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - close() does it
        with theirs:
            self.process = subprocess.Popen(
                [*command, "-n", "-p", str(export), "-f", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.log,
                **popen,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> int:
        """Hang up and wait for the helper's end; a helper that outlives that is killed. Its exit status."""
        self.socket.close()
        try:
            return self.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(WAIT_S)
        finally:
            self.said = self.logged()
            self.log.close()

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(WAIT_S)

    def logged(self) -> str:
        """What it wrote to stderr so far."""
        if self.log.closed:
            return self.said
        return os.pread(self.log.fileno(), 1 << 20, 0).decode(errors="replace")

    def send(self, data: bytes) -> None:
        """Exactly these bytes. :raises Died: when nobody reads them. :raises Stalled: when nobody does in time."""
        try:
            self.socket.sendall(data)
        except TimeoutError as late:
            raise Stalled from late
        except (BrokenPipeError, ConnectionResetError) as broken:
            raise Died from broken

    def receive(self, count: int) -> bytes:
        """Exactly so many bytes. :raises Died: :raises Stalled:"""
        data = b""
        while len(data) < count:
            try:
                part = self.socket.recv(count - len(data))
            except TimeoutError as late:
                raise Stalled(f"got {data.hex()}, waited for {count} bytes") from late
            except ConnectionResetError as reset:
                raise Died from reset
            if not part:
                raise Died(f"got {data.hex()}, waited for {count} bytes")
            data += part
        return data

    def receive_fd(self) -> tuple[bytes, list[int]]:
        """Four bytes and the descriptors that came with them."""
        try:
            data, ancillary, flags, _ = self.socket.recvmsg(4, socket.CMSG_SPACE(4 * 8), socket.MSG_CMSG_CLOEXEC)
        except TimeoutError as late:
            raise Stalled from late
        except ConnectionResetError as reset:
            raise Died from reset
        fds = array.array("i")
        for level, kind, content in ancillary:
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            fds.frombytes(content)
        assert not flags & socket.MSG_CTRUNC
        if not data:
            raise Died
        return data + self.receive(4 - len(data)), list(fds)

    def reply(self, row: Request, length_only: bool = False) -> Reply:
        """The reply to a request, every byte of it accounted for.

        :param length_only: of a request whose size was 0, which is answered with the length alone.
        """
        if row.reply == FD:
            return self._fd_reply()
        header = self.receive(8)
        kind, size = struct.unpack("=II", header)
        assert kind in {0, 1}, header
        assert size <= 65536, header
        body = self.receive(size)
        if kind == 1 or row.reply == STATUS:
            assert size == 4, header
            (result,) = struct.unpack("=i", body)
            assert result < 0 if kind == 1 else result == 0, (header, body)
            return Reply(-result, header + body, {})
        if row.reply == SIZED:
            fields = Fields("=", "length:i32" if length_only else "value:bytes")
        else:
            fields = REPLIES[row.name]
        return Reply(0, header + body, fields.unpack(body))

    def _fd_reply(self) -> Reply:
        raw, fds = self.receive_fd()
        (result,) = struct.unpack("=i", raw)
        if result == INT_MAX:
            assert len(fds) == 1, fds
            return Reply(0, raw, {}, fds[0])
        assert not fds
        assert -4096 < result < 0, raw
        return Reply(-result, raw, {})

    def ask(self, request: str, /, **values: Any) -> Reply:
        """One well-formed request and its reply."""
        return self.ask_raw(request, body_of(request, **values), length_only=values.get("size") == 0)

    def ask_raw(self, request: str, body: bytes, length_only: bool = False) -> Reply:
        """One request with any body and its reply."""
        self.send(frame(request, body))
        return self.reply(ROWS[request], length_only)

    def alive(self) -> bool:
        """Whether it serves: the next good request gets its own reply."""
        reply = self.ask("lstat", path=b".")
        there = self.export.stat()
        return (reply.fields["ino"], reply.fields["dev"]) == (there.st_ino, there.st_dev)

    def hung_up(self) -> bool:
        """Whether it has closed the connection, with no byte more. Waits for it."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True
