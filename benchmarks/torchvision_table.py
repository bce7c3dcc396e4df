"""torchvision's models pruned by onnxprune, onnxsim and Torch-Pruning, side by side in one run.

    python -m benchmarks.torchvision_table

writes `torchvision.md` and `torchvision.json` beside this file. Each tool runs on each model in a process of
its own with a time limit; what fails is listed with its reason. A run that was interrupted goes on where it
stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.isolated import Outcome, call, file_digest, source_digest, version
from benchmarks.tables import environment, environment_line, millions, seconds, share, table, write

MODELS = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "densenet121",
    "shufflenet_v2_x1_0",
    "googlenet",
    "efficientnet_b0",
    "vit_b_16",
)
EXPORTERS = ("dynamo", "ts")
RATIO = 0.5
LIMIT = 600.0
HERE = Path(__file__).parent
WORK = Path("build/bench/torchvision")

# label -> (function of benchmarks.tools, its options, package whose version the result depends on)
TOOLS: dict[str, tuple[str, dict[str, Any], str]] = {
    "onnxprune": ("onnxprune", {"scope": "local"}, "onnxprune"),
    "onnxprune, global": ("onnxprune", {"scope": "global"}, "onnxprune"),
    "onnxsim": ("onnxsim", {"simplify": False}, "onnxsim"),
    "onnxsim, simplified": ("onnxsim", {"simplify": True}, "onnxsim"),
    "Torch-Pruning": ("torch_pruning", {"round_to": 8}, "torch-pruning"),
}
LEGEND = f"""\
Every tool was asked for {RATIO:.0%} of the channels of what it can prune. Weights are random (accuracy is
not the subject).

- **onnxprune**: `onnxprune prune MODEL --ratio {RATIO}`: the same share of every group, which is what the
  other tools do. **global**: `--scope global`, one ranking over all groups. Both round widths to 8, count
  heads as units, leave softmax and LayerNorm axes whole, and prove masked == removed in onnxruntime before
  the file is written.
- **onnxsim**: `onnxsim.pruning.apply_structured_pruning(model, sparsity={RATIO})` on the same file;
  **simplified**: the same after `onnxsim.simplify`. It does not round widths and leaves attention to
  another function.
- **Torch-Pruning**: `MagnitudePruner(pruning_ratio={RATIO}, global_pruning=False, round_to=8)` with the L2
  norm on the same torchvision module, classifier left out, heads kept aligned (as in its examples); the
  result was exported by the TorchScript exporter, so it is listed once per model and its latency is
  compared with that file. It narrows the residual width under LayerNorm, too, which is not exact, and which
  onnxprune does not do by default.

