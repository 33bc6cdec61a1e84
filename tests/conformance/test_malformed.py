# SPDX-License-Identifier: Apache-2.0
"""Bytes that no honest driver sends: one documented answer each, the next request served, the export untouched."""

import os
import struct
from typing import Any

import pytest
from tests.conformance.peer import BODIES, ROWS, Helper, body_of, frame
from tests.conformance.tree import Tree, snapshot

from virtfs_proxy.proxy.messages import FD, MAX_BODY

pytestmark = pytest.mark.root

# Each would succeed, and change something where it is a change, if it were served.
GOOD: dict[str, dict[str, Any]] = {
    "open": {"path": b"file", "flags": os.O_RDWR | os.O_TRUNC},
    "create": {"path": b"new", "flags": os.O_CREAT | os.O_EXCL, "mode": 0o600, "uid": 7, "gid": 8},
    "mknod": {"uid": 7, "gid": 8, "path": b"new", "mode": 0o100600, "rdev": 0},
    "mkdir": {"uid": 7, "gid": 8, "path": b"new", "mode": 0o700},
    "symlink": {"uid": 7, "gid": 8, "target": b"x", "path": b"new"},
    "link": {"oldpath": b"file", "path": b"new"},
    "lstat": {"path": b"file"},
    "readlink": {"path": b"link", "size": 100},
    "statfs": {"path": b"file"},
    "chmod": {"path": b"file", "mode": 0o7777},
    "chown": {"path": b"file", "uid": 7, "gid": 8},
    "truncate": {"path": b"file", "size": 1},
    "utime": {"path": b"file", "atime_s": 1, "atime_ns": 2, "mtime_s": 3, "mtime_ns": 4},
    "rename": {"oldpath": b"file", "path": b"new"},
    "remove": {"path": b"file"},
    "lgetxattr": {"size": 100, "path": b"file", "name": b"user.color"},
    "llistxattr": {"size": 100, "path": b"file"},
    "lsetxattr": {"path": b"file", "name": b"user.new", "value": b"xyz", "size": 3, "flags": 0},
    "lremovexattr": {"path": b"file", "name": b"user.color"},
    "getversion": {"path": b"file"},
}
PATHS = [(name, field) for name in GOOD for field, kind in BODIES[name].items if kind == "path"]
TEXTS = [(name, field) for name in GOOD for field, kind in BODIES[name].items if kind == "text"]
COUNTED = [(name, field) for name in GOOD for field, kind in BODIES[name].items if kind in {"path", "text", "bytes"}]


def refused(helper: Helper, populated: Tree, name: str, body: bytes) -> str:
    """Send a body that must be refused, and see that it left no trace. The errno's name."""
    reply = helper.ask_raw(name, body)
    assert reply.error, "served"
    assert helper.alive()
    assert snapshot(helper.export) == populated
    return reply.name


@pytest.mark.usefixtures("populated")
def test_the_good_ones_are_served(helper: Helper) -> None:
    """What the tests below are worth."""
    assert GOOD.keys() == ROWS.keys()
    for name, values in GOOD.items():
        if "new" in os.listdir(helper.export):
            assert helper.ask("remove", path=b"new").error == 0
        if not (helper.export / "file").exists():
            os.link(helper.export / "hard", helper.export / "file")
        reply = helper.ask(name, **values)
        assert reply.error == 0, name
        if reply.fd is not None:
            os.close(reply.fd)


@pytest.mark.parametrize("name", GOOD)
def test_cut_short_at_every_point(helper: Helper, populated: Tree, name: str) -> None:
    body = body_of(name, **GOOD[name])
    for length in range(len(body)):
        assert refused(helper, populated, name, body[:length]) == "ENOBUFS", length


