"""Puts a summary of the tables into the project's README, between its two `figures` marks.

python -m benchmarks.readme
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.tables import environment_line, share, table

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
MARKS = ("<!-- figures: python -m benchmarks.readme -->", "<!-- /figures -->")
TOOLS = ("onnxprune", "onnxprune, global", "onnxsim", "Torch-Pruning")
FEW = 4
"""Shares of the MACs that a twin of another model is asked for at most."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the README; arguments are ignored, so that it runs like the other benchmarks."""
    del arguments
    quality, torchvision, real, scaling = (
        _read(name) for name in ("quality", "torchvision", "real", "scaling")
    )
    parts = [
        _quality(quality),
        "torchvision's architectures (random weights) with `--ratio 0.5`, from PyTorch's TorchScript exporter. "
        "Each cell: parameters / MACs / latency that stay. All of onnxprune's results passed onnx's checker and "
        "the proof, from both exporters. **global** ranks the units of all groups together. "
        "[All figures](benchmarks/torchvision.md).",
        _torchvision(torchvision["entries"]),
        "Torch-Pruning works on the PyTorch module, not on a file, and also narrows the residual width of the "
        "ViT under LayerNorm, which is not exact.",
        _sparsity(_read("sparsity")),
        _real(real),
        _formats(_read("formats")["entries"]),
        _scaling(scaling),
        environment_line(torchvision["environment"]),
    ]
    text = README.read_text(encoding="utf-8")
    start, end = MARKS
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        print(f"{README} has no marks {start} ... {end}", file=sys.stderr)
        return 1
    body = "\n\n".join(parts)
    README.write_text(pattern.sub(lambda _: f"{start}\n\n{body}\n\n{end}", text), encoding="utf-8")
    print(f"{README} rewritten")
    return 0


SPARSE = (
    ("onnxprune", "onnxprune"),
    ("onnxprune sparsegpt", "its SparseGPT"),
    ("onnxsim sparsegpt", "onnxsim's SparseGPT"),
    ("onnxprune magnitude", "magnitude"),
)
"""Tools of the sparsity page that the README shows."""


def _sparsity(data: Mapping[str, Any]) -> str:
    """Top-1 of trained models whose weights were made zero in place."""
    rows = [row for row in data["rows"] if not row["failure"]]
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        before = next(row for row in mine if not row["tool"])
        for pattern, level in (("element", 0.5), ("2:4", 0.5), ("element", 0.8), ("element", 0.9)):
            found = {r["tool"]: r["top1"] for r in mine if (r["pattern"], r["asked"]) == (pattern, level)}
            cells = [f"{found[tool]:.1%}" if tool in found else "-" for tool, _ in SPARSE]
            lines.append([f"`{model}`", f"{pattern}, {level:.0%}", f"{before['top1']:.1%}", *cells])
    head = ["", "zeros", "original", *(name for _, name in SPARSE)]
    return (
        "Weights made zero in place, without training: top-1 on test data by what chooses and makes up for them. "
        f"[All curves](benchmarks/sparsity.md).\n\n{table(head, lines, left=2)}"
    )


def _read(name: str) -> Any:
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def _quality(quality: Mapping[str, Any]) -> str:
    """Top-1 of trained models by the share of MACs that was asked for, and what l1 without repair leaves.

    Models that were asked for a few shares only are those of others from another exporter.
    """
    rows = [
        row for row in quality["rows"] if not row["failure"] and row["experiment"] in ("baseline", "curve")
    ]
    models = list(dict.fromkeys(row["model"] for row in rows))
    asked = {
        model: {r["asked"] for r in rows if (r["model"], r["tool"]) == (model, "onnxprune")}
        for model in models
    }
    points = sorted(
        set.intersection(*(shares for shares in asked.values() if len(shares) > FEW)), reverse=True
    )
    lines = []
    for model in (model for model in models if len(asked[model]) > FEW):
        mine = [row for row in rows if row["model"] == model]
        found = {
            tool: {p: [r["top1"] for r in mine if (r["tool"], r["asked"]) == (tool, p)] for p in points}
            for tool in ("onnxprune", "l1")
        }
        before = next(row["top1"] for row in mine if row["experiment"] == "baseline")
        curve = [f"{mean(tops):.1%}" if tops else "" for tops in found["onnxprune"].values()]
        half = found["l1"].get(0.5)
        lines.append([f"`{model}`", f"{before:.1%}", *curve, f"{mean(half):.1%}" if half else ""])
    limit = f"at most {quality['samples']}" if quality["samples"] else "all"
    return "\n\n".join(
        [
            "Top-1 on test data of trained models by the share of MACs that stays (`--round-to 1`), without any "
            f"training: {limit} calibration samples, the mean of {quality['seeds']} seed(s). "
            "The last column is l1 without data at 50 %. [Targets, other tools, times](benchmarks/quality.md).",
            table(["", "original", *(f"{p:.0%}" for p in points), "l1, 50 %"], lines),
        ]
    )


def _torchvision(entries: Sequence[Mapping[str, Any]]) -> str:
    cells = {(e["model"], e["tool"]): e for e in entries if e["exporter"] == "ts"}
    models = list(dict.fromkeys(model for model, _ in cells))
    rows = [[f"`{model}`", *(_cell(cells.get((model, tool))) for tool in TOOLS)] for model in models]
    return table(["", *TOOLS], rows)


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["failure"]:
        return "failed"
    after, before = entry["result"], entry["original"]
    kept = [share(after[key], before[key]) for key in ("params", "macs")]
    return " / ".join([*kept, f"{entry['latency']:.2f}"])


def _real(real: Mapping[str, Any]) -> str:
    sound = sum(model["checked"] and not model["rejected"] for model in real["models"])
    return (
        f"Trained models as their authors published them ([details](benchmarks/real.md)): {sound} of "
        f"{len(real['models'])} are cut with `--ratio {real['ratio']}` and proven sound."
    )


def _formats(entries: Sequence[Mapping[str, Any]]) -> str:
    done = [entry for entry in entries if "params" in entry and entry["sound"] and not entry["rejected"]]
    shares = sorted(entry["bytes"][1] / entry["bytes"][0] for entry in done)
    return (
        f"In the forms in which people have them ([details](benchmarks/formats.md)): {len(done)} of {len(entries)} "
        "quantised, recurrent, branching, half-precision, fused and published files come out sound, with "
        f"{shares[0]:.0%} to {shares[-1]:.0%} of their bytes."
    )


def _scaling(scaling: Mapping[str, Any]) -> str:
    runs = scaling["chains"]["residual"]
    first, last = runs[0], runs[-1]
    return (
        "Analysis and removal grow with the graph ([details](benchmarks/scaling.md)): "
        f"{first['total']:.1f} s for {first['nodes']:,} nodes, {last['total']:.1f} s for {last['nodes']:,}."
    )


if __name__ == "__main__":
    sys.exit(main())
