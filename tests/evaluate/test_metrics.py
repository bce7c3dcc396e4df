"""The table of metrics, and what holds for each of them."""

from __future__ import annotations

import functools
import operator

import numpy as np
import pytest

from onnxprune.errors import UsageError
from onnxprune.evaluate.classes import Hits
from onnxprune.evaluate.intervals import wilson
from onnxprune.evaluate.metrics import Metric, Score, default_metrics, find_metric

COUNT = 41


def draw(name):
    """Outputs of 41 samples and what they are held against."""
    rng = np.random.default_rng(7)
    if name in ("top1", "top5", "f1"):
        return rng.standard_normal((COUNT, 8)), rng.integers(0, 8, COUNT)
    if name == "agreement":
        return tuple(rng.standard_normal((2, COUNT, 3)))
    if name == "miou":
        return rng.standard_normal((COUNT, 3, 4, 5)), rng.choice([0, 1, 2, 255], (COUNT, 4, 5))
    if name == "perplexity":
        return rng.standard_normal((COUNT, 6, 9)), rng.choice([-100, *range(9)], (COUNT, 6))
    return tuple(rng.random((2, COUNT, 3, 2)))


def merged(metric, outputs, labels, step, order=1):
    parts = [metric.tally(outputs[i : i + step], labels[i : i + step]) for i in range(0, COUNT, step)]
    return metric.score(functools.reduce(operator.add, parts[::order]))


@pytest.mark.parametrize("name", default_metrics())
@pytest.mark.parametrize("step", [1, 7, 40])
@pytest.mark.parametrize("order", [1, -1])
def test_batches_and_shards_equal_the_whole(name, step, order):
    metric = default_metrics()[name]
    outputs, labels = draw(name)
    whole, parts = merged(metric, outputs, labels, COUNT), merged(metric, outputs, labels, step, order)
    assert parts.value == pytest.approx(whole.value, rel=1e-12)
    assert parts.interval == pytest.approx(whole.interval, rel=1e-9)
    assert (parts.name, parts.samples, parts.note) == (name, COUNT, "")


@pytest.mark.parametrize("name", default_metrics())
def test_outputs_and_labels_are_not_changed(name):
    outputs, labels = draw(name)
    before = outputs.copy(), labels.copy()
    default_metrics()[name].tally(outputs, labels)
    assert np.array_equal(outputs, before[0]) and np.array_equal(labels, before[1])


@pytest.mark.parametrize("name", default_metrics())
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_narrow_floats_are_summed_up_in_wide_ones(name, dtype):
    metric = default_metrics()[name]
    outputs, labels = draw(name)
    narrow = outputs.astype(dtype)
    found, expected = metric.tally(narrow, labels), metric.tally(narrow.astype(np.float64), labels)
    assert metric.score(found).value == pytest.approx(metric.score(expected).value, rel=1e-12)


def test_each_metric_says_in_which_direction_it_is_good():
    table = default_metrics()
    assert {name for name, metric in table.items() if not metric.higher_is_better} == {"mse", "perplexity"}
    for name, metric in table.items():
        assert (metric.name, bool(metric.summary)) == (name, True)
        assert metric.score(metric.tally(*draw(name))).higher_is_better == metric.higher_is_better
    assert {name for name, metric in table.items() if metric.reference == "original"} == {"agreement"}


@pytest.mark.parametrize("name", default_metrics())
def test_better_outputs_score_better(name):
    """The direction that a metric claims is the one in which it moves."""
    rng = np.random.default_rng(0)
    if name in ("mse", "psnr"):
        labels = rng.random((COUNT, 3))
        good = labels
    elif name == "agreement":
        good = labels = rng.standard_normal((COUNT, 3))
    elif name in ("miou", "perplexity"):
        labels = rng.integers(0, 8, (COUNT, 5))
        good = 3 * np.eye(8)[labels]
        good = np.moveaxis(good, -1, 1) if name == "miou" else np.roll(good, -1, axis=1)
    else:
        labels = rng.integers(0, 8, COUNT)
        good = 3 * np.eye(8)[labels]
    bad = good + 2 * rng.standard_normal(good.shape)
    metric = default_metrics()[name]
    better, worse = (metric.score(metric.tally(outputs, labels)).value for outputs in (good, bad))
    assert (better > worse) == metric.higher_is_better
    assert better != worse


@pytest.mark.parametrize("name", ["mse", "psnr", "perplexity", "f1", "miou"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(name):
    """400 data sets of 150 samples; the truth is what very many samples give."""
    rng = np.random.default_rng(11)
    metric = default_metrics()[name]

    def sample(count):
        skill = rng.gamma(16.0, 0.125, count)
        if name in ("mse", "psnr"):
            targets = rng.random((count, 4))
            targets[:, :2] = [0, 1]  # the peak is that of the truth
            return targets + skill[:, None] * rng.standard_normal((count, 4)), targets
        if name == "f1":
            labels = rng.choice(3, count, p=[0.5, 0.3, 0.2])
            return 2 * np.eye(3)[labels] + rng.standard_normal((count, 3)), labels
        labels = rng.integers(0, 3, (count, 6))
        logits = skill[:, None, None] * np.eye(3)[labels] + rng.standard_normal((count, 6, 3))
        return (np.moveaxis(logits, -1, 1) if name == "miou" else np.roll(logits, -1, axis=1)), labels

    truth = metric.score(metric.tally(*sample(100_000 if name != "perplexity" else 20_000))).value
    covered = 0
    for _ in range(400):
        low, high = metric.score(metric.tally(*sample(150))).interval
        covered += low <= truth <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_the_table_is_a_copy_that_can_be_extended():
    table = default_metrics()
    table["mine"] = Metric("mine", "always right", lambda outputs, labels: Hits(len(labels), len(labels)))
    assert "mine" not in default_metrics()
    mine = find_metric("mine", table)
    assert mine.score(mine.tally(np.zeros(2), np.zeros(2))) == Score("mine", 1.0, wilson(2, 2), 2)


@pytest.mark.parametrize("name", ["top2", "psnrr", "", "module:", "a b:c"])
def test_names_that_are_no_metric(name):
    with pytest.raises(UsageError, match=f"no metric '{name}'") as caught:
        find_metric(name)
    assert "top1, top5, f1, miou, mse, psnr, perplexity, agreement, or module:function" in caught.value.hint


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (Score("f1", 0.5, (0.25, 0.75), 4), "f1 50.00% (95 % interval 25.00% to 75.00%, 4 samples)"),
        (
            Score("mse", 0.0123456, (0.01, 0.02), 1000, ""),
            "mse 0.01235 (95 % interval 0.01 to 0.02, 1,000 samples)",
        ),
        (
            Score("psnr", 31.2, (30, 32), 9, "dB"),
            "psnr 31.20 dB (95 % interval 30.00 to 32.00 dB, 9 samples)",
        ),
        (Score("mse", 2.0, None, 1, "", note="one"), "mse 2 (no interval: one, 1 sample)"),
    ],
)
def test_scores_as_text(score, text):
    assert str(score) == text
