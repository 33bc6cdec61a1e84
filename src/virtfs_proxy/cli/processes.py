# SPDX-License-Identifier: Apache-2.0
"""The processes of `virtfs run`: the user QEMU runs as, how each is started, and how they end together.

Nothing here keeps a list of what to kill. The helper ends with the end of its connection, and the kernel
kills QEMU when the launcher dies; so it holds for SIGKILL too, and from the first instant on.
"""

import os
import pwd
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple, TypeAlias

from virtfs_proxy import linux

Process: TypeAlias = subprocess.Popen[bytes]


class RunError(Exception):
    """What keeps QEMU from starting: the thing and what to do, in one line."""


ANSWER_S: Final = 20.0
"""Seconds that a QEMU may take to answer a question about itself; it needs 0.05 on an idle machine."""

SETTLE_S: Final = 1.0
"""Seconds between the end of the helper and that of QEMU in which the first is a part of the second."""

GRACE_S: Final = 10.0
"""Seconds from SIGTERM to SIGKILL."""

FORWARDED: Final = frozenset(
    (
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGWINCH,
        signal.SIGCONT,
    )
)
# The terminal sends these to its whole foreground process group, thus to QEMU too. SIGHUP it sends to the
# session's leader alone, which the launcher may be.
_TO_THE_GROUP: Final = frozenset((signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH))


def say(text: str) -> None:
    """One line on stderr. A terminal that is gone must not end the watch over QEMU."""
    with suppress(OSError):
        print(f"virtfs run: {text}", file=sys.stderr, flush=True)


class Identity(NamedTuple):
    """A user as login(1) sees him."""

    name: str
    uid: int
    gid: int
    groups: list[int]
    home: str
    shell: str

    @classmethod
    def of(cls, wanted: str | None, environ: Mapping[str, str]) -> "Identity":
        """The user of that name or number; for None the one who called sudo(8), else nobody.

        :raises RunError: when there is no such user.
        """
        user = environ.get("SUDO_UID", "0") if wanted is None else wanted
        if wanted is None and user == "0":
            user = "nobody"
        entry = None
        with suppress(KeyError):
            entry = pwd.getpwnam(user)
        if entry is None and user.isascii() and user.isdigit():
            with suppress(KeyError, OverflowError):
                entry = pwd.getpwuid(int(user))
        if entry is None:
            raise RunError(f"there is no user {user!r}: name one that exists with --user")
        name, uid, gid = entry.pw_name, entry.pw_uid, entry.pw_gid
        return cls(name, uid, gid, os.getgrouplist(name, gid), entry.pw_dir, entry.pw_shell)

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """What the caller has set, but for the variables that tell whose session it is."""
        mine = {"HOME": self.home, "USER": self.name, "LOGNAME": self.name, "SHELL": self.shell}
        kept = {name: value for name, value in environ.items() if name not in {"MAIL", "XDG_RUNTIME_DIR"}}
        runtime = f"/run/user/{self.uid}"
        with suppress(OSError):
            if os.stat(runtime).st_uid == self.uid:
                mine["XDG_RUNTIME_DIR"] = runtime
        return kept | mine


class _BeforeExec:
    """What a child does between fork and exec, after the change of user that clears the parent-death signal.

    :param death: the signal the kernel sends to the child when the launcher dies.
    :param keep: a descriptor the child inherits.
    """

    def __init__(self, death: signal.Signals, keep: int | None = None) -> None:
        self.parent = os.getpid()
        self.death = death
        self.keep = keep

    def __call__(self) -> None:
        linux.prctl(linux.PR_SET_PDEATHSIG, self.death)
        if os.getppid() != self.parent:  # it died before the line above, and no signal will come
            os._exit(1)
        if self.keep is not None:
            os.set_inheritable(self.keep, True)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _start(command: Sequence[str], before: _BeforeExec, user: Identity | None, **options: Any) -> Process:
    """Popen, as the user if there is one.

    :raises RunError: when it can't be run.
    """
    if user:
        options |= {"user": user.uid, "group": user.gid, "extra_groups": user.groups}
        options["env"] = user.environment(os.environ)
    try:
        return subprocess.Popen(command, preexec_fn=before, **options)  # noqa: PLW1509 - there is one thread
    except OSError as error:
        who = user.name if user else "root"
        raise RunError(f"{command[0]} can't be run as {who}: {error.strerror}") from None


