"""How the tables of this folder are written: one line per variant of an operator.

Each is a model of one node with a squared loss. Its gradients come from onnxruntime in float32; central
differences in float64 of onnx's reference evaluator say what they should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnx.reference import ReferenceEvaluator
from reference_ops import replacements

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.gradients import SquaredError, WeightedSum, build_backward, gradient_name

TOLERANCE = 1e-4
"""Largest error of a gradient, as a share of the largest entry, in float32."""

UNCHECKED = ("SimplifiedLayerNormalization", "MeanVarianceNormalization")
"""Operators that onnx's checker refuses themselves, as it does GroupNormalization of opset 18."""

_STEP = 1e-6


@dataclass(frozen=True)
class Moving:
    """An input that is differentiated with respect to."""

    shape: tuple[int, ...]
    low: float = -2.0
    high: float = 2.0
    apart: float = 0.0
    """Least distance between any two entries, and of each from what `from_` lists."""
    from_: tuple[float, ...] = ()
    values: Any = None

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        if self.values is not None:
            return np.asarray(self.values, np.float32)
        size = int(np.prod(self.shape))
        if self.apart:
            array = self.low + (np.arange(size) + 0.3 + 0.4 * rng.random(size)) / size * (
                self.high - self.low
            )
            array = rng.permutation(array)
        else:
            array = rng.uniform(self.low, self.high, size)
        for bound in self.from_:
            near = np.abs(array - bound) < 0.05
            array = np.where(near, bound + np.where(array < bound, -0.05, 0.05), array)
        return array.reshape(self.shape).astype(np.float32)


@dataclass(frozen=True)
class Case:
    op_type: str
    inputs: tuple[Any, ...]
    attributes: dict[str, Any]
    opset: int = 18
    outputs: tuple[int, ...] = (0,)
    """Slots of the outputs that the loss sees; integer ones are made, but not seen."""
    makes: int = 1
    dynamic: bool = True
    """Whether the leading axis of the first input can be symbolic."""
    symbolic: tuple[int, ...] = ()
    """Slots whose leading axis is symbolic then, where it is not the first that moves alone."""
    declared: bool = False
    """Whether the model says the outputs' shape, which is that of the first input: onnx cannot infer it."""
    note: str = ""
    domain: str = ""
    tolerance: float = TOLERANCE

    @property
    def id(self) -> str:
        shapes = ",".join("x".join(map(str, np.shape(i.draw(_rng())))) for i in self.moving.values())
        return "-".join(part for part in (self.op_type, str(self.opset), shapes, self.note) if part)

    @property
    def moving(self) -> dict[int, Moving]:
        return {slot: value for slot, value in enumerate(self.inputs) if isinstance(value, Moving)}


def case(op_type: str, *inputs: Any, **options: Any) -> Case:
    fields = {"opset", "outputs", "makes", "dynamic", "symbolic", "declared", "note", "domain", "tolerance"}
    given = {key: options.pop(key) for key in list(options) if key in fields}
    moving = tuple(Moving(value) if isinstance(value, tuple) else value for value in inputs)
    return Case(op_type, moving, options, **given)


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def build(case: Case, feed: dict[str, np.ndarray], dynamic: bool, every: bool = False) -> onnx.ModelProto:
    """One node; what moves is an input, everything else an initializer.

    `dynamic`: leading axes are symbolic; with `every`, all axes of the first input but channels of images.
    """
    names, inputs, constants = [], [], []
    for slot, value in enumerate(case.inputs):
        name = "" if value is None else f"x{slot}"
        names.append(name)
        if isinstance(value, Moving):
            shape: list[Any] = list(feed[name].shape)
            if dynamic and shape and slot in (case.symbolic or (min(case.moving),)):
                shape[0] = "n"
                for axis in range(1 if len(shape) < 3 else 2, len(shape)) if every else ():
                    shape[axis] = f"d{axis}"
            inputs.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        elif value is not None:
            constants.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    made = [f"y{slot}" for slot in range(case.makes)]
    node = helper.make_node(case.op_type, names, made, domain=case.domain, **case.attributes)
    like = feed["x0"].shape if case.declared else None
    outputs = [helper.make_tensor_value_info(made[s], onnx.TensorProto.FLOAT, like) for s in case.outputs]
    graph = helper.make_graph([node], "g", inputs, outputs, constants)
    domains = [helper.make_opsetid("", case.opset)]
    if case.domain:
        domains.append(helper.make_opsetid(case.domain, 1))
    return helper.make_model(graph, opset_imports=domains, ir_version=10)


