"""What happened to a model, as values: everything a reporter prints, nothing that it computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxprune.errors import BY_REQUEST
from onnxprune.evaluate.fidelity import Fidelity
from onnxprune.evaluate.score import Score
from onnxprune.evaluate.soundness import Soundness
from onnxprune.repair.sequence import LayerRepair
from onnxprune.report.quantised import QuantisedResult

SCHEMA = "onnxprune-report/1"

_BY_REQUEST = {reason.name for reason in BY_REQUEST}


@dataclass(frozen=True)
class Size:
    """Size of a model.

    Attributes
    ----------
    params
        Elements of float initializers.
    macs
        Multiply-adds per sample, with symbolic dims bound as `Report.bindings` says.
    bytes
        Of the file, external data included.
    nodes
        Of the main graph.
    """

    params: int
    macs: int
    bytes: int
    nodes: int


@dataclass(frozen=True)
class TargetResult:
    """What was asked for and what came out; `kind` as in `onnxprune.allocate.Target`."""

    kind: str
    requested: float
    achieved: float
    met: bool


@dataclass(frozen=True)
class LatencyResult:
    """What was requested of the run time, what was predicted and what was measured, as shares of the original's.

    Attributes
    ----------
    predicted
        Before the result was measured for the first time.
    measured, noise
        Of the finished model beside the original; half of the 95 % interval.
    met
        Whether the measured share is at most the requested one, up to the noise.
    before_ms, after_ms
        Milliseconds per run.
    fixed
        The predicted share that lies in nodes that never get smaller.
    conditions
        Provider and threads.
    inputs
        Shapes of the inputs that were run.
    trials
        Predicted and measured share of everything that was solved on the way.
    """

    requested: float
    predicted: float
    measured: float
    noise: float
    met: bool
    before_ms: float
    after_ms: float
    fixed: float
    conditions: str
    inputs: Mapping[str, tuple[int, ...]]
    trials: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class GroupResult:
    """A group of units and how many stay.

    Attributes
    ----------
    axes
        Every `tensor[axis]` that the group touches.
    sources, sinks
        Those of them that are weights, and produce or consume the units.
    reason
        Why it was left whole on request or by rule; empty where it was free to be cut.
    inexact
        A norm that averages over the units, which only `--allow-inexact` cuts; empty otherwise.
    """

    id: str
    name: str
    units: int
    kept: int
    axes: tuple[str, ...]
    sources: tuple[str, ...]
    sinks: tuple[str, ...]
    blocks: int
    reason: str = ""
    explanation: str = ""
    inexact: str = ""


@dataclass(frozen=True)
class RefittedIO:
    """A graph input or output that `--refit-io` allowed to get smaller, and its shape before and after.

    Attributes
    ----------
    kind
        "input" or "output".
    before, after
        One entry per axis: an extent, the name of a symbolic dim or "?". Equal where nothing was cut.
    """

    name: str
    kind: str
    before: tuple[int | str, ...]
    after: tuple[int | str, ...]

    def __str__(self) -> str:
        before, after = (f"({', '.join(map(str, shape))})" for shape in (self.before, self.after))
        return f"{self.kind} {self.name}: {before} -> {after}"


@dataclass(frozen=True)
class BarrierResult:
    """Layers whose output channels all stay. Reason, place and the cost of those layers."""

    reason: str
    explanation: str
    where: str
    layers: tuple[str, ...]
    params: int
    macs: int


@dataclass(frozen=True)
class Measured:
    """A metric of the original and of the result, on the same samples."""

    before: Score
    after: Score


@dataclass(frozen=True)
class SlimFirst:
    """What contributed nothing and went before anything was chosen (see `onnxprune.slim`).

    Attributes
    ----------
    zero, constant, duplicate
        Units that were multiplied by zero, held the same number for every input, or were multiples of others.
    branches
        Sums with zero that went.
    macs, params
        Of the model without all that.
    notes
        What has to be said about it.
    """

    zero: int
    constant: int
    duplicate: int
    branches: tuple[str, ...]
    macs: int
    params: int
    notes: tuple[str, ...] = ()

    @property
    def units(self) -> int:
        """Units that went."""
        return self.zero + self.constant + self.duplicate


@dataclass(frozen=True)
class Report:
    """Everything that `prune` did to one model.

    Attributes
    ----------
    round_to
        Channels that stay are a multiple of this; None: of 8, of 4 in narrow groups.
    refitted
        Inputs and outputs that `--refit-io` allowed to get smaller.
    repairs
        One entry per layer that was to be repaired.
    seconds
        Wall time per stage.
    slim
        What contributed nothing and went first; None where there was nothing, or it was not looked for. `groups`
        and `dropped` do not count it.
    latency
        Run times, where they were the target.
    quantised
        How the model is quantised; None where it is not.
    """

    path: str
    sha256: str
    output: str
    mode: str
    target: TargetResult
    criterion: str
    scope: str
    round_to: int | None
    seed: int
    before: Size
    after: Size
    groups: tuple[GroupResult, ...]
    barriers: tuple[BarrierResult, ...]
    coverage: Mapping[str, float]
    soundness: Soundness
    calibration: Mapping[str, Any]
    bindings: Mapping[str, int]
    metric: Measured | None
    fidelity: Fidelity | None
    warnings: tuple[str, ...]
    refitted: tuple[RefittedIO, ...] = ()
    repairs: tuple[LayerRepair, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    slim: SlimFirst | None = None
    latency: LatencyResult | None = None
    quantised: QuantisedResult | None = None

    @property
    def dropped(self) -> int:
        """Units that went."""
        return sum(group.units - group.kept for group in self.groups)

    @property
    def units(self) -> int:
        """Units of all groups that were not excluded by request: what a ratio is a share of."""
        return sum(group.units for group in self.groups if group.reason not in _BY_REQUEST)

    def __repr__(self) -> str:
        return (
            f"Report({self.path!r}: {self.before.macs:,} -> {self.after.macs:,} MACs, "
            f"{self.before.params:,} -> {self.after.params:,} params, "
            f"{self.target.kind} {self.target.requested:g} requested, {self.target.achieved:.4g} achieved)"
        )
