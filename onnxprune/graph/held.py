"""Positions that every choice at a Reshape holds: they are pinned before any cut is looked for.

Of the channels behind a shuffle, `(C, 2) -> 2 C`, one can go where its pair can, or where one of the 2 tensors can
that were stacked. Where neither can, no cut takes the channel; what is in front of the Reshape is then free to be
cut along other factors, without regard to it. This goes on from one Reshape to the next.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import replace

import numpy as np

from onnxprune.graph.axes import Axis, Bools
from onnxprune.graph.cuts import Layout, Site, join_labels
from onnxprune.graph.relations import Edge


def hold(layout: Layout) -> Layout:
    """The layout with the positions pinned that no choice leaves free, at whichever of their Reshapes.

    Parameters
    ----------
    layout
        With the pins of barriers and of what is tied to them. Not mutated.
    """
    sites: defaultdict[Site, list[Edge]] = defaultdict(list)
    around: defaultdict[int, dict[Site, None]] = defaultdict(dict)  # sites by the components of their edges
    for edge in layout.choices:
        for axis in (edge.a, edge.b):
            site = (id(edge.where), axis)
            sites[site].append(edge)
            for end in (edge.a, edge.b):
                around[layout.component(end)][site] = None
    pinned = layout.pinned.copy()
    waiting = deque(sites)
    inside = set(sites)
    while waiting:
        site = waiting.popleft()
        inside.discard(site)
        mine = layout.label[layout.positions(site[1])]
        if pinned[mine].all():
            continue
        held = ~pinned[mine]
        for edge in sites[site]:
            held &= _held(layout, pinned, edge, site[1])
            if not held.any():
                break
        else:
            pinned[mine[held]] = True
            again = [other for other in around[layout.component(site[1])] if other not in inside]
            waiting.extend(again)
            inside.update(again)
    return replace(layout, pinned=pinned[layout.label])


def _held(layout: Layout, pinned: Bools, edge: Edge, axis: Axis) -> Bools:
    """For every position of `axis`, whether its unit would hold a pinned position were `edge` chosen."""
    ends = np.concatenate([layout.label[layout.positions(end)] for end in (edge.a, edge.b)])
    labels = np.unique(ends)
    unit = join_labels(layout, labels, (edge,))
    held = np.zeros(len(labels), bool)
    np.logical_or.at(held, unit, pinned[labels])
    return held[unit[np.searchsorted(labels, layout.label[layout.positions(axis)])]]
