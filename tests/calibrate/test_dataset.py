from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.calibrate.dataset import (
    Dataset,
    InputSpec,
    bound_extent,
    input_specs,
    is_batchable,
    rows_per_sample,
    spread,
)
from onnxprune.errors import UnsupportedError, UsageError

F32 = np.dtype(np.float32)


def dataset(count, *, batchable=True, labels=True, rows=1, widths=None):
    widths = widths or [2] * count
    feeds = [{"x": np.full((rows, width), index, np.float32)} for index, width in enumerate(widths)]
    return Dataset(
        feeds, np.arange(count * rows) if labels else None, "real", "test", batchable=batchable, rows=rows
    )


@given(st.integers(1, 500), st.integers(1, 500))
def test_spread_takes_one_position_of_every_stretch(total, count):
    chosen = spread(total, count)
    assert len(chosen) == min(total, count)
    assert np.all(np.diff(chosen) > 0)
    assert chosen[0] >= 0 and chosen[-1] < total
    for index, position in enumerate(chosen):
        assert index * total // len(chosen) <= position < (index + 1) * total // len(chosen)


def test_spread_keeps_the_classes_of_sorted_and_of_cycling_labels():
    by_class = np.repeat(np.arange(10), 100)
    cycling = np.tile(np.arange(10), 100)
    for labels in (by_class, cycling):
        counts = np.bincount(labels[spread(1000, 100)], minlength=10)
        assert counts.min() >= 5, counts


def test_batches_stack_and_keep_order_and_labels():
    found = list(dataset(5).labelled_batches(2))
    assert [feed["x"].shape for feed, _ in found] == [(2, 2), (2, 2), (1, 2)]
    assert np.concatenate([feed["x"][:, 0] for feed, _ in found]).tolist() == [0, 1, 2, 3, 4]
    assert [labels.tolist() for _, labels in found] == [[0, 1], [2, 3], [4]]
    assert [labels.tolist() for labels in dataset(3).label_batches(2)] == [[0, 1], [2]]


def test_samples_of_other_shapes_start_a_new_batch():
    found = list(dataset(5, widths=[2, 2, 3, 2, 2]).labelled_batches(4))
    assert [feed["x"].shape for feed, _ in found] == [(2, 2), (1, 3), (2, 2)]
    assert [labels.tolist() for _, labels in found] == [[0, 1], [2], [3, 4]]


def test_a_dataset_that_is_not_batchable_comes_one_by_one():
    found = list(dataset(3, batchable=False, rows=2).labelled_batches(8))
    assert [feed["x"].shape for feed, _ in found] == [(2, 2)] * 3
    assert [labels.tolist() for _, labels in found] == [[0, 1], [2, 3], [4, 5]]


def test_take_selects_samples_with_their_labels():
    taken = dataset(5, rows=2, batchable=False).take([4, 1])
    assert len(taken) == 2
    assert [feed["x"][0, 0] for feed in taken.batches(1)] == [4, 1]
    assert taken.labels.tolist() == [8, 9, 2, 3]
    assert dataset(3, labels=False).take([0]).labels is None


def test_a_batch_size_of_zero_is_refused_before_anything_is_read():
    with pytest.raises(UsageError, match="batch size of 0"):
        dataset(2).batches(0)


def test_batchable_means_that_every_leading_axis_is_dynamic():
    dynamic, fixed = InputSpec("a", F32, ("n", 2)), InputSpec("b", F32, (1, 2))
    assert is_batchable([dynamic, InputSpec("c", F32, (None,))])
    assert not is_batchable([dynamic, fixed])
    assert not is_batchable([dynamic, InputSpec("s", F32, ())])
    assert not is_batchable([])


def test_rows_per_sample_is_the_fixed_batch_size():
    assert rows_per_sample([InputSpec("a", F32, (4, 2)), InputSpec("b", F32, (4,))]) == 4
    assert rows_per_sample([InputSpec("a", F32, (4, 2)), InputSpec("b", F32, (2,))]) == 1
    assert rows_per_sample([InputSpec("a", F32, ("n", 2))]) == 1
    assert rows_per_sample([InputSpec("a", F32, ())]) == 1


def test_an_axis_is_bound_by_its_symbol_or_its_place():
    spec = InputSpec("x", F32, ("n", 3, None))
    assert [bound_extent(spec, axis, {"n": 5, "x.2": 7}) for axis in range(3)] == [5, 3, 7]
    assert bound_extent(spec, 2, {"n": 5}) is None


def test_input_specs_leave_out_initializers_and_keep_symbols():
    model = ir.from_onnx_text("""<ir_version: 3, opset_import: ["" : 17]>
        g (float[n,3] x, float[3,2] w, int64 s, bfloat16[2,?] h) => (float[n,2] y)
        <float[3,2] w = {1,2,3,4,5,6}> { y = MatMul(x, w) }""")
    specs = input_specs(model)
    assert [(spec.name, spec.dtype.name, spec.shape) for spec in specs] == [
        ("x", "float32", ("n", 3)),
        ("s", "int64", ()),
        ("h", "bfloat16", (2, None)),
    ]
    assert str(specs[0]) == "float32[n, 3]"
    assert str(specs[2]) == "bfloat16[2, ?]"


def test_sequences_and_optionals_are_not_fed():
    tensor = ir.TensorType(ir.DataType.FLOAT)
    kinds = (ir.SequenceType(tensor), ir.OptionalType(tensor), tensor)
    inputs = [ir.Value(name=f"x{n}", type=kind, shape=ir.Shape([2])) for n, kind in enumerate(kinds)]
    model = ir.Model(ir.Graph(inputs, inputs, nodes=[], opset_imports={"": 17}), ir_version=8)
    assert [spec.name for spec in input_specs(model)] == ["x2"]


def test_inputs_of_no_known_rank_are_refused():
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
    model = ir.Model(ir.Graph([value], [value], nodes=[], opset_imports={"": 17}), ir_version=8)
    with pytest.raises(UnsupportedError, match="'x' is no tensor"):
        input_specs(model)
