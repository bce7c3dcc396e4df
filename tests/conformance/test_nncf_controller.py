"""FilterPruningController gives the figures that NNCF publishes, in its own statistics."""

from __future__ import annotations

from math import prod

import onnx_ir as ir
import pytest
from resnets import build_resnet

from onnxprune.controllers import FilterPruningController


@pytest.mark.parametrize("folded", [True, False], ids=["folded", "batch-norm"])
@pytest.mark.parametrize(
    ("name", "level", "millions", "gflops"),
    [
        ("resnet18", 0.4, ("11.68", "9.23"), ("3.63", "2.75")),
        ("resnet34", 0.5, ("21.78", "13.56"), ("7.33", "4.32")),
    ],
)
def test_published_figures(tmp_path, name, level, millions, gflops, folded):
    ir.save(build_resnet(name, folded=folded), tmp_path / "net.onnx")
    controller = FilterPruningController(tmp_path / "net.onnx", {"pruning_target": level})
    controller.set_pruning_level(level)
    found = controller.statistics().model_statistics
    assert tuple(f"{n / 1e6:.2f}" for n in (found.full_params, found.current_params)) == millions
    assert tuple(f"{n / 1e9:.2f}" for n in (found.full_flops, found.current_flops)) == gflops
    weights = [
        prod(node.inputs[1].const_value.shape)
        for node in controller.strip().graph
        if node.op_type in ("Conv", "Gemm")
    ]
    assert sum(weights) == found.current_params
    whys = set(controller.not_pruned.values())
    assert any("prune_first_conv" in why for why in whys)
    assert any("prune_downsample_convs" in why for why in whys)
