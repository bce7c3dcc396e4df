"""The two products of a recurrent layer as linear maps: inputs by W, and its own states of one step ago by R.

All gates of all directions are the outputs, (directions x gates x hidden). Rows of R's input are the states of all
steps, the last one among them and the first one not: over many steps that makes no difference. Where the reset gate
of a GRU comes before R's product (`linear_before_reset` is 0), a third of R sees states that are multiplied by it;
statistics take it as if it saw the states.

Specification: https://onnx.ai/onnx/operators/onnx__LSTM.html and its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.graph.build import AxisGraph
from onnxprune.model.states import is_recurrent
from onnxprune.statistics.consumers import Array, Consumer

W, R, B = 1, 2, 3
"""Slots of weights and biases."""


@dataclass(frozen=True)
class Gates(Consumer):
    """What a recurrent layer multiplies by W or by R; the same words as `Consumer`.

    Attributes
    ----------
    slot
        `W`, with the layer's input as x, (steps, samples, features), and one group; or `R`, with its first output,
        (steps, directions, samples, hidden), and one group per direction.
    """

    slot: int = W

    @property
    def label(self) -> str:
        """The layer, and which of its weights."""
        return f"{self.node.name or self.weight.name} ({'WR'[self.slot - W]})"

    @property
    def key(self) -> str:
        """As of `Consumer`; the two products of a layer are told apart."""
        made = next(str(out.name) for out in self.node.outputs if out.name)
        return f"{made}/{'WR'[self.slot - W]}"

    @property
    def directions(self) -> int:
        """One or two."""
        return self._shape[0]

    @property
    def columns(self) -> int:
        """Features, or hidden units."""
        return self._shape[2]

    @property
    def outputs(self) -> int:
        """Hidden units of all gates and directions."""
        return self._shape[0] * self._shape[1]

    @property
    def layout(self) -> str:
        """As of a Gemm with transB."""
        return "rows"

    @property
    def shifts(self) -> bool:
        """Whether the layer has biases that can be changed."""
        return self.bias is not None and self.bias.const_value is not None and len(self.bias.uses()) == 1

    def arranged(self, array: Array) -> Array:
        """As of `Consumer`."""
        return np.asarray(array.reshape(self.groups, -1, array.shape[-1]))

    def from_matrix(self, matrix: Array) -> Array:
        """As of `Consumer`."""
        return np.asarray(matrix.reshape(self._shape))

    def bias_vector(self) -> Array:
        """The half of B that goes with this weight, (outputs,), float64; zeros without one."""
        if self.bias is None or self.bias.const_value is None:
            return np.zeros(self.outputs)
        return np.asarray(self._half(self.bias.const_value.numpy())).astype(np.float64).ravel()

    def to_bias(self, vector: Array, beside: Array | None = None) -> Array:
        """B with this half of it; `beside` is what it holds by now, where that is not the initializer."""
        data = None if self.bias is None else self.bias.const_value
        if data is None:
            raise ValueError(f"{self.label} has no bias")
        whole = np.array(data.numpy() if beside is None else beside)
        self._half(whole)[...] = vector.reshape(self.directions, -1)
        return whole

    def _half(self, whole: Array) -> Array:
        half = whole.shape[1] // 2
        return whole[:, :half] if self.slot == W else whole[:, half:]


def gates_of(node: ir.Node) -> list[Gates]:
    """The products of a recurrent layer; empty for other nodes, and where weights are computed or shared."""
    if not is_recurrent(node):
        return []
    layout = node.attributes.get("layout")
    given = [node.inputs[slot] if slot < len(node.inputs) else None for slot in range(B + 1)]
    x, bias, states = given[0], given[B], node.outputs[0]
    if x is None or x.const_value is not None or (layout is not None and layout.as_int()):
        return []
    found = []
    for slot, seen in ((W, x), (R, states)):
        weight = given[slot]
        if weight is None or weight.const_value is None or len(weight.uses()) > 1 or not seen.name:
            continue
        if weight.dtype is not None and weight.dtype.is_floating_point():
            groups = 1 if slot == W else int(weight.const_value.shape.numpy()[0])
            found.append(Gates(node, seen, weight, states, bias, groups, slot))
    return found


def all_gates(axis_graph: AxisGraph) -> dict[ir.Value, Gates]:
    """The products of all recurrent layers, by weight."""
    return {gates.weight: gates for op in axis_graph.ops for gates in gates_of(op.node)}
