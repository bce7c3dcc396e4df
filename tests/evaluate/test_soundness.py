"""The proof: wrong rules are caught, the guilty group is found and left whole, the others are cut."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_nets import MODELS, Net, convnet, feeds, residual, save

import onnxprune
from onnxprune.calibrate import input_specs, read_dataset
from onnxprune.errors import ModelError, SoundnessError, TargetError
from onnxprune.evaluate.agreement import TOLERANCE, compare_outputs
from onnxprune.evaluate.pieces import open_runner
from onnxprune.evaluate.rounding import Rounding
from onnxprune.evaluate.soundness import Prover
from onnxprune.graph.axes import Axis
from onnxprune.model.convert import to_float32
from onnxprune.rules import Rule, default_rules
from onnxprune.rules.helpers import tie_axes


def four_layers(op: str = "Elu", where: int = 1) -> ir.Model:
    """Four convolutions of 16 channels; the activation after one of them is `op`."""
    net = Net()
    x, before = net.data("image", ("n", 3, 8, 8)), 3
    for number in range(4):
        x = net.conv(x, f"conv{number}", (16, before, 3, 3))
        x, before = net.op(op if number == where else "Relu", x, name=f"act{number}"), 16
    return net.model(net.head(x, 16))


def reversed_channels(op, relations) -> None:
    """A wrong rule: channel i of the output is claimed to be channel n-1-i of the input."""
    x, y = op.input(0), op.output()
    tie_axes(op, relations, x, y, skip=(1,))
    index = np.arange(op.extent(Axis(x, 1)))
    relations.tie(Axis(x, 1), Axis(y, 1), index, index[::-1].copy())


def wrong(op_type: str, relate, *refit):
    return default_rules() | {("", op_type): Rule(relate, *refit)}


@pytest.mark.parametrize("where", [0, 1, 3])
def test_a_rule_that_ties_the_wrong_positions(tmp_path, where):
    path = save(four_layers(where=where), tmp_path / "net.onnx")
    rules = wrong("Elu", reversed_channels)
    pruned = onnxprune.prune(path, tmp_path / "out.onnx", ratio=0.5, best_effort=True, rules=rules)
    report = pruned.report
    guilty = f"g{where}"
    assert report.soundness.rejected_groups == (guilty,)
    assert "differs by" in report.soundness.why[guilty]
    assert report.soundness.max_abs_diff <= TOLERANCE * report.soundness.max_abs_output
    kept = {group.id: (group.kept, group.reason) for group in report.groups}
    assert kept.pop(guilty) == (16, "UNSOUND")
    assert all(k == (8, "") for k in kept.values())
    assert any(f"{guilty} is kept whole because masked != removed" in line for line in report.warnings)
    assert not report.target.met  # half of all units was asked for, three eighths went
    assert report.target.achieved == pytest.approx(24 / 64)
    assert [node.op_type for node in ir.load(tmp_path / "out.onnx").graph].count("Conv") == 4


def test_the_target_is_solved_again_without_the_guilty_group(tmp_path):
    path = save(four_layers(), tmp_path / "net.onnx")
    pruned = onnxprune.prune(path, None, macs=0.6, round_to=1, rules=wrong("Elu", reversed_channels))
    assert pruned.report.soundness.rejected_groups == ("g1",)
    assert pruned.report.target.met
    assert pruned.report.after.macs <= 0.6 * pruned.report.before.macs
    with pytest.raises(TargetError, match="out of reach") as error:
        onnxprune.prune(path, None, macs=0.3, round_to=8, rules=wrong("Elu", reversed_channels))
    assert "1 group, g1: the check found masked != removed" in error.value.hint


def test_several_guilty_groups(tmp_path):
    net = Net()
    x, before = net.data("image", ("n", 3, 8, 8)), 3
    for number, op in enumerate(("Relu", "Elu", "Relu", "Elu", "Relu", "Relu", "Elu")):
        x = net.op(op, net.conv(x, f"conv{number}", (16, before, 3, 3)), name=f"act{number}")
        before = 16
    path = save(net.model(net.head(x, 16)), tmp_path / "net.onnx")
    rules = wrong("Elu", reversed_channels)
    report = onnxprune.prune(path, None, ratio=0.5, scope="uniform", rules=rules).report
    assert set(report.soundness.rejected_groups) == {"g1", "g3", "g6"}
    assert {group.id for group in report.groups if group.kept < group.units} == {"g0", "g2", "g4", "g5"}


def shuffled(refit) -> tuple[ir.Model, onnxprune.RuleTable]:
    """A network that permutes channels with Gather, and a rule for Gather whose REFIT is `refit`."""
    net = Net()
    x = net.op("Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "a", (16, 3, 3, 3)), name="r0")
    order = np.random.default_rng(0).permutation(16)
    x = net.op("Gather", x, net.constant(order, "order"), axis=1, name="shuffle")
    x = net.op("Relu", net.conv(x, "b", (16, 16, 3, 3)), name="r1")
    relate = default_rules()["", "Gather"].relate
    return net.model(net.head(x, 16)), wrong("Gather", relate, refit)


def forgets(op, refit) -> None:
    """Leave the indices as they are: some point past the end now."""


def numbers_anew(op, refit) -> None:
    """Right number of indices, wrong ones."""
    keep = refit.keep(Axis(op.output(), 1))
    if keep is not None:
        refit.set_input(1, np.arange(len(keep)))


def raises(op, refit) -> None:
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("refit", "why"),
    [
        (forgets, "expected shape"),
        (numbers_anew, "differs by"),
        (raises, "KeyError: 'no such thing'"),
    ],
    ids=["forgets", "numbers-anew", "raises"],
)
def test_a_wrong_refit(tmp_path, refit, why):
    model, rules = shuffled(refit)
    path = save(model, tmp_path / "net.onnx")
    right = onnxprune.prune(path, None, ratio=0.5).report
    assert not right.soundness.rejected_groups
    assert [group.kept for group in right.groups] == [8, 8]
    report = onnxprune.prune(path, None, ratio=0.5, best_effort=True, rules=rules).report
    assert [(group.id, group.kept, group.reason) for group in report.groups] == [
        ("g0", 16, "UNSOUND"),
        ("g1", 8, ""),
    ]
    assert why in report.soundness.why["g0"]


def test_apply_refuses_an_unsound_plan(tmp_path):
    path = save(four_layers(), tmp_path / "net.onnx")
    rules = wrong("Elu", reversed_channels)
    analysis = onnxprune.analyze(path, rules=rules)
    plan = onnxprune.plan(analysis, ratio=0.5)
    with pytest.raises(SoundnessError, match="the plan is unsound.*g1: "):
        onnxprune.apply(path, plan, tmp_path / "out.onnx", rules=rules)
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_a_missing_tie_is_caught(tmp_path):
    """A rule for Add that forgets its second operand and frees the axes: the shapes do not fit."""

    def forgetful(op, relations) -> None:
        tie_axes(op, relations, op.input(0), op.output())
        for axis in op.axes(op.input(1)):
            relations.free(axis)

    path = save(residual(), tmp_path / "net.onnx")
    report = onnxprune.prune(path, None, ratio=0.5, best_effort=True, rules=wrong("Add", forgetful)).report
    assert report.soundness.rejected_groups
    assert report.soundness.checked
    whole = {group.name for group in report.groups if group.reason == "UNSOUND"}
    assert any(name in whole for name in ("stem", "block0.b", "block1.b"))
    assert {group.kept for group in report.groups if group.name in ("block0.a", "block1.a")} == {8}


def test_random_outputs_are_refused(tmp_path):
    net = Net()
    x = net.op("Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "a", (16, 3, 3, 3)), name="relu")
    total = net.op("ReduceSum", x, net.constant([1], "channels"), keepdims=0, name="total")
    noise = net.op("RandomNormalLike", total, dtype=1, name="noise")
    path = save(net.model(net.op("Add", total, noise, name="add")), tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="differs from run to run") as error:
        onnxprune.prune(path, tmp_path / "out.onnx", ratio=0.5, best_effort=True)
    assert "random numbers" in error.value.hint
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_a_dead_output_proves_nothing_so_inner_results_are_compared(tmp_path):
    """The output is zero whatever comes in; the wrong rule is found all the same."""
    net = Net()
    x, before = net.data("image", ("n", 3, 8, 8)), 3
    for number, op in enumerate(("Elu", "Relu")):
        x = net.op(op, net.conv(x, f"conv{number}", (16, before, 3, 3)), name=f"act{number}")
        before = 16
    logits = net.head(x, 16)
    dead = net.op("Mul", logits, net.constant(np.zeros(4, np.float32), "nothing"), name="dead")
    path = save(net.model(dead), tmp_path / "net.onnx")
    right = onnxprune.prune(path, None, ratio=0.5).report
    assert (right.soundness.max_abs_output, right.soundness.rejected_groups) == (0.0, ())
    options = {"ratio": 0.5, "best_effort": True, "rules": wrong("Elu", reversed_channels)}
    report = onnxprune.prune(path, None, **options).report
    assert report.soundness.rejected_groups == ("g0",)


# --- float types -----------------------------------------------------------------------------------------

FLOATS = [ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE]


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("with_data", [False, True])
def test_other_float_types_from_end_to_end(tmp_path, dtype, with_data):
    model = convnet(norm=True, dtype=dtype)
    model.graph.opset_imports[""] = 22  # the first in which convolutions take bfloat16
    path = save(model, tmp_path / "net.onnx")
    data = None
    if with_data:
        arrays = feeds()
        data = {"image": arrays["image"].astype(dtype.numpy()), "labels": arrays["labels"]}
    options = {"ratio": 0.4, "scope": "uniform", "criterion": "l2", "compensate": "none", "data": data}
    report = onnxprune.prune(path, tmp_path / "out.onnx", **options).report
    assert [group.kept for group in report.groups] == [16, 24, 16]
    assert not report.soundness.rejected_groups
    assert report.soundness.max_abs_output > 0
    pruned = ir.load(tmp_path / "out.onnx")
    floats = [v.dtype for v in pruned.graph.initializers.values() if v.dtype.is_floating_point()]
    assert set(floats) == {dtype}
    assert {pruned.graph.inputs[0].dtype, pruned.graph.outputs[0].dtype} == {dtype}
    original = ir.load(path).graph.initializers["conv1.weight"].const_value.numpy()
    keep = onnxprune.plan(onnxprune.analyze(path), ratio=0.4, scope="uniform").keep
    expected = original[keep["g1"]]
    np.testing.assert_array_equal(pruned.graph.initializers["conv1.weight"].const_value.numpy(), expected)
    if with_data:
        assert report.metric.before.samples == 6
        assert report.fidelity.main.cosine is not None


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.name)
def test_other_float_types_are_calibrated_where_they_run(tmp_path, dtype):
    """onnxruntime runs float16 by casting; what it has no kernels for is said to be left alone."""
    model = convnet(norm=True, dtype=dtype)
    model.graph.opset_imports[""] = 22
    path = save(model, tmp_path / "net.onnx")
    data = {"image": feeds()["image"].astype(dtype.numpy())}
    report = onnxprune.prune(path, tmp_path / "out.onnx", ratio=0.4, data=data).report
    said = any("nothing was learned from the samples" in line for line in report.warnings)
    assert bool(report.repairs) != said
    assert report.criterion == ("l2" if said else report.criterion) and report.after.macs < report.before.macs
    floats = {v.dtype for v in ir.load(tmp_path / "out.onnx").graph.initializers.values()}
    assert dtype in floats and all(f == dtype for f in floats if f.is_floating_point())


# --- comparing -------------------------------------------------------------------------------------------


def judge(a, b, **options) -> bool:
    return compare_outputs([{"y": np.asarray(a)}], [{"y": np.asarray(b)}], **options).sound


def test_comparing_floats():
    a = np.array([1.0, -20.0, 3.0], np.float32)
    assert judge(a, a)
    assert judge(a, a + np.float32(0.0019))
    assert not judge(a, a + np.float32(0.0021))
    assert judge([0.0, 0.0], [0.0, 0.0])
    assert not judge([0.0, 0.0], [0.0, 1e-30])
    assert not judge(a, a[:2])


def test_comparing_where_rounding_is_known():
    a = np.array([1.0, -20.0, 3.0], np.float32)
    assert judge(a, a + np.float32(0.0059), rounding={"y": 0.001})
    assert not judge(a, a + np.float32(0.0061), rounding={"y": 0.001})
    assert not judge(a, a + np.float32(0.0021), rounding={"z": 0.001})


def test_an_output_that_is_almost_zero_is_told_from_a_wrong_one(tmp_path):
    """A Sigmoid far on its negative side: what float32 cannot tell apart there is no mistake, a wrong tie is."""
    net = Net()
    x, before = net.data("image", ("n", 3, 8, 8)), 3
    for number, op in enumerate(("Elu", "Relu")):
        x = net.op(op, net.conv(x, f"conv{number}", (64, before, 3, 3)), name=f"act{number}")
        before = 64
    low = net.op("Sub", net.head(x, 64), net.constant(np.float32(13.0), "far"), name="low")
    path = save(net.model(net.op("Sigmoid", low, name="almost_zero")), tmp_path / "net.onnx")
    right = onnxprune.prune(path, None, ratio=0.5).report.soundness
    assert right.rejected_groups == () and right.max_abs_output < 1e-4
    options = {"ratio": 0.5, "best_effort": True, "rules": wrong("Elu", reversed_channels)}
    assert onnxprune.prune(path, None, **options).report.soundness.rejected_groups == ("g0",)


def test_rounding_shows_on_silent_inputs():
    """Zeros cannot move what biases decide, so weights move as well; zeros among them, which may be masks, stay."""
    net = Net()
    x = net.data("image", ("n", 3, 8, 8))
    model = to_float32(net.model(net.head(net.op("Relu", net.conv(x, "conv", (64, 3, 3, 3))), 64)))
    feed = {"image": np.zeros((1, 3, 8, 8), np.float32)}
    (name,) = (str(value.name) for value in model.graph.outputs)

    def rounding(weights=True):
        runner = open_runner(model)
        largest = np.abs(runner.run(feed)[name]).max()
        return Rounding(runner, model, "cpu", weights).of(feed)[name], largest

    moved, largest = rounding()
    assert rounding(weights=False) == (0, largest)
    assert 0 < moved < 1e-5 * largest
    assert moved == rounding()[0]
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(np.zeros(tuple(value.shape), np.float32))
    assert rounding() == (0, 0)


def test_comparing_what_is_not_finite():
    nan, inf = np.nan, np.inf
    assert judge([1.0, nan, inf], [1.0, nan, inf])
    assert not judge([1.0, nan], [1.0, 2.0])
    assert not judge([1.0, 2.0], [1.0, nan])
    assert not judge([1.0, inf], [1.0, -inf])
    assert not judge([1.0, inf], [1.0, nan])


def test_comparing_what_is_discrete():
    """One argmax of a thousand may flip on the last digit of a float; the class of an image may not."""
    a = np.arange(2000)
    b = a.copy()
    b[7] = 1999
    assert judge(a, b)
    b[:9] = -1
    assert not judge(a, b)
    assert not judge([3], [4])
    assert not judge([True, False], [True, True])
    assert judge(np.array(["a", "b"], object), np.array(["a", "b"], object))
    assert not judge(np.array(["a", "b"], object), np.array(["a", "c"], object))


def test_the_proof_of_nothing(tmp_path):
    analysis = onnxprune.analyze(MODELS / "digits_resnet.onnx")
    images = np.zeros((2, 1, 8, 8), np.float32)
    data = read_dataset({"input": images}, input_specs(analysis.source.ir))
    keep, found = Prover(analysis.axis_graph, analysis.groups, data).prove({})
    assert keep == {}
    assert (found.checked, found.max_abs_diff, found.samples, found.tier) == (True, 0.0, 2, "real")
    assert found.max_abs_output > 0


def test_a_correct_model_is_compared_once(tmp_path):
    """The search for guilty groups costs nothing as long as there are none."""
    path = save(four_layers("Relu"), tmp_path / "net.onnx")
    said = []
    onnxprune.prune(path, None, ratio=0.5, progress=lambda stage, *_: said.append(stage))
    assert said.count("proving masked == removed") == 1
