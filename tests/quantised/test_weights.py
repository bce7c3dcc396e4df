"""Quantised weights: what they mean, what is left of them after a cut, and how other numbers are stored."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from quantised_nets import Quantised, arrays

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.graph.axes import Blocked
from onnxprune.model import edit
from onnxprune.model.finalize import finalize
from onnxprune.model.normalize import normalize
from onnxprune.model.quantized import QuantizedTensor
from onnxprune.surgery.keep import slice_array
from onnxprune.surgery.stored import cut_quantized

SHAPE = (12, 8)

KINDS = {
    "tensor": {},
    "no zero point": {"zero": False},
    "rows": {"axis": 0},
    "columns": {"axis": 1},
    "unsigned": {"dtype": ir.DataType.UINT8, "axis": 1},
    "blocks of rows": {"axis": 0, "block": 4},
    "blocks of columns": {"axis": 1, "block": 3},
    "int4": {"dtype": ir.DataType.INT4, "axis": 0, "block": 4},
    "uint4": {"dtype": ir.DataType.UINT4, "axis": 1, "block": 4},
    "int4 rows": {"dtype": ir.DataType.INT4, "axis": 0},
    "float8": {"dtype": ir.DataType.FLOAT8E4M3FN},
    "float8 columns": {"dtype": ir.DataType.FLOAT8E5M2, "axis": 1},
}


def model_of(kind: str) -> ir.Model:
    b = Quantised(21)
    return b.model(b.op("MatMul", b.input("x", ("n", SHAPE[0])), b.stored(SHAPE, "w", **KINDS[kind])))


def tensor_of(kind: str) -> QuantizedTensor:
    found = normalize(model_of(kind)).graph.initializers["w"].const_value
    assert isinstance(found, QuantizedTensor)
    return found


def meaning(model: ir.Model) -> np.ndarray:
    """The weight as onnxruntime reads it."""
    session = open_session(model, optimize=False)  # else it makes products of few bits of it
    return run(session, {"x": np.eye(SHAPE[0], dtype=np.float32)})["matmul_out"]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_what_onnxruntime_makes_of_them(kind):
    tensor = tensor_of(kind)
    assert tensor.dtype == ir.DataType.FLOAT and tuple(tensor.shape) == SHAPE
    np.testing.assert_allclose(tensor.numpy(), meaning(model_of(kind)), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_changed_is_written_as_it_was(kind):
    model = model_of(kind)
    back = finalize(normalize(model))
    assert [(n.op_type, n.name) for n in back.graph] == [(n.op_type, n.name) for n in model.graph]
    before, after = arrays(model), arrays(back)
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.dtype == after[name].dtype
        np.testing.assert_array_equal(array, after[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [0, 1])
def test_a_cut_of_whole_scales_keeps_the_numbers(kind, dim):
    """Of blocks, the first and the last go; of others, every third position."""
    tensor = tensor_of(kind)
    layout = tensor.layout
    position = np.arange(SHAPE[dim])
    gone = position % 3 == 0
    if layout.block and layout.axis == dim:
        gone = position // layout.block == 0
    cut = cut_quantized(tensor, {dim: ~gone}, {})
    assert cut.floats is None
    np.testing.assert_array_equal(cut.stored.numpy(), np.compress(~gone, tensor.stored.numpy(), axis=dim))
    np.testing.assert_array_equal(cut.numpy(), np.compress(~gone, tensor.numpy(), axis=dim))
    shape = (*cut.extents,)
    assert cut.scale.shape == (tensor.scale.shape if layout.axis is None else layout.scales(shape))


@pytest.mark.parametrize("kind", ["blocks of rows", "int4"])
def test_torn_blocks_are_rounded_again(kind):
    tensor = tensor_of(kind)
    keep = np.arange(12) % 4 != 1
    cut = cut_quantized(tensor, {0: keep}, {})
    np.testing.assert_array_equal(cut.plain().numpy(), tensor.numpy()[keep])
    settled, scales = cut.settled()
    assert scales == settled.scale.size == 3 * 8
    assert settled.stored.dtype == tensor.stored.dtype and settled.floats is None
    steps = settled.layout.spread(np.abs(settled.scale), settled.extents)
    error = np.abs(settled.numpy() - cut.plain().numpy())
    assert (error <= 1.01 * steps).all() and error.max() > 0
    np.testing.assert_array_equal(cut.numpy(), settled.numpy())


def test_columns_of_groups_with_a_scale_each():
    """Rows in two groups lose other columns: no scale per column fits, unless they lose the same."""
    tensor = tensor_of("columns")
    blocked = {1: Blocked(2, 0)}
    same, other = np.arange(16) % 8 < 5, np.r_[np.arange(8) < 5, np.arange(8) >= 3]
    cut = cut_quantized(tensor, {1: same}, blocked)
    assert cut.floats is None
    np.testing.assert_array_equal(cut.scale, tensor.scale[:5])
    torn = cut_quantized(tensor, {1: other}, blocked)
    assert torn.floats is not None
    np.testing.assert_array_equal(torn.plain().numpy(), slice_array(tensor.numpy(), {1: other}, blocked))


def changed(kind: str, change) -> tuple[QuantizedTensor, QuantizedTensor, ir.Model]:
    """The weight before and after, and the model that is written."""
    model = normalize(model_of(kind))
    value = model.graph.initializers["w"]
    before = value.const_value
    edit.set_array(value, change(np.array(before.numpy())))
    after = value.const_value
    assert isinstance(before, QuantizedTensor) and isinstance(after, QuantizedTensor)
    return before, after, finalize(model)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_become_zero_points_and_nothing_else_changes(kind):
    mask = np.random.default_rng(1).random(SHAPE) < 0.4
    before, after, written = changed(kind, lambda w: np.where(mask, 0, w))
    settled, scales = after.settled()
    assert scales == 0
    np.testing.assert_array_equal(settled.scale, before.scale)
    zero = before.layout.spread(before.zero, SHAPE)
    np.testing.assert_array_equal(settled.stored.numpy(), np.where(mask, zero, before.stored.numpy()))
    np.testing.assert_allclose(meaning(written), np.where(mask, 0, before.numpy()), rtol=1e-6)


@pytest.mark.parametrize("kind", ["rows", "columns", "unsigned", "blocks of rows", "uint4"])
def test_only_scales_whose_elements_changed_are_found_anew(kind):
    def change(w):
        w[0, 0] *= 1.7
        return w

    before, after, written = changed(kind, change)
    settled, scales = after.settled()
    assert scales == 1
    assert (settled.scale != before.scale).sum() <= 1
    untouched = before.layout.spread(before.scale, SHAPE) != before.scale.ravel()[0]
    np.testing.assert_array_equal(settled.stored.numpy()[untouched], before.stored.numpy()[untouched])
    np.testing.assert_allclose(meaning(written), settled.numpy(), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_other_floats_are_rounded_to_the_nearest(kind):
    rng = np.random.default_rng(2)
    new = (rng.standard_normal(SHAPE) * 0.7).astype(np.float32)
    _, after, written = changed(kind, lambda w: new)
    found = meaning(written)
    np.testing.assert_allclose(found, after.numpy(), rtol=1e-6)
    few = after.stored.dtype.bitwidth == 4
    assert np.abs(found - new).max() < (0.2 if few or "float8" in kind else 0.02)
    assert arrays(written)["w_stored"].dtype == arrays(model_of(kind))["w_stored"].dtype


def test_new_weights_of_another_shape_find_their_scales():
    tensor = tensor_of("rows")
    new = np.linspace(-1, 1, 5 * 3, dtype=np.float32).reshape(5, 3)
    held = tensor.holding(new)
    assert held.extents == (5, 3) and held.settled()[0].scale.shape == (5,)
    np.testing.assert_allclose(held.numpy(), new, atol=1 / 127)
