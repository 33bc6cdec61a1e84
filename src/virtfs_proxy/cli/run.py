# SPDX-License-Identifier: Apache-2.0
"""`virtfs run`: a socketpair, the helper on one half as root, QEMU on the other as an ordinary user.

The manual page of the original helper leaves this to "a helper like libvirt".
"""

import argparse
import os
import re
import select
import shlex
import shutil
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count, pairwise
from typing import Final, NamedTuple

from virtfs_proxy.cli import processes
from virtfs_proxy.cli.processes import Identity, RunError, say
from virtfs_proxy.codec import Fields, Malformed
from virtfs_proxy.proxy.messages import HEADER, HEADER_SIZE, MAX_BODY, REQUESTS, SUCCESS

MSIZE: Final = 512_000
"""The most that Linux's virtio transport takes: 125 pages (net/9p/trans_virtio.c, VIRTQUEUE_NUM less 3)."""

READY_S: Final = 20.0
"""Seconds that the helper may take to answer its first request; it needs 0.1 on an idle machine."""

# MAX_TAG_LEN of hw/9pfs/9p.h, 32, counts the NUL.
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,30}")
_DEVICE: Final = re.compile(r'^name "(virtio-9p-[a-z-]+)"', re.MULTILINE)
_DEFAULT_MACHINE: Final = re.compile(r"^(\S+) .*\(default\)", re.MULTILINE)

USAGE: Final = "virtfs run EXPORT [--tag TAG] [--user USER] [--helper CMD] -- QEMU [ARGUMENT ...]"
DESCRIPTION: Final = """\
Start QEMU as an ordinary user with the directory EXPORT shared with its guest. Run it as root: a helper
process keeps the privileges that the guest's root needs inside EXPORT, and is confined to it; QEMU has none.
What QEMU needs for the share is added to its command line. The line that mounts the share in the guest is
printed on stderr."""
EPILOG: Final = """\
Signals go to QEMU, and its exit status is returned: 128+N where signal N killed it. 1: QEMU could not be
started, or the helper ended while it ran. 2: wrong usage. When one of the three processes dies, so do the
others.

example: sudo virtfs run /srv/guest -- qemu-system-x86_64 -m 1G -nographic -drive file=disk.img"""


class Options(NamedTuple):
    """The command line. ``helper`` and ``qemu`` are commands, a word each item."""

    export: str
    tag: str
    user: str | None
    helper: list[str]
    qemu: list[str]


def main(argv: list[str]) -> int:
    """Run the command; argv is what follows `virtfs run`.

    :raises SystemExit: 2 for wrong usage, 0 after --help.
    """
    processes.complete_stdio()
    options = parse(argv)
    try:
        return launch(options)
    except RunError as error:
        say(f"error: {error}")
        return 1


