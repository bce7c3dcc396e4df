"""Top-k accuracy, macro F1, agreement."""

from __future__ import annotations

import functools
import math
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import DataError
from onnxprune.evaluate.classes import Confusion, Hits, agreement, decisions, macro_f1, top_k
from onnxprune.evaluate.metrics import default_metrics

TOP1, TOP5, F1 = (default_metrics()[name] for name in ("top1", "top5", "f1"))


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
    assert decisions(outputs)[0].tolist() == [0, 0, 0]


def test_a_nan_is_wrong_even_for_its_own_label():
    outputs = np.array([[np.nan, 0], [0, np.nan], [0, 1], [np.nan, np.nan]], np.float32)
    assert TOP1.tally(outputs, np.array([0, 1, 1, 0])) == Hits(1, 4)


def test_infinities_are_ordered():
    outputs = np.array([[-np.inf, 0], [np.inf, 0]], np.float32)
    assert TOP1.tally(outputs, np.array([1, 0])) == Hits(2, 2)
    assert decisions(outputs)[0].tolist() == [1, 0]


def test_axes_of_extent_one_and_column_labels():
    outputs = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    assert TOP1.tally(outputs, np.array([[0], [1], [0]])) == Hits(2, 3)
    assert TOP1.tally(outputs, np.array([0, 1, 2], np.uint8)) == Hits(3, 3)
    assert F1.tally(outputs, np.array([[0], [1], [0]])) == Confusion({(0, 0): 1, (1, 1): 1, (0, 2): 1})


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
        ((), 0, F1, "1 rows for 1 labels"),
        ((4, 3, 2), [0] * 4, F1, r"shape \(4, 3, 2\), expected \(samples, classes\) or one logit"),
        ((4, 0), [0] * 4, F1, r"shape \(4, 0\)"),
        ((4, 3), [0] * 5, F1, "4 rows for 5 labels"),
        ((4, 3), [0, 1, 2, 3], F1, r"label 3 is not one of the model's 3 classes \(0 to 2\)"),
        ((4,), [0, 1, 2, 0], F1, r"label 2 is not one of the model's 2 classes \(0 to 1\)"),
        ((4, 3), [0.5] * 4, F1, "dtype float64 are no class indices"),
        ((4, 3), [[0, 1]] * 4, F1, r"shape \(4, 2\)"),
    ],
)
def test_outputs_and_labels_that_do_not_fit(shape, labels, metric, message):
    with pytest.raises(DataError, match=message) as caught:
        metric.tally(np.zeros(shape, np.float32), np.asarray(labels))
    assert caught.value.hint


def test_a_nan_has_no_decision():
    outputs = np.array([[0, 1], [0, np.nan]], np.float32)
    with pytest.raises(DataError, match="holds NaN .first in row 1"):
        macro_f1(outputs, np.array([0, 1]))
    with pytest.raises(DataError, match="the original's output holds NaN"):
        agreement(outputs[::-1], outputs)
    with pytest.raises(DataError, match="the output holds NaN"):
        agreement(outputs, np.zeros_like(outputs))


def test_integers_are_no_logits():
    with pytest.raises(DataError, match="one int64 per sample, which is no logit"):
        macro_f1(np.zeros(4, np.int64), np.zeros(4, np.int64))
    with pytest.raises(DataError, match="no real numbers"):
        macro_f1(np.array(["a", "b"]), np.zeros(2, np.int64))


def test_top_k_tallies_merge_in_any_order():
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


# macro F1


def f1_by_hand(decided, labels):
    """Precision, recall and F1 of each class that occurs, one by one."""
    values = []
    for one in sorted({*decided, *labels}):
        hits = sum(d == one == t for d, t in zip(decided, labels, strict=True))
        found, there = sum(d == one for d in decided), sum(t == one for t in labels)
        precision, recall = hits / found if found else 0.0, hits / there if there else 0.0
        values.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    return sum(values) / len(values)


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 60))
def test_macro_f1(seed, classes, count):
    rng = np.random.default_rng(seed)
    outputs, labels = rng.standard_normal((count, classes)), rng.integers(0, classes, count)
    score = macro_f1(outputs, labels).score("f1")
    assert score.value == pytest.approx(f1_by_hand(outputs.argmax(1).tolist(), labels.tolist()), abs=1e-12)
    assert score.samples == count
    if score.interval is not None:
        assert 0 <= score.interval[0] <= score.value <= score.interval[1] <= 1


def test_one_logit_is_a_binary_decision():
    logits, labels = np.array([-1.0, 2.0, 0.0, 3.0, -0.1], np.float32), np.array([0, 1, 1, 0, 0])
    expected = f1_by_hand([0, 1, 0, 1, 0], labels.tolist())
    for outputs in (logits, logits[:, None], logits[:, None, None]):
        assert macro_f1(outputs, labels).score("f1").value == pytest.approx(expected)
    assert macro_f1(logits, labels.astype(bool)).score("f1").value == pytest.approx(expected)


def test_classes_that_do_not_occur_do_not_count():
    outputs = np.eye(9, dtype=np.float32)[[0, 1, 1]]
    assert macro_f1(outputs, np.array([0, 1, 1])).score("f1").value == 1
    assert macro_f1(outputs, np.array([0, 1, 8])).score("f1").value == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_the_interval_of_f1_is_what_a_jackknife_gives():
    rng = np.random.default_rng(3)
    labels = rng.choice(4, 300, p=[0.4, 0.3, 0.2, 0.1])
    decided = np.where(rng.random(300) < 0.7, labels, rng.integers(0, 4, 300))
    score = macro_f1(np.eye(4)[decided], labels).score("f1")
    left_out = [f1_by_hand(np.delete(decided, i), np.delete(labels, i)) for i in range(300)]
    jackknife = math.sqrt(299 / 300 * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    low, high = score.interval
    assert (low + high) / 2 == pytest.approx(score.value)
    assert (high - low) / 2 == pytest.approx(1.968 * jackknife, rel=0.03)


@pytest.mark.parametrize(("decided", "value"), [([0, 1, 2], 1.0), ([1, 2, 0], 0.0)])
def test_all_right_or_all_wrong_has_no_interval(decided, value):
    score = macro_f1(np.eye(3)[decided], np.arange(3)).score("f1")
    assert (score.value, score.interval) == (value, None)
    assert str(score) == f"f1 {value:.2%} (no interval: there is no spread to take it from, 3 samples)"
    assert "a single sample" in macro_f1(np.eye(3)[[0]], np.array([1])).score("f1").note


# agreement


@given(st.integers(0, 2**32 - 1))
def test_agreement(seed):
    rng = np.random.default_rng(seed)
    mine, theirs = rng.integers(0, 4, (2, 12, 5)).astype(np.float32)
    assert agreement(mine, theirs) == Hits(int((mine.argmax(1) == theirs.argmax(1)).sum()), 12)
    assert agreement(mine[:, :1], theirs[:, :1] - 2) == Hits(
        int(((mine[:, 0] > 0) == (theirs[:, 0] > 2)).sum()), 12
    )


def test_agreement_of_outputs_that_do_not_fit():
    with pytest.raises(DataError, match=r"shape \(2, 3\), that of the original \(2, 4\)"):
        agreement(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(DataError, match=r"expected \(samples, classes\)"):
        agreement(np.zeros((2, 3, 4)), np.zeros((2, 3, 4)))
