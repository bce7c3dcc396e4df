"""What should be said of an analysis besides its figures."""

from __future__ import annotations

from onnxprune.allocate.bodies import iterations
from onnxprune.analysis import Analysis
from onnxprune.errors import Reason
from onnxprune.report.tables import some
from onnxprune.rules.op import Op
from onnxprune.rules.rule import no_macs

HELD = 0.2
"""Share of the MACs from which on it is said that inputs hold it."""


def remarks(analysis: Analysis) -> list[str]:
    """What MACs leave out, and what inputs hold, one sentence each."""
    return [*uncounted(analysis), *held_by_states(analysis)]


def uncounted(analysis: Analysis) -> list[str]:
    """What MACs leave out: loops of which nobody knows how often they run, layers of unknown size."""
    graph = analysis.axis_graph
    lines = []
    if names := [op.label for op in graph.ops if op.bodies and iterations(op) is None]:
        lines.append(f"how often {', '.join(names)} runs its body is not known: its MACs count once")
    if names := [op.label for op in graph.ops if _is_of_unknown_size(op, analysis)]:
        verb = "it does" if len(names) == 1 else "they do"
        lines.append(f"the extents of {some(names, 3)} are not known: {verb} not count among the MACs")
    return lines


def _is_of_unknown_size(op: Op, analysis: Analysis) -> bool:
    """Whether a layer whose MACs count has an extent that nobody could infer."""
    rule = analysis.axis_graph.rules.of(op.node)
    if rule is None or rule.macs is no_macs:
        return False
    sizes = [op.dims(value) for value in (*op.node.inputs, *op.outputs) if value is not None]
    return any(dims is None or None in dims for dims in sizes)


def held_by_states(analysis: Analysis) -> list[str]:
    """That layers keep their channels for states or caches that callers hand in, where that costs much."""
    held = [b for b in analysis.blocked if b.reason is Reason.GRAPH_INPUT and b.where.startswith("input ")]
    share = sum(b.macs for b in held) / max(analysis.cost.macs, 1)
    if share < HELD:
        return []
    names = some([b.where.removeprefix("input ") for b in held], 4)
    return [
        f"{share:.0%} of the MACs lie in layers that keep their channels for inputs ({names}): where these are "
        "states or caches and callers can follow, --refit-io with their names and those of the outputs that go "
        "with them lets them get smaller"
    ]
