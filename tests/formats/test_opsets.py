"""Every opset from 7 on, every IR version from 3 on, and the forms that operators had in them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from old_and_new import FORMS, Form, drawn, network
from onnx import helper
from onnx.reference import ReferenceEvaluator

import onnxprune
from onnxprune.errors import ModelError, UnsupportedError
from onnxprune.model.opset import lowered

NEWEST, NEWEST_IR = onnx.defs.onnx_opset_version(), int(onnx.IR_VERSION)
OPSETS = range(7, NEWEST + 1)
CHANNELS = tuple((name, drawn(8, seed=n)) for n, name in enumerate("smcv"))
PLAIN = Form(9, "n = BatchNormalization(a, s, m, c, v)  b = Relu(n)", True, CHANNELS)


def write(proto: onnx.ModelProto, path):
    onnx.save(proto, path)
    return path


def shapes(path) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.dims) for tensor in onnx.load(path).graph.initializer}


def feed(count: int = 1) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((2, 3, 6, 6)).astype(np.float32)} for _ in range(count)]


def outputs(path, opset: int) -> np.ndarray:
    """What a model makes of a feed. onnx's own evaluator knows the newest opsets, which onnxruntime may not."""
    if opset < 23:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["y"], feed()[0])[0]
    return ReferenceEvaluator(str(path)).run(["y"], feed()[0])[0]


def both_modes(path, folder, **options):
    """The report, and the paths of the masked and of the cut model."""
    report = None
    for mode in ("mask", "remove"):
        report = onnxprune.prune(
            path, folder / f"{mode}.onnx", ratio=0.5, round_to=1, best_effort=True, mode=mode, **options
        ).report
    return report, folder / "mask.onnx", folder / "remove.onnx"


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_an_operator_is_cut_or_said_to_be_a_barrier(tmp_path, name):
    form = FORMS[name]
    path = write(network(form), tmp_path / "net.onnx")
    report, masked, cut = both_modes(path, tmp_path, criterion="l2")
    assert (shapes(cut)["first_w"][0] < 8) == form.cut
    assert not report.soundness.rejected_groups
    if not form.cut:
        assert any("Conv_0" in barrier.layers for barrier in report.barriers)
    if name != "group-norm-18":  # which onnx.checker calls deprecated, and onnxruntime runs
        onnx.checker.check_model(str(cut), full_check=True)
    assert [(e.domain, e.version) for e in onnx.load(cut).opset_import] == [("", form.opset)]
    sessions = [onnxruntime.InferenceSession(p, providers=["CPUExecutionProvider"]) for p in (masked, cut)]
    whole, smaller = (session.run(["y"], feed()[0])[0] for session in sessions)
    np.testing.assert_allclose(smaller, whole, rtol=0, atol=1e-4 * np.abs(whole).max())


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.opset < 13 or form.opset > 22])
def test_forms_with_data(tmp_path, name):
    path = write(network(FORMS[name]), tmp_path / "net.onnx")
    for criterion in ("obs", "taylor"):
        report = onnxprune.prune(
            path, ratio=0.5, criterion=criterion, round_to=1, best_effort=True, data=feed(24)
        ).report
        assert not report.soundness.rejected_groups
        assert report.repairs and report.fidelity is not None


@pytest.mark.parametrize("opset", OPSETS)
def test_prune_prove_and_check_again_at_every_opset(tmp_path, opset):
    form = Form(opset, PLAIN.text, True, CHANNELS)
    path = write(network(form, ir_version=min(NEWEST_IR, 8 if opset < 21 else 13)), tmp_path / "net.onnx")
    report, masked, cut = both_modes(path, tmp_path, criterion="obs", data=feed(24))
    assert report.soundness.checked and not report.soundness.rejected_groups
    assert shapes(cut)["first_w"] == [4, 3, 3, 3] and shapes(cut)["second_w"][1] == 4
    assert any(layer.kind == "affine" for layer in report.repairs)
    onnx.checker.check_model(str(cut), full_check=True)
    assert onnx.load(cut).opset_import[0].version == opset
    whole, smaller = (outputs(p, opset) for p in (masked, cut))
    np.testing.assert_allclose(smaller, whole, rtol=0, atol=1e-4 * np.abs(whole).max())


