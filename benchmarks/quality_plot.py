"""The plots of the quality benchmark: top-1 against kept MACs, one picture per model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.quality_facts import Results
from benchmarks.quality_runs import DEFAULT, L1, ONNXSIM, OURS, TORCH_PRUNING

mpl.use("Agg")

STYLES: dict[str, tuple[str, dict[str, Any]]] = {
    OURS: ("onnxprune", {"color": "#1f5fa8", "marker": "o", "linestyle": "-"}),
    DEFAULT: ("onnxprune, default widths", {"color": "#5b9bd5", "marker": "s", "linestyle": "none"}),
    L1: ("l1 without repair", {"color": "#777777", "marker": ".", "linestyle": "--"}),
    ONNXSIM: ("onnxsim", {"color": "#d1701f", "marker": "^", "linestyle": "-."}),
    TORCH_PRUNING: ("Torch-Pruning", {"color": "#3f8f4f", "marker": "v", "linestyle": ":"}),
}
"""Name in the legend, and how its line looks."""


def draw(data: Mapping[str, Any], model: str, path: Path) -> None:
    """Write one plot; the same figures give the same bytes.

    Parameters
    ----------
    data
        What the `.json` holds.
    path
        A .png; replaced where it exists.
    """
    from matplotlib.figure import Figure

    found = Results(data["rows"])
    before = found.baseline(model)
    figure = Figure(figsize=(6.4, 4.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    if before is not None:
        top1 = 100 * before["top1"]
        axes.axhline(top1, color="black", linewidth=0.8, label="original")
        for tool, (label, style) in STYLES.items():
            changes = [
                found.change(model, "curve", tool, asked) for asked in found.asked(model, "curve", tool)
            ]
            done = sorted((change for change in changes if change and change.seeds), key=lambda c: c.kept)
            if done:
                bars = [[max(c.mean - c.low, 0.0) for c in done], [max(c.high - c.mean, 0.0) for c in done]]
                kept, means = [100 * c.kept for c in done], [top1 + c.mean for c in done]
                axes.errorbar(kept, means, bars, label=label, markersize=5, linewidth=1.2, **style)
        for number, (point, allowed) in enumerate(data["targets"][model]):
            cross: dict[str, Any] = {"color": "#c00000", "marker": "x", "linestyle": "none"}
            axes.plot([100 * point], [top1 + allowed], label="" if number else "target", **cross)
        figure.legend(fontsize=8, loc="outside lower center", ncols=3, frameon=False)
    axes.set(xlabel="MACs kept, %", ylabel="top-1 on test data, %", title=model)
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Software": None})
