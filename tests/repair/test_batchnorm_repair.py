"""The repair of BatchNormalization nodes that no layer could take up."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_nets import Net

import onnxprune
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.graph.axes import Axis
from onnxprune.model.io import load
from onnxprune.repair import fit as fits
from onnxprune.repair import sequence
from onnxprune.repair.targets import layers_to_repair
from onnxprune.repair.write import write
from onnxprune.statistics.norms import Norm, norm_of
from onnxprune.surgery.keep import kept_positions
from onnxprune.surgery.remove import remove

SAMPLES = 60


def save(model, tmp_path, name="model.onnx"):
    path = tmp_path / name
    ir.save(model, path)
    return path


def feeds(shape, count=SAMPLES, seed=0):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, *shape)).astype(np.float32)} for _ in range(count)]


def value_of(path, name, samples):
    """A tensor inside a model, for all samples, with the channels last: (rows, channels), float64."""
    model = load(path).ir
    value = next(out for node in model.graph for out in node.outputs if out.name == name)
    model.graph.outputs[:] = [value]
    session = open_session(model, threads=1)
    found = np.concatenate([run(session, feed)[name] for feed in samples]).astype(np.float64)
    return np.moveaxis(found, 1, -1).reshape(-1, found.shape[1])


def error(path, other, samples):
    """Mean squared difference of the output, as a share of its variance."""
    name = load(path).ir.graph.outputs[0].name
    a, b = (value_of(p, name, samples) for p in (path, other))
    return float(np.square(a - b).mean() / a.var(axis=0).mean())


def node_of(path, name):
    return next(node for node in load(path).ir.graph if node.name == name)


def parameters(path, name):
    return [value.const_value.numpy().astype(np.float64) for value in node_of(path, name).inputs[1:]]


def behind_a_layer(spatial, scale=1.0, shift=0.0):
    """A layer that loses inputs, an activation, and a norm whose input it made worse; `spatial` axes.

    Neither activation is flat, so that all of their inputs counts.

    Parameters
    ----------
    scale, shift
        Of what the norm sees: its mean and variance fit that.
    """
    n = Net(seed=2)
    shape = (3, *(6,) * spatial)
    x = n.data("x", ("batch", *shape))

    def layer(h, name, inner, outer):
        if not spatial:
            return n.linear(h, name, inner, outer)
        return n.conv(h, name, (outer, inner, *(3,) * spatial))

    h = n.op("Relu", layer(x, "up", 3, 12))
    h = n.op("LeakyRelu", layer(h, "down", 12, 7))
    h = n.op("Add", n.op("Mul", h, n.constant(np.float32(scale))), n.constant(np.float32(shift)), name="seen")
    rng = n.rng
    norm = n.ops(
        "BatchNormalization",
        h,
        n.constant(rng.uniform(0.5, 2, 7).astype(np.float32), "norm.weight"),
        n.constant(rng.standard_normal(7).astype(np.float32), "norm.bias"),
        n.constant((shift + scale * rng.uniform(0.2, 0.6, 7)).astype(np.float32), "norm.mean"),
        n.constant((scale**2 * rng.uniform(0.2, 1, 7)).astype(np.float32), "norm.variance"),
        outputs=["normed"],
        name="norm",
        epsilon=1e-3 * scale**2,
    )[0]
    return n.model(layer(n.op("LeakyRelu", norm), "last", 7, 4)), shape


def cut(path, out, samples, **options):
    """Prune the inner layer to half its units; all samples are learned from."""
    base = {"ratio": 0.5, "round_to": 1, "criterion": "l2", "only": ["up*"], "test": samples[:5]}
    return onnxprune.prune(path, out, data=samples, **{**base, **options})


def reference(path, out, samples, kinds):
    """Scale and shift by regression of every channel alone, float64, on the rows themselves.

    The inputs are those of the repaired model: nothing before the norm changes after it.
    """
    scale, shift, mean, variance = parameters(path, "norm")
    epsilon = node_of(path, "norm").attributes["epsilon"].as_float()
    size = len(samples) // 10  # batches, every fifth of which is held out
    held = np.arange(len(samples)) // size % 5 == 4
    parts = []
    for flags in (~held, held):
        some = [feed for feed, flag in zip(samples, flags, strict=True) if flag]
        seen = node_of(out, "norm").inputs[0].name
        z = (value_of(out, seen, some) - mean) / np.sqrt(variance + epsilon)
        parts.append((z, value_of(path, "normed", some)))
    (z, t), (held_z, held_t) = parts
    covariance = ((z - z.mean(axis=0)) * (t - t.mean(axis=0))).mean(axis=0)
    slopes = {"bias": [scale], "rescale": [covariance / z.var(axis=0)]}
    slopes["affine"] = [
        (covariance + share * z.var(axis=0) * scale) / (z.var(axis=0) * (1 + share)) for share in fits.RIDGES
    ]
    tried = [(s, t.mean(axis=0) - s * z.mean(axis=0)) for kind in kinds for s in slopes[kind]]
    return min([(scale, shift), *tried], key=lambda w: np.square(held_t - w[0] * held_z - w[1]).mean())


@pytest.mark.parametrize("spatial", [0, 1, 2, 3])
@pytest.mark.parametrize("compensate", ["affine", "rescale", "bias"])
def test_scale_and_shift_are_those_of_a_regression_per_channel(tmp_path, spatial, compensate):
    model, shape = behind_a_layer(spatial)
    path, out, samples = save(model, tmp_path), tmp_path / "out.onnx", feeds(shape)
    report = cut(path, out, samples, compensate=compensate).report
    (entry,) = (layer for layer in report.repairs if layer.name == "norm")
    assert (entry.kind, entry.lost) == (compensate, False) and entry.after < entry.before
    expected = reference(path, out, samples, [compensate])
    found, before = parameters(out, "norm"), parameters(path, "norm")
    for one, other in zip(found[:2], expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=5e-4, atol=5e-4)  # sums in float32, channels mostly zero
    for one, other in zip(found[2:], before[2:], strict=True):  # mean and variance stay
        np.testing.assert_array_equal(one, other)
    assert np.abs(found[1] - before[1]).max() > 1e-2


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_channels_far_from_zero_are_fitted_as_well(tmp_path, scale):
    """100 standard deviations from zero, plain sums of squares in float32 would lose the variance."""
    model, shape = behind_a_layer(2, scale=scale, shift=100 * scale)
    path, out, samples = save(model, tmp_path), tmp_path / "out.onnx", feeds(shape)
    cut(path, out, samples, compensate="rescale")
    expected = reference(path, out, samples, ["rescale"])
    for one, other in zip(parameters(out, "norm")[:2], expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("compensate", ["auto", "affine", "rescale", "bias"])
def test_repairing_norms_as_well_is_better_than_not(tmp_path, monkeypatch, compensate):
    """On samples that nothing was fitted on; each kind acts on norms and on layers that lost nothing."""
    model, shape = behind_a_layer(2)
    path, samples, fresh = save(model, tmp_path), feeds(shape), feeds(shape, seed=1)
    every, without, bare = (tmp_path / f"{name}.onnx" for name in ("every", "without", "bare"))
    report = cut(path, every, samples, compensate=compensate).report
    cut(path, bare, samples, compensate="none")

    def layers_without_norms(*given):
        pairs, left = layers_to_repair(*given)
        return [pair for pair in pairs if not isinstance(pair.student, Norm)], left

    monkeypatch.setattr(sequence, "layers_to_repair", layers_without_norms)
    cut(path, without, samples, compensate=compensate)
    behind = {layer.name: layer.kind for layer in report.repairs if not layer.lost}
    assert set(behind) == {"norm", "last"} and "none" not in behind.values()
    assert compensate == "auto" or set(behind.values()) == {compensate}
    assert error(path, every, fresh) < error(path, bare, fresh)
    at_the_norm = [
        np.square(value_of(path, "normed", fresh) - value_of(p, "normed", fresh)).mean()
        for p in (every, without)
    ]
    assert at_the_norm[0] < 0.97 * at_the_norm[1]


def dense(blocks=3, growth=8, inner=24, norm=True):
    """Norm, Relu, 1x1, norm, Relu, 3x3, joined to what came before; as in DenseNet (Huang et al. 2017)."""
    n = Net(seed=4)
    stream = n.conv(n.data("x", ("batch", 3, 8, 8)), "stem", (16, 3, 3, 3))
    stream = n.op("MaxPool", n.op("Relu", stream), kernel_shape=[2, 2], strides=[2, 2], name="pool")
    width = 16
    for block in range(blocks):
        h = n.op("Relu", n.batch_norm(stream, f"block{block}.norm1", width))
        h = n.conv(h, f"block{block}.conv1", (inner, width, 1, 1), bias=False)
        h = n.op("Relu", n.batch_norm(h, f"block{block}.norm2", inner))
        h = n.conv(h, f"block{block}.conv2", (growth, inner, 3, 3), bias=False)
        stream, width = n.op("Concat", stream, h, axis=1, name=f"block{block}.join"), width + growth
    stream = n.op("Relu", n.batch_norm(stream, "norm", width))
    return n.model(n.head(stream, width))


def test_dense_blocks(tmp_path):
    """Norms behind a Concat are repaired, those right behind a refitted layer have nothing left to correct.

    Nothing before the first block sees other inputs than it saw.
    """
    path, samples, fresh = save(dense(), tmp_path), feeds((3, 8, 8)), feeds((3, 8, 8), seed=1)
    files = {kind: tmp_path / f"{kind}.onnx" for kind in ("auto", "none", "mask")}
    plan = cut(path, files["none"], samples, compensate="none", ratio=0.4, only=[]).plan
    for name in ("auto", "mask"):
        mode = "mask" if name == "mask" else "remove"
        report = onnxprune.apply(
            path, plan, files[name], data=samples, test=samples[:5], compensate="auto", mode=mode
        ).report
        norms = [layer for layer in report.repairs if "norm" in layer.name]
        assert [layer.name for layer in norms] == ["block1.norm1", "block2.norm1", "norm"]
        assert not any(layer.lost for layer in norms) and report.soundness.checked
        assert all(layer.after <= layer.before for layer in norms)
    assert error(path, files["auto"], fresh) < 0.5 * error(path, files["none"], fresh)
    assert error(files["mask"], files["auto"], fresh) < 1e-9
    widths = [len(array) for array in parameters(files["auto"], "norm")]
    assert len(set(widths)) == 1 and widths[0] < 40 == len(parameters(files["mask"], "norm")[0])
    onnxprune.apply(path, plan, tmp_path / "again.onnx", data=samples, test=samples[:5], compensate="auto")
    assert (tmp_path / "again.onnx").read_bytes() == files["auto"].read_bytes()


def test_parameters_that_other_nodes_share_stay_for_them(tmp_path):
    """The first norm lies before all that is cut and has its four parameters in common with the second."""
    n = Net(seed=2)
    x = n.data("x", ("batch", 7, 6, 6))
    shared = [n.constant(np.linspace(0.5, 1, 7).astype(np.float32), part) for part in "abc"]
    shared = [shared[0], shared[1], shared[1], shared[2]]  # shift and mean are one, too
    h = n.op("BatchNormalization", x, *shared, name="first")
    h = n.op("Relu", n.conv(h, "up", (12, 7, 3, 3)))
    h = n.op("Relu", n.conv(h, "down", (7, 12, 3, 3)))
    h = n.op("BatchNormalization", h, *shared, name="norm")
    path = save(n.model(n.conv(n.op("Relu", h), "last", (4, 7, 3, 3))), tmp_path)
    for mode in ("remove", "mask"):
        out = tmp_path / f"{mode}.onnx"
        report = cut(path, out, feeds((7, 6, 6)), mode=mode).report
        assert [layer.kind != "none" for layer in report.repairs if layer.name == "norm"] == [True]
        for one, other in zip(parameters(out, "first"), parameters(path, "first"), strict=True):
            np.testing.assert_array_equal(one, other)
        pairs = list(zip(parameters(out, "norm"), parameters(path, "norm"), strict=True))
        assert [np.array_equal(*pair) for pair in pairs] == [False, False, True, True]


def test_writing_leaves_what_is_shared():
    """Also in a graph that was never normalised: one initializer in three slots, another an output."""
    arrays = {name: np.ones(5, np.float32) for name in ("one", "variance")}
    nodes = [
        helper.make_node("BatchNormalization", ["x", "one", "one", "one", "variance"], ["h"], name="norm"),
        helper.make_node("BatchNormalization", ["h", "variance", "one", "one", "variance"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "shared",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5, 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "variance")],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    first, second = model.graph
    write(norm_of(first), np.arange(5.0), np.arange(5.0, 10.0))
    write(norm_of(second), np.arange(10.0, 15.0), np.arange(15.0, 20.0))
    found = [[value.const_value.numpy().tolist() for value in node.inputs[1:]] for node in (first, second)]
    ones = [1.0] * 5
    assert found[0] == [list(range(5)), list(range(5, 10)), ones, ones]
    assert found[1] == [list(range(10, 15)), list(range(15, 20)), ones, ones]
    assert model.graph.outputs[1].const_value.numpy().tolist() == ones


@pytest.mark.parametrize("broken", ["constant", "zeros", "one sample", "dead", "no variance"])
def test_degenerate_data_gives_a_finite_model(tmp_path, broken):
    model, shape = behind_a_layer(2)
    values = model.graph.initializers
    samples = feeds(shape)
    if broken == "constant":
        samples = [{"x": np.ones((1, *shape), np.float32)}] * 30
    if broken == "zeros":
        samples = [{"x": np.zeros((1, *shape), np.float32)}] * 30
    if broken == "one sample":
        samples = samples[:1]
    if broken == "dead":  # three channels of the norm see one number
        weight = values["down.weight"].const_value.numpy().copy()
        weight[:3] = 0
        values["down.weight"].const_value = ir.Tensor(weight)
        values["down.bias"].const_value = ir.Tensor(np.full(7, 0.3, np.float32))
    if broken == "no variance":
        values["norm.variance"].const_value = ir.Tensor(np.zeros(7, np.float32))
    path, out = save(model, tmp_path), tmp_path / "out.onnx"
    test = samples[:5] if len(samples) > 1 else None
    report = cut(path, out, samples, test=test).report
    assert report.soundness.checked
    assert all(np.isfinite(array).all() for array in parameters(out, "norm"))
    assert np.isfinite(value_of(out, "normed", feeds(shape, seed=1))).all()
    if broken == "dead":  # where nothing varies, no scale can be learned
        scales = [parameters(p, "norm")[0][:3] for p in (path, out)]
        np.testing.assert_array_equal(*scales)


@pytest.mark.parametrize("kind", ["training", "computed", "right behind"])
def test_norms_that_are_left_as_they_are(tmp_path, kind):
    """They have lost nothing, so the report owes no reason for them."""
    n = Net(seed=2)
    x = n.data("x", ("batch", 3, 6, 6))
    h = n.op("Relu", n.conv(x, "up", (12, 3, 3, 3)))
    h = n.conv(h, "down", (7, 12, 3, 3))
    if kind != "right behind":
        h = n.op("Relu", h)
    if kind == "computed":
        given = n.data("given", (7,))
        arrays = [n.normal((7,), f"norm.{part}") for part in ("weight", "bias", "mean")]
        h = n.op("BatchNormalization", h, *arrays, n.op("Exp", given), name="norm")
    elif kind == "training":
        arrays = [n.normal((7,), f"norm.{part}") for part in ("weight", "bias", "mean", "variance")]
        h = n.ops(
            "BatchNormalization", h, *arrays, outputs=["normed", "m", "v"], name="norm", training_mode=1
        )[0]
    else:
        h = n.batch_norm(h, "norm", 7)
    path = save(n.model(n.conv(n.op("Relu", h), "last", (4, 7, 3, 3))), tmp_path)
    samples = feeds((3, 6, 6))
    if kind == "computed":
        samples = [{**feed, "given": np.zeros(7, np.float32)} for feed in samples]
    report = cut(path, tmp_path / "out.onnx", samples).report
    assert [layer.name for layer in report.repairs] == ["down", "last"]
    assert not any(layer.why for layer in report.repairs)
    for slot in (1, 2):
        before, after = (node_of(p, "norm").inputs[slot] for p in (path, tmp_path / "out.onnx"))
        np.testing.assert_array_equal(before.const_value.numpy(), after.const_value.numpy())


def test_a_norm_is_in_the_list_with_the_channels_that_are_left(tmp_path):
    """The cut model's norm has fewer channels than the original's, and its target as few."""
    path = save(dense(blocks=1), tmp_path)
    analysis = onnxprune.analyze(path)
    plan = onnxprune.plan(analysis, ratio=0.5, round_to=1)
    kept = kept_positions(analysis.groups, plan.keep)
    pairs, _ = layers_to_repair(analysis.axis_graph, remove(analysis.axis_graph, kept), kept)
    (pair,) = (pair for pair in pairs if pair.student.label == "norm")
    assert pair.student.groups == kept[Axis(pair.teacher.y, 1)].sum() < pair.teacher.groups
