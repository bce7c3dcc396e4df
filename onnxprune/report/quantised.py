"""How a model is quantised, and what pruning did to its stored numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxprune.model.biases import DOMAINS
from onnxprune.model.integer import left_whole, lowered_operators
from onnxprune.model.quantized import QuantizedTensor

_SHOWN = 4
"""Operators that are named in a line."""


@dataclass(frozen=True)
class QuantisedResult:
    """What is stored in few bits.

    Attributes
    ----------
    weights, biases
        How they are stored, and how many tensors each: `{"int8 per channel": 20}`. Biases are those of 32 bits.
    activations
        The same for the places where activations are rounded: `{"uint8": 31}`.
    requantised
        Weights that have other numbers than the file's, because of a repair, so that they got new scales. All
        others keep their numbers and scales bit for bit.
    torn
        Weights that were rounded again because blocks with a common scale lost some of their positions: the proof
        compares them before that.
    rescaled
        Activations that have another scale than the file's, because a repair changed what makes them.
    operators
        How many nodes of each type that calculates with integers: `{"QLinearConv": 19}`.
    whole
        Those that stay as they are, with the reason.
    """

    weights: Mapping[str, int]
    biases: Mapping[str, int]
    activations: Mapping[str, int]
    requantised: tuple[str, ...] = ()
    torn: tuple[str, ...] = ()
    rescaled: tuple[str, ...] = ()
    operators: Mapping[str, int] = field(default_factory=dict)
    whole: Mapping[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Weights."""
        return sum(self.weights.values())


def quantised_result(
    model: ir.Model,
    requantised: Sequence[str] = (),
    torn: Sequence[str] = (),
    rescaled: Sequence[str] = (),
) -> QuantisedResult | None:
    """How a normalised model is quantised; None where it is not."""
    weights: Counter[str] = Counter()
    biases: Counter[str] = Counter()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, QuantizedTensor):
            continue
        if tensor.stored.dtype == ir.DataType.INT32:
            biases[_kind(tensor)] += 1
        else:
            weights[_kind(tensor)] += 1
    activations: Counter[str] = Counter()
    for node in model.graph:
        if node.domain in DOMAINS and node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
            dtype = node.outputs[0].dtype
            kind = "integer" if dtype is None else dtype.name.lower()
            activations[kind if node.op_type == "QuantizeLinear" else f"{kind} at run time"] += 1
    whole = left_whole(model.graph)
    if not weights and not activations and not whole:
        return None
    known = set(requantised) - set(torn)
    counts = [dict(sorted(each.items())) for each in (weights, biases, activations)]
    return QuantisedResult(
        *(counts[0], counts[1], counts[2], tuple(sorted(known)), tuple(sorted(torn)), tuple(rescaled)),
        operators=lowered_operators(model.graph),
        whole=whole,
    )


def _kind(tensor: QuantizedTensor) -> str:
    layout = tensor.layout
    per = "tensor" if layout.axis is None else f"block of {layout.block}" if layout.block else "channel"
    return f"{tensor.stored.dtype.name.lower()} per {per}"


def quantised_line(found: QuantisedResult | None) -> str:
    """The same in one line; empty for a model that is not quantised."""
    if found is None:
        return ""
    parts = [f"{_listed(found.weights, 'weight')}", _listed(found.biases, "bias", "biases")]
    parts.append(_listed(found.activations, "activation"))
    parts += [f"{count} {op_type}" for op_type, count in found.operators.items()]
    line = ", ".join(part for part in parts if part)
    return "; ".join(part for part in (line, _whole_line(found)) if part)


def requantised_line(found: QuantisedResult | None) -> str:
    """Which weights were rounded again; empty where none was."""
    if found is None or not (found.requantised or found.torn):
        return ""
    every = len(found.requantised) + len(found.torn)
    text = f"{every} of {found.count} quantised weights were rounded again"
    if not found.torn:
        text += " after a repair"
    else:
        text += (
            f", {len(found.torn)} of them because blocks with a common scale lost some of their positions (the "
            "proof compares these before they are rounded; the fidelity is that of what was written)"
        )
    text = f"{text}; the others keep their numbers and scales"
    return text if not found.rescaled else f"{text}; {_rescaled(len(found.rescaled))}"


def _rescaled(count: int) -> str:
    what = "activation of queries or keys" if count == 1 else "activations of queries or keys"
    has = "has a range" if count == 1 else "have ranges"
    return f"{count} {what} that were mixed anew {has} fitted to the calibration samples"


def _whole_line(found: QuantisedResult) -> str:
    """Which operators of integers stay as they are, and why; empty where none does."""
    if not found.whole:
        return ""
    shown = [f"{name} ({why})" for name, why in tuple(found.whole.items())[:_SHOWN]]
    more = len(found.whole) - len(shown)
    return f"left as they are: {', '.join(shown)}{f' and {more} more' if more else ''}"


def _listed(counts: Mapping[str, int], one: str, many: str = "") -> str:
    parts = [
        f"{count} {one if count == 1 else many or one + 's'} {kind}" for kind, count in sorted(counts.items())
    ]
    return ", ".join(parts)
