from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.graph.positions import components, hashes


@st.composite
def edges(draw):
    n = draw(st.integers(1, 30))
    node = st.integers(0, n - 1)
    return n, draw(st.lists(st.tuples(node, node), max_size=60))


@given(edges())
def test_components_are_those_of_a_search(case):
    n, pairs = case
    index = np.array(pairs, np.int64).reshape(-1, 2)
    found = components(n, index[:, 0], index[:, 1])
    neighbours = {i: {i} for i in range(n)}
    for a, b in pairs:
        neighbours[a].add(b)
        neighbours[b].add(a)
    for start in range(n):
        seen, queue = {start}, [start]
        while queue:
            for other in neighbours[queue.pop()] - seen:
                seen.add(other)
                queue.append(other)
        assert found[start] == min(seen)


def test_a_long_chain():
    n = 100_000
    order = np.random.default_rng(0).permutation(n)
    assert (components(n, order[:-1], order[1:]) == 0).all()


def test_hashes_tell_ids_apart():
    assert len(np.unique(hashes(np.arange(100_000)))) == 100_000
    assert np.array_equal(hashes(np.arange(5)), hashes(np.arange(5)))
