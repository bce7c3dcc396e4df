"""Sequences, optionals, strings and other domains: what has no axes is a barrier, and the rest is pruned."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

import onnxprune
from onnxprune import OnnxPruneError, Reason
from onnxprune.graph.axes import Axis
from onnxprune.graph.explain import nearest_barriers

WEIGHTS = {"w1": (6, 8), "w2": (8, 10), "w3": (10, 8), "w4": (8, 10), "w5": (10, 8), "w6": (8, 4)}
"""Three layers in front of what a test is about, and three behind it."""
BODY = {
    "sequence": """
        s = SequenceConstruct(h, h)
        n = SequenceLength(s)
        i = Constant<value_int=1>()
        t = SequenceInsert(s, h, i)
        u = SequenceErase(t, i)
        g = SequenceAt(u, i)
    """,
    "sequence of parts": """
        s = SplitToSequence<axis=1, keepdims=1>(h)
        g = ConcatFromSequence<axis=1>(s)
    """,
    "empty sequence": """
        e = SequenceEmpty<dtype=1>()
        s = SequenceInsert(e, h)
        g = ConcatFromSequence<axis=0>(s)
    """,
    "optional": """
        o = Optional(h)
        has = OptionalHasElement(o)
        f = Cast<to=1>(has)
        got = OptionalGetElement(o)
        g = Mul(got, f)
    """,
    "optional sequence": """
        s = SequenceConstruct(h)
        o = Optional(s)
        got = OptionalGetElement(o)
        i = Constant<value_int=0>()
        g = SequenceAt(got, i)
    """,
    "strings": """
        words = Constant<value_strings=["a b", "B c"]>()
        upper = StringNormalizer<case_change_action="UPPER", locale="C">(words)
        both = StringConcat(words, upper)
        parts, count = StringSplit<delimiter=" ">(both)
        match = RegexFullMatch<pattern="[a-z ]+">(words)
        f = Cast<to=1>(match)
        first = ReduceSum<keepdims=0>(f)
        g = Add(h, first)
    """,
    "n-grams": """
        tokens = Constant<value_ints=[2, 3, 5]>()
        found = TfIdfVectorizer<mode="TF", min_gram_length=1, max_gram_length=1, max_skip_count=0,
            ngram_counts=[0], ngram_indexes=[0, 1, 2, 3, 4, 5, 6, 7], pool_int64s=[2, 3, 5, 4, 6, 7, 8, 9]>(tokens)
        g = Add(h, found)
    """,
    "classes": """
        index = ArgMax<axis=1, keepdims=0>(h)
        word = ai.onnx.ml.LabelEncoder<keys_int64s=[0, 1], values_strings=["no", "yes"]>(index)
        number = ai.onnx.ml.LabelEncoder<keys_strings=["no", "yes"], values_floats=[0.5, 1.5]>(word)
        column = Unsqueeze(number, one)
        g = Mul(h, column)
    """,
    "scaler": """
        g = ai.onnx.ml.Scaler<offset=[0.5], scale=[2.0]>(h)
    """,
}


def text(body, *, inputs="float[n,6] x", outputs="float[n,4] y", more="", opset=20):
    return f"""
    <ir_version: 8, opset_import: ["" : {opset}, "ai.onnx.ml" : 3]>
    net ({inputs}) => ({outputs}) {{
        h0 = MatMul(x, w1)
        h1 = Relu(h0)
        h2 = MatMul(h1, w2)
        h3 = Sigmoid(h2)
        h = MatMul(h3, w3)
        {body}
        k0 = MatMul(g, w4)
        k1 = Relu(k0)
        k2 = MatMul(k1, w5)
        y = MatMul(k2, w6)
        {more}
    }}
    """


def saved(source, path):
    """Parse a model and give it weights."""
    model = parser.parse_model(source)
    rng = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        array = rng.uniform(-1, 1, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)  # exporters declare shapes, too
    return path


MAPPED = """
    s = SequenceConstruct(h, h)
    t = SequenceMap<body = body (float[n,8] e) => (float[n,8] r) { r = Neg(e) }>(s)
    i = Constant<value_int=1>()
    g = SequenceAt(t, i)
