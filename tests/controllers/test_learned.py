"""RB and movement sparsity: what the controllers make of masks and importance that are learned."""

from __future__ import annotations

import math

import numpy as np
import pytest
from reference import lowest
from small_nets import convnet, feeds, save

from onnxprune.controllers import (
    CompressionStage,
    MovementSparsityController,
    RBSparsityController,
    create_compressed_model,
)
from onnxprune.controllers.learned import MovementPolynomialThresholdScheduler
from onnxprune.errors import UnsupportedError, UsageError

LAYERS = ("conv0", "conv1", "head")
DATA = feeds(40, seed=4)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save(convnet((8, 12), seed=5), tmp_path_factory.mktemp("net") / "net.onnx")


def test_rb_masks_are_those_of_the_lowest_logits(path):
    controller = RBSparsityController(path, {"sparsity_target": 0.5}, DATA, solver="mask")
    assert controller.statistics().mean_sparse_prob == 0
    controller.set_sparsity_level(0.4)
    names = list(controller.zeros)
    logits = controller._logits
    size = sum(each.size for each in logits.values())
    expected = lowest({name: logits[name] for name in names}, math.floor(0.4 * size))
    for name in names:
        assert np.array_equal(controller.zeros[name], expected[name])
    p = np.concatenate([1 / (1 + np.exp(-each.ravel())) for each in logits.values()])
    statistics = controller.statistics()
    assert statistics.mean_sparse_prob == pytest.approx(1 - p.mean(), abs=1e-6)
    assert statistics.target_sparsity_level == 0.4
    assert controller.inference_level == pytest.approx((p <= 0.5).mean())
    assert controller.density_loss == pytest.approx(((p.mean() - 0.6) / 0.05) ** 2, abs=1e-4)
    assert controller.density_loss < 1  # it has learned how many may go
    assert any("passes" in note for note in controller.notes)


def test_rb_is_deterministic_and_local(path):
    masks = []
    for _ in range(2):
        controller = RBSparsityController(
            path, {"sparsity_level_setting_mode": "local", "sparsity_target": 0.5}, DATA, solver="mask"
        )
        controller.set_sparsity_level(0.5)
        masks.append([controller.get_mask(name) for name in LAYERS])
        assert all(abs(mask.mean() - 0.5) < 0.01 for mask in masks[-1])
    assert all(np.array_equal(a, b) for a, b in zip(*masks, strict=True))


def test_rb_goes_by_its_schedule(path):
    config = {"compression": {"algorithm": "rb_sparsity", "params": {"sparsity_target_epoch": 1}}}
    controller, model = create_compressed_model(path, config, DATA, solver="mask")
    assert isinstance(controller, RBSparsityController)
    assert type(controller.scheduler).__name__ == "ExponentialSparsityScheduler"
    controller.scheduler.epoch_step()
    assert controller.compression_stage() is CompressionStage.UNCOMPRESSED
    controller.scheduler.epoch_step()
    assert controller.compression_stage() is CompressionStage.FULLY_COMPRESSED
    weight = model.ir.graph.initializers["conv1.weight"].const_value.numpy()
    assert np.array_equal(weight != 0, controller.get_mask("conv1"))


def test_both_need_data(path):
    for kind in (RBSparsityController, MovementSparsityController):
        with pytest.raises(UsageError, match="no data"):
            kind(path)


MOVEMENT = {"warmup_start_epoch": 1, "warmup_end_epoch": 3, "importance_regularization_factor": 0.0}


def test_movement_masks_are_importance_above_the_threshold(path):
    options = {**MOVEMENT, "enable_structured_masking": False}
    controller = MovementSparsityController(path, options, DATA, solver="mask")
    thresholds, levels = [], []
    for _ in range(5):
        controller.scheduler.epoch_step()
        thresholds.append(controller.importance_threshold)
        levels.append(controller.current_sparsity_level)
        if thresholds[-1] > -math.inf:
            for name, importance in controller.importance.items():
                assert np.array_equal(controller.zeros[name], importance <= thresholds[-1])
    everything = np.concatenate([each.ravel() for each in controller.importance.values()])
    start = np.quantile(everything, 0.001)
    assert thresholds[:1] == [-math.inf]
    assert thresholds[1] == pytest.approx(start)  # p = 0
    assert thresholds[2] == pytest.approx(start * 0.5**3)  # p = 1/2, to 0 with power 3
    assert thresholds[3:] == [0.0, 0.0]
    assert levels == sorted(levels)
    assert levels[0] == 0
    assert controller.frozen
    assert controller.compression_stage() is CompressionStage.FULLY_COMPRESSED
    statistics = controller.statistics()
    assert statistics.importance_threshold == 0.0
    assert statistics.importance_regularization_factor == 0.0
    assert statistics.model_statistics.sparsity_level_for_layers == pytest.approx(levels[-1])
    with pytest.raises(UsageError, match="no level"):
        controller.set_sparsity_level(0.5)
    controller.set_importance_threshold(float(np.median(everything)))
    assert controller.current_sparsity_level == pytest.approx(0.5, abs=0.01)
    with pytest.raises(UsageError, match="not a number"):
        controller.set_importance_threshold(math.nan)


def test_movement_in_blocks_resolves_units(path):
    structure = [{"mode": "block", "sparse_factors": [4, 1], "target_scopes": "{re}.*"}]
    options = {**MOVEMENT, "sparse_structure_by_scopes": structure, "importance_regularization_factor": 1.0}
    controller = MovementSparsityController(path, options, DATA, solver="mask")
    controller.scheduler.epoch_step(3)
    assert controller.structured is not None
    mask = controller.get_mask("conv1")
    gone = ~mask.any(axis=(1, 2, 3))
    assert gone.sum() == controller.structured["conv1"][0]
    assert not controller.get_mask("head")[:, gone].any()  # with what looks at them
    alive = ~gone
    inputs = controller.get_mask("conv0").any(axis=(1, 2, 3))
    assert mask[alive][:, inputs].all()  # and all that survives is back


def test_fine_structures_are_not_resolved(path):
    controller = MovementSparsityController(path, MOVEMENT, DATA, solver="mask")
    controller.scheduler.epoch_step(3)
    assert controller.structured is None
    assert any("structured masking was left out" in note for note in controller.notes)


def test_structures_that_cannot_be(path):
    several = [{"mode": "fine"}, {"mode": "per_dim", "axis": 1}]
    with pytest.raises(UnsupportedError, match="several structures"):
        MovementSparsityController(path, {"sparse_structure_by_scopes": several}, DATA)
    with pytest.raises(UsageError, match="a sparse structure is"):
        MovementSparsityController(path, {"sparse_structure_by_scopes": [{"mode": "blok"}]}, DATA)
    with pytest.raises(UsageError, match="warmup_end_epoch"):
        MovementSparsityController(path, {"warmup_start_epoch": 3, "warmup_end_epoch": 3}, DATA)


def test_the_threshold_schedule():
    scheduler = MovementPolynomialThresholdScheduler(None, 2, 6, 0.0, 3.0)
    expected = [0, 0, *(1 - (1 - k / 4) ** 3 for k in range(5)), 1.0]
    assert [scheduler.level_at(epoch) for epoch in range(8)] == pytest.approx(expected)
