"""The steps of the coverage benchmark; each runs in a process of its own and gives figures that JSON can hold."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.isolated import peak_mb

Figures = dict[str, Any]


def export(library: str, name: str, exporter: str, path: str, as_built: bool = False) -> Figures:
    """Export one architecture of `benchmarks.families`: with its symbolic dims, else with fixed shapes."""
    import torch

    from benchmarks.zoo import quiet

    torch.set_num_threads(1)
    sample = sample_of(library, name, as_built)
    target, partial = Path(path), Path(path).with_suffix(".partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    why = ""
    attempts = [sample.dynamic, {}] if sample.dynamic else [{}]
    for dynamic in attempts:
        try:
            with quiet(), torch.no_grad():
                _write(sample, exporter, dynamic, partial)
            break
        except Exception as error:  # the exporters raise whatever they met inside the model
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
            if dynamic is attempts[-1]:
                raise
    partial.replace(target)
    return {"dynamic": bool(dynamic), "why_fixed": why, "bytes": target.stat().st_size}


def sample_of(library: str, name: str, as_built: bool = False) -> Any:
    """Build one of `benchmarks.families`: a `Sample`; `as_built` leaves equal biases and norms equal."""
    if as_built:
        importlib.import_module("benchmarks.families.randomise").randomise = lambda module: None
        importlib.import_module("benchmarks.families.statistics").settle_statistics = lambda module, inputs: (
            None
        )
    return importlib.import_module(f"benchmarks.families.{library}_models").MODELS[name]()


def _write(sample: Any, exporter: str, dynamic: Mapping[str, Mapping[int, str]], path: Path) -> None:
    import torch

    arguments = tuple(sample.inputs.values())
    if exporter == "ts":
        torch.onnx.export(
            sample.module,
            arguments,
            str(path),
            dynamo=False,
            input_names=list(sample.inputs),
            dynamic_axes={name: dict(dims) for name, dims in dynamic.items()} or None,
            opset_version=17,
        )
        return
    shapes = tuple(dict.fromkeys(dynamic.get(name, {}), torch.export.Dim.DYNAMIC) for name in sample.inputs)
    torch.onnx.export(
        sample.module,
        arguments,
        str(path),
        dynamo=True,
        external_data=False,
        input_names=list(sample.inputs),
        dynamic_shapes=(shapes,) if _variadic(sample.module) and dynamic else shapes if dynamic else None,
        verbose=False,
    )


def _variadic(module: Any) -> bool:
    """Whether `forward` takes `*inputs`: torch.export then wants their shapes as one tuple."""
    import inspect

    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    return inspect.Parameter.VAR_POSITIONAL in kinds


def prune(model: str, folder: str, targets: Mapping[str, Mapping[str, Any]]) -> Figures:
    """Prune one file for every target; what came out is checked and run."""
    import onnxprune

    started = time.perf_counter()
    analysis = onnxprune.analyze(model)
    figures: Figures = {
        "nodes": len(analysis.axis_graph.ops),
        "groups": len(analysis.groups),
        "coverage": {"macs": analysis.coverage.macs, "params": analysis.coverage.params},
        "macs": analysis.cost.macs,
        "params": analysis.cost.params,
        "barriers": [
            {
                "reason": barrier.reason.name,
                "where": barrier.where,
                "layers": list(barrier.layers[:2]),
                "macs": barrier.macs / max(analysis.cost.macs, 1),
            }
            for barrier in analysis.blocked[:3]
        ],
        "analysis": time.perf_counter() - started,
        "original": runs(model),
        "original_checker": checks(model),
        "targets": {},
    }
    del analysis
    for label, target in targets.items():
        output = Path(folder) / f"{Path(model).stem}.{label}.onnx"
        output.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        try:
            report = onnxprune.prune(
                model, str(output), **target, best_effort=True, force=True, provider="cpu"
            ).report
        except Exception as error:
            figures["targets"][label] = {
                "failure": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300],
                "seconds": time.perf_counter() - started,
            }
            continue
        seconds = time.perf_counter() - started
        soundness = report.soundness
        figures["targets"][label] = {
            "macs": report.after.macs / max(report.before.macs, 1),
            "params": report.after.params / max(report.before.params, 1),
            "achieved": report.target.achieved,
            "sound": bool(soundness.checked and not soundness.rejected_groups),
            "rejected": list(soundness.rejected_groups),
            "difference": soundness.max_abs_diff / max(soundness.max_abs_output, 1e-30),
            "seconds": seconds,
            "memory": peak_mb(),
            "checker": checks(str(output)),
            "run": runs(str(output)),
        }
        output.unlink(missing_ok=True)
    return figures


def checks(model: str) -> str:
    """Empty where onnx's strictest check passes, else why not."""
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        return " ".join(str(error).split())[:160]
    return ""


def runs(model: str) -> Figures:
    """Whether onnxruntime runs the file on small inputs, and the shapes of what comes out.

    Dims that have no size are 1 where they lead, else the first of some lengths that the model takes.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    found: Figures = {"ok": False, "why": ""}
    for length in (16, 64, 512, 4096):
        try:
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            results = session.run(None, _feeds(session, length))
        except Exception as error:
            found["why"] = found["why"] or f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
            continue
        finite = all(_finite(result) for result in results)
        return {"ok": True, "finite": finite, "shapes": [list(result.shape) for result in results]}
    return found


def _feeds(session: Any, length: int) -> Figures:
    import numpy as np

    rng = np.random.default_rng(0)
    feeds = {}
    for value in session.get_inputs():
        shape = [d if isinstance(d, int) else length if i else 1 for i, d in enumerate(value.shape)]
        kind = value.type.removeprefix("tensor(").removesuffix(")")
        dtype = {"float": np.float32, "int64": np.int64, "int32": np.int32, "bool": np.bool_}[kind]
        noise = dtype is np.float32
        feeds[value.name] = rng.standard_normal(shape).astype(dtype) if noise else np.ones(shape, dtype)
    return feeds


def _finite(array: Any) -> bool:
    import numpy as np

    return array.dtype.kind != "f" or bool(np.isfinite(array).all())
