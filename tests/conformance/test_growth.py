"""Analysis and removal work in proportion to the graph, counted in calls: a busy machine does not matter."""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import pytest

from benchmarks.chains import CHAINS
from onnxprune.graph.build import build_axis_graph
from onnxprune.graph.cuts import MAX_CUTS, find_cuts, lay_out
from onnxprune.graph.groups import partition
from onnxprune.model.finalize import finalize
from onnxprune.model.normalize import normalize
from onnxprune.model.shapes import infer_shapes
from onnxprune.rules import default_rules
from onnxprune.surgery.keep import kept_positions
from onnxprune.surgery.remove import remove

SMALL, LARGE = 150, 600


def whole_way(model):
    """Everything between the file and the pruned model that does not look at weights."""
    graph = normalize(model)
    axis_graph = build_axis_graph(graph, infer_shapes(graph), default_rules())
    groups = {group.id: group for group in partition(axis_graph).groups}
    keep = {name: np.arange(group.units) % 2 == 0 for name, group in groups.items() if group.blocks is None}
    assert keep
    return finalize(remove(axis_graph, kept_positions(groups, keep)))


def calls(function, *arguments) -> int:
    """How many functions, Python's and C's, a call runs through."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("kind", CHAINS)
def test_work_grows_like_the_graph(kind):
    models = [CHAINS[kind](nodes) for nodes in (SMALL, LARGE)]
    whole_way(models[0])  # imports and caches
    small, large = (calls(whole_way, model) for model in models)
    growth = models[1].graph.num_nodes() / models[0].graph.num_nodes()
    assert large < 1.25 * growth * small


def test_few_cuts_are_looked_for_where_many_reshapes_hang_together():
    graph = normalize(CHAINS["shuffle"](LARGE))
    layout = lay_out(build_axis_graph(graph, infer_shapes(graph), default_rules()))
    found = Counter(component for cut in find_cuts(layout) for component in cut.components)
    assert max(found.values()) <= MAX_CUTS
