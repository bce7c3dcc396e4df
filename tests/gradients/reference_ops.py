"""Operators that onnx's reference evaluator rounds to float32, or gets wrong: the specification in float64."""

from __future__ import annotations

import math

import numpy as np
from onnx.reference.op_run import OpRun

_erf = np.vectorize(math.erf, otypes=[np.float64])


class Erf(OpRun):
    def _run(self, x):
        return (np.asarray(_erf(x)).reshape(np.shape(x)),)


class Gelu(OpRun):
    def _run(self, x, approximate="none"):
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1 + _erf(x / math.sqrt(2))),)


class Mean(OpRun):
    def _run(self, *args):
        total = args[0]
        for other in args[1:]:
            total = total + other
        return (np.asarray(total / len(args)),)


class Cast(OpRun):
    def _run(self, x, to=None, saturate=None, round_mode=None):
        return (x.astype(np.float64),)


OPS = [Erf, Gelu, Mean, Cast]
