"""Which roundings of activations are one, and which cannot have another scale."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.model.normalize import normalize
from onnxprune.model.quantisers import find_quantisers, of_nodes
from onnxprune.testing import ModelBuilder


class Net(ModelBuilder):
    def pair(self, x, name, scale=0.5, zero=3, dtype=np.int8):
        """Rounded and read back, with initializers of its own."""
        return self.read(self.round(x, name, scale, zero, dtype), name, scale, zero, dtype)

    def round(self, x, name, scale=0.5, zero=3, dtype=np.int8):
        return self.op("QuantizeLinear", x, *self.numbers(name, scale, zero, dtype), name=name)

    def read(self, x, name, scale=0.5, zero=3, dtype=np.int8):
        return self.op(
            "DequantizeLinear", x, *self.numbers(f"{name}_read", scale, zero, dtype), name=f"{name}_read"
        )

    def numbers(self, name, scale, zero, dtype):
        return self.constant(np.float32(scale), f"{name}_s"), self.constant(dtype(zero), f"{name}_z")


def found_in(model):
    """Names of the nodes of every quantiser, sources first."""
    normal = normalize(model)
    return [
        ([node.name for node in each.sources], sorted(node.name for node in each.nodes))
        for each in find_quantisers(normal.graph)
    ]


def moved(scale=0.5, zero=3):
    """Rounded, turned around as floats, rounded again."""
    n = Net()
    x = n.op("Relu", n.input("x", (2, 3)), name="start")
    y = n.op("Transpose", n.pair(x, "a"), perm=[1, 0])
    return n.model(n.op("Relu", n.pair(y, "b", scale, zero)))


def test_copies_with_the_same_scale_are_one():
    assert found_in(moved()) == [(["a"], ["a", "a_read", "b", "b_read"])]


@pytest.mark.parametrize(("scale", "zero"), [(0.25, 3), (0.5, 4)])
def test_other_numbers_are_another_rounding(scale, zero):
    assert found_in(moved(scale, zero)) == [(["a"], ["a", "a_read"]), (["b"], ["b", "b_read"])]


def test_stored_numbers_are_followed():
    """What is read in two places behind a Split of stored numbers was rounded once."""
    n = Net()
    q = n.round(n.op("Relu", n.input("x", (2, 4))), "q")
    left, right = n.ops("Split", q, n.constant([2, 2]), axis=1, outputs=2)
    model = n.model(n.op("Add", n.read(left, "l"), n.read(right, "r")))
    assert found_in(model) == [(["q"], ["l_read", "q", "r_read"])]


def test_one_scale_in_the_file_is_one_scale():
    n = Net()
    x = n.op("Relu", n.input("x", (2, 4)))
    scale, zero = n.numbers("shared", 0.5, 3, np.int8)
    parts = []
    for name in "ab":
        made = n.op("QuantizeLinear", n.op("Mul", x, n.weight((4,))), scale, zero, name=name)
        parts.append(n.op("DequantizeLinear", made, scale, zero, name=f"{name}_read"))
    assert found_in(n.model(n.op("Add", *parts))) == [(["a", "b"], ["a", "a_read", "b", "b_read"])]


def differing():
    n = Net()
    q = n.round(n.input("x", (2, 4)), "q")
    return n.model(n.read(q, "r", scale=0.25))


def calculated():
    n = Net()
    q = n.round(n.input("x", (2, 4)), "q", dtype=np.uint8)
    y = n.op("MatMulInteger", q, n.constant(np.ones((4, 2), np.uint8), "w"))
    return n.model(n.op("Cast", y, to=ir.DataType.FLOAT), n.read(q, "r", dtype=np.uint8))


def handed_out():
    n = Net()
    q = n.round(n.input("x", (2, 4)), "q")
    return n.model(q, n.read(q, "r"))


def by_channel():
    n = Net()
    numbers = n.constant(np.full(4, 0.5, np.float32), "s"), n.constant(np.zeros(4, np.int8), "z")
    q = n.op("QuantizeLinear", n.input("x", (2, 4)), *numbers, axis=1)
    return n.model(n.op("DequantizeLinear", q, *numbers, axis=1))


def read_alone():
    n = Net()
    return n.model(n.read(n.input("x", (2, 4), ir.DataType.INT8), "r"))


@pytest.mark.parametrize(
    "build", [differing, calculated, handed_out, by_channel, read_alone], ids=lambda build: build.__name__
)
def test_scales_that_others_rely_on_are_left_out(build):
    assert found_in(build()) == []


def test_all_nodes_get_another_scale():
    model = normalize(moved())
    (quantiser,) = find_quantisers(model.graph)
    assert (quantiser.scale, quantiser.zero) == (0.5, 3) and quantiser.ends == (-65.5, 62.0)
    quantiser.give(0.125, -5)
    for node in model.graph:
        if node.op_type.endswith("Linear"):
            scale, zero = (value.const_value.numpy() for value in node.inputs[1:])
            assert scale == np.float32(0.125) and zero == np.int8(-5) and zero.dtype == np.int8
    assert len(quantiser.arrays) == 8


def test_without_a_zero_point_zero_stays_in_place():
    n = Net()
    scale = n.constant(np.float32(0.5), "s")
    q = n.op("QuantizeLinear", n.input("x", (2, 4)), scale)
    model = normalize(n.model(n.op("DequantizeLinear", q, scale)))
    (quantiser,) = find_quantisers(model.graph)
    assert not quantiser.movable and quantiser.dtype == ir.DataType.UINT8
    with pytest.raises(ValueError, match="no zero point"):
        quantiser.give(0.25, 3)


def test_those_of_some_nodes():
    model = normalize(moved(0.25))
    first, second = find_quantisers(model.graph)
    assert of_nodes([first, second], model.graph) == [first, second]
    assert of_nodes([first, second], second.nodes) == [second]
