"""What `sparsify` is asked for, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxprune.allocate.schedule import find_schedule
from onnxprune.criteria.weights import (
    WeightCriterion,
    WeightCriterionTable,
    find_weight_criterion,
)
from onnxprune.errors import UsageError
from onnxprune.patterns import REDUCTIONS, Head, InputChannel, NofM, OutputChannel, Pattern, parse_pattern
from onnxprune.sparsity.select import SCOPES

SOLVERS = ("auto", "mask", "sparsegpt", "obc")
"""auto: with samples obc where it is affordable and sparsegpt where not, without mask."""

STORAGES = ("dense", "sparse")

AUTO = "auto"
OWN = "saliency"
"""The criterion of a solver: what the layer's output loses when the other weights make up for a weight."""

MOVEMENT = "movement"

CONST = "const"
"""The criterion that adds no zeros: those that are there stay through everything."""

WITHOUT_DATA = "normed_abs"


@dataclass(frozen=True)
class Sparsity:
    """How weights are chosen and what makes up for them.

    Parameters
    ----------
    level
        Share of the weights of all layers that are handled that is to be zero, in [0, 1).
    pattern
        Such as "element", "4x1" or "2:4".
    criterion
        A weight criterion, "saliency" (the solver's own), "const" (no zero is added) or "auto": with a solver
        its own, else normed_abs.
    scope
        "global", "local" or "row"; None: what goes with the criterion.
    solver
        One of `SOLVERS`.
    reduce
        How the scores of a block's weights become one.
    min_ratio, max_ratio
        At least and at most this share of every layer's weights becomes zero.
    rounds, schedule
        In how many steps the level is reached, and how far each goes.
    threshold, regularization, structured
        Of the criterion movement: mask `importance > threshold` instead of a level, the factor of the
        regularisation, and whether units survive with any of their weights (`onnxprune.sparsity.structure`).
    lock
        Whether weights that are zero already stay so, and count.
    only, ignore
        Patterns of names of the layers that are handled, or are not.

    Raises
    ------
    UsageError
        A value that means nothing, or two that contradict each other.
    """

    level: float = 0.5
    pattern: str = "element"
    criterion: str = AUTO
    scope: str | None = None
    solver: str = AUTO
    reduce: str = "mean"
    min_ratio: float = 0.0
    max_ratio: float = 1.0
    rounds: int = 1
    schedule: str = "cube"
    lock: bool = False
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    criteria: WeightCriterionTable | None = None
    threshold: float | None = None
    regularization: float = 0.0
    structured: bool = False

    def __post_init__(self) -> None:
        """Reject what means nothing before any work is done."""
        pattern = self.shape
        if not 0 <= self.level < 1:
            raise UsageError(
                f"--sparsity {self.level:g} is not in [0, 1)", "0.5 makes half of the weights zero."
            )
        if self.level > pattern.most + 1e-9:
            raise UsageError(
                f"--sparsity {self.level:g} is above what the pattern {pattern.name} can reach",
                f"Ask for at most {pattern.most:g}, or take another pattern.",
            )
        for name, value, known in (
            ("scope", self.scope, (None, *SCOPES)),
            ("solver", self.solver, SOLVERS),
            ("reduce", self.reduce, tuple(REDUCTIONS)),
        ):
            if value not in known:
                listed = ", ".join(str(each) for each in known if each)
                raise UsageError(f"there is no {name} {value!r}", f"Known: {listed}.")
        if self.scope == "row" and _across_outputs(pattern):
            raise UsageError(
                f"--scope row compares weights of one output, and a block of {pattern.name} covers several, or all",
                "Take --scope global or local.",
            )
        self._check_shares()
        if isinstance(pattern, Head) and (
            self.solver not in (AUTO, "mask") or self.criterion in (OWN, CONST)
        ):
            raise UsageError(
                "--pattern head zeroes whole heads by a criterion, and nothing makes up for them",
                "Leave --solver out and take a criterion such as fisher; `onnxprune prune --attention heads` "
                "refits the layers behind heads that go.",
            )
        if self.rounds < 1:
            raise UsageError(f"--rounds {self.rounds} is not positive", "Use 1 for everything at once.")
        find_schedule(self.schedule)
        if self.criterion not in (AUTO, OWN, CONST):
            find_weight_criterion(self.criterion, pattern, self.criteria)
        if self.criterion == OWN and self.solver == "mask":
            raise UsageError(
                "the criterion saliency is that of a solver, and --solver mask is none",
                "Take --solver sparsegpt.",
            )
        if self.criterion == CONST and self.level:
            raise UsageError(
                f"the criterion const adds no zeros, so --sparsity {self.level:g} cannot be asked for",
                "Leave --sparsity out, or take another criterion with --lock.",
            )

        self._check_movement(pattern)

    @property
    def staged(self) -> bool:
        """Whether importance accumulates while the mask grows (`onnxprune.sparsity.movement`)."""
        asked = self.threshold is not None or self.regularization != 0 or self.structured
        return asked or (self.criterion == MOVEMENT and self.rounds > 1 and not isinstance(self.shape, Head))

    def _check_movement(self, pattern: Pattern) -> None:
        asked = {
            "--threshold": self.threshold is not None,
            "--regularization": self.regularization != 0,
            "--structured": self.structured,
        }
        names = [name for name, given in asked.items() if given]
        if names and self.criterion != MOVEMENT:
            raise UsageError(
                f"{', '.join(names)} belongs to the criterion movement, not to {self.criterion}",
                "Take --criterion movement, or leave it out.",
            )
        if names and isinstance(pattern, Head):
            raise UsageError(
                f"{', '.join(names)} does not go with --pattern head", "Take a level, or another pattern."
            )
        if not math.isfinite(self.regularization) or self.regularization < 0:
            raise UsageError(
                f"--regularization {self.regularization:g} is negative or not finite", "Give 0 or more."
            )
        if self.threshold is None:
            return
        if not math.isfinite(self.threshold):
            raise UsageError(f"--threshold {self.threshold:g} is not finite", "Give a number, such as 0.")
        if isinstance(pattern, NofM) or self.min_ratio > 0 or self.max_ratio < 1:
            raise UsageError(
                "--threshold masks whatever is not more important, so that N:M and shares per layer do not hold",
                "Take --sparsity instead.",
            )

    def _check_shares(self) -> None:
        low, high = self.min_ratio, self.max_ratio
        if not 0 <= low < 1:
            raise UsageError(f"--min-ratio {low:g} is not in [0, 1)", "0.1 is a tenth of every layer.")
        if not 0 < high <= 1:
            raise UsageError(f"--max-ratio {high:g} is not in (0, 1]", "0.98 leaves 2 % of every layer.")
        if low > high:
            raise UsageError(f"--min-ratio {low:g} is above --max-ratio {high:g}", "Swap or change them.")
        if not low <= self.level <= high and self.criterion != CONST:
            raise UsageError(
                f"--sparsity {self.level:g} is not between --min-ratio {low:g} and --max-ratio {high:g}",
                "All layers together have no other share than each of them.",
            )

    @property
    def shape(self) -> Pattern:
        """The pattern itself."""
        return parse_pattern(self.pattern)

    def settled(self, has_data: bool) -> Settled:
        """What `auto` stands for with or without samples.

        Raises
        ------
        UsageError
            The solver or the criterion needs samples, and there are none.
        """
        solver = self.solver
        if solver == AUTO:
            plain = self.criterion == CONST or isinstance(self.shape, Head)
            solver = AUTO if has_data and not plain else "mask"
        name = self.criterion
        if name == AUTO:
            name = WITHOUT_DATA if solver == "mask" else OWN
        criterion = None
        if name not in (OWN, CONST):
            criterion = find_weight_criterion(name, self.shape, self.criteria)
        reads = solver != "mask" or (criterion is not None and criterion.needs_data)
        if reads and not has_data:
            what = f"--solver {solver}" if solver != "mask" else f"the criterion {name}"
            raise UsageError(
                f"{what} needs --data",
                "Give calibration samples (--data synthetic generates some), or take --solver mask with a "
                "criterion that looks at weights alone, such as normed_abs.",
            )
        scope = self.scope or _scope(criterion, self.shape)
        return Settled(solver, name, criterion, scope, reads)


@dataclass(frozen=True)
class Settled:
    """What was left open, decided.

    Attributes
    ----------
    solver
        "mask", "sparsegpt", "obc" or "auto": one of the latter two per layer.
    name
        Of the criterion.
    criterion
        None: the solver's own, or const.
    scope
        One of `SCOPES`.
    reads
        Whether samples are looked at.
    """

    solver: str
    name: str
    criterion: WeightCriterion | None
    scope: str
    reads: bool

    @property
    def differentiates(self) -> bool:
        """Whether gradients are looked at."""
        return self.criterion is not None and self.criterion.differentiates


def _scope(criterion: WeightCriterion | None, pattern: Pattern) -> str:
    if criterion is None:
        return "global"
    if criterion.scope == "row" and _across_outputs(pattern):
        return "local"
    return criterion.scope


def _across_outputs(pattern: Pattern) -> bool:
    """Whether a block lies in several outputs, or is all of one."""
    return isinstance(pattern, Head | InputChannel | OutputChannel) or getattr(pattern, "rows", 1) > 1
