"""What must hold for a graph of one seed: it is pruned, proven, valid, runs, and comes out the same twice."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import numpy_helper

import onnxprune
from onnxprune.analysis import Analysis
from onnxprune.criteria.gather import unit_weights
from onnxprune.errors import UsageError
from onnxprune.plans import Plan
from onnxprune.rules.rule import Key, RuleTable
from onnxprune.testing import check_model
from onnxprune.testing.feeds import Array
from tests.fuzz.generate import Graph, generate
from tests.fuzz.run import difference, results_of

SLIMMED = 2
"""Every so manieth graph is slimmed as it is."""
OVERRIDABLE = 4
"""The IR version from which listed initializers are defaults of inputs."""
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
    compared
        Whether slimming the masked model had to give the cut one.
    digest
        Of the pruned file: the same on every machine with the same versions.
    failure
        (kind, message), or None.
    seconds
        Of the processor.
    """

    seed: int
    nodes: int = 0
    drawn: Counter[Key] = field(default_factory=Counter)
    redraws: tuple[str, ...] = ()
    opset: int = 0
    dtype: str = ""
    traits: tuple[str, ...] = ()
    groups: int = 0
    dropped: int = 0
    macs: float = 0.0
    params: float = 0.0
    digest: str = ""
    compared: bool = False
    failure: tuple[str, str] | None = None
    seconds: float = 0.0


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
    }


def is_scored(analysis: Analysis) -> bool:
    """Whether a criterion finds a weight in some group, or has nothing to look for."""
    groups = analysis.groups.values()
    members = [member for group in groups for member in unit_weights(analysis.axis_graph, group)]
    return not groups or any(member.kind == "weight" for member in members)


def check_seed(seed: int, conform: int = CONFORM, thorough: bool = True, after: int = 0) -> Outcome:
    """Draw a graph and check it; a failure is part of the result.

    Parameters
    ----------
    after
        As in `generate`.
    conform
        Every so manieth graph also goes through `check_model`.
    thorough
        As in `check_graph`.
    """
    drawn, start = Outcome(seed), time.process_time()
    try:
        graph = attempt("generate", generate, seed, after)
        opset = graph.model.opset_imports[""]
        drawn = Outcome(seed, graph.nodes, graph.drawn, graph.redraws, opset, graph.dtype, graph.traits)
        drawn = replace(drawn, **check_graph(graph, seed % conform == 0, thorough=thorough))
    except Failure as failure:
        drawn = replace(drawn, failure=(failure.kind, failure.message))
    return replace(drawn, seconds=time.process_time() - start)