@pytest.mark.parametrize("version", range(3, NEWEST_IR + 1))
def test_every_ir_version_stays(tmp_path, version):
    form = Form(9 if version < 10 else 21, PLAIN.text, True, CHANNELS)
    proto = network(form, listed=version < 5)
    proto.ir_version = version
    path = write(proto, tmp_path / "net.onnx")
    report, masked, cut = both_modes(path, tmp_path, criterion="obs", data=feed(24))
    made = onnx.load(cut)
    assert made.ir_version == version and report.dropped > 0
    assert [value.name for value in made.graph.input] == [value.name for value in proto.graph.input]
    onnx.checker.check_model(str(cut), full_check=True)
    if version < 5:  # listed ones have the shape that they were cut to
        dims = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in made.graph.input}
        assert dims["first_w"] == [4, 3, 3, 3] == shapes(cut)["first_w"]
    whole, smaller = (ReferenceEvaluator(str(p)).run(["y"], feed()[0])[0] for p in (masked, cut))
    np.testing.assert_allclose(smaller, whole, rtol=0, atol=1e-4 * np.abs(whole).max())


def test_opsets_before_broadcasting_are_refused_with_a_way_out(tmp_path):
    form = Form(6, "b = Add<axis=1, broadcast=1>(a, s)", True, CHANNELS[:1])
    path = write(network(form, 3, listed=True), tmp_path / "net.onnx")
    with pytest.raises(UnsupportedError, match="opset 6") as error:
        onnxprune.prune(path, tmp_path / "out.onnx", ratio=0.5)
    assert "version_converter" in error.value.hint
    assert not (tmp_path / "out.onnx").exists()
    with pytest.raises(UnsupportedError, match="opset 6"):
        onnxprune.validate(path, feed(2), against=path)
    assert onnxprune.stats(path).layers  # which does not run it


def test_a_newer_opset_is_lowered_only_where_nothing_differs():
    import onnx_ir as ir

    same = ir.from_proto(network(Form(14, "b = HardSwish(a)")))
    other = ir.from_proto(network(Form(14, "b = Softmax<axis=1>(a)")))
    assert lowered(same, 20, 13) is same
    assert lowered(other, 12, 13) is other  # another meaning: one axis instead of all behind it
    newer = ir.from_proto(network(Form(13, "b = Relu(a)")))
    newer.ir_version = 12
    made = lowered(newer, 13, 9)
    assert (made.ir_version, newer.ir_version) == (9, 12)


def test_missing_and_unknown_imports(tmp_path):
    proto = network(Form(21, "b = Relu(a)"))
    del proto.opset_import[:]
    with pytest.raises(ModelError, match="imports no operator set"):
        onnxprune.load(write(proto, tmp_path / "none.onnx"))
    proto.opset_import.add(domain="com.example", version=1)
    with pytest.raises(ModelError, match="does not import"):
        onnxprune.load(write(proto, tmp_path / "other.onnx"))
    proto.opset_import.add(domain="", version=NEWEST + 1)
    with pytest.raises(ModelError, match=f"opset {NEWEST + 1}, which the installed onnx"):
        onnxprune.load(write(proto, tmp_path / "future.onnx"))


