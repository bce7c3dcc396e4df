"""Whole transformers made of fused operators, whose shapes no file declares and onnx cannot infer."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxprune
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.errors import Reason
from onnxprune.model.io import load
from onnxprune.rules import Rule, default_rules
from onnxprune.testing import ModelBuilder

WIDTH, HEADS, DIMS, TOKENS, FFN, LAYERS = 32, 8, 4, 6, 64, 2
MS = "com.microsoft"


class Block(ModelBuilder):
    def linear(self, x, rows, columns, name, op_type="MatMul", **more):
        return self.op(op_type, x, self.weight((rows, columns), f"{name}.weight"), name=name, **more)

    def vector(self, size, name, low=-1.0):
        return self.weight((size,), name, low=low)


def contrib(*, multi=False, declare=False, sizes=(1, TOKENS)):
    """BERT as onnxruntime's optimiser leaves it: (Multi-head) attention, BiasGelu, skip + LayerNormalization."""
    b = Block(opset=17, domains={MS: 1})
    x = b.input("x", (*sizes, WIDTH))
    for layer in range(LAYERS):
        if multi:
            q, k, v = (b.linear(x, WIDTH, WIDTH, f"{layer}.{part}") for part in "qkv")
            bias = b.vector(3 * WIDTH, f"{layer}.bias")
            y = b.op("MultiHeadAttention", q, k, v, bias, num_heads=HEADS, domain=MS, name=f"{layer}.heads")
        else:
            w, bias = b.weight((WIDTH, 3 * WIDTH), f"{layer}.qkv"), b.vector(3 * WIDTH, f"{layer}.bias")
            y = b.op("Attention", x, w, bias, num_heads=HEADS, domain=MS, name=f"{layer}.heads")
        y = b.linear(y, WIDTH, WIDTH, f"{layer}.out")
        x = normalize(b, y, x, f"{layer}.first")
        y = b.linear(x, WIDTH, FFN, f"{layer}.up")
        y = b.op("BiasGelu", y, b.vector(FFN, f"{layer}.up.bias"), domain=MS)
        y = b.linear(y, FFN, WIDTH, f"{layer}.down", "FusedMatMul", domain=MS, alpha=0.5)
        x = normalize(b, y, x, f"{layer}.second")
    return b.model(b.linear(x, WIDTH, 3, "classify"), declare=declare)


def normalize(b, y, x, name):
    parts = b.vector(WIDTH, f"{name}.gamma", 0.5), b.vector(WIDTH, f"{name}.beta"), b.vector(WIDTH, name)
    return b.op("SkipLayerNormalization", y, x, *parts, domain=MS)


