"""Figures, columns and broken lines that all reporters share; pages for terminals of any width."""

from __future__ import annotations

import re

import pytest
from small_nets import MODELS, convnet, save

import onnxprune
from onnxprune.report import analysis as analysis_reporter
from onnxprune.report import markdown, terminal
from onnxprune.report.report import BarrierResult
from onnxprune.report.tables import (
    barrier_lines,
    by_reason,
    columns,
    number,
    plural,
    share,
    shortened,
    some,
    wrap,
)


def test_numbers():
    assert number(1234567.4) == "1,234,567"
    assert share(1, 3) == "33.3%"
    assert share(1, 0) == "-"
    assert [plural(n, "layer") for n in (0, 1, 2000)] == ["0 layers", "1 layer", "2,000 layers"]
    assert some([], 2) == ""
    assert some(list("ab"), 2) == "a, b"
    assert some(list("abcd"), 2) == "a, b and 2 more"


def test_columns():
    rows = [["name", "count", "note"], ["a", "1,000", ""], ["long name", "7", "x"]]
    assert columns(rows, right=(1,)) == ["name       count  note", "a          1,000", "long name      7  x"]
    assert columns(rows, right=(1,), width=12) == ["name     ...", "a        ...", "long name..."]
    assert columns([]) == []


LONG = "model_1/conv2d_3/BiasAdd;model_1/conv2d_3/Conv2D;model_1/batch_normalization_3/FusedBatchNormV3"


def test_long_names_leave_room_for_figures():
    rows = [["layer", "units", "made by -> read by"], [LONG, "32", f"{LONG}[0] -> {LONG}[1]"]]
    assert columns(rows)[1].startswith(f"{LONG}  32")
    line = columns(rows, width=100)[1]
    assert len(line) == 100 and line.startswith("model_1/conv2d_3/Bia...n_3/FusedBatchNormV3  32")
    assert shortened("abcdefgh", 4) == "ab...gh" and shortened("abcdefg", 4) == "abcdefg"
    assert shortened(LONG, 25) != LONG and len(shortened(LONG, 25)) == 28


def test_long_names_of_layers_that_are_held():
    held = [BarrierResult("REDUCED", "reduces", f"ReduceMin {LONG!r}", (LONG,), 10, 10)]
    assert LONG in "\n".join(barrier_lines(held, 10, 10, width=None))
    assert LONG in "\n".join(barrier_lines(held, 10, 10, width=100, verbose=True))
    assert max(map(len, barrier_lines(held, 10, 10, width=100))) <= 100


@pytest.mark.parametrize("width", [40, 60, 80, 200, None])
def test_wrapping(width):
    text = "  " + " ".join(f"word{i}" for i in range(40))
    lines = wrap(text, width, indent=6)
    assert " ".join(line.strip() for line in lines) == text.strip()
    assert lines[0].startswith("  word0")
    assert all(line.startswith(" " * 6) for line in lines[1:])
    assert width is None or max(map(len, lines)) <= width
    assert wrap("a " + "x" * 300, 60)[1].strip() == "x" * 300  # names are never broken


BARRIERS = [
    BarrierResult("SOFTMAX", "softmax normalises", "Softmax 's0'", ("a", "b", "c"), 10, 500),
    BarrierResult("NO_RULE", "no rule", "Bend 'b'", ("d",), 700, 300),
    BarrierResult("SOFTMAX", "softmax normalises", "Softmax 's1'", ("e",), 5, 100),
    BarrierResult("SOFTMAX", "softmax normalises", "Softmax 's2'", ("f",), 5, 50),
    BarrierResult("INDIVISIBLE", "one unit", "g", ("g",), 1, 0),
]


def test_barriers_of_one_reason_stand_together():
    sums = by_reason(BARRIERS)
    assert [(total.reason, total.macs, total.params, len(total.layers)) for total, _ in sums] == [
        ("SOFTMAX", 650, 20, 5),
        ("NO_RULE", 300, 700, 1),
        ("INDIVISIBLE", 0, 1, 1),
    ]
    assert [member.where for member in sums[0][1]] == ["Softmax 's0'", "Softmax 's1'", "Softmax 's2'"]


