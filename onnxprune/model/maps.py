"""Values of map types (what ZipMap makes at the end of a classifier): onnx-ir has no such type.

Nothing is pruned there, and nothing has to be known about them. Their types are put aside when a model is read,
and back when it is written.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir

from onnxprune.model.tensors import all_graphs

_MAPS = "onnxprune.maps"


def put_aside(proto: onnx.ModelProto) -> dict[str, bytes]:
    """Take the types of maps, and of sequences and optionals of maps, out of a message.

    Parameters
    ----------
    proto
        Mutated: such values have no type any more.

    Returns
    -------
    dict
        Serialised types of the main graph's values, by name.
    """
    found: dict[str, bytes] = {}
    for graph in all_graphs(proto):
        for info in (*graph.input, *graph.output, *graph.value_info):
            if _holds_map(info.type):
                if graph is proto.graph:
                    found[info.name] = info.type.SerializeToString()
                info.ClearField("type")
    return found


def note_maps(graph: ir.Graph, types: Mapping[str, bytes]) -> None:
    """Let a graph remember what was put aside; copies of it do, too."""
    if types:
        graph.meta[_MAPS] = dict(types)


def put_back(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    """Give values of a message the types that `graph` remembers."""
    types: Mapping[str, bytes] = graph.meta.get(_MAPS, {})
    for info in (*proto.input, *proto.output, *proto.value_info) if types else ():
        if info.name in types and not info.HasField("type"):
            info.type.ParseFromString(types[info.name])


def _holds_map(kind: onnx.TypeProto) -> bool:
    which = kind.WhichOneof("value")
    if which == "sequence_type":
        return _holds_map(kind.sequence_type.elem_type)
    if which == "optional_type":
        return _holds_map(kind.optional_type.elem_type)
    return bool(which == "map_type")
