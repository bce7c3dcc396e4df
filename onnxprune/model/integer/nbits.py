"""MatMulNBits: a product with weights of 2, 4 or 8 bits, quantised in blocks of inputs.

    Y = A @ W (+ bias),    W[k, n] = scale[n, k // block] * (q[n, k] - zero[n, k // block])

`q` is packed, block by block; without zero points they are `2 ** (bits - 1)`, and the weights are said with signed
integers here. In between, W is a DequantizeLinear of unpacked integers of shape (K, N) with blocks along axis 0.
Such a node needs version 21 of the standard operators; it is never written to a file.

Specification: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.model.integer.fused import biased
from onnxprune.model.integer.grid import behind
from onnxprune.model.integer.notes import Lowered, Template, note
from onnxprune.model.integer.parts import (
    NotThisForm,
    Quantized,
    Workbench,
    build,
    give_back,
    is_constant,
    restore,
    sweep,
    take_place,
)

Array = np.ndarray[Any, Any]

NAME = "nbits"
_SIGNED = {2: ir.DataType.INT2, 4: ir.DataType.INT4, 8: ir.DataType.INT8}
_UNSIGNED = {2: ir.DataType.UINT2, 4: ir.DataType.UINT4, 8: ir.DataType.UINT8}
_B, _SCALES, _ZEROS, _G_IDX, _BIAS = 1, 2, 3, 4, 5


@dataclass(frozen=True)
class Packing:
    """How weights are packed.

    Attributes
    ----------
    inputs, outputs
        K and N.
    bits
        Of one weight.
    block
        Inputs that share a scale.
    """

    inputs: int
    outputs: int
    bits: int
    block: int

    @property
    def blocks(self) -> int:
        """Blocks of one output; the last one may be filled up."""
        return -(-self.inputs // self.block)

    def unpack(self, packed: Array) -> Array:
        """Integers of shape (N, K) from (N, blocks, bytes of a block)."""
        return self.unpack_whole(packed)[:, : self.inputs]

    def unpack_whole(self, packed: Array) -> Array:
        """Integers of shape (N, blocks * block): what fills up the last block, too."""
        return _unpack(packed.reshape(self.outputs, -1), self.bits)[:, : self.blocks * self.block]

    def pack(self, integers: Array, fill: Array) -> Array:
        """The opposite of `unpack`; `fill` is what the last block is filled up with, (N, more than needed)."""
        missing = self.blocks * self.block - self.inputs
        whole = np.concatenate([integers, fill[:, :missing]], axis=1)
        return _pack(whole, self.bits).reshape(self.outputs, self.blocks, -1)

    def unpack_zeros(self, packed: Array) -> Array:
        """Zero points of shape (N, blocks); each output begins with a new byte."""
        return _unpack(packed.reshape(self.outputs, -1), self.bits)[:, : self.blocks]

    def pack_zeros(self, zeros: Array, fill: int) -> Array:
        """The opposite of `unpack_zeros`; `fill` is what the last byte is filled up with."""
        missing = -self.blocks % (8 // self.bits)
        whole = np.pad(zeros, ((0, 0), (0, missing)), constant_values=fill)
        return _pack(whole, self.bits)


def _unpack(packed: Array, bits: int) -> Array:
    """Integers of `bits` bits from bytes, the lowest bits first."""
    if bits == 8:
        return packed
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return parts.reshape(*packed.shape[:-1], -1)


def _pack(integers: Array, bits: int) -> Array:
    if bits == 8:
        return np.ascontiguousarray(integers, np.uint8)
    each = 8 // bits
    parts = integers.astype(np.uint8).reshape(*integers.shape[:-1], -1, each)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return np.asarray(np.bitwise_or.reduce(parts << shifts, axis=-1), np.uint8)


def lower(bench: Workbench, node: ir.Node) -> None:
    """Say the product with unpacked weights; NotThisForm where that cannot be done, before anything changes."""
    given = [*node.inputs, *[None] * 6]
    packing, tensors = _understood(node)
    key = tuple(given[slot] for slot in (_B, _SCALES, _ZEROS))
    weight = bench.known.get(key)
    if weight is None:
        weight = bench.known[key] = _weight(bench, node, packing, tensors)
    bias = given[_BIAS]
    dtype = tensors[_SCALES].dtype
    core = bench.replace(node, "MatMul", [given[0], weight], {})
    core.outputs[0].type = ir.TensorType(dtype)
    names = {slot: str(value.name) for slot in tensors if (value := given[slot]) is not None}
    note(core, Lowered(NAME, (Template.of(node),), {"names": names, "tensors": tensors, "packing": packing}))
    new = core.outputs[0]
    if bias is not None:
        new = bench.add(node, "Add", [new, bias], f"{node.outputs[0].name}/sum", dtype)
    take_place(bench.graph, node.outputs[0], new)
    packed = [given[slot] for slot in tensors]
    bench.graph.remove(node, safe=True)
    sweep(bench.graph, packed)


def _understood(node: ir.Node) -> tuple[Packing, dict[int, ir.TensorProtocol]]:
    """How the weights are packed, and the tensors that hold them."""
    given = [*node.inputs, *[None] * 6]
    if given[_G_IDX] is not None:
        raise NotThisForm("its inputs are in another order (g_idx)")
    if "weight_prepacked" in node.attributes and node.attributes["weight_prepacked"].as_int():
        raise NotThisForm("its weights are packed for one kind of device")
    tensors: dict[int, ir.TensorProtocol] = {}
    for slot in (_B, _SCALES, _ZEROS, _BIAS):
        value = given[slot]
        if value is None and slot in (_ZEROS, _BIAS):
            continue
        if value is None or not is_constant(value) or value.const_value is None:
            raise NotThisForm("its weights are computed")
        if slot != _BIAS:
            tensors[slot] = value.const_value
    number = {
        name: node.attributes[name].as_int() if name in node.attributes else default
        for name, default in (("K", 0), ("N", 0), ("bits", 4), ("block_size", 0))
    }
    packing = Packing(number["K"], number["N"], number["bits"], number["block_size"])
    if packing.bits not in _SIGNED or min(packing.inputs, packing.outputs, packing.block) < 1:
        raise NotThisForm(f"its weights have {packing.bits} bits")
    each = -(-packing.block * packing.bits // 8)
    if tensors[_B].size != packing.outputs * packing.blocks * each or tensors[_B].dtype != ir.DataType.UINT8:
        raise NotThisForm("its weights are not packed block by block")
    _check_zeros(packing, tensors)
    return packing, tensors


def _check_zeros(packing: Packing, tensors: dict[int, ir.TensorProtocol]) -> None:
    if tensors[_SCALES].size != packing.outputs * packing.blocks:
        raise NotThisForm("it has not one scale for each block")
    zeros = tensors.get(_ZEROS)
    if zeros is None:
        return
    if zeros.dtype == ir.DataType.UINT8:
        expected = packing.outputs * -(-packing.blocks * packing.bits // 8)
    else:
        expected = packing.outputs * packing.blocks
        known = zeros.numpy().astype(np.float64)
        if (known != np.rint(known)).any() or known.min() < 0 or known.max() >= 1 << packing.bits:
            raise NotThisForm("its zero points are no integers")
    if zeros.size != expected:
        raise NotThisForm("it has not one zero point for each block")


def _weight(
    bench: Workbench, node: ir.Node, packing: Packing, tensors: dict[int, ir.TensorProtocol]
) -> ir.Value:
    """DequantizeLinear of the unpacked weights."""
    signed = _ZEROS not in tensors
    dtype = (_SIGNED if signed else _UNSIGNED)[packing.bits]
    middle = 1 << (packing.bits - 1)
    packed, scales, zeros = (tensors.get(slot) for slot in (_B, _SCALES, _ZEROS))
    name = str(getattr(node.inputs[_B], "name", "weight"))

    def integers() -> Array:
        unpacked = packing.unpack(packed.numpy()).T if packed is not None else np.zeros(0)
        return (
            unpacked.astype(np.int8) - middle if signed and packing.bits < 8 else _shifted(unpacked, signed)
        )

    def factors() -> Array:
        return (
            scales.numpy().reshape(packing.outputs, packing.blocks).T if scales is not None else np.zeros(0)
        )

    def points() -> Array:
        return unpacked_zeros(packing, zeros).T if zeros is not None else np.zeros(0)

    blocks = (packing.blocks, packing.outputs)
    parts = [
        _lazy(bench, f"{name}/integers", (packing.inputs, packing.outputs), dtype, integers),
        _lazy(bench, f"{name}/scales", blocks, tensors[_SCALES].dtype, factors),
    ]
    zero = None if signed else _lazy(bench, f"{name}/zero_points", blocks, dtype, points)
    what = Quantized(parts[0], parts[1], zero)
    return bench.dequantize(node, what, 0, block_size=packing.block)


def _shifted(unpacked: Array, signed: bool) -> Array:
    return (unpacked.astype(np.int16) - 128).astype(np.int8) if signed else unpacked


def unpacked_zeros(packing: Packing, zeros: ir.TensorProtocol) -> Array:
    """Zero points of shape (N, blocks), whether they are packed or floats."""
    array = np.asarray(zeros.numpy())
    if zeros.dtype == ir.DataType.UINT8:
        return packing.unpack_zeros(array)
    return array.reshape(packing.outputs, packing.blocks).astype(np.uint8)


def _lazy(
    bench: Workbench, name: str, shape: tuple[int, int], dtype: ir.DataType, make: Callable[[], Array]
) -> ir.Value:
    value = ir.Value(name=edit.fresh(bench.graph, name), type=ir.TensorType(dtype))
    edit.set_lazy(value, shape, make)
    bench.graph.register_initializer(value)
    return value


# --- and back --------------------------------------------------------------------------------------------


def lift(graph: ir.Graph, core: ir.Node, lowered: Lowered) -> None:
    """Pack the weights again; NotThisForm where they are not quantised in blocks of inputs any more."""
    (template,) = lowered.nodes
    found = behind(core.inputs[1]) if len(core.inputs) > 1 else None
    producer = core.inputs[1].producer() if core.inputs[1] is not None else None
    old: Packing = lowered.more["packing"]
    if found is None or producer is None or not all(is_constant(v) for v in (found.integers, found.scale)):
        raise NotThisForm("its weights are not quantised any more")
    axis = producer.attributes["axis"].as_int() if "axis" in producer.attributes else 1
    block = producer.attributes["block_size"].as_int() if "block_size" in producer.attributes else 0
    if axis not in (0, -2) or block != old.block:
        raise NotThisForm("its weights are not quantised in blocks of inputs any more")
    last, bias = biased(core) if template.has(_BIAS) else (core, None)
    if template.has(_BIAS) and bias is None:
        raise NotThisForm("its bias is not there any more")
    parts = _packed(graph, lowered, found, producer)
    inputs: list[ir.Value | None] = [core.inputs[0], *parts, None, bias]
    while inputs[-1] is None and len(inputs) > len(template.given):
        inputs.pop()
    packing = _new_packing(old, found)
    attributes = dict(template.attributes)
    attributes["K"], attributes["N"] = ir.AttrInt64("K", packing.inputs), ir.AttrInt64("N", packing.outputs)
    whole = build(graph, core, template, inputs, attributes)
    give_back(graph, last.outputs[0], whole.outputs[0])


def _new_packing(old: Packing, found: Quantized) -> Packing:
    shape = found.integers.const_value.shape.numpy() if found.integers.const_value is not None else (0, 0)
    return Packing(int(shape[0]), int(shape[1]), old.bits, old.block)


_PACKED = "onnxprune.integer.packed"


def _packed(
    graph: ir.Graph, lowered: Lowered, found: Quantized, producer: ir.Node
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """The three initializers; two products that share the weights share these."""
    known = producer.meta.get(_PACKED)
    if known is not None:
        return known  # type: ignore[no-any-return]
    old: Packing = lowered.more["packing"]
    tensors: dict[int, ir.TensorProtocol] = lowered.more["tensors"]
    names: dict[int, str] = lowered.more["names"]
    packing = _new_packing(old, found)
    middle = 1 << (packing.bits - 1)
    integers, zeros = _unsigned(found, packing, middle)
    arrays: dict[int, Array] = {_SCALES: _data(found.scale).T}
    before = old.unpack_whole(tensors[_B].numpy()) if packing == old else None
    fill = np.full((packing.outputs, packing.block), middle) if zeros is None else zeros[:, -1:]
    if before is not None:
        fill = before[:, packing.inputs :]
    elif zeros is not None:
        fill = np.repeat(fill, packing.block, axis=1)
    arrays[_B] = packing.pack(integers, fill)
    old_zeros = tensors.get(_ZEROS)
    if zeros is not None:
        arrays[_ZEROS] = _zeros_back(packing, zeros, old_zeros, packing == old)
    dtypes = {_B: ir.DataType.UINT8, _SCALES: tensors[_SCALES].dtype}
    dtypes[_ZEROS] = ir.DataType.UINT8 if old_zeros is None else old_zeros.dtype
    made: list[ir.Value | None] = []
    for slot in (_B, _SCALES, _ZEROS):
        made.append(None)
        if slot in arrays:
            flat = slot in tensors and len(tensors[slot].shape) == 1
            array = arrays[slot].reshape(-1) if flat else arrays[slot]
            label = names.get(slot, f"{names[_B]}/zero_points")
            made[-1] = restore(graph, label, array, dtypes[slot])
    result = (made[0], made[1], made[2])
    producer.meta[_PACKED] = result
    return result  # type: ignore[return-value]


def _data(value: ir.Value) -> Array:
    return np.zeros(0) if value.const_value is None else np.asarray(value.const_value.numpy())


def _unsigned(found: Quantized, packing: Packing, middle: int) -> tuple[Array, Array | None]:
    """Integers (N, K) and zero points (N, blocks) as they are packed; None where all are the middle."""
    integers = _data(found.integers).T.astype(np.int16)
    signed = found.integers.dtype in _SIGNED.values()
    offset = middle if signed else 0
    if found.zero is None:
        zeros = None if signed else np.zeros((packing.outputs, packing.blocks), np.uint8)
    else:
        points = np.broadcast_to(_data(found.zero).T.astype(np.int16), (packing.outputs, packing.blocks))
        zeros = (points + offset).astype(np.uint8)
    if signed and zeros is not None and (zeros == middle).all():
        zeros = None
    return (integers + offset).astype(np.uint8), zeros


def _zeros_back(packing: Packing, zeros: Array, old: ir.TensorProtocol | None, same: bool) -> Array:
    if old is not None and old.dtype != ir.DataType.UINT8:
        return zeros.astype(old.dtype.numpy())
    packed = packing.pack_zeros(zeros, 0)
    if same and old is not None and np.array_equal(packing.unpack_zeros(old.numpy()), zeros):
        return np.asarray(old.numpy()).reshape(packed.shape)
    return packed
