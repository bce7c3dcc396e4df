"""From kept units to kept positions of every axis and every initializer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxprune.graph.axes import Axis, Blocked, Bools
from onnxprune.graph.groups import Group


def kept_positions(groups: Mapping[str, Group], keep: Mapping[str, Bools]) -> dict[Axis, Bools]:
    """Which positions of which axes stay when each group keeps the given units.

    Parameters
    ----------
    groups
        Groups by id.
    keep
        For each group that is cut: one flag per unit.

    Returns
    -------
    dict
        Only axes that lose at least one position.
    """
    shared: dict[tuple[int, str], Bools] = {}
    kept: dict[Axis, Bools] = {}
    for name, flags in keep.items():
        if flags.all():
            continue
        for use in groups[name].axes:
            key = (id(use.unit), name)
            if key not in shared:
                shared[key] = np.where(use.unit >= 0, flags[np.maximum(use.unit, 0)], True)
            stays = shared[key]
            if not stays.all():
                kept[use.axis] = kept[use.axis] & stays if use.axis in kept else stays
    return kept


def slice_array(
    array: np.ndarray[Any, Any], kept: Mapping[int, Bools], blocked: Mapping[int, Blocked]
) -> np.ndarray[Any, Any]:
    """Cut an initializer down to its kept positions.

    Parameters
    ----------
    array
        The whole initializer.
    kept
        Per dim, flags of the positions that stay. A divided dim has flags for all blocks' columns.
    blocked
        How divided dims are divided.
    """
    for rows in {blocked[dim].rows for dim in kept if dim in blocked}:
        return _slice_blocks(array, kept, rows, blocked)
    for dim, flags in kept.items():
        array = np.compress(flags, array, axis=dim)
    return array


def _slice_blocks(
    array: np.ndarray[Any, Any], kept: Mapping[int, Bools], along: int, blocked: Mapping[int, Blocked]
) -> np.ndarray[Any, Any]:
    """Cut an array of which some dims are divided along the rows `along`, all into the same blocks."""
    divided = {dim: flags.reshape(blocked[dim].blocks, -1) for dim, flags in kept.items() if dim in blocked}
    rows = kept.get(along, np.ones(array.shape[along], bool))
    blocks = len(next(iter(divided.values())))
    per_block = array.shape[along] // blocks
    parts = []
    for block in range(blocks):
        if all(
            flags[block].any() for flags in divided.values()
        ):  # otherwise it has gone, and its rows with it
            span = np.arange(block * per_block, (block + 1) * per_block)
            part = np.take(array, span[rows[span]], axis=along)
            for dim, flags in divided.items():
                part = np.compress(flags[block], part, axis=dim)
            parts.append(part)
    joined = np.concatenate(parts, axis=along)
    for other, flags in kept.items():
        if other != along and other not in divided:
            joined = np.compress(flags, joined, axis=other)
    return joined


def sliced_shape(
    shape: tuple[int, ...], kept: Mapping[int, Bools], blocked: Mapping[int, Blocked]
) -> tuple[int, ...]:
    """Shape of `slice_array`'s result."""
    result = list(shape)
    for dim, flags in kept.items():
        result[dim] = blocked[dim].columns(flags) if dim in blocked else int(flags.sum())
    return tuple(result)


def zero_slices(
    array: np.ndarray[Any, Any], dim: int, flags: Bools, blocked: Blocked | None
) -> np.ndarray[Any, Any]:
    """A copy of an initializer in which the positions that do not stay are zero."""
    array = array.copy()
    if blocked is None:
        index: list[Any] = [slice(None)] * array.ndim
        index[dim] = ~flags
        array[tuple(index)] = 0
        return array
    per_block = array.shape[blocked.rows] // blocked.blocks
    for block, columns in enumerate(flags.reshape(blocked.blocks, -1)):
        rows = np.arange(block * per_block, (block + 1) * per_block)
        view = np.moveaxis(array, (blocked.rows, dim), (0, 1))
        view[np.ix_(rows, np.flatnonzero(~columns))] = 0
    return array
