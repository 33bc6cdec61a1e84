# SPDX-License-Identifier: Apache-2.0
"""Whole requests as bytes: for each row a function of its fields, generated once as codec.bind generates decoders."""

import errno
import struct
from collections.abc import Callable
from typing import Any, Final

from virtfs_proxy.codec import FIXED, Request
from virtfs_proxy.proxy.messages import HEADER, HEADER_SIZE, MAX_BODY, REQUESTS


def _runs(row: Request) -> list[tuple[str, list[str], str]]:
    """A frame's parts: struct codes, the expressions they pack, and the counted field behind them ('' for none)."""
    runs = []
    codes, values = HEADER, [str(row.opcode), "size_"]
    for name, kind in row.items():
        if kind in FIXED:
            codes, values = codes + FIXED[kind], [*values, name]
        else:
            runs.append((codes + "H", [*values, f"len({name})"], name))
            codes, values = HEADER[0], []
    return [*runs, (codes, values, "")] if values else runs


def _encoder(row: Request) -> Callable[..., bytes]:
    """Generate ``encode(*fields)``, which makes the whole frame of a row; tests hold it to codec.Fields.

    :raises OSError: from that: ENOBUFS when the fields are longer than a body may be.
    :raises OverflowError: from that, for a number that its field cannot hold.
    """
    # An underscore keeps the names of the generated function clear of the fields' (a row has a field "size").
    space: dict[str, Any] = {"error_": struct.error}
    parts, fixed, lengths = [], -HEADER_SIZE, ""
    for n, (codes, values, counted) in enumerate(_runs(row)):
        packer = struct.Struct(codes)
        space[f"pack{n}_"] = packer.pack
        parts.append(f"pack{n}_({', '.join(values)})")
        fixed += packer.size
        if counted:
            parts.append(counted)
            lengths += f" + len({counted})"
    text = (
        f"def encode({', '.join(name for name, _ in row.items())}):\n"
        f" size_ = {fixed}{lengths}\n"
        f" if size_ > {MAX_BODY}: raise OSError({errno.ENOBUFS}, '{row.name}: over {MAX_BODY} bytes')\n"
        f" try: return {' + '.join(parts)}\n"
        f" except error_ as e_: raise OverflowError('{row.name}: ' + str(e_)) from None\n"
    )
    exec(text, space)  # noqa: S102 - made of rows of our own, as codec.bind does it
    encode: Callable[..., bytes] = space["encode"]
    return encode


FRAMES: Final = {row.name: _encoder(row) for row in REQUESTS}
"""Row's name -> ``encode(*fields)``."""
