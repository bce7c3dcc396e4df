"""What follows from the rows of the quality benchmark: differences to the original, over the seeds of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """Runs that differ in their seed only.

    Attributes
    ----------
    seeds
        How many have a result.
    mean, low, high
        Change of top-1 in points against the original.
    kept
        Share of the MACs, the mean.
    failures
        Why the others have none.
    """

    seeds: int
    mean: float
    low: float
    high: float
    kept: float
    failures: tuple[str, ...] = ()

    def meets(self, allowed: float, point: float) -> bool:
        """Whether no run failed, the mean loses no more than allowed, and no more MACs than `point` are left."""
        within = self.mean >= allowed - 1e-9 and self.kept <= point + 1e-9
        return self.seeds > 0 and not self.failures and within


class Results:
    """All rows, by what they are about."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)

    def of(self, model: str, experiment: str, tool: str | None = None) -> list[Row]:
        """Rows of one experiment, failures included, in the order in which they were run."""
        return [
            row
            for row in self.rows
            if row["model"] == model
            and row["experiment"] == experiment
            and (tool is None or row["tool"] == tool)
        ]

    def baseline(self, model: str) -> Row | None:
        """What the original is worth; None where it could not be measured."""
        rows = self.of(model, "baseline")
        return None if not rows or rows[0]["failure"] else rows[0]

    def asked(self, model: str, experiment: str, tool: str) -> list[float]:
        """What a tool was asked for, each once, in order."""
        return list(dict.fromkeys(row["asked"] for row in self.of(model, experiment, tool)))

    def change(
        self, model: str, experiment: str, tool: str, asked: float, samples: int | None = None
    ) -> Change | None:
        """The runs of one point; None where there are none.

        Parameters
        ----------
        samples
            Only runs on so many calibration samples; None: all runs.
        """
        rows = [
            row
            for row in self.of(model, experiment, tool)
            if row["asked"] == asked and samples in (None, row["samples"])
        ]
        before = self.baseline(model)
        if not rows or before is None:
            return None
        done = [row for row in rows if not row["failure"]]
        failures = tuple(row["failure"] for row in rows if row["failure"])
        if not done:
            return Change(0, 0.0, 0.0, 0.0, 1.0, failures)
        changes = [points(row, before) for row in done]
        kept = sum(row["macs"] for row in done) / len(done) / before["macs"]
        mean = sum(changes) / len(changes)
        return Change(len(done), mean, min(changes), max(changes), kept, failures)


def points(row: Row, before: Row) -> float:
    """Change of top-1 in points."""
    return float(100 * (row["top1"] - before["top1"]))
