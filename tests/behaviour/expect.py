# SPDX-License-Identifier: Apache-2.0
"""Words that the cases are written in."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.behaviour.faces import ROOT, Face, Owner


@contextlib.contextmanager
def refused(*codes: int) -> Iterator[None]:
    """The block fails with one of these errnos."""
    with pytest.raises(OSError, match=r"\[Errno \d+\]") as raised:
        yield
    got = errno.errorcode[raised.value.errno or 0]
    assert got in {errno.errorcode[code] for code in codes}


def write(face: Face, path: bytes, data: bytes = b"", mode: int = 0o644, owner: Owner = ROOT) -> None:
    """Make a file through the face."""
    with face.create(path, os.O_WRONLY | os.O_EXCL, mode, owner) as file:
        assert file.write(data, 0) == len(data)


def read(face: Face, path: bytes) -> bytes:
    """All that is in a file, through the face."""
    with face.open(path, os.O_RDONLY) as file:
        return file.read(face.lstat(path).st_size + 1, 0)


def on_host(host: Path, path: bytes) -> os.stat_result:
    """What the host's lstat tells."""
    return os.lstat(os.path.join(os.fsencode(host), path))


def kind_and_mode(host: Path, path: bytes) -> int:
    """st_mode on the host."""
    return on_host(host, path).st_mode


def owner_of(host: Path, path: bytes) -> Owner:
    """Owner on the host."""
    st = on_host(host, path)
    return st.st_uid, st.st_gid
