# SPDX-License-Identifier: Apache-2.0
"""Launchers that end, whatever happens."""

import json
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.system.launcher.launching import ANSWERS, KNOWN, QEMU, QMP, VIRTFS, Launch, children, fields


@pytest.fixture
def room() -> Iterator[Path]:
    """A directory that QEMU's user may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="virtfs-run-") as name:
        os.chmod(name, 0o755)
        (Path(name) / "export").mkdir()
        yield Path(name)


@pytest.fixture
def start(room: Path, helper_command: list[str]) -> Iterator[Callable[..., Launch]]:
    """Start `virtfs run` and end what is left of it afterwards."""
    made: list[Launch] = []

    def start(qemu: list[str], *options: str, under: tuple[str, ...] = (), **popen: Any) -> Launch:
        command = [
            *under,
            str(VIRTFS),
            "run",
            str(room / "export"),
            "--helper",
            shlex.join(helper_command),
            *options,
        ]
        errors = room / f"stderr{len(made)}"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE} | popen
        with errors.open("wb") as stderr:
            process = subprocess.Popen([*command, "--", *qemu], stderr=stderr, text=True, bufsize=1, **pipes)
        made.append(Launch(process, errors))
        return made[-1]

    yield start
    for launch in made:
        for pid in [*children(launch.pid), launch.qemu, launch.helper, launch.pid]:
            if pid and fields(pid):
                os.kill(pid, signal.SIGKILL)
        with launch.process as process:
            process.kill()


@pytest.fixture
def running(start: Callable[..., Launch]) -> Callable[..., Launch]:
    """As start, with QEMU itself, once its main loop answers."""

    def running(*options: str, **popen: Any) -> Launch:
        launch = start(QMP, *options, **popen)
        launch.find()
        assert "QMP" in json.loads(launch.line())
        launch.qmp("qmp_capabilities")
        assert json.loads(launch.line()) == {"return": {}}
        return launch

    return running


@pytest.fixture
def script(room: Path) -> Callable[[str], str]:
    """Make a QEMU of a shell's lines, which says of the driver what a real one does."""

    def script(lines: str, about_the_driver: str = KNOWN) -> str:
        path = room / QEMU
        path.write_text(ANSWERS % (about_the_driver, lines), encoding="utf-8")
        path.chmod(0o755)
        return str(path)

    return script
