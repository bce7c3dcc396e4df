"""Tensors of the original as the cut model has them: the kept positions, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from onnxprune.calibrate.dataset import Feed
from onnxprune.graph.axes import Bools, Kept

Cuts: TypeAlias = Mapping[str, Mapping[int, Bools]]
"""Kept positions per axis, by the tensor's name; tensors that keep their shape are missing."""


def cuts_by_name(kept: Kept) -> Cuts:
    """Kept positions of every tensor that gets smaller."""
    cuts: dict[str, dict[int, Bools]] = {}
    for axis, flags in kept.items():
        cuts.setdefault(str(axis.value.name), {})[axis.dim] = flags
    return cuts


def cut_array(array: np.ndarray[Any, Any], kept: Mapping[int, Bools]) -> np.ndarray[Any, Any]:
    """The kept positions of one tensor."""
    for dim, flags in kept.items():
        array = np.compress(flags, array, axis=dim)
    return array


def cut_feed(feed: Mapping[str, np.ndarray[Any, Any]], cuts: Cuts) -> Feed:
    """Tensors by name, those among `cuts` with their kept positions only."""
    return {name: cut_array(a, cuts[name]) if name in cuts else a for name, a in feed.items()}
