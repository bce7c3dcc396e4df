"""Layers inside If, Loop and Scan get the weights that the same layers get in the main graph from the same rows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from structures.control_nets import graphs_of, proto_of

import onnxprune
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.model.io import load
from onnxprune.repair.targets import UNDECIDED

MLP = "a = MatMul (r, u)  b = Relu (a)  c = MatMul (b, v)  d = Tanh (c)  o = Gemm (d, w, z)"
SHAPES = {"u": (6, 16), "v": (16, 12), "w": (12, 5), "z": (5,), "y": (5, 3)}
STEPS, SAMPLES = 3, 60

PLAIN = f"""
main (float[n, 6] x, float[n, 6] extra) => (float[n, 3] q) {{
    r = Add (x, extra)
    {MLP}
    q = MatMul (o, y)
}}
"""
CHOICE = f"""
main (float[n, 6] x, float[n, 6] extra) => (float[n, 3] q) {{
    r = Add (x, extra)
    axes = Constant <value_ints = [0, 1]> ()
    most = ReduceMax <keepdims = 0> (x)
    all = Constant <value_float = 100.0> ()
    flag = Less (most, all)
    t = If (flag) <
        then_branch = yes () => (o) {{ {MLP} }},
        else_branch = no () => (e) {{ f = MatMul (r, s)  e = Neg (f) }}>
    q = MatMul (t, y)
}}
"""
NESTED = f"""
main (float[n, 6] x, float[n, 6] extra) => (float[n, 3] q) {{
    r = Add (x, extra)
    one = Constant <value_int = 1> ()
    all = Constant <value_float = 100.0> ()
    t3 = Loop (one, "", ) <body = step (int64 i, bool on) => (bool still, float[n, 5] t) {{
        still = Identity (on)
        most = ReduceMax <keepdims = 0> (x)
        flag = Less (most, all)
        t = If (flag) <
            then_branch = yes () => (o) {{ {MLP} }},
            else_branch = no () => (e) {{ f = MatMul (r, s)  e = Neg (f) }}>
    }}>
    zero = Constant <value_ints = [0]> ()
    t1 = Squeeze (t3, zero)
    q = MatMul (t1, y)
}}
"""
ROWS = f"""
main (float[n, {STEPS}, 6] x, float[n, {STEPS}, 6] extra) => (float[n, {STEPS}, 3] q) {{
    r = Add (x, extra)
    {MLP.replace("o = Gemm (d, w, z)", "m = MatMul (d, w)  o = Add (m, z)")}
    q = MatMul (o, y)
}}
"""
LOOP = f"""
main (float[n, {STEPS}, 6] x, float[n, {STEPS}, 6] extra) => (float[n, {STEPS}, 3] q) {{
    k = Add (x, extra)
    count = Constant <value_int = {STEPS}> ()
    l = Loop (count, "") <body = step (int64 i, bool on) => (bool still, float[n, 5] o) {{
        still = Identity (on)
        r = Gather <axis = 1> (k, i)
        {MLP}
    }}>
    g = Transpose <perm = [1, 0, 2]> (l)
    q = MatMul (g, y)
}}
"""
SCAN = f"""
main (float[n, {STEPS}, 6] x, float[n, {STEPS}, 6] extra) => (float[n, {STEPS}, 3] q) {{
    k = Add (x, extra)
    g = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
        body = step (float[n, 6] r) => (float[n, 5] o) {{ {MLP} }}> (k)
    q = MatMul (g, y)
}}
"""
BACK = f"""
main (float[n, {STEPS}, 6] x, float[n, {STEPS}, 6] extra) => (float[n, {STEPS}, 3] q) {{
    k = Add (x, extra)
    g = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_directions = [1],
        scan_input_directions = [1], body = step (float[n, 6] r) => (float[n, 5] o) {{ {MLP} }}> (k)
    h = Transpose <perm = [1, 0, 2]> (g)
    q = MatMul (h, y)
}}
"""


def saved(tmp_path, name, text, inside=""):
    """The file of a network: the same weights wherever they are."""
    shapes = {f"{inside}:{key}" if inside and key in "uvwz" else key: s for key, s in SHAPES.items()}
    if "s)" in text:
        shapes["no:s"] = (6, 5)
    proto = proto_of(text, shapes)
    onnx.save(proto, tmp_path / f"{name}.onnx")
    return tmp_path / f"{name}.onnx"


def samples(steps, seed=0):
    """The features hang together, so that there is something to repair with."""
    rng = np.random.default_rng(seed)
    shape = (SAMPLES, steps, 6) if steps else (SAMPLES, 6)
    x = rng.standard_normal(shape) @ rng.standard_normal((6, 6))
    return {"x": x.astype(np.float32), "extra": rng.standard_normal(shape).astype(np.float32) / 4}


def weights(path):
    """All float initializers of a file, by name, wherever they are."""
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for graph in graphs_of(onnx.load(path).graph)
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name != "all"
    }


def pruned(path, steps, **options):
    out = path.with_name(f"{path.stem}.pruned.onnx")
    options = {"ratio": 0.5, "round_to": 1, "criterion": "l2", "data": samples(steps), **options}
    return out, onnxprune.prune(path, out, slim=False, **options).report


FORMS = {
    "if": (PLAIN, CHOICE, "yes", 0),
    "if in loop": (PLAIN, NESTED, "yes", 0),
    "loop": (ROWS, LOOP, "step", STEPS),
    "scan": (ROWS, SCAN, "step", STEPS),
    "scan backwards": (ROWS, BACK, "step", STEPS),
}


@pytest.mark.parametrize("criterion", ["l2", "wanda", "obs"])
@pytest.mark.parametrize("form", FORMS)
def test_the_same_as_in_the_main_graph(tmp_path, form, criterion):
    """To the float: from the same samples, the same units go and the same weights and biases come out."""
    plain, inner, body, steps = FORMS[form]
    options = {"criterion": criterion, "only": ["u", "v"]}
    first, one = pruned(saved(tmp_path, "plain", plain), steps, **options)
    second, two = pruned(saved(tmp_path, "inner", inner, body), steps, **options)
    want_kinds, kinds = ([layer.kind for layer in report.repairs if not layer.why] for report in (one, two))
    assert kinds[:2] == want_kinds[:2] == ["affine", "affine"]
    want, found = weights(first), weights(second)
    want.pop("y/bias", None)  # the mean of what the last layer sees is right up to rounding
    assert {"v", "w", "z", "v/bias"} <= want.keys() <= found.keys()
    for name, array in want.items():
        atol = 2e-4 * np.abs(array).max() + 1e-6  # of a bias that is zero but for rounding
        np.testing.assert_allclose(found[name], array, atol=atol, err_msg=name)


# --- convolutions and recurrent layers -------------------------------------------------------------------

CONV = "a = Conv <pads = [1, 1, 1, 1]> (r, u)  b = Relu (a)  o = Conv <strides = [2, 2]> (b, v)"
CONV_SHAPES = {"u": (16, 3, 3, 3), "v": (6, 16, 2, 2), "y": (4, 6, 1, 1)}
CONV_PLAIN = f"main (float[n, 3, 8, 8] r) => (float[n, 4, h, i] q) {{ {CONV}  q = Conv (o, y) }}"
CONV_CHOICE = f"""
main (float[n, 3, 8, 8] r) => (float[n, 4, h, i] q) {{
    most = ReduceMax <keepdims = 0> (r)
    all = Constant <value_float = 100.0> ()
    flag = Less (most, all)
    t = If (flag) <
        then_branch = yes () => (o) {{ {CONV} }},
        else_branch = no () => (e) {{ e = Conv <strides = [2, 2]> (r, s) }}>
    q = Conv (t, y)
}}
"""
LSTM = """h, last = LSTM <hidden_size = 12, direction = "bidirectional"> (r, u, v, w)
    o = ReduceMean <axes = [0], keepdims = 0> (last)"""
LSTM_SHAPES = {"u": (2, 48, 6), "v": (2, 48, 12), "w": (2, 96), "y": (12, 3)}
LSTM_PLAIN = f"main (float[{STEPS}, n, 6] r) => (float[n, 3] q) {{ {LSTM}  q = MatMul (o, y) }}"
LSTM_CHOICE = f"""
main (float[{STEPS}, n, 6] r) => (float[n, 3] q) {{
    most = ReduceMax <keepdims = 0> (r)
    all = Constant <value_float = 100.0> ()
    flag = Less (most, all)
    t = If (flag) <
        then_branch = yes () => (o) {{ {LSTM} }},
        else_branch = no () => (e) {{
            axes = Constant <value_ints = [0]> ()
            f = ReduceMean <axes = [0], keepdims = 0> (r)
            e = MatMul (f, s) }}>
    q = MatMul (t, y)
}}
"""


@pytest.mark.parametrize(
    ("plain", "inner", "shapes", "other", "shape"),
    [
        (CONV_PLAIN, CONV_CHOICE, CONV_SHAPES, (6, 3, 2, 2), (SAMPLES, 3, 8, 8)),
        (LSTM_PLAIN, LSTM_CHOICE, LSTM_SHAPES, (6, 12), (SAMPLES, STEPS, 1, 6)),
    ],
    ids=["conv", "lstm"],
)
def test_other_layers_in_branches(tmp_path, plain, inner, shapes, other, shape):
    """Unfolded convolutions, and both products of both directions, as in the main graph."""
    rng = np.random.default_rng(3)
    data = rng.standard_normal(shape).astype(np.float32) * rng.uniform(0.2, 1, shape[-1]).astype(np.float32)
    data = (
        {"r": data} if shape[1] == 3 and len(shape) == 4 and shape[2] == 8 else [{"r": one} for one in data]
    )
    first, second = tmp_path / "plain.onnx", tmp_path / "inner.onnx"
    onnx.save(proto_of(plain, shapes), first)
    named = {f"yes:{key}" if key in "uvw" else key: value for key, value in shapes.items()}
    onnx.save(proto_of(inner, {**named, "no:s": other}), second)
    options = {"only": ["u", "v"] if "w" in shapes else ["u"], "criterion": "obs"}
    (first, one), (second, two) = (pruned(path, 0, data=data, **options) for path in (first, second))
    kinds, want_kinds = ([layer.kind for layer in report.repairs if not layer.why] for report in (two, one))
    assert kinds == want_kinds and "affine" in kinds
    want, found = weights(first), weights(second)
    for name, array in want.items():
        atol = 2e-3 * np.abs(array).max() + 1e-6
        np.testing.assert_allclose(found[name], array, atol=atol, err_msg=name)


@pytest.mark.parametrize("criterion", ["obs", "wanda"])
def test_convolutions_that_some_samples_run(tmp_path, criterion):
    """In batches that take the other branch, there is nothing to unfold."""
    text = CONV_CHOICE.replace(
        "e = Conv <strides = [2, 2]> (r, s)",
        "f = Conv (r, t1)  g = Tanh (f)  e = Conv <strides = [2, 2]> (g, s)",
    )
    text = text.replace("value_float = 100.0", "value_float = 2.5")
    shapes = {"yes:u": (16, 3, 3, 3), "yes:v": (6, 16, 2, 2), "no:t1": (12, 3, 1, 1), "no:s": (6, 12, 2, 2)}
    path = tmp_path / "net.onnx"
    onnx.save(proto_of(text, {**shapes, "y": (4, 6, 1, 1)}), path)
    rng = np.random.default_rng(3)
    scales = rng.choice([0.3, 3.0], 60)
    data = [{"r": (rng.standard_normal((1, 3, 8, 8)) * scale).astype(np.float32)} for scale in scales]
    _, report = pruned(path, 0, data=data, criterion=criterion)
    kinds = {layer.name: layer.kind for layer in report.repairs if layer.lost}
    assert kinds["yes.conv2"] == kinds["no.conv2"] == "affine"
    assert all(layer.after < layer.before for layer in report.repairs if layer.kind == "affine")


# --- loops that come back to what they made --------------------------------------------------------------

CELL = "p = MatMul (s, w)  e = Gemm (row, u, z)  a = Add (p, e)  next = Tanh (a)"
CELL_SHAPES = {"u": (6, 12), "w": (12, 12), "z": (12,), "y": (12, 3)}
CELL_SCAN = f"""
main (float[n, 5, 6] x) => (float[n, 3] q) {{
    nothing = Constant <value_floats = [0.0]> ()
    size = Constant <value_ints = [1, 12]> ()
    one = Constant <value_ints = [0]> ()
    t = Shape (x)
    n = Gather (t, one)
    last = Constant <value_ints = [12]> ()
    both = Concat <axis = 0> (n, last)
    start = Expand (nothing, both)
    g = Scan <num_scan_inputs = 1, scan_input_axes = [1],
        body = step (float[n, 12] s, float[n, 6] row) => (float[n, 12] next) {{ {CELL} }}> (start, x)
    q = MatMul (g, y)
}}
"""
CELL_LOOP = f"""
main (float[n, 5, 6] x) => (float[n, 3] q) {{
    nothing = Constant <value_floats = [0.0]> ()
    one = Constant <value_ints = [0]> ()
    t = Shape (x)
    n = Gather (t, one)
    last = Constant <value_ints = [12]> ()
    both = Concat <axis = 0> (n, last)
    start = Expand (nothing, both)
    count = Constant <value_int = 5> ()
    g = Loop (count, "", start) <
        body = step (int64 i, bool on, float[n, 12] s) => (bool still, float[n, 12] next) {{
        still = Identity (on)
        row = Gather <axis = 1> (x, i)
        {CELL} }}>
    q = MatMul (g, y)
}}
"""


def outputs(path, feed):
    return next(iter(run(open_session(load(path).ir, threads=1), feed).values()))


@pytest.mark.parametrize("text", [CELL_SCAN, CELL_LOOP], ids=["scan", "loop"])
@pytest.mark.parametrize("mode", ["remove", "mask"])
def test_states_of_twins_cost_nothing(tmp_path, text, mode):
    """Of every two units that do the same, one goes: the column of its state goes to the other."""
    proto = proto_of(text, {f"step:{key}" if key in "uwz" else key: s for key, s in CELL_SHAPES.items()})
    for graph in graphs_of(proto.graph):
        for tensor in graph.initializer:
            array = numpy_helper.to_array(tensor).copy()
            if tensor.name in "uwz":
                array[..., 1::2] = array[..., ::2]
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    path = tmp_path / "net.onnx"
    onnx.save(proto, path)
    data, fresh = ({"x": samples(5, seed)["x"]} for seed in (0, 1))
    out, report = pruned(path, 0, data=data, criterion="obs", mode=mode)
    plain = tmp_path / "plain.onnx"
    options = {"ratio": 0.5, "round_to": 1, "criterion": "obs", "data": data, "mode": mode}
    onnxprune.prune(path, plain, slim=False, compensate="none", **options)
    want = outputs(path, fresh)
    error, without = (np.square(outputs(p, fresh) - want).mean() / want.var() for p in (out, plain))
    assert error < 1e-5 < 1e-3 < without
    repaired = {layer.name for layer in report.repairs if layer.kind == "affine"}
    assert repaired == {"step.matmul0" if text is CELL_SCAN else "step.matmul2", "main.matmul9"}


# --- what is left as it is -------------------------------------------------------------------------------

LOOKS = """
main (float[n, 6] x) => (float[n, 3] q) {
    f = MatMul (x, k)
    h = Relu (f)
    r = MatMul (h, g)
    most = ReduceMax <keepdims = 0> (r)
    one = Constant <value_float = 1.0> ()
    flag = Less (most, one)
    t = If (flag) <
        then_branch = yes () => (o) { a = MatMul (r, u)  b = Relu (a)  o = MatMul (b, v) },
        else_branch = no () => (e) { c = MatMul (r, s)  d = Tanh (c)  e = MatMul (d, w) }>
    q = MatMul (t, y)
}
"""
LOOKS_SHAPES = {
    **{"k": (6, 16), "g": (16, 6), "y": (5, 3), "yes:u": (6, 16), "yes:v": (16, 5)},
    **{"no:s": (6, 16), "no:w": (16, 5)},
}


def test_a_way_that_depends_on_layers_that_lost_inputs(tmp_path):
    """The cut model may take another branch than the original: then there is nothing to compare."""
    path = tmp_path / "net.onnx"
    onnx.save(proto_of(LOOKS, LOOKS_SHAPES), path)
    data = {"x": samples(0)["x"]}
    _, report = pruned(path, 0, data=data)
    left = {layer.name: layer.why for layer in report.repairs if layer.why}
    assert left == dict.fromkeys(["yes.matmul2", "no.matmul2"], UNDECIDED)
    _, report = pruned(
        path, 0, data=data, only=["u", "v", "s", "w"], force=True
    )  # what decides is not touched
    assert {layer.name for layer in report.repairs if layer.kind == "affine"} >= {"yes.matmul2", "no.matmul2"}


def test_a_bias_in_a_branch_is_no_bias_of_a_layer_outside(tmp_path):
    """It is added in some runs only."""
    text = LOOKS.replace("o = MatMul (b, v)", "o = Add (j, z)").replace("a = MatMul (r, u)  b = Relu (a)", "")
    text = text.replace("flag = Less", "i = MatMul (r, u)  l = Relu (i)  j = MatMul (l, v)  flag = Less")
    path = tmp_path / "net.onnx"
    shapes = {key.removeprefix("yes:"): shape for key, shape in LOOKS_SHAPES.items()}
    onnx.save(proto_of(text, {**shapes, "yes:z": (5,)}), path)
    out, report = pruned(path, 0, data={"x": samples(0)["x"]}, only=["u"])
    (mended,) = [layer for layer in report.repairs if layer.lost]
    assert mended.kind == "affine" and mended.after < mended.before
    assert weights(out)["z"].tolist() == weights(path)["z"].tolist() and "v/bias" in weights(out)


def test_a_layer_sees_the_bias_that_the_one_before_got(tmp_path):
    """A fit with a bias gives the mean of its target exactly, for the input that the layer really has."""
    text = """
    main (float[n, 6] x) => (float[n, 3] q) {
        a = MatMul (x, u)
        b = Relu (a)
        c = MatMul (b, v)
        d = MatMul (c, w)
        q = Tanh (d)
    }
    """
    path = tmp_path / "net.onnx"
    onnx.save(proto_of(text, {"u": (6, 16), "v": (16, 8), "w": (8, 3)}), path)
    data = {"x": samples(0)["x"] + 1}
    out, report = pruned(path, 0, data=data, test=data, only=["u"])
    assert [layer.kind for layer in report.repairs][0] == "affine"
    found = weights(out)

    def linear(w):
        c = np.maximum(data["x"] @ w["u"], 0) @ w["v"] + w.get("v/bias", 0)
        return c @ w["w"] + w.get("w/bias", 0)

    fitted = np.arange(SAMPLES) // 6 % 5 < 4  # every fifth of ten batches is held out
    want = linear(weights(path))
    miss = np.abs((linear(found) - want)[fitted].mean(axis=0))
    assert "v/bias" in found and (miss < 1e-4 * np.abs(want).max()).all()
