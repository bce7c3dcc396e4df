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
from onnxprune.model.io import load
from onnxprune.model.serialize import data_folder, to_bytes

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