def check(case: Case, *, dynamic: bool, every: bool = False, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    feed = {f"x{slot}": value.draw(rng) for slot, value in case.moving.items()}
    model = build(case, feed, dynamic, every)
    wide = {name: array.astype(np.float64) for name, array in feed.items()}
    evaluator = Reference(model)
    teachers = {
        f"t{slot}": rng.standard_normal(array.shape)
        for slot, array in zip(case.outputs, evaluator.outputs(wide), strict=True)
    }
    expected = central_differences(lambda x: evaluator.loss(x, list(teachers.values())), wide)
    found = gradients(case, model, feed, teachers)
    for name, gradient in expected.items():
        assert found[name].shape == gradient.shape, name
        scale = max(np.abs(gradient).max(initial=0), 1e-3)
        error = np.abs(found[name] - gradient).max(initial=0) / scale
        assert error <= case.tolerance, f"{name}: {error:.2e}"


def gradients(case: Case, model: onnx.ModelProto, feed: dict, teachers: dict) -> dict[str, np.ndarray]:
    losses = [(1.0, SquaredError(f"y{slot}", f"t{slot}")) for slot in case.outputs]
    built = build_backward(ir.from_proto(model), WeightedSum(tuple(losses)), list(feed))
    assert all(not node.domain or node.domain == case.domain for node in built.graph)
    if case.op_type not in UNCHECKED and (case.op_type, case.opset) != ("GroupNormalization", 18):
        onnx.checker.check_model(ir.to_proto(built), full_check=not case.domain)
    session = open_session(built, threads=1)
    given = {**feed, **{name: array.astype(np.float32) for name, array in teachers.items()}}
    found = run(session, given)
    return {name: found[gradient_name(name)] for name in feed}


@dataclass
class Reference:
    """The model in float64."""

    model: onnx.ModelProto
    evaluator: Any = field(init=False)

    def __post_init__(self) -> None:
        copy = onnx.ModelProto()
        copy.CopyFrom(self.model)
        for info in (*copy.graph.input, *copy.graph.output):
            if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
                info.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
        for number, tensor in enumerate(copy.graph.initializer):
            if tensor.data_type == onnx.TensorProto.FLOAT:
                wide = onnx.numpy_helper.to_array(tensor).astype(np.float64)
                copy.graph.initializer[number].CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
        self.evaluator = ReferenceEvaluator(copy, new_ops=replacements(self.model.opset_import[0].version))

    def outputs(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return self.evaluator.run(None, feed)

    def loss(self, feed: dict[str, np.ndarray], teachers: Sequence[np.ndarray]) -> float:
        found = self.outputs(feed)
        return float(sum(((y - t) ** 2).sum() for y, t in zip(found, teachers, strict=True)))


def central_differences(loss: Any, feed: dict[str, np.ndarray], step: float = _STEP) -> dict[str, np.ndarray]:
    """The gradient of `loss`, entry by entry."""
    gradients = {}
    for name, array in feed.items():
        gradient = np.zeros(array.size)
        for position in range(array.size):
            sides = []
            for sign in (1, -1):
                moved = array.copy()
                moved.reshape(-1)[position] += sign * step
                sides.append(loss({**feed, name: moved}))
            gradient[position] = (sides[0] - sides[1]) / (2 * step)
        gradients[name] = gradient.reshape(array.shape)
    return gradients