def test_barrier_lines():
    lines = barrier_lines(BARRIERS, 1000, 1000)
    assert lines[0] == ""
    assert [line.strip() for line in lines[2:]] == [
        "MACs  params  because",
        "65.0%    2.0%  5 layers: softmax normalises",
        "a, b and 1 more, held by Softmax 's0'",
        "e, held by Softmax 's1'",
        "and at 1 other place (-v lists all)",
        "30.0%   70.0%  1 layer: no rule",
        "d, held by Bend 'b'",
        "0.0%    0.1%  1 layer: one unit",
        "g",
    ]
    every = "\n".join(barrier_lines(BARRIERS, 1000, 1000, verbose=True))
    for barrier in BARRIERS:
        assert ", ".join(barrier.layers) in every
        assert barrier.where in every
    assert "-v" not in every
    assert barrier_lines([], 1, 1) == []


@pytest.fixture(scope="module")
def pruned():
    return onnxprune.prune(MODELS / "digits_vit.onnx", macs=0.7, data=MODELS / "digits_calib.npz", samples=40)


@pytest.mark.parametrize("width", [72, 100, 160])
@pytest.mark.parametrize("verbose", [False, True])
def test_pages_fit_the_terminal(pruned, width, verbose):
    page = terminal.render(pruned.report, verbose=verbose, width=width)
    table = re.compile(
        r"g\d+ +node_"
    )  # the list of groups, for which there is no second column to break into
    assert all(len(line) <= width or table.match(line) for line in page.splitlines())
    words = " ".join(page.split())
    assert "requested at most 70.0% of the MACs kept, achieved" in words
    assert "before: top1" in words
    assert "masked == removed on 4 real inputs" in words
    assert "9 layers: the operator normalises over this axis" in words


def test_unbroken_lines_where_the_output_is_no_terminal(pruned):
    page = terminal.render(pruned.report)
    explanation = onnxprune.Reason.NORMALIZED.sentence
    assert any(line.endswith(f"9 layers: {explanation}") for line in page.splitlines())


def test_an_analysis_fits_the_terminal():
    analysis = onnxprune.analyze(MODELS / "digits_resnet_ts.onnx")
    page = analysis_reporter.render(analysis, width=80)
    assert max(map(len, page.splitlines())) <= 80
    wide = analysis_reporter.render(analysis)
    assert "layer1.0.conv1.weight" in wide or ".weight[0]" in wide


def test_markdown_tables_are_rectangular(pruned):
    tables: dict[int, set[int]] = {}
    number_of_table = 0
    for line in markdown.render(pruned.report).splitlines():
        if line.startswith("|"):
            bars = len(re.findall(r"(?<!\\)\|", line))
            tables.setdefault(number_of_table, set()).add(bars)
        else:
            number_of_table += 1
    assert len(tables) == 3
    assert all(len(bars) == 1 for bars in tables.values())


def test_groups_that_stay_whole_are_named_with_the_reason(tmp_path):
    path = save(convnet([8, 32, 24]), tmp_path / "net.onnx")
    report = onnxprune.prune(path, ratio=0.2, ignore=["conv2"]).report
    page = terminal.render(report)
    assert "groups left whole:" in page
    assert "  g0: it has no more channels than --round-to" in page
    assert "  g2: it matches an --ignore pattern" in page
    assert "prunable units" in page
    assert report.units == 40


def test_a_bar_in_a_name_does_not_break_the_table(tmp_path):
    model = convnet()
    for node in model.graph:
        node.name = f"{node.name}|x"
    report = onnxprune.prune(save(model, tmp_path / "net.onnx"), ratio=0.2).report
    row = next(line for line in markdown.render(report).splitlines() if line.startswith("| g1"))
    assert "`conv1\\|x`" in row
