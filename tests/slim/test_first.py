"""`prune` slims first: reported apart, shares of the model as it was given, nothing new where there is nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_nets import attention, convnet, feeds, grouped, residual, save

import onnxprune
from onnxprune.report import terminal
from tests.slim.test_slim import change, copy_rows, outputs, put


@pytest.fixture
def wasteful(tmp_path):
    """4 of the first layer's 16 channels are read with zeros, 2 of the second's 32 are duplicates."""
    model = change(convnet(), "conv1.weight", put((slice(None), [0, 3, 5, 9]), 0))
    for part in ("weight", "bias"):
        model = change(model, f"conv1.{part}", copy_rows(2, [9, 11], 2.0))
    return save(model, tmp_path / "net.onnx")


@pytest.mark.parametrize("build", [convnet, residual, grouped, attention], ids=lambda build: build.__name__)
@pytest.mark.parametrize("options", [{"macs": 0.6}, {"ratio": 0.3, "round_to": 1}], ids=["macs", "ratio"])
def test_nothing_changes_where_there_is_nothing(tmp_path, build, options):
    path = save(build(), tmp_path / "net.onnx")
    made = onnxprune.prune(path, tmp_path / "a.onnx", best_effort=True, **options)
    onnxprune.prune(path, tmp_path / "b.onnx", best_effort=True, slim=False, **options)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert made.report.slim is None
    assert made.plan.slim is None
    assert '"slim"' not in made.plan.to_json()


def test_what_went_is_reported_apart_and_shares_are_those_of_the_file(wasteful, tmp_path):
    full = onnxprune.analyze(wasteful).cost
    made = onnxprune.prune(wasteful, tmp_path / "small.onnx", macs=0.5)
    first = made.report.slim
    assert (first.zero, first.constant, first.duplicate) == (4, 0, 2)
    alone = onnxprune.slim(wasteful, tmp_path / "slim.onnx")
    assert (first.macs, first.params) == (alone.report.after.macs, alone.report.after.params)
    assert (made.report.before.macs, made.report.before.params) == (full.macs, full.params)
    small = onnxprune.analyze(tmp_path / "small.onnx").cost
    assert made.report.after.macs == small.macs <= 0.5 * full.macs
    assert made.report.target.requested == 0.5
    assert made.report.target.achieved == pytest.approx(small.macs / full.macs)
    assert made.report.target.met
    page = terminal.render(made.report)
    assert (
        "slim: 6 units that contributed nothing went first (4 multiplied by zero, 0 constant, 2 mult" in page
    )


def test_a_ratio_counts_what_went_first(wasteful):
    made = onnxprune.prune(wasteful, ratio=0.25, round_to=1)
    assert made.report.slim.units == 6
    units = 16 + 32 + 24
    assert made.report.target.achieved == pytest.approx((6 + made.report.dropped) / units)
    assert 0.25 <= made.report.target.achieved < 0.32


@pytest.mark.parametrize("options", [{"macs": 0.98}, {"ratio": 0.02}], ids=["macs", "ratio"])
def test_slimming_alone_may_be_enough(wasteful, tmp_path, options):
    made = onnxprune.prune(wasteful, tmp_path / "small.onnx", **options)
    assert made.report.dropped == 0
    assert made.report.target.met
    for a, b in zip(outputs(wasteful), outputs(tmp_path / "small.onnx"), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * np.abs(a).max())


def test_without_it_nothing_goes_first(wasteful):
    assert onnxprune.prune(wasteful, macs=0.6, slim=False).report.slim is None
    assert onnxprune.prune(wasteful, macs=0.6, mode="mask").report.slim is None
    assert onnxprune.prune(wasteful, ratio=0.3, scope="uniform", best_effort=True).report.slim is None


def test_a_plan_remembers_and_is_replayed(wasteful, tmp_path):
    made = onnxprune.prune(wasteful, tmp_path / "a.onnx", macs=0.5, ignore=["conv1"])
    assert made.report.slim.duplicate == 0  # those of conv1 are left alone on request
    made.plan.save(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["slim"] == {
        "whole": ["conv1.bias", "conv1.weight"]
    }
    for plan in (made.plan, tmp_path / "plan.json"):
        again = onnxprune.apply(wasteful, plan, tmp_path / "b.onnx", force=True)
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
        assert again.report.slim == made.report.slim
        assert again.report.target.achieved == pytest.approx(made.report.target.achieved)


def test_repair_and_metrics_go_on_from_the_slim_model(wasteful, tmp_path):
    made = onnxprune.prune(wasteful, tmp_path / "small.onnx", macs=0.5, data=feeds(40))
    assert made.report.slim.units == 6
    assert made.report.metric is not None
    assert made.report.repairs


def test_a_target_out_of_reach_says_what_its_shares_are_of(wasteful):
    with pytest.raises(
        onnxprune.OnnxPruneError, match="without the 6 units that contribute nothing"
    ) as error:
        onnxprune.prune(wasteful, macs=0.001)
    assert error.value.exit_code == 4
