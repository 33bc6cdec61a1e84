# SPDX-License-Identifier: Apache-2.0
"""Stage: descriptors.

Should: close every descriptor that the parent left open, but stdio and those that the service needs.
Must not: close stdio (its numbers would be given to the next file opened).
"""

import os
import resource

from virtfs_proxy.confine.plan import Plan


def apply(plan: Plan) -> None:
    """Close all but 0, 1, 2, plan.keep and, for the stage that follows, plan.directory."""
    low = 3
    for fd in sorted(fd for fd in plan.keep | {plan.directory} if fd >= low):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, max(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1 << 20))
