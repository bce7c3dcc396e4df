"""What the quality benchmark measures: models, targets, and every single run as a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

GRID = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Shares of the MACs to keep."""
SIZES = (16, 64, 256, 1024, 2048)
"""Calibration samples in the second experiment."""
ABOUT_SIZE = ("cifar10_resnet20", 0.5)
ABOUT_TIERS = ("cifar10_resnet20", 0.7)

OURS, DEFAULT, L1 = "onnxprune", "onnxprune-default", "l1"
ONNXSIM, TORCH_PRUNING = "onnxsim", "torch_pruning"
OPTIONS: dict[str, dict[str, Any]] = {
    OURS: {"round_to": 1},
    DEFAULT: {},
    L1: {"criterion": "l1", "compensate": "none", "round_to": 1},
}
"""Options of `onnxprune.prune`; everything else as it is by default."""
SWEEPS = {
    ONNXSIM: ("quality_peers:onnxsim", "sparsity"),
    TORCH_PRUNING: ("quality_peers:torch_pruning", "ratio"),
}
"""Tools that take no share of MACs, and what they take."""
TIERS: dict[str, dict[str, Any]] = {
    "real": {"round_to": 1},
    "synthetic": {"round_to": 1, "data": "synthetic"},
    "none": {"round_to": 1},
}
"""The first of them gets the calibration data, the second generates samples, the third has none."""


@dataclass(frozen=True)
class Subject:
    """A trained model and its data, as paths below the folder of trained models, or below the checkout.

    Attributes
    ----------
    targets
        Largest loss of top-1, in points against the original, by the share of MACs that is kept.
    no_module
        Why Torch-Pruning has nothing to work on; empty where the module can be rebuilt.
    ours
        Whether model and data lie in this project's `models/`.
    twin
        Whether it is another model's network from another exporter: asked for the shares of its targets only.
    slow
        Whether a run takes minutes: repeated with other seeds at its targets only.
    """

    name: str
    calibration: str
    test: str
    targets: dict[float, float] = field(hash=False)
    preprocess: str | None = None
    no_module: str = ""
    ours: bool = False
    twin: bool = False
    slow: bool = False

    def grid(self, points: Sequence[float] | None) -> Sequence[float]:
        """Shares of the MACs that the sweeps ask about."""
        return points if points is not None else tuple(self.targets) if self.twin else GRID

    def repeats(self, point: float, seeds: int) -> int:
        """With how many seeds a share is asked for."""
        return seeds if point in self.targets or not self.slow else 1


def _subjects() -> tuple[Subject, ...]:
    cifar = ("data/cifar10_calib.npz", "data/cifar10_test.npz")
    speech = ("data/speechcommands12_calib.npz", "data/speechcommands12_test.npz")
    images = ("data/imagenet_calib", "data/imagenet_test")
    resnet20, resnet56 = {0.7: -1.0, 0.5: -6.0}, {0.7: -0.3, 0.5: -1.5, 0.35: -5.0}
    kwt1 = {0.7: -0.5, 0.5: -2.0}
    coral = (
        "the weights were published in a quantised TFLite file: its authors gave no PyTorch module for them"
    )
    digits = ("models/digits_calib.npz", "models/digits_test.npz", {0.5: -1.0})
    left = "it was asked about the published models only"
    arm = "its authors published TensorFlow code and weights: there is no PyTorch module of theirs"
    return (
        Subject("cifar10_resnet20", *cifar, resnet20),
        Subject("cifar10_resnet20_ts", *cifar, resnet20, twin=True),
        Subject("cifar10_resnet56", *cifar, resnet56),
        Subject("cifar10_resnet56_ts", *cifar, resnet56, twin=True),
        Subject("imagenet_mobilenetv2", *images, {0.85: -5.0, 0.7: -18.0}, "x/128-1", coral, slow=True),
        Subject("kwt1_speechcommands", *speech, kwt1, no_module=arm),
        Subject("kwt1_speechcommands_ts", *speech, kwt1, no_module=arm, twin=True),
        Subject("digits_resnet", *digits, no_module=left, ours=True),
        Subject("digits_resnet_ts", *digits, no_module=left, ours=True, twin=True),
        Subject("digits_vit", *digits, no_module=left, ours=True),
        Subject("digits_vit_ts", *digits, no_module=left, ours=True, twin=True),
    )


SUBJECTS = {subject.name: subject for subject in _subjects()}


@dataclass(frozen=True)
class Run:
    """One step.

    Attributes
    ----------
    experiment
        "baseline", "curve", "size" or "tier".
    tool
        Who prunes; for tiers the tier.
    asked
        What the tool is asked for: a share of the MACs to keep, a sparsity or a pruning ratio.
    function
        Of `benchmarks`, as `benchmarks.isolated.call` takes it.
    arguments
        Besides the model and the data.
    seed
        For onnxprune; the other tools draw nothing.
    samples
        At most so many calibration samples; None: all.
    data
        Whether the tool gets the calibration data.
    """

    model: str
    experiment: str
    tool: str
    asked: float
    function: str
    arguments: dict[str, Any] = field(hash=False)
    seed: int = 0
    samples: int | None = None
    data: bool = True


def runs(subject: Subject, points: Sequence[float] | None, seeds: int, samples: int | None) -> list[Run]:
    """All runs about one model.

    Parameters
    ----------
    points
        Shares of the MACs to keep, which also restrict the sweeps; None: the grid, and the targets' ones.
    seeds
        How many; only runs that learn from samples are repeated.
    samples
        At most so many calibration samples in every run; None: all.
    """
    name, grid = subject.name, subject.grid(points)
    exact = sorted({*grid, *(subject.targets if points is None else ())}, reverse=True)
    found = [Run(name, "baseline", "", 1.0, "quality_steps:baseline", {}, data=False)]
    for point in exact:
        for tool, options in OPTIONS.items():
            if tool != DEFAULT or point in subject.targets:
                data, repeats = tool != L1, subject.repeats(point, seeds) if tool == OURS else 1
                found += _prune(name, "curve", tool, point, repeats, samples, options, data)
    for tool, (function, option) in SWEEPS.items():
        if tool != TORCH_PRUNING or not subject.no_module:
            for strength in (round(1 - point, 4) for point in grid):
                found.append(
                    Run(name, "curve", tool, strength, function, {option: strength}, samples=samples)
                )
    if ABOUT_SIZE[0] == name and ABOUT_SIZE[1] in exact:
        for size in SIZES:
            if samples is None or size <= samples:
                found += _prune(name, "size", OURS, ABOUT_SIZE[1], seeds, size, OPTIONS[OURS])
    if ABOUT_TIERS[0] == name and ABOUT_TIERS[1] in exact:
        for tier, options in TIERS.items():
            found += _prune(name, "tier", tier, ABOUT_TIERS[1], seeds, samples, options, tier == "real")
    return found


def _prune(
    name: str,
    experiment: str,
    tool: str,
    point: float,
    seeds: int,
    samples: int | None,
    options: dict[str, Any],
    data: bool = True,
) -> list[Run]:
    """The same job of onnxprune with several seeds."""
    return [
        Run(
            name,
            experiment,
            tool,
            point,
            "quality_steps:prune",
            {"options": {"macs": point, "seed": seed, **options}},
            seed,
            samples if data else None,
            data,
        )
        for seed in range(seeds)
    ]
