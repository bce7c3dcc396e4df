"""Gates, causal convolutions and losses, which gradients pass as standard operators (see `test_vjp_fused`)."""

from __future__ import annotations

import numpy as np
import pytest
import test_vjp_fused as fused
from vjp_cases import Moving, build
from vjp_cases import case as standard


def ms(op_type, *inputs, **more):
    return standard(op_type, *inputs, domain=fused.MS, **{"opset": 18, "dynamic": False, **more})


CLASSES = np.array([[1, 0], [2, 3], [3, 3]])
FAR = np.array([[1, 0], [-7, 3], [3, -7]])
SCORES, CLASS_WEIGHTS = (3, 4, 2), Moving((4,), 0.5, 1.5)
NLL, SCE = "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"
CASES = [
    ms("GatedAdd", (2, 3, 4), (2, 3, 4), (2, 3, 1)),
    ms("ScaledSiLU", (2, 6), alpha=1.5),
    ms("ScaledSiLU", (2, 6), np.float32(0.7), note="scale"),
    ms("LinearAttentionGate", (2, 3, 6), (6,), fused.SCALE, (2, 3, 6), makes=2, outputs=(0, 1)),
    ms("LinearAttentionGate", (2, 3, 6), (6,), fused.SCALE, note="a"),
    *(
        ms(
            *("CausalConvWithState", shape, (3, 1, 3), (3,), past),
            channels_last=last,
            activation="silu",
            makes=2,
            outputs=(0, 1),
            note=f"last {last}",
        )
        for last, shape, past in ((0, (2, 3, 5), (2, 3, 2)), (1, (2, 5, 3), (2, 2, 3)))
    ),
    ms("CausalConvWithState", (1, 3, 6), (3, 1, 3), dilation=2, makes=2, outputs=(0, 1), note="dilated"),
    *(
        standard(op_type, SCORES, classes, *weights, reduction=reduction, opset=13, note=reduction, **more)
        for op_type in (NLL, SCE)
        for classes, more in ((CLASSES, {}), (FAR, {"ignore_index": -7}))
        for weights in ((), (CLASS_WEIGHTS,))
        for reduction in ("none", "sum", "mean")
    ),
    standard(SCE, SCORES, CLASSES, makes=2, outputs=(0, 1), opset=13, note="log-probabilities"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_lowered(case):
    fused.test_lowered_operators(case)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _causal(x, w, b, past):
    """(batch, channels, tokens), one kernel per channel, the last tokens as the new state."""
    whole, kernel = np.concatenate([past, x], 2), w.shape[2]
    y = sum(whole[..., i : i + x.shape[2]] * w[:, 0, i, None] for i in range(kernel)) + b[:, None]
    return [y * _sigmoid(y), whole[..., 1 - kernel :]]


# onnxruntime runs no opset that has these: what gradients make of them is run under the newest that it has
WITHOUT_KERNEL = [
    (standard("SwiGLU", (2, 6), (2, 6), alpha=1.5, opset=26), lambda a, b: [a * _sigmoid(1.5 * a) * b]),
    (
        standard(
            *("CausalConvWithState", (2, 3, 5), (3, 1, 3), (3,), (2, 3, 2)),
            opset=26,
            activation="silu",
            makes=2,
            outputs=(0, 1),
        ),
        _causal,
    ),
]


@pytest.mark.parametrize(("case", "formula"), WITHOUT_KERNEL, ids=lambda given: getattr(given, "id", ""))
def test_lowered_without_a_kernel(case, formula):
    rng = np.random.default_rng(0)
    feed = {f"x{slot}": value.draw(rng) for slot, value in case.moving.items()}
    results = formula(*(array.astype(np.float64) for array in feed.values()))
    expected = {f"y{slot}": array for slot, array in zip(case.outputs, results, strict=True)}
    fused.check(build(case, feed, False), feed, expected, rng)
