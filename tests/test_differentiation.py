"""`differentiate`: what is differentiated by default, names that are taken, files that stay as they are."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from small_nets import Net, convnet, feeds, save

import onnxprune
from onnxprune.errors import UsageError


@pytest.fixture
def path(tmp_path):
    return save(convnet(), tmp_path / "net.onnx")


def gradients(made):
    return {name.removeprefix("gradient/") for name in made.gradients}


def test_nothing_is_written_without_an_output(path):
    before = path.read_bytes()
    made = onnxprune.differentiate(path, data=feeds(), provider="cpu")
    assert made.path is None and [file.name for file in path.parent.iterdir()] == ["net.onnx"]
    assert path.read_bytes() == before
    assert made.added == ("labels",) and made.samples == 2 and np.isfinite(made.loss)
    assert str(made).startswith("loss: cross-entropy at the output logits, the data's labels; ")


def test_a_loaded_model_is_not_changed(path):
    model = onnxprune.load(path)
    before = ir.to_proto(model.ir).SerializeToString()
    for units in (False, True):
        onnxprune.differentiate(model, units=units, provider="cpu")
    assert ir.to_proto(model.ir).SerializeToString() == before


def test_the_loss_is_that_of_the_samples(path):
    made = onnxprune.differentiate(path, data=feeds(), provider="cpu")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    data = feeds()
    (z,) = session.run(None, {"image": data["image"][:2]})
    log_p = z - np.log(np.exp(z.astype(np.float64)).sum(axis=1, keepdims=True))
    assert made.loss == pytest.approx(-log_p[[0, 1], data["labels"][:2]].sum(), rel=1e-5)


def test_sizes_scales_and_numbers_are_left_out_by_default(tmp_path):
    net = Net()
    x = net.conv(net.data("image", ("n", 3, 8, 8)), "one", (8, 3, 3, 3))
    scales = net.constant(np.array([1, 1, 2, 2], np.float32), "scales")
    x = net.op("Resize", x, None, scales, mode="nearest")
    x = net.op("Mul", x, net.constant(np.float32(0.5), "half"))
    x = net.op("Clip", x, net.constant(np.float32(-1), "low"), net.constant(np.float32(6), "high"))
    path = save(net.model(net.head(x, 8)), tmp_path / "net.onnx")
    made = onnxprune.differentiate(path, provider="cpu")
    assert gradients(made) == {"one.weight", "one.bias", "head.weight", "head.bias"}
    made = onnxprune.differentiate(path, wrt=["half", "low"], provider="cpu")
    assert gradients(made) == {"half", "low"}


def test_weights_in_constant_nodes(tmp_path):
    """They have the names of the nodes' outputs."""
    model = onnx.load(save(convnet((4,)), tmp_path / "net.onnx"))
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == "conv0.weight"]
    model.graph.initializer.remove(weight)
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["conv0.weight"], value=weight))
    onnx.save(model, tmp_path / "net.onnx")
    assert "conv0.weight" in gradients(onnxprune.differentiate(tmp_path / "net.onnx", provider="cpu"))


def test_a_model_with_a_value_named_labels(tmp_path):
    net = Net()
    x = net.op("Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "one", (8, 3, 3, 3)))
    y = net.head(net.ops("Tanh", x, outputs=["labels"])[0], 8)
    made = onnxprune.differentiate(save(net.model(y), tmp_path / "net.onnx"), data=feeds(), provider="cpu")
    assert made.added == ("labels_1",)


def test_nothing_to_differentiate_with_respect_to(tmp_path):
    net = Net()
    x = net.op("Relu", net.data("image", ("n", 3, 8, 8)))
    y = net.op("Mul", x, net.constant(np.ones((3, 1, 1), np.float32), "w"))
    path = save(net.model(y), tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="the model has no groups of units that anything sums over"):
        onnxprune.differentiate(path, units=True, provider="cpu")


def test_samples_on_no_axis_of_their_own_are_summed(tmp_path):
    net = Net(seed=1)
    rows = net.op("Reshape", net.data("x", ("n", 3, 4)), net.constant(np.array([4, -1]), "flat"))
    h = net.op("Relu", net.op("MatMul", net.normal((8, 4), "left"), rows, name="left"))
    y = net.op("MatMul", net.normal((5, 8), "right"), h, name="right")
    path = save(net.model(y), tmp_path / "net.onnx")
    made = onnxprune.differentiate(path, units=True, loss="outputs", provider="cpu")
    assert gradients(made) == {"g0"} and any("sums over the samples" in note for note in made.notes)
    assert list(made.model.graph.outputs[-1].shape) == [1, 8]
