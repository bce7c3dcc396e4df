from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from rule_cases import case, identify

from onnxprune.errors import Reason
from onnxprune.graph.build import build_axis_graph
from onnxprune.graph.groups import partition
from onnxprune.model.normalize import normalize
from onnxprune.model.shapes import infer_shapes
from onnxprune.rules import default_rules
from onnxprune.surgery.keep import kept_positions
from onnxprune.surgery.remove import remove
from onnxprune.testing import Activation, Feed, ModelBuilder, Weight, check_model

W, A, F = Weight, Activation, Feed
INDEXED, PICKED, AUXILIARY = Reason.INDEXED, Reason.PICKED, Reason.AUXILIARY
SELECTED, DYNAMIC = Reason.SELECTED, Reason.DYNAMIC


def ints(*values):
    return np.array(values, np.int64)


def upto(high, *shape):
    """Constant indices."""
    return np.random.default_rng(3).integers(0, high, shape)


def grid(*lists):
    """The table with which `data[lists[0]][:, lists[1]] ... = updates` is exported."""
    return np.stack(np.meshgrid(*lists, indexing="ij"), axis=-1)


def distinct(*lists):
    """Every combination of these positions, as a list of tuples in an order that is not sorted."""
    pairs = np.stack(np.meshgrid(*lists, indexing="ij"), axis=-1).reshape(-1, len(lists))
    return np.random.default_rng(3).permutation(pairs)


