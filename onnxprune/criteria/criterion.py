"""What a criterion is: arrays in, one score per unit out; higher = keep.

::

    AnyCriterion                  what all of them can do
    ├── Criterion                 reads the weights that make the units
    ├── ActivationCriterion       reads what consumers see of the units: needs data
    ├── MaskCriterion             reads gradients of masks over units: needs data (gradient.py)
    ├── GradientCriterion         reads gradients of the weights that make the units: needs data (gradient.py)
    ├── LogitCriterion            reads logits of masks that were learned: needs data (gradient.py)
    └── CombinedCriterion         adds the ranks that others give (combined.py)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np

from onnxprune.criteria.unit_gradients import KINDS, UnitGradients
from onnxprune.errors import UsageError

Array = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True)
class UnitWeights:
    """The slices of one parameter that belong to a group's units.

    Attributes
    ----------
    kind
        "weight", "bn-scale", "bias", ... as the rules name parameters.
    values
        Shape (units, features): everything of the parameter that belongs to each unit. Held as float64,
        whatever type is given.
    norm
        L2 norm of the whole parameter, for rankings across layers.
    """

    kind: str
    values: Array
    norm: float

    def __post_init__(self) -> None:
        """Widen the values, so that no criterion overflows on half precision."""
        object.__setattr__(self, "values", np.asarray(self.values, np.float64))

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.values)

    def parts(self) -> Iterator[Array]:
        """The values of a few units after the other: all at once, unless they are too many to be in memory."""
        yield self.values


@dataclass(frozen=True, eq=False)
class UnitActivations:
    """What one consumer sees of a group's units on calibration data, and how it weighs that.

    A consumer multiplies its input by a matrix, once per position: per sample, and per pixel or token. A feature is
    one column of that matrix: an input channel, a tap of a convolution's kernel at it, one dimension of a head.
    Every array has the shape (units, features), and is held as float64, whatever type is given.

    Attributes
    ----------
    mean, variance, second_moment
        Of a feature's values `x` over all positions: `E[x]`, `E[x^2] - E[x]^2`, `E[x^2]`.
    nonzero
        Share of the positions with `x > 0`. After ReLU that is one minus the share of exact zeros; after GELU, SiLU
        and the like the share of positions at which the feature is switched on.
    weight_energy, weight_l1
        Over all outputs of the consumer: the sum of `W[:, feature]^2`, and of `|W[:, feature]|`.

    Raises
    ------
    ValueError
        The arrays are not matrices of one shape.
    """

    mean: Array
    variance: Array
    second_moment: Array
    nonzero: Array
    weight_energy: Array
    weight_l1: Array

    def __post_init__(self) -> None:
        """Widen the arrays, and see that they fit together."""
        for field in fields(self):
            object.__setattr__(self, field.name, np.asarray(getattr(self, field.name), np.float64))
        shapes = {field.name: getattr(self, field.name).shape for field in fields(self)}
        if len(set(shapes.values())) > 1 or self.mean.ndim != 2:
            raise ValueError(f"not all of one shape (units, features): {shapes}")

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.mean)


@runtime_checkable
class AnyCriterion(Protocol):
    """What every criterion can do, whatever it reads."""

    @property
    def name(self) -> str:
        """As the command line names it."""
        ...

    @property
    def kinds(self) -> frozenset[str]:
        """What it reads: kinds of parameters, "activation", or one of `unit_gradients.KINDS`."""
        ...

    @property
    def source(self) -> str:
        """Where the definition comes from."""
        ...

    @property
    def needs_data(self) -> bool:
        """Whether it reads activations or gradients."""
        ...

    def score(
        self,
        members: Sequence[UnitWeights],
        *,
        normalize: bool,
        rng: np.random.Generator,
        activations: Sequence[UnitActivations] | None = None,
    ) -> Array | None:
        """Scores of one group's units: the sum over its members.

        Criteria that read gradients take them as `gradients`, a `UnitGradients`; None where there are none.

        Parameters
        ----------
        members
            Slices of the group's parameters.
        normalize
            Make scores comparable between groups, so that all units can be ranked together.
        rng
            Randomness for criteria that use it; seeded by the caller.
        activations
            One entry per consumer of the group with statistics; None where none were collected at all.

        Returns
        -------
        array of shape (units,), or None
            None where the group has nothing that this criterion reads.

        Raises
        ------
        UsageError
            The criterion needs data and there are no statistics, or its function returned something else than one
            score per unit.
        """
        ...


@dataclass(frozen=True)
class Criterion:
    """A way of scoring units by their weights.

    Parameters
    ----------
    name
        As the command line names it.
    function
        `(values of shape (units, features), rng) -> scores of shape (units,)`, higher = keep.
    kinds
        Kinds of parameters that it reads.
    source
        Where the definition comes from.
    once
        Look at the first such parameter of a group only, instead of summing over all.
    each
        Whether a unit's score depends on its own values only: the function may be given a few units at a time then.
    """

    name: str
    function: Callable[[Array, np.random.Generator], Array]
    kinds: frozenset[str] = frozenset({"weight"})
    source: str = ""
    once: bool = False
    each: bool = False

    @property
    def needs_data(self) -> bool:
        """Weights are enough."""
        return False

    def score(
        self,
        members: Sequence[UnitWeights],
        *,
        normalize: bool,
        rng: np.random.Generator,
        activations: Sequence[UnitActivations] | None = None,
    ) -> Array | None:
        """Sum over the parameters of the kinds it reads; see `AnyCriterion.score`.

        With `normalize` each parameter is divided by its own L2 norm first. `activations` are not looked at.
        """
        used = [m for m in members if m.kind in self.kinds]
        if not used:
            return None
        total = np.zeros(used[0].units)
        for member in used[:1] if self.once else used:
            scale = 1.0 / member.norm if normalize and member.norm > 0 else 1.0
            parts = member.parts() if self.each else [member.values]
            scores = [
                one_per_unit(self.name, self.function(part * scale, rng), len(part), "(units, features)")
                for part in parts
            ]
            total = total + np.concatenate(scores)
        return total


def as_is(scores: Array) -> Array:
    """Leave scores that mean the same in every group, such as shares."""
    return scores


def unit_norm(scores: Array) -> Array:
    """Divide the scores of one consumer by their L2 norm, as weights are."""
    norm = np.linalg.norm(scores)
    return np.asarray(scores / norm) if norm > 0 else scores


@dataclass(frozen=True)
class ActivationCriterion:
    """A way of scoring units by what their consumers see of them on calibration data.

    Parameters
    ----------
    name
        As the command line names it.
    function
        `(UnitActivations, rng) -> scores of shape (units,)`, higher = keep.
    source
        Where the definition comes from.
    across
        `scores of one consumer -> scores` that are comparable between groups, for rankings over all of them.
    average
        Average over the consumers of a group instead of summing.
    """

    name: str
    function: Callable[[UnitActivations, np.random.Generator], Array]
    source: str = ""
    across: Callable[[Array], Array] = unit_norm
    average: bool = False

    @property
    def kinds(self) -> frozenset[str]:
        """No parameter: activations."""
        return frozenset({"activation"})

    @property
    def needs_data(self) -> bool:
        """Activations come from data."""
        return True

    def score(
        self,
        members: Sequence[UnitWeights],
        *,
        normalize: bool,
        rng: np.random.Generator,
        activations: Sequence[UnitActivations] | None = None,
    ) -> Array | None:
        """Sum or average over the group's consumers; see `AnyCriterion.score`.

        With `normalize` the scores of each consumer go through `across` first. `members` are not looked at.
        """
        if activations is None:
            raise data_missing(self.name, "activations")
        if not activations:
            return None
        total = np.zeros(activations[0].units)
        for member in activations:
            found = self.function(member, rng)
            scores = one_per_unit(self.name, found, len(total), "UnitActivations")
            total = total + (self.across(scores) if normalize else scores)
        return total / len(activations) if self.average else total


def extra(criterion: AnyCriterion, gradients: UnitGradients | None) -> dict[str, Any]:
    """What a criterion takes beyond weights and activations: the gradients, where it reads any."""
    return {"gradients": gradients} if criterion.kinds & KINDS else {}


def data_missing(name: str, what: str = "activations") -> UsageError:
    """The error that says that a criterion reads activations or gradients, of which there are none."""
    return UsageError(
        f"the criterion {name} needs --data",
        f"It looks at {what}: give calibration samples (data=... in Python), let some be generated with "
        "--data synthetic, or take a criterion that looks at weights alone, such as l2.",
    )


def one_per_unit(name: str, found: Any, units: int, takes: str) -> Array:
    """What a criterion's function gave, checked; `takes` says what the function is given."""
    scores = np.asarray(found)
    if scores.shape != (units,):
        raise UsageError(
            f"the criterion {name} gives scores of shape {scores.shape} for {units} units",
            f"Its function takes {takes} and returns one score per unit.",
        )
    return scores


class CriterionTable(Mapping[str, AnyCriterion]):
    """An immutable table of criteria; `table | other` is a new one in which `other` wins."""

    def __init__(self, criteria: Mapping[str, AnyCriterion] | None = None) -> None:
        self._criteria = dict(criteria or {})

    def __getitem__(self, name: str) -> AnyCriterion:
        return self._criteria[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._criteria)

    def __len__(self) -> int:
        return len(self._criteria)

    def __or__(self, other: Mapping[str, AnyCriterion]) -> CriterionTable:
        return CriterionTable({**self._criteria, **other})
