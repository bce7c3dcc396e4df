"""docs/extending.md: its code runs, and the example package is found through its entry point."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import onnxprune
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.gradients import SquaredError, build_backward
from onnxprune.rules import builtin_rules
from onnxprune.testing import ModelBuilder

ROOT = Path(onnxprune.__file__).parents[1]
PAGE = ROOT / "docs/extending.md"
EXAMPLE = ROOT / "docs/examples/scale-rules"
DOMAIN = "my.domain"
OPERATORS = {"ScaleShift", "Dense", "GlobalMean"}

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="needs the documentation")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def pyproject() -> dict:
    return tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def build(path: Path) -> Path:
    """A net with all three operators; every other channel is zero, so that dropping those is exact."""
    b = ModelBuilder(17, {DOMAIN: 1})

    def half(*shape: int) -> ir.Value:
        array = b.rng.standard_normal(shape).astype(np.float32)
        array[1::2] = 0
        return b.constant(array, "weight")

    h = b.op("Conv", b.input("x", ("batch", 3, 8, 8)), half(16, 3, 3, 3), name="stem", kernel_shape=[3, 3])
    h = b.op("ScaleShift", h, b.weight((16,), "gamma"), half(16), name="scale", domain=DOMAIN)
    h = b.op("Conv", b.op("Relu", h), half(32, 16, 3, 3), name="mid", kernel_shape=[3, 3])
    h = b.op("GlobalMean", h, name="mean", domain=DOMAIN)
    h = b.op("Dense", h, half(16, 32), name="dense", domain=DOMAIN, units=16)
    y = b.op("Gemm", b.op("Relu", h), b.weight((16, 10)), name="head")
    y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", 10])
    ir.save(b.model(y), path)
    return path


def runnable(path: Path) -> onnx.ModelProto:
    """The model with a body for each of the operators, which onnxruntime runs."""
    ends, columns = helper.make_tensor("", 7, [2], [1, 2]), helper.make_tensor("", 7, [2], [2, 3])
    bodies = {
        "ScaleShift": (
            ["x", "gamma", "beta"],
            [
                helper.make_node("Constant", [], ["axes"], value=ends),
                helper.make_node("Unsqueeze", ["gamma", "axes"], ["g"]),
                helper.make_node("Unsqueeze", ["beta", "axes"], ["b"]),
                helper.make_node("Mul", ["x", "g"], ["scaled"]),
                helper.make_node("Add", ["scaled", "b"], ["y"]),
            ],
        ),
        "Dense": (["x", "weight"], [helper.make_node("Gemm", ["x", "weight"], ["y"], transB=1)]),
        "GlobalMean": (
            ["x"],
            [
                helper.make_node(
                    "ReduceMean", ["x"], ["y"], axes=onnx.numpy_helper.to_array(columns), keepdims=0
                )
            ],
        ),
    }
    model = onnx.load(path)
    opsets = [helper.make_opsetid("", 17)]
    for name, (inputs, nodes) in bodies.items():
        attributes = ["units"] if name == "Dense" else []
        model.functions.append(helper.make_function(DOMAIN, name, inputs, ["y"], nodes, opsets, attributes))
    return model


def infer(model: onnx.ModelProto) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    (found,) = run(open_session(ir.from_proto(model), threads=1), {"x": x}).values()
    return found


def in_a_new_process(script: str, *arguments: Path, path: list[Path]) -> dict:
    """What a script prints as JSON, with `path` before onnxprune on the module path."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def installed(folder: Path) -> list[Path]:
    """The example as pip would leave it: the module, and what importlib.metadata reads."""
    project = pyproject()
    about = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    about.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (about / "METADATA").write_text(metadata, encoding="utf-8")
    points = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in named.items())
        for group, named in project["entry-points"].items()
    ]
    (about / "entry_points.txt").write_text("\n".join(points), encoding="utf-8")
    return [EXAMPLE, folder]


SCRIPT = """
import json, sys
import onnxprune

analysis = onnxprune.analyze(sys.argv[1])
report = onnxprune.prune(sys.argv[1], sys.argv[2], ratio=0.5, best_effort=True, provider="cpu").report
print(json.dumps({
    "operators": sorted(op for domain, op in onnxprune.default_rules() if domain == "my.domain"),
    "groups": [group.name for group in analysis.groups.values()],
    "reasons": {barrier.reason.name: barrier.where for barrier in analysis.blocked},
    "macs": analysis.cost.macs,
    "rejected": report.soundness.why,
    "detached": report.soundness.detached,
}))
"""


def test_the_example_is_found_and_prunes(tmp_path):
    model, small = build(tmp_path / "model.onnx"), tmp_path / "small.onnx"
    (tmp_path / "site").mkdir()
    found = in_a_new_process(SCRIPT, model, small, path=installed(tmp_path / "site"))
    assert set(found["operators"]) == OPERATORS
    assert found["groups"] == ["stem", "mid", "dense"]
    assert found["macs"] == 16 * 27 * 36 + 32 * 16 * 9 * 16 + 16 * 32 + 160
    assert found["rejected"] == {}
    assert found["detached"] == ["scale", "mean", "dense"]
    cut = onnx.load(small)
    nodes = {node.name: node for node in cut.graph.node}
    shapes = {tensor.name: list(tensor.dims) for tensor in cut.graph.initializer}
    assert [shapes[name] for name in nodes["scale"].input[1:]] == [[8], [8]]
    assert shapes[nodes["dense"].input[1]] == [8, 16]
    assert nodes["dense"].attribute[0].i == 8
    np.testing.assert_allclose(infer(runnable(small)), infer(runnable(model)), rtol=1e-4, atol=1e-4)


