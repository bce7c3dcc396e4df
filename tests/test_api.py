"""The functions of the Python API: the same words and results as the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_nets import attention, convnet, feeds, save

import onnxprune
from onnxprune.errors import DataError, ModelError, TargetError, UsageError


@pytest.fixture
def path(tmp_path):
    return save(convnet(), tmp_path / "net.onnx")


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_prune_returns_everything(path):
    pruned = onnxprune.prune(path, path.with_name("small.onnx"), macs=0.6, data=feeds())
    assert isinstance(pruned.model, ir.Model)
    assert pruned.path == path.with_name("small.onnx")
    assert pruned.report.target.met
    assert pruned.report.after.macs <= 0.6 * pruned.report.before.macs
    assert pruned.report.metric.before.samples == 6
    assert pruned.plan.dropped == pruned.report.dropped > 0
    onnx.checker.check_model(str(pruned.path), full_check=True)


def test_nothing_is_written_without_an_output(path):
    pruned = onnxprune.prune(path, macs=0.6)
    assert pruned.path is None
    assert names(path.parent) == ["net.onnx"]
    assert "not written" in repr(pruned)
    assert pruned.report.after.bytes < pruned.report.before.bytes


def test_a_loaded_model_is_not_changed(path):
    model = onnxprune.load(path)
    before = ir.to_proto(model.ir).SerializeToString()
    first = onnxprune.prune(model, ratio=0.3)
    onnxprune.prune(model, ratio=0.3, mode="mask")
    onnxprune.analyze(model)
    assert ir.to_proto(model.ir).SerializeToString() == before
    again = onnxprune.prune(path, ratio=0.3)
    assert ir.to_proto(again.model).SerializeToString() == ir.to_proto(first.model).SerializeToString()


def test_plan_then_apply(path):
    plan = onnxprune.plan(onnxprune.analyze(path), macs=0.6)
    file = path.with_name("plan.json")
    plan.save(file)
    by_value = onnxprune.apply(path, plan, path.with_name("a.onnx"))
    by_file = onnxprune.apply(path, file, path.with_name("b.onnx"))
    direct = onnxprune.prune(path, path.with_name("c.onnx"), macs=0.6)
    contents = {result.path.read_bytes() for result in (by_value, by_file, direct)}
    assert len(contents) == 1
    assert direct.plan.to_json() == plan.to_json() == file.read_text()
    again = onnxprune.read_plan(file, onnxprune.analyze(path))
    assert again.to_json() == plan.to_json()


def test_a_plan_of_another_model(path, tmp_path):
    other = save(convnet(seed=1), tmp_path / "other.onnx")
    plan = onnxprune.plan(onnxprune.analyze(other), macs=0.6)
    with pytest.raises(UsageError, match="made for another model"):
        onnxprune.apply(path, plan)


def test_a_plan_is_reviewed_and_edited(path):
    """Give back two units of a group by hand: the tool builds what the edited plan says."""
    analysis = onnxprune.analyze(path)
    plan = onnxprune.plan(analysis, ratio=0.5, scope="uniform")
    keep = {name: flags.copy() for name, flags in plan.keep.items()}
    keep["g1"][np.flatnonzero(~keep["g1"])[:2]] = True
    edited = onnxprune.Plan.of(analysis, keep)
    pruned = onnxprune.apply(path, edited)
    shape = pruned.model.graph.initializers["conv1.weight"].shape.numpy()
    assert shape[:2] == (18, 8)


@pytest.mark.parametrize("data", ["mapping", "npz", "iterable", "callable", "reader"])
def test_forms_of_data(path, data):
    arrays = feeds()

    class Reader:
        def __init__(self) -> None:
            self.left = [{"image": image[None]} for image in arrays["image"]]

        def get_next(self):
            return self.left.pop(0) if self.left else None

    forms = {
        "mapping": arrays,
        "npz": path.with_name("data.npz"),
        "iterable": [{"image": image[None]} for image in arrays["image"]],
        "callable": lambda: ({"image": image[None]} for image in arrays["image"]),
        "reader": Reader(),
    }
    np.savez(forms["npz"], **arrays)
    report = onnxprune.prune(path, ratio=0.3, data=forms[data]).report
    assert (report.calibration["tier"], report.calibration["samples"]) == ("real", 6)
    assert report.soundness.tier == "real"
    assert report.fidelity.samples == 6


def test_progress_is_reported(path):
    said = []
    onnxprune.prune(path, path.with_name("o.onnx"), data=feeds(), progress=lambda *step: said.append(step))
    stages = list(dict.fromkeys(stage for stage, _, _ in said))
    assert stages == [
        *("loading", "reading data", "analysing", "scoring", "collecting statistics"),
        *(
            "exchanging units",
            "proving masked == removed",
            "cutting",
            "repairing",
            "measuring top1",
            "writing",
        ),
    ]
    assert all(0 <= done <= total or total == 0 for _, done, total in said)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"macs": 0.5, "ratio": 0.5}, UsageError, "contradict"),
        ({"macs": 0.0}, UsageError, "is not in"),
        ({"mode": "delete"}, UsageError, "no mode 'delete'"),
        ({"criterion": "l7"}, UsageError, "no criterion 'l7'"),
        ({"scope": "layer"}, UsageError, "no scope 'layer'"),
        ({"preset": "torch"}, UsageError, "no preset 'torch'"),
        ({"seed": -3}, UsageError, "negative"),
        ({"bindings": {"n": 0}}, UsageError, "not positive"),
        ({"bindings": {"seq": 4}}, UsageError, "no symbolic dim"),
        ({"ignore": ["layer*"]}, UsageError, "matches no node"),
        ({"macs": 0.01}, TargetError, "out of reach"),
        ({"data": {"image": np.zeros((2, 3, 8, 9), np.float32)}}, DataError, "image"),
        ({"data": 7}, DataError, "yields no feeds"),
        ({"provider": "tpu"}, UsageError, "no execution provider"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_errors(path, options, error, message):
    with pytest.raises(error, match=message) as caught:
        onnxprune.prune(path, path.with_name("out.onnx"), **options)
    assert caught.value.hint
    assert str(caught.value) == f"{caught.value.what}\n{caught.value.hint}"
    assert names(path.parent) == ["net.onnx"]


def test_a_model_that_is_none(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError):
        onnxprune.load(tmp_path / "net.onnx")


def test_bindings_set_the_size_at_which_macs_are_counted(tmp_path):
    path = save(attention(tokens=6), tmp_path / "net.onnx")
    one, four = (onnxprune.analyze(path, bindings={"n": n}).cost for n in (1, 4))
    assert (four.macs, four.params) == (4 * one.macs, one.params)
    assert onnxprune.prune(path, ratio=0.3, bindings={"n": 4}).report.before.macs == four.macs


def test_masked_and_removed_agree_in_onnxruntime(path):
    import onnxruntime

    options = {"ratio": 0.5, "scope": "uniform"}
    for mode in ("remove", "mask"):
        onnxprune.prune(path, path.with_name(f"{mode}.onnx"), mode=mode, **options)
    found = [
        onnxruntime.InferenceSession(path.with_name(name), providers=["CPUExecutionProvider"]).run(
            None, {"image": feeds()["image"]}
        )[0]
        for name in ("remove.onnx", "mask.onnx", "net.onnx")
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-6)
    assert np.abs(found[0] - found[2]).max() > 1e-3


def test_validate(path):
    small = onnxprune.prune(path, path.with_name("small.onnx"), macs=0.6).path
    found = onnxprune.validate(small, feeds(), against=path)
    assert found.score.samples == found.reference.samples == found.samples == 6
    assert found.fidelity.main.name == "logits"
    assert str(found).splitlines()[0].startswith("original: top1")
    alone = onnxprune.validate(small, feeds())
    assert (alone.reference, alone.fidelity) == (None, None)
    plain = onnxprune.validate(small, {"image": feeds()["image"]}, against=path)
    assert (plain.score, plain.reference) == (None, None)
    assert plain.fidelity.main.cosine < 1
    same = onnxprune.validate(path, feeds(), against=path, samples=3)
    assert same.fidelity.main.top1_agreement == 1
    assert same.samples == 3


def test_explain(path):
    analysis = onnxprune.analyze(path)
    found = onnxprune.explain(analysis, "conv1.weight")
    assert [(axis.axis, axis.extent, axis.groups) for axis in found.axes[:2]] == [
        ("conv1.weight[0]", 32, ("g1",)),
        ("conv1.weight[1]", 16, ("g0",)),
    ]
    (blocked,) = onnxprune.explain(analysis, "logits[1]").axes
    assert "graph output" in blocked.barrier
    assert blocked.path
    with pytest.raises(UsageError, match="no tensor, node or group named"):
        onnxprune.explain(analysis, "conv9")


def test_an_unwritable_output_is_found_before_the_work(path, monkeypatch):
    import onnxprune.job

    monkeypatch.setattr(onnxprune.job, "analyze", None)
    path.with_name("out.onnx").write_text("precious")
    for model in (path, onnxprune.load(path)):
        with pytest.raises(UsageError, match="exists already"):
            onnxprune.prune(model, path.with_name("out.onnx"))


def test_batchnorm_is_folded_only_on_request(tmp_path):
    model = Path(__file__).parents[1] / "models" / "digits_resnet_ts.onnx"
    kept = onnxprune.prune(model, macs=0.7)
    folded = onnxprune.prune(onnxprune.load(model, fold_batchnorm=True), macs=0.7)
    assert "BatchNormalization" in {node.op_type for node in kept.model.graph}
    assert "BatchNormalization" not in {node.op_type for node in folded.model.graph}
    assert folded.report.soundness.checked
    assert folded.report.target.met
