"""The plan: which units stay, and for every initializer the kept indices. Reviewable JSON, replayable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.analysis import Analysis
from onnxprune.errors import UsageError
from onnxprune.graph.axes import Bools, Kept
from onnxprune.model.io import write_text
from onnxprune.surgery.keep import kept_positions

SCHEMA = "onnxprune-plan/1"
Kept_indices = Mapping[str, Mapping[int, list[Any]]]


@dataclass(frozen=True)
class Plan:
    """Kept units of every group that is cut.

    Attributes
    ----------
    model_sha256
        Hash of the .onnx file that the plan was made for.
    units
        Number of units per group id.
    keep
        Kept units per group id, one flag per unit.
    initializers
        For every initializer that gets smaller: kept indices per axis. On an axis that is divided into blocks
        with private columns (grouped convolutions) one list per block.
    inexact
        Whether groups are meant that only an analysis with `allow_inexact` finds.
    refit_io
        Names of the graph inputs and outputs that may get smaller.
    attention
        Whether heads are meant, or dimensions of heads.
    slim
        Where the plan is for the model without what contributes nothing (see `onnxprune.slim`): names of weights
        whose units slimming left alone on request. None: it is for the model as it is.
    """

    model_sha256: str
    units: Mapping[str, int]
    keep: Mapping[str, Bools] = field(repr=False)
    initializers: Kept_indices = field(repr=False)
    inexact: bool = False
    refit_io: tuple[str, ...] = ()
    attention: str = "heads"
    slim: tuple[str, ...] | None = None

    @classmethod
    def of(cls, analysis: Analysis, keep: Mapping[str, Bools]) -> Plan:
        """The plan that keeps the flagged units."""
        cut = {name: flags for name, flags in keep.items() if not flags.all()}
        return cls(
            analysis.source.sha256,
            {name: analysis.groups[name].units for name in cut},
            cut,
            _indices(analysis, kept_positions(analysis.groups, cut)),
            analysis.allow_inexact,
            analysis.refit_io,
            analysis.attention,
        )

    @property
    def dropped(self) -> int:
        """Units that go."""
        return sum(int((~flags).sum()) for flags in self.keep.values())

    def to_json(self) -> str:
        """The plan as JSON text; the same plan gives the same bytes."""
        groups = {
            name: {"units": self.units[name], "keep": np.flatnonzero(flags).tolist()}
            for name, flags in self.keep.items()
        }
        initializers = {
            name: {str(axis): kept for axis, kept in axes.items()} for name, axes in self.initializers.items()
        }
        body = {
            "schema": SCHEMA,
            "model_sha256": self.model_sha256,
            **({"allow_inexact": True} if self.inexact else {}),
            **({"refit_io": list(self.refit_io)} if self.refit_io else {}),
            **({"attention": self.attention} if self.attention != "heads" else {}),
            **({"slim": {"whole": list(self.slim)}} if self.slim is not None else {}),
            "groups": groups,
            "initializers": initializers,
        }
        return json.dumps(body, indent=1) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan whole or not at all."""
        write_text(path, self.to_json())

    def __repr__(self) -> str:
        total = sum(self.units.values())
        return f"Plan(drops {self.dropped} of {total} units in {len(self.units)} groups)"


@dataclass(frozen=True)
class MadeWith:
    """Which axes the analysis opened that a plan was made from, and whether the model was slimmed first."""

    allow_inexact: bool = False
    refit_io: tuple[str, ...] = ()
    attention: str = "heads"
    slim: tuple[str, ...] | None = None


def made_with(path: str | os.PathLike[str]) -> MadeWith:
    """What a plan file was made with; nothing where it is no plan, which `read_plan` reports."""
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return MadeWith()
    if not isinstance(body, dict):
        return MadeWith()
    names = body.get("refit_io")
    known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    slim = body.get("slim")
    whole = slim.get("whole", []) if isinstance(slim, dict) else None
    return MadeWith(
        body.get("allow_inexact") is True,
        tuple(names) if names and known else (),
        "dims" if body.get("attention") == "dims" else "heads",
        tuple(str(name) for name in whole) if isinstance(whole, list) else None,
    )


