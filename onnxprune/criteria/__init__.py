"""Scores of units from arrays: their weights, what is seen of them on data, gradients.

A table, one small file per family.

Third parties publish criteria through the entry point group `onnxprune.criteria`.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from onnxprune.criteria import activation, gradient, magnitude
from onnxprune.criteria.combined import CombinedCriterion
from onnxprune.criteria.criterion import (
    ActivationCriterion,
    AnyCriterion,
    Criterion,
    CriterionTable,
    UnitActivations,
    UnitWeights,
    data_missing,
)
from onnxprune.criteria.gradient import GradientCriterion, LogitCriterion, MaskCriterion
from onnxprune.criteria.unit_gradients import MaskGradients, UnitGradients, WeightGradients

__all__ = [
    "ActivationCriterion",
    "AnyCriterion",
    "CombinedCriterion",
    "Criterion",
    "CriterionTable",
    "GradientCriterion",
    "LogitCriterion",
    "MaskCriterion",
    "MaskGradients",
    "UnitActivations",
    "UnitGradients",
    "UnitWeights",
    "WeightGradients",
    "data_missing",
    "default_criteria",
]


@cache
def default_criteria() -> CriterionTable:
    """The built-in criteria and those that installed packages publish.

    An entry point names a criterion, a mapping of them, or a function that returns a mapping.
    """
    criteria = CriterionTable({**magnitude.CRITERIA, **activation.CRITERIA, **gradient.CRITERIA})
    for point in entry_points(group="onnxprune.criteria"):
        loaded = point.load()
        if isinstance(loaded, AnyCriterion):
            loaded = {loaded.name: loaded}
        criteria = criteria | (loaded() if callable(loaded) else loaded)
    return criteria
