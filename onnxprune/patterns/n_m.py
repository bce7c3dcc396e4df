"""N:M: of each M neighbouring inputs the N least important ones go.

Along the input channels, which is what sparse tensor cores take (2:4, Mishra et al. 2021,
https://arxiv.org/abs/2104.08378): of a convolution, M channels at one tap of the kernel. As in Neural
Compressor, a level below N/M means that only some of the M-tuples lose N of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.patterns.pattern import Array, Bools, Grid, Reduce


@dataclass(frozen=True)
class NofM:
    """N zeros in each M.

    Parameters
    ----------
    n
        Weights of a tuple that become zero.
    m
        Weights of a tuple.
    """

    n: int
    m: int

    @property
    def name(self) -> str:
        """Such as "2:4"."""
        return f"{self.n}:{self.m}"

    @property
    def most(self) -> float:
        """N of M."""
        return self.n / self.m

    def refuses(self, grid: Grid) -> str:
        """Tuples do not go from one tap of a kernel to the next."""
        if grid.channels % self.m:
            return f"{grid.channels} input channels are not divisible by {self.m}"
        return ""

    def goes(self, grid: Grid) -> int:
        """N weights of a tuple."""
        return self.n

    def reduce(self, scores: Array, grid: Grid, how: Reduce) -> Array:
        """Shape (outputs, columns / M): of the N weights of a tuple that would go."""
        tuples = scores.reshape(grid.outputs, -1, self.m)
        return np.asarray(how(np.sort(tuples, axis=2)[:, :, : self.n], axis=2))

    def spread(self, values: Array, grid: Grid) -> Array:
        """Repeat each value over its tuple."""
        return values.repeat(self.m, axis=1)

    def zeros(self, gone: Bools, scores: Array, grid: Grid) -> Bools:
        """The N least of every flagged tuple; of equal ones the first."""
        tuples = scores.reshape(grid.outputs, -1, self.m)
        rank = np.argsort(np.argsort(tuples, axis=2, kind="stable"), axis=2, kind="stable")
        return np.asarray((rank < self.n) & gone[:, :, None]).reshape(grid.shape)
