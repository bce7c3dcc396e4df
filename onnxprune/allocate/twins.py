"""Vectors that one initializer of the file holds for several layers.

Exporters store equal biases and scales once. `normalize` splits them, so that sharing alone ties nothing, and
`finalize` merges again what is still equal. They count once for as long as they are equal, which depends on
the cut: this module tells by how much a count of all of them is too high.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Bools, Index
from onnxprune.graph.build import AxisGraph
from onnxprune.graph.groups import Partition
from onnxprune.model.origin import twins


@dataclass(frozen=True)
class _Twin:
    """One of several vectors with the same data: the groups that cut it, and the unit of each position."""

    data: np.ndarray[Any, Any]
    cuts: tuple[tuple[str, Index], ...]

    def content(self, keep: Mapping[str, Bools]) -> np.ndarray[Any, Any]:
        stays = np.ones(len(self.data), bool)
        for group, unit in self.cuts:
            if group in keep:
                stays &= np.where(unit >= 0, keep[group][np.maximum(unit, 0)], True)
        return self.data[stays]


class TwinVectors:
    """Counts the elements of vectors that are stored once but used several times, for any choice of units."""

    def __init__(self, axis_graph: AxisGraph, partition: Partition) -> None:
        root_of = twins(axis_graph.model.graph)
        shared = {*root_of, *root_of.values()}
        members = {
            str(v.name): v for v in axis_graph.parameters if v.name in shared and v.const_value is not None
        }
        cuts: dict[ir.Value, list[tuple[str, Index]]] = defaultdict(list)
        for group in partition.groups if members else ():
            for use in group.axes:
                if use.axis.value.name in members:
                    cuts[use.axis.value].append((group.id, use.unit))
        families: dict[str, list[_Twin]] = defaultdict(list)
        for name, value in members.items():
            if value.const_value is not None:
                data = np.ravel(np.asarray(value.const_value.numpy()))
                families[root_of.get(name, name)].append(_Twin(data, tuple(cuts[value])))
        self._families = tuple(family for family in families.values() if len(family) > 1)

    def surplus(self, keep: Mapping[str, Bools]) -> int:
        """Elements that a count of all twins counts too often when each group keeps the flagged units."""
        total = 0
        for family in self._families:
            contents = [twin.content(keep) for twin in family]
            stored = {content.tobytes(): content.size for content in contents}
            total += sum(content.size for content in contents) - sum(stored.values())
        return total
