"""A decoder whose weights never were in memory: drawn tensor by tensor and streamed into the data file.

The architecture is Llama's (Touvron et al. 2023, https://arxiv.org/abs/2302.13971, grouped queries as in Llama 2):
RMSNorm before each half of a block, rotary positions, grouped-query attention, SwiGLU. The graph is that of a
prefill: ids and a mask in, logits and the keys and values of all layers out. Sizes by default are TinyLlama's.

    python -m benchmarks.huge_model build/huge/decoder.onnx --layers 22
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxprune.testing import ModelBuilder

CHUNK = 1 << 20
"""Elements drawn at a time."""
ALIGNMENT = 4096
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class Size:
    """How big the decoder is; the default has 4.4 GB in float32."""

    layers: int = 22
    width: int = 2048
    heads: int = 32
    key_heads: int = 4
    inner: int = 5632
    vocabulary: int = 32000
    positions: int = 2048
    dtype: str = "float32"


class StreamedWeights(ModelBuilder):
    """A builder whose weights go to a file as they are drawn.

    Parameters
    ----------
    file
        Open for writing; the data file.
    folder
        That it lies in.
    dtype
        Of the weights.
    """

    def __init__(self, file: BinaryIO, folder: Path, dtype: np.dtype[np.generic]) -> None:
        super().__init__(opset=21)
        self._file, self._folder, self._dtype = file, folder, dtype

    def drawn(self, shape: tuple[int, ...], name: str, deviation: float, mean: float = 0.0) -> ir.Value:
        """Add an external initializer of normally distributed values."""
        start = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
        self._file.seek(start)
        left = int(np.prod(shape))
        while left:
            part = self.rng.standard_normal(min(left, CHUNK), np.float32) * np.float32(deviation)
            (part + np.float32(mean)).astype(self._dtype).tofile(self._file)
            left -= len(part)
        dtype = ir.DataType.from_numpy(self._dtype)
        tensor = ir.ExternalTensor(
            Path(self._file.name).name,
            start,
            self._file.tell() - start,
            dtype,
            shape=ir.Shape(shape),
            name=name,
            base_dir=str(self._folder),
        )
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape), const_value=tensor)
        self._initializers.append(value)
        return value


def build(path: Path, size: Size) -> int:
    """Write the decoder and its data file; the bytes of both together."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = path.with_name(path.name + ".data")
    with data.open("wb") as file:
        model = decoder(StreamedWeights(file, path.parent, DTYPES[size.dtype]), size)
    ir.save(model, path)
    return path.stat().st_size + data.stat().st_size


def decoder(b: StreamedWeights, size: Size) -> ir.Model:
    """The graph; the inputs are ids and a mask of shape (batch, sequence)."""
    head = size.width // size.heads
    ids = b.input("input_ids", ("batch", "sequence"), ir.DataType.INT64)
    mask = b.input("attention_mask", ("batch", "sequence"), ir.DataType.INT64)
    dtype = ir.DataType.from_numpy(DTYPES[size.dtype])
    x = b.op("Gather", b.drawn((size.vocabulary, size.width), "model.embed_tokens.weight", 1.0), ids)
    length = b.op("Shape", ids, start=1, end=2)
    cos, sin = _rotary(b, size, head, length)
    bias = _causal(b, mask, length, dtype)
    caches: list[ir.Value] = []
    for number in range(size.layers):
        name = f"model.layers.{number}"
        y, cache = _attention(b, _norm(b, x, size, f"{name}.input_layernorm"), cos, sin, bias, size, name)
        caches += cache
        x = b.op("Add", x, y, name=f"{name}.add")
        y = _norm(b, x, size, f"{name}.post_attention_layernorm")
        gate = _linear(b, y, size.width, size.inner, f"{name}.mlp.gate_proj")
        gate = b.op("Mul", gate, b.op("Sigmoid", gate))
        y = b.op("Mul", gate, _linear(b, y, size.width, size.inner, f"{name}.mlp.up_proj"))
        x = b.op("Add", x, _linear(b, y, size.inner, size.width, f"{name}.mlp.down_proj"))
    logits = _linear(b, _norm(b, x, size, "model.norm"), size.width, size.vocabulary, "lm_head")
    logits.name = "logits"
    model = b.model(logits, *caches)
    model.ir_version = 10
    return model


