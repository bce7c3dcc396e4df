"""Large parameters are scored where they lie, part by part, with the scores of small ones."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.criteria import gather
from onnxprune.criteria.gather import StoredWeights, unit_rows
from onnxprune.criteria.magnitude import CRITERIA
from onnxprune.graph.axes import Axis, Blocked
from onnxprune.graph.groups import AxisUse


def use_of(array: np.ndarray, dim: int, unit: list[int]) -> AxisUse:
    dtype = ir.DataType.from_numpy(array.dtype)
    value = ir.Value(
        name="w", type=ir.TensorType(dtype), shape=ir.Shape(array.shape), const_value=ir.Tensor(array)
    )
    return AxisUse(Axis(value, dim), np.array(unit))


CASES = {
    "columns": (0, list(range(12)), 12),
    "rows": (1, list(range(12)), 12),
    "heads": (1, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5], 6),
    "shuffled, with others between": (0, [3, -1, 0, 1, 2, -1, 3, 0, 1, 2, 4, 4], 5),
    "uneven": (1, [0, 0, 0, 1, 2, 2, -1, 3, 3, 3, 3, 4], 5),
}


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(gather, "LARGE", 40)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("case", CASES)
def test_parts_are_the_units_in_their_order(few, case, dtype):
    dim, unit, units = CASES[case]
    array = np.random.default_rng(0).standard_normal((12, 12)).astype(dtype)
    use = use_of(array, dim, unit)
    stored = StoredWeights("weight", use, None, units)
    whole = unit_rows(array.astype(np.float64), use, None, units)
    np.testing.assert_array_equal(stored.values, whole)
    parts = list(stored.parts())
    assert len(parts) > 1
    assert all(part.dtype == np.float64 and part.size <= max(40, whole.shape[1]) for part in parts[:-1])
    start = 0
    for part in parts:
        width = part.shape[1]  # units with fewer features than those of other parts have no zeros for them
        np.testing.assert_array_equal(part, whole[start : start + len(part), :width])
        assert not whole[start : start + len(part), width:].any()
        start += len(part)
    assert start == units == stored.units
    assert stored.norm == pytest.approx(float(np.linalg.norm(array.astype(np.float64))), rel=1e-14)


@pytest.mark.parametrize("name", ["l1", "l2", "geometric-median", "lamp"])
@pytest.mark.parametrize("normalize", [False, True])
def test_scores_are_those_of_the_whole(few, name, normalize):
    dim, unit, units = CASES["heads"]
    array = np.random.default_rng(1).standard_normal((12, 12)).astype(np.float32)
    use = use_of(array, dim, unit)
    plain = gather.UnitWeights(
        "weight", unit_rows(array.astype(np.float64), use, None, units), float(np.linalg.norm(array))
    )
    options = {"normalize": normalize, "rng": np.random.default_rng(0)}
    expected = CRITERIA[name].score([plain, plain], **options)
    got = CRITERIA[name].score([StoredWeights("weight", use, None, units), plain], **options)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_divided_weights_come_at_once(few):
    array = np.random.default_rng(2).standard_normal((8, 6, 3)).astype(np.float32)
    use, blocked = use_of(array, 1, list(range(12))), Blocked(2, 0)
    (part,) = StoredWeights("weight", use, blocked, 12).parts()
    np.testing.assert_array_equal(part, unit_rows(array.astype(np.float64), use, blocked, 12))
