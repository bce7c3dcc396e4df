"""Hand-made nets, one for each way of contributing nothing, and its traps; outputs by onnxruntime alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from small_nets import Net, attention, convnet, grouped, residual, save

import onnxprune


def outputs(path, seed=0, batch=2):
    """What onnxruntime makes of random inputs, without any code of onnxprune."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    feed = {
        value.name: rng.standard_normal([d if isinstance(d, int) else batch for d in value.shape]).astype(
            np.float32
        )
        for value in session.get_inputs()
    }
    return session.run(None, feed)


def change(model, name, function):
    """Edit a copy of an initializer in place, and put it back."""
    value = model.graph.initializers[name]
    array = value.const_value.numpy().copy()
    function(array)
    value.const_value = ir.Tensor(array, name=name)
    return model


def put(index, number):
    def edit(array):
        array[index] = number

    return edit


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.graph.initializers.items()}


def slimmed(model, folder, *, exact=1e-5, **options):
    """Slim a model, and compare its outputs with the input's on two draws of inputs."""
    path = save(model, folder / "net.onnx")
    before = path.read_bytes()
    made = onnxprune.slim(path, folder / "slim.onnx", **options)
    assert path.read_bytes() == before
    for seed in (0, 1):
        for a, b in zip(outputs(path, seed), outputs(folder / "slim.onnx", seed), strict=True):
            assert np.abs(a).max() > 0
            np.testing.assert_allclose(b, a, rtol=0, atol=exact * np.abs(a).max())
    again = onnxprune.slim(folder / "slim.onnx")
    assert (again.report.units, again.report.branches) == (0, ())
    return made


def counts(made):
    return {g.name: (g.zero, g.constant, g.duplicate) for g in made.report.groups}


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


# --- constants -------------------------------------------------------------------------------------------


def unpadded(activation="Relu", *, bias=True, kernel=1):
    """Two convolutions without padding, an activation between them, pooling, a classifier."""
    net = Net()
    x = net.data("image", ("n", 3, 8, 8))
    first = net.normal((8, 3, 3, 3), "first.weight", 0.3)
    x = net.op("Conv", x, first, net.normal((8,), "first.bias"), name="first", pads=[1] * 4)
    x = net.op(activation, x, name="act")
    second = net.normal((6, 8, kernel, kernel), "second.weight", 0.3)
    inputs = [x, second, *([net.normal((6,), "second.bias")] if bias else [])]
    x = net.op("Relu", net.op("Conv", *inputs, name="second"), name="act2")
    return net.model(net.head(x, 6))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "Tanh", "HardSwish", "Identity"])
def test_constants_go_into_biases(tmp_path, activation, bias):
    model = change(unpadded(activation, bias=bias, kernel=3), "first.weight", put([1, 4], 0))
    model = change(model, "first.bias", put([1, 4], [0.7, 1.3]))
    made = slimmed(model, tmp_path)
    assert counts(made) == {"first": (0, 2, 0)}
    assert shapes(made.model)["second.weight"] == (6, 6, 3, 3)


def test_sigmoid_of_zero_is_no_zero(tmp_path):
    """Weights and bias of zero, and still the channel carries 0.5."""
    model = change(unpadded("Sigmoid"), "first.weight", put([1, 4], 0))
    model = change(model, "first.bias", put([1, 4], 0))
    made = slimmed(model, tmp_path)
    assert counts(made) == {"first": (0, 2, 0)}
    weight = model.graph.initializers["second.weight"].const_value.numpy()
    bias = model.graph.initializers["second.bias"].const_value.numpy()
    expected = bias + 0.5 * weight[:, [1, 4], 0, 0].sum(axis=1)
    found = made.model.graph.initializers["second.bias"].const_value.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_padding_sees_zeros_where_the_channel_has_a_constant(tmp_path):
    model = change(convnet(), "conv1.weight", put(3, 0))
    model = change(model, "conv1.bias", put(3, 2.0))
    made = slimmed(model, tmp_path, exact=0)
    assert made.report.units == 0
    (left,) = made.report.left
    assert (left.name, left.what, left.units) == ("conv1", "constant", 1)
    assert "outputs at the border do not see it" in left.why


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_takes_constants_with_its_factors(tmp_path, transposed):
    net = Net()
    x = net.data("x", ("n", 5))
    x = net.op("Relu", net.linear(x, "first", 5, 8), name="relu")
    shape = (4, 8) if transposed else (8, 4)
    x = net.op(
        "Gemm",
        x,
        net.normal(shape, "second.weight"),
        net.normal((1, 4), "second.bias"),
        name="second",
        transB=transposed,
        alpha=0.5,
        beta=2.0,
    )
    model = change(net.model(x), "first.weight", put([0, 7], 0))
    model = change(model, "first.bias", put([0, 7], [3.0, 1.0]))
    assert counts(slimmed(model, tmp_path)) == {"first": (0, 2, 0)}


