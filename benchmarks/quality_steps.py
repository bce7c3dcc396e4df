"""The steps of the quality benchmark: measure the original, prune it with onnxprune, and what all tools share.

Each one runs in a process of its own. Plans are made from calibration data alone; the test data is opened by
`measured`, when the pruned file has been written.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.isolated import peak_mb

if TYPE_CHECKING:
    from onnxprune.calibrate.dataset import Dataset

Figures = dict[str, Any]
BATCH = 32
"""Samples per run, as onnxprune takes them."""


class Watch:
    """Seconds since it was last looked at: on the wall, and of the processor over all threads."""

    def __init__(self) -> None:
        self._started = self._now()

    def lap(self) -> tuple[float, float]:
        """Wall time and processor time of the lap that ends now."""
        before, self._started = self._started, self._now()
        return self._started[0] - before[0], self._started[1] - before[1]

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def baseline(model: str, data: Mapping[str, Any]) -> Figures:
    """Size and top-1 of the original."""
    return measured(model, data)


def prune(model: str, data: Mapping[str, Any], options: Mapping[str, Any]) -> Figures:
    """Prune with onnxprune.

    Parameters
    ----------
    data
        `calibration` (None: the tool gets no data), `samples`, `test`, `preprocess`.
    options
        Of `onnxprune.prune`.
    """
    import onnxruntime  # noqa: F401  # its memory belongs to the imports

    from onnxprune import api

    imports = peak_mb()
    watch = Watch()
    calibration = None if data["calibration"] is None else read_calibration(model, data)
    given: dict[str, Any] = {}
    if calibration is not None:
        # One sample to measure on: all are calibrated on, none is held back, and the time is that of pruning.
        given = {"data": calibration, "test": calibration.take([0])}
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "pruned.onnx")
        report = api.prune(model, output, provider="cpu", force=True, **given, **options).report
        seconds, cpu = watch.lap()
        memory = peak_mb()
        figures = {
            "time": {"wall": seconds, "cpu": cpu},
            "memory": {"imports": imports, "peak": memory},
            "criterion": report.criterion,
            "calibration": {"tier": report.calibration["tier"], "samples": report.calibration["samples"]},
            "repairs": dict(Counter(layer.kind for layer in report.repairs)),
            "checked": report.soundness.checked,
            "rejected": list(report.soundness.rejected_groups),
            "warnings": list(report.warnings),
            **measured(output, data),
        }
    if calibration is not None:
        figures["pass"] = one_pass(model, calibration)
    return figures


def read_calibration(model: str, data: Mapping[str, Any]) -> Dataset:
    """The calibration samples of a model."""
    from onnxprune import api
    from onnxprune.calibrate.data import read_dataset
    from onnxprune.calibrate.dataset import input_specs

    specs = input_specs(api.load(model).ir)
    return read_dataset(data["calibration"], specs, samples=data["samples"], preprocess=data["preprocess"])


def measured(model: str, data: Mapping[str, Any]) -> Figures:
    """Size of a file, and its top-1 on the test data."""
    from onnxprune import api

    found = api.validate(
        model, data["test"], metric="top1", preprocess=data["preprocess"], provider="cpu", batch_size=BATCH
    )
    if found.score is None:
        raise RuntimeError("the test data has no labels")
    cost = api.analyze(model).cost
    return {
        "top1": found.score.value,
        "interval": list(found.score.interval or ()),
        "tested": found.samples,
        "macs": cost.macs,
        "params": cost.params,
    }


def one_pass(model: str, calibration: Dataset) -> dict[str, float]:
    """Time of running the original on all calibration samples once, reading them included."""
    from onnxprune import api
    from onnxprune.calibrate.sessions import open_session, run

    session = open_session(api.load(model).ir, "cpu")
    watch = Watch()
    for feed in calibration.batches(BATCH):
        run(session, feed)
    seconds, cpu = watch.lap()
    return {"wall": seconds, "cpu": cpu}