def parse(argv: list[str]) -> Options:
    """Take the command line apart. :raises SystemExit: as argparse does."""
    parser = argparse.ArgumentParser(
        prog="virtfs run",
        usage=USAGE,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("export", metavar="EXPORT", help="the directory to share")
    add("--tag", default="virtfs", help="the share's name in the guest (default: %(default)s)")
    add("--user", help="run QEMU as this user, by name or number (default: sudo's caller, else nobody)")
    add("--helper", metavar="CMD", help="another helper, as a shell would read it (default: ours)")
    split = argv.index("--") if "--" in argv else len(argv)
    options = parser.parse_args(argv[:split])
    qemu = argv[split + 1 :]
    if not qemu:
        parser.error("no QEMU to start: put its command line after '--'")
    if not _TAG.fullmatch(options.tag):
        parser.error(f"tag {options.tag!r}: use 1 to 31 of A-Z a-z 0-9 _ . - and neither . nor - first")
    if refused := refuse(qemu):
        parser.error(refused)
    try:
        helper = shlex.split(options.helper) if options.helper else default_helper()
    except ValueError as error:
        parser.error(f"--helper {options.helper!r}: {error}")
    return Options(options.export, options.tag, options.user, helper, qemu)


def refuse(qemu: Sequence[str]) -> str | None:
    """What QEMU's arguments hold that would part it from the launcher, and what to do; else None."""
    for option, value in zip(qemu, [*qemu[1:], ""], strict=True):
        name = option.replace("--", "-", 1)
        if name == "-daemonize":
            return "-daemonize: QEMU has to stay in the foreground, leave it out"
        # A change of user clears the parent-death signal: QEMU would outlive a launcher that is killed.
        if name == "-runas":
            return "-runas: QEMU is started as an ordinary user, name it with --user"
        if name == "-run-with" and re.search(r"(^|,)user=", value):
            return "-run-with user: QEMU is started as an ordinary user, name it with --user"
    return None


def default_helper() -> list[str]:
    """Our own, as this module was found; -P: root takes no code from the directory it happens to be in."""
    return [sys.executable, "-P", "-m", "virtfs_proxy.cli.helper", "--log-level", "warning"]


def launch(options: Options) -> int:
    """Check everything, start the helper and QEMU, and stay until both have ended.

    :returns: the exit status.
    :raises RunError: for whatever keeps QEMU from starting.
    """
    if os.geteuid() != 0:
        raise RunError("only root can give the helper its privileges: use sudo virtfs run")
    export = directory(options.export)
    user = Identity.of(options.user, os.environ)
    if user.uid == 0:
        say("QEMU will run as root, with all of root's rights: name an ordinary user with --user")
    qemu = executable(options.qemu[0])
    processes.default_signals()
    device = choose_device(qemu, options.qemu[1:], lambda *arguments: processes.ask([qemu, *arguments], user))
    spared = processes.adopt()
    near, far = socket.socketpair()
    with near, far, processes.Terminal() as terminal:
        serve = ["-n", "-p", export, "-f", str(far.fileno())]
        helper = processes.start_helper([*options.helper, *serve], far.fileno())
        try:
            far.close()
            await_helper(near, helper, export)
            say(f"in the guest: {mount_line(options.tag)}")
            share = share_arguments(options.qemu[1:], device, options.tag, near.fileno())
            processes.hold_signals()
            command = [qemu, *options.qemu[1:], *share]
            started = processes.start_qemu(command, user, near.fileno(), reads=terminal.lent)
            near.close()
            return processes.watch(started, helper, terminal, spared)
        finally:
            near.close()
            processes.end_all(helper, spared)


def mount_line(tag: str) -> str:
    """The command for the guest."""
    return f"mount -t 9p -o trans=virtio,version=9p2000.L,msize={MSIZE} {tag} /mnt"


def directory(path: str) -> str:
    """The absolute path of a directory. :raises RunError: when it is none."""
    try:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise RunError(f"{path} is not a directory: name the directory to share")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"{path}: {reason}: name the directory to share") from None
    return os.path.abspath(path)


def executable(name: str) -> str:
    """Where a program is. :raises RunError: when it is not in PATH, or not executable."""
    found = shutil.which(name)
    if found is None:
        where = "is no executable file" if "/" in name else "is not in PATH"
        raise RunError(f"{name} {where}: install QEMU (Debian: qemu-system-x86), or name it by its path")
    return found


def choose_device(qemu: str, arguments: Sequence[str], ask: Callable[..., str]) -> str:
    """The name of the 9p device for QEMU's machine, once it is known that QEMU has the proxy driver.

    :param ask: runs QEMU with its arguments and returns what it says.
    :raises RunError: when this QEMU has no 9p, or no proxy driver.
    """
    devices = set(_DEVICE.findall(ask("-device", "help")))
    if not devices:
        raise RunError(f"{qemu} lists no virtio-9p device: use a QEMU that is built with 9p (virtfs)")
    require_driver(qemu, ask)
    if (machine_type(arguments) or default_machine(ask)) == "microvm":
        return "virtio-9p-device"  # on virtio-mmio; it has PCI only if asked
    for name in ("virtio-9p-ccw", "virtio-9p-pci"):
        if name in devices:
            return name
    return "virtio-9p-device"


