"""The plots of the criteria benchmark: top-1 and fidelity against kept MACs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.criteria_facts import Results
from benchmarks.criteria_runs import AUTO, CRITERIA, SUBJECTS_BY_NAME
from benchmarks.quality_facts import Results as Earlier
from benchmarks.quality_runs import L1, ONNXSIM, OURS, TORCH_PRUNING

mpl.use("Agg")

_GREY = {"color": "#808080", "linewidth": 1.8}
_DASHED: dict[str, Any] = {"linestyle": (0, (4, 1.5)), "linewidth": 1.4}
STYLES: dict[str, dict[str, Any]] = {
    "l1": {"marker": "s", **_GREY},
    "l2": {"marker": "D", "linestyle": (0, (5, 1.5)), **_GREY},
    "taylor": {"color": "#e69f00", "marker": "^"},
    "fisher": {"color": "#0072b2", "marker": "v"},
    "retrain_free": {"color": "#d1001f", "marker": "P", "linewidth": 2.0},
    "gradient": {"color": "#009e73", "marker": "<"},
    "snip": {"color": "#9b59b6", "marker": ">"},
    "snip_momentum": {"color": "#7a4b20", "marker": "X"},
    "fisher, outputs": {"color": "#0072b2", "marker": "1", **_DASHED},
    "retrain_free, outputs": {"color": "#d1001f", "marker": "+", **_DASHED},
    AUTO: {"color": "black", "marker": "o", "linewidth": 3.2, "markersize": 6, "zorder": 5},
}
"""How the line of a criterion looks; the last is drawn on top."""
EARLIER: dict[str, tuple[str, dict[str, Any]]] = {
    OURS: ("auto, all samples", {"color": "#666666"}),
    L1: ("l1 without repair", {"color": "#b0b0b0", "marker": "."}),
    ONNXSIM: ("onnxsim", {"color": "#e8a06a", "marker": "."}),
    TORCH_PRUNING: ("Torch-Pruning", {"color": "#8cc79a", "marker": "."}),
}
"""Tools of the quality page: their names and how their lines look."""
TWIN = "quality.md"
RANDOM = "criteria_random.png"
HIGHEST = 110.0
"""dB: more than this is float noise."""


def draw_all(rows: Sequence[Mapping[str, Any]], earlier: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Write `criteria_MODEL.png` for every trained model with results, and one for those with random weights.

    Parameters
    ----------
    rows
        Of this benchmark.
    earlier
        Of the quality benchmark.
    """
    found, before = Results(rows), Earlier(earlier)
    for name in found.models:
        if not SUBJECTS_BY_NAME[name].architecture:
            _draw(found, before, name, folder / f"criteria_{name}.png")
    random = [name for name in found.models if SUBJECTS_BY_NAME[name].architecture]
    if random:
        _draw_random(found, random, folder / RANDOM)


def _draw(found: Results, earlier: Earlier, model: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 4.6), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    dense = 100 * found.baseline(model)["top1"]
    left.axhline(dense, color="black", linewidth=0.8, label="original")
    for tool, (label, style) in EARLIER.items():
        changes = [
            earlier.change(model, "curve", tool, asked) for asked in earlier.asked(model, "curve", tool)
        ]
        done = sorted((change for change in changes if change and change.seeds), key=lambda c: c.kept)
        if done:
            points = [100 * c.kept for c in done], [dense + c.mean for c in done]
            left.plot(*points, label=f"{label} ({TWIN})", linestyle=":", linewidth=1.2, markersize=5, **style)
    lowest = dense
    for criterion, style in STYLES.items():
        done_rows = found.curve(model, criterion)
        if not done_rows:
            continue
        kept = [100 * found.kept(row) for row in done_rows]
        top1 = [100 * row["top1"] for row in done_rows]
        lowest = min(lowest, *top1)
        look = {"markersize": 5.5, "linewidth": 1.3, **style}
        left.plot(kept, top1, label=_label(criterion), **look)
        right.plot(kept, [min(row["db"], HIGHEST) for row in done_rows], **look)
    span = dense - lowest
    left.set_ylim(lowest - 0.04 * span, dense + max(0.06 * span, 0.5))
    left.set(xlabel="MACs kept, %", ylabel="top-1 on test data, %", title="accuracy")
    right.set(xlabel="MACs kept, %", ylabel="SQNR on test data, dB", title="fidelity to the original")
    for axes in (left, right):
        axes.set_xlim(15, 95)
        axes.grid(alpha=0.3)
    figure.suptitle(model, fontweight="bold")
    figure.legend(fontsize=8.5, loc="outside right center", frameon=False)
    figure.savefig(path, metadata={"Software": None})


def _draw_random(found: Results, models: Sequence[str], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 3.6), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for number, (axes, model) in enumerate(zip(panels, models, strict=True)):
        for criterion, style in STYLES.items():
            rows = found.curve(model, criterion)
            if rows:
                look = {"markersize": 5.5, "linewidth": 1.3, **style}
                label = "" if number else _label(criterion)
                axes.plot(
                    [100 * row["asked"] for row in rows], [row["db"] for row in rows], label=label, **look
                )
        axes.set(xlabel="MACs to keep, %", title=model)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("SQNR on generated test data, dB")
    figure.legend(fontsize=8.5, loc="outside right center", frameon=False)
    figure.savefig(path, metadata={"Software": None})


def _label(criterion: str) -> str:
    loss = CRITERIA[criterion].get("loss")
    return f"{CRITERIA[criterion]['criterion']}, --loss {loss}" if loss else criterion
