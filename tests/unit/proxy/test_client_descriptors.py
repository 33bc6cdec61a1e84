# SPDX-License-Identifier: Apache-2.0
"""Descriptors that a client receives, and those it must not keep."""

import errno
import fcntl
import os
import struct
from pathlib import Path

import pytest
from tests.unit.proxy.fake_helper import OK, Helper, open_descriptors

from virtfs_proxy.proxy.messages import FD_VALID


def test_a_descriptor_is_close_on_exec(helper: Helper, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    with (tmp_path / "f").open("rb") as sent:
        helper.say(struct.pack("=i", FD_VALID), [sent.fileno()])
    fd = helper.client.open_fd("f")
    try:
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert os.read(fd, 100) == b"content"
    finally:
        os.close(fd)
    assert helper.heard() == ("open", {"path": b"./f", "flags": os.O_RDONLY})


@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        (os.O_RDONLY, "rb"),
        (os.O_RDONLY | os.O_NONBLOCK, "rb"),
        (os.O_WRONLY, "wb"),
        (os.O_WRONLY | os.O_APPEND, "wb"),
        (os.O_RDWR, "rb+"),
    ],
)
def test_open_gives_a_file_object(helper: Helper, tmp_path: Path, flags: int, mode: str) -> None:
    (tmp_path / "f").write_bytes(b"kept")
    fd = os.open(tmp_path / "f", flags)
    helper.say(struct.pack("=i", FD_VALID), [fd])
    os.close(fd)
    with helper.client.open(b"x/f", flags) as file:
        assert (file.mode, file.name) == (mode, b"x/f")
    assert (tmp_path / "f").read_bytes() == b"kept"
    assert helper.heard() == ("open", {"path": b"./x/f", "flags": flags})


def test_create_names_mode_and_owner(helper: Helper, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    helper.say(struct.pack("=i", FD_VALID), [fd])
    os.close(fd)
    with helper.client.create("f", os.O_WRONLY | os.O_CREAT, 0o600, 1, 2) as file:
        file.write(b"new")
    assert (tmp_path / "f").read_bytes() == b"new"
    fields = {"path": b"./f", "flags": os.O_WRONLY | os.O_CREAT, "mode": 0o600, "uid": 1, "gid": 2}
    assert helper.heard() == ("create", fields)


def test_a_directory_is_no_file_object(helper: Helper, tmp_path: Path) -> None:
    before = open_descriptors()
    fd = os.open(tmp_path, os.O_RDONLY)
    helper.say(struct.pack("=i", FD_VALID), [fd])
    os.close(fd)
    with pytest.raises(IsADirectoryError):
        helper.client.open("d")
    assert open_descriptors() == before


def test_listing_a_directory(helper: Helper, tmp_path: Path) -> None:
    before = open_descriptors()
    (tmp_path / "d").mkdir()
    (tmp_path / os.fsdecode(b"\xff")).touch()
    (tmp_path / "l").symlink_to("d")
    for _ in range(2):
        fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        helper.say(struct.pack("=i", FD_VALID), [fd])
        os.close(fd)
    assert sorted(helper.client.listdir("/")) == [b"d", b"l", b"\xff"]
    assert helper.heard() == ("open", {"path": b".", "flags": os.O_DIRECTORY})
    entries = sorted(helper.client.scandir())
    assert [(e.name, e.is_dir, e.is_symlink) for e in entries] == [
        (b"d", True, False),
        (b"l", False, True),
        (b"\xff", False, False),
    ]
    assert entries[0].inode == (tmp_path / "d").stat().st_ino
    assert open_descriptors() == before


def test_a_descriptor_that_got_lost_is_enfile(helper: Helper) -> None:
    helper.say(struct.pack("=i", FD_VALID))
    with pytest.raises(OSError, match="f") as raised:
        helper.client.open_fd("f")
    assert raised.value.errno == errno.ENFILE
    helper.say(OK)
    helper.client.remove("the connection goes on")


def test_descriptors_that_nobody_asked_for_are_closed(helper: Helper) -> None:
    before = open_descriptors()
    helper.say(struct.pack("=i", FD_VALID), [0, 0, 0])
    os.close(helper.client.open_fd("f"))
    assert open_descriptors() == before
    helper.say(OK, [0])
    helper.client.remove("f")
    assert open_descriptors() == before
    read, write = os.pipe()
    helper.say(struct.pack("=i", -errno.ENOENT), [read])
    os.close(read)
    with pytest.raises(ConnectionError, match="a descriptor"):
        helper.client.open_fd("f")
    with pytest.raises(BrokenPipeError):
        os.write(write, b"x")  # no one holds the other end
    os.close(write)


def test_a_descriptor_whose_status_arrives_byte_by_byte(helper: Helper) -> None:
    before = open_descriptors()
    status = struct.pack("=i", FD_VALID)
    helper.say(status[:1], [0])
    helper.say(status[1:])
    os.close(helper.client.open_fd("f"))
    assert open_descriptors() == before
