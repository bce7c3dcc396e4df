"""Answers to the questions that the criteria benchmark was made for, in words and tables, from its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import mean

from benchmarks.criteria_facts import Results, Row, doubt, quality
from benchmarks.criteria_runs import AUTO, BY_GRADIENTS, GRADIENT, MAGNITUDE, OUTPUTS
from benchmarks.tables import share, table

SPEECH = "kwt1_speechcommands"
FREE = "retrain_free"
CLEAR = 0.01
FEWEST = 4
"""Of criteria with results, for a choice between them."""


def in_short(found: Results) -> list[str]:
    """The answers in a sentence each."""
    lines = []
    _, verdicts = _comparisons(found)
    if total := sum(verdicts.values()):
        lines.append(
            f"On the keyword transformer `{FREE}` beats `l1` and `l2` in {total - verdicts['no']} of {total} "
            f"comparisons, {verdicts['yes']} times by right answers, {verdicts['by SQNR']} times by SQNR at "
            "as many right answers."
        )
    wins = _wins(found)
    if wins:
        first = ", ".join(f"`{name}` {count}" for name, count in wins.most_common(3))
        lines.append(f"The best criterion with gradients, of {sum(wins.values())} cases: {first} times.")
    cases, compared, ahead = _against_auto(found)
    if compared:
        gained = [f"{row[-2]} by {title}" for title, row in _choices(found).items()]
        lines.append(
            f"`auto` is surpassed by {len(ahead)} of {compared} results of other criteria in {cases} cases. "
            f"{_weight(ahead)} Had it tried all criteria and chosen on held-out samples, that would have "
            f"changed top-1 on average by these points: {', '.join(gained)}."
        )
    return lines


def speech(found: Results) -> list[str]:
    """Whether `retrain_free` beats magnitudes on the transformer, budget by budget."""
    rows, verdicts = _comparisons(found)
    if not rows:
        return []
    header = ["MACs kept", f"`{FREE}`"]
    for name in MAGNITUDE:
        header += [f"`{name}`", f"beats `{name}`?"]
    return [
        f"## Does `{FREE}` beat magnitude on the keyword transformer?",
        f"{SPEECH}, change of top-1 in points, and SQNR. *yes* and **no** mean more or fewer right answers "
        "on the test data; where the two have as many, SQNR decides, and it is said so.",
        table(header, rows),
        f"Of {sum(verdicts.values())} comparisons {verdicts['yes']} are won by right answers, "
        f"{verdicts['by SQNR']} by SQNR at the same number of right answers, {verdicts['no']} are lost.",
    ]


def _comparisons(found: Results) -> tuple[list[list[str]], Counter[str]]:
    rows, verdicts = [], Counter[str]()
    for point in found.points(SPEECH):
        ours = found.row(SPEECH, FREE, point)
        others = found.present(SPEECH, MAGNITUDE, point)
        if ours is None or len(others) < len(MAGNITUDE):
            continue
        cells = [share(point, 1), _both(found, ours)]
        for other in others.values():
            verdict = _verdict(ours, other)
            verdicts["no" if "no" in verdict else "by SQNR" if "SQNR" in verdict else "yes"] += 1
            cells += [_both(found, other), verdict]
        rows.append(cells)
    return rows, verdicts


def _verdict(ours: Row, other: Row) -> str:
    if ours["top1"] != other["top1"]:
        won = ours["top1"] > other["top1"]
        return f"{'yes' if won else '**no**'} (p {_p(doubt(ours, other))})"
    return "yes, by SQNR" if ours["db"] > other["db"] else "**no**, by SQNR"


def _p(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else f"{value:.0e}"


def _both(found: Results, row: Row) -> str:
    return f"{found.change(row):+.2f}, {row['db']:.1f} dB"


def best_ones(found: Results) -> list[str]:
    """Which criterion with gradients is best where."""
    columns = sorted({p for name in found.models for p in found.points(name)}, reverse=True)
    rows, wins = [], _wins(found)
    for model in found.models:
        cells = []
        for point in columns:
            best = found.best(model, point)
            cells.append("" if best is None else f"{best} ({_margin(found, model, point, best)})")
        if any(cells):
            rows.append([model, *cells])
    counted = ", ".join(f"`{name}` {count}" for name, count in wins.most_common())
    return [
        "## Which criterion with gradients is best where?",
        "By top-1 on the test data, then by SQNR, with the default loss. In brackets how far it is from "
        "`auto`: points of top-1 and dB. Cells are empty where fewer than three of them were run.",
        table(["model", *(share(point, 1) for point in columns)], rows),
        f"Best most often, of {sum(wins.values())} cases: {counted}.",
        "Ahead of both `l1` and `l2` with the same repair, likewise by top-1, then by SQNR:",
        _ahead_of_magnitudes(found),
        *_by_outputs(found),
    ]


def _wins(found: Results) -> Counter[str]:
    bests = [found.best(model, point) for model in found.models for point in found.points(model)]
    return Counter(best for best in bests if best is not None)


def _ahead_of_magnitudes(found: Results) -> str:
    rows = []
    for name in GRADIENT:
        cases, lost = 0, dict.fromkeys(found.models, "")
        for model in found.models:
            points = []
            for point in found.points(model):
                row, others = found.row(model, name, point), found.present(model, MAGNITUDE, point)
                if row is None or not others:
                    continue
                cases += 1
                if any(quality(other) >= quality(row) for other in others.values()):
                    points.append(share(point, 1).removesuffix(" %"))
            lost[model] = f"{model} at {', '.join(points)} %" if points else ""
        behind = sum(text.count(",") + 1 for text in lost.values() if text)
        rows.append(
            [f"`{name}`", f"{cases - behind} of {cases}", "; ".join(filter(None, lost.values())) or "-"]
        )
    return table(["criterion", "ahead", "behind one of them"], rows, left=3)


def _by_outputs(found: Results) -> list[str]:
    """What it changes when the loss is about outputs instead of labels."""
    rows = []
    for name, options in OUTPUTS.items():
        for model in found.models:
            pairs = [
                (found.row(model, options["criterion"], row["asked"]), row)
                for row in found.curve(model, name)
            ]
            both = [(plain, other) for plain, other in pairs if plain is not None]
            if both:
                db = [other["db"] - plain["db"] for plain, other in both]
                top1 = [100 * (other["top1"] - plain["top1"]) for plain, other in both]
                points = ", ".join(share(other["asked"], 1).removesuffix(" %") for _, other in both)
                means = f"{mean(db):+.1f}", f"{min(db):+.1f} to {max(db):+.1f}", f"{mean(top1):+.2f}"
                cells = [
                    model,
                    f"`{options['criterion']}`",
                    f"{points} %",
                    f"{sum(d > 0 for d in db)} of {len(db)}",
                ]
                rows.append([*cells, *means])
    if not rows:
        return []
    header = [
        "model",
        "criterion",
        "MACs kept",
        "higher SQNR",
        "dB, mean",
        "dB, range",
        "points of top-1, mean",
    ]
    return [
        "With `--loss outputs` the gradients are those of the outputs instead of the labels' loss. What "
        "that changes against the default:",
        table(header, rows, left=3),
    ]


def _margin(found: Results, model: str, point: float, name: str) -> str:
    row, auto = found.row(model, name, point), found.row(model, AUTO, point)
    if row is None or auto is None:
        return "-"
    top1 = f"{100 * (row['top1'] - auto['top1']):+.2f}, " if "top1" in row else ""
    return f"{top1}{row['db'] - auto['db']:+.1f} dB"


def auto_beaten(found: Results) -> list[str]:
    """Where a criterion beats `auto`, and whether held-out samples would have told."""
    cases, compared, ahead = _against_auto(found)
    rows = [_case(*case) for case in ahead]
    return [
        "## Where does any beat `auto`?",
        _summary(cases, compared, ahead),
        *([table(_HEADER, rows, left=2)] if rows else []),
        *_choosing(found),
    ]


_Case = tuple[str, float, str, Row, Row, float | None]


def _against_auto(found: Results) -> tuple[int, int, list[_Case]]:
    """Cases of a model and a budget, results of other criteria in them, and those that are ahead."""
    compared, cases, ahead = 0, 0, []
    for model in found.models:
        for point in found.points(model):
            auto = found.row(model, AUTO, point)
            others = found.present(model, (*MAGNITUDE, *BY_GRADIENTS), point)
            if auto is None or not others:
                continue
            cases += 1
            compared += len(others)
            for name, row in others.items():
                if _ahead(row, auto):
                    p = doubt(row, auto) if "right" in row else None
                    ahead.append((model, point, name, row, auto, p))
    return cases, compared, ahead


_HEADER = ["model", "criterion", "MACs kept", "top-1", "p", "SQNR"]
_HEADER += ["held-out SQNR", "held-out KL", "held-out top-1"]


def _ahead(row: Row, auto: Row) -> bool:
    """More right answers, or with as many a fidelity that differs by more than noise; without labels fidelity."""
    if "top1" in row and row["top1"] != auto["top1"]:
        return bool(row["top1"] > auto["top1"])
    return bool(row["db"] > auto["db"] + 0.1)


def _case(model: str, point: float, name: str, row: Row, auto: Row, p: float | None) -> Sequence[str]:
    def change(row: Row, auto: Row, key: str, form: str, scale: float = 1.0) -> str:
        if row.get(key) is None or auto.get(key) is None:
            return ""
        return format(scale * (row[key] - auto[key]), form)

    held, other = row["held"], auto["held"]
    return [
        model,
        f"`{name}`",
        share(point, 1),
        change(row, auto, "top1", "+.2f", 100),
        "" if p is None else _p(p),
        change(row, auto, "db", "+.1f"),
        change(held, other, "db", "+.1f"),
        change(held, other, "kl", "+.2g"),
        change(held, other, "top1", "+.2f", 100),
    ]


def _summary(cases: int, compared: int, ahead: Sequence[_Case]) -> str:
    if not ahead:
        return f"Nowhere: in none of {cases} cases of a model and a budget is a criterion ahead of `auto`."
    return (
        f"{compared} results of other criteria, in {cases} cases of a model and a budget, were held against "
        f"`auto`. On the test data {len(ahead)} are ahead of it, by whatever little: more right answers, or "
        f"as many at a higher SQNR. {_weight(ahead)} All figures are differences to `auto`: points of top-1, "
        "dB, nats. The last three columns say what held-out calibration samples would have told: more dB, "
        "less KL, more right answers."
    )


def _weight(ahead: Sequence[_Case]) -> str:
    clear = sum(p is not None and p < CLEAR for *_, p in ahead)
    unlabelled = sum(p is None for *_, p in ahead)
    return (
        f"Of these, {clear} are beyond chance (p below {CLEAR:g}); {unlabelled} are about models without "
        "labels, where SQNR alone counts."
    )


YARDSTICKS: dict[str, Callable[[Row], tuple[float, ...]]] = {
    "highest SQNR": lambda row: (row["held"]["db"],),
    "least KL": lambda row: (-row["held"]["kl"],),
    "most right answers, then least KL": lambda row: (row["held"]["top1"], -row["held"]["kl"]),
}
"""By what a result may be chosen on held-out samples."""


def _choosing(found: Results) -> list[str]:
    """What `auto` would have become if it tried every criterion, and took the best on held-out samples."""
    choices = _choices(found)
    if not choices:
        return []
    header = ["chosen by", "cases", "not `auto`", "better", "worse", "points of top-1, mean", "taken instead"]
    return [
        "Had `auto` pruned and repaired with every criterion here, and taken the best on held-out samples "
        "(labelled models only; better, worse: more or fewer right answers on the test data):",
        table(header, [[title, *cells] for title, cells in choices.items()]),
    ]


def _choices(found: Results) -> dict[str, list[object]]:
    """Cells of the table, by yardstick."""
    rows: dict[str, list[object]] = {}
    for title, key in YARDSTICKS.items():
        changes, swaps, names = [], [], Counter[str]()
        for model in found.models:
            for point in found.points(model):
                tried = found.present(model, (AUTO, *MAGNITUDE, *GRADIENT), point)
                if not found.labelled(model) or AUTO not in tried or len(tried) < FEWEST:
                    continue
                chosen = max(tried, key=lambda name: key(tried[name]))
                change = 100 * (tried[chosen]["top1"] - tried[AUTO]["top1"])
                changes.append(change)
                if chosen != AUTO:
                    swaps.append(change)
                    names[chosen] += 1
        if changes:
            better, worse = sum(c > 0 for c in swaps), sum(c < 0 for c in swaps)
            taken = ", ".join(f"{name} {count}" for name, count in names.most_common()) or "-"
            rows[title] = [len(changes), len(swaps), better, worse, f"{mean(changes):+.2f}", taken]
    return rows
