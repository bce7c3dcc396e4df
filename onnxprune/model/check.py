"""onnx's own checker, on a model in memory."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.model.maps import put_back
from onnxprune.model.serialize import INLINE_LIMIT, weight_bytes


def check(model: ir.Model) -> None:
    """Run `onnx.checker` with full checks: structure, attributes, and inferred against declared shapes.

    Parameters
    ----------
    model
        Not mutated; its weights have to fit into one protobuf message (2 GiB).

    Raises
    ------
    ModelError
        The checker refuses the model, or it is too large for it.
    """
    size = weight_bytes(model)
    if size > INLINE_LIMIT:
        raise ModelError(
            f"the model's weights ({size:,} bytes) do not fit into one message",
            "Save it with external data and check the file.",
        )
    proto = ir.to_proto(model)
    put_back(model.graph, proto.graph)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"onnx.checker refuses the model: {error}", "The graph is not valid ONNX: export it again."
        ) from error
