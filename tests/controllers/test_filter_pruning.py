"""Filter pruning: masks to the last bit, levels, errors, and models."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from reference import globally, pruned_of, ranking, uniform
from small_nets import Net, convnet, feeds, grouped, residual, save

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.controllers import CompressionStage, FilterPruningController
from onnxprune.errors import TargetError, UnsupportedError, UsageError
from onnxprune.evaluate.soundness import Soundness
from onnxprune.job import Opened

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


def chain_macs(widths):
    """Of convnet: 3x3 convolutions of 8x8 images one after the other, and a linear layer."""
    three, total = 3, 0
    for width in widths:
        total += three * width * 9 * 64
        three = width
    return total + three * 4


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


def test_statistics(chain):
    controller = made(chain, pruning_target=0.5)
    controller.set_pruning_level(0.5)
    found = controller.statistics()
    model = found.model_statistics
    kept = [width - pruned_of(width, "0.5") for width in WIDTHS]
    assert (model.full_flops, model.current_flops) == (2 * chain_macs(WIDTHS), 2 * chain_macs(kept))
    assert model.full_filters == sum(WIDTHS) + 4
    assert model.current_filters == sum(kept) + 4
    params = [3, *WIDTHS], [3, *kept]
    full, now = (9 * sum(a * b for a, b in zip(w, w[1:], strict=False)) + w[-1] * 4 for w in params)
    assert (model.full_params, model.current_params) == (full, now)
    assert [s.name for s in model.pruned_layers_summary] == list(CHAIN)
    assert model.pruned_layers_summary[1].weight_shape == [40, 16, 3, 3]
    assert model.pruned_layers_summary[1].mask_shape == [40]
    assert model.pruned_layers_summary[1].filter_pruning_level == pytest.approx(1 - kept[1] / 40)
    assert found.target_pruning_level == 0.5
    assert found.current_pruning_level == controller.pruning_level == pytest.approx(1 - sum(kept) / 80)
    border = controller.theoretical_borderline
    assert (border.num_pruned_layers, border.num_prunable_layers) == (3, 4)
    assert border.min_possible_flops == 2 * chain_macs([8, 8, 8])


def test_the_model_is_masked_and_strip_cuts(chain):
    controller = made(chain)
    controller.set_pruning_level(0.5)
    masked, cut = controller.model, controller.strip()
    assert list(masked.graph.initializers["conv1.weight"].shape) == [40, 16, 3, 3]
    kept = [int(controller.get_mask(name).sum()) for name in CHAIN]
    assert list(cut.graph.initializers["conv1.weight"].shape) == [kept[1], kept[0], 3, 3]
    assert np.allclose(outputs(masked), outputs(cut), atol=1e-5)
    assert list(controller.model.graph.initializers["conv1.weight"].shape)[0] == 40  # strip copies
    controller.strip_model(None, do_copy=False)
    assert list(controller.model.graph.initializers["conv1.weight"].shape)[0] == kept[1]
    controller.set_pruning_level(0.0)
    assert np.array_equal(outputs(controller.model), outputs(ir.load(chain)))


def test_prepare_for_export_bakes_masks_in(tmp_path):
    path = save(convnet(WIDTHS, norm=True, seed=5), tmp_path / "net.onnx")
    controller = made(path)
    controller.set_pruning_level(0.5)
    before = outputs(controller.model)
    baked = controller.prepare_for_export()
    mask = controller.get_mask("conv1")
    values = {name: value.const_value.numpy() for name, value in baked.graph.initializers.items()}
    assert np.array_equal(np.abs(values["conv1.weight"]).sum((1, 2, 3)) > 0, mask)
    for name in ("conv1.bias", "bn1.weight", "bn1.bias"):
        assert not values[name][~mask].any()
        assert values[name][mask].any()
    assert np.array_equal(outputs(baked), before)
    whole = made(path, prune_batch_norms=False)
    whole.set_pruning_level(0.5)
    assert whole.prepare_for_export().graph.initializers["bn1.weight"].const_value.numpy()[~mask].any()


def test_strip_formats(chain):
    controller = made(chain)
    controller.set_pruning_level(0.5)
    assert list(controller.strip(strip_format="in_place").graph.initializers["conv1.weight"].shape)[0] == 40
    with pytest.raises(UnsupportedError, match="quantise"):
        controller.strip(strip_format="dq")
    with pytest.raises(UsageError, match="strip format"):
        controller.strip(strip_format="nativ")


def test_the_original_is_never_modified(chain):
    before = chain.read_bytes()
    controller = made(chain)
    controller.set_pruning_level(0.6)
    controller.strip_model()
    with pytest.raises(UsageError):
        controller.export_model(chain, force=True)
    assert chain.read_bytes() == before


def test_export(chain, tmp_path):
    controller = made(chain)
    controller.set_pruning_level(0.5)
    path = controller.export_model(tmp_path / "out.onnx")
    assert np.allclose(outputs(ir.load(path)), outputs(controller.model), atol=1e-5)
    with pytest.raises(UsageError):
        controller.export_model(path)


def test_learned_ranking_needs_data(chain):
    with pytest.raises(UsageError, match="learned_ranking"):
        made(chain, interlayer_ranking_type="learned_ranking")
    controller = FilterPruningController(
        chain,
        {
            "interlayer_ranking_type": "learned_ranking",
            "pruning_target": 0.4,
            "prune_first_conv": True,
            "legr_params": {"generations": 6, "train_steps": 200},
        },
        feeds(40),
    )
    controller.set_pruning_level(0.4)
    assert controller.pruning_level == pytest.approx(32 / 80)
    assert "train_steps" in controller.ignored


def test_ties_are_broken_by_index(tmp_path):
    """Equal filters: exactly as many go as the rule says, the first ones."""
    model = convnet((16, 24), seed=0)
    value = model.graph.initializers["conv1.weight"]
    value.const_value = ir.tensor(np.ones((24, 16, 3, 3), np.float32), name=value.name)
    path = save(model, tmp_path / "net.onnx")
    controller = made(path)
    controller.set_pruning_level(0.4)
    assert np.flatnonzero(~controller.get_mask("conv1")).tolist() == list(range(8))


def test_norms_and_softmax_over_filters_stop_pruning(tmp_path):
    net = Net(seed=1)
    x = net.linear(net.data("x", ("n", 16)), "first", 16, 32)
    x = net.op("LayerNormalization", x, net.normal((32,), "scale"), net.normal((32,), "shift"), name="norm")
    x = net.op("Softmax", net.linear(x, "second", 32, 24), name="softmax")
    x = net.op("Relu", net.linear(x, "third", 24, 40), name="relu")
    path = save(net.model(net.linear(x, "last", 40, 4)), tmp_path / "net.onnx")
    controller = FilterPruningController(path)
    controller.set_pruning_level(0.5)
    assert "normalises over this axis" in controller.not_pruned["first"]
    assert "softmax" in controller.not_pruned["second"]
    assert controller.get_mask("first").all()
    assert controller.get_mask("second").all()
    assert controller.get_mask("third").sum() == 24


def test_groups_that_are_not_sound_stay_whole_and_it_is_said(chain, monkeypatch):
    class Doubting:
        """Says that the first group may not go."""

        def prove(self, keep):
            accepted = {name: flags for name, flags in keep.items() if name != "g0"}
            return accepted, Soundness(True, 1.0, 1.0, ("g0",), why={"g0": "it differs"})

    controller = made(chain)
    controller.set_pruning_level(0.5)
    assert not controller.get_mask("conv0").all()
    monkeypatch.setattr(Opened, "prover", lambda self, job: Doubting())
    cut = controller.strip()
    assert list(cut.graph.initializers["conv0.weight"].shape)[0] == 16
    assert controller.get_mask("conv0").all()
    assert not controller.get_mask("conv1").all()
    assert "g0 stays whole because masked != removed: it differs" in controller.notes
