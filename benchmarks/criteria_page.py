"""The page of the criteria benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from benchmarks.criteria_answers import auto_beaten, best_ones, in_short, speech
from benchmarks.criteria_facts import Results, Row
from benchmarks.criteria_plot import RANDOM
from benchmarks.criteria_runs import AUTO, BY_GRADIENTS, CRITERIA, SUBJECTS_BY_NAME
from benchmarks.tables import environment_line, millions, share, table


def render(data: Mapping[str, Any]) -> str:
    """The page, from what the `.json` holds."""
    found = Results(data["rows"])
    models = found.models
    random = [name for name in models if SUBJECTS_BY_NAME[name].architecture]
    parts = [
        "# Gradient criteria: accuracy and fidelity against kept MACs",
        _introduction(found),
        "## In short",
        "\n".join(f"- {line}" for line in in_short(found)),
        *speech(found),
        *best_ones(found),
        *auto_beaten(found),
        *_allocation(),
        *_cost(found, models),
        "## Curves",
        _about_curves(),
    ]
    for model in models:
        if model not in random:
            parts += _model(found, model)
    if random:
        parts += _random(found, random)
    parts += [*_missing(found), *_failures(found)]
    return "\n\n".join([*parts, environment_line(data["environment"])])


def _introduction(found: Results) -> str:
    tested = [
        f"{100 / found.baseline(name)['tested']:.2f} on {name}"
        for name in found.models
        if found.labelled(name) and "digits" not in name
    ]
    return (
        "Every criterion that reads gradients, beside `auto`, the default with data, and magnitudes (`l1`, "
        "`l2`). Each run is `onnxprune prune --data CALIBRATION --criterion NAME --macs SHARE --round-to 1` "
        "and else as by default: global ranking, repair, `--loss auto`, which is the labels' cross-entropy "
        "where the data has labels; names with `--loss outputs` differ in that. Every fifth calibration "
        "sample is held back, as always without `--test`; what is called *held-out* below is measured on "
        "these after the repair. Test data is opened when the pruned file has been written. One seed. A "
        "change is top-1 in points against the original; SQNR (dB) and KL (nats) compare the outputs with "
        "the original's on the same data and need no labels. What one test sample is worth, in points: "
        f"{', '.join(tested)}. p is the probability of a difference in top-1 at least as large by chance "
        "(exact sign test over the samples on which two models are not both right or both wrong): many rows "
        "are compared here, so read nothing into a p above 0.01. `python -m benchmarks.criteria` makes this "
        "page."
    )


def _about_curves() -> str:
    return (
        "The faint dotted lines are those of [quality.md](quality.md): the other tools, `l1` without "
        "repair, and `auto` when it gets all calibration samples and three seeds. The best gradient "
        "criterion of each column is bold. Where two models give the same top-1, the fidelity says which "
        "one is closer to the original."
    )


def _name(criterion: str) -> str:
    loss = CRITERIA[criterion].get("loss")
    return f"`{CRITERIA[criterion]['criterion']}`, `--loss {loss}`" if loss else f"`{criterion}`"


def _model(found: Results, model: str) -> list[str]:
    before = found.baseline(model)
    return [
        f"### {model}",
        f"The original: top-1 {before['top1']:.2%} ({before['tested']:,} test samples), "
        f"{millions(before['params'])} M parameters, {millions(before['macs'])} M MACs.",
        f"![top-1 and SQNR against kept MACs](criteria_{model}.png)",
        _grid(found, model, "change of top-1", "top1"),
        _grid(found, model, "SQNR, dB", "db"),
        _grid(found, model, "KL, nats", "kl"),
    ]


def _grid(found: Results, model: str, title: str, key: str) -> str:
    points = found.points(model)
    best = {point: _best(found, model, point, key) for point in points}
    rows = []
    for criterion in CRITERIA:
        if not any(found.row(model, criterion, point) for point in points):
            continue
        cells = []
        for point in points:
            row = found.row(model, criterion, point)
            text = "" if row is None else _value(found, row, key)
            cells.append(f"**{text}**" if text and criterion in best[point] else text)
        rows.append([_name(criterion), *cells])
    return table([f"{title}, by MACs to keep", *(share(point, 1) for point in points)], rows)


def _value(found: Results, row: Row, key: str) -> str:
    if key == "top1":
        return f"{found.change(row):+.2f}"
    return f"{row[key]:.1f}" if key == "db" else f"{row[key]:.2g}"


def _best(found: Results, model: str, point: float, key: str) -> set[str]:
    """Gradient criteria that no other surpasses, as the page shows the figures."""
    rows = found.present(model, BY_GRADIENTS, point)
    if not rows:
        return set()
    sign = -1 if key == "kl" else 1
    top = max(sign * row[key] for row in rows.values())
    return {name for name, row in rows.items() if sign * row[key] == top}


def _random(found: Results, models: list[str]) -> list[str]:
    header = [
        "SQNR, dB",
        *(f"{name.removeprefix('random_')}, {share(p, 1)}" for name in models for p in found.points(name)),
    ]
    rows = []
    for criterion in CRITERIA:
        cells = []
        for model in models:
            for point in found.points(model):
                row = found.row(model, criterion, point)
                text = "" if row is None else f"{row['db']:.1f}"
                cells.append(
                    f"**{text}**" if text and criterion in _best(found, model, point, "db") else text
                )
        if any(cells):
            rows.append([_name(criterion), *cells])
    return [
        "### Transformers with random weights",
        "Small configurations of `families/` (three layers of width 64, from the `torch.export`-based "
        "exporter), 256 generated samples of token ids drawn uniformly, or of noise as pixels, to "
        "calibrate on and other 256 to test on. MACs are counted at their 16 tokens (in the `.json` at "
        "64). There are no labels: `--loss auto` draws them from the predictions of the classifiers (bert, "
        "vit) and takes random signs for the others. Random weights have little that is redundant, and "
        "what holds for them need not hold for trained ones.",
        f"![SQNR against kept MACs]({RANDOM})",
        table(header, rows),
    ]


def _allocation() -> list[str]:
    return [
        "## Fisher information as what a cut costs",
        "Two things follow from a criterion: the order in which a group's units go, and how many units "
        "each group loses. `retrain_free` takes both from Fisher information. No option takes the numbers "
        "from Fisher information and the order from `obs`, so there is no curve of that here. An earlier "
        "version did it, and on held-out calibration samples it changed the outputs more than the numbers "
        "from measured losses do at all 8 points where it was tried, on cifar10_resnet20 from 85 % to 20 % "
        "of the MACs and on digits_vit from 70 % to 30 % ([criteria.md](../docs/criteria.md#gradients)).",
    ]


def _cost(found: Results, models: list[str]) -> list[str]:
    criteria = list(CRITERIA)
    rows = []
    for model in models:
        if SUBJECTS_BY_NAME[model].architecture:
            continue
        passed = found.baseline(model)["pass"]["cpu"]
        cells = []
        for criterion in criteria:
            curve = found.curve(model, criterion)
            cpu = median(row["time"]["cpu"] for row in curve) if curve else None
            cells.append("" if cpu is None else f"{cpu:.1f} ({cpu / passed:.0f})")
        rows.append([model, f"{passed:.2f}", *cells])
    shares = [
        f"{ratio:.0%} ({name})".replace("%", " %") for name, ratio in _against_auto(found, models).items()
    ]
    return [
        "## What they cost",
        "Seconds on the processor of one job, from reading the data to the result, the measurements on "
        "held-out samples included, and in brackets how many passes of the original over all calibration "
        "samples that is; medians over the budgets. The repair is the same for all, and its share is what "
        f"`l1` and `l2` cost. As shares of what `auto` takes, medians over models: {', '.join(shares)}.",
        table(["model", "one pass", *(_name(name) for name in criteria)], rows),
    ]


def _against_auto(found: Results, models: list[str]) -> dict[str, float]:
    ratios: dict[str, float] = {}
    for criterion in CRITERIA:
        if criterion == AUTO:
            continue
        values = []
        for model in models:
            pairs = [
                (row, found.row(model, AUTO, row["asked"]))
                for row in found.curve(model, criterion)
                if not SUBJECTS_BY_NAME[model].architecture
            ]
            each = [row["time"]["cpu"] / auto["time"]["cpu"] for row, auto in pairs if auto is not None]
            if each:
                values.append(median(each))
        if values:
            ratios[_name(criterion)] = median(values)
    return ratios


def _missing(found: Results) -> list[str]:
    gaps = found.missing()
    if not gaps:
        return []
    lines = [f"- {model}: {'; '.join(listed)}" for model, listed in gaps.items()]
    return ["## What was not run", "For want of time:", "\n".join(lines)]


def _failures(found: Results) -> list[str]:
    failed = [row for row in found.rows if row["failure"]]
    if not failed:
        return ["## What failed", "Nothing."]
    rows = [
        [row["model"], row["criterion_asked"], f"{row['asked']:g}", row["failure"].replace("|", "\\|")]
        for row in failed
    ]
    return ["## What failed", table(["model", "criterion", "asked for", "reason"], rows, left=4)]
