# SPDX-License-Identifier: Apache-2.0
"""What one connection of the proxy protocol remembers: the protocol itself has no state, so what it served."""

from virtfs_proxy.export.passthrough import Export
from virtfs_proxy.service.log import Log


class Session:
    """One connection.

    ``root`` is the directory that paths are relative to, ``counts`` the requests answered, by opcode, ``errors`` how
    many of them with an errno. A plain class: dataclasses would add a tenth to the time that the helper starts in.
    """

    __slots__ = ("counts", "errors", "export", "log", "root")

    def __init__(self, export: Export, log: Log, root: int = Export.ROOT) -> None:
        self.export = export
        self.log = log
        self.root = root
        self.counts = [0] * 32
        self.errors = 0
