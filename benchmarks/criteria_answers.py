"""Answers to the questions that the criteria benchmark was made for, in words and tables, from its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from benchmarks.criteria_facts import Results, Row, doubt, held, quality
from benchmarks.criteria_runs import AUTO, BY_GRADIENTS, GRADIENT, MAGNITUDE
from benchmarks.tables import share, table

SPEECH = "kwt1_speechcommands"
FREE = "retrain_free"
CLEAR = 0.01


def speech(found: Results) -> list[str]:
    """Whether `retrain_free` beats magnitudes on the transformer, budget by budget."""
    rows, verdicts = [], Counter[str]()
    for point in found.points(SPEECH):
        ours = found.row(SPEECH, FREE, point)
        others = found.present(SPEECH, MAGNITUDE, point)
        if ours is None or len(others) < len(MAGNITUDE):
            continue
        cells = [share(point, 1), _both(found, ours)]
        for other in others.values():
            verdict = _verdict(ours, other)
            verdicts[verdict] += 1
            cells += [_both(found, other), verdict]
        rows.append(cells)
    if not rows:
        return []
    header = ["MACs kept", f"`{FREE}`"]
    for name in MAGNITUDE:
        header += [f"`{name}`", f"beats `{name}`?"]
    said = ", ".join(f"{verdict.replace('*', '')} {count} times" for verdict, count in verdicts.most_common())
    return [
        f"## Does `{FREE}` beat magnitude on the keyword transformer?",
        f"{SPEECH}, change of top-1 in points, and SQNR. *yes* and **no** mean more or fewer right answers "
        f"on the test data; where these are equal many, SQNR decides, and it is said so. In all: {said}.",
        table(header, rows),
    ]


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
    rows, wins = [], Counter[str]()
    plain, plain_of = Counter[str](), 0
    for model in found.models:
        cells = []
        for point in columns:
            best = found.best(model, point)
            cells.append("" if best is None else f"{best} ({_margin(found, model, point, best)})")
            if best is not None:
                wins[best] += 1
                if (simple := found.best(model, point, GRADIENT)) is not None:
                    plain[simple] += 1
                    plain_of += 1
        if any(cells):
            rows.append([model, *cells])
    counted = ", ".join(f"{name} {count}" for name, count in wins.most_common())
    by_labels = ", ".join(f"`{name}` {count}" for name, count in plain.most_common())
    return [
        "## Which criterion with gradients is best where?",
        "By top-1 on the test data, then by SQNR; *outputs* stands for `--loss outputs`. In brackets how "
        "far it is from `auto`: points of top-1 and dB.",
        table(["model", *(share(point, 1) for point in columns)], rows),
        f"Best most often: {counted}. Of those with the default loss alone, in {plain_of} cases: "
        f"{by_labels}.",
    ]


def _margin(found: Results, model: str, point: float, name: str) -> str:
    row, auto = found.row(model, name, point), found.row(model, AUTO, point)
    if row is None or auto is None:
        return "-"
    top1 = f"{100 * (row['top1'] - auto['top1']):+.2f}, " if "top1" in row else ""
    return f"{top1}{row['db'] - auto['db']:+.1f} dB"


def auto_beaten(found: Results) -> list[str]:
    """Where a criterion beats `auto`, and whether held-out samples would have told."""
    rows: list[Sequence[str]] = []
    cases, clear, told_clear, gains, losses = 0, 0, 0, [], []
    for model in found.models:
        for point in found.points(model):
            auto = found.row(model, AUTO, point)
            if auto is None:
                continue
            cases += 1
            for name, row in found.present(model, (*MAGNITUDE, *BY_GRADIENTS), point).items():
                if _ahead(row, auto):
                    told = held(row) > held(auto)
                    p = doubt(row, auto) if "right" in row else None
                    if p is None or p < CLEAR:
                        clear += 1
                        told_clear += told
                    rows.append(_case(model, point, name, row, auto, p, told))
            chosen = found.chosen(model, point)
            if chosen not in (None, AUTO):
                other = found.row(model, str(chosen), point)
                if other is not None:
                    pair = (
                        other["db"] - auto["db"],
                        100 * (other["top1"] - auto["top1"]) if "top1" in other else None,
                    )
                    (gains if quality(other) > quality(auto) else losses).append(
                        (model, point, chosen, *pair)
                    )
    return [
        "## Where does any beat `auto`?",
        _summary(cases, len(rows), clear, told_clear),
        *([table(_HEADER, rows, left=2)] if rows else []),
        _choosing(cases, gains, losses),
    ]


_HEADER = ["model", "criterion", "MACs kept", "top-1, points", "p", "SQNR, dB", "held-out SQNR, dB", "told?"]


def _ahead(row: Row, auto: Row) -> bool:
    """More right answers, or with as many a fidelity that differs by more than noise; without labels fidelity."""
    if "top1" in row and row["top1"] != auto["top1"]:
        return bool(row["top1"] > auto["top1"])
    return bool(row["db"] > auto["db"] + 0.1)


def _case(
    model: str, point: float, name: str, row: Row, auto: Row, p: float | None, told: bool
) -> Sequence[str]:
    top1 = f"{100 * (row['top1'] - auto['top1']):+.2f}" if "top1" in row else ""
    return [
        model,
        name,
        share(point, 1),
        top1,
        "" if p is None else _p(p),
        f"{row['db'] - auto['db']:+.1f}",
        f"{held(row) - held(auto):+.1f}",
        "yes" if told else "no",
    ]


def _summary(cases: int, ahead: int, clear: int, told: int) -> str:
    if not ahead:
        return f"Nowhere: in none of {cases} cases of a model and a budget is a criterion ahead of `auto`."
    return (
        f"In {cases} cases of a model and a budget, criteria are ahead of `auto` on the test data {ahead} "
        f"times, by whatever little; {clear} of these are clear (p below {CLEAR:g}, or without labels at "
        f"all), and held-out calibration samples would have told {told} of them. *told*: the repaired model "
        "changed the outputs on held-out samples less than that of `auto` did. All figures are differences "
        "to `auto`."
    )


_Choice = tuple[str, float, str, float, float | None]


def _choosing(cases: int, gains: Sequence[_Choice], losses: Sequence[_Choice]) -> str:
    changed = len(gains) + len(losses)
    if not changed:
        return (
            "Had `auto` pruned and repaired with every criterion here and taken what changes the outputs on "
            f"held-out samples least, it would have taken its own choice in all {cases} cases."
        )

    def listed(choices: Sequence[_Choice]) -> str:
        return "; ".join(
            f"{model} at {share(point, 1)} with {name} "
            f"({'' if top1 is None else f'{top1:+.2f} points, '}{db:+.1f} dB)"
            for model, point, name, db, top1 in choices
        )

    return (
        "Had `auto` pruned and repaired with every criterion here and taken what changes the outputs on "
        f"held-out samples least, it would have chosen otherwise in {changed} of {cases} cases. Better on "
        f"the test data: {listed(gains) or 'none'}. Worse: {listed(losses) or 'none'}."
    )