@pytest.mark.parametrize("name", GOOD)
def test_an_empty_body_is_answered_in_the_shape_of_its_request(helper: Helper, name: str) -> None:
    helper.send(frame(name))
    error = b"\x97\xff\xff\xff"  # -105, ENOBUFS
    if ROWS[name].reply == FD:
        assert helper.receive_fd() == (error, [])
    else:
        assert helper.receive(12) == b"\1\0\0\0\4\0\0\0" + error
    assert helper.alive()


@pytest.mark.fixed("the original does not look behind the last field")
@pytest.mark.parametrize("name", GOOD)
def test_trailing_bytes(helper: Helper, populated: Tree, name: str) -> None:
    for trailing in (b"\0", b"\0" * 4, b"x" * 1000):
        assert refused(helper, populated, name, body_of(name, **GOOD[name]) + trailing) == "ENOBUFS"


@pytest.mark.parametrize(("name", "field"), COUNTED, ids=[f"{n}-{f}" for n, f in COUNTED])
def test_a_length_over_the_body(helper: Helper, populated: Tree, name: str, field: str) -> None:
    """The length of one string says more than there is: what follows must not be taken for its end."""
    last = BODIES[name].items[-1][0] == field
    values = GOOD[name]
    body = b""
    for item, kind in BODIES[name].items:
        part = type(BODIES[name])("=", f"{item}:{kind}").pack(values)
        if item == field:
            offset = len(body)
        body += part
    for more in (1, 2, 1000, 0xFFFF) if last else (1000, 0xFFFF):
        length = min(len(values[field]) + more, 0xFFFF)
        lie = body[:offset] + struct.pack("=H", length) + body[offset + 2 :]
        assert refused(helper, populated, name, lie) == "ENOBUFS", length


@pytest.mark.fixed("the original leaves it to chroot")
@pytest.mark.parametrize(("name", "field"), PATHS, ids=[f"{n}-{f}" for n, f in PATHS])
@pytest.mark.parametrize("way", [b"../%s", b"/../%s", b"dir/../%s", b"empty/./../%s"])
def test_a_path_that_climbs(helper: Helper, populated: Tree, name: str, field: str, way: bytes) -> None:
    values = {**GOOD[name], field: way % GOOD[name][field]}
    assert refused(helper, populated, name, body_of(name, **values)) == "EINVAL"


@pytest.mark.usefixtures("populated")
@pytest.mark.parametrize("way", [b"/%s", b"//%s", b"./%s", b"/./%s", b"%s\0", b"//%s\0"])
def test_a_path_as_the_driver_writes_it(helper: Helper, way: bytes) -> None:
    """It calls the root '/', and counts the NUL at the end (v9fs_path_sprintf in QEMU's hw/9pfs/9p.c)."""
    for name, good in GOOD.items():
        if name not in {"rename", "remove"}:
            values = {field: way % value if (name, field) in PATHS else value for field, value in good.items()}
            reply = helper.ask(name, **values)
            assert reply.error == 0, name
            if reply.fd is not None:
                os.close(reply.fd)
            helper.ask("remove", path=b"new")
    assert helper.ask("rename", oldpath=way % b"file", path=way % b"new").error == 0
    assert helper.ask("remove", path=way % b"new").error == 0


@pytest.mark.parametrize("path", [b"/", b"//", b".", b"/\0", b".\0", b"./", b"/."])
def test_the_root_has_many_names(helper: Helper, path: bytes) -> None:
    assert helper.ask("lstat", path=path).fields["ino"] == helper.export.stat().st_ino


@pytest.mark.fixed("the original cuts a string at the NUL")
@pytest.mark.parametrize(("name", "field"), PATHS + TEXTS, ids=[f"{n}-{f}" for n, f in PATHS + TEXTS])
def test_a_nul_byte_within_a_string(helper: Helper, populated: Tree, name: str, field: str) -> None:
    for tail in (b"\0x", b"\0\0") if (name, field) in PATHS else (b"\0", b"\0x"):
        values = {**GOOD[name], field: GOOD[name][field] + tail}
        assert refused(helper, populated, name, body_of(name, **values)) == "EINVAL"


