# SPDX-License-Identifier: Apache-2.0
"""The names a peer may give: bytes that passed the check of their kind, and nothing else.

A NewType costs nothing at run time; mypy refuses plain bytes where a checked name belongs.
"""

from typing import NewType

Path = NewType("Path", bytes)
"""A way below the export's root: relative, not empty, no NUL byte, no component '..'."""

Text = NewType("Text", bytes)
"""A string that goes to the kernel as it is (a symlink's target, an attribute's name): no NUL byte."""

__all__ = ["Path", "Text"]
