"""The nodes of the axis graph: axes of tensors, and barriers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxprune.errors import Reason

Index = np.ndarray[Any, np.dtype[np.int64]]
"""Positions."""

Bools = np.ndarray[Any, np.dtype[np.bool_]]
"""A keep set: one flag per position or unit."""


class Axis(NamedTuple):
    """One dimension of one tensor: `value` hashes by identity, `dim` is never negative.

    A tensor whose rows are divided into blocks with private columns (the weight of a grouped convolution, the
    states of a recurrent layer that goes both ways) carries *all* columns of all blocks on one axis: its extent
    is blocks x columns, see `Blocked`.
    """

    value: ir.Value
    dim: int

    @property
    def name(self) -> str:
        """`value_name[dim]`, as messages and reports print it."""
        return f"{self.value.name}[{self.dim}]"


Kept = Mapping[Axis, Bools]
"""For every axis that loses positions: which of its positions stay."""


@dataclass(frozen=True)
class Blocked:
    """How an axis is divided: block `i` of `blocks` has its own columns for its share of the rows.

    Position `i * columns + j` of the axis is column `j` of the rows of block `i` along `rows`. A block that
    loses all its rows loses all its columns; the others keep equal numbers of columns. Several axes of one tensor
    may be divided along the same rows.
    """

    blocks: int
    rows: int

    def columns(self, flags: Bools) -> int:
        """How many columns every block that stays keeps; `flags` has one entry per position of the axis."""
        return int(flags.reshape(self.blocks, -1).sum(axis=1).max())


def extent_left(axis: Axis, kept: Kept, blocked: Mapping[Axis, Blocked]) -> int | None:
    """Extent of an axis after a cut; None where it loses nothing."""
    flags = kept.get(axis)
    if flags is None:
        return None
    return blocked[axis].columns(flags) if axis in blocked else int(flags.sum())


@dataclass(frozen=True)
class Barrier:
    """Why an axis may not lose positions.

    Parameters
    ----------
    reason
        The kind of reason.
    where
        The node (or graph input/output) that imposes it, for people.
    """

    reason: Reason
    where: str

    @property
    def name(self) -> str:
        """`REASON at where`."""
        return f"{self.reason.name} at {self.where}"
