"""The page of the gradients benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.gradients_operators import REFUSED
from benchmarks.tables import environment_line, table

COSINE = 0.9999
"""What every tensor's gradient has to reach."""

LIMIT = 1.5
"""Times PyTorch's time, and memory, up to which nothing has to be explained."""

NOT_RUN = "not run yet"
"""The reason of what was left for later."""

_KINDS = {"masks": "masks over units", "weights": "all weights"}


def render(data: Mapping[str, Any]) -> str:
    """The page, from what the `.json` holds."""
    rows = data["models"]
    parts = [
        "# Gradients",
        "Forward and backward as one graph of standard ONNX operators, made by "
        "`onnxprune.gradients.build_backward`. `python -m benchmarks.gradients` makes this page.",
        *_operators(data["operators"]),
        *_whole_models(rows),
        *_cost(rows, data),
        *data.get("remarks", []),
        *_profiles(rows),
        *_failures(rows),
        environment_line(data["environment"]),
    ]
    return "\n\n".join(parts)


def _operators(found: Mapping[str, list[str]]) -> list[str]:
    def names(kind: str) -> str:
        return ", ".join(name.replace("com.microsoft::", "com.microsoft.") for name in found[kind])

    lines = [
        [f"with a VJP ({len(found['covered'])})", names("covered")],
        [f"said in these, before gradients pass ({len(found['lowered'])})", names("lowered")],
        [f"differentiable, with neither ({len(found['missing'])})", names("missing") or "none"],
        [
            f"no gradient passes: integers, truth values, steps, constants ({len(found['flat'])})",
            names("flat"),
        ],
        [f"standard operators without any rule ({len(found['unknown'])})", names("unknown")],
    ]
    return [
        "## Operators",
        "From the rule table, opset 18, to which models are brought first. An operator without a VJP between a "
        "target and the loss is an error that names it, and a rule adds one "
        "([extending](../docs/extending.md)). What gradients do not have to pass needs none.",
        table(["", "operators"], lines, left=2),
        "What stays an error, which names the node, the reason and the criteria that need no gradients:",
        table(["operator", "variant, or why"], [list(pair) for pair in REFUSED.items()], left=2),
    ]


def _whole_models(rows: list[Mapping[str, Any]]) -> list[str]:
    good = [row["compare"] for row in rows if row["compare"]]
    reached = [f for f in good if f["weights"]["cosine"] >= COSINE and not f["missing"]]
    lowest = min(f["weights"]["cosine"] for f in good)
    tensors, zeros = sum(f["tensors"] for f in good), sum(f["weights"]["zeros"] for f in good)
    header = [
        "model",
        "exporter",
        "form",
        "tensors",
        "lowest cosine",
        "worst error",
        "masks: cosine",
        "error",
    ]
    header += ["nodes", "with gradients", "build, s"]
    lines = [_compared(row) for row in rows if row["compare"]]
    return [
        "## Whole models against torch.autograd",
        f"Met by {len(reached)} of {len(rows)}: the gradient of every weight has a cosine of at least {COSINE} "
        f"with that of torch.autograd, both in float32. The lowest of all {tensors:,} tensors is "
        f"{_cosine(lowest)}.",
        table(header, lines, left=3),
        "Random weights that no two channels share, the same on both sides; two samples; cross-entropy with "
        "labels, with the next token (gpt2, llama), squared error (whisper encoder). *form*: `default`, as the "
        "exporter writes it, or `plain`, without optimization or folding, where that would lose parameters "
        "(BatchNorm put into convolutions, position tables looked up). Initializers are found by name, else by "
        "their values; those of transposed weights are compared transposed; a weight that is held twice gets the "
        "sum. *1 - x*: the distance from 1. *worst error*: the largest difference as a share of the tensor's "
        "largest entry. *masks*: the same for masks over the output channels of each convolution and linear "
        "layer, per sample. *nodes*: of the model, and of the graph with the gradients of all weights; *build*: "
        f"seconds for one such graph. {zeros} tensors are not among the cosines, because their gradient is zero "
        "but for rounding (a bias of keys moves all scores alike): ours is at most "
        f"{max(f['weights']['zeros_norm'] for f in good):.0e} of the model's largest.",
        *_kinks(rows),
    ]


def _compared(row: Mapping[str, Any]) -> list[object]:
    found = row["compare"]
    weights, masks, nodes = found["weights"], found["masks"], found["nodes"]
    missing = f" ({len(found['missing'])} not found)" if found["missing"] else ""
    return [
        *(row["model"], row["exporter"], "plain" if found["plain"] else "default"),
        f"{found['tensors']}{missing}",
        *(_cosine(weights["cosine"]), f"{weights['error']:.0e}"),
        *(_cosine(masks["cosine"]), f"{masks['error']:.0e}"),
        *(f"{nodes['model']:,}", f"{nodes['weights']:,}", f"{found['build']:.2f}"),
    ]


def _cosine(value: float) -> str:
    return "1" if value >= 1 else f"1 - {1 - value:.0e}"


