# SPDX-License-Identifier: Apache-2.0
"""Stage: groups.

Should: drop the supplementary groups of whoever started this, so that no caller acts with them; be group root, so that
what the guest's root makes is group root's.
Must not: change the uid: root is what callers are switched from.
"""

import os

from virtfs_proxy.confine.plan import Plan


def apply(plan: Plan) -> None:  # noqa: ARG001 - every stage has the same form
    """setgroups(2) with none, setresgid(2)."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
