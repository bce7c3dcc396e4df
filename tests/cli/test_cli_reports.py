"""Reports, analyses, explanations and validations: what they contain, and that programs can read them."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnx
import pytest
from small_nets import attention, convnet, feeds, save

KEYS = {
    "": "schema model target before after groups barriers coverage soundness calibration metric fidelity "
    "warnings",
    "model": "path sha256",
    "target": "kind requested achieved met",
    "before": "params macs bytes nodes",
    "after": "params macs bytes nodes",
    "coverage": "params macs",
    "soundness": "checked max_abs_diff max_abs_output rejected_groups",
    "calibration": "tier samples",
}


def strict(text):
    """JSON as the standard has it: no NaN, no Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def report(command, net):
    def make(*options):
        path = net.with_name("report.json")
        command.accepted("prune", net, "-q", "--force", "--report", path, *options)
        return strict(path.read_text())

    return make


@pytest.mark.parametrize("with_data", [False, True])
def test_the_schema_of_a_report(report, net, data, with_data):
    body = report(*(["--data", data] if with_data else []))
    assert body["schema"] == "onnxprune-report/1"
    for part, keys in KEYS.items():
        assert set(keys.split()) <= set(body[part] if part else body), part
    assert body["model"] == {"path": str(net), "sha256": hashlib.sha256(net.read_bytes()).hexdigest()}
    for group in body["groups"]:
        assert {"id", "units", "kept", "axes", "sources", "sinks"} <= set(group)
        assert set(group["sources"]) | set(group["sinks"]) <= set(group["axes"])
    for barrier in body["barriers"]:
        assert {"reason", "where", "params", "macs"} <= set(barrier)
    assert (body["metric"] is not None) == with_data
    assert (body["fidelity"] is not None) == with_data


def test_the_figures_of_a_report(report, net):
    body = report("--ratio", 0.5, "--scope", "uniform")
    output = net.with_name("net.pruned.onnx")
    assert body["before"] == {"params": 12124, "macs": 765024, "bytes": net.stat().st_size, "nodes": 9}
    assert body["after"]["bytes"] == output.stat().st_size
    assert body["after"]["params"] == sum(np.prod(t.dims) for t in onnx.load(output).graph.initializer)
    # 8x8 images: 3x3 convolutions 3 -> 8 -> 16 -> 16 and a head 16 -> 4
    assert body["after"]["macs"] == 64 * 9 * (3 * 8 + 8 * 16 + 16 * 16) + 16 * 4
    assert body["target"] == {"kind": "ratio", "requested": 0.5, "achieved": 32 / 72, "met": False}
    group = body["groups"][1]
    assert (group["id"], group["units"], group["kept"]) == ("g1", 32, 16)
    assert group["sources"] == ["conv1.weight[0]", "conv1.bias[0]"]
    assert group["sinks"] == ["conv2.weight[1]"]
    assert [(b["reason"], b["layers"], b["macs"], b["params"]) for b in body["barriers"]] == [
        ("GRAPH_OUTPUT", ["head"], 96, 96)
    ]
    assert body["coverage"] == {"params": 1 - 4 / 12124, "macs": 1.0}  # all but the bias of the head
    sound = body["soundness"]
    assert sound["checked"] is True
    assert sound["rejected_groups"] == []
    assert 0 <= sound["max_abs_diff"] <= 1e-4 * sound["max_abs_output"]
    assert body["calibration"]["tier"] == "none"
    assert any("no data" in warning for warning in body["warnings"])
    assert any("rounded" in warning for warning in body["warnings"])


def test_the_report_on_data(report, data):
    body = report("--data", data, "--samples", 4)
    assert (body["calibration"]["tier"], body["calibration"]["samples"]) == ("real", 4)
    assert body["metric"]["before"]["name"] == "top1"
    assert body["metric"]["after"]["samples"] == 4
    (output,) = body["fidelity"]["outputs"]
    assert output["name"] == "logits"
    assert 0 <= output["top1_agreement"] <= 1


def test_infinite_figures_are_null(report, data):
    """Nothing is cut, so the outputs are equal and the ratio of signal to noise is infinite."""
    body = report("--macs", 1, "--data", data)
    (output,) = body["fidelity"]["outputs"]
    assert output["sqnr_db"] is None
    assert output["max_abs_diff"] == 0


def test_markdown(command, net, data):
    path = net.with_name("report.md")
    command.accepted("prune", net, "--data", data, "-q", "--report", path)
    text = path.read_text()
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in tables if "g1" in line}) == 1
    for part in (
        "# onnxprune:",
        "**Soundness.**",
        "**Metric.**",
        "**Fidelity.**",
        "## Groups",
        "## Blocked",
    ):
        assert part in text
    assert "| g1 | `conv1` | 32 |" in text
    assert hashlib.sha256(net.read_bytes()).hexdigest() in text


def test_data_without_labels(command, net):
    np.savez(net.with_name("plain.npz"), image=feeds()["image"])
    result = command.accepted("prune", net, "--data", net.with_name("plain.npz"))
    assert "the data has no labels, so no accuracy was measured" in result.out
    assert "fidelity of logits: top-1 agreement" in result.out
    assert "on 4 real inputs" in result.out


# --- analyze ---------------------------------------------------------------------------------------------


