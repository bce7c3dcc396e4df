"""The target `--latency`: what was predicted, what is measured, and what `--macs` gives for the same share.

    python -m benchmarks.latency

writes `latency.md` and `latency.json` beside this file. The models lie in `../shared/real`, beside the checkout;
without them nothing is done. Plans and repairs see calibration files only; test files are looked at once, when the
pruned model is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.isolated import ROOT, call, file_digest, source_digest
from benchmarks.tables import environment, environment_line, table, write

HERE = Path(__file__).parent
WORK = Path("build/bench/latency")
REPEATS = 3
LIMIT = 1500.0
EQUAL = 0.05
"""Rows whose measured shares differ by no more are compared as equally fast."""
RESNETS = {"calibration": "cifar10_calib.npz", "test": "cifar10_test.npz", "samples": 512, "preprocess": None}
SPEECH = {
    "calibration": "speechcommands12_calib.npz",
    "test": "speechcommands12_test.npz",
    "samples": 512,
    "preprocess": None,
}
IMAGES = {"calibration": "imagenet_calib", "test": "imagenet_test", "samples": 256, "preprocess": "x/128-1"}
CASES: tuple[tuple[str, Mapping[str, Any], str, tuple[float, ...]], ...] = (
    ("kwt1_speechcommands", SPEECH, "retrain_free", (0.8, 0.6, 0.5)),
    ("cifar10_resnet20", RESNETS, "auto", (0.8, 0.6, 0.5)),
    ("imagenet_mobilenetv2", IMAGES, "auto", (0.6,)),
    ("kwt1_speechcommands", SPEECH, "auto", (0.8, 0.6, 0.5)),
    ("cifar10_resnet56", RESNETS, "auto", (0.8, 0.6, 0.5)),
)
"""Model, data, criterion, targets."""


def prune(
    model: str, output: str, data: Mapping[str, Any], kind: str, value: float, criterion: str
) -> dict[str, Any]:
    """`onnxprune prune MODEL --latency F --threads 1` or `--macs F`; a target out of reach: as far as it goes."""
    import time

    from onnxprune import api
    from onnxprune.calibrate.data import read_dataset
    from onnxprune.calibrate.dataset import input_specs
    from onnxprune.errors import TargetError

    specs = input_specs(api.load(model).ir)
    samples = read_dataset(data["calibration"], specs, samples=data["samples"], preprocess=data["preprocess"])
    # One sample to measure on: all are calibrated on, and none is held back.
    given = {"data": samples, "test": samples.take([0])}
    options: dict[str, Any] = {kind: value, "criterion": criterion, "provider": "cpu", "force": True, **given}
    if kind == "latency":
        options["threads"] = 1
    reachable, started = "", time.perf_counter()
    try:
        report = api.prune(model, output, **options).report
    except TargetError as error:
        reachable = error.what
        report = api.prune(model, output, best_effort=True, **options).report
    found: dict[str, Any] = {
        "seconds": time.perf_counter() - started,
        "stages": dict(report.seconds),
        "criterion": report.criterion,
        "macs": report.after.macs / report.before.macs,
        "params": report.after.params / report.before.params,
        "out_of_reach": reachable,
        "sound": report.soundness.checked and not report.soundness.rejected_groups,
    }
    if report.latency is not None:
        found |= {
            "predicted": report.latency.predicted,
            "first": list(report.latency.trials[0]),
            "cuts": len(report.latency.trials),
            "measured": report.latency.measured,
            "noise": report.latency.noise,
        }
    return found


def accuracy(model: str, original: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Top-1 of both on the test data, and the distance of their outputs."""
    from onnxprune import api

    found = api.validate(
        model, data["test"], against=original, metric="top1", provider="cpu", preprocess=data["preprocess"]
    )
    if found.score is None or found.reference is None or found.fidelity is None:
        raise RuntimeError("the test data has no labels")
    return {
        "before": found.reference.value,
        "after": found.score.value,
        "samples": found.samples,
        "sqnr": found.fidelity.outputs[0].sqnr_db,
    }


