"""Scores of units from the arrays of their weights: a table of criteria, one small file per family.

Third parties publish criteria through the entry point group `onnxprune.criteria`.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from onnxprune.criteria import magnitude
from onnxprune.criteria.criterion import Criterion, CriterionTable, UnitWeights

__all__ = ["Criterion", "CriterionTable", "UnitWeights", "default_criteria"]


@cache
def default_criteria() -> CriterionTable:
    """The built-in criteria and those that installed packages publish.

    An entry point names a `Criterion`, a mapping of them, or a function that returns a mapping.
    """
    criteria = CriterionTable(magnitude.CRITERIA)
    for point in entry_points(group="onnxprune.criteria"):
        loaded = point.load()
        if isinstance(loaded, Criterion):
            loaded = {loaded.name: loaded}
        criteria = criteria | (loaded() if callable(loaded) else loaded)
    return criteria
