"""Whole ways of weights of few bits in blocks: pruned and slimmed from file to file."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from integer_net import CONTRIB, operators, written
from onnx import TensorProto, helper, numpy_helper
from test_nbits import packed

import onnxprune


def two_packed(bits, zeros, zero_rows=()):
    """Two products with packed weights; some inputs of the second one are multiplied by zero."""
    first, _ = packed(bits, 32, 96, 32, zeros, seed=0)
    second, _ = packed(bits, 96, 8, 32, zeros, seed=1)
    protos = [ir.to_proto(first), ir.to_proto(second)]
    nodes, arrays = [], []
    for number, proto in enumerate(protos):
        (node,) = proto.graph.node
        names = {t.name: f"{t.name}{number}" for t in proto.graph.initializer}
        node.input[:] = [("a", "r")[number], *(names.get(name, name) for name in node.input[1:])]
        node.output[:], node.name = [("h", "y")[number]], f"product{number}"
        nodes.append(node)
        for tensor in proto.graph.initializer:
            array = numpy_helper.to_array(tensor).copy()
            if number and tensor.name == "B":
                for row in zero_rows:  # the middle, at either half of a byte
                    byte, high = divmod(row % 32, 2)
                    keep, middle = (0x0F, 0x80) if high else (0xF0, 0x08)
                    array[:, row // 32, byte] = (array[:, row // 32, byte] & keep) | middle
            arrays.append(numpy_helper.from_array(array, names[tensor.name]))
    nodes.insert(1, helper.make_node("Relu", ["h"], ["r"], "relu"))
    graph = helper.make_graph(
        nodes,
        "packed",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [4, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 8])],
        arrays,
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, ir_version=8, opset_imports=imports)


@pytest.mark.parametrize(
    ("bits", "zeros"),
    # onnxruntime has no kernel for 8 bits with zero points as floats
    [
        (bits, zeros)
        for bits in (2, 4, 8)
        for zeros in (None, "packed", "float")
        if (bits, zeros) != (8, "float")
    ],
)
def test_packed_weights(bits, zeros, tmp_path):
    """Half of the hidden units go: blocks of the second weight are torn and rounded again, which is said."""
    before = two_packed(bits, zeros)
    after, report = written(tmp_path, before, ratio=0.5, criterion="l2", compensate="none", round_to=1)
    assert operators(after) == operators(before)
    assert [i.version for i in after.opset_import] == [i.version for i in before.opset_import]
    sizes = [{a.name: a.i for a in node.attribute} for node in after.graph.node if node.domain]
    assert [(size["K"], size["N"], size["bits"]) for size in sizes] == [(32, 48, bits), (48, 8, bits)]
    assert report.soundness.equal and len(report.quantised.torn) == 1
    names = {t.name for t in after.graph.initializer}
    assert names == {t.name for t in before.graph.initializer}
    old, new = (
        {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer} for proto in (before, after)
    )
    rows = {row.tobytes() for row in old["B0"].reshape(96, -1)}
    assert all(row.tobytes() in rows for row in new["B0"].reshape(48, -1))  # columns keep their bytes


def test_slim_leaves_blocks_whole(tmp_path):
    """A unit of zeros inside a block stays; a block of zeros goes."""
    part, block = list(range(4)), list(range(32, 64))
    for rows, gone in ((part, 0), (block, 32)):
        path = tmp_path / f"zeros{gone}.onnx"
        before = two_packed(4, None, rows)
        onnx.save(before, path)
        done = onnxprune.slim(path, tmp_path / f"slim{gone}.onnx", provider="cpu")
        assert sum(group.zero for group in done.report.groups) == gone
        left = {(left.units, left.why) for left in done.report.left}
        why = "weights that share a scale with theirs would be rounded again"
        assert left == ({(4, why)} if not gone else set())
