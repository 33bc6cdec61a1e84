# SPDX-License-Identifier: Apache-2.0
"""Stage: process.

Should: set no_new_privs, so that nothing executed could gain anything; refuse ptrace and core dumps; umask 0, so that
modes are what the guest asks for.
Must not: come before the stages that need privileges.
"""

import os

from virtfs_proxy import linux
from virtfs_proxy.confine.plan import Plan


def apply(plan: Plan) -> None:  # noqa: ARG001 - every stage has the same form
    """prctl(2) PR_SET_NO_NEW_PRIVS and PR_SET_DUMPABLE, umask(2)."""
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    os.umask(0)
