"""Statistics in NNCF's words: the pages as its users know them, and plain values for JSON."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from onnxprune.report.grid import grid
from onnxprune.report.statistics import (
    ConstSparsityStatistics,
    FilterPruningStatistics,
    LayerThreshold,
    MagnitudeSparsityStatistics,
    MovementSparsityStatistics,
    PrunedLayerSummary,
    PrunedModelStatistics,
    PrunedModelTheoreticalBorderline,
    RBSparsityStatistics,
    SparsifiedLayerSummary,
    SparsifiedModelStatistics,
)

SPARSE = SparsifiedModelStatistics(
    0.25,
    1 / 3,
    [
        SparsifiedLayerSummary("stem/conv", [16, 3, 3, 3], 0.5, 40.0),
        SparsifiedLayerSummary("head", (10, 16), 0.0, 14.814),
    ],
)
PRUNED = PrunedModelStatistics(
    full_flops=7_330_000_000,
    current_flops=4_320_000_000,
    full_params=21_780_000,
    current_params=13_560_000,
    full_filters=9512,
    current_filters=7134,
    pruned_layers_summary=[PrunedLayerSummary("layer1.0.conv1", [64, 64, 3, 3], [64], 0.5)],
)

SPARSE_PAGE = """\
Statistics of the sparsified model:
+-----------------------------------------+---------+
| Statistic's name                        |   Value |
+=========================================+=========+
| Sparsity level of the whole model       |   0.250 |
+-----------------------------------------+---------+
| Sparsity level of all sparsified layers |   0.333 |
+-----------------------------------------+---------+
Whole model: zeros / elements of all float initializers.
Sparsified layers: zeros / elements of these layers' weights.

Statistics by sparsified layers:
+----------------+------------------+------------------+-----------------------+
| Layer's name   | Weight's shape   |   Sparsity level |   Weight's percentage |
+================+==================+==================+=======================+
| stem/conv      | [16, 3, 3, 3]    |            0.500 |                40.000 |
+----------------+------------------+------------------+-----------------------+
| head           | [10, 16]         |            0.000 |                14.814 |
+----------------+------------------+------------------+-----------------------+
Sparsity level: zeros / elements of the weight.
Weight's percentage: its elements in % of all float initializers."""

PRUNED_PAGE = """\
Statistics by pruned layers:
+----------------+------------------+----------------+------------------------+
| Layer's name   | Weight's shape   | Mask's shape   |   Filter pruning level |
+================+==================+================+========================+
| layer1.0.conv1 | [64, 64, 3, 3]   | [64]           |                  0.500 |
+----------------+------------------+----------------+------------------------+
Statistics of the pruned model:
+---------+--------+-----------+-----------------+
| #       |   Full |   Current |   Pruning level |
+=========+========+===========+=================+
| GFLOPs  |  7.330 |     4.320 |           0.411 |
+---------+--------+-----------+-----------------+
| MParams | 21.780 |    13.560 |           0.377 |
+---------+--------+-----------+-----------------+
| Filters |   9512 |      7134 |           0.250 |
+---------+--------+-----------+-----------------+
Prompt: statistic pruning level = 1 - statistic current / statistic full.
FLOPs: 2 x MACs of one sample. Params: weights of convolutions and linear layers only.
Filters: output channels of all convolutions and linear layers."""

MAGNITUDE_PAGE = (
    SPARSE_PAGE
    + """

Statistics of the magnitude sparsity algorithm:
+------------------------------------------------------------------------+---------+
| Statistic's name                                                       |   Value |
+========================================================================+=========+
| A target level of the sparsity for the algorithm for the current epoch |   0.300 |
+------------------------------------------------------------------------+---------+
+----------------+----------------------+
| Layer's name   |   Sparsity threshold |
+================+======================+
| stem/conv      |                0.012 |
+----------------+----------------------+
| head           |                0.012 |
+----------------+----------------------+
The target is a share of the weights of the sparsified layers."""
)

RB_PAGE = (
    SPARSE_PAGE
    + """

Statistics of the RB-sparsity algorithm:
+------------------------------------------------------------------------+---------+
| Statistic's name                                                       |   Value |
+========================================================================+=========+
| A target level of the sparsity for the algorithm for the current epoch |   0.500 |
+------------------------------------------------------------------------+---------+
| The probability that one weight will be zeroed                         |   0.480 |
+------------------------------------------------------------------------+---------+
The target is a share of the weights of the sparsified layers.
The probability is a mean over the same weights."""
)

MOVEMENT_PAGE = (
    SPARSE_PAGE
    + """

Statistics of the movement-sparsity algorithm:
+----------------------------------+---------+
| Statistic's name                 |   Value |
+==================================+=========+
| Mask Importance Threshold        |  -0.100 |
+----------------------------------+---------+
| Importance Regularization Factor |   0.010 |
+----------------------------------+---------+"""
)

