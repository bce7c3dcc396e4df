"""Which of the cuts that exclude each other is used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxprune.graph.axes import Axis

if TYPE_CHECKING:
    from onnxprune.graph.groups import Group

WIDTH = 8
"""Widths that run fast are multiples of this: the default of `--round-to`."""


_FINE = 4
"""Widths to choose from that are enough."""

ATTENTION = ("heads", "dims")
"""What goes first in attention: whole heads, or dimensions of all heads alike."""


def widths(group: Group) -> int:
    """How many smaller widths a group can be cut to."""
    channels = group.width * group.block_count
    return math.ceil(group.units * group.width / math.lcm(WIDTH, channels)) - 1


def rank(
    groups: Sequence[Group], parameters: int, masked: set[Axis], attention: str = "heads"
) -> tuple[int, float, float, int, int, list[str]]:
    """Sort key of a cut; smaller is better.

    First comes the cut that meets the fewest products of two activations (heads meet none, dimensions of heads
    Q.K^T), or any of them where dimensions are wanted, then the one that reaches the largest share of the weight
    axes that it keeps other cuts from, then the most of all. Of equals, the one that leaves more widths to choose
    from where those are few (multiples of `WIDTH`, which the blocks of a grouped convolution have to share), then
    the one with the most units. Names settle the rest, so that the order of nodes does not matter.

    Parameters
    ----------
    groups
        Of the cut.
    parameters
        Number of parameter axes that the cut keeps other cuts from.
    masked
        Axes of products of two activations.
    attention
        One of `ATTENTION`.
    """
    weights = [use for group in groups for use in (*group.sources, *group.sinks)]
    reached = round(sum(float((use.unit >= 0).mean()) for use in weights), 6)
    touched = {use.axis for group in groups for use in group.axes}
    units = sum(group.units for group in groups)
    stiff = max((max(0, _FINE - widths(group)) for group in groups), default=0)
    products = len(touched & masked)
    return (
        products if attention == "heads" else -min(products, 1),
        -round(reached / max(parameters, 1), 6),
        -reached,
        stiff,
        -units,
        sorted(axis.name for axis in touched),
    )