def measure(original: str, cuts: Mapping[str, str], threads: int | None, repeats: int) -> dict[str, Any]:
    """Share of the original's run time of every cut model, batch 1, in turns, with new sessions each time."""
    import numpy as np

    from onnxprune import api
    from onnxprune.calibrate.timing import Stopwatch
    from onnxprune.choosing.timed import one_feed
    from onnxprune.inputs import choose_inputs

    first = api.load(original)
    inputs = choose_inputs(first, provider="cpu")
    feed = one_feed(first.ir, inputs.proof, inputs.bindings)
    models = [first.ir, *(api.load(path).ir for path in cuts.values())]
    watch = Stopwatch("cpu", threads)
    shares: dict[str, list[float]] = {name: [] for name in cuts}
    whole = []
    for _ in range(repeats):
        times = watch.times([(model, feed) for model in models], rounds=9, slice_s=0.08)
        whole.append(float(np.median(times[0])))
        for name, row in zip(cuts, times[1:], strict=True):
            shares[name].append(float(np.median(row / times[0])))
    return {"milliseconds": float(np.median(whole)) * 1e3, "shares": shares}


def run_one(
    folder: Path, name: str, data: Mapping[str, Any], criterion: str, target: float, fresh: bool
) -> dict[str, Any]:
    """Both targets, their accuracy and their times."""
    model = folder / f"models/{name}.onnx"
    known = {
        **data,
        "calibration": str(folder / "data" / data["calibration"]),
        "test": str(folder / "data" / data["test"]),
    }
    depends = {
        "source": source_digest(),
        "latency": file_digest(HERE / "latency.py"),
        "model": file_digest(model),
    }
    WORK.mkdir(parents=True, exist_ok=True)
    entry: dict[str, Any] = {"model": name, "asked": criterion, "target": target, "failure": ""}
    outputs = {kind: WORK / f"{name}_{criterion}_{kind}_{target:g}.onnx" for kind in ("latency", "macs")}

    def step(function: str, arguments: dict[str, Any], fresh: bool = fresh) -> dict[str, Any]:
        done = call(f"benchmarks.latency:{function}", arguments, depends=depends, limit=LIMIT, fresh=fresh)
        entry["failure"] = entry["failure"] or done.failure
        return done.value

    for kind, output in outputs.items():
        entry[kind] = step(
            "prune",
            {
                "model": str(model),
                "output": str(output),
                "data": known,
                "kind": kind,
                "value": target,
                "criterion": criterion,
            },
            fresh or not output.exists(),
        )
        if not entry["failure"]:
            entry[kind]["top1"] = step(
                "accuracy", {"model": str(output), "original": str(model), "data": known}
            )
    if not entry["failure"]:
        cuts = {kind: str(output) for kind, output in outputs.items()}
        for label, threads in (("one", 1), ("default", None)):
            arguments = {"original": str(model), "cuts": cuts, "threads": threads, "repeats": REPEATS}
            entry[label] = step("measure", arguments)
    return entry


INTRODUCTION = """\
# Run time as the target

`onnxprune prune MODEL --latency F --threads 1` beside `--macs F` with the same share, on trained models with real
calibration data (512 samples, 256 images for mobilenetv2), everything else by default. Batch 1, one thread of
onnxruntime's CPU provider.

- *first prediction -> cut*: the share of the run time that was expected of the first plan, and what its cut took.
- *cuts*: how many plans were cut and measured before one was taken; *predicted*: what was expected of that one.
- *measured*: the finished files beside the original, in turns, {repeats} times or more with new sessions: median,
  least and most. One thread is timed by its processor time.
- *top-1* and *SQNR*: against labels, and against the original's outputs, on test data that nothing was chosen by.
- *seconds*: the whole job, while other work had most of the {cores} cores.
"""


