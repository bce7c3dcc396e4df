"""The run time as a target, with a clock that is invented: a model takes as long as its weights are many."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_nets import attention, convnet, feeds, grouped, residual, save

import onnxprune
from onnxprune.calibrate import timing
from onnxprune.calibrate.timing import Stopwatch
from onnxprune.choosing import learned, timed
from onnxprune.choosing.choices import Choices
from onnxprune.choosing.layers import cut_layers, elements, find_layers
from onnxprune.choosing.timed import one_feed
from onnxprune.errors import TargetError, UnsupportedError, UsageError
from onnxprune.inputs import choose_inputs

IDLE, EACH = 1e-5, 1e-8


def seconds(model: ir.Model) -> float:
    """What the invented clock shows: a fixed time, and one that is proportional to the elements of matrices."""
    arrays = [value.const_value for value in model.graph.initializers.values()]
    return IDLE + EACH * sum(math.prod(a.shape.numpy()) for a in arrays if a is not None and len(a.shape) > 1)


class Clock:
    """Stands in for `Stopwatch.times`.

    Parameters
    ----------
    penalty
        Seconds that whole models take more as soon as they have fewer weights than the largest one seen.
    constant
        Seconds that whole models take besides.
    bent
        From the share of the time that the weights suggest to the share that a whole model takes.
    """

    def __init__(self, penalty: float = 0.0, constant: float = 0.0, bent=lambda share: share) -> None:
        self.penalty, self.constant, self.most, self.models = penalty, constant, 0.0, 0
        self.bent = bent

    def __call__(self, ran, *, rounds, slice_s, together=False):
        found = []
        for model, feed in ran:
            self.models += 1
            time = seconds(model)
            if model.graph.name != "layer" and model.graph.name != "idle":
                self.most = max(self.most, time)
                time = self.most * self.bent(time / self.most)
                time += self.constant + (self.penalty if time < self.most else 0.0)
            assert all(isinstance(array, np.ndarray) for array in feed.values())
            found.append([time] * rounds)
        return np.array(found)


@pytest.fixture
def clock(monkeypatch):
    def use(**options) -> Clock:
        made = Clock(**options)
        monkeypatch.setattr(Stopwatch, "times", lambda self, *args, **kwargs: made(*args, **kwargs))
        return made

    return use


@pytest.fixture
def path(tmp_path):
    return save(convnet((32, 64, 48)), tmp_path / "net.onnx")


def share_of(pruned, path) -> float:
    """By the clock, counted with onnx alone."""

    def weights(model):
        return sum(math.prod(t.dims) for t in model.graph.initializer if len(t.dims) > 1)

    original, made = onnx.load(path), onnx.load(pruned.path)
    return (IDLE + EACH * weights(made)) / (IDLE + EACH * weights(original))


@pytest.mark.parametrize("scope", ["global", "local", "uniform"])
@pytest.mark.parametrize("target", [0.8, 0.5])
def test_targets_are_met_and_reported(path, clock, scope, target):
    clock()
    pruned = onnxprune.prune(
        path, path.with_name("o.onnx"), latency=target, scope=scope, criterion="l2", round_to=4
    )
    found = pruned.report.latency
    assert found.measured == pytest.approx(share_of(pruned, path))
    assert found.predicted == pytest.approx(found.measured, rel=5e-3)  # tiny layers count 5 % at the least
    assert found.measured <= target
    assert found.met and pruned.report.target.met
    assert pruned.report.target.kind == "latency"
    assert pruned.report.target.achieved == found.measured
    assert found.requested == target
    assert found.noise == 0
    assert found.inputs == {"image": (1, 3, 8, 8)}
    assert found.before_ms == pytest.approx(1e3 * seconds(onnxprune.load(path).ir))


@pytest.mark.parametrize("criterion", ["auto", "obs", "retrain_free", "l2+apoz"])
def test_criteria_that_look_at_samples(path, clock, criterion):
    clock()
    data = feeds(40)
    pruned = onnxprune.prune(path, path.with_name("o.onnx"), latency=0.6, criterion=criterion, data=data)
    assert pruned.report.latency.measured == pytest.approx(share_of(pruned, path))
    assert 0.4 < pruned.report.latency.measured <= 0.6
    assert pruned.report.target.met


def test_learned_and_several_rounds(path, clock, monkeypatch):
    clock()
    monkeypatch.setattr(learned, "TRIALS", 4)
    data = feeds(40)
    for options in ({"scope": "learned", "criterion": "l2"}, {"criterion": "obs", "rounds": 2}):
        pruned = onnxprune.prune(path, latency=0.6, data=data, **options)
        assert pruned.report.latency.measured <= 0.6 and pruned.report.target.met


def test_what_the_prediction_misses_is_corrected(path, clock):
    """Every cut model takes 10 % more than its layers say."""
    whole = seconds(onnxprune.load(path).ir)
    clock(penalty=0.1 * whole)
    found = onnxprune.prune(path, latency=0.6, criterion="l2", round_to=1).report.latency
    assert found.trials[0][0] <= 0.6
    assert found.measured <= 0.6
    assert found.measured > 0.55
    assert found.trials[-1] == (pytest.approx(found.predicted), pytest.approx(found.measured))


def test_what_keeps_more_may_be_faster(path, clock):
    """As with kernels that want certain widths: the first plan is too fast, and one that keeps more is faster."""

    def bent(share):
        if 0.7 < share < 0.8:
            return 0.7 - 0.2 * (share - 0.7)
        return 0.68 + 1.6 * (share - 0.8) if share >= 0.8 else share

    clock(bent=bent)
    found = onnxprune.prune(path, latency=0.75, criterion="l2", round_to=1).report.latency
    first, second = (share for _, share in found.trials[:2])
    assert second < first < 0.72
    assert 0.73 < found.measured <= 0.75


@pytest.fixture
def wrong_by(monkeypatch):
    """Predictions of which what is saved is off by a factor."""
    calibrated = timed.LatencyModel.calibrated

    def use(factor):
        def wrong(self, extents, times):
            found = calibrated(self, extents, times)
            whole = found.total(extents[0])
            return timed.replace(
                found,
                constant=whole - factor * (whole - found.constant),
                scale=factor * found.scale,
                per_element=factor * found.per_element,
            )

        monkeypatch.setattr(timed.LatencyModel, "calibrated", wrong)

    return use


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_prediction_may_be_too_steep_or_too_flat(path, clock, wrong_by, factor):
    clock()
    wrong_by(factor)
    found = onnxprune.prune(path, latency=0.7, criterion="l2", round_to=1).report.latency
    assert len(found.trials) > 1
    assert abs(found.trials[0][1] - 0.7) > 0.05
    assert 0.66 < found.measured <= 0.7


def test_only_a_measurement_says_that_a_target_is_out_of_reach(path, clock, wrong_by):
    """Half of the savings are predicted, so that 0.4 seems out of reach: the fastest plan is measured."""
    clock()
    wrong_by(0.5)
    found = onnxprune.prune(path, latency=0.4, criterion="l2", round_to=1).report.latency
    assert found.trials[0][0] > 0.5
    assert found.trials[0][1] < 0.1
    assert 0.36 < found.measured <= 0.4


def test_a_target_of_everything_cuts_nothing(path, clock):
    clock()
    pruned = onnxprune.prune(path, latency=1.0, criterion="l2")
    assert not pruned.plan.keep and pruned.report.target.met


def test_out_of_reach(path, clock):
    whole = seconds(onnxprune.load(path).ir)
    clock(constant=whole)
    with pytest.raises(TargetError) as caught:
        onnxprune.prune(path, latency=0.4, criterion="l2")
    assert "keep at most 40.0% of the run time is out of reach" in caught.value.what
    assert "of the run time is as low as it gets" in caught.value.what
    fixed = (whole + IDLE) / (2 * whole)
    assert f"About {fixed:.0%} of the run time lies in nodes that do not get smaller." in caught.value.hint
    best = onnxprune.prune(path, latency=0.4, criterion="l2", best_effort=True)
    assert not best.report.target.met
    assert 0.5 < best.report.latency.measured < 0.7
    assert f"{best.report.latency.measured:.1%}"[:4] in caught.value.what


def test_cutting_that_gains_nothing_is_said(path, clock):
    clock(penalty=1.0)
    with pytest.raises(TargetError, match="of the run time is as low as it gets"):
        onnxprune.prune(path, latency=0.6, criterion="l2")


def test_nothing_can_be_cut(path, clock):
    clock()
    with pytest.raises(TargetError, match="nothing can be cut"):
        onnxprune.prune(path, latency=0.6, ignore=["*"])
    kept = onnxprune.prune(path, latency=0.6, ignore=["*"], best_effort=True)
    assert kept.report.latency.measured == 1 and not kept.report.target.met


def test_masked_models_report_what_their_cut_takes(path, clock):
    clock()
    cut = onnxprune.prune(path, latency=0.6, criterion="l2")
    masked = onnxprune.prune(path, latency=0.6, criterion="l2", mode="mask")
    assert masked.report.latency.measured == pytest.approx(cut.report.latency.measured)
    assert masked.plan.keep.keys() == cut.plan.keep.keys()


def test_plans(path, clock):
    clock()
    plan = onnxprune.plan(onnxprune.analyze(path), latency=0.6, criterion="l2")
    pruned = onnxprune.prune(path, path.with_name("o.onnx"), latency=0.6, criterion="l2")
    assert {n: k.tolist() for n, k in plan.keep.items()} == {
        n: k.tolist() for n, k in pruned.plan.keep.items()
    }
    replayed = onnxprune.apply(path, plan, path.with_name("again.onnx"))
    assert share_of(replayed, path) == share_of(pruned, path) <= 0.6
    assert replayed.report.latency is None


def test_repairs_that_add_biases_are_timed_with_them(tmp_path, monkeypatch):
    """The projections of `attention` have no biases; the cut that is timed has one in each."""
    path = save(attention(), tmp_path / "net.onnx")
    seen = []

    def times(self, ran, *, rounds, slice_s, together=False):
        models = [model for model, _ in ran]
        seen.extend(models)
        return np.array([[seconds(model)] * rounds for model in models])

    monkeypatch.setattr(Stopwatch, "times", times)
    rng = np.random.default_rng(0)
    data = {"tokens": rng.standard_normal((40, 5, 32)).astype(np.float32)}
    pruned = onnxprune.prune(path, latency=0.8, criterion="l2", data=data, attention="heads")
    adds = [sum(node.op_type == "Add" for node in model.graph) for model in seen]
    before, made = adds[-2:]
    trial = adds[-1 - 2 * timing.TURNS[0]]
    assert (before, trial) == (1, 5)
    assert made <= trial
    assert pruned.report.target.met


def test_a_wrong_rule_is_left_to_the_proof(path, clock, monkeypatch):
    """Removal that fails for one group: the group stays whole, and the target is met with the others."""
    remove = timed.remove

    def picky(graph, kept):
        if any(axis.value.name == "conv1.weight" and axis.dim == 0 for axis in kept):
            raise timed.RefitError("Conv 'conv1'", (), None)
        return remove(graph, kept)

    clock()
    for module in ("onnxprune.choosing.timed", "onnxprune.evaluate.soundness"):
        monkeypatch.setattr(f"{module}.remove", picky)
    pruned = onnxprune.prune(path, path.with_name("o.onnx"), latency=0.7, criterion="l2")
    assert pruned.report.soundness.rejected_groups == ("g1",)
    assert pruned.report.latency.measured == pytest.approx(share_of(pruned, path))
    assert pruned.report.latency.measured <= 0.7


@pytest.mark.parametrize("net", [convnet, residual, grouped, attention, lambda: convnet(norm=True)])
def test_layers_are_cut_as_whole_models_are(tmp_path, net):
    analysis = onnxprune.analyze(save(net(), tmp_path / "net.onnx"))
    layers = find_layers(analysis, timed._ladders(analysis, Choices(round_to=1)))
    weighted = [
        node for node in analysis.axis_graph.model.graph if node.op_type in ("Conv", "Gemm", "MatMul")
    ]
    assert [layer.nodes for layer in layers] == [(node,) for node in weighted]
    for layer in layers:
        models = list(cut_layers(analysis, layer))
        assert len(models) == math.prod(layer.shape) > 1
        times = Stopwatch("cpu", 1).times(models[:1] + models[-1:], rounds=1, slice_s=0.0)
        assert times.shape == (2, 1)
        table = layer.table(np.array([seconds(model) for model, _ in models]))
        full = analysis.costs.extents({})
        at_full = table.at([full[place] for place in table.places])
        assert at_full == pytest.approx(seconds(models[-1][0]))
        weights = [
            v.const_value.size for v in layer.nodes[0].inputs if v is not None and v.const_value is not None
        ]
        assert at_full == pytest.approx(IDLE + EACH * max(weights, default=0))


def test_equal_layers_are_one(tmp_path):
    analysis = onnxprune.analyze(save(residual(32, 3, 16), tmp_path / "net.onnx"))
    layers = find_layers(analysis, timed._ladders(analysis, Choices()))
    assert len(layers) == 8
    assert len({layer.key for layer in layers}) == 4  # the stem, both convolutions of a block, the head


def test_elements_are_those_of_the_other_nodes(tmp_path):
    analysis = onnxprune.analyze(save(convnet((16, 8)), tmp_path / "net.onnx"))
    amount = elements(analysis)
    assert amount.total(analysis.costs.extents({})) == 64 * 16 + 64 * 8 + 8
    keep = {"g0": np.arange(16) < 4}
    assert amount.total(analysis.costs.extents(keep)) == 64 * 4 + 64 * 8 + 8


@pytest.mark.parametrize("batch", ["n", 2])
def test_the_batch_is_that_of_the_model_else_as_bound(tmp_path, batch):
    source = onnxprune.load(save(convnet(batch=batch), tmp_path / "net.onnx"))
    inputs = choose_inputs(source)
    assert one_feed(source.ir, inputs.proof, inputs.bindings)["image"].shape[0] == (1 if batch == "n" else 2)
    if batch == "n":
        data = choose_inputs(source, data=feeds(6))
        assert one_feed(source.ir, data.proof, {"n": 4})["image"].shape == (4, 3, 8, 8)


def test_operators_that_onnxruntime_does_not_know(tmp_path):
    net = convnet()
    first = next(iter(net.graph))
    first.domain, net.opset_imports["acme"] = "acme", 1
    path = save(net, tmp_path / "net.onnx")
    with pytest.raises(UnsupportedError, match="onnxruntime cannot run Conv, so no run time"):
        onnxprune.prune(path, latency=0.6)


def test_options_that_mean_nothing(path):
    with pytest.raises(UsageError, match="--macs and --latency contradict each other"):
        onnxprune.prune(path, macs=0.5, latency=0.5)
    with pytest.raises(UsageError, match="--threads 2 says how --latency is measured"):
        onnxprune.prune(path, macs=0.5, threads=2)
    with pytest.raises(UsageError, match="--threads 0 is not positive"):
        onnxprune.prune(path, latency=0.5, threads=0)
    with pytest.raises(UsageError, match="--threads 1 says how"):
        onnxprune.plan(onnxprune.analyze(path), threads=1)


def test_reports_show_it(path, clock):
    from onnxprune.report import json as as_json
    from onnxprune.report import markdown, terminal

    clock()
    report = onnxprune.prune(path, latency=0.6, criterion="l2", provider="cpu", threads=1).report
    shown = f"{report.latency.measured:.1%} +- 0.0% of the original's; predicted"
    for text in (terminal.render(report), markdown.render(report)):
        assert "of the run time kept, achieved" in text
        assert shown in text
        assert "CPUExecutionProvider, 1 thread; image 1x3x8x8" in text
    body = json.loads(as_json.render(report))["latency"]
    assert body["measured"] == report.latency.measured
    assert body["trials"] == [list(trial) for trial in report.latency.trials]
    assert body["inputs"] == {"image": [1, 3, 8, 8]}
