"""Positions that every choice at a Reshape holds, and what people are told about them."""

from __future__ import annotations

from onnxprune.graph.axes import Axis
from onnxprune.graph.build import build_axis_graph
from onnxprune.graph.cuts import lay_out
from onnxprune.graph.explain import path_to_barrier, ways
from onnxprune.graph.held import hold
from onnxprune.model.normalize import normalize
from onnxprune.model.shapes import infer_shapes
from onnxprune.rules import default_rules
from onnxprune.testing import ModelBuilder, check_model


def chain(last):
    """(2, 12) -> 3 x 4; the 3 are picked by their numbers, each goes through `last`."""
    b = ModelBuilder(17)
    h = b.op("MatMul", b.input("x", (2, 6)), b.weight((6, 12), "in"))
    parts = b.op("Reshape", h, b.constant([2, 3, 4]), name="parts")
    outs = [b.op("Gather", parts, b.constant(number), axis=1, name=f"part{number}") for number in range(3)]
    return b.model(*(last(b, part) for part in outs))


def graph_of(model):
    model = normalize(model)
    return build_axis_graph(model, infer_shapes(model), default_rules())


def held(graph):
    layout = hold(lay_out(graph))
    return {axis.name: layout.pinned[layout.positions(axis)].tolist() for axis in layout.axes}


def project(b, part):
    return b.op("MatMul", part, b.weight((4, 3), "out"))


def normalised(b, part):
    return project(b, b.op("Softmax", part, axis=-1))


def test_an_axis_with_an_open_choice_is_not_held():
    assert held(graph_of(chain(project)))["in[1]"] == [False] * 12


def test_an_axis_without_an_open_choice_is_held():
    assert held(graph_of(chain(normalised)))["in[1]"] == [True] * 12


def test_positions_of_which_no_choice_is_open_are_held():
    """Two parts of four channels: the last two of each meet a softmax and stay, the others may go."""
    b = ModelBuilder(17)
    x = b.input("x", (2, 6))
    h = b.op("MatMul", x, b.weight((6, 8), "in"))
    parts = b.op("Reshape", h, b.constant([2, 2, 4]), name="parts")
    first, last = (
        b.op("Slice", parts, b.constant([start]), b.constant([start + 2]), b.constant([2]))
        for start in (0, 2)
    )
    picked = [b.op("Gather", part, b.constant(number), axis=1) for part in (first, last) for number in (0, 1)]
    outs = [b.op("MatMul", part, b.weight((2, 3), f"w{n}")) for n, part in enumerate(picked[:2])]
    outs += [
        b.op("MatMul", b.op("Softmax", p, axis=-1), b.weight((2, 3), f"s{n}"))
        for n, p in enumerate(picked[2:])
    ]
    model = b.model(*outs)
    assert held(graph_of(model))["in[1]"] == [False, False, True, True] * 2
    assert [group.units for group in check_model(model).groups] == [2]


def test_what_is_held_passes_through_the_next_reshape():
    b = ModelBuilder(17)
    h = b.op("MatMul", b.input("x", (2, 6)), b.weight((6, 12), "in"))
    parts = b.op("Tanh", b.op("Reshape", h, b.constant([2, 3, 4])), name="parts")
    again = b.op("Reshape", b.op("Reshape", parts, b.constant([2, 12])), b.constant([2, 2, 6]), name="again")
    outs = [b.op("Gather", again, b.constant(number), axis=1) for number in range(2)]
    model = b.model(*(b.op("Softmax", out, axis=-1) for out in outs))
    flags = held(graph_of(model))
    assert flags["again_out[1]"] == [True] * 2 and flags["again_out[2]"] == [True] * 6
    assert flags["parts_out[1]"] == [True] * 3 and flags["in[1]"] == [True] * 12
    assert not check_model(model).groups


def test_a_grouped_convolution_lets_its_inputs_go_though_its_outputs_stay():
    """Equal numbers of inputs of every group is a choice that no output can hold."""
    b = ModelBuilder(17)
    x = b.op("Conv", b.input("x", (1, 3, 5)), b.weight((8, 3, 1), "in"))
    y = b.op("Conv", x, b.weight((4, 4, 1), "grouped"), group=2, name="grouped_conv")
    model = b.model(b.op("Softmax", y, axis=1))
    flags = held(graph_of(model))
    assert flags["in[0]"] == [False] * 8 and flags["grouped[0]"] == [True] * 4
    assert [(group.name, group.units) for group in check_model(model).groups][0][1] == 8


# --- what blocks -----------------------------------------------------------------------------------------


def told(graph, name):
    hops = ways(graph.graph)
    (axis,) = [axis for axis in graph.graph if isinstance(axis, Axis) and axis.name == name]
    return [step.to.name for step in path_to_barrier(graph.graph, hops, axis)]


def test_what_blocks_an_axis_is_the_choice_that_is_blocked_last():
    """The 3 parts are picked by their numbers at once, the 4 channels meet a softmax behind them."""
    steps = told(graph_of(chain(normalised)), "in[1]")
    assert steps[-1].startswith("SOFTMAX")
    assert "parts_out[2]" in steps and "parts_out[1]" not in steps


def test_an_axis_that_is_blocked_only_by_some_choice_comes_last():
    """It can be cut along the other; where it is asked what could block it, there is an answer all the same."""
    assert told(graph_of(chain(project)), "in[1]")[-1].startswith("PICKED")
