"""Whole attention heads, across the layers that make and consume them."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.patterns.block import Element


@dataclass(frozen=True)
class Head(Element):
    """Heads (Neural Compressor's `mha`).

    No division of one weight: a head is a unit of a group (`onnxprune.sparsity.heads`). Within a layer every weight
    is for itself, as criteria see it.
    """

    @property
    def name(self) -> str:
        """As the command line names it."""
        return "head"
