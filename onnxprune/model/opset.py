"""A model under a newer version of the standard operators."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import version_converter

from onnxprune.errors import UnsupportedError
from onnxprune.model.serialize import tensor_proto, without_weights

_SMALL = 4096


def raise_opset(model: ir.Model, version: int) -> ir.Model:
    """The model under version `version` of the standard operators, or itself where it has a newer one.

    Parameters
    ----------
    model
        Not mutated where it has to be converted; otherwise only its opset import changes.
    version
        The least version wanted.

    Raises
    ------
    UnsupportedError
        If onnx has no conversion for one of the operators.
    """
    current = model.opset_imports.get("", 1)
    if current >= version:
        return model
    if all(_unchanged(node, current, version) for node in model.graph.all_nodes()):
        model.opset_imports[""] = version
        return model
    proto, weights = without_weights(model)
    large = {}
    for name, tensor in weights.items():
        if tensor.nbytes <= _SMALL or model.graph.initializers[name].is_graph_input():
            proto.graph.initializer.append(tensor_proto(tensor, name))
        else:  # the converter does not look at it, so it need not be copied
            large[name] = tensor
            proto.graph.input.append(
                onnx.helper.make_tensor_value_info(name, tensor.dtype.value, tensor.shape.numpy())
            )
    try:
        converted = ir.from_proto(version_converter.convert_version(proto, version))
    except (RuntimeError, ValueError) as error:
        gist = (str(error).splitlines() or [""])[0]
        raise UnsupportedError(
            f"the model cannot be converted from opset {current} to {version}: {gist}",
            f"Export it with opset {version} or newer.",
        ) from error
    _put_back(converted.graph, large)
    return converted


def _put_back(graph: ir.Graph, weights: dict[str, ir.TensorProtocol]) -> None:
    for value in [value for value in graph.inputs if value.name in weights]:
        graph.inputs.remove(value)
        value.const_value = weights[value.name or ""]
        graph.register_initializer(value)


def _unchanged(node: ir.Node, current: int, version: int) -> bool:
    """Whether both versions know the operator by the same definition."""
    if node.domain:
        return True
    try:
        old, new = (onnx.defs.get_schema(node.op_type, number, "") for number in (current, version))
    except onnx.defs.SchemaError:
        return False
    return bool(old.since_version == new.since_version)
