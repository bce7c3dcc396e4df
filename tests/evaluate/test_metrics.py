from __future__ import annotations

import functools
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import DataError
from onnxprune.evaluate.metrics import Hits, Metric, Score, default_metrics, top_k, wilson

TOP1, TOP5 = default_metrics()["top1"], default_metrics()["top5"]


def test_top1_and_top5():
    outputs = np.array([[9, 8, 7, 6, 5, 4, 3]] * 7, np.float32)
    labels = np.arange(7)
    assert TOP1.tally(outputs, labels) == Hits(1, 7)
    assert TOP5.tally(outputs, labels) == Hits(5, 7)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_top_k_is_a_stable_sort(seed, k):
    rng = np.random.default_rng(seed)
    outputs = rng.integers(0, 4, (20, 8)).astype(np.float32)
    labels = rng.integers(0, 8, 20)
    order = np.argsort(-outputs, axis=1, kind="stable")[:, :k]
    assert top_k(k)(outputs, labels) == Hits(int((order == labels[:, None]).sum()), 20)


def test_ties_go_to_the_lower_index():
    outputs = np.ones((3, 3), np.float32)
    assert TOP1.tally(outputs, np.array([0, 1, 2])) == Hits(1, 3)


def test_a_nan_is_wrong_even_for_its_own_label():
    outputs = np.array([[np.nan, 0], [0, np.nan], [0, 1], [np.nan, np.nan]], np.float32)
    assert TOP1.tally(outputs, np.array([0, 1, 1, 0])) == Hits(1, 4)


def test_infinities_are_ordered():
    outputs = np.array([[-np.inf, 0], [np.inf, 0]], np.float32)
    assert TOP1.tally(outputs, np.array([1, 0])) == Hits(2, 2)


def test_axes_of_extent_one_and_column_labels():
    outputs = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    assert TOP1.tally(outputs, np.array([[0], [1], [0]])) == Hits(2, 3)
    assert TOP1.tally(outputs, np.array([0, 1, 2], np.uint8)) == Hits(3, 3)


@pytest.mark.parametrize(
    ("shape", "labels", "metric", "message"),
    [
        ((4,), [0] * 4, TOP1, r"has shape \(4,\), but accuracy needs"),
        ((4, 3, 2), [0] * 4, TOP1, r"has shape \(4, 3, 2\)"),
        ((4, 1), [0] * 4, TOP1, "says nothing about 1 classes"),
        ((4, 5), [0] * 4, TOP5, "top-5 accuracy says nothing about 5 classes"),
        ((4, 3), [0] * 5, TOP1, "4 rows for 5 labels"),
        ((4, 3), [0, 1, 2, 3], TOP1, r"label 3 is not one of the model's 3 classes \(0 to 2\)"),
        ((4, 3), [0, 1, 2, -1], TOP1, "label -1 is not one of"),
        ((4, 3), [0.5] * 4, TOP1, "dtype float64 are no class indices"),
        ((4, 3), [[0, 1]] * 4, TOP1, r"shape \(4, 2\)"),
    ],
)
def test_outputs_and_labels_that_do_not_fit(shape, labels, metric, message):
    with pytest.raises(DataError, match=message) as caught:
        metric.tally(np.zeros(shape, np.float32), np.asarray(labels))
    assert caught.value.hint


def test_tallies_merge_in_any_order():
    rng = np.random.default_rng(0)
    outputs, labels = rng.standard_normal((30, 6)), rng.integers(0, 6, 30)
    parts = [TOP1.tally(outputs[i : i + 7], labels[i : i + 7]) for i in range(0, 30, 7)]
    whole = TOP1.tally(outputs, labels)
    assert functools.reduce(operator.add, parts) == functools.reduce(operator.add, parts[::-1]) == whole


def test_a_score():
    score = Hits(776, 846).score("top1")
    assert (score.name, score.samples) == ("top1", 846)
    assert score.value == 776 / 846
    assert str(score) == "top1 91.73% (95 % interval 89.68% to 93.40%, 846 samples)"


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(5, 10, 0.236593, 0.763407), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (0, 0, 0.0, 1.0)],
)
def test_wilson(correct, total, low, high):
    assert wilson(correct, total) == pytest.approx((low, high), abs=1e-6)


@given(st.integers(1, 10_000), st.data())
def test_wilson_holds_the_share(total, data):
    correct = data.draw(st.integers(0, total))
    low, high = wilson(correct, total)
    assert 0 <= low <= correct / total <= high <= 1


def test_the_table_is_a_copy_that_can_be_extended():
    table = default_metrics()
    table["mine"] = Metric("mine", "always right", lambda outputs, labels: Hits(len(labels), len(labels)))
    assert "mine" not in default_metrics()
    assert table["mine"].tally(np.zeros(2), np.zeros(2)).score("mine") == Score("mine", 1.0, wilson(2, 2), 2)
