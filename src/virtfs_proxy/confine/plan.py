# SPDX-License-Identifier: Apache-2.0
"""What the stages of a confinement work from."""

from typing import NamedTuple


class Plan(NamedTuple):
    """One process's confinement.

    :param directory: descriptor of the directory that becomes the root; closed on the way.
    :param keep: descriptors that stay open.
    :param capabilities: that stay permitted and effective; the bounding set is the same.
    """

    directory: int
    keep: frozenset[int]
    capabilities: tuple[int, ...]
