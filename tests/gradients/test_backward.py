"""The walk: what it builds and what it does not, masks, dynamic batches, old opsets, errors."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_nets import convnet, grouped, residual
from vjp_cases import central_differences

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.errors import GradientError, UnsupportedError, UsageError
from onnxprune.gradients import (
    LOSS,
    CrossEntropy,
    SquaredError,
    UnitMask,
    build_backward,
    gradient_name,
)
from onnxprune.rules import Rule, default_rules
from onnxprune.testing import ModelBuilder

RNG = np.random.default_rng(0)


def feed(batch: int, size: int = 8) -> dict:
    return {
        "image": RNG.standard_normal((batch, 3, size, size)).astype(np.float32),
        "labels": RNG.integers(0, 4, batch),
    }


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def outputs(model: ir.Model) -> list[str]:
    return [value.name for value in model.graph.outputs]


def by_difference(model: ir.Model, value: str, given: dict, units: int, step: float = 2e-3) -> np.ndarray:
    """(batch, units): the change of each sample's loss when channels of an activation are scaled."""
    clone = model.clone()
    (made,) = [out for node in clone.graph for out in node.outputs if out.name == value]
    factor = ir.Value(
        name="factor", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", units, 1, 1])
    )
    clone.graph.inputs.append(factor)
    users = list(made.uses())
    node = ir.Node("", "Mul", [made, factor], num_outputs=1)
    node.outputs[0].name, node.outputs[0].type = "scaled", made.type
    made.producer().append(node)
    for user, slot in users:
        user.replace_input_with(slot, node.outputs[0])
    session = open_session(clone, threads=1)

    def losses(factors):
        logits = run(session, {"image": given["image"], "factor": factors})["logits"].astype(np.float64)
        moved = logits - logits.max(axis=1, keepdims=True)
        log_p = moved - np.log(np.exp(moved).sum(axis=1, keepdims=True))
        return -log_p[np.arange(len(logits)), given["labels"]]

    found = np.zeros((len(given["image"]), units))
    for unit in range(units):
        ones = np.ones((len(found), units, 1, 1), np.float32)
        sides = []
        for sign in (1, -1):
            factors = ones.copy()
            factors[:, unit] += sign * step
            sides.append(losses(factors))
        found[:, unit] = (sides[0] - sides[1]) / (2 * step)
    return found


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("model, value, units", [(convnet(), "relu1", 32), (residual(), "stem_relu", 32)])
def test_masks_give_the_slope_of_each_samples_loss(model, value, units, batch):
    (node,) = [node for node in model.graph if node.name == value]
    name, given = node.outputs[0].name, feed(batch)
    mask = UnitMask(name, 1, np.arange(units), units, "m")
    found = run(open_session(build_backward(model, CrossEntropy(), [mask]), threads=1), given)
    expected = by_difference(model, name, given, units)
    assert found[gradient_name(mask)].shape == (batch, units)
    np.testing.assert_allclose(found["gradient/m"], expected, atol=1e-2 * np.abs(expected).max())


def test_positions_of_a_unit_are_added_and_others_left_out():
    model, given = convnet(), feed(2)
    name = next(node.outputs[0].name for node in model.graph if node.name == "relu1")
    fine = UnitMask(name, 1, np.arange(32), 32, "fine")
    coarse = UnitMask(name, -3, np.where(np.arange(32) < 30, np.arange(32) % 3, -1), 3, "coarse")
    found = run(open_session(build_backward(model, CrossEntropy(), [fine, coarse]), threads=1), given)
    expected = found["gradient/fine"][:, :30].reshape(2, 10, 3).sum(axis=1)
    np.testing.assert_allclose(found["gradient/coarse"], expected, atol=1e-5)


