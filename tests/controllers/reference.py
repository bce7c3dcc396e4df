"""NNCF's and Neural Compressor's documented formulas, written out with numpy, sharing nothing with onnxprune."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import numpy as np


def importance(weight: np.ndarray, kind: str, *, normalize: bool = False) -> np.ndarray:
    """Of every filter; `weight` has the filters first."""
    rows = weight.astype(np.float64).reshape(len(weight), -1)
    if normalize:
        rows = rows / np.sqrt((rows**2).sum())
    if kind == "L1":
        return np.abs(rows).sum(axis=1)
    if kind == "L2":
        return np.sqrt((rows**2).sum(axis=1))
    return np.array([sum(np.sqrt(((a - b) ** 2).sum()) for b in rows) for a in rows])


def pruned_of(filters: int, level: str) -> int:
    """NNCF's rounding: how many of a group's filters go."""
    return max(filters - ceil(filters * (1 - Fraction(level)) / 8) * 8, 0)


def uniform(groups: dict[str, list[np.ndarray]], kind: str, level: str) -> dict[str, np.ndarray]:
    """Masks (true = stays) when every group loses what the rounding rule says."""
    masks = {}
    for name, weights in groups.items():
        total = sum(importance(weight, kind) for weight in weights)
        mask = np.ones(len(total), bool)
        mask[np.argsort(total, kind="stable")[: pruned_of(len(total), level)]] = False
        masks[name] = mask
    return masks


def ranking(groups: dict[str, list[np.ndarray]], kind: str):
    """(score, group, filter) of all filters in the order in which they go, at most 90 % of a group."""
    scored = []
    for number, (name, weights) in enumerate(groups.items()):
        total = sum(importance(weight, kind, normalize=True) for weight in weights)
        scored += [(score, number, index, name) for index, score in enumerate(total)]
    left = {name: floor(0.9 * len(weights[0])) for name, weights in groups.items()}
    for _, _, index, name in sorted(scored):
        if left[name]:
            left[name] -= 1
            yield name, index


def globally(groups: dict[str, list[np.ndarray]], kind: str, count: int) -> dict[str, np.ndarray]:
    """Masks when so many filters go by one ranking."""
    masks = {name: np.ones(len(weights[0]), bool) for name, weights in groups.items()}
    for number, (name, index) in enumerate(ranking(groups, kind)):
        if number == count:
            break
        masks[name][index] = False
    return masks


def lowest(scores: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Flags of the `count` lowest scores over all arrays; equal ones in order."""
    flat = np.concatenate([s.ravel() for s in scores.values()])
    gone = np.zeros(flat.size, bool)
    gone[np.argsort(flat, kind="stable")[:count]] = True
    found, start = {}, 0
    for name, s in scores.items():
        found[name] = gone[start : start + s.size].reshape(s.shape)
        start += s.size
    return found


def as_rows(weight: np.ndarray) -> np.ndarray:
    """Neural Compressor's view of a weight: [C_out, k_h k_w C_in], channels running fastest."""
    if weight.ndim == 2:
        return weight.astype(np.float64)
    return np.moveaxis(weight.astype(np.float64), 1, -1).reshape(len(weight), -1)


def as_weight(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The way back."""
    if len(shape) == 2:
        return rows
    return np.moveaxis(rows.reshape(shape[0], *shape[2:], shape[1]), -1, 1)


def blocks(rows: np.ndarray, n: int, m: int) -> np.ndarray:
    """One number per block of n x m: the mean."""
    return np.array(
        [
            [rows[i : i + n, j : j + m].mean() for j in range(0, rows.shape[1], m)]
            for i in range(0, rows.shape[0], n)
        ]
    )


def block_zeros(
    scores: dict[str, np.ndarray],
    shape: tuple[int, int],
    level: float,
    least: float = 0.0,
    most: float = 1.0,
) -> dict[str, np.ndarray]:
    """Zeros of blocks by one ranking within bounds per layer, one block at a time."""
    n, m = shape
    means = {name: blocks(rows, n, m) for name, rows in scores.items()}
    size = n * m
    total = floor(level * sum(rows.size for rows in scores.values()) + 1e-9)
    gone = {name: np.zeros(each.size, bool) for name, each in means.items()}
    order = {name: np.argsort(each.ravel(), kind="stable") for name, each in means.items()}
    taken = 0
    for name, rows in scores.items():  # the least shares are reserved first
        need = ceil(ceil(least * rows.size - 1e-9) / size)
        gone[name][order[name][:need]] = True
        taken += need * size
    every = sorted(
        (value, number, position, name)
        for number, (name, each) in enumerate(means.items())
        for position, value in enumerate(each.ravel())
    )
    for _, _, position, name in every:
        if gone[name][position]:
            continue
        if (gone[name].sum() + 1) * size > floor(most * scores[name].size + 1e-9):
            continue  # this layer is frozen: the others lose what it may not
        if taken + size > total:
            break
        gone[name][position] = True
        taken += size
    return {
        name: np.kron(flags.reshape(means[name].shape), np.ones((n, m))).astype(bool)
        for name, flags in gone.items()
    }


def chain_macs(widths):
    """Of convnet: 3x3 convolutions of 8x8 images one after the other, and a linear layer."""
    three, total = 3, 0
    for width in widths:
        total += three * width * 9 * 64
        three = width
    return total + three * 4
