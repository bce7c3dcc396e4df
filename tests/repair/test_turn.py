"""Queries and keys that are turned before dims go: the same logits, and the least error of any lower rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnxprune
from onnxprune.calibrate.data import read_dataset
from onnxprune.calibrate.dataset import input_specs
from onnxprune.choosing.evidence import Evidence
from onnxprune.model.io import load
from onnxprune.repair import turn as module
from onnxprune.repair.turn import spectrum, tails, turn, turned_model
from onnxprune.statistics.moments import Moments
from onnxprune.statistics.products import Product
from tests.repair.query_nets import (
    MODELS,
    closed,
    expanded_keys,
    prune,
    repairs_of,
    separate,
    shared_keys,
    tokens,
)
from tests.repair.test_sequence import error, save
from tests.structures.attention_nets import DEPTH, Net

TURNED = [build for build in MODELS if build not in (shared_keys, expanded_keys)]


def product(centred=False):
    """All that the kernels look at."""
    return Product(None, (), 0, (), (), 0, (), (), centred)


def factors(seed, heads=2, dims=5):
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((heads, n, dims)) @ rng.standard_normal((heads, dims, dims))
        + rng.standard_normal(dims)
        for n in (30, 20)
    ]


def logits(q, k):
    return q @ k.transpose(0, 2, 1)


@pytest.fixture
def undamped(monkeypatch):
    monkeypatch.setattr(module, "RIDGE", 1e-12)


@pytest.mark.usefixtures("undamped")
@given(st.integers(0, 2**32 - 1))
def test_logits_stay_and_second_moments_are_alike(seed):
    q, k = factors(seed)
    d, left, right = spectrum(product(), (Moments.of(q), Moments.of(k)))
    q, k, before = q @ left.transpose(0, 2, 1), k @ right.transpose(0, 2, 1), logits(q, k)
    np.testing.assert_allclose(logits(q, k), before, atol=1e-6 * np.abs(before).max())
    for x in (q, k):
        second = x.transpose(0, 2, 1) @ x / x.shape[1]
        np.testing.assert_allclose(second, d[:, None] * np.eye(5), atol=1e-5 * d.max())


@pytest.mark.usefixtures("undamped")
@given(st.integers(0, 2**32 - 1), st.booleans(), st.integers(1, 4))
def test_what_goes_costs_what_the_best_lower_rank_does(seed, centred, count):
    q, k = factors(seed)
    seen = Moments.of(q), Moments.of(k)
    gone = np.isin(np.arange(5), np.random.default_rng(seed).permutation(5)[:count])
    found = turn(product(centred), spectrum(product(centred), seen), gone)
    if centred:
        k = k - k.mean(axis=1, keepdims=True)
    whole = logits(q, k)
    left = [(x @ t.transpose(0, 2, 1))[..., ~gone] for x, t in zip((q, k), found.matrices, strict=True)]
    lost = np.square(logits(*left) - whole).sum()
    best = sum(np.square(np.linalg.svd(each, compute_uv=False)[5 - count :]).sum() for each in whole)
    assert lost == pytest.approx(best, rel=1e-4, abs=1e-7 * np.square(whole).sum())
    share = tails(spectrum(product(centred), seen), np.array([0, count]))
    assert share[0] == 0 and share[1] == pytest.approx(best / np.square(whole).sum(), rel=1e-4, abs=1e-7)


def evidence(path):
    analysis = onnxprune.analyze(path)
    return Evidence(analysis, read_dataset(tokens(), input_specs(load(path).ir)))


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_the_model_computes_what_it_did(tmp_path, build):
    """Inside the context, and with the very same weights afterwards."""
    path, turned = save(build(), tmp_path), tmp_path / "turned.onnx"
    known = evidence(path)
    group = next(iter(known.analysis.groups.values()))
    turns = known.turns({group.id: np.arange(group.units) < 2})
    assert bool(turns) == (build in TURNED)
    model = known.analysis.axis_graph.model
    before = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    with turned_model(model, turns):
        same = [
            np.array_equal(before[name], v.const_value.numpy())
            for name, v in model.graph.initializers.items()
        ]
        save(model, tmp_path, turned.name)
    assert all(same) == (not turns)
    assert all(
        v.const_value.numpy() is before[name] or np.array_equal(v.const_value.numpy(), before[name])
        for name, v in model.graph.initializers.items()
    )
    assert error(path, turned, tokens(seed=1)) < 1e-8


@pytest.mark.parametrize("build", TURNED, ids=lambda build: build.__name__)
def test_queries_of_low_rank_lose_dims_for_nothing(tmp_path, build):
    """Tokens of rank 3 make keys of rank 3 around their mean: three of six dims are too many."""
    path, out = save(build(), tmp_path), tmp_path / "out.onnx"
    done = prune(path, out, "affine")
    assert repairs_of(done)["scores"].after < 1e-4
    if build.__name__ != "unbound":  # there values lose dims, too
        assert error(path, out, tokens(seed=1)) < 1e-4


def test_of_queries_alone(tmp_path):
    """Keys of full rank do not matter where queries have little."""
    n = Net()
    x, other = n.tokens(), n.weight((5, 10), "other", low=-1.0, high=1.0)
    q = n.apart(n.linear(x, 10, 24, "q"))
    k = n.apart(n.linear(n.op("Tanh", n.op("Mul", n.op("Add", x, other), n.number(9.0))), 10, 24, "k"))
    path, out = save(closed(n, x, q, k, n.apart(n.linear(x, 10, 24, "v"))), tmp_path), tmp_path / "out.onnx"
    assert repairs_of(prune(path, out, "affine", ratio=0.33))["scores"].after < 1e-4
    assert error(path, out, tokens(seed=1)) < 1e-4


def test_errors_are_told_before_anything_is_cut(tmp_path):
    known = evidence(save(separate(), tmp_path))
    group = next(iter(known.analysis.groups.values()))
    found = known.elimination(group)
    assert found.errors.shape == (DEPTH + 1,) and (np.diff(found.errors) >= 0).all()
    assert found.errors[2] < 1e-6 < found.errors[4] and found.errors[-1] == pytest.approx(1.0)
    gone = np.isin(np.arange(group.units), found.rungs[:2])
    assert known.change({group.id: gone}) < 1e-4 < known.masked_change(group, gone)


def test_a_plan_is_turned_again(tmp_path):
    path, out, again = save(separate(), tmp_path), tmp_path / "out.onnx", tmp_path / "again.onnx"
    done = prune(path, out, "affine")
    onnxprune.apply(path, done.plan, again, compensate="affine", data=tokens())
    assert out.read_bytes() == again.read_bytes()