def test_matmul_gets_a_bias(tmp_path):
    net = Net()
    x = net.data("x", ("n", 4, 5))
    x = net.op("MatMul", x, net.normal((5, 8), "first.weight"), name="first")
    x = net.op("Gelu" if net.opset >= 20 else "Softplus", x, name="act")
    y = net.op("MatMul", x, net.normal((8, 3), "second.weight"), name="second")
    model = change(net.model(y), "first.weight", put((slice(None), [2, 3]), 0))
    made = slimmed(model, tmp_path)
    assert counts(made) == {"first": (0, 2, 0)}
    assert [n.op_type for n in made.model.graph][-1] == "Add"
    assert [v.name for v in made.model.graph.outputs] == [v.name for v in model.graph.outputs]


def test_batch_norm_with_scale_zero_leaves_its_shift(tmp_path):
    net = Net()
    x = net.conv(net.data("image", ("n", 3, 8, 8)), "first", (8, 3, 3, 3))
    x = net.op("Relu", net.batch_norm(x, "bn", 8), name="relu")
    x = net.op("Conv", x, net.normal((6, 8, 1, 1), "second.weight"), name="second")
    model = change(net.model(net.head(x, 6)), "bn.weight", put([1, 2], 0))
    model = change(model, "bn.bias", put([1, 2], [0.5, -0.5]))
    made = slimmed(model, tmp_path)
    assert counts(made) == {"first": (1, 1, 0)}  # Relu(-0.5) is zero


def test_batch_norm_shifts_a_filter_of_zeros(tmp_path):
    model = change(convnet(norm=True), "conv1.weight", put(3, 0))
    made = slimmed(model, tmp_path, exact=1e-5)
    bn = {
        part: float(model.graph.initializers[f"bn1.{part}"].const_value.numpy()[3])
        for part in ("weight", "bias", "mean", "variance")
    }
    start = float(model.graph.initializers["conv1.bias"].const_value.numpy()[3])
    value = (start - bn["mean"]) / np.sqrt(bn["variance"] + 1e-5) * bn["weight"] + bn["bias"]
    assert made.report.units == (1 if value <= 0 else 0)


def test_residual_sums_keep_what_one_side_adds(tmp_path):
    """A zero filter in a block's last convolution: the stream's channel still carries the shortcut."""
    model = change(residual(), "block0.b.weight", put([0, 1], 0))
    model = change(model, "block0.b.bias", put([0, 1], 0))
    made = slimmed(model, tmp_path, exact=0)
    assert made.report.units == 0


