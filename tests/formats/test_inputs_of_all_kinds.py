"""Dynamic shapes and inputs of every type: what is cut keeps every contract of the file; nothing is an error."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser

import onnxprune
from onnxprune.errors import UnsupportedError, UsageError
from onnxprune.model.binding import bind_dims, candidates

BODY = """a = Conv<pads=[1, 1, 1, 1]>(x, aw, ab)  r = Relu(a)  c = Conv<pads=[1, 1, 1, 1]>({between}, cw, cb)
          p = GlobalAveragePool(c)  f = Flatten(p)  {more}  y = Gemm<transB=1>({last}, hw, hb)"""


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32) / 3


WEIGHTS = {
    "aw": drawn(8, 3, 3, 3), "ab": drawn(8), "cw": drawn(6, 8, 3, 3), "cb": drawn(6, seed=1),
    "hw": drawn(4, 6), "hb": drawn(4),
}  # fmt: skip


def network(
    inputs: str = "float[n, 3, 6, 6] x",
    outputs: str = "float[n, 4] y",
    *,
    between: str = "r",
    more: str = "",
    last: str = "f",
    before: str = "",
    **weights: np.ndarray,
) -> onnx.ModelProto:
    """Two convolutions, a mean over all places, a product; the options change what is in between."""
    body = BODY.format(between=between, more=more, last=last)
    if between != "r":
        body = body.replace("c = Conv", f"{more}  c = Conv").replace(
            f"f = Flatten(p)  {more}", "f = Flatten(p)"
        )
    proto = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 18]> net ({inputs}) => ({outputs}) {{ {before} {body} }}'
    )
    for name, array in {**WEIGHTS, **weights}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{number}"
    return proto


def prune(proto: onnx.ModelProto, folder, **options):
    onnx.save(proto, folder / "net.onnx")
    options = {"criterion": "l2"} | options
    made = onnxprune.prune(
        folder / "net.onnx",
        folder / "out.onnx",
        ratio=0.5,
        round_to=1,
        best_effort=True,
        force=True,
        **options,
    )
    assert not made.report.soundness.rejected_groups
    return made.report


def both(folder, feed) -> list[list[np.ndarray]]:
    files = (folder / "net.onnx", folder / "out.onnx")
    return [
        onnxruntime.InferenceSession(p, providers=["CPUExecutionProvider"]).run(None, feed) for p in files
    ]


def dims(path) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.dims) for tensor in onnx.load(path).graph.initializer}


def symbols(value: onnx.ValueInfoProto) -> list[str]:
    return [str(dim.dim_value or dim.dim_param) for dim in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize(
    "names",
    [
        ("batch", "3", "height", "width"),
        ("", "3", "", ""),
        ("batch", "3", "2*h + 1", "floor(w/2)"),
        ("batch", "channels", "h", "w"),
        ("s0", "s1", "s2", "s2"),
    ],
    ids=["named", "unnamed", "expressions", "channels", "equal"],
)
@pytest.mark.parametrize("data", [None, "synthetic:24"], ids=["", "data"])
def test_symbolic_axes_stay_symbolic(tmp_path, names, data):
    proto = network("float[n, 3, h, w] x", "float[m, 4] y")
    for dim, name in zip(proto.graph.input[0].type.tensor_type.shape.dim, names, strict=True):
        dim.Clear()
        if name.isdigit():
            dim.dim_value = int(name)
        elif name:
            dim.dim_param = name
    given = {name: 24 for name in ("height", "2*h + 1", "h", "s2") if name in names}
    options = {} if data is None else {"data": data, "criterion": "obs"}
    report = prune(proto, tmp_path, bindings=given, **options)
    assert report.dropped == 7
    made = onnx.load(tmp_path / "out.onnx").graph
    assert symbols(made.input[0]) == [name or "" for name in names] if all(names) else True
    assert list(made.input) == list(proto.graph.input) and list(made.output) == list(proto.graph.output)
    for shape in ((1, 3, 5, 5), (3, 3, 16, 16)):
        whole, smaller = both(tmp_path, {"x": np.zeros(shape, np.float32)})
        assert smaller[0].shape == whole[0].shape == (shape[0], 4)


def test_a_guess_never_takes_all_memory():
    import onnx_ir as ir

    proto = network("float[batch, channels, height, width] x")
    model = ir.from_proto(proto)
    sizes, guessed = bind_dims(model.graph.inputs, {})
    assert sizes == {"batch": 1, "channels": 3, "height": 224, "width": 224} and "channels" in guessed
    unread = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", "c", "h", "w"]))
    for tried in list(candidates([unread], {}))[1:]:
        assert tried["c"] * tried["h"] * tried["w"] <= 1 << 24


@pytest.mark.parametrize("data", [None, "synthetic:24"], ids=["", "data"])
def test_a_batch_of_one_inside_the_graph(tmp_path, data):
    """Inputs that name a batch, and a Reshape that knows only one sample: the file's contract stays."""
    proto = network(between="q", more="q = Reshape(r, one)", one=np.array([1, 8, 6, 6], np.int64))
    options = {} if data is None else {"data": data, "criterion": "obs"}
    report = prune(proto, tmp_path, **options)
    assert dims(tmp_path / "out.onnx")["cw"][0] == 3
    whole, smaller = both(tmp_path, {"x": np.ones((1, 3, 6, 6), np.float32)})
    assert whole[0].shape == smaller[0].shape
    assert (data is None) or any("one sample at a time" in line for line in report.warnings)


