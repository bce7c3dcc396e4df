"""A ranking over all groups that is learned: one factor and one shift per group, by evolution.

LeGR (Chin et al. 2020, https://arxiv.org/abs/1904.12368): scores of different layers compare after an affine map
per layer, and the maps are found by regularised evolution. The reward is how little the outputs change on samples
when the groups are cut as the ranking says and the layers behind them are refitted. The search draws from
one generator, seeded once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.allocate.ladder import Ladder
from onnxprune.analysis import Analysis
from onnxprune.choosing.choices import Choices
from onnxprune.choosing.evidence import Evidence
from onnxprune.choosing.planning import allocate
from onnxprune.choosing.scoring import Scored

TRIALS = 120
POPULATION = 24
TOURNAMENT = 6
MUTATED = 0.2
"""Share of the groups whose map changes from parent to child; at least one."""

SPREAD = 0.5
"""Standard deviation of the logarithm of a new factor, and of a shift as a share of the scores' spread."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """Maps of all groups, shape (groups,) each, and what they lead to.

    Attributes
    ----------
    factors, shifts
        Scores become `factor * score + shift`.
    change
        Of the outputs, as a share of their variance.
    """

    factors: np.ndarray
    shifts: np.ndarray
    change: float = float("inf")


def learn(
    analysis: Analysis,
    scored: Scored,
    choices: Choices,
    evidence: Evidence,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    *,
    trials: int | None = None,
) -> Scored:
    """The same groups with the scores (or losses) that gave the least change of the outputs.

    Parameters
    ----------
    scored
        Ladders whose scores, or losses where they have some, are mapped; the order within a group stays.
    trials
        How many maps are tried, the identity among them; `TRIALS` by default.
    """
    rng = np.random.default_rng(choices.seed)
    count, trials = len(scored.ladders), TRIALS if trials is None else trials

    def tried(candidate: Candidate) -> Candidate:
        keep = allocate(analysis, mapped(scored, candidate), choices).keep
        return replace(candidate, change=evidence.change({name: ~flags for name, flags in keep.items()}))

    population = [tried(Candidate(np.ones(count), np.zeros(count)))]
    best = population[0]
    for number in range(1, trials if count else 0):
        progress(number, trials)
        chosen = rng.integers(len(population), size=min(TOURNAMENT, len(population)))
        parent = min((population[i] for i in chosen), key=lambda c: c.change)
        child = tried(_mutated(parent, rng))
        population = [*population, child][-POPULATION:]  # the oldest dies
        best = min(best, child, key=lambda c: c.change)
    return mapped(scored, best)


def _mutated(parent: Candidate, rng: np.random.Generator) -> Candidate:
    count = len(parent.factors)
    chosen = rng.permutation(count)[: max(1, round(MUTATED * count))]
    factors, shifts = parent.factors.copy(), parent.shifts.copy()
    factors[chosen] *= np.exp(SPREAD * rng.standard_normal(len(chosen)))
    shifts[chosen] += SPREAD * rng.standard_normal(len(chosen))
    return Candidate(factors, shifts)


def mapped(scored: Scored, candidate: Candidate) -> Scored:
    """Ladders with mapped scores and losses."""
    maps = zip(scored.ladders, candidate.factors, candidate.shifts, strict=True)
    return replace(scored, ladders=tuple(_mapped(ladder, float(f), float(s)) for ladder, f, s in maps))


def _mapped(ladder: Ladder, factor: float, shift: float) -> Ladder:
    spread = float(ladder.scores.std()) or 1.0
    scores = factor * ladder.scores + shift * spread
    if ladder.loss is None:
        return replace(ladder, scores=scores)
    steps = np.maximum(np.diff(ladder.loss) * factor + shift * spread, 0.0)
    return replace(ladder, scores=scores, loss=np.concatenate([[0.0], np.cumsum(steps)]))
