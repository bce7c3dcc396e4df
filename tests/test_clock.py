"""Seconds per stage add up to the time that passed, and calls are passed on."""

from onnxprune import clock as module
from onnxprune.clock import Clock


def test_stages_add_up(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    said = []
    clock = Clock(lambda *step: said.append(step))
    for stage, seconds in (("a", 1.0), ("b", 2.0), ("b", 0.5), ("a", 4.0)):
        clock(stage, 0, 1)
        now[0] += seconds
    clock.stop()
    now[0] += 50  # nobody asked any more
    assert clock.seconds == {"a": 5.0, "b": 2.5}
    assert said == [("a", 0, 1), ("b", 0, 1), ("b", 0, 1), ("a", 0, 1)]


def test_nobody_listens():
    clock = Clock()
    clock("a", 0, 0)
    clock.stop()
    assert clock.seconds["a"] >= 0
