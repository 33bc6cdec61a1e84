# SPDX-License-Identifier: Apache-2.0
"""Names: directories, links, renaming, removing, listing."""

import errno
import os
import stat
from pathlib import Path

import pytest
from tests.behaviour.expect import kind_and_mode, on_host, owner_of, read, refused, write
from tests.behaviour.faces import ROOT, USER, Face

pytestmark = pytest.mark.root

ODD_NAMES = [
    *(b"with space", b"new\nline", b"-rf", b"...", b"*", b"back\\slash"),
    *(b"\xff\xfe", "ünï".encode(), b"\x1b[1m", b"a" * 255),
]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_names_are_bytes(face: Face, host: Path, name: bytes) -> None:
    write(face, name, b"x")
    face.mkdir(b"d")
    face.rename(name, b"d/" + name)
    face.symlink(name, b"d/link")
    assert sorted(face.listdir(b"d")) == sorted([name, b"link"])
    assert sorted(os.listdir(os.fsencode(host / "d"))) == sorted([name, b"link"])
    assert face.readlink(b"d/link") == name
    face.remove(b"d/" + name)
    assert face.listdir(b"d") == [b"link"]


def test_a_name_of_256_bytes_is_too_long(face: Face) -> None:
    name = b"a" * 256
    with refused(errno.ENAMETOOLONG):
        face.create(name)
    with refused(errno.ENAMETOOLONG):
        face.mkdir(name)
    with refused(errno.ENAMETOOLONG):
        face.lstat(name)


# Directories


@pytest.mark.parametrize("mode", [0, 0o700, 0o755, 0o777, 0o1777], ids=oct)
def test_mkdir_gives_mode_and_owner(face: Face, host: Path, mode: int) -> None:
    face.mkdir(b"d", mode, USER)
    assert kind_and_mode(host, b"d") == stat.S_IFDIR | mode
    assert owner_of(host, b"d") == USER


@pytest.mark.parametrize("kind", ["file", "directory", "dangling symlink"])
def test_mkdir_over_what_exists(face: Face, host: Path, kind: str) -> None:
    if kind == "directory":
        (host / "x").mkdir()
    elif kind == "file":
        (host / "x").touch()
    else:
        (host / "x").symlink_to("nowhere")
    with refused(errno.EEXIST):
        face.mkdir(b"x")
    assert os.listdir(host) == ["x"]


def test_mkdir_where_there_is_no_directory(face: Face) -> None:
    write(face, b"f")
    with refused(errno.ENOENT):
        face.mkdir(b"none/d")
    with refused(errno.ENOTDIR):
        face.mkdir(b"f/d")


def test_directories_count_their_subdirectories(face: Face, host: Path) -> None:
    face.mkdir(b"d")
    write(face, b"d/f")
    assert face.lstat(b"d").st_nlink == 2
    face.mkdir(b"d/sub")
    assert face.lstat(b"d").st_nlink == on_host(host, b"d").st_nlink == 3
    face.remove(b"d/sub")
    assert face.lstat(b"d").st_nlink == 2


def test_in_a_setgid_directory_the_group_is_inherited(face: Face, host: Path) -> None:
    (host / "d").mkdir()
    os.chown(host / "d", 0, 777)
    (host / "d").chmod(0o2777)
    write(face, b"d/f", owner=USER)
    face.mkdir(b"d/sub", 0o755, USER)
    face.mknod(b"d/fifo", stat.S_IFIFO | 0o644, 0, USER)
    face.symlink(b"t", b"d/link", USER)
    assert {owner_of(host, b"d/" + name) for name in (b"f", b"sub", b"fifo", b"link")} == {(1000, 777)}
    assert kind_and_mode(host, b"d/sub") == stat.S_IFDIR | 0o2755
    assert kind_and_mode(host, b"d/f") == stat.S_IFREG | 0o644


def test_nobody_makes_a_setgid_file_for_a_group_not_theirs(face: Face, host: Path) -> None:
    (host / "d").mkdir()
    os.chown(host / "d", 0, 777)
    (host / "d").chmod(0o2777)
    write(face, b"d/f", mode=0o2775, owner=USER)
    assert owner_of(host, b"d/f") == (1000, 777)
    assert kind_and_mode(host, b"d/f") == stat.S_IFREG | 0o775


# Listing


def test_an_empty_directory_lists_nothing(face: Face) -> None:
    assert face.listdir(b".") == []


def test_listing_follows_what_happens(face: Face, host: Path) -> None:
    write(face, b"a")
    face.mkdir(b"b")
    (host / "c").symlink_to("nowhere")
    assert sorted(face.listdir(b".")) == [b"a", b"b", b"c"]
    face.remove(b"a")
    (host / "d").touch()
    assert sorted(face.listdir(b".")) == [b"b", b"c", b"d"]


