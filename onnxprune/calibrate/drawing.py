"""How the values of one generated input are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from onnxprune.calibrate.checks import kind
from onnxprune.calibrate.dataset import Array
from onnxprune.calibrate.spectra import coloured_noise, picture

Likeness: TypeAlias = Literal[
    "noise", "picture", "signal", "integers", "ones", "zeros", "positions", "length"
]
"""What an input looks like in use."""

_WORDS = {"noise": "noise", "picture": "pictures", "signal": "signals"}


_TEXTS = ("", "a", "the", "word")
"""What strings are: nothing is known about those that a model wants."""


@dataclass(frozen=True)
class Drawing:
    """What an input looks like, and in which units.

    Parameters
    ----------
    likeness
        "noise": normal floats, each for itself; coins for booleans, some words
        for strings. "picture": see
        :func:`~onnxprune.calibrate.spectra.picture`. "signal": noise that is smooth along `axes`. "integers": those
        in ``[0, count)``. "ones", "zeros": of any type. "positions": 0, 1, 2, ... along the last axis. "length":
        `count` itself.
    axes
        Along which signals are smooth; ascending.
    channel
        Axis of a picture's colours, or of what `mean` and `std` have one entry each for.
    mean, std
        Of floats and pictures: one number, or one per channel.
    low, high
        What lies outside is set to these.
    count
        For integers, positions and lengths.
    """

    likeness: Likeness = "noise"
    axes: tuple[int, ...] = ()
    channel: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    low: float = -np.inf
    high: float = np.inf
    count: int = 2

    def __str__(self) -> str:
        """In words, for the report."""
        if self.likeness in ("ones", "zeros"):
            return self.likeness
        if self.likeness == "length":
            return f"the length {self.count}"
        if self.likeness in ("integers", "positions"):
            return f"{self.likeness} below {self.count}"
        if np.isfinite(self.high):
            return f"{_WORDS[self.likeness]} from {self.low:g} to {self.high:g}"
        mean, std = (
            ", ".join(f"{figure:.3g}" for figure in figures[:3]) for figures in (self.mean, self.std)
        )
        more = ", ..." if max(len(self.mean), len(self.std)) > 3 else ""
        return f"{_WORDS[self.likeness]} of mean {mean}{more} and deviation {std}{more}"

    def draw(self, rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """Values of one sample."""
        if self.likeness in ("ones", "zeros"):
            return np.full(shape, int(self.likeness == "ones")).astype(dtype)
        if self.likeness == "length":
            return np.full(shape, self.count).astype(dtype)
        if self.likeness == "positions":
            counted = np.arange(shape[-1] if shape else 1) % self.count
            return np.broadcast_to(counted if shape else counted[0], shape).astype(dtype)
        if self.likeness == "picture" or kind(dtype) == "float":
            values = np.clip(self._floats(rng, shape), self.low, self.high)
            return np.asarray(values if kind(dtype) == "float" else np.rint(values)).astype(dtype)
        if kind(dtype) == "string":
            return np.asarray(rng.choice(np.array(_TEXTS, object), shape), object)
        high = 2 if kind(dtype) == "bool" else self.count
        return np.asarray(rng.integers(0, high, size=shape)).astype(dtype)

    def _floats(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        if self.likeness == "picture" and self.channel is not None:
            values = picture(rng, shape, self.channel)
        elif self.likeness == "signal":
            values = coloured_noise(rng, shape, self.axes)
        else:
            values = np.asarray(rng.standard_normal(shape))
        return values * self._spread(self.std, shape) + self._spread(self.mean, shape)

    def _spread(self, figures: tuple[float, ...], shape: tuple[int, ...]) -> Array:
        """Of the shape of the sample, or 1 along every axis but that of the channels."""
        if len(figures) == 1 or self.channel is None:
            return np.array(figures[0])
        return np.array(figures).reshape([-1 if axis == self.channel else 1 for axis in range(len(shape))])
