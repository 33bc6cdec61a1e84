# SPDX-License-Identifier: Apache-2.0
"""The launcher's decisions, each alone: no root, no QEMU."""

import os
import pwd
import signal
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from virtfs_proxy.cli import processes, run
from virtfs_proxy.cli.processes import Identity, RunError
from virtfs_proxy.codec import Fields
from virtfs_proxy.proxy.messages import REQUESTS

LSTAT = next(row for row in REQUESTS if row.name == "lstat")
QEMU = ["qemu-system-x86_64", "-m", "1G"]
NINE_P_7_2 = 'name "virtio-9p-device", bus virtio-bus\nname "virtio-9p-pci", bus PCI, alias "virtio-9p"\n'
MISSING = "-fsdev proxy,id=virtfs: both socket and sock_fd properties are missing\n"


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["/srv"], "no QEMU to start"),
        (["/srv", "--"], "no QEMU to start"),
        (["--", *QEMU], "EXPORT"),
        (["/srv", "/tmp", "--", *QEMU], "/tmp"),
        (["/srv", "--colour", "--", *QEMU], "--colour"),
        (["/srv", "--tag", "", "--", *QEMU], "tag ''"),
        (["/srv", "--tag", "a" * 32, "--", *QEMU], "1 to 31"),
        (["/srv", "--tag", "a,b", "--", *QEMU], "tag 'a,b'"),
        (["/srv", "--tag", "a b", "--", *QEMU], "tag 'a b'"),
        (["/srv", "--tag=-a", "--", *QEMU], "tag '-a'"),
        (["/srv", "--tag", "é", "--", *QEMU], "tag 'é'"),
        (["/srv", "--helper", "a 'b", "--", *QEMU], "--helper"),
        (["/srv", "--", *QEMU, "-daemonize"], "-daemonize"),
        (["/srv", "--", *QEMU, "--daemonize"], "-daemonize"),
        (["/srv", "--", *QEMU, "-runas", "daemon"], "-runas"),
        (["/srv", "--", *QEMU, "-run-with", "async-teardown=on,user=daemon"], "-run-with user"),
    ],
)
def test_wrong_usage_exits_2_and_names_what_is_wrong(
    argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(argv)
    assert ended.value.code == 2
    usage, _, error = capsys.readouterr().err.rpartition("virtfs run: error: ")
    assert usage.startswith("usage: virtfs run EXPORT")
    assert complaint in error


def test_help_goes_to_stdout_with_exit_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(["--help"])
    assert ended.value.code == 0
    assert {"--tag", "--user", "--helper"} <= set(capsys.readouterr().out.replace("[", " ").split())


def test_options_stop_at_the_dashes_and_the_rest_is_qemus() -> None:
    options = run.parse(["--tag", "a" * 31, "/srv", "--", "qemu", "--tag", "x", "--", "y"])
    assert (options.export, options.tag, options.user) == ("/srv", "a" * 31, None)
    assert options.qemu == ["qemu", "--tag", "x", "--", "y"]
    assert run.parse(["/srv", "--", "qemu", "-run-with", "chroot=/srv"]).qemu[-1] == "chroot=/srv"
    assert run.parse(["/srv", "--", "qemu", "-name", "daemonize"]).qemu[-1] == "daemonize"
    assert run.parse(["/srv", "--helper", "a 'b c'", "--", "q"]).helper == ["a", "b c"]


def test_the_default_helper_takes_no_code_from_the_working_directory(tmp_path: Path) -> None:
    package = tmp_path / "virtfs_proxy" / "cli"
    package.mkdir(parents=True)
    for module in (tmp_path / "argparse.py", package / "helper.py", package.parent / "__init__.py"):
        module.write_text("raise SystemExit('taken from the working directory')")
    command = [*run.default_helper(), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--nodaemon" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "machine"),
    [
        ("", None),
        ("-m 1G", None),
        ("-M microvm", "microvm"),
        ("-machine pc -M microvm,pcie=on", "microvm"),
        ("--machine q35,accel=tcg", "q35"),
        ("-machine accel=tcg,type=microvm", "microvm"),
        ("-M microvm -machine accel=tcg", "microvm"),
        ("-M", None),
    ],
)
def test_the_machine_is_what_the_arguments_name(arguments: str, machine: str | None) -> None:
    assert run.machine_type(arguments.split()) == machine


def qemu_that_says(devices: str, driver: str, machines: str) -> Callable[..., str]:
    return lambda *arguments: devices if arguments[0] == "-device" else driver if "-fsdev" in arguments else machines


@pytest.mark.parametrize(
    ("devices", "machines", "arguments", "device"),
    [
        (NINE_P_7_2, "pc-i440fx-7.2 Standard PC (default)\nmicrovm microvm (i386)\n", "", "virtio-9p-pci"),
        (NINE_P_7_2, "pc-i440fx-7.2 Standard PC (default)\n", "-M microvm", "virtio-9p-device"),
        (
            NINE_P_7_2,
            "pc Standard PC\nmicrovm              microvm (i386) (default)\n",
            "",
            "virtio-9p-device",
        ),
        (NINE_P_7_2, "microvm microvm (i386) (default)\n", "-M q35", "virtio-9p-pci"),
        (NINE_P_7_2, "virt QEMU ARM Virtual Machine\n", "-M virt", "virtio-9p-pci"),
        (NINE_P_7_2 + 'name "virtio-9p-ccw", bus virtual-css-bus\n', "", "", "virtio-9p-ccw"),
        ('name "virtio-9p-device", bus virtio-bus\n', "", "-M virt", "virtio-9p-device"),
    ],
)
def test_the_device_fits_the_machine(devices: str, machines: str, arguments: str, device: str) -> None:
    ask = qemu_that_says(devices, MISSING, machines)
    assert run.choose_device("qemu", arguments.split(), ask) == device


@pytest.mark.parametrize(
    ("devices", "driver", "complaint"),
    [
        ('name "virtio-net-pci", bus PCI\n', MISSING, "lists no virtio-9p device: use a QEMU"),
        (
            NINE_P_7_2,
            "fsdev: fsdriver proxy not found\n",
            "no proxy driver, which QEMU 9.2 removed: use QEMU 9.1",
        ),
        (NINE_P_7_2, "-device virtfs-none: 'virtfs-none' is not a valid device\n", "does not tell whether"),
        (NINE_P_7_2, "", "it says 'nothing'"),
    ],
)
def test_a_qemu_without_the_driver_is_refused(devices: str, driver: str, complaint: str) -> None:
    with pytest.raises(RunError, match=complaint):
        run.choose_device("qemu", [], qemu_that_says(devices, driver, ""))


def test_the_share_gets_an_id_that_is_free() -> None:
    assert run.share_arguments([], "virtio-9p-pci", "tag", 7) == [
        "-fsdev", "proxy,id=virtfs0,sock_fd=7", "-device", "virtio-9p-pci,fsdev=virtfs0,mount_tag=tag",
    ]  # fmt: skip
    taken = ["-fsdev", "local,path=/,security_model=none,id=virtfs0"]
    assert "proxy,id=virtfs1,sock_fd=7" in run.share_arguments(taken, "virtio-9p-pci", "tag", 7)


@pytest.mark.parametrize(
    ("wanted", "environ", "name"),
    [
        (None, {}, "nobody"),
        (None, {"SUDO_UID": "0"}, "nobody"),
        (None, {"SUDO_UID": str(pwd.getpwnam("daemon").pw_uid)}, "daemon"),
        ("root", {"SUDO_UID": "1"}, "root"),
        ("daemon", {}, "daemon"),
        (str(pwd.getpwnam("daemon").pw_uid), {}, "daemon"),
        ("0", {}, "root"),
    ],
)
def test_the_user_is_the_one_named_else_sudos_else_nobody(
    wanted: str | None, environ: dict[str, str], name: str
) -> None:
    entry = pwd.getpwnam(name)
    assert Identity.of(wanted, environ)[:3] == (name, entry.pw_uid, entry.pw_gid)


@pytest.mark.parametrize("wanted", ["no-such-user", "4000000000", "9" * 30, "-1", "²", ""])
def test_a_user_who_does_not_exist_is_refused(wanted: str) -> None:
    with pytest.raises(RunError, match=r"no user .*--user"):
        Identity.of(wanted, {})


def test_the_environment_is_the_callers_but_for_whose_session_it_is() -> None:
    user = Identity("guest", 4_000_000, 5, [5], "/home/guest", "/bin/sh")
    environ = {
        "HOME": "/root",
        "USER": "root",
        "MAIL": "/var/mail/root",
        "DISPLAY": ":0",
        "XDG_RUNTIME_DIR": "/run/user/0",
    }
    assert user.environment(environ) == {
        "HOME": "/home/guest", "USER": "guest", "LOGNAME": "guest", "SHELL": "/bin/sh", "DISPLAY": ":0",
    }  # fmt: skip


@pytest.mark.parametrize(("status", "words", "code"), [(7, "exit status 7", 7), (-9, "SIGKILL", 137), (-40, "40", 168)])
def test_an_end_is_told_as_a_shell_does(status: int, words: str, code: int) -> None:
    assert processes.ending(status).endswith(words)
    assert processes.as_shell(status) == code


def test_only_root_may_run_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run.main(["/srv", "--", *QEMU]) == 1
    error = capsys.readouterr().err
    assert error.startswith("virtfs run: error: only root ")
    assert "sudo" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "complaint"), [("missing", "No such file"), ("file", "not a directory"), ("a\0b", "null byte")]
)
def test_the_export_must_be_a_directory(tmp_path: Path, name: str, complaint: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=f"{complaint}.*name the directory to share"):
        run.directory(f"{tmp_path}/{name}")


