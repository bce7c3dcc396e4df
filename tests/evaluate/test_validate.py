from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import onnxprune
from onnxprune.calibrate import InputSpec, input_specs, read_dataset, synthetic_dataset
from onnxprune.cli import cli
from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.evaluate import Metric, compare, default_metrics, measure
from onnxprune.evaluate.classes import Hits

REAL = Path(__file__).parents[2] / "../shared/real"
SPEC = InputSpec("x", np.dtype(np.float32), ("n", 3))


def model(weight="1,0,0,0,1,0,0,0,1", batch="n"):
    """Return logits = x @ W and aux = ArgMax(logits), int64."""
    return ir.from_onnx_text(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[{batch},3] x) => (float[{batch},3] logits, int64[{batch}] aux) <float[3,3] w = {{{weight}}}>
        {{ logits = MatMul(x, w)  aux = ArgMax<axis=1, keepdims=0>(logits) }}""")


def data(labels=(0, 1, 2, 2, 0), spec=SPEC):
    x = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
    return read_dataset({"x": x} if labels is None else {"x": x, "labels": np.array(labels)}, [spec])


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_measure(batch_size):
    seen = []
    score = measure(
        model(), data(), batch_size=batch_size, progress=lambda done, total: seen.append((done, total))
    )
    assert (score.name, score.value, score.samples) == ("top1", 0.6, 5)
    assert seen[-1] == (5, 5) and len(seen) == math.ceil(5 / batch_size)


def test_measure_with_a_fixed_batch_size():
    spec = InputSpec("x", SPEC.dtype, (1, 3))
    score = measure(model(batch="1"), data(spec=spec), batch_size=8)
    assert (score.value, score.samples) == (0.6, 5)


def test_measure_with_a_metric_and_an_output_of_ones_own():
    def tally(outputs, labels):
        return Hits(int(np.sum(outputs == labels)), len(labels))

    table = default_metrics() | {"same": Metric("same", "equal integers", tally)}
    assert measure(model(), data(), "same", output="aux", metrics=table).value == 0.6


@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        (None, {}, DataError, "top1 needs labels, and dict has none"),
        ((0,) * 5, {"metric": "top2"}, UsageError, r"no metric 'top2' \(did you mean 'top"),
        ((0,) * 5, {"metric": "top5"}, DataError, "says nothing about 3 classes"),
        ((0,) * 5, {"output": "logit"}, UsageError, r"no output 'logit' \(did you mean 'logits'\?\)"),
        ((0,) * 5, {"output": "aux"}, DataError, "accuracy needs"),
        ((0,) * 5, {"provider": "abacus"}, UsageError, "no execution provider 'abacus'"),
        ((0,) * 5, {"batch_size": 0}, UsageError, "batch size of 0"),
        ((7,) * 5, {}, DataError, "label 7"),
    ],
)
def test_measure_refuses(labels, options, error, message):
    with pytest.raises(error, match=message):
        measure(model(), data(labels), **options)


def test_measure_says_where_an_output_does_not_fit():
    with pytest.raises(DataError, match="output 'logits', samples 2 to 3: label 9 is not one of"):
        measure(model(), data((0, 1, 2, 9, 0)), batch_size=2)
    with pytest.raises(DataError, match="output 'logits', sample 4: label -3"):
        measure(model(), data((0, 1, 2, 2, -3)), batch_size=2)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_measure_against_target_arrays(batch_size):
    x = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
    found = read_dataset({"x": x, "labels": x + 0.5}, [SPEC])
    assert measure(model(), found, "mse", batch_size=batch_size).value == pytest.approx(0.25)
    assert measure(model(), found, "psnr", batch_size=batch_size).value == pytest.approx(10 * math.log10(4))


def test_measure_maps_and_text():
    rng = np.random.default_rng(0)
    maps = ir.from_onnx_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[n,4,5,5] x) => (float[n,4,5,5] y) { y = Neg(x) }""")
    x, labels = rng.standard_normal((7, 4, 5, 5)).astype(np.float32), rng.integers(0, 4, (7, 5, 5))
    spec = InputSpec("x", np.dtype(np.float32), ("n", 4, 5, 5))
    score = measure(maps, read_dataset({"x": x, "labels": labels}, [spec]), "miou", batch_size=3)
    decided = x.argmin(axis=1)
    shares = [
        ((decided == c) & (labels == c)).sum() / ((decided == c) | (labels == c)).sum() for c in range(4)
    ]
    assert score.value == pytest.approx(np.mean(shares))

    table = rng.integers(-3, 3, (9, 9)).astype(np.float32)
    text = ir.from_onnx_text(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (int64[n,t] ids) => (float[n,t,9] y) <float[9,9] w = {{{",".join(map(str, table.flat))}}}>
        {{ y = Gather(w, ids) }}""")
    ids = rng.integers(0, 9, (7, 6))
    spec = InputSpec("ids", np.dtype(np.int64), ("n", "t"))
    score = measure(text, read_dataset({"ids": ids, "labels": ids}, [spec]), "perplexity", batch_size=3)
    logs = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
    assert score.value == pytest.approx(math.exp(-logs[ids[:, :-1], ids[:, 1:]].mean()), rel=1e-5)


# agreement


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_agreement_needs_no_labels(batch_size):
    other = model("1,0,0,0,0,1,0,1,0")
    score = measure(other, data(None), "agreement", batch_size=batch_size, original=model())
    assert (score.name, score.value, score.samples) == ("agreement", 2 / 5, 5)
    assert score.value == compare(model(), other, data(None)).main.top1_agreement


def test_agreement_of_a_model_whose_inputs_are_smaller():
    """The last feature never decides; the cut model takes the others."""
    whole = ir.from_onnx_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[n,3] x) => (float[n,3] y) <float[3] w = {1,1,-1}> { y = Mul(x, w) }""")
    cut = ir.from_onnx_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[n,2] x) => (float[n,2] y) { y = Identity(x) }""")
    keep = {1: np.array([True, True, False])}
    score = measure(cut, data(None), "agreement", original=whole, cuts={"x": keep, "y": keep})
    assert (score.value, score.samples) == (1, 5)


def test_agreement_with_nothing():
    with pytest.raises(UsageError, match="agreement compares a model with its original") as caught:
        measure(model(), data(), "agreement")
    assert "--against" in caught.value.hint


def test_other_metrics_do_not_look_at_the_original():
    broken = model()
    broken.graph[0].op_type = "NoSuchOperator"
    assert measure(model(), data(), original=broken).value == 0.6


# validate


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two models, labelled and unlabelled data, a metric of one's own."""
    for name, weight in (("whole", "1,0,0,0,1,0,0,0,1"), ("cut", "1,0,0,0,0,1,0,1,0")):
        ir.save(model(weight), tmp_path / f"{name}.onnx")
    x = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
    np.savez(tmp_path / "labelled.npz", x=x, labels=[0, 1, 2, 2, 0])
    np.savez(tmp_path / "plain.npz", x=x)
    np.savez(tmp_path / "targets.npz", x=x, labels=x + 0.5)
    (tmp_path / "onnxprune_test_own.py").write_text(
        "def distance(outputs, labels):\n    return abs(outputs - labels).mean()\n\n"
        "distance.higher_is_better = False\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_validate_agreement(files):
    found = onnxprune.validate("cut.onnx", "plain.npz", against="whole.onnx", metric="agreement")
    assert (found.score.value, found.reference) == (2 / 5, None)
    assert str(found).startswith("model: agreement 40.00% (95 % interval ")
    assert found.fidelity.main.top1_agreement == 2 / 5
    with pytest.raises(UsageError, match="agreement compares a model with its original"):
        onnxprune.validate("cut.onnx", "plain.npz", metric="agreement")


def test_validate_with_a_function_of_ones_own(files):
    name = "onnxprune_test_own:distance"
    found = onnxprune.validate("cut.onnx", "targets.npz", against="whole.onnx", metric=name)
    assert found.reference.value == pytest.approx(0.5)
    assert found.score.value > found.reference.value
    assert not found.score.higher_is_better
    assert str(found).startswith(
        f"original: {name} 0.5 (no interval: a single batch has no spread, 5 samples)"
    )


def test_validate_says_what_does_not_fit_and_where(files):
    with pytest.raises(UsageError, match="no metric 'msee'"):
        onnxprune.validate("cut.onnx", "labelled.npz", metric="msee")
    with pytest.raises(
        DataError, match=r"labelled.npz: output 'logits', samples 0 to 4: .*targets have \(5,\)"
    ):
        onnxprune.validate("cut.onnx", "labelled.npz", metric="mse")
    with pytest.raises(DataError, match=r"targets.npz: output 'logits', .* are no class indices") as caught:
        onnxprune.validate("cut.onnx", "targets.npz")
    assert "--metric" in caught.value.hint
    with pytest.raises(DataError, match="f1 needs labels, and plain.npz has none"):
        onnxprune.validate("cut.onnx", "plain.npz", metric="f1")


def test_validate_from_the_command_line(files):
    runner = CliRunner()
    for metric, data, says in (
        ("f1", "labelled.npz", "model: f1 "),
        ("mse", "targets.npz", "model: mse "),
        ("psnr", "targets.npz", " dB (95 % interval "),
    ):
        result = runner.invoke(cli, ["validate", "cut.onnx", "--data", data, "--metric", metric])
        assert result.exit_code == 0, result.output
        assert says in result.output
    options = ["validate", "cut.onnx", "--data", "plain.npz", "--metric", "agreement"]
    assert "agreement 40.00%" in runner.invoke(cli, [*options, "--against", "whole.onnx"]).output
    assert isinstance(runner.invoke(cli, options).exception, UsageError)


def test_measure_needs_samples():
    with pytest.raises(DataError, match="holds no samples"):
        measure(model(), data().take([]))


def test_compare_equal_models():
    seen = []
    found = compare(model(), model(), data(None), batch_size=2, progress=lambda *done: seen.append(done))
    assert [output.name for output in found.outputs] == ["logits", "aux"]
    assert (found.samples, found.main.rows, found.main.max_abs_diff, found.main.kl) == (5, 5, 0, 0)
    assert found.outputs[1].equal == 1
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_compare_models_that_differ():
    other = model("1,0,0,0,0,1,0,1,0")
    found = compare(model(), other, data(None), batch_size=2)
    assert found.main.top1_agreement == pytest.approx(2 / 5)
    assert found.outputs[1].equal == pytest.approx(2 / 5)
    assert found.main.max_abs_diff == 1
    assert compare(model(), other, data(None), batch_size=5).main.kl == pytest.approx(found.main.kl)
    assert compare(model(), other, data(None), output="aux").main.name == "aux"


def test_compare_with_a_fixed_batch_size():
    spec = InputSpec("x", SPEC.dtype, (1, 3))
    found = compare(model(batch="1"), model("1,0,0,0,0,1,0,1,0", "1"), data(None, spec))
    assert (found.samples, found.main.rows) == (5, 5)
    assert found.main.top1_agreement == pytest.approx(2 / 5)


def test_compare_outputs_that_do_not_follow_the_batch():
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[n,3] x) => (float[3,n] y, float s)
        { y = Transpose(x)  s = ReduceSum<keepdims=0>(x) }"""
    found = compare(ir.from_onnx_text(text), ir.from_onnx_text(text), data(None), batch_size=2)
    assert [output.rows for output in found.outputs] == [3, 3]


def test_compare_outputs_whose_shape_depends_on_values():
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[n,3] x) => (int64[2,k] y)
        <float t = {THRESHOLD}> { m = Greater(x, t)  i = Cast<to=1>(m)  y = NonZero(i) }"""
    low, high = (ir.from_onnx_text(text.replace("THRESHOLD", value)) for value in ("0.5", "2"))
    found = compare(low, high, data(None), batch_size=1)
    assert (found.main.mismatched, found.main.equal) == (5, None)


