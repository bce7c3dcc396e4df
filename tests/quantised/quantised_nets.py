"""Quantised models: as onnxruntime's quantiser writes them, and built node by node."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from onnxprune.model import edit, io
from onnxprune.testing import ModelBuilder

S8, U8 = QuantType.QInt8, QuantType.QUInt8

VARIANTS = {
    "u8s8 tensor": dict(activation_type=U8, weight_type=S8),
    "u8s8 channel": dict(activation_type=U8, weight_type=S8, per_channel=True),
    "s8s8 channel": dict(activation_type=S8, weight_type=S8, per_channel=True),
    "u8u8 tensor": dict(activation_type=U8, weight_type=U8),
    "asymmetric": dict(
        activation_type=S8, weight_type=S8, per_channel=True, extra_options={"WeightSymmetric": False}
    ),
    "7 bits": dict(activation_type=U8, weight_type=S8, reduce_range=True),
    "pairs on weights": dict(activation_type=U8, weight_type=S8, extra_options={"AddQDQPairToWeight": True}),
}


class Samples(CalibrationDataReader):
    def __init__(self, feeds):
        self._feeds = iter(feeds)

    def get_next(self):
        return next(self._feeds, None)


def samples(model: ir.Model, count: int = 8, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    (value,) = (v for v in model.graph.inputs if not v.is_initializer())
    shape = [4 if not isinstance(d, int) else d for d in value.shape]
    return [{value.name: rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def quantised(folder: Path, model: ir.Model, variant: str = "u8s8 channel") -> Path:
    """The model, quantised by onnxruntime, in a file."""
    plain, path = folder / "float.onnx", folder / "quantised.onnx"
    ir.save(model, plain)
    options = VARIANTS[variant]
    quantize_static(plain, path, Samples(samples(model)), quant_format=QuantFormat.QDQ, **options)
    return path


def saved(folder: Path, model: ir.Model, name: str = "built.onnx") -> Path:
    path = folder / name
    ir.save(model, path)
    onnx.checker.check_model(path, full_check=True)
    return path


def arrays(model: ir.Model | str | Path) -> dict[str, np.ndarray]:
    """The initializers of a model by name."""
    found = model if isinstance(model, ir.Model) else io.load(model).ir
    return {name: value.const_value.numpy() for name, value in found.graph.initializers.items()}


def kernels(model: ir.Model | str | Path, folder: Path) -> Counter[str]:
    """What onnxruntime makes of the nodes of a model."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    given = ir.to_proto(model).SerializeToString() if isinstance(model, ir.Model) else str(model)
    ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    return Counter(node.op_type for node in nodes)


class Quantised(ModelBuilder):
    """A builder that stores weights in few bits."""

    def stored(
        self, shape, name, *, dtype=ir.DataType.INT8, axis=None, block=0, zero=True, low=None
    ) -> ir.Value:
        """A weight behind a DequantizeLinear; `zero` False leaves the zero point out."""
        span = {ir.DataType.INT4: (-8, 8), ir.DataType.UINT4: (0, 16), ir.DataType.INT8: (-127, 128)}
        first, last = span.get(dtype, (0, 256))
        if dtype.is_integer():
            numbers = self.rng.integers(first, last, shape)
        else:
            numbers = self.rng.uniform(-2, 2, shape).astype(np.float32)
        scales = [] if axis is None else [shape[axis]] if not block else list(shape)
        if block:
            scales[axis] = -(-shape[axis] // block)
        scale = self.rng.uniform(0.5, 1.5, scales).astype(np.float32) * (0.05 if last == 8 else 0.005)
        middle = 0 if dtype.is_signed() or not dtype.is_integer() else (first + last) // 2
        inputs = [self.typed(numbers, dtype, f"{name}_stored"), self.constant(scale, f"{name}_scale")]
        if zero:
            inputs.append(self.typed(np.full(scales, middle), dtype, f"{name}_zero"))
        attributes = {} if axis is None else {"axis": axis}
        if block:
            attributes["block_size"] = block
        return self.ops("DequantizeLinear", *inputs, outputs=[name], name=f"{name}_dq", **attributes)[0]

    def typed(self, array, dtype, name) -> ir.Value:
        """An initializer of a type that numpy has not."""
        value = self.constant(np.zeros(1, np.float32), name)
        edit.set_tensor(value, edit.tensor(np.asarray(array), dtype, value.name))
        return value

    def rounded(self, x, name, *, scale=0.04, zero=128, dtype=np.uint8) -> ir.Value:
        """An activation that is rounded and read back."""
        step, center = self.constant(np.float32(scale), f"{name}_s"), self.constant(dtype(zero), f"{name}_z")
        made = self.op("QuantizeLinear", x, step, center, name=f"{name}_q")
        return self.op("DequantizeLinear", made, step, center, name=f"{name}_dq")
