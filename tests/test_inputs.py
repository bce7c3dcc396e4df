"""The inputs on which a model is proven: real samples, or generated ones that it accepts."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_nets import Net, attention, convnet, feeds, save

import onnxprune
from onnxprune.errors import UsageError
from onnxprune.inputs import CROWD, PROOF_SAMPLES, choose_inputs


def loaded(model: ir.Model, tmp_path):
    return onnxprune.load(save(model, tmp_path / "net.onnx"))


def flattened(size: int, hidden: bool = True) -> ir.Model:
    """A model that runs at one size of its symbolic axis only: the linear layer says which, at once or `hidden`."""
    net = Net()
    x = net.data("signal", ("n", "length"))
    return net.model(net.linear(net.op("Relu", x) if hidden else x, "fc", size, 4))


def test_a_batch_of_one_is_generated(tmp_path):
    found = choose_inputs(loaded(convnet(), tmp_path))
    assert (found.data.tier, len(found.data), dict(found.bindings)) == ("synthetic", 2, {"n": 1})
    assert found.data.feeds[0]["image"].shape == (1, 3, 8, 8)
    assert found.notes == ("sizes of symbolic dims not given with --bind, so assumed: n=1",)
    assert np.ptp(found.data.feeds[0]["image"] - found.data.feeds[1]["image"]) > 0


def test_the_seed_decides_what_is_generated(tmp_path):
    model = loaded(convnet(), tmp_path)
    first, again, other = (choose_inputs(model, seed=seed).data.feeds[0]["image"] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_bindings_are_not_assumed(tmp_path):
    found = choose_inputs(loaded(attention(), tmp_path), bindings={"n": 1})
    assert found.notes == ()


@pytest.mark.parametrize("size", [512, 64, 16, 3])
def test_the_size_at_which_a_model_runs_is_found(tmp_path, size):
    model = loaded(flattened(size), tmp_path)
    if size == 3:
        with pytest.raises(UsageError, match="no generated input runs") as error:
            choose_inputs(model)
        assert "--bind" in error.value.hint
        assert choose_inputs(model, bindings={"length": 3}).bindings["length"] == 3
        return
    found = choose_inputs(model)
    assert found.bindings["length"] == size
    assert f"length={size}" in found.notes[0]


def test_one_size_may_be_for_one_input_alone(tmp_path):
    net = Net()
    frames, state = net.data("frames", ("a", "length")), net.data("state", (2, "b", 3))
    made = net.linear(net.op("Reshape", frames, net.constant([1, 64])), "fc", 64, 4)
    model = net.model(made, net.op("Reshape", state, net.constant([2, 3])), bindings={"length": 64, "b": 1})
    found = choose_inputs(loaded(model, tmp_path))
    assert dict(found.bindings) == {"a": 1, "length": 64, "b": 1}


def test_the_weight_that_reads_an_input_says_its_size(tmp_path):
    found = choose_inputs(loaded(flattened(3, hidden=False), tmp_path))
    assert found.bindings["length"] == 3 and "length=3" in found.notes[0]


def test_token_ids_stay_inside_the_embedding(tmp_path):
    net = Net()
    tokens = net.input("ids", ("n", 6), ir.DataType.INT64)
    table = net.normal((5, 16), "table")
    x = net.op("Gather", table, tokens, name="embed")
    model = net.model(net.op("MatMul", x, net.normal((16, 4), "out"), name="out_proj"))
    found = choose_inputs(loaded(model, tmp_path))
    ids = np.concatenate([found.data.feeds[i]["ids"].ravel() for i in range(2)])
    assert ids.min() >= 0
    assert 2 <= ids.max() < 5
    assert onnxprune.prune(tmp_path / "net.onnx", ratio=0.4).report.soundness.checked


def test_data_decides_the_sizes(tmp_path):
    model = loaded(attention(tokens=5), tmp_path)
    samples = {"tokens": np.zeros((7, 5, 32), np.float32)}
    found = choose_inputs(model, data=samples)
    assert (len(found.data), len(found.proof), found.bindings["n"]) == (7, PROOF_SAMPLES, 1)
    assert found.notes == ()


def test_data_decides_the_size_of_other_axes(tmp_path):
    model = loaded(flattened(48), tmp_path)
    found = choose_inputs(model, data={"signal": np.zeros((3, 48), np.float32)})
    assert dict(found.bindings) == {"n": 1, "length": 48}


def test_the_number_of_samples_is_bounded(tmp_path):
    found = choose_inputs(loaded(convnet(), tmp_path), data=feeds(6), samples=3)
    assert (len(found.data), len(found.proof)) == (3, 3)
    assert any("3 of 6 samples" in note for note in found.notes)


def test_sizes_end_up_in_the_report(tmp_path):
    path = save(flattened(64), tmp_path / "net.onnx")
    report = onnxprune.prune(path, macs=1).report
    assert dict(report.bindings) == {"n": 1, "length": 64}
    assert report.before.macs == 64 * 4


def message_passing(tmp_path, size="nodes"):
    """Nodes send what they hold along edges, and add up what comes: as PyTorch writes `scatter_add`."""
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[{size},6] x, int64[2,edges] edge_index) => (float[{size},3] y)
    <float[6,16] w1, float[16,16] w2, float[16,3] w3, float zero = {{0}}>
    {{
        h0 = MatMul(x, w1)
        h = Relu(h0)
        first = Constant<value_int=0>()
        second = Constant<value_int=1>()
        source = Gather<axis=0>(edge_index, first)
        target = Gather<axis=0>(edge_index, second)
        sent0 = Gather<axis=0>(h, source)
        sent = MatMul(sent0, w2)
        shape = Shape(sent)
        last = Constant<value_ints=[-1]>()
        column = Unsqueeze(target, last)
        index = Expand(column, shape)
        bounds = Shape(index)
        start = Constant<value_ints=[0, 0]>()
        part = Slice(sent, start, bounds)
        all = Shape(h)
        empty = Expand(zero, all)
        sum = ScatterElements<axis=0, reduction="add">(empty, index, part)
        y = MatMul(sum, w3)
    }}
    """
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    sizes = {"w1": (6, 16), "w2": (16, 16), "w3": (16, 3)}
    for name, shape in sizes.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "graph.onnx")
    return tmp_path / "graph.onnx"


