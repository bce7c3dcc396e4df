"""Which element types an operator takes: onnx's schemas, and onnxruntime's kernels on the CPU."""

from __future__ import annotations

from functools import cache

import onnx
import onnx_ir as ir
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

CONVERTED = frozenset({"float16"})
"""Types that onnxruntime casts to float32 itself, around operators that it has no kernel for."""
NAMES = {
    ir.DataType.FLOAT16: "float16",
    ir.DataType.DOUBLE: "double",
    ir.DataType.BFLOAT16: "bfloat16",
}


@cache
def variables(op_type: str, opset: int) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """Type variables of an operator's inputs and outputs, and whether the last input may be repeated."""
    schema = onnx.defs.get_schema(op_type, opset, "")
    inputs, outputs = (tuple(formal.type_str for formal in part) for part in (schema.inputs, schema.outputs))
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    return inputs, outputs, bool(schema.inputs) and schema.inputs[-1].option == variadic


@cache
def allows(op_type: str, opset: int, variable: str, name: str) -> bool:
    """Whether a type variable of an operator may be a type, in onnx's schema and in some kernel."""
    schema = onnx.defs.get_schema(op_type, opset, "")
    wanted = f"tensor({name})"
    types = {entry.type_param_str: entry.allowed_type_strs for entry in schema.type_constraints}
    if wanted not in types.get(variable, ()):
        return False
    if name in CONVERTED or name == "bfloat16":  # the latter runs as float32, which is asked for
        return True
    return any(wanted in types for types in kernels(op_type, schema.since_version, variable))


@cache
def kernels(op_type: str, since: int, variable: str) -> tuple[tuple[str, ...], ...]:
    """The types that each kernel of an operator has for a type variable."""
    return tuple(
        tuple(constraints.get(variable, ()))
        for name, domain, (first, last), constraints in _registered()
        if (name, domain) == (op_type, "") and first <= since <= last
    )


@cache
def _registered() -> tuple[tuple[str, str, tuple[int, int], dict[str, list[str]]], ...]:
    found = runtime.get_registered_ep_kernel_defs("CPUExecutionProvider")
    return tuple((k.op_name, k.domain, tuple(k.version_range), dict(k.type_constraints)) for k in found)
