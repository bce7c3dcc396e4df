"""`onnxprune stats`: pages and JSON that say the same, comparisons, refusals."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from small_nets import MODELS, convnet, save

import onnxprune


def strict(text):
    """JSON as the standard has it: no NaN, no Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def sparse(tmp_path):
    """A network whose second convolution has lost half of its weights, here and there."""
    model = convnet()
    value = model.graph.initializers["conv1.weight"]
    array = value.const_value.numpy().copy()
    array.reshape(-1)[np.random.default_rng(0).permutation(array.size)[::2]] = 0
    value.const_value = ir.Tensor(array, name="conv1.weight")
    return save(model, tmp_path / "sparse.onnx")


def counted(path):
    arrays = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    floats = [array for array in arrays if array.dtype.kind == "f"]
    return sum(array.size for array in floats), sum(int((array == 0).sum()) for array in floats)


def test_the_page(command, sparse):
    elements, zeros = counted(sparse)
    page = command.accepted("stats", sparse).out
    first = page.splitlines()[0]
    assert first == (
        f"{sparse}: {zeros:,} of {elements:,} parameters are zero ({zeros / elements:.1%}), "
        f"{sparse.stat().st_size:,} bytes, 765,024 MACs per sample"
    )
    assert "symbolic dims: n=1 (assumed)" in page
    assert "Statistics of the sparsified model:\n+---" in page
    assert f"| Sparsity level of the whole model       |   {zeros / elements:.3f} |" in page
    assert "| conv1          | [32, 16, 3, 3]   |            0.500 |                38.007 |" in page
    assert "| conv0 " not in page
    assert "... and 3 layers with fewer zeros or none" in page
    assert "100.0% are scattered: zeros anywhere make the model neither faster" in page
    every = command.accepted("stats", sparse, "-v").out
    assert all(f"| {name} " in every for name in ("conv0", "conv1", "conv2", "head"))