def test_edges_join_nodes_that_are_there(tmp_path):
    found = choose_inputs(onnxprune.load(message_passing(tmp_path)))
    assert found.bindings["nodes"] == CROWD
    edges = [feed["edge_index"] for feed in found.data.feeds]
    assert all(each.min() >= 0 and 4 < each.max() < CROWD for each in edges)
    assert any("nodes=16" in note for note in found.notes)


def test_calibration_takes_edges_of_the_same_kind(tmp_path):
    found = choose_inputs(onnxprune.load(message_passing(tmp_path)), data="synthetic:3")
    assert all(4 < feed["edge_index"].max() < CROWD for feed in found.fit.feeds)


def test_a_size_that_was_given_stays(tmp_path):
    found = choose_inputs(onnxprune.load(message_passing(tmp_path)), bindings={"nodes": 5})
    assert found.bindings["nodes"] == 5 and found.data.feeds[0]["edge_index"].max() < 5


def test_where_one_position_is_all_there_is_integers_are_zero(tmp_path):
    found = choose_inputs(onnxprune.load(message_passing(tmp_path, size="1")))
    assert found.data.feeds[0]["edge_index"].max() == 0


def test_messages_are_pruned(tmp_path):
    """Its slice takes all channels, whatever the number of edges is: no reason to keep them."""
    report = onnxprune.prune(message_passing(tmp_path), tmp_path / "small.onnx", ratio=0.5).report
    assert [(group.units, group.kept) for group in report.groups] == [(16, 8), (16, 8)]
    assert report.soundness.checked and report.soundness.inner


def test_a_file_that_only_runs_widened_is_said_to(tmp_path):
    """As converters to float16 leave it: a value is declared to be of another type than the one that is made."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float16[n,6] x) => (float16[n,3] y)
    <float16[6,16] w1, float16[16,3] w2>
    { h0 = MatMul(x, w1)  h = Relu(h0)  y = MatMul(h, w2) }
    """
    model = onnx.parser.parse_model(text)
    for name, shape in {"w1": (6, 16), "w2": (16, 3)}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float16), name))
    notes = {}
    for kind in (onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT):
        del model.graph.value_info[:]
        model.graph.value_info.append(onnx.helper.make_tensor_value_info("h0", kind, ("n", 16)))
        onnx.save(model, tmp_path / "half.onnx")
        notes[kind] = choose_inputs(onnxprune.load(tmp_path / "half.onnx")).notes
    (note,) = set(notes[onnx.TensorProto.FLOAT]) - set(notes[onnx.TensorProto.FLOAT16])
    assert "only a copy of it in float32" in note and "h0" in note
