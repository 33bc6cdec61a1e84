# SPDX-License-Identifier: Apache-2.0
"""Start, memory and idle CPU of two helpers.

Start: from before exec to the moment connect(2) succeeds, with ``-n``; to the parent's exit with 0, without. Memory:
when the first request has been answered, and after many of mixed kinds; growth is counted from the 10,000th on. Idle:
CPU time and context switches of a helper that nobody asks anything, once its polling has ended.

    sudo .venv/bin/python -m bench.start
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from statistics import median
from typing import Final

from bench.measure import (
    END_S,
    commands,
    descriptors,
    helper,
    memory,
    options,
    sample_tree,
    send_mixture,
    usage,
)

from virtfs_proxy import linux

TARGETS: Final = {
    "connect_ms": "≤ 120",
    "rss_kib": "≤ 20480",
    "rss_growth_kib": "0",
    "idle_cpu_ns": "0",
    "idle_switches": "0",
}
LIMIT_S: Final = 10
WARM_UP: Final = 10_000
"""Requests before growth is counted: each kind has been met, what is made once has been made."""
PR_SET_CHILD_SUBREAPER: Final = 36  # linux/prctl.h


def to_connect(command: list[str], root: Path, path: Path) -> float:
    """Milliseconds from before exec to a connection, in the foreground."""
    started = time.perf_counter()
    line = [*command, "-n", "-p", str(root), "-s", str(path), "-u", "0", "-g", "0"]
    with subprocess.Popen(line, stderr=subprocess.DEVNULL) as process:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                while True:
                    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                        client.connect(str(path))
                        taken = time.perf_counter() - started
                        break
                    if process.poll() is not None or time.perf_counter() - started > LIMIT_S:
                        raise SystemExit(f"{command[0]} does not listen")
                    time.sleep(0.0002)
            process.wait(END_S)
        finally:
            process.kill()
    path.unlink(missing_ok=True)  # the original leaves it to QEMU
    return taken * 1000


def to_exit(command: list[str], root: Path, path: Path) -> float:
    """Milliseconds from before exec to the exit of the parent of a daemon."""
    started = time.perf_counter()
    line = [*command, "-p", str(root), "-s", str(path), "-u", "0", "-g", "0"]
    subprocess.run(line, check=True, timeout=LIMIT_S, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    taken = time.perf_counter() - started
    try:
        with socket.socket(socket.AF_UNIX) as client:
            for _ in range(LIMIT_S * 100):  # the original's parent does not wait for its socket
                if client.connect_ex(str(path)) == 0:
                    break
                time.sleep(0.01)
    finally:
        end_daemons()
    path.unlink(missing_ok=True)
    return taken * 1000


def end_daemons() -> None:
    """Wait for the daemons of this process, its children since it is their subreaper; end those that do not."""
    for tick in range(END_S * 100 + 100):
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
        except ChildProcessError:
            return
        if tick == END_S * 100:
            for child in Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)


def resources(command: list[str], root: Path, requests: int, idle_s: float) -> dict[str, float]:
    """Memory in KiB and what an idle helper uses."""
    with helper(command, root) as (client, pid):
        first = memory(pid)
        send_mixture(client, WARM_UP)
        warm = memory(pid)
        sent = send_mixture(client, requests)
        last, files = memory(pid), descriptors(pid)
        time.sleep(0.1)
        before = usage(pid)
        time.sleep(idle_s)
        after = usage(pid)
    return {
        "rss_kib": first["Rss"],
        "pss_kib": first["Pss"],
        "requests": sent,
        "rss_after_kib": last["Rss"],
        "pss_after_kib": last["Pss"],
        "rss_growth_kib": last["Rss"] - warm["Rss"],
        "descriptors": files,
        "idle_cpu_ns": after.cpu_ns - before.cpu_ns,
        "idle_switches": after.switches - before.switches,
    }


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__)
    parser.add_argument("--starts", type=int, default=20, help="of each kind (%(default)s)")
    parser.add_argument("--requests", type=int, default=1_000_000, help="before memory is read again (%(default)s)")
    parser.add_argument("--idle", type=float, default=10, metavar="S", help="seconds of nothing (%(default)s)")
    chosen = parser.parse_args()
    helpers = commands(chosen)
    linux.prctl(PR_SET_CHILD_SUBREAPER, 1)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    times: dict[str, dict[str, list[float]]] = {name: {"connect_ms": [], "exit_ms": []} for name in helpers}
    with sample_tree(chosen.dir) as root, sample_tree(chosen.dir) as outside:
        for command in helpers.values():
            to_connect(command, root, outside / "socket")  # the files are in memory, the bytecode is written
        for _ in range(chosen.starts):
            for name, command in helpers.items():
                times[name]["connect_ms"].append(to_connect(command, root, outside / "socket"))
                times[name]["exit_ms"].append(to_exit(command, root, outside / "socket"))
        found: dict[str, dict[str, float]] = {}
        for name, command in helpers.items():
            found[name] = {key: round(median(values), 1) for key, values in times[name].items()}
            found[name] |= resources(command, root, chosen.requests, chosen.idle)
    if chosen.json:
        print(json.dumps(found))
        return
    print("| | original | ours | target |\n| --- | ---: | ---: | --- |")
    for key in found["ours"]:
        print(f"| {key} | {found['original'][key]} | {found['ours'][key]} | {TARGETS.get(key, '')} |")


if __name__ == "__main__":
    main()
