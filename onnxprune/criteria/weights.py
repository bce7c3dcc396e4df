"""Criteria that score single weights; higher = keep.

Below, `W` is a layer's weight as a matrix (outputs, columns), `X` the rows of its input, `G_b` the gradient
of the loss of batch b with respect to `W`, and `G` the sum of these. A pattern makes one score of those of a
block.

magnitude
    `|W|`. Compares layers as they are (NNCF's `abs`, Neural Compressor's `magnitude`).
normed_abs
    `|W| / ||W||_2`, the norm being the layer's (NNCF's default `weight_importance`).
wanda
    `|W_ij| sqrt(E[X_j^2])`, compared within each output (Sun et al. 2023, https://arxiv.org/abs/2306.11695).
gradient
    `|G|`.
snip
    `|W G|` (Lee et al. 2019, https://arxiv.org/abs/1810.02340).
snip_momentum
    `S <- 0.9 S + 1.0 |W G_b|`, batch after batch (Neural Compressor's default).
snip_momentum_block
    `S <- 0.9 S + |dL_b / dm|` with one factor m = 1 per block: the sum of `W G_b` over the block.
taylor, fisher
    `sum_b |W G_b|` and `sum_b (W G_b)^2 / 2`: the change of the loss to first and, with the Fisher
    information of the batches as the curvature, to second order when the weight goes (Molchanov et al. 2019,
    https://arxiv.org/abs/1906.10771).
movement
    `S <- S - W G_b` (Sanh et al. 2020, https://arxiv.org/abs/2005.07683): grows where a step of training
    would move the weight away from zero. Retrain-free, the weights do not move, and S is the first-order
    change of the loss.
rb
    `s`, the logit of a mask that was learned on the samples, one per block of the pattern (NNCF's regularised
    binary sparsity, `onnxprune.criteria.binary`; Louizos et al. 2018, https://arxiv.org/abs/1712.01312).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.criteria.gradient import ALPHA, BETA
from onnxprune.errors import UsageError
from onnxprune.patterns import Grid, Head, NofM, Pattern

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Weights:
    """What a criterion sees of one layer.

    Attributes
    ----------
    values
        Shape (outputs, columns), float64.
    inputs
        Shape (outputs, columns): root mean square of what each weight multiplies; None where nobody asked for
        it.
    folded
        What the criterion's `fold` made of the gradients, or what was learned; None for criteria without.
    """

    values: Array
    inputs: Array | None = None
    folded: Array | None = None


@dataclass(frozen=True)
class Blocks:
    """The blocks of one layer, for folds that sum over them."""

    pattern: Pattern
    grid: Grid

    def sums(self, array: Array) -> Array:
        """To every weight the sum over its block, shape (outputs, columns)."""
        return self.pattern.spread(self.pattern.reduce(array, self.grid, np.sum), self.grid)


Fold = Callable[[Array | float, Array, Array, Blocks], Array]
"""`(state, W, G_b, blocks) -> state`; the first state is 0.0."""


@dataclass(frozen=True)
class WeightCriterion:
    """A way of scoring single weights.

    Parameters
    ----------
    name
        As the command line names it.
    function
        `Weights -> scores (outputs, columns)`, higher = keep.
    source
        Where the definition comes from.
    inputs
        Whether it looks at what the weights multiply.
    fold
        What becomes of the gradients, batch after batch; None: it looks at none.
    scope
        What it compares weights with where nobody says otherwise: see `onnxprune.sparsity.select`.
    in_blocks
        Whether it sums over the blocks of the pattern, which has to have some then.
    learns
        Whether `Weights.folded` holds logits of masks that were learned (`onnxprune.sparsity.rb`).
    """

    name: str
    function: Callable[[Weights], Array]
    source: str = ""
    inputs: bool = False
    fold: Fold | None = None
    scope: str = "global"
    in_blocks: bool = False
    learns: bool = False

    @property
    def needs_data(self) -> bool:
        """Whether it looks at samples."""
        return self.inputs or self.differentiates

    @property
    def differentiates(self) -> bool:
        """Whether it looks at gradients."""
        return self.fold is not None or self.learns

    def score(self, weights: Weights) -> Array:
        """Scores of one layer.

        Raises
        ------
        UsageError
            The function gave something else than one score per weight.
        """
        scores = np.asarray(self.function(weights))
        if scores.shape != weights.values.shape:
            raise UsageError(
                f"the criterion {self.name} gives scores of shape {scores.shape} for weights of shape "
                f"{weights.values.shape}",
                "Its function takes Weights and returns one score per weight.",
            )
        return scores


class WeightCriterionTable(Mapping[str, WeightCriterion]):
    """An immutable table of criteria; `table | other` is a new one in which `other` wins."""

    def __init__(self, criteria: Mapping[str, WeightCriterion] | None = None) -> None:
        self._criteria = dict(criteria or {})

    def __getitem__(self, name: str) -> WeightCriterion:
        return self._criteria[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._criteria)

    def __len__(self) -> int:
        return len(self._criteria)

    def __or__(self, other: Mapping[str, WeightCriterion]) -> WeightCriterionTable:
        return WeightCriterionTable({**self._criteria, **other})


def normed(weights: Weights) -> Array:
    """Magnitudes as shares of the layer's norm."""
    norm = float(np.linalg.norm(weights.values))
    return np.abs(weights.values) / norm if norm > 0 else np.abs(weights.values)


