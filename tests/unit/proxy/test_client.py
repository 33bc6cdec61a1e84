# SPDX-License-Identifier: Apache-2.0
"""The client on one half of a socketpair; the test holds the other, and plays the helper."""

import errno
import os
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.proxy.fake_helper import ENOENT, OK, STAT, STATFS, Helper, body, string

import virtfs_proxy
from virtfs_proxy.codec import FIXED, Fields
from virtfs_proxy.proxy import client as module
from virtfs_proxy.proxy.client import MAX_VALUE, UTIME_NOW, UTIME_OMIT, ProxyClient
from virtfs_proxy.proxy.frames import FRAMES
from virtfs_proxy.proxy.messages import FD_VALID, MAX_BODY, REQUESTS

ROWS = {row.name: row for row in REQUESTS}


def numbered(table: list[tuple[Any, ...]]) -> list[str]:
    return [f"{line[0]}-{n}" for n, line in enumerate(table)]


# What is sent

P = b"./a/b"
METHODS: list[tuple[Any, ...]] = [  # method, arguments, reply, fields in the request
    ("mknod", ("a/b", 0o10644, 9, 1, 2), OK, {"uid": 1, "gid": 2, "path": P, "mode": 0o10644, "rdev": 9}),
    ("mkdir", ("a/b", 0o700, 1, 2), OK, {"uid": 1, "gid": 2, "path": P, "mode": 0o700}),
    ("symlink", ("/t", "a/b", 1, 2), OK, {"uid": 1, "gid": 2, "target": b"/t", "path": P}),
    ("link", ("old", "a/b"), OK, {"oldpath": b"./old", "path": P}),
    ("lstat", ("a/b",), body(STAT), {"path": P}),
    ("readlink", ("a/b",), string(b"t"), {"path": P, "size": 4096}),
    ("statfs", ("a/b",), body(STATFS), {"path": P}),
    ("chmod", ("a/b", 0o4755), OK, {"path": P, "mode": 0o4755}),
    ("chown", ("a/b", -1, 7), OK, {"path": P, "uid": 2**32 - 1, "gid": 7}),
    ("truncate", ("a/b", 2**40), OK, {"path": P, "size": 2**40}),
    (
        "utime",
        ("a/b", -1, 5_000_000_007),
        OK,
        {"path": P, "atime_s": -1, "atime_ns": 999_999_999, "mtime_s": 5, "mtime_ns": 7},
    ),
    (
        "utime",
        ("a/b", UTIME_NOW, UTIME_OMIT),
        OK,
        {"path": P, "atime_s": 0, "atime_ns": 0x3FFFFFFF, "mtime_s": 0, "mtime_ns": 0x3FFFFFFE},
    ),
    (
        "utime",  # a moment is no constant, whatever its number
        ("a/b", 0x3FFFFFFF, 0x3FFFFFFE),
        OK,
        {"path": P, "atime_s": 1, "atime_ns": 73741823, "mtime_s": 1, "mtime_ns": 73741822},
    ),
    ("rename", ("old", "a/b"), OK, {"oldpath": b"./old", "path": P}),
    ("remove", ("a/b",), OK, {"path": P}),
    ("lgetxattr", ("a/b", "user.x"), string(b"v"), {"size": MAX_VALUE, "path": P, "name": b"user.x"}),
    ("llistxattr", ("a/b",), string(b""), {"size": MAX_VALUE, "path": P}),
    (
        "lsetxattr",
        ("a/b", b"user.x", bytearray(b"v\0w"), os.XATTR_CREATE),
        OK,
        {"path": P, "name": b"user.x", "value": b"v\0w", "size": 3, "flags": os.XATTR_CREATE},
    ),
    ("lremovexattr", ("a/b", "user.x"), OK, {"path": P, "name": b"user.x"}),
    ("getversion", ("a/b",), body(bytes(8)), {"path": P}),
]


@pytest.mark.parametrize(("name", "arguments", "reply", "fields"), METHODS, ids=numbered(METHODS))
def test_a_method_sends_its_row(
    helper: Helper, name: str, arguments: tuple[Any, ...], reply: bytes, fields: dict[str, Any]
) -> None:
    helper.say(reply)
    getattr(helper.client, name)(*arguments)
    assert helper.heard() == (name, fields)


def test_every_row_has_its_method() -> None:
    assert {name for name, *_ in METHODS} | {"open", "create"} == set(ROWS)


