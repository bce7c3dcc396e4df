"""Accuracy against the share of zeros on trained models with real data, for onnxprune and onnxsim.

    python -m benchmarks.sparsity

writes `sparsity.md`, `sparsity.json` and one plot per model beside this file. Models and data lie in
`../shared/real`, beside the checkout, and in `models/`; what is not there is left out. Calibration data alone
leads to the results, test data only measures them. A benchmark that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.isolated import ROOT, call, file_digest, source_digest, version
from benchmarks.quality_runs import SUBJECTS
from benchmarks.tables import environment, environment_line, table, write

HERE = Path(__file__).parent
LIMIT = 3600.0
MODELS = ("kwt1_speechcommands", "digits_vit", "digits_resnet")
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)
TARGETS = {"element": (0.5, -0.5), "2:4": (0.5, -1.0)}
"""Largest loss of top-1 in points at a level, on the two transformers, with SparseGPT."""

OURS: dict[str, dict[str, Any]] = {
    "onnxprune": {},
    "onnxprune sparsegpt": {"solver": "sparsegpt"},
    "onnxprune sparsegpt, local": {"solver": "sparsegpt", "scope": "local"},
    "onnxprune obc, local": {"solver": "obc", "scope": "local"},
    "onnxprune wanda": {"solver": "mask", "criterion": "wanda"},
    "onnxprune magnitude": {"solver": "mask", "criterion": "normed_abs"},
}
THEIRS = {"onnxsim sparsegpt": "sparsegpt", "onnxsim wanda": "wanda", "onnxsim magnitude": "magnitude"}
STYLES: dict[str, tuple[str, str, str]] = {
    "onnxprune": ("#1f5fa8", "o", "-"),
    "onnxprune sparsegpt": ("#5b9bd5", "s", "-"),
    "onnxprune sparsegpt, local": ("#5b9bd5", "s", ":"),
    "onnxprune obc, local": ("#1f5fa8", "o", ":"),
    "onnxprune wanda": ("#3f8f4f", "v", "-"),
    "onnxprune magnitude": ("#777777", ".", "-"),
    "onnxsim sparsegpt": ("#d1701f", "^", "--"),
    "onnxsim wanda": ("#c4a000", "v", "--"),
    "onnxsim magnitude": ("#aaaaaa", ".", "--"),
}
"""Colour, marker and line."""


@dataclass(frozen=True)
class Run:
    """One step: a model, a tool, a pattern and the level that is asked for."""

    model: str
    tool: str
    pattern: str
    level: float
    function: str
    arguments: dict[str, Any] = field(hash=False)


def runs(model: str, levels: Sequence[float]) -> list[Run]:
    """All runs about one model."""
    found = [Run(model, "", "", 0.0, "sparsity_steps:baseline", {})]
    for pattern, points in (("element", levels), ("2:4", (0.5,))):
        for level in points:
            for tool, options in OURS.items():
                given = {"sparsity": level, "pattern": pattern, **options}
                step = "sparsity_steps:sparsify"
                found.append(Run(model, tool, pattern, level, step, {"options": given}))
            for tool, method in THEIRS.items():
                given = {"sparsity": level} if pattern == "element" else {"n": 2, "m": 4}
                step = "sparsity_steps:onnxsim"
                found.append(Run(model, tool, pattern, level, step, {"method": method, "options": given}))
    return found


def measure(run: Run, real: Path, fresh: bool) -> dict[str, Any] | None:
    """Do one run, or find what is kept of it; None where model or data are missing."""
    subject = SUBJECTS[run.model]
    base = ROOT if subject.ours else real
    model, test, calibration = (
        base / "models" / f"{run.model}.onnx",
        base / subject.test,
        base / subject.calibration,
    )
    if not all(path.exists() for path in (model, test, calibration)):
        return None
    depends = {"model": file_digest(model), "steps": file_digest(HERE / "sparsity_steps.py")}
    depends |= {"onnxsim": version("onnxsim")} if "onnxsim" in run.function else {"source": source_digest()}
    done = call(
        f"benchmarks.{run.function}",
        {
            "model": str(model),
            "data": {
                "calibration": str(calibration),
                "samples": None,
                "test": str(test),
                "preprocess": subject.preprocess,
            },
            **run.arguments,
        },
        limit=LIMIT,
        depends=depends,
        fresh=fresh,
    )
    head = {"model": run.model, "tool": run.tool, "pattern": run.pattern, "asked": run.level}
    return {**head, "failure": done.failure, **done.value}


def draw(rows: Sequence[Mapping[str, Any]], model: str, path: Path) -> None:
    """Top-1 against the share of zeros, one line per tool."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    for tool, (colour, marker, line) in STYLES.items():
        mine = [r for r in rows if r["model"] == model and r["tool"] == tool and r["pattern"] == "element"]
        points = sorted((100 * r["achieved"], 100 * r["top1"]) for r in mine if not r["failure"])
        if points:
            style = {"color": colour, "marker": marker, "linestyle": line, "linewidth": 1.2, "markersize": 5}
            axes.plot(*zip(*points, strict=True), label=tool, **style)
    before = next(r for r in rows if r["model"] == model and not r["tool"])
    axes.axhline(100 * before["top1"], color="black", linewidth=0.8, label="original")
    axes.set(xlabel="zeros of the handled weights, %", ylabel="top-1 on test data, %", title=model)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, metadata={"Software": None})


