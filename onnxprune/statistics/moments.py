"""Sums that many samples leave behind: how often, how much, and how much together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Matrix = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Moments:
    """First and second moments of rows, in float64; shards add up: `moments(a) + moments(b)`.

    Attributes
    ----------
    count
        Number of rows.
    total
        Shape (groups, columns): the sum of all rows. The groups of a convolution see columns of their own.
    gram
        Shape (groups, columns, columns): the sum of `row^T row`.
    """

    count: float
    total: Matrix
    gram: Matrix

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.gram + other.gram)

    @property
    def mean(self) -> Matrix:
        """Shape (groups, columns)."""
        return self.total / max(self.count, 1.0)

    @property
    def covariance(self) -> Matrix:
        """Shape (groups, columns, columns), around the mean; symmetric."""
        mean = self.mean
        around = self.gram / max(self.count, 1.0) - mean[:, :, None] * mean[:, None, :]
        return (around + around.transpose(0, 2, 1)) / 2

    @classmethod
    def of(cls, rows: np.ndarray[Any, Any]) -> Moments:
        """Of an array of shape (groups, rows, columns)."""
        rows = np.asarray(rows, np.float64)
        return cls(float(rows.shape[1]), rows.sum(axis=1), rows.transpose(0, 2, 1) @ rows)
