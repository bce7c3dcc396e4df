"""`retrain_free` as a whole: the search under a budget, the rearrangement, what the report says."""

from __future__ import annotations

import numpy as np
import pytest
from small_nets import convnet, feeds, residual, save

import onnxprune
from onnxprune.allocate.target import Target
from onnxprune.analysis import analyze
from onnxprune.calibrate.data import read_dataset
from onnxprune.calibrate.dataset import input_specs
from onnxprune.choosing.choices import Choices
from onnxprune.choosing.evidence import Evidence
from onnxprune.choosing.planning import allocate
from onnxprune.choosing.rearranging import rearranged
from onnxprune.choosing.scoring import score_groups
from onnxprune.errors import UsageError


def setting(tmp_path, model=None, criterion="retrain_free", **choices):
    analysis = analyze(save(model or convnet(), tmp_path / "net.onnx"))
    data = read_dataset(feeds(60), input_specs(analysis.source.ir))
    evidence = Evidence(analysis, data)
    chosen = Choices(criterion=criterion, round_to=1, **choices)
    return analysis, evidence, chosen, score_groups(analysis, chosen, evidence=evidence)


def loss(evidence, keep):
    masks = evidence.mask_gradients
    return {n: float((masks[n].batches[~flags].sum(axis=0) ** 2).sum()) for n, flags in keep.items()}


def test_the_search_adds_squared_gradients_up(tmp_path):
    _, evidence, _, scored = setting(tmp_path)
    assert len(scored.ladders) == 3 and not scored.measured
    for ladder in scored.ladders:
        squares = (evidence.mask_gradients[ladder.group.id].batches ** 2).sum(axis=1)
        np.testing.assert_array_equal(ladder.rungs[:, 0], np.argsort(squares, kind="stable"))
        np.testing.assert_allclose(ladder.loss, [0, *np.cumsum(np.sort(squares))], rtol=1e-12)


@pytest.mark.parametrize("target", [Target("macs", 0.6), Target("params", 0.6), Target("ratio", 0.4)])
def test_units_go_where_they_cost_least_per_saving(tmp_path, target):
    """No other numbers of units per group within the budget have a lower sum, up to one unit per group."""
    analysis, _, choices, scored = setting(tmp_path, target=target)
    found = allocate(analysis, scored, choices)
    assert found.met

    def cost(drops):
        return sum(ladder.loss[n] for ladder, n in zip(scored.ladders, drops, strict=True))

    mine = [
        int((~found.keep[lad.group.id]).sum()) if lad.group.id in found.keep else 0 for lad in scored.ladders
    ]
    pairs = zip(scored.ladders, mine, strict=True)
    slack = max(float(np.diff(ladder.loss)[min(n, ladder.height - 1)]) for ladder, n in pairs)
    rng, units = np.random.default_rng(0), scored.units
    for _ in range(300):
        drops = [int(rng.integers(0, ladder.most + 1)) for ladder in scored.ladders]
        keep = {lad.group.id: lad.keep(n) for lad, n in zip(scored.ladders, drops, strict=True) if n}
        achieved = target.achieved(analysis.costs.full, analysis.costs.cost(keep), units, sum(drops))
        if target.met_by(achieved):
            slack = max(
                float(np.diff(lad.loss)[min(n, lad.height - 1)])
                for lad, n in zip(scored.ladders, mine, strict=True)
            )
            assert cost(mine) <= cost(drops) + slack


@pytest.mark.parametrize("model", [convnet(), residual()])
def test_the_rearrangement_keeps_numbers_and_lowers_the_loss(tmp_path, model):
    analysis, evidence, choices, scored = setting(tmp_path, model, target=Target("macs", 0.5))
    before = allocate(analysis, scored, choices)
    after, notes = rearranged(analysis, before, scored, choices, evidence)
    assert after.met and len(notes) == 1 and "came back for others" in notes[0]
    old, new = loss(evidence, before.keep), loss(evidence, after.keep)
    assert before.keep.keys() == after.keep.keys()
    for name in before.keep:
        assert before.keep[name].sum() == after.keep[name].sum()
        assert new[name] <= old[name] * (1 + 1e-9)
    assert sum(new.values()) < sum(old.values())
    assert analysis.costs.cost(after.keep).macs == pytest.approx(before.cost.macs)


def test_other_criteria_are_left_as_they_are(tmp_path):
    analysis, evidence, choices, scored = setting(tmp_path, criterion="fisher")
    before = allocate(analysis, scored, choices)
    assert rearranged(analysis, before, scored, choices, evidence) == (before, ())
    assert all(ladder.loss is None for ladder in scored.ladders)


def test_mask_criteria_need_no_statistics_and_weights_no_masks(tmp_path):
    for criterion, there in (("fisher", "mask_gradients"), ("snip", "weight_gradients")):
        _, evidence, _, _ = setting(tmp_path, criterion=criterion)
        cached = {name for name in vars(evidence) if "gradients" in name or name == "statistics"}
        assert cached == {there}


def test_only_samples_of_the_fit_are_differentiated(tmp_path):
    _, evidence, _, _ = setting(tmp_path)
    fit, held = evidence.divided
    assert {seen.samples.shape[1] for seen in evidence.mask_gradients.values()} == {len(fit)}
    assert len(held) == 12


def test_rounds_need_losses_that_were_measured(tmp_path):
    path = save(convnet(), tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="--rounds 2 needs measured losses"):
        onnxprune.prune(path, data=feeds(40), criterion="retrain_free", rounds=2, round_to=1)


def test_a_learned_ranking_and_sums_of_ranks(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxprune.choosing.learned.TRIALS", 4)
    path = save(convnet(), tmp_path / "net.onnx")
    for options in ({"criterion": "fisher", "scope": "learned"}, {"criterion": "l2+retrain_free+snip"}):
        report = onnxprune.prune(path, data=feeds(40), round_to=1, provider="cpu", **options).report
        assert report.target.met and any("gradients are those" in line for line in report.warnings)
