"""NNCF configs are taken as they are; what means nothing here is said, what is wrong is an error."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from small_nets import convnet, feeds, save

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.controllers import (
    CompositeCompressionController,
    CompressionStage,
    ConstSparsityController,
    FilterPruningController,
    MagnitudeSparsityController,
    create_compressed_model,
)
from onnxprune.controllers.nncf import patterns_of, read_config
from onnxprune.errors import UnsupportedError, UsageError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save(convnet((16, 24, 16), seed=11), tmp_path_factory.mktemp("net") / "net.onnx")


PRUNING = {"algorithm": "filter_pruning", "params": {"pruning_target": 0.5, "prune_first_conv": True}}


def outputs(model):
    return run(open_session(model, threads=1), {"image": feeds(4)["image"]})["logits"]


def test_an_nncf_config_as_it_is(path, tmp_path):
    config = {
        "input_info": {"sample_size": [1, 3, 8, 8]},
        "target_device": "CPU",
        "epochs": 10,
        "optimizer": {"base_lr": 0.1},
        "compression": {
            **PRUNING,
            "pruning_init": 0.1,
            "initializer": {"batchnorm_adaptation": {"num_bn_adaptation_samples": 128}},
            "compression_lr_multiplier": 3,
            "ignored_scopes": ["{re}conv2"],
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    for given in (config, tmp_path / "config.json", str(tmp_path / "config.json")):
        controller, model = create_compressed_model(path, given)
        assert isinstance(controller, FilterPruningController)
        assert (controller.config.init, controller.config.target) == (0.1, 0.5)
        assert controller.config.samples == 128
        assert sorted(controller.groups) == [0, 1]
        assert set(controller.ignored) == {
            *("input_info", "target_device", "epochs", "optimizer", "compression_lr_multiplier")
        }
        assert "trained" in controller.ignored["compression_lr_multiplier"]
        assert any("optimizer" in note for note in controller.notes)
        controller.set_pruning_level(0.5)
        assert np.array_equal(outputs(model.ir), outputs(controller.model))
        assert model.controller is controller


def test_params_alone_will_do(path):
    for config in ({"pruning_target": 0.3}, {"params": {"pruning_target": 0.3}}):
        assert FilterPruningController(path, config).config.target == 0.3


@pytest.mark.parametrize(
    ("config", "what", "hint"),
    [
        (
            {"compression": {"algorithm": "filter_prunning"}},
            "did you mean 'filter_pruning'",
            "const_sparsity",
        ),
        ({"compression": {"algorithm": "quantization"}}, "quantization", "quantise"),
        (
            {"compression": {"algorithm": "filter_pruning", "params": {"pruning_targt": 0.4}}},
            "pruning_targt",
            "K",
        ),
        ({"compresion": PRUNING}, "did you mean 'compression'", "accuracy"),
        ({}, "no compression section", "algorithm"),
        ({"compression": [PRUNING, PRUNING]}, "twice", "one section"),
        ({"compression": {**PRUNING, "pruning_target": 0.4}}, "there twice", "params"),
        (
            {"compression": {"algorithm": "filter_pruning", "params": {"schedule": "linear"}}},
            "schedule 'linear'",
            "exponential_with_bias",
        ),
        (
            {
                "compression": {
                    "algorithm": "filter_pruning",
                    "params": {"pruning_target": 0.4, "pruning_flops_target": 0.4},
                }
            },
            "contradict",
            "FLOPs",
        ),
        (
            {"compression": {"algorithm": "magnitude_sparsity", "params": {"schedule": "adaptive"}}},
            "adaptive",
            "multistep",
        ),
        (
            {"compression": {"algorithm": "magnitude_sparsity", "params": {"sparsity_target": 1.0}}},
            "sparsity_target is 1.0",
            "[0, 1)",
        ),
        (
            {"compression": {"algorithm": "magnitude_sparsity", "params": {"weight_importance": "norm"}}},
            "weight_importance",
            "normed_abs",
        ),
        (
            {"compression": {"algorithm": "magnitude_sparsity", "sparsity_init": 0.6}},
            "above the target",
            "Swap",
        ),
        (
            {"compression": {"algorithm": "filter_pruning", "params": {"all_weights": 1}}},
            "all_weights",
            "true",
        ),
        (
            {"compression": {"algorithm": "filter_pruning", "params": {"pruning_steps": 0}}},
            "pruning_steps",
            "from 1 on",
        ),
    ],
)
def test_bad_nncf_configs(path, config, what, hint):
    with pytest.raises(UsageError) as caught:
        create_compressed_model(path, config)
    assert what in caught.value.what
    assert hint in caught.value.hint


def test_files_that_are_no_configs(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    for given in (tmp_path / "bad.json", tmp_path / "list.json", tmp_path / "none.json", 5):
        with pytest.raises(UsageError):
            read_config(given)


def test_scopes_become_patterns():
    assert patterns_of(("a/b[c]", "{re}^x.*")) == (r"re:^a/b\[c\]$", "re:^x.*")


def test_a_controller_refuses_the_config_of_another(path):
    with pytest.raises(UsageError, match="filter_pruning"):
        MagnitudeSparsityController(path, {"compression": PRUNING})


def test_options_of_other_schedules_are_ignored_and_said(path):
    controller = MagnitudeSparsityController(path, {"schedule": "exponential", "power": 3, "patience": 2})
    assert set(controller.ignored) == {"power", "patience"}
    multistep = MagnitudeSparsityController(
        path, {"schedule": "multistep", "multistep_steps": [1], "multistep_sparsity_levels": [0.2, 0.4]}
    )
    assert multistep.current_sparsity_level == pytest.approx(0.2, abs=1e-3)


def test_several_algorithms(path, tmp_path):
    first = MagnitudeSparsityController(path)
    first.set_sparsity_level(0.4)
    sparse = first.export_model(tmp_path / "sparse.onnx")
    config = {
        "compression": [
            {"algorithm": "const_sparsity"},
            PRUNING,
            {
                "algorithm": "magnitude_sparsity",
                "params": {
                    "sparsity_target": 0.7,
                    "schedule": "multistep",
                    "multistep_steps": [1],
                    "multistep_sparsity_levels": [0.0, 0.7],
                },
            },
        ]
    }
    config["compression"][1]["params"]["schedule"] = "baseline"
    data = feeds(60, seed=2)
    controller, model = create_compressed_model(sparse, config, data)
    assert isinstance(controller, CompositeCompressionController)
    pruning, const, magnitude = controller.child_controllers
    assert isinstance(pruning, FilterPruningController)
    assert isinstance(const, ConstSparsityController)
    assert any("before the other" in note for note in controller.notes)
    assert controller.compression_stage() is CompressionStage.PARTIALLY_COMPRESSED
    controller.scheduler.epoch_step()
    controller.scheduler.epoch_step()
    assert controller.compression_stage() is CompressionStage.FULLY_COMPRESSED
    made = model.ir
    statistics = controller.statistics()
    assert set(statistics) == {"filter_pruning", "const_sparsity", "magnitude_sparsity"}
    kept = pruning.get_mask("conv1")
    weight = made.graph.initializers["conv1.weight"].const_value.numpy()
    assert weight.shape[0] == kept.sum() < 24
    # zeros of the original are zeros of what is left, whatever the repair did to these weights
    original = ir.load(sparse).graph.initializers["conv1.weight"].const_value.numpy()
    left = original[kept][:, pruning.get_mask("conv0")]
    assert not weight[left == 0].any()
    assert (left == 0).any()
    handled = [
        made.graph.initializers[f"{n}.weight"].const_value.numpy()
        for n in ("conv0", "conv1", "conv2", "head")
    ]
    zeros = sum(int((w == 0).sum()) for w in handled)
    assert zeros >= int(0.7 * sum(w.size for w in handled))
    assert magnitude.current_sparsity_level == pytest.approx(0.7, abs=1e-3)
    assert 0 < controller.loss() < 1
    assert np.array_equal(outputs(controller.strip()), outputs(made))
    with pytest.raises(UnsupportedError):
        controller.strip(strip_format="in_place")
    out = controller.export_model(tmp_path / "out.onnx")
    assert np.allclose(outputs(ir.load(out)), outputs(made), atol=1e-5)
    assert controller.scheduler.current_epoch == 1
    state = json.loads(json.dumps(controller.get_state()))
    other, _ = create_compressed_model(sparse, config, data)
    other.load_state(state)
    assert other.scheduler.current_epoch == 1
    _ = other.model  # what earlier algorithms left is known to later ones then
    assert [each.level for each in other.child_controllers] == [
        pytest.approx(each.level, abs=0.02) for each in controller.child_controllers
    ]
    with pytest.raises(UsageError, match="no state"):
        other.load_state({})
    controller.disable_scheduler()
    controller.scheduler.epoch_step()
    assert controller.scheduler.current_epoch == 2
    assert magnitude.requested == 0.7
