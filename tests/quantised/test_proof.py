"""The proof of quantised models: in integers, else without rounding; wrong rules fail in both forms."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from forms import chain, ranges_at_run_time
from quantised_nets import Quantised, saved

import onnxprune
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.evaluate.soundness import Prover, Soundness
from onnxprune.graph.axes import Axis
from onnxprune.inputs import choose_inputs
from onnxprune.model.normalize import normalize
from onnxprune.model.unrounded import is_quantized, without_rounding
from onnxprune.rules import Rule, default_rules
from onnxprune.rules.helpers import tie_axes


def fine(width: int = 256) -> ir.Model:
    """Steps so small (16 bits) that the last digit of a float sum decides about many: there are no such kernels."""
    b = Quantised(21)
    h = b.rounded(b.input("x", ("n", 64)), "a0", dtype=np.uint16, zero=32768, scale=0.0002)
    for number, (rows, columns) in enumerate(((64, width), (width, width), (width, 8))):
        h = b.op("MatMul", h, b.stored((rows, columns), f"w{number}", axis=1))
        if number < 2:
            h = b.rounded(b.op("Relu", h), f"a{number + 1}", dtype=np.uint16, zero=0, scale=0.0002)
    return b.model(h)


def proof(path, rules, keep) -> Soundness:
    analysis = onnxprune.analyze(path, rules=rules)
    inputs = choose_inputs(analysis.source)
    flags = {group.id: keep(group.units) for group in analysis.partition.groups}
    assert flags
    return Prover(analysis.axis_graph, analysis.groups, inputs.proof).prove(flags)[1]


def half(units: int) -> np.ndarray:
    return np.arange(units) % 2 == 0


def test_without_integer_kernels_rounding_is_left_out(tmp_path):
    found = proof(saved(tmp_path, fine()), default_rules(), half)
    assert found.form == "unrounded" and not found.rejected_groups
    assert found.max_abs_output > 0
    assert found.max_abs_diff <= 1e-4 * found.max_abs_output


def reversed_order(op, relations):
    x, y = op.input(0), op.output()
    order = np.arange(op.extent(Axis(x, 1)))
    relations.tie(Axis(x, 0), Axis(y, 0))
    relations.tie(Axis(x, 1), Axis(y, 1), order, order[::-1].copy())


@pytest.mark.parametrize("make", [chain, fine])
@pytest.mark.parametrize("op_type", ["QuantizeLinear", "DequantizeLinear"])
def test_a_rule_that_ties_the_wrong_positions_is_caught(tmp_path, make, op_type):
    path = saved(tmp_path, make())
    rule = default_rules()["", op_type]
    rules = default_rules() | {("", op_type): Rule(reversed_order, kinds=rule.kinds)}
    assert proof(path, rules, lambda n: np.arange(n) >= n // 3).rejected_groups
    assert not proof(path, default_rules(), lambda n: np.arange(n) >= n // 3).rejected_groups


def test_a_rule_that_lets_the_dropped_set_the_range_is_caught(tmp_path):
    """DynamicQuantizeLinear sees the largest unit: without masks before it, removal changes the result."""

    def loose(op, relations):
        tie_axes(op, relations, op.input(0), op.output())

    dynamic = default_rules()["", "DynamicQuantizeLinear"]
    path = saved(tmp_path, ranges_at_run_time())
    for relate, sound in ((dynamic.relate, True), (loose, False)):
        rules = default_rules() | {("", "DynamicQuantizeLinear"): Rule(relate, extents=dynamic.extents)}
        assert (not proof(path, rules, lambda n: np.arange(n) < 2).rejected_groups) == sound


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("axis", [None, 1])
def test_without_rounding_saturates_at_the_same_numbers(dtype, axis):
    zero = 100 if dtype is np.uint8 else -20
    scale = np.float32(0.01) if axis is None else np.array([0.01, 0.02, 0.03], np.float32)
    b = Quantised()
    x = b.input("x", ("n", 3))
    given = b.constant(scale), b.constant(np.full(np.shape(scale), zero, dtype))
    more = {} if axis is None else {"axis": axis}
    made = b.op("DequantizeLinear", b.op("QuantizeLinear", x, *given, **more), *given, **more)
    model = normalize(b.model(made))
    plain = without_rounding(model)
    assert is_quantized(model) and not is_quantized(plain)
    values = np.linspace(-6, 6, 300, dtype=np.float32).reshape(100, 3)
    rounded, clipped = (next(iter(run(open_session(m), {"x": values}).values())) for m in (model, plain))
    info = np.iinfo(dtype)
    low, high = ((end - zero) * scale for end in (info.min, info.max))
    np.testing.assert_allclose(clipped, np.clip(values, low, high), rtol=1e-6)
    assert (np.abs(clipped - rounded) <= scale / 2 * 1.001).all() and (clipped != rounded).any()
    assert [v.name for v in plain.graph.outputs] == [v.name for v in model.graph.outputs]


def test_float_weights_are_not_rounded_a_second_time(tmp_path):
    """onnxruntime would round a float weight whose layer has rounded inputs, with one scale for all."""
    b = Quantised()
    x = b.rounded(b.input("x", ("n", 2, 5, 5)), "a0")
    y = b.op("Conv", x, b.stored((4, 2, 3, 3), "w", axis=0), b.weight((4,), "bias"), kernel_shape=[3, 3])
    model = normalize(b.model(b.rounded(y, "a1", scale=0.001)))
    feed = {"x": np.random.default_rng(0).standard_normal((1, 2, 5, 5)).astype(np.float32)}
    exact, fast = (run(open_session(model, optimize=flag), feed) for flag in (False, True))
    for name, array in exact.items():
        assert np.abs(array - fast[name]).max() <= 0.0011
