"""Which execution providers of onnxruntime a user means, and whether they work on this machine."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from onnxprune.calibrate.checks import did_you_mean
from onnxprune.errors import UsageError

log = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

ALIASES: Mapping[str, str] = {
    "cpu": CPU,
    "cuda": CUDA,
    "tensorrt": TENSORRT,
    "dml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
"""Short names; the full names are accepted as well."""

_NVIDIA = (CUDA, TENSORRT, "NvTensorRTRTXExecutionProvider")


def resolve_providers(provider: str) -> list[str]:
    """Return the execution providers to open a session with, the CPU last.

    Parameters
    ----------
    provider
        ``auto`` (CUDA where it works, else the CPU), a short name (``cpu``, ``cuda``, ``tensorrt``,
        ``dml``, ``coreml``, ``openvino`` ...) or a full name such as ``CUDAExecutionProvider``.

    Returns
    -------
    list of str
        Full names, most wanted first.

    Raises
    ------
    UsageError
        If there is no such provider, this build of onnxruntime does not have it, or it does not work on
        this machine.
    """
    import onnxruntime

    available = list(onnxruntime.get_available_providers())
    if provider.lower() == "auto":
        if CUDA not in available:
            return [CPU]
        problem = why_unusable(CUDA)
        if problem:
            log.info("running on the CPU: %s", problem)
        return [CPU] if problem else [CUDA, CPU]
    known = {name.lower(): name for name in (*onnxruntime.get_all_providers(), *available, *ALIASES.values())}
    name = ALIASES.get(provider.lower()) or known.get(provider.lower())
    if name is None:
        near = did_you_mean(provider.lower(), [*ALIASES, "auto"])
        raise UsageError(f"there is no execution provider {provider!r}{near}", _choices(available))
    if name not in available:
        raise UsageError(f"the installed onnxruntime has no {name}", _choices(available))
    if name == CPU:
        return [CPU]
    problem = why_unusable(name)
    if problem:
        raise UsageError(f"{name} does not work on this machine: {problem}", _choices(available))
    return [name, CUDA, CPU] if name == TENSORRT else [name, CPU]


def _choices(available: Sequence[str]) -> str:
    """The providers that work here, for a hint."""
    working = [_short(name) for name in available if name == CPU or not why_unusable(name)]
    return f"Available here: {', '.join(working)}, or auto."


def with_options(providers: Sequence[str], *, deterministic: bool) -> list[tuple[str, dict[str, Any]]]:
    """Pair each provider with its options: on CUDA full fp32, and no choice of algorithms by timing."""
    exact = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    return [(name, dict(exact) if deterministic and name == CUDA else {}) for name in providers]


@functools.cache
def why_unusable(name: str) -> str:
    """Return why sessions cannot use an available provider on this machine, or an empty string.

    A build of onnxruntime for GPUs lists its providers on machines without one, and falls back to the CPU
    with a message on the terminal. So a driver is looked for first, then a session of one node is tried.
    """
    if name in _NVIDIA:
        if not _has_cuda_device():
            return "no CUDA driver with a device was found"
        _preload_libraries()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            _probe(), options, providers=list(dict.fromkeys([name, CPU])), enable_fallback=0
        )
    except Exception as error:  # noqa: BLE001 - whatever it raises is the answer
        return (str(error).splitlines() or [type(error).__name__])[0]
    return (
        ""
        if name in session.get_providers()
        else "onnxruntime fell back to the CPU (are its libraries installed?)"
    )


def _short(name: str) -> str:
    return next((alias for alias, full in ALIASES.items() if full == name), name)


def _has_cuda_device() -> bool:
    """Ask the driver itself, without any of the CUDA toolkit's libraries."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
        count = ctypes.c_int(0)
        found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    except (OSError, AttributeError):
        return False
    return found and count.value > 0


def _preload_libraries() -> None:
    """Load the CUDA and cuDNN libraries that pip installs; onnxruntime prints what it does not find."""
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            onnxruntime.preload_dlls()
        if said.getvalue():
            log.info("onnxruntime: %s", said.getvalue().strip())


def _probe() -> bytes:
    """Make the smallest model: y = -x."""
    import onnx_ir as ir

    from onnxprune.model.serialize import to_bytes

    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    node = ir.node("Neg", [x])
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", x.type, x.shape
    graph = ir.Graph([x], [y], nodes=[node], name="probe", opset_imports={"": 17})
    return to_bytes(ir.Model(graph, ir_version=8), external_above=1024)[0]
