"""Sums up what fuzzed graphs came to: the page and its figures, from the lines that `tests.fuzz --log` has written.

python -m tests.fuzz --from 0 --count 10000 --jobs 2 --log build/fuzz.jsonl --minimise
python -m benchmarks.fuzz build/fuzz.jsonl
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.tables import environment, environment_line, share, table, write
from onnxprune.rules import builtin_rules
from tests.fuzz import log

HERE = Path(__file__).parent
FOUND = HERE / "fuzz_found.json"
"""What the fuzzer has found so far, by hand: what it was, and which seed showed it."""
SCHEMA = "onnxprune-bench-fuzz/1"
HEADER = """\
# Fuzzed graphs

Graphs of 5 to 60 nodes drawn at random, from every operator that has a rule and that onnxruntime runs, from parts
of networks (residuals, gates, attention, shuffles, shared and tied weights), in float32, float16, float64 and
bfloat16 as a whole or in part, in many opsets, with symbolic dims, several outputs, outputs that the graph goes
on with, Constant nodes, and initializers listed as inputs. Each is pruned with options drawn for it, and:

- the proof ran, and no group was rejected by it (masked == removed in onnxruntime, at every contraction that lost
  terms);
- onnx's checker accepts the result with `full_check`; onnxruntime runs it; names, types and shapes of the outputs
  are what they were, and their values finite;
- a second run, and a replay of the plan from its file, give the same bytes;
- masking by the same plan gives the outputs of removal, compared here without onnxprune's prover;
- `slim` keeps the outputs of every other graph, and of every masked model that it can undo it makes the removed
  one, weight for weight;
- every fifth graph goes through `check_model`: each group alone, each alternative, other orders of the nodes.

A graph in which nothing can be cut proves little, so their share is counted. `python -m tests.fuzz --from SEED
--count 1 --minimise` draws a seed again, and makes a failing one small.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Read logs, or without any the figures that are there, and write the page."""
    parser = argparse.ArgumentParser(prog="benchmarks.fuzz", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("logs", nargs="*", type=Path, help="what `tests.fuzz --log` has written")
    parser.add_argument("--fresh", action="store_true", help="ignored, so that it runs like the benchmarks")
    logs = parser.parse_args(arguments).logs
    if logs:
        data = {**summary(log.read(logs).values()), "environment": environment()}
    else:
        data = json.loads((HERE / "fuzz.json").read_text(encoding="utf-8"))
    found = json.loads(FOUND.read_text(encoding="utf-8"))
    write(HERE, "fuzz", render(data, found), data)
    print(f"{HERE / 'fuzz.md'} written")
    return 1 if data["failures"] else 0


def summary(records: Iterable[log.Record]) -> dict[str, Any]:
    """The figures of a campaign.

    Raises
    ------
    ValueError
        There are no lines.
    """
    lines = list(records)
    if not lines:
        raise ValueError("the logs have no lines")
    cut = [line for line in lines if line["dropped"]]
    nodes = sorted(line["nodes"] for line in lines)
    operators: Counter[str] = Counter()
    graphs: Counter[str] = Counter()
    for line in lines:
        operators.update(line["drawn"])
        graphs.update(line["drawn"].keys())
    digests = "".join(line["digest"] for line in lines)
    return {
        "schema": SCHEMA,
        "seeds": [lines[0]["seed"], lines[-1]["seed"]],
        "graphs": len(lines),
        "commits": dict(Counter(line["commit"] for line in lines)),
        "nodes": {"all": sum(nodes), "least": nodes[0], "median": median(nodes), "most": nodes[-1]},
        "sizes": dict(sorted(Counter(str(n // 10 * 10) for n in nodes).items())),
        "types": dict(Counter(line["dtype"] for line in lines).most_common()),
        "traits": dict(Counter(trait for line in lines for trait in line["traits"]).most_common()),
        "opsets": {str(k): n for k, n in sorted(Counter(line["opset"] for line in lines).items())},
        "with groups": sum(line["groups"] > 0 for line in lines),
        "cut": len(cut),
        "compared": sum(line["compared"] for line in lines),
        "units": sum(line["dropped"] for line in lines),
        "macs": round(median([line["macs"] for line in cut] or [0.0]), 4),
        "params": round(median([line["params"] for line in cut] or [0.0]), 4),
        "redraws": sum(len(line["redraws"]) for line in lines),
        "seconds": round(sum(line["seconds"] for line in lines), 1),
        "digest": hashlib.sha256(digests.encode()).hexdigest()[:16],
        "operators": dict(sorted(operators.items())),
        "graphs with": dict(sorted(graphs.items())),
        "failures": [
            {"seed": line["seed"], "commit": line["commit"], "kind": line["failure"][0]}
            for line in lines
            if line["failure"]
        ],
    }


def render(data: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> str:
    """The page."""
    parts = [HEADER.strip(), "## The campaign", _figures(data), "## Failures", _failures(data)]
    parts += ["## What it has found so far", _found(found), "## Operators", _operators(data)]
    parts.append(environment_line(data["environment"]))
    return "\n\n".join(parts)


def _figures(data: Mapping[str, Any]) -> str:
    graphs, nodes = data["graphs"], data["nodes"]

    def listed(name: str) -> str:
        return ", ".join(f"{key} {n:,}" for key, n in data[name].items())

    rows = [
        ["graphs", f"{graphs:,}, seeds {data['seeds'][0]} to {data['seeds'][1]}"],
        ["commits", listed("commits")],
        [
            "nodes, Constants not counted",
            f"{nodes['all']:,}: {nodes['least']} / {nodes['median']:g} / {nodes['most']} (min / median / max)",
        ],
        ["graphs by nodes", ", ".join(f"{key}s: {n:,}" for key, n in data["sizes"].items())],
        ["operators drawn", f"{len(data['operators'])} of {_drawable()} that have a rule, and Constant"],
        ["float types, in all or in part", listed("types")],
        ["written with", listed("traits")],
        ["opsets", listed("opsets")],
        ["graphs with a group", f"{data['with groups']:,} ({share(data['with groups'], graphs)})"],
        ["graphs that lost something", f"{data['cut']:,} ({share(data['cut'], graphs)})"],
        ["units removed", f"{data['units']:,}"],
        ["MACs / parameters removed", f"{data['macs']:.0%} / {data['params']:.0%} (medians of those)"],
        ["masked models that slim had to cut", f"{data['compared']:,}"],
        ["drawn again, before anything was checked", f"{data['redraws']:,}"],
        ["time", f"{data['seconds'] / graphs:.2f} s of a core per graph"],
        ["digest of all results", data["digest"]],
    ]
    return table(["", ""], rows, left=2)


def _drawable() -> int:
    from tests.fuzz.templates import covered

    return len(set(covered()) & set(builtin_rules()))


def _failures(data: Mapping[str, Any]) -> str:
    if not data["failures"]:
        return "None."
    rows = [[each["seed"], each["commit"], each["kind"]] for each in data["failures"]]
    return table(["seed", "commit", "kind"], rows, left=3)


def _found(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return "Nothing."
    rows = [[each["seed"], each["where"], each["what"], each["then"]] for each in found]
    return table(["seed", "where", "what it was", "what became of it"], rows, left=4)


def _operators(data: Mapping[str, Any]) -> str:
    lines = [f"{name} {n:,} ({data['graphs with'][name]:,})" for name, n in data["operators"].items()]
    return "How often each was drawn, and in how many graphs: " + ", ".join(lines) + "."


if __name__ == "__main__":
    sys.exit(main())
