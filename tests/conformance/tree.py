# SPDX-License-Identifier: Apache-2.0
"""What is on disk, in a form that compares: a snapshot of a directory tree, and a tree with one of each kind in it."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_HEAD = 1 << 17


class Entry(NamedTuple):
    """One file. ``links`` are the other names of its inode in the same tree; times in nanoseconds.

    ``atime`` is of regular files alone: taking the snapshot moves that of directories and links.
    """

    mode: int
    uid: int
    gid: int
    rdev: int
    size: int
    nlink: int
    links: tuple[bytes, ...]
    content: bytes
    xattrs: dict[bytes, bytes]
    mtime: int
    atime: int


Tree = dict[bytes, Entry]
"""Name below the root (b"." for the root itself) -> what is there."""


def _walk(root: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    todo = [b"."]
    while todo:
        name = todo.pop()
        found = os.lstat(os.path.join(root, name))
        yield name, found
        if stat.S_ISDIR(found.st_mode):
            todo += [os.path.normpath(os.path.join(name, child)) for child in os.listdir(os.path.join(root, name))]


def _content(path: bytes, found: os.stat_result) -> bytes:
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(path)
    if not stat.S_ISREG(found.st_mode):
        return b""
    with open(os.open(path, os.O_RDONLY | os.O_NOATIME | os.O_NOFOLLOW), "rb") as file:
        return file.read(_HEAD).rstrip(b"\0")


def _xattrs(path: bytes) -> dict[bytes, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}


def snapshot(root: Path) -> Tree:
    """Everything below *root*: type, mode, owner, size, content, xattrs, device, hard links, times of contents."""
    base = os.fsencode(root)
    found = list(_walk(base))
    names: dict[int, list[bytes]] = {}
    for name, st in found:
        names.setdefault(st.st_ino, []).append(name)
    tree = {}
    for name, st in found:
        path = os.path.join(base, name)
        links = tuple(sorted(set(names[st.st_ino]) - {name}))
        tree[name] = Entry(
            st.st_mode, st.st_uid, st.st_gid, st.st_rdev, st.st_size, st.st_nlink, links, _content(path, st),
            _xattrs(path), st.st_mtime_ns, st.st_atime_ns if stat.S_ISREG(st.st_mode) else 0,
        )  # fmt: skip
    return tree


def populate(root: Path) -> None:
    """One of each kind of file, all older than today."""
    (root / "file").write_bytes(b"content\n")
    os.chmod(root / "file", 0o644)
    os.setxattr(root / "file", "user.color", b"blue")
    os.link(root / "file", root / "hard")
    (root / "dir").mkdir(mode=0o755)
    (root / "dir" / "inner").write_bytes(b"")
    (root / "empty").mkdir(mode=0o755)
    os.symlink("file", root / "link")
    os.symlink("nowhere", root / "dangling")
    os.symlink("dir", root / "dirlink")
    os.mkfifo(root / "fifo", 0o600)
    os.mknod(root / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.open(root, os.O_PATH)
        try:
            bound.bind(f"/proc/self/fd/{here}/socket")  # a path of any length
        finally:
            os.close(here)
    for name in os.listdir(root):
        os.utime(root / name, (1_000_000_000, 1_000_000_000), follow_symlinks=False)
    os.utime(root / "dir" / "inner", (1_000_000_000, 1_000_000_000))
    os.utime(root, (1_000_000_000, 1_000_000_000))
