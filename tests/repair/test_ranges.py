"""The range that goes best with what a quantiser sees."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.model.normalize import normalize
from onnxprune.model.quantisers import find_quantisers
from onnxprune.repair.ranges import SHARES, Seen, best_range
from onnxprune.testing import ModelBuilder


def quantiser(scale, zero, dtype=np.int8):
    n = ModelBuilder()
    numbers = [n.constant(np.float32(scale), "s")]
    if zero is not None:
        numbers.append(n.constant(dtype(zero), "z"))
    q = n.op("QuantizeLinear", n.input("x", (2, 4)), *numbers)
    (found,) = find_quantisers(normalize(n.model(n.op("DequantizeLinear", q, *numbers))).graph)
    return found


def seen(*arrays):
    found = Seen()
    for array in arrays:
        found.add(np.asarray(array))
    return found


def rounded(x, scale, zero, low, high):
    return (np.clip(np.round(x / scale) + zero, low, high) - zero) * scale


def test_what_was_clipped_is_in_range_again():
    """The ends that onnxruntime's MinMax calibration gives: 255 steps from the least to the largest number."""
    x = np.linspace(-1, 3, 1001)
    scale, zero = best_range(seen(x[:500], x[500:]), quantiser(0.001, 17))
    assert scale == np.float32(4 / 255) and zero == np.rint(-128 + 1 / scale)
    assert np.abs(rounded(x, scale, zero, -128, 127) - x).max() <= scale / 2 + 1e-6


def test_a_range_that_fits_stays():
    assert best_range(seen(np.linspace(-1, 3, 1001)), quantiser(4 / 255, -64)) is None


def test_the_scale_has_the_least_error_of_all_candidates():
    """One number far out is clipped where that helps the others."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal(60000), [8.0, -8.0]]).astype(np.float32)
    scale, zero = best_range(seen(x), quantiser(1.0, 1))
    errors = {}
    for share in SHARES:
        s = np.float32(16 * share / 255)
        z = np.rint(-128 + 8 * share / s)
        errors[float(s)] = np.square(rounded(x.astype(np.float64), s, z, -128, 127) - x).sum()
    assert scale == min(errors, key=errors.get) < max(errors)
    assert np.square(rounded(x.astype(np.float64), scale, zero, -128, 127) - x).sum() == pytest.approx(
        min(errors.values())
    )


@pytest.mark.parametrize(
    ("zero", "dtype", "expected"),
    [
        (0, np.int8, 3 / 127),  # symmetric: the longer side decides
        (128, np.uint8, 3 / 127),
        (0, np.uint8, 3 / 255),  # may stand for a Relu
        (-128, np.int8, 3 / 255),
        (255, np.uint8, 3 / 255),
        (None, np.uint8, 3 / 255),  # the file has no zero point
    ],
)
def test_a_zero_point_in_the_middle_or_at_an_end_stays(zero, dtype, expected):
    x = np.linspace(-1, 3, 1001) if zero != 255 else np.linspace(-3, 0, 1001)
    scale, found = best_range(seen(x), quantiser(1.0, zero, dtype))
    assert found == (0 if zero is None else zero) and scale == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("array", [[], [0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_nothing_to_go_by(array):
    assert best_range(seen(np.asarray(array)), quantiser(1.0, 3)) is None
