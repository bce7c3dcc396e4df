"""Queries and keys that lose dims: what is folded into their layers, and what that does to whole models."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnxprune
from onnxprune.model.io import load
from onnxprune.repair.logits import Rows, best_mixing, fold, mix
from onnxprune.statistics.consumers import consumer_of
from onnxprune.statistics.moments import Moments
from onnxprune.testing import ModelBuilder
from tests.repair.query_nets import (
    MODELS,
    closed,
    convolved,
    fused,
    prune,
    repairs_of,
    separate,
    tokens,
    without_bias,
)
from tests.repair.test_sequence import error, save
from tests.structures.attention_nets import DEPTH, HEADS, INNER, TOKENS, WIDTH, Net

# --- the matrix between ----------------------------------------------------------------------------------


def rows(left, whole, kept, *, centred=False):
    return Rows(Moments.of(np.concatenate([left, whole], axis=2)), np.asarray(kept), centred)


def logits(q, k):
    return np.einsum("hid,hjd->hij", q, k)


@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_the_error_is_that_of_all_pairs(seed, shift, centred):
    rng = np.random.default_rng(seed)
    q, k = (rng.standard_normal((2, n, 5)) + rng.standard_normal((2, 1, 5)) for n in (30, 20))
    kept = [0, 2, 3]
    q_left, k_left = (x[..., kept] + 0.1 * rng.standard_normal((*x.shape[:2], 3)) for x in (q, k))
    x, z = rows(q_left, q, kept), rows(k_left, k, kept, centred=centred)
    found = best_mixing((x, x), (z, z), shift=shift)
    if centred:
        k, k_left = (each - each.mean(axis=1, keepdims=True) for each in (k, k_left))
    q_new = q_left @ found.matrix + found.shift[:, None]
    for new, claimed in ((q_new, found.error), (q_left, found.before)):
        assert np.square(logits(new, k_left) - logits(q, k)).mean(axis=(1, 2)).sum() == pytest.approx(
            claimed, rel=1e-6
        )
    assert found.helps and found.energy == pytest.approx(np.square(logits(q, k)).mean(axis=(1, 2)).sum())


def test_no_other_matrix_does_better():
    """Against least squares on the products of all pairs."""
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((1, n, 4)) + rng.standard_normal((1, 1, 4)) for n in (30, 20))
    kept = [0, 1, 3]
    left = np.concatenate([q[0][:, kept], np.ones((30, 1))], axis=1)
    products = np.einsum("ia,jb->ijab", left, k[0][:, kept]).reshape(600, -1)
    best = np.linalg.lstsq(products, logits(q, k).ravel(), rcond=None)[0].reshape(4, 3)
    x, z = rows(q[..., kept], q, kept), rows(k[..., kept], k, kept)
    matrix, shift = mix(x, z, 1e-9, shift=True)
    np.testing.assert_allclose(matrix[0], best[:3], atol=1e-5)
    np.testing.assert_allclose(shift[0], best[3], atol=1e-5)


def test_dims_that_depend_on_others_leave_the_logits_as_they_are():
    rng = np.random.default_rng(1)
    q, k = rng.standard_normal((3, 200, 6)), rng.standard_normal((3, 200, 6))
    for each in (q, k):
        each[..., 4:] = each[..., :4] @ rng.standard_normal((3, 4, 2))
    kept = np.arange(4)
    x, z = (Rows.of_itself(Moments.of(each), kept, False) for each in (q, k))
    matrix, shift = mix(x, z, 1e-9, shift=True)
    np.testing.assert_allclose(
        logits(q[..., :4] @ matrix + shift[:, None], k[..., :4]), logits(q, k), atol=1e-4
    )


def test_a_strong_ridge_changes_nothing():
    rng = np.random.default_rng(2)
    q, k = rng.standard_normal((2, 50, 4)), rng.standard_normal((2, 50, 4))
    x, z = (Rows.of_itself(Moments.of(each), np.array([1, 2]), False) for each in (q, k))
    np.testing.assert_allclose(
        mix(x, z, 1e9, shift=False)[0], np.broadcast_to(np.eye(2), (2, 2, 2)), atol=1e-6
    )


def test_folding_is_mixing_the_outputs():
    rng = np.random.default_rng(3)
    b = ModelBuilder()
    x = b.input("x", (1, 5, 4))
    model = b.model(b.op("Add", b.op("MatMul", x, b.weight((4, 6))), b.weight((6,))))
    layer = consumer_of(model.graph[0])
    places, matrix, shift = (
        np.array([[0, 4], [3, 2]]),
        rng.standard_normal((2, 2, 2)),
        rng.standard_normal((2, 2)),
    )
    weight, bias = fold(layer, layer.matrix(), layer.bias_vector(), places, matrix, shift)
    seen = rng.standard_normal((7, 4))
    old, new = seen @ layer.matrix()[0].T + layer.bias_vector(), seen @ weight[0].T + bias
    np.testing.assert_allclose(new[:, [1, 5]], old[:, [1, 5]])
    np.testing.assert_allclose(new[:, places], np.einsum("nhp,hpq->nhq", old[:, places], matrix) + shift)


# --- whole models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_dims_that_others_can_replace_cost_little(tmp_path, build):
    path, out, bare = save(build(), tmp_path), tmp_path / "out.onnx", tmp_path / "bare.onnx"
    done = prune(path, out, "affine")
    scores = repairs_of(done)["scores"]
    assert scores.kind == "logits" and scores.lost and scores.after < 0.2 * scores.before
    assert done.report.soundness.checked and not done.report.soundness.rejected_groups
    onnxprune.apply(path, done.plan, bare, compensate="none", data=tokens())
    fresh = tokens(seed=1)
    assert error(path, out, fresh) < 0.2 * error(path, bare, fresh)


@pytest.mark.parametrize("build", [fused, without_bias, convolved], ids=lambda build: build.__name__)
def test_mask_and_remove_are_repaired_alike(tmp_path, build):
    path = save(build(), tmp_path)
    files = {mode: tmp_path / f"{mode}.onnx" for mode in ("remove", "mask")}
    for mode, file in files.items():
        assert repairs_of(prune(path, file, "affine", mode=mode))["scores"].kind == "logits"
    assert error(files["mask"], files["remove"], tokens(seed=1)) < 1e-9


def turned(n, x):
    """Every dim times a number of its own, for every token: what rotary embeddings begin with."""
    return n.op("Mul", x, n.weight((TOKENS, DEPTH), "table", low=0.5, high=1.5))


def test_what_lies_between_is_said(tmp_path):
    path = save(separate(lambda n, q, k: (turned(n, q), n.op("Tanh", k))), tmp_path)
    done = prune(path, tmp_path / "out.onnx", "affine")
    scores = repairs_of(done)["scores"]
    assert scores.kind == "none" and scores.lost
    assert scores.why == "there is Mul between it and the layer before it"


def test_keys_can_be_mixed_instead(tmp_path):
    path, out = save(separate(lambda n, q, k: (n.op("Tanh", q), k)), tmp_path), tmp_path / "out.onnx"
    before = load(path).ir.graph.initializers["q.weight"].const_value.numpy()
    assert repairs_of(prune(path, out, "affine"))["scores"].kind == "logits"
    after = load(out).ir.graph.initializers["q.weight"].const_value.numpy()
    assert all(
        (before == column[:, None]).all(axis=0).any() for column in after.T
    )  # queries stay as they are


def test_channels_that_others_see_are_left(tmp_path):
    """Queries and keys meet a second time, in another form."""
    n = Net()
    x = n.tokens()
    q, k, v = n.project(x)
    other = n.op("MatMul", n.op("Relu", q), n.permute(n.op("Relu", k), 0, 1, 3, 2), name="other")
    total = n.op("ReduceSum", other, n.constant([1, 2, 3]), keepdims=0)
    model = closed(n, x, q, k, v, total)
    path = save(model, tmp_path)
    done = prune(path, tmp_path / "out.onnx", "affine")
    found = repairs_of(done)
    assert "uses the same channels of q" in found["scores"].why
    assert found["other"].why == "there is Relu between it and the layer before it"


def test_samples_behind_the_heads_are_left_with_a_reason(tmp_path):
    """(H, B, N, D): what of the leading axis is one sample is not told."""
    n = Net()
    x = n.tokens()
    q, k, v = (
        n.permute(n.reshape(n.linear(x, WIDTH, INNER, name), 0, TOKENS, HEADS, DEPTH), 2, 0, 1, 3)
        for name in "qkv"
    )
    weights = n.op("Softmax", n.op("MatMul", q, n.permute(k, 0, 1, 3, 2), name="scores"), axis=-1)
    mean = n.op("ReduceMean", n.op("MatMul", weights, v), n.constant([0]), keepdims=0)
    path = save(n.model(n.op("Add", x, n.linear(mean, DEPTH, WIDTH, "proj"))), tmp_path)
    done = prune(path, tmp_path / "out.onnx", "affine")
    assert repairs_of(done)["scores"].why == "samples are not its leading axis"


def test_only_affine_repairs_mend_products(tmp_path):
    done = prune(save(separate(), tmp_path), tmp_path / "out.onnx", "bias")
    assert repairs_of(done)["scores"].why == "only an affine repair would do"


def test_einsum_is_left_with_a_reason(tmp_path):
    n = Net()
    x = n.tokens()
    q, k, v = n.project(x)
    weights = n.op("Softmax", n.op("Einsum", q, k, equation="bhid,bhjd->bhij", name="scores"), axis=-1)
    mean = n.op("ReduceMean", n.op("MatMul", weights, v), n.constant([1]), keepdims=0)
    path = save(n.model(n.op("Add", x, n.linear(mean, DEPTH, WIDTH, "proj"))), tmp_path)
    done = prune(path, tmp_path / "out.onnx", "affine")
    assert repairs_of(done)["scores"].why == "Einsum of two activations is not looked into"


def two_blocks():
    n = Net()
    x = n.tokens()
    for block in "ab":
        q, k, v = (n.linear(x, WIDTH, DEPTH, f"{block}.{part}") for part in "qkv")
        products = n.op("MatMul", q, n.permute(k, 0, 2, 1), name=f"{block}.scores")
        mixed = n.op("MatMul", n.op("Softmax", n.op("Mul", products, n.number(0.3)), axis=-1), v)
        x = n.op("Add", x, n.linear(mixed, DEPTH, WIDTH, f"{block}.proj"), name=f"{block}.add")
    return n.model(x)


@pytest.mark.parametrize("memory", [2.0, 1e-9])
def test_layers_behind_see_what_the_products_became(tmp_path, memory):
    """Queries of the second block are refitted first, then mixed; with no memory everything runs from the start."""
    path, out, bare = save(two_blocks(), tmp_path), tmp_path / "out.onnx", tmp_path / "bare.onnx"
    done = onnxprune.prune(
        path, out, ratio=0.4, round_to=1, criterion="obs", data=tokens(rank=5), memory=memory
    )
    names = [layer.name for layer in done.report.repairs]
    assert names.index("b.q") < names.index("b.scores") < names.index("b.proj")
    onnxprune.apply(path, done.plan, bare, compensate="none", data=tokens(rank=5))
    assert error(path, out, tokens(seed=1, rank=5)) < 0.3 * error(path, bare, tokens(seed=1, rank=5))


def test_half_precision(tmp_path):
    model = separate()
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16), name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT16)
    for node in model.graph:
        for out in node.outputs:
            if out.dtype == ir.DataType.FLOAT:
                out.type = ir.TensorType(ir.DataType.FLOAT16)
    model.graph.inputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    path = save(model, tmp_path)
    feeds = [{"x": feed["x"].astype(np.float16)} for feed in tokens()]
    done = onnxprune.prune(path, ratio=0.34, round_to=1, criterion="obs", data=feeds)
    assert repairs_of(done)["scores"].kind == "logits"
