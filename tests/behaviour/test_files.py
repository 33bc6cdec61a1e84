# SPDX-License-Identifier: Apache-2.0
"""Regular files: made, opened, read, written, cut, and what is no file."""

import errno
import hashlib
import os
import random
import stat
from pathlib import Path

import pytest
from tests.behaviour.expect import kind_and_mode, on_host, owner_of, read, refused, write
from tests.behaviour.faces import ROOT, USER, Face, Owner

pytestmark = pytest.mark.root


def test_what_is_written_is_read_back_and_is_on_the_host(face: Face, host: Path) -> None:
    with face.create(b"f") as file:
        assert file.write(b"content", 0) == 7
        assert file.read(100, 0) == b"content"
    assert read(face, b"f") == b"content"
    assert (host / "f").read_bytes() == b"content"


def test_what_the_host_writes_is_read(face: Face, host: Path) -> None:
    (host / "f").write_bytes(b"from the host")
    assert read(face, b"f") == b"from the host"
    (host / "f").write_bytes(b"again")
    assert read(face, b"f") == b"again"


@pytest.mark.parametrize("mode", [0, 0o400, 0o600, 0o644, 0o666, 0o777, 0o1666, 0o4755, 0o2755], ids=oct)
def test_create_gives_the_mode_it_is_asked_for(face: Face, host: Path, mode: int) -> None:
    write(face, b"f", mode=mode)
    assert kind_and_mode(host, b"f") == stat.S_IFREG | mode


@pytest.mark.parametrize("owner", [ROOT, USER, (0, 2000), (1000, 0), (2**31, 2**32 - 2)], ids=str)
def test_create_gives_the_owner_it_is_asked_for(face: Face, host: Path, owner: Owner) -> None:
    write(face, b"f", owner=owner)
    assert owner_of(host, b"f") == owner


def test_an_owner_who_may_write_nothing_there_creates_all_the_same(face: Face, host: Path) -> None:
    """Who may do what is for the guest's kernel to say; the helper adds the owner."""
    (host / "d").mkdir(mode=0o700)
    write(face, b"d/f", owner=USER)
    assert owner_of(host, b"d/f") == USER


def test_the_next_file_has_its_own_owner(face: Face, host: Path) -> None:
    write(face, b"a", owner=USER)
    write(face, b"b", owner=ROOT)
    assert (owner_of(host, b"a"), owner_of(host, b"b")) == (USER, ROOT)


def test_create_exclusively_over_what_exists(face: Face, host: Path) -> None:
    (host / "f").write_bytes(b"kept")
    with refused(errno.EEXIST):
        face.create(b"f", os.O_WRONLY | os.O_EXCL)
    assert (host / "f").read_bytes() == b"kept"


@pytest.mark.parametrize("kind", ["directory", "fifo", "dangling symlink"])
def test_create_exclusively_over_what_is_no_file(face: Face, host: Path, kind: str) -> None:
    if kind == "directory":
        (host / "x").mkdir()
    elif kind == "fifo":
        os.mkfifo(host / "x")
    else:
        (host / "x").symlink_to("nowhere")
    with refused(errno.EEXIST):
        face.create(b"x", os.O_WRONLY | os.O_EXCL)
    assert os.listdir(host) == ["x"]


def test_create_of_what_exists_opens_it_as_it_is(face: Face, host: Path) -> None:
    (host / "f").write_bytes(b"kept")
    (host / "f").chmod(0o640)
    with face.create(b"f", os.O_RDWR, mode=0o777, owner=USER) as file:
        assert file.read(10, 0) == b"kept"
    assert (owner_of(host, b"f"), stat.S_IMODE(kind_and_mode(host, b"f"))) == (ROOT, 0o640)


def test_create_with_trunc_empties_what_exists(face: Face, host: Path) -> None:
    (host / "f").write_bytes(b"gone")
    face.create(b"f", os.O_WRONLY | os.O_TRUNC).__exit__(None, None, None)
    assert (host / "f").read_bytes() == b""


