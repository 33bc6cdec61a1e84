# SPDX-License-Identifier: Apache-2.0
"""The launcher with QEMU itself: who runs as whom and holds what; nothing stays behind, whoever dies.

A QEMU that ends in ways of its own, or that is too new, is a script which answers the launcher's questions.
"""

import fcntl
import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.root

VIRTFS = Path(sys.executable).with_name("virtfs")
QEMU = "qemu-system-x86_64"
# The processor stands still (-S): no guest is needed to see how the processes live and die.
MACHINE = [QEMU, "-accel", "tcg", "-S", "-display", "none", "-nodefaults", "-sandbox", "on"]
QMP = [*MACHINE, "-qmp", "stdio"]
PATIENCE = 60.0
LINE = "virtfs run: in the guest: mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000"

ANSWERS = """#!/bin/sh
case "$*" in
*"-device help") echo 'name "virtio-9p-pci", bus PCI'; exit ;;
*"-machine help") exit ;;
*"-fsdev proxy,id=virtfs -device "*) echo '%s' >&2; exit 1 ;;
esac
%s
"""
KNOWN = "both socket and sock_fd properties are missing"
RECORDER = """
import os, signal, sys
def record(number, frame):
    os.write(1, signal.Signals(number).name.encode() + b"\\n")
    if number == signal.SIGTERM:
        os._exit(42)
for name in "HUP INT QUIT TERM USR1 USR2 WINCH CONT".split():
    signal.signal(getattr(signal, "SIG" + name), record)
os.write(1, b"ready\\n")
while True:
    signal.pause()
"""
PYTHON = f"{sys.base_prefix}/bin/python3"
RECORD = f'exec {PYTHON} -c {shlex.quote(RECORDER)} "$@"'


def until(condition: Callable[[], Any], what: str) -> Any:
    """Poll for the condition and return its value once it is true."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        time.sleep(0.02)
    return value


def fields(pid: int) -> dict[str, str]:
    """/proc/PID/status; empty for a process that is gone, or that only waits to be reaped."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    status = dict(line.split(":", 1) for line in lines)
    return {} if status["State"].split()[0] in "ZX" else {name: value.strip() for name, value in status.items()}


def gone(*pids: int) -> None:
    for pid in pids:
        until(lambda pid=pid: not fields(pid), f"the end of process {pid}")  # type: ignore[misc]


def children(pid: int) -> list[int]:
    every = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return [child for child in every if fields(child).get("PPid") == str(pid)]


def arguments(pid: int) -> list[str]:
    """Its command line; empty for a process that is gone, as one that the launcher asked something."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def descriptors(pid: int) -> dict[int, str]:
    folder = Path(f"/proc/{pid}/fd")
    return {int(name): os.readlink(folder / name) for name in os.listdir(folder)}


def sockets(pid: int) -> list[str]:
    return [target for target in descriptors(pid).values() if target.startswith("socket:")]


class Launch:
    """A running `virtfs run` and its two children."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self.process = process
        self.errors = errors
        self.pid = process.pid
        self.qemu = self.helper = 0

    def find(self) -> None:
        """Wait until both children run their programs."""
        until(lambda: LINE in self.said(), "the line for the guest")
        both = until(lambda: len(found := children(self.pid)) == 2 and found, "two children")
        (self.helper,) = [pid for pid in both if "-n" in arguments(pid) and "-f" in arguments(pid)]
        (self.qemu,) = [pid for pid in both if pid != self.helper]
        until(lambda: any("sock_fd=" in item for item in arguments(self.qemu)), "QEMU's exec")

    def said(self) -> str:
        return self.errors.read_text(encoding="utf-8")

    def line(self) -> str:
        """The next line of QEMU's stdout."""
        assert self.process.stdout
        assert select.select([self.process.stdout], [], [], PATIENCE)[0], "QEMU says nothing"
        return self.process.stdout.readline().strip()

    def qmp(self, command: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"execute": command}) + "\n")
        self.process.stdin.flush()

    def result(self) -> int:
        """Exit status, once all three have ended."""
        status = self.process.wait(timeout=PATIENCE)
        gone(self.qemu, self.helper)
        return status


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


