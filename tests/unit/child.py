# SPDX-License-Identifier: Apache-2.0
"""Functions run in a child of their own: what they do to identity, root and descriptors ends with it."""

import faulthandler
import os
import pickle
import resource
import traceback
from collections.abc import Callable
from typing import Any

CHANNEL = 1000
"""The descriptor that must stay open in the child, for its answer: below the usual RLIMIT_NOFILE of 1024."""


class Ended(Exception):
    """The child did not return: its exit status (negative for a signal), or the traceback of what it raised."""


def in_child(function: Callable[[], Any]) -> Any:
    """What the function returns, pickled. :raises Ended: when it does not."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _run(function, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status or not answer:
        raise Ended(status)
    result, trace = pickle.loads(answer)
    if trace:
        raise Ended(trace)
    return result


def _run(function: Callable[[], Any], writing: int) -> None:
    os.dup2(writing, CHANNEL)
    faulthandler.disable()  # pytest's would fill the terminal for an abort that is wanted
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        answer: tuple[Any, str] = (function(), "")
    except BaseException:  # noqa: BLE001 - the parent raises it
        answer = (None, traceback.format_exc())
    os.write(CHANNEL, pickle.dumps(answer))
    os._exit(0)
