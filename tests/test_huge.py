"""A model that is larger than the memory it is pruned in: only what is looked at is in memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from benchmarks.anonymous import watch
from benchmarks.huge_model import Size, build
from onnxprune import analyze, prune
from onnxprune.model.io import load
from onnxprune.model.normalize import normalize
from onnxprune.model.serialize import data_folder, to_bytes
from onnxprune.surgery.keep import kept_positions
from onnxprune.surgery.mask import mask
from onnxprune.surgery.remove import remove
from onnxprune.testing import ModelBuilder

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")

SIZE = Size(layers=5, width=1024, heads=16, key_heads=4, inner=2816, vocabulary=8000)
SHARE = 0.5
"""Of the file, in anonymous memory beyond the imports. (Whole sessions took more than three times the file.)"""


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("huge") / "decoder.onnx"
    build(path, SIZE)
    yield path
    path.with_name("decoder.onnx.data").unlink()


@pytest.fixture(scope="module")
def imports() -> int:
    line = "import time, onnx, networkx, onnxruntime, onnxprune.api; time.sleep(0.5)"
    return watch([sys.executable, "-c", line]).anonymous


def test_analysed_and_pruned_in_a_share_of_its_size(decoder, imports, tmp_path):
    size = decoder.with_name("decoder.onnx.data").stat().st_size
    assert size > 250e6
    analysed = watch([sys.executable, "-m", "onnxprune", "analyze", str(decoder)])
    assert analysed.code == 0, analysed.errors
    assert analysed.anonymous - imports < 0.25 * size

    output, report = tmp_path / "pruned.onnx", tmp_path / "report.json"
    command = ["prune", str(decoder), "-o", str(output), "--params", "0.7", "--report", str(report)]
    pruned = watch([sys.executable, "-m", "onnxprune", *command])
    assert pruned.code == 0, pruned.errors
    assert pruned.anonymous - imports < SHARE * size

    proof = json.loads(report.read_text(encoding="utf-8"))["soundness"]
    assert proof["checked"] and not proof["rejected_groups"] and proof["inner"] >= SIZE.layers
    written = output.with_name("pruned.onnx.data").stat().st_size
    assert 0.6 * size < written < 0.75 * size
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []

    before, after = load(decoder).ir.graph.initializers, load(output).ir.graph.initializers
    name = "model.layers.0.mlp.down_proj.weight"
    kept = np.asarray(after[name].const_value.numpy())
    rows = {row.tobytes() for row in np.asarray(before[name].const_value.numpy())}
    assert len(kept) < len(rows) and all(row.tobytes() in rows for row in kept)


def test_a_session_can_be_told_where_the_weights_lie(decoder):
    model = load(decoder).ir
    folder = data_folder(model)
    assert folder == str(decoder.parent)
    message, left_out = to_bytes(model, external_above=1 << 16, folder=folder)
    big = [v.name for v in model.graph.initializers.values() if v.const_value.nbytes > 1 << 20]
    assert big and not left_out.keys() & set(big)
    assert len(message) < 3e6
    entries = {t.name: t for t in ir.serde.onnx.ModelProto.FromString(message).graph.initializer}
    place = {entry.key: entry.value for entry in entries[big[0]].external_data}
    assert place["location"] == "decoder.onnx.data"
    assert int(place["offset"]) == model.graph.initializers[big[0]].const_value.offset


def test_what_is_made_of_mapped_weights_is_made_when_it_is_used(tmp_path):
    weight = np.random.default_rng(0).standard_normal((256, 128)).astype(np.float32)
    weight.tofile(tmp_path / "w.data")
    stored = ir.ExternalTensor(
        "w.data",
        0,
        weight.nbytes,
        ir.DataType.FLOAT,
        shape=ir.Shape(weight.shape),
        name="w",
        base_dir=str(tmp_path),
    )
    b = ModelBuilder(opset=18)
    x = b.input("x", ("n", 128))
    value = b.constant(np.zeros((256, 128), np.float32), "w")
    value.const_value = stored
    turned = b.op("Transpose", value, perm=[1, 0], name="turned")
    y = b.op("MatMul", b.op("Relu", b.op("MatMul", x, turned)), b.weight((256, 4), "head"))
    ir.save(b.model(y), tmp_path / "net.onnx")

    graph = normalize(load(tmp_path / "net.onnx").ir).graph
    made = graph.initializers[turned.name].const_value
    assert isinstance(made, ir.LazyTensor)
    np.testing.assert_array_equal(made.numpy(), weight.T)

    pruned = prune(tmp_path / "net.onnx", tmp_path / "out.onnx", ratio=0.5)
    assert pruned.report.soundness.checked and not pruned.report.soundness.rejected_groups
    kept = np.asarray(load(tmp_path / "out.onnx").ir.graph.initializers[turned.name].const_value.numpy())
    columns = {column.tobytes() for column in weight}
    assert kept.shape == (128, 128) and all(column.tobytes() in columns for column in kept.T.copy())


def test_masks_of_mapped_weights_are_made_when_they_are_used(decoder):
    analysis = analyze(decoder)
    (name, group), *_ = [pair for pair in analysis.groups.items() if "mlp" in pair[1].name]
    keep = np.arange(group.units) % 2 == 0
    kept = kept_positions(analysis.groups, {name: keep})
    down = "model.layers.0.mlp.down_proj.weight"
    whole = np.asarray(analysis.axis_graph.model.graph.initializers[down].const_value.numpy())
    masked = mask(analysis.axis_graph, kept).graph.initializers[down].const_value
    cut = remove(analysis.axis_graph, kept).graph.initializers[down].const_value
    assert isinstance(masked, ir.LazyTensor) and isinstance(cut, ir.LazyTensor)
    np.testing.assert_array_equal(masked.numpy(), np.where(keep[:, None], whole, 0))
    np.testing.assert_array_equal(cut.numpy(), whole[keep])
