# SPDX-License-Identifier: Apache-2.0
"""The README's commands, run as a newcomer would: in a copy of the tree that git would clone."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS: list[str] = re.findall(r"^```sh\n(.*?)^```$", README, re.M | re.S)
SHARE = "/srv/share"

MAKE_RUN = "sudo make run\n"
MAKE_SHELL = f"sudo make run EXPORT={SHARE}\n"
MAKE_TEST = "sudo make test\n"
MAKE_VENV = "make venv\n"


def only(start: str, contains: str = "") -> str:
    found = [block for block in BLOCKS if block.startswith(start) and contains in block]
    assert len(found) == 1, f"the README has {len(found)} blocks that begin with {start!r}"
    return found[0]


@pytest.fixture(scope="module")
def clone() -> Iterator[Path]:
    """The tree as a clone has it, where an ordinary user may look, with a `sudo` in PATH if root has none."""
    top = Path(tempfile.mkdtemp(prefix="virtfs-readme-"))
    top.chmod(0o755)
    tree = top / "clone"
    try:
        yield from prepared(top, tree)
    finally:
        shutil.rmtree(top)


def prepared(top: Path, tree: Path) -> Iterator[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True
    ).stdout
    for name in filter(None, listed.split(b"\0")):
        source, target = ROOT / os.fsdecode(name), tree / os.fsdecode(name)
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    tools = top / "bin"
    tools.mkdir()
    (tools / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
    (tools / "sudo").chmod(0o755)
    (top / "share").mkdir()
    (top / "share" / "hello").write_text("from the host\n")
    sh("git init -q . && git add -A", tree, check=True)
    sh(MAKE_VENV, tree, check=True)
    yield tree


def environment(tree: Path) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "PYTEST"))}
    path = f"{tree.parent / 'bin'}:{env['PATH']}"
    guest = os.environ.get("VIRTFS_GUEST_CACHE", str(ROOT / ".cache" / "guest"))
    return env | {"PATH": path, "VIRTFS_GUEST_CACHE": guest}


def sh(command: str, tree: Path, *, check: bool = False, limit: int = 280) -> subprocess.CompletedProcess[str]:
    command = command.replace(SHARE, str(tree.parent / "share"))
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=tree,
        env=environment(tree),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def test_every_block_is_known_here() -> None:
    known = [MAKE_RUN, MAKE_SHELL, MAKE_TEST, MAKE_VENV]
    known += [only("sudo .venv/bin/virtfs run"), only("sudo .venv/bin/virtfs-proxy-helper", "qemu-system")]
    known.append(only("sudo .venv/bin/virtfs-proxy-helper", "virtfs client"))
    assert sorted(BLOCKS) == sorted(known)


def test_make_run_boots_a_guest_and_ends(clone: Path) -> None:
    done = sh(MAKE_RUN, clone, check=True)
    assert "mount -t 9p" in done.stdout + done.stderr
    assert "without a guest" not in done.stdout + done.stderr


def test_make_run_with_an_export_gives_a_shell(clone: Path) -> None:
    """As on a terminal: what is typed runs in the guest, which has the directory at /mnt; poweroff ends it."""
    command = MAKE_SHELL.replace(SHARE, f"'{clone.parent / 'share'}'")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(clone)
        os.execve("/bin/sh", ["sh", "-c", command], environment(clone) | {"TERM": "vt100"})
    try:
        assert "from the host" in dialogue(terminal, "# ", "cat /mnt/hel*\n", "from the host")
        dialogue(terminal, "# ", "poweroff\n", "")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    except BaseException:
        os.kill(pid, signal.SIGKILL)  # the launcher's end takes QEMU and the helper along
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(terminal)


def dialogue(terminal: int, prompt: str, typed: str, until: str) -> str:
    """Type at a prompt and return what is shown up to a text; an empty one: up to the end."""
    seen, asked = "", False
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 1)[0]:
            try:
                seen += os.read(terminal, 4096).decode(errors="replace")
            except OSError:  # EIO: nobody holds the other side any more
                return seen
        if not asked and prompt in seen:
            os.write(terminal, typed.encode())
            seen, asked = "", True
        elif asked and until and until in seen:
            return seen
    raise AssertionError(f"no {until or 'end'!r} after {typed!r}: {seen}")


def test_make_test_is_what_ci_runs(clone: Path) -> None:
    """The command cannot be run within itself: it must be the one that .ci/run calls, and be known to make."""
    assert sh("make -n test", clone, check=True).stdout.count("pytest") == 1
    assert (clone / ".ci" / "run").read_text().rstrip().endswith("make test")


def test_client_looks_into_a_share(clone: Path) -> None:
    done = sh(only("sudo .venv/bin/virtfs-proxy-helper", "virtfs client"), clone, check=True)
    assert "hello" in done.stdout


def end(process: subprocess.Popen[bytes]) -> None:
    """^C's kinder sister to the whole session; what does not hear it is killed."""
    assert process.stdout is not None
    with process.stdout:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(20)
                break
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                process.wait(20)
                break


def qemu_until(command: str, tree: Path, text: str) -> str:
    """Run a command that starts QEMU until it has printed a text; end it as ^C does, and wait for all of it."""
    disk = tree / "guest.img"
    disk.write_bytes(bytes(1 << 20))
    disk.chmod(0o666)  # whoever runs QEMU owns the guest's disk; here that is nobody
    command = command.replace(SHARE, str(tree.parent / "share"))
    process = subprocess.Popen(
        ["sh", "-c", command],
        cwd=tree,
        env=environment(tree),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    seen = b""
    try:
        for _ in range(600):
            seen += process.stdout.read() or b""
            if text.encode() in seen or process.poll() is not None:
                break
            time.sleep(0.1)
    finally:
        end(process)
    return seen.decode(errors="replace")


def test_virtfs_run_starts_qemu_and_says_how_to_mount(clone: Path) -> None:
    seen = qemu_until(only("sudo .venv/bin/virtfs run"), clone, "SeaBIOS")
    assert re.search(r"mount -t 9p -o trans=virtio\S* share ", seen), seen
    assert "SeaBIOS" in seen, seen


def test_helper_and_qemu_by_hand(clone: Path) -> None:
    """QEMU starts on the socket only if the helper listens when its command returns, and answers for the root."""
    seen = qemu_until(only("sudo .venv/bin/virtfs-proxy-helper", "qemu-system"), clone, "SeaBIOS")
    assert "SeaBIOS" in seen, seen
    assert not (clone / "share.sock").exists()