def ask(command: Sequence[str], user: Identity) -> str:
    """Run a program as the user and return what it wrote, stdout and stderr together.

    :raises RunError: when it can't be run, or has not ended after ANSWER_S.
    """
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with _start(command, _BeforeExec(signal.SIGKILL), user, start_new_session=True, **pipes) as process:
        try:
            output, _ = process.communicate(timeout=ANSWER_S)
        except subprocess.TimeoutExpired:
            late = f"{command[0]} {command[1]}: no answer in {ANSWER_S:.0f} s: name a QEMU after '--'"
            raise RunError(late) from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what a wrapper script has left running
    return str(output, "utf-8", "replace")


def start_helper(command: Sequence[str], descriptor: int) -> Process:
    """Start the helper with one descriptor beside stdio, out of reach of the terminal's signals.

    Its death signal is lost when it first switches identities; then the end of its connection ends it.

    :raises RunError: when it can't be run.
    """
    stdio = {"stdin": subprocess.DEVNULL, "stdout": 2}
    death = _BeforeExec(signal.SIGTERM)
    return _start(command, death, None, pass_fds=(descriptor,), start_new_session=True, **stdio)


def start_qemu(command: Sequence[str], user: Identity, descriptor: int) -> Process:
    """Start QEMU as the user, with the descriptor and whatever the caller lets it inherit (tap,fd=3).

    :raises RunError: when it can't be run.
    """
    return _start(command, _BeforeExec(signal.SIGKILL, descriptor), user, close_fds=False)


def complete_stdio() -> None:
    """Open /dev/null for what is closed of stdio: a child's own would take the place of a socket there."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def default_signals() -> None:
    """Let signals act as they do on any program until QEMU runs, whatever the caller or Python has set.

    Up to then it is enough to die. An ignored SIGCHLD would lose the exit status.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def hold_signals() -> None:
    """Keep signals pending for :func:`watch`, from before QEMU starts: none is lost, none ends us."""
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED | {signal.SIGCHLD})


def watch(qemu: Process, helper: Process) -> int:
    """Forward signals to QEMU until it ends; end it when the helper ends first.

    :returns: QEMU's exit status, as a shell tells it; 1 when the helper was lost.
    """
    steps: list[tuple[float, signal.Signals]] = []
    lost = False
    while qemu.poll() is None:
        if not lost and helper.poll() is not None:
            lost = True
            settled = time.monotonic() + SETTLE_S
            steps = [(settled, signal.SIGTERM), (settled + GRACE_S, signal.SIGKILL)]
        wait = max(0.0, steps[0][0] - time.monotonic()) if steps else None
        if wait == 0.0:
            _, number = steps.pop(0)
            if number is signal.SIGTERM:
                say(f"error: the helper {ending(helper.returncode)} while QEMU ran: ending QEMU")
            qemu.send_signal(number)
            continue
        _forward(qemu, wait)
    # A step taken is a QEMU that did not end by itself.
    return 1 if lost and len(steps) < 2 else as_shell(qemu.returncode)


def _forward(qemu: Process, timeout: float | None) -> None:
    """Wait for a signal, or the end of a child, and pass it on unless QEMU has had it from the terminal."""
    awaited = FORWARDED | {signal.SIGCHLD}
    info = signal.sigwaitinfo(awaited) if timeout is None else signal.sigtimedwait(awaited, timeout)
    if info is None or info.si_signo == signal.SIGCHLD:
        return
    from_kernel = info.si_code > 0  # SI_KERNEL; what kill(2) and its kin send is 0 or negative
    if not (from_kernel and info.si_signo in _TO_THE_GROUP):
        qemu.send_signal(info.si_signo)


def end(helper: Process) -> None:
    """Reap the helper, whose connection is closed; help it where that has not ended it."""
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            helper.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            helper.wait(timeout=GRACE_S / 2)
            return
    say(f"error: the helper, process {helper.pid}, hangs in the kernel and ends when that lets it")


def ending(status: int) -> str:
    """How a process ended, in words, from Popen.returncode."""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal
        return f"was killed by signal {-status}"


def as_shell(status: int) -> int:
    """Popen.returncode as a shell's $?: 128 and the signal's number for a process that a signal killed."""
    return status if status >= 0 else 128 - status


@contextmanager
def terminal_restored() -> Iterator[None]:
    """Give the terminal back as it was: a QEMU that is killed leaves it raw and non-blocking."""
    try:
        attributes, blocking = termios.tcgetattr(0), os.get_blocking(0)
    except (termios.error, OSError):
        yield
        return
    try:
        yield
    finally:
        with suppress(termios.error, OSError):
            if os.tcgetpgrp(0) == os.getpgrp():
                termios.tcsetattr(0, termios.TCSANOW, attributes)
                os.set_blocking(0, blocking)
