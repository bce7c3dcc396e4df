"""A model and the one it came from: what matches what, what was cut, zeroed and changed."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from small_nets import MODELS, Net, attention, convnet, grouped, save

import onnxprune
from onnxprune.graph.axes import Axis
from onnxprune.inspection.part import locate
from onnxprune.report.stats import render_json
from onnxprune.surgery.keep import kept_positions


def rename(model, nodes=None, weights=None):
    for node in model.graph:
        if nodes is not None:
            node.name = nodes(node.name)
    for value in list(model.graph.initializers.values()) if weights is not None else []:
        value.name = weights(value.name)
    return model


def change(model, name, function):
    value = model.graph.initializers[name]
    value.const_value = ir.Tensor(function(value.const_value.numpy().copy()), name=name)
    return model


def pruned_net(tmp_path, build=convnet, **options):
    path = save(build(), tmp_path / "net.onnx")
    return path, onnxprune.prune(path, tmp_path / "small.onnx", **{"ratio": 0.3, **options})


def test_what_was_cut(tmp_path):
    path, pruned = pruned_net(tmp_path)
    found = onnxprune.stats(tmp_path / "small.onnx", against=path).against
    report = pruned.report
    assert (found.macs_before, found.macs_after) == (report.before.macs, report.after.macs)
    assert (found.elements_before, found.elements_after) == (report.before.params, report.after.params)
    assert (found.bytes_before, found.bytes_after) == (
        path.stat().st_size,
        (tmp_path / "small.onnx").stat().st_size,
    )
    shapes = {tuple(v.const_value.shape.numpy()) for v in pruned.model.graph.initializers.values()}
    kept = {group.id: group.kept for group in report.groups}
    statistics = found.statistics
    assert statistics.full_flops == 2 * report.before.macs
    assert statistics.current_flops == 2 * report.after.macs
    assert statistics.full_filters == 16 + 32 + 24 + 4
    assert statistics.current_filters == sum(kept.values()) + 4
    assert statistics.full_params == report.before.params - statistics.full_filters  # all have a bias
    assert statistics.current_params == sum(int(np.prod(shape)) for shape in shapes if len(shape) > 1)
    levels = {row.name: row.filter_pruning_level for row in statistics.pruned_layers_summary}
    assert levels == {
        f"conv{number}": pytest.approx(1 - kept[f"g{number}"] / width, abs=1e-12)
        for number, width in enumerate((16, 32, 24))
        if kept[f"g{number}"] < width
    }
    masks = {
        row.name: (tuple(row.weight_shape), tuple(row.mask_shape)) for row in statistics.pruned_layers_summary
    }
    assert masks["conv1"] == ((32, 16, 3, 3), (32,))
    assert {layer.matched_by for layer in found.layers} == {"weight"}
    assert not found.unmatched_before and not found.unmatched_after
    assert not found.zeroed


def test_which_channels_stayed(tmp_path):
    path, pruned = pruned_net(tmp_path)
    analysis = onnxprune.analyze(path)
    kept = kept_positions(analysis.groups, pruned.plan.keep)
    weights = analysis.axis_graph.model.graph.initializers
    found = onnxprune.stats(tmp_path / "small.onnx", against=path).against
    assert [layer.name for layer in found.parts]
    for layer in found.parts:
        value = weights[f"{layer.original}.weight"]
        assert layer.part.exact is True
        for dim, positions in ((0, layer.part.rows), (1, layer.part.columns)):
            extent = value.const_value.shape[dim]
            flags = kept.get(Axis(value, dim), np.ones(extent, bool))
            assert positions.tolist() == np.flatnonzero(flags).tolist()
    assert f"{len(found.parts)} hold exactly the original's weights" in str(
        onnxprune.stats(tmp_path / "small.onnx", against=path)
    )


def test_repaired_weights_are_seen(tmp_path):
    path = MODELS / "digits_resnet.onnx"
    pruned = onnxprune.prune(
        path, tmp_path / "small.onnx", macs=0.6, data=MODELS / "digits_calib.npz", samples=64
    )
    repaired = {layer.name for layer in pruned.report.repairs if layer.kind == "affine"}
    assert repaired
    found = onnxprune.stats(pruned.path, against=path).against
    by_name = {layer.original: layer for layer in found.layers}
    for name in repaired:
        layer = by_name[name]
        assert layer.weights.largest > 0 if layer.part is None else layer.part.exact is False
    untouched = set(by_name) - {layer.name for layer in pruned.report.repairs if layer.kind != "none"}
    for name in untouched:
        layer = by_name[name]
        assert layer.weights.largest == 0 if layer.part is None else layer.part.exact is True
    assert "(repaired or retrained)" in str(onnxprune.stats(pruned.path, against=path))


def test_masked_weights_and_kept_ones_that_changed(tmp_path):
    path = save(convnet(), tmp_path / "net.onnx")

    def mask(array):
        array[:, :4] = 0  # four input channels
        array[10] = 0  # and a filter
        array[0, 5, 1, 1] = 0
        array[3, 7, 0, 0] += 0.5
        return array

    after = save(change(convnet(), "conv1.weight", mask), tmp_path / "masked.onnx")
    found = onnxprune.stats(after, against=path).against
    layer = next(layer for layer in found.layers if layer.name == "conv1")
    original = convnet().graph.initializers["conv1.weight"].const_value.numpy()
    new = mask(original.copy())
    weights = layer.weights
    assert weights.zeroed == np.count_nonzero((new == 0) & (original != 0)) == 31 * 4 * 9 + 16 * 9 + 1
    assert (weights.zeroed_filters, weights.zeroed_channels, weights.revived) == (1, 4, 0)
    assert weights.largest == pytest.approx(0.5, abs=1e-6)
    assert weights.scale == np.abs(original).max()
    assert found.zeroed == weights.zeroed
    assert [layer.name for layer in found.changed] == ["conv1"]
    assert found.statistics.filter_pruning_level == 0
    back = onnxprune.stats(path, against=after).against
    layer = next(layer for layer in back.layers if layer.name == "conv1")
    assert (layer.weights.zeroed, layer.weights.revived) == (0, weights.zeroed)
    page = str(onnxprune.stats(after, against=path))
    assert "1,261 weights in 1 layer became zero" in page
    assert "1 whole filter and 4 whole input channels, which are still computed: conv1" in page
    assert "changed (repaired or retrained) in 1 of 4 layers" in page


@pytest.mark.parametrize("by", ["node", "order"])
def test_matching_without_the_names_of_weights(tmp_path, by):
    path, _ = pruned_net(tmp_path)
    model = rename(ir.load(tmp_path / "small.onnx"), weights=lambda name: f"w/{name}")
    if by == "order":
        rename(model, nodes=lambda name: f"n/{name}")
    found = onnxprune.stats(save(model, tmp_path / "renamed.onnx"), against=path).against
    assert [(layer.original, layer.matched_by) for layer in found.layers] == [
        (name, by) for name in ("conv0", "conv1", "conv2", "head")
    ]
    assert not found.unmatched_before and not found.unmatched_after


def test_what_cannot_be_matched_is_said(tmp_path):
    """A layer of the middle is gone and nothing has its old name; the others are matched in order."""
    path = save(convnet([16, 32, 24]), tmp_path / "net.onnx")
    model = convnet([16, 24], seed=1)
    rename(model, nodes=lambda name: f"n/{name}", weights=lambda name: f"w/{name}")
    found = onnxprune.stats(save(model, tmp_path / "short.onnx"), against=path)
    pairs = {layer.original: layer.name for layer in found.against.layers}
    assert pairs in (
        {"conv0": "n/conv0", "conv1": "n/conv1", "head": "n/head"},
        {"conv0": "n/conv0", "conv2": "n/conv1", "head": "n/head"},
    )
    assert len(found.against.unmatched_before) == 1
    assert not found.against.unmatched_after
    assert "1 layer of the original could not be matched" in str(found)
    swapped = onnxprune.stats(path, against=tmp_path / "short.onnx").against
    assert "conv1" in swapped.unmatched_after  # nothing there is as large


def test_names_that_moved_to_another_layer_are_no_match(tmp_path):
    path = save(convnet([16, 32, 24]), tmp_path / "net.onnx")
    after = save(convnet([16, 40, 24]), tmp_path / "wider.onnx")
    found = onnxprune.stats(after, against=path).against
    assert [layer.original for layer in found.layers] == ["conv0", "head"]
    assert found.unmatched_before == ("conv1", "conv2")
    assert found.unmatched_after == ("conv1", "conv2")


def depthwise():
    net = Net()
    x = net.op("Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "expand", (24, 3, 1, 1)), name="r0")
    x = net.op("Relu", net.conv(x, "depth", (24, 1, 3, 3), group=24), name="r1")
    return net.model(net.head(net.conv(x, "project", (16, 24, 1, 1)), 16))


def test_depthwise_layers(tmp_path):
    path, pruned = pruned_net(tmp_path, depthwise)
    found = onnxprune.stats(pruned.path, against=path).against
    middle = next(layer for layer in found.layers if layer.original == "depth")
    (kept,) = (flags for flags in pruned.plan.keep.values() if len(flags) == 24)
    assert middle.part.exact is True
    assert middle.part.rows.tolist() == np.flatnonzero(kept).tolist()
    assert (middle.inputs_before, middle.inputs_after) == (24, kept.sum())


def test_private_columns_of_groups_cannot_be_told(tmp_path):
    path = save(grouped(), tmp_path / "net.onnx")
    model = grouped()
    flags = np.tile(np.arange(8) < 6, 4)  # the first 6 of 8 channels of each of 4 groups
    change(model, "before.weight", lambda array: array[flags])
    change(model, "before.bias", lambda array: array[flags])
    change(model, "grouped.weight", lambda array: array[:, :6])
    for name in ("before.weight", "before.bias", "grouped.weight"):
        value = model.graph.initializers[name]
        value.shape = value.const_value.shape
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    found = onnxprune.stats(save(model, tmp_path / "small.onnx"), against=path)
    parts = {layer.name: layer.part for layer in found.against.parts}
    assert parts["before"].exact is True
    assert parts["grouped"] is None
    assert "1 hold exactly the original's weights of the channels that stayed, 1 could be either" in str(
        found
    )


def test_heads(tmp_path):
    path, pruned = pruned_net(tmp_path, attention, ratio=0.5, best_effort=True)
    assert pruned.plan.dropped
    found = onnxprune.stats(tmp_path / "small.onnx", against=path).against
    assert {layer.original: layer.part.exact for layer in found.parts} == dict.fromkeys(
        ["q", "k", "v", "out"], True
    )
    assert [row.name for row in found.statistics.pruned_layers_summary] == ["q", "k", "v"]


def test_two_spellings_of_a_linear_layer(tmp_path):
    """Gemm with a transposed weight became MatMul, as converters do, and one weight was zeroed."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(6, 10)).astype(np.float32)
    net = Net()
    y = net.op("Gemm", net.data("x", ("n", 10)), net.constant(weight, "fc.weight"), name="fc", transB=1)
    path = save(net.model(y), tmp_path / "gemm.onnx")
    turned = weight.T.copy()
    turned[3, :] = 0
    net = Net()
    y = net.op("MatMul", net.data("x", ("n", 10)), net.constant(turned, "fc.weight_t"), name="fc")
    after = save(net.model(y), tmp_path / "matmul.onnx")
    (layer,) = onnxprune.stats(after, against=path).against.layers
    weights = layer.weights
    assert (layer.matched_by, layer.outputs_after, layer.inputs_after) == ("node", 6, 10)
    assert (weights.zeroed, weights.zeroed_filters, weights.zeroed_channels, weights.largest) == (6, 0, 1, 0)