*params*, *MACs*: of the result, counted by onnxprune for all tools, and as a share of the original.
*valid*: onnx's checker with `full_check`; "runs" means that it refuses the file and onnxruntime runs it all
the same. *sound*: masked == removed, largest difference over largest output; the other tools do not check
it. *analysis*, *removal*: seconds without imports and files (onnxsim does both in one call; onnxprune's
analysis is followed by scoring and choosing, listed as *choice*). *memory*: peak MB at the end of the
removal; the first figure was there after the imports. *whole*: seconds, and peak MB, of onnxprune's job
from file to file, proof in onnxruntime included. *latency*: median of one image on one thread of
onnxruntime, relative to the original, runs interleaved.
"""


@dataclass
class Entry:
    """One tool on one model; the dicts are those of `benchmarks.tools`, empty after a failure."""

    model: str
    exporter: str
    tool: str
    figures: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    failure: str = ""
    latency: float | None = None


@dataclass
class Original:
    """An exported model as it came."""

    path: Path
    figures: dict[str, Any] = field(default_factory=dict)
    milliseconds: float | None = None


def measure(model: str, exporter: str, zoo: Path, fresh: bool) -> tuple[Original | None, list[Entry]]:
    """All tools on one exported model; (None, failures) where it could not be exported."""
    path = zoo / f"{model}{'_ts' if exporter == 'ts' else ''}.onnx"
    if not path.exists():
        exported = call(
            "benchmarks.torchvision_table:export",
            {"model": model, "exporter": exporter, "path": str(path)},
            depends={"torch": version("torch")},
            fresh=True,
        )
        if not exported.ok:
            return None, [Entry(model, exporter, "export", failure=exported.failure)]
    digest = file_digest(path)
    onnxprune_is = {"model": digest, "onnxprune": source_digest()}
    checked = call("benchmarks.tools:inspect", {"model": str(path)}, depends=onnxprune_is)
    original = Original(path, checked.value)
    entries = []
    for tool in TOOLS:
        if tool == "Torch-Pruning" and exporter != "ts":
            continue
        entries.append(_measure_tool(tool, model, exporter, path, digest, fresh))
        print(_line(entries[-1]), flush=True)
    _time(original, entries, digest, fresh)
    return original, entries


def export(model: str, exporter: str, path: str) -> dict[str, Any]:
    """Export one model; runs in a process of its own, because this one stays free of PyTorch."""
    from benchmarks import zoo

    done = zoo.export(model, exporter, path)  # type: ignore[arg-type]
    return {"dynamic_batch": done.dynamic_batch}


def _measure_tool(tool: str, model: str, exporter: str, path: Path, digest: str, fresh: bool) -> Entry:
    function, options, package = TOOLS[tool]
    output = WORK / f"{model}_{exporter}_{tool.replace(', ', '_')}.onnx"
    output.parent.mkdir(parents=True, exist_ok=True)
    subject = {"name": model} if function == "torch_pruning" else {"model": str(path)}
    depends = {"model": digest, package: version(package), "tools": file_digest(HERE / "tools.py")}
    if function == "onnxprune":
        depends["source"] = source_digest()
    arguments = {**subject, "output": str(output), "ratio": RATIO, **options}
    pruned = call(
        f"benchmarks.tools:{function}",
        arguments,
        limit=LIMIT,
        depends=depends,
        fresh=fresh or not output.exists(),
    )
    if not pruned.ok:
        return Entry(model, exporter, tool, failure=pruned.failure)
    counted = call(
        "benchmarks.tools:inspect",
        {"model": str(output)},
        limit=LIMIT,
        depends={"model": file_digest(output), "onnxprune": source_digest()},
    )
    return Entry(model, exporter, tool, pruned.value, counted.value, counted.failure)


def _time(original: Original, entries: list[Entry], digest: str, fresh: bool) -> None:
    models = {"original": str(original.path)}
    for entry in entries:
        if entry.result.get("runs"):
            models[entry.tool] = str(
                WORK / f"{entry.model}_{entry.exporter}_{entry.tool.replace(', ', '_')}.onnx"
            )
    found: Outcome = call(
        "benchmarks.tools:latency",
        {"models": models, "seconds": 15.0, "least": 7},
        limit=LIMIT,
        depends={name: file_digest(Path(path)) for name, path in models.items()} | {"model": digest},
        fresh=fresh,
    )
    original.milliseconds = found.value.get("original")
    for entry in entries:
        if original.milliseconds and entry.tool in found.value:
            entry.latency = found.value[entry.tool] / original.milliseconds


def _line(entry: Entry) -> str:
    if entry.failure:
        return f"{entry.model:20} {entry.exporter:7} {entry.tool:20} failed: {entry.failure}"
    size = f"{millions(entry.result['params'])} M params, {millions(entry.result['macs'])} M MACs"
    return f"{entry.model:20} {entry.exporter:7} {entry.tool:20} {size}"


def render(found: list[tuple[Original | None, list[Entry]]], about: Mapping[str, Any]) -> str:
    """The page."""
    parts = ["# torchvision's models, pruned by three tools", LEGEND.strip()]
    parts += ["## Parameters and MACs that stay", _summary(found)]
    for original, entries in found:
        if original is None:
            continue
        first = entries[0]
        size = f"{millions(original.figures['params'])} M params, {millions(original.figures['macs'])} M MACs"
        took = f", {original.milliseconds:.1f} ms" if original.milliseconds else ""
        parts += [f"## {first.model}, {first.exporter} exporter: {size}{took}", _details(original, entries)]
    if failures := list(_failures(found)):
        parts += ["## What failed, or is not valid", "\n".join(failures)]
    return "\n\n".join([*parts, environment_line(about)])


def _summary(found: list[tuple[Original | None, list[Entry]]]) -> str:
    rows = []
    for original, entries in found:
        if original is None:
            continue
        whole = original.figures
        cells = {
            entry.tool: " / ".join(share(entry.result[what], whole[what]) for what in ("params", "macs"))
            for entry in entries
            if not entry.failure
        }
        failed = {entry.tool: "failed" for entry in entries if entry.failure}
        name = f"{entries[0].model}, {entries[0].exporter}"
        rows.append([name, *((cells | failed).get(tool, "") for tool in TOOLS)])
    return table(["params / MACs", *TOOLS], rows)


def _details(original: Original, entries: list[Entry]) -> str:
    header = ["tool", "valid", "sound", "params, M", "MACs, M", "analysis", "choice", "removal"]
    header += ["memory", "whole", "memory, whole", "latency"]
    rows = []
    for entry in entries:
        if entry.failure:
            rows.append([entry.tool, "failed", *[""] * (len(header) - 2)])
            continue
        f, r, whole = entry.figures, entry.result, original.figures
        rows.append(
            [
                entry.tool,
                "yes" if r["valid"] and r["runs"] else "runs" if r["runs"] else "no",
                f"{f['max_abs_diff'] / f['max_abs_output']:.0e}"
                if f.get("sound")
                else "no"
                if "sound" in f
                else "",
                f"{millions(r['params'])} ({share(r['params'], whole['params'])})",
                f"{millions(r['macs'])} ({share(r['macs'], whole['macs'])})",
                seconds(f["analysis"]) if "analysis" in f else "",
                seconds(f["choice"]) if "choice" in f else "",
                seconds(f["removal"]),
                f"{f['imports']:.0f} / {f['memory']:.0f}",
                seconds(f["whole"]) if "whole" in f else "",
                f"{f['memory_whole']:.0f}" if "memory_whole" in f else "",
                f"{entry.latency:.2f}" if entry.latency else "",
            ]
        )
    return table(header, rows, left=3)


def _failures(found: list[tuple[Original | None, list[Entry]]]) -> Iterator[str]:
    for _, entries in found:
        for entry in entries:
            where = f"- {entry.model}, {entry.exporter}, {entry.tool}"
            if entry.failure:
                yield f"{where}: {entry.failure}"
            elif entry.result["why"]:
                yield f"{where}: {entry.result['why']}"
            if entry.figures.get("rejected"):
                yield f"{where}: masked != removed with {', '.join(entry.figures['rejected'])}, kept whole"


def main(arguments: list[str] | None = None) -> int:
    """Run everything that is not kept from before, and write the page."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.torchvision_table", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("names", nargs="*", metavar="MODEL", help=f"default: {', '.join(MODELS)}")
    parser.add_argument("--zoo", type=Path, default=Path("build/zoo"), help="folder of exported models")
    parser.add_argument("--folder", type=Path, default=HERE, help="where the table goes")
    parser.add_argument("--fresh", action="store_true", help="use no results of an earlier run")
    options = parser.parse_args(arguments)
    found = [
        measure(model, exporter, options.zoo, options.fresh)
        for model in options.names or MODELS
        for exporter in EXPORTERS
    ]
    about = environment("onnxsim", "torch", "torchvision", "torch-pruning")
    data = {
        "schema": "onnxprune-bench-torchvision/1",
        "ratio": RATIO,
        "environment": about,
        "entries": [
            {**vars(entry), "original": original.figures if original else {}}
            for original, entries in found
            for entry in entries
        ],
    }
    write(options.folder, "torchvision", render(found, about), data)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
