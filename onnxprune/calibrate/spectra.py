"""Noise that looks like signals and pictures: large structures carry most of the energy, neighbours vary together.

White noise has as much energy in its finest detail as in everything else, and a few convolutions leave nothing of
it that resembles what a network sees in use. Photographs have an amplitude that falls like 1/f with the spatial
frequency f, whatever they show (Field 1987, "Relations between the statistics of natural images and the response
properties of cortical cells"), and the red, green and blue of a pixel are nearly the same. What normal noise of
that spectrum lacks are edges. A pile of opaque leaves of all sizes has the spectrum and the edges (Lee, Mumford
and Huang 2001, "Occlusion models for natural images"); networks learn more from it than from noise (Baradad et al.
2021, "Learning to see by looking at noise").
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxprune.calibrate.dataset import Array

LIKENESS = 0.9
"""Correlation of the colour channels of a pixel."""

GRAIN = 0.2
"""Standard deviation of the noise on a picture, as a share of the whole; leaves alone would be perfectly flat."""

FINEST = 64
"""Leaves have a radius of at least 1 pixel, and of this part of the longer side."""

LAYERS = 5
"""How many leaves cover a pixel on average."""


def coloured_noise(
    rng: np.random.Generator, shape: Sequence[int], axes: Sequence[int], exponent: float = 1.0
) -> Array:
    """Normal noise whose amplitude falls like ``1 / f**exponent``.

    The mean is 0 and the variance 1 over many draws; a single draw has a mean and a contrast of its own, because
    the mean counts as the lowest frequency.

    Parameters
    ----------
    shape
        Of the result.
    axes
        Along which the noise is smooth, ascending; the frequency is that of the space that they span, in cycles per
        position. Along the others it is white.
    exponent
        0 is white noise, 1 is what photographs have.
    """
    white = rng.standard_normal(tuple(shape))
    extents = [shape[axis] for axis in axes]
    if white.size == 0 or math.prod(extents) == 1:
        return white
    square = np.zeros([shape[axis] if axis in axes else 1 for axis in range(len(shape))])
    for axis in axes:
        steps = np.square(np.fft.fftfreq(shape[axis]))
        square = square + steps.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    square.flat[0] = np.sort(square, axis=None)[1]
    amplitude = square ** (-exponent / 2)
    amplitude /= np.sqrt(np.mean(np.square(amplitude)))
    return np.asarray(np.fft.ifftn(np.fft.fftn(white, axes=axes) * amplitude, axes=axes).real)


def leaves(rng: np.random.Generator, height: int, width: int, channels: int) -> Array:
    """A pile of opaque discs and rectangles, each of one colour: the dead leaves model.

    A radius of r is as frequent as ``1 / r**3``, so that the picture looks the same at every scale. Colours are
    normal, with mean 0 and variance 1, and their channels correlate by `LIKENESS`.

    Returns
    -------
    numpy.ndarray
        (height, width, channels).
    """
    longest = max(height, width)
    smallest = max(1.0, longest / FINEST)
    area = 2 * math.pi * smallest**2 * math.log(max(longest / smallest, 2.0))
    count = math.ceil(LAYERS * height * width / area)
    radius = np.minimum(smallest / np.sqrt(1 - rng.random(count)), longest)
    rows, columns = rng.uniform(0, height, count), rng.uniform(0, width, count)
    stretch = rng.uniform(0.5, 1.5, count)
    top = np.zeros((height, width), np.int64)
    for leaf in range(count):
        disc, reach = leaf % 2 == 0, (radius[leaf], radius[leaf] * stretch[leaf])
        y, x = rows[leaf], columns[leaf]
        tall, wide = (reach[0], reach[0]) if disc else reach
        above, left = max(math.ceil(y - tall), 0), max(math.ceil(x - wide), 0)
        box = top[above : math.ceil(y + tall), left : math.ceil(x + wide)]
        if disc:
            down, along = np.ogrid[above : above + box.shape[0], left : left + box.shape[1]]
            box[np.square(down - y) + np.square(along - x) < radius[leaf] ** 2] = leaf
        else:
            box[...] = leaf
    return alike(rng.standard_normal((count, channels)), 1)[top]


def picture(rng: np.random.Generator, shape: Sequence[int], channel: int) -> Array:
    """Leaves with some grain, as an array of rank 4 with a picture per entry of the leading axis.

    Over many draws the mean is 0 and the variance 1.

    Parameters
    ----------
    shape
        Of the result.
    channel
        Axis of the colours: 1, or 3.
    """
    height, width = (extent for axis, extent in enumerate(shape) if axis not in (0, channel))
    pile = [leaves(rng, height, width, shape[channel]) for _ in range(shape[0])]
    grain = rng.standard_normal((shape[0], height, width, shape[channel]))
    mixed = math.sqrt(1 - GRAIN**2) * np.stack(pile) + GRAIN * grain if pile else grain
    return np.ascontiguousarray(np.moveaxis(mixed, 3, channel))


def alike(noise: Array, axis: int, likeness: float = LIKENESS) -> Array:
    """Mix independent channels so that each two of them correlate; the variance stays.

    Parameters
    ----------
    noise
        Of any shape, channels along `axis`.
    likeness
        The correlation, in [0, 1].
    """
    channels = noise.shape[axis]
    wanted = np.full((channels, channels), likeness) + (1 - likeness) * np.eye(channels)
    values, vectors = np.linalg.eigh(wanted)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return np.asarray(np.moveaxis(np.tensordot(root, noise, axes=(1, axis)), 0, axis))
