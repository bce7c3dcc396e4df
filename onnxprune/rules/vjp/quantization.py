"""VJP of rounding: straight through, as in quantisation-aware training, where the input is inside the range.

Gradients of stored integers are those of the numbers that they mean, so the scale cancels out (Bengio et
al. 2013, https://arxiv.org/abs/1308.3432; Jacob et al. 2018, https://arxiv.org/abs/1712.05877).
"""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.rules.backward import Backward, Vjp
from onnxprune.rules.expr import Expr
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key


def _dequantize(op: Op, back: Backward) -> None:
    back.give(0, back.g)
    _nothing_else(op, back)


def _quantize(op: Op, back: Backward) -> None:
    dtype = op.output().dtype
    if dtype is None or not dtype.is_integer() or dtype.bitwidth > 16:
        back.give(0, back.g)
    else:
        back.give(0, back.g.where(_inside(op, back, dtype)))
    _nothing_else(op, back)


def _inside(op: Op, back: Backward, dtype: ir.DataType) -> Expr:
    """Where saturation does not change x: where rounding it and reading it moves it by less than a step."""
    attributes = {
        name: attr.as_int() for name, attr in op.node.attributes.items() if name in ("axis", "block_size")
    }
    others = [value for value in op.node.inputs[1:] if value is not None]
    scales = back.builder.op("DequantizeLinear", back.y(), *others, **attributes)
    step = back.builder.op("Cast", op.input(1), to=int(ir.DataType.FLOAT))
    dims, rank = op.dims(op.input(1)) or (), op.rank(op.input(0))
    if len(dims) == 1 and dims[0] != 1:
        step = step.reshape([-1 if dim == op.int("axis", 1) % rank else 1 for dim in range(rank)])
    elif len(dims) > 1:
        return (back.x() - scales).op("Abs").op("LessOrEqual", scales.op("Abs"))  # a bound that is rough
    return (back.x() - scales).op("Abs").op("LessOrEqual", step * _STEP)


_STEP = 0.5 + 2**-10
"""Half a step, and what float32 rounds."""


def _nothing_else(op: Op, back: Backward) -> None:
    for slot in range(1, len(op.node.inputs)):
        if back.wants(slot):
            back.give(slot, None)


VJPS: dict[Key, Vjp] = {
    **{(domain, "DequantizeLinear"): _dequantize for domain in ("", "com.microsoft")},
    **{(domain, "QuantizeLinear"): _quantize for domain in ("", "com.microsoft")},
    ("", "DynamicQuantizeLinear"): lambda op, back: back.give(0, back.gradient(0)),
}
