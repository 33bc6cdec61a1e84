# SPDX-License-Identifier: Apache-2.0
"""Who imports whom: the contracts in pyproject.toml, and the standard library alone for what runs as root."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
# They run as the caller, never with the helper's privileges.
UNPRIVILEGED = {"virtfs_proxy/cli/client/main.py"}
MODULES = sorted(str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    """The top-level name of each import, wherever it stands: a function's own imports too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0] if node.module and not node.level else "virtfs_proxy"


def from_outside(source: str) -> set[str]:
    return set(imported(ast.parse(source))) - sys.stdlib_module_names - {"virtfs_proxy"}


def outsiders(module: str) -> set[str]:
    return from_outside((SOURCE / module).read_text(encoding="utf-8"))


def test_the_walk_sees_every_kind_of_import() -> None:
    source = "import os, tqdm.auto\nfrom . import codec\nfrom virtfs_proxy import linux\n"
    assert from_outside(source + "def f():\n    from rich import box\n") == {"tqdm", "rich"}


@pytest.mark.parametrize("module", [module for module in MODULES if module not in UNPRIVILEGED])
def test_privileged_code_imports_the_standard_library_alone(module: str) -> None:
    assert outsiders(module) == set()


def test_the_progress_bars_are_the_one_thing_from_outside() -> None:
    assert set[str]().union(*map(outsiders, MODULES)) == {"tqdm"}


def test_the_arrows_hold(repository: Path) -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    run = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