def test_analyze(command, net):
    result = command.accepted("analyze", net)
    lines = result.out.splitlines()
    assert lines[0] == f"{net}: 765,024 MACs per sample, 12,124 parameters"
    assert lines[1].startswith("3 groups with 72 units: 100.0% of the MACs and 100.0% of the parameters")
    assert lines[2] == "symbolic dims: n=1 (assumed)"
    g0 = next(line for line in lines if line.startswith("g0"))
    # a channel of conv0: 27 MACs at 64 places, and 32 consumers of 9 MACs; its weights, bias and consumers
    assert g0.split()[:6] == ["g0", "conv0", "16", f"{64 * (27 + 288):,}", str(27 + 1 + 288), "5"]
    assert g0.endswith("conv0.weight[0], conv0.bias[0] -> conv1.weight[1]")
    assert "head, held by output 'logits'" in result.out
    assert not list(net.parent.glob("*pruned*"))


def test_analyze_as_json(command, net):
    path = net.with_name("analysis.json")
    result = command.accepted("analyze", net, "--json", path, "--bind", "n=2")
    assert f"analysis written to {path}" in result.out
    body = strict(path.read_text())
    assert body["schema"] == "onnxprune-analysis/1"
    assert body["macs"] == 2 * 765024
    assert (body["bindings"], body["assumed"]) == ({"n": 2}, [])
    assert [group["units"] for group in body["groups"]] == [16, 32, 24]
    assert body["groups"][0]["macs_per_unit"] == 2 * 64 * (27 + 288)
    assert body["barriers"][0]["reason"] == "GRAPH_OUTPUT"
    command.refused(2, "analyze", net, "--json", path, folder=net.parent, says=["exists already", "--force"])
    command.accepted("analyze", net, "--json", path, "--force", "-q")
    assert strict(path.read_text())["macs"] == 765024


def test_analyze_as_json_on_standard_output(command, net):
    body = strict(command.accepted("analyze", net, "--json", "-").out)
    assert [group["id"] for group in body["groups"]] == ["g0", "g1", "g2"]


def test_alternatives_are_listed(command, tmp_path):
    net = save(attention(), tmp_path / "net.onnx")
    result = command("analyze", net, "-v")
    assert "other ways of cutting the same axes:" in result.out
    body = strict(command.accepted("analyze", net, "--json", "-").out)
    assert [(g["units"], g["width"]) for g in body["groups"]] == [(4, 8)]
    assert {g["units"] for g in body["alternatives"]} == {8}


def test_long_lists_are_cut_short(command, tmp_path):
    net = save(convnet([8] * 24), tmp_path / "net.onnx")
    assert "... and 4 more (-v lists all)" in command.accepted("analyze", net).out
    verbose = command("analyze", net, "-v").out
    assert "more (-v" not in verbose
    assert verbose.count("\ng") == 25


# --- explain ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "conv1.weight",
            ["conv1.weight[0]  (32 positions): prunable, in g1", "conv1.weight[1]  (16 positions)"],
        ),
        (
            "conv1.weight[1]",
            ["prunable, in g0", "    conv0.bias[0]  by Conv 'conv1', Relu 'relu0', Conv 'conv0'"],
        ),
        ("conv1.weight[-1]", ["conv1.weight[3]"]),
        ("conv1", ["conv1_out[1]", "conv1.bias[0]"]),
        ("g2", ["conv2.weight[0]", "head.weight[1]"]),
        ("conv1.weight[2]", ["blocked", "slides a window", "    conv1.weight[2] is held by Conv"]),
        (
            "logits[1]",
            ["blocked, it is an axis of a graph output", "logits[1] is held by output 'logits'"],
        ),
        (
            "head.weight[0]",
            ["head.weight[0] is tied to logits[1] by Gemm 'head'", "is held by output 'logits'"],
        ),
        ("image[1]", ["blocked", "graph input"]),
    ],
)
def test_explain(command, net, name, says):
    result = command.accepted("explain", net, name)
    for part in says:
        assert part in result.out, result.out


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("conv1.weigth", ["no tensor, node or group named 'conv1.weigth'", "conv1.weight"]),
        ("conv1.weight[4]", ["has 4 axes", "no axis 4"]),
        ("g7", ["no tensor, node or group named 'g7'"]),
    ],
)
def test_explain_something_unknown(command, net, name, says):
    command.refused(2, "explain", net, name, folder=net.parent, says=says)


# --- validate --------------------------------------------------------------------------------------------


def test_validate(command, net, data):
    command.accepted("prune", net, "-q")
    pruned = net.with_name("net.pruned.onnx")
    result = command.accepted("validate", pruned, "--data", data, "--against", net, "--metric", "top1")
    original, model, fidelity = result.out.splitlines()
    assert original.startswith("original: top1 ")
    assert model.startswith("model:    top1 ")
    assert fidelity.startswith("fidelity of logits: top-1 agreement ")
    assert "6 samples" in model
    assert command.accepted("validate", pruned, "--data", data).out.startswith("model: top1 ")
    assert command.accepted("validate", pruned, "--data", data, "-q").out == ""


def test_validate_a_model_against_itself(command, net, data):
    result = command.accepted("validate", net, "--data", data, "--against", net)
    assert "top-1 agreement 100.00%" in result.out


def test_validate_counts_right_answers(command, net, tmp_path):
    """Labels from onnxruntime itself, one of four of them wrong: 75 %."""
    import onnxruntime

    image = feeds(4)["image"]
    logits = onnxruntime.InferenceSession(net, providers=["CPUExecutionProvider"]).run(
        None, {"image": image}
    )[0]
    labels = logits.argmax(1)
    labels[2] = (labels[2] + 1) % 4
    np.savez(tmp_path / "labelled.npz", image=image, labels=labels)
    assert "top1 75.00%" in command.accepted("validate", net, "--data", tmp_path / "labelled.npz").out


def test_validate_refuses_unknown_outputs(command, net, data):
    says = ["no output 'logit' (did you mean 'logits'?)"]
    command.refused(2, "validate", net, "--data", data, "--output", "logit", folder=net.parent, says=says)
