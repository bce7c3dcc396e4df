"""Products of queries and keys: how they lie in a model, and their moments against numpy."""

from __future__ import annotations

import numpy as np
import pytest

import onnxprune
from onnxprune.calibrate.data import read_dataset
from onnxprune.calibrate.dataset import input_specs
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.choosing.evidence import Evidence
from onnxprune.model.io import load
from onnxprune.statistics import factors
from onnxprune.statistics.paths import Route
from tests.repair.query_nets import (
    MODELS,
    closed,
    convolved,
    expanded_keys,
    fused,
    gemm,
    separate,
    shared_keys,
    tokens,
    unbound,
)
from tests.repair.test_sequence import save
from tests.structures.attention_nets import DEPTH, HEADS, INNER, TOKENS, WIDTH, Net, digit


def evidence(model, tmp_path, count=60):
    path = save(model, tmp_path)
    return Evidence(onnxprune.analyze(path), read_dataset(tokens(count), input_specs(load(path).ir)))


def product(model, tmp_path):
    (found,) = evidence(model, tmp_path).products
    return found


EACH = np.arange(INNER).reshape(HEADS, DEPTH)


@pytest.mark.parametrize(
    ("build", "queries", "keys"),
    [
        (separate, EACH, EACH),
        (fused, EACH, EACH + INNER),
        (unbound, EACH, EACH + INNER),
        (gemm, EACH, EACH),
        (convolved, EACH, EACH),
        (shared_keys, EACH, None),
        (expanded_keys, EACH, None),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_channels_of_every_head(tmp_path, build, queries, keys):
    found = product(build(), tmp_path)
    np.testing.assert_array_equal(found.channels[0], queries)
    assert found.turns == (keys is not None) and found.centred and found.mixed == 0
    if keys is not None:
        np.testing.assert_array_equal(found.channels[1], keys)


def test_dims_that_run_slowest(tmp_path):
    """(B, N, D, H): the channels of a head lie apart."""
    n = Net()
    x = n.tokens()
    q, k, v = (
        n.permute(n.reshape(n.linear(x, WIDTH, INNER, name), 0, TOKENS, DEPTH, HEADS), 0, 3, 1, 2)
        for name in "qkv"
    )
    found = product(closed(n, x, q, k, v), tmp_path)
    heads = digit(DEPTH, HEADS, of=1)
    np.testing.assert_array_equal(found.channels[0], [np.flatnonzero(heads == h) for h in range(HEADS)])


def test_numbers_on_the_way_are_multiplied(tmp_path):
    def scaled(n, q, k):
        return n.op("Div", n.op("Mul", n.number(3.0), q), n.number(2.0)), k

    assert product(separate(scaled), tmp_path).route.factor == pytest.approx(1.5)


def changed(op, slot=0):
    def change(n, q, k):
        pair = [q, k]
        pair[slot] = n.op(op, pair[slot])
        return pair

    return change


def test_one_factor_is_enough_to_be_mixed(tmp_path):
    found = product(separate(changed("Sigmoid")), tmp_path)
    assert found.mixed == 1 and isinstance(found.route, Route) and not found.turns
    assert found.routes[0] == "there is Sigmoid between it and the layer before it"


def test_keys_are_centred_only_for_a_softmax(tmp_path):
    n = Net()
    x = n.tokens()
    q, k, v = n.project(x)
    products = n.op("MatMul", q, n.permute(k, 0, 1, 3, 2), name="scores")
    mixed = n.op("ReduceMean", n.op("MatMul", n.op("Relu", products), v), n.constant([1]), keepdims=0)
    assert not product(n.model(n.op("Add", x, n.linear(mixed, DEPTH, WIDTH, "proj"))), tmp_path).centred


def values(model, feeds, names):
    copy = model.clone()
    found = {str(out.name): out for node in copy.graph for out in node.outputs}
    copy.graph.outputs.extend(found[name] for name in names)
    session = open_session(copy, threads=1)
    runs = [run(session, feed) for feed in feeds]
    return [np.concatenate([each[name] for each in runs]) for name in names]


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_moments_are_those_of_all_rows(tmp_path, build):
    known = evidence(build(), tmp_path, 20)
    (found,) = known.products
    seen, held = known.product_statistics[found.node], known.held_statistics[found.node]
    model = known.analysis.axis_graph.model
    q, k = values(model, tokens(20), [str(axis.value.name) for axis in found.axes])
    q, k = (np.broadcast_to(x.reshape(20, -1, *x.shape[-2:]), (20, HEADS, *x.shape[-2:])) for x in (q, k))
    for slot, x in enumerate((q, k.swapaxes(-1, -2))):
        rows = x.transpose(1, 0, 2, 3).reshape(HEADS, -1, DEPTH).astype(np.float64)
        gram = seen[slot].gram + held[slot].gram
        np.testing.assert_allclose(gram, rows.transpose(0, 2, 1) @ rows, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(seen[slot].total + held[slot].total, rows.sum(axis=1), atol=1e-3)
        assert seen[slot].count + held[slot].count == 20 * TOKENS


def test_some_rows_are_enough(tmp_path, monkeypatch):
    """The share is the same in all batches, and one product per pass gives the same moments."""
    known = evidence(separate(), tmp_path)
    (found,) = known.products
    monkeypatch.setattr(factors, "FEWEST", 0)
    monkeypatch.setattr(factors, "ROWS", 10)
    few = known.product_statistics[found.node][0]
    every = 48 * TOKENS
    assert few.count == pytest.approx(10 * DEPTH, rel=0.3) and few.count < every
    monkeypatch.undo()
    known.__dict__.pop("product_statistics")
    whole = known.product_statistics[found.node][0]
    np.testing.assert_allclose(few.gram / few.count, whole.gram / whole.count, atol=0.5)
