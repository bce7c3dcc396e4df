"""What `stats` found, as text and as plain values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from onnxprune.inspection.collect import LayerZeros, ModelStatistics, Tally
from onnxprune.inspection.removable import Removable
from onnxprune.inspection.zeros import BLOCKS, CHANNELS, ELEMENT, N_M, ORDER
from onnxprune.patterns import InputChannel, parse_pattern
from onnxprune.report.against import against_dict, against_lines
from onnxprune.report.json import finite
from onnxprune.report.quantised import quantised_line
from onnxprune.report.tables import columns, number, plural, share, some, wrap
from onnxprune.sparsity.benefit import buys

SCHEMA = "onnxprune-stats/1"
_ROWS = 20


def worth(statistics: ModelStatistics) -> dict[str, int]:
    """How many zeros of the handled layers lie in which pattern; each counts once.

    Returns
    -------
    dict
        Most useful patterns first, without those that have none. Zeros in whole channels count as `CHANNELS` also
        where the layer has others, which are `element` then.
    """
    found = dict.fromkeys((CHANNELS, *ORDER), 0)
    for layer in statistics.layers:
        zeros, pattern = layer.found.zeros, layer.pattern
        if pattern in (*N_M, *BLOCKS):
            found[pattern] += zeros
        else:
            whole = round(layer.found.shares.get(CHANNELS, 0.0) * zeros)
            found[CHANNELS] += whole
            found[ELEMENT] += zeros - whole
    return {pattern: zeros for pattern, zeros in found.items() if zeros}


def _worth_line(pattern: str, part: str) -> str:
    if pattern == CHANNELS:
        return f"{part} fill whole channels: {buys(InputChannel())}"
    where = "are scattered" if pattern == ELEMENT else f"follow {pattern}"
    return f"{part} {where}: {buys(parse_pattern(pattern))}"


def to_dict(statistics: ModelStatistics) -> dict[str, Any]:
    """The statistics in the layout of schema `onnxprune-stats/1`."""
    source, gone = statistics.source, statistics.removable
    body = {
        "schema": SCHEMA,
        "model": {"path": str(source.path), "sha256": source.sha256, "bytes": source.bytes},
        "bindings": dict(statistics.bindings),
        "assumed": list(statistics.guessed),
        "macs": statistics.macs,
        "flops": 2 * statistics.macs,
        "filters": statistics.filters,
        "whole": _tally(statistics.whole),
        "handled": _tally(statistics.handled),
        "vectors": _tally(statistics.vectors),
        "sparsity": statistics.sparsity.to_dict(),
        "zeros_by_pattern": worth(statistics),
        "layers": [_layer(layer) for layer in statistics.layers],
        "left_out": [
            {"name": layer.name, "op_type": layer.op_type, "reason": layer.reason, **_tally(layer.tally)}
            for layer in statistics.left_out
        ],
        "superfluous": {
            "units": gone.units,
            "of": gone.total,
            "macs_without": gone.macs,
            "params_without": gone.params,
            "unmade": gone.unmade,
            "groups": [
                {"name": name, "superfluous": dead, "unmade": unmade, "units": units}
                for name, dead, unmade, units in gone.layers
            ],
        },
        "quantised": None if statistics.quantised is None else asdict(statistics.quantised),
        "against": None if statistics.against is None else against_dict(statistics.against),
    }
    return finite(body)  # type: ignore[no-any-return]


def render_json(statistics: ModelStatistics) -> str:
    """The statistics as JSON text."""
    return json.dumps(to_dict(statistics), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _tally(tally: Tally) -> dict[str, int]:
    return {"elements": tally.elements, "zeros": tally.zeros}


def _layer(layer: LayerZeros) -> dict[str, Any]:
    return {
        "name": layer.name,
        "op_type": layer.op_type,
        "weight": layer.weight,
        "shape": list(layer.shape),
        "shared_with": list(layer.shared),
        "elements": layer.found.elements,
        "zeros": layer.found.zeros,
        "patterns": list(layer.found.patterns),
        "shares": dict(layer.found.shares),
        "filters": layer.outputs,
        "zero_filters": layer.zero_filters,
        "input_channels": layer.inputs,
        "zero_input_channels": layer.zero_channels,
    }


def render(statistics: ModelStatistics, *, verbose: bool = False, width: int | None = None) -> str:
    """How sparse the model is, in which patterns, what that is worth, and what became of the original.

    Parameters
    ----------
    verbose
        List all layers instead of those with most zeros.
    width
        Of the terminal; None: lines are not broken. NNCF's tables are as wide as they are.
    """
    whole, source = statistics.whole, statistics.source
    head = (
        f"{source.path}: {number(whole.zeros)} of {plural(whole.elements, 'parameter')} are zero "
        f"({share(whole.zeros, whole.elements)}), {number(source.bytes)} bytes, "
        f"{number(statistics.macs)} MACs per sample"
    )
    lines = wrap(head, width)
    if statistics.bindings:
        sizes = ", ".join(
            f"{name}={size}" + (" (assumed)" if name in statistics.guessed else "")
            for name, size in statistics.bindings.items()
        )
        lines += wrap(f"symbolic dims: {sizes}", width)
    if how := quantised_line(statistics.quantised):
        lines += wrap(f"quantised: {how}; zeros are zero points", width)
    lines += ["", *_sparsity(statistics, verbose, width)]
    lines += _patterns(statistics, verbose, width)
    lines += _superfluous(statistics.removable, statistics, verbose, width)
    lines += _left_out(statistics, verbose, width)
    if statistics.against is not None:
        lines += ["", *against_lines(statistics.against, statistics.bindings, verbose=verbose, width=width)]
    return "\n".join(lines)


def _shown(statistics: ModelStatistics, verbose: bool) -> Sequence[LayerZeros]:
    """All layers, or those with most zeros, in the order of the graph."""
    if verbose:
        return statistics.layers
    most = sorted(statistics.layers, key=lambda layer: -layer.found.zeros)[:_ROWS]
    return [layer for layer in statistics.layers if layer in most and layer.found.zeros]


def _sparsity(statistics: ModelStatistics, verbose: bool, width: int | None) -> list[str]:
    shown = _shown(statistics, verbose)
    rows = dict(zip(statistics.layers, statistics.sparsity.sparsified_layers_summary, strict=True))
    page = replace(statistics.sparsity, sparsified_layers_summary=tuple(rows[layer] for layer in shown))
    lines = _fitted(page.to_str(), width)
    hidden = len(statistics.layers) - len(shown)
    if hidden and statistics.handled.zeros:
        lines += wrap(
            f"... and {plural(hidden, 'layer')} with fewer zeros or none, which count in the figures above "
            "(-v lists all)",
            width,
        )
    return lines


def _fitted(text: str, width: int | None) -> list[str]:
    """Tables as they are, sentences broken."""
    lines = text.split("\n")
    return [part for line in lines for part in ([line] if line.startswith(("|", "+")) else wrap(line, width))]


def _patterns(statistics: ModelStatistics, verbose: bool, width: int | None) -> list[str]:
    zeros = statistics.handled.zeros
    if not zeros:
        return ["", *wrap("No weight of these layers is zero, so nothing in them is sparse.", width)]
    rows = [["layer", "zeros", "pattern", "zero filters", "zero input channels"]]
    for layer in _shown(statistics, verbose):
        rows.append(
            [
                layer.name + (f" (and {some(layer.shared, 2)})" if layer.shared else ""),
                share(layer.found.zeros, layer.found.elements),
                layer.pattern or "-",
                f"{layer.zero_filters}/{layer.outputs}",
                f"{layer.zero_channels}/{layer.inputs}",
            ]
        )
    lines = ["", *columns(rows, right=(1, 3, 4), width=width)]
    lines += ["", "what the zeros of these layers are worth at run time:"]
    for pattern, count in worth(statistics).items():
        lines += wrap(f"  {_worth_line(pattern, share(count, zeros))}", width, indent=4)
    return lines


def _superfluous(gone: Removable, statistics: ModelStatistics, verbose: bool, width: int | None) -> list[str]:
    lines: list[str] = []
    params = statistics.whole.elements
    if gone.units:
        lines += wrap(
            f"{number(gone.units)} of {plural(gone.total, 'prunable unit')} (channels, heads) could be cut out "
            "without changing any output, because all that reads them multiplies by zero: then "
            f"{share(gone.macs, statistics.macs)} of the MACs and {share(gone.params, params)} of the parameters "
            "are left. `onnxprune slim` removes them.",
            width,
        )
    if gone.unmade:
        lines += wrap(
            f"{number(gone.unmade)} further units are made by zero weights alone, so that only biases feed them: "
            "cutting them out changes outputs by what these add (`onnxprune slim` moves that into other biases "
            "where it can).",
            width,
        )
    if verbose and gone.layers:
        rows = [["group of", "superfluous", "unmade", "units"]]
        rows += [[name, *map(str, counts)] for name, *counts in gone.layers]
        lines += columns(rows, right=(1, 2, 3), width=width)
    return ["", *lines] if lines else []


def _left_out(statistics: ModelStatistics, verbose: bool, width: int | None) -> list[str]:
    found: dict[str, list[int]] = {}
    for number_, layer in enumerate(statistics.left_out):
        found.setdefault(layer.reason, []).append(number_)
    if not found:
        return []
    lines = ["", *wrap("layers that are not looked at one by one (they count in the whole model):", width)]
    for reason, members in found.items():
        layers = [statistics.left_out[i] for i in members]
        names = some([layer.name for layer in layers], 10**6 if verbose else 3)
        elements = sum(layer.tally.elements for layer in layers)
        zeros = sum(layer.tally.zeros for layer in layers)
        what = f"{number(elements)} parameters, {number(zeros)} zero" if elements else "no float parameters"
        lines += wrap(f"  {plural(len(layers), 'layer')} ({what}): {reason}: {names}", width, indent=4)
    return lines
