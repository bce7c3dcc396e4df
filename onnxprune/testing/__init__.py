"""Conformance checks that the project's own tests call, for rules and models of third parties as well.

`check_rule` builds a small model around one operator, so that every axis of its inputs is made by a weight
and every axis of its outputs is summed over, and hands it to `check_model`. That draws units to drop and
asserts:

- the removed model computes exactly what the masked one computes, in onnxruntime;
- masking changes the output (else equality would prove nothing), and the output is finite and not zero;
- onnx's checker accepts the removed model, and all its inferred shapes are those that onnxruntime makes;
- removing nothing gives the same bytes;
- the order of the nodes changes neither the groups nor the result.

`check_criterion` draws weights and asserts that scores are finite, one per unit, and the same for the same
seed and for units in another order.
"""

from __future__ import annotations

from onnxprune.testing.builder import ModelBuilder
from onnxprune.testing.criterion import check_criterion
from onnxprune.testing.model import Checked, check_model, draw_keep
from onnxprune.testing.rule import Activation, Feed, Weight, check_rule

__all__ = [
    "Activation",
    "Checked",
    "Feed",
    "ModelBuilder",
    "Weight",
    "check_criterion",
    "check_model",
    "check_rule",
    "draw_keep",
]
