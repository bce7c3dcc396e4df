"""A comparison of a model with the one it came from, as text and as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from onnxprune.inspection.compare import Comparison, LayerChange, relative_change
from onnxprune.inspection.part import Part
from onnxprune.report.tables import columns, number, plural, share, some, wrap

_ROWS = 20


def against_dict(comparison: Comparison) -> dict[str, Any]:
    """As plain values, for the key `against` of schema `onnxprune-stats/1`."""
    return {
        "model": {"path": comparison.path, "sha256": comparison.sha256},
        "bindings": dict(comparison.bindings),
        "bytes": {"before": comparison.bytes_before, "after": comparison.bytes_after},
        "macs": {"before": comparison.macs_before, "after": comparison.macs_after},
        "params": {"before": comparison.elements_before, "after": comparison.elements_after},
        "pruning": comparison.statistics.to_dict(),
        "zeroed": comparison.zeroed,
        "changed_layers": len(comparison.changed),
        "layers": [_layer(layer) for layer in comparison.layers],
        "unmatched_before": list(comparison.unmatched_before),
        "unmatched_after": list(comparison.unmatched_after),
    }


def _layer(layer: LayerChange) -> dict[str, Any]:
    return {
        "name": layer.name,
        "original": layer.original,
        "matched_by": layer.matched_by,
        "shape": {"before": list(layer.shape_before), "after": list(layer.shape_after)},
        "filters": {"before": layer.outputs_before, "after": layer.outputs_after},
        "input_channels": {"before": layer.inputs_before, "after": layer.inputs_after},
        "weights": None if layer.weights is None else asdict(layer.weights),
        "part": None if layer.part is None else _part(layer.part),
    }


def _part(part: Part) -> dict[str, Any]:
    return {
        "exact": part.exact,
        "filters": None if part.rows is None else part.rows.tolist(),
        "input_channels": None if part.columns is None else part.columns.tolist(),
    }


def against_lines(
    comparison: Comparison, bindings: Mapping[str, int], *, verbose: bool, width: int | None
) -> list[str]:
    """For a terminal.

    Parameters
    ----------
    bindings
        Sizes of symbolic dims at which the model's MACs are counted.
    verbose
        List all layers that lost something.
    width
        Of the terminal; None: lines are not broken.
    """
    statistics = comparison.statistics
    lines = wrap(f"compared with {comparison.path}:", width)
    if dict(bindings) != dict(comparison.bindings):
        sizes = ", ".join(f"{name}={size}" for name, size in comparison.bindings.items()) or "none"
        lines += wrap(
            f"symbolic dims there: {sizes}; MACs are only comparable at equal sizes (--bind)", width
        )
    rows = [
        [name, number(before), number(after), share(after, before)]
        for name, before, after in (
            ("MACs per sample", comparison.macs_before, comparison.macs_after),
            ("parameters", comparison.elements_before, comparison.elements_after),
            ("bytes", comparison.bytes_before, comparison.bytes_after),
            ("filters", statistics.full_filters, statistics.current_filters),
        )
    ]
    lines += columns([["", "before", "after", "kept"], *rows], right=(1, 2, 3))
    shown = statistics.pruned_layers_summary[: None if verbose else _ROWS]
    text = replace(statistics, pruned_layers_summary=shown).to_str()
    lines += [
        "",
        *(p for line in text.split("\n") for p in (wrap(line, width) if line[:1] not in "|+" else [line])),
    ]
    if hidden := len(statistics.pruned_layers_summary) - len(shown):
        lines += wrap(f"... and {plural(hidden, 'more layer')} that lost filters (-v lists all)", width)
    lines += [
        "",
        *_cut(comparison, width),
        *_zeroed(comparison, verbose, width),
        *_changed(comparison, width),
    ]
    for names, whose in (
        (comparison.unmatched_before, "the original"),
        (comparison.unmatched_after, "the model"),
    ):
        if names:
            lines += wrap(
                f"{plural(len(names), 'layer')} of {whose} could not be matched, by name of weight or node or by "
                f"order and shape: {some(names, 10**6 if verbose else 6)}",
                width,
            )
    return lines


def _cut(comparison: Comparison, width: int | None) -> list[str]:
    cut = [layer for layer in comparison.layers if layer.cut]
    if not cut:
        return wrap("No layer that could be matched lost channels.", width)
    filters = sum(layer.outputs_before - layer.outputs_after for layer in cut)
    inputs = sum(layer.inputs_before - layer.inputs_after for layer in cut)
    return wrap(
        f"{len(cut)} of {plural(len(comparison.layers), 'matched layer')} lost channels: "
        f"{plural(filters, 'filter')} and {plural(inputs, 'input channel')} are cut out.",
        width,
    )


def _zeroed(comparison: Comparison, verbose: bool, width: int | None) -> list[str]:
    if not comparison.zeroed:
        return []
    layers = [layer for layer in comparison.layers if layer.weights is not None and layer.weights.zeroed]
    filters = sum(layer.weights.zeroed_filters for layer in layers if layer.weights is not None)
    inputs = sum(layer.weights.zeroed_channels for layer in layers if layer.weights is not None)
    names = some([layer.name for layer in layers], 10**6 if verbose else 6)
    whole = (
        f", among them {plural(filters, 'whole filter')} and {plural(inputs, 'whole input channel')}, which are "
        "still computed"
        if filters or inputs
        else ""
    )
    became = f"{plural(comparison.zeroed, 'weight')} in {plural(len(layers), 'layer')} became zero"
    return wrap(f"{became}{whole}: {names}.", width)


def _changed(comparison: Comparison, width: int | None) -> list[str]:
    lines = []
    if comparison.changed:
        first = comparison.changed[0]
        how = f"{relative_change(first):.2g} of its largest weight"
        if first.weights is not None and not first.weights.scale:
            how = f"{first.weights.largest:.2g}, where all weights were zero"
        lines += wrap(
            f"Weights that stayed were changed (repaired or retrained) in {len(comparison.changed)} of "
            f"{plural(comparison.compared, 'layer')} of unchanged shape, in {first.name} by up to "
            f"{how}.",
            width,
        )
    elif comparison.compared:
        lines += wrap(
            f"No weight that stayed was changed in the {plural(comparison.compared, 'layer')} of unchanged shape.",
            width,
        )
    if parts := comparison.parts:
        verdicts = [None if layer.part is None else layer.part.exact for layer in parts]
        told = (
            (True, "hold exactly the original's weights of the channels that stayed"),
            (False, "hold weights that the original does not have (repaired or retrained)"),
            (None, "could be either"),
        )
        counts = [f"{verdicts.count(verdict)} {what}" for verdict, what in told if verdict in verdicts]
        lines += wrap(f"Of {plural(len(parts), 'layer')} that changed shape, {', '.join(counts)}.", width)
    return lines