def render(rows: Sequence[Mapping[str, Any]], made: str) -> str:
    """The page."""
    parts = [
        "# Sparsity",
        "Weights become zero in place, and the others make up for them. Top-1 on test files that calibration never "
        "saw, all calibration samples. `python -m benchmarks.sparsity` makes this page.",
        "*zeros*: of the weights of the layers that the tool handles, as it says itself. *KL*, *dB*: outputs "
        "against the original's on the test data. *CPU s*: processor time, reading the data included, while other "
        "work shared the machine.",
        "Wanda alone, without other weights, is behind onnxsim's on digits_vit at 50 and 60 %. In the two of its "
        "layers that were looked at (node_MatMul_12, node_MatMul_73) onnxprune zeroes what `abs(w) rms(x)` says, "
        "as computed by hand, and onnxsim the least magnitudes of each output, which is better there.",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        before = next(r for r in rows if r["model"] == model and not r["tool"])
        parts.append(f"## {model}")
        parts.append(f"Original: top-1 {before['top1']:.2%} on {before['tested']:,} test samples.")
        parts.append(f"![{model}](sparsity_{model}.png)")
        for pattern in ("element", "2:4"):
            lines = [
                _line(row, before) for row in rows if row["model"] == model and row["pattern"] == pattern
            ]
            head = ["tool", "asked", "zeros", "top-1", "change, points", "KL", "dB", "CPU s"]
            parts += [f"### {pattern}", table(head, lines)]
        if model in ("kwt1_speechcommands", "digits_vit"):
            parts.append(_targets(rows, model, before))
    return "\n\n".join([*parts, made]) + "\n"


def _line(row: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    if row["failure"]:
        return [row["tool"], f"{row['asked']:.0%}", "failed", *["-"] * 4, row["failure"][:60]]
    change = 100 * (row["top1"] - before["top1"])
    return [
        row["tool"],
        f"{row['asked']:.0%}",
        f"{row['achieved']:.1%}",
        f"{row['top1']:.2%}",
        f"{change:+.2f}",
        f"{row['kl']:.4f}",
        f"{row['db']:.1f}",
        f"{row['time']['cpu']:.1f}",
    ]


def _targets(rows: Sequence[Mapping[str, Any]], model: str, before: Mapping[str, Any]) -> str:
    """Whether SparseGPT loses no more than it may."""
    lines = []
    for pattern, (level, allowed) in TARGETS.items():
        for row in rows:
            wanted = (model, "onnxprune sparsegpt", pattern, level)
            if (row["model"], row["tool"], row["pattern"], row["asked"]) == wanted and not row["failure"]:
                change = 100 * (row["top1"] - before["top1"])
                verdict = "met" if change >= allowed - 1e-9 else "**not met**"
                lines.append(
                    f"- {pattern} at {level:.0%}: {change:+.2f} points, allowed {allowed:+.1f}: {verdict}"
                )
    return "Asked for with `--solver sparsegpt`:\n\n" + "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=Path, default=ROOT.parent / "shared" / "real")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=sorted(SUBJECTS))
    parser.add_argument("--levels", nargs="*", type=float, default=list(LEVELS))
    parser.add_argument("--fresh", action="store_true", help="use no results of an earlier run")
    given = parser.parse_args(arguments)
    rows = []
    for model in given.models:
        for run in runs(model, given.levels):
            row = measure(run, given.real, given.fresh)
            if row is None:
                print(f"{model}: model or data are missing", file=sys.stderr)
                break
            rows.append(row)
            figure = row["failure"][:100] if row["failure"] else f"top-1 {row['top1']:.2%}"
            print(f"{model:22} {row['tool']:28} {row['pattern']:8} {row['asked']:.2f} {figure}", flush=True)
    if not rows:
        print("nothing was measured", file=sys.stderr)
        return 1
    whole = list(given.models) == list(MODELS) and list(given.levels) == list(LEVELS)
    folder = HERE if whole else Path("build/bench/sparsity")
    folder.mkdir(parents=True, exist_ok=True)
    for model in dict.fromkeys(row["model"] for row in rows):
        draw(rows, model, folder / f"sparsity_{model}.png")
    about = environment("onnxsim")
    write(folder, "sparsity", render(rows, environment_line(about)), {"environment": about, "rows": rows})
    print(f"written to {folder / 'sparsity.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
