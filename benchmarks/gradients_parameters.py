"""Which initializers hold a module's parameters, and which values of the graph its layers make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxprune.gradients import UnitMask

if TYPE_CHECKING:
    import torch
    from torch import nn

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Held:
    """An initializer that holds a parameter.

    Attributes
    ----------
    name
        Of the initializer.
    transposed
        Whether it is the parameter's transpose.
    """

    name: str
    transposed: bool = False


def find_parameters(module: nn.Module, graph: ir.Graph) -> dict[str, list[Held]]:
    """The initializers of each parameter: by name, else those with the same values, as they are or transposed.

    A parameter that is used twice may be held twice: its gradient is the sum of theirs.
    """
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    found = {name: [Held(name)] for name in named if name in graph.initializers}
    rest: dict[tuple[int, ...], list[tuple[str, Array]]] = {}
    for name, value in graph.initializers.items():
        if name not in found and value.dtype == ir.DataType.FLOAT and value.const_value is not None:
            array = value.const_value.numpy()
            rest.setdefault(tuple(sorted(array.shape)), []).append((name, array))
    for name, parameter in named.items():
        array = parameter.detach().numpy()
        same = list(_same(array, rest.get(tuple(sorted(array.shape)), ())))
        if name not in found or any(other.name != name for other in same):
            found[name] = found.get(name, []) + same
    return {name: held for name, held in found.items() if held}


def _same(array: Array, candidates: Any) -> Iterator[Held]:
    for name, other in candidates:
        if array.shape == other.shape and np.array_equal(array, other):
            yield Held(name)
        elif array.ndim == 2 and array.T.shape == other.shape and np.array_equal(array.T, other):
            yield Held(name, transposed=True)


def called_layers(module: nn.Module, inputs: Iterable[torch.Tensor]) -> list[str]:
    """Layers that are called themselves; of others, functions read just the weights."""
    called: list[str] = []
    hooks = [
        layer.register_forward_hook(lambda *_, name=name: called.append(name))  # type: ignore[misc]
        for name, layer in module.named_modules()
    ]
    module(*inputs)
    for hook in hooks:
        hook.remove()
    return called


def find_masks(
    module: nn.Module, layers: Iterable[str], graph: ir.Graph, held: Mapping[str, list[Held]]
) -> dict[str, UnitMask]:
    """A mask over the output units of each convolution and linear layer among `layers`, by name."""
    masks = {}
    modules = dict(module.named_modules())
    for name, layer in ((name, modules[name]) for name in layers):
        weight = held.get(f"{name}.weight", [])
        units = _units(layer)
        if units is None or len(weight) != 1:
            continue
        value = _made(graph.initializers[weight[0].name], held.get(f"{name}.bias", []))
        if value is not None and value.name:
            axis = 1 if _is_convolution(layer) else -1
            masks[name] = UnitMask(value.name, axis, np.arange(units), units, name)
    return masks


def _units(layer: nn.Module) -> int | None:
    """How many units a layer puts out; None for what is neither convolution nor linear."""
    kind = type(layer).__name__
    if kind == "Conv1D":  # that of GPT-2 in transformers
        return int(layer.weight.shape[1])  # type: ignore[union-attr, index]
    if kind == "Linear" or _is_convolution(layer):
        return int(layer.weight.shape[0])  # type: ignore[union-attr, index]
    return None


def _is_convolution(layer: nn.Module) -> bool:
    return type(layer).__name__ in ("Conv1d", "Conv2d", "Conv3d")


def _made(weight: ir.Value, bias: list[Held]) -> ir.Value | None:
    """What the layer of a weight makes, its bias added."""
    value = weight
    while (node := _reader(value)) is not None:
        value = node.outputs[0]
        if node.op_type in ("Conv", "Gemm"):
            return value
        if node.op_type == "MatMul":
            after = _reader(value)
            if after is None or after.op_type != "Add":
                return value
            names = {read.name for read in after.inputs if read is not None}
            return after.outputs[0] if names & {one.name for one in bias} else value
        if node.op_type not in ("Transpose", "Identity"):
            return None
    return None


def _reader(value: ir.Value) -> ir.Node | None:
    """The only node that reads a value, and not just its shape."""
    readers = {use.node for use in value.uses() if use.node.op_type != "Shape"}
    return readers.pop() if len(readers) == 1 else None


class Observed:
    """Activations of a module's layers, with which gradients are taken; its parameters rest.

    Parameters
    ----------
    module
        Mutated: hooks, no parameter needs a gradient, nothing is computed in place.
    names
        Of the layers.
    """

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        self.made: dict[str, torch.Tensor] = {}
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        for layer in module.modules():
            if getattr(layer, "inplace", False):
                layer.inplace = False  # type: ignore[assignment]
        layers = dict(module.named_modules())
        self._convolutions = {name for name in names if _is_convolution(layers[name])}
        for name in names:
            layers[name].register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def keep(_layer: object, _inputs: object, output: torch.Tensor) -> None:
            if not output.requires_grad:
                output.requires_grad_(True)
            self.made[name] = output

        return keep

    def masks(self, loss: torch.Tensor, batch: int) -> dict[str, torch.Tensor]:
        """Gradients of masks over units, (batch, units), by layer."""
        import torch

        names = list(self.made)
        found = torch.autograd.grad(loss, list(self.made.values()))
        masks = {}
        for name, gradient in zip(names, found, strict=True):
            product = self.made[name].detach() * gradient
            if name in self._convolutions:
                masks[name] = product.sum(tuple(range(2, product.dim())))
            else:
                masks[name] = product.reshape(batch, -1, product.shape[-1]).sum(1)
        self.made.clear()
        return masks
