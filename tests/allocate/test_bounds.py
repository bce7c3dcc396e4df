"""At most and at least a share of every group, whatever the scope."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from small_nets import convnet

import onnxprune
from onnxprune.allocate.ladder import build_ladder
from onnxprune.errors import UsageError


@pytest.fixture
def path(tmp_path):
    ir.save(convnet(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def shares(report):
    return {group.id: 1 - group.kept / group.units for group in report.groups}


@pytest.mark.parametrize("scope", ["global", "local", "uniform"])
@pytest.mark.parametrize("target", [{"macs": 0.7}, {"ratio": 0.3}, {"params": 0.7}])
def test_every_group_loses_between_the_bounds(path, scope, target):
    report = onnxprune.prune(
        path, **target, scope=scope, min_ratio=0.2, max_ratio=0.45, round_to=1, best_effort=True
    ).report
    for name, share in shares(report).items():
        units = next(group.units for group in report.groups if group.id == name)
        assert math.ceil(0.2 * units - 1e-9) / units <= share + 1e-12 and share <= 0.45, (name, share)


def test_what_one_group_may_not_lose_the_others_do(path):
    free, bound = (onnxprune.prune(path, macs=0.6, round_to=1, max_ratio=most).report for most in (None, 0.4))
    assert max(shares(free).values()) > 0.4 >= max(shares(bound).values())
    assert bound.after.macs <= 0.6 * bound.before.macs


@pytest.mark.parametrize(
    ("round_to", "min_ratio", "goes"), [(1, 0.1, 2), (8, 0.1, 8), (8, 0.9, 8), (4, 0.5, 8)]
)
def test_the_least_share_is_rounded_up_as_far_as_minima_allow(path, round_to, min_ratio, goes):
    group = next(iter(onnxprune.analyze(path).groups.values()))
    assert group.units == 16
    ladder = build_ladder(group, np.arange(16.0), round_to=round_to, min_channels=1, min_ratio=min_ratio)
    assert ladder.settle(0) == ladder.least == goes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_ratio": 1.0}, "not in"),
        ({"max_ratio": 0.0}, "not in"),
        ({"min_ratio": 0.6, "max_ratio": 0.5}, "above"),
    ],
)
def test_bounds_that_mean_nothing(path, options, said):
    with pytest.raises(UsageError, match=said):
        onnxprune.prune(path, macs=0.7, **options)