def test_an_export_that_looks_like_an_option_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "-n").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run.directory("-n") == f"{tmp_path}/-n"


@pytest.mark.parametrize(("name", "complaint"), [("qemu-of-nowhere", "not in PATH"), ("/etc/passwd", "no executable")])
def test_qemu_must_be_there(name: str, complaint: str) -> None:
    with pytest.raises(RunError, match=f"{name} is {complaint}.*install QEMU"):
        run.executable(name)


def sleeper() -> processes.Process:
    return subprocess.Popen(["sleep", "60"])


@pytest.fixture
def helper() -> Iterator[processes.Process]:
    process = sleeper()
    yield process
    process.kill()
    process.wait()


def reply_about(path: Path) -> bytes:
    """The answer to LSTAT of a helper that serves that directory."""
    status = os.stat(path)
    values = {name: 0 for name, _ in Fields("=", LSTAT.reply).items}
    body = Fields("=", LSTAT.reply).pack(values | {"dev": status.st_dev, "ino": status.st_ino})
    return struct.pack("=II", 0, len(body)) + body


def test_a_helper_that_answers_for_the_export_is_ready(tmp_path: Path, helper: processes.Process) -> None:
    near, far = socket.socketpair()
    with near, far:
        far.sendall(reply_about(tmp_path))
        run.await_helper(near, helper, str(tmp_path))
        assert far.recv(100) == struct.pack("=II", 8, 3) + b"\1\0."
        assert near.getblocking(), "QEMU's half must block"


