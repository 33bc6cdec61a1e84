# SPDX-License-Identifier: Apache-2.0
"""Stage: groups.

Should: drop the supplementary groups of whoever started this, so that no caller acts with them.
Must not: change uid and gid: root is what callers are switched from.
"""

import os

from virtfs_proxy.confine.plan import Plan


def apply(plan: Plan) -> None:  # noqa: ARG001 - every stage has the same form
    """setgroups(2) with none."""
    os.setgroups([])