def test_compare_refuses():
    other = ir.from_onnx_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[n,3] x) => (float[n,3] y) { y = Neg(x) }""")
    with pytest.raises(UsageError, match="different outputs: logits, aux and y"):
        compare(model(), other, data(None))
    with pytest.raises(UsageError, match=r"no output 'axu' \(did you mean 'aux'\?\)"):
        compare(model(), model(), data(None), output="axu")
    broken = model()
    broken.graph[0].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match="NoSuchOperator"):
        compare(model(), broken, data(None))


def test_neither_model_is_mutated():
    first, second = model(), model("1,0,0,0,0,1,0,1,0")
    before = str(first), str(second)
    measure(first, data())
    compare(first, second, data(None))
    assert (str(first), str(second)) == before


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="the trained models are not here")
class TestReal:
    def test_resnet20_reproduces_its_baseline(self):
        resnet = ir.load(REAL / "models/cifar10_resnet20.onnx")
        found = read_dataset(REAL / "data/cifar10_test.npz", input_specs(resnet))
        assert len(found) == 846
        score = measure(resnet, found, "top1", batch_size=128)
        assert round(score.value * score.samples) == 776
        assert str(score).startswith("top1 91.73%")

    def test_mobilenet_on_pictures_is_above_what_a_wrong_preprocessing_gives(self):
        mobilenet = ir.load(REAL / "models/imagenet_mobilenetv2.onnx")

        def top1(preprocess):
            folder = REAL / "data/imagenet_test"
            found = read_dataset(folder, input_specs(mobilenet), samples=60, preprocess=preprocess)
            return measure(mobilenet, found, batch_size=16).value

        assert top1("x/128-1") > 0.75 > top1("x")

    @pytest.mark.parametrize(
        "name", ["wild_ultraface_rfb320_raw_opset9", "wild_gtcrn_stream", "wild_silero_vad_16k"]
    )
    def test_wild_models_agree_with_themselves(self, name):
        wild = ir.load(REAL / f"models/{name}.onnx")
        samples = synthetic_dataset(input_specs(wild), {"sequence": 512}, samples=2, seed=0)
        found = compare(wild, wild, samples)
        assert found.samples == 2
        assert all(output.max_abs_diff == 0 for output in found.outputs)
