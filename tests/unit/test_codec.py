# SPDX-License-Identifier: Apache-2.0
"""The codec: kinds, what bind() refuses at import, what a decoder refuses at run time, and round trips."""

import errno
import struct
import typing
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtfs_proxy.codec import COUNTED, FIXED, NO_ID, Fields, Malformed, Request, bind, clean_path, fields_of
from virtfs_proxy.names import Path, Text
from virtfs_proxy.proxy import handlers
from virtfs_proxy.proxy.messages import REQUESTS

ALL_KINDS = Request(
    7, "all", "half:u16 word:u32 path:path long:u64 less:i32 text:text least:i64 who:id value:bytes", "status"
)


def module(*names: str) -> ModuleType:
    """Handlers that return what they got."""
    made = ModuleType("made")
    exec("\n".join(f"def {name}: return locals()" for name in names), made.__dict__)
    return made


def served(row: Request, order: str = "=") -> Any:
    """decode(body) of a row: the arguments as a dict."""
    fields = ", ".join(name for name, _ in row.items())
    _, decode = bind(order, [row], module(f"{row.name}(s, {fields})"), errno.EBADMSG)[row.opcode]

    def call(body: bytes) -> dict[str, Any]:
        got = decode("session", b"headers!" + body, 8)
        assert got.pop("s") == "session"
        return dict(got)

    return call


@pytest.mark.parametrize(
    ("kind", "body", "value"),
    [
        ("u16", b"\1\2", 0x0201), ("u16", b"\xff\xff", 65_535),
        ("u32", b"\1\2\3\4", 0x04030201), ("u32", b"\xff" * 4, 0xFFFFFFFF),
        ("u64", b"\1\2\3\4\5\6\7\x88", 0x8807060504030201),
        ("i32", b"\xfe\xff\xff\xff", -2), ("i32", b"\xff\xff\xff\x7f", 0x7FFFFFFF),
        ("i64", b"\xfe" + b"\xff" * 7, -2),
        ("id", b"\xfe\xff\xff\xff", 0xFFFFFFFE), ("id", bytes(4), 0),
        ("bytes", b"\0\0", b""), ("bytes", b"\3\0a\0b", b"a\0b"),
        ("text", b"\0\0", b""), ("text", b"\4\0/\xff..", b"/\xff.."),
        ("path", b"\1\0.", b"."), ("path", b"\5\0a/b/\xff", b"a/b/\xff"), ("path", b"\4\0a..b", b"a..b"),
    ],
)  # fmt: skip
def test_kinds(kind: str, body: bytes, value: object) -> None:
    """Little-endian bytes, so that the table reads the same everywhere."""
    assert served(Request(1, "one", f"x:{kind}", "status"), "<")(body) == {"x": value}
    assert Fields("<", f"x:{kind}").pack({"x": value}) == body
    assert Fields("<", f"x:{kind}").unpack(body) == {"x": value}


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        (b"/", b"."), (b"//", b"."), (b"/\0", b"."), (b"//a/b", b"a/b"), (b"a\0", b"a"), (b"//a\0", b"a"),
        (b"./a", b"./a"), (b"..a", b"..a"), (b"a/b..", b"a/b.."), (b"a//b/", b"a//b/"), (b"...", b"..."),
    ],
)  # fmt: skip
def test_a_path_is_below_the_root(path: bytes, clean: bytes) -> None:
    assert clean_path(path) == clean
    one = Request(1, "one", "x:path", "status")
    assert served(one)(struct.pack("=H", len(path)) + path) == {"x": clean}


@pytest.mark.parametrize(
    ("kind", "value", "code"),
    [
        ("path", b"", errno.ENOENT), ("path", b"\0", errno.ENOENT),
        ("path", b"..", errno.EINVAL), ("path", b"../a", errno.EINVAL), ("path", b"a/..", errno.EINVAL),
        ("path", b"/..", errno.EINVAL), ("path", b"a/../b", errno.EINVAL), ("path", b"a//../b", errno.EINVAL),
        ("path", b"..\0", errno.EINVAL), ("path", b"a\0b", errno.EINVAL), ("path", b"a\0\0", errno.EINVAL),
        ("path", b"/a\0..", errno.EINVAL),
        ("text", b"\0", errno.EINVAL), ("text", b"a\0b", errno.EINVAL), ("text", b"a\0", errno.EINVAL),
    ],
)  # fmt: skip
def test_a_value_that_its_kind_refuses(kind: str, value: bytes, code: int) -> None:
    with pytest.raises(Malformed) as refused:
        served(Request(1, "one", f"x:{kind}", "status"))(struct.pack("=H", len(value)) + value)
    assert refused.value.errno == code


def test_an_id_names_somebody() -> None:
    with pytest.raises(Malformed) as refused:
        served(Request(1, "one", "x:id", "status"))(struct.pack("=I", NO_ID))
    assert refused.value.errno == errno.EINVAL


def test_an_unknown_kind_is_an_error_of_the_row() -> None:
    for fields in ("x:u8", "x", "x:", "x:Path"):
        with pytest.raises(ValueError, match="no such kind"):
            fields_of(fields)


ROW = Request(3, "mkdir", "path:path mode:u32", "status")


def test_bind_needs_a_function_for_each_row() -> None:
    with pytest.raises(TypeError, match="no function for the row mkdir"):
        bind("=", [ROW], module("rmdir(s, path, mode)"), 1)


