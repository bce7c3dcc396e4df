"""The steps of the coverage benchmark; each runs in a process of its own and gives figures that JSON can hold."""

from __future__ import annotations

import importlib
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.isolated import peak_mb

Figures = dict[str, Any]


def export(library: str, name: str, exporter: str, path: str) -> Figures:
    """Export one architecture of `benchmarks.families`: with its symbolic dims, else with fixed shapes."""
    import torch

    from benchmarks.zoo import quiet

    torch.set_num_threads(1)
    sample = _sample(library, name)
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


def _sample(library: str, name: str) -> Any:
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
        "original": _runs(model),
        "original_checker": _checks(model),
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
            "checker": _checks(str(output)),
            "run": _runs(str(output)),
        }
        output.unlink(missing_ok=True)
    return figures


def onnxsim(model: str, output: str, simplify: bool) -> Figures:
    """`onnxsim.pruning` on the same file, half of every chain that it recognises."""
    import onnx
    import onnxsim as package
    from onnxsim import pruning

    proto = onnx.load(model)
    if simplify:
        proto, equal = package.simplify(proto)
        if not equal:
            raise RuntimeError("its own check says that the simplified model computes something else")
    before = sum(_elements(tensor) for tensor in proto.graph.initializer)
    proto = pruning.apply_structured_pruning(proto, sparsity=0.5)
    after = sum(_elements(tensor) for tensor in proto.graph.initializer)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, output)
    figures = {"removed": after < before, "checker": _checks(output), "run": _runs(output), "macs": None}
    if figures["run"]["ok"]:
        import onnxprune

        figures["macs"] = onnxprune.analyze(output).cost.macs / max(onnxprune.analyze(model).cost.macs, 1)
    Path(output).unlink(missing_ok=True)
    return figures


def torch_pruning(library: str, name: str) -> Figures:
    """Torch-Pruning on the module behind the file: half of every layer but the last, counted by itself."""
    warnings.simplefilter("ignore")
    import torch
    import torch_pruning as tp
    from torch import nn

    torch.set_num_threads(1)
    sample = _sample(library, name)
    module, inputs = sample.module, tuple(sample.inputs.values())
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    shapes = _shapes(module(*inputs))
    before, _ = tp.utils.count_ops_and_params(module, inputs)
    widths = {shape[-1] for shape in shapes if shape} | {shape[1] for shape in shapes if len(shape) > 1}
    last = [m for m in module.modules() if isinstance(m, nn.Linear) and m.out_features in widths]
    last += [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.out_channels in widths]
    heads = {m: m.num_heads for m in module.modules() if isinstance(m, nn.MultiheadAttention)}
    heads |= {
        m.qkv: m.num_heads * 3
        for m in module.modules()
        if isinstance(getattr(m, "qkv", None), nn.Linear) and isinstance(getattr(m, "num_heads", None), int)
    }
    pruner = tp.pruner.MagnitudePruner(
        module,
        inputs,
        importance=tp.importance.MagnitudeImportance(p=2),
        global_pruning=False,
        pruning_ratio=0.5,
        ignored_layers=last,
        round_to=8,
        out_channel_groups=heads,
    )
    pruner.step()
    same = _shapes(module(*inputs)) == shapes
    after, _ = tp.utils.count_ops_and_params(module, inputs)
    return {"same_shapes": same, "macs": after / max(before, 1)}


def _shapes(found: Any) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in (found if isinstance(found, (tuple, list)) else [found])]


def _elements(tensor: Any) -> int:
    import math

    return math.prod(tensor.dims)


def _checks(model: str) -> str:
    """Empty where onnx's strictest check passes, else why not."""
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        return " ".join(str(error).split())[:160]
    return ""


def _runs(model: str) -> Figures:
    """Whether onnxruntime runs the file on small inputs, and the shapes of what comes out."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    rng = np.random.default_rng(0)
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feeds = {}
        for value in session.get_inputs():
            shape = [d if isinstance(d, int) else 16 if i else 1 for i, d in enumerate(value.shape)]
            kind = value.type.removeprefix("tensor(").removesuffix(")")
            dtype = {"float": np.float32, "int64": np.int64, "int32": np.int32, "bool": np.bool_}[kind]
            feeds[value.name] = (
                rng.standard_normal(shape).astype(dtype) if dtype is np.float32 else np.ones(shape, dtype)
            )
        results = session.run(None, feeds)
    except Exception as error:
        return {"ok": False, "why": f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]}
    finite = all(np.isfinite(r).all() for r in results if r.dtype.kind == "f")
    return {"ok": True, "finite": bool(finite), "shapes": [list(r.shape) for r in results]}
