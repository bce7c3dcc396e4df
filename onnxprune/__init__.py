"""onnxprune: smaller, faster ONNX models without retraining.

>>> import onnxprune
>>> onnxprune.__version__
'0.1.0'

The functions carry the names of the command line: `load`, `analyze`, `plan`, `apply`, `prune`, `validate`,
`explain`, `slim`, `sparsify`, `stats`; `onnxprune gradients` is `differentiate`. Everything is imported on first
use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "load": "onnxprune.api",
    "analyze": "onnxprune.api",
    "plan": "onnxprune.api",
    "apply": "onnxprune.api",
    "prune": "onnxprune.api",
    "validate": "onnxprune.api",
    "explain": "onnxprune.api",
    "differentiate": "onnxprune.api",
    "slim": "onnxprune.api",
    "sparsify": "onnxprune.api",
    "stats": "onnxprune.api",
    "Analysis": "onnxprune.analysis",
    "Explanation": "onnxprune.explanation",
    "LoadedModel": "onnxprune.model.io",
    "ModelStatistics": "onnxprune.inspection.collect",
    "Plan": "onnxprune.plans",
    "Pruned": "onnxprune.pruning",
    "Report": "onnxprune.report.report",
    "SlimReport": "onnxprune.report.slimmed",
    "Slimmed": "onnxprune.slimming.run",
    "Sparsified": "onnxprune.sparsifying",
    "SparsityReport": "onnxprune.report.sparsity",
    "Validation": "onnxprune.validation",
    "Criterion": "onnxprune.criteria",
    "CriterionTable": "onnxprune.criteria",
    "default_criteria": "onnxprune.criteria",
    "Rule": "onnxprune.rules",
    "RuleTable": "onnxprune.rules",
    "default_rules": "onnxprune.rules",
    "OnnxPruneError": "onnxprune.errors",
    "Reason": "onnxprune.errors",
    "read_plan": "onnxprune.plans",
}

__all__ = [*sorted(_HOMES), "__version__"]

if TYPE_CHECKING:
    from onnxprune.analysis import Analysis as Analysis
    from onnxprune.api import analyze as analyze
    from onnxprune.api import apply as apply
    from onnxprune.api import differentiate as differentiate
    from onnxprune.api import explain as explain
    from onnxprune.api import load as load
    from onnxprune.api import plan as plan
    from onnxprune.api import prune as prune
    from onnxprune.api import slim as slim
    from onnxprune.api import sparsify as sparsify
    from onnxprune.api import stats as stats
    from onnxprune.api import validate as validate
    from onnxprune.criteria import Criterion as Criterion
    from onnxprune.criteria import CriterionTable as CriterionTable
    from onnxprune.criteria import default_criteria as default_criteria
    from onnxprune.errors import OnnxPruneError as OnnxPruneError
    from onnxprune.errors import Reason as Reason
    from onnxprune.explanation import Explanation as Explanation
    from onnxprune.inspection.collect import ModelStatistics as ModelStatistics
    from onnxprune.model.io import LoadedModel as LoadedModel
    from onnxprune.plans import Plan as Plan
    from onnxprune.plans import read_plan as read_plan
    from onnxprune.pruning import Pruned as Pruned
    from onnxprune.report.report import Report as Report
    from onnxprune.report.slimmed import SlimReport as SlimReport
    from onnxprune.report.sparsity import SparsityReport as SparsityReport
    from onnxprune.rules import Rule as Rule
    from onnxprune.rules import RuleTable as RuleTable
    from onnxprune.rules import default_rules as default_rules
    from onnxprune.slimming.run import Slimmed as Slimmed
    from onnxprune.sparsifying import Sparsified as Sparsified
    from onnxprune.validation import Validation as Validation


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
