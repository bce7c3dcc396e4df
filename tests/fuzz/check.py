"""What must hold for a graph of one seed: it is pruned, proven, valid, runs, and comes out the same twice."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

import onnxprune
from onnxprune.analysis import Analysis
from onnxprune.criteria.gather import unit_weights
from onnxprune.errors import UsageError
from onnxprune.rules.rule import Key, RuleTable
from onnxprune.testing import check_model
from onnxprune.testing.feeds import execute
from tests.fuzz.generate import Graph, generate

CONFORM = 5
"""Every so manieth graph also goes through `check_model`, which tries every group and every alternative."""


class Failure(Exception):
    """Something does not hold; `kind` stays the same while a model is made smaller."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message = kind, message


@dataclass(frozen=True)
class Outcome:
    """What became of one graph.

    Attributes
    ----------
    dropped
        Units that went.
    macs, params
        Shares that went.
    failure
        (kind, message), or None.
    """

    seed: int
    nodes: int = 0
    drawn: Counter[Key] = field(default_factory=Counter)
    redraws: tuple[str, ...] = ()
    groups: int = 0
    dropped: int = 0
    macs: float = 0.0
    params: float = 0.0
    failure: tuple[str, str] | None = None


def options(seed: int) -> dict[str, Any]:
    """How the graph of a seed is pruned."""
    rng = np.random.default_rng([seed, 1 << 20])
    return {
        "ratio": round(float(rng.uniform(0.3, 0.7)), 2),
        "scope": str(rng.choice(["local", "global", "uniform"])),
        "round_to": int(rng.choice([1, 1, 2, 4])),
        "criterion": str(rng.choice(["l2", "l2", "l1", "random"])),
        "seed": seed,
        "best_effort": True,
        "provider": "cpu",
    }


def is_scored(analysis: Analysis) -> bool:
    """Whether a criterion finds a weight in some group, or has nothing to look for."""
    groups = analysis.groups.values()
    members = [member for group in groups for member in unit_weights(analysis.axis_graph, group)]
    return not groups or any(member.kind == "weight" for member in members)


def check_seed(seed: int) -> Outcome:
    """Draw a graph and check it; a failure is part of the result."""
    drawn = Outcome(seed)
    try:
        graph = attempt("generate", generate, seed)
        drawn = Outcome(seed, graph.model.graph.num_nodes(), graph.drawn, graph.redraws)
        return replace(drawn, **check_graph(graph, conform=seed % CONFORM == 0))
    except Failure as failure:
        return replace(drawn, failure=(failure.kind, failure.message))


def check_graph(graph: Graph, conform: bool, rules: RuleTable | None = None) -> dict[str, Any]:
    """Check everything, with the table of rules that is given or with the usual one.

    Returns
    -------
    dict
        The figures of an `Outcome`.

    Raises
    ------
    Failure
        Of the first thing that does not hold.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(graph.model, path)
        analysis = attempt("analyze", onnxprune.analyze, path, rules=rules)
        if is_scored(analysis):
            report = check_pruned(path, graph, rules).report
        else:
            check_refused(path, graph)
            report = None
    if conform:
        check_conform(graph, rules)
    if report is None:
        return {"groups": len(analysis.groups)}
    before, after = report.before, report.after
    return {
        "groups": len(analysis.groups),
        "dropped": report.dropped,
        "macs": 1 - after.macs / before.macs if before.macs else 0.0,
        "params": 1 - after.params / before.params,
    }


def check_refused(path: Path, graph: Graph) -> None:
    """A model whose groups have no weight cannot be scored, which is said."""
    try:
        onnxprune.prune(path, **options(graph.seed))
    except UsageError:
        return
    raise Failure("unscored", "pruned, though no group has a weight")


def check_conform(graph: Graph, rules: RuleTable | None = None) -> None:
    """Every group and every alternative, unless a part is in float16, where 1e-4 is below rounding."""
    if not graph.half:
        options = {"seeds": (0,), "highs": graph.highs, "checker": graph.checker, "alive": False}
        attempt("check_model", check_model, graph.model, rules=rules, **options)


def check_pruned(path: Path, graph: Graph, rules: RuleTable | None) -> Any:
    """Prune a file twice and compare the results with each other and with the file."""
    outputs = [path.with_name(name) for name in ("first.onnx", "second.onnx")]
    how = options(graph.seed)
    pruned, _ = (attempt("prune", onnxprune.prune, path, out, rules=rules, **how) for out in outputs)
    soundness = pruned.report.soundness
    if not soundness.checked:
        raise Failure("unchecked", "the report says that nothing was proven")
    if soundness.rejected_groups:
        raise Failure("rejected", f"{dict(soundness.why)}")
    if outputs[0].read_bytes() != outputs[1].read_bytes():
        raise Failure("repeat", "pruning twice gives different files")
    if graph.checker:
        attempt("checker", onnx.checker.check_model, str(outputs[0]), full_check=True)
    feed = graph.feed()
    session = attempt(
        "load", onnxruntime.InferenceSession, str(outputs[0]), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, attempt("run", session.run, names, feed), strict=True))
    expected = execute(graph.model, feed)
    if found.keys() != expected.keys():
        raise Failure("outputs", f"{sorted(found)} instead of {sorted(expected)}")
    for name, array in expected.items():
        got = found[name]
        if got.shape != array.shape or got.dtype != array.dtype:
            raise Failure(
                "outputs", f"{name} is {got.dtype}{got.shape} instead of {array.dtype}{array.shape}"
            )
        if not np.isfinite(got.astype(np.float64)).all():
            raise Failure("finite", f"{name} is not finite")
    return pruned


def attempt(kind: str, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call; whatever is raised is a failure of this kind."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise Failure(f"{kind} {type(error).__name__}", str(error)) from error
