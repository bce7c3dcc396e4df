"""Units come back where the greedy order was wrong, and only where the outputs gain from it."""

from __future__ import annotations

import numpy as np
import pytest
from small_nets import Net, save

import onnxprune
from onnxprune.choosing.evidence import Evidence


@pytest.fixture
def misled(tmp_path):
    """Hidden units a, b and nearly a + b; the output is a + b, so the third goes first and is the one to keep."""
    n = Net()
    x = n.data("x", ("batch", 3))
    up = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 0.1]], np.float32)
    h = n.op("MatMul", x, n.constant(up, "up"), name="hidden")
    down = n.constant(np.array([[1, 2], [1, 2], [0, 0]], np.float32), "down")
    return save(n.model(n.op("MatMul", h, down, name="out")), tmp_path / "misled.onnx")


def samples():
    return {"x": np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32)}


def pruned(path, **options):
    return onnxprune.prune(path, ratio=0.66, round_to=1, data=samples(), slim=False, **options)


def kept(done):
    (flags,) = done.plan.keep.values()
    return np.flatnonzero(flags).tolist()


@pytest.mark.parametrize("scope", ["local", "global"])
def test_the_unit_that_stands_in_for_both_comes_back(misled, scope):
    done = pruned(misled, criterion="obs", scope=scope, max_ratio=1.0)
    assert kept(done) == [2]
    (note,) = [line for line in done.report.warnings if "exchange" in line]
    assert "1 unit of 1 group came back" in note
    assert done.report.fidelity.main.sqnr_db > 15


def test_not_where_the_outputs_gain_nothing(misled, monkeypatch):
    monkeypatch.setattr(Evidence, "change", lambda *_: 0.5)
    done = pruned(misled, criterion="obs")
    assert kept(done) in ([0], [1])
    assert not [line for line in done.report.warnings if "exchange" in line]


def test_only_in_the_order_of_least_error(misled):
    """With another criterion its own order stands."""
    assert kept(pruned(misled, criterion="wanda")) in ([0], [1])
