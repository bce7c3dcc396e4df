"""Configs of both tools, as they are: what is read, what is ignored with a reason, what is an error."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
from small_nets import convnet, feeds, save

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.controllers import (
    AdaptiveCompressionLoop,
    CompositeCompressionController,
    CompressionStage,
    ConstSparsityController,
    FilterPruningController,
    MagnitudeSparsityController,
    WeightPruningConfig,
    create_accuracy_aware_training_loop,
    create_compressed_model,
    prepare_compression,
    prepare_pruning,
)
from onnxprune.controllers.inc import read_pruner_configs
from onnxprune.controllers.nncf import patterns_of, read_config
from onnxprune.errors import UnsupportedError, UsageError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save(convnet((16, 24, 16), seed=11), tmp_path_factory.mktemp("net") / "net.onnx")


PRUNING = {"algorithm": "filter_pruning", "params": {"pruning_target": 0.5, "prune_first_conv": True}}


def outputs(model):
    return run(open_session(model, threads=1), {"image": feeds(4)["image"]})["logits"]


# -- NNCF ------------------------------------------------------------------------------------------------


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


# -- accuracy-aware --------------------------------------------------------------------------------------


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


# -- Neural Compressor -----------------------------------------------------------------------------------


def test_defaults_are_neural_compressors():
    (config,) = read_pruner_configs({})
    assert (config.target_sparsity, config.pruning_type, config.pattern) == (0.9, "snip_momentum", "4x1")
    assert (config.start_step, config.end_step, config.pruning_frequency) == (0, 0, 1)
    assert (config.pruning_scope, config.sparsity_decay_type) == ("global", "exp")
    assert (config.min_sparsity_ratio_per_op, config.max_sparsity_ratio_per_op) == (0.0, 0.98)
    assert config.pruning_op_types == ("Conv", "Linear")
    assert config.criterion_reduce_type == "mean"
    assert config == read_pruner_configs(WeightPruningConfig())[0]
    assert config["pattern"] == config.pattern


def test_local_configs_inherit():
    local = [{"op_names": ["conv1"], "pattern": "2:4", "target_sparsity": 0.5}, {"pruning_type": "magnitude"}]
    whole = WeightPruningConfig(local, target_sparsity=0.7, pruning_scope="local")
    like = SimpleNamespace(
        weight_compression={"target_sparsity": 0.7, "pruning_scope": "local"}, pruning_configs=local
    )
    for given in (whole, like, {"pruning_configs": local, "target_sparsity": 0.7, "pruning_scope": "local"}):
        one, two = read_pruner_configs(given)
        assert (one.op_names, one.pattern, one.target_sparsity, one.pruning_scope) == (
            *(("conv1",), "2:4", 0.5, "local"),
        )
        assert (two.pruning_type, two.criterion_type, two.target_sparsity) == ("magnitude", "magnitude", 0.7)


def test_the_config_object():
    config = WeightPruningConfig([{}], 0.7, "snip", "2:4", op_names=["a"], num_epochs=3)
    (read,) = read_pruner_configs(config)
    assert (read.target_sparsity, read.pruning_type, read.pattern, read.op_names) == (
        0.7,
        "snip",
        "2:4",
        ("a",),
    )
    assert set(read.ignored) == {"num_epochs"}
    assert "trained" in read.ignored["num_epochs"]
    with pytest.raises(UsageError, match="did you mean 'target_sparsity'"):
        WeightPruningConfig(target_sparsit=0.5)
    with pytest.raises(UsageError, match="by name"):
        WeightPruningConfig(*range(30))


def test_options_of_training_inside_an_algorithm_are_ignored(path):
    controller = FilterPruningController(path, {"pruning_target": 0.3, "lr": 0.1, "num_epochs": 5})
    assert set(controller.ignored) == {"lr", "num_epochs"}


def test_what_means_nothing_here_is_said():
    (config,) = read_pruner_configs({"backend": "itex", "pruning_type": "snip_momentum_progressive"})
    assert config.pruning_type == "snip_momentum"
    assert set(config.ignored) == {"backend", "pruning_type: progressive"}


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"target_sparsit": 0.5}, "did you mean 'target_sparsity'"),
        ({"target_sparsity": 1.0}, "target_sparsity is 1.0"),
        ({"sparsity_decay_type": "cubic"}, "sparsity_decay_type"),
        ({"pruning_op_types": ["conv"]}, "did you mean 'Conv'"),
        ({"start_step": 5, "end_step": 2}, "before start_step"),
        ({"min_sparsity_ratio_per_op": 0.9, "max_sparsity_ratio_per_op": 0.5}, "above"),
        ({"pruning_configs": {}, "pruning_scope": "row"}, "pruning_scope"),
        ({"pruning_configs": "x"}, "pruning_configs"),
        (7, "has no option"),
    ],
)
def test_bad_neural_compressor_configs(config, what):
    with pytest.raises(UsageError) as caught:
        read_pruner_configs(config)
    assert what in caught.value.what


def test_prepare_compression(path, tmp_path):
    config = WeightPruningConfig(
        [
            {"op_names": ["conv1"], "pattern": "2:4", "target_sparsity": 0.5},
            {"op_names": ["conv2"], "pattern": "4x1", "end_step": 2},
        ],
        target_sparsity=0.6,
        pruning_type="magnitude",
    )
    manager = prepare_compression(path, config, feeds(50))
    manager.callbacks.on_train_begin()
    for step in range(4):
        manager.callbacks.on_step_begin(step)
        manager.callbacks.on_before_optimizer_step()
        manager.callbacks.on_after_optimizer_step()
        manager.callbacks.on_step_end()
    manager.callbacks.on_train_end()
    ratios = manager.sparsity()
    assert ratios["conv1"] == 0.5
    assert ratios["conv2"] == pytest.approx(0.6, abs=0.002)
    assert "op_names" in manager.skipped["conv0"]
    saved = ir.load(manager.save(tmp_path / "out.onnx"))
    for name, mask in manager.masks.items():
        weight = saved.graph.initializers[f"{name}.weight"].const_value.numpy()
        assert np.array_equal(weight != 0, mask)
    ratios = manager.sparsity_ratios()
    everything = {n: v.const_value.numpy() for n, v in saved.graph.initializers.items()}
    dense = sum(array.size for array in everything.values() if array.ndim > 1)
    zeros = sum(int((~mask).sum()) for mask in manager.masks.values())
    assert ratios["elementwise_over_matmul_gemm_conv"] == zeros / dense
    assert ratios["elementwise_over_all"] == zeros / sum(array.size for array in everything.values())
    # half of every four is never a block that is zero as a whole
    assert ratios["blockwise_over_matmul_gemm_conv"] == pytest.approx((~manager.masks["conv2"]).sum() / dense)
    original = ir.load(path).graph.initializers["conv0.weight"].const_value.numpy()
    assert np.array_equal(saved.graph.initializers["conv0.weight"].const_value.numpy(), original)


def test_run_goes_to_the_end(path):
    config = {"pruning_type": "magnitude", "target_sparsity": 0.8, "end_step": 4, "pattern": "1x1"}
    manager = prepare_pruning(path, config).run()
    assert manager.pruners[0].current_sparsity_ratio == pytest.approx(0.8, abs=1e-3)
    assert prepare_compression(path, [config]).pruners[0].global_step == 0
    assert not manager.step()


def test_bad_calls(path):
    twice = WeightPruningConfig([{"op_names": ["conv1"]}, {"op_names": ["conv"]}], pruning_type="magnitude")
    with pytest.raises(UsageError, match="several local configs"):
        prepare_compression(path, twice)
    with pytest.raises(UsageError, match="matches no layer"):
        prepare_compression(path, {"op_names": ["nothing"], "pruning_type": "magnitude"})
    with pytest.raises(UsageError, match="no regular expression"):
        prepare_compression(path, {"op_names": ["("], "pruning_type": "magnitude"})
    with pytest.raises(UsageError, match="prunes no layer"):
        prepare_compression(path, {"op_names": ["head"], "pruning_type": "magnitude"})
    with pytest.raises(UsageError, match="takes one"):
        prepare_compression(path, [{}, {}])
    only = prepare_compression(
        path, {"pruning_op_types": ["Conv"], "excluded_op_names": ["conv2"], "pruning_type": "magnitude"}
    )
    assert set(only.pruners[0].masks) == {"conv0", "conv1"}
    assert only.skipped["head"] == "its operator is none of Conv"