def require_driver(qemu: str, ask: Callable[..., str]) -> None:
    """Ask QEMU for a proxy without its socket, and look at what it complains of.

    The device that does not exist ends a QEMU built without fsdev, which takes the option and says nothing.

    :raises RunError: when it does not know the driver, or says something else.
    """
    nothing = ("-machine", "none", "-nodefaults", "-display", "none")
    answer = ask(*nothing, "-fsdev", "proxy,id=virtfs", "-device", "virtfs-none")
    if "sock_fd" in answer:  # hw/9pfs/9p-proxy.c: both socket and sock_fd properties are missing
        return
    if "fsdriver proxy not found" in answer:  # fsdev/qemu-fsdev.c
        raise RunError(
            f"{qemu} has no proxy driver, which QEMU 9.2 removed: use QEMU 9.1 or older"
            " (a later version of virtfs-proxy will serve newer ones by virtiofs)"
        )
    last = answer.strip().rpartition("\n")[2] or "nothing"
    raise RunError(f"{qemu} does not tell whether it has the proxy driver: it says {last!r}")


def machine_type(arguments: Sequence[str]) -> str | None:
    """The machine that QEMU's arguments name, the last one winning as in QEMU; None when they name none."""
    machine = None
    for option, value in pairwise(arguments):
        if option.lstrip("-") not in {"M", "machine"} or not option.startswith("-"):
            continue
        first, *others = value.split(",")
        named = [item.removeprefix("type=") for item in (first, *others) if item.startswith("type=")]
        if "=" not in first:
            named.insert(0, first)
        machine = named[-1] if named else machine
    return machine


def default_machine(ask: Callable[..., str]) -> str | None:
    """The machine that QEMU takes when it is told none; those for arm have no default."""
    found = _DEFAULT_MACHINE.search(ask("-machine", "help"))
    return found[1] if found else None


def share_arguments(arguments: Sequence[str], device: str, tag: str, descriptor: int) -> list[str]:
    """What is added to QEMU's arguments, under an id that these do not use."""
    used = " ".join(arguments)
    name = next(name for name in (f"virtfs{n}" for n in count()) if name not in used)
    fsdev, front = f"proxy,id={name},sock_fd={descriptor}", f"{device},fsdev={name},mount_tag={tag}"
    return ["-fsdev", fsdev, "-device", front]


def await_helper(near: socket.socket, helper: processes.Process, export: str) -> None:
    """Prove that the helper serves EXPORT: an LSTAT of its root, before QEMU gets the connection.

    :raises RunError: when the helper ends, does not answer within READY_S, or answers for another directory.
    """
    lstat = next(row for row in REQUESTS if row.name == "lstat")
    request = Fields(HEADER[0], lstat.fields).pack({"path": b"."})
    deadline = time.monotonic() + READY_S
    try:
        near.sendall(struct.pack(HEADER, lstat.opcode, len(request)) + request)
        kind, size = struct.unpack(HEADER, _receive(near, HEADER_SIZE, deadline))
        body = _receive(near, min(size, MAX_BODY), deadline)
        root = Fields(HEADER[0], lstat.reply).unpack(body) if kind == SUCCESS else None
    except TimeoutError:
        helper.kill()
        late = f"the helper has not answered in {READY_S:.0f} s: see whether {export} can be listed"
        raise RunError(late) from None
    except (EOFError, OSError):
        near.close()
        processes.end(helper)
        raise RunError(f"the helper {processes.ending(helper.returncode)}: see what it says above") from None
    except Malformed:
        root = None
    here = os.stat(export)
    if root is None or (root["dev"], root["ino"]) != (here.st_dev, here.st_ino):
        raise RunError(f"the helper does not serve {export}: is it a virtfs-proxy-helper?")


def _receive(near: socket.socket, size: int, deadline: float) -> bytes:
    """As many bytes; poll(2), since a timeout set on the socket would stay on QEMU's half.

    :raises TimeoutError: at the deadline. :raises EOFError: when the helper has closed its half.
    """
    data = b""
    ready = select.poll()
    ready.register(near, select.POLLIN)
    while len(data) < size:
        if not ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
        chunk = near.recv(size - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data
