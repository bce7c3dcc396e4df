"""What the quality benchmark compares with: onnxsim on the same files, Torch-Pruning on modules made from them."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.isolated import peak_mb
from benchmarks.quality_steps import BATCH, Figures, Watch, measured, one_pass, read_calibration

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from onnxprune.calibrate.dataset import Dataset

SAME = 1e-4
"""Largest difference between the logits of a rebuilt module and those of its file."""


def onnxsim(model: str, data: Mapping[str, Any], sparsity: float) -> Figures:
    """Structured Wanda, then `apply_pruning_finetune`; where nothing is cut, once more on the simplified file."""
    import onnx
    import onnxsim as package  # type: ignore[import-untyped]

    imports = peak_mb()
    watch = Watch()
    calibration = read_calibration(model, data)
    feeds = list(calibration.batches(BATCH))
    original, simplified = onnx.load(model), False
    pruned = _wanda(original, feeds, sparsity)
    if not _smaller(pruned, original):
        original, equal = package.simplify(original)
        if not equal:
            raise RuntimeError("its own check says that the simplified model computes something else")
        pruned, simplified = _wanda(original, feeds, sparsity), True
    if not _smaller(pruned, original):
        raise RuntimeError("nothing was cut, neither in the file as it is nor in the simplified one")
    tuned = package.finetune.apply_pruning_finetune(
        original, pruned, calibration_data=feeds, providers=["CPUExecutionProvider"]
    )
    seconds, cpu = watch.lap()
    figures = {
        "time": {"wall": seconds, "cpu": cpu},
        "memory": {"imports": imports, "peak": peak_mb()},
        "simplified": simplified,
        "finetuned": _differing(pruned, tuned),
    }
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "pruned.onnx")
        onnx.save(tuned, output)
        figures |= measured(output, data)
    return figures | {"pass": one_pass(model, calibration)}


def _wanda(model: onnx.ModelProto, feeds: list[Any], sparsity: float) -> onnx.ModelProto:
    from onnxsim import pruning

    pruned: onnx.ModelProto = pruning.apply_structured_wanda_pruning(
        model, calibration_data=feeds, sparsity=sparsity, providers=["CPUExecutionProvider"]
    )
    return pruned


def _smaller(pruned: onnx.ModelProto, original: onnx.ModelProto) -> bool:
    return _elements(pruned) < _elements(original)


def _elements(model: onnx.ModelProto) -> int:
    return sum(math.prod(tensor.dims) for tensor in model.graph.initializer)


def _differing(first: onnx.ModelProto, second: onnx.ModelProto) -> int:
    """How many initializers have other values in the second model."""
    import numpy as np
    from onnx import numpy_helper

    ours, theirs = ({t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (first, second))
    return sum(name not in ours or not np.array_equal(ours[name], a) for name, a in theirs.items())


def torch_pruning(model: str, data: Mapping[str, Any], ratio: float) -> Figures:
    """Torch-Pruning on the module behind the file: every layer but the last, else the inner ones of the blocks.

    The result goes back to ONNX, is measured there, and is as small as onnxprune's counter says.
    """
    warnings.simplefilter("ignore")
    import torch
    import torch_pruning as tp  # type: ignore[import-untyped]

    from benchmarks import zoo
    from benchmarks.quality_resnet import resnet_of

    imports = peak_mb()
    calibration = read_calibration(model, data)
    example = torch.from_numpy(calibration.feeds[0]["input"])
    difference = _difference(model, resnet_of(model), calibration)
    if not difference <= SAME:
        raise RuntimeError(f"the rebuilt module's logits differ from the file's by {difference:.1e}")

    def pruned(inner: bool) -> nn.Module:
        module = resnet_of(model)
        ignored: list[nn.Module] = [module.linear]
        if inner:
            ignored += [module.conv1, *module.ends]
        importance = tp.importance.MagnitudeImportance(p=1)
        tp.pruner.MagnitudePruner(
            module, example, importance=importance, pruning_ratio=ratio, ignored_layers=ignored
        ).step()
        with torch.no_grad():
            module(example)
        return module

    watch = Watch()
    whole = ""
    try:
        module = pruned(inner=False)
    except Exception as error:
        whole = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        watch.lap()
        module = pruned(inner=True)
    seconds, cpu = watch.lap()
    figures = {
        "time": {"wall": seconds, "cpu": cpu},
        "memory": {"imports": imports, "peak": peak_mb()},
        "difference": difference,
        "whole": whole,
    }
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "pruned.onnx"
        zoo.export_module(module, tuple(example.shape[1:]), "ts", output)
        return figures | measured(str(output), data)


def _difference(model: str, module: nn.Module, calibration: Dataset) -> float:
    """Largest difference between the logits of a module and a file, on one batch."""
    import torch

    from onnxprune import api
    from onnxprune.calibrate.sessions import open_session, run

    feed = next(iter(calibration.batches(BATCH)))
    (expected,) = run(open_session(api.load(model).ir, "cpu"), feed).values()
    (x,) = feed.values()
    with torch.no_grad():
        found = module(torch.from_numpy(x)).numpy()
    return float(abs(found - expected).max())
