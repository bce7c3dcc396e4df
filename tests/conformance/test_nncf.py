"""What NNCF publishes for its filter pruning comes out of `--preset nncf`, to the decimals it gives.

The figures depend on which layers are grouped, which are left whole and how widths are rounded, not on
weights. NNCF counts parameters as the weights of convolutions and linear layers, without biases and norms,
and 2 FLOPs per multiply-add.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from fractions import Fraction
from math import ceil, prod
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from resnets import build_chain, build_resnet

from onnxprune.api import analyze, plan, prune
from onnxprune.pruning import Pruned
from onnxprune.report.report import Report

# model, level, millions of weights before and after, GFLOPs before and after, (units, kept) of cut groups
PUBLISHED = [
    pytest.param(
        "resnet18",
        *(0.4, ("11.68", "9.23"), ("3.63", "2.75")),
        {(64, 40): 2, (128, 80): 1, (256, 160): 1, (512, 312): 1},
        id="resnet18",
    ),
    pytest.param(
        "resnet34",
        *(0.5, ("21.78", "13.56"), ("7.33", "4.32")),
        {(64, 32): 3, (128, 64): 3, (256, 128): 5, (512, 256): 2},
        id="resnet34",
    ),
]
# at the head of a stage the inner channels and, by the projection, the residual stream of the whole stage
LEFT_WHOLE = {(64, "FIRST_CONV"): 1, **{(width, "DOWNSAMPLE_CONV"): 2 for width in (128, 256, 512)}}
TORCH = ("torch", "torchvision", "onnxscript")


@pytest.fixture(params=["folded", "batch-norm"])
def built(request, tmp_path):
    """Path of the named ResNet, built without PyTorch."""

    def build(name: str) -> Path:
        path = tmp_path / f"{name}.onnx"
        ir.save(build_resnet(name, folded=request.param == "folded"), path)
        return path

    return build


@pytest.fixture(params=["dynamo", "ts"])
def exported(request):
    """Path of torchvision's ResNet, exported once and kept in pytest's cache."""
    missing = [name for name in TORCH if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    from benchmarks import zoo

    folder = request.config.cache.mkdir("zoo")
    return lambda name: zoo.fetch(name, request.param, folder).path


@pytest.mark.parametrize(("name", "level", "millions", "gflops", "kept"), PUBLISHED)
def test_resnets_come_out_as_published(built, name, level, millions, gflops, kept):
    check_published(built(name), level, millions, gflops, kept)


@pytest.mark.torch
@pytest.mark.parametrize(("name", "level", "millions", "gflops", "kept"), PUBLISHED)
def test_torchvision_resnets_come_out_as_published(exported, name, level, millions, gflops, kept):
    check_published(exported(name), level, millions, gflops, kept)


def check_published(path, level, millions, gflops, kept):
    pruned = prune(path, ratio=level, preset="nncf")
    report = pruned.report
    before, after = weights_of(ir.load(path)), weights_of(pruned.model)
    assert (in_millions(before), in_millions(after)) == millions
    assert (in_gflops(report.before.macs), in_gflops(report.after.macs)) == gflops
    assert report.after.macs == macs_of(pruned)
    assert kept_widths(report) == kept
    assert left_whole(report) == LEFT_WHOLE
    assert report.scope == "uniform"
    assert report.soundness.checked
    assert not report.soundness.rejected_groups


# 1.0 is left to the tests of the minimum: NNCF would empty the layer
LEVELS = ("0.05", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.75", "0.8", "0.9", "0.95", "0.99")
WIDTHS = (1, 4, 7, 8, 9, 12, 16, 24, 31, 32, 33, 40, 48, 64, 80, 96, 100, 128, 160, 200, 256)


@pytest.mark.parametrize("level", LEVELS)
def test_uniform_levels_follow_nncfs_rounding(tmp_path, level):
    ir.save(build_chain(WIDTHS), tmp_path / "chain.onnx")
    analysis = analyze(tmp_path / "chain.onnx")
    made = plan(analysis, ratio=float(level), scope="uniform", best_effort=True)
    lost = {name: int((~flags).sum()) for name, flags in made.keep.items()}
    found = {group.units: lost.get(name, 0) for name, group in analysis.groups.items()}
    assert found == {width: nncf_pruned(width, level) for width in WIDTHS if width > 1}


@pytest.mark.parametrize(
    ("width", "level", "lost"), [(32, "0.4", 8), (64, "0.4", 24), (128, "0.4", 48), (16, "0.3", 0)]
)
def test_the_rule_itself(width, level, lost):
    assert nncf_pruned(width, level) == lost


def nncf_pruned(width: int, level: str) -> int:
    """NNCF's number of filters that go, in exact arithmetic."""
    return max(width - ceil(width * (1 - Fraction(level)) / 8) * 8, 0)


def weights_of(model: ir.Model) -> int:
    """Weights of convolutions and linear layers."""
    nodes = [node for node in model.graph if node.op_type in ("Conv", "Gemm", "MatMul")]
    return sum(prod(node.inputs[1].const_value.shape) for node in nodes)


def macs_of(pruned: Pruned) -> int:
    """Multiply-adds by the shapes that onnx infers for the pruned model, not by onnxprune's own counting."""
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(pruned.model), strict_mode=True, data_prop=True)
    outputs = {value.name: value.type.tensor_type.shape.dim for value in proto.graph.value_info}
    weights = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    total = 0
    for node in proto.graph.node:
        if node.op_type == "Conv":
            total += prod(weights[node.input[1]]) * prod(d.dim_value for d in outputs[node.output[0]][2:])
        elif node.op_type in ("Gemm", "MatMul"):
            total += prod(weights[node.input[1]])
    return total


def kept_widths(report: Report) -> Counter[tuple[int, int]]:
    return Counter((group.units, group.kept) for group in report.groups if group.kept < group.units)


def left_whole(report: Report) -> Counter[tuple[int, str]]:
    return Counter((group.units, group.reason) for group in report.groups if group.kept == group.units)


def in_millions(weights: int) -> str:
    return f"{weights / 1e6:.2f}"


def in_gflops(macs: int) -> str:
    return f"{2 * macs / 1e9:.2f}"
