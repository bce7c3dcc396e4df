"""What the report says beside its figures about models that cannot be seen, counted or cut as a whole."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, parser

import onnxprune
from onnxprune.report import terminal
from onnxprune.report.analysis import render, to_dict
from onnxprune.report.remarks import HELD
from onnxprune.report.tables import soundness_line


def saved(path, text, **shapes):
    """Parse a model and give it weights."""
    model = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        array = rng.standard_normal(shape).astype(np.float32) / 4
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(model, path)
    return path


def bent(path):
    """Two layers, an operator of somebody else's whose output nobody knows, and a layer behind it."""
    text = """
    <ir_version: 8, opset_import: ["" : 17, "acme" : 1]>
    net (float[n,6] x) => (float[n,3] y)
    { h0 = MatMul(x, w1)  h = Relu(h0)  m = MatMul(h, w2)  b = acme.Bend(m)  y = MatMul(b, w3) }
    """
    return saved(path, text, w1=(6, 32), w2=(32, 8), w3=(8, 3))


def recurrent(path, hidden=32):
    """An LSTM that is given its states, and gives them back."""
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[t,1,6] x, float[1,1,{hidden}] h0, float[1,1,{hidden}] c0)
        => (float[t,1,3] y, float[1,1,{hidden}] hn, float[1,1,{hidden}] cn)
    <int64[1] one = {{1}}>
    {{
        f0 = MatMul(x, w1)
        f = Relu(f0)
        s, hn, cn = LSTM<hidden_size={hidden}>(f, w, r, , , h0, c0)
        q = Squeeze(s, one)
        y = MatMul(q, w2)
    }}
    """
    gates = 4 * hidden
    return saved(path, text, w1=(6, 16), w=(1, gates, 16), r=(1, gates, hidden), w2=(hidden, 3))


def test_the_proof_says_what_it_covers_where_an_operator_does_not_run(tmp_path):
    report = onnxprune.prune(bent(tmp_path / "net.onnx"), tmp_path / "small.onnx", ratio=0.5).report
    assert report.soundness.max_abs_output > 0.1  # what the operator reads, as no output can be seen
    line = soundness_line(report)
    assert "in all that onnxruntime can run" in line and "all outputs" not in line


def test_layers_of_unknown_size_are_said_not_to_count(tmp_path):
    report = onnxprune.prune(bent(tmp_path / "net.onnx"), tmp_path / "small.onnx", ratio=0.5).report
    assert report.before.macs == 6 * 32 + 32 * 8
    assert "the extents of MatMul 'y' are not known: it does not count among the MACs" in report.warnings


def states(report):
    return [line for line in report.warnings if "--refit-io" in line]


def test_states_that_hold_much_are_named(tmp_path):
    path = recurrent(tmp_path / "net.onnx")
    report = onnxprune.prune(path, tmp_path / "small.onnx", ratio=0.5).report
    (note,) = states(report)
    share = sum(b.macs for b in report.barriers if b.reason == "GRAPH_INPUT") / report.before.macs
    assert share > HELD and note.startswith(f"{share:.0%} of the MACs") and "'h0'" in note
    analysis = onnxprune.analyze(path)
    assert to_dict(analysis)["notes"] == [note]
    assert render(analysis).splitlines()[-1] == f"note: {note}"


def test_states_that_may_get_smaller_hold_nothing(tmp_path):
    path = recurrent(tmp_path / "net.onnx")
    names = ("h0", "c0", "hn", "cn")
    report = onnxprune.prune(path, tmp_path / "small.onnx", ratio=0.5, refit_io=names).report
    assert not states(report) and report.after.macs < 0.5 * report.before.macs


def test_states_that_hold_little_are_not_named(tmp_path):
    report = onnxprune.prune(
        recurrent(tmp_path / "net.onnx", hidden=1), tmp_path / "small.onnx", ratio=0.5
    ).report
    assert not states(report)


def test_what_is_held_out_is_said_only_where_something_is(tmp_path):
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[n,6] x) => (float[n,3] y) { h0 = MatMul(x, w1)  h = Relu(h0)  y = MatMul(h, w2) }
    """
    path = saved(tmp_path / "net.onnx", text, w1=(6, 32), w2=(32, 3))
    for count, held in ((1, False), (64, True)):
        np.savez(
            tmp_path / "data.npz", x=np.random.default_rng(1).standard_normal((count, 6)).astype(np.float32)
        )
        result = onnxprune.prune(path, tmp_path / f"{count}.onnx", ratio=0.5, data=tmp_path / "data.npz")
        page = terminal.render(result.report)
        assert ("held out" in page) == held and ("held-out" in page) == held
        assert ("1 sample is too few" in page) != held


def sparse(path):
    """A model with a sparse weight, and a function of its own."""
    text = """
    <ir_version: 9, opset_import: ["" : 20, "own" : 1]>
    net (float[n,6] x) => (float[n,3] y)
    { h = own.Block(x, w1)  k = MatMul(h, w2)  y = MatMul(k, w3) }
    <domain: "own", opset_import: ["" : 20]>
    Block (a, w) => (b) { c = MatMul(a, w)  b = Relu(c) }
    """
    saved(path, text, w1=(6, 32), w3=(16, 3))
    model = onnx.load(path)
    places = np.arange(0, 512, 7)
    values = numpy_helper.from_array(np.linspace(1, 2, len(places), dtype=np.float32), "w2")
    tensor = onnx.helper.make_sparse_tensor(values, numpy_helper.from_array(places), [32, 16])
    model.graph.sparse_initializer.append(tensor)
    onnx.save(model, path)
    return path


def test_other_forms_of_the_file_are_said(tmp_path):
    path = sparse(tmp_path / "net.onnx")
    for made in (onnxprune.slim(path), onnxprune.prune(path, ratio=0.5)):
        dense, inlined = (line for line in made.report.warnings if "dense" in line or "functions" in line)
        assert dense.startswith("1 sparse tensor of the file is written dense")
        assert inlined == "functions of the model (Block) are written as the nodes inside them"


def test_what_is_stored_sparse_is_not_said_to_be_dense(tmp_path):
    path = sparse(tmp_path / "net.onnx")
    made = onnxprune.sparsify(path, tmp_path / "sparse.onnx", sparsity=0.0, lock=True, storage="sparse")
    assert not any("dense" in line for line in made.report.warnings)
    assert [t.values.name for t in onnx.load(tmp_path / "sparse.onnx").graph.sparse_initializer] == ["w2"]


def test_constants_that_were_nodes_are_said_to_be_folded(tmp_path):
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[n,6] x) => (float[n,3] y)
    { two = Constant<value_float=2.0>()  t = Mul(x, two)  h = MatMul(t, w1)  r = Relu(h)  y = MatMul(r, w2) }
    """
    report = onnxprune.slim(saved(tmp_path / "net.onnx", text, w1=(6, 8), w2=(8, 3))).report
    assert (report.before.nodes, report.after.nodes) == (5, 4)
    assert report.warnings[-1].endswith("the output is the same model, 1 node of constants folded")
