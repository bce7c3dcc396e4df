"""Patterns and presets: which groups stay whole."""

from __future__ import annotations

import pytest
from small_nets import Net, convnet, residual, save

import onnxprune
from onnxprune.errors import Reason, UsageError
from onnxprune.select import excluded_groups


@pytest.fixture
def select(tmp_path):
    def choose(model=None, **options):
        path = save(model or residual(), tmp_path / "net.onnx")
        analysis = onnxprune.analyze(path)
        return excluded_groups(analysis.axis_graph, analysis.groups, **options)

    return choose


# residual(): g0 is the stream (stem, block0.b, block1.b and the additions), g1 block0.a, g2 block1.a
@pytest.mark.parametrize(
    ("pattern", "groups"),
    [
        ("stem", {"g0"}),
        ("stem.weight", {"g0"}),
        ("block0.b", {"g0"}),
        ("block0.a", {"g1"}),
        ("block0.a.bias", {"g1"}),
        ("block0.mid", {"g1"}),  # a node that passes the channels on
        ("block1.add", {"g0"}),
        ("*.a", {"g1", "g2"}),
        ("block[01].a", {"g1", "g2"}),
        ("block?.mid", {"g1", "g2"}),
        ("*", {"g0", "g1", "g2"}),
        ("re:^block0", {"g0", "g1"}),
        (r"re:\.a\.weight$", {"g1", "g2"}),
        ("re:mid", {"g1", "g2"}),
        ("head", set()),  # consumes channels, makes none that could be cut
    ],
)
def test_patterns(select, pattern, groups):
    assert select(ignore=[pattern]) == dict.fromkeys(groups, Reason.IGNORED)
    others = {"g0", "g1", "g2"} - groups
    assert select(only=[pattern]) == dict.fromkeys(others, Reason.NOT_SELECTED)


def test_several_patterns_add_up(select):
    assert set(select(ignore=["block0.a", "block1.a"])) == {"g1", "g2"}
    assert set(select(only=["block0.a", "block1.a"])) == {"g0"}


def test_ignore_wins_over_only(select):
    found = select(only=["*.a"], ignore=["block0.a"])
    assert found == {"g0": Reason.NOT_SELECTED, "g1": Reason.IGNORED}


@pytest.mark.parametrize("option", ["ignore", "only"])
@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("blokc0.a", "'blokc0.a' matches no node or initializer"),
        ("re:^layer", "'re:^layer' matches no"),
        ("block", "matches no"),  # a glob matches whole names
        ("", "matches no"),
        ("re:(", "is no regular expression"),
        ("re:*", "is no regular expression"),
    ],
)
def test_patterns_that_match_nothing(select, option, pattern, message):
    with pytest.raises(UsageError) as error:
        select(**{option: [pattern]})
    assert message in error.value.what
    assert f"--{option}" in error.value.what
    assert error.value.hint


def test_near_names_are_suggested(select):
    with pytest.raises(UsageError) as error:
        select(ignore=["blokc0.a"])
    assert "block0.a" in error.value.hint


def strided() -> object:
    net = Net()
    x = net.op("Relu", net.conv(net.data("image", ("n", 3, 8, 8)), "first", (16, 3, 3, 3)), name="r0")
    x = net.op("Relu", net.conv(x, "plain", (16, 16, 3, 3)), name="r1")
    x = net.op("Relu", net.conv(x, "down", (24, 16, 3, 3), strides=[2, 2]), name="r2")
    x = net.op("Relu", net.conv(x, "last", (32, 24, 3, 3)), name="r3")
    return net.model(net.head(x, 32))


def test_the_preset_of_nncf(select):
    assert select(strided(), preset="nncf") == {"g0": Reason.FIRST_CONV, "g2": Reason.DOWNSAMPLE_CONV}


def test_every_first_convolution_counts(select):
    """Two inputs, or two branches from one: each has a first convolution of its own."""
    net = Net()
    image, other = net.data("image", ("n", 3, 8, 8)), net.data("other", ("n", 4, 8, 8))
    a = net.op("Relu", net.conv(net.op("Relu", image, name="pre"), "a", (16, 3, 3, 3)), name="ra")
    b = net.op("Relu", net.conv(image, "b", (16, 3, 1, 1)), name="rb")
    c = net.op("Relu", net.conv(other, "c", (16, 4, 1, 1)), name="rc")
    x = net.op("Concat", a, b, c, axis=1, name="concat")
    x = net.op("Relu", net.conv(x, "inner", (16, 48, 1, 1)), name="ri")
    found = select(net.model(net.head(x, 16)), preset="nncf")
    assert found == dict.fromkeys(("g0", "g1", "g2"), Reason.FIRST_CONV)


def test_the_scope_that_is_meant_unless_said_otherwise(tmp_path):
    path = save(convnet(), tmp_path / "net.onnx")
    assert onnxprune.prune(path, ratio=0.4, preset="nncf").report.scope == "uniform"
    assert onnxprune.prune(path, ratio=0.4, preset="nncf", scope="global").report.scope == "global"
    assert onnxprune.prune(path, ratio=0.4).report.scope == "local"
    assert onnxprune.prune(path, macs=0.9).report.scope == "global"


def test_nothing_is_excluded_by_default(select):
    assert select() == {}