def test_open_with_trunc_empties_it(face: Face, host: Path) -> None:
    (host / "f").write_bytes(b"gone")
    face.open(b"f", os.O_WRONLY | os.O_TRUNC).__exit__(None, None, None)
    assert (host / "f").read_bytes() == b""


@pytest.mark.parametrize("path", [b"none", b"none/f"])
def test_open_what_is_not_there(face: Face, path: bytes) -> None:
    with refused(errno.ENOENT):
        face.open(path, os.O_RDONLY)


def test_open_creates_nothing(face: Face, host: Path) -> None:
    """Whatever its flags: what is new needs an owner."""
    with refused(errno.ENOENT):
        face.open(b"f", os.O_RDWR | os.O_CREAT)
    assert not os.listdir(host)


def test_create_in_a_directory_that_is_not_there(face: Face) -> None:
    with refused(errno.ENOENT):
        face.create(b"none/f")


@pytest.mark.parametrize("path", [b"f/x", b"f/", b"f/."])
def test_a_file_is_no_directory_on_the_way(face: Face, path: bytes) -> None:
    write(face, b"f")
    with refused(errno.ENOTDIR):
        face.open(path, os.O_RDONLY)
    with refused(errno.ENOTDIR):
        face.lstat(path)


def test_a_directory_is_not_opened_for_writing(face: Face) -> None:
    face.mkdir(b"d")
    with refused(errno.EISDIR):
        face.open(b"d", os.O_WRONLY)
    with refused(errno.EISDIR):
        face.create(b"d", os.O_RDWR)


def test_a_file_is_not_opened_as_a_directory(face: Face) -> None:
    write(face, b"f")
    with refused(errno.ENOTDIR):
        face.open(b"f", os.O_RDONLY | os.O_DIRECTORY)


def test_a_symlink_is_not_followed_by_open(face: Face, host: Path) -> None:
    """The guest's kernel resolves links; a server that did it too would leave the export by one."""
    (host / "f").write_bytes(b"x")
    (host / "link").symlink_to("f")
    (host / "loop").symlink_to("loop")
    for path in (b"link", b"loop"):
        with refused(errno.ELOOP):
            face.open(path, os.O_RDONLY)


def test_create_does_not_follow_a_dangling_symlink(face: Face, host: Path) -> None:
    (host / "link").symlink_to("new")
    with refused(errno.ELOOP):
        face.create(b"link", os.O_WRONLY)
    assert os.listdir(host) == ["link"]


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK], ids=stat.filemode)
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR], ids=["r", "w", "rw"])
def test_what_is_no_file_is_not_opened_and_stalls_nobody(face: Face, host: Path, kind: int, flags: int) -> None:
    os.mknod(host / "x", kind | 0o600, os.makedev(1, 3))
    with refused(errno.ENXIO):
        face.open(b"x", flags)
    assert face.lstat(b"x").st_mode == kind | 0o600


def test_reading_at_an_offset_and_past_the_end(face: Face) -> None:
    with face.create(b"f") as file:
        file.write(b"0123456789", 0)
        assert file.read(3, 4) == b"456"
        assert file.read(100, 8) == b"89"
        assert file.read(100, 10) == b""
        assert file.read(100, 1 << 40) == b""


def test_writing_behind_the_end_leaves_zeros(face: Face, host: Path) -> None:
    with face.create(b"f") as file:
        file.write(b"end", 5000)
    assert (host / "f").read_bytes() == bytes(5000) + b"end"
    assert face.lstat(b"f").st_size == 5003


def test_appending_goes_to_the_end(face: Face, host: Path) -> None:
    write(face, b"f", b"one")
    with face.open(b"f", os.O_WRONLY | os.O_APPEND) as file:
        assert file.append(b"two") == 3
        with (host / "f").open("ab") as other:
            other.write(b"three")
        assert file.append(b"four") == 4
    assert (host / "f").read_bytes() == b"onetwothreefour"


