"""Filter pruning: masks to the last bit, levels, errors, and models."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from reference import chain_macs, globally, pruned_of, ranking, uniform
from small_nets import Net, convnet, feeds, grouped, residual, save

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.controllers import CompressionStage, FilterPruningController
from onnxprune.errors import TargetError, UsageError

WIDTHS = (16, 40, 24)
KINDS = ("L1", "L2", "geometric_median")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    return save(convnet(WIDTHS, seed=3), tmp_path_factory.mktemp("chain") / "net.onnx")


def weights(path):
    return {name: value.const_value.numpy() for name, value in ir.load(path).graph.initializers.items()}


def groups_of(path, names):
    found = weights(path)
    return {name: [found[f"{layer}.weight"] for layer in layers] for name, layers in names.items()}


CHAIN = {"conv0": ["conv0"], "conv1": ["conv1"], "conv2": ["conv2"]}
RESIDUAL = {
    "stem": ["stem", "block0.b", "block1.b"],
    "block0.a": ["block0.a"],
    "block1.a": ["block1.a"],
}


def made(path, **options):
    options = {"prune_first_conv": True, **options}
    return FilterPruningController(path, options)


def outputs(model, seed=0):
    session = open_session(model, threads=1)
    return run(session, {"image": feeds(5, seed=seed)["image"]})["logits"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", ["0.2", "0.4", "0.5", "0.7"])
@pytest.mark.parametrize("net", ["chain", "residual"])
def test_uniform_masks(tmp_path, kind, level, net):
    path = save(convnet(WIDTHS, seed=1) if net == "chain" else residual(), tmp_path / "net.onnx")
    names = CHAIN if net == "chain" else RESIDUAL
    controller = made(path, filter_importance=kind)
    controller.set_pruning_level(float(level))
    expected = uniform(groups_of(path, names), kind, level)
    for name, layers in names.items():
        for layer in layers:
            assert np.array_equal(controller.get_mask(layer), expected[name]), layer
            assert np.array_equal(controller.get_mask(f"{layer}.weight"), expected[name])
    assert controller.get_mask("head").all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [0.1, 0.37, 0.8])
@pytest.mark.parametrize("net", ["chain", "residual"])
def test_global_masks(tmp_path, kind, level, net):
    path = save(convnet(WIDTHS, seed=2) if net == "chain" else residual(), tmp_path / "net.onnx")
    names = CHAIN if net == "chain" else RESIDUAL
    controller = made(path, filter_importance=kind, all_weights=True)
    controller.set_pruning_level(level)
    groups = groups_of(path, names)
    total = sum(len(members[0]) for members in groups.values())
    expected = globally(groups, kind, int(level * total))
    for name in names:
        assert np.array_equal(controller.get_mask(name), expected[name]), name
    assert controller.pruning_level == pytest.approx(int(level * total) / total)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_flops_in_global_mode_go_one_filter_at_a_time(chain, level):
    controller = made(chain, pruning_flops_target=level, all_weights=True)
    controller.set_pruning_level(level)
    full, left = chain_macs(WIDTHS), dict(zip(CHAIN, WIDTHS, strict=True))
    masks = {name: np.ones(width, bool) for name, width in left.items()}
    for name, index in ranking(groups_of(chain, CHAIN), "L2"):
        masks[name][index] = False
        left[name] -= 1
        if 2 * chain_macs(left.values()) < 2 * full * (1 - level):
            break
    for name, mask in masks.items():
        assert np.array_equal(controller.get_mask(name), mask)
    assert controller.compression_rate == pytest.approx(1 - chain_macs(left.values()) / full)
    assert controller.compression_rate > level


@pytest.mark.parametrize("level", [0.15, 0.5, 0.7])
def test_flops_in_uniform_mode_are_bisected(chain, level):
    controller = made(chain, pruning_flops_target=level)
    controller.set_pruning_level(level)
    full, low, high = chain_macs(WIDTHS), 0.0, 1.0

    def left(at):
        return [width - pruned_of(width, str(at)) for width in WIDTHS]

    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (low, middle) if chain_macs(left(middle)) < full * (1 - level) else (middle, high)
    kept = [int(controller.get_mask(name).sum()) for name in CHAIN]
    assert kept == left(high)
    assert controller.prune_flops
    assert controller.compression_rate == pytest.approx(1 - chain_macs(kept) / full)


def test_a_flops_target_that_cannot_be_reached_says_what_can(chain):
    controller = made(chain, pruning_flops_target=0.5)
    controller.set_pruning_level(0.3)
    before = controller.compression_rate
    most = 1 - chain_macs([8, 8, 8]) / chain_macs(WIDTHS)
    with pytest.raises(TargetError, match=f"at most 0.{int(1000 * most)} of them"):
        controller.set_pruning_level(0.99)
    assert controller.compression_rate == before
    assert controller.maximal_compression_rate == pytest.approx(most)
    controller.set_pruning_level(int(1000 * most) / 1000)


def test_no_group_is_emptied(chain):
    with pytest.raises(TargetError, match=r"at most 0\.\d+ of the filters"):
        made(chain, all_weights=True).set_pruning_level(0.99)
    controller = made(chain)
    controller.set_pruning_level(0.99)
    assert [int(controller.get_mask(name).sum()) for name in CHAIN] == [8, 8, 8]


def test_the_reachable_level_is_reached(chain):
    controller = made(chain, all_weights=True)
    most = sum(int(0.9 * width) for width in WIDTHS) / sum(WIDTHS)
    controller.set_pruning_level(most)
    assert controller.pruning_level == pytest.approx(most)
    assert all(controller.get_mask(name).any() for name in CHAIN)


def test_levels_per_group(chain):
    controller = made(chain)
    assert controller.current_groupwise_pruning_level == {0: 0.0, 1: 0.0, 2: 0.0}
    controller.set_pruning_level({0: 0.5, 1: 0.0, 2: 0.67})
    assert controller.current_groupwise_pruning_level == {0: 0.5, 1: 0.0, 2: 16 / 24}
    assert controller.pruning_level == pytest.approx((8 + 16) / 80)
    assert controller.compression_rate == controller.pruning_level
    assert controller.maximal_compression_rate == 1.0
    for levels, word in (({0: 0.5, 1: 0.0}, "lacks group 2"), ({0: 0, 1: 0, 2: 0, 7: 0.1}, "names group g7")):
        with pytest.raises(UsageError, match=word) as caught:
            controller.set_pruning_level(levels)
        assert "0, 1, 2" in caught.value.hint
    assert controller.current_groupwise_pruning_level[0] == 0.5


@pytest.mark.parametrize("level", [-0.1, 1, 1.5, True, "half", None])
def test_levels_out_of_range(chain, level):
    with pytest.raises(UsageError, match="not in"):
        made(chain).set_pruning_level(level)


def test_levels_go_down_again(chain):
    controller = made(chain)
    controller.set_pruning_level(0.6)
    controller.set_pruning_level(0.0)
    assert controller.pruning_level == 0
    assert controller.compression_stage() is CompressionStage.UNCOMPRESSED
    assert all(controller.get_mask(name).all() for name in CHAIN)


def test_defaults(chain):
    controller = FilterPruningController(chain)
    assert (controller.config.init, controller.config.target) == (0.0, 0.5)
    assert controller.scheduler.num_pruning_epochs == 100
    assert controller.scheduler.num_warmup_epochs == 0
    assert type(controller.scheduler).__name__ == "ExponentialPruningScheduler"
    assert not controller.prune_flops
    assert controller.config.samples == 2000
    assert sorted(controller.groups) == [1, 2]
    assert "prune_first_conv" in controller.not_pruned["conv0"]
    assert "output" in controller.not_pruned["head"]


def test_the_scheduler_drives_the_controller(chain):
    controller = made(chain, pruning_init=0.2, pruning_target=0.6, pruning_steps=3, num_init_steps=1)
    assert controller.scheduler.current_pruning_level == 0.2
    seen = []
    for _ in range(6):
        controller.scheduler.epoch_step()
        seen.append((controller.scheduler.current_pruning_level, controller.compression_stage().name))
    middle = 1 - 0.8 * (0.4 / 0.8) ** 0.5
    assert [round(level, 9) for level, _ in seen] == [
        *(0.2, 0.2),
        round(middle, 9),
        *(0.6, 0.6, 0.6),
    ]
    assert [stage for _, stage in seen] == ["PARTIALLY_COMPRESSED"] * 3 + ["FULLY_COMPRESSED"] * 3
    assert controller.frozen
    reached = controller.pruning_level
    controller.scheduler.epoch_step(0)
    assert controller.pruning_level == reached


def test_disable_scheduler(chain):
    controller = made(chain, pruning_target=0.5)
    controller.set_pruning_level(0.3)
    controller.disable_scheduler()
    before = controller.current_groupwise_pruning_level
    controller.scheduler.epoch_step()
    assert controller.current_groupwise_pruning_level == before
    assert controller.compression_stage() is CompressionStage.PARTIALLY_COMPRESSED


def test_state(chain):
    first, second = (made(chain, pruning_steps=4) for _ in range(2))
    first.scheduler.epoch_step()
    first.scheduler.epoch_step()
    second.load_state(first.get_state())
    assert second.current_groupwise_pruning_level == first.current_groupwise_pruning_level
    for each in (first, second):
        each.scheduler.epoch_step()
    assert second.scheduler.current_level == first.scheduler.current_level
    with pytest.raises(UsageError):
        second.load_state({"level": 0.1})
    first.set_pruning_level({0: 0.5, 1: 0.0, 2: 0.4})
    second.load_state(json.loads(json.dumps(first.get_state())))
    assert second.current_groupwise_pruning_level == first.current_groupwise_pruning_level
    second.set_pruning_level({"0": 0.5, "g1": 0.0, 2: 0.0})
    assert second.current_groupwise_pruning_level == {0: 0.5, 1: 0.0, 2: 0.0}


def test_scopes(chain):
    controller = made(chain, ignored_scopes=["{re}conv[01]"])
    assert sorted(controller.groups) == [2]
    assert controller.not_pruned["conv1"] == "it is in ignored_scopes"
    assert sorted(made(chain, target_scopes=["conv1"]).groups) == [1]
    with pytest.raises(UsageError, match="ignored_scopes"):
        made(chain, ignored_scopes=["conv"])  # no regular expression: the whole name
    with pytest.raises(UsageError, match="target_scopes"):
        made(chain, target_scopes=["{re}nothing"])


def test_grouped_convolutions_stay_whole(tmp_path):
    controller = made(save(grouped(), tmp_path / "net.onnx"))
    controller.set_pruning_level(0.7)
    assert controller.get_mask("grouped").all()
    assert "grouped convolution" in controller.not_pruned["grouped"]
    assert "grouped convolution" in controller.not_pruned["before"]
    assert controller.get_mask("after").sum() == 8


def test_strided_convolutions_are_an_option(tmp_path):
    net = Net(seed=4)
    x = net.op("Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "first", (16, 3, 3, 3)))
    x = net.op("Relu", net.conv(x, "down", (16, 16, 3, 3), strides=[2, 2]))
    path = save(net.model(net.head(x, 16)), tmp_path / "net.onnx")
    assert not FilterPruningController(path).groups
    assert "no layer may be pruned" in " ".join(FilterPruningController(path).notes)
    assert len(FilterPruningController(path, {"prune_downsample_convs": True}).groups) == 1
    both = {"prune_downsample_convs": True, "prune_first_conv": True}
    assert len(FilterPruningController(path, both).groups) == 2


def test_unknown_layers(chain):
    with pytest.raises(UsageError, match="did you mean 'conv1'"):
        made(chain).get_mask("conv11")
