# SPDX-License-Identifier: Apache-2.0
"""Rows of fields become functions: one decoder and one encoder a request, made once at import.

A row states a request as its protocol's header does. :func:`bind` joins the rows with the functions that
serve them and generates, for each, a function that takes a whole body apart and makes the call, as
collections.namedtuple generates its methods. A row without its function, or with other parameters than
its fields, fails there: at import, not at the first request.

Whatever bytes come, a decoder either makes the call with arguments that passed their kinds, or raises
:class:`Malformed`. It does no I/O and keeps nothing.
"""

import errno
import struct
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, Final, NamedTuple


class Malformed(ValueError):
    """A peer's bytes that are not what their row says. ``errno`` is what the peer is told."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.errno = code


class Request(NamedTuple):
    """One request of a protocol: its number, name, body and the shape of its reply.

    :param fields: ``name:kind`` for each field in wire order, separated by blanks. Kinds: u16, u32, u64, i32,
        i64; path and text (see names.py) and bytes, each preceded by its length as u16; id, a user or
        group id that names somebody (not -1).
    :param reply: a shape that the face knows by name, or the reply's own fields.
    """

    opcode: int
    name: str
    fields: str
    reply: str

    def items(self) -> list[tuple[str, str]]:
        """Fields as (name, kind), in wire order."""
        return fields_of(self.fields)


FIXED: Final = {"u16": "H", "u32": "I", "u64": "Q", "i32": "i", "i64": "q", "id": "I"}
"""Kinds of a fixed size and their struct codes."""

COUNTED: Final = frozenset(("path", "text", "bytes"))
"""Kinds that are a length (u16) and that many bytes."""

_TAKEN: Final = frozenset(("session", "b", "o", "e", "n_", "call", "error", "SHORT", "NAME", "NUL", "DOTS", "NO_ID"))
"""Names that the generated decoders use themselves."""

NO_ID: Final = 0xFFFFFFFF
"""(uid_t)-1: "leave it alone" in chown(2), nobody at all anywhere else."""


def fields_of(fields: str) -> list[tuple[str, str]]:
    """Take a row's fields apart.

    :raises ValueError: for a kind that does not exist.
    """
    items = []
    for field in fields.split():
        name, _, kind = field.partition(":")
        if kind not in FIXED and kind not in COUNTED:
            raise ValueError(f"field {field!r}: no such kind")
        if name in _TAKEN or not name.isidentifier():
            raise ValueError(f"field {field!r}: not a name for a field")
        items.append((name, kind))
    return items


def clean_path(path: bytes) -> bytes:
    """The kind path, for bytes that are not plainly one already: what they name below the directory served.

    QEMU's driver counts the NUL at the end of most paths (v9fs_path_sprintf in its hw/9pfs/9p.c), and calls the root
    '/', so that what lies in it is '//a': one NUL at the end and slashes at the beginning are dropped.

    :raises Malformed: ENOENT for an empty path, as the kernel; EINVAL for a NUL byte within it or a component '..'.
    """
    named = path[:-1] if path.endswith(b"\0") else path
    if not named:
        raise Malformed(errno.ENOENT, "empty path")
    if b"\0" in named:
        raise Malformed(errno.EINVAL, f"NUL byte in path {path!r}")
    named = named.lstrip(b"/") or b"."
    if b".." in named and b".." in named.split(b"/"):
        raise Malformed(errno.EINVAL, f"'..' in path {path!r}")
    return named


def _refuse_text(name: str, value: bytes) -> None:
    raise Malformed(errno.EINVAL, f"NUL byte in {name} {value!r}")


def _refuse_id(name: str) -> None:
    raise Malformed(errno.EINVAL, f"{name} is -1")


_CHECKS: Final = {
    # 47 is '/'. An empty path has no first byte: `not` must come first.
    "path": "if not {0} or {0}[0] == 47 or NUL in {0} or DOTS in {0}: {0} = clean_path({0})",
    "text": "if NUL in {0}: refuse_text('{0}', {0})",
    "id": "if {0} == NO_ID: refuse_id('{0}')",
}


class _Source:
    """The lines of one decoder while it is being written, and the names they use."""

    def __init__(self, order: str, call: Callable[..., Any]) -> None:
        self.order = order
        self.lines: list[str] = []
        self.run: list[tuple[str, str]] = []
        self.space: dict[str, Any] = {
            "call": call,
            "clean_path": clean_path,
            "refuse_text": _refuse_text,
            "refuse_id": _refuse_id,
            "NO_ID": NO_ID,
            "NUL": b"\0",
            "DOTS": b"..",
        }

    def flush(self, length: str = "") -> None:
        """Read the fixed fields gathered so far, and the u16 before a counted one, in one unpack."""
        if not self.run and not length:
            return
        codes = "".join(FIXED[kind] for _, kind in self.run) + ("H" if length else "")
        packed = struct.Struct(self.order + codes)
        name = f"unpack{len(self.space)}"
        self.space[name] = packed.unpack_from
        targets = [field for field, _ in self.run] + ([length] if length else [])
        self.lines.append(f"{', '.join(targets)}, = {name}(b, o); o += {packed.size}")
        self.run = []

    def field(self, name: str, kind: str) -> None:
        """Read one field. The checks wait until the whole body is known to be of the right length."""
        if kind in FIXED:
            self.run.append((name, kind))
            return
        self.flush("n_")
        self.lines.append(f"e = o + n_; {name} = b[o:e]; o = e")


def _decoder(order: str, row: Request, call: Callable[..., Any], short: int) -> Callable[..., Any]:
    source = _Source(order, call)
    for name, kind in row.items():
        source.field(name, kind)
    source.flush()
    checks = [_CHECKS[kind].format(name) for name, kind in row.items() if kind in _CHECKS]
    arguments = "".join(f", {name}" for name, _ in row.items())
    source.space |= {"error": struct.error, "Malformed": Malformed, "SHORT": short, "NAME": row.name}
    text = "\n ".join(
        [
            "def decode(session, b, o):",
            "try:",
            *(f" {line}" for line in source.lines or ["pass"]),
            "except error: raise Malformed(SHORT, NAME + ': body is cut short') from None",
            # A counted field beyond the end leaves o behind it: one test finds it and trailing bytes.
            "if o != len(b): raise Malformed(SHORT, NAME + ': body is not as long as its fields')",
            *checks,
            f"return call(session{arguments})",
        ]
    )
    exec(text, source.space)  # noqa: S102 - made of rows of our own, as namedtuple does it
    decode: Callable[..., Any] = source.space["decode"]
    return decode


def bind(
    order: str, rows: Iterable[Request], handlers: ModuleType, short: int
) -> dict[int, tuple[Request, Callable[..., Any]]]:
    """Join rows with the functions of the same names in a module.

    :param order: struct's byte order character: '=' for the host's, '<' for little-endian.
    :param handlers: for each row a function ``name(session, *fields)``, parameters named as the fields.
    :param short: errno of a body that ends before its fields do, or after.
    :returns: opcode -> (row, ``decode(session, frame: bytes, offset: int)``), which returns what the handler
        returns, or raises :class:`Malformed` or what the handler raises.
    :raises TypeError: for a row whose function is missing, or takes other parameters, or whose opcode came before.
    """
    table: dict[int, tuple[Request, Callable[..., Any]]] = {}
    for row in rows:
        call = getattr(handlers, row.name, None)
        if call is None:
            raise TypeError(f"{handlers.__name__} has no function for the row {row.name}")
        code = call.__code__
        got = list(code.co_varnames[1 : code.co_argcount])
        if got != [name for name, _ in row.items()]:
            raise TypeError(f"{handlers.__name__}.{row.name} takes {got}, its row has {row.fields!r}")
        if row.opcode in table:
            raise TypeError(f"opcode {row.opcode} is there twice: {row.name}")
        table[row.opcode] = (row, _decoder(order, row, call, short))
    return table


class Fields:
    """Pack and unpack a row's fields: the client's side, and replies that have fields of their own.

    :param order: as in :func:`bind`.
    :param fields: as in :class:`Request`.
    """

    def __init__(self, order: str, fields: str) -> None:
        self.items = fields_of(fields)
        self._length = struct.Struct(order + "H")
        self._fixed = {kind: struct.Struct(order + code) for kind, code in FIXED.items()}

    def pack(self, values: Mapping[str, Any]) -> bytes:
        """Body bytes of the values, by field name.

        :raises KeyError: when a value is missing.
        :raises struct.error: when a number is out of its kind's range, or a string longer than 65,535 bytes.
        """
        out = []
        for name, kind in self.items:
            value = values[name]
            if kind in FIXED:
                out.append(self._fixed[kind].pack(value))
            else:
                out.append(self._length.pack(len(value)) + bytes(value))
        return b"".join(out)

    def unpack(self, body: bytes) -> dict[str, Any]:
        """Values by field name.

        :raises Malformed: EPROTO when the body is shorter or longer than its fields.
        """
        values: dict[str, Any] = {}
        offset = 0
        try:
            for name, kind in self.items:
                if kind in FIXED:
                    (values[name],) = self._fixed[kind].unpack_from(body, offset)
                    offset += self._fixed[kind].size
                else:
                    (length,) = self._length.unpack_from(body, offset)
                    offset += 2 + length
                    values[name] = bytes(body[offset - length : offset])
        except struct.error:
            offset = -1
        if offset != len(body):
            raise Malformed(errno.EPROTO, "body is not as long as its fields")
        return values


__all__ = ["COUNTED", "FIXED", "NO_ID", "Fields", "Malformed", "Request", "bind", "clean_path", "fields_of"]
