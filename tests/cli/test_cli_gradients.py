"""Criteria with gradients and `onnxprune gradients` on the command line, with good input and bad."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from small_nets import Net, convnet, feeds, grouped, residual, save

from onnxprune.criteria.gradient import CRITERIA

USAGE = 2
MODEL = 3
BUILT = ["gradients", "--provider", "cpu"]
PRUNE = ["prune", "--provider", "cpu", "--round-to", "1", "--macs", "0.7"]


@pytest.fixture
def many(tmp_path):
    """Enough samples for several batches, and for some to be held out."""
    path = tmp_path / "many.npz"
    np.savez(path, **feeds(40))
    return path


def gradients_of(path, feed):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, feed), strict=True))


@pytest.mark.parametrize("name", CRITERIA)
def test_criteria(command, net, many, name):
    out, report = net.with_name("out.onnx"), net.with_name("report.json")
    command.accepted(*PRUNE, net, "--data", many, "--criterion", name, "-o", out, "--report", report)
    onnx.checker.check_model(str(out), full_check=True)
    found = json.loads(report.read_text())
    assert found["criterion"] == name and found["target"]["achieved"] <= 0.7
    loss = "cross-entropy at the output logits, the data's labels"
    heads = (f"gradients are those of {loss}", f"masks were learned in 16 passes with the {loss}")
    assert any(warning.startswith(heads) for warning in found["warnings"])


@pytest.mark.parametrize("name", ["fisher", "retrain_free", "snip"])
@pytest.mark.parametrize("scope", ["local", "uniform"])
def test_scopes_and_ratios(command, tmp_path, many, name, scope):
    """Blocks keep equal numbers, residual streams are one group."""
    for model in (residual(), grouped()):
        path = save(model, tmp_path / "net.onnx")
        if model.graph.inputs[0].shape[2] == 6:
            data = tmp_path / "small.npz"
            np.savez(data, **{**feeds(40), "image": feeds(40)["image"][:, :, :6, :6]})
        else:
            data = many
        options = ["--ratio", "0.4", "--scope", scope, "--round-to", "4", "--provider", "cpu", "--force"]
        command.accepted("prune", path, "--data", data, "--criterion", name, *options)


def test_the_same_seed_gives_the_same_file(command, net, tmp_path):
    data = tmp_path / "image.npz"
    np.savez(data, image=feeds(40)["image"])
    files = []
    for number, seed in enumerate((0, 0, 1)):
        plan = net.with_name(f"plan{number}.json")
        options = ["--criterion", "fisher", "--seed", seed, "--plan", plan, "--force", "--compensate", "none"]
        command.accepted(*PRUNE, net, "--data", data, *options)
        files.append(plan.read_text())
    assert files[0] == files[1]


@pytest.mark.parametrize("loss", ["labels", "sampled", "outputs"])
def test_losses(command, net, many, loss):
    report = net.with_name(f"{loss}.md")
    command.accepted(*PRUNE, net, "--data", many, "--criterion", "fisher", "--loss", loss, "--report", report)
    words = {
        "labels": "the data's labels",
        "sampled": "drawn from the model's own",
        "outputs": "random signs",
    }
    assert words[loss] in report.read_text()


def test_synthetic_data(command, net):
    result = command.accepted(*PRUNE, net, "--data", "synthetic:24", "--criterion", "retrain_free")
    assert "labels drawn from the model's own predictions" in result.out


def test_half_precision(command, tmp_path):
    path = save(convnet(dtype=ir.DataType.FLOAT16), tmp_path / "net.onnx")
    data, given = tmp_path / "data.npz", feeds(24)
    np.savez(data, image=given["image"].astype(np.float16), labels=given["labels"])
    command.accepted(*PRUNE, path, "--data", data, "--criterion", "fisher")


def test_a_fixed_batch(command, tmp_path, many):
    path = save(convnet(batch=4), tmp_path / "net.onnx")
    command.accepted(*PRUNE, path, "--data", many, "--criterion", "retrain_free")


def test_several_outputs(command, tmp_path):
    net = Net()
    x = net.op("Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "one", (16, 3, 3, 3)))
    boxes = net.conv(net.op("Relu", net.conv(x, "two", (16, 16, 3, 3))), "boxes", (4, 16, 1, 1))
    labels = net.ops("Sigmoid", net.conv(x, "scores", (2, 16, 1, 1)), outputs=["labels"])[0]
    path, data = save(net.model(boxes, labels), tmp_path / "net.onnx"), tmp_path / "data.npz"
    np.savez(data, image=feeds(24)["image"])
    result = command.accepted(*PRUNE, path, "--data", data, "--criterion", "fisher")
    assert "gradients are those of all outputs times random signs" in result.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--criterion", "fisher"],
            ["the criterion fisher needs --data", "It looks at gradients", "synthetic"],
        ),
        (["--criterion", "l2+snip"], ["the criterion l2+snip needs --data"]),
        (["--criterion", "snip-momentum"], ["no criterion 'snip-momentum'", "snip_momentum"]),
        (["--loss", "labels"], ["--loss labels is about gradients, and the criterion auto reads none"]),
        (["--criterion", "l2", "--loss", "sampled"], ["the criterion l2 reads none"]),
        (["--criterion", "fisher", "--loss", "mse"], ["'mse' is not one of"]),
    ],
)
def test_bad_options(command, net, options, says):
    command.refused(USAGE, "prune", net, *options, folder=net.parent, says=says)


def test_labels_that_do_not_fit(command, net, tmp_path):
    data = tmp_path / "data.npz"
    image = feeds(24)["image"]
    options = ["prune", net, "--data", data, "--criterion", "fisher", "--loss", "labels"]
    np.savez(data, image=image)
    says = ["--loss labels needs labels, and the data has none"]
    command.refused(USAGE, *options, folder=tmp_path, says=says)
    np.savez(data, image=image, labels=np.zeros((24, 3), np.int64))
    says = ["labels of shape", "do not go with the output 'logits'"]
    command.refused(USAGE, *options, "--metric", "agreement", folder=tmp_path, says=says)
    np.savez(data, image=image, labels=np.full(24, 9))
    says = ["the label 9 is none of the model's 4 classes"]
    command.refused(USAGE, *options, "--metric", "agreement", folder=tmp_path, says=says)


def no_gradient(path):
    net = Net()
    x = net.op("Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "one", (16, 3, 3, 3)))
    y = net.conv(x, "two", (8, 16, 3, 3))
    z = net.op("Det", net.op("MatMul", y, net.op("Transpose", y, perm=[0, 1, 3, 2])), name="volume")
    return save(net.model(z), path)


def test_an_operator_without_gradient(command, tmp_path, many):
    path = no_gradient(tmp_path / "net.onnx")
    says = [
        "no gradient through",
        "volume",
        "more than 6 rows",
        "Criteria without gradients work",
        "l2",
    ]
    for options in (
        [
            "prune",
            path,
            "--data",
            many,
            "--metric",
            "agreement",
            "--criterion",
            "fisher",
            "--loss",
            "outputs",
        ],
        ["gradients", path, "--loss", "outputs"],
    ):
        command.refused(MODEL, *options, folder=tmp_path, says=says)
    out = tmp_path / "of_outputs.onnx"
    command.accepted(*BUILT, path, "--loss", "outputs", "--wrt", "volume*", "-o", out)


def test_the_file_with_gradients(command, net, data):
    """All weights by default; what plain onnxruntime computes is the slope of the loss."""
    out = net.with_name("grad.onnx")
    result = command.accepted(*BUILT, net, "--data", data, "-o", out)
    assert "loss: cross-entropy at the output logits, the data's labels" in result.out
    assert f"model written to {out}" in result.out and "gradient/conv0.weight [16, 3, 3, 3]" in result.out
    onnx.checker.check_model(str(out), full_check=True)
    model = onnx.load(net)
    given = feeds()
    found = gradients_of(out, given)
    assert {f"gradient/{tensor.name}" for tensor in model.graph.initializer} == {
        name for name in found if name.startswith("gradient/")
    }
    for tensor in model.graph.initializer:
        if tensor.name == "head.bias":
            p = np.exp(found["logits"] - found["logits"].max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            p[np.arange(len(p)), given["labels"]] -= 1
            np.testing.assert_allclose(found["gradient/head.bias"], p.sum(axis=0), atol=1e-5)


def test_patterns_and_units(command, net, data):
    out = net.with_name("grad.onnx")
    command.accepted(*BUILT, net, "--data", data, "-o", out, "--wrt", "conv1.*", "--wrt", "re:^head")
    found = {name for name in gradients_of(out, feeds()) if name.startswith("gradient/")}
    assert {
        "gradient/conv1.weight",
        "gradient/conv1.bias",
        "gradient/head.weight",
        "gradient/head.bias",
    } == found
    command.accepted(*BUILT, net, "--data", data, "-o", out, "--units", "--force")
    found = gradients_of(out, feeds())
    assert {name: found[name].shape for name in found if name.startswith("gradient/")} == {
        "gradient/g0": (6, 16),
        "gradient/g1": (6, 32),
        "gradient/g2": (6, 24),
    }
    command.accepted(*BUILT, net, "-o", out, "--units", "--wrt", "head.weight", "--force", "-q")
    assert "gradient/head.weight" in gradients_of(out, feeds())


def test_units_that_several_values_carry(command, tmp_path, many):
    """One output per group, the sum over all places where its units are summed over."""
    path, out = save(residual(), tmp_path / "net.onnx"), tmp_path / "grad.onnx"
    command.accepted(*BUILT, path, "--data", many, "--units", "-o", out)
    found = gradients_of(out, feeds())
    assert [name for name in found if name.startswith("gradient/")] == [f"gradient/g{n}" for n in range(3)]
    onnx.checker.check_model(str(out), full_check=True)


def test_without_data_and_default_output(command, net):
    result = command.accepted(*BUILT, net)
    out = net.with_name("net.gradients.onnx")
    assert out.exists() and "labels drawn from the model's own predictions" in result.out
    assert [value.name for value in onnx.load(out).graph.input] == ["image", "labels"]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["-o", "net.onnx", "--force"], USAGE, ["net.onnx"]),
        (["-o", "there.onnx"], USAGE, ["there.onnx exists"]),
        (["--wrt", "conv9*"], USAGE, ["--wrt 'conv9*' matches no float initializer or activation", "conv"]),
        (["--wrt", "re:("], USAGE, ["--wrt 're:(' is no regular expression"]),
        (["--loss", "labels"], USAGE, ["--loss labels needs labels"]),
        (["--loss", "l2"], USAGE, ["'l2' is not one of"]),
        (["--samples", "2"], USAGE, ["--samples", "no --data was given"]),
        (["--bind", "m=2"], USAGE, ["no symbolic dim of that name"]),
    ],
)
def test_bad_gradients(command, net, monkeypatch, options, code, says):
    monkeypatch.chdir(net.parent)
    net.with_name("there.onnx").write_bytes(b"mine")
    command.refused(code, "gradients", "net.onnx", *options, folder=net.parent, says=says)


def test_no_model(command, tmp_path):
    command.refused(USAGE, "gradients", tmp_path / "none.onnx", folder=tmp_path, says=["none.onnx"])