def test_validation_of_a_model_that_takes_one_sample_at_a_time(tmp_path):
    proto = network(between="q", more="q = Reshape(r, one)", one=np.array([1, 8, 6, 6], np.int64))
    onnx.save(proto, tmp_path / "net.onnx")
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        x=rng.standard_normal((8, 3, 6, 6)).astype(np.float32),
        labels=rng.integers(0, 4, 8),
    )
    found = onnxprune.validate(tmp_path / "net.onnx", tmp_path / "data.npz")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    with np.load(tmp_path / "data.npz") as given:
        right = [
            session.run(None, {"x": x[None]})[0].argmax() == y
            for x, y in zip(given["x"], given["labels"], strict=True)
        ]
    assert found.score.value == np.mean(right)
    assert any("one sample at a time" in line for line in found.notes)


@pytest.mark.parametrize(
    "proto",
    [
        network(
            "float[1, 3, 4, 4] x", "float[1, 4] y", between="q",
            more="z = ConstantOfShape(s)  e = Expand(z, s)  q = Add(r, e)", s=np.array([1, 8, 4, 4]),
        ),
        network("float[n, 3, 6, 6] x, float t", between="q", more="q = Mul(r, t)"),
        network("uint8[n, 3, 6, 6] img", before="x = Cast<to=1>(img)"),
        network("bool[n, 3, 6, 6] img", before="x = Cast<to=1>(img)"),
        network(
            "float[n, 3, 6, 6] x, string[n] names", "float[n, 4] y, string[n] out", more="out = Identity(names)"
        ),
        network("", "float[1, 4] y", before="x = RandomUniform<shape=[1, 3, 6, 6], seed=3.0>()"),
        network("", "float[2, 4] y", x=drawn(2, 3, 6, 6)),
    ],
    ids=["baked-shapes", "scalar", "uint8", "bool", "string", "no-input", "constant"],
)  # fmt: skip
@pytest.mark.parametrize("data", [None, "synthetic:24"], ids=["", "data"])
def test_inputs_of_every_type(tmp_path, proto, data):
    report = prune(proto, tmp_path, **({} if data is None else {"data": data, "criterion": "obs"}))
    assert report.dropped >= 7 and report.soundness.checked
    made = dims(tmp_path / "out.onnx")
    assert made["aw"][0] == made["cw"][1] < 8 and made["cw"][0] == 3


