# SPDX-License-Identifier: Apache-2.0
"""Stage: root.

Should: make the directory served the root and the working directory.
Must not: leave a descriptor of a directory outside open, through which '..' leads out.
"""

import os

from virtfs_proxy.confine.plan import Plan


def apply(plan: Plan) -> None:
    """chroot(2) and chdir(2), through the descriptor that was checked: the path may name something else by now."""
    os.fchdir(plan.directory)
    os.chroot(b".")
    os.chdir(b"/")
    os.close(plan.directory)
