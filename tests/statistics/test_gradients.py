"""Gradients of masks and weights on samples, against central differences of an evaluation in float64."""

from __future__ import annotations

from dataclasses import replace

import nets
import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from small_nets import Net, attention, convnet, feeds, grouped, residual, save

from onnxprune.analysis import analyze
from onnxprune.calibrate.data import read_dataset
from onnxprune.calibrate.dataset import input_specs
from onnxprune.criteria.gather import unit_weights
from onnxprune.errors import DataError, GradientError
from onnxprune.gradients.masks import unit_masks
from onnxprune.statistics.gradients import Differentiation

STEP = 1e-5
RNG = np.random.default_rng(0)


def opened(model, path, data, **options):
    """The analysis of a model, and how its loss is differentiated on some samples."""
    analysis = analyze(save(model, path / "net.onnx"), attention=options.pop("attention", "heads"))
    dataset = read_dataset(data, input_specs(analysis.source.ir))
    return analysis, Differentiation(analysis.axis_graph, dataset, **{"size": 4, **options})


class Scaled:
    """A model in float64 whose weights, and activations in front of products, can be multiplied."""

    def __init__(self, model: ir.Model, data: dict) -> None:
        proto = ir.to_proto(model)
        for tensor in proto.graph.initializer:
            if tensor.data_type == ir.DataType.FLOAT:
                array = ir.from_proto(tensor).numpy().astype(np.float64)
                tensor.CopyFrom(ir.to_proto(ir.tensor(array, name=tensor.name)))
        self.proto = proto
        self.weights = {t.name: ir.from_proto(t).numpy() for t in proto.graph.initializer}
        self.feed = {
            name: array.astype(np.float64) if array.dtype == np.float32 else array
            for name, array in data.items()
        }

    def outputs(self, weights: dict, products: dict | None = None) -> np.ndarray:
        proto = type(self.proto)()
        proto.CopyFrom(self.proto)
        for tensor in proto.graph.initializer:
            if tensor.name in weights:
                tensor.CopyFrom(ir.to_proto(ir.tensor(weights[tensor.name], name=tensor.name)))
        for name, factor in (products or {}).items():
            (node,) = [node for node in proto.graph.node if node.name == name]
            mul = type(node)(
                op_type="Mul", input=[node.input[0], f"{name}/factor"], output=[f"{name}/scaled"]
            )
            node.input[0] = f"{name}/scaled"
            proto.graph.node.insert(list(proto.graph.node).index(node), mul)
            proto.graph.initializer.append(ir.to_proto(ir.tensor(factor, name=f"{name}/factor")))
        return ReferenceEvaluator(proto).run(None, self.feed)[0]


def cross_entropy(logits, labels):
    moved = logits - logits.max(axis=1, keepdims=True)
    log_p = moved - np.log(np.exp(moved).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(logits)), labels]


def scaled_sinks(graph, group, unit, factor):
    """The weights that consume a unit, its slices multiplied."""
    found = {}
    for use in group.sinks:
        value = use.axis.value
        array = found.get(value.name, value.const_value.numpy().astype(np.float64)).copy()
        blocked = graph.blocked.get(use.axis)
        for position in np.flatnonzero(use.unit == unit):
            if blocked is None:
                np.moveaxis(array, use.axis.dim, 0)[position] *= factor
            else:
                columns = array.shape[use.axis.dim]
                per_block = array.shape[blocked.rows] // blocked.blocks
                block, column = divmod(int(position), columns)
                array[block * per_block : (block + 1) * per_block, column] *= factor
        found[value.name] = array
    return found


def slopes(losses, count, units):
    """(units, samples), by central differences."""
    found = np.zeros((units, count))
    for unit in range(units):
        found[unit] = (losses(unit, 1 + STEP) - losses(unit, 1 - STEP)) / (2 * STEP)
    return found