def test_several_entries_of_a_sample_are_added():
    """Windows along the leading axis, as in Swin."""
    b = ModelBuilder(18)
    x = b.input("x", ("n", 4, 3))
    rows = b.op("Reshape", x, b.constant(np.array([-1, 2, 3])))
    h = b.ops("Tanh", b.op("MatMul", rows, b.weight((3, 5))), outputs=["h"])[0]
    y = b.op("Reshape", b.op("MatMul", h, b.weight((5, 2))), b.constant(np.array([-1, 4, 2])))
    model = b.model(y)
    given = {"x": RNG.standard_normal((3, 4, 3)).astype(np.float32)}
    teacher = np.zeros((3, 4, 2), np.float32)
    mask = UnitMask("h", 2, np.arange(5), 5)
    built = build_backward(model, SquaredError(), [mask, "h"])
    found = run(open_session(built, threads=1), {**given, "teacher": teacher}, None)
    (name,) = [name for name in outputs(built) if "[2]" in name]
    assert found[name].shape == (3, 5)
    alone = [
        run(open_session(built, threads=1), {"x": given["x"][i : i + 1], "teacher": teacher[:1]})[name][0]
        for i in range(3)
    ]
    np.testing.assert_allclose(found[name], alone, atol=1e-5)


def test_masks_need_no_gradient_of_a_weight():
    model = convnet()
    name = next(node.outputs[0].name for node in model.graph if node.name == "relu1")
    built = build_backward(model, CrossEntropy(), [UnitMask(name, 1, np.arange(32), 32)])
    before, after = operators(model), operators(built)
    assert after.count("ConvTranspose") + after.count("Conv") - before.count("Conv") == 1  # only what follows
    assert set(after) <= {node for node in after if node}
    assert all(not node.domain for node in built.graph)


def test_the_original_is_not_mutated():
    model = convnet()
    before = operators(model), outputs(model), list(model.graph.initializers), len(model.graph.inputs)
    build_backward(model, CrossEntropy(), ["conv0.weight", "image"])
    assert before == (
        operators(model),
        outputs(model),
        list(model.graph.initializers),
        len(model.graph.inputs),
    )


def test_weights_biases_and_activations():
    model, given = grouped(), feed(2, 6)
    names = [name for name in model.graph.initializers if name.endswith(("weight", "bias"))]
    found = run(open_session(build_backward(model, CrossEntropy(), names), threads=1), given)
    step = 2e-3
    for name in names:
        gradient = found[gradient_name(name)]
        direction = RNG.standard_normal(gradient.shape).astype(np.float32)
        sides = []
        for sign in (1, -1):
            moved = model.clone()
            value = moved.graph.initializers[name]
            value.const_value = ir.Tensor(value.const_value.numpy() + sign * step * direction, name=name)
            built = build_backward(moved, CrossEntropy(), ["image"])
            sides.append(float(run(open_session(built, threads=1), given)[LOSS]))
        slope = (sides[0] - sides[1]) / (2 * step)
        assert (gradient * direction).sum() == pytest.approx(slope, rel=0.02, abs=2e-3), name


@pytest.mark.parametrize("op_type", ["Mul", "Add", "Sub", "Max", "MatMul", "Concat"])
def test_a_value_that_a_node_reads_twice(op_type):
    b = ModelBuilder(18)
    x = b.input("x", ("n", 3, 3))
    h = b.op("Tanh", x)
    y = b.op(op_type, h, h, **({"axis": 1} if op_type == "Concat" else {}))
    model = b.model(b.ops("Identity", y, outputs=["y"])[0])
    given = RNG.standard_normal((2, 3, 3)).astype(np.float32)

    def forward(x):
        t = np.tanh(x)
        if op_type == "Concat":
            return np.concatenate([t, t], 1)
        return {"Mul": t * t, "Add": t + t, "Sub": t - t, "Max": t, "MatMul": t @ t}[op_type]

    teacher = RNG.standard_normal(forward(given).shape).astype(np.float32)
    slope = central_differences(
        lambda feed: float(((forward(feed["x"]) - teacher) ** 2).sum()), {"x": given.astype(np.float64)}
    )["x"]
    built = build_backward(model, SquaredError(), ["x"])
    found = run(open_session(built, threads=1), {"x": given, "teacher": teacher})["gradient/x"]
    np.testing.assert_allclose(found, slope, atol=1e-4 * max(np.abs(slope).max(), 1e-2))