def test_two_thousand_entries_are_listed(face: Face, host: Path) -> None:
    names = {b"%04d-%b" % (n, b"x" * (n % 200)) for n in range(2000)}
    for name in names:
        (host / os.fsdecode(name)).touch()
    listed = face.listdir(b".")
    assert len(listed) == 2000
    assert set(listed) == names


def test_listing_what_is_no_directory(face: Face, host: Path) -> None:
    write(face, b"f")
    (host / "d").mkdir()
    (host / "link").symlink_to("d")
    with refused(errno.ENOTDIR):
        face.listdir(b"f")
    with refused(errno.ENOENT):
        face.listdir(b"none")
    with refused(errno.ENOTDIR, errno.ELOOP):
        face.listdir(b"link")


# Removing


def test_remove_a_file(face: Face, host: Path) -> None:
    write(face, b"f")
    face.remove(b"f")
    assert not os.listdir(host)
    with refused(errno.ENOENT):
        face.lstat(b"f")


def test_remove_an_empty_directory(face: Face, host: Path) -> None:
    face.mkdir(b"d")
    face.remove(b"d")
    assert not os.listdir(host)


def test_a_directory_that_holds_something_stays(face: Face, host: Path) -> None:
    face.mkdir(b"d")
    write(face, b"d/f")
    with refused(errno.ENOTEMPTY):
        face.remove(b"d")
    assert os.listdir(host / "d") == ["f"]


def test_remove_what_is_not_there(face: Face) -> None:
    write(face, b"f")
    with refused(errno.ENOENT):
        face.remove(b"none")
    with refused(errno.ENOTDIR):
        face.remove(b"f/x")


def test_removing_a_symlink_spares_what_it_points_to(face: Face, host: Path) -> None:
    (host / "d").mkdir()
    (host / "f").touch()
    for target in ("d", "f", "nowhere"):
        (host / "link").symlink_to(target)
        face.remove(b"link")
        assert sorted(os.listdir(host)) == ["d", "f"]


# Symlinks


@pytest.mark.parametrize(
    "target",
    [b"f", b"../..", b"/etc/passwd", b"\xff", b"x" * 4095, b"//", b"a/../b/"],
    ids=lambda t: ascii(t[:20]),
)
def test_a_symlink_keeps_its_target_as_it_is(face: Face, host: Path, target: bytes) -> None:
    face.symlink(target, b"link", USER)
    assert face.readlink(b"link") == os.readlink(os.fsencode(host / "link")) == target
    assert face.lstat(b"link").st_size == len(target)
    assert stat.S_ISLNK(face.lstat(b"link").st_mode)
    assert owner_of(host, b"link") == USER


def test_symlink_over_what_exists(face: Face, host: Path) -> None:
    (host / "f").write_bytes(b"kept")
    with refused(errno.EEXIST):
        face.symlink(b"t", b"f")
    assert (host / "f").read_bytes() == b"kept"


def test_symlink_without_a_target(face: Face, host: Path) -> None:
    with refused(errno.ENOENT):
        face.symlink(b"", b"link")
    assert not os.listdir(host)


def test_a_symlink_target_of_4096_bytes_is_too_long(face: Face) -> None:
    with refused(errno.ENAMETOOLONG):
        face.symlink(b"x" * 4096, b"link")


def test_readlink_of_what_is_no_symlink(face: Face) -> None:
    write(face, b"f")
    with refused(errno.EINVAL):
        face.readlink(b"f")
    with refused(errno.ENOENT):
        face.readlink(b"none")


