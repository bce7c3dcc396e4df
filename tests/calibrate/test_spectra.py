"""Generated signals and pictures have the spectrum, the scale and the likeness that they are said to have."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.calibrate.spectra import FINEST, LIKENESS, alike, coloured_noise, leaves, picture


def rng(seed=0):
    return np.random.default_rng(seed)


def slope(power):
    """Of log amplitude over log frequency, the lowest frequencies and the highest left out."""
    amplitude = np.sqrt(power)[1:]
    frequency = np.arange(1, len(amplitude) + 1)
    middle = slice(2, len(amplitude) // 2)
    return np.polyfit(np.log(frequency[middle]), np.log(amplitude[middle]), 1)[0]


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0, 2.0])
def test_the_amplitude_falls_as_asked(exponent):
    noise = coloured_noise(rng(), (400, 128), (1,), exponent)
    power = np.square(np.abs(np.fft.rfft(noise, axis=1))).mean(axis=0)
    assert slope(power) == pytest.approx(-exponent, abs=0.05)


@pytest.mark.parametrize(
    ("shape", "axes"), [((2000, 32), (1,)), ((500, 2, 16, 24), (2, 3)), ((500, 16, 3), (1,)), ((9, 4096), ())]
)
def test_mean_0_and_variance_1_over_many_draws(shape, axes):
    noise = coloured_noise(rng(), shape, axes)
    assert noise.shape == shape
    assert noise.mean() == pytest.approx(0, abs=0.1)
    assert np.square(noise).mean() == pytest.approx(1, abs=0.1)


def test_the_same_in_every_direction_whatever_the_sides():
    """Neighbours along either side of an oblong plane correlate alike; other axes are white."""
    noise = coloured_noise(rng(), (300, 2, 16, 48), (2, 3))
    down = np.mean(noise[..., 1:, :] * noise[..., :-1, :])
    along = np.mean(noise[..., 1:] * noise[..., :-1])
    assert down == pytest.approx(along, abs=0.05)
    assert down > 0.5
    assert abs(np.mean(noise[:, 0] * noise[:, 1])) < 0.1


@pytest.mark.parametrize(
    ("shape", "axes"), [((4, 1), (1,)), ((0, 8), (1,)), ((3, 1, 1), (1, 2)), ((3, 2), (1,))]
)
def test_lines_without_frequencies(shape, axes):
    noise = coloured_noise(rng(), shape, axes)
    assert noise.shape == shape
    assert np.isfinite(noise).all()


def test_channels_are_alike():
    mixed = alike(rng().standard_normal((3, 100_000)), 0)
    assert np.corrcoef(mixed) == pytest.approx(LIKENESS + (1 - LIKENESS) * np.eye(3), abs=0.02)
    assert mixed.std(axis=1) == pytest.approx(np.ones(3), abs=0.02)
    one = rng().standard_normal((1, 5))
    np.testing.assert_allclose(alike(one, 0), one)


def test_pictures_have_the_spectrum_of_photographs():
    """Amplitude like 1/f: between the white noise of their grain and steps everywhere."""
    shown = np.concatenate([picture(rng(seed), (1, 1, 64, 64), 1) for seed in range(60)])[:, 0]
    power = np.square(np.abs(np.fft.fft2(shown))).mean(axis=0)
    assert -1.6 < slope(power[0, :33]) < -0.7
    assert -1.6 < slope(power[:33, 0]) < -0.7


def test_pictures_have_edges():
    """Differences of neighbours are mostly tiny and sometimes large, which no normal noise can do."""
    shown = np.concatenate([leaves(rng(seed), 48, 48, 1) for seed in range(40)])[..., 0]
    steps = np.diff(shown, axis=1)
    assert np.mean(steps == 0) > 0.5
    assert np.mean(np.square(np.square(steps))) / np.mean(np.square(steps)) ** 2 > 6  # 3 for normal noise


@pytest.mark.parametrize(("shape", "channel"), [((1, 3, 20, 30), 1), ((2, 20, 30, 3), 3), ((1, 1, 8, 8), 1)])
def test_pictures_in_both_layouts(shape, channel):
    shown = np.stack([picture(rng(seed), shape, channel) for seed in range(200)])
    assert shown.shape == (200, *shape)
    assert shown.mean() == pytest.approx(0, abs=0.15)
    assert np.square(shown).mean() == pytest.approx(1, abs=0.15)
    colours = np.moveaxis(shown, channel + 1, 0).reshape(shape[channel], -1)
    if shape[channel] == 3:
        assert np.corrcoef(colours)[0, 1] == pytest.approx(LIKENESS, abs=0.1)


def test_the_generator_decides():
    first, again, other = (picture(rng(seed), (1, 3, 16, 16), 1) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1


def test_large_pictures_take_no_more_leaves():
    """Their smallest leaves grow with them: colours, which are as many as leaves, stay as many."""
    few, many = (len(np.unique(leaves(rng(), side, side, 1))) for side in (FINEST * 2, FINEST * 6))
    assert many < 1.5 * few
