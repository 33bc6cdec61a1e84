# SPDX-License-Identifier: Apache-2.0
"""The processes of `virtfs run`: the user QEMU runs as, how each is started, and how they end together.

Nothing here keeps a list of what to kill. The helper ends with the end of its connection, and the kernel
kills QEMU when the launcher dies; so it holds for SIGKILL too, and from the first instant on. What QEMU itself has
forked becomes the launcher's child (PR_SET_CHILD_SUBREAPER) and is ended by it; a launcher that is killed can't.

QEMU is hostile, and the terminal is root's: in a session of its own QEMU can neither type there (TIOCSTI) nor paste
(TIOCLINUX), since both want the terminal to be the caller's controlling one (drivers/tty/tty_io.c).
"""

import os
import pwd
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, Self, TypeAlias

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

LEFT_S: Final = 2.0
"""Seconds that what QEMU leaves behind has from SIGTERM to SIGKILL, and again from that to being given up."""

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
# A stopped launcher that gets one of these has to end, in the background too.
_ENDING: Final = frozenset((signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM))
_HELD: Final = FORWARDED | {signal.SIGCHLD, signal.SIGTSTP}


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


def start_qemu(command: Sequence[str], user: Identity, descriptor: int, *, reads: bool) -> Process:
    """Start QEMU as the user, with the descriptor and whatever the caller lets it inherit (tap,fd=3).

    :param reads: whether it gets stdin; else /dev/null.
    :raises RunError: when it can't be run.
    """
    stdin = None if reads else subprocess.DEVNULL
    before = _BeforeExec(signal.SIGKILL, descriptor)
    return _start(command, before, user, close_fds=False, start_new_session=True, stdin=stdin)


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
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)


def watch(qemu: Process, helper: Process, terminal: "Terminal", spared: frozenset[int]) -> int:
    """Forward signals to QEMU until it ends; end it when the helper ends first.

    :param spared: children that are none of ours, from :func:`adopt`.
    :returns: QEMU's exit status, as a shell tells it; 1 when the helper was lost.
    """
    steps: list[tuple[float, signal.Signals]] = []
    lost = False
    while qemu.poll() is None:
        if not lost and helper.poll() is not None:
            lost = True
            settled = time.monotonic() + SETTLE_S
            steps = [(settled, signal.SIGTERM), (settled + GRACE_S, signal.SIGKILL)]
        _reap(_children() - spared - {qemu.pid, helper.pid})
        wait = max(0.0, steps[0][0] - time.monotonic()) if steps else None
        if wait == 0.0:
            _, number = steps.pop(0)
            if number is signal.SIGTERM:
                say(f"error: the helper {ending(helper.returncode)} while QEMU ran: ending QEMU")
            qemu.send_signal(number)
            continue
        _forward(qemu, terminal, wait)
    # A step taken is a QEMU that did not end by itself.
    return 1 if lost and len(steps) < 2 else as_shell(qemu.returncode)


def _forward(qemu: Process, terminal: "Terminal", timeout: float | None) -> None:
    """Wait for a signal, or the end of a child, and pass it on: the terminal's too reach the launcher alone."""
    info = signal.sigwaitinfo(_HELD) if timeout is None else signal.sigtimedwait(_HELD, timeout)
    if info is None or info.si_signo == signal.SIGCHLD:
        return
    if info.si_signo == signal.SIGTSTP:
        _stop(qemu, terminal)
    else:
        qemu.send_signal(info.si_signo)


def _stop(qemu: Process, terminal: "Terminal") -> None:
    """Stop QEMU and then the launcher, as ^Z does any program, until a shell brings them to the foreground.

    QEMU would ignore SIGTSTP: the kernel has it for process groups that a shell can continue. Nor is a process of
    another session kept from reading the terminal in the background, so that QEMU stands still there.
    """
    qemu.send_signal(signal.SIGSTOP)
    qemus = terminal.modes()
    terminal.set(terminal.saved)
    number = signal.SIGTSTP
    while _stopped_by(number) and terminal.elsewhere():
        if qemu.poll() is not None or signal.sigpending() & _ENDING:
            break
        number = signal.SIGTTIN
    terminal.set(qemus)
    qemu.send_signal(signal.SIGCONT)


