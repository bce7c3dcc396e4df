"""Scores of units from arrays: their weights, or what is seen of them on data. A table, one small file per family.

Third parties publish criteria through the entry point group `onnxprune.criteria`.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from onnxprune.criteria import activation, magnitude
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

__all__ = [
    "ActivationCriterion",
    "AnyCriterion",
    "CombinedCriterion",
    "Criterion",
    "CriterionTable",
    "UnitActivations",
    "UnitWeights",
    "data_missing",
    "default_criteria",
]


@cache
def default_criteria() -> CriterionTable:
    """The built-in criteria and those that installed packages publish.

    An entry point names a criterion, a mapping of them, or a function that returns a mapping.
    """
    criteria = CriterionTable({**magnitude.CRITERIA, **activation.CRITERIA})
    for point in entry_points(group="onnxprune.criteria"):
        loaded = point.load()
        if isinstance(loaded, AnyCriterion):
            loaded = {loaded.name: loaded}
        criteria = criteria | (loaded() if callable(loaded) else loaded)
    return criteria