@pytest.mark.usefixtures("populated")
def test_a_nul_byte_in_a_value_is_data(helper: Helper) -> None:
    reply = helper.ask("lsetxattr", path=b"file", name=b"user.n", value=b"a\0b\0", size=4, flags=0)
    assert reply.error == 0
    assert helper.ask("lgetxattr", size=4, path=b"file", name=b"user.n").fields == {"value": b"a\0b\0"}


@pytest.mark.parametrize("path", [b"..a", b"a..", b"...", b"x..y", b".. "])
def test_dots_within_a_name_are_a_name(helper: Helper, path: bytes) -> None:
    assert helper.ask("mkdir", uid=0, gid=0, path=b"./" + path, mode=0o700).error == 0
    assert os.listdir(os.fsencode(helper.export)) == [path]


@pytest.mark.parametrize(("name", "field"), PATHS, ids=[f"{n}-{f}" for n, f in PATHS])
@pytest.mark.parametrize("path", [b"", b"\0"])
def test_an_empty_path(helper: Helper, populated: Tree, name: str, field: str, path: bytes) -> None:
    assert refused(helper, populated, name, body_of(name, **{**GOOD[name], field: path})) == "ENOENT"


def test_an_empty_target(helper: Helper, populated: Tree) -> None:
    assert refused(helper, populated, "symlink", body_of("symlink", **{**GOOD["symlink"], "target": b""})) == "ENOENT"


@pytest.mark.parametrize("name", ["lgetxattr", "lsetxattr", "lremovexattr"])
def test_an_empty_attribute_name(helper: Helper, populated: Tree, name: str) -> None:
    assert refused(helper, populated, name, body_of(name, **{**GOOD[name], "name": b""})) == "ERANGE"


@pytest.mark.fixed("the original creates with its own id")
@pytest.mark.parametrize("name", ["create", "mknod", "mkdir", "symlink"])
@pytest.mark.parametrize("field", ["uid", "gid"])
def test_nobody_creates(helper: Helper, populated: Tree, name: str, field: str) -> None:
    values = {**GOOD[name], field: 0xFFFFFFFF}
    assert refused(helper, populated, name, body_of(name, **values)) == "EINVAL"


@pytest.mark.fixed("the original allocates a negative size, and dies")
@pytest.mark.parametrize("size", [-1, -2, -(1 << 31)])
@pytest.mark.parametrize("name", ["readlink", "lgetxattr", "llistxattr"])
def test_a_negative_size(helper: Helper, populated: Tree, name: str, size: int) -> None:
    assert refused(helper, populated, name, body_of(name, **{**GOOD[name], "size": size})) == "EINVAL"


@pytest.mark.usefixtures("populated")
@pytest.mark.parametrize("size", [65_537, 1 << 20, 0x7FFFFFFF])
def test_a_size_beyond_any_reply_is_a_limit_like_others(helper: Helper, size: int) -> None:
    assert helper.ask("readlink", path=b"link", size=size).fields == {"target": b"file"}
    assert helper.ask("lgetxattr", size=size, path=b"file", name=b"user.color").fields == {"value": b"blue"}
    assert helper.ask("llistxattr", size=size, path=b"file").fields == {"value": b"user.color\0"}
    with open(f"/proc/{helper.process.pid}/status") as status:
        (peak,) = [int(line.split()[1]) for line in status if line.startswith("VmHWM")]
    assert peak < 100_000, "kB"


@pytest.mark.fixed("the original passes a size over the value's on: what lies behind it is stored, or E2BIG")
@pytest.mark.parametrize("size", [4, 5, 64, 4096, 65_536, 70_000, 0x7FFFFFFF, -1, -(1 << 31)])
def test_lsetxattr_of_a_size_that_the_value_does_not_have(helper: Helper, populated: Tree, size: int) -> None:
    body = body_of("lsetxattr", **{**GOOD["lsetxattr"], "size": size})
    assert refused(helper, populated, "lsetxattr", body) == "EINVAL"


