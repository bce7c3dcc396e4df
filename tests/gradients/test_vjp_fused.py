"""Operators that gradients pass as several standard ones.

The graph with gradients has nothing of another domain, what it gives forward is what onnxruntime's own kernel
gives (or a formula, where it has none on CPUs), and its gradients are central differences of that
forward in float64.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from reference_ops import replacements
from vjp_cases import Moving, build, central_differences
from vjp_cases import case as standard
from vjp_cases import check as compare

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.errors import GradientError
from onnxprune.gradients import Projection, build_backward, gradient_name

TOLERANCE = 2e-4
MS = "com.microsoft"
W = Moving


def ms(op_type, *inputs, **more):
    return standard(op_type, *inputs, domain=MS, **{"opset": 18, "dynamic": False, **more})


def ints(*numbers, dtype=np.int32):
    return np.array(numbers, dtype)


SCALE, IDS = W((6,), 0.5, 1.5), ints(0, 3, 2, 2, 5, 1, 4, 0).reshape(2, 4)
TEXT, WIDE = (2, 3, 8), (2, 4, 8)
MASK = ints(1, 1, 0, 1, 1, 1).reshape(2, 3)
COS, SIN = (f(np.arange(12, dtype=np.float32).reshape(6, 2) / 3) for f in (np.cos, np.sin))
COS8, SIN8 = (f(np.arange(48, dtype=np.float32).reshape(6, 8) / 5) for f in (np.cos, np.sin))
LENGTHS, TOTAL = ints(2, 1), ints(3)


def group(*inputs, **more):
    """GroupQueryAttention with two heads of queries and one of keys, each of eight dims."""
    given = {"num_heads": 2, "kv_num_heads": 1, **more}
    return ms("GroupQueryAttention", *inputs, **given)


DEEP = ((2, 3, 32), (2, 3, 16), (2, 3, 16), None, None)
PLAIN = ((2, 3, 16), (2, 3, 8), (2, 3, 8), None, None)
CASES = [
    ms("Gelu", (2, 6)),
    ms("BiasGelu", (2, 6), (6,)),
    ms("FastGelu", (2, 6), (6,)),
    ms("FastGelu", (2, 6), note="no bias"),
    ms("QuickGelu", (2, 6), alpha=1.5),
    *(
        ms("SkipLayerNormalization", (2, 3, 6), skip, SCALE, *more, note=note, makes=4, outputs=(0, 3))
        for skip, more, note in (
            ((2, 3, 6), ((6,), (6,)), "all"),
            ((3, 6), (), "broadcast"),
            ((1, 3, 6), ((6,),), "no bias"),
        )
    ),
    ms("SkipSimplifiedLayerNormalization", (2, 3, 6), (2, 3, 6), SCALE, (6,), makes=4, outputs=(0, 3)),
    ms("EmbedLayerNormalization", IDS, IDS % 2, (7, 6), (5, 6), (2, 6), SCALE, (6,), makes=3, outputs=(0, 2)),
    ms("EmbedLayerNormalization", IDS, None, (7, 6), (5, 6), None, SCALE, (6,), note="no segments", makes=2),
    ms("FusedMatMul", (2, 4, 3), (2, 4, 5), transA=1, alpha=0.5),
    ms("FusedMatMul", (4, 2, 3), (5, 2, 3), transBatchA=1, transBatchB=1, transB=1),
    ms("TransposeMatMul", (3, 4), (5, 4), transB=1),
    ms("FusedGemm", (3, 4), (5, 4), (5,), transB=1, alpha=0.5, activation="LeakyRelu", activation_alpha=0.2),
    *(
        ms("FusedConv", (1, 2, 4, 4), (2, 2, 3, 3), (2,), activation=kind, note=kind, **more)
        for kind, more in (
            ("Relu", {"pads": [1, 1, 1, 1]}),
            ("HardSigmoid", {"activation_params": [0.3, 0.4]}),
            ("Clip", {"activation_params": [-1.0, 2.0]}),
        )
    ),
    ms("FusedConv", (1, 2, 4, 4), (2, 2, 3, 3), (2,), (1, 2, 2, 2), activation="Tanh", note="sum"),
    ms("Attention", TEXT, (8, 24), (24,), num_heads=2),
    ms("Attention", TEXT, (8, 24), (24,), MASK, num_heads=2, note="mask"),
    ms("Attention", TEXT, (8, 24), (24,), ints(2, 3), num_heads=2, note="lengths"),
    ms("Attention", TEXT, (8, 24), (24,), ints(2, 3, 1, 0), num_heads=2, note="ends and starts"),
    ms(
        "Attention",
        TEXT,
        (8, 24),
        (24,),
        None,
        None,
        (1, 2, 3, 3),
        num_heads=2,
        unidirectional=1,
        note="bias",
    ),
    ms("Attention", TEXT, (8, 24), (24,), None, (2, 2, 2, 2, 4), num_heads=2, makes=2, outputs=(0, 1)),
    ms("Attention", TEXT, (8, 20), (20,), num_heads=2, qkv_hidden_sizes=[8, 8, 4], scale=0.3),
    ms("MultiHeadAttention", TEXT, WIDE, (2, 4, 4), num_heads=2),
    ms("MultiHeadAttention", TEXT, WIDE, WIDE, (24,), ints(3, 2), num_heads=2, note="lengths"),
    ms("MultiHeadAttention", TEXT, (2, 2, 4, 4), (2, 2, 4, 4), num_heads=2, note="heads first"),
    ms("MultiHeadAttention", TEXT, TEXT, TEXT, None, None, (2, 1, 3, 3), num_heads=2, unidirectional=1),
    ms(
        *("MultiHeadAttention", TEXT, TEXT, TEXT, None, None, None, (2, 2, 2, 4), (2, 2, 2, 4)),
        **{"num_heads": 2, "makes": 3, "outputs": (0, 1, 2), "note": "cache"},
    ),
    *(
        ms("RotaryEmbedding", shape, ids, COS, SIN, interleaved=turn, note=str(turn), **more)
        for turn in (0, 1)
        for shape, ids, more in (
            ((2, 3, 8), ints(0, 1, 2, 3, 4, 5, dtype=np.int64).reshape(2, 3), {}),
            ((2, 2, 3, 4), ints(2, dtype=np.int64), {}),
            ((2, 3, 12), ints(1, dtype=np.int64), {"num_heads": 2, "rotary_embedding_dim": 4}),
        )
    ),
    group(*PLAIN, LENGTHS, TOTAL, note="plain"),
    group(*DEEP, LENGTHS, TOTAL, COS8, SIN8, do_rotary=1, note="rotary"),
    group(*DEEP, LENGTHS, TOTAL, COS8, SIN8, do_rotary=1, rotary_interleaved=1, note="interleaved"),
    group(
        *((1, 2, 64), (1, 2, 32), (1, 2, 32), None, None, ints(1), ints(2), COS8, SIN8),
        **{"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1, "note": "two groups"},
    ),
    group((2, 3, 32), None, None, None, None, ints(2, 2), TOTAL, note="packed"),
    group(*PLAIN, ints(2, 2), TOTAL, local_window_size=2, note="window"),
    group(*PLAIN, ints(2, 2), TOTAL, softcap=1.5, note="softcap"),
    group(*PLAIN, ints(2, 2), TOTAL, smooth_softmax=1, note="smooth"),
    group(
        *((2, 1, 32), (2, 1, 16), (2, 1, 16), (2, 1, 3, 16), (2, 1, 3, 16), ints(3, 2), ints(4), COS8, SIN8),
        do_rotary=1,
        makes=3,
        outputs=(0, 1, 2),
        note="cache",
    ),
    standard(
        "MaxRoiPool",
        (2, 2, 5, 6),
        np.array([[0, 0, 1, 4, 3], [1, 2, 0, 5, 4]], np.float32),
        pooled_shape=[2, 2],
    ),
    standard(
        "MaxUnpool",
        (1, 1, 2, 2),
        ints(1, 7, 8, 14, dtype=np.int64).reshape(1, 1, 2, 2),
        kernel_shape=[2, 2],
        strides=[2, 2],
    ),
    standard(
        "SimplifiedLayerNormalization", (2, 6), SCALE, makes=2, outputs=(0, 1), opset=18, note="deviation"
    ),
]

FLAT = {"q_num_heads": 2, "kv_num_heads": 1}
CACHED = [  # of ONNX's own Attention
    standard(
        "Attention",
        TEXT,
        (2, 3, 4),
        (2, 3, 4),
        None,
        (2, 1, 2, 4),
        (2, 1, 2, 4),
        opset=23,
        makes=3,
        outputs=(0, 1, 2),
        is_causal=1,
        **FLAT,
    ),
    standard(
        "Attention",
        TEXT,
        (2, 3, 4),
        (2, 3, 4),
        ints(*[1, 0] * 9, dtype=bool).reshape(3, 6)[:, :5],
        (2, 1, 2, 4),
        (2, 1, 2, 4),
        opset=23,
        makes=3,
        outputs=(0, 2),
        note="mask",
        **FLAT,
    ),
    *(
        standard(
            "Attention",
            *[(1, 2, 3, 4)] * 3,
            (3, 3),
            opset=23,
            makes=4,
            outputs=(0, 3),
            softcap=1.5 if mode else 0.0,
            qk_matmul_output_mode=mode,
            note=f"shown {mode}",
        )
        for mode in (0, 1, 2, 3)
    ),
    standard(
        "Attention",
        TEXT,
        (2, 5, 4),
        (2, 5, 4),
        (3, 4),
        None,
        None,
        ints(4, 3, dtype=np.int64),
        opset=24,
        is_causal=1,
        note="lengths",
        **FLAT,
    ),
]


@pytest.mark.parametrize("case", CACHED, ids=lambda case: case.id)
def test_attention_with_a_cache(case):
    """Forward and gradients of onnx's evaluator, in float64."""
    compare(case, dynamic=False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_lowered_operators(case):
    rng = np.random.default_rng(0)
    feed = {f"x{slot}": value.draw(rng) for slot, value in case.moving.items()}
    model = build(case, feed, False)
    del model.graph.output[:]
    names = [f"y{slot}" for slot in case.outputs]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    expected = run(open_session(ir.from_proto(model), threads=1), feed)
    check(model, feed, {name: expected[name] for name in names}, rng)


def check(model, feed, expected, rng, tolerance=TOLERANCE):
    """Compare what the graph with gradients gives forward, and its gradients with central differences."""
    built = build_backward(ir.from_proto(model), Projection(tuple(expected)), list(feed))
    assert not any(node.domain for node in built.graph)
    signs = {f"signs/{name}": rng.standard_normal(array.shape) for name, array in expected.items()}
    given = {**feed, **{name: array.astype(np.float32) for name, array in signs.items()}}
    found = run(open_session(built, threads=1), given)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-5 * max(1.0, np.abs(array).max()))
    evaluator = in_float64(ir.to_proto(built))
    wide = {name: array.astype(np.float64) for name, array in feed.items()}
    slopes = central_differences(lambda x: float(evaluator.run(["loss"], {**x, **signs})[0]), wide)
    for name, slope in slopes.items():
        scale = max(np.abs(slope).max(), 1e-3)
        assert np.abs(found[gradient_name(name)] - slope).max() <= tolerance * scale, name


