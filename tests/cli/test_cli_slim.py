"""`onnxprune slim`: page, reports, files, refusals."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_nets import convnet, save


@pytest.fixture
def masked(tmp_path):
    """Two channels of the first layer are read with zeros, one of the second's holds a constant behind padding."""
    model = convnet()

    def change(name, index, number):
        value = model.graph.initializers[name]
        array = value.const_value.numpy().copy()
        array[index] = number
        value.const_value = ir.Tensor(array, name=name)

    change("conv1.weight", (slice(None), [1, 5]), 0)
    change("conv1.weight", 3, 0)
    change("conv1.bias", 3, 1.0)
    return save(model, tmp_path / "masked.onnx")


def test_the_page_and_the_files(command, masked, tmp_path):
    before = masked.read_bytes()
    page = command.accepted(
        "slim", masked, "--report", tmp_path / "r.json", "--report", tmp_path / "r.md"
    ).out
    assert masked.read_bytes() == before
    out = tmp_path / "masked.slim.onnx"
    shapes = {t.name: tuple(t.dims) for t in onnx.load(out).graph.initializer}
    assert shapes["conv0.weight"] == (14, 3, 3, 3)
    assert shapes["conv1.weight"] == (32, 14, 3, 3)
    assert "2 units (channels, heads) went: 2 multiplied by zero" in page
    assert "outputs of input and result differ by" in page
    assert "conv1: 1 unit with a constant: the convolution that reads it is padded" in page
    assert f"model written to {out}" in page
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["schema"] == "onnxprune-slim/1"
    assert report["groups"] == [{"name": "conv0", "units": 16, "zero": 2, "constant": 0, "duplicate": 0}]
    assert report["before"]["params"] - report["after"]["params"] == 2 * (3 * 9 + 1) + 2 * 32 * 9
    assert report["left"][0]["what"] == "constant"
    text = (tmp_path / "r.md").read_text()
    assert text.startswith(f"# onnxprune slim: `{masked}`")
    assert "| `conv0` | 16 | 2 | 0 | 0 |" in text


def test_data_serves_the_proof(command, masked, tmp_path):
    np.savez(tmp_path / "data.npz", image=np.ones((3, 3, 8, 8), np.float32))
    page = command.accepted("slim", masked, "-o", tmp_path / "o.onnx", "--data", tmp_path / "data.npz").out
    assert "on 3 real samples" in page
    assert "generated" not in page


def test_quiet_says_nothing(command, masked, tmp_path):
    assert command.accepted("slim", masked, "-o", tmp_path / "o.onnx", "-q").out == ""
    assert (tmp_path / "o.onnx").exists()


def test_a_model_without_anything_superfluous(command, tmp_path):
    path = save(convnet(), tmp_path / "net.onnx")
    page = command.accepted("slim", path).out
    assert "0 units (channels, heads) went" in page
    assert "nothing was found that contributes nothing" in page


def test_refusals(command, masked, tmp_path):
    command.refused(2, "slim", tmp_path / "no.onnx", folder=tmp_path, says=["does not exist"])
    command.refused(2, "slim", masked, "-o", masked, folder=tmp_path, says=["never modified"])
    command.refused(
        2, "slim", masked, "--report", tmp_path / "r.txt", folder=tmp_path, says=["no known format"]
    )
    command.refused(2, "slim", masked, "--bind", "m=2", folder=tmp_path, says=["no symbolic dim"])
    command.accepted("slim", masked, "-o", tmp_path / "o.onnx")
    command.refused(2, "slim", masked, "-o", tmp_path / "o.onnx", folder=tmp_path, says=["exists already"])


def test_prune_slims_first_unless_it_is_told_not_to(command, masked, tmp_path):
    page = command.accepted("prune", masked, "--macs", 0.6, "-o", tmp_path / "a.onnx").out
    assert "slim: 2 units that contributed nothing went first" in page
    page = command.accepted("prune", masked, "--macs", 0.6, "-o", tmp_path / "b.onnx", "--no-slim").out
    assert "slim:" not in page
