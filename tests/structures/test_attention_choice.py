"""Whole heads, or dimensions of all heads alike."""

from __future__ import annotations

import json

import numpy as np
import pytest

import onnxprune
from onnxprune.errors import UsageError

VIT = "models/digits_vit.onnx"
CALIBRATION = "models/digits_calib.npz"


def sizes(analysis):
    """Units of the groups of attention layers: 4 heads or 16 dimensions, 192 are the FFN's."""
    return {group.units for group in analysis.groups.values()} - {192}


def test_analyze_shows_heads_unless_dims_are_wanted():
    assert sizes(onnxprune.analyze(VIT)) == {4}
    assert sizes(onnxprune.analyze(VIT, attention="dims")) == {16}


def test_unknown_choice_is_an_error():
    with pytest.raises(UsageError, match="attention cannot lose 'tokens'"):
        onnxprune.analyze(VIT, attention="tokens")
    with pytest.raises(UsageError, match="attention cannot lose 'tokens'"):
        onnxprune.prune(VIT, attention="tokens")


@pytest.mark.parametrize(
    ("options", "units"),
    [
        ({}, {4}),
        ({"data": CALIBRATION, "compensate": "none", "criterion": "l2"}, {4}),
        ({"data": CALIBRATION, "criterion": "l2"}, {16}),
        ({"data": CALIBRATION, "criterion": "l2", "attention": "heads"}, {4}),
        ({"attention": "dims"}, {16}),
    ],
)
def test_dims_go_where_weights_are_repaired(options, units):
    done = onnxprune.prune(VIT, ratio=0.3, round_to=1, only=["*"], **options)
    found = {group.units for group in done.report.groups} - {192}
    assert found == units
    assert done.report.soundness.checked
    assert not done.report.soundness.rejected_groups


def test_a_plan_remembers_the_choice(tmp_path):
    done = onnxprune.prune(VIT, ratio=0.3, round_to=1, data=CALIBRATION, samples=64)
    file = tmp_path / "plan.json"
    done.plan.save(file)
    assert json.loads(file.read_text())["attention"] == "dims"
    for plan in (file, done.plan):
        again = onnxprune.apply(VIT, plan, data=CALIBRATION, samples=64)
        assert again.report.after == done.report.after
        for name, value in done.model.graph.initializers.items():
            np.testing.assert_array_equal(
                again.model.graph.initializers[name].const_value.numpy(), value.const_value.numpy()
            )


def test_a_plan_of_heads_says_nothing_new(tmp_path):
    file = tmp_path / "plan.json"
    onnxprune.prune(VIT, ratio=0.3, round_to=1).plan.save(file)
    assert "attention" not in json.loads(file.read_text())
