from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from rule_cases import case, identify

from onnxprune.errors import Reason
from onnxprune.testing import Activation, Feed, ModelBuilder, Weight, check_model

W, A, F = Weight, Activation, Feed
INDEXED, AUXILIARY, SELECTED, DYNAMIC = Reason.INDEXED, Reason.AUXILIARY, Reason.SELECTED, Reason.DYNAMIC


def ints(*values):
    return np.array(values, np.int64)


def upto(high, *shape):
    """Constant indices."""
    return np.random.default_rng(3).integers(0, high, shape)


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
                "x0[0]": INDEXED,
                "x0[1]": INDEXED,
                "x2[0]": INDEXED,
                "x1[0]": INDEXED,
                "x1[1]": AUXILIARY,
            },
        )
        for o in (11, 13, 18)
    ),
    case(
        "ScatterND",
        (4, 6),
        distinct([3, 1]).reshape(2, 1, 1),
        (2, 1, 6),
        expect="x0[1] x2[2] y0[1]",
        note="rows",
    ),
    case("ScatterND", (4, 6), distinct([0, 3], [1, 2]), (4,), expect="", note="elements"),
    case(
        "ScatterND",
        (4, 6),
        F((3, 1), "int64", 4),
        (3, 6),
        expect="x0[1] x2[1] y0[1]",
        reduction="add",
        note="added",
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
