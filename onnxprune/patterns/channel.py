"""Whole channels of one layer. Zeroed, not removed: removal takes the whole group (`onnxprune prune`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.patterns.pattern import Array, Bools, Grid, Reduce


@dataclass(frozen=True)
class InputChannel:
    """An input channel, in all outputs and at all taps of the kernel."""

    @property
    def name(self) -> str:
        """As Neural Compressor names it."""
        return "channelx1"

    @property
    def most(self) -> float:
        """Everything."""
        return 1.0

    def refuses(self, grid: Grid) -> str:
        """Nothing."""
        return ""

    def goes(self, grid: Grid) -> int:
        """All weights that see a channel."""
        return grid.outputs * grid.taps

    def reduce(self, scores: Array, grid: Grid, how: Reduce) -> Array:
        """Shape (channels,)."""
        return np.asarray(how(scores.reshape(-1, grid.channels), axis=0))

    def spread(self, values: Array, grid: Grid) -> Array:
        """To the channel's columns."""
        return np.broadcast_to(np.tile(values, grid.taps), grid.shape).copy()

    def zeros(self, gone: Bools, scores: Array, grid: Grid) -> Bools:
        """The flagged channels' columns."""
        return self.spread(gone, grid)


@dataclass(frozen=True)
class OutputChannel:
    """An output channel: a whole filter, whatever its kernel."""

    @property
    def name(self) -> str:
        """As Neural Compressor names it."""
        return "1xchannel"

    @property
    def most(self) -> float:
        """Everything."""
        return 1.0

    def refuses(self, grid: Grid) -> str:
        """Nothing."""
        return ""

    def goes(self, grid: Grid) -> int:
        """All weights of a filter."""
        return grid.columns

    def reduce(self, scores: Array, grid: Grid, how: Reduce) -> Array:
        """Shape (outputs,)."""
        return np.asarray(how(scores, axis=1))

    def spread(self, values: Array, grid: Grid) -> Array:
        """To the filter's row."""
        return np.broadcast_to(values[:, None], grid.shape).copy()

    def zeros(self, gone: Bools, scores: Array, grid: Grid) -> Bools:
        """The flagged filters' rows."""
        return self.spread(gone, grid)
