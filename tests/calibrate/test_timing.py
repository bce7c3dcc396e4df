"""Timing models: what is computed of times, and that models are run. No time is asserted."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.calibrate import timing
from onnxprune.calibrate.timing import Share, Stopwatch
from onnxprune.errors import ModelError

LINEAR = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n,3] x) => (float[n,2] y) <float[3,2] w = {1,2,3,4,5,6}> { y = MatMul(x, w) }"""


def ran(rows=2, width=3):
    return ir.from_onnx_text(LINEAR), {"x": np.ones((rows, width), np.float32)}


def test_a_share_is_the_median_of_rounds():
    times = np.array([[2.0, 4.0, 2.0, 2.0, 2.0], [1.0, 2.0, 1.2, 0.8, 1.0]])
    share = Share.of(times)
    assert (share.before, share.after, share.value) == (2.0, 1.0, 0.5)
    assert share.noise == pytest.approx(0.0)  # the quartiles of 0.5, 0.5, 0.6, 0.4, 0.5 are equal
    noisy = Share.of(np.array([[1.0] * 4, [0.4, 0.5, 0.6, 0.7]]))
    assert noisy.value == pytest.approx(0.55)
    assert noisy.noise == pytest.approx(1.96 * 1.2533 * 0.15 / 1.349 / 2)


def test_a_noise_that_a_machine_shares_cancels():
    drift = np.array([1.0, 3.0, 2.0, 7.0])
    share = Share.of(np.array([drift, 0.6 * drift]))
    assert share.value == pytest.approx(0.6)
    assert share.noise == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("threads", [1, None])
def test_every_model_gets_every_round(threads):
    for together in (False, True):
        times = Stopwatch("cpu", threads).times(
            iter([ran(), ran(5)]), rounds=3, slice_s=0.0, together=together
        )
        assert times.shape == (2, 3)
        assert (times > 0).all()
    assert Stopwatch("cpu", threads).times([], rounds=3, slice_s=0.0).shape == (0, 3)


def test_an_input_that_does_not_fit_is_an_error():
    with pytest.raises(ModelError, match="while the run time was measured"):
        Stopwatch("cpu").times([ran(width=4)], rounds=1, slice_s=0.0)


def test_an_output_of_another_rank_than_declared_is_timed():
    wrong = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n,3] x, int64[k] shape) => (float[m] y) { y = Reshape(x, shape) }"""
    )
    feed = {"x": np.ones((2, 3), np.float32), "shape": np.array([3, 2])}
    times = Stopwatch("cpu", threads=1).times([(wrong, feed)], rounds=2, slice_s=0.001)
    assert times.shape == (1, 2) and (times > 0).all()


def test_few_sessions_are_held_at_once(monkeypatch):
    monkeypatch.setattr(timing, "TOGETHER", 2)
    assert [len(part) for part in timing._parts([ran()] * 5)] == [2, 2, 1]
    monkeypatch.setattr(timing, "BYTES", 24)
    assert [len(part) for part in timing._parts([ran()] * 3)] == [1, 1, 1]
    assert list(timing._parts([])) == []


def test_a_comparison_goes_on_while_it_is_noisy(monkeypatch):
    calls = []

    def times(self, models, *, rounds, slice_s, together):
        calls.append(together)
        share = 0.4 if len(calls) % 2 else 0.6
        return np.array([[1.0] * rounds, [share] * rounds])

    monkeypatch.setattr(Stopwatch, "times", times)
    share = Stopwatch("cpu").share(ran(), ran())
    assert calls == [True] * timing.TURNS[1]
    assert share.value == pytest.approx(0.5)
    assert share.noise > 0.05
    monkeypatch.setattr(timing, "LONGEST", -1.0)
    Stopwatch("cpu").share(ran(), ran())
    assert len(calls) == timing.TURNS[1] + timing.TURNS[0]
    monkeypatch.setattr(Stopwatch, "times", lambda self, models, *, rounds, **_: np.ones((2, rounds)))
    assert Stopwatch("cpu").share(ran(), ran()) == Share(1.0, 1.0, 1.0, 0.0)


def test_conditions_in_words():
    assert Stopwatch("cpu").conditions == "CPUExecutionProvider, onnxruntime's default threads"
    assert Stopwatch("cpu", 1).conditions == "CPUExecutionProvider, 1 thread"
    assert Stopwatch("cpu", 4).conditions == "CPUExecutionProvider, 4 threads"
