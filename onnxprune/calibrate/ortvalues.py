"""Arrays as values of onnxruntime and back: bfloat16, which numpy does not have, needs its type spelled out."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from onnxprune.calibrate.dataset import Array

BF16 = "tensor(bfloat16)"
"""onnxruntime's name of the type."""

_ONNX_BF16 = 16


def as_float32(array: Array) -> Array:
    """A float array as float32, any other as it is."""
    is_float = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return array.astype(np.float32, copy=False) if is_float else array


def as_bf16(array: Array, wanted: str | None) -> Array:
    """An array as bfloat16 where `wanted`, onnxruntime's name of a type, says so."""
    if wanted != BF16:
        return array
    import ml_dtypes

    return np.asarray(array).astype(ml_dtypes.bfloat16)


def ort_value(array: Array, device: str = "cpu") -> Any:
    """Wrap an array, on the CPU without a copy (the result keeps it alive); bf16 needs its type spelled out."""
    import onnxruntime

    array = np.asarray(array, order="C")
    if array.dtype.name == "bfloat16":
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _ONNX_BF16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)


def from_ort_value(value: Any) -> Array:
    """The array of an OrtValue; bfloat16 comes back as float32, in a copy."""
    if value.data_type() != BF16:
        return np.asarray(value.numpy())
    import ml_dtypes

    shape = tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    if count == 0:
        return np.zeros(shape, np.float32)
    words: Array = np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(value.data_ptr()))
    return np.asarray(words.view(ml_dtypes.bfloat16).reshape(shape), np.float32)