def check_graph(
    graph: Graph, conform: bool, rules: RuleTable | None = None, *, thorough: bool = True
) -> dict[str, Any]:
    """Check everything, with the table of rules that is given or with the usual one.

    Parameters
    ----------
    conform
        Also `check_model`.
    thorough
        Also what masks and `slim` are to keep to.

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
        files = Files(Path(folder), graph, rules)
        analysis = attempt("analyze", onnxprune.analyze, files.model, bindings=graph.bindings, rules=rules)
        if not is_scored(analysis):
            check_refused(files)
            found = {"groups": len(analysis.groups)}
        else:
            pruned = check_pruned(files)
            report, digest = pruned.report, hashlib.sha256(files.cut.read_bytes()).hexdigest()
            before, after = report.before, report.after
            found = {
                "groups": len(analysis.groups),
                "dropped": report.dropped,
                "macs": 1 - after.macs / before.macs if before.macs else 0.0,
                "params": 1 - after.params / before.params,
                "digest": digest[:16],
            }
        if thorough:
            compared = found.get("dropped", 0) > 0 and is_masked_by_weights(graph, analysis, pruned.plan)
            found["compared"] = check_slim(files, found.get("dropped", 0) > 0, compared)
    if conform:
        check_conform(graph, rules)
    return found


class Files:
    """A graph as a file, and what is made of it; where each lies."""

    def __init__(self, folder: Path, graph: Graph, rules: RuleTable | None) -> None:
        self.folder, self.graph, self.rules = folder, graph, rules
        names = ("model", "cut", "again", "replayed", "masked", "slim", "slim_masked")
        self.model, self.cut, self.again, self.replayed, self.masked, self.slim, self.slim_masked = (
            folder / f"{name}.onnx" for name in names
        )
        self.plan = folder / "plan.json"
        ir.save(graph.model, self.model)
        self.feed = graph.feed()

    @property
    def how(self) -> dict[str, Any]:
        """Options of everything that opens the model."""
        return {"bindings": self.graph.bindings, "provider": "cpu", "rules": self.rules}

    @cached_property
    def expected(self) -> dict[str, Array]:
        return results_of(self.graph.model)(self.feed)

    def results(self, path: Path) -> dict[str, Array]:
        """What onnxruntime makes of a file, without any code of onnxprune but for bfloat16."""
        if self.graph.dtype == "bfloat16":
            return attempt("run", results_of(ir.load(path)), self.feed)
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        if self.graph.quantised:
            # integer kernels calculate in fewer bits than the graph says
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = attempt(
            "load", onnxruntime.InferenceSession, str(path), options, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, attempt("run", session.run, names, self.feed), strict=True))


def check_refused(files: Files) -> None:
    """A model whose groups have no weight cannot be scored, which is said."""
    try:
        onnxprune.prune(files.model, **options(files.graph.seed), **files.how)
    except UsageError:
        return
    raise Failure("unscored", "pruned, though no group has a weight")


def check_conform(graph: Graph, rules: RuleTable | None = None) -> None:
    """Every group and every alternative, unless a part is in float16, where 1e-4 is below rounding."""
    if not graph.half:
        options = {"seeds": (0,), "highs": graph.highs, "checker": graph.checker, "alive": False}
        options |= {"bindings": graph.bindings, "rules": rules}
        attempt("check_model", check_model, graph.model, **options)


def check_pruned(files: Files) -> Any:
    """Prune a file twice, replay the plan, mask by it, and compare with each other and with the file."""
    graph, how = files.graph, options(files.graph.seed) | files.how
    pruned, _ = (
        attempt("prune", onnxprune.prune, files.model, out, **how) for out in (files.cut, files.again)
    )
    soundness = pruned.report.soundness
    if not soundness.checked:
        raise Failure("unchecked", "the report says that nothing was proven")
    if soundness.rejected_groups:
        raise Failure("rejected", f"{dict(soundness.why)}")
    if files.cut.read_bytes() != files.again.read_bytes():
        raise Failure("repeat", "pruning twice gives different files")
    if graph.checker:
        attempt("checker", onnx.checker.check_model, str(files.cut), full_check=True)
    found = files.results(files.cut)
    check_interface(files.expected, found)
    attempt("plan", pruned.plan.save, files.plan)
    attempt("replay", onnxprune.apply, files.model, files.plan, files.replayed, **files.how)
    if files.cut.read_bytes() != files.replayed.read_bytes():
        raise Failure("replay", "the plan gives another file than the run that made it")
    if pruned.report.dropped:
        attempt("mask", onnxprune.apply, files.model, files.plan, files.masked, mode="mask", **files.how)
        check_same("unsound", files.results(files.masked), found, graph.half)
    return pruned


def check_interface(expected: Mapping[str, Array], found: Mapping[str, Array]) -> None:
    """Names, types and shapes of outputs stay, and what is finite stays so."""
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


def is_masked_by_weights(graph: Graph, analysis: Analysis, plan: Plan) -> bool:
    """Whether masks of a plan are zeros in weights that nobody can feed, which `slim` can find and undo."""
    fed = graph.model.ir_version >= OVERRIDABLE and "listed" in graph.traits
    if plan.slim is not None or not plan.keep or fed:
        return False
    sinks = [(sink.axis, sink.parameter) for sink in analysis.axis_graph.sinks]
    for name in plan.keep:
        axes = {use.axis for use in analysis.groups[name].axes}
        reached = [parameter for axis, parameter in sinks if axis in axes]
        if not reached or None in reached:
            return False
    return True


def check_slim(files: Files, cut: bool, compared: bool) -> bool:
    """`slim` keeps outputs; where it can undo the masks (`compared`), it gives the cut model.

    Returns
    -------
    bool
        Whether it had to.
    """
    clean = options(files.graph.seed)["scope"] != "uniform"  # else pruning slims first, and the plan says so
    if files.graph.seed % SLIMMED == 0 or (compared and not clean):
        slim = attempt("slim", onnxprune.slim, files.model, files.slim, **files.how)
        found = files.results(files.slim)
        check_interface(files.expected, found)
        check_same("slim", files.expected, found, files.graph.half)
        if files.graph.checker:
            attempt("slim checker", onnx.checker.check_model, str(files.slim), full_check=True)
        clean = not slim.report.units and not slim.report.branches
    if not cut or not compared:
        return False
    again = attempt("slim masked", onnxprune.slim, files.masked, files.slim_masked, **files.how)
    check_same("slim masked", files.results(files.masked), files.results(files.slim_masked), files.graph.half)
    if not clean or any(group.constant + group.duplicate for group in again.report.groups):
        return False
    expected, got = weights(files.cut), weights(files.slim_masked)
    if expected != got:
        odd = sorted(k for k in expected.keys() | got.keys() if expected.get(k) != got.get(k))
        raise Failure("mask and slim", f"{', '.join(odd[:4])} differ from what removal makes")
    return True


def weights(path: Path) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Shape and bytes of the initializers of a file, read by onnx alone."""
    return {
        tensor.name: (array.shape, array.tobytes())
        for tensor in onnx.load(path).graph.initializer
        if (array := numpy_helper.to_array(tensor)) is not None
    }


def check_same(kind: str, expected: Mapping[str, Array], found: Mapping[str, Array], half: bool) -> None:
    """Outputs of two models agree."""
    differs = difference(expected, found, half)
    if differs is not None:
        raise Failure(kind, differs)


def attempt(kind: str, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call; whatever is raised is a failure of this kind."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise Failure(f"{kind} {type(error).__name__}", str(error)) from error
