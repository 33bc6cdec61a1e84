# SPDX-License-Identifier: Apache-2.0
"""A fresh helper and export for each test, and the mark for what the original does wrong."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.peer import Helper, is_original
from tests.conformance.tree import Tree, populate, snapshot


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "fixed(reason, strict=True): the original fails this test, for this reason; strict=False where not always",
    )


@pytest.fixture(autouse=True)
def _expect_the_original_to_fail(request: pytest.FixtureRequest) -> None:
    mark = request.node.get_closest_marker("fixed")
    if mark and is_original(request.getfixturevalue("helper_command")):
        strict = mark.kwargs.get("strict", True)
        request.applymarker(pytest.mark.xfail(reason=mark.args[0], strict=strict, run=mark.kwargs.get("run", True)))


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """The directory served, as the host sees it."""
    path = tmp_path / "export"
    path.mkdir()
    return path


@pytest.fixture
def helper(helper_command: list[str], export: Path) -> Iterator[Helper]:
    """A helper that serves `export`. At the end it must have kept its temper: no traceback, exit 0 or as expected."""
    with Helper(helper_command, export, extra_groups=[]) as helper:
        yield helper
    assert "Traceback" not in helper.logged()
    assert "bug" not in helper.logged()
    assert helper.process.returncode == helper.ends_with


@pytest.fixture
def populated(export: Path) -> Tree:
    """An export with one of each kind of file in it, and its snapshot."""
    populate(export)
    return snapshot(export)