CASES = [
    # GatherElements
    *(
        case(
            "GatherElements",
            (2, 6, 5),
            upto(6, 2, 3, 5),
            expect="x0[0,2] x1[0,1,2] y0[0,1,2]",
            axis=1,
            opset=o,
        )
        for o in (11, 13)
    ),
    case(
        "GatherElements",
        (2, 6, 5),
        A((2, 4, 5), "int64", 0, 5.9),
        expect="x0[0,2] x1[0,1,2] y0[0,1,2]",
        axis=-2,
        pinned={"x0[1]": INDEXED},
        note="computed",
    ),
    case("GatherElements", (4, 5), upto(4, 2, 3), expect="x0[1] x1[0,1] y0[0,1]", axis=0, note="shorter"),
    case("GatherElements", (4, 5), F((4, 1), "int64", 5), expect="", axis=1, note="fed"),
    # ScatterElements
    *(
        case(
            op_type,
            (2, 6, 5),
            np.stack([np.array([[4] * 5, [0] * 5, [1] * 5])] * 2),
            (2, 3, 5),
            expect="x0[0,2] x1[0,2] x2[0,2] y0[0,2]",
            groups=2,
            axis=1,
            opset=o,
            pinned=dict.fromkeys(("x0[1]", "x1[1]", "x2[1]", "y0[1]"), INDEXED),
        )
        for op_type, o in (
            ("Scatter", 9),
            ("ScatterElements", 11),
            ("ScatterElements", 13),
            ("ScatterElements", 18),
        )
    ),
    case(
        "ScatterElements",
        (3, 5),
        np.array([[0, 1, 2], [2, 0, 1]]),
        (2, 3),
        expect="x0[1] x1[1] x2[1] y0[1]",
        axis=0,
        note="shorter",
    ),
    case(
        "ScatterElements",
        (3, 5),
        A((2, 5), "int64", 0, 2.9),
        (2, 5),
        expect="x0[1] x1[1] x2[1] y0[1]",
        axis=0,
        reduction="add",
        note="added",
    ),
    # GatherND
    *(case("GatherND", (4, 6, 5), upto(4, 3, 2), expect="x0[2] x1[0] y0[0,1]", opset=o) for o in (11, 13)),
    case("GatherND", (4, 6, 5), upto(4, 3, 2, 1), expect="x0[1,2] x1[0,1] y0[0,1,2,3]", note="slices"),
    case("GatherND", (4, 6), upto(4, 3, 2), expect="x1[0] y0[0]", pinned={"x0[0]": INDEXED}, note="elements"),
    case(
        "GatherND",
        (2, 6, 5),
        A((2, 3, 1), "int64", 0, 5.9),
        expect="x0[0,2] x1[0,1] y0[0,1,2]",
        batch_dims=1,
        pinned={"x0[1]": INDEXED},
        note="batch",
    ),
    # ScatterND
    *(
        case(
            "ScatterND",
            (4, 6, 5),
            distinct([0, 2], [5, 1]),
            (4, 5),
            expect="x0[2] x2[1] y0[2]",
            groups=1,
            opset=o,
            pinned={
                "x0[0]": PICKED,
                "x0[1]": PICKED,
                "x2[0]": PICKED,
                "x1[0]": PICKED,
                "x1[1]": AUXILIARY,
            },
            note="list",
        )
        for o in (11, 13, 18)
    ),
    case("ScatterND", (4, 6), distinct([0, 3], [1, 2]), (4,), expect="", note="elements"),
    case(
        "ScatterND",
        (4, 6),
        F((3, 1), "int64", 4),
        (3, 6),
        expect="x0[1] x2[1] y0[1]",
        pinned={"x0[0]": INDEXED, "x2[0]": INDEXED},
        reduction="add",
        note="added",
    ),
    *(
        case(
            "ScatterND",
            (2, 6, 5),
            grid(upto(1, 1), ints(0, 1, 2, 3, 4, 5), ints(1, 2, 3)),
            (1, 6, 3),
            expect="x0[1,2] x2[1,2] y0[1,2]",
            opset=o,
            pinned={"x0[0]": PICKED, "x1[1]": AUXILIARY, "x1[3]": AUXILIARY},
            note="slice",
        )
        for o in (11, 16, 18)
    ),
    case(
        "ScatterND",
        (6, 5, 3),
        grid(ints(4, -5, 2, -1), ints(0, 3)),
        (4, 2, 3),
        expect="x0[0,1,2] x2[0,1,2] y0[0,1,2]",
        note="permuted",
    ),
    case(
        "ScatterND",
        (6, 5),
        grid(ints(4, 0, 1), ints(2, 3)).transpose(1, 0, 2),
        (2, 3),
        expect="x0[0,1] x2[0,1] y0[0,1]",
        note="crossed",
    ),
    case(
        "ScatterND",
        (4, 6),
        distinct([3, 1]).reshape(2, 1, 1),
        (2, 1, 6),
        expect="x0[0,1] x2[0,2] y0[0,1]",
        note="rows",
    ),
    case(
        "ScatterND",
        (4, 6),
        ints(2, 0, 3).reshape(3, 1),
        (3, 6),
        expect="x0[0,1] x2[0,1] y0[0,1]",
        reduction="add",
        note="added-rows",
    ),
    case(
        "ScatterND",
        W((4, 6)),
        ints(0, 1, 2, 3).reshape(4, 1),
        (4, 6),
        expect="x0[0,1] x2[0,1] y0[0,1]",
        note="all",
    ),
    case(
        "ScatterND",
        (4, 6),
        ints(1, 1, 2).reshape(3, 1),
        (3, 6),
        expect="x0[1] x2[1] y0[1]",
        pinned={"x0[0]": PICKED, "x2[0]": PICKED},
        reduction="add",
        note="twice",
    ),
    case(
        "ScatterND",
        (4, 6),
        np.stack([ints(0, 1, 2), ints(3, 4, 5)], axis=-1),
        (3,),
        expect="",
        pinned={"x0[0]": PICKED},
        note="diagonal",
    ),
    # TensorScatter
    case(
        "TensorScatter",
        (2, 3, 6, 4),
        (2, 3, 2, 4),
        ints(1, 3),
        expect="x0[0,1,3] x1[0,1,3] x2[0] y0[0,1,3]",
        opset=24,
        pinned={"x0[2]": INDEXED, "x1[2]": INDEXED},
    ),
    case(
        "TensorScatter",
        (2, 6, 4),
        (2, 2, 4),
        expect="x0[0,2] x1[0,2] y0[0,2]",
        axis=1,
        mode="circular",
        opset=24,
        note="no-places",
    ),
    # OneHot
    *(
        case(
            "OneHot",
            A((4, 5), "int64", 0, 6.9),
            np.array(7, np.int64),
            np.array([0.25, 1], np.float32),
            expect=f"x0[0,1] y0[{rest}]",
            axis=axis,
            opset=o,
            pinned={f"y0[{place}]": INDEXED},
            note=f"axis{axis}",
        )
        for o, axis, place, rest in ((9, -1, 2, "0,1"), (11, 1, 1, "0,2"), (18, 0, 0, "1,2"))
    ),
    # Compress
    case(
        "Compress",
        (2, 6, 5),
        np.array([0, 1, 1, 0, 1], bool),
        expect="x0[0,2] y0[0,2]",
        axis=1,
        opset=11,
        pinned={"x0[1]": INDEXED},
    ),
    case("Compress", (2, 3), np.array([0, 1, 1], bool), expect="", opset=9, note="flattened"),
    # by value
    case("NonZero", A((4, 5), "bool"), expect="", pinned={"x0[0]": SELECTED, "x0[1]": SELECTED}),
    case("Unique", A((6,), "int64", 0, 3.9), expect="", outputs=4, pinned={"x0[0]": SELECTED}),
    case("Unique", A((6, 2), "int64", 0, 3.9), expect="", axis=0, note="axis"),
    *(
        case(
            "NonMaxSuppression",
            A((1, 6, 4), low=0, high=1),
            A((1, 3, 6), low=0, high=1),
            ints(4),
            np.array([0.99], np.float32),
            np.array([0.0], np.float32),
            expect="",
            opset=o,
            pinned={"x0[1]": SELECTED, "x0[2]": SELECTED, "x1[1]": SELECTED},
        )
        for o in (10, 11)
    ),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_indexing(case):
    case.check()


def test_channels_behind_a_list_of_unknown_length():
    """Found positions pick rows of features: how many there are is not known, their channels can go."""
    b = ModelBuilder(17)
    x = b.input("x", (4, 6))
    h = b.op("MatMul", x, b.weight((6, 8), "in"), name="in")
    found = b.op("Transpose", b.op("NonZero", b.op("Greater", x, b.constant(np.float32(0)))), perm=[1, 0])
    rows = b.op("Slice", found, b.constant([0]), b.constant([1]), b.constant([1]))
    out = b.op("MatMul", b.op("GatherND", h, rows), b.weight((8, 3), "out"), name="out")
    out.type, out.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["found", 3])
    checked = check_model(b.model(out, declare=False))
    assert {"in[1]", "out[0]"} <= checked.prunable()
    assert [group.units for group in checked.groups] == [8]