@pytest.mark.parametrize("reply", ["other", struct.pack("=IIi", 1, 4, -13), struct.pack("=II", 0, 3) + b"abc"])
def test_a_helper_that_answers_otherwise_is_refused(
    tmp_path: Path, helper: processes.Process, reply: bytes | str
) -> None:
    near, far = socket.socketpair()
    with near, far:
        far.sendall(reply_about(tmp_path.parent) if isinstance(reply, str) else reply)
        with pytest.raises(RunError, match="does not serve"):
            run.await_helper(near, helper, str(tmp_path))


@pytest.mark.parametrize("said", [b"", b"\0\0\0\0\x74"])
def test_a_helper_that_ends_is_told_with_its_status(tmp_path: Path, said: bytes) -> None:
    near, far = socket.socketpair()
    with near:
        far.sendall(said)
        far.close()
        with pytest.raises(RunError, match="the helper ended with exit status 3"):
            run.await_helper(near, subprocess.Popen(["sh", "-c", "exit 3"]), str(tmp_path))


def test_a_helper_that_says_nothing_is_given_up(
    tmp_path: Path, helper: processes.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "READY_S", 0.05)
    near, far = socket.socketpair()
    with near, far, pytest.raises(RunError, match="has not answered"):
        run.await_helper(near, helper, str(tmp_path))
    assert helper.wait(timeout=30) == -signal.SIGKILL