def test_what_the_loss_does_not_depend_on_has_a_gradient_of_zeros():
    b = ModelBuilder(18)
    x = b.input("x", ("n", 3))
    other = b.ops("Tanh", x, outputs=["other"])[0]
    model = b.model(b.ops("Sin", x, outputs=["y"])[0], other)
    built = build_backward(model, SquaredError("y"), ["other", UnitMask("other", 1, np.arange(3), 3, "m")])
    zeros = np.zeros((2, 3), np.float32)
    found = run(open_session(built, threads=1), {"x": zeros + 1, "teacher": zeros})
    np.testing.assert_array_equal(found["gradient/other"], zeros)
    np.testing.assert_array_equal(found["gradient/m"], zeros)


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23])
def test_any_opset(opset):
    b = ModelBuilder(opset)
    x = b.input("x", ("n", 2, 4, 4))
    h = b.op("Conv", x, b.weight((4, 2, 3, 3), "w"), kernel_shape=[3, 3])
    h = b.op("Flatten", b.op("MaxPool", b.op("Relu", h), kernel_shape=[2, 2]))
    y = b.op("Gemm", h, b.weight((4, 3)), b.weight((3,)))
    model = b.model(b.op("Softmax", y, axis=1))
    built = build_backward(model, CrossEntropy(), ["w", "x"])
    assert built.opset_imports[""] == max(opset, 18)
    given = {"x": RNG.standard_normal((2, 2, 4, 4)).astype(np.float32), "labels": np.array([0, 2])}
    assert np.abs(run(open_session(built, threads=1), given)["gradient/w"]).max() > 0


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.DOUBLE])
def test_other_floats_become_float32(dtype):
    built = build_backward(convnet(dtype=dtype), CrossEntropy(), ["conv0.weight"])
    found = run(open_session(built, threads=1), feed(2))
    assert found["gradient/conv0.weight"].dtype == np.float32


def custom(rule: Rule | None = None):
    b = ModelBuilder(18, {"my.domain": 1})
    h = b.op("Double", b.input("x", ("n", 3)), name="twice", domain="my.domain")
    h.type, h.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 3])
    return b.model(b.ops("Tanh", h, outputs=["y"])[0])


def test_an_operator_without_a_vjp_is_named():
    with pytest.raises(GradientError, match="Double 'twice': the operator of my.domain has no VJP") as caught:
        build_backward(custom(), SquaredError(), ["x"])
    assert "l1, l2, wanda" in caught.value.hint
    assert isinstance(caught.value, UnsupportedError)


def test_an_input_that_a_vjp_says_nothing_about_is_named():
    b = ModelBuilder(18)
    x, fill = b.input("x", ("n", 3)), b.input("fill", ())
    widths = b.constant(np.array([0, 1, 0, 1]))
    model = b.model(b.ops("Pad", x, widths, fill, outputs=["y"], name="frame")[0])
    build_backward(model, SquaredError(), ["x"])
    with pytest.raises(GradientError, match="Pad 'frame': its VJP does not cover input 2"):
        build_backward(model, SquaredError(), ["fill"])


def test_a_type_is_not_depended_on():
    """Exporters give Clip its bounds by CastLike, and Resize its scales."""
    b = ModelBuilder(18)
    x = b.input("x", ("n", 3))
    low = b.op("CastLike", b.constant(np.float32(0)), x)
    model = b.model(b.ops("Clip", x, low, outputs=["y"])[0])
    built = build_backward(model, SquaredError(), ["x"])
    assert "ReduceSum" not in operators(built)[operators(built).index("Where") :]


@pytest.mark.parametrize("high", [1.0, np.inf])
def test_bounds_of_clip_that_are_vectors_of_one_number(high):
    """They ought to be scalars; some exporters write this, and onnxruntime takes it."""
    b = ModelBuilder(18)
    x = b.input("x", ("n", 3))
    low, top = (b.constant(np.array([bound], np.float32)) for bound in (0.0, high))
    model = b.model(b.ops("Clip", x, low, top, outputs=["y"])[0])
    given = np.array([[-1.0, 0.5, 2.0]], np.float32)
    feed = {"x": given, "teacher": np.zeros_like(given)}
    found = run(open_session(build_backward(model, SquaredError(), ["x"]), threads=1), feed)["gradient/x"]
    np.testing.assert_allclose(found, [[0.0, 1.0, 0.0 if high == 1 else 4.0]])


