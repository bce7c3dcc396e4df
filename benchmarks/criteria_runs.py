"""What the criteria benchmark measures: criteria, models, budgets, and every single run as a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.quality_runs import GRID, SUBJECTS
from benchmarks.quality_runs import Subject as Data

AUTO = "auto"
MAGNITUDE = ("l1", "l2")
GRADIENT = ("taylor", "fisher", "retrain_free", "gradient", "snip", "snip_momentum")
OUTPUTS = {
    "fisher, outputs": {"criterion": "fisher", "loss": "outputs"},
    "retrain_free, outputs": {"criterion": "retrain_free", "loss": "outputs"},
}
CRITERIA: dict[str, dict[str, Any]] = {
    name: {"criterion": name} for name in (AUTO, *MAGNITUDE, *GRADIENT)
} | OUTPUTS
"""Options of `onnxprune.prune`, by the name on the page; all with `--round-to 1`, else by default."""
BY_GRADIENTS = (*GRADIENT, *OUTPUTS)
FEW = (AUTO, "l1", "taylor", "fisher", "retrain_free")
LIBRARY = "transformers"


@dataclass(frozen=True)
class Subject:
    """A model, the budgets that it is pruned to, and by which criteria.

    Attributes
    ----------
    architecture
        In `benchmarks.families`, where the model is exported with random weights and its data generated.
    criteria
        In the order in which they are run.
    also
        Criteria of `OUTPUTS`, run after all others.
    """

    name: str
    points: tuple[float, ...]
    criteria: tuple[str, ...] = (AUTO, *MAGNITUDE, *GRADIENT)
    also: tuple[str, ...] = tuple(OUTPUTS)
    architecture: str = ""

    @property
    def data(self) -> Data | None:
        """Where model and data lie; None where they are made."""
        return None if self.architecture else SUBJECTS[self.name]


SUBJECTS_BY_NAME = {
    subject.name: subject
    for subject in (
        Subject("kwt1_speechcommands", GRID),
        Subject("cifar10_resnet20", GRID),
        Subject("digits_vit", GRID),
        Subject("digits_resnet", GRID),
        Subject("cifar10_resnet56", (0.8, 0.7, 0.5, 0.35, 0.2), also=()),
        Subject("random_bert", (0.8, 0.5), also=(), architecture="bert"),
        Subject("random_gpt2", (0.8, 0.5), also=(), architecture="gpt2"),
        Subject("random_llama", (0.8, 0.5), also=(), architecture="llama_gqa"),
        Subject("random_vit", (0.8, 0.5), also=(), architecture="vit"),
        Subject("imagenet_mobilenetv2", (0.8, 0.7, 0.6, 0.5), FEW, also=()),
    )
}
"""In the order in which they are run."""


@dataclass(frozen=True)
class Run:
    """One model pruned to one budget by one criterion; without a criterion the original is measured."""

    subject: Subject
    criterion: str = ""
    point: float = 1.0
    options: dict[str, Any] = field(default_factory=dict, hash=False)


def runs(names: Sequence[str], criteria: Sequence[str] | None, points: Sequence[float] | None) -> list[Run]:
    """All runs about some models, in the order in which they are wanted.

    Parameters
    ----------
    criteria, points
        Only these, where given.
    """
    found = []
    subjects = [SUBJECTS_BY_NAME[name] for name in names]
    for also in (False, True):
        for subject in subjects:
            if not also:
                found.append(Run(subject))
            for point in subject.points:
                for name in subject.also if also else subject.criteria:
                    if name in (criteria or CRITERIA) and point in (points or subject.points):
                        found.append(Run(subject, name, point, CRITERIA[name]))
    return found
