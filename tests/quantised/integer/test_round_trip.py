"""Integer operators said in floats compute the same, and become what they were again, bit for bit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from integer_models import CASES
from integer_net import described, run

from onnxprune.model.integer import left_whole, lower_integer, raise_integer

KINDS = ("u", "s")
PLAIN = {"DynamicQuantizeLinear", "QuantizeLinear", "DequantizeLinear"}


def built(name, kind):
    make, tolerance = CASES[name]
    m, proto = make(kind)
    return ir.from_proto(proto), m.feed, tolerance


def lowered(model):
    copy = model.clone()
    lower_integer(copy)
    return copy


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_raised_is_what_it_was(name, kind):
    model, _, _ = built(name, kind)
    floats = lowered(model)
    assert not left_whole(floats.graph)
    integer = {node.op_type for node in model.graph} - {node.op_type for node in floats.graph}
    assert any("Q" in op or "Integer" in op for op in integer)
    before = described(model)
    raise_integer(floats)
    assert described(floats) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_floats_compute_the_same(name, kind):
    model, feed, tolerance = built(name, kind)
    floats = lowered(model)
    for was, now in zip(run(model, feed), run(floats, feed), strict=True):
        assert was.dtype == now.dtype and was.shape == now.shape and len(np.unique(was)) > 5
        if was.dtype == np.float32:
            assert np.abs(was - now).max() <= tolerance * np.abs(was).max()
        else:
            off = np.abs(was.astype(int) - now.astype(int))
            assert off.max() <= tolerance
            assert (off > 0).mean() <= 0.05  # ties alone are rounded to the other side