@pytest.mark.parametrize(
    "function",
    ["mkdir(s, path)", "mkdir(s, mode, path)", "mkdir(s, path, mode, more)", "mkdir(s, way, mode)", "mkdir()"],
)
def test_bind_needs_the_fields_as_parameters(function: str) -> None:
    with pytest.raises(TypeError, match="mkdir takes"):
        bind("=", [ROW], module(function), 1)


def test_bind_needs_an_opcode_for_each_row() -> None:
    with pytest.raises(TypeError, match="opcode 3 is there twice: rmdir"):
        bind("=", [ROW, ROW._replace(name="rmdir")], module("mkdir(s, path, mode)", "rmdir(s, path, mode)"), 1)


def test_what_a_handler_raises_passes() -> None:
    def mkdir(s: object, path: Path, mode: int) -> None:
        raise struct.error(f"of the handler of {s} {path!r} {mode}")

    made = ModuleType("made")
    made.mkdir = mkdir  # type: ignore[attr-defined]
    _, decode = bind("=", [ROW], made, 1)[3]
    with pytest.raises(struct.error, match="of the handler of None"):
        decode(None, b"\1\0a\0\0\0\0", 0)


KIND_TYPES = dict.fromkeys(FIXED, int) | {"path": Path, "text": Text, "bytes": bytes}


@pytest.mark.parametrize("row", REQUESTS, ids=[row.name for row in REQUESTS])
def test_handlers_are_annotated_as_the_kinds(row: Request) -> None:
    """What mypy checks behind the handlers holds only if what comes into them is what they say."""
    hints = typing.get_type_hints(getattr(handlers, row.name))
    assert set(FIXED) | COUNTED == set(KIND_TYPES)
    assert {name: hints[name] for name, _ in row.items()} == {name: KIND_TYPES[kind] for name, kind in row.items()}


def numbers(bits: int, signed: bool) -> st.SearchStrategy[int]:
    return st.integers(-(1 << bits - 1), (1 << bits - 1) - 1) if signed else st.integers(0, (1 << bits) - 1)


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "u16": numbers(16, False), "u32": numbers(32, False), "u64": numbers(64, False),
    "i32": numbers(32, True), "i64": numbers(64, True), "id": st.integers(0, NO_ID - 1),
    "path": st.binary(min_size=1).map(lambda path: b"./" + path.replace(b"\0", b"n").replace(b"..", b".-")),
    "text": st.binary().map(lambda text: text.replace(b"\0", b"n")),
    "bytes": st.binary(),
}  # fmt: skip


@st.composite
def rows_and_values(draw: st.DrawFn) -> tuple[Request, dict[str, Any]]:
    kinds = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=9))
    row = Request(draw(numbers(32, False)), "row", " ".join(f"f{n}:{kind}" for n, kind in enumerate(kinds)), "status")
    return row, {name: draw(VALUES[kind]) for name, kind in row.items()}


@given(rows_and_values(), st.sampled_from("=<>"))
def test_round_trip(drawn: tuple[Request, dict[str, Any]], order: str) -> None:
    row, values = drawn
    body = Fields(order, row.fields).pack(values)
    assert served(row, order)(body) == values
    assert Fields(order, row.fields).unpack(body) == values


@given(rows_and_values(), st.data())
def test_a_body_of_another_length_is_refused(drawn: tuple[Request, dict[str, Any]], data: st.DataObject) -> None:
    row, values = drawn
    body = Fields("=", row.fields).pack(values)
    cut = data.draw(st.integers(0, len(body) - 1))
    more = data.draw(st.binary(min_size=1))
    for wrong in (body[:cut], body + more):
        with pytest.raises(Malformed) as refused:
            served(row)(wrong)
        assert refused.value.errno == errno.EBADMSG
        with pytest.raises(Malformed) as refused:
            Fields("=", row.fields).unpack(wrong)
        assert refused.value.errno == errno.EPROTO


@given(st.binary())
def test_any_bytes_are_a_call_or_malformed(body: bytes) -> None:
    got: dict[str, Any] | int
    try:
        got = served(ALL_KINDS)(body)
    except Malformed as refused:
        got = refused.errno
    names = {name for name, _ in ALL_KINDS.items()}
    assert got in {errno.EBADMSG, errno.EINVAL, errno.ENOENT} if isinstance(got, int) else set(got) == names


@given(
    st.binary(
        min_size=1,
        max_size=12,
    ).map(lambda raw: raw.translate(bytes(b"./\0ab"[n % 5] for n in range(256))))
)
def test_a_clean_path_stays_below_the_root(raw: bytes) -> None:
    try:
        path = clean_path(raw)
    except Malformed:
        path = b"refused"
    assert path
    assert not path.startswith(b"/")
    assert b"\0" not in path
    assert b".." not in path.split(b"/")
    assert clean_path(path) == path


def test_pack_refuses_what_does_not_fit() -> None:
    for kind, value in [
        ("u16", 65_536),
        ("u32", -1),
        ("i32", 1 << 31),
        ("bytes", bytes(65_536)),
        ("path", bytes(65_536)),
    ]:
        with pytest.raises(struct.error):
            Fields("=", f"x:{kind}").pack({"x": value})
    with pytest.raises(KeyError):
        Fields("=", "x:u32").pack({})
