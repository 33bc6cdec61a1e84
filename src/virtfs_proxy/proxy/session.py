# SPDX-License-Identifier: Apache-2.0
"""What one connection of the proxy protocol remembers: the protocol itself has no state, so what it served."""

from dataclasses import dataclass, field

from virtfs_proxy.export.passthrough import Export
from virtfs_proxy.service.log import Log


@dataclass(slots=True)
class Session:
    """One connection.

    :param root: the directory that paths are relative to: the working directory of the confined process.
    :param counts: requests answered, by opcode.
    :param errors: of these, answered with an errno.
    """

    export: Export
    log: Log
    root: int = Export.ROOT
    counts: list[int] = field(default_factory=lambda: [0] * 32)
    errors: int = 0