def _attention(
    b: StreamedWeights,
    y: ir.Value,
    cos: ir.Value,
    sin: ir.Value,
    bias: ir.Value,
    size: Size,
    name: str,
) -> tuple[ir.Value, tuple[ir.Value, ir.Value]]:
    head, repeats = size.width // size.heads, size.heads // size.key_heads
    key_width = size.key_heads * head
    parts = []
    for part, width in (("q", size.width), ("k", key_width), ("v", key_width)):
        z = _linear(b, y, size.width, width, f"{name}.self_attn.{part}_proj")
        z = b.op("Reshape", z, b.constant([0, 0, width // head, head]))
        parts.append(b.op("Transpose", z, perm=[0, 2, 1, 3]))
    query, key, value = (_rotate(b, parts[0], cos, sin), _rotate(b, parts[1], cos, sin), parts[2])
    key.name, value.name = f"present.{name[13:]}.key", f"present.{name[13:]}.value"
    wide_key, wide_value = (_repeat(b, z, repeats, size, head) for z in (key, value))
    scores = b.op("MatMul", query, b.op("Transpose", wide_key, perm=[0, 1, 3, 2]))
    scale = b.constant(np.array(head**-0.5).astype(DTYPES[size.dtype]))
    weights = b.op("Softmax", b.op("Add", b.op("Mul", scores, scale), bias), axis=-1)
    y = b.op("Transpose", b.op("MatMul", weights, wide_value), perm=[0, 2, 1, 3])
    y = b.op("Reshape", y, b.constant([0, 0, size.width]))
    return _linear(b, y, size.width, size.width, f"{name}.self_attn.o_proj"), (key, value)


def _repeat(b: StreamedWeights, z: ir.Value, repeats: int, size: Size, head: int) -> ir.Value:
    """Every key head for all the query heads that share it."""
    z = b.op("Unsqueeze", z, b.constant([2]))
    z = b.op("Expand", z, b.constant([1, 1, repeats, 1, 1]))
    return b.op("Reshape", z, b.constant([0, size.heads, -1, head]))


def _rotary(b: StreamedWeights, size: Size, head: int, length: ir.Value) -> tuple[ir.Value, ...]:
    """Cosines and sines of the positions at hand, shape (1, 1, sequence, head)."""
    angle = np.arange(size.positions)[:, None] * 10000.0 ** (-np.arange(0, head, 2) / head)
    angle = np.concatenate([angle, angle], 1)[None, None]
    zero, axis = b.constant([0]), b.constant([2])
    return tuple(
        b.op(
            "Slice",
            b.constant(f(angle).astype(DTYPES[size.dtype]), f"rotary.{f.__name__}"),
            zero,
            length,
            axis,
        )
        for f in (np.cos, np.sin)
    )


def _rotate(b: StreamedWeights, z: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
    left, right = b.ops("Split", z, outputs=2, axis=-1, num_outputs=2)
    turned = b.op("Concat", b.op("Neg", right), left, axis=-1)
    return b.op("Add", b.op("Mul", z, cos), b.op("Mul", turned, sin))


def _causal(b: StreamedWeights, mask: ir.Value, length: ir.Value, dtype: ir.DataType) -> ir.Value:
    """0 where a position may be looked at, -10,000 elsewhere; shape (batch, 1, sequence, sequence)."""
    steps = b.op("Range", b.constant(0), b.op("Squeeze", length, b.constant([0])), b.constant(1))
    later = b.op("Less", b.op("Unsqueeze", steps, b.constant([1])), b.op("Unsqueeze", steps, b.constant([0])))
    padded = b.op("Equal", b.op("Unsqueeze", mask, b.constant([1, 2])), b.constant(0))
    hidden = b.op("Cast", b.op("Or", later, padded), to=int(dtype))
    return b.op("Mul", hidden, b.constant(np.array(-10000.0).astype(dtype.numpy())))


def _norm(b: StreamedWeights, x: ir.Value, size: Size, name: str) -> ir.Value:
    """RMSNorm as exporters write it out, computed in float32."""
    wide = b.op("Cast", x, to=int(ir.DataType.FLOAT))
    square = b.op("ReduceMean", b.op("Mul", wide, wide), b.constant([-1]), keepdims=1)
    root = b.op("Sqrt", b.op("Add", square, b.constant(np.array(1e-5, np.float32))))
    y = b.op("Cast", b.op("Div", wide, root), to=int(ir.DataType.from_numpy(DTYPES[size.dtype])))
    return b.op("Mul", y, b.drawn((size.width,), f"{name}.weight", 0.1, 1.0), name=name)


def _linear(b: StreamedWeights, x: ir.Value, width: int, wider: int, name: str) -> ir.Value:
    return b.op("MatMul", x, b.drawn((width, wider), f"{name}.weight", width**-0.5), name=name)


def main(arguments: list[str] | None = None) -> int:
    """Write one decoder."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.huge_model", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("path", type=Path)
    for name, default in vars(Size()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = vars(parser.parse_args(arguments))
    path = options.pop("path")
    print(f"{path}: {build(path, Size(**options)):,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
