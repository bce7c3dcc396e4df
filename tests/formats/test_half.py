"""Models in float16, bfloat16 and float64: the same is found, cut and repaired as in float32, and types stay."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from small_nets import convnet, feeds, residual, save

import onnxprune
from onnxprune.calibrate.ortvalues import as_float32
from onnxprune.calibrate.sessions import is_widened, open_session, run
from onnxprune.calibrate.timing import Stopwatch
from onnxprune.choosing.timed import on_cpu
from onnxprune.errors import ModelError, UnsupportedError
from onnxprune.model.convert import to_float32

HALF, BRAIN, DOUBLE = ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE
TYPES = pytest.mark.parametrize("dtype", [HALF, BRAIN, DOUBLE], ids=lambda dtype: dtype.name)
NUMPY = {HALF: np.float16, BRAIN: ml_dtypes.bfloat16, DOUBLE: np.float64}


def net_of(dtype: ir.DataType, path, **options):
    """A small network whose weights, inputs and outputs are those of the float32 one, in another type."""
    model = convnet(**options)
    model.graph.opset_imports[""] = 22  # the first with bfloat16 convolutions
    model.ir_version = 10
    for value in model.graph.initializers.values():
        array = value.const_value.numpy().astype(NUMPY[dtype])
        value.const_value = ir.Tensor(array, dtype=dtype, shape=ir.Shape(array.shape), name=value.name)
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.type = ir.TensorType(dtype)
    for node in model.graph:
        for value in node.outputs:
            value.type = ir.TensorType(dtype)
    return save(model, path)


def rounded_to_float32(path, out):
    """The same function in float32: what the file's weights say, in another type."""
    return save(to_float32(ir.load(path)), out)


def samples(dtype=None, count: int = 60) -> list[dict[str, np.ndarray]]:
    images = feeds(count)["image"]
    return [{"image": image[None] if dtype is None else image[None].astype(NUMPY[dtype])} for image in images]


def types_of(path) -> tuple[set[int], set[int]]:
    """Element types of the interface, and of the initializers that are floats."""
    graph = onnx.load(path).graph
    shown = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    return shown, {t.data_type for t in graph.initializer if ir.DataType(t.data_type).is_floating_point()}


def arrays(path) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in ir.load(path).graph.initializers.items()}


@TYPES
@pytest.mark.parametrize("criterion", ["l2", "obs", "wanda", "taylor", "fisher"])
def test_the_same_units_go_as_in_float32(tmp_path, dtype, criterion):
    path = net_of(dtype, tmp_path / "net.onnx")
    wide = rounded_to_float32(path, tmp_path / "wide.onnx")
    options = {"ratio": 0.5, "criterion": criterion, "round_to": 1}
    made = onnxprune.prune(path, tmp_path / "out.onnx", data=samples(dtype), **options)
    like = onnxprune.prune(wide, tmp_path / "like.onnx", data=samples(), **options)
    same = [np.mean(made.plan.keep[name] == like.plan.keep[name]) for name in like.plan.keep]
    assert np.mean(same) > (0.9 if dtype == BRAIN else 0.95), same  # images are rounded, too
    assert types_of(tmp_path / "out.onnx") == ({int(dtype)}, {int(dtype)})
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
    assert {layer.kind for layer in made.report.repairs} == {layer.kind for layer in like.report.repairs}
    for mine, other in zip(made.report.repairs, like.report.repairs, strict=True):
        assert mine.name == other.name and mine.after <= mine.before
        if same == [1.0] * len(same):
            assert mine.after == pytest.approx(other.after, rel=0.1, abs=1e-3)


@TYPES
def test_repaired_weights_are_rounded_once(tmp_path, dtype):
    path = net_of(dtype, tmp_path / "net.onnx")
    wide = rounded_to_float32(path, tmp_path / "wide.onnx")
    plan = onnxprune.prune(path, ratio=0.5, criterion="l2").plan
    exact = [{name: as_float32(array) for name, array in feed.items()} for feed in samples(dtype)]
    onnxprune.apply(path, plan, tmp_path / "out.onnx", data=samples(dtype))
    onnxprune.apply(
        wide, onnxprune.prune(wide, ratio=0.5, criterion="l2").plan, tmp_path / "like.onnx", data=exact
    )
    made, like = arrays(tmp_path / "out.onnx"), arrays(tmp_path / "like.onnx")
    step = float(ml_dtypes.finfo(NUMPY[dtype]).eps)
    assert set(made) == set(like)
    for name, array in made.items():
        wanted = like[name].astype(np.float64)
        # earlier layers were rounded, which later ones make up for: a few steps
        assert (
            np.abs(array.astype(np.float64) - wanted).max() <= max(8 * step, 1e-4) * np.abs(wanted).max()
        ), name


def test_without_repair_weights_are_slices_of_the_originals(tmp_path):
    path = net_of(HALF, tmp_path / "net.onnx")
    made = onnxprune.prune(path, tmp_path / "out.onnx", ratio=0.5, criterion="l1")
    before, after = arrays(path), arrays(tmp_path / "out.onnx")
    kept = [np.flatnonzero(flags) for flags in made.plan.keep.values()]
    assert len(kept) == 3
    first, second = before["conv0.weight"], before["conv1.weight"]
    assert np.array_equal(after["conv0.weight"], first[kept[0]])
    assert np.array_equal(after["conv1.weight"], second[kept[1]][:, kept[0]])


