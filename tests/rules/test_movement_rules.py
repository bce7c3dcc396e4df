from __future__ import annotations

import numpy as np
import pytest
from rule_cases import case, identify

from onnxprune.errors import Reason
from onnxprune.testing import Activation, Feed, Weight

W, A = Weight, Activation
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


ORDERED = Reason.ORDERED
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
    slices(
        (2, 6, 5),
        [0],
        [6],
        [1],
        [2],
        expect="x0[0,2] y0[0,2]",
        pinned={"x0[1]": ORDERED, "y0[1]": ORDERED},
        note="step",
    ),
    slices(
        (2, 6, 5),
        [-1],
        [-LAST],
        [1],
        [-1],
        expect="x0[0,2] y0[0,2]",
        pinned={"x0[1]": ORDERED},
        note="reversed",
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
        pinned={"x0[1]": Reason.SELECTED},
        note="scalar",
    ),
    case("Gather", (2, 6, 5), ints(3), expect="x0[0,1,2] y0[0,2]", axis=1, note="one"),
    case(
        "Gather",
        W((6, 5)),
        ints(0, 1, 5, 5).reshape(2, 2),
        expect="x0[1] y0[2]",
        pinned={"x0[0]": Reason.SELECTED},
        note="matrix",
    ),
    case(
        "Gather",
        W((9, 6)),
        Feed((2, 3), "int64", 9),
        expect="x0[1] y0[2]",
        pinned={"x0[0]": Reason.INDEXED, "y0[1]": Reason.GRAPH_INPUT},
        note="embedding",
    ),
    case("Gather", W((6, 9)), Feed((3,), "int32", 9), expect="x0[0] y0[0]", axis=1, note="embedding-columns"),
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