def stream():
    """A residual stream that sums, a branch and the head read: some pass units on, some sum over them."""
    net = Net(seed=3)
    x = net.op("Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "stem", (6, 3, 3, 3)), name="stem_relu")
    y = net.conv(x, "a", (4, 6, 3, 3))
    y = net.conv(net.op("Sigmoid", y, name="mid"), "b", (6, 4, 3, 3))
    z = net.conv(x, "c", (6, 6, 1, 1))
    return net.model(net.head(net.op("Add", net.op("Add", x, y, name="add0"), z, name="add1"), 6))


NETS = {
    "convnet": (lambda: convnet((4, 5, 3)), 8),
    "residual": (lambda: residual(6, 2, 4), 8),
    "stream": (stream, 8),
    "grouped": (lambda: grouped(8, 2), 6),
}


@pytest.mark.parametrize("net", NETS)
def test_masks_are_the_slope_of_each_samples_loss(tmp_path, net):
    """For every group: all sinks of a unit multiplied by 1 + h and 1 - h."""
    make, size = NETS[net]
    data = feeds(6)
    data["image"] = data["image"][:, :, :size, :size]
    analysis, differentiation = opened(make(), tmp_path, data)
    scaled = Scaled(analysis.source.ir, {"image": data["image"]})
    found = differentiation.masks(analysis.groups.values())
    assert found.keys() == analysis.groups.keys()
    for name, group in analysis.groups.items():

        def losses(unit, factor, group=group):
            weights = scaled_sinks(analysis.axis_graph, group, unit, factor)
            return cross_entropy(scaled.outputs(weights), data["labels"])

        expected = slopes(losses, 6, group.units)
        assert np.abs(expected).max() > 1e-4
        np.testing.assert_allclose(found[name].samples, expected, atol=2e-4 * np.abs(expected).max())
        sums = np.stack([expected[:, :4].sum(axis=1), expected[:, 4:].sum(axis=1)], axis=1)
        np.testing.assert_allclose(found[name].batches, sums, atol=4e-4 * np.abs(expected).max())


def test_a_value_that_sinks_and_others_read_is_masked_at_the_sinks(tmp_path):
    analysis = analyze(save(stream(), tmp_path / "net.onnx"))
    masked = unit_masks(analysis.axis_graph, analysis.groups.values())
    identities = [node for node in masked.model.graph if node.op_type == "Identity"]
    assert len(identities) == 1  # convolutions `a` and `c` share it
    assert {use.node.name for use in identities[0].outputs[0].uses()} == {"a", "c"}
    assert all(node.op_type != "Identity" for node in analysis.axis_graph.model.graph)


STRUCTURES = [
    *("residual_padded", "dense_block", "depthwise_separable", "channel_shuffle", "squeeze_excitation"),
    *("flatten_gemm", "unet", "group_norm"),
]


@pytest.mark.parametrize("name", STRUCTURES)
def test_masks_in_structures(tmp_path, name):
    """Units that lie on several axes, in several positions, behind gates: of the squared error of one sample."""
    model = getattr(nets, name)()
    shapes = [[int(d) for d in value.shape] for value in (model.graph.inputs[0], model.graph.outputs[0])]
    x, labels = (RNG.standard_normal(shape) for shape in shapes)
    data = {str(model.graph.inputs[0].name): x.astype(np.float32), "labels": labels}
    analysis, differentiation = opened(model, tmp_path, data, loss="labels")
    scaled = Scaled(analysis.source.ir, {str(model.graph.inputs[0].name): x})
    found = differentiation.masks(analysis.groups.values())
    for group in analysis.groups.values():
        assert {sink.axis for sink in analysis.axis_graph.sinks if sink.parameter is None}.isdisjoint(
            use.axis for use in group.axes
        )

        def losses(unit, factor, group=group):
            weights = scaled_sinks(analysis.axis_graph, group, unit, factor)
            return np.square(scaled.outputs(weights) - labels).sum()

        expected = slopes(losses, 1, group.units)
        largest = np.abs(expected).max()
        np.testing.assert_allclose(found[group.id].samples, expected, atol=5e-4 * largest)


@pytest.mark.parametrize("mode", ["heads", "dims"])
def test_masks_in_attention(tmp_path, mode):
    """Heads at the projection behind them; dimensions of queries and keys at their product, too."""
    data = {"tokens": RNG.standard_normal((3, 5, 8)).astype(np.float32)}
    data["labels"] = RNG.standard_normal((3, 5, 8)).astype(np.float32)
    analysis, differentiation = opened(attention(5, 8, 2), tmp_path, data, attention=mode)
    scaled = Scaled(analysis.source.ir, {"tokens": data["tokens"]})
    found = differentiation.masks(analysis.groups.values())
    assert found.keys() == analysis.groups.keys() and len(found) == (1 if mode == "heads" else 2)
    product = next(node for node in analysis.axis_graph.model.graph if node.name == "scores")
    for name, group in analysis.groups.items():
        dims = [use for use in group.axes if use.axis == (product.inputs[0], 3)]

        def losses(unit, factor, group=group, dims=dims):
            weights = scaled_sinks(analysis.axis_graph, group, unit, factor)
            factors = {"scores": np.where(dims[0].unit == unit, factor, 1.0)} if dims else {}
            z = scaled.outputs(weights, factors)
            return np.square(z - data["labels"]).sum(axis=(1, 2))

        expected = slopes(losses, 3, group.units)
        assert np.abs(expected).max() > 1e-4
        np.testing.assert_allclose(found[name].samples, expected, atol=5e-4 * np.abs(expected).max())


@pytest.mark.parametrize("net", ["convnet", "residual", "grouped"])
def test_weights_by_directions(tmp_path, net):
    """The sum of weight times gradient over a unit is the slope when its own weights are scaled."""
    make, size = NETS[net]
    data = feeds(6)
    data["image"] = data["image"][:, :, :size, :size]
    analysis, differentiation = opened(make(), tmp_path, data)
    scaled = Scaled(analysis.source.ir, {"image": data["image"]})
    found = differentiation.weights(analysis.groups.values())
    for name, group in analysis.groups.items():
        uses = [use for use in group.sources if use.axis.value.name.endswith("weight")]
        assert len(uses) == len(found[name])
        members = [each for each in unit_weights(analysis.axis_graph, group) if each.kind == "weight"]
        for use, seen, member in zip(uses, found[name], members, strict=True):

            def losses(unit, factor, use=use):
                array = use.axis.value.const_value.numpy().astype(np.float64)
                np.moveaxis(array, use.axis.dim, 0)[use.unit == unit] *= factor
                logits = scaled.outputs({use.axis.value.name: array})
                return cross_entropy(logits, data["labels"]).sum()

            expected = slopes(losses, 1, group.units)[:, 0]
            product = (seen.values * seen.gradient).sum(axis=1)
            np.testing.assert_allclose(product, expected, atol=5e-4 * np.abs(expected).max())
            np.testing.assert_array_equal(seen.values, member.values)
            assert seen.saliency.shape == (group.units, 2)
            assert (seen.saliency.sum(axis=1) >= np.abs(expected) * 0.99 - 1e-6).all()


def test_batches_do_not_change_what_is_drawn(tmp_path):
    data = {"image": feeds(10)["image"]}
    analysis, by_four = opened(convnet((4, 5, 3)), tmp_path, data)
    assert by_four.objective().kind == "sampled"
    found = by_four.masks(analysis.groups.values())
    again = by_four.masks(analysis.groups.values())
    other_size = replace(by_four, size=3).masks(analysis.groups.values())
    by_two = replace(by_four, at_once=3)
    for name, seen in by_two.masks(analysis.groups.values()).items():
        np.testing.assert_allclose(seen.samples, found[name].samples, atol=1e-5)
        np.testing.assert_allclose(seen.batches, found[name].batches, atol=1e-5)
    weights = by_four.weights(analysis.groups.values())
    for name, (seen,) in by_two.weights(analysis.groups.values()).items():
        assert seen.saliency.shape[1] == 3
        np.testing.assert_allclose(seen.saliency, weights[name][0].saliency, atol=1e-5)
    other_seed = replace(by_four, seed=1).masks(analysis.groups.values())
    for name, seen in found.items():
        np.testing.assert_array_equal(seen.samples, again[name].samples)
        np.testing.assert_allclose(seen.samples, other_size[name].samples, atol=1e-5)
        assert other_size[name].batches.shape[1] == 4 and seen.batches.shape[1] == 3
        assert np.abs(seen.samples - other_seed[name].samples).max() > 1e-3


def test_drawn_labels_average_to_no_gradient(tmp_path):
    data = {"image": np.repeat(feeds(1)["image"], 400, axis=0)}
    analysis, differentiation = opened(convnet((4, 5, 3)), tmp_path, data, size=100)
    for seen in differentiation.masks(analysis.groups.values()).values():
        spread = seen.samples.std(axis=1) / 20
        assert (np.abs(seen.samples.mean(axis=1)) <= 4.5 * spread + 1e-9).all()


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.DOUBLE])
def test_other_floats(tmp_path, dtype):
    data = feeds(6)
    wide, narrow = tmp_path / "wide", tmp_path / "narrow"
    wide.mkdir(), narrow.mkdir()
    analysis, expected = opened(convnet((4, 5, 3)), wide, data)
    other, differentiation = opened(
        convnet((4, 5, 3), dtype=dtype), narrow, {**data, "image": data["image"].astype(dtype.numpy())}
    )
    found = differentiation.masks(other.groups.values())
    for name, seen in expected.masks(analysis.groups.values()).items():
        largest = np.abs(seen.samples).max()
        np.testing.assert_allclose(found[name].samples, seen.samples, atol=2e-2 * largest)