@pytest.mark.parametrize("kind", [0, 1, 22, 23, 255, 1 << 16 | 8, 1 << 24, 0xFFFFFFFF])
@pytest.mark.parametrize("body", [b"", b"\1\0.", b"x" * 1000])
def test_an_unknown_type_is_a_hangup(helper: Helper, populated: Tree, kind: int, body: bytes) -> None:
    helper.send(frame(kind, body))
    assert hung_up_and_said_so(helper, str(kind))
    assert snapshot(helper.export) == populated


@pytest.mark.parametrize("size", [65_537, 1 << 31, 0xFFFFFFFF])
def test_a_size_over_the_limit_is_a_hangup(helper: Helper, populated: Tree, size: int) -> None:
    helper.send(frame("remove", body_of("remove", path=b"file"), size=size))
    assert hung_up_and_said_so(helper, "limit")
    assert snapshot(helper.export) == populated


def hung_up_and_said_so(helper: Helper, word: str) -> bool:
    """Closed without a reply; ours, unlike the original, says why in one line."""
    closed = helper.hung_up()
    helper.ends_with = 0 if helper.original else 1
    helper.process.wait(10)
    logged = helper.logged()
    if not helper.original:
        assert len([line for line in logged.splitlines() if "closed:" in line and word in line]) == 1, logged
    return closed


def test_the_largest_body_is_served(helper: Helper, populated: Tree) -> None:
    value = b"v" * 60_000
    name = b"user.big"
    rest = MAX_BODY - len(body_of("lsetxattr", path=b"file", name=name, value=value, size=0, flags=0))
    path = b"./" * (rest // 2) + b"file"
    body = body_of("lsetxattr", path=path, name=name, value=value + b"v" * (rest % 2), size=0, flags=0)
    assert len(body) == MAX_BODY
    # 5,000 bytes and more are a path that the kernel does not take.
    assert refused(helper, populated, "lsetxattr", body) == "ENAMETOOLONG"


def test_left_within_a_request(helper: Helper, populated: Tree) -> None:
    """Half a request is no request."""
    whole = frame("remove", body_of("remove", path=b"file"))
    helper.send(whole[:-1])
    helper.socket.shutdown(1)
    assert helper.hung_up()
    helper.ends_with = 0 if helper.original else 1
    assert snapshot(helper.export) == populated


@pytest.mark.parametrize("lead", range(1, 8))
def test_left_within_a_header(helper: Helper, populated: Tree, lead: int) -> None:
    helper.send(frame("remove", body_of("remove", path=b"file"))[:lead])
    helper.socket.shutdown(1)
    assert helper.hung_up()
    helper.ends_with = 0 if helper.original else 1
    assert snapshot(helper.export) == populated


@pytest.mark.usefixtures("populated")
def test_bytes_one_by_one(helper: Helper) -> None:
    for name in ("lstat", "readlink", "mkdir", "open"):
        for byte in frame(name, body_of(name, **GOOD[name])):
            helper.send(bytes([byte]))
        reply = helper.reply(ROWS[name])
        assert reply.error == 0
        if reply.fd is not None:
            os.close(reply.fd)
    assert (helper.export / "new").is_dir()


@pytest.mark.usefixtures("populated")
def test_several_requests_in_one_send(helper: Helper) -> None:
    names = ["lstat", "mkdir", "open", "readlink", "statfs", "chmod", "open", "lgetxattr"]
    helper.send(b"".join(frame(name, body_of(name, **GOOD[name])) for name in names) + frame("lstat")[:3])
    for name in names:
        reply = helper.reply(ROWS[name])
        assert reply.error == 0, name
        if reply.fd is not None:
            os.close(reply.fd)
    helper.send(frame("lstat")[3:])
    assert helper.reply(ROWS["lstat"]).name == "ENOBUFS"
