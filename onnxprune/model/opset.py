"""A model under another version of the standard operators, and versions that nothing here can run."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import version_converter

from onnxprune.errors import UnsupportedError
from onnxprune.model.maps import note_maps, put_aside
from onnxprune.model.serialize import tensor_proto, without_weights

_SMALL = 4096

_UNLISTED = 4
"""IR version from which on initializers need not be graph inputs, which the converter wants them to be before."""

OLDEST = 7
"""The first version of the standard operators that onnxruntime runs."""


def check_version(model: ir.Model) -> None:
    """Raise UnsupportedError where the model is older than what onnxruntime runs.

    Up to opset 6 operands of different shapes are aligned by the attributes `axis` and `broadcast`. What is
    pruned has to be run, to be proven.
    """
    version = model.opset_imports.get("", model.opset_imports.get("ai.onnx", OLDEST))
    if version < OLDEST:
        raise UnsupportedError(
            f"the model uses opset {version}, and onnxruntime runs {OLDEST} and newer, so nothing could be proven",
            "Convert it first: onnx.version_converter.convert_version(onnx.shape_inference.infer_shapes(model), "
            f"{OLDEST}), or export it again.",
        )


def lowered(model: ir.Model, version: int, ir_version: int) -> ir.Model:
    """The model under the numbers that a runtime knows, where it uses nothing that these do not have.

    Parameters
    ----------
    model
        Not mutated.
    version
        The newest version of the standard operators that is known.
    ir_version
        The newest IR version that is known.

    Returns
    -------
    ir.Model
        A copy; or the model itself where its numbers are known, or where an operator of its version differs.
    """
    current = model.opset_imports.get("", 1)
    same = current <= version or all(_alike(node, version, current) for node in model.graph.all_nodes())
    if (current <= version and model.ir_version <= ir_version) or not same:
        return model
    copy = model.clone()
    copy.ir_version = min(copy.ir_version, ir_version)
    if current > version:
        copy.opset_imports[""] = version
    return copy


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
    for (
        node
    ) in model.graph.all_nodes():  # the type of a mask that nobody reads is another one from opset 10 on
        if node.op_type == "Dropout" and len(node.outputs) > 1 and not node.outputs[1].uses():
            node.resize_outputs(1)
    proto, weights = without_weights(model)
    proto.ir_version = max(proto.ir_version, _UNLISTED)
    maps = put_aside(proto)
    large = {}
    for name, tensor in weights.items():
        if tensor.nbytes <= _SMALL or model.graph.initializers[name].is_graph_input():
            proto.graph.initializer.append(tensor_proto(tensor, name))
        else:  # the converter does not look at it, so it need not be copied
            large[name] = tensor
            proto.graph.input.append(
                onnx.helper.make_tensor_value_info(name, tensor.dtype.value, tensor.shape.numpy())
            )
    try:  # its adapters want shapes
        proto = onnx.shape_inference.infer_shapes(proto)
        converted = ir.from_proto(version_converter.convert_version(proto, version))
    except (RuntimeError, ValueError, version_converter.ConvertError) as error:
        gist = (str(error).splitlines() or [""])[0]
        raise UnsupportedError(
            f"the model cannot be converted from opset {current} to {version}: {gist}",
            f"Export it with opset {version} or newer.",
        ) from error
    note_maps(converted.graph, maps)
    _put_back(converted.graph, large)
    _rename_back(model.graph, converted.graph)
    return converted


def _put_back(graph: ir.Graph, weights: dict[str, ir.TensorProtocol]) -> None:
    for value in [value for value in graph.inputs if value.name in weights]:
        graph.inputs.remove(value)
        value.const_value = weights[value.name or ""]
        graph.register_initializer(value)


def _rename_back(before: ir.Graph, after: ir.Graph) -> None:
    """Give values their old names where the converter put another node in (Resize for Upsample)."""
    made = {out.name for node in after for out in node.outputs}
    users = {node.name: node for node in after if node.name}
    for value in (out for node in before for out in node.outputs if out.name not in made):
        for use in value.uses():
            user = users.get(use.node.name or "")
            renamed = None if user is None or use.idx >= len(user.inputs) else user.inputs[use.idx]
            if renamed is not None and renamed.producer() is not None:
                renamed.name = value.name
                break


def _unchanged(node: ir.Node, current: int, version: int) -> bool:
    """Whether both versions know the operator by the same definition."""
    if node.domain:
        return True
    old, new = (_schema(node, number) for number in (current, version))
    return old is not None and new is not None and old.since_version == new.since_version


def _alike(node: ir.Node, current: int, version: int) -> bool:
    """Whether both versions give the operator the same attributes, defaults, inputs and outputs.

    Newer definitions that only allow more element types are alike.
    """
    if node.domain:
        return True
    old, new = (_schema(node, number) for number in (current, version))
    return old is not None and new is not None and _form(old) == _form(new)


def _form(schema: onnx.defs.OpSchema) -> object:
    attributes = {
        name: (attribute.type, attribute.default_value.SerializeToString(), attribute.required)
        for name, attribute in schema.attributes.items()
    }
    values = [[(value.name, value.option) for value in part] for part in (schema.inputs, schema.outputs)]
    return attributes, values


def _schema(node: ir.Node, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        return None
