"""Which layer of a model is which layer of the model that it came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.inspection.layers import WeightLayer


@dataclass(frozen=True)
class Match:
    """A layer then and now, and what they were matched by: "weight" (its name), "node" (its name) or "order"."""

    before: WeightLayer
    after: WeightLayer
    by: str


def fits(before: WeightLayer, after: WeightLayer) -> bool:
    """Whether `after` can be what is left of `before`: the same operator and kernel, no more channels."""
    return (
        _kind(before) == _kind(after)
        and before.place.taps == after.place.taps
        and len(before.shape) == len(after.shape)
        and before.shape[2:] == after.shape[2:]
        and after.outputs <= before.outputs
        and after.inputs <= before.inputs
    )


def match(before: Sequence[WeightLayer], after: Sequence[WeightLayer]) -> tuple[Match, ...]:
    """Match layers by the names of their weights, else of their nodes, else by order where shapes allow it.

    Returns
    -------
    tuple
        In the order of `before`. A layer that is in no match could not be matched; two layers of one name that do
        not fit together are no match.
    """
    found: dict[WeightLayer, Match] = {}
    taken: set[WeightLayer] = set()
    names: tuple[tuple[str, Callable[[WeightLayer], str | None]], ...] = (
        ("weight", lambda layer: layer.weight.name),
        ("node", lambda layer: layer.place.node.name),
    )
    for by, name in names:
        candidates = {name(layer): layer for layer in after if layer not in taken and name(layer)}
        for layer in before:
            other = candidates.get(name(layer))
            if layer not in found and other is not None and other not in taken and fits(layer, other):
                found[layer] = Match(layer, other, by)
                taken.add(other)
    old = [layer for layer in before if layer not in found]
    new = [layer for layer in after if layer not in taken]
    for i, j in _in_order(old, new):
        found[old[i]] = Match(old[i], new[j], "order")
    return tuple(found[layer] for layer in before if layer in found)


def _in_order(before: Sequence[WeightLayer], after: Sequence[WeightLayer]) -> list[tuple[int, int]]:
    """The longest run of pairs in the order of both; of equally long ones the one with most equal shapes."""
    best = np.zeros((len(before) + 1, len(after) + 1))
    for i in reversed(range(len(before))):
        for j in reversed(range(len(after))):
            best[i, j] = max(best[i + 1, j], best[i, j + 1])
            if fits(before[i], after[j]):
                best[i, j] = max(best[i, j], best[i + 1, j + 1] + _worth(before[i], after[j]))
    pairs, i, j = [], 0, 0
    while i < len(before) and j < len(after):
        together = best[i + 1, j + 1] + _worth(before[i], after[j])
        if fits(before[i], after[j]) and best[i, j] == together:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif best[i, j] == best[i + 1, j]:
            i += 1
        else:
            j += 1
    return pairs


def _worth(before: WeightLayer, after: WeightLayer) -> float:
    return 1 + (before.shape == after.shape) * 2.0**-20


def _kind(layer: WeightLayer) -> str:
    """Gemm and MatMul are two spellings of one layer."""
    return "linear" if layer.op_type in ("Gemm", "MatMul") else layer.op_type
