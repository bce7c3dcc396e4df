"""Traps into which earlier tools fell: one test each, named after the trap."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_nets import Net, convnet, grouped, residual, save

import onnxprune
from onnxprune.cli import main
from onnxprune.errors import Reason, TargetError
from onnxprune.rules import Rule, default_rules


def run(path, feed, outputs=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(outputs, feed)


def images(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def shapes(path):
    return {tensor.name: list(tensor.dims) for tensor in onnx.load(path).graph.initializer}


def both_ways(path, tmp_path, **options):
    """Prune by removal and by masking; return the two files."""
    removed, masked = tmp_path / "removed.onnx", tmp_path / "masked.onnx"
    onnxprune.prune(path, removed, **options)
    onnxprune.prune(path, masked, mode="mask", **options)
    return removed, masked


def test_a_threshold_that_takes_ties_along_or_removes_at_level_0(tmp_path):
    """Exactly k units go where all scores are equal, and a level below one step removes none."""
    model = convnet([64, 32])
    for value in model.graph.initializers.values():
        value.const_value = ir.Tensor(np.full(value.shape.numpy(), 0.25, np.float32), name=value.name)
    path = save(model, tmp_path / "net.onnx")
    analysis = onnxprune.analyze(path)
    for level, lost in ((0.2, (8, 0)), (0.4, (24, 8)), (0.5, (32, 16))):
        plan = onnxprune.plan(analysis, ratio=level, scope="uniform")
        assert tuple(int((~plan.keep[g]).sum()) if g in plan.keep else 0 for g in ("g0", "g1")) == lost
    with pytest.raises(TargetError, match="nothing is cut"):
        onnxprune.plan(analysis, ratio=0.001, scope="uniform")


@pytest.mark.parametrize("criterion", ["l1", "l2", "geometric-median"])
def test_a_layer_emptied_by_global_ranking(tmp_path, criterion):
    """The scores of one layer are all the lowest: it keeps a tenth, in a multiple of 8 (of 4 if narrow)."""
    model = convnet([16, 128, 64])
    weight = model.graph.initializers["conv1.weight"]
    data = weight.const_value.numpy().copy()
    data[1:] *= 1e-6  # all but one filter are next to nothing
    weight.const_value = ir.Tensor(data, name=weight.name)
    path = save(model, tmp_path / "net.onnx")
    onnxprune.prune(path, tmp_path / "out.onnx", macs=0.25, criterion=criterion)
    assert 16 <= shapes(tmp_path / "out.onnx")["conv1.weight"][0] < 64
    least = onnxprune.plan(onnxprune.analyze(path), macs=0.001, criterion=criterion, best_effort=True)
    assert [int(flags.sum()) for flags in least.keep.values()] == [4, 16, 8]


@pytest.mark.parametrize("op_type", ["Softmax", "LayerNormalization"])
def test_softmax_or_layer_norm_treated_as_identity(tmp_path, op_type):
    net = Net()
    x = net.linear(net.data("x", ("n", 8)), "before", 8, 32)
    scale = [net.normal((32,), "scale")] if op_type == "LayerNormalization" else []
    x = net.op(op_type, x, *scale, axis=-1, name="norm")
    path = save(net.model(net.linear(x, "after", 32, 4)), tmp_path / "net.onnx")
    analysis = onnxprune.analyze(path)
    assert not analysis.groups
    reason = Reason.SOFTMAX if op_type == "Softmax" else Reason.NORMALIZED
    assert [(b.reason, b.layers) for b in analysis.blocked if "before" in b.layers] == [(reason, ("before",))]


@pytest.mark.parametrize("op_type", ["Sigmoid", "Softplus", "Cos", "Exp"])
def test_a_zero_filter_whose_activation_is_not_zero(tmp_path, op_type):
    """The filter and its bias are zero, but f(0) != 0 reaches the next layer: masking has to happen there."""
    net = Net()
    x = net.op(op_type, net.conv(net.data("image", ("n", 3, 8, 8)), "a", (16, 3, 3, 3)), name="act")
    x = net.op("Relu", net.conv(x, "b", (16, 16, 3, 3)), name="relu")
    model = net.model(net.head(x, 16))
    for name in ("a.weight", "a.bias"):
        value = model.graph.initializers[name]
        data = value.const_value.numpy().copy()
        data[4:12] = 0
        value.const_value = ir.Tensor(data, name=name)
    path = save(model, tmp_path / "net.onnx")
    removed, masked = both_ways(path, tmp_path, ratio=0.25, only=["a"], best_effort=True, slim=False)
    feed = {"image": images(2, 3, 8, 8)}
    original, cut, zeroed = (run(file, feed)[0] for file in (path, removed, masked))
    assert shapes(removed)["a.weight"][0] == 8  # the zero filters went
    np.testing.assert_allclose(zeroed, cut, atol=1e-5)
    assert np.abs(original - cut).max() > 1e-3  # and that is not free, as earlier tools believed


def test_batch_norm_beta_left_behind_on_a_dropped_channel(tmp_path):
    model = convnet([16, 16], norm=True)
    beta = model.graph.initializers["bn0.bias"]
    beta.const_value = ir.Tensor(np.full(16, 10, np.float32), name="bn0.bias")
    path = save(model, tmp_path / "net.onnx")
    removed, masked = both_ways(path, tmp_path, ratio=0.5, scope="uniform")
    feed = {"image": images(2, 3, 8, 8)}
    np.testing.assert_allclose(run(masked, feed)[0], run(removed, feed)[0], rtol=1e-4, atol=1e-4)
    assert shapes(removed)["bn0.bias"] == [8]


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("macs", [0.9, 0.7, 0.5, 0.3])
def test_odd_widths_that_make_the_model_slower(tmp_path, scope, macs):
    path = save(convnet([40, 100, 64]), tmp_path / "net.onnx")
    onnxprune.prune(path, tmp_path / "out.onnx", macs=macs, scope=scope)
    widths = {name: dims[0] for name, dims in shapes(tmp_path / "out.onnx").items() if len(dims) == 4}
    original = {"conv0.weight": 40, "conv1.weight": 100, "conv2.weight": 64}
    assert widths != original
    assert all(width % 8 == 0 or width == original[name] for name, width in widths.items()), widths


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16], ids=lambda dtype: dtype.name)
def test_half_precision_weights_silently_skipped(tmp_path, dtype):
    model = convnet([32, 32], dtype=dtype)
    model.graph.opset_imports[""] = 22
    path = save(model, tmp_path / "net.onnx")
    report = onnxprune.prune(path, tmp_path / "out.onnx", ratio=0.5).report
    assert report.dropped == 32
    assert report.soundness.max_abs_output > 0
    pruned = onnx.load(tmp_path / "out.onnx")
    assert {tensor.data_type for tensor in pruned.graph.initializer} == {int(dtype)}


@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_the_requested_ratio_printed_as_if_it_were_the_achieved_one(tmp_path, scope, capsys):
    path = save(convnet([16, 32, 24]), tmp_path / "net.onnx")
    report = tmp_path / "report.json"
    with pytest.raises(SystemExit):
        main(["prune", str(path), "--ratio", "0.4", "--scope", scope, "--report", str(report)])
    target = json.loads(report.read_text())["target"]
    before, after = shapes(path), shapes(tmp_path / "net.pruned.onnx")
    gone = sum(before[name][0] - after[name][0] for name in before if len(before[name]) == 4)
    assert target["achieved"] == gone / 72
    assert target["achieved"] != target["requested"] == 0.4
    assert target["met"] == (target["achieved"] >= 0.4)
    assert f"achieved {gone / 72:.1%}" in capsys.readouterr().out


def test_random_tie_breaking(tmp_path):
    """Many equal scores, several runs, other orders of the initializers: always the lowest indices go."""
    model = convnet([64, 64])
    for value in model.graph.initializers.values():
        value.const_value = ir.Tensor(np.full(value.shape.numpy(), 0.25, np.float32), name=value.name)
    proto = ir.to_proto(model)
    for turn in range(3):
        tensors = list(proto.graph.initializer)
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(tensors[turn:] + tensors[:turn])
        path = tmp_path / f"net{turn}.onnx"
        onnx.save(proto, path)
        plan = onnxprune.plan(onnxprune.analyze(path), ratio=0.25, scope="global")
        assert [np.flatnonzero(~flags).tolist() for flags in plan.keep.values()] == [list(range(32))]


def test_exceptions_swallowed_into_nothing_was_pruned(tmp_path):
    """Where nothing can be cut the tool says so and fails; where a rule fails the report names it."""

    def fails(op, refit):
        raise RuntimeError("the rule is broken")

    relu = default_rules()["", "Relu"]
    rules = default_rules() | {("", "Relu"): Rule(relu.relate, fails)}
    path = save(convnet(), tmp_path / "net.onnx")
    options = {"macs": 0.25, "scope": "uniform", "rules": rules}
    with pytest.raises(TargetError, match="nothing can be cut") as error:
        onnxprune.prune(path, tmp_path / "out.onnx", **options)
    assert "3 groups, g0, g1, g2: the check found masked != removed" in error.value.hint
    assert not (tmp_path / "out.onnx").exists()
    report = onnxprune.prune(path, tmp_path / "out.onnx", best_effort=True, **options).report
    assert set(report.soundness.rejected_groups) == {"g0", "g1", "g2"}
    assert all("the rule is broken" in why for why in report.soundness.why.values())
    assert "nothing was cut: the output is the same model" in report.warnings


def test_whole_opset_imports_lost(tmp_path):
    proto = ir.to_proto(convnet())
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    proto.opset_import.append(helper.make_opsetid("com.acme.unused", 7))
    onnx.save(proto, tmp_path / "net.onnx")
    for mode in ("remove", "mask"):
        onnxprune.prune(tmp_path / "net.onnx", tmp_path / f"{mode}.onnx", mode=mode)
        assert list(onnx.load(tmp_path / f"{mode}.onnx").opset_import) == list(proto.opset_import)


def test_stale_value_info(tmp_path):
    """Every declared shape of the output is the one that onnx infers without any of them."""
    path = save(residual(), tmp_path / "net.onnx")
    assert onnx.load(path).graph.value_info  # the original declares them
    onnxprune.prune(path, tmp_path / "out.onnx", ratio=0.5)
    pruned = onnx.load(tmp_path / "out.onnx")
    declared = {info.name: info.type.tensor_type.shape.dim for info in pruned.graph.value_info}
    del pruned.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(pruned, strict_mode=True, data_prop=True)
    found = {info.name: info.type.tensor_type.shape.dim for info in inferred.graph.value_info}
    compared = 0
    for name in declared.keys() & found.keys():
        assert len(declared[name]) == len(found[name])
        for mine, theirs in zip(declared[name], found[name], strict=True):
            if mine.HasField("dim_value") and theirs.HasField("dim_value"):
                assert mine.dim_value == theirs.dim_value, name
                compared += 1
    assert compared >= 20


def test_initializers_that_are_also_graph_inputs(tmp_path):
    """IR version 3 lists every initializer among the inputs: they are cut there, too."""
    proto = ir.to_proto(convnet(batch=2))
    proto.ir_version = 3
    proto.opset_import[0].version = 11
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))
    del proto.graph.value_info[:]
    onnx.save(proto, tmp_path / "net.onnx")
    onnx.checker.check_model(proto, full_check=True)
    onnxprune.prune(tmp_path / "net.onnx", tmp_path / "out.onnx", ratio=0.5)
    pruned = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(pruned, full_check=True)
    assert [value.name for value in pruned.graph.input] == [value.name for value in proto.graph.input]
    listed = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in pruned.graph.input}
    for tensor in pruned.graph.initializer:
        assert listed[tensor.name] == list(tensor.dims)
    assert listed["conv1.weight"][0] < 32
    run(tmp_path / "out.onnx", {"image": images(2, 3, 8, 8)})


@pytest.mark.parametrize("channels", ["constant", "computed"])
def test_resize_with_sizes(tmp_path, channels):
    """`sizes` carries the channel count: 16 before the cut, 8 after it."""
    net = Net()
    x = net.op("Relu", net.conv(net.data("image", (1, 3, 8, 8)), "a", (16, 3, 3, 3)), name="r0")
    if channels == "constant":
        sizes = net.constant([1, 16, 12, 12], "sizes")
    else:  # as exporters write it: the batch and the channels of the input, then constants
        head = net.op("Slice", net.op("Shape", x), net.constant([0]), net.constant([2]), name="head_of_shape")
        sizes = net.op("Concat", head, net.constant([12, 12], "hw"), axis=0, name="sizes")
    x = net.op("Resize", x, None, None, sizes, mode="nearest", name="resize")
    path = save(
        net.model(net.head(net.op("Relu", net.conv(x, "b", (16, 16, 3, 3)), name="r1"), 16)), tmp_path / "n"
    )
    removed, masked = both_ways(path, tmp_path, ratio=0.5)
    assert shapes(removed)["a.weight"][0] == 8
    feed = {"image": images(1, 3, 8, 8)}
    np.testing.assert_allclose(run(masked, feed)[0], run(removed, feed)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", [[1, 16, 64], [1, -1, 64], [0, 16, -1], [1, 4, 4, 64]])
def test_a_constant_batch_size_in_a_reshape(tmp_path, target):
    """Exporters trace a batch of 1 into the constant; the channel count in it is refitted, the 1 stays."""
    net = Net()
    x = net.op("Relu", net.conv(net.data("image", (1, 3, 8, 8)), "a", (16, 3, 3, 3)), name="r0")
    flat = net.op("Reshape", x, net.constant(target, "target"), name="flat")
    back = net.op("Reshape", flat, net.constant([1, -1, 8, 8], "back"), name="unflat")
    x = net.op("Relu", net.conv(back, "b", (16, 16, 3, 3)), name="r1")
    path = save(net.model(net.head(x, 16)), tmp_path / "net.onnx")
    removed, masked = both_ways(path, tmp_path, ratio=0.5, scope="uniform", round_to=4)
    assert shapes(removed)["a.weight"][0] == 8
    feed = {"image": images(1, 3, 8, 8)}
    np.testing.assert_allclose(run(masked, feed)[0], run(removed, feed)[0], rtol=1e-4, atol=1e-5)


def test_concat_of_a_value_with_itself(tmp_path):
    """Channel i of the first half and of the second half are one unit: both go, or none."""
    net = Net()
    x = net.op("Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "a", (16, 3, 3, 3)), name="r0")
    x = net.op("Concat", x, x, axis=1, name="twice")
    x = net.op("Relu", net.conv(x, "b", (16, 32, 3, 3)), name="r1")
    path = save(net.model(net.head(x, 16)), tmp_path / "net.onnx")
    analysis = onnxprune.analyze(path)
    assert analysis.groups["g0"].units == 16
    plan = onnxprune.plan(analysis, ratio=0.25, scope="uniform", only=["a"], round_to=4)
    kept = plan.initializers["a.weight"][0]
    assert plan.initializers["b.weight"][1] == [*kept, *(16 + i for i in kept)]
    removed, masked = both_ways(path, tmp_path, ratio=0.5)
    feed = {"image": images(2, 3, 8, 8)}
    np.testing.assert_allclose(run(masked, feed)[0], run(removed, feed)[0], rtol=1e-4, atol=1e-5)


def gated_mlp() -> ir.Model:
    net = Net()
    x = net.data("x", ("n", 16))
    gate, up = net.linear(x, "gate", 16, 48), net.linear(x, "up", 16, 48)
    swish = net.op("Mul", gate, net.op("Sigmoid", gate, name="sigmoid"), name="swish")
    return net.model(net.linear(net.op("Mul", swish, up, name="gated"), "down", 48, 16))


def squeeze_and_excitation() -> ir.Model:
    net = Net()
    x = net.op("Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "a", (48, 3, 3, 3)), name="r0")
    pooled = net.op("GlobalAveragePool", x, name="squeeze")
    inner = net.op("Relu", net.conv(pooled, "reduce", (16, 48, 1, 1)), name="r1")
    gate = net.op("Sigmoid", net.conv(inner, "expand", (48, 16, 1, 1)), name="excite")
    return net.model(net.head(net.op("Mul", x, gate, name="gated"), 48))


@pytest.mark.parametrize(
    ("build", "units", "sources"),
    [
        (gated_mlp, {"g0": 48}, {"gate.weight[0]", "gate.bias[0]", "up.weight[0]", "up.bias[0]"}),
        (
            squeeze_and_excitation,
            {"g0": 48, "g1": 16},
            {"a.weight[0]", "a.bias[0]", "expand.weight[0]", "expand.bias[0]"},
        ),
    ],
    ids=["swiglu", "se"],
)
def test_gated_branches_counted_twice(tmp_path, build, units, sources):
    """A gate and what it gates are one unit: one group, its units counted once, its cost once."""
    path = save(build(), tmp_path / "net.onnx")
    analysis = onnxprune.analyze(path)
    assert {name: group.units for name, group in analysis.groups.items()} == units
    group = analysis.groups["g0"]
    assert {use.axis.name for use in group.sources} == sources
    saved = analysis.costs.per_unit(group)
    report = onnxprune.prune(
        path, tmp_path / "out.onnx", ratio=0.5, only=["re:gate|^a$"], scope="uniform"
    ).report
    assert report.groups[0].kept == 24
    assert report.before.params - report.after.params == 24 * saved.params
    assert report.before.macs - report.after.macs == 24 * saved.macs
    again = onnxprune.analyze(tmp_path / "out.onnx")
    assert again.cost.params == report.after.params


def two_group_counts(channels: int, first: int, second: int) -> ir.Model:
    """One convolution whose channels go through two grouped ones with different numbers of groups."""
    net = Net()
    image = net.data("image", ("n", 3, 6, 6))
    x = net.op("Relu", net.conv(image, "a", (channels, 3, 1, 1)), name="r0")
    branches = [
        net.conv(x, name, (channels, channels // count, 3, 3), group=count)
        for name, count in (("first", first), ("second", second))
    ]
    x = net.op("Concat", *(net.op("Relu", branch) for branch in branches), axis=1, name="joined")
    return net.model(net.head(x, 2 * channels))


@pytest.mark.parametrize(("channels", "first", "second", "blocks"), [(32, 4, 8, 8), (24, 4, 6, 12)])
def test_a_unit_that_reaches_two_different_group_counts(tmp_path, channels, first, second, blocks):
    """Every group of both convolutions keeps equally many channels."""
    path = save(two_group_counts(channels, first, second), tmp_path / "net.onnx")
    analysis = onnxprune.analyze(path)
    group = next(g for g in analysis.groups.values() if g.name == "a")
    assert (group.units, group.block_count) == (channels, blocks)
    removed, masked = both_ways(path, tmp_path, ratio=0.5, scope="uniform", only=["a"], round_to=1)
    counts = {n.name: a.i for n in onnx.load(removed).graph.node for a in n.attribute if a.name == "group"}
    assert (counts["first"], counts["second"]) == (first, second)
    after = shapes(removed)
    assert after["a.weight"][0] == channels // 2
    assert after["first.weight"][1] * first == after["second.weight"][1] * second == channels // 2
    feed = {"image": images(2, 3, 6, 6)}
    np.testing.assert_allclose(run(masked, feed)[0], run(removed, feed)[0], rtol=1e-4, atol=1e-5)


def test_group_counts_that_do_not_fit_together(tmp_path):
    """12 channels in 4 and in 3 groups: there is nothing to choose from, and the reason is given."""
    analysis = onnxprune.analyze(save(two_group_counts(12, 4, 3), tmp_path / "net.onnx"))
    assert "a" not in {group.name for group in analysis.groups.values()}
    reasons = {layer: b.reason for b in analysis.blocked for layer in b.layers}
    assert reasons["a"] in (Reason.INCOMPATIBLE_BLOCKS, Reason.INDIVISIBLE)


def test_balanced_groups_keep_rectangles(tmp_path):
    path = save(grouped(32, 4), tmp_path / "net.onnx")
    removed, masked = both_ways(path, tmp_path, ratio=0.5, round_to=4)
    weight = numpy_helper.to_array(
        next(t for t in onnx.load(removed).graph.initializer if t.name == "grouped.weight")
    )
    assert weight.shape[0] % 4 == 0
    feed = {"image": images(2, 3, 6, 6)}
    np.testing.assert_allclose(run(masked, feed)[0], run(removed, feed)[0], rtol=1e-4, atol=1e-5)
