"""Channels that are multiples of another one are merged into it."""

from __future__ import annotations

import numpy as np
import pytest
from slimmed import change, copy_rows, counts, put, shapes, slimmed, unpadded
from small_nets import Net, convnet, grouped, residual


@pytest.mark.parametrize("factor", [1.0, 0.3, 7.0])
def test_proportional_channels_become_one(tmp_path, factor):
    model = convnet()
    for part in ("weight", "bias"):
        model = change(model, f"conv0.{part}", copy_rows(2, 9, factor))
        model = change(model, f"conv0.{part}", copy_rows(2, 11, factor))
    made = slimmed(model, tmp_path)
    assert counts(made) == {"conv0": (0, 0, 2)}
    old = model.graph.initializers["conv1.weight"].const_value.numpy().astype(np.float64)
    new = made.model.graph.initializers["conv1.weight"].const_value.numpy()
    np.testing.assert_allclose(new[:, 2], old[:, 2] + factor * (old[:, 9] + old[:, 11]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("activation", "factor", "merged"),
    [("Sigmoid", 1.0, 1), ("Sigmoid", 2.0, 0), ("LeakyRelu", 2.0, 1), ("Relu", -1.0, 0), ("Tanh", 2.0, 0)],
)
def test_what_an_activation_keeps(tmp_path, activation, factor, merged):
    model = unpadded(activation)
    for part in ("weight", "bias"):
        model = change(model, f"first.{part}", copy_rows(2, 5, factor))
    assert slimmed(model, tmp_path).report.units == merged


def test_a_bias_that_is_not_proportional_makes_a_difference(tmp_path):
    model = change(convnet(), "conv0.weight", copy_rows(2, 9, 2.0))
    assert slimmed(model, tmp_path, exact=0).report.units == 0


def test_rows_that_differ_by_more_than_rounding_stay(tmp_path):
    model = convnet()
    for part in ("weight", "bias"):
        model = change(model, f"conv0.{part}", copy_rows(2, 9, 2.0))
    model = change(model, "conv0.weight", put((9, 0, 0, 0), 0.123))
    assert slimmed(model, tmp_path, exact=0).report.units == 0


@pytest.mark.parametrize("alike", [True, False])
def test_batch_norm_takes_part(tmp_path, alike):
    model = convnet(norm=True)
    for part in ("weight", "bias"):
        model = change(model, f"conv0.{part}", copy_rows(2, 9))
    for part in ("weight", "bias", "mean", "variance") if alike else ():
        model = change(model, f"bn0.{part}", copy_rows(2, 9))
    made = slimmed(model, tmp_path)
    assert made.report.units == int(alike)
    assert counts(made) == ({"conv0": (0, 0, 1)} if alike else {})


def test_depthwise_duplicates(tmp_path):
    net = Net()
    x = net.op("Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "first", (8, 3, 1, 1)), name="relu0")
    x = net.op("Relu", net.conv(x, "depthwise", (8, 1, 3, 3), group=8), name="relu1")
    model = net.model(net.head(net.op("Relu", net.conv(x, "last", (6, 8, 1, 1)), name="relu2"), 6))
    for part in ("weight", "bias"):
        model = change(model, f"first.{part}", copy_rows(1, 6, 2.0))
    folder = tmp_path / "first"
    folder.mkdir()
    assert slimmed(model, folder).report.units == 0  # the depthwise filters differ
    model = change(model, "depthwise.weight", copy_rows(1, 6, 1.0))
    model = change(model, "depthwise.bias", copy_rows(1, 6, 2.0))
    assert counts(slimmed(model, tmp_path)) == {"first": (0, 0, 1)}


def test_residual_streams_merge_only_where_all_that_is_added_is_alike(tmp_path):
    model = residual()
    for part in ("weight", "bias"):
        model = change(model, f"stem.{part}", copy_rows(3, 8))
        model = change(model, f"block0.b.{part}", copy_rows(3, 8))
    folder = tmp_path / "first"
    folder.mkdir()
    assert slimmed(model, folder).report.units == 0
    for part in ("weight", "bias"):
        model = change(model, f"block1.b.{part}", copy_rows(3, 8))
    assert counts(slimmed(model, tmp_path)) == {"stem": (0, 0, 1)}


def test_duplicates_through_a_flatten(tmp_path):
    net = Net()
    x = net.conv(net.data("image", ("n", 3, 4, 4)), "first", (6, 3, 3, 3))
    x = net.op("Flatten", net.op("Relu", x, name="relu"), name="flat")
    model = net.model(net.linear(x, "fc", 96, 5))
    for part in ("weight", "bias"):
        model = change(model, f"first.{part}", copy_rows(0, 4, 3.0))
    made = slimmed(model, tmp_path)
    assert counts(made) == {"first": (0, 0, 1)}
    assert shapes(made.model)["fc.weight"] == (5, 80)


def test_duplicates_in_groups_of_channels_stay_and_are_told(tmp_path):
    model = grouped()
    for part in ("weight", "bias"):
        model = change(model, f"before.{part}", copy_rows(0, 1))
    made = slimmed(model, tmp_path, exact=0)
    assert made.report.units == 0
    assert ["in groups" in left.why for left in made.report.left] == [True]
