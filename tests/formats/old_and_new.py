"""One network around one operator, in every form that the operator has had: `a` (n, 8, 6, 6) in, `b` out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser


@dataclass(frozen=True)
class Form:
    """An operator as one opset writes it.

    Attributes
    ----------
    opset
        In which it is written.
    text
        Nodes from `a` to `b`, in onnx's text form.
    cut
        Whether the channels of `a` can go.
    weights
        Initializers: name -> array.
    domains
        Other operator sets: domain -> version.
    """

    opset: int
    text: str
    cut: bool = True
    weights: tuple[tuple[str, np.ndarray], ...] = ()
    domains: tuple[tuple[str, int], ...] = ()


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def floats(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def drawn(*shape: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 1.5, shape).astype(np.float32)


_NORM = tuple((name, drawn(8, seed=n)) for n, name in enumerate(("s", "m", "c", "v")))
_LSTM = (("w", drawn(1, 24, 8) - 1), ("r", drawn(1, 24, 6) - 1), ("up", drawn(6, 8) - 1))
_AS_SEQUENCE = "f = Reshape(a, shape)  t = Transpose<perm=[2, 0, 1]>(f)"
_BACK = "p = MatMul(h, up)  q = Transpose<perm=[1, 2, 0]>(p)  b = Reshape(q, back)"
_LAYOUT = (("shape", ints(0, 0, 36)), ("back", ints(0, 0, 6, 6)))
_TOKENS = "f = Reshape(a, shape)  t = Transpose<perm=[0, 2, 1]>(f)"
_UNTOKENS = "r = Transpose<perm=[0, 2, 1]>(u)  b = Reshape(r, back)"

FORMS: dict[str, Form] = {
    "squeeze-1": Form(
        11,
        "p = GlobalAveragePool(a)  s = Squeeze<axes=[2, 3]>(p)  u = Unsqueeze<axes=[2, 3]>(s)  b = Mul(a, u)",
    ),
    "squeeze-13": Form(
        13,
        "p = GlobalAveragePool(a)  s = Squeeze(p, x23)  u = Unsqueeze(s, x23)  b = Mul(a, u)",
        True,
        (("x23", ints(2, 3)),),
    ),
    "reduce-sum-1": Form(7, "s = ReduceSum<axes=[2, 3]>(a)  b = Mul(a, s)"),
    "reduce-sum-1-over-channels": Form(7, "s = ReduceSum<axes=[1]>(a)  b = Mul(a, s)"),
    "reduce-sum-13": Form(13, "s = ReduceSum(a, x23)  b = Mul(a, s)", True, (("x23", ints(2, 3)),)),
    "reduce-mean-1": Form(11, "s = ReduceMean<axes=[2, 3]>(a)  b = Mul(a, s)"),
    "reduce-mean-18": Form(18, "s = ReduceMean(a, x23)  b = Mul(a, s)", True, (("x23", ints(2, 3)),)),
    "slice-1": Form(7, "b = Slice<axes=[2], starts=[0], ends=[4]>(a)"),
    "slice-1-channels": Form(
        9,
        "l = Slice<axes=[1], starts=[0], ends=[4]>(a)  r = Slice<axes=[1], starts=[4], ends=[100]>(a)"
        "  b = Concat<axis=1>(r, l)",
    ),
    "slice-10": Form(
        10, "b = Slice(a, zero, four, two)", True, (("zero", ints(0)), ("four", ints(4)), ("two", ints(2)))
    ),
    "clip-6": Form(7, "b = Clip<min=0.0, max=6.0>(a)"),
    "clip-11": Form(11, "b = Clip(a, low)", True, (("low", np.float32(0)),)),
    "pad-2": Form(7, 'b = Pad<mode="constant", pads=[0, 0, 1, 1, 0, 0, 1, 1], value=0.5>(a)'),
    "pad-2-reflect": Form(10, 'b = Pad<mode="reflect", pads=[0, 0, 1, 1, 0, 0, 1, 1]>(a)'),
    "pad-11": Form(11, "b = Pad(a, pads)", True, (("pads", ints(0, 0, 1, 1, 0, 0, 1, 1)),)),
    "upsample-7": Form(7, 'b = Upsample<mode="nearest", scales=[1.0, 1.0, 2.0, 2.0]>(a)'),
    "upsample-9": Form(9, 'b = Upsample<mode="nearest">(a, scales)', True, (("scales", floats(1, 1, 2, 2)),)),
    "resize-10": Form(10, 'b = Resize<mode="nearest">(a, scales)', True, (("scales", floats(1, 1, 2, 2)),)),
    "resize-11": Form(
        11,
        'b = Resize<mode="linear">(a, none, scales)',
        True,
        (("none", floats()), ("scales", floats(1, 1, 2, 2))),
    ),
    "resize-13-sizes": Form(
        13, 'b = Resize<mode="nearest">(a, , , sizes)', True, (("sizes", ints(2, 8, 12, 12)),)
    ),
    "resize-18-axes": Form(
        18, 'b = Resize<mode="linear", axes=[2, 3]>(a, , scales)', True, (("scales", floats(2, 2)),)
    ),
    "resize-19": Form(
        19,
        'b = Resize<mode="linear", keep_aspect_ratio_policy="not_larger", axes=[2, 3]>(a, , , sizes)',
        True,
        (("sizes", ints(9, 12)),),
    ),
    "dropout-7": Form(7, "b, mask = Dropout<ratio=0.5>(a)"),
    "dropout-10": Form(10, "b = Dropout<ratio=0.25>(a)"),
    "dropout-12": Form(12, "b, mask = Dropout(a, ratio)", True, (("ratio", np.float32(0.5)),)),
    "batch-norm-7": Form(7, "b = BatchNormalization<spatial=1>(a, s, m, c, v)", True, _NORM),
    "batch-norm-9": Form(9, "b = BatchNormalization<momentum=0.9>(a, s, m, c, v)", True, _NORM),
    "batch-norm-14": Form(14, "b = BatchNormalization<training_mode=0>(a, s, m, c, v)", True, _NORM),
    "broadcast-7": Form(
        7, "t = Mul(a, s)  b = Add(t, m)", True, (("s", drawn(8, 1, 1)), ("m", drawn(1, 8, 1, 1)))
    ),
    "softmax-1-all": Form(11, "b = Softmax<axis=1>(a)", False),
    "softmax-1-places": Form(11, "b = Softmax<axis=2>(a)"),
    "softmax-13": Form(13, "b = Softmax<axis=2>(a)"),
    "softmax-13-channels": Form(13, "b = Softmax<axis=1>(a)", False),
    "flatten-7": Form(
        7, "f = Flatten<axis=2>(a)  g = Reshape(f, back8)  b = Relu(g)", True, (("back8", ints(-1, 8, 6, 6)),)
    ),
    "split-2": Form(
        7, "l, r = Split<axis=1, split=[4, 4]>(a)  g = Sigmoid(l)  h = Mul(g, r)  b = Concat<axis=1>(h, h)"
    ),
    "split-13": Form(
        13,
        "l, r = Split<axis=1>(a, halves)  g = Sigmoid(l)  h = Mul(g, r)  b = Concat<axis=1>(h, h)",
        True,
        (("halves", ints(4, 4)),),
    ),
    "split-18": Form(
        18, "l, r = Split<axis=1, num_outputs=2>(a)  g = Sigmoid(l)  h = Mul(g, r)  b = Concat<axis=1>(h, h)"
    ),
    "top-k-1": Form(9, "b, i = TopK<axis=2, k=3>(a)"),
    "top-k-10": Form(10, "b, i = TopK<axis=2>(a, k)", True, (("k", ints(3)),)),
    "top-k-11": Form(11, "b, i = TopK<axis=2, largest=0>(a, k)", True, (("k", ints(3)),)),
    "top-k-11-channels": Form(
        11, "t, i = TopK<axis=1>(a, k)  b = Concat<axis=1>(t, t)", False, (("k", ints(4)),)
    ),
    "cast-like": Form(15, "l = CastLike(a, s)  b = Mul(l, s)", True, (("s", drawn(8, 1, 1)),)),
    "group-norm-18": Form(
        18, "b = GroupNormalization<num_groups=4>(a, s, m)", True, (("s", drawn(4)), ("m", drawn(4)))
    ),
    "group-norm-21": Form(
        21, "b = GroupNormalization<num_groups=4>(a, s, m)", True, (("s", drawn(8)), ("m", drawn(8)))
    ),
    "lstm-7": Form(
        7,
        f"{_AS_SEQUENCE}  hs, h0, c0 = LSTM<hidden_size=6>(t, w, r)  h = Squeeze<axes=[1]>(hs)  {_BACK}",
        True,
        _LSTM + _LAYOUT,
    ),
    "lstm-14": Form(
        14,
        f"{_AS_SEQUENCE}  hs, h0, c0 = LSTM<hidden_size=6, layout=0>(t, w, r)  h = Squeeze(hs, one)  {_BACK}",
        True,
        (*_LSTM, *_LAYOUT, ("one", ints(1))),
    ),
    "rms-norm-23": Form(
        23, f"{_TOKENS}  u = RMSNormalization<axis=-1>(t, s)  {_UNTOKENS}", False, (*_LAYOUT, ("s", drawn(8)))
    ),
    "swish-24": Form(24, "b = Swish<alpha=1.5>(a)"),
    "attention-23": Form(
        23, f"{_TOKENS}  u = Attention<q_num_heads=2, kv_num_heads=2>(t, t, t)  {_UNTOKENS}", True, _LAYOUT
    ),
    "attention-24": Form(
        24, f"{_TOKENS}  u = Attention<q_num_heads=2, kv_num_heads=2>(t, t, t)  {_UNTOKENS}", True, _LAYOUT
    ),
    "rotary-23": Form(
        23,
        f"{_TOKENS}  u = RotaryEmbedding<num_heads=2>(t, cos, sin)  {_UNTOKENS}",
        True,
        (*_LAYOUT, ("cos", drawn(2, 36, 2)), ("sin", drawn(2, 36, 2))),
    ),
    "tensor-scatter-24": Form(
        24, f"{_TOKENS}  o = Mul(t, t)  u = TensorScatter(t, o)  {_UNTOKENS}", True, _LAYOUT
    ),
    "gelu-20": Form(20, "b = Gelu(a)"),
    "hard-swish-14": Form(14, "b = HardSwish(a)"),
    "grid-sample-16": Form(
        16, 'b = GridSample<mode="bilinear">(a, grid)', True, (("grid", drawn(2, 4, 4, 2) - 1),)
    ),
    "grid-sample-20": Form(
        20, 'b = GridSample<mode="linear">(a, grid)', True, (("grid", drawn(2, 4, 4, 2) - 1),)
    ),
}


def network(form: Form, ir_version: int = 0, listed: bool = False) -> onnx.ModelProto:
    """A convolution, the operator, a convolution, the mean over all places, a product.

    Parameters
    ----------
    ir_version
        0: what goes with the opset.
    listed
        List initializers among the inputs, as IR versions below 4 must.
    """
    rng = np.random.default_rng(0)
    imports = ", ".join(f'"{domain}" : {version}' for domain, version in (("", form.opset), *form.domains))
    ir_version = ir_version or 8 if form.opset < 21 else ir_version or 13
    flat = "Squeeze<axes=[2, 3]>(m0)" if form.opset < 13 else "Squeeze(m0, axes23)"
    proto = parser.parse_model(f"""
        <ir_version: {ir_version}, opset_import: [{imports}]>
        net (float[2, 3, 6, 6] x) => (float[2, 4] y)
        {{
            a = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x, first_w, first_b)
            {form.text}
            e = Conv<kernel_shape=[1, 1]>(b, second_w, second_b)
            d = Relu(e)
            m0 = GlobalAveragePool(d)
            z = {flat}
            y = Gemm<transB=1>(z, head_w, head_b)
        }}""")
    arrays = {
        "first_w": rng.standard_normal((8, 3, 3, 3)).astype(np.float32) / 5,
        "first_b": rng.standard_normal(8).astype(np.float32) / 5,
        "second_w": rng.standard_normal((8, 8, 1, 1)).astype(np.float32) / 3,
        "second_b": rng.standard_normal(8).astype(np.float32) / 3,
        "head_w": rng.standard_normal((4, 8)).astype(np.float32),
        "head_b": rng.standard_normal(4).astype(np.float32),
        **({"axes23": ints(2, 3)} if form.opset >= 13 else {}),
        **dict(form.weights),
    }
    for name, array in arrays.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        if listed:
            kind = helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype)
            proto.graph.input.append(helper.make_tensor_value_info(name, kind, np.asarray(array).shape))
    for number, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    return proto
