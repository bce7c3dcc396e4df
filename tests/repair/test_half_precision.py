"""A transformer in float16: chosen, turned, cut and repaired like the same in float32."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, numpy_helper
from small_nets import MODELS

import onnxprune


def halved(tensor):
    if tensor.data_type == TensorProto.FLOAT:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )


def in_half(path, out):
    """All floats of a model as float16, its inputs and outputs, too."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        halved(tensor)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                halved(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, out)


def test_half_precision_is_repaired_as_well(tmp_path):
    source = MODELS / "digits_vit.onnx"
    with np.load(MODELS / "digits_calib.npz") as loaded:
        samples = loaded["input"]
    in_half(source, tmp_path / "half.onnx")
    sqnr, kinds = [], []
    for path, dtype in ((source, np.float32), (tmp_path / "half.onnx", np.float16)):
        data = [{"input": x[None].astype(dtype)} for x in samples[:200]]
        test = [{"input": x[None].astype(dtype)} for x in samples[400:]]
        report = onnxprune.prune(path, macs=0.5, criterion="obs", data=data, test=test).report
        (output,) = report.fidelity.outputs
        sqnr.append(output.sqnr_db)
        kinds.append({layer.name: layer.kind for layer in report.repairs})
    assert sqnr[1] == pytest.approx(sqnr[0], abs=0.5) and sqnr[0] > 15
    assert kinds[0] == kinds[1] and "logits" in kinds[0].values()
