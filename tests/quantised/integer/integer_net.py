"""Models of integer operators built node by node, and how two of them are compared."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import onnxprune

CONTRIB = "com.microsoft"
NUMPY = {"u": np.uint8, "s": np.int8}


class Integers:
    """Collects nodes and initializers; activations are `x0`, `x1` ... of 8 bits.

    Parameters
    ----------
    kind
        "u" or "s": the type of activations.
    """

    def __init__(self, kind="u", opset=21, seed=0):
        self.rng = np.random.default_rng(seed)
        self.kind, self.opset = kind, opset
        self.nodes, self.arrays, self.inputs, self.feed = [], {}, [], {}

    def add(self, name, array):
        self.arrays[name] = np.asarray(array)
        return name

    def random(self, shape, kind):
        info = np.iinfo(NUMPY[kind])
        return self.rng.integers(info.min, info.max + 1, shape).astype(NUMPY[kind])

    def activation(self, *shape, scale=0.02, zero=None):
        """An input with scale and zero point: the three names."""
        name = f"x{len(self.inputs)}"
        dtype = TensorProto.UINT8 if self.kind == "u" else TensorProto.INT8
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        self.feed[name] = self.random(shape, self.kind)
        return [name, *self.range(name, scale, zero)]

    def floats(self, *shape):
        name = f"x{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        self.feed[name] = self.rng.normal(size=shape).astype(np.float32)
        return name

    def range(self, name, scale, zero=None, kind=None):
        kind = kind or self.kind
        zero = (120 if kind == "u" else -7) if zero is None else zero
        return [
            self.add(f"{name}_scale", np.float32(scale)),
            self.add(f"{name}_zero_point", NUMPY[kind](zero)),
        ]

    def weight(self, *shape, kind="s", channels=None, zeros=False, name="w_quantized", limit=127):
        """A weight with one scale, or one for each of so many channels."""
        dtype = NUMPY[kind]
        data = self.rng.integers(-limit, limit + 1, shape)
        middle = 128 if kind == "u" else 0
        self.add(name, (data + middle).astype(dtype))
        extents = () if channels is None else (channels,)
        zero = np.full(extents, middle + (3 if zeros else 0), dtype)
        scale = self.rng.uniform(0.005, 0.02, extents).astype(np.float32)
        return [name, self.add(f"{name}_scale", scale), self.add(f"{name}_zero", zero)]

    def bias(self, *shape, name="b_quantized"):
        return self.add(name, self.rng.integers(-5000, 5000, shape).astype(np.int32))

    def node(self, op_type, inputs, outputs, domain="", name=None, **attributes):
        name = f"the_{op_type}" if name is None else name
        self.nodes.append(helper.make_node(op_type, inputs, outputs, name, domain=domain, **attributes))

    def model(self, *outputs, types=None):
        """Outputs by name; their type is inferred where onnx or the kernels know it."""
        dtype = TensorProto.UINT8 if self.kind == "u" else TensorProto.INT8
        types = types or [dtype] * len(outputs)
        made = [
            helper.make_tensor_value_info(name, kind, None) for name, kind in zip(outputs, types, strict=True)
        ]
        arrays = [numpy_helper.from_array(array, name) for name, array in self.arrays.items()]
        graph = helper.make_graph(self.nodes, "integers", self.inputs, made, arrays)
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, ir_version=10, opset_imports=imports)


def run(model, feed, optimize=False):
    """The model's outputs in onnxruntime on the CPU."""
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, feed)


def described(model):
    """All that a file says of a graph, in a form that compares."""
    graph = model.graph
    nodes = [
        (
            node.domain,
            node.op_type,
            node.name,
            [None if v is None else v.name for v in node.inputs],
            [v.name for v in node.outputs],
            [(a.name, a.type, str(a.value)) for a in node.attributes.values()],
        )
        for node in graph
    ]
    initializers = {
        name: (value.const_value.dtype, tuple(value.const_value.shape.numpy()), value.const_value.tobytes())
        for name, value in graph.initializers.items()
    }
    declared = {
        out.name: (str(out.type), str(out.shape)) for node in graph for out in node.outputs if out.name
    }
    ends = [value.name for value in graph.inputs], [value.name for value in graph.outputs]
    return {
        "nodes": nodes,
        "initializers": initializers,
        "declared": declared,
        "ends": ends,
        "imports": dict(graph.opset_imports),
    }


def operators(proto):
    return Counter((node.domain, node.op_type) for node in proto.graph.node)


def written(tmp_path, proto, **options):
    """The model pruned from a file to a file, and the report."""
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx.save(proto, before)
    done = onnxprune.prune(before, after, provider="cpu", **options)
    onnx.checker.check_model(str(after))
    return onnx.load(after), done.report


def declared(proto, feed):
    """The model with the shape of its output."""
    for dim in run(proto, feed)[0].shape:
        proto.graph.output[0].type.tensor_type.shape.dim.add(dim_value=dim)
    return proto
