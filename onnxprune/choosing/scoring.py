"""From groups to ladders: in which order the units of each group go, and what that costs where data says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxprune.allocate.ladder import Ladder, build_ladder, measured_ladder
from onnxprune.analysis import Analysis
from onnxprune.calibrate.checks import did_you_mean
from onnxprune.choosing.choices import RANKED, Choices
from onnxprune.choosing.evidence import Evidence
from onnxprune.criteria import AnyCriterion, CombinedCriterion, CriterionTable, data_missing, default_criteria
from onnxprune.criteria.criterion import extra
from onnxprune.criteria.gather import unit_weights
from onnxprune.criteria.unit_gradients import KINDS, LOGITS, MASKS
from onnxprune.errors import Reason, UsageError
from onnxprune.graph.groups import Group
from onnxprune.job import Job
from onnxprune.select import excluded_groups
from onnxprune.statistics.learning import LearnedMasks, learn_masks

AUTO = "auto"
"""With data the best of `obs` and others, without data `l2`."""

OBS = "obs"
"""Optimal brain surgeon: what the layers behind a unit lose when the other units make up for it."""

RETRAIN_FREE = "retrain_free"
"""Fisher information per unit, searched for the least loss under the budget, then rearranged."""

WITHOUT_DATA = "l2"

TINY = 1e-12

LARGEST_CHANGE = 1e6
"""Of outputs, as a share of their variance; stands for anything larger, infinities among them."""


@dataclass(frozen=True)
class Scored:
    """Scores of all groups that may be cut, and why the others may not.

    Attributes
    ----------
    ladders
        One per group that may be cut, in the order of the groups.
    excluded
        Groups that stay whole, with the reason.
    units
        Units of all groups that the user did not exclude: a ratio is a share of these.
    criterion
        What put the units into their order.
    notes
        What the report should say about how they were chosen.
    """

    ladders: tuple[Ladder, ...] = field(repr=False)
    excluded: Mapping[str, Reason]
    units: int
    criterion: str
    notes: tuple[str, ...] = ()

    @property
    def measured(self) -> bool:
        """Whether it was measured at the outputs what every cut costs."""
        return (
            self.criterion != RETRAIN_FREE
            and bool(self.ladders)
            and all(ladder.loss is not None for ladder in self.ladders)
        )

    def without(self, groups: tuple[str, ...], reason: Reason) -> Scored:
        """The same without some groups."""
        ladders = tuple(ladder for ladder in self.ladders if ladder.group.id not in groups)
        excluded = {**self.excluded, **dict.fromkeys(groups, reason)}
        return replace(self, ladders=ladders, excluded=excluded)


def score_groups(
    analysis: Analysis,
    choices: Choices,
    *,
    criteria: CriterionTable | None = None,
    evidence: Evidence | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scored:
    """Score the units of every group and put them into the order in which they go.

    Parameters
    ----------
    evidence
        What calibration samples say; needed for criteria that look at activations.

    Raises
    ------
    UsageError
        There is no such criterion, it needs data, it scores none of the groups, or a pattern matches nothing.
    """
    name = resolve(choices.criterion, evidence is not None)
    if name == OBS and evidence is None:
        raise data_missing(OBS)
    criterion = find_criterion(WITHOUT_DATA if name == OBS else name, criteria)
    excluded = excluded_groups(
        analysis.axis_graph, analysis.groups, ignore=choices.ignore, only=choices.only, preset=choices.preset
    )
    units = sum(group.units for name, group in analysis.groups.items() if name not in excluded)
    learned = None
    if LOGITS in criterion.kinds and evidence is not None:
        mine = [group for name, group in analysis.groups.items() if name not in excluded]
        learned = learn_masks(evidence.differentiation, mine, choices.target.dropped)
    scorer = _Scorer(analysis, choices, criterion, evidence, np.random.default_rng(choices.seed), learned)
    unseen = _unseen(analysis, criterion, evidence) if evidence is not None else set()
    ladders: list[Ladder] = []
    by_weights: list[int] = []
    for number, (group_id, group) in enumerate(analysis.groups.items()):
        if progress is not None:
            progress(number, len(analysis.groups))
        if group_id in excluded:
            continue
        ladder = scorer.by_weight(group) if group_id in unseen else scorer.by_score(group)
        if ladder is None:
            excluded[group_id] = Reason.NO_SCORE
        elif not ladder.most:
            excluded[group_id] = Reason.TOO_NARROW
        else:
            by_weights += [len(ladders)] if group_id in unseen else []
            ladders.append(scorer.with_loss(ladder, name))
    ladders = _on_one_scale(ladders, by_weights)
    if analysis.groups and all(reason is Reason.NO_SCORE for reason in excluded.values()) and not ladders:
        raise UsageError(
            f"the criterion {criterion.name} reads {', '.join(sorted(criterion.kinds))} parameters, "
            "and no group has any",
            "Is there another criterion that reads what they have? bn-scale needs BatchNormalization nodes that "
            "are not folded.",
        )
    notes = _notes(criterion, evidence, learned, [ladders[number].group.name for number in by_weights])
    return Scored(tuple(ladders), excluded, units, name, notes)


def _notes(
    criterion: AnyCriterion,
    evidence: Evidence | None,
    learned: LearnedMasks | None,
    by_weights: Sequence[str],
) -> tuple[str, ...]:
    """What the report should say about the scores; `by_weights` names the groups that went by their weights."""
    notes = []
    if evidence is not None and criterion.kinds & (KINDS - {LOGITS}):
        notes.append(evidence.differentiated)
    if learned is not None and learned.masks is not None:
        notes.append(learned.sentence("units"))
    if by_weights:
        notes.append(
            f"{criterion.name} looks at what layers see, which the samples do not show of some that are inside the "
            f"bodies of If, Loop and Scan: {', '.join(by_weights)} went by {WITHOUT_DATA}, scaled to the mean "
            "score of the others"
        )
    return tuple(notes)


def _unseen(analysis: Analysis, criterion: AnyCriterion, evidence: Evidence) -> set[str]:
    """Groups that layers inside bodies consume, where the criterion looks at what those see, and nothing shows it.

    Masks, for their gradients, cannot be put into bodies at all.
    """
    inside = {sink.axis for sink in analysis.axis_graph.inner_sinks}
    masks, looks = MASKS in criterion.kinds, bool(criterion.kinds - KINDS)
    if not criterion.needs_data or not (masks or looks) or not inside:
        return set()
    groups = [
        (name, group)
        for name, group in analysis.groups.items()
        if any(use.axis in inside for use in group.axes)
    ]
    return {name for name, group in groups if masks or not evidence.sees(group)}


def _on_one_scale(ladders: Sequence[Ladder], others: Sequence[int]) -> list[Ladder]:
    """Ladders of which some were scored by another criterion: these get the mean score of the first."""
    mine = [ladder.scores for number, ladder in enumerate(ladders) if number not in others]
    if not mine or not others:
        return list(ladders)
    mean = float(np.concatenate(mine).mean())
    return [
        replace(ladder, scores=ladder.scores * mean / max(float(ladder.scores.mean()), TINY))
        if number in others
        else ladder
        for number, ladder in enumerate(ladders)
    ]


def resolve(criterion: str, has_data: bool) -> str:
    """The criterion that a name stands for."""
    if criterion != AUTO:
        return criterion
    return OBS if has_data else WITHOUT_DATA


def reads_data(criterion: str, criteria: CriterionTable | None) -> bool:
    """Whether a criterion looks at activations or gradients where there are any."""
    return criterion in (AUTO, OBS) or find_criterion(criterion, criteria).needs_data


def needs_data(choices: Choices, job: Job) -> bool:
    """Whether units cannot be chosen without samples."""
    name = choices.criterion
    by_criterion = name == OBS or (name != AUTO and find_criterion(name, job.criteria).needs_data)
    return by_criterion or choices.scope == "learned"


def check_criterion(choices: Choices, job: Job) -> None:
    """Raise UsageError where there is no such criterion, or no data for it or for the scope."""
    if job.loss != "auto" and not differentiates(choices.criterion, job.criteria):
        raise UsageError(
            f"--loss {job.loss} is about gradients, and the criterion {choices.criterion} reads none",
            "Leave it out, or take one that does, such as fisher.",
        )
    if not needs_data(choices, job) or job.data is not None:
        return
    if choices.scope == "learned":
        raise UsageError(
            "--scope learned needs --data",
            "Give samples (--data synthetic generates some), or take another scope.",
        )
    raise data_missing(
        choices.criterion, "gradients" if differentiates(choices.criterion, job.criteria) else "activations"
    )


def differentiates(criterion: str, criteria: CriterionTable | None) -> bool:
    """Whether a criterion reads gradients."""
    return criterion not in (AUTO, OBS) and bool(find_criterion(criterion, criteria).kinds & KINDS)


def find_criterion(name: str, criteria: CriterionTable | None) -> AnyCriterion:
    """Look a criterion up, in the default table where none is given; "l2+apoz" adds the ranks of two.

    Raises
    ------
    UsageError
        There is no such criterion.
    """
    table = default_criteria() if criteria is None else criteria
    if name in table:
        return table[name]
    parts = name.split("+")
    for part in parts:
        if part not in table:
            inside = f" in {name!r}" if len(parts) > 1 else ""
            known = ", ".join(sorted([*table, AUTO, OBS]))
            raise UsageError(
                f"there is no criterion {part!r}{inside}{did_you_mean(part, [*table, AUTO, OBS])}",
                f"Known: {known}, and sums of their ranks, such as l2+apoz.",
            )
    return CombinedCriterion(name, tuple(table[part] for part in parts))


def most_of_a_group(choices: Choices) -> float:
    """At most this share of a group goes."""
    return choices.max_ratio or (0.9 if choices.scope in RANKED else 1.0)


@dataclass(frozen=True)
class _Scorer:
    analysis: Analysis
    choices: Choices
    criterion: AnyCriterion
    evidence: Evidence | None
    rng: np.random.Generator
    learned: LearnedMasks | None = None

    def by_score(self, group: Group) -> Ladder | None:
        """The ladder of a criterion; None where the group has nothing that it reads."""
        members = unit_weights(self.analysis.axis_graph, group)
        seen, gradients, kinds = None, None, self.criterion.kinds
        if self.criterion.needs_data and self.evidence is not None:
            seen = self.evidence.activations(group) if kinds - KINDS else None
            gradients = self.evidence.gradients(group, kinds) if kinds & KINDS else None
            if gradients is not None and self.learned is not None:
                gradients = replace(gradients, logits=self.learned.logits.get(group.id))
        normalize = self.choices.scope in RANKED
        scores = self.criterion.score(
            members, normalize=normalize, rng=self.rng, activations=seen, **extra(self.criterion, gradients)
        )
        return None if scores is None else self._ladder(group, scores)

    def by_weight(self, group: Group) -> Ladder | None:
        """The ladder of the criterion that needs no data."""
        criterion = find_criterion(WITHOUT_DATA, None)
        members = unit_weights(self.analysis.axis_graph, group)
        normalize = self.choices.scope in RANKED
        scores = criterion.score(members, normalize=normalize, rng=self.rng)
        return None if scores is None else self._ladder(group, scores)

    def _ladder(self, group: Group, scores: Any) -> Ladder:
        return build_ladder(
            group,
            np.asarray(scores, np.float64),
            round_to=self.choices.rounding(group.units * group.width),
            min_channels=self.choices.min_channels,
            max_ratio=most_of_a_group(self.choices),
            min_ratio=self.choices.min_ratio,
        )

    def with_loss(self, ladder: Ladder, name: str) -> Ladder:
        """The same ladder, or one that knows what every cut costs, where the criterion says that."""
        if name == OBS:
            return self.by_loss(ladder)
        if name == RETRAIN_FREE:  # the mask search: the diagonal of the Fisher information adds up
            return replace(ladder, loss=np.concatenate([[0.0], np.cumsum(ladder.scores)]))
        return ladder

    def by_loss(self, ladder: Ladder) -> Ladder:
        """The ladder of least error, with the change of the outputs that follows from it.

        The error of a group grows as its elimination says; how much of it the outputs see is measured once, with
        half of the group gone. Groups whose units neither linear maps nor products consume keep their order.
        """
        evidence, group = self.evidence, ladder.group
        if evidence is None:
            raise data_missing(OBS)
        found = evidence.elimination(group)
        if found is None:
            rungs, errors = ladder.rungs, np.concatenate([[0.0], np.cumsum(np.square(ladder.scores))])
        else:
            rungs, errors = found.rungs, found.errors
        factor = 1.0
        if self.choices.scope == "global":
            half = max(1, len(rungs) // 2)
            gone = np.isin(np.arange(group.units), rungs[:half])
            change = (
                evidence.change({group.id: gone})
                if evidence.shows(group)
                else evidence.masked_change(group, gone)
            )
            factor = min(change, LARGEST_CHANGE) / max(float(errors[half]), TINY)
        return measured_ladder(
            group,
            rungs,
            errors * factor,
            round_to=self.choices.rounding(group.units * group.width),
            min_channels=self.choices.min_channels,
            max_ratio=most_of_a_group(self.choices),
            min_ratio=self.choices.min_ratio,
        )
