"""`--data synthetic`: calibration on generated samples, what the report says about it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_nets import Net, feeds, save

USAGE = 2
BETTER = "real ones, a few dozen without labels, are better"


@pytest.fixture
def prune(command, net):
    def run(*options):
        report = net.with_name("report.json")
        out = command.accepted("prune", net, "--force", "--report", report, *options).out
        return out, json.loads(report.read_text())

    return run


@pytest.mark.parametrize(
    ("options", "count"), [(["synthetic:40"], 32), (["synthetic", "--samples", "30"], 24)]
)
def test_generated_samples_are_calibrated_on(prune, options, count):
    """Every fifth of them is held back, as of real ones."""
    out, body = prune("--data", *options)
    assert body["calibration"] == {
        "tier": "synthetic",
        "samples": count,
        "source": "synthetic",
        "measured": "synthetic",
    }
    assert body["criterion"] in ("obs", "wanda", "l2")
    assert any(layer["kind"] != "none" for layer in body["repairs"])
    assert (body["metric"], body["fidelity"]["samples"]) == (None, count // 4)
    assert (body["soundness"]["tier"], body["soundness"]["samples"]) == ("synthetic", 2)
    assert any(
        f"calibrated on {count} synthetic samples" in line and BETTER in line for line in body["warnings"]
    )
    assert any("no accuracy was measured" in line and "--test" in line for line in body["warnings"])
    assert "synthetic samples were drawn as image: pictures of mean 0 and deviation 1" in body["warnings"]
    assert "fidelity on synthetic samples of logits: top-1 agreement" in out
    assert "the data has no labels" not in out


def test_what_is_measured_can_be_real(prune, net, data):
    out, body = prune("--data", "synthetic:20", "--test", data, "--metric", "top1")
    assert (body["calibration"]["tier"], body["calibration"]["measured"]) == ("synthetic", "real")
    assert body["calibration"]["samples"] == 20
    assert body["metric"]["after"]["samples"] == 6
    assert "fidelity of logits" in out
    assert BETTER in out
    assert "no accuracy" not in out
    np.savez(net.with_name("plain.npz"), image=feeds()["image"])
    out, _ = prune("--data", "synthetic:20", "--test", net.with_name("plain.npz"))
    assert "the data has no labels, so no accuracy was measured" in out


def test_markdown_says_what_was_measured_on(command, net):
    path = net.with_name("report.md")
    command.accepted("prune", net, "--data", "synthetic:20", "-q", "--report", path)
    assert "**Fidelity on synthetic samples.** logits" in path.read_text()


@pytest.mark.parametrize("options", [["--criterion", "obs"], ["--compensate", "affine"], ["--rounds", "2"]])
def test_options_that_need_samples(prune, options):
    _, body = prune("--data", "synthetic:20", *options)
    assert body["calibration"]["tier"] == "synthetic"


def test_the_seed_decides(prune, net):
    outputs = []
    for seed in (1, 1, 2):
        prune("--data", "synthetic:20", "--seed", seed)
        outputs.append(net.with_name("net.pruned.onnx").read_bytes())
    assert outputs[0] == outputs[1] != outputs[2]


def test_a_plan_is_repaired(command, net):
    plan, report = net.with_name("plan.json"), net.with_name("report.json")
    command.accepted("prune", net, "-q", "--plan", plan)
    command.accepted("apply", net, plan, "--force", "-q", "--data", "synthetic:20", "--report", report)
    body = json.loads(report.read_text())
    assert body["calibration"]["tier"] == "synthetic"
    assert any(layer["kind"] != "none" for layer in body["repairs"])


def test_a_folder_of_that_name_is_within_reach(prune, net, monkeypatch):
    monkeypatch.chdir(net.parent)
    Path("synthetic").mkdir()
    for number, image in enumerate(feeds()["image"]):
        np.save(f"synthetic/{number}.npy", image[None])
    assert prune("--data", "synthetic:20")[1]["calibration"]["tier"] == "synthetic"
    calibration = prune("--data", "./synthetic")[1]["calibration"]
    assert (calibration["tier"], calibration["samples"]) == ("real", 6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--data", "synthetic:0"], ["'0' is no number of samples", "--data synthetic:256"]),
        (["--data", "synthetic:many"], ["'many' is no number of samples"]),
        (["--data", "synthetic:"], ["'' is no number of samples"]),
        (["--data", "synthetic", "--metric", "top1"], ["--metric is about real samples", "--test"]),
        (["--data", "synthetic", "--preprocess", "imagenet"], ["--preprocess is about real samples"]),
        (["--data", "synthetic", "--samples", "0"], ["--samples 0 is not positive"]),
        (["--data", "synthetic", "--test", "synthetic"], ["'synthetic' stands for generated samples"]),
        (["--data", "synthetic", "--test", "nowhere.npz"], ["no data at nowhere.npz"]),
        (["--compensate", "affine"], ["no --data was given", "--data synthetic generates samples"]),
        (["--criterion", "obs"], ["needs --data", "--data synthetic"]),
    ],
    ids=" ".join,
)
def test_refusals(command, net, monkeypatch, options, says):
    monkeypatch.chdir(net.parent)
    command.refused(USAGE, "prune", net, *options, folder=net.parent, says=says)


def test_nothing_is_validated_on_generated_samples(command, net):
    says = ["'synthetic:9' stands for generated samples", "Give real samples"]
    command.refused(USAGE, "validate", net, "--data", "synthetic:9", folder=net.parent, says=says)


def test_inputs_that_cannot_be_drawn(command, tmp_path):
    net = Net()
    words = net.input("words", ("n", 4), ir.DataType.COMPLEX64)
    kept = net.op("Identity", words, name="words_again")
    image = net.conv(net.data("image", ("n", 3, 8, 8)), "conv", (4, 3, 3, 3))
    path = save(net.model(image, kept), tmp_path / "net.onnx")
    says = ["no values can be generated for input 'words'", "--data"]
    command.refused(USAGE, "prune", path, "--data", "synthetic", folder=tmp_path, says=says)


def test_without_data_nothing_changes(prune, net):
    _, body = prune()
    assert body["calibration"] == {"tier": "none", "samples": 0, "source": "", "measured": "none"}
    assert (body["criterion"], body["repairs"], body["fidelity"]) == ("l2", [], None)
