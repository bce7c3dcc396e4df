"""Scales and stored numbers, against the formulas of QuantizeLinear and DequantizeLinear said with loops."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.model.quantized import Layout
from onnxprune.model.rounding import Grid, dequantize, grid_of, limits, quantize, round_rows

INT8, UINT8, INT4, UINT4 = (ir.DataType[name] for name in ("INT8", "UINT8", "INT4", "UINT4"))

LAYOUTS = [Layout(), Layout(0), Layout(1), Layout(2), Layout(0, 2), Layout(1, 4), Layout(2, 3)]
SHAPE = (4, 6, 7)


def indexed(layout, place):
    """The place of an element's scale among the scales."""
    if layout.axis is None:
        return ()
    if not layout.block:
        return (place[layout.axis],)
    return tuple(p // layout.block if d == layout.axis else p for d, p in enumerate(place))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_scales_are_spread_to_their_elements(layout):
    scale = np.arange(np.prod(layout.scales(SHAPE), dtype=int)).reshape(layout.scales(SHAPE)) + 1.0
    spread = layout.spread(scale, SHAPE)
    assert spread.shape == SHAPE
    for place in itertools.product(*(range(extent) for extent in SHAPE)):
        assert spread[place] == scale[indexed(layout, place)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_rows_hold_the_elements_of_one_scale(layout):
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE) + 1
    scale = np.arange(np.prod(layout.scales(SHAPE), dtype=int)).reshape(layout.scales(SHAPE))
    rows, vector = layout.rows(array), layout.vector(scale)
    assert len(rows) == len(vector) == scale.size
    spread = layout.spread(scale, SHAPE)
    for row, number in zip(rows, vector, strict=True):
        np.testing.assert_array_equal(np.sort(row[row > 0]), np.sort(array[spread == number]))
    np.testing.assert_array_equal(layout.unrows(rows, SHAPE), array)
    np.testing.assert_array_equal(layout.unvector(vector, SHAPE), scale)


def test_quantize_rounds_half_to_even_and_saturates():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1000, -1000])
    stored = quantize(x, np.float32(1), np.int8(3), INT8)
    np.testing.assert_array_equal(stored, [3, 5, 5, 3, 1, 127, -128])
    np.testing.assert_array_equal(dequantize(stored, np.float32(2), np.int8(3)), [0, 4, 4, 0, -4, 248, -262])


@pytest.mark.parametrize(
    ("dtype", "ends"),
    [
        ("INT8", (-128, 127)),
        ("UINT8", (0, 255)),
        ("INT4", (-8, 7)),
        ("UINT4", (0, 15)),
        ("INT16", (-32768, 32767)),
    ]
    + [("INT32", (-(2**31), 2**31 - 1)), ("FLOAT8E4M3FN", (-448, 448)), ("FLOAT8E5M2", (-57344, 57344))],
)
def test_limits(dtype, ends):
    assert limits(ir.DataType[dtype]) == ends


@pytest.mark.parametrize(
    ("stored", "zero", "dtype", "expected"),
    [
        ([-127, 5, 127], 0, INT8, (-127, 127, 0)),
        ([-128, 5, 90], 0, INT8, (-128, 127, 0)),
        ([-64, 5, 64], 0, INT8, (-64, 64, 0)),  # 7 bits
        ([1, 255], 128, UINT8, (1, 255, 128)),
        ([0, 255], 7, UINT8, (0, 255, None)),
        ([0, 127], 7, UINT8, (0, 127, None)),
        ([-8, 7], 0, INT4, (-8, 7, 0)),
        ([1, 15], 8, UINT4, (1, 15, 8)),
    ],
)
def test_the_grid_is_what_the_file_uses(stored, zero, dtype, expected):
    grid = grid_of(np.array(stored, dtype.numpy()), np.array(zero, dtype.numpy()), dtype)
    assert (grid.low, grid.high, grid.middle) == expected


@pytest.mark.parametrize(
    "grid",
    [Grid(INT8, -127, 127, 0.0), Grid(UINT8, 0, 255, None), Grid(INT4, -8, 7, 0.0), Grid(UINT4, 0, 15, None)],
)
def test_new_scales_are_at_least_as_good_as_min_max(grid):
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((20, 33)) * rng.uniform(0.01, 3, (20, 1)) + rng.uniform(-1, 1, (20, 1))
    none = np.zeros(20, np.float32)
    stored, scale, zero = round_rows(floats, none, np.zeros(20, grid.dtype.numpy()), grid)
    meant = dequantize(stored, scale[:, None], zero[:, None])
    if grid.middle is None:
        low, high = np.minimum(floats.min(axis=1), 0), np.maximum(floats.max(axis=1), 0)
        step = (high - low) / (grid.high - grid.low)
    else:
        step = np.abs(floats).max(axis=1) / (grid.high - grid.middle)
    bound = (step**2 * floats.shape[1] / 4) * 1.3  # every element is off by half a step at the most
    assert (((meant - floats) ** 2).sum(axis=1) <= bound).all()
    wide = stored.astype(int)
    assert wide.min() >= grid.low and wide.max() <= grid.high
    exact = dequantize(np.asarray(zero[:, None]), scale[:, None], zero[:, None])
    np.testing.assert_array_equal(exact, 0)


def test_the_old_scale_stays_where_it_is_best():
    grid = Grid(INT8, -127, 127, 0.0)
    floats = np.array([[0.01 * k for k in (-50, 3, 7, 20)]])
    stored, scale, _ = round_rows(floats, np.array([0.01], np.float32), np.zeros(1, np.int8), grid)
    assert scale[0] == np.float32(0.01)
    np.testing.assert_array_equal(stored, [[-50, 3, 7, 20]])


def test_rows_of_zeros():
    grid = Grid(UINT8, 0, 255, None)
    stored, scale, zero = round_rows(np.zeros((2, 3)), np.zeros(2, np.float32), np.zeros(2, np.uint8), grid)
    np.testing.assert_array_equal(dequantize(stored, scale[:, None], zero[:, None]), 0)
    assert (scale > 0).all()


def test_the_longer_end_of_a_narrow_grid_is_used():
    grid = Grid(INT4, -8, 7, 0.0)
    floats = np.array([[8.0, -7, 1, 0]])
    stored, scale, zero = round_rows(floats, np.zeros(1, np.float32), np.zeros(1, INT4.numpy()), grid)
    np.testing.assert_array_equal(dequantize(stored, scale[:, None], zero[:, None]), floats)
    assert scale[0] == -1
