"""Zeros of whole models against plain numpy counts over the file, wherever the weights lie."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from small_nets import MODELS, REAL, Net, convnet, save

import onnxprune
from onnxprune.errors import ModelError, UsageError
from onnxprune.report.stats import worth

FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}


def counted(path):
    """Elements and zeros of all float initializers of a file and of its constants, sparse ones included."""
    graph = onnx.load(path).graph
    constants = [
        a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value"
    ]
    elements = zeros = 0
    for tensor in [*graph.initializer, *constants]:
        if tensor.data_type in FLOATS:
            array = numpy_helper.to_array(tensor)
            elements += array.size
            zeros += int((array.astype(np.float64) == 0).sum())
    for sparse in graph.sparse_initializer:
        values = numpy_helper.to_array(sparse.values)
        size = int(np.prod(sparse.dims))
        elements += size
        zeros += size - int((values != 0).sum())
    return elements, zeros


def change(model, name, function):
    """Replace an initializer by what the function makes of it."""
    value = model.graph.initializers[name]
    array = function(value.const_value.numpy().copy())
    value.const_value = ir.Tensor(array, name=name)
    return model


def thin(share, seed=0):
    """A function that zeroes this share of an array."""

    def zero(array):
        flat = array.reshape(-1)
        order = np.random.default_rng(seed).permutation(flat.size)
        flat[order[: round(share * flat.size)]] = 0
        return array

    return zero


def sparse_net(**options):
    model = change(convnet(**options), "conv1.weight", thin(0.5))
    return change(model, "head.bias", thin(0.5))


@pytest.mark.parametrize("dtype", ["FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"])
def test_zeros_of_every_float_type(tmp_path, dtype):
    path = save(sparse_net(dtype=ir.DataType[dtype]), tmp_path / "net.onnx")
    found = onnxprune.stats(path)
    elements, zeros = counted(path)
    assert (found.whole.elements, found.whole.zeros) == (elements, zeros)
    assert zeros == 16 * 32 * 9 // 2 + 2
    assert found.whole.elements == onnxprune.analyze(path).cost.params
    assert [layer.name for layer in found.layers] == ["conv0", "conv1", "conv2", "head"]
    assert [layer.found.zeros for layer in found.layers] == [0, 16 * 32 * 9 // 2, 0, 0]
    sparsity = found.sparsity
    assert sparsity.sparsity_level == zeros / elements
    weights = sum(layer.found.elements for layer in found.layers)
    assert weights == 27 * 16 + 16 * 32 * 9 + 32 * 24 * 9 + 24 * 4
    assert sparsity.sparsity_level_for_layers == (zeros - 2) / weights
    row = sparsity.sparsified_layers_summary[1]
    assert (row.name, tuple(row.weight_shape), row.sparsity_level) == ("conv1", (32, 16, 3, 3), 0.5)
    assert row.weight_percentage == 100 * 16 * 32 * 9 / elements
    assert found.filters == 16 + 32 + 24 + 4


def test_negative_zero_is_zero_and_nan_is_not(tmp_path):
    def poison(array):
        array[0, :3] = -0.0
        array[1, 0] = np.nan
        return array

    path = save(change(convnet(), "head.weight", poison), tmp_path / "net.onnx")
    assert onnxprune.stats(path).handled.zeros == 3


def test_sparse_initializers_are_read(tmp_path):
    dense = save(sparse_net(), tmp_path / "dense.onnx")
    proto = onnx.load(dense)
    tensor = next(t for t in proto.graph.initializer if t.name == "conv1.weight")
    array = numpy_helper.to_array(tensor)
    places = np.flatnonzero(array).astype(np.int64)
    values = numpy_helper.from_array(array.ravel()[places], "conv1.weight")
    proto.graph.initializer.remove(tensor)
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(places, "places"), array.shape)
    )
    path = tmp_path / "sparse.onnx"
    onnx.save(proto, path)
    found, same = onnxprune.stats(path), onnxprune.stats(dense)
    assert (found.whole.elements, found.whole.zeros) == counted(path) == counted(dense)
    for layer, other in zip(sorted(found.layers, key=lambda layer: layer.name), same.layers, strict=True):
        assert (layer.name, layer.shape, layer.found.zeros) == (other.name, other.shape, other.found.zeros)


def test_external_weights_are_read_one_at_a_time(tmp_path):
    net = Net()
    x, width, layers = net.data("x", ("n", 512)), 512, 12
    for number in range(layers):
        x = net.op("Relu", net.linear(x, f"fc{number}", width, width), name=f"relu{number}")
    model = change(net.model(x), "fc5.weight", thin(0.25))
    path = tmp_path / "net.onnx"
    ir.save(model, path, external_data="weights.bin")
    del model, net, x
    source = onnxprune.load(path)
    analysis = onnxprune.analyze(source)
    tracemalloc.start()
    found = onnxprune.stats(analysis)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.handled.zeros == width * width // 4
    assert peak < 4 * width * width * 2  # two of the twelve weights; flags take a quarter of a weight
    assert (found.whole.elements, found.whole.zeros) == counted(path)


def test_a_shared_weight_counts_once(tmp_path):
    net = Net()
    x = net.data("x", ("n", 16))
    weight = net.normal((16, 16), "shared.weight")
    y = net.op("Relu", net.op("MatMul", x, weight, name="first"), name="relu")
    model = change(net.model(net.op("MatMul", y, weight, name="second")), "shared.weight", thin(0.25))
    path = save(model, tmp_path / "net.onnx")
    found = onnxprune.stats(path)
    (layer,) = found.layers
    assert (layer.name, layer.shared, layer.found.zeros) == ("first", ("second",), 64)
    assert (found.whole.elements, found.whole.zeros) == counted(path) == (256, 64)
    assert found.filters == 16


def test_vectors_that_a_file_stores_once_count_once(tmp_path):
    model = convnet([16, 16, 16])
    graph = model.graph
    graph.initializers["conv0.bias"].const_value = ir.Tensor(np.zeros(16, np.float32), name="conv0.bias")
    for name in ("conv1.bias", "conv2.bias"):
        graph.initializers[name].replace_all_uses_with(graph.initializers["conv0.bias"])
        del graph.initializers[name]
    path = save(model, tmp_path / "net.onnx")
    found = onnxprune.stats(path)
    assert (found.whole.elements, found.whole.zeros) == counted(path)
    assert found.vectors.zeros == 16


def other_layers():
    """A net with everything that is not looked at one by one, and a quantised layer, which is."""
    net = Net()
    ids = net.input("ids", ("n", 6), ir.DataType.INT64)
    table = net.constant(thin(0.5)(np.ones((20, 8), np.float32)), "table")
    x = net.op("Gather", table, ids, name="embed")
    x = net.op("Add", x, net.normal((1, 6, 8), "positions"), name="place")
    x = net.op("MatMul", net.normal((6, 6), "mixer"), x, name="left")
    quantised = net.constant(np.arange(64, dtype=np.int8).reshape(8, 8), "ints")
    scale = net.constant(np.float32(0.1), "scale")
    x = net.op("MatMul", x, net.op("DequantizeLinear", quantised, scale, name="dequant"), name="int8")
    x = net.op("MatMul", x, net.normal((6, 6, 8, 8), "stack"), name="stacked")
    x = net.op("ReduceMean", x, name="mean", axes=[0], keepdims=0)
    x = net.op("Transpose", x, perm=[1, 0, 2], name="turn")
    w, r = net.normal((1, 4 * 5, 8), "w"), net.normal((1, 4 * 5, 5), "r")
    y, _, _ = net.ops("LSTM", x, w, r, outputs=["y", "h", "c"], name="lstm", hidden_size=5)
    return net.model(net.op("Identity", y, name="out"))


def test_layers_that_are_left_out_say_why_and_count(tmp_path):
    path = save(other_layers(), tmp_path / "net.onnx")
    found = onnxprune.stats(path)
    (layer,) = found.layers  # numbers 0 to 63 are zero in one place
    assert (layer.name, layer.found.elements, layer.found.zeros) == ("int8", 64, 1)
    assert {
        layer.name: (layer.reason, layer.tally.elements, layer.tally.zeros) for layer in found.left_out
    } == {
        "embed": ("its weight is a table that is looked up", 160, 80),
        "place": ("its weight goes in element by element", 48, 0),
        "left": ("its weight is on the left", 36, 0),
        "stacked": ("its weight is a stack of matrices", 36 * 64, 0),
        "lstm": ("it is recurrent: its gates share rows and columns", 20 * 8 + 20 * 5, 0),
    }
    elements, zeros = counted(path)  # of floats: the scale is one, and no weight
    assert (found.whole.elements, found.whole.zeros) == (elements - 1 + 64, zeros + 1)
    assert found.sparsity.sparsity_level == 81 / found.whole.elements
    assert found.sparsity.sparsity_level_for_layers == 1 / 64
    assert "1 layer (160 parameters, 80 zero): its weight is a table that is looked up: embed" in str(found)


def test_weights_inside_bodies_count(tmp_path):
    body_weight = thin(0.5)(np.ones((4, 4), np.float32))
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "inner"], ["z"], name="product")],
        "body",
        [],
        [helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(body_weight, "inner")],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z2"])],
        "other",
        [],
        [helper.make_tensor_value_info("z2", onnx.TensorProto.FLOAT, ["n", 4])],
    )
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    nodes = [
        helper.make_node("If", ["flag"], ["y"], name="branch", then_branch=inner, else_branch=other),
        helper.make_node("MatMul", ["y", "w"], ["out"], name="last"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    found = onnxprune.stats(path)
    assert [layer.name for layer in found.layers] == ["last"]
    assert [(layer.name, layer.tally.zeros) for layer in found.left_out] == [("branch", 8)]
    assert (found.whole.elements, found.whole.zeros) == (32, 8)


@pytest.mark.parametrize("name", ["digits_resnet", "digits_resnet_ts", "digits_vit", "digits_vit_ts"])
def test_models_of_the_repository(name):
    path = MODELS / f"{name}.onnx"
    found = onnxprune.stats(path)
    analysis = onnxprune.analyze(path)
    assert found.whole.elements == analysis.cost.params
    assert found.macs == analysis.cost.macs
    assert found.handled.zeros == 0
    assert "No weight of these layers is zero" in str(found)


@pytest.mark.real
@pytest.mark.parametrize(
    "name", sorted(path.name for path in (REAL / "models").glob("*.onnx")) if REAL.is_dir() else ["none"]
)
def test_real_models(name):
    path = REAL / "models" / name
    found = onnxprune.stats(path)
    assert (found.whole.elements, found.whole.zeros) == counted(path)
    assert found.whole.elements == onnxprune.analyze(path).cost.params
    assert sum(worth(found).values()) == found.handled.zeros
    for layer in found.layers:
        assert layer.found.elements == np.prod(layer.shape)


@pytest.mark.real
def test_a_published_model_has_superfluous_channels():
    found = onnxprune.stats(REAL / "models" / "imagenet_mobilenetv2.onnx")
    assert found.handled.zeros == 87_067
    assert found.removable.units == 10


def test_refusals(tmp_path):
    path = save(convnet(), tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="no symbolic dim"):
        onnxprune.stats(path, bindings={"m": 3})
    with pytest.raises(ModelError, match="not an ONNX model"):
        (tmp_path / "bad.onnx").write_bytes(b"hello there, general")
        onnxprune.stats(tmp_path / "bad.onnx")
    with pytest.raises(UsageError, match="does not exist"):
        onnxprune.stats(path, against=tmp_path / "missing.onnx")


def test_nothing_is_mutated_and_twice_is_the_same(tmp_path):
    path = save(sparse_net(), tmp_path / "net.onnx")
    before = path.read_bytes()
    source = onnxprune.load(path)
    first, second = onnxprune.stats(source), onnxprune.stats(source)
    assert str(first) == str(second)
    assert path.read_bytes() == before
    assert repr(first) == (
        f"ModelStatistics({str(path)!r}: 2,306 of 12,124 weights are zero, 0 of 72 units superfluous)"
    )
