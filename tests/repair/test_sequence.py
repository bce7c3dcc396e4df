"""The repair of whole models: what it recovers, what it leaves alone, and that nothing gets worse."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_nets import Net

import onnxprune
from onnxprune.calibrate.data import read_dataset
from onnxprune.calibrate.dataset import input_specs
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.choosing.evidence import Evidence
from onnxprune.criteria.elimination import Layer
from onnxprune.model.io import load
from onnxprune.report import json as as_json
from onnxprune.report import terminal

SAMPLES = 48


def save(model, tmp_path, name="model.onnx"):
    path = tmp_path / name
    ir.save(model, path)
    return path


def images(channels=3, size=8, count=SAMPLES, seed=0):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, channels, size, size)).astype(np.float32)} for _ in range(count)]


def outputs(path, feeds):
    session = open_session(load(path).ir, threads=1)
    return [run(session, feed) for feed in feeds]


def error(path, other, feeds):
    """Mean squared difference of the first output, as a share of its variance."""
    pairs = [
        (next(iter(a.values())), next(iter(b.values())))
        for a, b in zip(outputs(path, feeds), outputs(other, feeds), strict=True)
    ]
    left, right = (np.concatenate([pair[i] for pair in pairs]) for i in range(2))
    return float(np.square(left - right).mean() / np.square(left - left.mean(axis=0)).mean())


def redundant(kind="Conv"):
    """Of 16 inner channels 8 are mixtures of the others, so half can go without any loss."""
    n = Net()
    x = n.data("x", ("batch", 3, 8, 8))
    rng = np.random.default_rng(7)
    half = rng.standard_normal((8, 3, 3, 3)) / 5
    mix = rng.standard_normal((8, 8)) / 3
    weight = np.concatenate([half, np.einsum("ij,jabc->iabc", mix, half)]).astype(np.float32)
    h = n.op("Conv", x, n.constant(weight, "first.weight"), name="first", pads=[1] * 4)
    if kind == "Conv":
        y = n.conv(h, "second", (5, 16, 3, 3), bias=False)
    elif kind == "grouped":
        y = n.conv(h, "second", (6, 8, 3, 3), group=2)
    else:
        w = n.normal((16, 5, 3, 3), "second.weight", 0.1)
        y = n.op("ConvTranspose", h, w, name="second", strides=[2, 2])
    return n.model(y)


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("mode", ["remove", "mask"])
def test_channels_that_others_can_replace_cost_nothing(tmp_path, kind, mode):
    path = save(redundant(kind), tmp_path)
    out = {}
    for compensate in ("affine", "none"):
        out[compensate] = tmp_path / f"{compensate}.onnx"
        done = onnxprune.prune(
            path, out[compensate], ratio=0.5, criterion="obs", data=images(), compensate=compensate, mode=mode
        )
    fresh = images(seed=1)
    assert error(path, out["affine"], fresh) < 1e-6 < 1e-2 < error(path, out["none"], fresh)
    assert done.report.soundness.checked


def test_mask_and_remove_are_repaired_alike(tmp_path):
    """Also where the layer is divided into groups with private columns."""
    path = save(redundant("grouped"), tmp_path)
    files = {mode: tmp_path / f"{mode}.onnx" for mode in ("remove", "mask")}
    for mode, file in files.items():
        report = onnxprune.prune(path, file, ratio=0.5, round_to=1, data=images(), mode=mode).report
        assert [layer.kind for layer in report.repairs] == ["affine"]
    assert error(files["mask"], files["remove"], images(seed=1)) < 1e-9
    assert error(path, files["remove"], images(seed=1)) > 1e-4


def residual():
    """Two blocks on a stream, each with a wide inner layer; MatMuls without bias on tokens."""
    n = Net()
    x = n.data("x", ("batch", 6, 10))
    y = x
    for block in range(2):
        h = n.op("MatMul", y, n.normal((10, 24), f"up{block}.weight", 0.3), name=f"up{block}")
        h = n.op("Relu", h)
        h = n.op("MatMul", h, n.normal((24, 10), f"down{block}.weight", 0.3), name=f"down{block}")
        y = n.op("Add", y, h, name=f"add{block}")
    last = n.op("MatMul", y, n.normal((10, 4), "head.weight", 0.3), name="head")
    return n.model(last)


def tokens(count=SAMPLES, seed=0):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 6, 10)).astype(np.float32)} for _ in range(count)]


def test_streams_are_targets_and_biases_are_added(tmp_path):
    path, out, bare = save(residual(), tmp_path), tmp_path / "out.onnx", tmp_path / "bare.onnx"
    done = onnxprune.prune(path, out, macs=0.6, data=tokens(), round_to=1)
    repaired = done.report.repairs
    assert [layer.name for layer in repaired if layer.lost] == ["down0", "down1"]
    assert [layer.name for layer in repaired if not layer.lost] == ["up1", "head"]
    assert all(layer.after < layer.before for layer in repaired if layer.kind != "none")
    onnxprune.apply(path, done.plan, bare, compensate="none", data=tokens())
    fresh = tokens(seed=1)
    assert error(path, out, fresh) < 0.7 * error(path, bare, fresh)
    added = [node.op_type for node in load(out).ir.graph].count("Add") - 2
    assert added == sum(layer.kind != "none" for layer in repaired)  # the mean of what was lost
    assert [v.name for v in load(out).ir.graph.outputs] == [v.name for v in load(path).ir.graph.outputs]


def test_a_layer_at_the_output_keeps_the_outputs_name(tmp_path):
    n = Net()
    x = n.data("x", ("batch", 6, 10))
    h = n.op("Relu", n.op("MatMul", x, n.normal((10, 24), "up", 0.3), name="up"))
    y = n.ops("MatMul", h, n.normal((24, 10), "down", 0.3), outputs=["result"], name="down")[0]
    path, out = save(n.model(y), tmp_path), tmp_path / "out.onnx"
    report = onnxprune.prune(path, out, ratio=0.5, data=tokens(), round_to=1).report
    assert [layer.kind for layer in report.repairs] == ["affine"]
    (result,) = load(out).ir.graph.outputs
    assert result.name == "result" and result.producer().op_type == "Add"


def test_the_same_input_gives_the_same_bytes(tmp_path):
    path = save(residual(), tmp_path)
    files = [tmp_path / f"{i}.onnx" for i in range(2)]
    for file in files:
        onnxprune.prune(path, file, macs=0.6, data=tokens(), round_to=1)
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("memory", [2.0, 1e-9])
def test_little_memory_gives_the_same_model(tmp_path, memory):
    """Nothing held between layers, one layer per pass: slower, not different."""
    path = save(residual(), tmp_path)
    a, b = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnxprune.prune(path, a, macs=0.6, data=tokens(), round_to=1, memory=2.0)
    onnxprune.prune(path, b, macs=0.6, data=tokens(), round_to=1, memory=memory)
    assert error(a, b, tokens(seed=1)) < 1e-8


@pytest.mark.parametrize("broken", ["constant", "zeros", "one sample", "huge"])
def test_bad_data_gives_a_finite_model(tmp_path, broken):
    feeds = tokens()
    if broken == "constant":
        feeds = [feeds[0]] * 30
    if broken == "zeros":
        feeds = [{"x": np.zeros((1, 6, 10), np.float32)}] * 30
    if broken == "one sample":
        feeds = feeds[:1]
    if broken == "huge":
        feeds = [{"x": feed["x"] * 1e15} for feed in feeds]
    path, out = save(residual(), tmp_path), tmp_path / "out.onnx"
    report = onnxprune.prune(path, out, macs=0.6, data=feeds, round_to=1).report
    found = outputs(out, tokens(seed=1))
    assert all(np.isfinite(array).all() for feed in found for array in feed.values())
    if broken != "huge":  # what is learned there says nothing about ordinary samples
        assert error(path, out, tokens(seed=1)) < 3
    assert report.soundness.checked


def test_samples_that_overflow_inside_are_an_error(tmp_path):
    feeds = tokens()
    feeds[31]["x"][:] = 3e38
    path, out = save(residual(), tmp_path), tmp_path / "out.onnx"
    with pytest.raises(
        onnxprune.errors.DataError, match="layer down0 is not finite on the calibration samples"
    ):
        onnxprune.prune(path, out, macs=0.6, data=feeds, round_to=1)
    assert not out.exists()


def test_samples_to_measure_on_are_not_learned_from(tmp_path):
    """What is measured must not depend on what the repair has seen, and the report says on how many of each."""
    path = save(residual(), tmp_path)
    report = onnxprune.prune(path, tmp_path / "a.onnx", macs=0.6, data=tokens(50), round_to=1).report
    assert report.calibration["samples"] == 40 and report.fidelity.samples == 10
    assert any(
        "calibrated on 40 of the samples, measured on the other 10" in line for line in report.warnings
    )
    other = tokens(7, seed=3)
    report = onnxprune.prune(
        path, tmp_path / "b.onnx", macs=0.6, data=tokens(50), test=other, round_to=1
    ).report
    assert report.calibration["samples"] == 50 and report.fidelity.samples == 7
    first = (tmp_path / "b.onnx").read_bytes()
    onnxprune.prune(path, tmp_path / "c.onnx", macs=0.6, data=tokens(50), test=tokens(9, seed=4), round_to=1)
    assert (tmp_path / "c.onnx").read_bytes() == first


def test_reports_tell_what_was_repaired(tmp_path):
    report = onnxprune.prune(save(residual(), tmp_path), macs=0.6, data=tokens(), round_to=1).report
    assert "repaired 2 of 2 layers that lost inputs and" in terminal.render(report)
    entry = as_json.to_dict(report)["repairs"][0]
    assert entry["name"] == "down0" and entry["kind"] == "affine" and entry["after"] < entry["before"]


def test_without_data_nothing_is_repaired(tmp_path):
    report = onnxprune.prune(save(residual(), tmp_path), macs=0.6, round_to=1).report
    assert report.repairs == () and report.criterion == "l2"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"compensate": "magic"}, "no repair 'magic'"),
        ({"memory": 0}, "not positive"),
        ({"criterion": "obs"}, "needs --data"),
        ({"criterion": "wanda"}, "needs --data"),
        ({"rounds": 3}, "needs measured losses"),
        ({"rounds": 0}, "not positive"),
        ({"rounds": 2, "scope": "local"}, "means nothing with the scope local"),
        ({"schedule": "magic"}, "no schedule 'magic'"),
        ({"test": "x.npz"}, "no --data"),
    ],
)
def test_options_that_mean_nothing(tmp_path, options, said):
    path = save(residual(), tmp_path)
    with pytest.raises(onnxprune.errors.UsageError, match=said):
        onnxprune.prune(path, **{"macs": 0.6, **options})


@pytest.mark.parametrize("criterion", ["obs", "wanda", "flap", "apoz", "variance", "l2+wanda"])
def test_criteria_on_data(tmp_path, criterion):
    path = save(residual(), tmp_path)
    report = onnxprune.prune(path, macs=0.6, data=tokens(), round_to=1, criterion=criterion).report
    assert report.criterion == criterion and report.after.macs <= 0.6 * report.before.macs


def test_rounds_measure_again(tmp_path):
    path = save(residual(), tmp_path)
    said = []
    report = onnxprune.prune(
        path,
        macs=0.4,
        data=tokens(),
        round_to=1,
        rounds=3,
        schedule="cube",
        progress=lambda *step: said.append(step[0]),
    ).report
    assert report.after.macs <= 0.4 * report.before.macs and "measuring again" in said


def test_a_learned_ranking_changes_the_outputs_no_more_than_the_plain_one(tmp_path, monkeypatch):
    """The plain ranking is the first that is tried; the same seed learns the same."""
    monkeypatch.setattr("onnxprune.choosing.learned.TRIALS", 12)
    path = save(residual(), tmp_path)
    options = {"macs": 0.6, "data": tokens(), "round_to": 1, "criterion": "l1"}
    plain = onnxprune.prune(path, **options).plan
    learned = [onnxprune.prune(path, scope="learned", **options).plan for _ in range(2)]
    assert learned[0].to_json() == learned[1].to_json()
    analysis = onnxprune.analyze(path)
    data = read_dataset(tokens(), input_specs(load(path).ir))
    evidence = Evidence(analysis, data)
    changes = [
        evidence.change({name: ~flags for name, flags in plan.keep.items()}) for plan in (plain, learned[0])
    ]
    assert changes[1] <= changes[0] * 1.05  # the search looked at other samples than these


def test_a_learned_ranking_needs_data(tmp_path):
    with pytest.raises(onnxprune.errors.UsageError, match="--scope learned needs --data"):
        onnxprune.prune(save(residual(), tmp_path), macs=0.6, scope="learned")


def fixed(batch):
    """A model that only takes `batch` samples at once, whose first input has no batch at all."""
    n = Net()
    table = n.data("table", (10, 10))
    x = n.data("x", (batch, 6, 10))
    x = n.op("MatMul", x, table)
    h = n.op("Relu", n.op("MatMul", x, n.normal((10, 24), "up.weight", 0.3), name="up"))
    y = n.op("MatMul", h, n.normal((24, 10), "down.weight", 0.3), name="down")
    z = n.op("Transpose", y, perm=[0, 2, 1])
    z = n.conv(n.op("Relu", n.conv(z, "c1", (16, 10, 3))), "c2", (4, 16, 3))
    return n.model(z)


def test_models_of_a_fixed_batch_size(tmp_path):
    path = save(fixed(3), tmp_path)
    rng = np.random.default_rng(0)
    feeds = [
        {"table": np.eye(10, dtype=np.float32), "x": rng.standard_normal((3, 6, 10)).astype(np.float32)}
        for _ in range(30)
    ]
    done = onnxprune.prune(path, tmp_path / "out.onnx", macs=0.6, data=feeds, round_to=1)
    assert {layer.kind for layer in done.report.repairs} == {"affine"}
    onnxprune.apply(path, done.plan, tmp_path / "bare.onnx")
    assert error(path, tmp_path / "out.onnx", feeds) < error(path, tmp_path / "bare.onnx", feeds)


def test_a_batch_size_that_is_bound_changes_nothing(tmp_path):
    path = save(residual(), tmp_path)
    a, b = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnxprune.prune(path, a, macs=0.6, data=tokens(), round_to=1)
    onnxprune.prune(path, b, macs=0.6, data=tokens(), round_to=1, bindings={"batch": 4})
    assert a.read_bytes() == b.read_bytes()


def test_samples_of_different_shapes_are_an_error(tmp_path):
    n = Net()
    x = n.data("x", ("batch", "tokens", 10))
    h = n.op("Relu", n.op("MatMul", x, n.normal((10, 24), "up.weight", 0.3), name="up"))
    path = save(n.model(n.op("MatMul", h, n.normal((24, 10), "down.weight", 0.3), name="down")), tmp_path)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 4 + i % 2, 10)).astype(np.float32)} for i in range(30)]
    with pytest.raises(onnxprune.errors.DataError, match="samples differ in shape") as caught:
        onnxprune.prune(path, macs=0.6, data=feeds, round_to=1)
    assert "--compensate none" in str(caught.value)
    report = onnxprune.prune(path, macs=0.6, data=feeds, round_to=1, criterion="l2", compensate="none").report
    assert report.soundness.checked


@pytest.mark.parametrize(("changes", "best"), [((1, 2, 3), "obs"), ((2, 1, 3), "wanda"), ((3, 3, 1), "l2")])
def test_auto_takes_the_order_that_changes_the_outputs_least(tmp_path, monkeypatch, changes, best):
    """With the scope local nothing else is tried, so these are the changes of the three orders."""
    path, found = save(residual(), tmp_path), iter(changes)
    monkeypatch.setattr(Evidence, "change", lambda *_: next(found))
    report = onnxprune.prune(path, macs=0.6, scope="local", data=tokens(), round_to=1).report
    assert report.criterion == best
    note = next(line for line in report.warnings if line.startswith("criterion auto took"))
    assert f"took {best}:" in note and "held-out samples" in note


@pytest.mark.parametrize("compensate", ["none", "bias"])
def test_units_are_chosen_for_the_repair_that_follows(tmp_path, monkeypatch, compensate):
    """Where nothing is refitted, units that others could replace are not cheap."""
    path, here = save(redundant(), tmp_path), tmp_path / "here.onnx"
    options = {"ratio": 0.5, "round_to": 1, "criterion": "obs", "test": images(count=3)}
    onnxprune.prune(path, here, data=images(), compensate=compensate, **options)
    monkeypatch.setattr(
        Evidence,
        "_part",
        lambda _self, layer, seen, unit, _units: Layer.of(layer.matrix(), seen.covariance, unit),
    )
    there = tmp_path / "there.onnx"
    onnxprune.prune(path, there, data=images(), compensate=compensate, **options)
    fresh = images(seed=1)
    assert error(path, here, fresh) < error(path, there, fresh)


def test_a_layer_that_is_too_wide_is_left_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxprune.repair.targets.WIDEST", 20 * 60**2)
    path = save(redundant(), tmp_path)
    report = onnxprune.prune(path, ratio=0.5, data=images()).report
    wide = [
        layer
        for layer in report.repairs
        if layer.why == "it has so many inputs and outputs that statistics "
        "of all of them would take more than 4 GB"
    ]
    assert [layer.kind for layer in wide] == ["none"] * len(wide) and wide
