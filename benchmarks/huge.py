"""A decoder of more than 4 GB, analysed and pruned within 1 GB of anonymous memory.

    python -m benchmarks.huge

draws the decoders (`benchmarks.huge_model`) into `build/huge`, which needs 8 GB of disk, runs the command line on
them, writes `huge.md` and `huge.json` beside this file, and deletes the decoders again. Linux only: memory is read
from /proc. A decoder that is there already (with `--keep`, from an earlier run) is used as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.anonymous import Watched, watch
from benchmarks.huge_model import Size, build
from benchmarks.tables import environment, environment_line, table, write

HERE = Path(__file__).parent
WORK = Path("build/huge")
BOUND = 1 << 30
"""Bytes of anonymous memory that no command may take."""
SMALL = Size(6, 1024, 16, 4, 2816, 16000)
SIZES = {
    "small": SMALL,
    "small16": Size(12, 1024, 16, 4, 2816, 32000, dtype="float16"),
    "big": Size(),
}
RUNS = {
    "small": (("--params", "0.7"),),
    "small16": (("--params", "0.7"),),
    "big": (("--params", "0.7"), ("--ratio", "0.5")),
}


def idle() -> int:
    """Anonymous bytes of a process that has everything imported and nothing to do."""
    imports = "import time, onnx, networkx, onnxruntime, onnxprune.api; time.sleep(1)"
    return watch([sys.executable, "-c", imports]).anonymous


def measure(name: str, path: Path) -> list[dict[str, Any]]:
    """All commands on one decoder."""
    rows = [_row("analyze", _command("analyze", str(path)), {})]
    output, report = path.with_name(f"{name}.pruned.onnx"), path.with_name(f"{name}.report.json")
    data = path.with_name(f"{name}.pruned.onnx.data")
    for target in RUNS[name]:
        given = ["prune", str(path), "-o", str(output), "--report", str(report), *target]
        ran = _command(*given)
        found = json.loads(report.read_text(encoding="utf-8"))
        found["bytes"] = output.stat().st_size + data.stat().st_size
        rows.append(_row(" ".join(["prune", *target]), ran, found))
        for file in (output, data, report):
            file.unlink()
    return rows


def _command(*arguments: str) -> Watched:
    ran = watch([sys.executable, "-m", "onnxprune", *arguments])
    if ran.code:
        raise RuntimeError(f"onnxprune {' '.join(arguments)} failed: {ran.errors[-500:]}")
    if ran.anonymous > BOUND:
        raise RuntimeError(f"onnxprune {' '.join(arguments)} took {ran.anonymous:,} anonymous bytes")
    return ran


def _row(command: str, ran: Watched, report: dict[str, Any]) -> dict[str, Any]:
    proof = report.get("soundness", {})
    if report and (not proof["checked"] or proof["rejected_groups"]):
        raise RuntimeError(f"{command}: the proof failed: {proof}")
    return {
        "command": command,
        "anonymous": ran.anonymous,
        "resident": ran.resident,
        "seconds": ran.seconds,
        "cpu": ran.cpu,
        "output": report.get("bytes"),
        "difference": proof.get("max_abs_diff"),
        "largest": proof.get("max_abs_output"),
        "inner": proof.get("inner"),
    }


def render(found: dict[str, dict[str, Any]], base: int, about: dict[str, Any]) -> str:
    """The page."""
    header = [
        "decoder",
        "command",
        "file, MB",
        "anonymous, MB",
        "CPU s",
        "wall s",
        "output, MB",
        "masked == removed",
    ]
    rows = [
        [
            name,
            f"`{row['command']}`",
            f"{entry['bytes'] / 1e6:,.0f}",
            f"{row['anonymous'] / 1e6:.0f}",
            f"{row['cpu']:.0f}",
            f"{row['seconds']:.0f}",
            "" if row["output"] is None else f"{row['output'] / 1e6:,.0f}",
            ""
            if row["difference"] is None
            else f"{row['difference']:.1e} of {row['largest']:.2f}, {row['inner']} inner results",
        ]
        for name, entry in found.items()
        for row in entry["rows"]
    ]
    parts = [
        "# Models that are larger than the memory",
        "Decoders of Llama's architecture with random weights in external data (`benchmarks.huge_model`; `big` has "
        "TinyLlama's sizes: 22 layers of width 2,048, 32 query heads that share 4 key heads, float32), through the "
        "command line without data: loading, analysis, slimming, scoring, the proof, writing. *Anonymous* is the "
        f"peak of RssAnon, sampled every 10 ms: memory that is no page of a mapped file. {base / 1e6:.0f} MB are "
        "Python and the imports.",
        table(header, rows, left=2),
        "The proof compares all outputs and the result of every contraction that lost terms, on the real execution "
        "of both models in onnxruntime, piece by piece: never more than 64 MB of weights (or one weight) are in a "
        "session, and weights that nothing changes are mapped from the file. How: [formats](../docs/formats.md).",
        environment_line(about) + " Wall time includes waiting for it.",
    ]
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Draw, run, write the page, delete."""
    parser = argparse.ArgumentParser(prog="benchmarks.huge", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", default=list(SIZES), help=f"default: {', '.join(SIZES)}")
    parser.add_argument("--folder", type=Path, default=HERE, help="where the table goes")
    parser.add_argument("--fresh", action="store_true", help="draw the decoders again")
    parser.add_argument("--keep", action="store_true", help="do not delete the decoders")
    options = parser.parse_args(arguments)
    base, found = idle(), {}
    for name in options.names:
        path = WORK / f"{name}.onnx"
        data = path.with_name(f"{name}.onnx.data")
        if options.fresh or not path.exists():
            build(path, SIZES[name])
        size = path.stat().st_size + data.stat().st_size
        found[name] = {"bytes": size, **vars(SIZES[name]), "rows": measure(name, path)}
        for row in found[name]["rows"]:
            print(
                f"{name:8} {row['command']:20} {row['anonymous'] / 1e6:6.0f} MB {row['cpu']:5.0f} s",
                flush=True,
            )
        if not options.keep:
            path.unlink()
            data.unlink()
    about = environment()
    write(
        options.folder,
        "huge",
        render(found, base, about),
        {"schema": "onnxprune-bench-huge/1", "idle": base, "environment": about, "decoders": found},
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
