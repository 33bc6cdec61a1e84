# SPDX-License-Identifier: Apache-2.0
"""The launcher with QEMU itself: who runs as whom and holds what; nothing stays behind, whoever dies.

A QEMU that ends in ways of its own, or that is too new, is a script which answers the launcher's questions.
"""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.system.conftest import PATIENCE, until
from tests.system.launcher.launching import (
    LINE,
    MACHINE,
    PYTHON,
    QEMU,
    QMP,
    RECORD,
    VIRTFS,
    Launch,
    arguments,
    children,
    descriptors,
    ended,
    fields,
    gone,
    sockets,
)

pytestmark = pytest.mark.root


def test_all_ends_when_qemu_ends(running: Callable[..., Launch]) -> None:
    launch = running("--tag", "data")
    assert f"{LINE} data /mnt\n" in launch.said()
    launch.qmp("quit")
    assert launch.result() == 0
    assert "error:" not in launch.said()


def test_our_own_helper_is_the_default(room: Path) -> None:
    command = [str(VIRTFS), "run", str(room / "export"), "--", *MACHINE, "-monitor", "stdio"]
    done = subprocess.run(command, input="quit\n", capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, f"{LINE} virtfs /mnt\n")


@pytest.mark.parametrize("killed", ["pid", "helper", "qemu"])
def test_whoever_is_killed_none_stays_behind(running: Callable[..., Launch], killed: str) -> None:
    launch = running()
    os.kill(getattr(launch, killed), signal.SIGKILL)
    status = launch.result()
    assert status == {"pid": -9, "helper": 1, "qemu": 128 + 9}[killed]
    error = "virtfs run: error: the helper was killed by SIGKILL while QEMU ran: ending QEMU\n"
    assert (error in launch.said()) == (killed == "helper")


def test_qemu_that_stands_still_is_ended_too(running: Callable[..., Launch]) -> None:
    launch = running()
    os.kill(launch.qemu, signal.SIGSTOP)
    until(lambda: fields(launch.qemu)["State"].startswith("T"), "QEMU stopped")
    os.kill(launch.pid, signal.SIGKILL)
    assert launch.result() == -9


def test_killed_while_it_waits_for_the_helper_it_leaves_none(start: Callable[..., Launch], room: Path) -> None:
    slow = room / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 120\n", encoding="utf-8")
    slow.chmod(0o755)
    launch = start(QMP, "--helper", str(slow))
    is_slow = lambda pid: "sleep" in arguments(pid)  # noqa: E731
    launch.helper = until(lambda: next(filter(is_slow, children(launch.pid)), 0), "the helper")
    os.kill(launch.pid, signal.SIGKILL)
    assert launch.process.wait(timeout=PATIENCE) == -9
    gone(launch.helper)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_launcher_ends_qemu_in_good_order(
    running: Callable[..., Launch], number: signal.Signals
) -> None:
    launch = running()
    os.kill(launch.pid, number)
    assert launch.result() == 0
    assert '"reason": "host-signal"' in launch.process.communicate()[0]


def test_every_signal_is_passed_on_once(start: Callable[..., Launch], script: Callable[..., str]) -> None:
    launch = start([script(RECORD)])
    launch.find()
    assert launch.line() == "ready"
    for name in ("HUP", "INT", "QUIT", "USR1", "USR2", "WINCH", "CONT", "TERM"):
        os.kill(launch.pid, getattr(signal, f"SIG{name}"))
        assert launch.line() == f"SIG{name}"
    assert launch.result() == 42
    assert launch.process.communicate()[0] == ""


@pytest.mark.parametrize(("lines", "status"), [("exit 7", 7), ("exit 0", 0), ("kill -9 $$", 137), ("kill -15 $$", 143)])
@pytest.mark.parametrize("ignored", [False, True])
def test_the_exit_status_is_qemus(
    start: Callable[..., Launch], script: Callable[..., str], lines: str, status: int, ignored: bool
) -> None:
    """Even where the caller ignores SIGCHLD and has closed stdin and stdout."""
    poor = ("sh", "-c", 'exec env --ignore-signal=CHLD "$@" <&- >&-', "sh")
    launch = start([script(lines)], under=poor if ignored else ())
    assert launch.process.wait(timeout=PATIENCE) == status
    assert "error:" not in launch.said()


