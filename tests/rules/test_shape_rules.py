"""Shapes that a graph computes: they adapt by themselves or are refitted; numbers stay what they were."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from rule_cases import axes, case, identify

from onnxprune.testing import Activation, ModelBuilder, check_model


def ints(*values):
    return np.array(values, np.int64)


def fill(dtype, value):
    return ir.tensor(np.array([value], dtype))


# Shape's own consumer in check_rule casts it to float: those numbers may not change.
CASES = [
    *(case("Shape", (2, 6, 4), expect="x0[0,1,2]", opset=o) for o in (9, 13, 15, 19, 21)),
    case("Shape", (2, 6, 4), expect="x0[0,1,2]", start=1, end=3, note="part"),
    case("Shape", (2, 6, 4), expect="x0[0,1,2]", start=-2, note="end"),
    *(case("Size", (2, 6, 4), expect="x0[0,1,2]", opset=o) for o in (9, 13)),
    *(
        case("ConstantOfShape", ints(3, 6), expect="y0[0,1]", opset=o, value=fill(np.float32, 0.5))
        for o in (9, 20)
    ),
    case("ConstantOfShape", ints(3, 6), expect="y0[0,1]", value=fill(np.int64, 3), note="integers"),
    case("Shape", Activation((2, 6), "bool"), expect="x0[0,1]", note="of-booleans"),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_shape(case):
    case.check()


class Chain:
    """x (1, 10, 16) through a projection; `b` to go on from there."""

    def __init__(self, opset=17, batch=1, tokens=10):
        self.b = ModelBuilder(opset)
        self.x = self.b.input("x", (batch, tokens, 16))

    def project(self, value, n, m, name):
        return self.b.op("MatMul", value, self.b.weight((n, m), f"{name}/weight"), name=name)

    def extent(self, value, dim, name=""):
        """Shape -> Gather, a scalar."""
        shape = self.b.op("Shape", value, name=f"{name}/shape")
        return self.b.op("Gather", shape, self.b.constant(np.array(dim)), axis=0, name=f"{name}/dim")

    def entry(self, value, dim, name=""):
        return self.vector(self.extent(value, dim, name), name)

    def vector(self, scalar, name=""):
        return self.b.op("Unsqueeze", scalar, self.b.constant([0]), name=f"{name}/unsqueeze")

    def join(self, *parts, name=""):
        parts = [self.b.constant([p]) if isinstance(p, int) else p for p in parts]
        return self.b.op("Concat", *parts, axis=0, name=f"{name}/concat")

    def check(self, *outputs, expect="", **kw):
        checked = check_model(self.b.model(*outputs), **kw)
        missing = axes(expect) - checked.prunable()
        assert not missing, {name: checked.reason(name) for name in missing}
        return checked


def test_heads_counted_from_shapes():
    """Shape -> Gather -> Div -> Concat -> Reshape: the head width is computed from what is cut."""
    c = Chain()
    h = c.project(c.x, 16, 24, "in")
    width = c.b.op("Div", c.extent(h, 2), c.b.constant(np.array(4)), name="width")
    split = c.b.op("Reshape", h, c.join(c.entry(h, 0), c.entry(h, 1), 4, c.vector(width)), name="split")
    turned = c.b.op("Transpose", split, perm=[0, 2, 1, 3], name="turned")
    back = c.b.op("Transpose", c.b.op("Relu", turned), perm=[0, 2, 1, 3], name="back")
    total = c.b.op("Mul", c.extent(back, 2), c.extent(back, 3), name="total")
    merged = c.b.op(
        "Reshape", back, c.join(c.entry(back, 0), c.entry(back, 1), c.vector(total)), name="merge"
    )
    checked = c.check(c.project(merged, 24, 5, "out"), expect="in/weight[1] out/weight[0] split_out[2]")
    every = (*checked.partition.groups, *checked.partition.alternatives)
    assert sorted(group.units for group in every) == [4, 6]  # whole heads, or head dimensions


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.DOUBLE])
def test_a_number_stays_what_it_was(dtype):
    """Shape -> Cast -> Sqrt -> Div: the scale 1/sqrt(d) of attention."""
    c = Chain()
    q, k = c.project(c.x, 16, 8, "q"), c.project(c.x, 16, 8, "k")
    scores = c.b.op("MatMul", q, c.b.op("Transpose", k, perm=[0, 2, 1]), name="scores")
    root = c.b.op("Sqrt", c.b.op("Cast", c.extent(q, 2), to=dtype.value), name="root")
    root = c.b.op("Cast", root, to=ir.DataType.FLOAT.value, name="as_float")
    soft = c.b.op("Softmax", c.b.op("Div", scores, root), axis=-1, name="soft")
    c.check(c.project(soft, 10, 3, "out"), expect="q/weight[1] k/weight[1]")


def test_a_mean_by_hand_stays_exact():
    """ReduceSum / number of channels: zeros do not change the sum, and the divisor stays."""
    c = Chain()
    h = c.b.op("Relu", c.project(c.x, 16, 12, "in"))
    count = c.b.op("Cast", c.extent(h, 2), to=ir.DataType.FLOAT.value, name="count")
    mean = c.b.op("Div", c.b.op("ReduceSum", h, c.b.constant([2]), keepdims=0), count)
    c.check(mean, expect="in/weight[1]")


def test_whole_shape_as_target():
    """Reshape(y, Shape(x)): the target is computed as a whole."""
    c = Chain()
    h = c.project(c.x, 16, 12, "in")
    flat = c.b.op("Reshape", h, c.b.constant([1, 10, 3, 4]), name="split")
    back = c.b.op("Reshape", c.b.op("Relu", flat), c.b.op("Shape", h), name="back")
    c.check(c.project(back, 12, 5, "out"), expect="in/weight[1]")


def test_filled_like():
    """ConstantOfShape(Shape(x)) + x."""
    c = Chain()
    h = c.project(c.x, 16, 12, "in")
    ones = c.b.op("ConstantOfShape", c.b.op("Shape", h), value=fill(np.float32, 1.5), name="ones")
    c.check(c.project(c.b.op("Add", h, ones), 12, 5, "out"), expect="in/weight[1]")


def test_expanded_like():
    c = Chain()
    h = c.project(c.x, 16, 12, "in")
    token = c.b.op("Expand", c.b.weight((1, 1, 12), "token"), c.b.op("Shape", h), name="expand")
    c.check(c.project(c.b.op("Mul", h, token), 12, 5, "out"), expect="in/weight[1] token[2]")


def test_expanded_with_minus_one_replaced():
    """What PyTorch's older exporter writes for expand(-1, ...): Where(target == -1, 1, target)."""
    c = Chain()
    h = c.project(c.x, 16, 12, "in")
    asked = c.join(c.entry(h, 0), -1, -1)
    ones = c.b.op("ConstantOfShape", c.b.constant([3]), value=fill(np.int64, 1), name="ones")
    minus = c.b.op("Mul", ones, c.b.constant(np.array(-1)), name="minus")
    target = c.b.op("Where", c.b.op("Equal", asked, minus), ones, asked, name="target")
    token = c.b.op("Expand", c.b.weight((1, 1, 12), "token"), target, name="expand")
    c.check(c.project(c.b.op("Concat", token, h, axis=1), 12, 5, "out"), expect="in/weight[1] token[2]")