FILTER_PAGE = (
    PRUNED_PAGE
    + """

Statistics of the filter pruning algorithm:
+---------------------------------------+---------+
| Statistic's name                      |   Value |
+=======================================+=========+
| Filter pruning level in current epoch |   0.250 |
+---------------------------------------+---------+
| Target filter pruning level           |   0.500 |
+---------------------------------------+---------+
Both levels are shares of the filters of the layers that may be pruned."""
)

BORDERLINE_PAGE = """\
Theoretical borderline of the filter pruning algorithm
for current model:
+------------------------------------------------+----------------+
| Statistic's name                               | Value          |
+================================================+================+
| Pruned layers count / prunable layers count    | 12 / 20        |
+------------------------------------------------+----------------+
| GFLOPs minimum possible after pruning / total  | 1.250 / 3.630  |
+------------------------------------------------+----------------+
| MParams minimum possible after pruning / total | 2.500 / 11.680 |
+------------------------------------------------+----------------+
FLOPs: 2 x MACs of one sample. Params: weights of convolutions and linear layers only."""

THRESHOLDS = [LayerThreshold("stem/conv", 0.0123), LayerThreshold("head", 0.0123)]
ALL = {
    "sparse": (SPARSE, SPARSE_PAGE),
    "const": (ConstSparsityStatistics(SPARSE), SPARSE_PAGE),
    "magnitude": (MagnitudeSparsityStatistics(SPARSE, THRESHOLDS, 0.3), MAGNITUDE_PAGE),
    "rb": (RBSparsityStatistics(SPARSE, 0.5, 0.48), RB_PAGE),
    "movement": (MovementSparsityStatistics(SPARSE, -0.1, 0.01), MOVEMENT_PAGE),
    "pruned": (PRUNED, PRUNED_PAGE),
    "filter": (FilterPruningStatistics(PRUNED, 0.25, 0.5, prune_flops=False), FILTER_PAGE),
    "borderline": (
        PrunedModelTheoreticalBorderline(12, 20, 1_250_000_000, 2_500_000, 3_630_000_000, 11_680_000),
        BORDERLINE_PAGE,
    ),
}


@pytest.mark.parametrize("name", ALL)
def test_pages(name):
    statistics, page = ALL[name]
    assert statistics.to_str() == page


@pytest.mark.parametrize("name", ALL)
def test_plain_values(name):
    statistics, _ = ALL[name]
    body = statistics.to_dict()
    assert json.loads(json.dumps(body, allow_nan=False)) == body
    assert {field.name for field in dataclasses.fields(statistics)} <= set(body)


@pytest.mark.parametrize("name", [*ALL, "layer"], ids=str)
def test_they_cannot_be_changed(name):
    statistics = SPARSE.sparsified_layers_summary[0] if name == "layer" else ALL[name][0]
    field = dataclasses.fields(statistics)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(statistics, field, 0)


def test_levels_of_a_pruned_model():
    assert PRUNED.flops_pruning_level == pytest.approx(1 - 4.32 / 7.33, abs=1e-15)
    assert PRUNED.params_pruning_level == pytest.approx(1 - 13.56 / 21.78, abs=1e-15)
    assert PRUNED.filter_pruning_level == 1 - 7134 / 9512
    empty = PrunedModelStatistics(0, 0, 0, 0, 0, 0, ())
    assert (empty.flops_pruning_level, empty.params_pruning_level, empty.filter_pruning_level) == (0, 0, 0)
    assert "by pruned layers" not in empty.to_str()


def test_levels_in_flops():
    page = FilterPruningStatistics(PRUNED, 0.25, 0.5, prune_flops=True).to_str()
    assert "| FLOPs pruning level in current epoch |   0.250 |" in page
    assert "| Target FLOPs pruning level           |   0.500 |" in page
    assert page.endswith("Both levels are shares of the model's FLOPs.")


def test_what_has_no_value():
    local = MagnitudeSparsityStatistics(SPARSE, THRESHOLDS, None)
    row = next(line for line in local.to_str().splitlines() if "A target level" in line)
    assert row.endswith("|       - |")
    assert local.to_dict()["target_sparsity_level"] is None
    movement = MovementSparsityStatistics(SPARSE, -np.inf, 0.01)
    assert "|    -inf |" in movement.to_str()
    assert movement.to_dict()["importance_threshold"] is None


def test_numbers_of_numpy_look_like_others():
    rows = [["a", np.float32(0.5), np.int64(3), np.array([2, 3]).tolist()], ["b", 0.25, 10, (4,)]]
    lines = grid(["name", "share", "count", "shape"], rows).splitlines()
    assert lines[3] == "| a      |   0.500 |       3 | [2, 3]  |"
    assert lines[5] == "| b      |   0.250 |      10 | [4]     |"
    assert len({len(line) for line in lines}) == 1