def test_a_qemu_that_refuses_its_arguments_has_the_last_word(start: Callable[..., Launch]) -> None:
    launch = start([*MACHINE, "-no-such-option"])
    assert launch.process.wait(timeout=PATIENCE) == 1
    assert "-no-such-option: invalid option" in launch.said()
    assert "virtfs run: error" not in launch.said()


def test_qemu_holds_one_half_and_the_helper_the_other(running: Callable[..., Launch]) -> None:
    launch = running()
    fsdev = next(item for item in arguments(launch.qemu) if item.startswith("proxy,"))
    number = re.fullmatch(r"proxy,id=virtfs0,sock_fd=(\d+)", fsdev)
    assert number
    half = descriptors(launch.qemu)[int(number[1])]
    assert sockets(launch.qemu) == [half]
    served = arguments(launch.helper)
    other = descriptors(launch.helper)[int(served[served.index("-f") + 1])]
    assert sockets(launch.helper) == [other]
    assert half != other
    assert sockets(launch.pid) == []


def test_the_callers_descriptors_are_qemus_and_not_the_helpers(running: Callable[..., Launch]) -> None:
    reading, writing = os.pipe()
    try:
        pipe = os.readlink(f"/proc/self/fd/{writing}")
        launch = running(pass_fds=(writing,))
        assert descriptors(launch.qemu)[writing] == pipe
        assert pipe not in descriptors(launch.helper).values()
    finally:
        os.close(reading)
        os.close(writing)


USERS = """
mount --bind "$1/passwd" /etc/passwd && mount --bind "$1/group" /etc/group || exit 99
shift
exec "$@"
"""


@pytest.mark.parametrize(
    ("options", "sudo_uid", "home"),
    [
        ((), "54321", "/home/guest"),
        (("--user", "guest"), "", "/home/guest"),
        (("--user", "54321"), "0", "/home/guest"),
    ],
)
def test_qemu_is_the_user_with_all_his_groups(
    running: Callable[..., Launch], room: Path, options: tuple[str, ...], sudo_uid: str, home: str
) -> None:
    """A user that exists in the mount namespace of this test alone."""
    for name, entry in {
        "passwd": "guest:x:54321:54322::/home/guest:/bin/sh",
        "group": "kvm:x:54323:guest",
    }.items():
        text = Path("/etc", name).read_text(encoding="utf-8")
        kept = [line for line in text.splitlines() if not line.startswith("kvm:")]
        (room / name).write_text("\n".join([*kept, entry, ""]), encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if name != "SUDO_UID"}
    env |= {"SUDO_UID": sudo_uid} if sudo_uid else {}
    launch = running(*options, env=env, under=("unshare", "--mount", "sh", "-c", USERS, "sh", str(room)))
    status = fields(launch.qemu)
    assert status["Uid"].split() == ["54321"] * 4
    assert status["Gid"].split() == ["54322"] * 4
    assert sorted(status["Groups"].split()) == ["54322", "54323"]
    assert (status["CapPrm"], status["CapEff"], status["CapAmb"]) == ("0" * 16,) * 3
    environment = Path(f"/proc/{launch.qemu}/environ").read_text(encoding="utf-8").split("\0")
    assert {f"HOME={home}", "USER=guest", "LOGNAME=guest"} <= set(environment)


def test_without_sudo_qemu_is_nobody(running: Callable[..., Launch]) -> None:
    env = {name: value for name, value in os.environ.items() if name != "SUDO_UID"}
    launch = running(env=env)
    assert fields(launch.qemu)["Uid"].split() == ["65534"] * 4
    assert set(fields(launch.qemu)["Groups"].split()) <= {"65534"}
    assert fields(launch.helper)["Uid"].split()[:3] == ["0"] * 3


def test_microvm_gets_a_device_it_has_a_bus_for(start: Callable[..., Launch]) -> None:
    launch = start([*MACHINE, "-M", "microvm", "-monitor", "stdio"])
    assert launch.process.communicate("info qtree\nquit\n", timeout=PATIENCE)[0].count("dev: virtio-9p-device") == 1
    assert launch.process.returncode == 0