def test_halves_by_computed_slices():
    """chunk(2) as the older exporter writes it: ends computed as (C + 1) // 2."""
    c = Chain()
    h = c.project(c.x, 16, 12, "in")
    half = c.b.op(
        "Div",
        c.b.op("Add", c.extent(h, 2), c.b.constant(np.array(1))),
        c.b.constant(np.array(2)),
        name="half",
    )
    middle, last = c.vector(half), c.entry(h, 2, "last")
    first = c.b.op("Slice", h, c.b.constant([0]), middle, c.b.constant([2]), name="first")
    second = c.b.op("Slice", h, middle, last, c.b.constant([2]), name="second")
    gated = c.b.op("Mul", c.b.op("Sigmoid", first), second, name="gated")
    checked = c.check(c.project(gated, 6, 5, "out"), expect="in/weight[1]")
    assert [group.units for group in checked.groups] == [6]


def test_parts_by_computed_split():
    c = Chain(opset=13)
    h = c.project(c.x, 16, 12, "in")
    third = c.b.op("Div", c.entry(h, 2), c.b.constant([3]), name="third")
    rest = c.b.op("Sub", c.entry(h, 2, "all"), third, name="rest")
    a, b = c.b.ops("Split", h, c.join(third, rest), axis=2, outputs=2, name="split")
    c.check(c.project(a, 4, 3, "a"), c.project(b, 8, 3, "b"), expect="in/weight[1] a/weight[0] b/weight[0]")


def test_sizes_of_a_resize():
    b = ModelBuilder(17)
    x = b.input("x", (1, 3, 8, 8))
    h = b.op("Conv", x, b.weight((6, 3, 3, 3), "in/weight"), name="in")
    shape = b.op("Shape", h, name="shape")
    lead = b.op("Slice", shape, b.constant([0]), b.constant([2]), b.constant([0]), name="lead")
    sizes = b.op("Concat", lead, b.constant([9, 9]), axis=0, name="sizes")
    big = b.op("Resize", h, None, None, sizes, mode="nearest", name="resize")
    checked = check_model(b.model(b.op("Conv", big, b.weight((4, 6, 1, 1), "out/weight"), name="out")))
    assert axes("in/weight[0] out/weight[1]") <= checked.prunable()


