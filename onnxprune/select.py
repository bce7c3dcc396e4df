"""Which groups may be cut: --ignore and --only patterns, presets, criteria without a score."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

import onnx_ir as ir

from onnxprune.errors import Reason, UsageError
from onnxprune.graph.build import AxisGraph
from onnxprune.graph.groups import Group
from onnxprune.model.quantized import stored_name

PRESETS = ("nncf",)
"""Names of presets: `nncf` leaves the first convolution and strided convolutions whole, as NNCF does."""

_CONVS = ("Conv", "ConvTranspose")


def excluded_groups(
    axis_graph: AxisGraph,
    groups: Mapping[str, Group],
    *,
    ignore: Sequence[str] = (),
    only: Sequence[str] = (),
    preset: str | None = None,
) -> dict[str, Reason]:
    """Groups that are kept whole on request, each with the reason.

    Parameters
    ----------
    ignore, only
        Globs on node or initializer names, or regular expressions after `re:`. A group matches with every
        layer that makes its channels, and with every node that passes them on.
    preset
        One of `PRESETS`.

    Raises
    ------
    UsageError
        A pattern matches no name of the model, or is no valid regular expression.
    """
    names = {group_id: _names(axis_graph, group) for group_id, group in groups.items()}
    known = _all_names(axis_graph)
    excluded: dict[str, Reason] = {}
    if preset is not None:
        excluded.update(left_by_nncf(axis_graph, groups))
    if only:
        tests = [matcher(pattern, "--only", known) for pattern in only]
        for group_id, mine in names.items():
            if not any(test(name) for test in tests for name in mine):
                excluded[group_id] = Reason.NOT_SELECTED
    for pattern in ignore:
        test = matcher(pattern, "--ignore", known)
        for group_id, mine in names.items():
            if any(test(name) for name in mine):
                excluded[group_id] = Reason.IGNORED
    return excluded


def matching_io(graph: ir.Graph, patterns: Sequence[str]) -> tuple[str, ...]:
    """Names of the graph inputs and outputs that some `--refit-io` pattern matches, in the graph's order.

    Raises
    ------
    UsageError
        A pattern matches none, or is no valid regular expression.
    """
    values = [value for value in graph.inputs if value.const_value is None] + list(graph.outputs)
    names = list(dict.fromkeys(str(value.name) for value in values))
    tests = [matcher(pattern, "--refit-io", names, "input or output") for pattern in patterns]
    return tuple(name for name in names if any(test(name) for test in tests))


def matcher(
    pattern: str, option: str, known: Iterable[str], what: str = "node or initializer"
) -> Callable[[str], bool]:
    """What tells whether a name matches a glob or `re:` and a regular expression.

    Raises
    ------
    UsageError
        None of the `known` names does, or the pattern is no regular expression; it speaks of `option` and `what`.
    """
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise UsageError(
                f"{option} {pattern!r} is no regular expression: {error}",
                "Python's syntax is used after re:.",
            ) from None
    else:
        expression = re.compile(fnmatch.translate(pattern))

    def test(name: str) -> bool:
        return (expression.search if pattern.startswith("re:") else expression.match)(name) is not None

    known = sorted(known)
    if not any(test(name) for name in known):
        near = difflib.get_close_matches(pattern.strip("*"), known, n=3, cutoff=0.3)
        raise UsageError(
            f"{option} {pattern!r} matches no {what} of the model",
            f"Nearest names: {', '.join(near)}." if near else f"It has: {_some(known)}.",
        )
    return test


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _all_names(axis_graph: AxisGraph) -> set[str]:
    graph = axis_graph.model.graph
    stored = {name for value in graph.initializers.values() if (name := stored_name(value)) is not None}
    return {node.name for node in graph if node.name} | {str(name) for name in graph.initializers} | stored


def _names(axis_graph: AxisGraph, group: Group) -> set[str]:
    """Initializers that produce the group's units, and nodes that output them."""
    found: set[str] = set()
    sinks = {use.axis for use in group.sinks}
    for use in group.axes:
        value = use.axis.value
        node = value.producer()
        if node is not None:
            found.add(node.name or "")
        elif value in axis_graph.parameters and use.axis not in sinks:
            found.add(str(value.name))
            if (stored := stored_name(value)) is not None:
                found.add(stored)
    return found


def left_by_nncf(
    axis_graph: AxisGraph, groups: Mapping[str, Group], *, first: bool = True, downsample: bool = True
) -> dict[str, Reason]:
    """Groups that NNCF leaves whole: those of the first convolutions, and those of convolutions with a stride."""
    heads = _first_convs(axis_graph.model.graph) if first else set()
    excluded: dict[str, Reason] = {}
    for group_id, group in groups.items():
        for use in group.sources:
            node = axis_graph.parameters[use.axis.value].op.node
            if node.op_type not in _CONVS:
                continue
            strides = node.attributes.get("strides")
            if node in heads:
                excluded[group_id] = Reason.FIRST_CONV
            elif downsample and strides is not None and any(s != 1 for s in strides.as_ints()):
                excluded.setdefault(group_id, Reason.DOWNSAMPLE_CONV)
    return excluded


def _first_convs(graph: ir.Graph) -> set[ir.Node]:
    """Convolutions that some graph input reaches without passing another convolution."""
    found: set[ir.Node] = set()
    seen: set[ir.Value] = {v for v in graph.inputs if v.const_value is None}
    queue = deque(seen)
    while queue:
        for node in queue.popleft().consumers():
            if node.op_type in _CONVS:
                found.add(node)
                continue
            for output in node.outputs:
                if output not in seen:
                    seen.add(output)
                    queue.append(output)
    return found
