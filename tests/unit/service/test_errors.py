# SPDX-License-Identifier: Apache-2.0
"""Exceptions become errnos; what is none of them is a bug, and is logged without a look at any file."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from virtfs_proxy.codec import Malformed
from virtfs_proxy.service.errors import errno_of
from virtfs_proxy.service.log import Log

# Prints what is opened, imported or executed once errno_of is called.
WATCHED = """
import sys
from virtfs_proxy.service.errors import errno_of
from virtfs_proxy.service.log import Log
seen = []
log = Log("name")
def deep():
    raise RuntimeError("surprise")
try:
    deep()
except RuntimeError as error:
    caught = error
watched = {"open", "import", "exec", "os.listdir"}
sys.addaudithook(lambda event, args: seen.append((event, args[0])) if event in watched else None)
assert errno_of(caught, log) == 5
sys.stdout.write(repr(seen))
"""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFoundError(errno.ENOENT, "x"), errno.ENOENT),
        (OSError(errno.ELOOP, "x", b"path"), errno.ELOOP),
        (OSError("no number"), errno.EIO),
        (Malformed(errno.ENOBUFS, "short"), errno.ENOBUFS),
        (ValueError("embedded null byte"), errno.EINVAL),
        (OverflowError("int too large"), errno.EINVAL),
        (UnicodeEncodeError("utf-8", "x", 0, 1, "surrogates"), errno.EINVAL),
        (MemoryError(), errno.ENOMEM),
    ],
)
def test_what_can_be_expected(capfd: pytest.CaptureFixture[str], error: Exception, code: int) -> None:
    assert errno_of(error, Log("name")) == code
    assert capfd.readouterr().err == ""


def test_a_bug_is_logged_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    def deep() -> None:
        raise KeyError("surprise")

    with pytest.raises(KeyError) as caught:
        deep()
    assert errno_of(caught.value, Log("name")) == errno.EIO
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    for word in ("name: bug: ", "KeyError", "surprise", "test_errors.py", "deep"):
        assert word in err


def test_a_bug_is_logged_without_a_look_at_files(tmp_path: Path) -> None:
    """After chroot(2) the source's path is the guest's: a FIFO there would stall it, a module there would run."""
    script = tmp_path / "script.py"
    script.write_text(WATCHED, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
    assert "surprise" in done.stderr
    assert done.stdout == "[]"
