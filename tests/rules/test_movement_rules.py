from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from rule_cases import case, identify

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis
from onnxprune.graph.build import build_axis_graph
from onnxprune.model.normalize import normalize
from onnxprune.model.shapes import infer_shapes
from onnxprune.rules import default_rules
from onnxprune.surgery.remove import remove
from onnxprune.testing import Activation, Feed, ModelBuilder, Weight, check_model

W, A, F = Weight, Activation, Feed
SAME = "x0[0,1,2] y0[0,1,2]"
LAST = np.iinfo(np.int64).max


def ints(*values):
    return np.array(values, np.int64)


def slices(shape, starts, ends, axes=None, steps=None, **kw):
    """The same Slice with attributes, where the opset has them, or with inputs."""
    if kw.get("opset", 18) < 10:
        return case(
            "Slice", shape, starts=starts, ends=ends, **({} if axes is None else {"axes": axes}), **kw
        )
    return case(
        "Slice",
        shape,
        ints(*starts),
        ints(*ends),
        *(() if axes is None else (ints(*axes),)),
        *(() if steps is None else (ints(*steps),)),
        **kw,
    )


ORDERED, INDEXED, PICKED = Reason.ORDERED, Reason.INDEXED, Reason.PICKED
CASES = [
    # Concat
    *(
        case(
            "Concat", (2, 3, 4), (2, 5, 4), expect="x0[0,1,2] x1[0,1,2] y0[0,1,2]", groups=4, axis=1, opset=o
        )
        for o in (9, 11, 13)
    ),
    case(
        "Concat",
        (2, 3),
        W((2, 4)),
        (2, 2),
        expect="x0[0,1] x1[0,1] x2[0,1] y0[0,1]",
        axis=-1,
        note="constant",
    ),
    case("Concat", (2, 3), (2, 1), expect="x0[0,1] x1[0] y0[0,1]", axis=1, note="single"),
    case("Concat", (2, 3), expect="x0[0,1] y0[0,1]", axis=1, note="one"),
    case("Concat", (3,), (4,), expect="x0[0] x1[0] y0[0]", axis=0, note="vectors"),
    # Split
    case(
        "Split", (2, 6, 4), expect="x0[0,1,2] y0[0,1,2] y1[0,1,2]", outputs=2, axis=1, opset=11, note="equal"
    ),
    case(
        "Split",
        (2, 6, 4),
        expect="x0[0,1,2] y0[0,1,2] y1[0,1,2]",
        outputs=2,
        axis=1,
        split=[2, 4],
        opset=11,
        note="sizes",
    ),
    *(
        case(
            "Split",
            (2, 6, 4),
            expect="x0[0,1,2] y0[0,1,2] y1[0,1,2]",
            outputs=2,
            axis=1,
            opset=o,
            note="equal",
        )
        for o in (13, 17)
    ),
    *(
        case(
            "Split",
            (2, 6, 4),
            ints(2, 4),
            expect="x0[0,1,2] y0[0,1,2] y1[0,1,2]",
            groups=4,
            outputs=2,
            axis=1,
            opset=o,
        )
        for o in (13, 18)
    ),
    case(
        "Split",
        (2, 6, 4),
        expect="x0[0,1,2] y0[0,1,2] y1[0,1,2] y2[0,1,2]",
        outputs=3,
        axis=1,
        num_outputs=3,
        note="number",
    ),
    case(
        "Split", (2, 7), expect="x0[0,1] y0[0,1] y1[0,1]", outputs=2, axis=-1, num_outputs=2, note="unequal"
    ),
    case("Split", (2, 4), ints(1, 3), expect="x0[0,1] y0[0] y1[0,1]", outputs=2, axis=1, note="single"),
    # Slice: attributes until opset 9, inputs from opset 10
    slices((2, 6, 5), [1], [4], [1], expect=SAME, opset=9),
    slices((2, 6, 5), [0, 1], [2, 4], expect=SAME, opset=9, note="no-axes"),
    *(slices((2, 6, 5), [1], [4], [1], expect=SAME, opset=o) for o in (10, 11, 13)),
    slices((2, 6, 5), [0, 1], [2, 4], expect=SAME, note="no-axes"),
    slices((2, 6, 5), [-4], [-1], [-2], expect=SAME, note="negative"),
    slices((2, 6, 5), [2], [LAST], [1], expect=SAME, note="to-the-end"),
    slices((2, 6, 5), [-LAST], [3], [1], expect=SAME, note="from-the-front"),
    slices((2, 6, 5), [0], [LAST], [1], [1], expect=SAME, groups=3, note="everything"),
    slices((2, 6, 5), [1, 0], [4, 3], [1, 2], expect=SAME, note="two-axes"),
    slices((2, 6, 5), [2], [3], [1], expect="x0[0,1,2] y0[0,2]", note="one"),
    # with a step: what stays is evenly spaced, or a Gather takes it first
    slices((2, 6, 5), [0], [6], [1], [2], expect=SAME, groups=4, note="step"),
    slices((2, 9, 5), [1], [9], [-2], [3], expect=SAME, groups=4, opset=10, note="step-3"),
    slices((2, 9, 5), [-1], [-LAST], [1], [-1], expect=SAME, groups=3, note="reversed"),
    slices((2, 9, 5), [7], [1], [1], [-2], expect=SAME, groups=4, note="backwards"),
    slices((2, 9, 7), [0, 6], [LAST, -LAST], [1, 2], [2, -1], expect=SAME, note="two-steps"),
    slices((2, 9, 7), [1, 1], [LAST, 5], [1, 2], [2, 1], expect=SAME, note="step-and-run"),
    slices((2, 6, 5), [5], [6], [1], [2], expect="x0[0,1,2] y0[0,2]", note="step-to-one"),
    slices((2, 6, 5), [np.iinfo(np.int32).max], [-LAST], [1], [-4], expect=SAME, note="beyond"),
    case(
        "Slice",
        (2, 6, 5),
        F((1,), "int64", 2),
        ints(LAST),
        ints(1),
        expect="x0[0,2] y0[0,2]",
        pinned={"x0[1]": INDEXED, "y0[1]": INDEXED},
        note="fed",
    ),
    # Gather
    *(case("Gather", (2, 6, 5), ints(4, 0, 2), expect=SAME, axis=1, opset=o) for o in (9, 11, 13)),
    case("Gather", (2, 6, 5), ints(-1, 0, -3), expect=SAME, axis=1, opset=11, note="negative"),
    case("Gather", (2, 6, 5), ints(3, 3, 0, 1, 3), expect=SAME, axis=1, note="repeated"),
    case("Gather", (2, 6, 5), ints(5, 4, 3, 2, 1, 0), expect=SAME, groups=3, axis=-2, note="permuted"),
    case(
        "Gather",
        (2, 6, 5),
        np.array(3, np.int64),
        expect="x0[0,2] y0[0,1]",
        axis=1,
        pinned={"x0[1]": PICKED},
        note="scalar",
    ),
    case("Gather", (2, 6, 5), ints(3), expect="x0[0,1,2] y0[0,2]", axis=1, note="one"),
    case(
        "Gather",
        W((6, 5)),
        ints(0, 1, 5, 5).reshape(2, 2),
        expect="x0[1] x1[0,1] y0[0,1,2]",
        pinned={"x0[0]": PICKED},
        note="matrix",
    ),
    case("Gather", (2, 6, 5), ints(5, -6, 3).reshape(1, 3), expect="x0[0,1,2] y0[0,2,3]", axis=1, note="row"),
    case("Gather", (2, 6), ints(4, 2).reshape(2, 1, 1), expect="x0[0,1] y0[0,1]", axis=1, note="column"),
    case(
        "Gather",
        (6, 5),
        ints(2).reshape(1, 1),
        expect="x0[0,1] y0[2]",
        note="one-by-one",
    ),
    case(
        "Gather",
        (4, 7),
        (np.arange(3)[:, None] + np.arange(5)).astype(np.int64),
        expect="x0[0] x1[0,1] y0[0,1,2]",
        axis=-1,
        opset=11,
        pinned={"x0[1]": PICKED},
        note="windows",
    ),
    case(
        "Gather",
        W((9, 6)),
        F((2, 3), "int64", 9),
        expect="x0[1] y0[2]",
        pinned={"x0[0]": INDEXED, "y0[1]": Reason.GRAPH_INPUT},
        note="embedding",
    ),
    case("Gather", W((6, 9)), F((3,), "int32", 9), expect="x0[0] y0[0]", axis=1, note="embedding-columns"),
    case("Gather", (6, 4), A((3,), "int64", 0, 5.9), expect="x0[1] x1[0] y0[0,1]", note="computed"),
    # Pad
    case("Pad", (2, 6, 5), expect=SAME, pads=[0, 0, 1, 0, 0, 2], opset=9),
    case("Pad", (2, 6, 5), expect=SAME, pads=[0, 2, 0, 0, 1, 0], opset=9, note="channels"),
    *(
        case("Pad", (2, 6, 5), ints(0, 2, 0, 0, 1, 0), expect=SAME, opset=o, note="channels")
        for o in (11, 13, 18)
    ),
    case("Pad", (2, 6, 5), ints(0, 2, 0, 0, 1, 0), np.float32(0.7), expect=SAME, note="value"),
    case(
        "Pad",
        (2, 6, 5),
        ints(0, 0, 1, 0, 0, 1),
        expect="x0[0,1] y0[0,1]",
        mode="reflect",
        pinned={"x0[2]": ORDERED, "y0[2]": ORDERED},
        note="reflect",
    ),
    case("Pad", (2, 6, 5), ints(0, 0, 1, 0, 0, 1), expect="x0[0,1] y0[0,1]", mode="edge", note="edge"),
    case(
        "Pad", (2, 6, 5), ints(0, 0, 1, 0, 0, 1), expect="x0[0,1] y0[0,1]", mode="wrap", opset=19, note="wrap"
    ),
    case(
        "Pad",
        (2, 6, 5),
        ints(0, 2, 0, 0, 1, 0),
        expect="x0[0,2] y0[0,2]",
        mode="reflect",
        note="reflect-channels",
    ),
    case("Pad", (2, 6, 5), ints(0, -2, 0, 0, -1, 0), expect=SAME, note="negative"),
    case("Pad", (2, 6, 5), ints(0, -2, 0, 0, 3, 0), expect=SAME, note="shifted"),
    case("Pad", (2, 6, 5), ints(2, 1), None, ints(1), expect=SAME, note="axes"),
    case("Pad", (2, 6, 5), ints(2, 1, 0, 3), np.float32(1), ints(-2, -1), expect=SAME, note="negative-axes"),
    case("Pad", (2, 1), ints(0, 2, 0, 2), expect="x0[0] y0[0,1]", note="from-one"),
    case("Pad", (2, 6), ints(0, 0, 0, 0), expect="x0[0,1] y0[0,1]", groups=2, note="nothing"),
    # Expand
    *(case("Expand", (2, 1, 5), ints(2, 6, 5), expect="x0[0,2] y0[0,1,2]", opset=o) for o in (9, 13)),
    case("Expand", (6, 1), ints(2, 6, 4), expect="x0[0] y0[0,1,2]", note="rank"),
    case("Expand", (2, 6), ints(1, 1), expect="x0[0,1] y0[0,1]", note="ones"),
    case("Expand", (2, 6), ints(6), expect="x0[0,1] y0[0,1]", note="shorter"),
    case("Expand", (2, 6), ints(2, 6), expect="x0[0,1] y0[0,1]", groups=2, note="nothing"),
    case("Expand", (), ints(3, 4), expect="y0[0,1]", note="scalar"),
    # Tile
    *(case("Tile", (2, 6, 5), ints(1, 2, 1), expect=SAME, groups=3, opset=o) for o in (9, 13)),
    case("Tile", (2, 1, 5), ints(1, 6, 2), expect="x0[0,2] y0[0,1,2]", note="from-one"),
    case("Tile", (2, 6), ints(1, 1), expect="x0[0,1] y0[0,1]", note="nothing"),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_movement(case):
    case.check()


def every_other(step=2):
    """in (6 -> 9) -> [..., ::step] -> out."""
    b = ModelBuilder(17)
    h = b.op("MatMul", b.input("x", (2, 6)), b.weight((6, 9), "in"))
    h = b.op("Slice", h, b.constant([0]), b.constant([9]), b.constant([1]), b.constant([step]), name="slice")
    return b.model(b.op("MatMul", h, b.weight((-(-9 // step), 3), "out")))


@pytest.mark.parametrize(
    ("dropped", "operators", "bounds"),
    [
        ([1, 7], ["MatMul", "Gather", "Slice", "MatMul"], (0, 5, 1)),  # 0 2 4 6 8 at 0 1 3 5 6
        ([1, 3, 5, 7], ["MatMul", "Slice", "MatMul"], (0, 5, 1)),  # next to each other
        ([0, 2, 1], ["MatMul", "Slice", "MatMul"], (1, 6, 2)),  # 4 6 8 at 1 3 5
        ([2, 3, 6, 7], ["MatMul", "Slice", "MatMul"], (0, 5, 2)),  # 0 4 8 at 0 2 4
    ],
)
def test_a_gather_only_where_positions_are_not_evenly_spaced(dropped, operators, bounds):
    model = normalize(every_other())
    graph = build_axis_graph(model, infer_shapes(model), default_rules())
    kept = {}
    for axis in graph.graph:
        extent = graph.extents.get(axis, 0) if isinstance(axis, Axis) else 0
        if extent == 9 or (extent == 5 and axis.name != "x[1]"):
            kept[axis] = ~np.isin(np.arange(9)[:: 1 if extent == 9 else 2], dropped)
    kept = {axis: flags for axis, flags in kept.items() if not flags.all()}
    removed = remove(graph, kept)
    assert [node.op_type for node in removed.graph] == operators
    node = next(node for node in removed.graph if node.op_type == "Slice")
    slots = [node.inputs[slot].const_value.numpy().tolist() for slot in (1, 2, 4)]
    assert tuple(entry for (entry,) in slots) == bounds


def test_interleaved_pairs():
    """(a, b) pairs turned by an angle, as rotary embeddings do it: x[..., ::2] and x[..., 1::2]."""
    b = ModelBuilder(17)
    h = b.op("MatMul", b.input("x", (2, 5, 6)), b.weight((6, 8), "in"))
    even, odd = (
        b.op("Slice", h, b.constant([start]), b.constant([8]), b.constant([2]), b.constant([2]))
        for start in (0, 1)
    )
    cos, sin = b.weight((5, 4), "cos"), b.weight((5, 4), "sin")
    first = b.op("Sub", b.op("Mul", even, cos), b.op("Mul", odd, sin))
    second = b.op("Add", b.op("Mul", even, sin), b.op("Mul", odd, cos))
    last = b.constant([-1])
    pairs = b.op("Concat", b.op("Unsqueeze", first, last), b.op("Unsqueeze", second, last), axis=-1)
    flat = b.op("Reshape", pairs, b.constant([2, 5, 8]))
    checked = check_model(b.model(b.op("MatMul", flat, b.weight((8, 3), "out"))))
    assert [group.units for group in checked.groups] == [4]


def test_a_step_that_is_fed():
    """Along a sliced axis nothing is known, the others pass through."""
    b = ModelBuilder(17)
    h = b.op("MatMul", b.input("x", (2, 6, 4)), b.weight((4, 8), "in"))
    step = b.input("step", (1,), ir.DataType.INT64)
    cut = b.op("Slice", h, b.constant([0]), b.constant([6]), b.constant([1]), step, name="slice")
    cut.shape = ir.Shape((2, None, 8))
    model = b.model(b.op("ReduceMax", b.op("MatMul", cut, b.weight((8, 3), "out")), axes=[1]))
    checked = check_model(model, feeds={"step": np.array([2])})
    assert [group.units for group in checked.groups] == [8]
    assert checked.reason("in[1]") is None


def test_a_single_position():
    """`qkv[0]` of (3, batch, heads, tokens, dims): the axis stays, the others pass through."""
    b = ModelBuilder(17)
    h = b.op("MatMul", b.input("x", (2, 5, 6)), b.weight((6, 3 * 4 * 2), "qkv"))
    h = b.op("Transpose", b.op("Reshape", h, b.constant([2, 5, 3, 4, 2])), perm=[2, 0, 3, 1, 4])
    q, k, v = (b.op("Gather", h, b.constant(number), axis=0, name=n) for number, n in enumerate("qkv"))
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2]))
    mixed = b.op("Transpose", b.op("MatMul", b.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    out = b.op("MatMul", b.op("Reshape", mixed, b.constant([2, 5, 8])), b.weight((8, 6), "out"))
    checked = check_model(b.model(out))
    assert [group.units for group in checked.groups] == [4]
    assert {"qkv[1]", "q_out[1]", "k_out[1]", "v_out[1]", "out[0]"} <= checked.prunable()


@pytest.mark.parametrize("window", [3, 9])  # 9 x 9 positions by 9 x 9 are more than shapes ever have
def test_relative_position_bias(window):
    """((2w - 1)^2, heads) indexed by w^2 x w^2 numbers: heads go, positions stay."""
    tokens = window * window
    b = ModelBuilder(17)
    table = b.weight(((2 * window - 1) ** 2, 4), "table")
    rows, columns = np.divmod(np.arange(tokens), window)
    index = (rows[:, None] - rows + window - 1) * (2 * window - 1) + columns[:, None] - columns + window - 1
    bias = b.op("Gather", table, b.constant(index.ravel(), "index"), axis=0)
    bias = b.op("Transpose", b.op("Reshape", bias, b.constant([tokens, tokens, 4])), perm=[2, 0, 1])
    x = b.input("x", (1, tokens, 6))
    q, k, v = (
        b.op("Transpose", b.op("Reshape", b.op("MatMul", x, b.weight((6, 8), n)), shape), perm=[0, 2, 1, 3])
        for n, shape in ((n, b.constant([1, tokens, 4, 2])) for n in "qkv")
    )
    scores = b.op("Add", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])), bias)
    mixed = b.op("Transpose", b.op("MatMul", b.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    out = b.op("MatMul", b.op("Reshape", mixed, b.constant([1, tokens, 8])), b.weight((8, 3), "out"))
    checked = check_model(b.model(out), seeds=(0,))
    assert [group.units for group in checked.groups] == [4]
    assert {"table[1]", "q[1]", "out[0]"} <= checked.prunable() and "table[0]" not in checked.prunable()


UNKNOWN = {
    "concat": lambda b, rows: b.op("Concat", rows, b.weight((2, 8)), rows, axis=0),
    "split": lambda b, rows: b.ops("Split", rows, outputs=2, axis=0, num_outputs=2)[0],
    "split by numbers": lambda b, rows: b.ops(
        "Split", rows, b.op("Concat", b.constant([1]), less(b, rows), axis=0), outputs=2, axis=0
    )[1],
    "expand": lambda b, rows: b.op("Expand", b.op("Unsqueeze", rows, b.constant([0])), b.constant([3, 1, 8])),
    "expand to as many": lambda b, rows: b.op(
        "Expand", b.weight((1, 8)), b.op("Concat", less(b, rows), b.constant([8]), axis=0)
    ),
    "tile": lambda b, rows: b.op("Tile", rows, b.constant([2, 1])),
    "pad": lambda b, rows: b.op("Pad", rows, b.constant([1, 0, 2, 0])),
    "reflect": lambda b, rows: b.op("Pad", rows, b.constant([1, 0, 1, 0]), mode="reflect"),
    "slice": lambda b, rows: b.op("Slice", rows, b.constant([0]), b.constant([2]), b.constant([0])),
    "every other": lambda b, rows: b.op(
        "Slice", rows, b.constant([0]), b.constant([LAST]), b.constant([0]), b.constant([2])
    ),
    "gather": lambda b, rows: b.op("Gather", rows, b.constant([1, 0]), axis=0),
}


def less(b, rows):
    """The number of rows less one, as a vector."""
    count = b.op("Slice", b.op("Shape", rows), b.constant([0]), b.constant([1]))
    return b.op("Sub", count, b.constant([1]))


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize("declare", [True, False])
def test_along_an_axis_of_unknown_extent(name, declare):
    """Rows that a condition picks, as many as there happen to be: the channels can go all the same."""
    b = ModelBuilder(18)
    x = b.input("x", (6, 4))
    h = b.op("MatMul", x, b.weight((4, 8), "in"))
    hot = b.op("Greater", b.op("ReduceSum", x, b.constant([1]), keepdims=0), b.constant(np.float32(-9)))
    moved = UNKNOWN[name](b, b.op("Compress", h, hot, axis=0))
    moved = b.op("Mul", moved, b.weight((8,), "scale"))
    out = b.op("MatMul", moved, b.weight((8, 3), "out"))
    out.type = ir.TensorType(ir.DataType.FLOAT)
    checked = check_model(b.model(out, declare=declare), seeds=(0,))
    assert "out[0]" in checked.prunable()
