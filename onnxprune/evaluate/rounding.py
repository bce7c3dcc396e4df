"""How far rounding alone moves what a model computes (ADR 9)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.evaluate.pieces import Runner, is_huge, open_runner
from onnxprune.model.unrounded import is_quantized

Array = np.ndarray[Any, Any]

DRAWS = 2
"""How many times the weights are moved."""


class Rounding:
    """Measures it for one model, which is opened again with other weights only when that is asked for.

    Parameters
    ----------
    runner
        The model, opened.
    model
        The same: in float32, or in float32 between integers. Not mutated.
    provider
        Where it runs.
    weights
        Whether weights move, too. That measures how well the model itself is conditioned: a bias that takes back
        most of a sum makes much of it.
    """

    def __init__(self, runner: Runner, model: ir.Model, provider: str, weights: bool) -> None:
        self._runner, self._model, self._provider, self._weights = runner, model, provider, weights

    def of(self, feed: Mapping[str, Array], names: Sequence[str] | None = None) -> dict[str, float]:
        """By name, how far results move when something moves by one unit in the last place; none for noise.

        What moves are the float inputs, and then the weights where they may: inputs that are zero, or drown in a
        bias, move nothing. The weights of quantised models, whose sums are exact, and of huge ones stay.
        """
        before, again = (self._runner.run(feed, names) for _ in range(2))
        after = [self._runner.run(_moved(feed), names), *(other.run(feed, names) for other in self._others)]
        return {
            name: max(float(np.abs(found[name].astype(np.float64) - a).max(initial=0.0)) for found in after)
            for name, a in before.items()
            if a.dtype.kind == "f"
            and np.array_equal(a, again[name])
            and np.isfinite([a, *(found[name] for found in after)]).all()
        }

    @cached_property
    def _others(self) -> list[Runner]:
        if not self._weights or is_quantized(self._model) or is_huge(self._model):
            return []
        return [
            open_runner(model, self._provider, saturating=False) for model in _with_moved_weights(self._model)
        ]


def _moved(arrays: Mapping[str, Array], seed: int = 0) -> dict[str, Array]:
    """Floats one unit in the last place up or down, at random; zeros of weights stay, which may be a mask."""
    rng = np.random.default_rng(seed)
    return {
        name: np.nextafter(a, rng.choice([-np.inf, np.inf], a.shape).astype(a.dtype))
        if a.dtype.kind == "f"
        else a
        for name, a in arrays.items()
    }


def _with_moved_weights(model: ir.Model) -> Iterator[ir.Model]:
    for seed in range(DRAWS):
        made = model.clone()
        floats = {
            name: value.const_value.numpy()
            for name, value in made.graph.initializers.items()
            if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT
        }
        for name, array in _moved(floats, seed + 1).items():
            made.graph.initializers[name].const_value = ir.tensor(
                np.where(floats[name] == 0, floats[name], array)
            )
        yield made
