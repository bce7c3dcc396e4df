"""The accuracy-aware search: steps up while accuracy holds, halves on failure, ends at the least step."""

from __future__ import annotations

import pytest
from small_nets import convnet, feeds, save

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.controllers import (
    AdaptiveCompressionLoop,
    MagnitudeSparsityController,
    create_accuracy_aware_training_loop,
    create_compressed_model,
)
from onnxprune.errors import UsageError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save(convnet((16, 24, 16), seed=11), tmp_path_factory.mktemp("net") / "net.onnx")


PRUNING = {"algorithm": "filter_pruning", "params": {"pruning_target": 0.5, "prune_first_conv": True}}


def outputs(model):
    return run(open_session(model, threads=1), {"image": feeds(4)["image"]})["logits"]


def search(path, accuracy, **params):
    config = {"accuracy_aware_training": {"mode": "adaptive_compression_level", "params": params}}
    controller = MagnitudeSparsityController(path, {"sparsity_target": 0.9})
    loop = create_accuracy_aware_training_loop(config, controller)
    assert isinstance(loop, AdaptiveCompressionLoop)

    def validate(model):
        zeros = [v.const_value.numpy() for n, v in model.graph.initializers.items() if n.endswith(".weight")]
        level = sum(int((z == 0).sum()) for z in zeros) / sum(z.size for z in zeros)
        return accuracy(level)

    return loop, loop.run(validate), controller


def test_the_search_steps_up_and_halves(path):
    loop, level, controller = search(
        path, lambda level: 0.9 if level < 0.34 else 0.5, maximal_absolute_accuracy_degradation=0.1
    )
    assert [round(t.level, 3) for t in loop.trials] == [0.1, 0.2, 0.3, 0.4, 0.35, 0.325, 0.35]
    assert [t.holds for t in loop.trials] == [True, True, True, False, False, True, False]
    assert level == pytest.approx(0.325)
    assert controller.current_sparsity_level == pytest.approx(0.325, abs=1e-3)


def test_the_relative_degradation_is_in_percent(path):
    loop, level, _ = search(
        path,
        lambda level: 0.8 * (1 - 0.1 * level),
        maximal_relative_accuracy_degradation=2.0,
        patience_epochs=3,
    )
    assert level == pytest.approx(0.2)  # 2 % are lost at 0.2
    assert "patience_epochs" in loop.ignored


def test_the_search_goes_on_where_a_schedule_has_frozen_the_controller(path):
    config = {
        "compression": {"algorithm": "magnitude_sparsity", "params": {"sparsity_freeze_epoch": 1}},
        "accuracy_aware_training": {"params": {"maximal_absolute_accuracy_degradation": 0.1}},
    }
    controller, _ = create_compressed_model(path, config)
    assert any("create_accuracy_aware_training_loop" in note for note in controller.notes)
    controller.scheduler.epoch_step(5)
    assert controller.frozen
    level = create_accuracy_aware_training_loop(config, controller).run(lambda model: 1.0)
    assert level == pytest.approx(0.975)
    assert controller.current_sparsity_level == pytest.approx(level, abs=1e-3)


def test_nothing_holds(path):
    _, level, controller = search(
        path, lambda level: 1.0 if level == 0 else 0.0, maximal_absolute_accuracy_degradation=0.1
    )
    assert level == 0
    assert controller.current_sparsity_level == 0


def test_the_search_needs_one_degradation(path):
    controller = MagnitudeSparsityController(path)
    both = {"maximal_relative_accuracy_degradation": 1.0, "maximal_absolute_accuracy_degradation": 1.0}
    for params in ({}, both):
        with pytest.raises(UsageError, match="maximal_relative"):
            AdaptiveCompressionLoop({"params": params}, controller)
