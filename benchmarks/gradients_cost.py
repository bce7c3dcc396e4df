"""The steps of the gradients benchmark that measure time and memory, on graphs that lie in files."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.gradients_models import SUBJECTS, Case, draw, import_libraries
from benchmarks.isolated import peak_mb
from onnxprune.calibrate.sessions import open_session, run

Figures = dict[str, Any]
Array = np.ndarray[Any, Any]

KINDS = ("masks", "weights")
"""What is differentiated with respect to."""

RUNS = 5
"""Of a profile."""


def graph_path(folder: str, name: str, exporter: str, kind: str) -> Path:
    """Where a backward graph lies."""
    return Path(folder) / f"{name.replace(' ', '_')}_{exporter}_{kind}.onnx"


def feed_path(folder: str, name: str) -> Path:
    """Where a model's batch lies."""
    return Path(folder) / f"{name.replace(' ', '_')}.npz"


def cost(name: str, exporter: str, folder: str, kind: str, layers: list[str], seconds: float) -> Figures:
    """Time forward and backward in onnxruntime and in PyTorch, in turn, on one thread."""
    case = _case(name)
    sides = {
        "onnx": _onnx_side(graph_path(folder, name, exporter, kind), case.feed),
        "torch": _torch_side(case, kind, layers),
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    cpu: dict[str, list[float]] = {side: [] for side in sides}
    for call in sides.values():
        call()
    until = time.perf_counter() + seconds
    while len(times["onnx"]) < 5 or (time.perf_counter() < until and len(times["onnx"]) < 60):
        for side, call in sides.items():
            started = time.perf_counter(), time.process_time()
            call()
            times[side].append(time.perf_counter() - started[0])
            cpu[side].append(time.process_time() - started[1])
    middles = {side: median(several) for side, several in times.items()}
    return {
        **middles,
        "runs": len(times["onnx"]),
        "ratio": middles["onnx"] / middles["torch"],
        "cpu": median(cpu["onnx"]) / median(cpu["torch"]),
    }


def memory(name: str, exporter: str, folder: str, kind: str, side: str, layers: list[str]) -> Figures:
    """Peak memory, MB, of three runs of one side: of the process, and above what its imports take."""
    if side == "torch":
        import_libraries(name)
        before = now_mb()
        call = _torch_side(_case(name), kind, layers)
        forget_peak()
    else:
        import onnxruntime  # noqa: F401

        before = now_mb()
        with np.load(feed_path(folder, name)) as arrays:
            feed = dict(arrays)
        call = _onnx_side(graph_path(folder, name, exporter, kind), feed)
    for _ in range(3):
        call()
    return {"peak": peak_mb(), "before": before}


def _case(name: str) -> Case:
    import torch

    torch.set_num_threads(1)
    subject = SUBJECTS[name]
    return draw(subject.build(), subject.loss)


def _onnx_side(path: Path, feed: Mapping[str, Array]) -> Callable[[], object]:
    session = open_session(ir.load(path), threads=1, lean=True)
    return lambda: run(session, feed)


def _torch_side(case: Case, kind: str, layers: list[str]) -> Callable[[], object]:
    from benchmarks.gradients_parameters import Observed

    module = case.module
    if kind == "masks":
        observed = Observed(module, layers)
        batch = len(next(iter(case.inputs.values())))
        return lambda: observed.masks(case.loss(), batch)

    def call() -> None:
        module.zero_grad(set_to_none=True)
        case.loss().backward()

    return call


def profile(name: str, exporter: str, folder: str, kind: str) -> Figures:
    """Where onnxruntime spends its time: the operators, and the nodes, that take most of it."""
    import onnxruntime

    path = graph_path(folder, name, exporter, kind)
    with np.load(feed_path(folder, name)) as arrays:
        feed = dict(arrays)
    with tempfile.TemporaryDirectory() as place:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(place) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(RUNS + 1):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    operators: Counter[str] = Counter()
    nodes: dict[str, list[float]] = {}
    kinds = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            label = event["name"].removesuffix("_kernel_time")
            nodes.setdefault(label, []).append(event["dur"] / 1000)
            shapes = [next(iter(shape.values())) for shape in event["args"].get("input_type_shape", ())]
            kinds[label] = (event["args"]["op_name"], shapes)
    took = {label: median(several) for label, several in nodes.items()}
    for label, milliseconds in took.items():
        operators[kinds[label][0]] += milliseconds
    top = sorted(took, key=took.__getitem__, reverse=True)[:12]
    return {
        "total": sum(took.values()),
        "operators": dict(operators.most_common(12)),
        "nodes": [[label, *kinds[label], took[label]] for label in top],
    }


def now_mb() -> float:
    """Resident memory of this process now, MB."""
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**20


def forget_peak() -> None:
    """Let the peak of this process's memory begin anew; on Linux only."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
