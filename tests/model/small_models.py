"""Small models as protobufs, made with onnx.helper, and what the tests of this folder do with them."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from onnxprune.errors import UsageError
from onnxprune.model import io
from onnxprune.model.finalize import finalize
from onnxprune.model.normalize import normalize

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def info(name, shape=None, dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def weights(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def model_of(nodes, inputs, outputs, initializers=(), *, opset=17, ir=8, functions=(), domains=(), **about):
    """A model of node protos; initializers are a dict of arrays, tensor protos, or both in a list."""
    if isinstance(initializers, dict):
        initializers = [
            a if isinstance(a, onnx.TensorProto) else numpy_helper.from_array(np.asarray(a), name)
            for name, a in initializers.items()
        ]
    graph = helper.make_graph(nodes, "small", inputs, outputs, list(initializers))
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, ir_version=ir, opset_imports=imports, functions=list(functions), **about)


def perceptron(width=4, **options):
    """y = relu(x W + b) V, the smallest model with something to prune."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="first"),
        helper.make_node("Add", ["h", "b"], ["s"], name="bias"),
        helper.make_node("Relu", ["s"], ["r"], name="act"),
        helper.make_node("MatMul", ["r", "V"], ["y"], name="second"),
    ]
    arrays = {"W": weights(3, width), "b": weights(width, seed=1), "V": weights(width, 2, seed=2)}
    return model_of(nodes, [info("x", ["n", 3])], [info("y", ["n", 2])], arrays, **options)


def write(path, proto):
    Path(path).write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
    return Path(path)


def check(path):
    """Let onnx's checker look at a file; it wants shapes of outputs, which few models here declare."""
    proto = onnx.load(path)
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    for output, found in zip(proto.graph.output, inferred.graph.output, strict=True):
        if not output.type.tensor_type.HasField("shape"):
            output.CopyFrom(found)
            if not output.type.tensor_type.HasField("shape"):
                output.type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto())
                return onnx.checker.check_model(proto)
    return onnx.checker.check_model(proto, full_check=True)


def run(model, feed, *, optimize=True):
    """Outputs by name, of a path, a proto or bytes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if isinstance(model, onnx.ModelProto):
        model = model.SerializeToString()
    session = onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def same_outputs(left, right, *, exact=True, rtol=1e-5, floor=0.0):
    """Equal, or within `rtol` of the largest value; `floor` is the scale of outputs that may be tiny."""
    assert list(left) == list(right)
    for name, array in left.items():
        if exact:
            np.testing.assert_array_equal(array, right[name])
        else:
            np.testing.assert_allclose(
                array, right[name], rtol=rtol, atol=rtol * max(np.abs(array).max(), floor)
            )


def read(tmp_path, proto):
    """The model as onnxprune loads it."""
    return io.load(write(tmp_path / "in.onnx", proto)).ir


def normal(tmp_path, proto):
    """The normalised model."""
    return normalize(read(tmp_path, proto))


def round_trip(tmp_path, model):
    """A normalised model as a file again; checked by onnx."""
    path = tmp_path / "out.onnx"
    io.save(finalize(model), path, force=True)
    check(path)
    return path


def array_of(model, name):
    """Data of an initializer."""
    return model.graph.initializers[name].const_value.numpy()


def save_fails(model, path, *words, error=UsageError, **options):
    """A save that must fail and leave the folder as it was."""
    before = listing(path.parent) if path.parent.is_dir() else None
    with pytest.raises(error) as caught:
        io.save(model, path, **options)
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value), str(caught.value)
    if before is not None:
        assert listing(path.parent) == before
    return caught.value


def listing(folder):
    """Names and contents of a folder, scratch folders included."""
    return {p.name: p.read_bytes() if p.is_file() else None for p in folder.iterdir()}


@contextlib.contextmanager
def unprivileged(mode=0o777):
    """A folder that an ordinary user can reach, while this process is one: root may read and write all."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(mode)
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o777)
        shutil.rmtree(folder)