def ended(pid: int) -> None:
    """See to the end of a process of this test that should not be there."""
    if fields(pid):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def teletype() -> Iterator[tuple[int, int]]:
    """A terminal: where a person types and looks, and the device."""
    keyboard, terminal = pty.openpty()
    try:
        yield keyboard, terminal
    finally:
        os.close(keyboard)
        os.close(terminal)


def shown(keyboard: int, pattern: str) -> None:
    """Wait until what appears on the terminal from now on matches."""
    screen = ""
    deadline = time.monotonic() + PATIENCE
    while not re.search(pattern, screen):
        ready = select.select([keyboard], [], [], max(0.0, deadline - time.monotonic()))[0]
        assert ready, f"not within {PATIENCE} s: {pattern!r} on the terminal, which shows {screen!r}"
        screen += os.read(keyboard, 4096).decode(errors="replace")


def typed_at(terminal: int) -> Callable[[], None]:
    """What a child does to have the terminal as its own, its process group in the foreground."""

    def own() -> None:
        os.setsid()
        os.close(os.open(os.ttyname(terminal), os.O_RDWR))  # a session leader's first terminal becomes its own

    return own


TYPES = """
import errno, fcntl, os, termios
try:
    os.close(os.open("/dev/tty", os.O_RDWR))
    print("TERMINAL", end=" ")
except OSError as error:
    print(errno.errorcode[error.errno], end=" ")
try:
    for key in b"touch /typed\\n":
        fcntl.ioctl(0, termios.TIOCSTI, bytes([key]))
    print("TYPED", flush=True)
except OSError as error:
    print(errno.errorcode[error.errno], flush=True)
"""


def test_qemu_cannot_type_at_the_callers_shell(start: Callable[..., Launch], script: Callable[..., str]) -> None:
    with teletype() as (_, terminal):
        types = script(f"exec {PYTHON} -c {shlex.quote(TYPES)}")
        shell = ("sh", "-c", '"$@"; exit $?', "sh")
        launch = start([types], stdin=terminal, preexec_fn=typed_at(terminal), under=shell)
        assert launch.line() in {"ENXIO EPERM", "ENXIO EIO"}  # EIO: sysctl dev.tty.legacy_tiocsti is 0
        assert launch.process.wait(timeout=PATIENCE) == 0
        assert fcntl.ioctl(terminal, termios.FIONREAD, bytes(4)) == bytes(4), "there are keys for the shell to read"


def test_qemus_monitor_is_used_at_the_terminal_and_stops_and_goes_on_as_a_job(start: Callable[..., Launch]) -> None:
    version = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout.split()[3]
    with teletype() as (keyboard, terminal):
        before = termios.tcgetattr(terminal)
        shell = (
            "sh",
            "-m",
            "-c",
            '"$@"; echo "stop:$?"; read line; bg; wait %1; echo "again:$?"; read line; fg; echo "end:$?"',
            "sh",
        )
        monitor = [*MACHINE, "-monitor", "stdio"]
        launch = start(monitor, stdin=terminal, stdout=terminal, preexec_fn=typed_at(terminal), under=shell)
        launch.pid = until(lambda: next(iter(children(launch.process.pid)), 0), "the launcher")
        launch.find()
        shown(keyboard, r"\(qemu\) ")
        raw = termios.tcgetattr(terminal)
        assert raw != before
        os.write(keyboard, b"info version\r")
        shown(keyboard, rf"\n{re.escape(version)}[^\n]*\n.*\(qemu\) ")

        os.write(keyboard, b"\x1a")  # ^Z
        shown(keyboard, r"stop:148")  # SIGTSTP is 20
        until(lambda: fields(launch.qemu)["State"].startswith("T"), "QEMU stopped")
        assert termios.tcgetattr(terminal) == before
        assert os.get_blocking(terminal)
        os.write(keyboard, b"\n")  # bg: what reads the terminal stands still there
        shown(keyboard, r"again:149")  # SIGTTIN is 21
        assert fields(launch.qemu)["State"].startswith("T")
        assert termios.tcgetattr(terminal) == before
        os.write(keyboard, b"\n")  # fg
        until(lambda: not fields(launch.qemu)["State"].startswith("T"), "QEMU goes on")

        os.write(keyboard, b"info name\rquit\r")
        shown(keyboard, r"end:0")
        assert launch.result() == 0
        assert termios.tcgetattr(terminal) == before


