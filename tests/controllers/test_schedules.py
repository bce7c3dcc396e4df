"""Schedulers: table values, counting, states."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxprune.controllers.inc import read_pruner_config
from onnxprune.controllers.inc_schedules import IterativeScheduler, OneshotScheduler, get_scheduler
from onnxprune.controllers.pruning_schedules import PRUNING_SCHEDULERS, Spans
from onnxprune.controllers.schedules import (
    AdaptiveSparsityScheduler,
    ExponentialSparsityScheduler,
    MultiStepSparsityScheduler,
    PolynomialSparsityScheduler,
    StubCompressionScheduler,
)
from onnxprune.errors import UsageError


class Driven:
    """Something with a level, which may lag behind what is asked for."""

    def __init__(self, lag: float = 0.0) -> None:
        self.asked: list[float] = []
        self.lag = lag
        self.frozen = 0

    def set_level(self, level):
        self.asked.append(level)

    def freeze(self):
        self.frozen += 1

    @property
    def level(self):
        return max((self.asked[-1] if self.asked else 0.0) - self.lag, 0.0)


def epochs(scheduler, count):
    found = []
    for _ in range(count):
        scheduler.epoch_step()
        found.append(scheduler.current_level)
    return found


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("exp", [0.0, 0.438, 0.684, 0.822, 0.9]),
        ("linear", [0.0, 0.225, 0.45, 0.675, 0.9]),
        ("cube", [0.0, 0.0140625, 0.1125, 0.3796875, 0.9]),
        ("cos", [0.9 * (1 - math.cos(math.pi / 8 * i)) for i in range(5)]),
    ],
)
def test_neural_compressors_table(kind, expected):
    config = read_pruner_config({"target_sparsity": 0.9, "end_step": 4, "sparsity_decay_type": kind})
    scheduler = get_scheduler(config)
    assert isinstance(scheduler, IterativeScheduler)
    assert [scheduler.step() for _ in range(5)] == pytest.approx(expected, abs=5e-4)
    assert [scheduler.update_sparsity_ratio(0.9, i, 4) for i in range(5)] == pytest.approx(expected, abs=5e-4)


def test_neural_compressors_start_and_bounds():
    config = read_pruner_config({"target_sparsity": 0.95, "end_step": 2, "max_sparsity_ratio_per_op": 0.8})
    scheduler = get_scheduler(config)
    scheduler.init_ratio = 0.2
    assert [round(scheduler.step(), 6) for _ in range(3)] == [0.2, round(1 - 0.8 * 0.25**0.5, 6), 0.8]
    one = get_scheduler(read_pruner_config({"target_sparsity": 0.7, "start_step": 3, "end_step": 3}))
    assert isinstance(one, OneshotScheduler)
    assert one.current_level == 0.0
    assert one.epoch_step() == 0.7
    other = get_scheduler(config)
    other.load_state(scheduler.get_state())
    assert other.current_level == scheduler.current_level
    with pytest.raises(UsageError):
        other.load_state({})


@pytest.mark.parametrize("init", [0.0, 0.2])
@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_exponential_pruning(init, steps):
    scheduler = PRUNING_SCHEDULERS["exponential"](Driven(), init, 0.6, Spans(2, steps))
    t = steps - 1
    for epoch in range(2, 2 + steps):
        e = epoch - 2
        expected = 0.6 if t == 0 else min(0.6, 1 - (1 - init) * ((1 - 0.6) / (1 - init)) ** (e / t))
        assert scheduler.level_at(epoch) == pytest.approx(expected, abs=1e-12)
    assert [scheduler.level_at(epoch) for epoch in (0, 1)] == [init, init]
    assert scheduler.level_at(1000) == 0.6


def test_exponential_with_bias_goes_through_its_points():
    scheduler = PRUNING_SCHEDULERS["exponential_with_bias"](Driven(), 0.1, 0.8, Spans(0, 17))
    assert scheduler.level_at(0) == pytest.approx(0.1, abs=1e-9)
    assert scheduler.level_at(2) == pytest.approx(0.6, abs=1e-9)  # T = 16, T / 8 = 2
    assert scheduler.level_at(16) == pytest.approx(0.8, abs=1e-12)
    levels = np.array([scheduler.level_at(epoch) for epoch in range(17)])
    assert (np.diff(levels) > 0).all()
    # a exp(-k e) + b: steps shrink by one factor
    ratios = np.diff(levels)[1:] / np.diff(levels)[:-1]
    assert np.allclose(ratios, ratios[0])
    with pytest.raises(UsageError, match="three quarters"):
        PRUNING_SCHEDULERS["exponential_with_bias"](Driven(), 0.7, 0.8, Spans())


def test_baseline_pruning_freezes():
    driven = Driven()
    scheduler = PRUNING_SCHEDULERS["baseline"](driven, 0.0, 0.5, Spans(1, 2))
    assert epochs(scheduler, 5) == [0.0, 0.5, 0.5, 0.5, 0.5]
    assert driven.asked == [0.0, 0.5, 0.5, 0.5, 0.5]
    assert driven.frozen == 2
    assert scheduler.current_pruning_level == 0.5


@pytest.mark.parametrize("concave", [True, False])
@pytest.mark.parametrize("power", [0.9, 3.0])
def test_polynomial_sparsity(concave, power):
    scheduler = PolynomialSparsityScheduler(Driven(), 0.1, 0.6, 10, power=power, concave=concave)
    for epoch in range(15):
        p = min(1.0, epoch / 10)
        expected = 0.6 - 0.5 * (1 - p) ** power if concave else 0.1 + 0.5 * p**power
        assert scheduler.level_at(epoch) == pytest.approx(expected, abs=1e-12)


def test_polynomial_sparsity_within_epochs():
    driven = Driven()
    scheduler = PolynomialSparsityScheduler(driven, 0.0, 0.8, 2, power=1.0, steps_per_epoch=4)
    scheduler.epoch_step()
    for _ in range(4):
        scheduler.step()
    scheduler.epoch_step()
    assert driven.asked == pytest.approx([0.0, 0.0, 0.1, 0.2, 0.3, 0.4])
    assert scheduler.current_step == 3


def test_exponential_sparsity():
    scheduler = ExponentialSparsityScheduler(Driven(), 0.0, 0.9, 4)
    assert [round(level, 3) for level in epochs(scheduler, 6)] == [0.0, 0.438, 0.684, 0.822, 0.9, 0.9]
    assert scheduler.current_sparsity_level == 0.9


def test_multistep_sparsity():
    driven = Driven()
    scheduler = MultiStepSparsityScheduler(driven, [4, 2], [0.1, 0.3, 0.7], freeze_epoch=5)
    assert epochs(scheduler, 6) == [0.1, 0.1, 0.3, 0.3, 0.7, 0.7]
    assert scheduler.target_level == 0.7
    assert driven.frozen == 1
    for steps, levels in (([1], [0.1]), ([1], [0.1, 1.0])):
        with pytest.raises(UsageError, match="multistep_sparsity_levels"):
            MultiStepSparsityScheduler(driven, steps, levels)


def test_adaptive_sparsity_waits_until_the_level_is_reached():
    quick = AdaptiveSparsityScheduler(Driven(), 0.0, 0.12, decay_step=0.05, eps=0.03, patience=1)
    assert epochs(quick, 4) == pytest.approx([0.05, 0.1, 0.12, 0.12])
    patient = AdaptiveSparsityScheduler(Driven(), 0.0, 0.5, decay_step=0.05, patience=2)
    assert epochs(patient, 5) == pytest.approx([0.0, 0.05, 0.05, 0.1, 0.1])
    slow = AdaptiveSparsityScheduler(Driven(lag=0.04), 0.0, 0.5, decay_step=0.05, eps=0.03)
    assert epochs(slow, 4) == pytest.approx([0.05, 0.05, 0.05, 0.05])
    other = AdaptiveSparsityScheduler(Driven(), 0.0, 0.5, decay_step=0.05, patience=2)
    other.load_state(patient.get_state())
    assert other.current_level == patient.current_level


def test_stub():
    stub = StubCompressionScheduler(0.3)
    assert epochs(stub, 2) == [0.3, 0.3]
    stub.step()
    assert stub.get_state() == {"current_step": 0, "current_epoch": 1}


def test_epochs_can_be_given():
    scheduler = ExponentialSparsityScheduler(Driven(), 0.0, 0.9, 4)
    scheduler.epoch_step(2)
    assert scheduler.current_level == pytest.approx(1 - 0.1**0.5)
    scheduler.epoch_step()
    assert scheduler.current_epoch == 3