def test_sizes_are_asked_for_with_size_0(helper: Helper) -> None:
    helper.say(body(struct.pack("=i", 70_000)))
    assert helper.client.lgetxattr_size("f", "user.x") == 70_000
    assert helper.heard() == ("lgetxattr", {"size": 0, "path": b"./f", "name": b"user.x"})
    helper.say(body(struct.pack("=i", 14)))
    assert helper.client.llistxattr_size("f") == 14
    assert helper.heard() == ("llistxattr", {"size": 0, "path": b"./f"})


@pytest.mark.parametrize(
    ("given_path", "sent"),
    [
        ("", b"."),
        (".", b"."),
        ("/", b"."),
        ("//", b"."),
        ("a", b"./a"),
        ("/a/b", b"./a/b"),
        ("./a", b"./a"),
        (b"\xff", b"./\xff"),
        ("a/", b"./a/"),
        (Path("a/b"), b"./a/b"),
        ("../a", b"./../a"),  # for the helper to refuse
        ("\udcff", b"./\xff"),
    ],
)
def test_paths_go_in_the_form_that_qemu_sends(helper: Helper, given_path: module.AnyPath, sent: bytes) -> None:
    helper.say(OK)
    helper.client.remove(given_path)
    assert helper.heard() == ("remove", {"path": sent})


def values(kind: str) -> st.SearchStrategy[int | bytes]:
    if kind not in FIXED:
        return st.binary(max_size=300)
    bits = 8 * struct.calcsize("=" + FIXED[kind])
    low = -(2 ** (bits - 1)) if kind.startswith("i") and kind != "id" else 0
    return st.integers(low, low + 2**bits - 1)


@given(data=st.data())
@pytest.mark.parametrize("name", ROWS)
def test_the_generated_encoders_agree_with_the_codec(name: str, data: st.DataObject) -> None:
    row = ROWS[name]
    fields = {field: data.draw(values(kind)) for field, kind in row.items()}
    content = Fields("=", row.fields).pack(fields)
    assert FRAMES[name](**fields) == struct.pack("=II", row.opcode, len(content)) + content


UNSENT: list[tuple[Any, ...]] = [
    ("lstat", ("a\0b",), ValueError),
    ("chmod", ("a", -1), OverflowError),
    ("chmod", ("a", 2**32), OverflowError),
    ("lstat", ("a" * MAX_BODY,), OSError),
    ("lsetxattr", ("a", "user.x", bytes(MAX_BODY)), OSError),
]


@pytest.mark.parametrize(("name", "arguments", "error"), UNSENT, ids=numbered(UNSENT))
def test_what_no_request_can_carry_is_not_sent(
    helper: Helper, name: str, arguments: tuple[Any, ...], error: type[Exception]
) -> None:
    with pytest.raises(error) as raised:
        getattr(helper.client, name)(*arguments)
    assert not isinstance(raised.value, ConnectionError)
    assert helper.silent()
    helper.ours.setblocking(True)
    helper.say(OK)
    helper.client.remove("still")


def test_the_longest_value_fits(helper: Helper) -> None:
    helper.say(string(bytes(MAX_VALUE)))
    assert helper.client.lgetxattr("f", "user.x") == bytes(MAX_VALUE)


# What comes back


def test_lstat_has_full_nanoseconds(helper: Helper) -> None:
    helper.say(body(STAT))
    stat = helper.client.lstat("f")
    assert stat == (
        *(1, 2, 3, 0o100644, 5, 6, 7, 8, 9, 10),
        *(11_000_000_012, -13_000_000_000 + 14, 15_000_000_016),
    )
    assert (stat.st_mode, stat.st_mtime_ns) == (0o100644, -12_999_999_986)


def test_statfs_readlink_and_the_others(helper: Helper) -> None:
    helper.say(body(STATFS))
    assert helper.client.statfs() == tuple(range(1, 12))
    helper.say(string(b"\xff/t"))
    assert helper.client.readlink("l") == b"\xff/t"
    helper.say(string(b"user.a\0user.b\0"))
    assert helper.client.llistxattr("f") == [b"user.a", b"user.b"]
    helper.say(string(b""))
    assert helper.client.llistxattr("f") == []
    helper.say(body(struct.pack("=Q", 2**64 - 1)))
    assert helper.client.getversion("f") == 2**64 - 1


