# SPDX-License-Identifier: Apache-2.0
"""The stages of a confinement. What they make of a running helper: tests/system/test_confinement.py."""

import errno
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.child import CHANNEL, Ended, in_child

from virtfs_proxy import linux
from virtfs_proxy.confine import capabilities, descriptors, interpreter, root, stages
from virtfs_proxy.confine.plan import Plan
from virtfs_proxy.confine.stages import NEEDS, STAGES, Unconfined, confine
from virtfs_proxy.export.caller import CAPABILITIES

EMPTY = Plan(-1, frozenset(), ())


def test_the_order() -> None:
    """Each needs what a later one gives up: names of the host, then privileges."""
    names = [name for name, _ in STAGES]
    before = [
        ("descriptors", "root"),
        ("interpreter", "root"),
        ("root", "groups"),
        ("groups", "capabilities"),
        ("capabilities", "process"),
    ]
    assert [pair for pair in before if names.index(pair[0]) > names.index(pair[1])] == []
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("name", "apply"), STAGES)
def test_each_stage_is_a_module_that_says_what_it_should_and_must_not(name: str, apply: Callable[[Plan], None]) -> None:
    assert apply.__module__ == f"virtfs_proxy.confine.{name}"
    text = sys.modules[apply.__module__].__doc__
    assert text
    assert "Should:" in text
    assert "Must not:" in text


def test_stages_run_in_order_and_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(
        stages,
        "STAGES",
        [("one", lambda plan: ran.append(f"one {plan}")), ("two", lambda plan: ran.append(f"two {plan}"))],
    )
    confine(EMPTY, ran.append)
    assert ran == [f"one {EMPTY}", "confined: one", f"two {EMPTY}", "confined: two"]


def test_a_stage_that_fails_is_named_and_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Plan) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    said: list[str] = []
    ran = [("one", lambda _: None), ("two", fail), ("three", lambda _: said.append("ran three"))]
    monkeypatch.setattr(stages, "STAGES", ran)
    with pytest.raises(Unconfined, match=r"^stage two: Operation not permitted$"):
        confine(EMPTY, said.append)
    assert said == ["confined: one"]


def test_what_is_missing_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    every = NEEDS | CAPABILITIES
    have = sum(1 << number for number in every if number not in {linux.CAP_MKNOD, linux.CAP_SYS_CHROOT})
    monkeypatch.setattr(linux.Capabilities, "current", lambda: linux.Capabilities(0, have))
    assert sorted(capabilities.missing(every)) == [
        "CAP_MKNOD (to make device nodes for the guest's root)",
        "CAP_SYS_CHROOT (to make the export its root)",
    ]
    monkeypatch.setattr(linux.Capabilities, "current", lambda: linux.Capabilities(0, (1 << 40) - 1))
    assert capabilities.missing(every) == []


def _open() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")}


def test_descriptors_are_closed_but_those_to_keep(tmp_path: Path) -> None:
    def run() -> tuple[set[int], int]:
        folder = os.open(tmp_path, os.O_RDONLY)
        keep = {os.dup2(folder, 50), os.dup2(folder, 52), CHANNEL}
        for number in (51, 53, 500):
            os.dup2(folder, number)
        directory = os.dup2(folder, 60)
        descriptors.apply(Plan(directory, frozenset(keep), ()))
        return _open(), directory

    found, directory = in_child(run)
    assert found == {0, 1, 2, 50, 52, CHANNEL, directory}


def test_descriptors_over_the_limit_are_closed_too(tmp_path: Path) -> None:
    """A parent may lower RLIMIT_NOFILE after it opened them."""
    import resource

    def run() -> set[int]:
        folder = os.open(tmp_path, os.O_RDONLY)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        os.dup2(folder, min(hard, 1 << 20) - 1)
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        descriptors.apply(Plan(folder, frozenset({CHANNEL}), ()))
        return _open() - {folder}

    assert in_child(run) == {0, 1, 2, CHANNEL}


def test_no_module_is_loaded_any_more(tmp_path: Path) -> None:
    """Not from where the working directory, or a path of the host's, leads to by then: into the export."""
    (tmp_path / "planted.py").write_text("raise SystemExit", encoding="utf-8")

    def run() -> list[str]:
        warnings.simplefilter("ignore", ImportWarning)  # that there is nobody left to ask
        sys.path[:0] = ["", str(tmp_path)]
        os.chdir(tmp_path)
        interpreter.apply(EMPTY)
        failed = []
        for name in ("planted", "antigravity", "encodings.cp037"):
            assert name not in sys.modules
            try:
                __import__(name)
            except ModuleNotFoundError:
                failed.append(name)
        return failed

    assert in_child(run) == ["planted", "antigravity", "encodings.cp037"]


@pytest.mark.root
def test_the_root_is_the_directory_that_was_checked(tmp_path: Path) -> None:
    """Not what its path names by now."""
    (tmp_path / "checked").mkdir()
    (tmp_path / "checked" / "in").touch()

    def run() -> tuple[list[str], str, bool]:
        directory = os.open(tmp_path / "checked", os.O_PATH)
        (tmp_path / "checked").rename(tmp_path / "moved")
        (tmp_path / "checked").symlink_to("/")
        root.apply(Plan(directory, frozenset(), ()))
        return os.listdir("/"), os.getcwd(), os.path.exists("../../in")

    assert in_child(run) == (["in"], "/", True)


@pytest.mark.root
def test_confining_twice_names_what_fails(tmp_path: Path) -> None:
    """The first has taken the privileges away: there is no way back."""

    def run() -> str:
        plan = Plan(os.open(tmp_path, os.O_PATH), frozenset({CHANNEL}), tuple(CAPABILITIES))
        confine(plan, lambda _: None)
        try:
            confine(Plan(os.open(".", os.O_PATH), frozenset({CHANNEL}), tuple(CAPABILITIES)), lambda _: None)
        except Unconfined as error:
            return str(error)
        return "it worked"

    assert in_child(run) == "stage root: Operation not permitted"


@pytest.mark.root
def test_capabilities_cannot_be_had_back(tmp_path: Path) -> None:
    def run() -> tuple[int, ...]:
        plan = Plan(os.open(tmp_path, os.O_PATH), frozenset({CHANNEL}), tuple(CAPABILITIES))
        confine(plan, lambda _: None)
        sets = linux.Capabilities.current().sets
        for number in set(range(41)) - set(CAPABILITIES):
            with pytest.raises(PermissionError):
                linux.Capabilities(sets[0], sets[1] | 1 << number).apply()
        return sets

    kept = sum(1 << number for number in CAPABILITIES)
    assert in_child(run) == (kept, kept, 0)


def test_a_child_that_raises_fails_its_test() -> None:
    """Or the tests above could not fail."""
    with pytest.raises(Ended, match="ZeroDivisionError"):
        in_child(lambda: 1 // 0)
    with pytest.raises(Ended, match="3"):
        in_child(lambda: os._exit(3))
