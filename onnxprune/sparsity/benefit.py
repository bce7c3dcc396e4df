"""What zeros in a pattern do and do not buy at run time."""

from __future__ import annotations

import math

from onnxprune.model.sparse import INDEX_BYTES
from onnxprune.patterns import Head, InputChannel, NofM, OutputChannel, Pattern
from onnxprune.sparsity.layers import WeightLayer

PAYS_FROM = 256
"""Channels in and out from which NVIDIA's sparse kernels are faster
(https://github.com/NVIDIA/TensorRT/issues/3849)."""


def pays_from(item: int) -> float:
    """The level from which on a sparse initializer of elements of `item` bytes is smaller than a dense one.

    Examples
    --------
    >>> round(pays_from(4), 3), round(pays_from(2), 3)
    (0.667, 0.8)
    """
    return INDEX_BYTES / (item + INDEX_BYTES)


def buys(pattern: Pattern) -> str:
    """What the pattern does at run time, in a sentence or two."""
    if isinstance(pattern, NofM):
        where = "onnxruntime computes with the zeros as with any number, so the model is not faster there"
        if (pattern.n, pattern.m) == (2, 4):
            return (
                f"{where}; TensorRT with --sparsity=enable has kernels for 2:4 on GPUs from Ampere on, in fp16 "
                f"and int8, and takes them where they are faster, mostly from {PAYS_FROM} channels in and out on"
            )
        return f"{where}; NVIDIA's sparse kernels take 2:4 only"
    if isinstance(pattern, InputChannel | OutputChannel):
        return (
            "zero channels are still computed, so the model is not faster; one whose channels onnxprune slim or "
            "onnxprune prune removed is"
        )
    if isinstance(pattern, Head):
        return (
            "zero heads are still computed, so the model is not faster; one whose heads onnxprune prune "
            "--attention heads removed is"
        )
    name = "zeros anywhere" if pattern.name == "element" else f"zero blocks of {pattern.name}"
    return (
        f"{name} make the model neither faster nor, uncompressed, smaller: onnxruntime has no kernels that "
        f"skip them; --storage sparse saves bytes from {pays_from(4):.0%} zeros on in fp32, and a zipped file is "
        "smaller at any level"
    )


def kernel_note(layer: WeightLayer, pattern: Pattern) -> str:
    """Whether sparse tensor cores can take the layer's weight; empty where the pattern is not theirs."""
    if not isinstance(pattern, NofM) or (pattern.n, pattern.m) != (2, 4):
        return ""
    node, grid = layer.consumer.node, layer.grid
    if node.op_type == "ConvTranspose":
        return "no sparse kernel: transposed convolution"
    if layer.consumer.groups > 1:
        return "no sparse kernel: grouped convolution"
    taps = math.prod(layer.shape[2:]) if layer.consumer.convolves else 1
    if min(grid.channels * taps, grid.outputs) < PAYS_FROM:
        return "eligible, but narrow"
    return "eligible"