def test_replies_that_arrive_byte_by_byte(helper: Helper) -> None:
    def drip() -> None:
        for reply in (body(STAT), ENOENT):
            helper.heard()
            for byte in reply:
                helper.say(bytes([byte]))

    thread = threading.Thread(target=drip)
    thread.start()
    assert helper.client.lstat("f").st_ino == 2
    with pytest.raises(FileNotFoundError):
        helper.client.lstat("f")
    thread.join(10)


NO_FD = struct.pack("=i", -errno.ENOENT)
REFUSALS: list[tuple[Any, ...]] = [  # method, arguments, reply, names in the error
    ("lstat", ("f",), ENOENT, ("f", None)),
    ("chmod", (b"/f", 0), ENOENT, (b"/f", None)),
    ("remove", (Path("f"),), ENOENT, ("f", None)),
    ("rename", ("a", "b"), ENOENT, ("a", "b")),
    ("link", ("a", b"b"), ENOENT, ("a", b"b")),
    ("symlink", ("t", "b"), ENOENT, ("t", "b")),
    ("open", ("f",), NO_FD, ("f", None)),
    ("create", ("f",), NO_FD, ("f", None)),
    ("scandir", ("d",), NO_FD, ("d", None)),
]


@pytest.mark.parametrize(("name", "arguments", "reply", "names"), REFUSALS, ids=numbered(REFUSALS))
def test_a_refusal_has_errno_and_the_names_as_given(
    helper: Helper, name: str, arguments: tuple[Any, ...], reply: bytes, names: tuple[object, ...]
) -> None:
    helper.say(reply)
    with pytest.raises(FileNotFoundError) as raised:
        getattr(helper.client, name)(*arguments)
    assert raised.value.strerror == os.strerror(errno.ENOENT)
    assert (raised.value.filename, raised.value.filename2) == names
    helper.say(OK)
    helper.client.remove("the connection goes on")


GARBAGE: list[tuple[Any, ...]] = [
    ("lstat", b""),
    ("lstat", body(STAT)[:-1]),
    ("lstat", body(STAT)[:5]),
    ("lstat", body(STAT[:-8])),
    ("lstat", body(STAT + bytes(8))),
    ("lstat", body(STAT) + b"x"),
    ("lstat", body(STAT, kind=2)),
    ("lstat", body(STAT, kind=0x100)),
    ("lstat", body(STAT, kind=1)),
    ("lstat", struct.pack("=II", 0, MAX_BODY + 1)),
    ("lstat", struct.pack("=II", 0, 2**32 - 1)),
    ("lstat", struct.pack("=IIi", 1, 4, 0)),
    ("lstat", struct.pack("=IIi", 1, 4, 2)),
    ("lstat", struct.pack("=IIi", 1, 4, -(2**31))),
    ("remove", body(b"")),
    ("remove", body(bytes(8))),
    ("remove", struct.pack("=IIi", 0, 4, -2)),
    ("remove", struct.pack("=IIi", 0, 4, 1)),
    ("readlink", body(b"\5\0four")),
    ("readlink", body(b"\3\0four")),
    ("readlink", body(b"\0")),
    ("lgetxattr_size", body(b"\0\0")),
    ("getversion", body(bytes(4))),
    ("open_fd", b""),
    ("open_fd", b"\0\0"),
    ("open_fd", struct.pack("=i", 0)),
    ("open_fd", struct.pack("=i", 5)),
    ("open_fd", struct.pack("=i", -(2**31))),
]


@pytest.mark.parametrize(("name", "reply"), GARBAGE, ids=numbered(GARBAGE))
def test_no_answer_ends_the_connection_for_good(helper: Helper, name: str, reply: bytes) -> None:
    helper.say(reply)
    helper.ours.shutdown(socket.SHUT_WR)
    arguments = ("f", "user.x") if name == "lgetxattr_size" else ("f",)
    with pytest.raises(ConnectionError, match="no connection to the helper: it ") as raised:
        getattr(helper.client, name)(*arguments)
    assert helper.client.fileno() == -1
    with pytest.raises(ConnectionError) as again:
        helper.client.lstat("f")
    assert str(again.value) == str(raised.value)


def test_a_reply_over_the_bound_is_not_waited_for(helper: Helper) -> None:
    helper.say(struct.pack("=II", 0, MAX_BODY + 1))
    with pytest.raises(ConnectionError, match="announced a reply of 65537 bytes"):
        helper.client.lstat("f")