def test_another_float_type(tmp_path):
    path = save(convnet(), tmp_path / "net.onnx")
    half = save(convnet(dtype=ir.DataType.FLOAT16), tmp_path / "half.onnx")
    found = onnxprune.stats(half, against=path).against
    assert len(found.layers) == found.compared == 4
    assert all(0 < layer.weights.largest <= layer.weights.scale * 2**-11 for layer in found.layers)


def test_the_same_file(tmp_path):
    path = save(convnet(), tmp_path / "net.onnx")
    found = onnxprune.stats(path, against=path)
    assert not found.against.zeroed and not found.against.changed and not found.against.parts
    page = str(found)
    assert "No weight that stayed was changed in the 4 layers of unchanged shape." in page
    assert "No layer that could be matched lost channels." in page
    body = json.loads(render_json(found))
    assert body["against"]["pruning"]["filter_pruning_level"] == 0


def test_other_sizes_of_symbolic_dims_are_said(tmp_path):
    path = save(convnet(batch="n"), tmp_path / "net.onnx")
    other = save(convnet(batch=4), tmp_path / "four.onnx")
    page = str(onnxprune.stats(other, against=path))
    assert "symbolic dims there: n=1; MACs are only comparable at equal sizes" in page
    assert "symbolic dims there" not in str(onnxprune.stats(path, against=path))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("turned", [False, True])
