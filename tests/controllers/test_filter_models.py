"""What filter pruning's controller gives back: statistics, masked and cut models, what it left whole."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from reference import chain_macs, pruned_of
from small_nets import Net, convnet, feeds, save

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.controllers import FilterPruningController
from onnxprune.errors import UnsupportedError, UsageError
from onnxprune.evaluate.soundness import Soundness
from onnxprune.job import Opened

WIDTHS = (16, 40, 24)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    return save(convnet(WIDTHS, seed=3), tmp_path_factory.mktemp("chain") / "net.onnx")


CHAIN = {"conv0": ["conv0"], "conv1": ["conv1"], "conv2": ["conv2"]}


def made(path, **options):
    options = {"prune_first_conv": True, **options}
    return FilterPruningController(path, options)


def outputs(model, seed=0):
    session = open_session(model, threads=1)
    return run(session, {"image": feeds(5, seed=seed)["image"]})["logits"]


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