def test_a_stopped_job_is_ended_by_a_signal(start: Callable[..., Launch], script: Callable[..., str]) -> None:
    """As `kill %1` does it in bash, which continues the job, in the background."""
    with teletype() as (keyboard, terminal):
        shell = ("sh", "-m", "-c", '"$@"; kill %1; bg; wait %1; echo "end:$?"', "sh")
        sleeper = script("sleep 300; exit 0")
        launch = start([sleeper], stdin=terminal, stdout=terminal, preexec_fn=typed_at(terminal), under=shell)
        launch.pid = until(lambda: next(iter(children(launch.process.pid)), 0), "the launcher")
        launch.find()
        os.write(keyboard, b"\x1a")
        shown(keyboard, r"end:143")
        assert launch.result() == 0


def test_started_in_the_background_qemu_leaves_the_terminal_alone(start: Callable[..., Launch]) -> None:
    with teletype() as (_, terminal):
        before = termios.tcgetattr(terminal)
        shell = ("sh", "-m", "-c", '"$@" & wait', "sh")
        launch = start([*MACHINE, "-serial", "stdio"], stdin=terminal, preexec_fn=typed_at(terminal), under=shell)
        launch.pid = until(lambda: next(iter(children(launch.process.pid)), 0), "the launcher")
        launch.find()
        assert descriptors(launch.qemu)[0] == "/dev/null"
        os.kill(launch.pid, signal.SIGTERM)
        assert launch.result() == 0
        assert termios.tcgetattr(terminal) == before


def test_an_interrupt_typed_reaches_qemu_once_and_the_helper_not(
    start: Callable[..., Launch], script: Callable[..., str]
) -> None:
    keyboard, terminal = pty.openpty()
    try:
        recorder = script(RECORD)
        launch = start([recorder], stdin=terminal, preexec_fn=typed_at(terminal))
        launch.find()
        assert launch.line() == "ready"
        os.write(keyboard, b"\x03")
        assert launch.line() == "SIGINT"
        os.kill(launch.pid, signal.SIGUSR1)
        assert launch.line() == "SIGUSR1", "the launcher passed on what the terminal had sent to QEMU already"
        assert fields(launch.helper)
        os.kill(launch.pid, signal.SIGTERM)
        assert launch.line() == "SIGTERM"
        assert launch.result() == 42
    finally:
        os.close(keyboard)
        os.close(terminal)


def test_a_killed_qemu_leaves_the_terminal_as_it_was(start: Callable[..., Launch]) -> None:
    keyboard, terminal = pty.openpty()
    try:
        before = termios.tcgetattr(terminal)
        console = [*MACHINE, "-chardev", "stdio,id=c,signal=off", "-serial", "chardev:c"]
        launch = start(console, stdin=terminal, stdout=terminal, preexec_fn=typed_at(terminal))
        launch.find()
        until(lambda: termios.tcgetattr(terminal) != before, "QEMU has the terminal in raw mode")
        os.kill(launch.qemu, signal.SIGKILL)
        assert launch.result() == 137
        assert termios.tcgetattr(terminal) == before
        assert os.get_blocking(terminal)
    finally:
        os.close(keyboard)
        os.close(terminal)
