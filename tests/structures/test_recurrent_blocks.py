"""Recurrent layers: one direction or two, stacked, encoder and decoder, with states in and out."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from block_nets import Blocks, check, others, pinned, used
from onnx.reference import ReferenceEvaluator

from onnxprune.graph.build import build_axis_graph
from onnxprune.graph.groups import partition
from onnxprune.model.normalize import normalize
from onnxprune.model.shapes import infer_shapes
from onnxprune.rules import default_rules
from onnxprune.surgery.keep import kept_positions
from onnxprune.surgery.mask import mask
from onnxprune.surgery.remove import remove

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


class Recurrent(Blocks):
    """Layers that go along the first axis of (steps, samples, features)."""

    def steps(self, width: int = 6, steps: int = 4):
        x = self.input("x", (steps, "n", width))
        return self.relu(self.linear(self.mark(x, width), 7, name="embed"))

    def recurrent(
        self, op_type: str, x, hidden: int, *, name: str, both: bool = False, states=(), **attributes
    ):
        """All outputs: states of all steps (steps, directions, samples, hidden), last state[, last cell]."""
        rows, d = GATES[op_type] * hidden, 2 if both else 1
        shapes = {"w": (d, rows, self.extents[x]), "r": (d, rows, hidden), "b": (d, 2 * rows)}
        weights = [self.weight(shape, f"{name}.{part}") for part, shape in shapes.items()]
        attributes |= {"direction": "bidirectional"} if both else {}
        return self.ops(
            *(op_type, x, *weights, None, *states),
            outputs=3 if op_type == "LSTM" else 2,
            hidden_size=hidden,
            name=name,
            **attributes,
        )

    def one(self, op_type: str, x, hidden: int, *, name: str, **kw):
        """As exporters write one direction: Squeeze."""
        y, *_ = self.recurrent(op_type, x, hidden, name=name, **kw)
        return self.mark(self.op("Squeeze", y, self.constant([1]), name=f"{name}/squeeze"), hidden)

    def two(self, op_type: str, x, hidden: int, *, name: str, **kw):
        """As exporters write two: (steps, samples, 2 x hidden)."""
        y, *_ = self.recurrent(op_type, x, hidden, name=name, both=True, **kw)
        y = self.op("Transpose", y, perm=[0, 2, 1, 3], name=f"{name}/transpose")
        return self.mark(self.op("Reshape", y, self.constant([0, 0, -1]), name=f"{name}/reshape"), 2 * hidden)


@pytest.mark.parametrize("op_type", GATES)
def test_stacked(op_type):
    n = Recurrent()
    x = n.one(op_type, n.steps(), 5, name="first")
    result = check(n, n.linear(n.one(op_type, x, 6, name="second"), 3, name="fc"))
    assert used(result) == [
        "embed: 7: embed[1]+bias -> first.w[2]",
        "first: 5: first.w[1] first.r[1] first.b[1] -> first.r[2] second.w[2]",
        "second: 6: second.w[1] second.r[1] second.b[1] -> second.r[2] fc[0]",
    ]


@pytest.mark.parametrize("op_type", GATES)
def test_both_directions_stacked(op_type):
    """Directions keep equally many units, but each its own: a unit is one of one direction."""
    n = Recurrent()
    x = n.two(op_type, n.steps(), 5, name="first")
    result = check(n, n.linear(n.two(op_type, x, 6, name="second"), 3, name="fc"))
    assert used(result)[1:] == [
        "first: 10 in 2 blocks: first.w[1] first.r[1] first.b[1] -> first.r[2] second.w[2]",
        "second: 12 in 2 blocks: second.w[1] second.r[1] second.b[1] -> second.r[2] fc[0]",
    ]
    assert others(result) == []


def test_directions_that_are_added():
    """What sums over directions cannot tell them apart: the same positions go in both."""
    n = Recurrent()
    y, *_ = n.recurrent("LSTM", n.steps(), 5, name="lstm", both=True)
    total = n.mark(n.op("ReduceSum", y, n.constant([1]), keepdims=0, name="sum"), 5)
    result = check(n, n.linear(total, 3, name="fc"))
    assert used(result)[1] == "lstm: 5 of 2: lstm.w[1] lstm.r[1] lstm.b[1] -> lstm.r[2] fc[0]"


def test_directions_that_are_also_read_together():
    """One reader keeps directions apart, another does not: then they are one, whichever comes first."""
    n = Recurrent()
    y, *_ = n.recurrent("GRU", n.steps(), 5, name="gru", both=True)
    whole = n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.constant([0, 0, -1]))
    total = n.mark(n.op("ReduceSum", y, n.constant([1]), keepdims=0, name="sum"), 5)
    result = check(n, n.linear(total, 3, name="fc"), n.linear(n.mark(whole, 10), 2, name="head"))
    assert used(result)[1].startswith("gru: 5 of 2: gru.w[1] gru.r[1] gru.b[1] -> gru.r[2]")


def test_directions_that_are_sliced():
    """Another way to write two directions: one slice each, then a Concat."""
    n = Recurrent()
    y, *_ = n.recurrent("LSTM", n.steps(), 5, name="lstm", both=True)
    parts = [n.op("Squeeze", n.slice(y, i, i + 1), n.constant([1])) for i in range(2)]
    x = n.mark(n.op("Concat", *parts, axis=2, name="concat"), 10)
    result = check(n, n.linear(x, 3, name="fc"))
    assert used(result)[1] == "lstm: 10 in 2 blocks: lstm.w[1] lstm.r[1] lstm.b[1] -> lstm.r[2] fc[0]"


@pytest.mark.parametrize("way", ["gather", "split"])
def test_last_states_of_both_directions(way):
    """A classifier that reads the last state of either direction, side by side."""
    n = Recurrent()
    _, last, _ = n.recurrent("LSTM", n.steps(), 5, name="lstm", both=True)
    if way == "gather":
        parts = [n.gather(last, i, axis=0) for i in range(2)]
    else:
        parts = [n.op("Squeeze", part, n.constant([0])) for part in n.split(last, 1, 1, axis=0)]
    x = n.mark(n.op("Concat", *parts, axis=1, name="concat"), 10)
    result = check(n, n.linear(x, 3, name="fc"))
    assert used(result)[1] == "lstm: 10 in 2 blocks: lstm.w[1] lstm.r[1] lstm.b[1] -> lstm.r[2] fc[0]"


@pytest.mark.parametrize("both", [False, True])
def test_encoder_and_decoder(both):
    """The decoder begins where the encoder ended: units of both are one, directions are not."""
    n = Recurrent()
    make = n.two if both else n.one
    x = n.steps()
    _, h, c = n.recurrent("LSTM", x, 5, name="encoder", both=both)
    y = make("LSTM", x, 5, name="decoder", states=(h, c))
    result = check(n, n.linear(y, 3, name="fc"))
    size = "10 in 2 blocks" if both else "5"
    assert used(result)[1] == (
        f"encoder: {size}: encoder.w[1] encoder.r[1] encoder.b[1] decoder.w[1] decoder.r[1] decoder.b[1]"
        " -> encoder.r[2] decoder.r[2] fc[0]"
    )


def test_state_out_of_the_graph():
    """Callers rely on the shape of a state that they get, so its units stay."""
    n = Recurrent()
    y, h = n.recurrent("GRU", n.steps(), 5, name="gru")
    result = check(n, n.linear(n.mark(n.op("Squeeze", y, n.constant([1])), 5), 3, name="fc"), h)
    assert used(result) == ["embed: 7: embed[1]+bias -> gru.w[2]"]
    assert pinned(result, "gru.w[1]", "gru.r[2]") == ["GRAPH_OUTPUT"] * 2


def test_norm_behind_a_layer():
    """LayerNormalization averages over the units: they stay, unless inexact cuts are wanted."""
    n = Recurrent()
    y = n.one("GRU", n.steps(), 6, name="gru")
    scale = [n.weight((6,), f"norm.{part}") for part in ("weight", "bias")]
    result = check(n, n.linear(n.mark(n.op("LayerNormalization", y, *scale, axis=-1), 6), 3, name="fc"))
    assert pinned(result, "gru.r[2]") == ["NORMALIZED"]


def test_lengths_of_samples():
    """Behind a sample's length states are zero, and the last state is that of its last step."""
    n = Recurrent()
    x = n.steps()
    lengths = n.constant(np.array([4, 2], np.int32), "lengths")
    weights = [
        n.weight(shape, f"gru.{part}")
        for part, shape in (("w", (1, 15, 7)), ("r", (1, 15, 5)), ("b", (1, 30)))
    ]
    _, last = n.ops("GRU", x, *weights, lengths, outputs=2, hidden_size=5, name="gru")
    y = n.mark(n.op("Squeeze", last, n.constant([0])), 5)
    result = check(n, n.linear(y, 3, name="fc"), bindings={"n": 2})
    assert used(result)[1] == "gru: 5: gru.w[1] gru.r[1] gru.b[1] -> gru.r[2] fc[0]"


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("op_type", GATES)
def test_samples_first(op_type, both):
    """`layout` 1, which onnxruntime does not run: states are (samples, steps, directions, hidden)."""
    n, d = Recurrent(), 2 if both else 1
    x = n.mark(n.input("x", (2, 4, 6)), 6)
    first = [n.weight((2, d, 5), f"first{i}") for i in range(2 if op_type == "LSTM" else 1)]
    y, last, *_ = n.recurrent(op_type, x, 5, name="layer", both=both, layout=1, states=first)
    flat = n.mark(n.op("Reshape", y, n.constant([0, 0, -1])), 5 * d)
    ends = n.mark(n.op("Reshape", last, n.constant([0, -1])), 5 * d)
    model = normalize(n.model(n.linear(flat, 3, name="fc"), n.linear(ends, 2, name="head")))
    graph = build_axis_graph(model, infer_shapes(model, {}), default_rules())
    (group,) = partition(graph).groups
    assert group.units == 5 * d and group.block_count == d
    keep = np.ones(5 * d, bool)
    for block in range(d):  # another unit in each direction
        mine = np.arange(5) if group.blocks is None else np.flatnonzero(group.blocks == block)
        keep[mine[block + 1]] = False
    kept = kept_positions({group.id: group}, {group.id: keep})
    masked, cut = mask(graph, kept), remove(graph, kept)
    if not both:  # the reference goes one way only
        feed = {"x": np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)}
        for a, b in zip(
            *(ReferenceEvaluator(ir.to_proto(m)).run(None, feed) for m in (masked, cut)), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-5)
    (layer,) = (node for node in cut.graph if node.op_type == op_type)
    assert layer.attributes["hidden_size"].as_int() == 4
    assert [tuple(v.const_value.shape.numpy()) for v in layer.inputs[5:]] == [(2, d, 4)] * len(first)


