"""How the time of analysis and removal grows with the graph: chains of residual blocks up to 16,000 nodes.

    python -m benchmarks.scaling --nodes 20000

`--nodes` is the size of the transformers that are analysed only: one of our own chains, and decoders of the
transformers library (which need `.[zoo]`). The run writes `scaling.md` and `scaling.json` beside this file.
Every size runs in processes of its own; of several runs the fastest counts for each
step, because other work on the machine only ever adds time.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.isolated import call, peak_mb, source_digest
from benchmarks.tables import environment, environment_line, seconds, table, write

SIZES = (1000, 2000, 4000, 8000, 16000)
OTHERS = {"dense": (1000, 2000, 4000), "shuffle": (1000, 2000, 4000), "transformer": (1000, 2000, 4000)}
NODES = 20000
DEEP = {
    "transformer, attention written out": None,
    "Llama of transformers, TorchScript exporter": "llama",
    "GPT-2 of transformers, TorchScript exporter": "gpt2",
}
"""What is analysed at `NODES` nodes: ours, or a model of `benchmarks.deep`."""
RUNS = 3
RATIO = 0.5
HERE = Path(__file__).parent
WORK = Path("build/bench/scaling")
_EARLIER = " The chains were measured with the code of an earlier commit."
STEPS = {
    "load": "read the file and check it",
    "normalise": "the form that the rules expect",
    "shapes": "extents of all axes, at two bindings of the symbolic batch",
    "axis graph": "every rule states its ties",
    "partition": "units and groups",
    "costs": "MACs and parameters as functions of what is kept",
    "choice": "score, rank, solve for the target",
    "plan": "kept indices of every initializer",
    "removal": "cut, refit, infer all shapes again and compare",
    "finalise": "the form in which it is written",
}


def build(kind: str, nodes: int, path: str) -> dict[str, Any]:
    """Build and save one chain."""
    import onnx_ir as ir

    from benchmarks.chains import CHAINS

    model = CHAINS[kind](nodes)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, path)
    return {"nodes": model.graph.num_nodes()}


def measure(path: str, run: int, collect: bool) -> dict[str, Any]:
    """CPU seconds of every step on one model, and peak memory.

    Parameters
    ----------
    path
        The model.
    run
        Tells repetitions apart.
    collect
        Whether Python's cyclic garbage collector is on, as it is for users.
    """
    from onnxprune.allocate.cost import CostModel
    from onnxprune.allocate.target import Target
    from onnxprune.analysis import Analysis
    from onnxprune.choosing.choices import Choices
    from onnxprune.choosing.planning import allocate
    from onnxprune.choosing.scoring import score_groups
    from onnxprune.graph.build import build_axis_graph
    from onnxprune.graph.groups import partition
    from onnxprune.model.finalize import finalize
    from onnxprune.model.io import load
    from onnxprune.model.normalize import normalize
    from onnxprune.model.shapes import infer_shapes
    from onnxprune.plans import Plan
    from onnxprune.rules import default_rules
    from onnxprune.surgery.keep import kept_positions
    from onnxprune.surgery.remove import remove

    took: dict[str, float] = {}

    def step(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        started = time.process_time()
        result = function(*arguments)
        took[name] = time.process_time() - started
        return result

    del run
    if not collect:
        gc.disable()
    imports = peak_mb()
    source = step("load", load, path)
    graph = step("normalise", normalize, source.ir)
    shapes = step("shapes", infer_shapes, graph)
    axis_graph = step("axis graph", build_axis_graph, graph, shapes, default_rules())
    parts = step("partition", partition, axis_graph)
    analysis = Analysis(source, axis_graph, parts, step("costs", CostModel, axis_graph, parts))
    choices = Choices(target=Target("ratio", RATIO))
    allocation = step("choice", lambda: allocate(analysis, score_groups(analysis, choices), choices))
    step("plan", Plan.of, analysis, allocation.keep)
    kept = kept_positions(analysis.groups, allocation.keep)
    cut = step("removal", remove, axis_graph, kept)
    step("finalise", finalize, cut)
    return {
        "steps": took,
        "imports": imports,
        "memory": peak_mb(),
        "groups": len(parts.groups),
        "cut": len(allocation.keep),
        "nodes": graph.graph.num_nodes(),
    }


def analysed(path: str, run: int) -> dict[str, Any]:
    """CPU seconds of `load` and `analyze` as the library is called, and memory that they take."""
    from onnxprune import api

    del run
    before = peak_mb()
    started = time.process_time()
    source = api.load(path)
    loaded = time.process_time()
    analysis = api.analyze(source)
    ended = time.process_time()
    return {
        "load": loaded - started,
        "analyze": ended - loaded,
        "memory": peak_mb() - before,
        "nodes": source.ir.graph.num_nodes(),
        "groups": len(analysis.groups),
    }


def command(path: str, run: int) -> dict[str, Any]:
    """CPU seconds of the whole process `onnxprune analyze`: imports, analysis, the text."""
    del run
    line = [sys.executable, "-m", "onnxprune", "analyze", path]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"seconds": used.ru_utime + used.ru_stime}


def deep(name: str, kind: str | None, nodes: int, fresh: bool) -> dict[str, Any]:
    """The fastest of `RUNS` analyses of a transformer; a reason where there is no such model here."""
    path = WORK / f"deep_{kind or 'chain'}_{nodes}.onnx"
    depends = {name: _text(name) for name in ("chains.py", "scaling.py", "deep.py")}
    if kind is None:
        what, arguments = "benchmarks.scaling:build", {"kind": "transformer", "nodes": nodes + 40}
    elif importlib.util.find_spec("transformers") is None:
        raise RuntimeError("the transformers library is missing: install .[zoo]")
    else:
        what, arguments = "benchmarks.deep:export_nodes", {"kind": kind, "exporter": "ts", "nodes": nodes}
    made = call(
        what, {**arguments, "path": str(path)}, limit=1800, depends=depends, fresh=fresh or not path.exists()
    )
    if not made.ok:
        raise RuntimeError(f"{name} could not be built: {made.failure}")
    depends["source"] = source_digest()
    runs = [_value(path, run, depends, fresh, "analysed") for run in range(RUNS)]
    commands = [_value(path, run, depends, fresh, "command")["seconds"] for run in range(RUNS)]
    figures = {key: min(run[key] for run in runs) for key in ("load", "analyze", "memory")}
    print(f"{name:44} {runs[0]['nodes']:6} nodes {figures['load'] + figures['analyze']:7.2f} s", flush=True)
    return {
        **runs[0],
        **figures,
        "command": min(commands),
        "slowest": max(commands),
        "bytes": path.stat().st_size,
    }


def best(kind: str, nodes: int, fresh: bool) -> dict[str, Any]:
    """The fastest of `RUNS` runs for each step."""
    path = WORK / f"{kind}_{nodes}.onnx"
    depends = {"source": source_digest(), "chains": _text("chains.py"), "scaling": _text("scaling.py")}
    made = call(
        "benchmarks.scaling:build",
        {"kind": kind, "nodes": nodes, "path": str(path)},
        depends=depends,
        fresh=fresh or not path.exists(),
    )
    if not made.ok:
        raise RuntimeError(f"{kind} with {nodes} nodes could not be built: {made.failure}")

    def runs(collect: bool) -> list[dict[str, Any]]:
        return [
            _value(path, run, depends, fresh, "measure", collect=collect)
            for run in range(RUNS if collect else 1)
        ]

    done = runs(True)
    steps = {name: min(run["steps"][name] for run in done) for name in STEPS}
    memory = min(run["memory"] - run["imports"] for run in done)
    without = sum(runs(False)[0]["steps"].values())
    total = sum(steps.values())
    print(
        f"{kind:12} {done[0]['nodes']:6} nodes {total:7.2f} s {without:7.2f} s {memory:6.0f} MB", flush=True
    )
    return {
        **done[0],
        "kind": kind,
        "steps": steps,
        "total": total,
        "without_collector": without,
        "memory": memory,
    }


def _value(
    path: Path, run: int, depends: Mapping[str, str], fresh: bool, step: str, **more: Any
) -> dict[str, Any]:
    arguments = {"path": str(path), "run": run, **more}
    done = call(f"benchmarks.scaling:{step}", arguments, depends=depends, fresh=fresh)
    if not done.ok:
        raise RuntimeError(f"{path.stem}: {done.failure}")
    return done.value


def exponent(sizes: list[float], values: list[float]) -> float:
    """The power of the size with which a value grows: the slope of the logarithms, least squares."""
    import numpy as np

    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def render(
    found: dict[str, list[dict[str, Any]]],
    deepest: dict[str, dict[str, Any]],
    about: Mapping[str, Any],
    kept: bool = False,
) -> str:
    """The page; `kept`: the figures of the chains are those of an earlier run."""
    main = found["residual"]
    sizes = [entry["nodes"] for entry in main]
    header = ["step", *(f"{size:,} nodes" for size in sizes), "us per node", "grows as n^"]
    series = {f"{name}: {what}": [entry["steps"][name] for entry in main] for name, what in STEPS.items()}
    series["**all**"] = [entry["total"] for entry in main]
    series["all, garbage collector off (one run)"] = [entry["without_collector"] for entry in main]
    rows = []
    for name, values in series.items():
        power = f"{exponent(sizes, values):.2f}"
        rows.append([name, *map(seconds, values), f"{1e6 * values[-1] / sizes[-1]:.0f}", power])
    memory = [entry["memory"] for entry in main]
    power = f"{exponent(sizes, memory):.2f}"
    rows.append(["peak memory above the imports, MB", *(f"{m:.0f}" for m in memory), "", power])
    parts = [
        "# How analysis and removal grow with the graph",
        "Chains of residual blocks (Conv, BatchNormalization, Relu, Conv, BatchNormalization, Add, Relu; 16 "
        f"channels), half of all units removed; the fastest of {RUNS} runs, in seconds of CPU time. The residual "
        "stream makes one group that spans the whole chain, every block one more. The proof in onnxruntime is "
        "not part of it.",
        table(header, rows),
        "What grows a little faster than the graph is Python's cyclic garbage collector, which walks over all "
        "objects now and then, in whichever step it is due; without it the growth is linear. (All "
        "steps but the first were measured at Python's own thresholds here; `load`, `analyze`, `prune`, `apply` "
        "and `slim` let it run less often.)",
        "Other chains, CPU seconds for all steps together: `dense` (each Conv reads the Concat of the last three "
        "results, which ties the chain together), `shuffle` (ShuffleNet units, where every Reshape offers two ways "
        "of cutting the whole chain), `transformer` (attention written out).",
        _others(found),
        f"## Transformers of {min(entry['nodes'] for entry in deepest.values()):,} nodes and more, analysed",
        "`load` and `analyze` called from Python with everything as it comes, and `onnxprune analyze FILE` as a "
        f"process, imports and text included; CPU seconds, the fastest of {RUNS} runs each. Memory is what the two "
        "functions add to the peak after the imports.",
        _deepest(deepest),
        environment_line(about) + (_EARLIER if kept else ""),
    ]
    return "\n\n".join(parts)


def _others(found: dict[str, list[dict[str, Any]]]) -> str:
    rows = []
    for kind, entries in found.items():
        if kind == "residual":
            continue
        sizes = [entry["nodes"] for entry in entries]
        totals = [entry["total"] for entry in entries]
        cells = [f"{seconds(total)} ({size:,})" for total, size in zip(totals, sizes, strict=True)]
        rows.append([kind, entries[-1]["groups"], *cells, f"{exponent(sizes, totals):.2f}"])
    return table(["chain", "groups", *["seconds (nodes)"] * 3, "grows as n^"], rows)


def _deepest(found: dict[str, dict[str, Any]]) -> str:
    header = [
        "model",
        "nodes in the file",
        "file, MB",
        "groups",
        "load",
        "analyze",
        "the whole command",
        "MB",
    ]
    rows = [
        [
            name,
            f"{entry['nodes']:,}",
            f"{entry['bytes'] / 1e6:.1f}",
            entry["groups"],
            seconds(entry["load"]),
            seconds(entry["analyze"]),
            seconds(entry["command"]),
            f"{entry['memory']:.0f}",
        ]
        for name, entry in found.items()
    ]
    return table(header, rows)


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Run everything that is not kept from before, and write the page."""
    parser = argparse.ArgumentParser(prog="benchmarks.scaling", description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=HERE, help="where the table goes")
    parser.add_argument("--fresh", action="store_true", help="use no results of an earlier run")
    parser.add_argument("--nodes", type=int, default=NODES, help="size of the transformers that are analysed")
    parser.add_argument(
        "--analysis", action="store_true", help="only these; the chains keep the figures of scaling.json"
    )
    options = parser.parse_args(arguments)
    deepest = {name: deep(name, kind, options.nodes, options.fresh) for name, kind in DEEP.items()}
    if options.analysis:
        found = json.loads((options.folder / "scaling.json").read_text(encoding="utf-8"))["chains"]
    else:
        found = {
            kind: [best(kind, nodes, options.fresh) for nodes in sizes]
            for kind, sizes in {"residual": SIZES, **OTHERS}.items()
        }
    about = environment()
    data = {"schema": "onnxprune-bench-scaling/1", "ratio": RATIO, "environment": about, "chains": found}
    data["deep"] = deepest
    write(options.folder, "scaling", render(found, deepest, about, options.analysis), data)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
