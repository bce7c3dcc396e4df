"""DynamicQuantizeLSTM: files of onnxruntime's quantiser, first states, and what the range of the states sees."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from integer_models import lstm_of
from integer_net import CONTRIB, Integers, described, run
from onnx import TensorProto, numpy_helper
from recurrent_nets import classifier, saved, sequences

import onnxprune
from onnxprune.model.finalize import finalize
from onnxprune.model.integer import left_whole
from onnxprune.model.io import load
from onnxprune.model.normalize import normalize

OPTIONS = {"ratio": 0.5, "criterion": "l2", "compensate": "none", "round_to": 1, "provider": "cpu"}


def arrays(path):
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_what_the_quantiser_of_onnxruntime_writes(both, per_channel, tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    source = saved(classifier("LSTM", hidden=(12, 10), both=both), tmp_path / "float.onnx")
    bare = onnx.load(source)
    del bare.graph.value_info[:]  # the quantiser turns weights around and leaves their shapes as they were
    onnx.save(bare, source)
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    quantization.quantize_dynamic(str(source), str(before), per_channel=per_channel)
    model = load(before).ir
    assert [node.op_type for node in model.graph].count("DynamicQuantizeLSTM") == 2
    normal = normalize(model)
    assert not left_whole(normal.graph) and described(finalize(normal)) == described(model)

    report = onnxprune.prune(before, after, **OPTIONS).report
    assert report.soundness.equal and report.soundness.form == "integer"
    assert report.after.params < 0.6 * report.before.params
    old, new = arrays(before), arrays(after)
    assert set(new) == set(old)
    for name, array in new.items():
        if name.endswith(("_quantized", "_scale", "_zero_point")):
            assert np.isin(array, old[name]).all() and array.dtype == old[name].dtype
    smaller = [name for name in new if name.endswith(".r_quantized")]
    assert smaller and all(new[name].size < 0.5 * old[name].size for name in smaller)
    if per_channel:
        assert all(new[f"{n[:-10]}_scale"].shape == (2 if both else 1, new[n].shape[2]) for n in smaller)
    feed = sequences(1)[0]
    assert np.isfinite(run(onnx.load(after), feed)[0]).all()


def _with_first_states():
    """Both directions, whose first hidden states come from a product, and whose first cells are stored."""
    m = Integers("u", opset=14)
    x, context = m.floats(7, 2, 6), m.floats(2, 5)
    w = m.weight(5, 24, zeros=True, name="state_quantized")
    m.node("DynamicQuantizeMatMul", [context, *w], ["flat"], CONTRIB, name="state")
    m.node("Reshape", ["flat", m.add("apart", np.array([0, 2, 12]))], ["by_sample"], name="reshape")
    m.node("Transpose", ["by_sample"], ["first"], name="turn", perm=[1, 0, 2])
    cells = m.add("cells", m.rng.normal(size=(2, 2, 12)).astype(np.float32))
    lstm_of(m, x, 6, 12, ["y"], "lstm", both=True, given=("", "first", cells))
    bias = m.arrays["lstm_B"]
    bias[:] = np.sign(bias) * 2  # units are far from 0 whatever their weights
    m.node("Transpose", ["y"], ["t"], name="join", perm=[0, 2, 1, 3])
    m.node("Reshape", ["t", m.add("together", np.array([0, 0, -1]))], ["r"], name="flatten")
    w = m.weight(24, 5, zeros=True, name="down_quantized")
    m.node("DynamicQuantizeMatMul", ["r", *w], ["out"], CONTRIB, name="down")
    proto = m.model("out", types=[TensorProto.FLOAT])
    for extent in (7, 2, 5):
        proto.graph.output[0].type.tensor_type.shape.dim.add(dim_value=extent)
    return m, proto


def test_first_states_of_dropped_units_have_no_say_in_the_range(tmp_path):
    m, proto = _with_first_states()
    before = tmp_path / "before.onnx"
    onnx.save(proto, before)
    done = onnxprune.prune(before, tmp_path / "after.onnx", **OPTIONS).report
    assert done.soundness.equal and done.soundness.form == "integer"
    new = arrays(tmp_path / "after.onnx")
    assert new["cells"].shape == (2, 2, 6) and new["state_quantized"].shape == (5, 12)
    assert new["lstm_R_quantized"].shape == (2, 6, 24) and new["lstm_B"].shape == (2, 48)
    onnxprune.prune(before, tmp_path / "masked.onnx", mode="mask", slim=False, **OPTIONS)
    masked = arrays(tmp_path / "masked.onnx")
    assert (masked["cells"] == 0).any(
        axis=(0, 1)
    ).sum() == 6  # positions of states are one in both directions
    assert (masked["lstm_B"].reshape(2, 8, 12) == 0).all(axis=1).sum() == 12
    results = [run(onnx.load(tmp_path / name), m.feed)[0] for name in ("after.onnx", "masked.onnx")]
    assert np.array_equal(*results)


def test_a_silent_unit_is_what_keeps_the_range(tmp_path):
    """The premise: a unit that only its readers ignore changes what the others are rounded to."""
    m, proto = _with_first_states()
    model = ir.from_proto(proto)
    for name, cut in (
        ("lstm_R_quantized", lambda a: np.concatenate([np.zeros_like(a[:, :6]), a[:, 6:]], axis=1)),
        ("lstm_B", lambda a: np.where(np.tile(np.arange(12) < 6, 8), 4 * a, a)),
    ):
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(cut(value.const_value.numpy()), name=name)
    model.graph.outputs.append(next(n for n in model.graph if n.op_type == "DynamicQuantizeLSTM").outputs[0])
    loud = run(model, m.feed)[1][..., 6:]
    for name in ("lstm_W_quantized", "lstm_R_quantized", "lstm_B"):
        value = model.graph.initializers[name]
        array = value.const_value.numpy().copy()
        array.reshape(*array.shape[:-1], -1, 12)[..., :6] = 0
        value.const_value = ir.tensor(array, name=name)
    assert not np.array_equal(loud, run(model, m.feed)[1][..., 6:])


def test_slimming_and_sparsity(tmp_path):
    """Slimming leaves units whose states are rounded together; sparsity is for products alone."""
    m, proto = _with_first_states()
    before = tmp_path / "before.onnx"
    idle = [3, 7]
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name in ("lstm_W_quantized", "lstm_R_quantized", "lstm_B"):
            array.reshape(*array.shape[:-1], -1, 12)[..., idle] = 0
        if tensor.name == "lstm_R_quantized":
            array[:, idle] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, before)
    onnxprune.slim(before, tmp_path / "slim.onnx", provider="cpu")
    slim = onnx.load(tmp_path / "slim.onnx")
    assert arrays(tmp_path / "slim.onnx")["lstm_R_quantized"].shape == (2, 12, 48)
    assert np.array_equal(run(proto, m.feed)[0], run(slim, m.feed)[0])
    onnxprune.sparsify(before, tmp_path / "sparse.onnx", sparsity=0.5, provider="cpu")
    old, new = arrays(before), arrays(tmp_path / "sparse.onnx")
    assert (new["down_quantized"] == m.arrays["down_quantized_zero"]).mean() > 0.4
    assert np.array_equal(new["lstm_W_quantized"], old["lstm_W_quantized"])
    for made in (slim, onnx.load(tmp_path / "sparse.onnx")):
        assert sorted(n.op_type for n in made.graph.node) == sorted(n.op_type for n in proto.graph.node)
