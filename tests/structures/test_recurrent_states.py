"""Recurrent layers whose states come from outside and go back there: step by step, with states that get smaller."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from block_nets import Blocks

import onnxprune
from onnxprune.surgery.keep import kept_positions
from onnxprune.surgery.mask import mask

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
HIDDEN = 6
STATES = ("[hc]_*",)


def streaming(op_type, both=False):
    """Two layers, one step per call: the states of both are one tensor, sliced on the way in and joined again."""
    n, d = Blocks(), 2 if both else 1
    x = n.mark(n.input("x", (1, 1, 5)), 5)
    names = "hc" if op_type == "LSTM" else "h"
    given = {name: n.input(f"{name}_in", (2 * d, 1, HIDDEN)) for name in names}
    made = {name: [] for name in names}
    for layer in range(2):
        rows, width = GATES[op_type] * HIDDEN, n.extents[x]
        shapes = {"w": (d, rows, width), "r": (d, rows, HIDDEN), "b": (d, 2 * rows)}
        weights = [n.weight(shape, f"layer{layer}.{part}") for part, shape in shapes.items()]
        states = [n.slice(given[name], d * layer, d * (layer + 1), axis=0) for name in names]
        y, *last = n.ops(
            *(op_type, x, *weights, None, *states),
            outputs=1 + len(names),
            hidden_size=HIDDEN,
            name=f"layer{layer}",
            **({"direction": "bidirectional"} if both else {}),
        )
        for name, state in zip(names, last, strict=True):
            made[name].append(state)
        flat = n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.constant([0, 0, -1]))
        x = n.mark(flat, d * HIDDEN)
    outputs = [n.linear(x, 3, name="fc")]
    for name in names:
        joined = n.op("Concat", *made[name], axis=0)
        joined.name = f"{name}_out"
        outputs.append(joined)
    return n.model(*outputs)


def steps(path, count=6):
    """Outputs of a model that gets its own states back; the states of all steps."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    shapes = {each.name: each.shape for each in session.get_inputs()}
    states = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name != "x"}
    names = [each.name for each in session.get_outputs()]
    rng = np.random.default_rng(1)
    found = []
    for _ in range(count):
        x = rng.standard_normal(shapes["x"]).astype(np.float32)
        got = dict(zip(names, session.run(None, {"x": x, **states}), strict=True))
        states = {name: got[name.replace("_in", "_out")] for name in states}
        found.append(got)
    return found


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("op_type", GATES)
def test_step_by_step(op_type, both, tmp_path):
    path, cut, masked = (tmp_path / f"{name}.onnx" for name in ("whole", "cut", "masked"))
    ir.save(streaming(op_type, both), path)
    done = onnxprune.prune(path, cut, ratio=0.5, round_to=1, refit_io=STATES)
    assert done.report.soundness.checked and not done.report.soundness.why
    half = HIDDEN // 2
    names = [f"{name}_{way}" for way in ("in", "out") for name in ("hc" if op_type == "LSTM" else "h")]
    assert {io.name: io.after[-1] for io in done.report.refitted} == dict.fromkeys(names, half)

    analysis = onnxprune.analyze(path, refit_io=STATES)
    kept = kept_positions(analysis.groups, done.plan.keep)
    ir.save(mask(analysis.axis_graph, kept), masked)
    stay = {axis.value.name: flags for axis, flags in kept.items() if axis.value.name in names}
    whole = steps(path)
    for one, other, before in zip(steps(cut), steps(masked), whole, strict=True):
        for name, array in one.items():
            expected = other[name][..., stay[name]] if name in stay else other[name]
            np.testing.assert_allclose(array, expected, rtol=0, atol=1e-5)
        last = one, before
    logits = next(name for name in last[0] if name not in names)
    assert np.abs(last[0][logits] - last[1][logits]).max() > 1e-3  # the cut is seen


def test_states_are_callers(tmp_path):
    """Without `refit_io` the states keep their shapes, and the report says what holds the layers."""
    path = tmp_path / "whole.onnx"
    ir.save(streaming("GRU"), path)
    analysis = onnxprune.analyze(path)
    assert not analysis.groups
    assert {b.reason.name for b in analysis.blocked} == {"GRAPH_INPUT", "GRAPH_OUTPUT"}


def test_one_end_of_the_states_only(tmp_path):
    """States whose other end keeps its shape are not cut."""
    path = tmp_path / "whole.onnx"
    ir.save(streaming("GRU"), path)
    assert not onnxprune.analyze(path, refit_io=("h_in",)).groups