def test_a_helper_that_is_gone(helper: Helper) -> None:
    helper.ours.close()
    for _ in range(2):
        with pytest.raises(ConnectionError, match="it hung up"):
            helper.client.open_fd("f")


def test_a_helper_that_does_not_answer_in_time() -> None:
    ours, theirs = socket.socketpair()
    theirs.settimeout(0.01)
    with ours, ProxyClient(theirs) as client, pytest.raises(ConnectionError, match="no answer"):
        client.lstat("f")
    assert client.fileno() == -1


def test_an_interrupted_exchange_ends_the_connection(helper: Helper) -> None:
    class Interrupting(socket.socket):
        def recv_into(self, *_: Any, **__: Any) -> int:
            raise KeyboardInterrupt

    client = ProxyClient(Interrupting(fileno=os.dup(helper.client.fileno())))
    with pytest.raises(KeyboardInterrupt):
        client.lstat("f")
    with pytest.raises(ConnectionError, match="interrupted"):
        client.lstat("f")


def test_close_wakes_a_thread_that_waits(helper: Helper) -> None:
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            helper.client.lstat("f")
        except ConnectionError as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    helper.ours.recv(1000)
    helper.client.close()
    helper.client.close()
    thread.join(10)
    assert [str(error) for error in caught] == ["no connection to the helper: closed"]


def test_threads_take_turns(helper: Helper) -> None:
    def serve() -> None:
        for _ in range(8 * 50):
            _, fields = helper.heard()  # fails on two requests at once
            helper.say(string(fields["path"]))

    def ask(n: int) -> None:
        wrong.extend(i for i in range(50) if helper.client.readlink(f"{n}/{i}") != b"./%d/%d" % (n, i))

    wrong: list[int] = []
    threads = [threading.Thread(target=serve), *(threading.Thread(target=ask, args=(n,)) for n in range(8))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not wrong


# The rest


def test_call_sends_fields_as_they_are(helper: Helper) -> None:
    helper.say(body(STAT))
    reply = helper.client.call("lstat", path=b"/../\0")
    assert isinstance(reply, dict)
    assert (reply["ino"], reply["mtime_s"]) == (2, -13)
    assert helper.heard() == ("lstat", {"path": b"/../\0"})
    helper.say(OK)
    assert helper.client.call("lsetxattr", path=b"f", name=b"n", value=b"v", size=-1, flags=9) == 0
    assert helper.heard()[1]["size"] == -1
    helper.say(string(b"v"))
    assert helper.client.call("lgetxattr", path=b"f", name=b"n", size=5) == b"v"
    helper.say(body(b"\1\0\0\0"))
    assert helper.client.call("llistxattr", path=b"f", size=0) == 1
    helper.say(string(b"t"))
    assert helper.client.call("readlink", path=b"f", size=5) == {"target": b"t"}
    helper.say(struct.pack("=i", FD_VALID), [0])
    fd = helper.client.call("open", path=b"f", flags=0)
    assert isinstance(fd, int)
    os.close(fd)
    helper.say(body(b"\5\0t"))
    with pytest.raises(ConnectionError):
        helper.client.call("readlink", path=b"f", size=5)


def test_connect_names_the_socket(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        ProxyClient.connect(tmp_path / "none")
    assert raised.value.filename == str(tmp_path / "none")


def test_connect_says_how_long_a_path_may_be(tmp_path: Path) -> None:
    path = str(tmp_path / "s").ljust(120, "s")
    with pytest.raises(OSError, match="socket path is 120 bytes long, the kernel takes 107: use a shorter") as raised:
        ProxyClient.connect(path)
    assert (raised.value.errno, raised.value.filename) == (errno.ENAMETOOLONG, path)
    with pytest.raises(FileNotFoundError):
        ProxyClient.connect(path[:107])


def test_a_path_for_a_socket_is_refused_at_once() -> None:
    path: Any = "/run/helper.sock"
    with pytest.raises(TypeError, match=r"use ProxyClient\.connect\(path\)"):
        ProxyClient(path)


def test_connect_and_hang_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with ProxyClient.connect(tmp_path / "s", timeout=10) as client:
            peer, _ = listener.accept()
            assert client.fileno() >= 0
        with peer:
            assert peer.recv(1) == b""


def test_the_package_exports_it() -> None:
    assert virtfs_proxy.ProxyClient is ProxyClient
