"""A batch on which PyTorch and onnxruntime take the same side at every kink of ReLU and its kin.

An activation may be so close to a kink that rounding decides on which side it falls. Both sides are right, and
gradients differ by as much as that activation matters. Batches are chosen by this alone, without
looking at gradients.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.families import Sample
from benchmarks.gradients_models import Case, draw
from onnxprune.calibrate.sessions import open_session, run

BATCH = 2
SEEDS = 60
"""How many batches are tried; the one with the fewest differences is taken."""

Array = np.ndarray[Any, Any]
_KINKED = ("Relu", "Clip")


def first_batch(sample: Sample, loss: str) -> Case:
    """The batch that is looked at first."""
    return draw(sample, loss, BATCH, seed=1)


def settled_batch(sample: Sample, loss: str, model: ir.Model, built: ir.Model) -> tuple[Case, int, int]:
    """The first batch without differences, else the best; how many it has, and which one it is.

    Parameters
    ----------
    sample, loss
        The module, and the kind of its loss.
    model
        As exported: its operators are looked at.
    built
        With gradients. onnxruntime may fuse more, and round differently, in a graph without them.
    """
    graph = built.clone()
    kinked = {node.outputs[0].name for node in model.graph if node.op_type in _KINKED}
    values = [node.outputs[0] for node in graph.graph if node.outputs[0].name in kinked]
    graph.graph.outputs.extend(value for value in values if not value.is_graph_output())
    names = [value.name or "" for value in values]
    session = open_session(graph, threads=1) if names else None
    best: tuple[Case, int, int] | None = None
    for seed in range(1, SEEDS + 1):
        case = draw(sample, loss, BATCH, seed)
        differ = 0
        if session is not None:
            ours = run(session, case.feed, names)
            differ = _differ([ours[name] for name in names], _sides_of_torch(case))
        if best is None or differ < best[1]:
            best = case, differ, seed
        if not differ:
            break
    assert best is not None
    return best


def _differ(ours: list[Array], theirs: list[Array]) -> int:
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} kinked operators in the graph, {len(theirs)} in PyTorch")
    return sum(int((_side(a) != _side(b)).sum()) for a, b in zip(ours, theirs, strict=True))


def _side(array: Array) -> Array:
    """On which side of the kinks at 0 and, for ReLU6, at 6 the output lies."""
    return np.sign(array) + (array >= 6)  # type: ignore[no-any-return]


class _Kinked(TorchDispatchMode):
    """Keeps what kinked operators give."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Array] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__.rstrip("_") in ("relu", "hardtanh"):
            self.made.append(result.detach().numpy().copy())
        return result


def _sides_of_torch(case: Case) -> list[Array]:
    with _Kinked() as kinked:  # with gradients on, because PyTorch computes a little differently without
        case.module(*case.inputs.values())
    return kinked.made
