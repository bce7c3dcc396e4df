"""Gradients of ONNX graphs against PyTorch's: operators, whole models, time and memory.

    python -m benchmarks.gradients

writes `gradients.md` and `gradients.json` beside this file. Each step runs in a process of its own; what fails
is listed with its reason. A run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gradients_cost import KINDS, graph_path
from benchmarks.gradients_models import BATCH, EXPORTERS, SUBJECTS
from benchmarks.gradients_operators import support
from benchmarks.gradients_page import LIMIT, NOT_RUN, render
from benchmarks.isolated import Outcome, call, known, source_digest, version
from benchmarks.tables import environment, write

HERE = Path(__file__).parent
WORK = Path("build/bench/gradients")
TIMED = "dynamo"
"""The exporter whose graphs are timed."""

SECONDS = 2.5
"""For timing one graph."""


@dataclass
class Row:
    """One exported model; dicts are empty where nothing was measured."""

    model: str
    exporter: str
    compare: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    profile: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Steps:
    """How steps are run.

    Attributes
    ----------
    fresh
        Use no results of an earlier run.
    kept
        Use nothing but results of an earlier run.
    """

    fresh: bool = False
    kept: bool = False

    def run(self, name: str, arguments: Mapping[str, Any], *, again: bool = False) -> Outcome:
        """Run `module:name` in a process of its own, or find what it gave; `again` as if it were not kept."""
        depends = {
            package: version(package) for package in ("torch", "torchvision", "transformers", "onnxscript")
        }
        depends |= {"onnxprune": source_digest(), "benchmark": _benchmark_digest()}
        step = f"benchmarks.{name}"
        if self.kept:
            return known(step, arguments, depends) or Outcome(failure=NOT_RUN)
        return call(step, arguments, depends=depends, fresh=self.fresh or again)


def measure(row: Row, steps: Steps) -> None:
    """Fill in what time and memory a compared model takes."""
    layers = row.compare["layers"]
    for kind in KINDS:
        base = {"name": row.model, "exporter": row.exporter, "folder": str(WORK), "kind": kind}
        timed = steps.run("gradients_cost:cost", {**base, "layers": layers, "seconds": SECONDS})
        if not timed.ok:
            row.failures[f"time, {kind}"] = timed.failure
            continue
        row.cost[kind] = timed.value
        sides = {
            side: steps.run("gradients_cost:memory", {**base, "layers": layers, "side": side})
            for side in ("onnx", "torch")
        }
        if all(side.ok for side in sides.values()):
            row.memory[kind] = {name: side.value for name, side in sides.items()}
        row.failures.update({f"memory, {kind}, {n}": s.failure for n, s in sides.items() if not s.ok})
        if timed.value["ratio"] > LIMIT:
            profiled = steps.run("gradients_cost:profile", base)
            row.profile.update({kind: profiled.value} if profiled.ok else {})
        print(f"{row.model:16} {kind:8} ratio {timed.value['ratio']:.2f}", flush=True)


def compare(row: Row, steps: Steps) -> None:
    """Hold a model's gradients against PyTorch's, and leave its graphs for `measure`."""
    graphs = [graph_path(str(WORK), row.model, row.exporter, kind) for kind in KINDS]
    arguments = {"name": row.model, "exporter": row.exporter, "folder": str(WORK)}
    missing = not all(path.exists() for path in graphs)
    done = steps.run("gradients_steps:compare", arguments, again=missing)
    row.compare = done.value
    if not done.ok:
        row.failures["gradients"] = done.failure
    said = f"cosine {row.compare['weights']['cosine']:.12f}" if done.ok else done.failure
    print(f"{row.model:16} {row.exporter:8} {said} ({done.seconds:.0f} s)", flush=True)


def _benchmark_digest() -> str:
    files = [file for file in sorted(HERE.glob("gradients_*.py")) if file.stem != "gradients_page"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _renew_operators(folder: Path) -> int:
    """Write the page again, with what the rule table holds now."""
    data = json.loads((HERE / "gradients.json").read_text(encoding="utf-8"))
    data["operators"] = asdict(support())
    write(folder, "gradients", render(data), data)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run everything that is not kept from before, and write the page."""
    parser = argparse.ArgumentParser(prog="benchmarks.gradients", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="MODEL", help=f"default: {', '.join(SUBJECTS)}")
    parser.add_argument("--folder", type=Path, default=HERE, help="where the page goes")
    parser.add_argument(
        "--jobs", type=int, default=1, help="models that are compared at a time; none is timed then"
    )
    parser.add_argument("--fresh", action="store_true", help="use no results of an earlier run")
    parser.add_argument("--kept", action="store_true", help="run nothing: the page of what is kept")
    parser.add_argument(
        "--operators", action="store_true", help="run nothing: the page as it is, with today's rule table"
    )
    options = parser.parse_args(arguments)
    if options.operators:
        return _renew_operators(options.folder)
    if unknown := sorted(set(options.names) - set(SUBJECTS)):
        parser.error(f"unknown model: {', '.join(unknown)}")
    steps = Steps(options.fresh, options.kept)
    rows = [Row(name, exporter) for name in options.names or SUBJECTS for exporter in EXPORTERS]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda row: compare(row, steps), rows))
    for row in rows:
        if row.compare and row.exporter == TIMED:
            measure(row, steps)
    about = environment("torch", "torchvision", "transformers", "onnxscript")
    data = {
        "schema": "onnxprune-bench-gradients/1",
        "batch": BATCH,
        "environment": about,
        "sizes": {name: subject.about for name, subject in SUBJECTS.items()},
        "operators": asdict(support()),
        "models": [asdict(row) for row in rows],
    }
    write(options.folder, "gradients", render(data), data)
    return int(any(row.failures for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
