# SPDX-License-Identifier: Apache-2.0
"""Becoming the helper: the stages of a confinement, in the order that they need each other's privileges.

Each stage is a module that says what it should and must not do, with a function ``apply(plan)``. After the last one
the process can reach the directory served and the descriptors it kept, and nothing else by name.
"""

from collections.abc import Callable
from typing import Final

from virtfs_proxy.confine import capabilities, descriptors, groups, interpreter, process, root
from virtfs_proxy.confine.plan import Plan
from virtfs_proxy.linux import CAP_SETGID, CAP_SETPCAP, CAP_SYS_CHROOT

Stage = tuple[str, Callable[[Plan], None]]

STAGES: Final[tuple[Stage, ...]] = (
    ("descriptors", descriptors.apply),
    ("interpreter", interpreter.apply),
    ("root", root.apply),
    ("groups", groups.apply),
    ("capabilities", capabilities.apply),
    ("process", process.apply),
)

NEEDS: Final = {
    CAP_SYS_CHROOT: "to make the export its root",
    CAP_SETGID: "to drop supplementary groups",
    CAP_SETPCAP: "to reduce the bounding set",
}
"""Capabilities that the stages themselves need, and what for."""


class Unconfined(Exception):
    """A stage failed: the process must not serve. The text says which and why."""


def confine(plan: Plan, say: Callable[[str], None]) -> None:
    """Run every stage.

    :param say: told of each stage done.
    :raises Unconfined: naming the stage; the process is half confined then and must end.
    """
    for name, apply in STAGES:
        try:
            apply(plan)
        except OSError as error:
            raise Unconfined(f"stage {name}: {error.strerror}") from None
        say(f"confined: {name}")
