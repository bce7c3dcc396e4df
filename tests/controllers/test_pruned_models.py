"""Pruners on models: masks of weights in a file, gradients, solvers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_nets import convnet, feeds, save

from onnxprune.calibrate.dataset import hold_out
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.controllers import (
    BasePruner,
)
from onnxprune.errors import UsageError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save(convnet((8, 16, 12), seed=9), tmp_path_factory.mktemp("net") / "net.onnx")


def weights_of(model):
    found = {n: v.const_value.numpy() for n, v in model.graph.initializers.items()}
    return {name: found[f"{name}.weight"] for name in ("conv0", "conv1", "conv2", "head")}


def test_a_model_is_pruned_like_its_arrays(path):
    config = {"pruning_type": "magnitude", "pattern": "4x1", "target_sparsity": 0.6}
    pruner = BasePruner(config, path)
    pruner.step()
    before = weights_of(ir.load(path))
    other = BasePruner(config, {name: before[name] for name in ("conv0", "conv1", "conv2")})
    other.step()
    assert pruner.skipped == {"head": "it is the last linear layer, the head"}
    for name in ("conv0", "conv1", "conv2"):
        assert np.array_equal(pruner.masks[name], other.masks[name])
        assert np.array_equal(weights_of(pruner.model)[name], other.modules[name])
    assert np.array_equal(weights_of(pruner.model)["head"], before["head"])


def test_gradients_of_a_model(path):
    """SNIP's scores against differences of the cross-entropy of all samples together."""
    config = {"pruning_type": "snip", "pattern": "1x1", "target_sparsity": 0.5}
    pruner = BasePruner(config, path, feeds(40), solver="mask")
    pruner.step()
    used, _ = hold_out(pruner._modules.opened.inputs.fit)
    images = np.concatenate([feed["image"] for feed in used.batches(64)])
    labels = np.concatenate([each for each in used.label_batches(64)])

    def loss(name, index, step):
        model = ir.load(path)
        value = model.graph.initializers[f"{name}.weight"]
        array = value.const_value.numpy().copy()
        array[index] += step
        value.const_value = ir.tensor(array, name=value.name)
        logits = run(open_session(model), {"image": images})["logits"].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(len(labels)), labels.astype(int)]
        return float((np.log(np.exp(logits).sum(axis=1)) - chosen).sum())

    found, expected = [], []
    for name in ("conv1", "conv2"):
        scores = pruner.scores[name]
        for flat in np.argsort(scores.ravel())[-4:]:
            index = np.unravel_index(flat, scores.shape)
            slope = (loss(name, index, 0.004) - loss(name, index, -0.004)) / 0.008
            found.append(scores[index])
            expected.append(abs(slope * weights_of(ir.load(path))[name][index]))
    assert np.allclose(found, expected, rtol=0.02)


def test_a_solver_makes_up_for_the_zeros(path):
    config = {"pruning_type": "snip_momentum", "pattern": "1x1", "target_sparsity": 0.6, "end_step": 2}
    mask, solved = (BasePruner(config, path, feeds(50), solver=solver) for solver in ("mask", "auto"))
    for pruner in (mask, solved):
        while pruner.global_step <= pruner.end_step:
            pruner.step()
    for pruner in (mask, solved):
        assert pruner.current_sparsity_ratio == pytest.approx(0.6, abs=1e-3)
        for name, flags in pruner.masks.items():
            assert not weights_of(pruner.model)[name][~flags].any()
    original = weights_of(ir.load(path))
    assert np.array_equal(
        weights_of(mask.model)["conv1"][mask.masks["conv1"]], original["conv1"][mask.masks["conv1"]]
    )
    assert not np.allclose(weights_of(solved.model)["conv1"], weights_of(mask.model)["conv1"])


def test_samples_are_asked_for(path):
    with pytest.raises(UsageError, match="looks at samples"):
        BasePruner({"pruning_type": "snip", "pattern": "1x1"}, path).step()
    with pytest.raises(UsageError, match="no solver"):
        BasePruner({}, path, solver="masc")
