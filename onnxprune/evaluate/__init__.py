"""What a model is worth: metrics on labelled data, and fidelity to another model on any data."""

from __future__ import annotations

from onnxprune.evaluate.fidelity import Fidelity, OutputFidelity
from onnxprune.evaluate.metrics import Metric, Score, default_metrics, find_metric
from onnxprune.evaluate.validate import compare, measure

__all__ = [
    "Fidelity",
    "Metric",
    "OutputFidelity",
    "Score",
    "compare",
    "default_metrics",
    "find_metric",
    "measure",
]
