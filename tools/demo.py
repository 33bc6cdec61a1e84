# SPDX-License-Identifier: Apache-2.0
"""What `make run` shows: a directory of the host shared with a QEMU guest that an ordinary user runs.

Without EXPORT it makes a sample directory, lets the guest work in it and shows what arrived; with EXPORT it
gives a shell in the guest. Where there is no guest to be had, `virtfs client` shows the directory instead.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import guest_image
import guest_run

BIN = Path(sys.executable).parent
HERE = Path(__file__).parent
LIMIT = 180.0


def main() -> int:
    parser = argparse.ArgumentParser(description="Share a directory with a guest.")
    parser.add_argument("export", nargs="?", type=Path, help="share this, and give a shell in the guest")
    parser.add_argument("--export", dest="option", type=Path, metavar="EXPORT", help="the same")
    caller = os.environ.get("SUDO_USER", "root")
    default = caller if caller != "root" else "nobody"
    parser.add_argument("--user", default=default, help="who runs QEMU (default: %(default)s)")
    options = parser.parse_args()
    export = options.option or options.export
    if os.geteuid() != 0:
        return fail("the helper has to start as root, to give the guest's root its rights: sudo make run")
    if export is not None and not export.is_dir():
        return fail(f"{export} is not a directory" if export.exists() else f"{export} does not exist: mkdir it first")
    with sample() if export is None else given(export) as directory:
        try:
            image = prepare()
        except guest_image.GuestUnavailable as reason:
            return without_guest(directory, str(reason))
        with readable(image) as copy:
            if export is None:
                return show(directory, copy, options.user)
            return shell(directory, copy, options.user)


def fail(text: str) -> int:
    print(f"demo: {text}", file=sys.stderr)
    return 1


def title(text: str) -> None:
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


@contextmanager
def given(export: Path) -> Iterator[Path]:
    yield export.resolve()


@contextmanager
def sample() -> Iterator[Path]:
    """A directory on a disk, in one that is private to root: QEMU reaches it through the helper alone."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="virtfs-demo-") as home:
        export = Path(home) / "export"
        export.mkdir()
        (export / "hello.txt").write_text("Hello from the host\n")
        (export / "secret.txt").write_text("for root's eyes\n")
        (export / "secret.txt").chmod(0o600)
        yield export


def prepare() -> guest_image.Image:
    """:raises GuestUnavailable: when QEMU, its driver or the guest's kernel is not to be had."""
    title("Preparing the guest (the first time fetches the distribution's kernel package)")
    try:
        guest_image.ensure_packages(guest_image.BUILD_PACKAGES)
        guest_run.check_driver()
        return guest_image.build(guest_image.Recipe((HERE / "demo.init").read_text()))
    except (OSError, subprocess.SubprocessError) as error:
        raise guest_image.GuestUnavailable(f"the guest could not be built: {error}") from error


@contextmanager
def readable(image: guest_image.Image) -> Iterator[guest_image.Image]:
    """A copy of the image where QEMU's user can read it, wherever the repository is."""
    with tempfile.TemporaryDirectory(prefix="virtfs-demo-") as home:
        os.chmod(home, 0o755)
        copies = [Path(shutil.copy(path, home)) for path in (image.kernel, image.initrd)]
        for copy in copies:
            copy.chmod(0o644)
        yield guest_image.Image(*copies)


def command(export: Path, image: guest_image.Image, user: str, append: str, console: str) -> list[str]:
    launcher = [str(BIN / "virtfs"), "run", str(export), "--tag", "share", "--user", user]
    return [*launcher, "--", *guest_run.machine(image.kernel, image.initrd, append), "-serial", console]


def show(export: Path, image: guest_image.Image, user: str) -> int:
    """Let the guest work in the sample."""
    title(f"On the host: {export}")
    subprocess.run(["ls", "-l", export], check=True)
    title(f"virtfs run {export} --tag share --user {user} -- {guest_run.QEMU} ...")
    status = follow(command(export, image, user, "MODE=show", "stdio"))
    if status:
        return fail(f"the guest did not get to its end, status {status}")
    title("On the host again: what arrived")
    subprocess.run(["ls", "-ln", export, export / "shared"], check=True)
    print(f"\nfrom-guest.txt: {(export / 'from-guest.txt').read_text()}", end="")
    title("Done, and the sample is removed. For a shell in a guest: make run EXPORT=/some/directory")
    return 0


def follow(run: list[str]) -> int:
    """Print what the guest says between BEGIN and END. :returns: 0 when both came and all ended well."""
    process = subprocess.Popen(run, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    seen: list[str] = []
    try:
        for line in guest_run.lines_of(process.stdout, time.monotonic() + LIMIT):
            if "BEGIN" in seen and "END" not in seen and line != "END":
                print(f"  {line}", flush=True)
            seen.append(line)
        status = process.wait(guest_run.STOP_LIMIT)
    except (TimeoutError, subprocess.TimeoutExpired):
        print(f"demo: no end after {LIMIT:.0f} s", file=sys.stderr)
        status = 124
    finally:
        process.stdout.close()
        process.terminate()  # it passes the signal on, and leaves no process behind
        guest_run.reap(process)
    if status == 0 and "END" not in seen:
        status = 1
    if status:
        print("\n".join(seen[-30:]), file=sys.stderr)
    return status


def shell(export: Path, image: guest_image.Image, user: str) -> int:
    """A shell in the guest, on this terminal."""
    if not sys.stdin.isatty():
        return fail("a shell in the guest needs a terminal: run it in one; without EXPORT the demo runs by itself")
    size = shutil.get_terminal_size()
    append = f"MODE=shell TERM={os.environ.get('TERM', 'vt100')} ROWS={size.lines} COLS={size.columns}"
    title(f"A guest of {user} with {export} at /mnt. In it: exit, or poweroff; of QEMU: Ctrl-A X")
    return subprocess.run(command(export, image, user, append, "mon:stdio"), check=False).returncode


def without_guest(export: Path, reason: str) -> int:
    """Show the export the other way: the helper and a client that is no guest."""
    title("No guest on this machine")
    print(f"{reason}\nSo virtfs client shows {export} through the helper instead.")
    with tempfile.TemporaryDirectory(prefix="virtfs-demo-") as home:
        path = Path(home) / "socket"
        serve = [str(BIN / "virtfs-proxy-helper"), "-n", "--log-level", "warning", "-p", str(export)]
        helper = subprocess.Popen([*serve, "-s", str(path), "-u", "0", "-g", "0"], stdin=subprocess.DEVNULL)
        try:
            limit = time.monotonic() + guest_run.START_LIMIT
            while not path.is_socket() and helper.poll() is None and time.monotonic() < limit:
                time.sleep(0.02)
            title(f"virtfs client {path}, told: ls -l; tree; df")
            client = [str(BIN / "virtfs"), "client", str(path)]
            return subprocess.run(client, input="ls -l\ntree\ndf\n", text=True, check=False).returncode
        finally:
            if helper.poll() is None:
                helper.terminate()
            guest_run.reap(helper)


if __name__ == "__main__":
    sys.exit(main())
