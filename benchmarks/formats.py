"""Models as people have them: quantised, recurrent, with control flow, in half precision, fused, published.

    python -m benchmarks.formats [NAME ...]

writes `formats.md` and `formats.json` beside this file; with names, only these rows are made anew. The trained
models and their data lie in `../shared/real`, beside the checkout; published ones are fetched from the registry.
Plans and repairs see calibration files only; test files are looked at once, when the pruned model is written.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import formats_models
from benchmarks.formats_cases import CASES
from benchmarks.formats_data import UNLABELLED
from benchmarks.formats_models import DATA, REAL, SHELF, Case
from benchmarks.isolated import call, file_digest, source_digest
from benchmarks.tables import environment, environment_line, millions, share, table, write

HERE = Path(__file__).parent
GENERATED = "synthetic:64"
LIMIT = 900.0
ROUNDS = 15
LARGE = 0.05
"""Share of the model from which on what stays whole is listed."""


def make(case: str) -> dict[str, Any]:
    """Write the case's model, where it is not there yet."""
    (found,) = (c for c in CASES if c.name == case)
    found.path.parent.mkdir(parents=True, exist_ok=True)
    getattr(formats_models, found.make)(found.path, **found.arguments)
    return {"bytes": found.path.stat().st_size}


def prune(model: str, output: str, data: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`onnxprune prune MODEL --ratio 0.5 --data DATA`, or `slim` where `options` say so."""
    import time

    from onnxprune import api

    given: dict[str, Any] = {"provider": "cpu", "force": True, **_data(data, model)}
    wanted = dict(options)
    started = time.perf_counter()
    if wanted.pop("slim", False):
        given.pop("samples", None)
        slimmed = api.slim(model, output, **{**given, "samples": 16} if data else {"force": True})
        return {"seconds": time.perf_counter() - started, **_slimmed(slimmed.report)}
    report = api.prune(model, output, **wanted, **given).report
    fidelity = report.fidelity
    return {
        "seconds": time.perf_counter() - started,
        "params": [report.before.params, report.after.params],
        "macs": [report.before.macs, report.after.macs],
        "bytes": [report.before.bytes, report.after.bytes],
        "sound": report.soundness.checked and not report.soundness.rejected_groups,
        "rejected": len(report.soundness.rejected_groups),
        "difference": report.soundness.max_abs_diff,
        "top": report.soundness.max_abs_output,
        "inner": report.soundness.inner,
        "repaired": sum(layer.kind != "none" for layer in report.repairs),
        "achieved": report.target.achieved,
        "met": report.target.met,
        "fidelity": None if fidelity is None else str(fidelity.main),
        "cosine": None if fidelity is None else fidelity.main.cosine,
        "sqnr": None if fidelity is None else fidelity.main.sqnr_db,
        "barriers": [[b.explanation, b.where, b.params, b.macs] for b in report.barriers[:3]],
        "warnings": list(report.warnings),
    }


def _slimmed(report: Any) -> dict[str, Any]:
    return {
        "params": [report.before.params, report.after.params],
        "macs": [report.before.macs, report.after.macs],
        "bytes": [report.before.bytes, report.after.bytes],
        "sound": report.samples > 0,  # slim writes nothing where the outputs differ
        "difference": report.difference,
        "top": report.largest,
        "rejected": 0,
        "repaired": 0,
    }


def _data(key: str, model: str) -> dict[str, Any]:
    if not key:
        return {"data": GENERATED}
    if key in UNLABELLED:
        samples = UNLABELLED[key]
        calibration, test = (samples.feeds(Path(model), testing) for testing in (False, True))
        more = {"preprocess": samples.preprocess, "bindings": dict(samples.bindings)}
        return {"data": calibration, "test": test, **more}
    known = DATA[key]
    path = str(REAL / "data" / known.calibration)
    return {"data": path, "samples": known.samples, "preprocess": known.preprocess}


def accuracy(models: Mapping[str, str], against: str, data: str) -> dict[str, Any]:
    """Top-1 of all models on the test data, and the fidelity of "pruned" to `against`."""
    from onnxprune import api

    known = DATA[data]
    test, preprocess = str(REAL / "data" / known.test), known.preprocess
    found: dict[str, Any] = {}
    for name, model in models.items():
        other = against if name == "pruned" else None  # files of other types have no common inputs
        done = api.validate(model, test, against=other, metric="top1", provider="cpu", preprocess=preprocess)
        if done.score is None:
            raise RuntimeError("the test data has no labels")
        found[name], found["samples"] = done.score.value, done.samples
        if name == "pruned" and done.fidelity is not None:
            found["sqnr"] = done.fidelity.main.sqnr_db
    return found


def measure(before: str, after: str) -> dict[str, Any]:
    """Share of the original's run time, batch 1, one thread, in turns."""
    import numpy as np

    from onnxprune import api
    from onnxprune.calibrate.timing import Stopwatch
    from onnxprune.choosing.timed import one_feed
    from onnxprune.inputs import choose_inputs

    first = api.load(before)
    inputs = choose_inputs(first, provider="cpu")
    feed = one_feed(first.ir, inputs.proof, inputs.bindings)
    models = [first.ir, api.load(after).ir]
    times = Stopwatch("cpu", 1).times([(model, feed) for model in models], rounds=ROUNDS, slice_s=0.05)
    return {"share": float(np.median(times[1] / times[0])), "milliseconds": float(np.median(times[0])) * 1e3}


def operators(before: str, after: str) -> dict[str, Any]:
    """How many nodes of every operator there are, bodies included, in both files; and the types of the weights."""
    from collections import Counter

    import onnx_ir as ir

    found: dict[str, Any] = {}
    for name, path in (("before", before), ("after", after)):
        model = ir.load(path)
        found[name] = dict(Counter(node.op_type for node in model.graph.all_nodes()))
        found[f"{name}_types"] = dict(
            Counter(v.const_value.dtype.name for v in model.graph.initializers.values() if v.const_value)
        )
    return found


def run_one(case: Case, fresh: bool) -> dict[str, Any]:
    """All steps of one row; the first that fails says why."""
    entry: dict[str, Any] = {"line": case.line, "name": case.name, "options": dict(case.options)}
    entry["data"] = case.data
    output = SHELF / "pruned" / f"{case.name}.onnx"
    output.parent.mkdir(parents=True, exist_ok=True)
    made = {"models": file_digest(HERE / "formats_models.py")}

    def step(function: str, arguments: Mapping[str, Any], depends: Mapping[str, str], again: bool) -> Any:
        if entry.get("failure"):
            return {}
        done = call(f"benchmarks.formats:{function}", arguments, depends=depends, limit=LIMIT, fresh=again)
        if not done.ok:
            entry["failure"] = f"{function}: {done.failure}"
        return done.value

    step("make", {"case": case.name}, made, not case.path.exists())
    if entry.get("failure"):
        return entry
    model = str(case.path)
    depends = {"source": source_digest(), "model": file_digest(case.path)}
    if case.data in UNLABELLED:
        depends["data"] = file_digest(HERE / "formats_data.py")
    arguments = {"model": model, "output": str(output), "data": case.data, "options": dict(case.options)}
    entry |= step("prune", arguments, depends, fresh or not output.exists())
    if entry.get("failure"):
        return entry
    depends["pruned"] = file_digest(output)
    if case.data in DATA:
        models = {"before": model, "pruned": str(output)}
        if case.source:
            models["source"] = str(REAL / "models" / case.source)
        entry["test"] = step(
            "accuracy", {"models": models, "against": model, "data": case.data}, depends, fresh
        )
    pair = {"before": model, "after": str(output)}
    entry["operators"] = step("operators", pair, depends, fresh)
    entry["time"] = step("measure", pair, depends, fresh)
    if not entry["time"] and "prune" not in str(entry.get("failure")):  # no kernels for it here, say
        entry["untimed"] = entry.pop("failure")
    return entry


INTRODUCTION = """\
# Models as people have them

One command per row, `onnxprune prune MODEL --ratio 0.5` unless the row says otherwise, everything else by default:
trained models with their calibration data (512 samples, 256 images), others with samples of the kind that they
were made for (photos, words drawn on photos and paper, ten seconds of speech, files: `formats_data.py`), else
with generated ones (`--data {generated}`). Models come from other people: published in packages, or exported or
converted by the tool that the heading names.

- *sound*: masked == removed in onnxruntime, in the arithmetic in which the file computes: largest difference over
  largest output.
- *top-1*: on test data that nothing was chosen by; *fp32*: of the model from which the file was made. Without
  labels: cosine and SQNR of the pruned model's main output to the original's, on samples of the same kind that were
  not calibrated on (of the speech, which is one voice, the first 62 % and the rest; states are the original's).
  Random weights have no accuracy; there it says what random weights allow.
- *time*: of the pruned file as a share of the original's, batch 1, one thread, processor time in turns. For
  bfloat16 onnxruntime's CPU provider has no kernels; accuracy is that of a copy in float32.
- *form*: operators of the format before and after, where that is the question.
"""

FORMS = (
    *("QLinearConv", "QLinearMatMul", "QLinearAdd", "QGemm", "ConvInteger", "MatMulInteger", "MatMulNBits"),
    *(
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
    ),
    *(
        "LSTM",
        "GRU",
        "If",
        "Loop",
        "Scan",
        "Cast",
        "Attention",
        "MultiHeadAttention",
        "SkipLayerNormalization",
    ),
    *("BiasGelu", "FastGelu", "EmbedLayerNormalization"),
)


def page(entries: list[dict[str, Any]], about: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    parts = [INTRODUCTION.format(generated=GENERATED).strip()]
    header = ["model", "asked", "params, M", "MACs, M", "bytes", "sound", "samples", "top-1 or fidelity"]
    header += ["time", "form"]
    for line in dict.fromkeys(entry["line"] for entry in entries):
        rows = [_row(entry, len(header)) for entry in entries if entry["line"] == line]
        parts += [f"## {line}", table(header, rows, left=10)]
    blocked = [
        [entry["name"], reason, where, share(params, entry["params"][0]), share(macs, entry["macs"][0])]
        for entry in entries
        for reason, where, params, macs in entry.get("barriers", ())
        if max(params / entry["params"][0], macs / max(entry["macs"][0], 1)) >= LARGE
    ]
    parts += ["## What stays whole", table(["model", "because", "where", "params", "MACs"], blocked, left=3)]
    if missing := [case.name for case in CASES if case.name not in {entry["name"] for entry in entries}]:
        parts.append(f"Not made in this run: {', '.join(missing)}.")
    parts.append(environment_line(about))
    return "\n\n".join(parts)


def _row(entry: Mapping[str, Any], width: int) -> list[str]:
    asked = " ".join(
        f"--{key.replace(chr(95), chr(45))} {value:g}"
        for key, value in entry["options"].items()
        if key != "slim"
    )
    asked = asked or "slim"
    if entry.get("failure"):
        return [entry["name"], asked, entry["failure"], *[""] * (width - 3)]
    sizes = [
        f"{millions(before)} -> {millions(after)} ({share(after, before)})"
        for before, after in (entry["params"], entry["macs"])
    ]
    return [
        entry["name"],
        asked if entry.get("met", True) else f"{asked}: {entry['achieved']:.0%} reached",
        *sizes,
        share(entry["bytes"][1], entry["bytes"][0]),
        _sound(entry),
        entry["data"] or "generated",
        _quality(entry),
        f"{entry['time']['share']:.2f}" if entry["time"] else "does not run here",
        _form(entry["operators"]),
    ]


def _sound(entry: Mapping[str, Any]) -> str:
    if entry["rejected"] or not entry["sound"]:
        return f"{entry['rejected']} groups kept whole"
    return f"{entry['difference'] / entry['top']:.0e}" if entry["top"] else "output 0"


def _quality(entry: Mapping[str, Any]) -> str:
    if test := entry.get("test"):
        source = f"fp32 {test['source']:.1%}, " if "source" in test else ""
        return f"{source}{test['before']:.1%} -> {test['pruned']:.1%}"
    if entry.get("cosine") is None:
        return entry.get("fidelity") or ""
    return f"cosine {entry['cosine']:.4f}, {entry['sqnr']:.1f} dB"


def _form(found: Mapping[str, Mapping[str, int]]) -> str:
    before, after = found["before"], found["after"]
    return ", ".join(
        f"{name} {before[name]}" + (f" -> {after.get(name, 0)}" if after.get(name, 0) != before[name] else "")
        for name in FORMS
        if name in before
    )


def main(arguments: list[str] | None = None) -> int:
    """Make the rows that are asked for anew, and the page of all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="rows to make; all without")
    parser.add_argument("--fresh", action="store_true", help="forget kept results")
    options = parser.parse_args(arguments)
    if not REAL.exists():
        print(f"{REAL} is missing: nothing to do")
        return 0
    kept: dict[str, dict[str, Any]] = {}
    file = HERE / "formats.json"
    if options.names and file.exists():
        kept = {entry["name"]: entry for entry in json.loads(file.read_text(encoding="utf-8"))["entries"]}
    for case in CASES:
        if not options.names or case.name in options.names:
            kept[case.name] = run_one(case, options.fresh)
            entry = kept[case.name]
            print(f"{case.name:40} {entry.get('failure') or _row(entry, 10)}", flush=True)
    entries = [kept[case.name] for case in CASES if case.name in kept]
    about = environment("transformers", "torch")
    write(HERE, "formats", page(entries, about), {"entries": entries, "environment": about})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
