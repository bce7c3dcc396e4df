"""Models with quantised weights and activations in the forms that converters write."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir
from quantised_nets import Quantised

T = ir.DataType


def chain(opset: int = 18, **second) -> ir.Model:
    b = Quantised(opset)
    h = b.op("MatMul", b.rounded(b.input("x", ("n", 6)), "a0"), b.stored((6, 16), "w0"))
    h = b.rounded(b.op("Relu", h), "a1", zero=0)
    return b.model(b.op("MatMul", h, b.stored((16, 4), "w1", **second)))


def shared_weight() -> ir.Model:
    """One DequantizeLinear for two layers."""
    b = Quantised()
    w = b.stored((8, 8), "w", axis=1)
    h = b.op("MatMul", b.rounded(b.input("x", ("n", 6)), "a0"), b.stored((6, 8), "w0", axis=1))
    for number in (1, 2):
        h = b.op("MatMul", b.rounded(b.op("Relu", h), f"a{number}", zero=0, scale=0.05 * number), w)
    return b.model(b.op("MatMul", b.rounded(h, "a3", scale=0.2), b.stored((8, 4), "w3")))


def transposed_convolutions(groups: int = 1) -> ir.Model:
    b = Quantised()
    x = b.rounded(b.input("x", ("n", 4, 6, 6)), "a0")
    w = b.stored((4, 16 // groups, 3, 3), "w0", axis=1)
    h = b.op("ConvTranspose", x, w, kernel_shape=[3, 3], group=groups)
    h = b.rounded(b.op("Relu", h), "a1", zero=0)
    return b.model(b.op("ConvTranspose", h, b.stored((16, 4, 3, 3), "w1", axis=1), kernel_shape=[3, 3]))


def grouped() -> ir.Model:
    b = Quantised()
    h = b.op("Conv", b.rounded(b.input("x", ("n", 4, 6, 6)), "a0"), b.stored((16, 4, 1, 1), "w0", axis=0))
    h = b.rounded(b.op("Relu", h), "a1", zero=0)
    h = b.op("Conv", h, b.stored((16, 4, 3, 3), "w1", axis=0), kernel_shape=[3, 3], group=4)
    h = b.rounded(b.op("Relu", h), "a2", zero=0)
    return b.model(b.op("Conv", h, b.stored((3, 16, 1, 1), "w2", axis=0)))


def concat_and_add() -> ir.Model:
    """Rounding around Concat and a residual Add."""
    b = Quantised()
    x = b.rounded(b.input("x", ("n", 3, 6, 6)), "a0")
    left = b.rounded(b.op("Conv", x, b.stored((8, 3, 1, 1), "w0", axis=0)), "a1")
    right = b.rounded(b.op("Conv", x, b.stored((8, 3, 1, 1), "w1", zero=False)), "a2")
    both = b.rounded(b.op("Concat", left, right, axis=1), "a3")
    inner = b.rounded(b.op("Conv", both, b.stored((16, 16, 1, 1), "w2", axis=0)), "a4", scale=0.1)
    total = b.rounded(b.op("Add", both, inner), "a5", scale=0.1)
    return b.model(b.op("Conv", total, b.stored((4, 16, 1, 1), "w3", axis=0)))


def no_zero_points() -> ir.Model:
    b = Quantised()
    scale = b.constant(np.float32(0.05), "scale")

    def rounded(x):
        return b.op("DequantizeLinear", b.op("QuantizeLinear", x, scale), scale)

    h = b.op("MatMul", rounded(b.input("x", ("n", 6))), b.stored((6, 16), "w0", zero=False))
    return b.model(b.op("MatMul", rounded(b.op("Relu", h)), b.stored((16, 4), "w1", zero=False, axis=1)))


def integers_in_and_out() -> ir.Model:
    """The graph's input is read from integers, and its output is integers."""
    b = Quantised()
    scale, zero, wide = (b.constant(v) for v in (np.float32(0.05), np.uint8(128), np.float32(0.5)))
    x = b.op("DequantizeLinear", b.input("x", ("n", 6), T.UINT8), scale, zero)
    h = b.rounded(b.op("Relu", b.op("MatMul", x, b.stored((6, 16), "w0", axis=1))), "a", zero=0)
    return b.model(b.op("QuantizeLinear", b.op("MatMul", h, b.stored((16, 4), "w1", axis=1)), wide, zero))


def embedding() -> ir.Model:
    """A table and the scale and bias of a LayerNormalization in 8 bits."""
    b = Quantised()
    h = b.op("Gather", b.stored((20, 16), "table"), b.input("ids", ("n", 5), T.INT64))
    scale, bias = (b.stored((16,), name, dtype=T.UINT8) for name in ("scale", "bias"))
    u = b.rounded(b.op("LayerNormalization", h, scale, bias, axis=-1), "a0", scale=0.02)
    f = b.op("Relu", b.op("MatMul", u, b.stored((16, 32), "w0", axis=1)))
    f = b.op("MatMul", b.rounded(f, "a1", zero=0, scale=0.05), b.stored((32, 16), "w1", axis=1))
    return b.model(b.op("Add", h, f))


