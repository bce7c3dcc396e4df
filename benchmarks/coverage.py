"""What onnxprune makes of the architectures of torchvision, timm and transformers, from both exporters.

    python -m benchmarks.coverage --jobs 2

writes `coverage.md` and `coverage.json` beside this file. Every model is built with random weights, exported,
pruned with `--ratio 0.5` and with `--macs 0.6`, and checked; `onnxsim.pruning` gets the same files and
Torch-Pruning the modules behind them. Each step runs in a process of its own with a time limit. A run that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.coverage_page import render
from benchmarks.isolated import LIMIT, MODULE_LIMIT, call, file_digest, known, source_digest, version
from benchmarks.tables import environment, write

LIBRARIES = ("torchvision", "timm", "transformers")
EXPORTERS = ("ts", "dynamo")
TOOLS = ("onnxprune", "peers")
TARGETS: dict[str, dict[str, float]] = {"ratio": {"ratio": 0.5}, "macs": {"macs": 0.6}}
HERE = Path(__file__).parent
STEPS, PEERS = HERE / "coverage_steps.py", HERE / "coverage_peers.py"
ZOO = Path("build/zoo/coverage")
WORK = Path("build/bench/coverage")


@dataclass
class Row:
    """One file and what the tools made of it; outcomes as `benchmarks.isolated` gives them."""

    package: str
    name: str
    exporter: str
    export: dict[str, Any]
    onnxprune: dict[str, Any] | None = None
    onnxsim: dict[str, Any] | None = None
    onnxsim_simplified: dict[str, Any] | None = None
    torch_pruning: dict[str, Any] | None = None


def names(library: str) -> list[str]:
    """The models of one library, asked in a process of its own: this one stays free of PyTorch."""
    code = f"import benchmarks.families.{library}_models as m; print(*m.MODELS)"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise SystemExit(f"{library}: {asked.stderr.strip().splitlines()[-1]}")
    return asked.stdout.split()


def measure(
    library: str,
    name: str,
    exporter: str,
    zoo: Path,
    tools: Collection[str],
    fresh: bool | None,
    as_built: bool = False,
) -> Row:
    """Export one model where that was not done, and give the file to the tools."""
    path = zoo / ("as_built" if as_built else "") / library / f"{name}_{exporter}.onnx"
    subject: dict[str, Any] = {"library": library, "name": name}
    exported = {**subject, "exporter": exporter, **({"as_built": True} if as_built else {})}
    row = Row(library, name, exporter, _export(exported, path))
    if row.export["failure"]:
        return row
    model = {"model": file_digest(path)}
    if "onnxprune" in tools:
        row.onnxprune = _ask(
            "benchmarks.coverage_steps:prune",
            {"model": str(path), "folder": str(WORK / library), "targets": TARGETS},
            {**model, "steps": file_digest(STEPS), "source": source_digest()},
            fresh,
        )
    if "peers" not in tools:
        return row
    for simplify, field in ((False, "onnxsim"), (True, "onnxsim_simplified")):
        output = str(WORK / library / f"{path.stem}.{field}.onnx")
        asked = _ask(
            "benchmarks.coverage_peers:onnxsim",
            {"model": str(path), "output": output, "simplify": simplify},
            {**model, "steps": file_digest(PEERS), "onnxsim": version("onnxsim")},
            fresh,
        )
        setattr(row, field, asked)
    if exporter == EXPORTERS[0]:
        packages = {package: version(package) for package in ("torch", "torch-pruning", library)}
        row.torch_pruning = _ask(
            "benchmarks.coverage_peers:torch_pruning",
            subject,
            {"steps": file_digest(PEERS), "zoo": _zoo_digest(), **packages},
            fresh,
        )
    return row


def _ask(
    function: str, arguments: dict[str, Any], depends: dict[str, str], fresh: bool | None
) -> dict[str, Any] | None:
    """The outcome of a step; with `fresh` None only if it is known already."""
    if fresh is None:
        outcome = known(function, arguments, depends)
        return None if outcome is None else asdict(outcome)
    limit = MODULE_LIMIT if function.endswith(":torch_pruning") else LIMIT
    return asdict(call(function, arguments, limit=limit, depends=depends, fresh=fresh))


@functools.cache
def _zoo_digest() -> str:
    """Hash of the modules that build the models."""
    return "".join(file_digest(file)[:4] for file in sorted((HERE / "families").glob("*.py")))


def _export(subject: dict[str, Any], path: Path) -> dict[str, Any]:
    """Export once; what came of it lies beside the file. To export anew, delete the folder."""
    known = path.with_suffix(".json")
    if not known.exists():
        done = call(
            "benchmarks.coverage_steps:export", {**subject, "path": str(path)}, limit=LIMIT, fresh=True
        )
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(json.dumps(asdict(done)), encoding="utf-8")
    return dict(json.loads(known.read_text(encoding="utf-8")))


def _line(row: Row) -> str:
    head = f"{row.package:12} {row.name:32} {row.exporter:6}"
    if row.export["failure"]:
        return f"{head} not exported: {row.export['failure'][:100]}"
    if row.onnxprune is None:
        return f"{head} exported"
    found = row.onnxprune
    if found.get("failure"):
        return f"{head} FAILED: {found['failure'][:140]}"
    value = found["value"]
    parts = [f"{head} groups {value['groups']:4} coverage {value['coverage']['macs']:.2f}"]
    for label, target in value["targets"].items():
        if "failure" in target:
            parts.append(f"{label} FAILED {target['failure'][:140]}")
            continue
        notes = [] if target["sound"] else [f"REJECTED {len(target['rejected'])}"]
        if not target["run"]["ok"] or target["run"]["shapes"] != value["original"].get("shapes"):
            notes.append(
                f"RUN {target['run'].get('why', 'shapes')} (original {value['original'].get('why', 'ok')})"
            )
        if target["checker"]:
            notes.append(f"CHECKER {target['checker'][:80]}")
        parts.append(" ".join([f"{label} keeps {target['macs']:.3f}", f"{target['seconds']:.0f}s", *notes]))
    if value["coverage"]["macs"] < 0.9:
        parts += [f"[{b['reason']} {b['where'][:40]} {b['macs']:.2f}]" for b in value["barriers"][:2]]
    return "  ".join(parts)


def run(
    todo: Iterable[tuple[str, str, str]],
    zoo: Path,
    tools: Collection[str],
    jobs: int,
    fresh: bool | None,
    as_built: bool = False,
) -> list[Row]:
    """Measure everything, `jobs` models at a time, in a fixed order."""
    with ThreadPoolExecutor(jobs) as pool:
        rows = []
        for row in pool.map(lambda item: measure(*item, zoo, tools, fresh, as_built=as_built), todo):
            print(_line(row), flush=True)
            rows.append(row)
        return rows


def _portable(row: Any, zoo: Path) -> Any:
    """A row whose texts name no folder of this machine."""
    text = json.dumps(row)
    for folder in (zoo.resolve(), HERE.parent, Path(sys.prefix), Path(tempfile.gettempdir())):
        text = text.replace(str(folder), "")
    return json.loads(text)


def main(arguments: list[str] | None = None) -> int:
    """Run everything that is not kept from before, and write the page."""
    parser = argparse.ArgumentParser(prog="benchmarks.coverage", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="MODEL", help="default: all of them")
    parser.add_argument(
        "--library", dest="packages", choices=LIBRARIES, action="append", help="default: all three"
    )
    parser.add_argument("--exporter", choices=EXPORTERS, action="append", help="default: both")
    parser.add_argument("--zoo", type=Path, default=ZOO, help="folder of exported models")
    parser.add_argument("--folder", type=Path, default=HERE, help="where the page goes")
    parser.add_argument("--tools", choices=TOOLS, help="only these, for a first look; writes no page")
    parser.add_argument(
        "--as-built",
        action="store_true",
        help="leave equal biases and norm statistics equal, which exporters then share; writes no page",
    )
    parser.add_argument("--fresh", action="store_true", help="use no results of an earlier run")
    parser.add_argument(
        "--known",
        action="store_true",
        help="run nothing: a page of what is known from earlier runs, which says how often each tool was asked",
    )
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    options = parser.parse_args(arguments)
    todo = [
        (library, name, exporter)
        for library in options.packages or LIBRARIES
        for name in names(library)
        for exporter in options.exporter or EXPORTERS
        if not options.names or name in options.names
    ]
    tools = (options.tools,) if options.tools else TOOLS
    rows = run(
        todo, options.zoo, tools, options.jobs, None if options.known else options.fresh, options.as_built
    )
    if options.tools or options.names or options.as_built:
        return 0
    packages = ("torch", "torchvision", "timm", "transformers", "onnxscript", "onnxsim", "torch-pruning")
    about = environment(*packages)
    data = {
        "schema": "onnxprune-bench-coverage/1",
        "targets": TARGETS,
        "environment": about,
        "rows": [_portable(asdict(row), options.zoo) for row in rows],
    }
    write(options.folder, "coverage", render(data), data)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
