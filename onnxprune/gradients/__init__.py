"""Gradients without a training framework: forward and backward in one graph of standard ONNX operators."""

from onnxprune.gradients.backward import LOSS, build_backward
from onnxprune.gradients.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Distillation,
    Loss,
    ModelLoss,
    NextToken,
    Projection,
    SoftCrossEntropy,
    SquaredError,
    WeightedSum,
)
from onnxprune.gradients.wrt import Target, UnitMask, gradient_name

__all__ = [
    "LOSS",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Distillation",
    "Loss",
    "ModelLoss",
    "NextToken",
    "Projection",
    "SoftCrossEntropy",
    "SquaredError",
    "Target",
    "UnitMask",
    "WeightedSum",
    "build_backward",
    "gradient_name",
]