def read_plan(path: str | os.PathLike[str], analysis: Analysis) -> Plan:
    """Read a plan and check that it fits the model.

    Parameters
    ----------
    path
        Of a file that `Plan.save` or `prune --plan` wrote.
    analysis
        Of the model.

    Raises
    ------
    UsageError
        The file is missing or no plan, was made for another model, or names groups, units or indices that do
        not fit.
    """
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the plan {path} cannot be read: {error.strerror}", "Check the path.") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no JSON: {error}", "Give a file that --plan wrote.") from None
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        raise UsageError(f"{path} is no plan of schema {SCHEMA!r}", "Give a file that --plan wrote.")
    if body.get("model_sha256") != analysis.source.sha256:
        raise UsageError(
            f"the plan {path} was made for another model (sha256 {str(body.get('model_sha256'))[:12]}..., "
            f"this is {analysis.source.sha256[:12]}...)",
            "Apply it to the file that it was made for, or make a new plan.",
        )
    keep = _read_groups(path, body.get("groups"), analysis)
    plan = replace(Plan.of(analysis, keep), slim=made_with(path).slim)
    claimed = body.get("initializers")
    ours = {
        name: {str(axis): kept for axis, kept in axes.items()} for name, axes in plan.initializers.items()
    }
    if claimed != ours:
        raise UsageError(
            f"the plan {path} contradicts itself: its groups and its initializers keep different indices",
            "Make the plan again with --plan, and give --fold-batchnorm to both commands or to neither.",
        )
    return plan


def _read_groups(path: str | os.PathLike[str], groups: Any, analysis: Analysis) -> dict[str, Bools]:
    if not isinstance(groups, dict):
        raise UsageError(f"the plan {path} has no groups", "Give a file that --plan wrote.")
    keep: dict[str, Bools] = {}
    for name, entry in groups.items():
        group = analysis.groups.get(name)
        if group is None or not isinstance(entry, dict) or entry.get("units") != group.units:
            raise UsageError(
                f"the plan {path} names group {name!r}, which this model does not have in that form",
                "Make the plan again with this version of onnxprune.",
            )
        kept = entry.get("keep")
        if not _is_index(kept, group.units):
            raise UsageError(
                f"the plan {path}: group {name!r} must keep at least one of its units 0..{group.units - 1}",
                "List the kept units as integers, ascending, each once.",
            )
        flags = np.zeros(group.units, bool)
        flags[kept] = True
        if (
            group.blocks is not None
            and len(set(np.bincount(group.blocks[flags], minlength=group.block_count))) > 1
        ):
            raise UsageError(
                f"the plan {path}: group {name!r} must keep the same number of units in each of its "
                f"{group.block_count} blocks",
                "Balance the kept units over the blocks.",
            )
        keep[name] = flags
    return keep


def _is_index(kept: Any, units: int) -> bool:
    """Whether `kept` lists some of `units` units, ascending."""
    if not isinstance(kept, list) or not kept or any(type(i) is not int for i in kept):
        return False
    return min(kept) >= 0 and max(kept) < units and all(a < b for a, b in pairwise(kept))


def _indices(analysis: Analysis, kept: Kept) -> dict[str, dict[int, list[Any]]]:
    graph = analysis.axis_graph
    found: dict[str, dict[int, list[Any]]] = {}
    for axis, flags in kept.items():
        if axis.value.const_value is None:
            continue
        blocked = graph.blocked.get(axis)
        rows = [flags] if blocked is None else list(flags.reshape(blocked.blocks, -1))
        lists = [np.flatnonzero(row).tolist() for row in rows]
        found.setdefault(str(axis.value.name), {})[axis.dim] = lists[0] if blocked is None else lists
    return {name: dict(sorted(axes.items())) for name, axes in sorted(found.items())}
