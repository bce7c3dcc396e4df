"""Operators that move or compare integers state the same ties as on floats."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.testing import Activation, check_rule

X = (2, 6, 4, 4)
MOVED = {
    "MaxPool": ([X], {"kernel_shape": [2, 2]}, {"x0[0]", "x0[1]", "y0[0]", "y0[1]"}),
    "Transpose": ([X], {"perm": [0, 2, 3, 1]}, None),
    "Reshape": ([X, np.array([0, 2, 3, 16])], {}, None),
    "Flatten": ([X], {"axis": 2}, None),
    "Unsqueeze": ([X, np.array([1])], {}, None),
    "Squeeze": ([(2, 1, 6, 4), np.array([1])], {}, None),
    "Split": ([X], {"axis": 1, "num_outputs": 2}, None),
    "Slice": ([X, np.array([2]), np.array([5]), np.array([1])], {}, None),
    "Gather": ([X, np.array([4, 0, 1])], {"axis": 1}, None),
    "Concat": ([X, (2, 3, 4, 4)], {"axis": 1}, None),
    "Resize": ([X, None, np.array([1, 1, 2, 2], np.float32)], {"mode": "nearest"}, None),
    "Pad": ([X, np.array([0, 0, 1, 1, 0, 0, 1, 1]), 7], {}, None),
    "Pad of channels": ([X, np.array([0, 1, 0, 0, 0, 2, 0, 0]), 7], {}, None),
    "Clip": ([X, 1], {}, None),
    "Where": ([np.array([True, False] * 3).reshape(6, 1, 1), X, 5], {}, None),
    "DepthToSpace": ([(2, 8, 3, 3)], {"blocksize": 2}, None),
    "Expand": ([(2, 6, 1, 4), np.array([2, 6, 3, 4])], {}, None),
}


def inputs(entries, dtype, low, high):
    made = []
    for entry in entries:
        if isinstance(entry, tuple):
            made.append(Activation(entry, dtype, low, high))
        elif isinstance(entry, int):
            made.append(np.array(entry, dtype))
        else:
            made.append(entry)
    return made


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("name", MOVED)
def test_integers_move_like_floats(name, dtype):
    entries, attributes, expected = MOVED[name]
    options = {"attributes": attributes, "outputs": 2 if name == "Split" else 1, "seeds": (0,)}
    op_type = name.split()[0]
    floats = check_rule(op_type, inputs=inputs(entries, "float32", -9, 9), **options)
    low, high = (0, 250) if dtype == "uint8" else (-120, 120)
    integers = check_rule(op_type, inputs=inputs(entries, dtype, low, high), **options)

    def own(checked):
        return {axis for axis in checked.prunable() if axis.startswith(("x0[", "x1[", "y0[", "y1["))}

    assert own(integers) == own(floats) != set()
    assert expected is None or own(integers) == expected