def test_a_mebibyte_and_more_arrives_whole(face: Face, host: Path) -> None:
    data = random.Random(1).randbytes(3 * (1 << 20) + 17)
    with face.create(b"f") as file:
        for offset in range(0, len(data), 100_003):
            piece = data[offset : offset + 100_003]
            assert file.write(piece, offset) == len(piece)
        file.fsync()
    assert hashlib.sha256((host / "f").read_bytes()).digest() == hashlib.sha256(data).digest()
    with face.open(b"f", os.O_RDONLY) as file:
        assert b"".join(file.read(65_536, offset) for offset in range(0, len(data), 65_536)) == data


def test_two_handles_see_each_others_writes(face: Face) -> None:
    with face.create(b"f") as one, face.open(b"f", os.O_RDWR) as other:
        one.write(b"abc", 0)
        other.write(b"B", 1)
        assert (one.read(9, 0), other.read(9, 0)) == (b"aBc", b"aBc")


def test_a_handle_does_what_it_was_opened_for(face: Face) -> None:
    write(face, b"f", b"abc")
    with face.open(b"f", os.O_RDONLY) as file, refused(errno.EBADF):
        file.write(b"x", 0)
    with face.open(b"f", os.O_WRONLY) as file, refused(errno.EBADF):
        file.read(1, 0)
    assert read(face, b"f") == b"abc"


def test_a_handle_outlives_the_name(face: Face, host: Path) -> None:
    with face.create(b"f") as file:
        file.write(b"abc", 0)
        face.remove(b"f")
        assert not os.listdir(host)
        file.write(b"def", 3)
        assert file.read(9, 0) == b"abcdef"


def test_a_handle_outlives_a_rename_over_its_name(face: Face) -> None:
    with face.create(b"old") as file:
        file.write(b"old", 0)
        write(face, b"new", b"new")
        face.rename(b"new", b"old")
        assert file.read(9, 0) == b"old"
    assert read(face, b"old") == b"new"


def test_a_handle_outlives_a_chmod(face: Face) -> None:
    with face.create(b"f") as file:
        face.chmod(b"f", 0)
        assert file.write(b"abc", 0) == 3
        assert file.read(9, 0) == b"abc"


def test_truncate_cuts_and_extends(face: Face, host: Path) -> None:
    write(face, b"f", b"0123456789")
    face.truncate(b"f", 4)
    assert (host / "f").read_bytes() == b"0123"
    face.truncate(b"f", 6)
    assert (host / "f").read_bytes() == b"0123\0\0"
    face.truncate(b"f", 0)
    assert (host / "f").read_bytes() == b""


def test_truncate_makes_a_hole_of_any_size(face: Face, host: Path) -> None:
    write(face, b"f")
    face.truncate(b"f", 1 << 40)
    assert face.lstat(b"f").st_size == on_host(host, b"f").st_size == 1 << 40
    assert on_host(host, b"f").st_blocks < 100


def test_a_handle_truncates(face: Face, host: Path) -> None:
    with face.create(b"f") as file:
        file.write(b"0123456789", 0)
        file.truncate(2)
    assert (host / "f").read_bytes() == b"01"


def test_truncate_what_cannot_be(face: Face, host: Path) -> None:
    face.mkdir(b"d")
    os.mkfifo(host / "fifo")
    with refused(errno.EISDIR):
        face.truncate(b"d", 0)
    with refused(errno.EINVAL):
        face.truncate(b"fifo", 0)
    with refused(errno.ENOENT):
        face.truncate(b"none", 0)


def test_truncate_to_less_than_nothing(face: Face, host: Path) -> None:
    write(face, b"f", b"kept")
    with refused(errno.EINVAL):
        face.truncate(b"f", -1)
    assert (host / "f").read_bytes() == b"kept"


def test_writing_moves_mtime_and_size(face: Face, host: Path) -> None:
    write(face, b"f", b"x")
    face.utime(b"f", 0, 0)
    with face.open(b"f", os.O_WRONLY) as file:
        file.write(b"more", 0)
    st = face.lstat(b"f")
    assert st.st_mtime_ns == on_host(host, b"f").st_mtime_ns > 0
    assert st.st_size == 4
