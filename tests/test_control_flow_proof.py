"""The proof enters every branch and every loop, and costs count them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from control_files import (
    BRANCHES,
    LOOP,
    LOOP_SHAPES,
    SCAN,
    SCAN_SHAPES,
    SHAPES,
    feeds,
    saved,
)

import onnxprune
from onnxprune.evaluate import soundness
from onnxprune.rules import default_rules


@pytest.fixture
def branches(tmp_path):
    return saved(tmp_path, BRANCHES, SHAPES)


# --- the proof -------------------------------------------------------------------------------------------


def wrong_in(op_type):
    """Rules of which one ties positions in reverse."""
    rule = default_rules()["", op_type]

    def relate(op, relations):
        a, b = op.axis(op.input(0), -1), op.axis(op.output(), -1)
        n = op.extent(a)
        relations.tie(a, b, np.arange(n), np.arange(n)[::-1].copy())
        relations.tie(op.axis(op.input(0), 0), op.axis(op.output(), 0))

    return default_rules() | {("", op_type): replace(rule, relate=relate)}


@pytest.mark.parametrize("forced", [True, False])
def test_a_branch_that_no_sample_takes_is_proven(branches, monkeypatch, forced):
    """Only by forcing it: the samples all take the other one."""
    if not forced:
        monkeypatch.setattr(soundness, "forced_runs", lambda graph, kept: [])
    report = onnxprune.prune(
        branches,
        ratio=0.5,
        data=feeds([True], 3),
        rules=wrong_in("Sigmoid"),
        criterion="l2",
        best_effort=True,
        slim=False,
    ).report
    rejected = [group.name for group in report.groups if group.id in report.soundness.rejected_groups]
    assert rejected == (["no.matmul0"] if forced else [])
    assert report.soundness.branches == (2 if forced else 0)


def test_a_branch_that_cannot_run_is_named(tmp_path):
    """The else branch looks up a row that the samples do not have: it can be compared with nothing."""
    text = """
    main (float[n, 6] x, bool flag) => (float[n, 3] y) {
        h = MatMul (x, a)
        z = If (flag) <
            then_branch = yes () => (t) { r = Relu (h)  t = MatMul (r, w) },
            else_branch = no () => (t) {
                tenth = Constant <value_ints = [9]> ()
                r = Tanh (h)
                s = Gather (r, tenth)
                t = MatMul (s, w)
            }>
        k = Relu (z)
        y = MatMul (k, b)
    }
    """
    path = saved(tmp_path, text, {"a": (6, 32), "w": (32, 16), "b": (16, 3)})
    report = onnxprune.prune(path, ratio=0.5, data=feeds([True], 3), criterion="l2").report
    (line,) = [line for line in report.warnings if line.startswith("proven only as far")]
    assert report.target.met and report.soundness.branches == 1 and "If 'z' = false" in line


def test_an_if_inside_a_loop(tmp_path):
    text = LOOP.replace(
        "        q = Tanh (p)\n",
        """
        one = Constant <value_int = 1> ()
        first = Less (i, one)
        q = If (first) <then_branch = yes () => (t) { t = Tanh (p) }, else_branch = no () => (t) { t = Relu (p) }>
        """,
    )
    found = onnxprune.prune(saved(tmp_path, text, LOOP_SHAPES), ratio=0.5).report.soundness
    assert (found.branches, found.loops, found.unforced) == (2, 0, ())


@pytest.mark.parametrize("forced", [True, False])
def test_a_loop_that_no_sample_enters_is_proven(tmp_path, monkeypatch, forced):
    """Its number of iterations is an input, zero in all samples."""
    if not forced:
        monkeypatch.setattr(soundness, "forced_runs", lambda graph, kept: [])
    path = saved(tmp_path, counted(), LOOP_SHAPES)
    data = [{"x": np.ones((2, 6), np.float32), "count": np.array(0)}]
    options = {"data": data, "criterion": "l2", "rules": wrong_in("Tanh"), "best_effort": True, "slim": False}
    report = onnxprune.prune(path, ratio=0.5, **options).report
    rejected = [group.name for group in report.groups if group.id in report.soundness.rejected_groups]
    assert rejected == (["step.matmul1"] if forced else [])
    assert report.soundness.loops == (1 if forced else 0)


def counted():
    """The Loop with its number of iterations as an input."""
    text = LOOP.replace("main (float[n, 6] x)", "main (float[n, 6] x, int64 count)")
    return text.replace("    count = Constant <value_int = 3> ()\n", "")


# --- costs -----------------------------------------------------------------------------------------------


def test_macs_of_the_costlier_branch(branches):
    analysis = onnxprune.analyze(branches, bindings={"n": 1})
    always, yes, no = 6 * 32 + 24 * 3, 32 * 16 + 16 * 24, 32 * 48 + 48 * 24
    assert analysis.cost.macs == always + max(yes, no)
    assert analysis.cost.params == sum(int(np.prod(shape)) for shape in SHAPES.values())
    groups = {group.name: group for group in analysis.groups.values()}
    keep = np.zeros(48, bool)
    keep[:8] = True  # now the other branch costs more
    cost = analysis.costs.cost({groups["no.matmul0"].id: keep})
    assert cost.macs == always + max(yes, 32 * 8 + 8 * 24) == always + yes
    assert analysis.coverage.macs == 1.0 and [b.layers for b in analysis.blocked] == [("main.matmul4",)]


def test_macs_of_iterations(tmp_path):
    analysis = onnxprune.analyze(saved(tmp_path, LOOP, LOOP_SHAPES), bindings={"n": 1})
    assert analysis.cost.macs == 6 * 32 + 32 * 3 + 3 * (32 * 16 + 16 * 32)
    analysis = onnxprune.analyze(saved(tmp_path, SCAN, SCAN_SHAPES))
    assert analysis.cost.macs == 5 * 2 * (32 * 3 + 6 * 32 + 32 * 32)


def test_iterations_that_nobody_knows(tmp_path):
    path = saved(tmp_path, counted(), LOOP_SHAPES)
    assert onnxprune.analyze(path, bindings={"n": 1}).cost.macs == 6 * 32 + 32 * 3 + 32 * 16 + 16 * 32
    data = [{"x": np.ones((2, 6), np.float32), "count": np.array(2)}]
    report = onnxprune.prune(path, ratio=0.5, data=data, criterion="l2").report
    assert any(line.startswith("how often Loop") for line in report.warnings)


def test_the_target_counts_iterations(tmp_path):
    """Half of the MACs are asked for, and the body has most of them."""
    done = onnxprune.prune(saved(tmp_path, LOOP, LOOP_SHAPES), macs=0.5, round_to=1)
    real = onnxprune.analyze(write(tmp_path, done))
    assert real.cost.macs == done.report.after.macs <= 0.5 * done.report.before.macs


def write(tmp_path, done):
    path = tmp_path / "again.onnx"
    onnx.save(ir.to_proto(done.model), path)
    return path