"""
MODELS = {name: text(body) for name, body in BODY.items()}
MODELS |= {
    "mapped sequence": text(MAPPED),
    "sequence as output": text(
        "g = Relu(h)", outputs="float[n,4] y, seq(float[n,10]) z", more="z = SequenceConstruct(k1)"
    ),
    "strings as output": text(
        "g = Relu(h)",
        outputs="float[n,4] y, string[2] z",
        more='z0 = Constant<value_strings=["a", "b"]>()\n z = Identity(z0)',
    ),
    "optional as output": text(
        "g = Relu(h)", outputs="float[n,4] y, optional(float[n,10]) z", more="z = Optional(k1)"
    ),
}


def outputs(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((3, 6)).astype(np.float32)
    return session.run(None, {"x": x})


def feeds():
    rng = np.random.default_rng(2)
    return [{"x": rng.standard_normal((1, 6)).astype(np.float32)} for _ in range(8)]


@pytest.fixture(params=MODELS)
def path(request, tmp_path):
    return saved(MODELS[request.param], tmp_path / "net.onnx")


def check(path, cut):
    """The same names, kinds and numbers of outputs."""
    expected, found = outputs(path), outputs(cut)
    assert [type(e) for e in expected] == [type(f) for f in found]
    assert np.shape(expected[0]) == np.shape(found[0])
    onnx.checker.check_model(str(cut), full_check=True)
    return expected, found


def test_pruned(path, tmp_path):
    analysis = onnxprune.analyze(path)
    assert len(analysis.groups) >= 1
    made = onnxprune.prune(path, tmp_path / "cut.onnx", ratio=0.5, round_to=1)
    assert made.report.soundness.checked and not made.report.soundness.rejected_groups
    assert made.report.after.params < made.report.before.params
    _, cut = check(path, tmp_path / "cut.onnx")
    onnxprune.apply(path, made.plan, tmp_path / "masked.onnx", mode="mask")
    _, masked = check(path, tmp_path / "masked.onnx")
    np.testing.assert_allclose(cut[0], masked[0], atol=1e-5)


def test_calibrated(path, tmp_path):
    made = onnxprune.prune(path, tmp_path / "cut.onnx", ratio=0.4, round_to=1, data=feeds())
    assert made.report.calibration["samples"]
    check(path, tmp_path / "cut.onnx")


def test_slimmed(path, tmp_path):
    onnxprune.slim(path, tmp_path / "slim.onnx")
    expected, found = check(path, tmp_path / "slim.onnx")
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)


@pytest.mark.parametrize("data", [None, "given"])
def test_sparse(path, tmp_path, data):
    onnxprune.sparsify(path, tmp_path / "sparse.onnx", sparsity=0.5, data=None if data is None else feeds())
    check(path, tmp_path / "sparse.onnx")


@pytest.mark.parametrize("criterion", ["snip", "fisher"])
def test_gradients(path, tmp_path, criterion):
    """They pass, or the operator is named and nothing is written."""
    try:
        onnxprune.prune(path, tmp_path / "cut.onnx", ratio=0.4, round_to=1, data=feeds(), criterion=criterion)
    except OnnxPruneError as error:
        assert error.exit_code == 3 and "no gradient through" in str(error)
        assert not (tmp_path / "cut.onnx").exists()
    else:
        check(path, tmp_path / "cut.onnx")


def test_shown(path):
    onnxprune.stats(path)
    assert onnxprune.explain(onnxprune.analyze(path), "w1")


@pytest.mark.parametrize("name", ["sequence", "optional", "mapped sequence"])
def test_the_reason(tmp_path, name):
    analysis = onnxprune.analyze(saved(MODELS[name], tmp_path / "net.onnx"))
    axes = {axis.name: axis for axis in analysis.axis_graph.graph if isinstance(axis, Axis)}
    barrier = nearest_barriers(analysis.axis_graph.graph)[axes["w3[1]"]]
    assert barrier.reason is Reason.NO_AXES
