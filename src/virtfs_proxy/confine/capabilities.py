# SPDX-License-Identifier: Apache-2.0
"""Stage: capabilities.

Should: reduce the bounding, permitted and effective sets to what file operations need, empty the inheritable and
ambient ones.
Must not: come before the root and the groups, which need more.
"""

from virtfs_proxy import linux
from virtfs_proxy.confine.plan import Plan


def apply(plan: Plan) -> None:
    """prctl(2) PR_CAPBSET_DROP and PR_CAP_AMBIENT, capset(2)."""
    linux.prctl(linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(64):
        if capability in plan.capabilities:
            continue
        try:
            present = linux.prctl(linux.PR_CAPBSET_READ, capability)
        except OSError:
            break  # EINVAL: the kernel's last capability was the one before
        if present:
            linux.prctl(linux.PR_CAPBSET_DROP, capability)
    wanted = sum(1 << capability for capability in plan.capabilities)
    linux.Capabilities(effective=wanted, permitted=wanted).apply()


def missing(reasons: dict[int, str]) -> list[str]:
    """Which capabilities this process has not got, each as "CAP_NAME (what for)".

    :param reasons: capability -> what it is needed for.
    """
    _, permitted, _ = linux.Capabilities.current().sets
    return [f"{linux.capability_name(c)} ({why})" for c, why in reasons.items() if not permitted >> c & 1]
