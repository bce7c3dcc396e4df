"""Accuracy and fidelity against kept MACs for every gradient criterion, beside `auto` and magnitudes.

    python -m benchmarks.criteria

writes `criteria.md`, `criteria.json` and the plots beside this file. Models and data are those of
`benchmarks.quality`, and some small transformers with random weights, which need `.[zoo]` to be exported. Each
run has a process of its own; a benchmark that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.criteria_page import render
from benchmarks.criteria_runs import CRITERIA, LIBRARY, SUBJECTS_BY_NAME, Run, Subject, runs
from benchmarks.isolated import ROOT, Outcome, call, file_digest, known, source_digest, version
from benchmarks.quality import _data_digest, _portable
from benchmarks.tables import environment, write

HERE = Path(__file__).parent
MADE = Path("build/bench/criteria")
"""Where models with random weights and their data are made, and pages of restricted runs."""
LIMIT = 1800.0
KEPT_ONLY = ("widths", "stages")
"""Figures that would make the `.json` long; what is kept of a run has them."""
BEFORE = HERE / "quality.json"
"""The curves of all tools, which the plots show faintly."""


def measure(run: Run, real: Path, fresh: bool, kept: bool) -> dict[str, Any] | None:
    """Do one run, or find what is kept of it; None where nothing is kept and nothing may be run."""
    model, files, preprocess = _files(run.subject, real)
    data = {"samples": None, "preprocess": preprocess, **{name: str(path) for name, path in files.items()}}
    step = "prune" if run.criterion else "baseline"
    arguments = {"model": str(model), "data": data}
    if run.criterion:
        arguments["options"] = {"macs": run.point, "round_to": 1, **run.options}
    depends = {
        "model": file_digest(model),
        **{name: _data_digest(path) for name, path in files.items()},
        **_code(),
    }
    done: Outcome | None
    function = f"benchmarks.criteria_steps:{step}"
    if kept:
        done = known(function, arguments, depends)
        if done is None:
            return None
    else:
        done = call(function, arguments, limit=LIMIT, depends=depends, fresh=fresh)
    return {
        "model": run.subject.name,
        "criterion_asked": run.criterion,
        "asked": run.point,
        "failure": done.failure,
        **{name: value for name, value in done.value.items() if name not in KEPT_ONLY},
    }


@functools.cache
def _code() -> dict[str, str]:
    """What a result depends on besides models, data and options."""
    return {
        "source": source_digest(),
        "steps": file_digest(HERE / "criteria_steps.py") + file_digest(HERE / "quality_steps.py"),
        "onnxruntime": version("onnxruntime") + version("onnxruntime-gpu"),
    }


@functools.cache
def _files(subject: Subject, real: Path) -> tuple[Path, dict[str, Path], str | None]:
    """The model, its data, and how images are prepared."""
    if subject.data is not None:
        base = ROOT if subject.data.ours else real
        files = {"calibration": base / subject.data.calibration, "test": base / subject.data.test}
        return base / "models" / f"{subject.name}.onnx", files, subject.data.preprocess
    model = MADE.resolve() / f"{subject.name}.onnx"
    files = {name: MADE.resolve() / f"{subject.name}_{name}.npz" for name in ("calibration", "test")}
    if not model.exists():
        _must(
            call(
                "benchmarks.coverage_steps:export",
                {"library": LIBRARY, "name": subject.architecture, "exporter": "dynamo", "path": str(model)},
                fresh=True,
            )
        )
    for seed, path in enumerate(files.values()):
        if not path.exists():
            given = {"model": str(model), "path": str(path), "seed": seed}
            _must(call("benchmarks.criteria_steps:generate", given, fresh=True))
    return model, files, None


def _must(done: Outcome) -> None:
    if not done.ok:
        raise SystemExit(f"a model could not be made: {done.failure}")


def _line(row: Mapping[str, Any]) -> str:
    head = f"{row['model']:22} {row['criterion_asked']:22} {row['asked']:<5}"
    if row["failure"]:
        return f"{head} FAILED: {row['failure'][:200]}"
    top1 = f" top-1 {row['top1']:.2%}" if "top1" in row else ""
    time = f"  {row['time']['wall']:.0f} s, cpu {row['time']['cpu']:.0f} s" if "time" in row else ""
    return f"{head}{top1}  {row['db']:.1f} dB  {row['macs'] / 1e6:.2f} M MACs{time}"


def run_all(todo: Sequence[Run], real: Path, fresh: bool, kept: bool) -> list[dict[str, Any]]:
    """Do everything, in order."""
    rows = []
    for run in todo:
        row = measure(run, real, fresh, kept)
        if row is not None:
            print(_line(row), flush=True)
            rows.append(row)
    return rows


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.criteria", description=(__doc__ or "").partition("\n")[0]
    )
    names = list(SUBJECTS_BY_NAME)
    parser.add_argument("--models", nargs="+", choices=names, metavar="MODEL", help="default: all")
    parser.add_argument("--criteria", nargs="+", choices=list(CRITERIA), metavar="NAME", help="default: all")
    parser.add_argument("--points", nargs="+", type=float, metavar="SHARE", help="MACs to keep, such as 0.7")
    parser.add_argument("--fresh", action="store_true", help="use no results of an earlier run")
    parser.add_argument("--kept", action="store_true", help="run nothing: the page of what is kept")
    parser.add_argument("--real", type=Path, default=ROOT.parent / "shared" / "real", help="models and data")
    parser.add_argument(
        "--folder", type=Path, help=f"where the page goes; default: {MADE} where a restriction was given"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run everything that is not kept from before, and write the page."""
    options = _options(arguments)
    if not (options.real / "models").is_dir():
        print("no trained models beside the checkout: nothing to do")
        return 0
    MADE.mkdir(parents=True, exist_ok=True)
    todo = runs(options.models or list(SUBJECTS_BY_NAME), options.criteria, options.points)
    rows = run_all(todo, options.real, options.fresh, options.kept)
    restricted = options.models or options.criteria or options.points
    folder = options.folder or (MADE if restricted else HERE)
    text = json.dumps(_portable(rows, options.real)).replace(f"{tempfile.gettempdir()}/", "")
    data = {
        "schema": "onnxprune-bench-criteria/1",
        "environment": environment("torch", "transformers", "matplotlib"),
        "rows": json.loads(text.replace(f"{sys.prefix}/", "")),
    }
    from benchmarks.criteria_plot import draw_all  # here, so that --help needs no matplotlib

    before = json.loads(BEFORE.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    draw_all(data["rows"], before["rows"], folder)
    write(folder, "criteria", render(data), data)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
