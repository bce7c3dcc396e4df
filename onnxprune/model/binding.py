"""Sizes for symbolic dims: given ones, guesses, and other ones to tell which axes depend on the input."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import onnx_ir as ir

_GUESSES = (
    (("seq", "length", "token", "time", "frame"), 128),
    (("height", "width"), 224),
    (("past", "cache"), 16),
)
_MOST = 1 << 24
"""Elements of one input beyond which nothing but the first guess is tried."""

_SIZES = (512, 256, 128, 64, 32, 16, 1024, 8, 4, 2, 1)
_ALONE = 4
"""Up to so many symbolic dims are tried one by one."""


def bind_dims(
    inputs: Iterable[ir.Value], bindings: Mapping[str, int]
) -> tuple[dict[str, int], frozenset[str]]:
    """Give every symbolic dim of `inputs` a size; also return the names whose size is a guess."""
    sizes: dict[str, int] = {}
    guessed: set[str] = set()
    for value in inputs:
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, int):
                continue
            name = symbol(value, axis)
            if name in sizes:
                continue
            if name in bindings:
                sizes[name] = bindings[name]
            else:
                sizes[name] = _wanted(value, axis) or _guess(name, axis, len(value.shape or ()))
                guessed.add(name)
    return sizes, frozenset(guessed)


def symbol(value: ir.Value, axis: int) -> str:
    """Name of a symbolic dim: its own name, or `input.axis` where the model gives none."""
    dim = value.shape[axis] if value.shape is not None else None
    text = getattr(dim, "value", None)
    return str(text) if text else f"{value.name}.{axis}"


def _wanted(value: ir.Value, axis: int) -> int | None:
    """The extent that the weight of a layer asks for, which reads the input as it is."""
    rank = len(value.shape or ())
    for node, slot in value.uses():
        weight = node.inputs[1] if slot == 0 and len(node.inputs) > 1 and not node.domain else None
        if weight is None or weight.const_value is None:
            continue
        shape = [int(dim) for dim in weight.const_value.shape.numpy()]
        if node.op_type == "Conv" and axis == 1 and len(shape) > 1:
            return shape[1] * node.attributes.get_int("group", 1)
        if node.op_type in ("MatMul", "Gemm") and axis == rank - 1 and len(shape) == 2:
            return shape[1 if node.attributes.get_int("transB", 0) else 0]
    return None


def _guess(name: str, axis: int, rank: int) -> int:
    lower = name.lower()
    if axis == 0 or "batch" in lower:
        return 1
    for words, size in _GUESSES:
        if any(word in lower for word in words):
            return size
    if rank == 4 and axis >= 2:
        return 224
    return 128 if axis == 1 else 16


def candidates(inputs: Iterable[ir.Value], bindings: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Bindings to try until the model takes one: the first guess, then other sizes for what nobody gave.

    First one size for all of them, then one that is alone and 1 for the others (an unnamed batch of states, say).
    """
    inputs = tuple(inputs)
    sizes, guessed = bind_dims(inputs, bindings)
    yield sizes
    free = sorted(name for name in guessed if sizes[name] != 1)
    others = [{**sizes, **dict.fromkeys(free, size)} for size in _SIZES if free]
    if 1 < len(free) <= _ALONE:
        ones = {**sizes, **dict.fromkeys(free, 1)}
        others += [{**ones, name: size} for name in free for size in _SIZES[:-1]]
    for tried in others:
        if max((_elements(value, tried) for value in inputs), default=0) <= _MOST:
            yield tried


def _elements(value: ir.Value, sizes: Mapping[str, int]) -> int:
    dims = enumerate(value.shape or ())
    return math.prod(dim if isinstance(dim, int) else sizes[symbol(value, axis)] for axis, dim in dims)


def other_sizes(inputs: Iterable[ir.Value], sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Second bindings to try, the most telling first; the next where the model does not fit.

    Twice as much of everything keeps most relations between dims (halves that meet again, old + new = all).
    """
    if not sizes:
        return
    yield {name: 2 * size if size else 1 for name, size in sizes.items()}
    yield {name: size + 1 for name, size in sizes.items()}
    leading = {symbol(v, 0) for v in inputs if v.shape and not isinstance(v.shape[0], int)}
    if any(size % 2 == 0 for size in sizes.values()):  # as far as a table of positions goes, and no further
        yield {name: 2 * size if name in leading else max(size // 2, 1) for name, size in sizes.items()}
    if leading and leading != set(sizes):
        yield {name: 2 * size if name in leading else size for name, size in sizes.items()}


def far_sizes(sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Bindings at which a comparison that agrees at neighbouring sizes by chance is likely to differ."""
    for factor in (4, 16, 64) if sizes else ():
        yield {name: factor * max(size, 1) for name, size in sizes.items()}