def test_a_fixed_batch(tmp_path):
    """Samples of a model whose batch is fixed come as many at once; each has its own row."""
    data = feeds(6)
    (tmp_path / "free").mkdir(), (tmp_path / "fixed").mkdir()
    analysis, free = opened(convnet((4, 5, 3)), tmp_path / "free", data, size=2)
    fixed_analysis, fixed = opened(convnet((4, 5, 3), batch=2), tmp_path / "fixed", data, size=2)
    found = fixed.masks(fixed_analysis.groups.values())
    for name, seen in free.masks(analysis.groups.values()).items():
        np.testing.assert_allclose(found[name].samples, seen.samples, atol=1e-5)
        np.testing.assert_allclose(found[name].batches, seen.batches, atol=1e-5)


def tokens_first():
    """Tokens before samples, and both on one axis where units are summed over."""
    net = Net(seed=1)
    x = net.data("x", ("n", 3, 4))
    turned = net.op(
        "Reshape", net.op("Transpose", x, perm=[1, 0, 2]), net.constant(np.array([-1, 4]), "flat")
    )
    h = net.op("Tanh", net.op("MatMul", turned, net.normal((4, 6), "up"), name="up"))
    y = net.op("MatMul", h, net.normal((6, 5), "down"), name="down")
    back = net.op("Reshape", y, net.constant(np.array([3, -1, 5]), "split"))
    return net.model(
        net.ops("ReduceMean", back, net.constant(np.array([0]), "over"), outputs=["z"], keepdims=0)[0]
    )