@pytest.mark.parametrize("target", ["/etc", "../../../../../../../../etc"])
def test_no_symlink_leads_out(face: Face, host: Path, target: str) -> None:
    (host / "out").symlink_to(target)
    assert Path("/etc/passwd").exists()
    with refused(errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        face.open(b"out/passwd", os.O_RDONLY)
    with refused(errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        face.lstat(b"out/passwd")


# Hard links


def test_a_hard_link_is_the_same_file(face: Face, host: Path) -> None:
    write(face, b"f", b"x")
    face.link(b"f", b"g")
    one, other = face.lstat(b"f"), face.lstat(b"g")
    assert (one.st_nlink, one.st_ino) == (2, other.st_ino)
    with face.open(b"g", os.O_WRONLY) as file:
        file.write(b"y", 0)
    assert read(face, b"f") == b"y"
    face.remove(b"f")
    assert face.lstat(b"g").st_nlink == on_host(host, b"g").st_nlink == 1
    assert read(face, b"g") == b"y"


def test_a_hard_link_to_a_symlink_is_one_more_symlink(face: Face, host: Path) -> None:
    (host / "f").touch()
    (host / "link").symlink_to("f")
    face.link(b"link", b"other")
    assert (face.readlink(b"other"), face.lstat(b"other").st_nlink) == (b"f", 2)
    assert on_host(host, b"f").st_nlink == 1


def test_hard_links_that_cannot_be(face: Face, host: Path) -> None:
    face.mkdir(b"d")
    write(face, b"f")
    with refused(errno.EPERM):
        face.link(b"d", b"e")
    with refused(errno.EEXIST):
        face.link(b"f", b"d")
    with refused(errno.ENOENT):
        face.link(b"none", b"e")
    with refused(errno.ENOENT):
        face.link(b"f", b"none/e")
    assert sorted(os.listdir(host)) == ["d", "f"]


# Renaming


def test_rename_keeps_the_inode(face: Face, host: Path) -> None:
    write(face, b"old", b"x")
    inode = face.lstat(b"old").st_ino
    face.rename(b"old", b"new")
    assert face.lstat(b"new").st_ino == on_host(host, b"new").st_ino == inode
    assert os.listdir(host) == ["new"]


def test_rename_over_a_file_replaces_it(face: Face, host: Path) -> None:
    write(face, b"old", b"old")
    write(face, b"new", b"new")
    face.link(b"new", b"spare")
    face.rename(b"old", b"new")
    assert ((host / "new").read_bytes(), (host / "spare").read_bytes()) == (b"old", b"new")
    assert face.lstat(b"spare").st_nlink == 1


def test_rename_a_directory_over_an_empty_one(face: Face, host: Path) -> None:
    face.mkdir(b"old")
    write(face, b"old/f")
    face.mkdir(b"new")
    face.rename(b"old", b"new")
    assert (os.listdir(host), os.listdir(host / "new")) == (["new"], ["f"])


def test_rename_between_directories(face: Face, host: Path) -> None:
    face.mkdir(b"a")
    face.mkdir(b"a/sub")
    write(face, b"a/sub/f", b"x")
    face.mkdir(b"b")
    face.rename(b"a/sub", b"b/sub")
    assert (face.lstat(b"a").st_nlink, face.lstat(b"b").st_nlink) == (2, 3)
    assert (host / "b/sub/f").read_bytes() == b"x"


def test_renames_that_cannot_be(face: Face, host: Path) -> None:
    write(face, b"f")
    face.mkdir(b"d")
    face.mkdir(b"full")
    write(face, b"full/f")
    with refused(errno.ENOTEMPTY, errno.EEXIST):
        face.rename(b"d", b"full")
    with refused(errno.EISDIR):
        face.rename(b"f", b"d")
    with refused(errno.ENOTDIR):
        face.rename(b"d", b"f")
    with refused(errno.EINVAL):
        face.rename(b"d", b"d/sub")
    with refused(errno.ENOENT):
        face.rename(b"none", b"x")
    with refused(errno.ENOENT):
        face.rename(b"f", b"none/x")
    assert sorted(os.listdir(host)) == ["d", "f", "full"]


def test_rename_to_itself_changes_nothing(face: Face, host: Path) -> None:
    write(face, b"f", b"x")
    face.rename(b"f", b"f")
    assert (host / "f").read_bytes() == b"x"


def test_rename_between_names_of_one_file_leaves_both(face: Face, host: Path) -> None:
    write(face, b"f")
    face.link(b"f", b"g")
    face.rename(b"f", b"g")
    assert sorted(os.listdir(host)) == ["f", "g"]


def test_rename_moves_a_symlink_itself(face: Face, host: Path) -> None:
    (host / "f").touch()
    (host / "link").symlink_to("f")
    face.rename(b"link", b"new")
    assert sorted(os.listdir(host)) == ["f", "new"]
    assert face.readlink(b"new") == b"f"


# Nodes


@pytest.mark.parametrize(
    ("kind", "rdev"),
    [
        (stat.S_IFREG, 0),
        (stat.S_IFIFO, 0),
        (stat.S_IFSOCK, 0),
        (stat.S_IFCHR, os.makedev(1, 3)),
        (stat.S_IFBLK, os.makedev(259, 70_000)),
    ],
    ids=["file", "fifo", "socket", "character device", "block device"],
)
def test_mknod_makes_every_kind(face: Face, host: Path, kind: int, rdev: int) -> None:
    face.mknod(b"x", kind | 0o640, rdev, ROOT)
    st = on_host(host, b"x")
    assert (st.st_mode, st.st_rdev, owner_of(host, b"x")) == (kind | 0o640, rdev, ROOT)
    assert (face.lstat(b"x").st_mode, face.lstat(b"x").st_rdev) == (kind | 0o640, rdev)


@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK], ids=stat.filemode)
def test_mknod_gives_the_owner_it_is_asked_for(face: Face, host: Path, kind: int) -> None:
    face.mknod(b"x", kind | 0o600, 0, USER)
    assert owner_of(host, b"x") == USER


def test_mknod_over_what_exists(face: Face, host: Path) -> None:
    (host / "f").write_bytes(b"kept")
    with refused(errno.EEXIST):
        face.mknod(b"f", stat.S_IFIFO | 0o600)
    assert (host / "f").read_bytes() == b"kept"
