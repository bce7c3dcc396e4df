"""Trained models as their authors published them: each one pruned, and what is blocked in it.

    python -m benchmarks.real

writes `real.md` and `real.json` beside this file. The models lie in `../shared/real`, beside the checkout;
without them nothing is done. Calibration files only lead to plans; test files are looked at once, at the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.isolated import ROOT, call, file_digest, peak_mb, source_digest
from benchmarks.tables import environment, environment_line, millions, seconds, share, table, write

HERE = Path(__file__).parent
WORK = Path("build/bench/real")
RATIO = 0.3
MACS = 0.5
LABELLED = ("cifar10_resnet20.onnx", "cifar10_resnet56_ts.onnx")
BARRIERS = 4
NARROW = {"wild_gtcrn_stream.onnx": 1}
"""Rounding of models most of whose groups have fewer units than widths are rounded to by default."""


def prune(model: str, output: str, round_to: int | None = None) -> dict[str, Any]:
    """`onnxprune prune MODEL --ratio 0.3`, on generated inputs."""
    import time

    from onnxprune import api

    started = time.perf_counter()
    done = api.prune(model, output, ratio=RATIO, round_to=round_to, force=True, provider="cpu")
    return {"seconds": time.perf_counter() - started, "memory": peak_mb(), **_figures(done.report)}


def prune_with_data(model: str, output: str, calibration: str, scope: str) -> dict[str, Any]:
    """`onnxprune prune MODEL --macs 0.5 --criterion l2 --compensate none --data FILE`; accuracy on that data."""
    from onnxprune import api

    done = api.prune(
        model,
        output,
        macs=MACS,
        criterion="l2",
        compensate="none",
        scope=scope,
        data=calibration,
        force=True,
        provider="cpu",
    )
    metric = done.report.metric
    if metric is None:
        raise RuntimeError(f"{calibration} has no labels")
    figures = _figures(done.report)
    return {**figures, "before": metric.before.value, "after": metric.after.value, "scope": scope}


def validate(model: str, original: str, test: str) -> dict[str, Any]:
    """`onnxprune validate MODEL --data TEST --against ORIGINAL`."""
    from onnxprune import api

    found = api.validate(model, test, against=original, metric="top1", provider="cpu")
    if found.score is None or found.reference is None:
        raise RuntimeError(f"{test} has no labels")
    return {"before": found.reference.value, "after": found.score.value, "samples": found.samples}


def _figures(report: Any) -> dict[str, Any]:
    return {
        "params": [report.before.params, report.after.params],
        "macs": [report.before.macs, report.after.macs],
        "achieved": report.target.achieved,
        "met": report.target.met,
        "groups": len(report.groups),
        "coverage": dict(report.coverage),
        "checked": report.soundness.checked,
        "max_abs_diff": report.soundness.max_abs_diff,
        "max_abs_output": report.soundness.max_abs_output,
        "inner": report.soundness.inner,
        "rejected": list(report.soundness.rejected_groups),
        "barriers": [
            {
                "reason": b.explanation,
                "where": b.where,
                "params": b.params,
                "macs": b.macs,
                "layers": len(b.layers),
            }
            for b in report.barriers[:BARRIERS]
        ],
        "warnings": list(report.warnings),
    }


def _call(
    function: str, arguments: dict[str, Any], digests: Mapping[str, str], fresh: bool
) -> dict[str, Any]:
    WORK.mkdir(parents=True, exist_ok=True)
    depends = {"source": source_digest(), "real": file_digest(HERE / "real.py"), **digests}
    missing = "output" in arguments and not Path(arguments["output"]).exists()
    done = call(f"benchmarks.real:{function}", arguments, depends=depends, fresh=fresh or missing)
    return done.value if done.ok else {"failure": done.failure}


def run_all(real: Path, fresh: bool) -> list[dict[str, Any]]:
    """Every model at the same ratio."""
    entries = []
    for model in sorted((real / "models").glob("*.onnx")):
        arguments: dict[str, Any] = {"model": str(model), "output": str(WORK / model.name)}
        if model.name in NARROW:
            arguments["round_to"] = NARROW[model.name]
        entry = {"model": model.name, **_call("prune", arguments, {"model": file_digest(model)}, fresh)}
        entries.append(entry)
        print(f"{model.name:50} {entry.get('failure') or entry['macs']}", flush=True)
    return entries


def run_labelled(real: Path, fresh: bool) -> list[dict[str, Any]]:
    """Half of the MACs, on calibration data; then the test data for the default scope alone."""
    calibration, test = real / "data/cifar10_calib.npz", real / "data/cifar10_test.npz"
    entries = []
    for name in LABELLED:
        model = real / "models" / name
        digests = {"model": file_digest(model)}
        outputs = {scope: WORK / f"{model.stem}_{scope}.onnx" for scope in ("global", "uniform")}
        scopes = {
            scope: _call(
                "prune_with_data",
                {"model": str(model), "output": str(output), "calibration": str(calibration), "scope": scope},
                digests,
                fresh,
            )
            for scope, output in outputs.items()
        }
        tested = _call(
            "validate",
            {"model": str(outputs["global"]), "original": str(model), "test": str(test)},
            digests | {"pruned": file_digest(outputs["global"])},
            fresh,
        )
        entries.append({"model": name, "scopes": scopes, "test": tested})
        print(f"{name:50} {tested}", flush=True)
    return entries


def render(entries: list[dict[str, Any]], labelled: list[dict[str, Any]], about: Mapping[str, Any]) -> str:
    """The page."""
    header = ["model", "sound", "units gone", "params, M", "MACs, M", "reachable params / MACs", "seconds"]
    rows = [_row(entry, len(header)) for entry in entries]
    parts = [
        "# Trained models as their authors published them",
        f"`onnxprune prune MODEL --ratio {RATIO}`, on generated inputs. *sound*: masked == removed in "
        "onnxruntime, largest difference over largest output, and how many results inside the model were compared "
        "besides (an output that noise leaves at 0 would prove nothing by itself). *reachable*: share of the model "
        "in layers that some group can make smaller. A share of the units that differs from what was asked for "
        "comes from rounding to 8 channels (GTCRN, with 3 to 16 in a group, is not rounded).",
        table(header, rows, left=2),
        "## What is blocked",
        "The costliest barriers: layers whose output channels stay, and why. Their input channels may be cut all "
        "the same, which is why a last layer counts as reachable.",
        _barriers(entries),
        "## Half of the MACs of two CIFAR-10 classifiers, without repair",
        f"`onnxprune prune MODEL --macs {MACS} --criterion l2 --data CALIBRATION`, then `onnxprune validate` on "
        "the test file; top-1. Nothing was chosen by the test data: the result of the default scope was measured "
        "on it. The uniform scope is shown on calibration data, as information.",
        _accuracy(labelled),
        environment_line(about),
    ]
    return "\n\n".join(parts)


def _row(entry: Mapping[str, Any], width: int) -> list[str]:
    if "failure" in entry:
        return [entry["model"], entry["failure"], *[""] * (width - 2)]
    sound = "not checked"
    if entry["rejected"]:
        sound = f"kept whole: {', '.join(entry['rejected'])}"
    elif entry["checked"]:
        top = entry["max_abs_output"]
        difference = f"{entry['max_abs_diff'] / top:.0e}" if top else "output 0"
        sound = f"yes ({difference}, {entry['inner']} inside)"
    params, macs = (
        f"{millions(before)} -> {millions(after)} ({share(after, before)})"
        for before, after in (entry["params"], entry["macs"])
    )
    reach = " / ".join(share(entry["coverage"][what], 1) for what in ("params", "macs"))
    return [
        entry["model"],
        sound,
        share(entry["achieved"], 1),
        params,
        macs,
        reach,
        seconds(entry["seconds"]),
    ]


def _barriers(entries: list[dict[str, Any]]) -> str:
    rows = []
    for entry in entries:
        for barrier in entry.get("barriers", ()):
            rows.append(
                [
                    entry["model"],
                    f"{barrier['where']}: {barrier['reason']}".replace("|", "\\|"),
                    barrier["layers"],
                    share(barrier["params"], entry["params"][0]),
                    share(barrier["macs"], entry["macs"][0]),
                ]
            )
    return table(["model", "barrier", "layers", "params", "MACs"], rows, left=2)


def _accuracy(labelled: list[dict[str, Any]]) -> str:
    header = ["model", "scope", "params, M", "MACs, M", "sound", "calibration", "test"]
    rows = []
    for entry in labelled:
        for scope, found in entry["scopes"].items():
            if "failure" in found:
                rows.append([entry["model"], scope, "", "", found["failure"], "", ""])
                continue
            tested = entry["test"] if scope == "global" else {}
            params, macs = (
                f"{millions(before)} -> {millions(after)}"
                for before, after in (found["params"], found["macs"])
            )
            sound = "no" if found["rejected"] else f"{found['max_abs_diff'] / found['max_abs_output']:.0e}"
            rows.append(
                [
                    entry["model"],
                    scope,
                    params,
                    macs,
                    sound,
                    _top1(found),
                    tested.get("failure") or _top1(tested),
                ]
            )
    return table(header, rows, left=2)


def _top1(found: Mapping[str, Any]) -> str:
    return f"{found['before']:.2%} -> {found['after']:.2%}" if "after" in found else ""


def main(arguments: list[str] | None = None) -> int:
    """Run everything that is not kept from before, and write the page."""
    parser = argparse.ArgumentParser(prog="benchmarks.real", description=__doc__.partition("\n")[0])
    parser.add_argument("--real", type=Path, default=ROOT.parent / "shared" / "real", help="models and data")
    parser.add_argument("--folder", type=Path, default=HERE, help="where the table goes")
    parser.add_argument("--fresh", action="store_true", help="use no results of an earlier run")
    options = parser.parse_args(arguments)
    if not (options.real / "models").is_dir():
        print("no trained models beside the checkout: nothing to do")
        return 0
    entries = run_all(options.real, options.fresh)
    labelled = run_labelled(options.real, options.fresh)
    about = environment()
    data = {
        "schema": "onnxprune-bench-real/1",
        "ratio": RATIO,
        "macs": MACS,
        "environment": about,
        "models": entries,
        "labelled": labelled,
    }
    write(options.folder, "real", render(entries, labelled, about), data)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