def in_float64(model: onnx.ModelProto) -> ReferenceEvaluator:
    """The forward part, with all floats in float64."""
    part = onnx.utils.Extractor(model).extract_model([i.name for i in model.graph.input], ["loss"])
    for info in part.graph.input:
        if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            info.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for number, tensor in enumerate(part.graph.initializer):
        if tensor.data_type == onnx.TensorProto.FLOAT:
            wide = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            part.graph.initializer[number].CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
    others = [op for op in replacements(part.opset_import[0].version) if op.__name__ != "Cast"]
    return ReferenceEvaluator(part, new_ops=[*others, Cast])


class Cast(OpRun):
    op_domain = ""

    def _run(self, x, to=None, saturate=None, round_mode=None):
        kind = onnx.helper.tensor_dtype_to_np_dtype(to)
        return (x.astype(np.float64 if kind == np.float32 else kind),)


# --- operators without a kernel on CPUs ------------------------------------------------------------------


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _convolved(x, w):
    """Channels last, (M, C, kernel), no pads."""
    rows, columns = x.shape[1] - w.shape[2] + 1, x.shape[2] - w.shape[3] + 1
    return sum(
        np.einsum("nhwc,mc->nhwm", x[:, i : i + rows, j : j + columns], w[:, :, i, j])
        for i in range(w.shape[2])
        for j in range(w.shape[3])
    )