def test_parts_that_lost_only_rows_or_only_columns(turned, dtype):
    whole = np.random.default_rng(0).normal(size=(8, 4, 6)).astype(dtype)
    whole[[2, 5]] = 0  # two equal rows
    kept = [0, 2, 5, 7]
    part = whole[kept]
    found = locate(*(a.transpose(2, 1, 0) for a in (whole, part))) if turned else locate(whole, part)
    went, stayed = (found.columns, found.rows) if turned else (found.rows, found.columns)
    assert found.exact is True
    assert went.tolist() == kept
    assert stayed.tolist() == list(range(6))
    part[3, 1, 1] += 1
    assert locate(whole, part).exact is False


def test_parts():
    rng = np.random.default_rng(0)
    whole = rng.normal(size=(12, 9, 10)).astype(np.float32)
    rows, columns = np.array([1, 2, 7, 11]), np.array([0, 4, 9])
    part = whole[np.ix_(rows, np.arange(9), columns)]
    found = locate(whole, part)
    assert found.exact is True
    assert (found.rows.tolist(), found.columns.tolist()) == (rows.tolist(), columns.tolist())
    changed = part.copy()
    changed[2, 3, 1] += 1
    assert locate(whole, changed).exact is False
    moved = part.copy()
    moved[0, 0, 0], moved[1, 0, 0] = part[1, 0, 0], part[0, 0, 0]
    assert locate(whole, moved).exact is None
    assert locate(whole.astype(np.float16), part.astype(np.float16)).exact is not False
    assert locate(np.ones((4, 1, 4)), np.ones((2, 1, 2))).exact is None
    empty_row = part.copy()
    empty_row[1] = 0
    assert locate(np.where(np.isin(np.arange(12), [2])[:, None, None], 0, whole), empty_row).exact is None
