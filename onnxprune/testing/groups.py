"""What must hold for any set of groups in use."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnxprune.graph.axes import Axis, Bools
from onnxprune.graph.groups import Group
from onnxprune.testing.feeds import Array


def check_groups(groups: Iterable[Group]) -> None:
    """No position is in two groups in use, no unit is on no axis, blocks are of equal size."""
    taken: dict[Axis, Bools] = {}
    for group in groups:
        found: set[int] = set()
        for use in group.axes:
            inside = use.unit >= 0
            if (taken.get(use.axis, False) & inside).any():
                raise AssertionError(f"{use.axis.name} has positions in two groups, one of them {group}")
            taken[use.axis] = taken.get(use.axis, False) | inside
            found.update(use.unit[inside].tolist())
        if found != set(range(group.units)):
            raise AssertionError(f"{group} has units on no axis: {set(range(group.units)) - found}")
        if group.blocks is not None:
            _check_blocks(group, group.blocks)


def _check_blocks(group: Group, blocks: Array) -> None:
    """Blocks have the same size, and one unit of each leaves no axis empty."""
    if len(set(np.bincount(blocks).tolist())) > 1:
        raise AssertionError(f"{group} has blocks of different sizes: {blocks}")
    for use in group.axes:
        there = np.zeros(group.units, bool)
        there[use.unit[use.unit >= 0]] = True
        safe = (use.unit < 0).any() or any(there[blocks == block].all() for block in range(group.block_count))
        if not safe:
            raise AssertionError(f"keeping a unit of every block of {group} can empty {use.axis.name}")
