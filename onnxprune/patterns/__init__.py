"""Shapes in which weights are zeroed: single ones, N of M, blocks, channels.

::

    Pattern                       a weight in blocks, each of which goes as a whole
    ├── Element                   "element": every weight for itself
    ├── Block                     "4x1": rows of outputs by columns of inputs
    ├── Head                      "head": attention heads, across layers
    ├── InputChannel              "channelx1": an input channel in all outputs and taps
    ├── OutputChannel             "1xchannel": all of an output channel
    └── NofM                      "2:4": N of M neighbouring inputs, the least important ones

Patterns see arrays, never nodes: a weight is a matrix, one row per output, one column per tap of the kernel
and input channel, channels running fastest (what Neural Compressor calls `[C_out, k_h k_w C_in]`).
"""

from __future__ import annotations

import re

from onnxprune.errors import UsageError
from onnxprune.patterns.block import Block, Element
from onnxprune.patterns.channel import InputChannel, OutputChannel
from onnxprune.patterns.head import Head
from onnxprune.patterns.n_m import NofM
from onnxprune.patterns.pattern import REDUCTIONS, Grid, Pattern

__all__ = [
    "REDUCTIONS",
    "Block",
    "Element",
    "Grid",
    "Head",
    "InputChannel",
    "NofM",
    "OutputChannel",
    "Pattern",
    "parse_pattern",
]

_KNOWN = "element (or 1x1), blocks such as 4x1 or 1x8, channelx1, 1xchannel, head, N:M such as 2:4"


def parse_pattern(text: str) -> Pattern:
    """The pattern that a name stands for.

    Raises
    ------
    UsageError
        It stands for none.

    Examples
    --------
    >>> parse_pattern("4x1")
    Block(rows=4, columns=1)
    >>> parse_pattern("2:4").most
    0.5
    """
    if text in ("element", "1x1"):
        return Element()
    if text in ("channelx1", "1xchannel"):
        return InputChannel() if text == "channelx1" else OutputChannel()
    if text in ("head", "mha"):
        return Head()
    block = re.fullmatch(r"(\d+)x(\d+)", text)
    if block and int(block[1]) and int(block[2]):
        return Block(int(block[1]), int(block[2]))
    n_m = re.fullmatch(r"(\d+):(\d+)", text)
    if n_m and 0 < int(n_m[1]) < int(n_m[2]):
        return NofM(int(n_m[1]), int(n_m[2]))
    raise UsageError(f"there is no pattern {text!r}", f"Known: {_KNOWN} (2 zeros in each 4 inputs).")