def table_that_is_cut() -> ir.Model:
    b = Quantised()
    h = b.op("Gather", b.stored((20, 16), "table", axis=1), b.input("ids", ("n", 5), T.INT64))
    return b.model(b.op("MatMul", h, b.stored((16, 4), "w", axis=1)))


def weights_alone(dtype: ir.DataType = T.INT4, axis: int = 0, block: int = 4, **more) -> ir.Model:
    b = Quantised(21)
    h = b.op("MatMul", b.input("x", ("n", 6)), b.stored((6, 16), "w0", dtype=dtype, axis=0, block=3, **more))
    return b.model(
        b.op("MatMul", b.op("Relu", h), b.stored((16, 8), "w1", dtype=dtype, axis=axis, block=block, **more))
    )


def float8(dtype: ir.DataType) -> ir.Model:
    b = Quantised(19)
    h = b.op("Relu", b.op("MatMul", b.input("x", ("n", 6)), b.stored((6, 16), "w0", dtype=dtype)))
    return b.model(b.op("MatMul", h, b.stored((16, 8), "w1", dtype=dtype, axis=1)))


def sixteen_bits() -> ir.Model:
    b = Quantised(21)
    x = b.rounded(b.input("x", ("n", 6)), "a0", dtype=np.uint16, zero=32768, scale=0.0002)
    h = b.op("Relu", b.op("MatMul", x, b.stored((6, 16), "w0")))
    h = b.rounded(h, "a1", zero=0, dtype=np.int16, scale=0.0002)
    return b.model(b.op("MatMul", h, b.stored((16, 4), "w1", axis=1)))


def turned() -> ir.Model:
    """A Transpose between DequantizeLinear and layer."""
    b = Quantised()
    w0, w1 = (
        b.op("Transpose", b.stored(shape, name, axis=0), perm=[1, 0], name=f"{name}_turn")
        for shape, name in (((16, 6), "w0"), ((4, 16), "w1"))
    )
    h = b.op("Relu", b.op("MatMul", b.rounded(b.input("x", ("n", 6)), "a0"), w0))
    return b.model(b.op("MatMul", b.rounded(h, "a1", zero=0), w1))


def ranges_at_run_time() -> ir.Model:
    b = Quantised()

    def rounded(x):
        return b.op("DequantizeLinear", *b.ops("DynamicQuantizeLinear", x, outputs=3))

    h = b.op("Relu", b.op("MatMul", rounded(b.input("x", ("n", 6))), b.stored((6, 16), "w0", axis=1)))
    return b.model(b.op("MatMul", rounded(h), b.stored((16, 4), "w1", axis=1)))


def rows_of_gemm() -> ir.Model:
    b = Quantised()
    x = b.rounded(b.input("x", ("n", 6)), "a0")
    h = b.rounded(b.op("Relu", b.op("Gemm", x, b.stored((16, 6), "w0", axis=0), transB=1)), "a1", zero=0)
    return b.model(b.op("Gemm", h, b.stored((16, 4), "w1", axis=1)))


FORMS: dict[str, Callable[[], ir.Model]] = {
    "opset 10": partial(chain, 10),
    "opset 13": partial(chain, 13, axis=1),
    "opset 19": partial(chain, 19, axis=1),
    "opset 23": partial(chain, 23, axis=1),
    "uint8 weights": partial(chain, dtype=T.UINT8, axis=1),
    "a weight of two layers": shared_weight,
    "transposed convolutions": transposed_convolutions,
    "transposed convolutions in groups": partial(transposed_convolutions, 2),
    "grouped": grouped,
    "Concat and Add": concat_and_add,
    "no zero points": no_zero_points,
    "integers in and out": integers_in_and_out,
    "embedding": embedding,
    "a table that is cut": table_that_is_cut,
    "int4": weights_alone,
    "int4 without zero points": partial(weights_alone, zero=False),
    "int4 along the outputs": partial(weights_alone, axis=1),
    "uint4": partial(weights_alone, T.UINT4, 0, 8),
    "int8 in blocks": partial(weights_alone, T.INT8),
    "float8 e4m3": partial(float8, T.FLOAT8E4M3FN),
    "float8 e5m2": partial(float8, T.FLOAT8E5M2),
    "16 bits": sixteen_bits,
    "transposed weights": turned,
    "ranges at run time": ranges_at_run_time,
    "Gemm": rows_of_gemm,
}
