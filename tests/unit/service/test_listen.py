# SPDX-License-Identifier: Apache-2.0
"""Sockets made and inherited. Who may connect, which takes root: tests/system/test_helper_socket.py."""

import contextlib
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtfs_proxy.service.errors import Fatal
from virtfs_proxy.service.listen import MAX_SOCKET_PATH, Listener, inherited

ME = (os.geteuid(), os.getegid())


@pytest.fixture
def place() -> Iterator[Path]:
    """A path for a socket. Short: pytest's own directories leave little of the 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="virtfs-") as name:
        yield Path(name) / "socket"


@contextlib.contextmanager
def _myself(_: tuple[int, int]) -> Iterator[None]:
    yield


def _listener(place: Path) -> Listener:
    return Listener(os.fsencode(place), ME, _myself)


def _open_descriptors() -> list[str]:
    return os.listdir("/proc/self/fd")


def test_one_client_then_the_name_is_gone(place: Path) -> None:
    before = len(_open_descriptors())
    listener = _listener(place)
    st = place.lstat()
    assert (stat.S_ISSOCK(st.st_mode), stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid) == (True, 0o770, *ME)
    assert listener.descriptors() <= {int(fd) for fd in _open_descriptors()}
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(place))
        with listener.accept() as connection:
            assert not place.exists()
            connection.send(b"x")
            assert client.recv(1) == b"x"
    listener.close()
    assert len(_open_descriptors()) == before


def test_closing_twice_spares_the_next_one(place: Path) -> None:
    listener = _listener(place)
    listener.close()
    assert not place.exists()
    place.write_text("next", encoding="utf-8")
    listener.close()
    assert place.exists()


def test_what_took_its_place_is_left(place: Path) -> None:
    listener = _listener(place)
    place.unlink()
    place.write_text("other", encoding="utf-8")
    listener.close()
    assert place.read_text(encoding="utf-8") == "other"


def test_it_refuses_what_exists(place: Path) -> None:
    before = len(_open_descriptors())
    place.symlink_to("nowhere")
    with pytest.raises(Fatal, match="already exists"):
        _listener(place)
    assert os.readlink(place) == "nowhere"
    assert len(_open_descriptors()) == before


def test_it_refuses_where_it_cannot_bind(place: Path) -> None:
    before = len(_open_descriptors())
    with pytest.raises(Fatal, match=r"missing: No such file"):
        _listener(place.parent / "missing" / "socket")
    with pytest.raises(Fatal, match=r"File name too long|bytes long"):
        _listener(place.parent / ("x" * 300))
    assert len(_open_descriptors()) == before


def test_something_that_appears_meanwhile_is_left(place: Path) -> None:
    """Between the look at the path and bind(2)."""

    @contextlib.contextmanager
    def late(_: tuple[int, int]) -> Iterator[None]:
        place.write_text("late", encoding="utf-8")
        yield

    with pytest.raises(Fatal, match="Address already in use"):
        Listener(os.fsencode(place), ME, late)
    assert place.read_text(encoding="utf-8") == "late"


def test_a_socket_swapped_right_after_bind_is_refused(place: Path) -> None:
    """Whoever owns the directory must not get root to chown and chmod another file."""
    victim = place.parent / "victim"
    victim.touch(0o600)
    victim.chmod(0o600)

    @contextlib.contextmanager
    def swapped(_: tuple[int, int]) -> Iterator[None]:
        yield
        place.unlink()
        os.link(victim, place)

    with pytest.raises(Fatal, match="something else"):
        Listener(os.fsencode(place), ME, swapped)
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600
    assert place.exists()


@pytest.mark.root
def test_a_socket_of_somebody_else_in_its_place_is_refused(place: Path) -> None:
    @contextlib.contextmanager
    def swapped(_: tuple[int, int]) -> Iterator[None]:
        yield
        place.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(place))
        os.chown(place, 1234, 1234)
        place.chmod(0o600)

    with pytest.raises(Fatal, match="something else"):
        Listener(os.fsencode(place), ME, swapped)
    st = place.lstat()
    assert (st.st_uid, stat.S_IMODE(st.st_mode)) == (1234, 0o600)


def test_the_longest_path(place: Path) -> None:
    longest = place.parent / ("s" * (MAX_SOCKET_PATH - len(os.fsencode(place.parent)) - 1))
    assert len(os.fsencode(longest)) == 107
    _listener(longest).close()
    with pytest.raises(Fatal, match="108 bytes"):
        _listener(Path(f"{longest}s"))


def test_an_inherited_connection(place: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.setblocking(False)
        number = theirs.detach()
        os.set_inheritable(number, True)
        with inherited(number) as sock:
            assert sock.fileno() == number
            assert sock.getblocking()
            assert not os.get_inheritable(number)
            ours.send(b"x")
            assert sock.recv(1) == b"x"
    assert not place.exists()


def test_descriptors_that_are_no_connection() -> None:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with a, b, socket.socket(socket.AF_UNIX) as alone, open(os.devnull, "rb") as file, socket.socket() as inet:
        for fd, reason in [
            (a.fileno(), "no.* AF_UNIX stream"),
            (inet.fileno(), "no.* AF_UNIX stream"),
            (alone.fileno(), "not connected"),
            (file.fileno(), "not a socket"),
            (99_999, "not open"),
        ]:
            with pytest.raises(Fatal, match=reason):
                inherited(fd)
            assert fd == 99_999 or os.fstat(fd)  # left open
