"""Losses in standard operators: the entry of each place's class, weighted by its class.

Specification: see `onnxprune.rules.losses`.
"""

from __future__ import annotations

import numpy as np

from onnxprune.rules.expr import Expr
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key
from onnxprune.rules.site import Lower, Site

_Outputs = list[Expr | None]


def _likelihood(op: Op, site: Site) -> _Outputs:
    return [_loss(op, site, site.x())]


def _entropy(op: Op, site: Site) -> _Outputs:
    log_p = site.x().op("LogSoftmax", axis=1)
    return [_loss(op, site, log_p), log_p]


def _loss(op: Op, site: Site, log_p: Expr) -> Expr:
    """Scores (N, C, ...) and classes (N, ...) -> losses (N, ...), their sum, or their weighted mean."""
    constant, classes = site.builder.constant, site.x(1).op("Cast", to=7)
    counts = None
    if "ignore_index" in op.node.attributes:
        ignored = classes.op("Equal", constant(np.int64(op.int("ignore_index", 0))))
        # what is ignored need not be a class
        classes = ignored.op("Where", constant(np.int64(0)), classes)
        counts = ignored.op("Not")
    weight = site.x(2).op("Gather", classes, axis=0) if op.has(2) else None
    loss = -log_p.op("GatherElements", classes.unsqueeze(1), axis=1).squeeze(1)
    if weight is not None:
        loss = loss * weight
    if counts is not None:
        loss = loss.where(counts)
    reduction = op.str("reduction", "mean")
    if reduction == "none":
        return loss
    total = loss.op("ReduceSum", keepdims=0)
    if reduction == "sum":
        return total
    if weight is None:
        weight = counts.float() if counts is not None else loss * 0.0 + 1.0
    elif counts is not None:
        weight = weight.where(counts)
    return total / weight.op("ReduceSum", keepdims=0)


LOWERS: dict[Key, Lower] = {
    ("", "NegativeLogLikelihoodLoss"): _likelihood,
    ("", "SoftmaxCrossEntropyLoss"): _entropy,
}
