"""A plan is replayed to the byte, and one that does not fit is refused."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_nets import attention, convnet, grouped, residual, save

NETS = {
    "convnet": (convnet, ["--macs", "0.6"]),
    "residual": (residual, ["--ratio", "0.4"]),
    "grouped": (grouped, ["--params", "0.7", "--round-to", "4"]),
    "attention": (attention, ["--ratio", "0.5"]),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("mode", ["remove", "mask"])
def test_apply_gives_the_same_bytes(command, tmp_path, name, mode):
    build, options = NETS[name]
    net, plan = save(build(), tmp_path / "net.onnx"), tmp_path / "plan.json"
    command.accepted("prune", net, *options, "--mode", mode, "--plan", plan, "-q")
    result = command.accepted("apply", net, plan, "--mode", mode, "-o", tmp_path / "again.onnx")
    assert "plan replayed" in result.out
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "net.pruned.onnx").read_bytes()


def test_apply_writes_beside_the_input(command, plan):
    net, path, _ = plan
    command.accepted("apply", net, path, "--force", "-q", "--report", net.with_name("r.json"))
    target = json.loads(net.with_name("r.json").read_text())["target"]
    assert (target["kind"], target["met"]) == ("plan", True)
    assert 0.2 < target["achieved"] < 0.8


@pytest.mark.parametrize("name", NETS)
def test_a_plan_says_by_hand_what_goes(command, tmp_path, name):
    """Slicing the initializers as the plan lists them gives exactly the pruned model's initializers."""
    build, options = NETS[name]
    net, plan = save(build(), tmp_path / "net.onnx"), tmp_path / "plan.json"
    command.accepted("prune", net, *options, "--plan", plan, "-q")
    listed = json.loads(plan.read_text())["initializers"]
    assert listed
    before, after = arrays(net), arrays(tmp_path / "net.pruned.onnx")
    for weight, array in before.items():
        axes = {int(axis): kept for axis, kept in listed.get(weight, {}).items()}
        if array.dtype.kind == "f":
            np.testing.assert_array_equal(cut(array, axes), after[weight], weight)


def cut(array, axes):
    private = [axis for axis, kept in axes.items() if isinstance(kept[0], list)]
    for axis in private:  # one list of columns per block of rows
        blocks = np.split(array, len(axes[axis]), axis=0)
        rows = np.split(np.isin(np.arange(len(array)), axes.get(0, range(len(array)))), len(blocks))
        pairs = zip(blocks, rows, axes[axis], strict=True)
        array = np.concatenate([np.take(block[row], kept, axis=axis) for block, row, kept in pairs])
    for axis, kept in axes.items():
        if axis not in private and not (private and axis == 0):
            array = np.take(array, kept, axis=axis)
    return array


def arrays(path):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.fixture
def plan(command, net):
    path = net.with_name("plan.json")
    command.accepted("prune", net, "--ratio", 0.5, "--scope", "uniform", "--plan", path, "-q")
    return net, path, json.loads(path.read_text())


def test_the_schema(plan):
    net, _, body = plan
    assert set(body) == {"schema", "model_sha256", "groups", "initializers"}
    assert body["schema"] == "onnxprune-plan/1"
    assert set(body["groups"]) == {"g0", "g1", "g2"}
    assert {name: (group["units"], len(group["keep"])) for name, group in body["groups"].items()} == {
        "g0": (16, 8),
        "g1": (32, 16),
        "g2": (24, 16),
    }
    assert set(body["initializers"]["conv1.weight"]) == {"0", "1"}
    assert body["initializers"]["conv1.weight"]["1"] == body["groups"]["g0"]["keep"]


def edit_initializer(body):
    body["initializers"]["conv0.weight"]["0"][0] ^= 1


TAMPERED = {
    "schema": (lambda body: body.update(schema="onnxprune-plan/2"), ["no plan of schema 'onnxprune-plan/1'"]),
    "no-schema": (lambda body: body.pop("schema"), ["no plan of schema"]),
    "another-model": (
        lambda body: body.update(model_sha256="0" * 64),
        ["made for another model", "000000000000"],
    ),
    "no-hash": (lambda body: body.pop("model_sha256"), ["made for another model"]),
    "no-groups": (lambda body: body.pop("groups"), ["has no groups"]),
    "unknown-group": (lambda body: body["groups"].update(g9=body["groups"]["g0"]), ["group 'g9'"]),
    "other-units": (lambda body: body["groups"]["g0"].update(units=17), ["group 'g0'"]),
    "nothing-kept": (lambda body: body["groups"]["g0"].update(keep=[]), ["'g0' must keep at least one"]),
    "index-too-large": (lambda body: body["groups"]["g0"]["keep"].append(16), ["'g0'", "0..15"]),
    "negative-index": (lambda body: body["groups"]["g0"]["keep"].append(-1), ["'g0'", "0..15"]),
    "index-twice": (
        lambda body: body["groups"]["g0"]["keep"].append(body["groups"]["g0"]["keep"][0]),
        ["'g0'"],
    ),
    "a-word": (lambda body: body["groups"]["g0"]["keep"].append("all"), ["'g0'"]),
    "a-flag": (lambda body: body["groups"]["g0"].update(keep=[True]), ["'g0'"]),
    "keep-is-a-number": (lambda body: body["groups"]["g0"].update(keep=8), ["'g0'"]),
    "halves-disagree": (edit_initializer, ["contradicts itself"]),
    "initializers-gone": (lambda body: body.pop("initializers"), ["contradicts itself"]),
    "initializer-missing": (lambda body: body["initializers"].pop("conv0.bias"), ["contradicts itself"]),
    "group-emptied-out": (lambda body: body["groups"].pop("g1"), ["contradicts itself"]),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_tampered_plan(command, plan, case):
    net, path, body = plan
    tamper, says = TAMPERED[case]
    tamper(body)
    path.write_text(json.dumps(body))
    command.refused(2, "apply", net, path, "--force", folder=net.parent, says=["plan.json", *says])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", ["no JSON"]),
        (b"{", ["no JSON"]),
        (b"\xff\xfe\x00", ["no JSON"]),
        (b"[]", ["no plan of schema"]),
        (b"null", ["no plan of schema"]),
        (None, ["cannot be read", "No such file"]),
    ],
)
def test_a_file_that_is_no_plan(command, net, content, says):
    path = net.with_name("plan.json")
    if content is not None:
        path.write_bytes(content)
    command.refused(2, "apply", net, path, folder=net.parent, says=["plan.json", *says])


def test_a_plan_for_an_edited_model(command, plan):
    net, path, _ = plan
    proto = onnx.load(net)
    proto.doc_string = "edited"
    onnx.save(proto, net)
    says = ["made for another model"]
    command.refused(2, "apply", net, path, "--force", folder=net.parent, says=says)


def test_an_unbalanced_plan_for_a_grouped_convolution(command, tmp_path):
    net, path = save(grouped(32, 4), tmp_path / "net.onnx"), tmp_path / "plan.json"
    command.accepted("prune", net, "--ratio", "0.5", "--round-to", "4", "--plan", path, "-q")
    body = json.loads(path.read_text())
    body["groups"]["g0"]["keep"] = list(range(8))
    path.write_text(json.dumps(body))
    says = ["'g0' must keep the same number of units in each of its 4 blocks"]
    command.refused(2, "apply", net, path, "--force", folder=tmp_path, says=says)


def test_a_plan_is_never_written_over(command, plan):
    net, path, _ = plan
    for options in (["-o", path], ["--report", path]):
        command.refused(2, "apply", net, path, *options, "--force", folder=net.parent, says=["plan.json"])
