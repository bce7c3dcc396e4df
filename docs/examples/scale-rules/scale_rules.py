"""Rules for three operators of `my.domain`, found by onnxprune through the entry point in `pyproject.toml`.

- `ScaleShift(x, gamma, beta)`: `x * gamma + beta`, one gamma and one beta per channel (axis 1).
- `Dense(x, weight; units)`: `x @ weight.T` for x of shape (N, C); the attribute carries the number of rows.
- `GlobalMean(x)`: the mean of every channel, (N, C, H, W) -> (N, C).

onnx infers nothing for operators of other domains, so every rule says what its outputs are (`extents`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.graph.axes import Axis
from onnxprune.rules import Rule, Term
from onnxprune.rules.helpers import tie_axes

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxprune.graph.relations import Relations
    from onnxprune.rules import Op
    from onnxprune.rules.refit import Refit

    Extents = list[tuple[tuple[int | None, ...] | None, ir.DataType | None]]


# --- ScaleShift: only ties -------------------------------------------------------------------------------


def _scale_shift(op: Op, relations: Relations) -> None:
    x = op.input(0)
    tie_axes(op, relations, x, op.output())
    for slot in (1, 2):
        relations.tie(Axis(x, 1), Axis(op.input(slot), 0))


def _like_input(op: Op) -> Extents:
    x = op.input(0)
    return [(op.dims(x), x.dtype)]


# --- Dense: a contraction, an attribute that carries an extent, multiply-adds ----------------------------


def _dense(op: Op, relations: Relations) -> None:
    x, weight, y = op.input(0), op.input(1), op.output()
    relations.tie(Axis(x, 0), Axis(y, 0))
    relations.tie(Axis(weight, 0), Axis(y, 1))
    relations.contract(Axis(x, 1), Axis(weight, 1))


def _refit_dense(op: Op, refit: Refit) -> None:
    refit.set_int("units", refit.extent(Axis(op.input(1), 0)))


def _dense_macs(op: Op) -> list[Term]:
    x, y = op.input(0), op.output()
    return [Term(1.0, (Axis(x, 0), Axis(x, 1), Axis(y, 1)))]


def _dense_extents(op: Op) -> Extents:
    x, weight = op.dims(op.input(0)), op.dims(op.input(1))
    return [] if x is None or weight is None else [((x[0], weight[0]), op.input(0).dtype)]


# --- GlobalMean: an output of another rank ---------------------------------------------------------------


def _global_mean(op: Op, relations: Relations) -> None:
    """H and W are averaged over: not mentioned, so they stay whole."""
    x, y = op.input(0), op.output()
    for dim in (0, 1):
        relations.tie(Axis(x, dim), Axis(y, dim))


def _mean_extents(op: Op) -> Extents:
    x = op.input(0)
    dims = op.dims(x)
    return [] if dims is None else [(dims[:2], x.dtype)]


RULES = {
    ("my.domain", "ScaleShift"): Rule(_scale_shift, kinds={1: "scale", 2: "bias"}, extents=_like_input),
    ("my.domain", "Dense"): Rule(_dense, _refit_dense, _dense_macs, weights=(1,), extents=_dense_extents),
    ("my.domain", "GlobalMean"): Rule(_global_mean, extents=_mean_extents),
}
