"""What is known about every operator, from the schemas of onnx and onnxruntime, the rules and their tests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import networkx as nx
import numpy as np
import onnx
import onnx_ir as ir
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from benchmarks.gradients_operators import CONSTANT, CONVERTED, NO_FLOATS, RECURRENCES
from onnxprune.graph.axes import Axis
from onnxprune.graph.relations import Relations
from onnxprune.model.shapes import infer_shapes
from onnxprune.rules import builtin_rules
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key, Rule, no_macs, nothing_to_refit
from onnxprune.testing import Activation, Feed, ModelBuilder, Weight
from tests.fuzz.templates import every_case

MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Known:
    """An operator as some schema has it.

    Attributes
    ----------
    versions
        Those in which its definition changed.
    deprecated
        The one from which on it is not to be used; 0 where there is none.
    inputs, outputs
        Names of its formal parameters.
    """

    versions: tuple[int, ...]
    deprecated: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@cache
def known() -> Mapping[Key, Known]:
    """Every operator of the installed onnx, and of onnxruntime's own domains."""
    found: defaultdict[Key, list[Any]] = defaultdict(list)
    for schema in (*onnx.defs.get_all_schemas_with_history(), *_own()):
        found[schema.domain, schema.name].append(schema)
    return {key: _known(schemas) for key, schemas in sorted(found.items())}


def _own() -> Iterable[Any]:
    """What onnxruntime adds."""
    standard = {schema.domain for schema in onnx.defs.get_all_schemas_with_history()}
    return (schema for schema in runtime.get_all_operator_schema() if schema.domain not in standard)


def _known(schemas: list[Any]) -> Known:
    schemas = sorted(schemas, key=lambda schema: schema.since_version)
    gone = [schema.since_version for schema in schemas if schema.deprecated]
    newest = [schema for schema in schemas if not schema.deprecated][-1]
    inputs, outputs = (tuple(p.name for p in part) for part in (newest.inputs, newest.outputs))
    return Known(tuple(schema.since_version for schema in schemas), gone[0] if gone else 0, inputs, outputs)


# --- what a rule states ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stated:
    """What the rule of an operator says about one use of it.

    Attributes
    ----------
    ties
        Axes whose positions live and die together; a star behind one: as index arrays say.
    sums
        Axes that the operator sums over.
    whole
        Axes that keep all positions, by reason.
    """

    ties: tuple[str, ...] = ()
    sums: tuple[str, ...] = ()
    whole: Mapping[str, tuple[str, ...]] | None = None


def stated(key: Key) -> Stated | None:
    """What a rule states on the line of its tables of tests from which most can go; None where it has none."""
    cases = [case for case in every_case() if (case.domain, case.op_type) == key]
    if not cases:
        return None
    case = max(cases, key=lambda case: (len(case.expect), case.opset))
    op = _node(case)
    relations = Relations()
    relations.enter(op)
    builtin_rules()[key].relate(op, relations)
    relations.leave()
    relations.finish()
    return _read(relations, _names(op, key))


def _node(case: Any) -> Op:
    """The operator of a line, on inputs of the line's shapes."""
    builder = ModelBuilder(case.opset, {case.domain: 1} if case.domain else None)
    inputs = [_value(builder, slot, entry) for slot, entry in enumerate(case.inputs)]
    outputs = case.outputs
    names = [f"y{n}" for n in range(outputs)] if isinstance(outputs, int) else list(outputs)
    made = builder.ops(
        case.op_type, *inputs, outputs=names, name="operator", domain=case.domain, **case.attributes
    )
    model = builder.model(*(value for value in made if value.name))
    shapes = infer_shapes(model, None, builtin_rules().infer)
    return Op(made[0].producer(), shapes, 1 if case.domain else case.opset)  # type: ignore[arg-type]


def _value(builder: ModelBuilder, slot: int, entry: Any) -> ir.Value | None:
    if entry is None:
        return None
    if isinstance(entry, Weight):
        return builder.weight(entry.shape, f"x{slot}")
    if isinstance(entry, tuple):
        entry = Activation(entry)
    if isinstance(entry, Activation | Feed):
        return builder.input(f"x{slot}", entry.shape, ir.DataType.from_numpy(np.dtype(entry.dtype)))
    return builder.constant(entry, f"x{slot}")


def _names(op: Op, key: Key) -> dict[ir.Value, str]:
    """What the schema calls the node's values."""
    schema = known().get(key)
    inputs, outputs = (schema.inputs, schema.outputs) if schema else ((), ())
    found: dict[ir.Value, str] = {}
    for values, names, letter in ((op.node.inputs, inputs, "x"), (op.node.outputs, outputs, "y")):
        for slot, value in enumerate(values):
            if value is not None:
                found.setdefault(value, names[slot] if slot < len(names) else f"{letter}{slot}")
    return found


def _read(relations: Relations, names: Mapping[ir.Value, str]) -> Stated:
    graph: nx.Graph[Any] = nx.Graph()
    blocked: defaultdict[str, list[Axis]] = defaultdict(list)
    starred: set[Axis] = set()
    for a, b, data in relations.graph.edges(data=True):
        edge = data.get("edge")
        if edge is None:
            axis, barrier = (a, b) if isinstance(a, Axis) else (b, a)
            blocked[barrier.reason.name].append(axis)
            continue
        if edge.kind != "contract":
            graph.add_edge(a, b)
        if edge.a_index is not None:
            starred |= {a, b}
    order = {axis: number for number, axis in enumerate(relations.graph)}
    held = {axis for axes in blocked.values() for axis in axes}
    ties = []
    for part in sorted(nx.connected_components(graph), key=lambda part: min(order[a] for a in part)):
        if not part & held:
            axes = sorted(part, key=order.__getitem__)
            ties.append(" ".join(_say(axis, names) + "*" * (axis in starred) for axis in axes))
    pairs = {frozenset((e.a, e.b)): e for e in _edges(relations) if e.kind == "contract"}
    sums = [f"{_say(e.a, names)} {_say(e.b, names)}" for e in pairs.values()]
    alone = [s.axis for s in relations.sinks if not any(s.axis in pair for pair in pairs)]
    sums += [_say(axis, names) for axis in dict.fromkeys(alone) if axis not in held]
    whole = {
        reason: tuple(_say(axis, names) for axis in dict.fromkeys(axes))
        for reason, axes in sorted(blocked.items())
    }
    return Stated(tuple(ties), tuple(sums), whole)


def _edges(relations: Relations) -> Iterable[Any]:
    return (data["edge"] for _, _, data in relations.graph.edges(data=True) if "edge" in data)


def _say(axis: Axis, names: Mapping[ir.Value, str]) -> str:
    return f"{names.get(axis.value, axis.value.name)}[{axis.dim}]"


# --- what else a rule has ----------------------------------------------------------------------------------


def gradient(key: Key, rule: Rule) -> str:
    """How gradients pass an operator."""
    if rule.vjp is not None:
        return "VJP"
    if rule.lower is not None:
        return "lowered"
    if key in RECURRENCES:
        return "none yet"
    if key[1] in CONVERTED:
        return "of its successor"
    if key[1] in NO_FLOATS:
        return "none: no floats"
    return "zero" if key[1] in CONSTANT else "none"


def place(rule: Rule) -> str:
    """The file of a rule."""
    return f"{rule.relate.__module__.removeprefix('onnxprune.').replace('.', '/')}.py"


def refits(rule: Rule) -> bool:
    """Whether attributes or constants carry an extent."""
    return rule.refit is not nothing_to_refit


def counts(rule: Rule) -> bool:
    """Whether it multiplies and adds."""
    return rule.macs is not no_macs
