"""The whole way on models that somebody trained: load, normalise, finalise, save, run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from small_models import run, same_outputs

from onnxprune.model import io
from onnxprune.model.batchnorm import fold_batchnorm
from onnxprune.model.convert import to_float32
from onnxprune.model.finalize import finalize
from onnxprune.model.normalize import normalize

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "real" / "models"
FILES = [*sorted((ROOT / "models").glob("*.onnx")), *sorted(REAL.glob("*.onnx"))]
MODELS = [
    pytest.param(path, id=path.stem, marks=pytest.mark.real if path.parent == REAL else ()) for path in FILES
]
SIZES = {"sequence": 512, "height": 64, "width": 64}


def feed_of(path):
    """Seeded inputs; symbolic dims get a size that the models here accept."""
    rng = np.random.default_rng(0)
    feed = {}
    for value in onnxruntime.InferenceSession(str(path)).get_inputs():
        shape = [
            dim if isinstance(dim, int) else SIZES.get(dim, 64 if axis > 1 else 1)
            for axis, dim in enumerate(value.shape)
        ]
        is_rate = value.type == "tensor(int64)"
        feed[value.name] = np.array(16000) if is_rate else rng.normal(size=shape).astype(np.float32)
    return feed


def test_the_models_of_this_repository_are_there():
    assert len([path for path in FILES if path.parent != REAL]) >= 4


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/real")
def test_the_real_models_are_there():
    assert len([path for path in FILES if path.parent == REAL]) >= 11


@pytest.mark.parametrize("path", MODELS)
def test_the_whole_way(tmp_path, path):
    out = tmp_path / "out.onnx"
    size = io.save(finalize(normalize(io.load(path).ir)), out)
    onnx.checker.check_model(str(out), full_check=True)
    feed = feed_of(path)
    same_outputs(run(path, feed), run(out, feed))
    before, after = onnx.load(path), onnx.load(out)
    assert size == out.stat().st_size < 1.01 * path.stat().st_size
    for part in ("input", "output"):
        assert list(getattr(after.graph, part)) == list(getattr(before.graph, part))
    imports = [[(entry.domain, entry.version) for entry in proto.opset_import] for proto in (before, after)]
    assert imports[0] == imports[1]
    for field in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(after, field) == getattr(before, field)
    assert sorted(map(str, after.metadata_props)) == sorted(map(str, before.metadata_props))
    known = {node.name for node in before.graph.node}
    assert {node.name for node in after.graph.node} <= known
    old = {t.name: t for t in before.graph.initializer}
    for tensor in after.graph.initializer:
        if tensor.name in old:
            array = numpy_helper.to_array(old[tensor.name])
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), array)
    io.save(finalize(normalize(io.load(out).ir)), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes()


@pytest.mark.parametrize("path", MODELS)
def test_folding_and_widening_keep_the_outputs(tmp_path, path):
    model = normalize(io.load(path).ir)
    feed = feed_of(path)
    expected = run(path, feed)
    io.save(finalize(to_float32(model)), tmp_path / "wide.onnx")
    same_outputs(expected, run(tmp_path / "wide.onnx", feed))
    io.save(finalize(fold_batchnorm(model)), tmp_path / "folded.onnx")
    same_outputs(expected, run(tmp_path / "folded.onnx", feed), exact=False, rtol=1e-5, floor=1.0)
