"""Controllers, commands and statistics say the same of the same model."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_nets import REAL, convnet, feeds, residual, save

import onnxprune
from onnxprune.controllers import FilterPruningController, MagnitudeSparsityController, prepare_compression


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save(convnet((16, 40, 24), seed=2), tmp_path_factory.mktemp("net") / "net.onnx")


def arrays(model):
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


@pytest.mark.parametrize("net", ["chain", "residual"])
def test_filter_pruning_is_prune_with_the_preset(tmp_path, path, net):
    source = path if net == "chain" else save(residual(), tmp_path / "net.onnx")
    controller = FilterPruningController(source)
    controller.set_pruning_level(0.5)
    pruned = onnxprune.prune(source, ratio=0.5, preset="nncf", criterion="l2")
    ours, theirs = arrays(controller.strip()), arrays(pruned.model)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert set(ours) == set(theirs)


def test_magnitude_sparsity_is_sparsify(path):
    data = feeds(40, seed=1)
    for solver in ("mask", "sparsegpt"):
        controller = MagnitudeSparsityController(path, {"sparsity_target": 0.6}, data, solver=solver)
        controller.set_sparsity_level(0.6)
        made = onnxprune.sparsify(path, sparsity=0.6, criterion="normed_abs", solver=solver, data=data)
        ours, theirs = arrays(controller.model), arrays(made.model)
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_compression_is_sparsify(path):
    config = {"pruning_type": "snip_momentum", "pattern": "4x1", "target_sparsity": 0.6}
    data = feeds(40, seed=1)
    manager = prepare_compression(
        path, {**config, "max_sparsity_ratio_per_op": 1.0}, data, solver="mask"
    ).run()
    made = onnxprune.sparsify(
        path,
        sparsity=0.6,
        criterion="snip_momentum",
        pattern="4x1",
        solver="mask",
        scope="global",
        ignore=["head"],
        data=data,
    )
    assert all(np.array_equal(mask, ~made.zeros[f"{name}.weight"]) for name, mask in manager.masks.items())


def test_statistics_are_those_of_the_file(path, tmp_path):
    pruning = FilterPruningController(path, {"prune_first_conv": True})
    pruning.set_pruning_level(0.5)
    found = pruning.statistics().model_statistics
    after = onnxprune.stats(pruning.export_model(tmp_path / "small.onnx"), against=path)
    assert found.current_flops == 2 * after.macs
    assert found.current_params == after.handled.elements
    assert found.current_filters == after.filters
    sparse = MagnitudeSparsityController(path)
    sparse.set_sparsity_level(0.6)
    ours = sparse.statistics().model_statistics
    theirs = onnxprune.stats(sparse.export_model(tmp_path / "sparse.onnx")).sparsity
    assert ours.sparsity_level == pytest.approx(theirs.sparsity_level)
    assert ours.sparsity_level_for_layers == pytest.approx(theirs.sparsity_level_for_layers)
    for one, other in zip(ours.sparsified_layers_summary, theirs.sparsified_layers_summary, strict=True):
        assert (one.name, one.sparsity_level) == (other.name, pytest.approx(other.sparsity_level))
        assert one.weight_percentage == pytest.approx(other.weight_percentage)


WILD = ("wild_silero_vad_16k", "wild_ultraface_rfb320_raw_opset9", "wild_ppocrv3_det_raw_opset14_constants")


@pytest.mark.real
@pytest.mark.parametrize("name", WILD)
def test_models_in_the_wild(name, tmp_path):
    source = REAL / f"models/{name}.onnx"
    pruning = FilterPruningController(source, {"prune_first_conv": True, "prune_downsample_convs": True})
    pruning.set_pruning_level(0.4)
    found = pruning.statistics().model_statistics
    sizes = pruning.opened.analysis.bindings  # of symbolic dims, at which operations are counted
    after = onnxprune.stats(pruning.export_model(tmp_path / "small.onnx"), bindings=sizes)
    assert found.current_flops == 2 * after.macs < found.full_flops
    assert not [note for note in pruning.notes if "masked != removed" in note]
    sparse = MagnitudeSparsityController(source)
    sparse.set_sparsity_level(0.5)
    assert sparse.current_sparsity_level == pytest.approx(0.5, abs=1e-4)
    ours = sparse.statistics().model_statistics.sparsity_level
    theirs = onnxprune.stats(sparse.export_model(tmp_path / "sparse.onnx")).sparsity.sparsity_level
    assert ours == pytest.approx(theirs, abs=1e-6)


@pytest.mark.real
def test_what_a_repair_is_worth():
    """A trained ResNet: zeros alone, and with weights that make up for them."""
    source, data = REAL / "models/cifar10_resnet20.onnx", REAL / "data/cifar10_calib.npz"
    losses = {}
    for solver in ("mask", "auto"):
        controller = MagnitudeSparsityController(
            source, {"sparsity_target": 0.7}, data, samples=256, solver=solver
        )
        controller.set_sparsity_level(0.7)
        losses[solver] = controller.loss()
    assert losses["auto"] < 0.2 * losses["mask"]
    assert isinstance(controller.model, ir.Model)