@pytest.mark.parametrize("both", [False, True])
def test_weights_that_two_layers_share(both):
    """Two sequences through one layer (a siamese network): units are those of both nodes."""
    n, d = Recurrent(), 2 if both else 1
    x = n.steps()
    shapes = {"w": (d, 15, 7), "r": (d, 15, 5), "b": (d, 30)}
    weights = [n.weight(shape, f"gru.{part}") for part, shape in shapes.items()]
    flat = []
    for number, one in enumerate((x, n.like("Tanh", x))):
        more = {"direction": "bidirectional"} if both else {}
        y, _ = n.ops("GRU", one, *weights, outputs=2, hidden_size=5, name=f"side{number}", **more)
        turned = n.op("Transpose", y, perm=[0, 2, 1, 3])
        flat.append(n.op("Reshape", turned, n.constant([0, 0, -1])))
    result = check(n, n.linear(n.mark(n.op("Sub", *flat), 5 * d), 3, name="fc"))
    size = "10 in 2 blocks" if both else "5"
    assert used(result)[1].startswith(f"side0: {size}: gru.w[1] gru.r[1] gru.b[1]")
    assert used(result)[1].endswith("-> gru.r[2] fc[0]")


@pytest.mark.parametrize("both", [False, True])
def test_weights_that_are_computed(both):
    """R is a product with an input, so its columns are masked by a Mul; directions are not told apart."""
    n, d = Recurrent(), 2 if both else 1
    x, scale = n.steps(), n.input("scale", (1,))
    w, r = (n.weight(shape, f"lstm.{part}") for part, shape in (("w", (d, 20, 7)), ("r", (d, 20, 5))))
    more = {"direction": "bidirectional"} if both else {}
    y, *_ = n.ops("LSTM", x, w, n.op("Mul", r, scale), outputs=3, hidden_size=5, name="lstm", **more)
    flat = n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.constant([0, 0, -1]))
    result = check(n, n.linear(n.mark(flat, 5 * d), 3, name="fc"))
    assert len(result.groups) == 2 and result.groups[1].units == 5
    assert result.prunable() >= {"lstm.w[1]", "lstm.r[1]", "lstm.r[2]"}
