"""Adaptation of batch norms after pruning."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_nets import convnet, feeds, save

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.controllers import FilterPruningController, MagnitudeSparsityController
from onnxprune.controllers.batchnorm import adapt_batchnorm
from onnxprune.statistics.batches import Batches

DATA = feeds(60, seed=3)


def tensor_of(model, name, images):
    model = model.clone()
    value = next(out for node in model.graph for out in node.outputs if out.name == name)
    model.graph.outputs[:] = [value]
    return run(open_session(model, threads=1), {"image": images})[name].astype(np.float64)


def batches(images, size=8):
    parts = [images[n : n + size] for n in range(0, len(images), size)]
    return Batches([{"image": part} for part in parts], tuple(map(len, parts)))


def double(model, name, axis, factor):
    """Let the second half along an axis be the first half again."""
    value = model.graph.initializers[name]
    first = np.split(value.const_value.numpy(), 2, axis)[0]
    value.const_value = ir.tensor(np.concatenate([first, factor * first], axis).astype(np.float32), name=name)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A net whose norms fit what they see, as those of a trained one do, and half of whose filters are doubles."""
    model = convnet((16, 24), norm=True, seed=6)
    for name in ("conv0.weight", "conv0.bias", "bn0.weight", "bn0.bias"):
        double(model, name, 0, 0.99)
    double(model, "conv1.weight", 1, 1.0)
    adapt_batchnorm(model, batches(DATA["image"]))
    return save(model, tmp_path_factory.mktemp("net") / "net.onnx")


def test_norms_get_the_moments_of_what_they_see(adapted):
    model = ir.load(adapted)
    for node in model.graph:
        if node.op_type == "BatchNormalization":
            seen = tensor_of(model, node.inputs[0].name, DATA["image"])
            mean, variance = (node.inputs[slot].const_value.numpy() for slot in (3, 4))
            assert np.allclose(mean, seen.mean(axis=(0, 2, 3)), rtol=1e-3, atol=1e-4)
            assert np.allclose(variance, seen.var(axis=(0, 2, 3)), rtol=1e-3, atol=1e-5)


def test_norms_that_share_statistics_get_their_own():
    model = convnet((8, 8), norm=True, seed=1)
    first, second = (node for node in model.graph if node.op_type == "BatchNormalization")
    second.replace_input_with(3, first.inputs[3])
    assert len(adapt_batchnorm(model, batches(DATA["image"]))) == 2
    assert first.inputs[3] is not second.inputs[3]
    assert not np.allclose(first.inputs[3].const_value.numpy(), second.inputs[3].const_value.numpy())


def losses(path):
    """Without and with adaptation, where half of the first layer's filters are gone."""
    options = {"prune_first_conv": True, "pruning_target": 0.5}
    controller = FilterPruningController(path, options, DATA, compensate="none")
    found = []
    for adapt in (False, True):
        controller.set_pruning_level({0: 0.5, 1: 0.0}, run_batchnorm_adaptation=adapt)
        found.append(controller.loss())
    return controller, found


def test_pruned_models_are_closer_afterwards(adapted):
    controller, (before, after) = losses(adapted)
    assert after < 0.1 * before
    model = controller.model
    norm = next(node for node in model.graph if node.name == "bn1")
    fit = controller.opened.inputs.fit
    seen = tensor_of(model, norm.inputs[0].name, np.concatenate([f["image"] for f in fit.batches(64)]))
    keep = controller.get_mask("conv1")
    assert np.allclose(norm.inputs[3].const_value.numpy(), seen.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    # the model that is cut is the same, without the channels
    cut = controller.strip()
    other = next(node for node in cut.graph if node.name == "bn1")
    assert np.allclose(
        other.inputs[3].const_value.numpy(), norm.inputs[3].const_value.numpy()[keep], rtol=1e-3, atol=1e-4
    )
    images = feeds(4, seed=9)["image"]
    a, b = (run(open_session(m, threads=1), {"image": images})["logits"] for m in (model, cut))
    assert np.allclose(a, b, atol=1e-4)


def test_folded_norms_are_matched_by_scale_and_shift(tmp_path):
    path = save(convnet((16, 24), seed=6), tmp_path / "folded.onnx")
    _, (before, after) = losses(path)
    assert after < before


def test_what_is_not_done_is_said(adapted, tmp_path):
    bare = FilterPruningController(adapted, {"prune_first_conv": True})
    bare.set_pruning_level(0.5, run_batchnorm_adaptation=True)
    assert any("needs data" in note for note in bare.notes)
    repaired = FilterPruningController(adapted, {"prune_first_conv": True}, DATA)
    repaired.set_pruning_level(0.5, run_batchnorm_adaptation=True)
    assert any("refits the layers" in note for note in repaired.notes)
    section = {
        "algorithm": "filter_pruning",
        "params": {"prune_first_conv": True},
        "initializer": {"batchnorm_adaptation": {"num_bn_adaptation_samples": 0}},
    }
    none = FilterPruningController(adapted, section, DATA, compensate="none")
    none.set_pruning_level(0.5, run_batchnorm_adaptation=True)
    assert any("num_bn_adaptation_samples is 0" in note for note in none.notes)
    solved = MagnitudeSparsityController(save(convnet(), tmp_path / "n.onnx"), None, DATA)
    solved.set_sparsity_level(0.5, run_batchnorm_adaptation=True)
    assert any("refits the layers" in note for note in solved.notes)


def test_sparse_models_with_folded_norms_are_scaled_and_shifted(tmp_path):
    path = save(convnet((16, 24), seed=2), tmp_path / "folded.onnx")
    controller = MagnitudeSparsityController(path, {"sparsity_target": 0.7}, DATA, solver="mask")
    controller.set_sparsity_level(0.7)
    before, plain = controller.loss(), controller.model
    controller.set_sparsity_level(0.7, run_batchnorm_adaptation=True)
    assert controller.loss() < 0.9 * before
    old, new = (
        m.graph.initializers["conv1.weight"].const_value.numpy().astype(np.float64)
        for m in (plain, controller.model)
    )
    mask = controller.get_mask("conv1")
    assert not new[~mask].any()
    for channel in range(24):  # one factor for each output channel
        stays = mask[channel]
        ratio = new[channel][stays] / old[channel][stays]
        assert np.allclose(ratio, ratio[0], rtol=1e-4)


def test_sparse_models_are_closer_afterwards(adapted):
    controller = MagnitudeSparsityController(adapted, {"sparsity_target": 0.7}, DATA, solver="mask")
    controller.set_sparsity_level(0.7)
    before = controller.loss()
    controller.set_sparsity_level(0.7, run_batchnorm_adaptation=True)
    assert controller.loss() < before
