"""What the coverage benchmark compares with: onnxsim on the same files, Torch-Pruning on their modules."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from benchmarks.coverage_steps import Figures, checks, runs, sample_of


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
    figures = {"removed": after < before, "checker": checks(output), "run": runs(output), "macs": None}
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
    sample = sample_of(library, name)
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
    return math.prod(tensor.dims)