def _wanda(weights: Weights) -> Array:
    return np.abs(weights.values) * _given(weights.inputs)


def _folded(weights: Weights) -> Array:
    return _given(weights.folded)


def _given(array: Array | None) -> Array:
    if array is None:
        raise ValueError("the criterion was not given what it looks at")
    return array


def _momentum(state: Array | float, w: Array, g: Array, _: Blocks) -> Array:
    return np.asarray(ALPHA * state + BETA * np.abs(w * g))


def _block_momentum(state: Array | float, w: Array, g: Array, blocks: Blocks) -> Array:
    return np.asarray(ALPHA * state + BETA * np.abs(blocks.sums(w * g)))


NNCF = "NNCF"
INC = "Neural Compressor"

_ALL = (
    WeightCriterion("magnitude", lambda seen: np.abs(seen.values), f"{NNCF} (abs), {INC}"),
    WeightCriterion("normed_abs", normed, NNCF),
    WeightCriterion("wanda", _wanda, "Sun et al. 2023", inputs=True, scope="row"),
    WeightCriterion("gradient", lambda seen: np.abs(_folded(seen)), INC, fold=lambda s, w, g, _: s + g),
    WeightCriterion(
        "snip",
        lambda seen: np.abs(seen.values * _folded(seen)),
        "Lee et al. 2019",
        fold=lambda s, w, g, _: s + g,
    ),
    WeightCriterion("snip_momentum", _folded, INC, fold=_momentum),
    WeightCriterion("snip_momentum_block", _folded, INC, fold=_block_momentum, in_blocks=True),
    WeightCriterion("taylor", _folded, "Molchanov et al. 2019", fold=lambda s, w, g, _: s + np.abs(w * g)),
    WeightCriterion("fisher", _folded, "Molchanov et al. 2019", fold=lambda s, w, g, _: s + (w * g) ** 2 / 2),
    WeightCriterion("movement", _folded, "Sanh et al. 2020", fold=lambda s, w, g, _: s - w * g),
    WeightCriterion("rb", _folded, f"{NNCF} (RB)", learns=True),
)


def default_weight_criteria() -> WeightCriterionTable:
    """All criteria of this module."""
    return WeightCriterionTable({criterion.name: criterion for criterion in _ALL})


def find_weight_criterion(
    name: str, pattern: Pattern, table: WeightCriterionTable | None = None
) -> WeightCriterion:
    """Look a criterion up.

    Raises
    ------
    UsageError
        There is none of that name, or it does not go with the pattern.
    """
    table = default_weight_criteria() if table is None else table
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UsageError(
            f"there is no criterion {name!r} for single weights{hint}",
            f"Known: {', '.join(sorted(table))}.",
        )
    if table[name].in_blocks and isinstance(pattern, Head | NofM):
        how = (
            "has blocks that lie in several layers" if isinstance(pattern, Head) else "zeroes part of a block"
        )
        raise UsageError(
            f"the criterion {name} gives one score per block of a layer, and {pattern.name} {how}",
            "Take snip_momentum, or a pattern such as 4x1.",
        )
    return table[name]
