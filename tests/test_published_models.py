"""Models that others trained and published: pruned, sound, valid, and what stands in the way is said."""

from __future__ import annotations

import json

import onnx
import pytest
from small_nets import REAL

import onnxprune
from onnxprune.cli import main

pytestmark = pytest.mark.real
MODELS = sorted(path.name for path in (REAL / "models").glob("*.onnx"))


def options(name):
    """Most groups of GTCRN have fewer units than what widths are rounded to."""
    return {"round_to": 1} if "gtcrn" in name else {}


@pytest.mark.parametrize("name", MODELS)
def test_a_third_of_the_units(tmp_path, name):
    """`--ratio 0.3`: met, proven, valid, and as small as the report says."""
    output = tmp_path / "out.onnx"
    before = (REAL / "models" / name).stat()
    report = onnxprune.prune(REAL / "models" / name, output, ratio=0.3, **options(name)).report
    assert report.target.met
    assert report.target.achieved >= 0.3
    sound = report.soundness
    assert sound.checked
    assert not sound.rejected_groups
    assert sound.inner > 0
    assert sound.max_abs_diff <= 1e-4 * sound.max_abs_output
    assert report.after.params < report.before.params
    assert report.after.bytes == output.stat().st_size < report.before.bytes
    onnx.checker.check_model(str(output), full_check=True)
    again = onnxprune.analyze(output, bindings=report.bindings)
    assert (again.cost.macs, again.cost.params) == (report.after.macs, report.after.params)
    assert report.barriers
    after = (REAL / "models" / name).stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("name", MODELS)
def test_the_interface_stays(tmp_path, name):
    """Names, types and order of inputs and outputs, opsets, and the dims that callers rely on."""
    output = tmp_path / "out.onnx"
    onnxprune.prune(REAL / "models" / name, output, ratio=0.2, **options(name))
    old, new = onnx.load(REAL / "models" / name), onnx.load(output)
    weights = {tensor.name for tensor in old.graph.initializer}
    assert [v.name for v in new.graph.input] == [v.name for v in old.graph.input]
    for mine, theirs in zip(new.graph.input, old.graph.input, strict=True):
        assert mine.name in weights or mine == theirs
    assert list(new.graph.output) == list(old.graph.output)
    assert {(o.domain, o.version) for o in new.opset_import} == {
        (o.domain, o.version) for o in old.opset_import
    }
    assert new.ir_version == old.ir_version


@pytest.mark.parametrize(("name", "correct"), [("cifar10_resnet20", 776), ("cifar10_resnet56_ts", 789)])
def test_half_of_the_macs_of_a_resnet(tmp_path, capsys, name, correct):
    """Calibrated on training images, measured on test images; the accuracy is printed, whatever it is."""
    model, output, report = REAL / "models" / f"{name}.onnx", tmp_path / "out.onnx", tmp_path / "r.json"
    calib, test = REAL / "data" / "cifar10_calib.npz", REAL / "data" / "cifar10_test.npz"
    options = ["--macs", "0.5", "--criterion", "l2", "--data", calib, "--samples", "64", "--report", report]
    assert run("prune", model, "-o", output, *options) == 0
    body = json.loads(report.read_text())
    assert body["target"]["met"]
    assert 0.4 < body["target"]["achieved"] <= 0.5
    assert body["soundness"]["tier"] == "real"
    capsys.readouterr()
    assert run("validate", output, "--data", test, "--against", model, "--metric", "top1") == 0
    original, pruned, fidelity = capsys.readouterr().out.splitlines()
    assert original.startswith(f"original: top1 {correct / 846:.2%}")
    assert pruned.startswith("model:    top1 ")
    assert "846 samples" in pruned
    assert fidelity.startswith("fidelity of output: top-1 agreement")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main([str(argument) for argument in arguments])
    return int(exit_info.value.code or 0)


def test_pictures_with_a_formula(tmp_path):
    """A folder of class folders, `x/128-1`, labels by the folders' names."""
    report = onnxprune.prune(
        REAL / "models" / "imagenet_mobilenetv2.onnx",
        params=0.8,
        data=REAL / "data" / "imagenet_calib",
        preprocess="x/128-1",
        samples=4,
    ).report
    assert report.metric.before.samples == 4
    assert report.metric.before.value >= 0.5
    assert report.target.met
