"""What `--mode mask` wrote slims to exactly what `--mode remove` writes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from small_nets import MODELS, REAL, convnet, grouped, residual, save

import onnxprune
from tests.nets import CANONICAL
from tests.slim.recorded import cases, model_of


def weights(path):
    """Initializers of a file in order, read by onnx alone."""
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def nodes(path):
    return [(n.op_type, n.name, tuple(n.input), tuple(n.output)) for n in onnx.load(path).graph.node]


def check(path, folder, **options):
    """Mask and remove by one choice, slim the masked model; return how many units went."""
    options = {"ratio": 0.4, "best_effort": True, "round_to": 1, **options}
    masked = onnxprune.prune(path, folder / "masked.onnx", mode="mask", force=True, **options)
    onnxprune.prune(path, folder / "cut.onnx", force=True, **options)
    slim = onnxprune.slim(folder / "masked.onnx", folder / "slim.onnx", force=True)
    expected, got = weights(folder / "cut.onnx"), weights(folder / "slim.onnx")
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
        assert got[name].tobytes() == array.tobytes(), name
    assert nodes(folder / "slim.onnx") == nodes(folder / "cut.onnx")
    assert slim.report.units == masked.plan.dropped
    assert sum(group.constant + group.duplicate for group in slim.report.groups) == 0
    return masked.plan.dropped


@pytest.mark.parametrize("name", [*CANONICAL, "residual", "grouped"])
def test_canonical_models(tmp_path, name):
    build = {**CANONICAL, "residual": residual, "grouped": grouped}[name]
    assert check(save(build(), tmp_path / "net.onnx"), tmp_path) > 0


@pytest.mark.parametrize("name", ["digits_resnet", "digits_resnet_ts", "digits_vit", "digits_vit_ts"])
@pytest.mark.parametrize("attention", ["heads", "dims"])
def test_trained_models(tmp_path, name, attention):
    assert check(MODELS / f"{name}.onnx", tmp_path, attention=attention) > 0


STRUCTURES = [
    case for case in cases() if case[1].__name__ != "test_samples_first"
]  # onnxruntime runs no layout 1
"""Every test of structures; the models of every ninth are looked at, which ones is the same each time."""


@pytest.mark.parametrize("case", STRUCTURES[::9], ids=lambda case: case[0])
def test_structures(tmp_path, case, monkeypatch):
    _, function, arguments = case
    model = model_of(function, arguments, monkeypatch)
    if model is None:
        pytest.skip("it builds no model")
    path = save(model, tmp_path / "net.onnx")
    try:
        own = onnxprune.slim(path).report.units
        if not own:
            check(path, tmp_path)
    except onnxprune.OnnxPruneError as error:
        if error.exit_code != 2:
            raise
        pytest.skip(f"it cannot be pruned without more options: {error}")
    assert own == 0


@pytest.mark.real
@pytest.mark.parametrize(
    "name", sorted(path.name for path in (REAL / "models").glob("*.onnx")) if REAL.is_dir() else ["none"]
)
def test_real_models(tmp_path, name):
    """Without what they have superfluous themselves, and with the constants of decided branches folded."""
    onnxprune.slim(REAL / "models" / name, tmp_path / "first.onnx")
    assert check(tmp_path / "first.onnx", tmp_path) > 0


def test_half_precision(tmp_path):
    for dtype in (ir.DataType.FLOAT16, ir.DataType.DOUBLE):
        assert check(save(convnet(dtype=dtype), tmp_path / f"{dtype.name}.onnx"), tmp_path) > 0


def test_slimming_the_cut_model_changes_nothing(tmp_path):
    path = save(residual(), tmp_path / "net.onnx")
    check(path, tmp_path)
    made = onnxprune.slim(tmp_path / "cut.onnx", tmp_path / "again.onnx")
    assert made.report.units == 0
    expected, got = weights(tmp_path / "cut.onnx"), weights(tmp_path / "again.onnx")
    assert list(got) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)


def carried(path, step):
    """A Loop whose recurrent weight is a state, as tf2onnx writes while loops of Keras; `step` makes the next."""
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[steps,1,6] x) => (float[1,3] y)
    <int64 zero = {{0}}, bool yes = {{1}}, float[1] decay = {{0.9}},
     float[1,16] start = {{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}>
    {{
        shape = Shape(x)
        count = Gather<axis=0>(shape, zero)
        h, r, w = Loop<body = body (int64 i, bool go, float[1,16] h0, float[16,16] r0, float[6,16] w0)
            => (bool on, float[1,16] h2, float[16,16] r1, float[6,16] w1)
        {{
            on = Identity(go)
            r1 = {step}
            w1 = Identity(w0)
            xt = Gather<axis=0>(x, i)
            a = MatMul(xt, w0)
            b = MatMul(h0, r0)
            c = Add(a, b)
            h2 = Tanh(c)
        }}>(count, yes, start, recurrent, inner)
        y = MatMul(h, head)
    }}
    """
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in {"recurrent": (16, 16), "inner": (6, 16), "head": (16, 3)}.items():
        array = rng.standard_normal(shape).astype(np.float32) / 4
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("step", "products"), [("Identity(r0)", 0), ("Mul(r0, decay)", 2)])
def test_masks_in_bodies(tmp_path, step, products):
    """Zeros are stored where the state stays as it is; else a product with zeros and ones stands in the body."""
    assert check(carried(tmp_path / "net.onnx", step), tmp_path, ratio=0.5) == 8
    masked = onnx.load(tmp_path / "masked.onnx")
    (loop,) = (node for node in masked.graph.node if node.op_type == "Loop")
    assert [node.op_type for node in loop.attribute[0].g.node].count("Mul") == products