def slice_assigned(b, data, updates, start, stop):
    """`data[:, :, start:stop] = updates`, as TorchScript exports it: the table is computed from shapes."""
    shape = b.op("Shape", data)
    written = b.op("Shape", updates)
    columns = []
    for dim, (low, high) in enumerate(((0, None), (0, None), (start, stop))):
        end = b.op("Gather", shape, b.constant(dim), axis=0) if high is None else b.constant(high)
        line = b.op("Range", b.constant(low), end, b.constant(1))
        place = b.op("Reshape", line, b.constant([-1 if d == dim else 1 for d in range(3)]))
        place = b.op("Expand", place, written)
        columns.append(b.op("Unsqueeze", place, b.constant([-1])))
    return b.op("ScatterND", data, b.op("Concat", *columns, axis=-1), updates, name="assign")


@pytest.mark.parametrize("batch", [1, 2])
def test_slice_assignment_with_a_computed_table(batch):
    b = ModelBuilder(17)
    x = b.input("x", (batch, 6, 5))
    data = b.op("Conv", x, b.weight((8, 6, 1), "data"), name="data_conv")
    updates = b.op("Conv", b.input("z", (batch, 4, 2)), b.weight((8, 4, 1), "updates"), name="updates_conv")
    y = slice_assigned(b, data, updates, 2, 4)
    checked = check_model(b.model(b.op("Conv", y, b.weight((3, 8, 1), "out"))))
    assert [group.units for group in checked.groups] == [8]
    assert {"data[0]", "updates[0]", "out[1]"} <= checked.prunable()


def test_slice_assignment_in_a_batch_of_any_size_keeps_the_channels():
    """The table has as many rows as the batch: nothing is known of it."""
    b = ModelBuilder(17)
    data = b.op("Conv", b.input("x", ("n", 6, 5)), b.weight((8, 6, 1), "data"))
    updates = b.op("Conv", b.input("z", ("n", 4, 2)), b.weight((8, 4, 1), "updates"))
    y = slice_assigned(b, data, updates, 2, 4)
    checked = check_model(b.model(b.op("Conv", y, b.weight((3, 8, 1), "out")), declare=False))
    assert not checked.groups
    assert checked.reason("data[0]") is INDEXED


def test_the_table_of_a_slice_assignment_counts_what_stays():
    b = ModelBuilder(17)
    data = b.op("MatMul", b.input("x", (1, 3, 6)), b.weight((6, 8), "data"))
    updates = b.op("MatMul", b.input("z", (1, 2, 4)), b.weight((4, 3), "updates"))
    table = b.constant(grid(ints(0), ints(0, 2), ints(7, 1, 4)), "table")
    y = b.op("ScatterND", data, table, updates, name="assign")
    model = normalize(b.model(b.op("MatMul", y, b.weight((8, 2), "out"))))
    graph = build_axis_graph(model, infer_shapes(model), default_rules())
    groups = {group.id: group for group in partition(graph).groups}
    assert sorted(group.units for group in groups.values()) == [3, 5]  # what is written, and the rest
    flags = {}
    for name, group in groups.items():
        (place,) = [use.unit for use in group.axes if use.axis.name == "data[1]"]
        gone = {place[position] for position in (1, 3)} - {-1}  # one of each group
        flags[name] = np.array([unit not in gone for unit in range(group.units)])
    cut = remove(graph, kept_positions(groups, flags))
    (node,) = [node for node in cut.graph if node.op_type == "ScatterND"]
    assert node.inputs[1].const_value.numpy().tolist() == grid(ints(0), ints(0, 2), ints(5, 2)).tolist()
