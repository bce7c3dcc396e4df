"""The steps of the criteria benchmark: make data, measure the original, prune by a criterion.

Each one runs in a process of its own. The test data is opened by `tested`, when the pruned file has been written.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.isolated import peak_mb
from benchmarks.quality_steps import BATCH, Watch, one_pass, read_calibration

if TYPE_CHECKING:
    from onnxprune.evaluate.fidelity import Fidelity

Figures = dict[str, Any]
VOCABULARY, LENGTH, IMAGE = 320, 16, (3, 64, 64)
"""Of the architectures of `benchmarks.families.transformers_entry`."""
SAMPLES = 256


def generate(model: str, path: str, seed: int) -> Figures:
    """Write samples for a model with random weights: token ids drawn uniformly, masks of ones, noise as pixels."""
    from onnxprune import api
    from onnxprune.calibrate.dataset import input_specs

    rng = np.random.default_rng(seed)
    arrays = {}
    for spec in input_specs(api.load(model).ir):
        if spec.dtype.kind == "f":
            arrays[spec.name] = rng.standard_normal((SAMPLES, *IMAGE)).astype(spec.dtype)
        elif "mask" in spec.name:
            arrays[spec.name] = np.ones((SAMPLES, LENGTH), spec.dtype)
        else:
            arrays[spec.name] = rng.integers(3, VOCABULARY, (SAMPLES, LENGTH)).astype(spec.dtype)
    np.savez(path, **arrays)
    return {"inputs": sorted(arrays)}


def baseline(model: str, data: Mapping[str, Any]) -> Figures:
    """Size and top-1 of the original, and the time of one pass over all calibration samples."""
    import onnxruntime  # noqa: F401  # its start is not part of a pass

    passed = one_pass(model, read_calibration(model, data))
    return {"pass": passed, **tested(model, model, data)}


def prune(model: str, data: Mapping[str, Any], options: Mapping[str, Any]) -> Figures:
    """Prune with onnxprune as its users do: every fifth calibration sample is held back to measure on.

    Parameters
    ----------
    data
        `calibration`, `test`, `samples`, `preprocess`.
    options
        Of `onnxprune.prune`.
    """
    import onnxruntime  # noqa: F401  # its memory belongs to the imports

    from onnxprune import api

    imports = peak_mb()
    watch = Watch()
    calibration = read_calibration(model, data)
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "pruned.onnx")
        report = api.prune(model, output, data=calibration, provider="cpu", force=True, **options).report
        seconds, cpu = watch.lap()
        memory = peak_mb()
        if report.fidelity is None:
            raise RuntimeError("nothing was measured on held-out samples")
        held = {"samples": report.fidelity.samples, **_distances(report.fidelity)}
        if report.metric is not None:
            held |= {"top1": report.metric.after.value, "top1_before": report.metric.before.value}
        return {
            "time": {"wall": seconds, "cpu": cpu},
            "stages": {stage: round(took, 3) for stage, took in report.seconds.items()},
            "memory": {"imports": imports, "peak": memory},
            "criterion": report.criterion,
            "calibration": report.calibration["samples"],
            "repairs": dict(Counter(layer.kind for layer in report.repairs)),
            "widths": [[group.kept, group.units] for group in report.groups],
            "checked": report.soundness.checked,
            "rejected": list(report.soundness.rejected_groups),
            "warnings": list(report.warnings),
            "held": held,
            **tested(model, output, data),
        }


def tested(original: str, pruned: str, data: Mapping[str, Any]) -> Figures:
    """Size of a file, its distance from the original on the test data, and where there are labels its top-1.

    `right` holds one bit per sample, in hexadecimal: which answers were right.
    """
    from onnxprune import api
    from onnxprune.calibrate.data import read_dataset
    from onnxprune.calibrate.dataset import input_specs
    from onnxprune.evaluate.validate import compare

    model, cut = api.load(original), api.load(pruned)
    dataset = read_dataset(data["test"], input_specs(model.ir), preprocess=data["preprocess"])
    name = str(model.ir.graph.outputs[0].name)
    right: list[bool] = []

    def watch(_feed: Any, labels: Any, _whole: Any, other: Mapping[str, Any]) -> None:
        if labels is not None:
            right.extend((np.argmax(other[name], axis=-1) == labels.ravel()).tolist())

    found = compare(model.ir, cut.ir, dataset, "cpu", BATCH, watch=watch)
    cost = api.analyze(pruned).cost
    top1 = {"top1": float(np.mean(right)), "right": np.packbits(right).tobytes().hex()} if right else {}
    return {"macs": cost.macs, "params": cost.params, "tested": len(dataset), **_distances(found), **top1}


def _distances(found: Fidelity) -> Figures:
    """KL in nats and SQNR in dB; at most 300 dB, as JSON knows no infinity."""
    main = found.main
    db = None if main.sqnr_db is None else float(np.clip(main.sqnr_db, -300, 300))
    return {"kl": main.kl, "db": db, "agreement": main.top1_agreement}
