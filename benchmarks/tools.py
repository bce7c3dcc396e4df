"""What the table of torchvision models compares: each tool prunes one model, in a process of its own.

Every function returns a dict of figures and writes the pruned model to `output`. Times are wall times of the
calls alone, without imports; `memory` is the peak of the process up to that point, `imports` that after the
imports.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks.isolated import peak_mb

Figures = dict[str, Any]
INPUT_SHAPE = (1, 3, 224, 224)


class _Watch:
    """Seconds since it was last looked at."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self.started = now - self.started, now
        return seconds


def onnxprune(model: str, output: str, ratio: float, scope: str) -> Figures:
    """Prune with onnxprune: first its parts one by one, then the whole job with proof and file."""
    from onnxprune import api, pruning

    imports = peak_mb()
    watch = _Watch()
    source = api.load(model)
    load = watch.lap()
    analysis = api.analyze(source)
    analyse = watch.lap()
    coverage = {"params": analysis.coverage.params, "macs": analysis.coverage.macs}
    watch.lap()
    plan = api.plan(analysis, ratio=ratio, scope=scope)
    choose = watch.lap()
    pruning.build(analysis, plan.keep, "remove")
    remove = watch.lap()
    memory = peak_mb()
    del source, analysis, plan
    watch.lap()
    done = api.prune(model, output, ratio=ratio, scope=scope, force=True, provider="cpu")
    report = done.report
    return {
        "load": load,
        "analysis": analyse,
        "choice": choose,
        "removal": remove,
        "whole": watch.lap(),
        "imports": imports,
        "memory": memory,
        "memory_whole": peak_mb(),
        "groups": len(report.groups),
        "achieved": report.target.achieved,
        "coverage": coverage,
        "sound": report.soundness.checked and not report.soundness.rejected_groups,
        "max_abs_diff": report.soundness.max_abs_diff,
        "max_abs_output": report.soundness.max_abs_output,
        "rejected": list(report.soundness.rejected_groups),
    }


def onnxsim(model: str, output: str, ratio: float, simplify: bool) -> Figures:
    """Prune with onnxsim: the same share of every chain of layers that it recognises."""
    import onnx
    import onnxsim as package
    from onnxsim import pruning

    imports = peak_mb()
    watch = _Watch()
    proto = onnx.load(model)
    load = watch.lap()
    if simplify:
        proto, equal = package.simplify(proto)
        if not equal:
            raise RuntimeError("its own check says that the simplified model computes something else")
    simplified = watch.lap()
    pruned = pruning.apply_structured_pruning(proto, sparsity=ratio)
    remove = watch.lap()
    memory = peak_mb()
    onnx.save(pruned, output)
    return {"load": load, "simplify": simplified, "removal": remove, "imports": imports, "memory": memory}


def torch_pruning(name: str, output: str, ratio: float, round_to: int) -> Figures:
    """Prune the module with Torch-Pruning, layer by layer (not globally), and export the result.

    The classifier is left out and attention heads stay aligned, as its own examples for torchvision do.
    """
    warnings.simplefilter("ignore")
    import torch
    import torch_pruning as tp
    from torch import nn

    from benchmarks import zoo

    module = zoo.build(name)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    example = torch.randn(*INPUT_SHAPE)
    linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
    attention = {m: m.num_heads for m in module.modules() if isinstance(m, nn.MultiheadAttention)}
    options: dict[str, Any] = {}
    if attention:
        unwrapped = [(module.class_token, 2), (module.encoder.pos_embedding, 2)]
        options = {"out_channel_groups": attention, "unwrapped_parameters": unwrapped}
    imports = peak_mb()
    watch = _Watch()
    pruner = tp.pruner.MagnitudePruner(
        module,
        example,
        importance=tp.importance.MagnitudeImportance(p=2),
        global_pruning=False,
        pruning_ratio=ratio,
        ignored_layers=[m for m in linear if m.out_features == 1000],
        round_to=round_to,
        **options,
    )
    analyse = watch.lap()
    pruner.step()
    remove = watch.lap()
    memory = peak_mb()
    if attention:
        module.hidden_dim = module.conv_proj.out_channels  # the forward pass compares it with its input
    with torch.no_grad():
        logits = module(example)
    if logits.shape != (1, 1000) or not bool(torch.isfinite(logits).all()):
        raise RuntimeError(f"the pruned module gives {tuple(logits.shape)}, or values that are not finite")
    Path(output).unlink(missing_ok=True)
    zoo.export_module(module, INPUT_SHAPE[1:], "ts", Path(output))
    return {"analysis": analyse, "removal": remove, "imports": imports, "memory": memory}


def inspect(model: str) -> Figures:
    """Size of a file by one counter for all tools, onnx's strictest check, and whether it runs."""
    import numpy as np
    import onnx

    from onnxprune import analyze

    figures: Figures = {"valid": True, "why": "", "runs": True}
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        figures |= {"valid": False, "why": " ".join(str(error).split())[:160]}
    try:
        session = _session(model)
        feed = {session.get_inputs()[0].name: np.zeros(INPUT_SHAPE, np.float32)}
        (logits,) = session.run(None, feed)
        figures["runs"] = logits.shape == (1, 1000) and bool(np.isfinite(logits).all())
    except Exception as error:
        figures |= {"runs": False, "why": " ".join(str(error).split())[:160]}
    cost = analyze(model).cost
    return figures | {"params": cost.params, "macs": cost.macs, "bytes": Path(model).stat().st_size}


def latency(models: dict[str, str], seconds: float, least: int) -> Figures:
    """Median milliseconds of one image on one thread; the models take turns: all see the same noise."""
    import numpy as np

    x = np.random.default_rng(0).standard_normal(INPUT_SHAPE).astype(np.float32)
    sessions = {name: _session(path) for name, path in models.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for session in sessions.values():  # the first run allocates
        session.run(None, {session.get_inputs()[0].name: x})
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or len(next(iter(times.values()))) < least:
        for name, session in sessions.items():
            watch = _Watch()
            session.run(None, {session.get_inputs()[0].name: x})
            times[name].append(watch.lap() * 1e3)
    return {name: float(np.median(values)) for name, values in times.items()}


def _session(model: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
