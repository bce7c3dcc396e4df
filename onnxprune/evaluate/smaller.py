"""Tensors of the original as the cut model has them: the kept positions, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from onnxprune.calibrate.dataset import Feed
from onnxprune.graph.axes import Blocked, Bools, Kept
from onnxprune.surgery.keep import slice_array

Cuts: TypeAlias = Mapping[str, Mapping[int, Bools]]
"""Kept positions per axis, by the tensor's name; tensors that keep their shape are missing."""

Divided: TypeAlias = Mapping[str, Mapping[int, Blocked]]
"""How dims of tensors are divided, by the tensor's name."""


def cuts_by_name(kept: Kept) -> Cuts:
    """Kept positions of every tensor that gets smaller."""
    cuts: dict[str, dict[int, Bools]] = {}
    for axis, flags in kept.items():
        cuts.setdefault(str(axis.value.name), {})[axis.dim] = flags
    return cuts


def cut_feed(feed: Mapping[str, np.ndarray[Any, Any]], cuts: Cuts, divided: Divided | None = None) -> Feed:
    """Tensors by name, those among `cuts` with their kept positions only.

    Parameters
    ----------
    divided
        How dims of some of them are divided; graph inputs and outputs never are.
    """
    return {
        name: slice_array(a, cuts[name], (divided or {}).get(name, {})) if name in cuts else a
        for name, a in feed.items()
    }
