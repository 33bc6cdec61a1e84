# SPDX-License-Identifier: Apache-2.0
"""What every test may ask for: the helper under test and the repository; a word for those who lack root."""

import os
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest

OURS = Path(sys.executable).with_name("virtfs-proxy-helper")
ORIGINAL = Path("/usr/lib/qemu/virtfs-proxy-helper")


def pytest_configure() -> None:
    """Commands under test find the signals as on a terminal, also where tests run in the background of a shell."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--helper",
        metavar="CMD",
        help=f"the helper to test, as a shell reads it (default: {OURS}; in conformance that and {ORIGINAL})",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the conformance suite over both helpers, all else over ours; `--helper CMD` replaces either."""
    if "helper_command" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.getoption("--helper")
    commands = {"ours": [str(OURS)]}
    if chosen:
        commands = {"chosen": shlex.split(chosen)}
    elif metafunc.definition.path.is_relative_to(Path(__file__).parent / "conformance"):
        commands["original"] = [str(ORIGINAL)]
    metafunc.parametrize("helper_command", commands.values(), ids=commands, indirect=True, scope="session")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.fail("needs root: run it with sudo, or leave it out with -m 'not root'", pytrace=False)


@pytest.fixture(scope="session")
def helper_command(request: pytest.FixtureRequest) -> list[str]:
    """The command of the helper under test, to which a test adds its options."""
    command: list[str] = request.param
    if shutil.which(command[0]) is None:
        pytest.fail(f"no {command[0]}: make venv installs ours, Debian's qemu-system-common the original")
    return command


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return Path(__file__).parents[1]
