"""Whole attention heads: which ones, and that they are zero wherever they have weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_nets import attention, save

from onnxprune.controllers import BasePruner, HeadPruner, get_pruner, prepare_compression
from onnxprune.errors import UsageError
from onnxprune.model import edit

WIDTH, HEADS = 32, 4


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    model = attention(width=WIDTH, heads=HEADS)
    graph = model.graph
    array = np.random.default_rng(1).standard_normal((WIDTH, 4))
    weight = edit.add_initializer(graph, "classes.weight", array, ir.DataType.FLOAT)
    logits = ir.Value(name="logits", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 5, 4]))
    graph.append(ir.node("MatMul", [graph.outputs[0], weight], outputs=[logits], name="classes"))
    graph.outputs[:] = [logits]
    return save(model, tmp_path_factory.mktemp("net") / "net.onnx")


def weights(model):
    return {n: v.const_value.numpy() for n, v in model.graph.initializers.items() if n.endswith(".weight")}


def test_heads_by_their_mean_magnitude(path):
    config = {"pattern": "mha", "pruning_type": "magnitude", "target_sparsity": 0.5, "excluded_op_names": []}
    pruner = get_pruner(config, path)
    assert isinstance(pruner, HeadPruner)
    assert pruner.step()
    size = WIDTH // HEADS
    parts = weights(ir.load(path))
    scores = []
    for head in range(HEADS):
        span = slice(head * size, (head + 1) * size)
        rows = [np.abs(parts[f"{name}.weight"][:, span]).ravel() for name in "qkv"]
        scores.append(np.concatenate([*rows, np.abs(parts["out.weight"][span]).ravel()]).mean())
    gone = np.argsort(scores, kind="stable")[:2]
    (mask,) = pruner.head_masks.values()
    assert np.array_equal(np.flatnonzero(~mask), np.sort(gone))
    after = weights(pruner.model)
    for head in range(HEADS):
        span = slice(head * size, (head + 1) * size)
        for name in "qkv":
            expected = parts[f"{name}.weight"][:, span] * mask[head]
            assert np.array_equal(after[f"{name}.weight"][:, span], expected)
        assert np.array_equal(after["out.weight"][span], parts["out.weight"][span] * mask[head])
    assert pruner.current_sparsity_ratio == 0.5
    assert np.array_equal(pruner.masks["q"], after["q.weight"] != 0)


def test_rounds_and_the_manager(path, tmp_path):
    config = {"pattern": "mha", "pruning_type": "magnitude", "target_sparsity": 0.75, "end_step": 3}
    manager = prepare_compression(path, {**config, "sparsity_decay_type": "linear"})
    seen = []
    while manager.step():
        seen.append(int(sum(mask.sum() for mask in manager.pruners[0].head_masks.values())))
    assert seen == [4, 3, 2, 1]
    saved = weights(ir.load(manager.save(tmp_path / "out.onnx")))
    assert (saved["q.weight"] == 0).mean() == 0.75


def test_what_cannot_be(path):
    with pytest.raises(UsageError, match="given arrays"):
        get_pruner({"pattern": "mha"}, {"w": np.ones((4, 4), np.float32)})
    with pytest.raises(UsageError, match="several layers"):
        BasePruner({"pattern": "mha"}, path)
    with pytest.raises(UsageError, match="makes up"):
        HeadPruner({"pattern": "mha"}, path, solver="obc")
    with pytest.raises(UsageError, match="makes up"):
        prepare_compression(path, {"pattern": "mha"}, "synthetic:8", solver="obc")
    with pytest.raises(UsageError, match="needs --data"):
        HeadPruner({"pattern": "mha", "target_sparsity": 0.5}, path).step()
    with pytest.raises(UsageError, match="its own samples"):
        HeadPruner({"pattern": "mha", "pruning_type": "magnitude"}, path).step([{}])