def _grouped(x, gamma, beta, groups=2, epsilon=1e-5):
    rows = np.moveaxis(x, 3, 1).reshape(len(x), groups, -1)
    n = (rows - rows.mean(2, keepdims=True)) / np.sqrt(rows.var(2, keepdims=True) + epsilon)
    return np.moveaxis(n.reshape(len(x), x.shape[3], *x.shape[1:3]), 1, 3) * gamma + beta


IMAGE, FOUR = (2, 3, 2, 4), W((4,), 0.5, 1.5)
WITHOUT_KERNEL = [
    (ms("BiasAdd", (2, 3, 4), (4,), (2, 3, 4)), lambda x, b, s: [x + b + s]),
    (ms("BiasSplitGelu", (2, 3, 8), (8,)), lambda x, b: [(x + b)[..., :4] * _gelu((x + b)[..., 4:])]),
    (ms("GroupNorm", IMAGE, FOUR, (4,), groups=2, activation=0), lambda x, g, b: [_grouped(x, g, b)]),
    (
        ms("GroupNorm", IMAGE, FOUR, (4,), groups=2, activation=1, note="swish"),
        lambda x, g, b: [_grouped(x, g, b) * _sigmoid(_grouped(x, g, b))],
    ),
    (
        ms("SkipGroupNorm", IMAGE, FOUR, (4,), IMAGE, (4,), groups=2, activation=0, makes=2, outputs=(0, 1)),
        lambda x, g, b, s, c: [_grouped(x + s + c, g, b), x + s + c],
    ),
    (
        ms("NhwcConv", (1, 4, 4, 2), (3, 2, 2, 2), (3,)),
        lambda x, w, b: [_convolved(x, np.moveaxis(w, 3, 1)) + b],
    ),
    (
        ms("NhwcFusedConv", (1, 4, 4, 2), (3, 2, 2, 2), (3,), (1, 3, 3, 3), activation="Relu"),
        lambda x, w, b, z: [np.maximum(_convolved(x, w) + b + z, 0)],
    ),
]


