"""How a model is quantised, and what pruning did to its stored numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.model.biases import DOMAINS
from onnxprune.model.quantized import QuantizedTensor


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
    """

    weights: Mapping[str, int]
    biases: Mapping[str, int]
    activations: Mapping[str, int]
    requantised: tuple[str, ...] = ()
    torn: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Weights."""
        return sum(self.weights.values())


def quantised_result(
    model: ir.Model, requantised: Sequence[str] = (), torn: Sequence[str] = ()
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
    if not weights and not activations:
        return None
    known = set(requantised) - set(torn)
    return QuantisedResult(
        dict(weights), dict(biases), dict(activations), tuple(sorted(known)), tuple(sorted(torn))
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
    return ", ".join(part for part in parts if part)


def requantised_line(found: QuantisedResult | None) -> str:
    """Which weights were rounded again; empty where none was."""
    if found is None or not (found.requantised or found.torn):
        return ""
    text = f"{len(found.requantised)} of {found.count} quantised weights were rounded again after a repair"
    if found.torn:
        text += (
            f", {len(found.torn)} because blocks with a common scale lost some of their positions (the proof "
            "compares these before they are rounded; the fidelity is that of what was written)"
        )
    return f"{text}; the others keep their numbers and scales"


def _listed(counts: Mapping[str, int], one: str, many: str = "") -> str:
    parts = [
        f"{count} {one if count == 1 else many or one + 's'} {kind}" for kind, count in sorted(counts.items())
    ]
    return ", ".join(parts)