def test_what_onnxruntime_has_no_kernels_for_runs_in_float32_and_says_so(tmp_path):
    path = net_of(BRAIN, tmp_path / "net.onnx")
    report = onnxprune.prune(path, ratio=0.5, data=samples(BRAIN)).report
    assert report.fidelity is not None and report.repairs
    assert any("bfloat16" in line and "copy in float32" in line for line in report.warnings)
    labelled = tmp_path / "data.npz"
    np.savez(labelled, **feeds(40))
    found = onnxprune.validate(path, labelled)
    assert any("bfloat16" in line for line in found.notes)
    wide = onnxprune.validate(rounded_to_float32(path, tmp_path / "wide.onnx"), labelled)
    assert found.score.value == pytest.approx(wide.score.value, abs=1 / 40)


def test_a_widened_session_takes_any_float_and_makes_float32():
    model = convnet(dtype=BRAIN)
    model.graph.opset_imports[""] = 22
    session = open_session(model)
    assert is_widened(session)
    image = feeds(2)["image"]
    first, second = (run(session, {"image": image.astype(t)})["logits"] for t in (np.float64, np.float32))
    assert first.dtype == np.float32 and np.array_equal(first, second)
    with pytest.raises(ModelError, match="cannot load the model"):
        open_session(model, widen=False)
    assert not is_widened(open_session(convnet()))


def test_a_run_time_is_not_that_of_a_copy(tmp_path):
    path = net_of(BRAIN, tmp_path / "net.onnx")
    with pytest.raises(UnsupportedError, match="run time of a bfloat16 model cannot be measured") as error:
        onnxprune.prune(path, latency=0.8, provider="cpu")
    assert "--macs" in error.value.hint


def test_a_run_time_of_float16_on_the_cpu_says_what_it_is():
    watch = Stopwatch("cpu", 1)
    assert on_cpu(convnet(), watch) == () == on_cpu(convnet(dtype=BRAIN), watch)
    (line,) = on_cpu(convnet(dtype=HALF), watch)
    assert "in float32" in line


@TYPES
def test_sparse_slim_and_statistics(tmp_path, dtype):
    path = net_of(dtype, tmp_path / "net.onnx")
    for solver in ("mask", "sparsegpt"):
        made = onnxprune.sparsify(
            path, tmp_path / "sparse.onnx", sparsity=0.5, solver=solver, data=samples(dtype), force=True
        )
        assert made.report.achieved == pytest.approx(0.5, abs=0.01)
        assert types_of(tmp_path / "sparse.onnx") == ({int(dtype)}, {int(dtype)})
    statistics = onnxprune.stats(tmp_path / "sparse.onnx")
    zeros = sum(int((a == 0).sum()) for a in arrays(tmp_path / "sparse.onnx").values() if a.ndim > 1)
    assert sum(layer.found.zeros for layer in statistics.layers) == zeros > 5000
    onnxprune.prune(path, tmp_path / "masked.onnx", ratio=0.5, criterion="l2", mode="mask")
    onnxprune.slim(tmp_path / "masked.onnx", tmp_path / "slim.onnx")
    assert types_of(tmp_path / "slim.onnx") == ({int(dtype)}, {int(dtype)})
    assert arrays(tmp_path / "slim.onnx")["conv1.weight"].shape[1] == 8


def duplicates(path, dtype: ir.DataType, scale: float):
    """Eight hidden units in pairs of equals, read by weights of `scale`: one of a pair does the work of two."""
    from small_nets import Net

    net = Net(dtype)
    x = net.data("x", ("n", 6))
    half = net.rng.standard_normal((4, 6))
    first = net.constant(np.repeat(half, 2, axis=0).astype(NUMPY[dtype]), "first.weight")
    last = net.constant((scale * net.rng.uniform(0.9, 1.0, (3, 8))).astype(NUMPY[dtype]), "last.weight")
    hidden = net.op("Relu", net.op("Gemm", x, first, transB=1, name="first"), name="relu")
    y = net.ops("Gemm", hidden, last, outputs=["y"], transB=1, name="last")[0]
    return save(net.model(y), path)


@pytest.mark.parametrize("scale, kind", [(100.0, "affine"), (60000.0, "none")])
def test_a_repair_that_float16_cannot_hold_is_left_out_and_said(tmp_path, scale, kind):
    path = duplicates(tmp_path / "net.onnx", HALF, scale)
    rng = np.random.default_rng(0)
    data = [{"x": (1e-3 * rng.standard_normal((1, 6))).astype(np.float16)} for _ in range(80)]
    report = onnxprune.prune(
        path, tmp_path / "out.onnx", ratio=0.5, criterion="obs", round_to=1, data=data, compensate="affine"
    ).report
    (layer,) = report.repairs
    assert layer.kind == kind
    assert ("too large" in layer.why) == (kind == "none")
    assert all(np.isfinite(array).all() for array in arrays(tmp_path / "out.onnx").values())


def test_residual_streams_in_float16(tmp_path):
    model = residual()
    from onnxruntime.transformers.float16 import convert_float_to_float16

    wide = save(model, tmp_path / "wide.onnx")
    half = convert_float_to_float16(onnx.load(wide), keep_io_types=True)
    onnx.save(half, tmp_path / "half.onnx")
    made, like = (
        onnxprune.prune(tmp_path / f"{name}.onnx", tmp_path / f"{name}_out.onnx", macs=0.5, data=samples())
        for name in ("half", "wide")
    )
    shown, weights = types_of(tmp_path / "half_out.onnx")
    assert shown == {int(ir.DataType.FLOAT)} and weights == {int(HALF)}
    assert made.report.after.macs == pytest.approx(like.report.after.macs, rel=0.05)
    (mine,), (other,) = made.report.fidelity.outputs, like.report.fidelity.outputs
    assert mine.sqnr_db == pytest.approx(other.sqnr_db, abs=1.0)
    session = onnxruntime.InferenceSession(tmp_path / "half_out.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": feeds(2)["image"]})[0].dtype == np.float32
