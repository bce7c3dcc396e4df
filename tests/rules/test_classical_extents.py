"""What classical machine learning makes has the shapes that onnxruntime gives it: networks behind it are pruned."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.errors import Reason
from onnxprune.model.normalize import normalize
from onnxprune.model.shapes import infer_shapes
from onnxprune.rules import builtin_rules

FLOATS = TensorProto.FLOAT
TREE = {
    "nodes_treeids": [0, 0, 0],
    "nodes_nodeids": [0, 1, 2],
    "nodes_featureids": [1, 0, 0],
    "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
    "nodes_values": [0.0, 0.0, 0.0],
    "nodes_truenodeids": [1, 0, 0],
    "nodes_falsenodeids": [2, 0, 0],
}
TARGETS = {f"target_{key}": [0, 0] for key in ("treeids", "ids")} | {
    "target_nodeids": [1, 2],
    "target_weights": [1.0, 2.0],
}
CLASSES = {"class_treeids": [0, 0], "class_nodeids": [1, 2], "class_ids": [0, 2], "class_weights": [1.0, 1.0]}
CASES = {
    "scaler": ("Scaler", {"offset": [0.5], "scale": [2.0]}),
    "scaler of columns": ("Scaler", {"offset": [0.5] * 6, "scale": [2.0] * 6}),
    "normalizer": ("Normalizer", {"norm": "L2"}),
    "imputer": ("Imputer", {"imputed_value_floats": [1.0], "replaced_value_float": 0.0}),
    "features": ("FeatureVectorizer", {"inputdimensions": [4]}),
    "line": ("LinearRegressor", {"coefficients": [1.0] * 12, "intercepts": [0.0, 0.0], "targets": 2}),
    "vectors": (
        "SVMRegressor",
        {
            "coefficients": [1.0] * 6,
            "kernel_type": "LINEAR",
            "kernel_params": [0.0] * 3,
            "n_supports": 0,
            "rho": [0.5],
        },
    ),
    "tree": ("TreeEnsembleRegressor", {**TREE, **TARGETS, "n_targets": 2}),
    "classes": ("TreeEnsembleClassifier", {**TREE, **CLASSES, "classlabels_int64s": [3, 4, 5]}),
    "named classes": ("TreeEnsembleClassifier", {**TREE, **CLASSES, "classlabels_strings": ["a", "b", "c"]}),
}


def model_of(op_type, attributes, shape=(5, 6)):
    """One operator; nothing is said about its outputs."""
    count = 2 if op_type.endswith("Classifier") else 1
    names = [f"y{i}" for i in range(count)]
    node = helper.make_node(op_type, ["x"], names, domain="ai.onnx.ml", **attributes)
    first = TensorProto.STRING if "classlabels_strings" in attributes else TensorProto.INT64
    kinds = [FLOATS] if count == 1 else [first, FLOATS]
    outs = [helper.make_tensor_value_info(n, kind, None) for n, kind in zip(names, kinds, strict=True)]
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", FLOATS, shape)], outs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("name", CASES)
def test_extents_are_those_of_onnxruntime(name):
    proto = model_of(*CASES[name])
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    made = session.run(None, {"x": np.ones((5, 6), np.float32)})
    model = normalize(ir.from_proto(proto))
    found = infer_shapes(model, custom=builtin_rules().infer)
    assert [found.dims[value] for value in model.graph.outputs] == [array.shape for array in made]


def test_a_vector_is_one_sample():
    model = normalize(ir.from_proto(model_of(*CASES["line"], shape=(6,))))
    found = infer_shapes(model, custom=builtin_rules().infer)
    assert found.dims[model.graph.outputs[0]] == (1, 2)


def pipeline(path, op_type="Scaler", domain="ai.onnx.ml", **attributes):
    """What skl2onnx writes of a pipeline: an operator without a declared output, and a perceptron behind it."""
    rng = np.random.default_rng(0)
    sizes = {"w0": (6, 32), "w1": (32, 16), "w2": (16, 3)}
    weights = [
        numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in sizes.items()
    ]
    nodes = [helper.make_node(op_type, ["x"], ["h"], name="first", domain=domain, **attributes)]
    for number in range(3):
        nodes.append(
            helper.make_node("MatMul", ["h" if not number else f"r{number}", f"w{number}"], [f"m{number}"])
        )
        nodes.append(helper.make_node("Relu", [f"m{number}"], [f"r{number + 1}"]))
    x = helper.make_tensor_value_info("x", FLOATS, ("n", 6))
    y = helper.make_tensor_value_info("r3", FLOATS, ("n", 3))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_a_perceptron_behind_a_scaler_is_pruned(tmp_path):
    path = pipeline(tmp_path / "net.onnx", offset=[0.5] * 6, scale=[2.0] * 6)
    report = onnxprune.prune(path, tmp_path / "small.onnx", ratio=0.5).report
    assert report.dropped == 24 and report.soundness.checked
    assert report.before.macs == 6 * 32 + 32 * 16 + 16 * 3
    session = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.ones((4, 6), np.float32)})[0].shape == (4, 3)


def test_whoever_makes_a_shape_unknown_is_named(tmp_path):
    analysis = onnxprune.analyze(pipeline(tmp_path / "net.onnx", "Bend", "acme"))
    assert not analysis.partition.groups
    (blocked,) = analysis.blocked
    assert (blocked.reason, blocked.where) == (Reason.UNKNOWN_SHAPE, "Bend 'first'")
    text = str(onnxprune.explain(analysis, "w2"))
    assert "held by Bend 'first'" in text


def test_text_keeps_its_rows():
    """Normaliser, words, counts: as many rows as texts, unless stop words go."""
    tokens = {"mark": 0, "mincharnum": 1, "pad_value": "#", "tokenexp": "[a-z]+"}
    counts = {
        "max_gram_length": 1, "min_gram_length": 1, "max_skip_count": 0, "mode": "TF",
        "ngram_counts": [0], "ngram_indexes": [0, 1, 2], "pool_strings": ["a", "b", "c"],
    }  # fmt: skip
    for stop, rows in (({}, 4), ({"stopwords": ["b"]}, None)):
        nodes = [
            helper.make_node("StringNormalizer", ["x"], ["a"], case_change_action="LOWER", **stop),
            helper.make_node("Tokenizer", ["a"], ["b"], domain="com.microsoft", **tokens),
            helper.make_node("TfIdfVectorizer", ["b"], ["y"], **counts),
        ]
        x = helper.make_tensor_value_info("x", TensorProto.STRING, (4,))
        y = helper.make_tensor_value_info("y", FLOATS, None)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        proto = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=opsets, ir_version=8)
        model = normalize(ir.from_proto(proto))
        found = infer_shapes(model, custom=builtin_rules().infer)
        assert found.dims[model.graph.outputs[0]] == (rows, 3)
