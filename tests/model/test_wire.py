from __future__ import annotations

import io as streams

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from small_models import info, model_of, perceptron, weights

from onnxprune.model.wire import Streamed, write_data, write_model


def streamed(proto, which):
    """Write `proto` with those initializers streamed whose index `which` accepts."""
    items = []
    for number, tensor in enumerate(proto.graph.initializer):
        if which(number):
            items.append(Streamed.of(ir.serde.deserialize_tensor(tensor), tensor.name))
        else:
            items.append(onnx.TensorProto.FromString(tensor.SerializeToString()))
    rest = onnx.ModelProto.FromString(proto.SerializeToString())
    del rest.graph.initializer[:]
    file = streams.BytesIO()
    write_model(file, rest, items)
    return file.getvalue()


def full_model():
    """Every field that onnxprune writes, before and after the graph and the initializers."""
    proto = perceptron(producer_name="p", producer_version="1", doc_string="d" * 300, model_version=7)
    helper.set_model_props(proto, {"k": "v"})
    graph = proto.graph
    graph.doc_string = "about the graph"
    graph.value_info.append(info("h", ["n", 4]))
    graph.quantization_annotation.add(tensor_name="h")
    graph.metadata_props.add(key="a", value="b")
    graph.initializer[0].doc_string = "about the weight"
    graph.initializer[0].metadata_props.add(key="z", value="1")
    graph.initializer.append(numpy_helper.from_array(np.zeros((0, 3), np.float32), "empty"))
    graph.initializer.append(numpy_helper.from_array(np.float32(3), "scalar"))
    graph.initializer.append(numpy_helper.from_array(weights(70, 300), "large"))
    proto.functions.append(
        helper.make_function(
            "m", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], proto.opset_import
        )
    )
    return proto


@pytest.mark.parametrize("which", [lambda n: True, lambda n: False, lambda n: n % 2])
@pytest.mark.parametrize(
    "make", [full_model, perceptron, lambda: model_of([], [info("x", [1])], [info("x", [1])])]
)
def test_the_bytes_are_those_of_protobuf(make, which):
    proto = make()
    assert streamed(proto, which) == proto.SerializeToString(deterministic=True)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=200), st.lists(st.integers(0, 40), max_size=3)), max_size=5
    ),
    st.text(max_size=300),
    st.integers(-(2**63), 2**63 - 1),
)
def test_the_bytes_are_those_of_protobuf_for_any_sizes(tensors, text, number):
    arrays = [numpy_helper.from_array(np.ones(shape, np.int16), name) for name, shape in tensors]
    proto = model_of([helper.make_node("Relu", ["x"], ["y"], name=text)], [info("x")], [info("y")], arrays)
    proto.model_version, proto.doc_string = number, text
    assert streamed(proto, lambda n: True) == proto.SerializeToString(deterministic=True)


def test_a_tensor_with_fewer_bytes_than_its_shape_needs_is_an_error():
    lazy = ir.LazyTensor(
        lambda: ir.tensor(np.zeros(3, np.float32)), ir.DataType.FLOAT, ir.Shape([4]), name="short"
    )
    with pytest.raises(RuntimeError, match="'short' has 12 bytes, not the 16"):
        write_data(streams.BytesIO(), lazy)
