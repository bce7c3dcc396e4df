"""Magnitude and const sparsity: masks to the last bit, levels, figures."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from reference import lowest
from small_nets import convnet, feeds, save

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.controllers import (
    BaseSparsityAlgoController,
    CompressionStage,
    ConstSparsityController,
    MagnitudeSparsityController,
)
from onnxprune.errors import UsageError

LAYERS = ("conv0", "conv1", "conv2", "head")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save(convnet((8, 12, 8), seed=7), tmp_path_factory.mktemp("net") / "net.onnx")


def weights(source):
    model = ir.load(source) if not isinstance(source, ir.Model) else source
    found = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    return {name: found[f"{name}.weight"].astype(np.float64) for name in LAYERS}


def as_matrix(weight):
    """In the order in which equal weights go: outputs, taps, channels."""
    return np.moveaxis(weight, 1, -1) if weight.ndim == 4 else weight


def from_matrix(array):
    return np.moveaxis(array, -1, 1) if array.ndim == 4 else array


@pytest.mark.parametrize("importance", ["normed_abs", "abs"])
@pytest.mark.parametrize("level", [0.0, 0.1, 0.5, 0.777, 0.99])
def test_global_masks(path, importance, level):
    controller = MagnitudeSparsityController(path, {"weight_importance": importance})
    controller.set_sparsity_level(level)
    scores = {
        name: as_matrix(np.abs(w) / (np.sqrt((w**2).sum()) if importance == "normed_abs" else 1.0))
        for name, w in weights(path).items()
    }
    total = sum(s.size for s in scores.values())
    gone = lowest(scores, math.floor(level * total + 1e-9))
    for name in LAYERS:
        assert np.array_equal(controller.get_mask(name), from_matrix(~gone[name])), name
    assert controller.current_sparsity_level == math.floor(level * total + 1e-9) / total
    after = weights(controller.model)
    for name, before in weights(path).items():
        assert np.array_equal(after[name], np.where(controller.get_mask(name), before, 0))


@pytest.mark.parametrize("level", [0.0, 0.3, 0.9])
def test_local_masks(path, level):
    controller = MagnitudeSparsityController(
        path, {"sparsity_level_setting_mode": "local", "weight_importance": "abs"}
    )
    controller.set_sparsity_level(level)
    controller.set_sparsity_level(0.5, "conv1")
    for name, w in weights(path).items():
        share = 0.5 if name == "conv1" else level
        gone = lowest({name: as_matrix(np.abs(w))}, math.floor(share * w.size + 1e-9))[name]
        assert np.array_equal(controller.get_mask(name), from_matrix(~gone))
    assert controller.statistics().target_sparsity_level is None
    thresholds = {each.name: each.threshold for each in controller.statistics().thresholds}
    assert len(set(thresholds.values())) == (2 if level == 0 else 4)
    other = MagnitudeSparsityController(
        path, {"sparsity_level_setting_mode": "local", "weight_importance": "abs"}
    )
    other.load_state(controller.get_state())
    assert all(np.array_equal(other.get_mask(name), controller.get_mask(name)) for name in LAYERS)
    controller.set_sparsity_level(0.2)  # of all layers again
    assert controller.get_mask("conv1").mean() == pytest.approx(0.8, abs=0.01)


def test_a_layer_has_no_level_in_global_mode(path):
    with pytest.raises(UsageError, match="global mode"):
        MagnitudeSparsityController(path).set_sparsity_level(0.5, "conv1")


def test_ties_lose_exactly_as_many(tmp_path):
    model = convnet((8, 8), seed=0)
    for name in ("conv0.weight", "conv1.weight", "head.weight"):
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(np.ones(value.shape.numpy(), np.float32), name=name)
    controller = MagnitudeSparsityController(save(model, tmp_path / "net.onnx"), {"weight_importance": "abs"})
    controller.set_sparsity_level(0.25)
    size = sum(v.size for v in (controller.get_mask(n) for n in ("conv0", "conv1", "head")))
    assert sum(int((~controller.get_mask(n)).sum()) for n in ("conv0", "conv1", "head")) == size // 4


def test_statistics(path):
    controller = MagnitudeSparsityController(path, {"sparsity_target": 0.6})
    controller.set_sparsity_level(0.6)
    found = controller.statistics()
    model = found.model_statistics
    everything = sum(v.const_value.size for v in ir.load(path).graph.initializers.values())
    masks = {name: controller.get_mask(name) for name in LAYERS}
    zeros = sum(int((~mask).sum()) for mask in masks.values())
    size = sum(mask.size for mask in masks.values())
    assert model.sparsity_level == pytest.approx(zeros / everything)
    assert model.sparsity_level_for_layers == pytest.approx(zeros / size)
    for summary in model.sparsified_layers_summary:
        mask = masks[summary.name]
        assert summary.weight_shape == list(mask.shape)
        assert summary.sparsity_level == pytest.approx((~mask).mean())
        assert summary.weight_percentage == pytest.approx(100 * mask.size / everything)
    normed = {n: np.abs(w) / np.sqrt((w**2).sum()) for n, w in weights(path).items()}
    threshold = max(normed[name][~mask].max() for name, mask in masks.items() if not mask.all())
    assert [each.threshold for each in found.thresholds] == pytest.approx([threshold] * 4)
    assert [each.name for each in found.thresholds] == list(LAYERS)
    for name, mask in masks.items():  # NNCF's definition of the mask, from the threshold that is reported
        assert np.array_equal(normed[name] > threshold * (1 + 1e-12), mask)
    assert found.target_sparsity_level == 0.6
    assert "0.600" in found.to_str()


@pytest.mark.parametrize("level", [-0.1, 1, 1.0, True, "x"])
def test_levels_out_of_range(path, level):
    controller = MagnitudeSparsityController(path)
    with pytest.raises(UsageError):
        controller.set_sparsity_level(level)
    assert controller.current_sparsity_level == 0


def test_stages_and_schedule(path):
    controller = MagnitudeSparsityController(
        path, {"sparsity_target": 0.5, "sparsity_target_epoch": 2, "power": 1.0, "sparsity_freeze_epoch": 3}
    )
    assert controller.compression_stage() is CompressionStage.UNCOMPRESSED
    levels, stages = [], []
    for _ in range(4):
        controller.scheduler.epoch_step()
        levels.append(round(controller.current_sparsity_level, 2))
        stages.append(controller.compression_stage().value)
    assert levels == [0.0, 0.25, 0.5, 0.5]
    assert stages == [0, 1, 2, 2]
    assert controller.frozen
    assert isinstance(controller, BaseSparsityAlgoController)
    controller.disable_scheduler()
    controller.scheduler.epoch_step()
    assert round(controller.current_sparsity_level, 2) == 0.5
    assert controller.compression_stage() is CompressionStage.FULLY_COMPRESSED


def test_init(path):
    config = {"algorithm": "magnitude_sparsity", "sparsity_init": 0.2, "params": {"sparsity_target": 0.4}}
    controller = MagnitudeSparsityController(path, {"compression": config})
    assert controller.current_sparsity_level == pytest.approx(0.2, abs=1e-3)
    assert controller.scheduler.initial_level == 0.2


def test_loss_needs_data_and_a_solver_makes_up_for_zeros(path):
    with pytest.raises(UsageError, match="no data"):
        MagnitudeSparsityController(path).loss()
    data = feeds(60, seed=1)
    losses = {}
    for solver in ("mask", "sparsegpt"):
        controller = MagnitudeSparsityController(path, {"sparsity_target": 0.6}, data, solver=solver)
        assert controller.loss() == 0
        controller.set_sparsity_level(0.6)
        losses[solver] = controller.loss()
        for name, w in weights(controller.model).items():
            assert not w[~controller.get_mask(name)].any()
    assert 0 < losses["sparsegpt"] < losses["mask"]
    # the definition, by hand, on the samples that are measured on
    measured = controller.opened.inputs.data
    a, b = (
        np.concatenate([run(open_session(m), feed)["logits"] for feed in measured.batches(1)])
        for m in (ir.load(path), controller.model)
    )
    assert losses["sparsegpt"] == pytest.approx(float(((a - b) ** 2).sum() / (a**2).sum()), rel=1e-4)


def test_a_solver_needs_data(path):
    with pytest.raises(UsageError, match="needs data"):
        MagnitudeSparsityController(path, solver="sparsegpt")
    with pytest.raises(UsageError, match="no solver"):
        MagnitudeSparsityController(path, solver="spargegpt")


def test_const_keeps_what_is_zero(path, tmp_path):
    first = MagnitudeSparsityController(path)
    first.set_sparsity_level(0.7)
    sparse = first.export_model(tmp_path / "sparse.onnx")
    const = ConstSparsityController(sparse)
    assert const.current_sparsity_level == pytest.approx(first.current_sparsity_level)
    assert const.compression_stage() is CompressionStage.FULLY_COMPRESSED
    for name in LAYERS:
        assert np.array_equal(const.get_mask(name), first.get_mask(name))
    assert const.statistics().model_statistics.sparsity_level_for_layers == pytest.approx(
        first.statistics().model_statistics.sparsity_level_for_layers
    )
    const.scheduler.epoch_step()
    with pytest.raises(UsageError, match="cannot be set"):
        const.set_sparsity_level(0.9)
    dense = ConstSparsityController(path)
    assert dense.current_sparsity_level == 0
    assert dense.compression_stage() is CompressionStage.UNCOMPRESSED


def test_scopes(path):
    controller = MagnitudeSparsityController(path, {"ignored_scopes": ["head", "{re}conv0"]})
    controller.set_sparsity_level(0.5)
    assert [s.name for s in controller.statistics().model_statistics.sparsified_layers_summary] == [
        "conv1",
        "conv2",
    ]
    with pytest.raises(UsageError, match="ignore"):
        controller.get_mask("head")
    with pytest.raises(UsageError, match="ignored_scopes"):
        MagnitudeSparsityController(path, {"ignored_scopes": ["hea"]})
    with pytest.raises(UsageError, match="no layer can become sparse"):
        MagnitudeSparsityController(path, {"ignored_scopes": ["{re}."]})


def test_half_precision(tmp_path):
    source = save(convnet((8, 8), dtype=ir.DataType.FLOAT16), tmp_path / "half.onnx")
    controller = MagnitudeSparsityController(source)
    controller.set_sparsity_level(0.5)
    found = controller.model.graph.initializers["conv1.weight"].const_value
    assert found.dtype == ir.DataType.FLOAT16
    assert np.array_equal(found.numpy() != 0, controller.get_mask("conv1"))
