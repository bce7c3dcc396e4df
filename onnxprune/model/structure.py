"""What can be wrong with a model before any tensor is looked at: opsets, names, functions, attributes.

These checks look at the protobuf itself, because onnx-ir repairs or drops silently what they complain about.
Messages do not name the file; `io.load` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import onnx

from onnxprune.errors import ModelError

_INVALID = "The graph is not valid ONNX: export it again."
_DEFAULT = ("", "ai.onnx")
_Attribute = onnx.AttributeProto


def check_structure(proto: onnx.ModelProto) -> None:
    """Raise ModelError where `proto` is no model that can be evaluated.

    Parameters
    ----------
    proto
        Any message that could be parsed as a ModelProto, for instance a tensor.
    """
    if not proto.ir_version or not proto.HasField("graph") or not proto.graph.output:
        raise ModelError(
            "this is valid protobuf but no ONNX model (no IR version, graph or graph outputs)",
            "Give the exported model itself, not a tensor, a checkpoint or a graph without outputs.",
        )
    if not 1 <= proto.ir_version <= onnx.IR_VERSION:
        raise ModelError(
            f"the model's IR version is {proto.ir_version}, which the installed onnx {onnx.__version__} "
            f"does not know (newest: {onnx.IR_VERSION})",
            "Upgrade onnx, or save the model with an older IR version.",
        )
    _check_opsets(proto)
    _check_functions(proto)
    _check_graph(proto.graph, [])


def nodes_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """All nodes, those of subgraphs included."""
    for node in nodes:
        yield node
        for graph in subgraphs_of(node):
            yield from nodes_of(graph.node)


def subgraphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Graphs among the node's attributes."""
    for attribute in node.attribute:
        if attribute.type == _Attribute.GRAPH:
            yield attribute.g
        elif attribute.type == _Attribute.GRAPHS:
            yield from attribute.graphs


def _label(node: onnx.NodeProto) -> str:
    return f"node {node.name!r} ({node.op_type})" if node.name else f"a node ({node.op_type})"


def _check_opsets(proto: onnx.ModelProto) -> None:
    if not proto.opset_import:
        raise ModelError("the model imports no operator set", "Export the model again.")
    versions: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = "" if entry.domain in _DEFAULT else entry.domain
        if versions.setdefault(domain, entry.version) != entry.version:
            raise ModelError(
                f"the model imports two versions of the operator set {entry.domain or 'ai.onnx'!r}: "
                f"{versions[domain]} and {entry.version}",
                _INVALID,
            )
    newest = onnx.defs.onnx_opset_version()
    default = versions.get("")
    if default is None:
        for node in nodes_of(proto.graph.node):
            if node.domain in _DEFAULT:
                raise ModelError(
                    f"{_label(node)} belongs to ONNX's own operator set, which the model does not import",
                    _INVALID,
                )
    elif not 1 <= default <= newest:
        raise ModelError(
            f"the model uses opset {default}, which the installed onnx {onnx.__version__} does not know "
            f"(newest: {newest})",
            "Upgrade onnx, or convert the model with onnx.version_converter.",
        )


def _check_functions(proto: onnx.ModelProto) -> None:
    calls: dict[tuple[str, str, str], set[tuple[str, str, str]]] = {}
    for function in proto.functions:
        key = (function.domain, function.name, function.overload)
        if key in calls:
            raise ModelError(f"the function {function.name!r} is defined twice", _INVALID)
        calls[key] = {(node.domain, node.op_type, node.overload) for node in nodes_of(function.node)}
        where = f"function {function.name!r}: "
        _check_unique(function.input, f"{where}input")
        names = set(function.input)
        _check_nodes(function.node, [names], where)
        for name in function.output:
            if name not in names:
                raise ModelError(f"{where}the output {name!r} is produced by no node", _INVALID)
    done: set[tuple[str, str, str]] = set()
    for key in calls:
        _check_recursion(key, calls, done)


def _check_recursion(
    start: tuple[str, str, str],
    calls: dict[tuple[str, str, str], set[tuple[str, str, str]]],
    done: set[tuple[str, str, str]],
) -> None:
    """Depth first without recursion: a function that calls itself, even indirectly, cannot be evaluated."""
    open_ = {start: iter(calls[start])}
    while open_:
        key, rest = next(reversed(open_.items()))
        called = next((c for c in rest if c in calls and c not in done), None)
        if called is None:
            done.add(key)
            del open_[key]
        elif called in open_:
            raise ModelError(f"the function {called[1]!r} calls itself", _INVALID)
        else:
            open_[called] = iter(calls[called])


def _check_unique(names: Iterable[str], what: str) -> None:
    for name, count in Counter(names).items():
        if not name:
            raise ModelError(f"{what} without a name", _INVALID)
        if count > 1:
            raise ModelError(f"{what} {name!r} is there {count} times", _INVALID)


def _check_graph(graph: onnx.GraphProto, scopes: Sequence[set[str]]) -> None:
    """Every name that is used must be defined somewhere, once; `scopes` are names of the graphs around."""
    initializers = [t.name for t in graph.initializer] + [t.values.name for t in graph.sparse_initializer]
    _check_unique((value.name for value in graph.input), "graph input")
    _check_unique(initializers, "initializer")
    names = {value.name for value in graph.input} | set(initializers)
    _check_nodes(graph.node, [*scopes, names], "")
    for value in graph.output:
        if value.name in names:
            continue
        if any(value.name in scope for scope in scopes):
            raise ModelError(
                f"the subgraph {graph.name!r} returns {value.name!r}, which belongs to the graph around it",
                "Put an Identity between the two.",
            )
        raise ModelError(f"the graph output {value.name!r} is produced by no node", _INVALID)


def _check_nodes(nodes: Sequence[onnx.NodeProto], scopes: Sequence[set[str]], where: str) -> None:
    """Add what the nodes produce to the innermost scope, then look for inputs that no scope defines."""
    names = scopes[-1]
    given = frozenset(names)
    for node in nodes:
        if not node.op_type:
            raise ModelError(f"{where}node {node.name!r} has no operator type", _INVALID)
        for name in node.output:
            if name and name in names:
                by = "a graph input or initializer" if name in given else "another node"
                raise ModelError(
                    f"{where}value {name!r} is produced by {_label(node)}, but also by {by}", _INVALID
                )
            names.add(name)
    names.discard("")
    for node in nodes:
        for name in node.input:
            if name and not any(name in scope for scope in scopes):
                raise ModelError(f"{where}{_label(node)} uses {name!r}, which nothing defines", _INVALID)
        for attribute in node.attribute:
            if attribute.type == _Attribute.UNDEFINED and not attribute.ref_attr_name:
                raise ModelError(
                    f"{where}attribute {attribute.name!r} of {_label(node)} has no type", _INVALID
                )
        for subgraph in subgraphs_of(node):
            _check_graph(subgraph, scopes)


_NO_NAMES = frozenset({"?", "-1", "None"})
"""What converters write as the name of an extent that they do not know; each stands for another one."""


def open_unknown_dims(graphs: Iterable[onnx.GraphProto]) -> None:
    """Let declared extents by which converters mean "any" be unknown: below zero, or named "?".

    Parameters
    ----------
    graphs
        Mutated: their inputs, outputs and declared intermediate values.
    """
    for graph in graphs:
        for info in (*graph.input, *graph.output, *graph.value_info):
            for dim in info.type.tensor_type.shape.dim:
                if (dim.HasField("dim_value") and dim.dim_value < 0) or dim.dim_param in _NO_NAMES:
                    dim.ClearField(dim.WhichOneof("value") or "dim_value")
