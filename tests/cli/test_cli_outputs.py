"""What is written is whole or not there: existing outputs, folders, full disks, interruptions."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import onnx
import pytest
from command import snapshot
from small_nets import convnet, save

import onnxprune.api  # noqa: F401 - before anything is done as another user


def test_without_options(command, net):
    """`prune model.onnx` alone: writes model.pruned.onnx beside it, keeps at most 70 % of the MACs."""
    before = net.read_bytes()
    result = command.accepted("prune", net)
    assert sorted(path.name for path in net.parent.iterdir()) == ["net.onnx", "net.pruned.onnx"]
    assert net.read_bytes() == before
    onnx.checker.check_model(str(net.with_name("net.pruned.onnx")), full_check=True)
    assert "no data was given, so no accuracy was measured" in result.out
    assert "requested at most 70.0% of the MACs kept, achieved 63.9%: met" in result.out
    assert f"model written to {net.with_name('net.pruned.onnx')}" in result.out
    rows = {line.split("  ")[0]: line.split()[-3:] for line in result.out.splitlines()[1:6]}
    assert rows["MACs per sample"] == ["765,024", "488,544", "63.9%"]
    assert rows["parameters"][1:] == ["7,792", "64.3%"]


def test_quiet(command, net):
    assert command.accepted("prune", net, "-q").out == ""
    assert net.with_name("net.pruned.onnx").exists()


def test_verbose_lists_every_group(command, net):
    result = command("prune", net, "-v", "--ratio", 0.5, "--scope", "uniform")
    assert result.code == 0
    assert [line.split()[:3] for line in result.out.splitlines() if line.startswith("g")] == [
        ["group", "layer", "kept"],
        ["g0", "conv0", "8/16"],
        ["g1", "conv1", "16/32"],
        ["g2", "conv2", "16/24"],
    ]


def test_an_existing_output(command, net):
    output = net.with_name("net.pruned.onnx")
    output.write_text("precious")
    command.refused(2, "prune", net, folder=net.parent, says=["net.pruned.onnx exists already", "--force"])
    command.accepted("prune", net, "--force", "-q")
    onnx.checker.check_model(str(output))


@pytest.mark.parametrize("option", ["--plan", "--report"])
def test_an_existing_side_file(command, net, option):
    file = net.with_name("side.json")
    file.write_text("precious")
    command.refused(2, "prune", net, option, file, folder=net.parent, says=["side.json exists", "--force"])
    command.accepted("prune", net, option, file, "--force", "-q")
    assert json.loads(file.read_text())["schema"].startswith("onnxprune-")


@pytest.mark.parametrize("way", ["same", "dots", "symlink", "hardlink"])
@pytest.mark.parametrize("option", ["-o", "--plan", "--report", "--json"])
def test_an_output_that_is_the_input(command, tmp_path, way, option):
    net = save(convnet(), tmp_path / "net.json")  # a name that every option takes
    target = net if way == "same" else tmp_path / "link.json"
    if way == "dots":
        (tmp_path / "sub").mkdir()
        target = tmp_path / "sub" / ".." / "net.json"
    elif way == "symlink":
        target.symlink_to(net)
    elif way == "hardlink":
        os.link(net, target)
    verb = "analyze" if option == "--json" else "prune"
    command.refused(2, verb, net, option, target, "--force", folder=tmp_path, says=["the input model itself"])


def test_files_that_are_written_twice(command, net):
    folder = net.parent
    for options in (
        ["-o", folder / "a.json", "--plan", folder / "a.json"],
        ["--plan", folder / "a.json", "--report", folder / "sub" / ".." / "a.json"],
        ["--report", folder / "a.md", "--report", folder / "a.md"],
    ):
        command.refused(2, "prune", net, *options, folder=folder, says=["written twice"])


@pytest.mark.parametrize("option", ["-o", "--plan", "--report"])
def test_no_such_folder(command, net, option):
    target = net.parent / "nowhere" / "out.json"
    command.refused(2, "prune", net, option, target, folder=net.parent, says=["nowhere does not exist"])


def test_a_folder_as_output(command, net):
    (net.parent / "folder").mkdir()
    for target in (net.parent / "folder", net.parent):
        command.refused(2, "prune", net, "-o", target, "--force", folder=net.parent, says=["is a folder"])


@pytest.fixture
def locked():
    """A folder into which this process cannot write, even where it started as root."""
    folder = Path(tempfile.mkdtemp())
    os.chmod(folder, 0o755)
    save(convnet(), folder / "net.onnx")
    os.chmod(folder / "net.onnx", 0o644)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    else:
        os.chmod(folder, 0o555)
    yield folder
    if root:
        os.seteuid(0)
    os.chmod(folder, 0o755)
    shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of POSIX")
@pytest.mark.parametrize("option", [[], ["--plan", "plan.json"], ["--report", "report.md"]])
def test_an_unwritable_folder(command, locked, option):
    options = [part if part.startswith("-") else locked / part for part in option]
    says = [str(locked), "cannot be written: Permission denied"]
    command.refused(2, "prune", locked / "net.onnx", *options, folder=locked, says=says)


def test_a_full_disk(command, net, monkeypatch):
    """The disk is full when the last byte of the model is flushed: no partial file, no scratch folder."""

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    command.refused(
        2,
        "prune",
        net,
        folder=net.parent,
        says=["net.pruned.onnx cannot be written: No space left", "free space"],
    )


def test_a_full_disk_spares_the_old_output(command, net, monkeypatch):
    net.with_name("net.pruned.onnx").write_text("precious")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    command.refused(2, "prune", net, "--force", folder=net.parent, says=["No space left"])


def test_a_disk_that_fills_up_after_the_model(command, net, monkeypatch):
    """The message does not claim that nothing was written."""
    from onnxprune.model import io
    from onnxprune.model import write as write_module

    def full(path, text):
        with write_module._reported(Path(path)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(io, "write_text", full)
    result = command("prune", net, "--report", net.with_name("r.json"))
    assert result.code == 2
    assert "r.json cannot be written: No space left" in result.err
    assert f"The model is complete in {net.with_name('net.pruned.onnx')}" in result.err
    assert "nothing was written" not in result.err
    onnx.checker.check_model(str(net.with_name("net.pruned.onnx")))


def test_ctrl_c_while_writing(command, net, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    before = snapshot(net.parent)
    result = command("prune", net)
    assert (result.code, result.out) == (130, "")
    assert "interrupted" in result.err
    assert "Traceback" not in result.err
    assert snapshot(net.parent) == before


@pytest.mark.parametrize("criterion", ["l2", "random"])
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_the_same_bytes_every_time(command, net, data, criterion, scope):
    """Same input, options and seed: byte-identical model, plan and reports, with data and without."""
    digests = []
    files = [net.with_name(name) for name in ("out.onnx", "plan.json", "report.json", "report.md")]
    for _ in range(2):
        options = ["-o", files[0], "--plan", files[1], "--report", files[2], "--report", files[3]]
        options += ["--criterion", criterion, "--scope", scope, "--seed", 7, "--data", data, "-q", "--force"]
        command.accepted("prune", net, *options)
        digests.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
    assert digests[0] == digests[1]


def test_another_seed_draws_other_units(command, net):
    kept = []
    for seed in (1, 2):
        plan = net.with_name(f"{seed}.json")
        options = ["--criterion", "random", "--seed", seed, "--plan", plan, "--force", "-q"]
        command.accepted("prune", net, *options)
        kept.append(json.loads(plan.read_text())["groups"])
    assert kept[0] != kept[1]


def test_masking_keeps_all_shapes(command, net):
    options = ["--mode", "mask", "--ratio", 0.5, "--scope", "uniform", "--plan", net.with_name("plan.json")]
    result = command.accepted("prune", net, *options)
    assert "masked channels are zero but still there" in result.out
    before, after = onnx.load(net), onnx.load(net.with_name("net.pruned.onnx"))
    assert [(t.name, t.dims) for t in before.graph.initializer] == [
        (t.name, t.dims) for t in after.graph.initializer
    ]
    assert [node.op_type for node in before.graph.node] == [node.op_type for node in after.graph.node]
    keep = json.loads(net.with_name("plan.json").read_text())["groups"]["g0"]["keep"]
    consumer = next(t for t in after.graph.initializer if t.name == "conv1.weight")
    zero = [not onnx.numpy_helper.to_array(consumer)[:, i].any() for i in range(16)]
    assert [i for i in range(16) if not zero[i]] == keep


def test_the_interface_of_the_model_stays(command, net):
    proto = onnx.load(net)
    proto.producer_name, proto.model_version = "somebody", 3
    proto.opset_import.append(onnx.helper.make_opsetid("com.acme", 2))
    onnx.helper.set_model_props(proto, {"author": "me"})
    onnx.save(proto, net)
    command.accepted("prune", net, "-q")
    pruned = onnx.load(net.with_name("net.pruned.onnx"))
    assert pruned.graph.input == proto.graph.input
    assert pruned.graph.output == proto.graph.output
    assert pruned.opset_import == proto.opset_import
    assert pruned.metadata_props == proto.metadata_props
    assert (pruned.producer_name, pruned.model_version) == ("somebody", 3)
