"""Hand-made nets, one for each way of contributing nothing, and its traps; outputs by onnxruntime alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from slimmed import change, copy_rows, counts, outputs, put, shapes, slimmed
from small_nets import Net, attention, convnet, grouped, residual, save

import onnxprune


@pytest.mark.parametrize("build", [convnet, residual, grouped, attention], ids=lambda build: build.__name__)
def test_nothing_is_found_in_a_model_that_has_nothing(tmp_path, build):
    model = build()
    made = slimmed(model, tmp_path, exact=0)
    assert (made.report.groups, made.report.branches, made.report.left) == ((), (), ())
    assert shapes(made.model) == shapes(model)
    assert "the output is the same model" in str(made.report.warnings)
    for name, value in made.model.graph.initializers.items():
        expected = model.graph.initializers[name].const_value.numpy()
        np.testing.assert_array_equal(value.const_value.numpy(), expected)


# --- zeros -----------------------------------------------------------------------------------------------


def test_channels_that_are_read_with_zeros_go(tmp_path):
    model = change(convnet(), "conv1.weight", put((slice(None), [1, 5]), 0))
    made = slimmed(model, tmp_path)
    assert counts(made) == {"conv0": (2, 0, 0)}
    assert shapes(made.model)["conv0.weight"] == (14, 3, 3, 3)
    assert made.report.after.params < made.report.before.params


def test_filters_of_zeros_go_whose_bias_is_zero_too_even_through_padding(tmp_path):
    model = change(convnet(), "conv0.weight", put([2, 3], 0))
    model = change(model, "conv0.bias", put([2, 3], 0))
    made = slimmed(model, tmp_path)
    assert counts(made) == {"conv0": (2, 0, 0)}


def test_a_bias_that_relu_cuts_off_leaves_zeros(tmp_path):
    model = change(convnet(), "conv0.weight", put([2, 3, 4], 0))
    model = change(model, "conv0.bias", put([2, 3, 4], [-0.5, -1.0, 0.5]))
    made = slimmed(model, tmp_path)
    assert counts(made) == {"conv0": (2, 0, 0)}
    (left,) = made.report.left
    assert (left.name, left.units, left.what) == ("conv0", 1, "constant")
    assert "padded" in left.why


def test_a_layer_of_zeros_alone_keeps_one_unit(tmp_path):
    model = change(convnet(norm=False), "conv1.weight", put(Ellipsis, 0))
    made = slimmed(model, tmp_path)
    assert shapes(made.model)["conv0.weight"][0] == 1


def test_masks_between_two_activations_go(tmp_path):
    """Q.K has no weight that could be zero: prune multiplies the queries by zeros and ones."""
    path = save(attention(), tmp_path / "net.onnx")
    masked = onnxprune.prune(
        path, tmp_path / "m.onnx", ratio=0.4, mode="mask", attention="dims", best_effort=True, round_to=1
    )
    cut = onnxprune.prune(path, ratio=0.4, attention="dims", best_effort=True, round_to=1)
    assert masked.plan.dropped
    assert any("/mask" in name for name in masked.model.graph.initializers)
    made = onnxprune.slim(tmp_path / "m.onnx")
    assert made.report.masks == 1
    assert made.report.units == masked.plan.dropped
    assert [n.op_type for n in made.model.graph] == [n.op_type for n in cut.model.graph]
    assert shapes(made.model) == shapes(cut.model)


def test_equal_numbers_go_of_every_block(tmp_path):
    model = change(grouped(), "after.weight", put((slice(None), [0, 1, 8, 16, 24, 25]), 0))
    made = slimmed(model, tmp_path)
    assert counts(made) == {"grouped": (4, 0, 0)}
    (left,) = made.report.left
    assert (left.what, left.units) == ("zero", 2)
    assert "4 blocks" in left.why


def test_weights_that_callers_may_feed_are_no_zeros(tmp_path):
    model = change(convnet(), "conv1.weight", put((slice(None), [1, 5]), 0))
    model.graph.inputs.append(model.graph.initializers["conv1.weight"])
    path = save(model, tmp_path / "net.onnx")
    assert onnxprune.slim(path).report.units == 0


# --- branches --------------------------------------------------------------------------------------------


def test_a_branch_of_zeros_goes(tmp_path):
    """The last BatchNormalization of a residual block has the scale 0, as some training recipes begin with."""
    net = Net()
    x = net.op("Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "stem", (8, 3, 3, 3)), name="relu0")
    y = net.batch_norm(net.conv(x, "inner", (8, 8, 3, 3)), "bn", 8)
    model = net.model(net.head(net.op("Add", x, y, name="sum"), 8))
    for part in ("weight", "bias"):
        model = change(model, f"bn.{part}", put(Ellipsis, 0))
    made = slimmed(model, tmp_path)
    assert made.report.branches == ("sum",)
    assert not any(name.startswith(("inner", "bn")) for name in made.model.graph.initializers)
    assert "1 sum with zero went: sum" in onnxprune.report.slimmed.summary(made.report)


def test_a_branch_times_zero_goes_and_the_output_keeps_its_name(tmp_path):
    net = Net()
    x = net.data("x", ("n", 8))
    x = net.op("Relu", net.linear(x, "first", 8, 8), name="relu")
    y = net.op("Mul", net.linear(x, "second", 8, 8), net.constant(np.float32(0), "off"), name="scale")
    out = net.ops("Add", y, x, outputs=["out"], name="sum")[0]
    made = slimmed(net.model(out), tmp_path)
    assert made.report.branches == ("sum",)
    assert [v.name for v in made.model.graph.outputs] == ["out"]
    assert set(made.model.graph.initializers) == {"first.weight", "first.bias"}


def test_a_branch_that_widens_the_sum_stays(tmp_path):
    net = Net()
    x, z = net.data("x", ("n", 1, 8)), net.data("z", ("n", 4, 8))
    y = net.op("Mul", z, net.constant(np.float32(0), "off"), name="scale")
    x = net.op("MatMul", net.op("Add", x, y, name="sum"), net.normal((8, 5), "weight"), name="last")
    assert slimmed(net.model(x), tmp_path).report.branches == ()


def test_a_model_that_is_all_branch_keeps_it_and_says_so(tmp_path):
    net = Net()
    x = net.data("x", ("n", 8))
    y = net.op("Mul", net.linear(x, "only", 8, 8), net.constant(np.float32(0), "off"), name="scale")
    made = slimmed(net.model(net.op("Add", x, y, name="sum")), tmp_path)
    assert made.report.branches == ()
    assert "no float weights" in made.report.left[0].why


# --- weights with two lives ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["constant", "duplicate"])
def test_a_table_that_embeds_and_projects_is_not_rewritten(tmp_path, kind):
    """Adding up columns for the projection would change what is looked up."""
    net = Net()
    ids = net.input("ids", (1, 5), ir.DataType.INT64)
    table = net.normal((12, 8), "table")
    x = net.op("Gather", table, ids, axis=0, name="embed")
    x = net.op("Add", x, net.normal((8,), "shift"), name="shift")
    tied = net.op("Transpose", table, perm=[1, 0], name="turn")
    model = net.model(net.op("MatMul", net.op("Sigmoid", x, name="act"), tied, name="logits"))
    columns = put((slice(None), [1, 4]), 0)
    if kind == "duplicate":
        array = model.graph.initializers["table"].const_value.numpy()
        columns = put((slice(None), 4), array[:, 1])
    model = change(model, "table", columns)
    if kind == "duplicate":
        model = change(model, "shift", copy_rows(1, 4))
    path = save(model, tmp_path / "net.onnx")
    made = onnxprune.slim(path, tmp_path / "slim.onnx")
    assert not any("would change" in note for note in made.report.warnings)
    feed = {"ids": np.array([[0, 3, 7, 11, 2]])}
    before, after = (
        onnxruntime.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(None, feed)[0]
        for p in (path, tmp_path / "slim.onnx")
    )
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())


# --- numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["FLOAT16", "DOUBLE"])
def test_other_float_types(tmp_path, dtype):
    model = convnet(dtype=ir.DataType[dtype])
    model = change(model, "conv1.weight", put((slice(None), [1, 5]), 0))
    for part in ("weight", "bias"):
        model = change(model, f"conv2.{part}", copy_rows(2, 9))
    path = save(model, tmp_path / "net.onnx")
    made = onnxprune.slim(path, tmp_path / "slim.onnx")
    assert made.report.after.params < made.report.before.params
    for name, value in made.model.graph.initializers.items():
        assert value.dtype == ir.DataType[dtype], name
    folded = made.report.units == 3
    assert folded or any("would change" in note for note in made.report.warnings)


def test_where_rounding_would_show_only_zeros_go(tmp_path):
    """A constant of 1000 times a weight does not fit into a bias of half precision."""
    net = Net(ir.DataType.FLOAT16)
    x = net.op("Relu", net.linear(net.data("x", ("n", 5)), "first", 5, 8), name="relu")
    model = net.model(net.linear(x, "second", 8, 4))
    model = change(model, "first.weight", put([0, 7], 0))
    model = change(model, "first.bias", put([0, 7], [1000.0, -1000.0]))
    weight = model.graph.initializers["second.weight"].const_value.numpy()
    model = change(model, "second.weight", put((slice(None), 1), 0))
    model = change(model, "second.bias", put(Ellipsis, (-1000.0 * weight[:, 0]).astype(np.float16)))
    made = onnxprune.slim(save(model, tmp_path / "net.onnx"))
    assert counts(made) == {"first": (2, 0, 0)}
    assert any("constants were not folded" in note for note in made.report.warnings)


def test_twice_gives_the_same_bytes(tmp_path):
    model = change(convnet(), "conv1.weight", put((slice(None), [1, 5]), 0))
    path = save(model, tmp_path / "net.onnx")
    onnxprune.slim(path, tmp_path / "a.onnx")
    onnxprune.slim(path, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_external_weights_stay_external(tmp_path):
    model = change(convnet(), "conv1.weight", put((slice(None), [1, 5]), 0))
    ir.save(model, tmp_path / "net.onnx", external_data="weights.bin")
    made = onnxprune.slim(tmp_path / "net.onnx", tmp_path / "slim.onnx")
    assert counts(made) == {"conv0": (2, 0, 0)}
    assert (tmp_path / "slim.onnx.data").exists()
    for a, b in zip(outputs(tmp_path / "net.onnx"), outputs(tmp_path / "slim.onnx"), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max())


def test_weights_that_are_all_listed_as_inputs_are_weights(tmp_path):
    """Old exporters list every initializer, whatever the IR version; prune takes them as they are, too."""
    model = change(convnet(), "conv1.weight", put((slice(None), [1, 5]), 0))
    model.graph.inputs.extend(model.graph.initializers.values())
    made = onnxprune.slim(save(model, tmp_path / "net.onnx"))
    assert counts(made) == {"conv0": (2, 0, 0)}


def test_around_operators_that_onnxruntime_does_not_know_only_zeros_go(tmp_path):
    net = Net()
    x = net.op("Relu", net.linear(net.data("x", ("n", 5)), "first", 5, 8), name="relu")
    x = net.linear(x, "second", 8, 4)
    y = net.op("Mystery", x, domain="my.domain", name="mystery")
    y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 4])
    model = change(net.model(y), "second.weight", put((slice(None), [1, 2]), 0))
    model = change(model, "first.weight", put(5, 0))
    model = change(model, "first.bias", put(5, 1.0))
    made = onnxprune.slim(save(model, tmp_path / "net.onnx"))
    assert counts(made) == {"first": (2, 0, 0)}
    assert np.isnan(made.report.difference)
    assert any("cannot run mystery" in note for note in made.report.warnings)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_duplicates_with_many_positions_each(tmp_path, factor):
    net = Net()
    x = net.conv(net.data("image", ("n", 3, 9, 9)), "first", (6, 3, 3, 3))
    x = net.op("Flatten", net.op("Relu", x, name="relu"), name="flat")
    model = net.model(net.linear(x, "fc", 486, 5))
    for part in ("weight", "bias"):
        model = change(model, f"first.{part}", copy_rows(0, 4, factor))
    assert counts(slimmed(model, tmp_path)) == {"first": (0, 0, 1)}


def test_a_transposed_convolution_in_groups_reads_no_channel_for_another_group(tmp_path):
    net = Net()
    x = net.op("Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "stem", (8, 3, 3, 3)), name="relu0")
    weight, bias = net.normal((8, 6, 2, 2), "up.weight"), net.normal((12,), "up.bias")
    x = net.op("ConvTranspose", x, weight, bias, name="up", strides=[2, 2], group=2)
    model = net.model(net.head(net.op("Relu", x, name="relu1"), 12))
    for part in ("weight", "bias"):
        model = change(model, f"stem.{part}", copy_rows(0, 6))
        model = change(model, f"stem.{part}", copy_rows(1, 2))
    made = slimmed(model, tmp_path, exact=0)
    assert made.report.units == 0
    assert [(left.what, left.units) for left in made.report.left] == [("duplicate", 2)]
    assert "in groups" in made.report.left[0].why
