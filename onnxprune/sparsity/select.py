"""Which weights of which layers become zero at a level, exactly as many as the level says.

global
    One ranking of the blocks of all layers. What a layer may not lose, because it is at its largest share,
    the others lose; smallest shares are reserved first (Neural Compressor).
local
    Every layer loses the same share.
row
    Every output of every layer loses the same share (Wanda, Sun et al. 2023,
    https://arxiv.org/abs/2306.11695).

Nothing is decided by a threshold: blocks are put in order, equal ones by layer and position, and the first
ones go, so that exactly as many weights go as asked for, up to the size of a block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.patterns import REDUCTIONS, Grid, Pattern
from onnxprune.patterns.pattern import Array, Bools

SCOPES = ("global", "local", "row")

_SLACK = 1e-9
"""Of numbers of weights: 0.3 of 10 are 3, whatever rounding makes of the product."""


@dataclass(frozen=True, eq=False)
class Scored:
    """A layer's weights with their scores.

    Attributes
    ----------
    name
        Of the weight.
    grid
        Its extents.
    scores
        Shape (outputs, columns), higher = keep.
    gone
        The same shape: weights that are zero already and stay so; they go before all others. None: there are
        none.
    """

    name: str
    grid: Grid
    scores: Array
    gone: Bools | None = None

    @property
    def ordered(self) -> Array:
        """The scores, below all others where the weight is gone already."""
        return self.scores if self.gone is None else np.where(self.gone, -np.inf, self.scores)


def count(level: float, size: int) -> int:
    """How many of `size` weights a level makes zero: the whole ones.

    Examples
    --------
    >>> count(0.3, 10), count(0.0, 10), count(0.99, 10)
    (3, 0, 9)
    """
    return math.floor(level * size + _SLACK)


def select(
    layers: Sequence[Scored],
    pattern: Pattern,
    level: float,
    *,
    scope: str = "global",
    reduce: str = "mean",
    min_ratio: float = 0.0,
    max_ratio: float = 1.0,
) -> dict[str, Bools]:
    """Flags (outputs, columns) of the weights that are zero, by layer.

    Parameters
    ----------
    layers
        Whose weights the pattern divides.
    level
        The share of all their weights that is to be zero, at most `pattern.most`. Weights that are gone
        already count.
    scope
        One of `SCOPES`.
    reduce
        How the scores of a block become one, a key of `REDUCTIONS`.
    min_ratio, max_ratio
        At least and at most this share of each layer goes.
    """
    ladders = [_Ladder.of(layer, pattern, reduce) for layer in layers]
    if scope == "global":
        counts = _ranked(ladders, level, min_ratio, min(max_ratio, pattern.most))
    else:
        share = min(max(level, min_ratio), max_ratio)
        counts = [ladder.within(share) for ladder in ladders]
    found = {}
    for ladder, blocks in zip(ladders, counts, strict=True):
        layer = ladder.layer
        if scope == "row":
            gone = _by_rows(ladder, min(max(level, min_ratio), max_ratio))
        else:
            gone = np.zeros(ladder.scores.size, bool)
            gone[ladder.order[:blocks]] = True
        zeros = pattern.zeros(gone.reshape(ladder.scores.shape), layer.ordered, layer.grid)
        found[layer.name] = zeros if layer.gone is None else zeros | layer.gone
    return found


@dataclass(frozen=True, eq=False)
class _Ladder:
    """The order in which a layer's blocks go."""

    layer: Scored
    size: int
    scores: Array
    order: np.ndarray[tuple[int], np.dtype[np.int64]]

    @classmethod
    def of(cls, layer: Scored, pattern: Pattern, reduce: str) -> _Ladder:
        how = REDUCTIONS[reduce]
        scores = pattern.reduce(layer.scores, layer.grid, how)
        if layer.gone is not None:
            # a block of which some weights are gone has the others to lose; one that is gone has nothing
            empty = pattern.reduce(np.where(layer.gone, 0.0, 1.0), layer.grid, np.max) == 0
            scores = np.where(empty, -np.inf, scores)
        order = np.argsort(scores.ravel(), kind="stable")
        return cls(layer, pattern.goes(layer.grid), scores, order)

    def within(self, share: float) -> int:
        """The most blocks that are no more than a share of the layer."""
        return min(count(share, self.layer.grid.size) // self.size, len(self.order))


def _ranked(ladders: Sequence[_Ladder], level: float, min_ratio: float, max_ratio: float) -> list[int]:
    """How many blocks of each layer go by one ranking of all."""
    total = count(level, sum(ladder.layer.grid.size for ladder in ladders))
    least = [_at_least(ladder, min_ratio) for ladder in ladders]
    most = [max(ladder.within(max_ratio), low) for ladder, low in zip(ladders, least, strict=True)]
    total -= sum(n * ladder.size for n, ladder in zip(least, ladders, strict=True))
    keys = [
        ladder.scores.ravel()[ladder.order[low:high]]
        for ladder, low, high in zip(ladders, least, most, strict=True)
    ]
    owners = np.concatenate([np.full(len(key), n) for n, key in enumerate(keys)])
    order = np.argsort(np.concatenate(keys), kind="stable")
    sizes = np.array([ladder.size for ladder in ladders])[owners[order]]
    taken = int(np.searchsorted(np.cumsum(sizes), total, side="right"))
    more = np.bincount(owners[order[:taken]], minlength=len(ladders))
    return [low + int(extra) for low, extra in zip(least, more, strict=True)]


def _at_least(ladder: _Ladder, share: float) -> int:
    """The fewest blocks that are at least a share of the layer."""
    wanted = math.ceil(share * ladder.layer.grid.size - _SLACK)
    return min(math.ceil(wanted / ladder.size), len(ladder.order))


def _by_rows(ladder: _Ladder, share: float) -> Bools:
    """One flag per block: the same share of every row of blocks."""
    scores = ladder.scores if ladder.scores.ndim == 2 else ladder.scores[None]
    per_block = ladder.layer.grid.size / ladder.scores.size  # weights that a block covers
    blocks = count(share * per_block / ladder.size, scores.shape[1])
    order = np.argsort(scores, axis=1, kind="stable")
    gone = np.zeros(scores.shape, bool)
    np.put_along_axis(gone, order[:, :blocks], True, axis=1)
    return gone


def level_of(zeros: Mapping[str, Bools]) -> float:
    """Share of the flagged weights."""
    size = sum(flags.size for flags in zeros.values())
    return sum(int(flags.sum()) for flags in zeros.values()) / size if size else 0.0