@pytest.mark.parametrize("zipped", [False, True], ids=["", "zip-map"])
def test_a_classifier_of_another_domain_is_a_barrier(tmp_path, zipped):
    proto = network(Form(21, "b = Relu(a)"))
    del proto.graph.node[-1]
    proto.opset_import.add(domain="ai.onnx.ml", version=3)
    proto.opset_import.add(domain="com.microsoft", version=1)
    rng = np.random.default_rng(0)
    proto.graph.node.append(
        helper.make_node(
            "LinearClassifier", ["z"], ["label", "y"], name="classifier", domain="ai.onnx.ml",
            coefficients=rng.standard_normal(24).tolist(), intercepts=[0.0, 0.0, 0.0],
            classlabels_ints=[1, 2, 3], post_transform="SOFTMAX", multi_class=1,
        )
    )  # fmt: skip
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    proto.graph.output.append(helper.make_tensor_value_info("label", onnx.TensorProto.INT64, [2]))
    if zipped:
        node = helper.make_node(
            "ZipMap", ["y"], ["maps"], name="zip", domain="ai.onnx.ml", classlabels_int64s=[1, 2, 3]
        )
        proto.graph.node.append(node)
        kind = helper.make_map_type_proto(7, helper.make_tensor_type_proto(1, None))
        proto.graph.output.append(helper.make_value_info("maps", helper.make_sequence_type_proto(kind)))
    path = write(proto, tmp_path / "net.onnx")
    report, masked, cut = both_modes(path, tmp_path, criterion="obs", data=feed(24))
    assert shapes(cut)["first_w"][0] == 4 and shapes(cut)["second_w"] == [8, 4, 1, 1]
    assert any(barrier.reason == "NO_RULE" and "classifier" in barrier.where for barrier in report.barriers)
    made = onnx.load(cut)
    assert [(e.domain, e.version) for e in made.opset_import] == [
        ("", 21),
        ("ai.onnx.ml", 3),
        ("com.microsoft", 1),
    ]
    assert list(made.graph.output) == list(proto.graph.output)
    whole, smaller = (
        onnxruntime.InferenceSession(p, providers=["CPUExecutionProvider"]).run(None, feed()[0])
        for p in (masked, cut)
    )
    np.testing.assert_allclose(smaller[0], whole[0], atol=1e-5)
    assert np.array_equal(smaller[1], whole[1]) and len(smaller) == len(whole) == 2 + zipped


def annotated() -> onnx.ModelProto:
    """A model with everything that the newest IR versions let one note beside the graph."""
    proto = network(Form(24, "b = Relu(a)"), 13)
    proto.graph.name, proto.graph.doc_string, proto.doc_string = "net", "about the graph", "about the model"
    proto.producer_name, proto.producer_version, proto.domain, proto.model_version = "p", "1", "d", 7
    for place in (proto, proto.graph, *proto.graph.node, proto.graph.initializer[0]):
        place.metadata_props.add(key="key", value="value")
    proto.graph.node[0].doc_string = proto.graph.initializer[0].doc_string = "doc"
    note = proto.graph.quantization_annotation.add(tensor_name="a")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="second_b")
    devices = proto.configuration.add(name="two", num_devices=2)
    devices.device.extend(["first", "second"])
    placed = proto.graph.node[0].device_configurations.add(configuration_id="two", pipeline_stage=1)
    placed.sharding_spec.add(tensor_name="first_w").device.extend([0, 1])
    info = proto.graph.value_info.add(name="a", doc_string="doc")
    info.CopyFrom(helper.make_tensor_value_info("a", 1, [2, 8, 6, 6], "doc"))
    info.metadata_props.add(key="key", value="value")
    return proto


def test_what_is_noted_beside_the_graph_stays(tmp_path):
    proto = annotated()
    path = write(proto, tmp_path / "net.onnx")
    onnxprune.prune(path, tmp_path / "out.onnx", ratio=0.5, round_to=1, criterion="obs", data=feed(24))
    made = onnx.load(tmp_path / "out.onnx")
    for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(made, name) == getattr(proto, name)
    assert made.metadata_props == proto.metadata_props and made.configuration == proto.configuration
    for name in ("name", "doc_string", "metadata_props", "quantization_annotation"):
        assert getattr(made.graph, name) == getattr(proto.graph, name)
    for mine, theirs in zip(made.graph.node, proto.graph.node, strict=True):
        assert (mine.metadata_props, mine.doc_string) == (theirs.metadata_props, theirs.doc_string)
        assert mine.device_configurations == theirs.device_configurations
    tensors = [next(t for t in p.graph.initializer if t.name == "first_w") for p in (made, proto)]
    assert tensors[0].metadata_props == tensors[1].metadata_props and tensors[0].doc_string == "doc"
    (info,) = (info for info in made.graph.value_info if info.name == "a")
    assert info.doc_string == "doc" and info.metadata_props == proto.metadata_props
    assert [dim.dim_value for dim in info.type.tensor_type.shape.dim] == [2, 4, 6, 6]