def test_without_the_example_there_is_no_rule(tmp_path):
    model, small = build(tmp_path / "model.onnx"), tmp_path / "small.onnx"
    found = in_a_new_process(SCRIPT, model, small, path=[])
    assert found["operators"] == []
    assert found["groups"] == []
    assert found["reasons"]["NO_RULE"] == "ScaleShift 'scale'"


def test_bodies_of_the_operators_need_no_rule(tmp_path):
    """onnxprune inlines model-local functions: the same groups, and a proof that covers the operators."""
    onnx.save(runnable(build(tmp_path / "model.onnx")), tmp_path / "runnable.onnx")
    analysis = onnxprune.analyze(tmp_path / "runnable.onnx", rules=builtin_rules())
    assert [group.units for group in analysis.groups.values()] == [16, 32, 16]
    report = onnxprune.prune(
        tmp_path / "runnable.onnx",
        tmp_path / "small.onnx",
        ratio=0.5,
        rules=builtin_rules(),
        best_effort=True,
    ).report
    assert report.soundness.checked
    assert not report.soundness.rejected_groups
    assert not report.soundness.detached


@pytest.mark.parametrize("number", range(len(blocks("python"))) if PAGE.exists() else [])
def test_code_of_the_page_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, code = build(tmp_path / "model.onnx"), blocks("python")[number]
    if "rules=" not in code:
        onnx.save(runnable(model), model)
    made: dict = {}
    exec(compile(code, f"{PAGE.name}, block {number}", "exec"), made)
    if "vjp=" in code:
        assert made["rules"][DOMAIN, "ScaleShift"].vjp is not None
    elif "lower=" in code:
        assert made["rules"][DOMAIN, "ScaleShift"].lower is not None
    else:
        assert (tmp_path / "small.onnx").stat().st_size < model.stat().st_size


def test_the_gradient_of_the_page_is_right():
    """What its VJP adds, run in onnxruntime, against the sums that it should be."""
    (code,) = (block for block in blocks("python") if "vjp=" in block)
    made: dict = {}
    exec(compile(code, PAGE.name, "exec"), made)
    b = ModelBuilder(18, {DOMAIN: 1})
    x, gamma, beta = b.input("x", ("n", 3, 4)), b.weight((3,), "gamma"), b.weight((3,), "beta")
    y = b.op("ScaleShift", x, gamma, beta, domain=DOMAIN, name="scale")
    y.type, y.shape, y.name = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 3, 4]), "y"
    built = build_backward(b.model(y), SquaredError(), ["x", "gamma", "beta"], rules=made["rules"])
    graph, (node,) = built.graph, [node for node in built.graph if node.op_type == "ScaleShift"]
    given = ir.Value(name="made", type=y.type, shape=ir.Shape(["n", 3, 4]))
    node.outputs[0].replace_all_uses_with(given, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    graph.inputs.append(given)
    rng = np.random.default_rng(0)
    x, t = (rng.standard_normal((2, 3, 4)).astype(np.float32) for _ in range(2))
    scale, shift = (graph.initializers[name].const_value.numpy()[:, None] for name in ("gamma", "beta"))
    y = x * scale + shift
    found = run(open_session(built, threads=1), {"x": x, "teacher": t, "made": y})
    np.testing.assert_allclose(found["gradient/x"], 2 * (y - t) * scale, rtol=1e-5)
    np.testing.assert_allclose(found["gradient/gamma"], (2 * (y - t) * x).sum((0, 2)), rtol=1e-4)
    np.testing.assert_allclose(found["gradient/beta"], (2 * (y - t)).sum((0, 2)), rtol=1e-4)


def test_what_the_page_lowers_has_the_same_gradient():
    """The operator is gone from the graph, which runs without a kernel for it."""
    (code,) = (block for block in blocks("python") if "lower=" in block)
    made: dict = {}
    exec(compile(code, PAGE.name, "exec"), made)
    b = ModelBuilder(18, {DOMAIN: 1})
    x, gamma, beta = b.input("x", ("n", 3, 4)), b.weight((3,), "gamma"), b.weight((3,), "beta")
    y = b.op("ScaleShift", x, gamma, beta, domain=DOMAIN, name="scale")
    y.type, y.shape, y.name = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 3, 4]), "y"
    built = build_backward(b.model(y), SquaredError(), ["x", "gamma", "beta"], rules=made["rules"])
    assert not any(node.domain for node in built.graph)
    rng = np.random.default_rng(0)
    x, t = (rng.standard_normal((2, 3, 4)).astype(np.float32) for _ in range(2))
    scale, shift = (built.graph.initializers[name].const_value.numpy()[:, None] for name in ("gamma", "beta"))
    y = x * scale + shift
    found = run(open_session(built, threads=1), {"x": x, "teacher": t})
    np.testing.assert_allclose(found["y"], y, rtol=1e-5)
    np.testing.assert_allclose(found["gradient/x"], 2 * (y - t) * scale, rtol=1e-5)
    np.testing.assert_allclose(found["gradient/gamma"], (2 * (y - t) * x).sum((0, 2)), rtol=1e-4)
    np.testing.assert_allclose(found["gradient/beta"], (2 * (y - t)).sum((0, 2)), rtol=1e-4)


def test_the_page_shows_the_entry_point_of_the_example():
    (block,) = (text for text in blocks("toml") if "onnxprune.rules" in text)
    assert tomllib.loads(block)["project"]["entry-points"] == pyproject()["entry-points"]
    assert "examples/scale-rules" in PAGE.read_text(encoding="utf-8")