@pytest.mark.parametrize(("case", "formula"), WITHOUT_KERNEL, ids=lambda given: getattr(given, "id", ""))
def test_lowered_operators_without_a_kernel(case, formula):
    rng = np.random.default_rng(0)
    feed = {f"x{slot}": value.draw(rng) for slot, value in case.moving.items()}
    model = build(case, feed, False)
    results = formula(*(array.astype(np.float64) for array in feed.values()))
    expected = {f"y{slot}": array for slot, array in zip(case.outputs, results, strict=True)}
    check(model, feed, expected, rng)


def samples_first(case):
    """Slots of inputs that have two samples, in cases without other values that are per sample."""
    per_sample = {"lengths", "ends and starts", "cache"}
    if case.note in per_sample or case.op_type == "FusedConv" or case.makes == 2:
        return ()
    return tuple(s for s, v in case.moving.items() if len(v.shape) >= 3 and v.shape[0] == 2)


@pytest.mark.parametrize("case", [c for c in CASES if samples_first(c)], ids=lambda case: case.id)
def test_a_symbolic_batch_changes_nothing(case):
    rng = np.random.default_rng(0)
    feed = {f"x{slot}": value.draw(rng) for slot, value in case.moving.items()}
    found = []
    for dynamic in (False, True):
        model = build(replace(case, symbolic=samples_first(case)), feed, dynamic)
        names = [f"y{slot}" for slot in case.outputs]
        session = open_session(
            build_backward(ir.from_proto(model), Projection(tuple(names)), list(feed)), threads=1
        )
        if not dynamic:
            signs = {
                i.name: rng.standard_normal(i.shape).astype(np.float32)
                for i in session.get_inputs()
                if i.name.startswith("signs")
            }
        found.append(run(session, {**feed, **signs}))
    for name in map(gradient_name, feed):
        np.testing.assert_allclose(
            found[1][name], found[0][name], rtol=0, atol=1e-5 * max(1, np.abs(found[0][name]).max())
        )


def test_lengths_that_may_be_ends_and_starts_are_refused():
    """Two numbers and any batch: at a batch of one they would be an end and a start."""
    case = ms("Attention", TEXT, (8, 24), (24,), ints(2, 3), num_heads=2)
    rng = np.random.default_rng(0)
    feed = {f"x{slot}": value.draw(rng) for slot, value in case.moving.items()}
    with pytest.raises(GradientError, match="mask of rank 1"):
        build_backward(ir.from_proto(build(case, feed, True)), Projection(("y0",)), ["x1"])
