"""Options that mean nothing, contradict each other or match nothing; targets out of reach."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from small_nets import Net, attention, save

USAGE = 2
UNREACHABLE = 4


@pytest.mark.parametrize("target", ["--macs", "--params", "--latency", "--ratio"])
@pytest.mark.parametrize("value", ["0", "1.5", "-1", "nan", "inf"])
def test_targets_outside_0_to_1(command, net, target, value):
    says = [f"the target {target}", "is not in (0, 1]"]
    command.refused(USAGE, "prune", net, target, value, folder=net.parent, says=says)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--macs", "0.5", "--ratio", "0.5"], ["--macs and --ratio contradict"]),
        (["--macs", "0.5", "--params", "0.5"], ["--macs and --params contradict"]),
        (["--params", "0.5", "--ratio", "0.5", "--macs", "1"], ["contradict"]),
        (["--macs", "0.5", "--latency", "0.5"], ["--macs and --latency contradict"]),
        (["--threads", "2"], ["--threads 2 says how --latency is measured", "--latency was not given"]),
        (["--latency", "0.5", "--threads", "0"], ["--threads 0 is not positive"]),
        (["-q", "-v"], ["-q and -v contradict"]),
        (["--macs", "half"], ["'half' is not a valid float"]),
        (["--macs"], ["--macs", "requires an argument"]),
        (["--macz", "0.5"], ["No such option", "--macz"]),
        (["--criterion", "l3"], ["no criterion 'l3'", "l2", "geometric-median"]),
        (["--criterion", "bn-scale"], ["bn-scale reads bn-scale", "no group has any"]),
        (["--scope", "layer"], ["'layer' is not one of"]),
        (["--preset", "resnet"], ["'resnet' is not"]),
        (["--mode", "zero"], ["'zero' is not one of"]),
        (["--round-to", "0"], ["--round-to 0 is not positive"]),
        (["--round-to", "-8"], ["--round-to -8 is not positive"]),
        (["--seed", "-1"], ["--seed -1 is negative"]),
        (["--samples", "0"], ["--samples 0 is not positive"]),
        (["--samples", "4"], ["--samples", "no --data was given"]),
        (["--preprocess", "imagenet"], ["--preprocess", "no --data was given"]),
        (["--metric", "top1"], ["--metric", "no --data was given"]),
        (["--metric", "f11"], ["no metric 'f11'"]),
        (["--provider", "abacus"], ["no execution provider 'abacus'"]),
        (["--bind", "n"], ["--bind 'n' is not NAME=N"]),
        (["--bind", "n=0"], ["--bind 'n=0' is not NAME=N"]),
        (["--bind", "n=-2"], ["'n=-2'"]),
        (["--bind", "n=2", "--bind", "n=3"], ["two sizes"]),
        (["--bind", "seq=128"], ["seq", "no symbolic dim of that name", "It has: n"]),
        (["--ignore", "con0*"], ["--ignore 'con0*' matches no node or initializer", "conv0"]),
        (["--only", "re:^layer[0-9]"], ["--only 're:^layer[0-9]' matches no"]),
        (["--ignore", "re:("], ["--ignore 're:(' is no regular expression"]),
        (["--report", "report.xml"], ["report.xml has no known format", ".json or .md"]),
        (["--data", "nowhere.npz"], ["no data at nowhere.npz"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options(command, net, monkeypatch, options, says):
    monkeypatch.chdir(net.parent)
    command.refused(USAGE, "prune", net, *options, folder=net.parent, says=says)


def test_no_command_and_unknown_command(command, tmp_path):
    command.refused(USAGE, "squeeze", folder=tmp_path, says=["No such command 'squeeze'"])
    assert command().code == USAGE
    assert command("prune").code == USAGE


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--macs", "0.01"], ["keep at most 1.0% of the MACs is out of reach", "as low as it gets"]),
        (["--params", "0.01"], ["keep at most 1.0% of the parameters is out of reach", "as low as it gets"]),
        (["--ratio", "0.99"], ["drop 99.0% of the units is out of reach", "can be dropped"]),
        (["--ratio", "1"], ["drop 100.0% of the units is out of reach"]),
        (["--macs", "0.5", "--only", "conv0*"], ["out of reach", "2 groups, g1, g2: it matches no --only"]),
        (["--macs", "0.5", "--ignore", "*"], ["nothing can be cut", "3 groups", "matches an --ignore"]),
        (["--ratio", "0.1", "--scope", "uniform"], ["nothing is cut at a level of 0.1", "--round-to 8"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unreachable_targets(command, net, options, says):
    says = [*says, *(["--best-effort"] if "uniform" not in options else [])]
    command.refused(UNREACHABLE, "prune", net, *options, folder=net.parent, says=says)


def test_an_unreachable_target_says_what_blocks(command, tmp_path):
    net = Net()
    x = net.op("Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "free", (16, 3, 3, 3)), name="relu")
    x = net.conv(x, "held", (64, 16, 3, 3))
    path = save(net.model(net.op("Softmax", x, axis=1, name="softmax")), tmp_path / "net.onnx")
    result = command.refused(
        UNREACHABLE,
        "prune",
        path,
        "--macs",
        "0.1",
        folder=tmp_path,
        says=["25.0% of the MACs is as low", "multiples of 8, in groups of fewer than 64 channels of 4"],
    )
    assert "softmax normalises over this axis" in result.err
    assert "1 layer (95.5% of the MACs, 94.7% of the parameters), held" in result.err


@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_best_effort_takes_what_is_reachable(command, net, scope):
    report = net.with_name("report.json")
    options = ["--macs", "0.01", "--scope", scope, "--best-effort", "--report", report]
    result = command.accepted("prune", net, *options)
    assert "requested at most 1.0% of the MACs kept, achieved" in result.out
    assert "NOT met" in result.out
    assert "the target was not met" in result.out
    target = json.loads(report.read_text())["target"]
    assert target["met"] is False
    assert 0.01 < target["achieved"] < 0.3
    widths = [
        t.dims[0] for t in onnx.load(net.with_name("net.pruned.onnx")).graph.initializer if len(t.dims) == 4
    ]
    assert widths == ([4, 4, 4] if scope == "global" else [8, 8, 8])


def test_best_effort_where_nothing_can_be_cut(command, tmp_path):
    """The model is written as it is, and the report says why."""
    net = Net()
    x = net.conv(net.data("image", ("n", 3, 8, 8)), "only", (16, 3, 3, 3))
    path = save(net.model(x), tmp_path / "net.onnx")
    result = command.accepted("prune", path, "--best-effort", "--report", tmp_path / "report.json")
    assert "nothing was cut: the output is the same model" in result.out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["target"] == {"kind": "macs", "requested": 0.7, "achieved": 1.0, "met": False}
    assert report["barriers"][0]["reason"] == "GRAPH_OUTPUT"
    before, after = onnx.load(path), onnx.load(tmp_path / "net.pruned.onnx")
    assert [t.raw_data for t in before.graph.initializer] == [t.raw_data for t in after.graph.initializer]


def test_keeping_all_of_the_macs_is_met_by_cutting_nothing(command, net):
    result = command.accepted("prune", net, "--macs", "1")
    assert "achieved 100.0%: met" in result.out
    assert "nothing was cut" in result.out


def test_the_name_of_a_layer_selects_its_group(command, net):
    command.accepted("prune", net, "--ratio", "0.2", "--ignore", "conv0", "-q", "-o", net.with_name("a.onnx"))
    command.accepted(
        "prune", net, "--ratio", "0.4", "--only", "re:conv[12]", "-q", "-o", net.with_name("b.onnx")
    )
    for name in "ab":
        shapes = {t.name: list(t.dims) for t in onnx.load(net.with_name(f"{name}.onnx")).graph.initializer}
        assert shapes["conv0.weight"][0] == 16
        assert shapes["conv1.weight"][0] + shapes["conv2.weight"][0] < 56


def test_ignored_groups_count_in_no_ratio(command, net):
    report = net.with_name("report.json")
    command.accepted("prune", net, "--ratio", "0.5", "--ignore", "conv1*", "-q", "--report", report)
    body = json.loads(report.read_text())
    kept = {group["id"]: (group["units"], group["kept"], group["reason"]) for group in body["groups"]}
    assert kept == {"g0": (16, 8, ""), "g1": (32, 32, "IGNORED"), "g2": (24, 8, "")}
    assert body["target"]["achieved"] == pytest.approx(24 / 40)


def test_heads_are_never_all_removed(command, tmp_path):
    path = save(attention(), tmp_path / "net.onnx")
    command.accepted("prune", path, "--ratio", "0.99", "--best-effort", "-q", "--round-to", "1")
    shapes = {t.name: list(t.dims) for t in onnx.load(tmp_path / "net.pruned.onnx").graph.initializer}
    assert shapes["q.weight"] == [32, 8]  # one of four heads of 8 dimensions


def test_constant_scores_are_broken_by_index(command, net):
    proto = onnx.load(net)
    for tensor in proto.graph.initializer:
        if len(tensor.dims) == 4:
            tensor.raw_data = np.full(tuple(tensor.dims), 0.1, np.float32).tobytes()
    onnx.save(proto, net)
    command.accepted(
        "prune", net, "--ratio", "0.3", "--scope", "uniform", "-q", "--plan", net.with_name("p.json")
    )
    groups = json.loads(net.with_name("p.json").read_text())["groups"]
    assert groups["g1"]["keep"] == list(range(8, 32))