WATCH = """
import subprocess, sys
from virtfs_proxy.cli import processes
processes.SETTLE_S = processes.GRACE_S = 0.1
processes.hold_signals()
qemu = subprocess.Popen(["sh", "-c", sys.argv[1]], preexec_fn=lambda: processes.signal.pthread_sigmask(2, ()))
helper = subprocess.Popen(["sh", "-c", sys.argv[2]])
status = processes.watch(qemu, helper, processes.Terminal(), frozenset())
print(status, qemu.returncode)
helper.kill()
helper.wait()
"""


@pytest.mark.parametrize(
    ("qemu", "helper", "result", "says"),
    [
        ("exit 7", "exec sleep 60", "7 7", ""),
        ("kill -9 $$", "exec sleep 60", "137 -9", ""),
        (
            "exec sleep 60",
            "exit 0",
            "1 -15",
            "the helper ended with exit status 0 while QEMU ran: ending QEMU",
        ),
        (
            "trap '' TERM; while :; do sleep 0.05; done",
            "kill -9 $$",
            "1 -9",
            "the helper was killed by SIGKILL while",
        ),
    ],
)
def test_the_watch_ends_with_qemu_and_ends_it_when_the_helper_is_lost(
    qemu: str, helper: str, result: str, says: str
) -> None:
    command = [sys.executable, "-c", textwrap.dedent(WATCH), qemu, helper]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == result
    assert says in done.stderr
    assert bool(says) == bool(done.stderr)


def test_the_end_of_the_helper_within_that_of_qemu_is_none_of_its_own() -> None:
    """QEMU's descriptors close before it can be waited for: the helper may be seen to end first."""
    command = [
        sys.executable,
        "-c",
        WATCH.replace("SETTLE_S = ", "SETTLE_S = 30; "),
        "sleep 0.3; exit 5",
        "exit 0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout.strip(), done.stderr) == ("5 5", "")


ORPHANS = """
import os, subprocess, sys, time
from virtfs_proxy.cli import processes
processes.LEFT_S = 0.5
mine = subprocess.Popen(["sleep", "60"])
spared = processes.adopt()
processes.hold_signals()
subprocess.run(["sh", "-c", sys.argv[1]], check=True, preexec_fn=lambda: processes.signal.pthread_sigmask(2, ()))
deadline = time.monotonic() + 30
while len(processes._children()) < 2 and time.monotonic() < deadline:
    time.sleep(0.01)
processes.end_orphans(spared)
print(processes._children() == {mine.pid}, mine.poll())
mine.kill()
mine.wait()
"""


@pytest.mark.parametrize(
    "lines",
    [
        "sleep 60 &",
        "setsid sleep 60 &",
        "(trap '' TERM; exec sleep 60) &",
        "(sleep 60 & sleep 60 & wait) &",
        "setsid sh -c 'kill -STOP $$' &",
    ],
)
def test_what_a_child_leaves_is_ended_and_an_inherited_child_is_not(lines: str) -> None:
    command = [sys.executable, "-c", ORPHANS, lines]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout.strip(), done.stderr) == ("True None", "")
