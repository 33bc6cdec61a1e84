# SPDX-License-Identifier: Apache-2.0
"""Round trips of two helpers, in interleaved rounds of one run: time a request (p50, p99) and helper's CPU time.

Each helper is started once a setting. In a round every operation is asked of both in turn, some hundred requests at a
time; the next round begins with the other helper. What changes on the machine changes both: compare ratios, not times.
With all CPUs the machine must have one to spare: what others used meanwhile is printed.

    sudo .venv/bin/python -m bench.roundtrips
"""

import gc
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from bench.measure import FILE, Others, commands, helper, operations, options, sample_tree, usage

TARGETS: Final = {"all": 0.65, "one": 1.25}
CREATE_REMOVE_TARGET: Final = 0.8  # with all CPUs: two requests, one of them with four changes of identity
SETTINGS: Final = {
    "all": "all CPUs (the helper polls)",
    "one": "client and helpers on one CPU (no polling)",
}
LIMIT_S: Final = 600
"""Seconds after which a helper that has stopped answering ends the run."""

SETTLE_S: Final = 0.002
"""Longer than a helper polls: the scheduler's count is exact once it sleeps."""


WARM_UP: Final = 3000
"""Requests to each helper before the first round."""


class Round(NamedTuple):
    """Nanoseconds a request."""

    p50: float
    p99: float
    cpu: float


Asked = dict[str, tuple[Callable[[], object], int]]
"""Helper -> one operation with it, and its process id."""


def measure(asked: Asked, requests: int) -> dict[str, Round]:
    """One round of one operation: all requests to one helper, then to the other, in the order given."""
    samples: dict[str, list[int]] = {name: [0] * requests for name in asked}
    clock = time.perf_counter_ns
    for call, _ in asked.values():
        for _ in range(50):
            call()
    time.sleep(SETTLE_S)
    before = {name: usage(pid).cpu_ns for name, (_, pid) in asked.items()}
    for name, (call, _) in asked.items():
        taken = samples[name]
        for i in range(requests):
            started = clock()
            call()
            taken[i] = clock() - started
    time.sleep(SETTLE_S)
    found = {}
    for name, (_, pid) in asked.items():
        taken = sorted(samples[name])
        cpu = usage(pid).cpu_ns - before[name]
        found[name] = Round(taken[requests // 2], taken[requests * 99 // 100], cpu / requests)
    return found


@contextmanager
def cpus(setting: str) -> Iterator[None]:
    """This process, and the helpers it starts, on the CPUs of a setting."""
    available = os.sched_getaffinity(0)
    if setting == "all" and len(available) < 2:
        raise SystemExit("there is one CPU only: choose --cpus one")
    os.sched_setaffinity(0, available if setting == "all" else {max(available)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, available)


Results = dict[str, dict[str, list[Round]]]
"""Operation -> helper -> its rounds."""


def run(setting: str, chosen: dict[str, list[str]], root: Path, rounds: int, requests: int) -> Results:
    """All rounds of a setting."""
    results: Results = {}
    names = list(chosen)
    with cpus(setting), helper(chosen[names[0]], root) as one, helper(chosen[names[1]], root) as other:
        for client in (one, other):  # until the scheduler has found them a place
            for _ in range(WARM_UP):
                client[0].lstat(FILE)
        tables = {name: (operations(client), pid) for name, (client, pid) in zip(names, (one, other), strict=True)}
        for number in range(rounds):
            order = names if number % 2 == 0 else names[::-1]
            for operation in tables[names[0]][0]:
                asked = {name: (tables[name][0][operation], tables[name][1]) for name in order}
                for name, figures in measure(asked, requests).items():
                    results.setdefault(operation, {name: [] for name in names})[name].append(figures)
    return results


def summary(setting: str, results: Results) -> list[dict[str, object]]:
    """A row an operation: medians over the rounds in microseconds, and medians of the rounds' ratios."""
    rows = []
    for operation, by_helper in results.items():
        target = TARGETS[setting] if setting == "one" or "+" not in operation else CREATE_REMOVE_TARGET
        row: dict[str, object] = {"setting": setting, "operation": operation, "target": target}
        for column in Round._fields:
            pair = {name: [getattr(r, column) for r in rounds] for name, rounds in by_helper.items()}
            row |= {f"{name}_{column}_us": round(median(values) / 1000, 2) for name, values in pair.items()}
            ratios = [ours / original for original, ours in zip(pair["original"], pair["ours"], strict=True)]
            row[f"{column}_ratio"] = round(median(ratios), 3)
        rows.append(row)
    return rows


def show(setting: str, rows: list[dict[str, object]]) -> None:
    """Print a table in Markdown, as docs/performance.md has it."""
    print(f"\n{SETTINGS[setting]}; original / ours, µs a request\n")
    print("| request | p50 | ratio | target | | p99 | ratio | helper's CPU | ratio |")
    print("| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        pairs = {c: f"{row[f'original_{c}_us']:.1f} / {row[f'ours_{c}_us']:.1f}" for c in Round._fields}
        met = "met" if float(str(row["p50_ratio"])) <= float(str(row["target"])) else "missed"
        print(
            f"| {row['operation']} | {pairs['p50']} | {row['p50_ratio']:.2f} | ≤ {row['target']} | {met} "
            f"| {pairs['p99']} | {row['p99_ratio']:.2f} | {pairs['cpu']} | {row['cpu_ratio']:.2f} |"
        )


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--requests", type=int, default=3000, help="a round and operation (%(default)s)")
    parser.add_argument("--cpus", choices=("both", *SETTINGS), default="both", help="(%(default)s)")
    chosen = parser.parse_args()
    helpers = commands(chosen)
    rows: list[dict[str, object]] = []
    load, others = os.getloadavg()[0], Others()
    gc.disable()
    signal.alarm(LIMIT_S)  # not a timeout of the socket: that would add a system call to every reply
    with sample_tree(chosen.dir) as root:
        for setting in SETTINGS if chosen.cpus == "both" else (chosen.cpus,):
            part = summary(setting, run(setting, helpers, root, chosen.rounds, chosen.requests))
            rows += part
            if not chosen.json:
                show(setting, part)
    if chosen.json:
        run_of = {"rounds": chosen.rounds, "requests": chosen.requests, "load_before": load}
        print(json.dumps(run_of | {"others_cpus": round(others.cpus(), 2), "rows": rows}))
    else:
        print(f"\n{chosen.rounds} rounds of {chosen.requests} requests; load average before: {load:.2f}", end="; ")
        print(f"other processes used {others.cpus():.2f} of {os.cpu_count()} CPUs meanwhile")


if __name__ == "__main__":
    main()