def _stopped_by(number: signal.Signals) -> bool:
    """Take the signal's default action. :returns: whether that was to stop, until SIGCONT."""
    os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    return signal.sigtimedwait({signal.SIGCONT}, 0) is not None


def adopt() -> frozenset[int]:
    """Become the parent of every descendant whose own one dies.

    :returns: the children that the launcher has already, as from a shell that has executed it.
    :raises RunError: when the kernel does not list them.
    """
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    try:
        return frozenset(_children())
    except OSError as error:
        raise RunError(f"{error.filename}: {error.strerror}: mount /proc of a kernel with PROC_CHILDREN") from None


def _children() -> set[int]:
    """The children of this process, which has one thread (proc(5))."""
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        return {int(pid) for pid in file.read().split()}


def _reap(children: set[int]) -> set[int]:
    """Wait for those of the children that have ended. :returns: the others."""
    return {pid for pid in children if os.waitpid(pid, os.WNOHANG)[0] == 0}


def end_orphans(spared: frozenset[int]) -> None:
    """End all children but the spared, and all of their descendants: SIGTERM, after LEFT_S SIGKILL.

    Children alone are signalled, whose numbers can't be another's until they are waited for. What they leave is a
    child before they can be waited for: once none is listed, none is hidden.
    """
    kill = time.monotonic() + LEFT_S
    asked: set[int] = set()
    while children := _children() - spared:
        left = _reap(children)
        now = time.monotonic()
        if now >= kill + LEFT_S:
            say(f"error: still there of what QEMU has started: {' '.join(map(str, sorted(left)))}")
            return
        for pid in left if now >= kill else left - asked:
            os.kill(pid, signal.SIGKILL if now >= kill else signal.SIGTERM)
        asked = left
        signal.sigtimedwait({signal.SIGCHLD}, 0.05)


def end(helper: Process) -> None:
    """Reap the helper, whose connection is closed; help it where that has not ended it."""
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            helper.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            helper.wait(timeout=GRACE_S / 2)
            return
    say(f"error: the helper, process {helper.pid}, hangs in the kernel and ends when that lets it")


def end_all(helper: Process, spared: frozenset[int]) -> None:
    """End what is left, QEMU's side first: it may hold the helper's connection open."""
    spared |= {helper.pid}
    end_orphans(spared)
    end(helper)
    end_orphans(spared)


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


Modes: TypeAlias = tuple[list[Any], bool]


class Terminal:
    """The terminal on stdin, given back as it was: a QEMU that is killed leaves it raw and non-blocking."""

    def __init__(self) -> None:
        self.lent = True
        self.lent = not self.elsewhere()
        self.saved = self.modes()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.set(self.saved)

    def modes(self) -> Modes | None:
        """Its attributes, and whether reads block; None where stdin is no terminal."""
        try:
            return termios.tcgetattr(0), os.get_blocking(0)
        except (termios.error, OSError):
            return None

    def set(self, modes: Modes | None) -> None:
        """Restore what :meth:`modes` returned, unless another job has the terminal."""
        if modes is None:
            return
        with suppress(termios.error, OSError):
            if os.tcgetpgrp(0) == os.getpgrp():
                termios.tcsetattr(0, termios.TCSANOW, modes[0])
                os.set_blocking(0, modes[1])

    def elsewhere(self) -> bool:
        """Whether it is QEMU's to read but another job has it; never where the launcher began in the background."""
        try:
            return self.lent and os.tcgetpgrp(0) != os.getpgrp()
        except OSError:  # not the controlling terminal
            return False
