"""What calibration is worth without samples: none, generated ones, a few real ones, many.

    python -m benchmarks.tiers [MODEL@MACS ...]

prints the table of `docs/calibration.md`. Test data is not touched: the calibration data is split, one part may be
calibrated on, the other measures. `data="synthetic"` was made by looking at these figures, so they flatter it; the
third experiment of `benchmarks.quality` is on test data. The models lie in `../shared/real` and `models/`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.isolated import ROOT
from benchmarks.tables import table

REAL = ROOT.parent / "shared" / "real"
MODELS = {
    "digits_resnet": (ROOT / "models/digits_resnet.onnx", ROOT / "models/digits_calib.npz"),
    "cifar10_resnet20": (REAL / "models/cifar10_resnet20.onnx", REAL / "data/cifar10_calib.npz"),
    "kwt1_speechcommands": (
        REAL / "models/kwt1_speechcommands.onnx",
        REAL / "data/speechcommands12_calib.npz",
    ),
}
POINTS = (
    "digits_resnet@0.5",
    "cifar10_resnet20@0.7",
    "cifar10_resnet20@0.5",
    "kwt1_speechcommands@0.7",
    "kwt1_speechcommands@0.5",
)
TIERS: dict[str, dict[str, Any]] = {
    "none": {},
    "`--data synthetic`": {"data": "synthetic"},
    "16 real": {"samples": 16},
    "64 real": {"samples": 64},
    "all real": {},
}
MEASURED = 512
"""At most so many samples measure."""


def split(data: Path, folder: Path) -> tuple[Path, Path]:
    """Two files: samples to calibrate on, and at most half of all to measure on."""
    with np.load(data) as arrays:
        order = np.random.default_rng(5).permutation(len(arrays["labels"]))
        measured = min(MEASURED, len(order) // 3)
        parts = folder / "calibrate.npz", folder / "measure.npz"
        for part, chosen in zip(parts, (order[measured:], order[:measured]), strict=True):
            np.savez(part, **{name: arrays[name][chosen] for name in arrays.files})
    return parts


def row(model: Path, macs: float, tier: str, calibration: Path, measured: Path) -> list[object]:
    """Prune once and measure on the part that was held out."""
    import onnxprune

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "pruned.onnx"
        options = {"data": str(calibration), **TIERS[tier]}
        given = {} if tier == "none" else {**options, "test": str(measured)}
        report = onnxprune.prune(model, output, macs=macs, round_to=1, **given).report
        found = onnxprune.validate(output, str(measured), against=model)
    if found.score is None or found.reference is None or found.fidelity is None:
        raise RuntimeError(f"{measured} has no labels")
    main = found.fidelity.main
    repaired = sum(layer.kind != "none" for layer in report.repairs)
    figures = [
        f"{found.reference.value:.1%}",
        f"{found.score.value:.1%}",
        f"{main.sqnr_db:.1f}",
        f"{main.kl:.2g}",
    ]
    return [tier, report.calibration["samples"], report.criterion, repaired, *figures]


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("points", nargs="*", default=POINTS, metavar="MODEL@MACS", help=", ".join(POINTS))
    rows = []
    for point in parser.parse_args(arguments).points:
        name, _, macs = point.partition("@")
        model, data = MODELS[name]
        with tempfile.TemporaryDirectory() as folder:
            parts = split(data, Path(folder))
            for tier in TIERS:
                rows.append([f"{name}, `--macs {macs}`", *row(model, float(macs), tier, *parts)])
                print(*rows[-1], flush=True)
    header = ["model", "samples", "calibrated on", "criterion", "layers repaired", "top-1 before", "after"]
    print("", table([*header, "SQNR, dB", "KL"], rows, left=2), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
