"""Operators that onnxruntime's CPU provider has no kernel for, spelled out in operators that it has.

The proof compares masked with removed on the lowered models: it shows that relations and refits are right for
the definition of the operator, not for any kernel of it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.testing import feeds


def execute(model, feed):
    return feeds.execute(lower(model), feed)


def lower(model):
    model = model.clone()
    graph = model.graph
    for node in tuple(graph):
        known = _LOWERED if node.domain == "com.microsoft" else _NEWER
        make = known.get(node.op_type)
        if make is None:
            continue
        steps = _Steps(node)
        results = make(steps, node, list(node.inputs))
        for old, new in zip(node.outputs, results, strict=True):
            new.type, new.shape = old.type, old.shape
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            name, old.name = old.name, None
            new.name = name
        graph.remove(node, safe=True)
    graph.opset_imports[""] = min(graph.opset_imports[""], _NEWEST)
    return model


class _Steps:
    """Adds nodes ahead of the one that is replaced."""

    def __init__(self, node):
        self.node, self.count = node, 0

    def __call__(self, op_type, *inputs, outputs=1, **attributes):
        made = ir.node(op_type, inputs, attributes, num_outputs=outputs)
        for value in made.outputs:
            self.count += 1
            value.name = f"{self.node.name}/step{self.count}"
        self.node.graph.insert_before(self.node, made)
        return made.outputs[0] if outputs == 1 else made.outputs

    def ints(self, *numbers):
        return self("Constant", value=ir.tensor(np.array(numbers, np.int64)))

    def move(self, value, *order):
        return self("Transpose", value, perm=list(order))

    def int(self, name, default):
        found = self.node.attributes.get(name)
        return default if found is None else found.as_int()


_FIRST, _LAST = (0, 3, 1, 2), (0, 2, 3, 1)


def _conv(step, node, inputs):
    x, w, b = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    if node.op_type == "NhwcConv":  # (M, kernel, C)
        w = step.move(w, *_FIRST)
    kept = {
        name: attribute.as_ints()
        for name, attribute in node.attributes.items()
        if name in ("strides", "pads", "dilations")
    }
    y = step.move(step("Conv", step.move(x, *_FIRST), w, b, **kept), *_LAST)
    if len(inputs) > 3:
        y = step("Add", y, inputs[3])
    return [step("Relu", y) if "activation" in node.attributes else y]


def _bias_add(step, node, inputs):
    return [step("Add", step("Add", inputs[0], inputs[1]), inputs[2])]


def _bias_split_gelu(step, node, inputs):
    left, right = step("Split", step("Add", *inputs), outputs=2, axis=-1, num_outputs=2)
    return [step("Mul", left, step("Gelu", right))]


def _group_norm(step, node, inputs):
    x, gamma, beta = inputs[:3]
    results = []
    if node.op_type == "SkipGroupNorm":
        skip = inputs[3]
        if len(skip.shape) == 2:
            skip = step("Unsqueeze", skip, step.ints(1, 2))
        x = step("Add", x, skip)
        if len(inputs) > 4:
            x = step("Add", x, inputs[4])
        results = [step("Identity", x)][: len(node.outputs) - 1]
    last = step.int("channels_last", 1)
    y = step.move(x, *_FIRST) if last else x
    y = step("GroupNormalization", y, gamma, beta, num_groups=step.int("groups", 0))
    y = step.move(y, *_LAST) if last else y
    if step.int("activation", 0):
        y = step("Mul", y, step("Sigmoid", y))
    return [y, *results]


def _multi_head(step, node, inputs):
    """Q, K and V that are packed into one input, or K and V into one, taken apart."""
    heads = step.int("num_heads", 0)
    flat = step.ints(0, 0, -1)

    def part(value, number, parts):
        pieces = step("Split", value, outputs=parts, axis=3, num_outputs=parts)
        return step("Reshape", pieces[number], flat)

    if len(inputs) == 1:
        q, k, v = (part(inputs[0], number, 3) for number in range(3))
    else:
        q, k, v = inputs[0], *(part(inputs[1], number, 2) for number in range(2))
    return [step("Attention", q, k, v, q_num_heads=heads, kv_num_heads=heads)]


def _swiglu(step, node, inputs):
    alpha = step("Constant", value=ir.tensor(np.float32(node.attributes["alpha"].as_float())))
    return [step("Mul", step("Mul", inputs[0], step("Sigmoid", step("Mul", inputs[0], alpha))), inputs[1])]


def _renamed(step, node, inputs):
    """onnxruntime's own operator of the same name and meaning."""
    kept = {name: attribute.value for name, attribute in node.attributes.items()}
    node.graph.opset_imports.setdefault("com.microsoft", 1)
    made = ir.node(node.op_type, inputs, kept, domain="com.microsoft", num_outputs=len(node.outputs))
    for number, value in enumerate(made.outputs):
        value.name = f"{node.name}/renamed{number}"
    node.graph.insert_before(node, made)
    return made.outputs


_NEWEST = 26
"""The last opset that onnxruntime runs."""
_NEWER = {"SwiGLU": _swiglu, "CausalConvWithState": _renamed, "LinearAttention": _renamed}
_LOWERED = {
    "NhwcConv": _conv,
    "NhwcFusedConv": _conv,
    "BiasAdd": _bias_add,
    "BiasSplitGelu": _bias_split_gelu,
    "GroupNorm": _group_norm,
    "SkipGroupNorm": _group_norm,
    "MultiHeadAttention": _multi_head,
}
