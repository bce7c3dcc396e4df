"""Whole attention heads: which they are, their scores, and that masking them by prune gives the same model."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_nets import MODELS, Net, save

import onnxprune
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.errors import UsageError
from onnxprune.graph.heads import head_groups
from onnxprune.sparsity.heads import NO_HEADS
from onnxprune.surgery.keep import kept_positions
from onnxprune.surgery.mask import mask

VIT, CALIBRATION = MODELS / "digits_vit.onnx", MODELS / "digits_calib.npz"
HEADS, DEPTH, DIM = 4, 3, 12
LAYERS = ("q", "k", "v", "o")


def attention(heads: int = HEADS, *, einsum: bool = False, layers: int = 1):
    """Separate projections of (n, 5, 12), each with a bias; the last layer is a classifier."""
    n = Net(seed=2)
    x = n.data("x", ("n", 5, DIM))
    depth = DIM // heads
    for number in range(layers):
        parts = {}
        for name in "qkv":
            product = n.op(
                "MatMul", x, n.normal((DIM, DIM), f"{name}{number}", 0.4), name=f"{name}{number}/mm"
            )
            parts[name] = n.op("Add", product, n.normal((DIM,), f"{name}{number}.bias"))
            parts[name] = n.op("Reshape", parts[name], n.constant(np.array([0, 5, heads, depth])))
        if einsum:
            logits = n.op("Einsum", parts["q"], parts["k"], equation="bqhd,bkhd->bhqk")
            mixed = n.op("Einsum", n.op("Softmax", logits, axis=-1), parts["v"], equation="bhqk,bkhd->bqhd")
        else:
            perms = {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}
            q, k, v = (n.op("Transpose", parts[name], perm=perm) for name, perm in perms.items())
            mixed = n.op("MatMul", n.op("Softmax", n.op("MatMul", q, k), axis=-1), v)
            mixed = n.op("Transpose", mixed, perm=[0, 2, 1, 3])
        joined = n.op("Reshape", mixed, n.constant(np.array([0, 5, DIM])))
        x = n.op(
            "Add", x, n.op("MatMul", joined, n.normal((DIM, DIM), f"o{number}", 0.4), name=f"o{number}/mm")
        )
    flat = n.op("ReduceMean", x, n.constant(np.array([1])), keepdims=0)
    return n.model(n.ops("Gemm", flat, n.normal((DIM, 3), "head"), outputs=["logits"], name="head")[0])


def feed(count: int = 6):
    return {"x": np.random.default_rng(0).standard_normal((count, 5, DIM)).astype(np.float32)}


def outputs(model):
    return run(open_session(model), feed())["logits"]


@pytest.mark.parametrize("einsum", [False, True])
def test_which_groups_are_heads(tmp_path, einsum):
    analysis = onnxprune.analyze(save(attention(einsum=einsum), tmp_path / "net.onnx"))
    (group,) = head_groups(analysis.axis_graph, analysis.groups.values())
    assert group.units == HEADS
    assert {str(use.axis.value.name) for use in group.axes} >= {"q0", "k0", "v0", "o0"}


@pytest.mark.parametrize("operator", ["MultiHeadAttention", "Attention"])
def test_operators_that_hold_whole_attention(tmp_path, operator):
    """The one of onnxruntime, and the one of opset 23 with heads on the last axis; heads are masked as by prune."""
    contrib = operator == "MultiHeadAttention"
    n = Net(seed=2, opset=18 if contrib else 23, domains={"com.microsoft": 1} if contrib else None)
    x = n.data("x", ("n", 5, DIM))
    q, k, v = (n.op("MatMul", x, n.normal((DIM, DIM), name, 0.4), name=f"{name}/mm") for name in "qkv")
    how = {"num_heads": HEADS} if contrib else {"q_num_heads": HEADS, "kv_num_heads": HEADS}
    mixed = n.op(operator, q, k, v, domain="com.microsoft" if contrib else "", **how)
    y = n.ops("MatMul", mixed, n.normal((DIM, DIM), "o", 0.4), outputs=["logits"], name="o/mm")[0]
    path = save(n.model(y), tmp_path / "net.onnx")
    made = onnxprune.sparsify(path, pattern="head", criterion="magnitude", sparsity=0.5)
    ((name, which),) = made.report.heads.items()
    assert len(which) == 2 and made.report.achieved == 0.5
    lost = np.isin(np.arange(DIM) // DEPTH, which)
    for layer in LAYERS:
        expected = np.broadcast_to(lost[:, None] if layer == "o" else lost[None], (DIM, DIM))
        np.testing.assert_array_equal(made.zeros[layer], expected)


def test_real_models_have_the_heads_that_they_have():
    for name, count in (("digits_vit", 4), ("digits_vit_ts", 4), ("digits_resnet", 0)):
        analysis = onnxprune.analyze(MODELS / f"{name}.onnx")
        found = head_groups(analysis.axis_graph, analysis.groups.values())
        assert [group.units for group in found] == [4] * count


def test_scores_are_means_over_four_slices(tmp_path):
    """Magnitudes: the mean over the head's slices of Q, K, V and O, the lowest half of all heads goes."""
    model = attention(layers=2)
    weights = {
        name: value.const_value.numpy().astype(np.float64) for name, value in model.graph.initializers.items()
    }
    scores = []
    for number in range(2):
        for head in range(HEADS):
            mine = slice(head * DEPTH, (head + 1) * DEPTH)
            slices = [np.abs(weights[f"{name}{number}"][:, mine]).mean() for name in "qkv"]
            scores.append(np.mean([*slices, np.abs(weights[f"o{number}"][mine]).mean()]))
    gone = np.argsort(scores)[:4]
    path = save(model, tmp_path / "net.onnx")
    made = onnxprune.sparsify(path, pattern="head", criterion="magnitude", sparsity=0.5)
    expected = {f"q{n}/mm": tuple(int(g) - 4 * n for g in sorted(gone) if g // 4 == n) for n in range(2)}
    assert dict(made.report.heads) == expected
    assert made.report.achieved == 0.5
    assert {layer.weight for layer in made.report.layers} == {f"{n}{i}" for n in LAYERS for i in range(2)}
    assert list(made.report.left.values()) == [NO_HEADS]
    for name, flags in made.zeros.items():
        heads = [int(g) - 4 * int(name[1]) for g in gone if g // 4 == int(name[1])]
        lost = np.isin(np.arange(DIM) // DEPTH, heads)
        shape = lost[:, None] if name[0] == "o" else lost[None]
        np.testing.assert_array_equal(flags, np.broadcast_to(shape, (DIM, DIM)))


@pytest.mark.parametrize("einsum", [False, True])
def test_the_model_is_that_of_masking(tmp_path, einsum):
    path = save(attention(einsum=einsum), tmp_path / "net.onnx")
    made = onnxprune.sparsify(path, pattern="head", criterion="magnitude", sparsity=0.5)
    analysis = onnxprune.analyze(path)
    (group,) = head_groups(analysis.axis_graph, analysis.groups.values())
    (which,) = made.report.heads.values()
    keep = ~np.isin(np.arange(HEADS), which)
    masked = mask(analysis.axis_graph, kept_positions(analysis.groups, {group.id: keep}))
    np.testing.assert_allclose(outputs(made.model), outputs(masked), rtol=1e-5, atol=1e-6)
    assert np.abs(outputs(made.model) - outputs(analysis.axis_graph.model)).max() > 1e-2
    bias = made.model.graph.initializers["v0.bias"].const_value.numpy().reshape(HEADS, DEPTH)
    np.testing.assert_array_equal((bias == 0).all(axis=1), ~keep)


@pytest.mark.parametrize("criterion", ["wanda", "fisher", "movement", "rb"])
def test_criteria_that_look_at_samples(criterion, tmp_path):
    output = tmp_path / "sparse.onnx"
    options = {"pattern": "head", "criterion": criterion, "sparsity": 0.25, "samples": 60}
    made = onnxprune.sparsify(VIT, output, data=CALIBRATION, **options)
    assert sum(map(len, made.report.heads.values())) == 4
    assert made.report.achieved == 0.25
    again = onnxprune.sparsify(VIT, data=CALIBRATION, **options)
    assert again.report.heads == made.report.heads
    body = json.loads(onnxprune.report.sparsity.render_json(made.report))
    assert body["heads"] == {name: list(which) for name, which in made.report.heads.items()}
    assert ("mean_sparse_prob" in body["learned"]) == (criterion == "rb")


def test_locked_heads_stay_zero_and_count(tmp_path):
    path = save(attention(layers=2), tmp_path / "net.onnx")
    first = onnxprune.sparsify(
        path, tmp_path / "one.onnx", pattern="mha", criterion="magnitude", sparsity=0.25
    )
    more = onnxprune.sparsify(
        tmp_path / "one.onnx", pattern="head", criterion="normed_abs", sparsity=0.5, lock=True, rounds=2
    )
    assert more.report.achieved == 0.5
    assert all(set(which) <= set(more.report.heads[name]) for name, which in first.report.heads.items())


def test_models_without_heads():
    with pytest.raises(UsageError, match="no attention heads that could go"):
        onnxprune.sparsify(MODELS / "digits_resnet.onnx", pattern="head", criterion="magnitude")


def test_a_single_head(tmp_path):
    with pytest.raises(UsageError, match="no attention heads that could go") as found:
        onnxprune.sparsify(save(attention(1), tmp_path / "net.onnx"), pattern="head", criterion="magnitude")
    assert "A single head cannot go" in found.value.hint


def test_attention_of_which_a_layer_stays_dense(tmp_path):
    path = save(attention(layers=2), tmp_path / "net.onnx")
    made = onnxprune.sparsify(path, pattern="head", criterion="magnitude", sparsity=0.5, ignore=["o0"])
    assert set(made.report.heads) == {"q1/mm"}
    assert made.report.left["q0/mm"] == "its heads lie in o0 too, which stays dense"


@pytest.mark.parametrize(
    "options", [{"solver": "sparsegpt"}, {"criterion": "saliency"}, {"criterion": "const"}]
)
def test_nothing_makes_up_for_heads(options):
    with pytest.raises(UsageError, match="nothing makes up for them"):
        onnxprune.sparsify(VIT, sparsity=0.0, pattern="head", data=CALIBRATION, **options)


def test_scores_of_blocks():
    with pytest.raises(UsageError, match="one score per block of a layer, and head has blocks"):
        onnxprune.sparsify(VIT, pattern="head", criterion="snip_momentum_block", data=CALIBRATION)