def test_json_says_the_same(command, sparse):
    body = strict(command.accepted("stats", sparse, "--json", "-").out)
    elements, zeros = counted(sparse)
    assert body["schema"] == "onnxprune-stats/1"
    assert body["model"]["path"] == str(sparse)
    assert body["whole"] == {"elements": elements, "zeros": zeros}
    assert body["flops"] == 2 * body["macs"] == 2 * 765_024
    assert body["bindings"] == {"n": 1}
    assert body["assumed"] == ["n"]
    layer = body["layers"][1]
    assert (layer["name"], layer["weight"], layer["zeros"]) == ("conv1", "conv1.weight", 16 * 32 * 9 // 2)
    assert layer["patterns"] == ["element"]
    assert body["sparsity"]["sparsity_level"] == zeros / elements
    assert body["against"] is None
    path = sparse.with_name("stats.json")
    out = command.accepted("stats", sparse, "--json", path).out
    assert out.endswith(f"\nstatistics written to {path}\n")
    assert strict(path.read_text()) == body
    assert command.accepted("stats", sparse, "-q", "--json", path, "--force").out == ""
    assert command.accepted("stats", sparse, "-q").out == ""


def test_against(command, net, tmp_path):
    command.accepted("prune", net, "-q", "--ratio", 0.5, "--scope", "uniform", "-o", tmp_path / "small.onnx")
    page = command.accepted("stats", tmp_path / "small.onnx", "--against", net).out
    # 3x3 convolutions 3 -> 16 -> 32 -> 24 and a head 24 -> 4 became 3 -> 8 -> 16 -> 16 -> 4
    macs = 64 * 9 * (3 * 8 + 8 * 16 + 16 * 16) + 16 * 4
    before, after = (9 * (3 * a + a * b + b * c) + 4 * c for a, b, c in ((16, 32, 24), (8, 16, 16)))
    assert f"compared with {net}:" in page
    lines = [line.split() for line in page.splitlines()]
    assert ["MACs", "per", "sample", "765,024", f"{macs:,}", f"{macs / 765_024:.1%}"] in lines
    assert ["filters", "76", "44", "57.9%"] in lines
    assert "| conv1          | [32, 16, 3, 3]   | [32]           |                  0.500 |" in page
    assert "4 of 4 matched layers lost channels: 32 filters and 32 input channels are cut out." in page
    assert "Of 4 layers that changed shape, 4 hold exactly the original's weights" in page
    body = strict(command.accepted("stats", tmp_path / "small.onnx", "--against", net, "--json", "-").out)[
        "against"
    ]
    assert body["pruning"]["full_params"] == before
    assert body["pruning"]["current_params"] == after
    assert body["pruning"]["current_flops"] == 2 * macs
    assert body["bytes"] == {"before": net.stat().st_size, "after": (tmp_path / "small.onnx").stat().st_size}
    head = body["layers"][3]
    assert head["filters"] == {"before": 4, "after": 4}
    assert head["part"]["exact"] is True
    assert len(head["part"]["input_channels"]) == 16


def test_a_masked_model_is_told_from_a_smaller_one(command, tmp_path):
    original, masked = MODELS / "digits_resnet.onnx", tmp_path / "masked.onnx"
    command.accepted("prune", original, "-q", "--ratio", 0.3, "--mode", "mask", "-o", masked)
    page = command.accepted("stats", masked, "--against", original).out
    assert "100.0% fill whole channels" in page
    assert "112 of 368 prunable units (channels, heads) could be cut out without changing any output" in page
    assert "| Filters |    602 |       602 |           0.000 |" in page
    assert "which are still computed" in page
    assert "No weight that stayed was changed" in page
    command.accepted("prune", original, "-q", "--ratio", 0.3, "-o", tmp_path / "small.onnx")
    small = onnxprune.stats(tmp_path / "small.onnx")
    found = onnxprune.stats(masked)
    assert (found.removable.macs, found.removable.params) == (small.macs, small.whole.elements)


def test_bindings(command, tmp_path):
    net = save(convnet(batch="batch"), tmp_path / "net.onnx")
    body = strict(command.accepted("stats", net, "--bind", "batch=3", "--json", "-").out)
    assert body["bindings"] == {"batch": 3}
    assert body["macs"] == 3 * 765_024
    assert body["assumed"] == []


def test_a_page_fits_the_terminal_but_for_its_tables(sparse):
    from onnxprune.report.stats import render

    found = onnxprune.stats(sparse, against=MODELS / "digits_resnet.onnx")
    lines = [line for line in render(found, width=80).splitlines() if line[:1] not in ("|", "+")]
    assert max(map(len, lines)) <= max(80, len(f"{sparse}:"), len(str(MODELS / "digits_resnet.onnx")) + 20)


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--against", "missing.onnx"], 2, ["missing.onnx does not exist"]),
        (["--bind", "k=3"], 2, ["the model has no symbolic dim of that name", "It has: n."]),
        (["--bind", "n"], 2, ["is not NAME=N"]),
        (["-q", "-v"], 2, ["contradict"]),
        (["--json", "net.onnx"], 2, ["net.onnx"]),
        (["--json", "old.json"], 2, ["old.json", "--force"]),
        (["--against", "junk.onnx"], 3, ["junk.onnx", "not an ONNX model"]),
        (["--against", "net.onnx", "--json", "other.onnx", "--force"], 0, []),
    ],
)
def test_refusals(command, net, monkeypatch, options, code, says):
    monkeypatch.chdir(net.parent)
    net.with_name("old.json").write_text("{}")
    net.with_name("junk.onnx").write_text("hello there, general")
    if code:
        command.refused(code, "stats", "net.onnx", *options, folder=net.parent, says=says)
    else:
        command.accepted("stats", "net.onnx", *options)


def test_the_original_is_never_written_over(command, net, sparse):
    command.refused(
        2, "stats", sparse, "--against", net, "--json", net, "--force", folder=net.parent, says=[str(net)]
    )


def test_a_model_without_float_weights(command, tmp_path):
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    value = [onnx.helper.make_tensor_value_info(name, 1, [1, 3]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([node], "g", value[:1], value[1:])
    path = tmp_path / "empty.onnx"
    onnx.save(
        onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)]), path
    )
    command.refused(3, "stats", path, folder=tmp_path, says=["no float weights"])


def test_quiet_numbers_are_finite(command, net, tmp_path):
    """A weight that was all zero has no scale to compare its changes with."""
    model = ir.load(net)
    value = model.graph.initializers["conv1.weight"]
    value.const_value = ir.Tensor(np.zeros((32, 16, 3, 3), np.float32), name="conv1.weight")
    empty = save(model, tmp_path / "zero.onnx")
    body = strict(command.accepted("stats", net, "--against", empty, "--json", "-").out)
    assert body["against"]["layers"][1]["weights"]["revived"] == 16 * 32 * 9
    page = command.accepted("stats", net, "--against", empty).out
    largest = abs(ir.load(net).graph.initializers["conv1.weight"].const_value.numpy()).max()
    assert f"in conv1 by up to {largest:.2g}, where all weights were zero." in page