def test_samples_that_lie_inside_an_axis_run_alone(tmp_path):
    data = {"x": RNG.standard_normal((6, 3, 4)).astype(np.float32), "labels": RNG.integers(0, 5, 6)}
    analysis, together = opened(tokens_first(), tmp_path, data)
    alone = replace(together, size=1)
    found = together.masks(analysis.groups.values())
    assert found
    for name, seen in alone.masks(analysis.groups.values()).items():
        assert seen.samples.shape[1] == 6
        np.testing.assert_allclose(found[name].samples, seen.samples, atol=1e-5)
        assert found[name].batches.shape[1] == 2


def test_samples_of_different_lengths(tmp_path):
    net = Net(seed=2)
    x = net.data("x", ("n", "t", 4))
    h = net.op("Relu", net.op("MatMul", x, net.normal((4, 8), "up"), name="up"))
    y = net.op("ReduceMean", h, net.constant(np.array([1]), "axes"), keepdims=0)
    model = net.model(net.ops("MatMul", y, net.normal((8, 3), "down"), outputs=["z"], name="down")[0])
    data = [{"x": RNG.standard_normal((1, n, 4)).astype(np.float32)} for n in (3, 3, 5, 5, 2)]
    analysis, differentiation = opened(model, tmp_path, data)
    found = differentiation.masks(analysis.groups.values())
    assert {seen.samples.shape for seen in found.values()} == {(8, 5)}


def test_samples_that_are_not_finite(tmp_path):
    net = Net()
    x = net.op("Exp", net.conv(net.data("image", ("n", 3, 8, 8)), "one", (8, 3, 3, 3)))
    data = feeds(6)
    data["image"] *= 1000
    analysis, differentiation = opened(net.model(net.head(x, 8)), tmp_path, data)
    with pytest.raises(DataError, match="is not finite on the calibration samples"):
        differentiation.masks(analysis.groups.values())
    with pytest.raises(DataError, match="is not finite on the calibration samples"):
        differentiation.weights(analysis.groups.values())


def test_an_operator_without_gradient_is_named(tmp_path):
    net = Net()
    x = net.op("Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "one", (8, 3, 3, 3)))
    y = net.conv(x, "two", (8, 8, 3, 3))
    z = net.op("Det", net.op("MatMul", y, net.op("Transpose", y, perm=[0, 1, 3, 2])), name="volume")
    analysis, differentiation = opened(net.model(z), tmp_path, {"image": feeds(4)["image"]})
    with pytest.raises(
        GradientError, match=r"volume.*more than 6 rows(.|\n)*Criteria without gradients work .*l2"
    ):
        differentiation.masks(analysis.groups.values())
