"""Metrics of one's own: ``module:function``."""

from __future__ import annotations

import functools
import operator

import numpy as np
import pytest

from onnxprune.errors import DataError, UsageError
from onnxprune.evaluate.metrics import find_metric
from onnxprune.evaluate.own import own_metric

SOURCE = """
import numpy as np

def accuracy(outputs, labels):
    return (outputs.argmax(1) == labels).mean()

def error(outputs, labels):
    return float(np.abs(outputs - labels).mean())

error.higher_is_better = False

def odd(outputs, labels):
    return 0

odd.higher_is_better = "no"

def broken(outputs, labels):
    return outputs["x"]

def array(outputs, labels):
    return outputs

def nothing(outputs, labels):
    pass

def nan(outputs, labels):
    return float("nan")

class Table:
    @staticmethod
    def one(outputs, labels):
        return np.float32(1)

number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "onnxprune_test_metrics.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)


def named(name):
    return own_metric(f"onnxprune_test_metrics:{name}")


def test_batches_are_weighted_by_their_samples():
    rng = np.random.default_rng(0)
    outputs, labels = rng.standard_normal((50, 3)), rng.integers(0, 3, 50)
    metric = find_metric("onnxprune_test_metrics:accuracy")
    parts = [metric.tally(outputs[i : i + 8], labels[i : i + 8]) for i in range(0, 50, 8)]
    score = metric.score(functools.reduce(operator.add, parts))
    assert score.name == "onnxprune_test_metrics:accuracy"
    assert score.value == pytest.approx((outputs.argmax(1) == labels).mean())
    assert (score.samples, score.unit, score.higher_is_better) == (50, "", True)
    assert score.interval[0] < score.value < score.interval[1]
    whole = metric.score(metric.tally(outputs, labels))
    assert whole.value == pytest.approx(score.value)
    assert (whole.interval, whole.note) == (None, "a single batch has no spread")


def test_the_interval_is_that_of_a_mean_where_batches_are_equally_long():
    rng = np.random.default_rng(1)
    outputs, labels = rng.random((2, 40, 2))
    metric = named("error")
    values = [np.abs(outputs[i : i + 10] - labels[i : i + 10]).mean() for i in range(0, 40, 10)]
    parts = [metric.tally(outputs[i : i + 10], labels[i : i + 10]) for i in range(0, 40, 10)]
    score = metric.score(functools.reduce(operator.add, parts))
    half = 3.1824463 * np.std(values, ddof=1) / 2
    assert score.interval == pytest.approx((np.mean(values) - half, np.mean(values) + half), rel=2e-3)


def test_a_function_says_in_which_direction_it_is_good():
    assert named("accuracy").higher_is_better
    metric = named("error")
    assert not metric.higher_is_better
    assert not metric.score(metric.tally(np.zeros((2, 2)), np.ones((2, 2)))).higher_is_better


def test_numbers_of_any_kind():
    metric = named("Table.one")
    assert metric.score(metric.tally(np.zeros((2, 2)), np.zeros(2))).value == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("onnxprune_test_metrics:acuracy", r"no 'acuracy' \(did you mean 'accuracy'\?\)"),
        ("onnxprune_test_metrics:number", "is a int, not a function"),
        ("onnxprune_test_metrics:odd", "higher_is_better is 'no'"),
        ("onnxprune_no_such_module:accuracy", "cannot be imported"),
    ],
)
def test_functions_that_are_none(spec, message):
    with pytest.raises(UsageError, match=message) as caught:
        find_metric(spec)
    assert caught.value.hint
    assert "CalibrationDataReader" not in caught.value.hint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"failed on an output of shape \(2, 3\) and labels of shape \(2,\): IndexError"),
        ("array", r"returned an array of shape \(2, 3\)"),
        ("nothing", "returned a NoneType"),
        ("nan", "returned nan"),
    ],
)
def test_functions_that_fail(name, message):
    with pytest.raises(DataError, match=message) as caught:
        named(name).tally(np.zeros((2, 3)), np.zeros(2))
    assert f"'onnxprune_test_metrics:{name}'" in caught.value.what
    assert caught.value.hint