@pytest.mark.parametrize(
    ("driver", "complaint"),
    [
        (
            "qemu: -fsdev proxy,id=virtfs: fsdev: fsdriver proxy not found",
            "no proxy driver, which QEMU 9.2 removed",
        ),
        ("something else", "does not tell whether it has the proxy driver: it says 'something else'"),
    ],
)
def test_a_qemu_without_the_driver_is_not_started(
    start: Callable[..., Launch], script: Callable[..., str], driver: str, complaint: str
) -> None:
    qemu = script("echo started", driver)
    launch = start([qemu])
    assert launch.process.communicate(timeout=PATIENCE)[0] == ""
    assert launch.process.returncode == 1
    assert launch.said().startswith(f"virtfs run: error: {qemu} ")
    assert complaint in launch.said()
    assert launch.said().count("\n") == 1


@pytest.mark.parametrize(
    ("export", "options", "qemu", "complaint"),
    [
        ("missing", (), QEMU, "missing: No such file or directory: name the directory to share"),
        ("file", (), QEMU, "file is not a directory: name the directory to share"),
        (
            "export",
            ("--user", "no-such-user"),
            QEMU,
            "no user 'no-such-user': name one that exists with --user",
        ),
        ("export", (), "qemu-of-nowhere", "qemu-of-nowhere is not in PATH: install QEMU"),
        ("export", (), "hidden/qemu", "hidden/qemu can't be run as nobody: Permission denied"),
        ("export", ("--helper", "/no/helper"), QEMU, "/no/helper can't be run as root: No such file"),
        ("export", ("--helper", "false"), QEMU, "the helper ended with exit status 1"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_it(
    room: Path, export: str, options: tuple[str, ...], qemu: str, complaint: str
) -> None:
    (room / "file").touch()
    (room / "hidden").mkdir(mode=0o700)
    (room / "hidden" / "qemu").symlink_to("/bin/true")
    user = () if options[:1] == ("--user",) else ("--user", "nobody")
    command = [VIRTFS, "run", export, *user, *options, "--", qemu]
    done = subprocess.run(command, cwd=room, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("virtfs run: error: ")
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


STAYS = "setsid sleep 300 & echo $!; "
IGNORES = "trap '' TERM HUP; setsid sleep 300 & echo $!; "


@pytest.mark.parametrize("forks", [STAYS, IGNORES])
@pytest.mark.parametrize(("ends", "status"), [("exit 7", 7), ("kill -9 $$", 137)])
def test_what_qemu_has_forked_ends_with_it(
    start: Callable[..., Launch], script: Callable[..., str], forks: str, ends: str, status: int
) -> None:
    launch = start([script(forks + ends)])
    stays = int(launch.line())
    try:
        assert launch.process.wait(timeout=PATIENCE) == status
        assert not fields(stays)
        assert "error:" not in launch.said()
    finally:
        ended(stays)


def test_what_qemu_has_forked_ends_with_a_signal_to_the_launcher(
    start: Callable[..., Launch], script: Callable[..., str]
) -> None:
    launch = start([script(STAYS + "sleep 300; exit 0")])
    stays = int(launch.line())
    try:
        launch.find()
        os.kill(launch.pid, signal.SIGTERM)
        assert launch.result() == 128 + 15
        assert not fields(stays)
    finally:
        ended(stays)


FORKS = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
until = time.monotonic() + 30
if os.fork():
    os._exit(3)
while time.monotonic() < until:
    if os.fork():
        os._exit(0)
print("ran away")
"""


def test_a_process_that_runs_away_by_forking_is_caught(
    start: Callable[..., Launch], script: Callable[..., str]
) -> None:
    launch = start([script(f"exec {PYTHON} -c {shlex.quote(FORKS)}")])
    assert launch.process.communicate(timeout=PATIENCE)[0] == ""
    assert launch.process.returncode == 3
    assert "error:" not in launch.said()


def test_a_child_that_the_launcher_was_given_is_left_alone(
    start: Callable[..., Launch], script: Callable[..., str]
) -> None:
    launch = start([script("exit 7")], under=("sh", "-c", 'sleep 300 & echo $!; exec "$@"', "sh"))
    given = int(launch.line())
    try:
        assert launch.process.wait(timeout=PATIENCE) == 7
        assert fields(given)
    finally:
        ended(given)


def test_what_qemu_has_forked_leaves_no_zombie_while_it_runs(
    start: Callable[..., Launch], script: Callable[..., str]
) -> None:
    launch = start([script("(sleep 0.2 & echo $!); sleep 300; exit 0")])
    orphan = int(launch.line())
    launch.find()
    until(lambda: not Path(f"/proc/{orphan}").exists(), "the orphan is waited for")
    os.kill(launch.pid, signal.SIGTERM)
    assert launch.result() == 128 + 15
