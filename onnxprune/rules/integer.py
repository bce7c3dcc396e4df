"""Operators of integer arithmetic that are not said in floats: they keep all their positions.

Most of them are, by `onnxprune.model.integer`, and are seen here only where they are of no form that it knows. The
others pack their weights, or what they calculate, in a way that cannot be cut: MatMulBnb4 in blocks that run over
rows.

Specification: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxprune.errors import Reason
from onnxprune.rules.pins import pin_all
from onnxprune.rules.rule import Key, Rule, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.model.shapes import Inferred
    from onnxprune.rules.op import Op

_CONTRIB = "com.microsoft"


def _whole(op: Op, relations: Relations) -> None:
    pin_all(op, relations, [*op.node.inputs, *op.outputs], Reason.QUANTIZED)


# --- extents of what onnx has no inference for -------------------------------------------------------------


def _like_input(op: Op) -> list[Inferred]:
    return [(op.dims(op.input(0)), op.input(0).dtype)]


def _packed_product(op: Op) -> list[Inferred]:
    """A times a packed matrix of N columns."""
    dims = op.dims(op.input(0))
    return [(None if dims is None else (*dims[:-1], op.int("N", 0)), op.input(0).dtype)]


def _product(op: Op) -> list[Inferred]:
    a, b = op.dims(op.input(0)), op.dims(op.input(1))
    return [(None if a is None or b is None else (*a[:-1], b[-1]), ir.DataType.FLOAT)]


def _attention(op: Op) -> list[Inferred]:
    dims, packed = op.dims(op.input(0)), op.dims(op.input(1))
    width = None if packed is None or packed[-1] is None else packed[-1] // 3
    return [(None if dims is None else (*dims[:2], width), op.input(2).dtype)]


def _lookup(op: Op) -> list[Inferred]:
    """Rows of a table; bytes hold two elements of 4 bits, or as many as `bits` says."""
    table_dims, where = op.dims(op.input(0)), op.dims(op.input(1))
    if table_dims is None or where is None or op.int("gather_axis", 0):
        return []
    last = table_dims[-1]
    if op.input(0).dtype == ir.DataType.UINT8 and last is not None:
        last *= 8 // op.int("bits", 4)
    return [((*where, *table_dims[1:-1], last), op.input(2).dtype)]


def _lstm(op: Op) -> list[Inferred]:
    x, w = op.dims(op.input(0)), op.dims(op.input(1))
    if x is None or w is None:
        return []
    hidden, dtype = op.int("hidden_size", 0), op.input(0).dtype
    state: Inferred = (w[0], x[1], hidden), dtype
    return [((x[0], w[0], x[1], hidden), dtype), state, state][: len(op.node.outputs)]


def _embedding(op: Op) -> list[Inferred]:
    ids, words = op.dims(op.input(0)), op.dims(op.input(2))
    if ids is None or words is None:
        return []
    return [((*ids, words[-1]), ir.DataType.FLOAT), ((ids[0],), ir.DataType.INT32)]


_BARE = Rule(_whole)

RULES: dict[Key, Rule] = {
    **table(_BARE, "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"),
    **table(
        Rule(_whole, extents=_like_input),
        *("QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", "QMoE", "QOrderedGelu"),
        "QOrderedLayerNormalization",
        domain=_CONTRIB,
    ),
    **table(Rule(_whole, extents=_packed_product), "MatMulBnb4", "MatMulNBits", domain=_CONTRIB),
    **table(Rule(_whole, extents=_product), "DynamicQuantizeMatMul", "MatMulIntegerToFloat", domain=_CONTRIB),
    **table(Rule(_whole, extents=_attention), "QAttention", domain=_CONTRIB),
    **table(Rule(_whole, extents=_lookup), "GatherBlockQuantized", domain=_CONTRIB),
    **table(Rule(_whole, extents=_lstm), "DynamicQuantizeLSTM", domain=_CONTRIB),
    **table(Rule(_whole, extents=_embedding), "QEmbedLayerNormalization", domain=_CONTRIB),
    **table(
        _BARE,
        *("QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearConv", "QLinearMul"),
        *("QLinearGlobalAveragePool", "QLinearReduceMean", "QLinearWhere", "MatMulInteger16", "MulInteger"),
        *("MatMulFpQ4", "MatMulNBitsMlp", "MatMulNBitsQkv", "ReduceSumInteger", "QOrderedAttention"),
        *("MatMulBlockQuantizedFp4Weight", "MatMulBlockQuantizedFp8Weight", "QOrderedMatMul"),
        *("QOrderedLongformerAttention", "QuantizeBFP", "QuantizeWithOrder"),
        domain=_CONTRIB,
    ),
}
"""Pins: the operators keep all positions of what they read and make."""