def _kinks(rows: list[Mapping[str, Any]]) -> Iterator[str]:
    with_kinks = [row for row in rows if row["compare"] and row["compare"]["first"]]
    if not with_kinks:
        return
    lines = []
    for row in with_kinks:
        found = row["compare"]
        first = found["first"]
        lines.append(
            [
                *(row["model"], row["exporter"], found["seed"], found["kinks"]),
                *(_cosine(first["weights"]["cosine"]), f"{first['weights']['error']:.0e}"),
                *(_cosine(first["torch"]["cosine"]), f"{first['torch']['error']:.0e}"),
            ]
        )
    yield (
        "Where an activation is so close to 0 that rounding decides what ReLU does with it, two right gradients "
        "differ. So batches were drawn until PyTorch and onnxruntime took the same side everywhere, which looks "
        "at activations alone. What the first batch drawn gives, beside PyTorch's own float32 against its float64 "
        "on the same batch:"
    )
    header = ["model", "exporter", "batch taken", "sides that differ", "first batch: cosine", "error"]
    yield table([*header, "PyTorch itself: cosine", "error"], lines, left=2)


def _cost(rows: list[Mapping[str, Any]], data: Mapping[str, Any]) -> list[str]:
    timed = [(row, kind) for row in rows for kind in _KINDS if row["cost"].get(kind)]
    if not timed:
        return []
    slow = [1 for row, kind in timed if row["cost"][kind]["ratio"] > LIMIT]
    large = [1 for row, kind in timed if _memory_ratio(row, kind) > LIMIT]
    header = ["model", "gradients of", "onnxruntime, ms", "PyTorch, ms", "ratio", "of CPU time"]
    header += ["onnxruntime, MB", "PyTorch, MB", "ratio", "whole processes, MB", "ratio"]
    return [
        "## Time and memory against PyTorch",
        f"Slower than {LIMIT} times PyTorch: {len(slow)} of {len(timed)}. More memory than {LIMIT} times as much: "
        f"{len(large)} of {len(timed)}.",
        table(header, [_costs(row, kind) for row, kind in timed], left=2),
        f"Forward and backward of a batch of {data['batch']}, in eager PyTorch and in onnxruntime on the graph "
        "from the dynamo exporter: one thread each, in turn in one process, medians; *ratio* is onnxruntime's "
        "time as a share of PyTorch's, *of CPU time* the same for the time on the processor. *masks over units*: "
        "no gradient of a weight is computed on either side; PyTorch takes the gradients of the activations and "
        "multiplies and sums them, with nothing computed in place, because the activations are read again. "
        "*MB*: the peak of a process of its own that runs one side three times, above what its imports take. That "
        "of onnxruntime reads the finished graph from a file, opens a lean session "
        "(`onnxprune.calibrate.sessions.open_session`), and counts the weights' file, which is mapped into "
        "memory, too.",
        _sizes(data),
    ]


def _sizes(data: Mapping[str, Any]) -> str:
    return "Sizes: " + ", ".join(f"{name} {about}" for name, about in data["sizes"].items()) + "."


def _above(figures: Mapping[str, float]) -> float:
    return figures["peak"] - figures["before"]


def _memory_ratio(row: Mapping[str, Any], kind: str) -> float:
    found = row["memory"].get(kind)
    return _above(found["onnx"]) / _above(found["torch"]) if found else 0.0


def _costs(row: Mapping[str, Any], kind: str) -> list[object]:
    cost, memory = row["cost"][kind], row["memory"].get(kind)
    line: list[object] = [
        row["model"],
        _KINDS[kind],
        f"{1e3 * cost['onnx']:.0f}",
        f"{1e3 * cost['torch']:.0f}",
    ]
    line += [_ratio(cost["ratio"]), _ratio(cost["cpu"])]
    if not memory:
        return [*line, "-", "-", "-", "-", "-"]
    ours, theirs = memory["onnx"], memory["torch"]
    line += [f"{_above(ours):,.0f}", f"{_above(theirs):,.0f}", _ratio(_memory_ratio(row, kind))]
    return [*line, f"{ours['peak']:,.0f} / {theirs['peak']:,.0f}", _ratio(ours["peak"] / theirs["peak"])]


def _ratio(value: float) -> str:
    return f"**{value:.2f}**" if value > LIMIT else f"{value:.2f}"


def _profiles(rows: list[Mapping[str, Any]]) -> Iterator[str]:
    profiled = [(row, kind, found) for row in rows for kind, found in row["profile"].items()]
    if profiled:
        yield f"## Profiles of what takes more than {LIMIT} times PyTorch's time"
    for row, kind, found in profiled:
        yield f"### {row['model']}, {_KINDS[kind]}"
        total = found["total"]
        operators = [f"{op} {took / total:.0%}".replace("%", " %") for op, took in found["operators"].items()]
        yield f"Of {total:.0f} ms: {', '.join(operators)}. The slowest nodes:"
        lines = [
            [op, " ".join(map(str, shapes)), f"{took:.1f}"] for _, op, shapes, took in found["nodes"][:6]
        ]
        yield table(["operator", "shapes of the inputs", "ms"], lines, left=2)


def _failures(rows: list[Mapping[str, Any]]) -> Iterator[str]:
    said = [(row, what, why) for row in rows for what, why in row["failures"].items()]
    pending = [f"{row['model']} ({row['exporter']}): {what}" for row, what, why in said if why == NOT_RUN]
    failed = [(row, what, why.replace("|", "\\|")) for row, what, why in said if why != NOT_RUN]
    if pending:
        yield "## What has not been run yet"
        yield f"{'; '.join(pending)}."
    if failed:
        yield "## What failed"
        lines = [[row["model"], row["exporter"], what, why] for row, what, why in failed]
        yield table(["model", "exporter", "step", "reason"], lines, left=4)
