"""What `sparsify` did to a model, as values, as text and as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from onnxprune.evaluate.fidelity import Fidelity
from onnxprune.report.json import finite
from onnxprune.report.report import Measured
from onnxprune.report.tables import columns, number, plural, share, some, wrap

SCHEMA = "onnxprune-sparsity/1"


@dataclass(frozen=True)
class LayerResult:
    """One layer that was handled.

    Attributes
    ----------
    name
        Of the layer.
    weight
        Name of its initializer.
    shape
        Of it.
    zeros_before, zeros
        Weights that are zero.
    kind
        "weights" where the solver gave others, "bias" where only a bias makes up for the zeros, "mask" for
        zeros alone.
    before, after
        Error of the layer's output on held-out samples as a share of its variance: with zeros alone, and as
        it is; NaN without a solver.
    bytes
        What the initializer takes in the file.
    note
        Whether kernels can use the pattern here, or why the layer could not be solved.
    """

    name: str
    weight: str
    shape: tuple[int, ...]
    zeros_before: int
    zeros: int
    size: int
    kind: str
    before: float
    after: float
    bytes: int
    note: str = ""

    @property
    def level(self) -> float:
        """Share of its weights that is zero."""
        return self.zeros / self.size if self.size else 0.0


@dataclass(frozen=True)
class SparsityReport:
    """Everything that `sparsify` did to one model.

    Attributes
    ----------
    requested
        Share of the weights of all handled layers; NaN where a threshold was.
    params
        Elements of all float initializers of the model.
    left
        By the name of a layer, why it stays dense.
    buys
        What the pattern does at run time.
    learned
        What a criterion that learns found, by NNCF's names where it has some: `mean_sparse_prob` and
        `inference_level` (what its own masks would make zero) of rb, `importance_threshold` and
        `importance_regularization_factor` of movement.
    heads
        By the name of an attention, the heads that are zero.
    """

    path: str
    sha256: str
    output: str
    pattern: str
    criterion: str
    scope: str
    solver: str
    storage: str
    requested: float
    rounds: tuple[float, ...]
    seed: int
    params: int
    bytes_before: int
    bytes_after: int
    layers: tuple[LayerResult, ...]
    left: Mapping[str, str]
    buys: str
    calibration: Mapping[str, Any]
    bindings: Mapping[str, int]
    metric: Measured | None
    fidelity: Fidelity | None
    warnings: tuple[str, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)
    learned: Mapping[str, float] = field(default_factory=dict)
    heads: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Weights of all handled layers."""
        return sum(layer.size for layer in self.layers)

    @property
    def zeros(self) -> int:
        """Of these, zeros."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def achieved(self) -> float:
        """Share of the weights of the handled layers that is zero."""
        return self.zeros / self.size if self.size else 0.0

    @property
    def achieved_of_model(self) -> float:
        """The same zeros as a share of all parameters."""
        return self.zeros / self.params if self.params else 0.0

    def __repr__(self) -> str:
        return (
            f"SparsityReport({self.path!r}: {self.pattern}, {self.requested:g} requested, {self.achieved:.4g} of "
            f"{self.size:,} weights achieved)"
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain values, in the layout of schema `onnxprune-sparsity/1`."""
        body = asdict(self)
        body["layers"] = [{**asdict(layer), "level": layer.level} for layer in self.layers]
        head = {
            "schema": SCHEMA,
            "achieved": self.achieved,
            "achieved_of_model": self.achieved_of_model,
        }
        found: dict[str, Any] = finite({**head, **body})
        return found


def render_json(report: SparsityReport) -> str:
    """The report as JSON text."""
    return json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def target_line(report: SparsityReport) -> str:
    """What was asked for and what came out, each with its denominator."""
    layers = plural(len(report.layers), "layer")
    asked = f"{report.requested:.1%} zeros"
    if report.requested != report.requested:
        asked = f"importance above {report.learned['importance_threshold']:.4g}, else zeros"
    return (
        f"requested {asked} of the {number(report.size)} weights of {layers}, achieved "
        f"{report.achieved:.1%} ({number(report.zeros)}); {report.achieved_of_model:.1%} of all "
        f"{number(report.params)} parameters"
    )


