"""What the outputs of classical machine learning and of text look like, where onnx has no inference.

These operators have no rules (see `onnxprune.rules.barriers`): nothing passes through them. But a network behind a
Scaler needs the shape of what the Scaler makes, or all of it would be closed.

Specification: https://onnx.ai/onnx/operators/index.html#ai-onnx-ml,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.Tokenizer
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from onnxprune.model.shapes import Inferred
    from onnxprune.rules.op import Op

_FLOAT = ir.DataType.FLOAT


def _samples(op: Op) -> int | None:
    """Rows of the input; a vector is one sample."""
    dims = op.dims(op.input(0)) or (None,)
    return dims[0] if len(dims) > 1 else 1


def _like_input(op: Op) -> Sequence[Inferred]:
    return [(op.dims(op.input(0)), op.input(0).dtype)]


def _as_floats(op: Op) -> Sequence[Inferred]:
    return [(op.dims(op.input(0)), _FLOAT)]


def _joined(op: Op) -> Sequence[Inferred]:
    """FeatureVectorizer: the leading entries of every input, side by side."""
    widths = op.ints("inputdimensions")
    return [] if widths is None else [((_samples(op), sum(widths)), _FLOAT)]


def _targets(op: Op) -> Sequence[Inferred]:
    name = "targets" if op.node.op_type == "LinearRegressor" else "n_targets"
    return [((_samples(op), op.int(name, 1)), _FLOAT)]


def _one_target(op: Op) -> Sequence[Inferred]:
    return [((_samples(op), 1), _FLOAT)]


def _classes(op: Op) -> Sequence[Inferred]:
    numbers = op.ints("classlabels_int64s")
    names = op.node.attributes.get("classlabels_strings")
    count = len(numbers or ()) or (0 if names is None else len(names.as_strings()))
    dtype = ir.DataType.INT64 if numbers else ir.DataType.STRING
    return [((_samples(op),), dtype), ((_samples(op), count), _FLOAT)] if count else []


def _tokens(op: Op) -> Sequence[Inferred]:
    """As many as the longest text has."""
    dims = op.dims(op.input(0))
    return [] if dims is None else [((*dims, None), ir.DataType.STRING)]


def _normalized(op: Op) -> Sequence[Inferred]:
    """StringNormalizer drops stop words, if it has any."""
    dims = op.dims(op.input(0))
    return [] if "stopwords" in op.node.attributes else [(dims, ir.DataType.STRING)]


_CLASSICAL: Mapping[str, Callable[[Op], Sequence[Inferred]]] = {
    "Scaler": _as_floats,
    "Normalizer": _as_floats,
    "Imputer": _like_input,
    "FeatureVectorizer": _joined,
    "LinearRegressor": _targets,
    "TreeEnsembleRegressor": _targets,
    "SVMRegressor": _one_target,
    "TreeEnsembleClassifier": _classes,
}

EXTENTS: Mapping[tuple[str, str], Callable[[Op], Sequence[Inferred]]] = MappingProxyType(
    {
        **{("ai.onnx.ml", op_type): extents for op_type, extents in _CLASSICAL.items()},
        ("", "StringNormalizer"): _normalized,
        ("com.microsoft", "Tokenizer"): _tokens,
    }
)
"""Extents and element types of all outputs, by domain and operator, from those of the inputs."""
