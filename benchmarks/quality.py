"""Accuracy against kept MACs on trained models with real data, for onnxprune and for other tools.

    python -m benchmarks.quality --seeds 3

writes `quality.md`, `quality.json` and one plot per model beside this file. The models and the data lie in
`../shared/real`, beside the checkout; without them nothing is done. Every tool gets the same files. Calibration
data alone leads to the results, test data only measures them. Each run has a process of its own; a benchmark that
was interrupted goes on where it stopped. All of it takes hours.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.isolated import ROOT, call, file_digest, source_digest, version
from benchmarks.quality_page import render
from benchmarks.quality_runs import SUBJECTS, Run, runs
from benchmarks.tables import environment, write

HERE = Path(__file__).parent
PARTIAL = Path("build/bench/quality")
"""Where pages of restricted runs go: the committed one shows all models at all points."""
LIMIT = 3600.0
TOOLS = ("onnxsim", "torch", "torch-pruning", "matplotlib")
MEASURES = ("evaluate", "calibrate", "validation.py")
"""Parts of onnxprune on which the results of the other tools depend, too."""


def measure(run: Run, real: Path, fresh: bool) -> dict[str, Any]:
    """Do one run, or find what is kept of it."""
    subject = SUBJECTS[run.model]
    base = ROOT if subject.ours else real
    model = base / "models" / f"{run.model}.onnx"
    files = {"test": base / subject.test, **({"calibration": base / subject.calibration} if run.data else {})}
    data = {
        "calibration": None,
        "samples": run.samples,
        "preprocess": subject.preprocess,
        **{name: str(path) for name, path in files.items()},
    }
    done = call(
        f"benchmarks.{run.function}",
        {"model": str(model), "data": data, **run.arguments},
        limit=LIMIT,
        depends={
            "model": file_digest(model),
            **{name: _data_digest(path) for name, path in files.items()},
            **_tool_digests(run.function),
        },
        fresh=fresh,
    )
    return {
        "model": run.model,
        "experiment": run.experiment,
        "tool": run.tool,
        "asked": run.asked,
        "seed": run.seed,
        "samples": run.samples,
        "failure": done.failure,
        **done.value,
    }


@functools.cache
def _data_digest(path: Path) -> str:
    """Hash of a file, or of all files in a folder and their names."""
    if path.is_file():
        return file_digest(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(path)} {file_digest(file)}\n".encode())
    return digest.hexdigest()[:16]


@functools.cache
def _tool_digests(function: str) -> dict[str, str]:
    """What a result depends on besides models, data and options."""
    import onnxprune

    package = Path(onnxprune.__file__).parent
    used = {
        "steps": file_digest(HERE / "quality_steps.py"),
        "onnxruntime": version("onnxruntime") + version("onnxruntime-gpu"),
    }
    if function == "quality_steps:prune":
        return used | {"source": source_digest()}
    used |= {name: _data_digest(package / name) for name in MEASURES}
    if function == "quality_steps:baseline":
        return used
    used["peers"] = file_digest(HERE / "quality_peers.py")
    if function == "quality_peers:onnxsim":
        return used | {"onnxsim": version("onnxsim")}
    modules = {"resnet": file_digest(HERE / "quality_resnet.py")}
    return used | modules | {name: version(name) for name in ("torch", "torch-pruning")}


def _line(row: Mapping[str, Any]) -> str:
    head = f"{row['model']:24} {row['experiment']:8} {row['tool']:14} {row['asked']:<5} seed {row['seed']}"
    if row["failure"]:
        return f"{head} FAILED: {row['failure'][:140]}"
    time = f"  {row['time']['wall']:.0f} s, {row['memory']['peak']:.0f} MB" if "time" in row else ""
    return f"{head} top-1 {row['top1']:.2%}  {row['macs'] / 1e6:.2f} M MACs{time}"


def run_all(todo: Sequence[Run], real: Path, jobs: int, fresh: bool) -> list[dict[str, Any]]:
    """Do everything, `jobs` runs at a time, in a fixed order."""
    with ThreadPoolExecutor(jobs) as pool:
        rows = []
        for row in pool.map(lambda run: measure(run, real, fresh), todo):
            print(_line(row), flush=True)
            rows.append(row)
        return rows


def _portable(rows: list[dict[str, Any]], real: Path) -> list[dict[str, Any]]:
    """Rows whose texts name no folder of this machine."""
    text = json.dumps(rows)
    for folder in (real.resolve(), real, ROOT, Path(sys.prefix), Path(tempfile.gettempdir())):
        text = text.replace(f"{folder}/", "")
    return list(json.loads(text))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.quality", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--models", nargs="+", choices=list(SUBJECTS), metavar="MODEL", help="default: all")
    parser.add_argument("--points", nargs="+", type=float, metavar="SHARE", help="MACs to keep, such as 0.7")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds per point; the page has 3")
    parser.add_argument("--samples", type=int, metavar="N", help="at most so many calibration samples")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time")
    parser.add_argument("--fresh", action="store_true", help="use no results of an earlier run")
    parser.add_argument("--real", type=Path, default=ROOT.parent / "shared" / "real", help="models and data")
    parser.add_argument(
        "--folder", type=Path, help=f"where the page goes; default: {PARTIAL} where a restriction was given"
    )
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.jobs < 1:
        parser.error("--seeds and --jobs take 1 or more")
    if not all(0 < point < 1 for point in options.points or ()):
        parser.error("--points takes shares between 0 and 1")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run everything that is not kept from before, and write the page."""
    options = _options(arguments)
    if not (options.real / "models").is_dir():
        print("no trained models beside the checkout: nothing to do")
        return 0
    names = options.models or list(SUBJECTS)
    todo = [
        run for name in names for run in runs(SUBJECTS[name], options.points, options.seeds, options.samples)
    ]
    todo.sort(key=lambda run: run.seed)  # a run with fewer seeds is done on the way
    rows = run_all(todo, options.real, options.jobs, options.fresh)
    restricted = options.models or options.points or options.samples
    folder = options.folder or (PARTIAL if restricted else HERE)
    data = {
        "schema": "onnxprune-bench-quality/1",
        "seeds": options.seeds,
        "jobs": options.jobs,
        "samples": options.samples,
        "targets": {name: [list(t) for t in SUBJECTS[name].targets.items()] for name in names},
        "no_module": {name: SUBJECTS[name].no_module for name in names if SUBJECTS[name].no_module},
        "environment": environment(*TOOLS),
        "rows": _portable(rows, options.real),
    }
    from benchmarks.quality_plot import draw  # here, so that --help needs no matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        draw(data, name, folder / f"quality_{name}.png")
    write(folder, "quality", render(data), data)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
