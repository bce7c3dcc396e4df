"""The step of the gradients benchmark that builds the graphs and holds their gradients against torch.autograd's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from benchmarks.families import Sample
from benchmarks.gradients_cost import feed_path, graph_path
from benchmarks.gradients_kinks import first_batch, settled_batch
from benchmarks.gradients_models import SUBJECTS, Case, draw, export
from benchmarks.gradients_parameters import Held, Observed, called_layers, find_masks, find_parameters
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.gradients import build_backward, gradient_name

Figures = dict[str, Any]
Array = np.ndarray[Any, Any]

ZERO = 1e-6
"""Norm of a gradient, as a share of the largest of the model, below which it is zero but for rounding."""


def compare(name: str, exporter: str, folder: str) -> Figures:
    """Export, build both backward graphs, and hold their gradients against torch.autograd's.

    The graphs are left in `folder` for `cost`.
    """
    torch.set_num_threads(1)
    subject = SUBJECTS[name]
    sample = subject.build()
    model, held, plain = _export(sample, exporter)
    layers = called_layers(sample.module, sample.inputs.values())
    masks = find_masks(sample.module, layers, model.graph, held)
    loss = first_batch(sample, subject.loss).onnx_loss
    started = time.perf_counter()
    weights = [one.name for several in held.values() for one in several]
    graphs = {
        "masks": build_backward(model, loss, list(masks.values())),
        "weights": build_backward(model, loss, weights),
    }
    took = time.perf_counter() - started
    for kind, graph in graphs.items():
        _save(graph, graph_path(folder, name, exporter, kind))
    np.savez(feed_path(folder, name), **draw(sample, subject.loss).feed)
    case, kinks, seed = settled_batch(sample, subject.loss, model, graphs["weights"])
    theirs, exact = _by_torch(case, torch.float32), _by_torch(case, torch.float64)
    figures: Figures = {
        "plain": plain,
        "seed": seed,
        "kinks": kinks,
        "tensors": len(theirs),
        "missing": [name for name in theirs if name not in held],
        "weights": closeness(_weights(graphs["weights"], case, held), theirs, exact),
        "torch": closeness(theirs, exact, exact),
        "first": _on_first_batch(sample, subject.loss, graphs["weights"], held) if seed > 1 else None,
        "nodes": {"model": model.graph.num_nodes(), **{k: g.graph.num_nodes() for k, g in graphs.items()}},
        "build": took / len(graphs),
        "layers": list(masks),
    }
    found = run(open_session(graphs["masks"], threads=1), case.feed)
    observed = {
        name: found.numpy() for name, found in _observe(case, Observed(case.module, list(masks))).items()
    }
    ours = {layer: found[gradient_name(mask)] for layer, mask in masks.items()}
    return {**figures, "masks": closeness(ours, observed, observed)}


def _on_first_batch(
    sample: Sample, loss: str, graph: ir.Model, held: Mapping[str, list[Held]]
) -> dict[str, Figures]:
    """The same where kinks do differ, and how far PyTorch's own float32 is from float64 there."""
    case = first_batch(sample, loss)
    theirs, exact = _by_torch(case, torch.float32), _by_torch(case, torch.float64)
    ours = _weights(graph, case, held)
    return {"weights": closeness(ours, theirs, exact), "torch": closeness(theirs, exact, exact)}


def _export(sample: Sample, exporter: str) -> tuple[ir.Model, dict[str, list[Held]], bool]:
    """The model as exported by default, or, where parameters get lost in that, without any folding."""
    count = sum(parameter.requires_grad for parameter in sample.module.parameters())
    for plain in (False, True):
        model = export(sample, exporter, plain)
        held = find_parameters(sample.module, model.graph)
        if len(held) == count:
            break
    return model, held, plain


def _weights(graph: ir.Model, case: Case, held: Mapping[str, list[Held]]) -> dict[str, Array]:
    found = run(open_session(graph, threads=1), case.feed)
    ours: dict[str, Array] = {}
    for parameter, several in held.items():
        gradients = [(found[gradient_name(one.name)], one.transposed) for one in several]
        ours[parameter] = np.sum(
            [gradient.T if turned else gradient for gradient, turned in gradients], axis=0
        )
    return ours


def _save(model: ir.Model, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = path.with_suffix(".data")
    data.unlink(missing_ok=True)
    ir.save(model, path, external_data=data.name)


def _by_torch(case: Case, dtype: torch.dtype) -> dict[str, Array]:
    """Gradients of all parameters by torch.autograd; zeros where the loss does not depend on one."""
    module = case.module.to(dtype)
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    inputs = [x.to(dtype) if x.is_floating_point() else x for x in case.inputs.values()]
    gradients = torch.autograd.grad(
        case.torch_loss(module(*inputs)), list(named.values()), allow_unused=True, materialize_grads=True
    )
    module.to(torch.float32)
    return {name: gradient.numpy() for name, gradient in zip(named, gradients, strict=True)}


def _observe(case: Case, observed: Observed) -> dict[str, torch.Tensor]:
    return observed.masks(case.loss(), len(next(iter(case.inputs.values()))))


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
