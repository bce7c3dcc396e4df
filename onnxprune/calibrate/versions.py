"""What the installed onnxruntime knows of ONNX's versions."""

from __future__ import annotations

import functools
import logging

from onnxprune.calibrate.providers import CPU

log = logging.getLogger(__name__)

_SAFE = (17, 8)
"""An opset and an IR version that every supported onnxruntime takes."""

_FATAL = 4


@functools.cache
def newest() -> tuple[int, int]:
    """The newest opset and IR version that the installed onnxruntime takes; it may be older than onnx."""
    import onnx_ir as ir
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    from onnxprune.model.serialize import newest_versions, to_bytes

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    opset, version = newest_versions()

    def known(opset: int, version: int) -> bool:
        x = ir.val("x", ir.DataType.FLOAT, [1])
        node = ir.node("Identity", [x])
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", x.type, x.shape
        graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": opset}, name="probe")
        message, _ = to_bytes(ir.Model(graph, ir_version=version), external_above=1 << 20)
        try:
            onnxruntime.InferenceSession(message, options, providers=[CPU])
        except (state.Fail, state.InvalidGraph, state.NotImplemented) as error:
            log.debug("onnxruntime does not take opset %d, IR version %d: %s", opset, version, error)
            return False
        return True

    while version > _SAFE[1] and not known(_SAFE[0], version):
        version -= 1
    while opset > _SAFE[0] and not known(opset, _SAFE[1]):
        opset -= 1
    return opset, version
