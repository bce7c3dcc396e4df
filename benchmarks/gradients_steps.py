"""The steps of the gradients benchmark; each runs in a process of its own and gives figures that JSON can hold."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.isolated import peak_mb

if TYPE_CHECKING:
    import torch

    from benchmarks.gradients_models import Case

Figures = dict[str, Any]
Array = np.ndarray[Any, Any]

RUNS = 5
"""Of a profile."""

KINDS = ("masks", "weights")
"""What is differentiated with respect to."""

ZERO = 1e-6
"""Norm of a gradient, as a share of the largest of the model, below which it is zero but for rounding."""


def compare(name: str, exporter: str, folder: str) -> Figures:
    """Export, build both backward graphs, and hold their gradients against torch.autograd's.

    The graphs are left in `folder` for `cost`.
    """
    import torch

    from benchmarks.gradients_models import case_of, export
    from benchmarks.gradients_parameters import find_masks, find_parameters
    from onnxprune.calibrate.sessions import open_session, run
    from onnxprune.gradients import build_backward, gradient_name

    case = case_of(name)
    module = case.sample.module
    wanted = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    for plain in (False, True):
        model = export(case.sample, exporter, plain)
        held = find_parameters(module, model.graph)
        if len(held) == len(wanted):
            break
    masks = find_masks(module, model.graph, held)
    started = time.perf_counter()
    targets = {
        "weights": [one.name for several in held.values() for one in several],
        "masks": list(masks.values()),
    }
    graphs = {kind: build_backward(model, case.onnx_loss, targets[kind]) for kind in KINDS}
    took = (time.perf_counter() - started) / len(KINDS)
    found = run(open_session(graphs["weights"], threads=1), case.feed)
    ours: dict[str, Array] = {}
    for parameter, several in held.items():
        gradients = [(found[gradient_name(one.name)], one.transposed) for one in several]
        ours[parameter] = sum(gradient.T if turned else gradient for gradient, turned in gradients)  # type: ignore[assignment]
    theirs = _by_torch(case, torch.float32)
    exact = _by_torch(case, torch.float64)
    figures: Figures = {
        "plain": plain,
        "tensors": len(wanted),
        "missing": [name for name in wanted if name not in held],
        "weights": closeness(ours, theirs, exact),
        "torch": closeness(theirs, exact, exact),
        "nodes": {"model": model.graph.num_nodes(), **{k: g.graph.num_nodes() for k, g in graphs.items()}},
        "build": took,
    }
    np.savez(_feed_path(folder, name), **case.feed)
    for kind, graph in graphs.items():
        _save(graph, graph_path(folder, name, exporter, kind))
    found = run(open_session(graphs["masks"], threads=1), case.feed)
    ours = {layer: found[gradient_name(mask)] for layer, mask in masks.items()}
    figures["layers"] = list(masks)
    figures["masks"] = _masks_closeness(case, ours)
    return figures


def graph_path(folder: str, name: str, exporter: str, kind: str) -> Path:
    """Where a backward graph lies."""
    return Path(folder) / f"{name.replace(' ', '_')}_{exporter}_{kind}.onnx"


def _feed_path(folder: str, name: str) -> Path:
    return Path(folder) / f"{name.replace(' ', '_')}.npz"


def _save(model: Any, path: Path) -> None:
    import onnx_ir as ir

    path.parent.mkdir(parents=True, exist_ok=True)
    data = path.with_suffix(".data")
    data.unlink(missing_ok=True)
    ir.save(model, path, external_data=data.name)


def _by_torch(case: Case, dtype: torch.dtype) -> dict[str, Array]:
    """Gradients of all parameters by torch.autograd; zeros where the loss does not depend on one."""
    import torch

    module = case.sample.module.to(dtype)
    inputs = [x.to(dtype) if x.is_floating_point() else x for x in case.inputs.values()]
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    loss = case.torch_loss(module(*inputs))
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
    module.to(torch.float32)
    return {name: gradient.numpy() for name, gradient in zip(named, gradients, strict=True)}


def _masks_closeness(case: Case, ours: Mapping[str, Array]) -> Figures:
    from benchmarks.gradients_parameters import Observed

    observed = Observed(case.sample.module, list(ours))
    theirs = {name: found.numpy() for name, found in _observe(case, observed).items()}
    return closeness(ours, theirs, theirs)


def _observe(case: Case, observed: Any) -> dict[str, torch.Tensor]:
    loss = case.torch_loss(case.sample.module(*case.inputs.values()))
    batch = len(next(iter(case.inputs.values())))
    found: dict[str, torch.Tensor] = observed.masks(loss, batch)
    return found


def closeness(ours: Mapping[str, Array], theirs: Mapping[str, Array], exact: Mapping[str, Array]) -> Figures:
    """The lowest cosine and the worst relative error of all tensors, and where they are.

    The relative error of a tensor is its largest difference as a share of its largest entry. Tensors whose
    exact gradient is zero have no direction; of these, the largest norm of ours is given, as a share of the
    largest norm of all.
    """
    norms = {name: float(np.linalg.norm(array)) for name, array in exact.items()}
    largest = max(norms.values())
    cosines, errors, zeros = {}, {}, [0.0]
    for name, array in ours.items():
        a, b = array.astype(np.float64).ravel(), theirs[name].astype(np.float64).ravel()
        if norms[name] <= ZERO * largest:
            zeros.append(float(np.linalg.norm(a)) / largest)
            continue
        cosines[name] = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
        errors[name] = float(np.abs(a - b).max() / np.abs(b).max())
    lowest, worst = min(cosines, key=cosines.__getitem__), max(errors, key=errors.__getitem__)
    return {
        "compared": len(cosines),
        "cosine": cosines[lowest],
        "cosine_at": lowest,
        "error": errors[worst],
        "error_at": worst,
        "zeros": len(zeros) - 1,
        "zeros_norm": max(zeros),
    }


def cost(name: str, exporter: str, folder: str, kind: str, layers: list[str], seconds: float) -> Figures:
    """Time forward and backward in onnxruntime and in PyTorch, in turn, on one thread."""
    from benchmarks.gradients_models import case_of

    case = case_of(name)
    sides = {
        "onnx": _onnx_side(graph_path(folder, name, exporter, kind), case.feed),
        "torch": _torch_side(case, kind, layers),
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    for call in sides.values():
        call()
    until = time.perf_counter() + seconds
    while len(times["onnx"]) < 5 or (time.perf_counter() < until and len(times["onnx"]) < 60):
        for side, call in sides.items():
            started = time.perf_counter()
            call()
            times[side].append(time.perf_counter() - started)
    middles = {side: median(several) for side, several in times.items()}
    return {
        **middles,
        "runs": len(times["onnx"]),
        "ratio": middles["onnx"] / middles["torch"],
        "best": min(times["onnx"]) / min(times["torch"]),
    }


def memory(name: str, exporter: str, folder: str, kind: str, side: str, layers: list[str]) -> Figures:
    """Peak memory, MB, of three runs of one side: of the process, and above what its imports take."""
    if side == "torch":
        from benchmarks import gradients_models
        from benchmarks.gradients_models import case_of

        gradients_models.import_libraries(name)
        before = now_mb()
        call = _torch_side(case_of(name), kind, layers)
        forget_peak()
    else:
        import onnx_ir  # noqa: F401

        from onnxprune.calibrate import sessions  # noqa: F401

        before = now_mb()
        with np.load(_feed_path(folder, name)) as arrays:
            feed = dict(arrays)
        call = _onnx_side(graph_path(folder, name, exporter, kind), feed)
    for _ in range(3):
        call()
    return {"peak": peak_mb(), "before": before}


def _onnx_side(path: Path, feed: Mapping[str, Array]) -> Callable[[], object]:
    from onnxprune.calibrate.sessions import open_session, run
    from onnxprune.model import load_model

    session = open_session(load_model(path), threads=1)
    return lambda: run(session, feed)


def _torch_side(case: Case, kind: str, layers: list[str]) -> Callable[[], object]:
    from benchmarks.gradients_parameters import Observed

    module = case.sample.module
    if kind == "masks":
        observed = Observed(module, layers)
        return lambda: _observe(case, observed)

    def call() -> None:
        module.zero_grad(set_to_none=True)
        case.torch_loss(module(*case.inputs.values())).backward()

    return call


def profile(name: str, exporter: str, folder: str, kind: str) -> Figures:
    """Where onnxruntime spends its time: the operators, and the nodes, that take most of it."""
    import onnxruntime

    path = graph_path(folder, name, exporter, kind)
    with np.load(_feed_path(folder, name)) as arrays:
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