def page(entries: list[dict[str, Any]], made: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    good = [entry for entry in entries if not entry["failure"]]
    head = ["model", "criterion", "F", "target", "first prediction -> cut", "cuts", "predicted", "measured"]
    head += ["MACs", "top-1", "SQNR, dB", "seconds"]
    rows = []
    for entry in good:
        for kind in ("latency", "macs"):
            figures = entry[kind]
            first = " -> ".join(f"{share:.3f}" for share in figures.get("first", ()))
            timed = kind == "latency"
            mark = " (out of reach)" if figures["out_of_reach"] else ""
            rows.append(
                [
                    entry["model"],
                    entry["asked"],
                    f"{entry['target']:g}",
                    f"--{kind}{mark}",
                    first,
                    figures.get("cuts", ""),
                    f"{figures['predicted']:.3f}" if timed else "",
                    _spread(entry["one"]["shares"][kind]),
                    f"{figures['macs']:.3f}",
                    f"{figures['top1']['before']:.2%} -> {figures['top1']['after']:.2%}",
                    f"{figures['top1']['sqnr']:.1f}",
                    f"{figures['seconds']:.0f}",
                ]
            )
    parts = [
        INTRODUCTION.format(repeats=REPEATS, cores=made["cores"]),
        environment_line(made),
        table(head, rows, left=4),
        *_summary(good),
    ]
    failed = [
        f"- {entry['model']}, {entry['asked']}, {entry['target']:g}: {entry['failure']}"
        for entry in entries
        if entry["failure"]
    ]
    if failed:
        parts += ["## What failed", "\n".join(failed)]
    return "\n\n".join(part.strip() for part in parts)


def _spread(shares: list[float]) -> str:
    ordered = sorted(shares)
    return f"{_middle(shares):.3f} ({ordered[0]:.3f} to {ordered[-1]:.3f})"


def _summary(entries: list[dict[str, Any]]) -> list[str]:
    """How far predictions and targets were off, in sentences that follow from the rows."""
    reached = [entry for entry in entries if not entry["latency"]["out_of_reach"]]
    if not reached:
        return []
    final = [(entry, _middle(entry["one"]["shares"]["latency"])) for entry in reached]
    over = [value - entry["target"] for entry, value in final]
    first = [abs(entry["latency"]["first"][0] - entry["latency"]["first"][1]) for entry in reached]
    macs = [
        _middle(entry["one"]["shares"]["macs"]) - entry["target"]
        for entry in reached
        if not entry["macs"]["out_of_reach"]
    ]
    met = sum(value <= 0.01 for value in over)
    lines = [
        f"{met} of {len(reached)} targets within reach are met up to 0.01 when the finished files are measured "
        f"again; the largest miss is {max(over):+.3f}. First predictions were off by {sum(first) / len(first):.3f} "
        f"of the original's run time on average, {max(first):.3f} at the most."
    ]
    if macs:
        lines.append(
            f"With `--macs F` the measured share is {sum(macs) / len(macs):+.3f} from F on average, between "
            f"{min(macs):+.3f} and {max(macs):+.3f}."
        )
    lines += _at_equal_time(entries)
    spreads = [
        max(shares) / min(shares) for entry in entries for shares in entry["default"]["shares"].values()
    ]
    lines.append(
        "With onnxruntime's default threads and by the wall clock, repeated measurements of one and the same file "
        f"differed by a factor of up to {max(spreads):.1f} on this machine: they are in `latency.json` only."
    )
    for entry in entries:
        if entry["latency"]["out_of_reach"]:
            lines.append(f"{entry['model']}, {entry['asked']}: {entry['latency']['out_of_reach']}.")
    return ["\n\n".join(lines)]


def _at_equal_time(entries: list[dict[str, Any]]) -> list[str]:
    """For every `--macs` row the `--latency` row of its model and criterion that takes about as long."""
    found = []
    for entry in entries:
        macs = _middle(entry["one"]["shares"]["macs"])
        others = [other for other in entries if other["model"] == entry["model"]]
        others = [other for other in others if other["asked"] == entry["asked"]]
        near = min(others, key=lambda other: abs(_middle(other["one"]["shares"]["latency"]) - macs))
        latency = _middle(near["one"]["shares"]["latency"])
        if abs(latency - macs) <= EQUAL:
            right = entry["macs"]["top1"]["after"], near["latency"]["top1"]["after"]
            found.append(
                f"- {entry['model']}, {entry['asked']}: `--macs {entry['target']:g}` takes {macs:.3f} and is right "
                f"in {right[0]:.2%}, `--latency {near['target']:g}` takes {latency:.3f}, right in {right[1]:.2%}"
            )
    if not found:
        return []
    return [f"Rows that take equally long within {EQUAL:g}:", "\n".join(found)]


def _middle(shares: list[float]) -> float:
    return sorted(shares)[len(shares) // 2]


def main(arguments: list[str] | None = None) -> int:
    """Make the page."""
    parser = argparse.ArgumentParser(prog="benchmarks.latency")
    parser.add_argument("--fresh", action="store_true", help="use no results of an earlier run")
    parser.add_argument("--real", type=Path, default=ROOT.parent / "shared" / "real", help="models and data")
    options = parser.parse_args(arguments)
    folder = options.real
    if not folder.exists():
        print(f"{folder} is missing")
        return 0
    entries, made = [], environment()
    for name, data, criterion, targets in CASES:
        for target in targets:
            entry = run_one(folder, name, data, criterion, target, options.fresh)
            shares = entry.get("one", {}).get("shares")
            print(f"{name} {criterion} {target:g}: {entry['failure'] or shares}", flush=True)
            entries.append(entry)
            write(HERE, "latency", page(entries, made), {"environment": made, "entries": entries})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