def grouped(kv):
    """A decoder in operators of opset 23: grouped queries, angles, gated FFN."""
    b = Block(opset=23)
    x = b.input("x", (1, TOKENS, WIDTH))
    angles = [b.weight((TOKENS, DIMS // 2), name) for name in ("cos", "sin")]
    places = b.constant(np.arange(TOKENS)[None], "places")
    for layer in range(LAYERS):
        y = b.op("RMSNormalization", x, b.vector(WIDTH, f"{layer}.gamma", 0.5))
        q, k, v = (
            b.linear(y, WIDTH, heads * DIMS, f"{layer}.{part}")
            for part, heads in (("q", HEADS), ("k", kv), ("v", kv))
        )
        q, k = (b.op("RotaryEmbedding", t, *angles, places, num_heads=n) for t, n in ((q, HEADS), (k, kv)))
        y = b.op("Attention", q, k, v, q_num_heads=HEADS, kv_num_heads=kv, is_causal=1, name=f"{layer}.heads")
        x = b.op("Add", x, b.linear(y, WIDTH, WIDTH, f"{layer}.out"))
        y = b.op("RMSNormalization", x, b.vector(WIDTH, f"{layer}.gamma2", 0.5))
        gate, up = (b.linear(y, WIDTH, FFN, f"{layer}.{name}") for name in ("gate", "up"))
        y = b.op("Mul", b.op("Swish", gate) if b.opset > 23 else b.op("Mul", gate, b.op("Sigmoid", gate)), up)
        x = b.op("Add", x, b.linear(y, FFN, WIDTH, f"{layer}.down"))
    return b.model(b.linear(x, WIDTH, 3, "classify"))


def macs(heads, shared, ffn, gates):
    """Multiply-adds of one forward pass, from the sizes alone."""
    attention = TOKENS * WIDTH * DIMS * (2 * heads + 2 * shared) + 2 * TOKENS * TOKENS * heads * DIMS
    return LAYERS * (attention + TOKENS * WIDTH * ffn * (gates + 1)) + TOKENS * WIDTH * 3


def prune(model, tmp_path, **options):
    path = tmp_path / "model.onnx"
    ir.save(model, path)
    return path, onnxprune.prune(path, tmp_path / "small.onnx", ratio=0.5, round_to=1, **options)


def attributes(model, name):
    return [n.attributes[name].as_int() for n in model.graph if n.name.endswith(".heads")]


def check(path, done, feed_seed=0):
    """The proof passed, and the written file runs and keeps its interface."""
    proof = done.report.soundness
    assert proof.checked and not proof.rejected_groups and not proof.detached
    assert proof.max_abs_diff <= 1e-4 * proof.max_abs_output
    feed = {"x": np.random.default_rng(feed_seed).standard_normal((1, TOKENS, WIDTH)).astype(np.float32)}
    before, after = (run(open_session(load(p).ir, threads=1), feed) for p in (path, done.path))
    assert [a.shape for a in after.values()] == [a.shape for a in before.values()] == [(1, TOKENS, 3)]


@pytest.mark.parametrize("declare", [True, False], ids=["declared", "bare"])
@pytest.mark.parametrize("multi", [False, True], ids=["Attention", "MultiHeadAttention"])
def test_contrib_transformer(tmp_path, multi, declare):
    path, done = prune(contrib(multi=multi, declare=declare), tmp_path, scope="local")
    check(path, done)
    assert attributes(done.model, "num_heads") == [HEADS // 2] * LAYERS
    assert done.report.before.macs == macs(HEADS, HEADS, FFN, 1)
    assert done.report.after.macs == macs(HEADS // 2, HEADS // 2, FFN // 2, 1)
    sizes = {v.name: tuple(v.shape) for v in done.model.graph.initializers.values()}
    for layer in range(LAYERS):
        assert sizes[f"{layer}.out.weight"] == (WIDTH // 2, WIDTH)
        assert sizes[f"{layer}.down.weight"] == (FFN // 2, WIDTH)
        assert sizes[f"{layer}.bias"] == (3 * WIDTH // 2,)


@pytest.mark.parametrize("multi", [False, True], ids=["Attention", "MultiHeadAttention"])
def test_symbolic_batch_and_tokens(tmp_path, multi):
    model = contrib(multi=multi, sizes=("batch", "tokens"))
    path, done = prune(model, tmp_path, bindings={"tokens": TOKENS})
    check(path, done)
    assert done.report.before.macs == macs(HEADS, HEADS, FFN, 1)
    assert done.report.after.macs == macs(HEADS // 2, HEADS // 2, FFN // 2, 1)


@pytest.mark.parametrize("kv", [8, 4, 1])
def test_standard_transformer(tmp_path, kv):
    path, done = prune(grouped(kv), tmp_path, scope="local")
    check(path, done)
    left = 1 if kv == 1 else kv // 2
    assert attributes(done.model, "q_num_heads") == [HEADS // 2] * LAYERS
    assert attributes(done.model, "kv_num_heads") == [left] * LAYERS
    assert done.report.before.macs == macs(HEADS, kv, FFN, 2)
    assert done.report.after.macs == macs(HEADS // 2, left, FFN // 2, 2)


def test_without_shapes_everything_behind_a_fused_operator_is_unknown(tmp_path):
    """What the rules' `extents` are for: the same rules without them find nothing behind the first one."""
    rules = default_rules()
    silent = rules | {
        key: Rule(rule.relate, rule.refit, rule.macs, rule.weights, rule.kinds)
        for key, rule in rules.items()
        if rule.extents is not None
    }
    path = tmp_path / "model.onnx"
    ir.save(contrib(), path)
    blind, seeing = onnxprune.analyze(path, rules=silent), onnxprune.analyze(path)
    assert {b.reason for b in blind.blocked} == {Reason.UNKNOWN_SHAPE}
    assert not blind.groups and len(seeing.groups) == 2 * LAYERS


def test_third_parties_can_infer_their_operators(tmp_path):
    """An operator of another domain that halves the last axis, in a file that declares no shape for it."""

    def relate(op, relations):
        half = (op.extent(op.axis(op.input(0), -1)) or 0) // 2
        both = np.arange(2 * half)
        for dim in range(op.rank(op.input(0)) - 1):
            relations.tie(op.axis(op.input(0), dim), op.axis(op.output(), dim))
        relations.tie(op.axis(op.input(0), -1), op.axis(op.output(), -1), both, both % half)

    def extents(op):
        *leading, last = op.dims(op.input(0))
        return [((*leading, last // 2), op.input(0).dtype)]

    b = Block(opset=17, domains={"my": 1})
    x = b.input("x", (1, TOKENS, WIDTH))
    y = b.op("Glu", b.linear(x, WIDTH, FFN, "up"), domain="my")
    out = b.linear(y, FFN // 2, WIDTH, "down")
    out.shape, out.type = ir.Shape((1, TOKENS, WIDTH)), ir.TensorType(ir.DataType.FLOAT)
    model = b.model(out)
    path = tmp_path / "model.onnx"
    ir.save(model, path)
    assert not any(v.name == y.name for v in onnx.load(path).graph.value_info)
    key = ("my", "Glu")
    blind = onnxprune.analyze(path, rules=default_rules() | {key: Rule(relate)})
    seeing = onnxprune.analyze(path, rules=default_rules() | {key: Rule(relate, extents=extents)})
    assert not blind.groups
    assert [group.units for group in seeing.groups.values()] == [FFN // 2]


def test_attention_without_a_bias(tmp_path):
    """Valid by its schema, but onnxruntime crashes on it, which no process survives: it is proven around."""
    model = contrib()
    for node in model.graph:
        if node.op_type == "Attention":
            node.resize_inputs(2)
    path, done = prune(model, tmp_path, scope="local")
    proof = done.report.soundness
    assert proof.checked and not proof.rejected_groups
    assert proof.detached == tuple(f"{layer}.heads" for layer in range(LAYERS))
    assert done.report.after.macs < done.report.before.macs
    assert any("onnxruntime cannot run 0.heads" in line for line in done.report.warnings)