def solved_line(report: SparsityReport) -> str:
    """How many layers were solved, and what that did to their errors; empty without a solver."""
    if report.solver == "mask":
        return ""
    done = [layer for layer in report.layers if layer.kind != "mask"]
    text = f"{report.solver}: other weights in {len(done)} of {plural(len(report.layers), 'layer')}"
    if done:
        before, after = (
            sorted(getattr(layer, key) for layer in done)[len(done) // 2] for key in ("before", "after")
        )
        text += f", median error of their outputs {before:.1%} -> {after:.1%} of the variance, held out"
    return text


def render(report: SparsityReport, *, verbose: bool = False, width: int | None = None) -> str:
    """A page that a person can read."""
    rows = [
        ["", "before", "after", "share"],
        ["zeros", *_counts(sum(each.zeros_before for each in report.layers), report.zeros, report.size)],
        [
            "bytes",
            number(report.bytes_before),
            number(report.bytes_after),
            share(report.bytes_after, report.bytes_before),
        ],
    ]
    lines = columns(rows, right=(1, 2, 3))
    lines += ["", *wrap(target_line(report), width)]
    how = f"pattern {report.pattern}, criterion {report.criterion}, scope {report.scope}, solver {report.solver}"
    lines += wrap(how + (f", {len(report.rounds)} rounds" if len(report.rounds) > 1 else ""), width)
    if solved := solved_line(report):
        lines += wrap(solved, width)
    if report.metric is not None:
        lines += [f"before: {report.metric.before}", f"after:  {report.metric.after}"]
    if report.fidelity is not None:
        for output in report.fidelity.outputs[: None if verbose else 2]:
            lines += wrap(f"fidelity of {output}", width)
    lines += ["", *wrap(report.buys, width)]
    if verbose:
        head = ["layer", "shape", "level", "error alone", "error", "weights"]
        table = [
            [
                each.name,
                "x".join(map(str, each.shape)),
                f"{each.level:.1%}",
                _error(each.before),
                _error(each.after),
                f"{each.kind}{', ' if each.note else ''}{each.note}",
            ]
            for each in report.layers
        ]
        lines += ["", *columns([head, *table], right=(2, 3, 4))]
    lines += _left(report, verbose, width)
    if report.warnings:
        lines.append("")
        for warning in report.warnings:
            lines += wrap(f"note: {warning}", width, indent=6)
    return "\n".join(lines)


def render_markdown(report: SparsityReport) -> str:
    """The whole report as one Markdown page."""
    parts = [
        f"# onnxprune sparsify: `{report.path}`",
        f"{target_line(report).capitalize()}. Pattern `{report.pattern}`, criterion `{report.criterion}`, scope "
        f"`{report.scope}`, solver `{report.solver}`, storage `{report.storage}`, seed {report.seed}; bytes "
        f"{number(report.bytes_before)} -> {number(report.bytes_after)}.",
        report.buys[0].upper() + report.buys[1:] + ".",
    ]
    if solved := solved_line(report):
        parts.append(f"**Solver.** {solved}.")
    if report.metric is not None:
        parts.append(f"**Metric.** Before: {report.metric.before}. After: {report.metric.after}.")
    if report.fidelity is not None:
        parts.append("**Fidelity.** " + "; ".join(str(o) for o in report.fidelity.outputs) + ".")
    rows = [
        f"| `{each.name}` | {'x'.join(map(str, each.shape))} | {each.level:.1%} | {_error(each.before)} | "
        f"{_error(each.after)} | {each.kind} | {each.note} |"
        for each in report.layers
    ]
    head = [
        "| layer | shape | zeros | error with zeros alone | error | weights | note |",
        "|---|---|--:|--:|--:|---|---|",
    ]
    parts += ["## Layers", "\n".join([*head, *rows])]
    if report.left:
        parts += ["## Left dense", "\n".join(f"- `{name}`: {why}" for name, why in report.left.items())]
    if report.warnings:
        parts += ["## Notes", "\n".join(f"- {warning}" for warning in report.warnings)]
    return "\n\n".join(parts) + "\n"


def _counts(before: int, after: int, size: int) -> list[str]:
    return [number(before), number(after), share(after, size)]


def _error(value: float) -> str:
    return "-" if value != value else f"{value:.2%}"


def _left(report: SparsityReport, verbose: bool, width: int | None) -> list[str]:
    why: dict[str, list[str]] = {}
    for name, reason in report.left.items():
        why.setdefault(reason, []).append(name)
    if not why:
        return []
    lines = ["", "layers left dense:"]
    for reason, names in why.items():
        lines += wrap(f"  {some(names, 10**6 if verbose else 4)}: {reason}", width, indent=4)
    return lines