def test_what_is_not_on_the_way_needs_no_vjp():
    built = build_backward(custom(), SquaredError(), ["y"])
    assert "gradient/y" in outputs(built)


def test_third_parties_add_a_vjp():
    def relate(op, relations):
        """Say nothing."""

    def vjp(op, back):
        back.give(0, back.g * 2.0)

    rules = default_rules() | {("my.domain", "Double"): Rule(relate, vjp=vjp)}
    built = build_backward(custom(), SquaredError(), ["x"], rules=rules)
    assert "gradient/x" in outputs(built)


def test_gradients_pass_the_branch_that_is_taken():
    b = ModelBuilder(18)
    x = b.input("x", ("n", 3))
    inner = [ir.node(kind, [x], num_outputs=1) for kind in ("Sin", "Cos")]
    graphs = [
        ir.Graph([], [node.outputs[0]], nodes=[node], name=f"branch{n}") for n, node in enumerate(inner)
    ]
    condition = b.op("Less", b.op("ReduceSum", x, keepdims=0), b.constant(np.float32(0)))
    branch = ir.node(
        "If", [condition], {"then_branch": graphs[0], "else_branch": graphs[1]}, num_outputs=1, name="fork"
    )
    branch.outputs[0].name = "y"
    model = b.model(x)
    model.graph.append(branch)
    branch.outputs[0].type, branch.outputs[0].shape = x.type, x.shape
    model.graph.outputs[:] = [branch.outputs[0]]
    session = open_session(build_backward(model, SquaredError(), ["x"]), threads=1)
    for sign, wave, slope in ((-1, np.sin, np.cos), (1, np.cos, lambda x: -np.sin(x))):
        x = sign * np.array([[0.2, 0.5, 0.9]], np.float32)
        found = run(session, {"x": x, "teacher": np.zeros((1, 3), np.float32)})
        np.testing.assert_allclose(found["gradient/x"], 2 * wave(x) * slope(x), rtol=1e-5)


@pytest.mark.parametrize("kind", ["Loop", "Scan"])
def test_bodies_that_repeat_are_refused_by_name(kind):
    body = {
        "Loop": "Loop (count, go, x) <body = b (int64 i, bool c, float[3] s) => (bool d, float[3] t) "
        "{ d = Identity (c) t = Tanh (s) }>",
        "Scan": "Scan <num_scan_inputs = 1, body = b (float[3] s, float[3] e) => (float[3] t) "
        "{ t = Add (s, e) }> (x, rows)",
    }[kind]
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
    g (float[3] x, float[n, 3] rows) => (float[3] y)
    <int64 count = {{3}}, bool go = {{1}}> {{ [again] y = {body} }}"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    with pytest.raises(GradientError, match=f"(?s){kind} 'again'.*l1, l2, wanda"):
        build_backward(model, SquaredError(), ["x"])


def test_wrong_targets_are_said():
    model = convnet()
    with pytest.raises(UsageError, match="no value 'nothing'"):
        build_backward(model, CrossEntropy(), ["nothing"])
    name = next(node.outputs[0].name for node in model.graph if node.name == "relu1")
    with pytest.raises(UsageError, match="does not hold 3 positions"):
        build_backward(model, CrossEntropy(), [UnitMask(name, 1, np.arange(3), 3)])
    b = ModelBuilder(18)
    y = b.op("Gather", b.weight((4, 3)), b.input("ids", ("n",), ir.DataType.INT64))
    with pytest.raises(UsageError, match="'ids' is no float"):
        build_backward(b.model(y), SquaredError(), ["ids"])
    with pytest.raises(UsageError, match="asked for twice"):
        build_backward(model, CrossEntropy(), ["conv0.weight", "conv0.weight"])
