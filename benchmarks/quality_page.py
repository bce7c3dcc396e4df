"""The page of the quality benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from benchmarks.quality_facts import Change, Results, Row, points
from benchmarks.quality_runs import (
    ABOUT_SIZE,
    ABOUT_TIERS,
    DEFAULT,
    L1,
    ONNXSIM,
    OURS,
    SWEEPS,
    TIERS,
    TORCH_PRUNING,
)
from benchmarks.tables import environment_line, millions, seconds, share, table

NAMES = {
    OURS: "onnxprune, `--round-to 1`",
    DEFAULT: "onnxprune, default widths (multiples of 8, narrow groups of 4)",
    L1: "onnxprune, `--criterion l1 --compensate none --round-to 1`",
    ONNXSIM: "onnxsim: structured Wanda, `apply_pruning_finetune`",
    TORCH_PRUNING: "Torch-Pruning: `MagnitudePruner`, l1",
}
"""The tools in words."""


def render(data: Mapping[str, Any]) -> str:
    """The page, from what the `.json` holds."""
    found = Results(data["rows"])
    models = list(data["targets"])
    parts = [
        "# Accuracy against kept MACs",
        _introduction(data),
        "## Targets of the project",
        *_targets(found, data),
        "## Curves",
        _about_curves(),
    ]
    for model in models:
        parts += _model(found, model, data["no_module"].get(model, ""))
    parts += [*_sizes(found), *_tiers(found), *_cost(found, models, data["jobs"]), *_failures(found)]
    return "\n\n".join([*parts, environment_line(data["environment"])])


def _introduction(data: Mapping[str, Any]) -> str:
    seeds, samples = data["seeds"], data["samples"]
    repeated = (
        f"the mean of {seeds} seeds with the lowest and the highest in brackets, of one where there are none"
        if seeds > 1
        else ""
    )
    limited = f" At most {samples} calibration samples were used." if samples else ""
    return (
        "Trained models as their authors published them, and the small ones in `models/`, "
        "without any training afterwards. Every tool got the same "
        "files. Calibration data alone led to a result; test data, which was opened afterwards, only measured it. "
        "A change is top-1 on the test data in points against the original on the same data"
        f"{', ' + repeated if repeated else ', of one seed'}.{limited} MACs are counted by onnxprune's analysis of "
        "the resulting file, for all tools. `python -m benchmarks.quality --seeds 3` makes this page."
    )


def _targets(found: Results, data: Mapping[str, Any]) -> list[str]:
    header = ["model", "MACs kept", "allowed"]
    header += ["`--round-to 1`", "keeps", "met", "default widths", "keeps", "met", "l1, no repair"]
    rows, met = [], {OURS: 0, DEFAULT: 0}
    for model, targets in data["targets"].items():
        for point, allowed in targets:
            row = [model, share(point, 1), f"{allowed:+.1f}"]
            for tool in met:
                change = found.change(model, "curve", tool, point)
                good = change is not None and change.meets(allowed, point)
                met[tool] += good
                kept = f"{change.kept:.1%}".replace("%", " %") if change and change.seeds else "-"
                row += [_change(change), kept, "-" if change is None else "yes" if good else "**no**"]
            rows.append([*row, _change(found.change(model, "curve", L1, point))])
    worth = [_one_sample(found, model) for model in data["targets"]]
    return [
        f"Met: {met[OURS]} of {len(rows)} with `--round-to 1`, {met[DEFAULT]} of {len(rows)} with the default of "
        "multiples of 8 channels, of 4 in narrow groups (one seed). A target is met if the mean over the seeds is "
        "within it and no seed failed.",
        table(header, rows),
        f"What one test sample is worth, in points: {', '.join(dict.fromkeys(filter(None, worth)))}.",
    ]


def _one_sample(found: Results, model: str) -> str:
    before = found.baseline(model)
    return f"{100 / before['tested']:.2f} ({before['tested']:,} samples)" if before else ""


def _change(change: Change | None) -> str:
    if change is None:
        return "not run"
    if not change.seeds:
        return "failed"
    spread = f" ({change.low:+.2f} to {change.high:+.2f})" if change.seeds > 1 else ""
    lost = f", {len(change.failures)} failed" if change.failures else ""
    return f"{change.mean:+.2f}{spread}{lost}"


def _about_curves() -> str:
    return (
        "onnxprune is asked for a share of MACs to keep, the others for a share of channels to drop: what that "
        "keeps is counted afterwards. onnxsim's fine-tuning refits MatMul and Gemm layers only. Torch-Pruning "
        "works on a module rebuilt from the file and checked against it, and gets no fine-tuning. The bars of a "
        "plot span the seeds, its crosses are the targets."
    )


def _model(found: Results, model: str, no_module: str) -> list[str]:
    before = found.baseline(model)
    if before is None:
        return [f"### {model}", "The original could not be measured."]
    low, high = before["interval"] or (before["top1"],) * 2
    parts = [
        f"### {model}",
        f"The original: top-1 {before['top1']:.2%} (95 % interval {low:.2%} to {high:.2%}, {before['tested']:,} "
        f"samples), {millions(before['params'])} M parameters, {millions(before['macs'])} M MACs.",
        f"![top-1 against kept MACs](quality_{model}.png)",
        _by_macs(found, model),
        _by_strength(found, model, before),
    ]
    tuned = [row["finetuned"] for row in found.of(model, "curve", ONNXSIM) if "finetuned" in row]
    if tuned and not any(tuned):
        parts.append("onnxsim: `apply_pruning_finetune` changed no tensor of any of these results.")
    cut = found.of(model, "curve", TORCH_PRUNING)
    if no_module:
        parts.append(f"Torch-Pruning: not run, because {no_module}.")
    whole = next((row["whole"] for row in cut if row.get("whole")), "")
    if whole:
        parts.append(
            "Torch-Pruning cut the inner channels of the blocks only: asked for the residual stream, too, it ended "
            f"in `{whole}`."
        )
    return parts


def _by_macs(found: Results, model: str) -> str:
    shares = sorted(
        {p for tool in (OURS, DEFAULT, L1) for p in found.asked(model, "curve", tool)}, reverse=True
    )
    rows = []
    for tool in (OURS, DEFAULT, L1):
        changes = [found.change(model, "curve", tool, point) for point in shares]
        rows.append([NAMES[tool], *("" if change is None else _change(change) for change in changes)])
    return table(["change by MACs to keep", *(share(point, 1) for point in shares)], rows)


def _by_strength(found: Results, model: str, before: Row) -> str:
    header = ["tool", "channels to drop", "MACs kept", "parameters kept", "top-1", "change"]
    rows = []
    for tool in SWEEPS:
        for row in found.of(model, "curve", tool):
            head = [NAMES[tool], share(row["asked"], 1)]
            if row["failure"]:
                rows.append([*head, "failed", "", "", ""])
                continue
            sizes = [share(row[what], before[what]) for what in ("macs", "params")]
            rows.append([*head, *sizes, f"{row['top1']:.2%}", f"{points(row, before):+.2f}"])
    return table(header, rows)


def _sizes(found: Results) -> list[str]:
    model, point = ABOUT_SIZE
    sizes = dict.fromkeys(row["samples"] for row in found.of(model, "size"))
    if not sizes:
        return []
    rows = []
    for size in sizes:
        change = found.change(model, "size", OURS, point, size)
        times = [r["time"]["wall"] for r in found.of(model, "size") if r["samples"] == size and "time" in r]
        rows.append([size, _change(change), seconds(median(times)) if times else "-"])
    return [
        "## How many calibration samples",
        f"{model}, `--macs {point} --round-to 1 --samples N`.",
        table(["samples", "change", "seconds"], rows, left=0),
    ]


def _tiers(found: Results) -> list[str]:
    model, point = ABOUT_TIERS
    if not found.of(model, "tier"):
        return []
    rows = []
    for tier, options in TIERS.items():
        change = found.change(model, "tier", tier, point)
        said = list(dict.fromkeys(_said(row) for row in found.of(model, "tier", tier)))
        asked = "".join(f" `--{name.replace('_', '-')} {value}`" for name, value in options.items())
        data = {"real": "the calibration data", "none": "no data"}.get(tier, "generated samples")
        rows.append([tier, f"{data},{asked}", "; ".join(said).replace("|", "\\|"), _change(change)])
    return [
        "## What the tool learns from",
        f"{model}, `--macs {point}`. Nothing but the model leads to generated samples; they never see what it "
        "was trained on. The third column is what the tool says it made of each request.",
        table(["tier", "asked for", "what the report says", "change"], rows, left=3),
    ]


def _said(row: Row) -> str:
    if row["failure"]:
        return str(row["failure"])
    repaired = sum(count for kind, count in row["repairs"].items() if kind != "none")
    tier = row["calibration"]["tier"]
    words = [f"criterion {row['criterion']}", f"calibration: {tier}", f"{repaired} layers repaired"]
    return ", ".join(words + [f"“{line}”" for line in dict.fromkeys(row["warnings"])])


def _cost(found: Results, models: list[str], jobs: int) -> list[str]:
    header = ["model", "tool", "runs", "prune, s", "one pass, s", "ratio", "largest ratio", "ratio, CPU time"]
    rows = []
    for model in models:
        for tool in NAMES:
            done = [row for row in found.of(model, "curve", tool) if not row["failure"]]
            if done:
                rows.append([model, NAMES[tool].partition(":")[0], len(done), *_times(done), _memory(done)])
    busy = f"shared, and {jobs} runs went on at a time" if jobs > 1 else "shared"
    return [
        "## Time and memory",
        "*prune*: wall time of one job from reading the file and the calibration data to the result, without "
        "imports and measurements. *one pass*: running the original once over the same calibration data, in the "
        f"same process afterwards, reading included. Medians over the runs of the curves. The machine was {busy}: "
        "the ratio of the times on the processor is the steadier one. *peak MB*: the largest, and how much of it "
        "the imports were. Torch-Pruning and onnxprune's l1 look at no calibration data.",
        table([*header, "peak MB (imports)"], rows, left=2),
    ]


def _times(rows: list[Row]) -> list[str]:
    wall = seconds(median(row["time"]["wall"] for row in rows))
    passes = [row for row in rows if "pass" in row]
    if not passes:
        return [wall, "-", "-", "-", "-"]
    ratios = {what: [row["time"][what] / row["pass"][what] for row in passes] for what in ("wall", "cpu")}
    figures = [median(ratios["wall"]), max(ratios["wall"]), median(ratios["cpu"])]
    return [wall, seconds(median(row["pass"]["wall"] for row in passes)), *(f"{f:.1f}" for f in figures)]


def _memory(rows: list[Row]) -> str:
    largest = max(rows, key=lambda row: float(row["memory"]["peak"]))["memory"]
    return f"{largest['peak']:,.0f} ({largest['imports']:,.0f})"


def _failures(found: Results) -> list[str]:
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for row in found.rows:
        if row["failure"]:
            key = (row["model"], row["tool"] or row["experiment"], row["failure"])
            reasons.setdefault(key, []).append(f"{row['asked']:g}")
    if not reasons:
        return ["## What failed", "Nothing."]
    rows = [
        [model, tool, ", ".join(dict.fromkeys(asked)), reason.replace("|", "\\|")]
        for (model, tool, reason), asked in reasons.items()
    ]
    return ["## What failed", table(["model", "tool", "asked for", "reason"], rows, left=4)]
