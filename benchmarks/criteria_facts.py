"""What follows from the rows of the criteria benchmark: who is ahead of whom, and what held-out samples said."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from benchmarks.criteria_runs import GRADIENT, SUBJECTS_BY_NAME

Row = Mapping[str, Any]


class Results:
    """All rows, by what they are about."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        self._at = {(row["model"], row["criterion_asked"], row["asked"]): row for row in self.rows}

    @property
    def models(self) -> list[str]:
        """Models whose original was measured, in the order of the page."""
        return [name for name in SUBJECTS_BY_NAME if self._done(name, "", 1.0) is not None]

    def _done(self, model: str, criterion: str, point: float) -> Row | None:
        row = self._at.get((model, criterion, point))
        return None if row is None or row["failure"] else row

    def baseline(self, model: str) -> Row:
        """The original's figures."""
        return self._at[model, "", 1.0]

    def labelled(self, model: str) -> bool:
        """Whether there is a top-1."""
        return "top1" in self.baseline(model)

    def row(self, model: str, criterion: str, point: float) -> Row | None:
        """One run; None where it failed or was not done."""
        return self._done(model, criterion, point)

    def curve(self, model: str, criterion: str) -> list[Row]:
        """All runs of a criterion, from the smallest budget on."""
        rows = [self._done(model, criterion, point) for point in sorted(SUBJECTS_BY_NAME[model].points)]
        return [row for row in rows if row is not None]

    def kept(self, row: Row) -> float:
        """Share of the MACs."""
        return float(row["macs"] / self.baseline(row["model"])["macs"])

    def change(self, row: Row) -> float:
        """Change of top-1 in points against the original."""
        return float(100 * (row["top1"] - self.baseline(row["model"])["top1"]))

    def points(self, model: str) -> list[float]:
        """Budgets at which something was run."""
        done = {row["asked"] for row in self.rows if row["model"] == model and row["criterion_asked"]}
        return sorted(done, reverse=True)

    def present(self, model: str, names: Iterable[str], point: float) -> dict[str, Row]:
        """Those of some criteria that were run at a budget."""
        found = {name: self._done(model, name, point) for name in names}
        return {name: row for name, row in found.items() if row is not None}

    def best(self, model: str, point: float) -> str | None:
        """The best criterion with gradients on the test data: top-1 where there are labels, then SQNR.

        None where fewer than three were run.
        """
        rows = self.present(model, GRADIENT, point)
        return max(rows, key=lambda name: quality(rows[name])) if len(rows) > 2 else None

    def missing(self) -> dict[str, list[str]]:
        """Runs that the benchmark has and this page lacks: criteria and their budgets, by model."""
        gaps = {}
        for name, subject in SUBJECTS_BY_NAME.items():
            lacking: dict[str, list[str]] = {}
            for criterion in (*subject.criteria, *subject.also):
                points = [p for p in subject.points if (name, criterion, p) not in self._at]
                if points:
                    shares = ", ".join(f"{100 * point:g}" for point in points)
                    lacking.setdefault(f"at {shares} % of the MACs", []).append(f"`{criterion}`")
            if lacking:
                gaps[name] = [f"{', '.join(criteria)} {where}" for where, criteria in lacking.items()]
        return gaps


def quality(row: Row) -> tuple[float, float]:
    """What counts on the test data."""
    return row.get("top1", 0.0), row["db"]


def doubt(row: Row, other: Row) -> float:
    """How likely a difference in top-1 at least as large is by chance: exact sign test over unequal answers.

    Examples
    --------
    >>> doubt({"right": "f8"}, {"right": "00"})
    0.0625
    """
    first, second = (np.unpackbits(np.frombuffer(bytes.fromhex(r["right"]), np.uint8)) for r in (row, other))
    ours, theirs = int((first > second).sum()), int((second > first).sum())
    unequal = ours + theirs
    tail = sum(math.comb(unequal, n) for n in range(min(ours, theirs) + 1))
    return float(min(1.0, 2 * tail / 2**unequal))