def test_sizes_of_a_resize_through_floats():
    """Shape -> Cast -> Mul(scales) -> Floor -> Cast: the number of channels passes through floats."""
    b = ModelBuilder(17)
    x = b.input("x", (1, 3, 8, 8))
    h = b.op("Conv", x, b.weight((6, 3, 3, 3), "in/weight"), name="in")
    floats = b.op("Cast", b.op("Shape", h, name="shape"), to=ir.DataType.FLOAT.value, name="floats")
    scaled = b.op("Floor", b.op("Mul", floats, b.constant(np.float32([1, 1, 1.5, 1.5]))), name="scaled")
    sizes = b.op("Cast", scaled, to=ir.DataType.INT64.value, name="sizes")
    big = b.op("Resize", h, None, None, sizes, mode="nearest", name="resize")
    checked = check_model(b.model(b.op("Conv", big, b.weight((4, 6, 1, 1), "out/weight"), name="out")))
    assert axes("in/weight[0] out/weight[1]") <= checked.prunable()


def test_padding_a_shortcut():
    """The shortcut without parameters of CIFAR ResNets: strided slice, channels padded by computed widths."""
    b = ModelBuilder(17)
    x = b.input("x", (1, 3, 8, 8))
    h = b.op("Relu", b.op("Conv", x, b.weight((4, 3, 3, 3), "in/weight"), pads=[1] * 4, name="in"))
    main = b.op("Conv", h, b.weight((8, 4, 3, 3), "main/weight"), pads=[1] * 4, strides=[2, 2], name="main")
    short = b.op(
        "Slice",
        h,
        b.constant([0, 0]),
        b.constant([8, 8]),
        b.constant([2, 3]),
        b.constant([2, 2]),
        name="stride",
    )
    missing = b.op(
        "Sub", b.op("Shape", main, start=1, end=2), b.op("Shape", h, start=1, end=2), name="missing"
    )
    half = b.op("Div", missing, b.constant([2]), name="half")
    zero, pair = b.constant([0]), b.constant([0, 0])
    pads = b.op("Concat", zero, half, pair, zero, half, pair, axis=0, name="pads")
    added = b.op("Relu", b.op("Add", main, b.op("Pad", short, pads, name="pad"), name="added"))
    checked = check_model(b.model(b.op("Conv", added, b.weight((5, 8, 1, 1), "out/weight"), name="out")))
    assert axes("in/weight[0] main/weight[0] out/weight[1]") <= checked.prunable()


def test_repeats_of_a_tile():
    c = Chain()
    h = c.project(c.x, 16, 12, "in")
    repeats = c.join(1, 1, c.entry(h, 2))
    spread = c.b.op("Tile", c.b.op("ReduceSum", h, c.b.constant([2])), repeats, name="spread")
    c.check(c.project(c.b.op("Mul", h, spread), 12, 5, "out"), expect="in/weight[1]")


def test_a_shape_of_something_else():
    """A target computed from a tensor that is cut, for one that is not."""
    c = Chain()
    h = c.project(c.x, 16, 12, "in")
    target = c.join(1, 10, c.entry(h, 2), name="target")
    table = c.b.op("Reshape", c.b.input("table", (120,)), target, name="reshaped")
    c.check(
        c.project(c.b.op("Relu", h), 12, 5, "out"),
        c.b.op("ReduceMax", table, axes=[2]),
        expect="in/weight[1]",
    )


def test_positions_counted_up():
    """Range(0, number of tokens): its extent is that of the input, and stays."""
    c = Chain()
    h = c.project(c.x, 16, 12, "in")
    zero, one = c.b.constant(np.array(0)), c.b.constant(np.array(1))
    positions = c.b.op("Range", zero, c.extent(h, 1), one, name="positions")
    table = c.b.weight((10, 12), "table")
    added = c.b.op("Add", h, c.b.op("Gather", table, positions, name="gathered"))
    checked = c.check(c.project(added, 12, 5, "out"), expect="in/weight[1] table[1]")
    assert "table[0]" not in checked.prunable()


def test_a_range_over_channels_blocks_them():
    c = Chain()
    h = c.project(c.x, 16, 12, "in")
    zero, one = c.b.constant(np.array(0)), c.b.constant(np.array(1))
    numbers = c.b.op(
        "Cast", c.b.op("Range", zero, c.extent(h, 2), one, name="range"), to=ir.DataType.FLOAT.value
    )
    checked = c.check(c.project(c.b.op("Mul", h, numbers), 12, 5, "out"))
    assert "in/weight[1]" not in checked.prunable()