def test_token_models_with_boolean_masks(tmp_path):
    text = """(int64[n, 5] ids, bool[n, 5] mask) => (float[n, 5, 4] y) { e = Gather(table, ids)
        h = MatMul(e, up)  g = Relu(h)  m = Cast<to=1>(mask)  u = Unsqueeze(m, last)  k = Mul(g, u)
        y = MatMul(k, down) }"""
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]> net {text}')
    weights = {"table": drawn(20, 6), "up": drawn(6, 8), "down": drawn(8, 4), "last": np.array([2])}
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    prune(proto, tmp_path, data="synthetic:24", criterion="obs")
    assert dims(tmp_path / "out.onnx")["up"] == [3, 4]  # the table is half as wide, too


@pytest.mark.parametrize("kind", ["sequence", "optional"])
@pytest.mark.parametrize("data", [None, "synthetic:24"], ids=["", "data"])
def test_sequences_and_optionals_as_inputs(tmp_path, kind, data):
    if kind == "sequence":
        proto = network(more="k = SequenceAt(odd, zero)  g = Add(f, k)", last="g", zero=np.array(0))
        proto.graph.input.append(helper.make_tensor_sequence_value_info("odd", 1, None))
    else:
        proto = network(outputs="float[n, 4] y, bool has", more="has = OptionalHasElement(odd)")
        kind_ = helper.make_optional_type_proto(helper.make_tensor_type_proto(1, [2]))
        proto.graph.input.append(helper.make_value_info("odd", kind_))
    report = prune(proto, tmp_path, **({} if data is None else {"data": data, "criterion": "l2"}))
    assert dims(tmp_path / "out.onnx")["aw"][0] == 4
    assert list(onnx.load(tmp_path / "out.onnx").graph.input) == list(proto.graph.input)
    assert any("reads a sequence or an optional" in line for line in report.warnings)
    if kind == "sequence":  # which the proof did not feed: here it is
        rng = np.random.default_rng(0)
        feed = {"x": rng.standard_normal((2, 3, 6, 6)).astype(np.float32), "odd": [drawn(2, 6)]}
        whole, smaller = both(tmp_path, feed)
        assert whole[0].shape == smaller[0].shape


@pytest.mark.parametrize("kind", ["sequence", "optional", "inside"])
def test_sequences_and_optionals_as_outputs_and_inside(tmp_path, kind):
    if kind == "sequence":
        proto = network(more="odd = SplitToSequence<axis=0>(c)")
        proto.graph.output.append(helper.make_tensor_sequence_value_info("odd", 1, None))
    elif kind == "optional":
        proto = network(more="odd = Optional(c)")
        value = helper.make_tensor_type_proto(1, ["n", 6, 6, 6])
        proto.graph.output.append(helper.make_value_info("odd", helper.make_optional_type_proto(value)))
    else:
        joined = "s = SequenceConstruct(f, f)  g = ConcatFromSequence<axis=0, new_axis=1>(s)"
        proto = network(more=f"{joined}  k = ReduceMean(g, zero)", last="k", zero=np.array([0]))
        proto.graph.node[-2].attribute.append(helper.make_attribute("keepdims", 0))
    prune(proto, tmp_path)
    assert dims(tmp_path / "out.onnx")["aw"][0] == 4
    whole, smaller = both(tmp_path, {"x": np.ones((2, 3, 6, 6), np.float32)})
    assert len(whole) == len(smaller) and whole[0].shape == smaller[0].shape


def test_axes_without_positions(tmp_path):
    proto = network(
        "float[n, 3, 6, 6] x, float[n, 8, 6, 0] past", between="q", more="q = Concat<axis=3>(past, r)"
    )
    report = prune(proto, tmp_path, data="synthetic:24", criterion="obs")
    assert report.dropped == 3  # the channels that the input `past` shares stay
    proto = network("float[0, 3, 6, 6] x", "float[0, 4] y")
    assert prune(proto, tmp_path).soundness.checked
    with pytest.raises(UsageError, match="are empty"):
        prune(proto, tmp_path, data="synthetic:24")


def test_an_input_without_a_rank_is_refused_with_a_way_out(tmp_path):
    proto = network()
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(UnsupportedError, match="no tensor of known element type and rank"):
        prune(proto, tmp_path)
    proto = network()
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert prune(proto, tmp_path).dropped == 7
