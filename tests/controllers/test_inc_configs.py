"""Neural Compressor configs are taken as they are, and its callbacks drive the pruners."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
from small_nets import convnet, feeds, save

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.controllers import (
    FilterPruningController,
    WeightPruningConfig,
    prepare_compression,
    prepare_pruning,
)
from onnxprune.controllers.inc import read_pruner_configs
from onnxprune.errors import UsageError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save(convnet((16, 24, 16), seed=11), tmp_path_factory.mktemp("net") / "net.onnx")


PRUNING = {"algorithm": "filter_pruning", "params": {"pruning_target": 0.5, "prune_first_conv": True}}


def outputs(model):
    return run(open_session(model, threads=1), {"image": feeds(4)["image"]})["logits"]


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
