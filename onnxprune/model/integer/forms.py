"""Where operators of quantised operands have them, and which operator of floats each one is.

`y = QLinearX(x, x_scale, x_zero, ..., y_scale, y_zero)` is QuantizeLinear(X(DequantizeLinear(x), ...)).

Specification: https://onnx.ai/onnx/operators/onnx__QLinearConv.html and its neighbours, and
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.model.integer.notes import Template
from onnxprune.model.integer.parts import NotThisForm, rank_of

CONTRIB = "com.microsoft"

Key = tuple[str, str]
Slots = tuple[int, int, int]
Attributes = dict[str, ir.Attr]


@dataclass(frozen=True)
class Form:
    """One operator on quantised operands.

    Attributes
    ----------
    op_type
        The operator of floats.
    operands
        Slots of (integers, scale, zero point), in the order of the inputs of `op_type`. Where there is a number
        instead, it is the slot from which on such triples follow each other to the end.
    result
        Slots of the output's scale and zero point.
    plain
        Slots of inputs that `op_type` takes first, as they are.
    bias
        Slot of an int32 bias, whose scale is the product of the operands'.
    vector
        Dim of an operand along which a vector of scales lies, counted from the end; by operand. Without an entry
        there is one scale.
    dropped
        Attributes that `op_type` does not have, with the only value that is understood; None: any.
    adapt
        Makes the attributes fit `op_type` in this version of the standard operators, may add inputs.
    restore
        The opposite of `adapt`.
    """

    op_type: str
    operands: tuple[Slots, ...] | int
    result: tuple[int, int]
    plain: tuple[int, ...] = ()
    bias: int | None = None
    vector: Mapping[int, Callable[[ir.Node | Template], int]] = field(default_factory=dict)
    dropped: Mapping[str, int | None] = field(default_factory=dict)
    adapt: Callable[[ir.Node, Attributes, int], list[ir.Value]] | None = None
    restore: Callable[[ir.Node, Template, Attributes], None] | None = None

    def slots(self, count: int) -> tuple[Slots, ...]:
        """Slots of the operands of a node with `count` inputs."""
        if isinstance(self.operands, int):
            return tuple((slot, slot + 1, slot + 2) for slot in range(self.operands, count, 3))
        return self.operands

    def attributes(self, node: ir.Node) -> Attributes:
        """The attributes that the operator of floats has, too."""
        for name, only in self.dropped.items():
            attribute = node.attributes.get(name)
            if only is not None and attribute is not None and attribute.as_int() != only:
                raise NotThisForm(f"{name} is {attribute.as_int()}")
        return {name: attr for name, attr in node.attributes.items() if name not in self.dropped}


def _softmax(node: ir.Node, attributes: Attributes, opset: int) -> list[ir.Value]:
    """Up to version 12, Softmax works on all axes from `axis` on; the node says which version it means."""
    stated, x = node.attributes.get("opset"), node.inputs[0]
    axis = attributes.setdefault("axis", ir.AttrInt64("axis", -1)).as_int()
    meant = opset if stated is None else int(stated.as_int())
    last = axis == -1 or (x is not None and rank_of(x) == axis + 1)
    if (meant < 13) != (opset < 13) and not last:
        raise NotThisForm(f"it means Softmax as of version {meant}")
    return []


def _restore_softmax(node: ir.Node, template: Template, attributes: Attributes) -> None:
    if "axis" not in template.attributes and attributes["axis"].as_int() == -1:
        del attributes["axis"]


def _mean(node: ir.Node, attributes: Attributes, opset: int) -> list[ir.Value]:
    """From version 18 on, ReduceMean takes its axes as an input."""
    graph = node.graph
    if opset < 18 or not isinstance(graph, ir.Graph):
        return []
    axes = np.array(attributes.pop("axes").as_ints(), np.int64)
    return [edit.add_initializer(graph, f"{node.outputs[0].name}/axes", axes, ir.DataType.INT64)]


def _restore_mean(node: ir.Node, template: Template, attributes: Attributes) -> None:
    axes = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if axes is not None:
        attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes.numpy()])


def _columns(node: ir.Node | Template) -> int:
    return -1


def _filters(node: ir.Node | Template) -> int:
    return -4


def _gemm_columns(node: ir.Node | Template) -> int:
    transposed = node.attributes.get("transB")
    return -2 if transposed is not None and transposed.as_int() else -1


_ONE: tuple[Slots, ...] = ((0, 1, 2),)
_TWO: tuple[Slots, ...] = ((0, 1, 2), (3, 4, 5))
_UNLESS_LAST = {"channels_last": 0}

FORMS: dict[Key, Form] = {
    ("", "QLinearConv"): Form("Conv", _TWO, (6, 7), bias=8, vector={1: _filters}),
    (CONTRIB, "QLinearConv"): Form(
        "Conv", _TWO, (6, 7), bias=8, vector={1: _filters}, dropped={"channels_last": 0}
    ),
    ("", "QLinearMatMul"): Form("MatMul", _TWO, (6, 7), vector={1: _columns}),
    (CONTRIB, "QGemm"): Form("Gemm", _TWO, (7, 8), bias=6, vector={1: _gemm_columns}),
    (CONTRIB, "QLinearAdd"): Form("Add", _TWO, (6, 7)),
    (CONTRIB, "QLinearMul"): Form("Mul", _TWO, (6, 7)),
    (CONTRIB, "QLinearSigmoid"): Form("Sigmoid", _ONE, (3, 4)),
    (CONTRIB, "QLinearLeakyRelu"): Form("LeakyRelu", _ONE, (3, 4)),
    (CONTRIB, "QLinearAveragePool"): Form("AveragePool", _ONE, (3, 4), dropped=_UNLESS_LAST),
    (CONTRIB, "QLinearGlobalAveragePool"): Form("GlobalAveragePool", _ONE, (3, 4), dropped=_UNLESS_LAST),
    (CONTRIB, "QLinearReduceMean"): Form("ReduceMean", _ONE, (3, 4), adapt=_mean, restore=_restore_mean),
    (CONTRIB, "QLinearSoftmax"): Form(
        "Softmax", _ONE, (3, 4), dropped={"opset": None}, adapt=_softmax, restore=_restore_softmax
    ),
    (CONTRIB, "QLinearWhere"): Form("Where", ((1, 2, 3), (4, 5, 6)), (7, 8), plain=(0,)),
    (CONTRIB, "QLinearConcat"): Form("Concat", 2, (0, 1)),
}
"""Every operator that is `QuantizeLinear(op_type(DequantizeLinear(...)))`."""


def form_of(node: ir.Node | Template) -> Form:
    """The form of an operator; the standard domain has two names."""
    return FORMS["" if node.domain == "ai.onnx" else node.domain, node.op_type]
