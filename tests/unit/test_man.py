# SPDX-License-Identifier: Apache-2.0
"""The manual pages build, man reads them without a complaint, and they name every option of their command."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = {
    "virtfs-proxy-helper": ["virtfs-proxy-helper"],
    "virtfs-run": ["virtfs", "run"],
    "virtfs-client": ["virtfs", "client", "SOCKET"],
}
# In a help text an option stands after a space, a bracket or a bar: the "-l" of "9p-local" is none.
OPTION = re.compile(r"(?<![^\s\[(|,])(--?[A-Za-z][\w-]*)")
CHOICES = re.compile(r"\{([\w,-]+)\}")
# argparse lists subcommands deeper than arguments and options.
SUBCOMMAND = re.compile(r"^ {4}([a-z]+)(?:\s|$)", re.MULTILINE)
# Of an outer make, and of whoever runs this: they would change what is printed.
FOREIGN = ("MAKE", "MAN", "MFLAGS")


def output(*command: str | Path) -> str:
    """What the command prints; it may neither fail nor complain."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    plain |= {"LC_ALL": "C.UTF-8", "MANWIDTH": "80"}
    done = subprocess.run(command, env=plain, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def help_words(program: str, *arguments: str) -> set[str]:
    """The options in the help of a command and of its subcommands, and the names of these."""
    text = output(Path(sys.executable).with_name(program), *arguments, "--help")
    words = set(OPTION.findall(text)).union(*(group.split(",") for group in CHOICES.findall(text)))
    for subcommand in SUBCOMMAND.findall(text):
        words |= {subcommand} | help_words(program, *arguments, subcommand)
    return words


@pytest.fixture(scope="module")
def built(repository: Path) -> Path:
    output("make", "-s", "-C", repository, "man")
    return repository / "build" / "man"


def page(built: Path, name: str) -> str:
    whole_words = ("--no-hyphenation", "--no-justification")
    return output("man", "--warnings", *whole_words, "--local-file", built / f"{name}.1")


@pytest.mark.parametrize("name", COMMANDS)
def test_man_reads_the_page_without_a_warning(built: Path, name: str) -> None:
    text = page(built, name)
    assert text.startswith(f"{name.upper()}(1)")
    assert re.search(rf"^NAME\n +{name} - ", text, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_names_all_that_the_help_names(built: Path, name: str) -> None:
    program, *rest = COMMANDS[name]
    words = help_words(program, *rest)
    assert "--help" in words
    assert words - set(re.findall(r"[\w-]+", page(built, name))) == set()
