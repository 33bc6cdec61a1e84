# SPDX-License-Identifier: Apache-2.0
"""Stage: interpreter.

Should: keep Python from loading anything more. The paths that it searches for modules, and reads the lines of a
traceback from, lead into the export once the root has changed: the guest would choose the code that runs as root.
Must not: come after the root.
"""

import sys

from virtfs_proxy.confine.plan import Plan


def apply(plan: Plan) -> None:  # noqa: ARG001 - every stage has the same form
    """From here on an import of what is not loaded fails, and an uncaught exception is told without its source."""
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path.clear()
    sys.path_importer_cache.clear()
    sys.tracebacklimit = 0
