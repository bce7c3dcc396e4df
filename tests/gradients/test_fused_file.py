from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.gradients import CrossEntropy, build_backward, gradient_name


def test_a_fused_file_has_the_gradients_of_the_plain_one(tmp_path):
    """A transformer before and after onnxruntime's own fusions."""
    plain = Path(__file__).parents[2] / "models" / "digits_vit.onnx"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    onnxruntime.InferenceSession(str(plain), options, providers=["CPUExecutionProvider"])
    before, after = (ir.load(path) for path in (plain, tmp_path / "fused.onnx"))
    assert {node.op_type for node in after.graph if node.domain} >= {"FusedMatMul", "BiasGelu"}
    names = [
        n for n, v in after.graph.initializers.items() if n in before.graph.initializers and ".bias" in n
    ]
    assert len(names) > 10
    (image,) = before.graph.inputs
    shape = (2, *(d for d in image.shape[1:]))
    feed = {image.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    feed["labels"] = np.array([3, 8])
    found = [
        run(open_session(build_backward(model, CrossEntropy(), names), threads=1), feed)
        for model in (before, after)
    ]
    for name in names:
        one, other = (arrays[gradient_name(name)] for arrays in found)
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-4 * max(np.abs(one).max(), 1e-3))