def test_depthwise_convolutions_hand_zeros_on_and_padding_stops_constants(tmp_path):
    def build():
        net = Net()
        x = net.op("Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "first", (8, 3, 1, 1)), name="relu0")
        x = net.op("Relu", net.conv(x, "depthwise", (8, 1, 3, 3), group=8), name="relu1")
        return net.model(net.head(net.op("Relu", net.conv(x, "last", (6, 8, 1, 1)), name="relu2"), 6))

    model = change(build(), "first.weight", put(2, 0))
    model = change(model, "first.bias", put(2, 0))
    model = change(model, "depthwise.bias", put(2, 0.75))
    assert counts(slimmed(model, tmp_path)) == {"first": (0, 1, 0)}
    model = change(model, "first.bias", put(2, 1.0))
    folder = tmp_path / "padded"
    folder.mkdir()
    made = slimmed(model, folder)
    assert made.report.units == 0


def test_a_shared_weight_needs_all_its_uses(tmp_path):
    net = Net()
    x, y = net.data("x", ("n", 8)), net.data("y", ("n", 8))
    shared = net.normal((8, 8), "shared.weight")
    a = net.op("Relu", net.op("MatMul", x, shared, name="one"), name="relu_a")
    b = net.op("Sigmoid", net.op("MatMul", y, shared, name="two"), name="relu_b")
    a = net.op("MatMul", a, net.normal((8, 4), "a.weight"), name="a")
    b = net.op("MatMul", b, net.normal((8, 4), "b.weight"), name="b")
    model = change(net.model(a, b), "shared.weight", put((slice(None), 3), 0))
    made = slimmed(model, tmp_path)
    assert counts(made) == {"one": (0, 1, 0)}  # zero for one of them, 0.5 for the other
    assert shapes(made.model)["a.weight"] == shapes(made.model)["b.weight"] == (7, 4)


def test_flattened_maps_give_constants_to_a_gemm(tmp_path):
    net = Net()
    x = net.conv(net.data("image", ("n", 3, 4, 4)), "first", (6, 3, 3, 3))
    x = net.op("Flatten", net.op("Relu", x, name="relu"), name="flat")
    model = change(net.model(net.linear(x, "fc", 96, 5)), "first.weight", put([0, 4], 0))
    model = change(model, "first.bias", put([0, 4], [1.5, 2.5]))
    made = slimmed(model, tmp_path)
    assert counts(made) == {"first": (0, 2, 0)}
    assert shapes(made.model)["fc.weight"] == (5, 64)


# --- duplicates ------------------------------------------------------------------------------------------


def copy_rows(source, target, factor=1.0):
    def edit(array):
        array[target] = array[source] * np.float32(factor)

    return edit


@pytest.mark.parametrize("factor", [1.0, 0.3, 7.0])
def test_proportional_channels_become_one(tmp_path, factor):
    model = convnet()
    for part in ("weight", "bias"):
        model = change(model, f"conv0.{part}", copy_rows(2, 9, factor))
        model = change(model, f"conv0.{part}", copy_rows(2, 11, factor))
    made = slimmed(model, tmp_path)
    assert counts(made) == {"conv0": (0, 0, 2)}
    old = model.graph.initializers["conv1.weight"].const_value.numpy().astype(np.float64)
    new = made.model.graph.initializers["conv1.weight"].const_value.numpy()
    np.testing.assert_allclose(new[:, 2], old[:, 2] + factor * (old[:, 9] + old[:, 11]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("activation", "factor", "merged"),
    [("Sigmoid", 1.0, 1), ("Sigmoid", 2.0, 0), ("LeakyRelu", 2.0, 1), ("Relu", -1.0, 0), ("Tanh", 2.0, 0)],
)
def test_what_an_activation_keeps(tmp_path, activation, factor, merged):
    model = unpadded(activation)
    for part in ("weight", "bias"):
        model = change(model, f"first.{part}", copy_rows(2, 5, factor))
    assert slimmed(model, tmp_path).report.units == merged


def test_a_bias_that_is_not_proportional_makes_a_difference(tmp_path):
    model = change(convnet(), "conv0.weight", copy_rows(2, 9, 2.0))
    assert slimmed(model, tmp_path, exact=0).report.units == 0


def test_rows_that_differ_by_more_than_rounding_stay(tmp_path):
    model = convnet()
    for part in ("weight", "bias"):
        model = change(model, f"conv0.{part}", copy_rows(2, 9, 2.0))
    model = change(model, "conv0.weight", put((9, 0, 0, 0), 0.123))
    assert slimmed(model, tmp_path, exact=0).report.units == 0


@pytest.mark.parametrize("alike", [True, False])
def test_batch_norm_takes_part(tmp_path, alike):
    model = convnet(norm=True)
    for part in ("weight", "bias"):
        model = change(model, f"conv0.{part}", copy_rows(2, 9))
    for part in ("weight", "bias", "mean", "variance") if alike else ():
        model = change(model, f"bn0.{part}", copy_rows(2, 9))
    made = slimmed(model, tmp_path)
    assert made.report.units == int(alike)
    assert counts(made) == ({"conv0": (0, 0, 1)} if alike else {})


def test_depthwise_duplicates(tmp_path):
    net = Net()
    x = net.op("Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "first", (8, 3, 1, 1)), name="relu0")
    x = net.op("Relu", net.conv(x, "depthwise", (8, 1, 3, 3), group=8), name="relu1")
    model = net.model(net.head(net.op("Relu", net.conv(x, "last", (6, 8, 1, 1)), name="relu2"), 6))
    for part in ("weight", "bias"):
        model = change(model, f"first.{part}", copy_rows(1, 6, 2.0))
    folder = tmp_path / "first"
    folder.mkdir()
    assert slimmed(model, folder).report.units == 0  # the depthwise filters differ
    model = change(model, "depthwise.weight", copy_rows(1, 6, 1.0))
    model = change(model, "depthwise.bias", copy_rows(1, 6, 2.0))
    assert counts(slimmed(model, tmp_path)) == {"first": (0, 0, 1)}


def test_residual_streams_merge_only_where_all_that_is_added_is_alike(tmp_path):
    model = residual()
    for part in ("weight", "bias"):
        model = change(model, f"stem.{part}", copy_rows(3, 8))
        model = change(model, f"block0.b.{part}", copy_rows(3, 8))
    folder = tmp_path / "first"
    folder.mkdir()
    assert slimmed(model, folder).report.units == 0
    for part in ("weight", "bias"):
        model = change(model, f"block1.b.{part}", copy_rows(3, 8))
    assert counts(slimmed(model, tmp_path)) == {"stem": (0, 0, 1)}


def test_duplicates_through_a_flatten(tmp_path):
    net = Net()
    x = net.conv(net.data("image", ("n", 3, 4, 4)), "first", (6, 3, 3, 3))
    x = net.op("Flatten", net.op("Relu", x, name="relu"), name="flat")
    model = net.model(net.linear(x, "fc", 96, 5))
    for part in ("weight", "bias"):
        model = change(model, f"first.{part}", copy_rows(0, 4, 3.0))
    made = slimmed(model, tmp_path)
    assert counts(made) == {"first": (0, 0, 1)}
    assert shapes(made.model)["fc.weight"] == (5, 80)


def test_duplicates_in_groups_of_channels_stay_and_are_told(tmp_path):
    model = grouped()
    for part in ("weight", "bias"):
        model = change(model, f"before.{part}", copy_rows(0, 1))
    made = slimmed(model, tmp_path, exact=0)
    assert made.report.units == 0
    assert ["in groups" in left.why for left in made.report.left] == [True]


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
