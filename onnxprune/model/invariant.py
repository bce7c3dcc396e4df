"""What a Loop or a Scan carries and hands on as it is: its body reads it from outside, and nothing is carried.

Exporters of TensorFlow carry the weights of a cell through its loop. What a body returns as it got it is what it
got in every run, so that the value outside is the same, and its readers are layers with weights of their own.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.model.iterate import ScanForm, is_loop, is_scan
from onnxprune.model.nested import bodies_of, every_graph, renew


def read_from_outside(graph: ir.Graph) -> None:
    """Carry nothing that does not change, in a graph and in bodies. Mutates it.

    States that are outputs of a graph stay.
    """
    version = graph.opset_imports.get("", 0)
    for part in every_graph(graph):
        for node in tuple(part):
            if is_loop(node):
                _shorten(node, 2, 1, len(bodies_of(node)[0].inputs) - 2)
            elif is_scan(node, version):
                _shorten(node, 0, 0, ScanForm.of(node).states)


def _shorten(node: ir.Node, first_input: int, first_output: int, count: int) -> None:
    """Take out the states that do not change; `first_output` is where the body returns the first of them."""
    (body,) = bodies_of(node)
    gone: list[int] = []
    for number in range(count):
        slot = first_input + number
        inner, outer = body.inputs[slot], node.inputs[slot] if slot < len(node.inputs) else None
        out = node.outputs[number]
        if (
            outer is None
            or out.is_graph_output()
            or not _is_handed_on(inner, body.outputs[first_output + number])
        ):
            continue
        for use in tuple(inner.uses()):
            use.node.replace_input_with(use.idx, outer)
        out.replace_all_uses_with(outer)
        gone.append(number)
    if len(gone) == len(node.outputs):  # a node has one
        gone.pop()
    if not gone:
        return
    returned = [body.outputs[first_output + number] for number in gone]
    taken = [body.inputs[first_input + number] for number in gone]
    places = {first_output + number for number in gone}
    body.outputs[:] = [value for place, value in enumerate(body.outputs) if place not in places]
    for value in returned:
        copy = value.producer()
        if copy is not None and not value.uses() and value not in taken:
            body.remove(copy, safe=True)
    slots = {first_input + number for number in gone}
    body.inputs[:] = [value for slot, value in enumerate(body.inputs) if slot not in slots]
    inputs = [value for slot, value in enumerate(node.inputs) if slot not in slots]
    renew(node, inputs, [value for number, value in enumerate(node.outputs) if number not in gone])


def _is_handed_on(inner: ir.Value, returned: ir.Value) -> bool:
    """Whether what comes out is what went in, or a copy of it."""
    node = returned.producer()
    copy = node is not None and node.op_type == "Identity" and not node.domain and node.inputs[0] is inner
    return returned is inner or copy
