"""Which units go under which target: against references that remove one rung at a time."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
from small_nets import MODELS, attention, convnet, grouped, residual

from onnxprune import api
from onnxprune.allocate.solve import solve
from onnxprune.allocate.target import Target
from onnxprune.analysis import Analysis, analyze
from onnxprune.choosing.choices import Choices
from onnxprune.choosing.planning import allocate
from onnxprune.choosing.scoring import score_groups
from onnxprune.errors import TargetError, UsageError

NETS = {
    "convnet": convnet,
    "norm": lambda: convnet(norm=True),
    "residual": residual,
    "grouped": grouped,
    "attention": attention,
}
TARGETS = [("macs", 0.8), ("macs", 0.5), ("params", 0.6), ("params", 0.35), ("ratio", 0.25), ("ratio", 0.6)]


@pytest.fixture(params=NETS)
def analysis(request, tmp_path) -> Analysis:
    ir.save(NETS[request.param](), tmp_path / "net.onnx")
    return analyze(tmp_path / "net.onnx")


def fractions(analysis, keep, ladders):
    """What each kind of target speaks of, by counting."""
    cost = analysis.costs.cost(keep)
    units = sum(ladder.group.units for ladder in ladders)
    gone = sum(int((~flags).sum()) for flags in keep.values())
    return {
        "macs": cost.macs / analysis.cost.macs,
        "params": cost.params / analysis.cost.params,
        "ratio": gone / units,
    }


def met(kind, value, figures):
    return figures[kind] >= value - 1e-12 if kind == "ratio" else figures[kind] <= value + 1e-12


def greedy(analysis, ladders, order, kind, value):
    """Remove one rung at a time in `order` (a list of ladder numbers) until the target is met."""
    counts = [0] * len(ladders)
    for step in [None, *order]:
        if step is not None:
            counts[step] += 1
        drops = [ladder.settle(n) for ladder, n in zip(ladders, counts, strict=True)]
        keep = {ladder.group.id: ladder.keep(n) for ladder, n in zip(ladders, drops, strict=True) if n}
        if met(kind, value, fractions(analysis, keep, ladders)):
            return keep
    return None


def rounded(analysis, ladders, dropped):
    return {
        ladder.group.id: ladder.keep(ladder.settle(n))
        for ladder, n in zip(ladders, dropped, strict=True)
        if ladder.settle(n)
    }


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, flags in expected.items():
        np.testing.assert_array_equal(found[name], flags, name)


@pytest.mark.parametrize(("kind", "value"), TARGETS)
@pytest.mark.parametrize("round_to", [1, 8])
def test_the_global_ranking(analysis, kind, value, round_to):
    """All rungs of all groups by score per unit, equal ones by group: the shortest prefix that is enough."""
    choices = Choices(Target(kind, value), round_to=round_to)
    scored = score_groups(analysis, choices)
    ladders = scored.ladders
    rungs = [
        (ladder.scores[i] / ladder.rungs.shape[1], number, i)
        for number, ladder in enumerate(ladders)
        for i in range(ladder.height)
    ]
    expected = greedy(analysis, ladders, [number for _, number, _ in sorted(rungs)], kind, value)
    found = allocate(analysis, scored, choices)
    assert found.met == (expected is not None)
    if expected is not None:
        same(found.keep, expected)


@pytest.mark.parametrize(("kind", "value"), [t for t in TARGETS if t[0] != "ratio"])
def test_a_uniform_budget(analysis, kind, value):
    """The level rises; at each level groups lose their rungs in order; the first choice that is enough."""
    choices = Choices(Target(kind, value), scope="uniform", round_to=4)
    scored = score_groups(analysis, choices)
    ladders = scored.ladders
    rungs = [
        ((i + 1) / ladder.height, number)
        for number, ladder in enumerate(ladders)
        for i in range(ladder.height)
    ]
    expected = greedy(analysis, ladders, [number for _, number in sorted(rungs)], kind, value)
    found = allocate(analysis, scored, choices)
    assert found.met == (expected is not None)
    if expected is not None:
        same(found.keep, expected)


@pytest.mark.parametrize("level", [0.1, 0.25, 0.3, 0.4, 0.5, 0.75, 0.9, 1.0])
def test_a_uniform_level(analysis, level):
    choices = Choices(Target("ratio", level), scope="uniform", round_to=4)
    scored = score_groups(analysis, choices)
    dropped = [int(ladder.height * level + 1e-9) for ladder in scored.ladders]
    found = allocate(analysis, scored, choices)
    same(found.keep, rounded(analysis, scored.ladders, dropped))
    assert found.by_rule
    assert found.met == (found.achieved >= level - 1e-12)


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize(("kind", "value"), [("macs", 0.75), ("macs", 0.5), ("params", 0.5)])
def test_one_step_less_would_miss_the_budget(analysis, scope, kind, value):
    """Give back one step to any group: either the target is missed, or the group had a better claim to go."""
    choices = Choices(Target(kind, value), scope=scope, round_to=1)
    scored = score_groups(analysis, choices)
    found = allocate(analysis, scored, choices)
    assert found.met
    last = {}  # the group whose rung went last
    for ladder in scored.ladders:
        gone = (
            int((~found.keep[ladder.group.id]).sum()) // ladder.rungs.shape[1]
            if ladder.group.id in found.keep
            else 0
        )
        if gone:
            key = (
                gone / ladder.height
                if scope == "uniform"
                else ladder.scores[gone - 1] / ladder.rungs.shape[1]
            )
            last[ladder.group.id] = (key, ladder, gone)
    name = max(last, key=lambda name: (last[name][0], list(last).index(name)))
    _, ladder, gone = last[name]
    less = {**found.keep, name: ladder.keep(gone - 1)}
    assert not met(kind, value, fractions(analysis, less, scored.ladders))


def test_the_global_ranking_never_empties_a_group(analysis):
    """One group whose weights are nearly zero: it keeps the minimum all the same."""
    from onnxprune.model import edit

    name, group = next(iter(analysis.groups.items()))
    for use in group.sources:
        value = use.axis.value
        edit.set_array(value, value.const_value.numpy() * np.float32(1e-20))
    for round_to in (1, 8):
        choices = Choices(Target("macs", 0.5), criterion="l1", round_to=round_to)
        scored = score_groups(analysis, choices)
        keep = allocate(analysis, scored, choices).keep
        for other, flags in keep.items():
            channels = flags.sum() * analysis.groups[other].width
            assert channels >= round_to, (name, other)
            assert flags.sum() >= 0.1 * len(flags) - 1e-9


def test_blocks_stay_balanced(tmp_path):
    ir.save(grouped(32, 4), tmp_path / "net.onnx")
    analysis = analyze(tmp_path / "net.onnx")
    choices = Choices(Target("ratio", 0.5), round_to=4)
    keep = allocate(analysis, score_groups(analysis, choices), choices).keep
    assert {"g0", "g1"} <= keep.keys()
    for name in ("g0", "g1"):
        blocks = analysis.groups[name].blocks
        assert len(set(np.bincount(blocks[keep[name]]))) == 1


def test_out_of_reach_takes_everything_and_says_how_far(analysis):
    choices = Choices(Target("macs", 0.001))
    scored = score_groups(analysis, choices)
    found = allocate(analysis, scored, choices)
    assert not found.met
    assert found.achieved == found.reachable == found.cost.macs / analysis.cost.macs
    for ladder in scored.ladders:
        assert (~found.keep[ladder.group.id]).sum() == ladder.most * ladder.rungs.shape[1]
    with pytest.raises(TargetError, match="out of reach") as error:
        api.plan(analysis, macs=0.001)
    (lowest,) = re.findall(r"([0-9.]+)% of the MACs is as low as it gets", error.value.what)
    assert found.reachable <= float(lowest) / 100 < found.reachable + 0.001
    assert api.plan(analysis, macs=float(lowest) / 100).dropped  # what is said to be reachable is


def test_keeping_everything_drops_nothing(analysis):
    for kind in ("macs", "params"):
        choices = Choices(Target(kind, 1.0))
        found = allocate(analysis, score_groups(analysis, choices), choices)
        assert found.met
        assert not found.keep


def test_without_any_group():
    class Nothing:
        full = None

        def cost(self, keep):
            from onnxprune.allocate.cost import Cost

            return Cost(10, 10)

    costs = Nothing()
    costs.full = costs.cost({})
    for scope in ("global", "uniform"):
        found = solve([], costs, Target("macs", 0.5), scope)
        assert (found.met, found.keep, found.reachable) == (False, {}, 1.0)
        assert solve([], costs, Target("macs", 1.0), scope).met
        assert not solve([], costs, Target("ratio", 0.5), scope).met


@pytest.mark.parametrize("value", [0, -0.5, 1.0001, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["macs", "params", "ratio"])
def test_targets_outside_0_to_1(kind, value):
    with pytest.raises(UsageError, match="is not in"):
        Target(kind, value)


@pytest.mark.parametrize(
    "bad",
    [
        {"scope": "layer"},
        {"round_to": 0},
        {"min_channels": 0},
        {"max_ratio": 0.0},
        {"max_ratio": 1.5},
        {"preset": "x"},
    ],
)
def test_choices_that_mean_nothing(bad):
    with pytest.raises(UsageError):
        Choices(**bad)


@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_a_share_of_all_units(tmp_path, ratio):
    """The ratio counts the units of all groups that the user left in, even those too narrow to be cut."""
    ir.save(convnet([8, 40, 24]), tmp_path / "net.onnx")
    analysis = analyze(tmp_path / "net.onnx")
    made = api.plan(analysis, ratio=ratio)
    assert made.dropped >= ratio * 72
    assert "g0" not in made.keep


@pytest.mark.parametrize("name", ["digits_resnet", "digits_vit"])
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_trained_models(name, scope):
    analysis = analyze(MODELS / f"{name}.onnx")
    for value in (0.8, 0.5):
        choices = Choices(Target("macs", value), scope=scope)
        found = allocate(analysis, score_groups(analysis, choices), choices)
        assert found.met
        assert value - 0.12 < found.achieved <= value


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
def test_a_local_ratio_is_reached_with_about_the_same_share_of_every_group(tmp_path, ratio):
    path = tmp_path / "net.onnx"
    ir.save(convnet([64, 96, 200]), path)
    report = api.prune(path, ratio=ratio).report
    assert report.scope == "local" and report.target.met and ratio <= report.target.achieved < ratio + 0.1
    for group in report.groups:
        assert abs((group.units - group.kept) - ratio * group.units) <= 16


@pytest.mark.parametrize(
    "scope, round_to, channels, step",
    [
        ("global", None, 64, 8),
        ("global", None, 63, 4),
        ("learned", None, 16, 4),
        ("local", None, 16, 8),
        ("uniform", None, 16, 8),
        ("global", 8, 16, 8),
        ("global", 1, 512, 1),
    ],
)
def test_narrow_groups_are_rounded_to_less(scope, round_to, channels, step):
    assert Choices(scope=scope, round_to=round_to).rounding(channels) == step


def test_the_default_rounds_each_group_by_its_width(tmp_path):
    widths = (32, 64)
    path = tmp_path / "net.onnx"
    ir.save(convnet(widths), path)
    done = api.prune(path, macs=0.5, seed=1)
    kept = {group.units: group.kept for group in done.report.groups}
    assert kept[64] % 8 == 0 and kept[32] % 4 == 0
    assert min(kept.values()) < 64
    assert done.report.round_to is None
