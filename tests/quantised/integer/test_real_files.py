"""Files that onnxruntime's quantisers make of trained models: taken apart, and put together bit for bit."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from integer_net import described
from small_nets import REAL

from onnxprune.model.finalize import finalize
from onnxprune.model.integer import left_whole, lowered_operators
from onnxprune.model.io import load
from onnxprune.model.normalize import normalize

quantization = pytest.importorskip("onnxruntime.quantization")
pytestmark = pytest.mark.real


class Samples(quantization.CalibrationDataReader):
    def __init__(self, name, data):
        self.batches = iter([{name: data[:16]}, {name: data[16:32]}])

    def get_next(self):
        return next(self.batches, None)


def bare(tmp_path, model):
    """The trained model without declared shapes of values, which the quantisers would leave behind as they were."""
    proto = onnx.load(REAL / "models" / f"{model}.onnx")
    del proto.graph.value_info[:]
    onnx.save(proto, tmp_path / "float.onnx")
    return tmp_path / "float.onnx", proto.graph.input[0].name


def static(tmp_path, model, data, **options):
    source, name = bare(tmp_path, model)
    reader = Samples(name, np.load(REAL / "data" / f"{data}.npz")["input"])
    target = tmp_path / "integer.onnx"
    form = quantization.QuantFormat.QOperator
    quantization.quantize_static(str(source), str(target), reader, quant_format=form, **options)
    return target


def dynamic(tmp_path, model, data, **options):
    target = tmp_path / "integer.onnx"
    source, _ = bare(tmp_path, model)
    kind = quantization.QuantType.QUInt8
    quantization.quantize_dynamic(str(source), str(target), weight_type=kind, **options)
    return target


def n_bits(tmp_path, model, data, **options):
    quantizer = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")
    made = quantizer.MatMulNBitsQuantizer(onnx.load(REAL / "models" / f"{model}.onnx"), **options)
    made.process()
    onnx.save(made.model.model, tmp_path / "integer.onnx")
    return tmp_path / "integer.onnx"


NET, CLIPS = ("cifar10_resnet20", "cifar10_calib"), ("kwt1_speechcommands", "speechcommands12_calib")
FILES = {
    "static": (static, NET, {}),
    "static per channel": (static, NET, {"per_channel": True}),
    "static transformer": (static, CLIPS, {"per_channel": True}),
    "dynamic": (dynamic, NET, {}),
    "dynamic transformer": (dynamic, CLIPS, {"per_channel": True}),
    "4 bits": (n_bits, CLIPS, {"bits": 4, "block_size": 32, "is_symmetric": False}),
    "8 bits in blocks wider than the weight": (n_bits, CLIPS, {"bits": 8, "block_size": 128}),
}
STANDARD = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}


@pytest.mark.parametrize("name", FILES)
def test_bit_for_bit(name, tmp_path):
    make, source, options = FILES[name]
    model = load(make(tmp_path, *source, **options)).ir
    normal = normalize(model)
    assert not left_whole(normal.graph)
    wanted = Counter(
        node.op_type
        for node in model.graph
        if (node.domain or "Integer" in node.op_type or "Linear" in node.op_type)
        and node.op_type not in STANDARD
    )
    assert lowered_operators(normal.graph) == dict(wanted) and wanted
    assert not {node.domain for node in normal.graph} - {""}
    assert described(finalize(normal)) == described(model)
