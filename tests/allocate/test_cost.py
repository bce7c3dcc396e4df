"""The cost that is predicted is the cost of the model that comes out: MACs and parameters, to the unit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_nets import MODELS, REAL, Net, attention, convnet, grouped, residual

import onnxprune
from onnxprune.allocate.cost import CostModel
from onnxprune.allocate.ladder import build_ladder
from onnxprune.analysis import analyze
from onnxprune.graph.build import build_axis_graph
from onnxprune.graph.groups import partition
from onnxprune.model.finalize import finalize
from onnxprune.model.normalize import normalize
from onnxprune.model.shapes import infer_shapes
from onnxprune.rules import default_rules
from onnxprune.surgery.keep import kept_positions
from onnxprune.surgery.remove import remove
from onnxprune.testing import draw_keep


def depthwise() -> ir.Model:
    net = Net()
    x = net.op("Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "expand", (24, 3, 1, 1)), name="r0")
    x = net.op(
        "Clip", net.conv(x, "depth", (24, 1, 3, 3), group=24), net.constant(np.float32(0)), name="clip"
    )
    x = net.op("Relu", net.conv(x, "project", (16, 24, 1, 1)), name="r1")
    return net.model(net.head(x, 16))


def concatenated() -> ir.Model:
    net = Net()
    x = net.op("Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "stem", (16, 3, 3, 3)), name="r0")
    a = net.op("Relu", net.conv(x, "a", (16, 16, 3, 3)), name="ra")
    b = net.op("Relu", net.conv(x, "b", (8, 16, 1, 1)), name="rb")
    x = net.op("Concat", x, a, b, a, axis=1, name="concat")
    return net.model(net.head(net.op("Relu", net.conv(x, "mix", (16, 56, 1, 1)), name="r1"), 16))


def transposed() -> ir.Model:
    net = Net()
    x = net.op("Relu", net.conv(net.data("image", ("n", 3, 4, 4)), "down", (16, 3, 3, 3)), name="r0")
    weight, bias = net.normal((16, 12, 2, 2), "up.weight"), net.normal((12,), "up.bias")
    x = net.op("ConvTranspose", x, weight, bias, name="up", strides=[2, 2], kernel_shape=[2, 2])
    return net.model(net.head(net.op("Relu", x, name="r1"), 12))


def shared_biases() -> ir.Model:
    """One zero vector serves as the bias of three convolutions, as exporters store it."""
    net = Net()
    zero = net.constant(np.zeros(16, np.float32), "zero")
    x = net.data("image", ("n", 3, 8, 8))
    for number, before in enumerate((3, 16, 16)):
        weight = net.normal((16, before, 3, 3), f"w{number}")
        x = net.op("Conv", x, weight, zero, name=f"conv{number}", kernel_shape=[3, 3], pads=[1] * 4)
        x = net.op("Relu", x, name=f"relu{number}")
    return net.model(net.head(x, 16))


def shared_scales() -> ir.Model:
    """One vector scales two layers: equal again only where both lose the same channels."""
    net = Net()
    scale = net.constant(np.linspace(0.5, 2, 16).astype(np.float32), "scale")
    x = net.data("x", ("n", 8))
    for number, before in enumerate((8, 16)):
        x = net.op("Mul", net.linear(x, f"fc{number}", before, 16), scale, name=f"scaled{number}")
    return net.model(net.linear(x, "out", 16, 4))


def tied_weights() -> ir.Model:
    """One weight in two layers: its units are tied, its elements count once, its MACs twice."""
    net = Net()
    weight = net.normal((16, 16), "tied")
    x = net.op("Relu", net.linear(net.data("x", ("n", 6)), "first", 6, 16), name="r0")
    for number in range(2):
        x = net.op("Relu", net.op("MatMul", x, weight, name=f"use{number}"), name=f"r{number + 1}")
    return net.model(net.linear(x, "out", 16, 4))


NETS = {
    "convnet": convnet,
    "norm": lambda: convnet(norm=True),
    "residual": residual,
    "grouped": grouped,
    "whole-groups": lambda: grouped(104, 13),
    "attention": attention,
    "depthwise": depthwise,
    "concatenated": concatenated,
    "transposed": transposed,
    "shared-biases": shared_biases,
    "shared-scales": shared_scales,
    "tied-weights": tied_weights,
}
TRAINED = sorted(path.name for path in MODELS.glob("*.onnx"))


def count_params(model: ir.Model) -> int:
    """Elements of float initializers, Constant nodes included."""
    tensors = [v.const_value for v in model.graph.initializers.values()]
    for node in model.graph:
        if node.op_type == "Constant" and "value" in node.attributes:
            tensors.append(node.attributes["value"].as_tensor())
    return sum(t.size for t in tensors if t is not None and t.dtype.is_floating_point())


def check_predictions(path, seeds=range(4)):
    analysis = analyze(path)
    assert analysis.cost.params == count_params(analysis.source.ir)
    for seed in seeds:
        rng = np.random.default_rng(seed)
        chosen = [g for g in analysis.groups.values() if rng.random() < 0.7 or seed == 0]
        keep = {group.id: draw_keep(group, rng) for group in chosen}
        cut = finalize(remove(analysis.axis_graph, kept_positions(analysis.groups, keep)))
        predicted = analysis.costs.cost(keep)
        assert predicted.params == count_params(cut), seed
        assert predicted == full_cost(cut, analysis.bindings), seed


def full_cost(model, bindings):
    normal = normalize(model)
    axis_graph = build_axis_graph(normal, infer_shapes(normal, bindings), default_rules())
    return CostModel(axis_graph, partition(axis_graph)).full


@pytest.mark.parametrize("name", NETS)
def test_predictions(tmp_path, name):
    ir.save(NETS[name](), tmp_path / "net.onnx")
    check_predictions(tmp_path / "net.onnx")


@pytest.mark.parametrize("name", TRAINED)
def test_predictions_on_trained_models(name):
    check_predictions(MODELS / name, seeds=range(2))


@pytest.mark.real
@pytest.mark.parametrize("name", ["cifar10_resnet20_ts", "wild_ultraface_rfb320_raw_opset9"])
def test_predictions_on_published_models(name):
    check_predictions(REAL / "models" / f"{name}.onnx", seeds=range(1))


@pytest.mark.parametrize("name", [*NETS, *TRAINED])
def test_the_report_is_what_an_analysis_of_the_output_finds(tmp_path, name):
    path = MODELS / name
    if name in NETS:
        path = tmp_path / "net.onnx"
        ir.save(NETS[name](), path)
    report = onnxprune.prune(path, tmp_path / "out.onnx", params=0.6, round_to=4, best_effort=True).report
    again = onnxprune.analyze(tmp_path / "out.onnx", bindings=report.bindings)
    assert (again.cost.macs, again.cost.params) == (report.after.macs, report.after.params)
    assert report.after.params < report.before.params
    assert report.target.achieved == report.after.params / report.before.params


def test_costs_by_hand(tmp_path):
    ir.save(convnet([16, 8]), tmp_path / "net.onnx")
    costs = analyze(tmp_path / "net.onnx", bindings={"n": 3}).costs
    assert costs.full.macs == 3 * (64 * 9 * (3 * 16 + 16 * 8) + 8 * 4)
    assert costs.full.params == 27 * 16 + 16 + 144 * 8 + 8 + 8 * 4 + 4
    keep = np.arange(16) >= 4
    assert costs.cost({"g0": keep}).macs == 3 * (64 * 9 * (3 * 12 + 12 * 8) + 8 * 4)
    assert costs.cost({"g0": keep}).params == 27 * 12 + 12 + 108 * 8 + 8 + 8 * 4 + 4


def test_shared_vectors_count_once(tmp_path):
    ir.save(shared_biases(), tmp_path / "net.onnx")
    analysis = analyze(tmp_path / "net.onnx")
    weights = 16 * 27 + 2 * 16 * 144 + 16 * 4 + 4
    assert analysis.cost.params == weights + 16
    keep = {"g0": np.arange(16) < 8, "g1": np.arange(16) < 12}
    cut = 8 * 27 + 12 * 72 + 16 * 108 + 16 * 4 + 4
    assert analysis.costs.cost(keep).params == cut + 8 + 12 + 16
    same = {"g0": np.arange(16) < 12, "g1": np.arange(16) >= 4}  # zeros are equal wherever they stood
    assert analysis.costs.cost(same).params == 12 * 27 + 12 * 108 + 16 * 108 + 16 * 4 + 4 + 12 + 16


@pytest.mark.parametrize("name", NETS)
def test_macs_along_ladders_are_those_of_the_kept_units(tmp_path, name):
    path = tmp_path / "net.onnx"
    ir.save(NETS[name](), path)
    analysis = analyze(path)
    rng = np.random.default_rng(0)
    ladders = [
        build_ladder(group, rng.random(group.units), round_to=1, min_channels=1)
        for group in analysis.groups.values()
    ]
    removals = [analysis.costs.removals(ladder.group, ladder.rungs) for ladder in ladders]
    for _ in range(10):
        drops = [int(rng.integers(0, ladder.height)) for ladder in ladders]
        keep = {lad.group.id: lad.keep(n) for lad, n in zip(ladders, drops, strict=True)}
        removed = [each[n] for each, n in zip(removals, drops, strict=True)]
        assert analysis.costs.after(removed, analysis.costs.amount("macs")) == analysis.costs.cost(keep).macs
