"""Mean squared error and PSNR."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxprune.errors import DataError
from onnxprune.evaluate.metrics import default_metrics
from onnxprune.evaluate.regression import mean_squared_error, signal_to_noise


def pictures(count=20, shape=(3, 4, 4), seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.random((count, *shape))
    noise = rng.standard_normal(targets.shape) * rng.random((count,) + (1,) * len(shape))
    return (targets + 0.1 * noise).astype(np.float32), targets


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 4, 4)])
def test_mse(shape):
    outputs, targets = pictures(shape=shape)
    score = mean_squared_error(outputs, targets).score("mse")
    errors = [((o.astype(float) - t) ** 2).mean() for o, t in zip(outputs, targets, strict=True)]
    assert score.value == pytest.approx(np.mean((outputs.astype(float) - targets) ** 2), rel=1e-12)
    half = 2.093 * np.std(errors, ddof=1) / math.sqrt(20)
    assert score.interval == pytest.approx((max(score.value - half, 0), score.value + half), rel=1e-3)
    assert (score.samples, score.unit) == (20, "")


def test_psnr():
    outputs, targets = pictures()
    score = signal_to_noise(outputs, targets).score("psnr")
    mse = np.mean((outputs.astype(float) - targets) ** 2)
    peak = targets.max() - targets.min()
    assert score.value == pytest.approx(10 * math.log10(peak**2 / mse), rel=1e-12)
    low, high = score.interval
    assert (low + high) / 2 == pytest.approx(score.value)
    assert str(score).startswith(f"psnr {score.value:.2f} dB (95 % interval {low:.2f} to {high:.2f} dB, 20")


def test_the_interval_of_psnr_is_what_a_jackknife_gives():
    outputs, targets = pictures(count=300)
    errors = ((outputs - targets) ** 2).reshape(300, -1).mean(axis=1)
    decibels = -10 * np.log10((errors.sum() - errors) / 299)
    jackknife = math.sqrt(299 / 300 * np.sum((decibels - decibels.mean()) ** 2))
    low, high = signal_to_noise(outputs, targets).score("psnr").interval
    assert (high - low) / 2 == pytest.approx(1.968 * jackknife, rel=0.03)


def test_axes_of_extent_one_do_not_matter():
    outputs, targets = pictures(shape=(1,))
    assert mean_squared_error(outputs, targets[:, 0]) == mean_squared_error(outputs, targets)


def test_integers_do_not_wrap():
    outputs, targets = np.array([[0], [255]], np.uint8), np.array([[255], [0]], np.uint8)
    assert mean_squared_error(outputs, targets).score("mse").value == 255**2


def test_equal_arrays():
    _, targets = pictures()
    mse, psnr = (tally(targets, targets) for tally in (mean_squared_error, signal_to_noise))
    assert (mse.score("mse").value, mse.score("mse").interval) == (0, None)
    assert (psnr.score("psnr").value, psnr.score("psnr").interval) == (math.inf, None)
    assert "not finite" in psnr.score("psnr").note


def test_a_single_sample_has_a_value_and_no_interval():
    outputs, targets = pictures(count=1)
    for tally in (mean_squared_error, signal_to_noise):
        score = tally(outputs, targets).score("m")
        assert math.isfinite(score.value)
        assert (score.interval, score.note) == (None, "a single sample has no spread")


def test_the_peak_is_that_of_all_batches():
    flat = signal_to_noise(np.full((2, 3), 0.5), np.zeros((2, 3)))
    with pytest.raises(DataError, match="all targets are 0, so psnr has no peak"):
        flat.score("psnr")
    both = flat + signal_to_noise(np.full((2, 3), 0.5), np.ones((2, 3)))
    assert both.score("psnr").value == pytest.approx(10 * math.log10(1 / 0.25))


@pytest.mark.parametrize("name", ["mse", "psnr"])
@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 3)), "2 rows for 3 labels"),
        (np.zeros((2, 3)), np.zeros(2), r"shape \(2, 3\), but the targets have \(2,\)"),
        (np.zeros((2, 3, 4)), np.zeros((2, 4, 3)), r"the targets have \(2, 4, 3\)"),
        (np.zeros((2, 0)), np.zeros((2, 0)), r"shape \(2, 0\)"),
        (np.array([[0.0], [np.nan]]), np.zeros((2, 1)), "the output holds NaN .first in row 1"),
        (np.array([[np.inf], [0.0]]), np.zeros((2, 1)), "the output holds infinity .first in row 0"),
        (np.zeros((2, 1)), np.array([[0.0], [np.nan]]), "the array of labels holds NaN"),
        (np.zeros((2, 1)), np.array([["a"], ["b"]]), "the array of labels has dtype"),
    ],
)
def test_targets_that_do_not_fit(name, outputs, targets, message):
    with pytest.raises(DataError, match=message) as caught:
        default_metrics()[name].tally(outputs, targets)
    assert caught.value.hint
