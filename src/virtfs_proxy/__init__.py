# SPDX-License-Identifier: Apache-2.0
"""virtfs-proxy: share a host directory with a virtual machine, from a helper that is confined to it."""

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from virtfs_proxy.proxy.client import ProxyClient


def __getattr__(name: str) -> Any:  # PEP 562: the helper, which runs as root, never imports a client
    if name == "ProxyClient":
        from virtfs_proxy.proxy.client import ProxyClient

        return ProxyClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["ProxyClient", "__version__"]
