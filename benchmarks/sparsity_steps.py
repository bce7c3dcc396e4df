"""The steps of the sparsity benchmark: one model made sparse by onnxprune, or by onnxsim, and measured.

Each one runs in a process of its own. Zeros and weights follow from calibration data alone; the test data is opened
when the file has been written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.quality_steps import BATCH, Figures, Watch, read_calibration

if TYPE_CHECKING:
    import onnx


def baseline(model: str, data: Mapping[str, Any]) -> Figures:
    """Top-1 of the original."""
    return measured(model, model, data)


def sparsify(model: str, data: Mapping[str, Any], options: Mapping[str, Any]) -> Figures:
    """Make a model sparse with onnxprune; `options` are those of `onnxprune.sparsify`."""
    from onnxprune import api

    watch = Watch()
    calibration = read_calibration(model, data)
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "sparse.onnx")
        given: dict[str, Any] = {"data": calibration, "test": calibration.take([0])}
        report = api.sparsify(model, output, provider="cpu", **given, **options).report
        seconds, cpu = watch.lap()
        return {
            "time": {"wall": seconds, "cpu": cpu},
            "achieved": report.achieved,
            "layers": len(report.layers),
            "solver": report.solver,
            "scope": report.scope,
            **measured(model, output, data),
        }


def onnxsim(model: str, data: Mapping[str, Any], method: str, options: Mapping[str, Any]) -> Figures:
    """The same with `onnxsim.pruning.apply_<method>_pruning`."""
    import onnx
    from onnxsim import pruning  # type: ignore[import-untyped]

    watch = Watch()
    given: dict[str, Any] = {}
    if method != "magnitude":
        feeds = list(read_calibration(model, data).batches(BATCH))
        given = {"calibration_data": feeds, "providers": ["CPUExecutionProvider"]}
    made = getattr(pruning, f"apply_{method}_pruning")(onnx.load(model), **given, **options)
    seconds, cpu = watch.lap()
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "sparse.onnx")
        onnx.save(made, output)
        return {
            "time": {"wall": seconds, "cpu": cpu},
            "achieved": float(pruning.weight_sparsity(made)),
            **measured(model, output, data),
        }


def measured(original: str, model: str, data: Mapping[str, Any]) -> Figures:
    """Top-1 on the test data, how far the outputs are from the original's, and zeros of the linear layers."""
    from onnxprune import api

    found = api.validate(
        model,
        data["test"],
        against=original,
        metric="top1",
        preprocess=data["preprocess"],
        provider="cpu",
        batch_size=BATCH,
    )
    if found.score is None or found.fidelity is None:
        raise RuntimeError("the test data has no labels")
    output = found.fidelity.outputs[0]
    zeros, size = _zeros(onnx_of(original), onnx_of(model))
    return {
        "top1": found.score.value,
        "tested": found.samples,
        "kl": output.kl,
        "db": output.sqnr_db,
        "zeros": zeros / size if size else 0.0,
    }


def onnx_of(path: str) -> onnx.ModelProto:
    """The model as a protobuf."""
    import onnx

    return onnx.load(path)


def _zeros(original: onnx.ModelProto, model: onnx.ModelProto) -> tuple[int, int]:
    """Zeros and elements of all float initializers of two or more axes; of those that the original has, too."""
    import numpy as np
    from onnx import numpy_helper

    names = {tensor.name for tensor in original.graph.initializer if len(tensor.dims) > 1}
    arrays = [numpy_helper.to_array(t) for t in model.graph.initializer if t.name in names]
    floats = [array for array in arrays if array.dtype.kind == "f"]
    return sum(int(np.count_nonzero(a == 0)) for a in floats), sum(a.size for a in floats)
