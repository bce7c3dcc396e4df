"""`allow_inexact`: axes that norms average over are cut, and the proof covers them."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from small_nets import Net, save

import onnxprune
from onnxprune.cli import main
from onnxprune.errors import Reason

WIDTH, HIDDEN = 32, 48


def stream(norm, blocks=2):
    """Tokens -> residual blocks with a norm before each MLP -> norm -> classifier."""
    net = Net(opset=23 if norm == "RMSNormalization" else 17)
    x = net.op("MatMul", net.data("tokens", ("n", 5, 12)), net.normal((12, WIDTH), "embed"), name="embed")
    for i in range(blocks):
        y = normalized(net, norm, x, f"norm{i}")
        y = net.op("MatMul", y, net.normal((WIDTH, HIDDEN), f"up{i}"), name=f"up{i}")
        y = net.op(
            "MatMul",
            net.op("Tanh", y, name=f"act{i}"),
            net.normal((HIDDEN, WIDTH), f"down{i}"),
            name=f"down{i}",
        )
        x = net.op("Add", x, y, name=f"add{i}")
    x = normalized(net, norm, x, "last")
    return net.model(net.op("MatMul", x, net.normal((WIDTH, 7), "head"), name="head"))


def normalized(net, norm, x, name):
    scale = net.weight((WIDTH,), f"{name}.scale", low=0.5, high=1.5)
    if norm == "LayerNormalization":
        return net.op(norm, x, scale, net.weight((WIDTH,), f"{name}.bias"), name=name)
    if norm == "RMSNormalization":
        return net.op(norm, x, scale, name=name)
    square = net.op("Mul", x, x, name=f"{name}.square")
    mean = net.op("ReduceMean", square, axes=[-1], name=f"{name}.mean")
    root = net.op(
        "Sqrt", net.op("Add", mean, net.constant(np.float32(1e-5), f"{name}.eps")), name=f"{name}.root"
    )
    return net.op("Mul", net.op("Div", x, root, name=f"{name}.div"), scale, name=name)


NORMS = ["LayerNormalization", "RMSNormalization", "ReduceMean"]


@pytest.mark.parametrize("norm", NORMS)
def test_the_width_of_the_stream(tmp_path, norm):
    path = save(stream(norm), tmp_path / "net.onnx")
    exact, open_ = onnxprune.analyze(path), onnxprune.analyze(path, allow_inexact=True)
    assert sorted(g.units for g in exact.groups.values()) == [HIDDEN, HIDDEN] and not exact.inexact
    assert sorted(g.units for g in open_.groups.values()) == [WIDTH, HIDDEN, HIDDEN]
    (name,) = open_.inexact
    assert open_.groups[name].units == WIDTH and norm in open_.inexact[name]
    blocked = {b.reason for b in exact.blocked}
    assert blocked == {Reason.NORMALIZED if norm != "ReduceMean" else Reason.REDUCED, Reason.GRAPH_OUTPUT}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mode", ["remove", "mask"])
def test_proven_and_marked(tmp_path, norm, mode):
    path, out = save(stream(norm), tmp_path / "net.onnx"), tmp_path / "out.onnx"
    done = onnxprune.prune(path, out, ratio=0.5, allow_inexact=True, mode=mode)
    report = done.report
    assert report.soundness.checked and report.soundness.rejected_groups == () and report.soundness.inner
    (marked,) = [group for group in report.groups if group.inexact]
    assert (marked.units, marked.kept) == (WIDTH, WIDTH // 2)
    assert any(line.startswith("inexact, as asked for") for line in report.warnings)
    assert done.plan.inexact and json.loads(done.plan.to_json())["allow_inexact"] is True
    x = np.random.default_rng(0).standard_normal((2, 5, 12)).astype(np.float32)
    (got,) = onnxruntime.InferenceSession(out).run(None, {"tokens": x})
    assert got.shape == (2, 5, 7)
    if mode == "remove":
        assert report.after.macs < 0.3 * report.before.macs


def test_the_masked_model_is_the_removed_one(tmp_path):
    """Outside the tool, too: both files give the same."""
    path = save(stream("LayerNormalization"), tmp_path / "net.onnx")
    x = np.random.default_rng(0).standard_normal((3, 5, 12)).astype(np.float32)
    results = []
    for mode in ("remove", "mask"):
        onnxprune.prune(path, tmp_path / mode, ratio=0.4, allow_inexact=True, mode=mode)
        results += onnxruntime.InferenceSession(tmp_path / mode).run(None, {"tokens": x})
    np.testing.assert_allclose(results[0], results[1], atol=1e-4 * np.abs(results[1]).max())
    (dense,) = onnxruntime.InferenceSession(path).run(None, {"tokens": x})
    assert np.abs(dense - results[0]).max() > 1e-3 * np.abs(dense).max()


def test_a_plan_says_so_and_is_replayed(tmp_path):
    path, plan = save(stream("LayerNormalization"), tmp_path / "net.onnx"), tmp_path / "plan.json"
    options = ["--ratio", "0.5", "--allow-inexact", "--plan", str(plan), "-q"]
    with pytest.raises(SystemExit) as end:
        main(["prune", str(path), "-o", str(tmp_path / "a.onnx"), *options])
    assert not end.value.code
    onnxprune.apply(path, plan, tmp_path / "b.onnx")
    a, b = (ir.load(tmp_path / name).graph for name in ("a.onnx", "b.onnx"))
    assert {n: v.shape for n, v in a.initializers.items()} == {n: v.shape for n, v in b.initializers.items()}


def test_off_by_default(tmp_path):
    path = save(stream("LayerNormalization"), tmp_path / "net.onnx")
    report = onnxprune.prune(path, ratio=0.5).report
    assert not any(group.inexact for group in report.groups)
    assert not any("inexact" in line for line in report.warnings)
