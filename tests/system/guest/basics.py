# SPDX-License-Identifier: Apache-2.0
"""What the workload's items are made of."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from collections.abc import Callable

Item = Callable[[], object]
ITEMS: list[tuple[str, Item]] = []
"""The share that an item works in, and the item, in their order."""


def item(function: Item) -> Item:
    ITEMS.append(("share", function))
    return function


def item_on(share: str) -> Callable[[Item], Item]:
    """An item on a share of its own: the original helper does not survive it."""

    def register(function: Item) -> Item:
        ITEMS.append((share, function))
        return function

    return register


def attempt(function: Callable[..., object], *args: object, **kwargs: object) -> object:
    """What a call returns, or the name of the error that it raises."""
    try:
        return function(*args, **kwargs)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def facts(path: str | int) -> list[object]:
    """Mode, owner, group and links: what ls -l starts with."""
    found = os.fstat(path) if isinstance(path, int) else os.lstat(path)
    return [oct(found.st_mode), found.st_uid, found.st_gid, found.st_nlink]


def tool(*command: str, stdin: str = "", cwd: str | None = None) -> str:
    """A program's output; RuntimeError where it fails."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=cwd, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.returncode}: {done.stderr}")
    return done.stdout.strip()


def as_user(uid: int, function: Callable[..., object], *args: object) -> object:
    """What attempt() gives in a child process that has become uid:uid with no other groups."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            os.write(writer, json.dumps(attempt(function, *args)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as answer:
        value = json.loads(answer.read() or '"no answer"')
    os.waitpid(child, 0)
    return value


def ask_host(what: str) -> None:
    """Have the host do what it was told beforehand, and wait until it has."""
    print(f"SYNC {what}", flush=True)
    limit = time.monotonic() + 20
    while not os.path.exists(f"{what}-done"):
        if time.monotonic() > limit:
            raise TimeoutError(what)
        time.sleep(0.05)
