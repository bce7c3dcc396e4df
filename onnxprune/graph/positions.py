"""Union-find over positions, with numpy arrays instead of objects."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.graph.axes import Index


def components(n: int, a: Index, b: Index) -> Index:
    """Connected components of `n` nodes under the edges `a[i] - b[i]`.

    Returns
    -------
    array of shape (n,)
        For every node the smallest node of its component.

    Examples
    --------
    >>> import numpy as np
    >>> components(5, np.array([0, 3]), np.array([2, 4])).tolist()
    [0, 1, 0, 3, 3]
    """
    label = np.arange(n, dtype=np.int64)
    if not len(a):
        return label
    while True:
        la, lb = label[a], label[b]
        open_ = la != lb
        if not open_.any():
            return label
        a, b, la, lb = a[open_], b[open_], la[open_], lb[open_]
        low, high = np.minimum(la, lb), np.maximum(la, lb)
        np.minimum.at(label, high, low)
        while True:  # pointer jumping: every label becomes its root
            root = label[label]
            if np.array_equal(root, label):
                break
            label = root


def hashes(ids: Index) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A fixed 64-bit hash of every id (splitmix64), so that sums of hashes stand for sets of ids."""
    x = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))
