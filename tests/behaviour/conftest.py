# SPDX-License-Identifier: Apache-2.0
"""Each case of the table, once through each face."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.behaviour.faces import FACES, Face


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """The directory served, as the host sees it."""
    path = tmp_path / "export"
    path.mkdir()
    path.chmod(0o755)
    return path


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest, helper_command: list[str], host: Path, tmp_path: Path) -> Iterator[Face]:
    """The same directory, through a face."""
    with FACES[request.param](helper_command, host, tmp_path / "log") as face:
        yield face
