# SPDX-License-Identifier: Apache-2.0
"""Functions fit a screen and files stay short, as CONTRIBUTING.md asks; ruff counts statements, which is not that."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FUNCTION_LINES = 30
"""From the line of `def` to the last, without the docstring and what decorates it."""

FILE_LINES = 500
FOLDERS = ("src", "bench", "tools")


def functions(source: str) -> Iterator[tuple[str, int, int]]:
    """Each function, also in classes and in other functions: its name, the line it starts at, its length in lines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                text = node.body[0]
                lines -= (text.end_lineno or text.lineno) - text.lineno + 1
            yield node.name, node.lineno, lines


def too_long(source: str) -> list[str]:
    """What is over the limits, as a person looks for it."""
    found = [f"{line}: {name}: {n} lines" for name, line, n in functions(source) if n > FUNCTION_LINES]
    lines = len(source.splitlines())
    return [f"{lines} lines", *found] if lines > FILE_LINES else found


def function(lines: int, start: str = "def f():\n", indent: int = 4) -> str:
    """A function with so many lines below its first."""
    return start + (" " * indent + "x = 1\n") * lines


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (function(29), []),
        (function(30), ["1: f: 31 lines"]),
        (function(29, '@cache\n@b\ndef f():\n    """One.\n\n    Two.\n    """\n'), []),
        (function(30, '@cache\n@b\ndef f():\n    """One.\n\n    Two.\n    """\n'), ["3: f: 31 lines"]),
        (function(30, "class A:\n    async def g(self):\n", 8), ["2: g: 31 lines"]),
        (function(29, "def f(\n    a,\n):\n"), ["1: f: 32 lines"]),
        ("x = 1\n" * 500, []),
        ("x = 1\n" * 501, ["501 lines"]),
    ],
)
def test_the_count(source: str, found: list[str]) -> None:
    assert too_long(source) == found


@pytest.mark.parametrize("folder", FOLDERS)
def test_functions_and_files_are_short(folder: str, repository: Path) -> None:
    sources = sorted((repository / folder).rglob("*.py"))
    assert sources
    found = {str(path.relative_to(repository)): too_long(path.read_text(encoding="utf-8")) for path in sources}
    assert {path: what for path, what in found.items() if what} == {}
