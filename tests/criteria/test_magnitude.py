"""The formulas of NNCF and the literature, against loops that are too slow to be wrong."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from small_nets import Net, attention, convnet, grouped, residual

from onnxprune.analysis import Analysis, analyze
from onnxprune.choosing.choices import Choices
from onnxprune.choosing.scoring import score_groups
from onnxprune.criteria import Criterion, CriterionTable, UnitWeights, default_criteria
from onnxprune.criteria.gather import unit_weights
from onnxprune.errors import Reason, UsageError

SHAPES = [(8, 3, 3, 3), (16, 5), (4, 2, 1, 1), (7, 3, 5), (1, 4)]


def slow_l1(filters):
    return [sum(abs(float(w)) for w in f) for f in filters]


def slow_l2(filters):
    return [math.sqrt(sum(float(w) ** 2 for w in f)) for f in filters]


def slow_geometric_median(filters):
    return [
        sum(math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(f, g, strict=True))) for g in filters)
        for f in filters
    ]


def slow_lamp(filters):
    squares = [sum(float(w) ** 2 for w in f) for f in filters]
    found = []
    for u, mine in enumerate(squares):
        rest = sum(s for v, s in enumerate(squares) if (s, v) >= (mine, u))
        found.append(mine / rest if rest else 0.0)
    return found


SLOW = {"l1": slow_l1, "l2": slow_l2, "geometric-median": slow_geometric_median, "lamp": slow_lamp}


def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("shape", SHAPES)
def test_formulas(name, shape):
    weight = rng().standard_normal(shape)
    found = default_criteria()[name].function(weight.reshape(len(weight), -1), rng())
    np.testing.assert_allclose(found, SLOW[name](weight.reshape(len(weight), -1)), rtol=1e-12)


def test_geometric_median_of_equal_filters_is_exact():
    """Two equal filters far from zero: no digits are lost, so ties stay ties."""
    filters = rng().standard_normal((6, 50)) + 1e4
    filters[4] = filters[1]
    filters[5] = filters[2] + 1e-9
    scores = default_criteria()["geometric-median"].function(filters, rng())
    np.testing.assert_allclose(scores, slow_geometric_median(filters), rtol=1e-9)
    same = default_criteria()["geometric-median"].function(np.full((5, 7), 0.3), rng())
    assert same.tolist() == [0.0] * 5


def test_geometric_median_of_many_filters():
    """More units than fit into one chunk."""
    import onnxprune.criteria.magnitude as magnitude

    filters = rng().standard_normal((4001, 3))
    found = magnitude.geometric_median(filters, rng())
    for i in (0, 1999, 3999, 4000):
        np.testing.assert_allclose(found[i], np.sqrt(((filters - filters[i]) ** 2).sum(1)).sum(), rtol=1e-9)


def test_the_largest_distance_stays_longest():
    filters = np.array([[0.0, 0.0], [0.1, 0.0], [5.0, 5.0]])
    scores = default_criteria()["geometric-median"].function(filters, rng())
    assert np.argmax(scores) == 2


def test_lamp_of_equal_and_of_empty_filters():
    """Of equal filters the first goes first; a filter of zeros scores 0; the largest of each layer scores 1."""
    lamp = default_criteria()["lamp"].function
    filters = np.array([[0.0, 2.0], [2.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(lamp(filters, rng()), [0.5, 1.0, 0.0, 0.2], rtol=1e-12)
    assert lamp(np.zeros((3, 2)), rng()).tolist() == [0.0] * 3
    assert lamp(np.full((4, 2), 1e-3), rng()).argsort().tolist() == [0, 1, 2, 3]


def test_lamp_keeps_the_order_of_l2_and_ignores_the_scale():
    filters = rng().standard_normal((50, 9))
    found = default_criteria()["lamp"].function(filters, rng())
    assert found.argsort().tolist() == np.linalg.norm(filters, axis=1).argsort().tolist()
    np.testing.assert_allclose(default_criteria()["lamp"].function(filters * 64, rng()), found, rtol=1e-12)


# --- groups ----------------------------------------------------------------------------------------------


def opened(model: ir.Model, tmp_path) -> Analysis:
    ir.save(model, tmp_path / "net.onnx")
    return analyze(tmp_path / "net.onnx")


def array(analysis: Analysis, name: str) -> np.ndarray:
    return analysis.axis_graph.model.graph.initializers[name].const_value.numpy().astype(np.float64)


def scores(analysis: Analysis, name: str, group: str, *, normalize: bool = False) -> np.ndarray:
    members = unit_weights(analysis.axis_graph, analysis.groups[group])
    found = default_criteria()[name].score(members, normalize=normalize, rng=rng())
    assert found is not None
    return found


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("normalize", [False, True])
def test_a_group_sums_over_its_members(tmp_path, name, normalize):
    """The residual stream: the stem and the second convolution of each block; biases take no part."""
    analysis = opened(residual(), tmp_path)
    expected = np.zeros(32)
    for layer in ("stem", "block0.b", "block1.b"):
        weight = array(analysis, f"{layer}.weight")
        scale = np.linalg.norm(weight) if normalize else 1.0
        expected += np.array(SLOW[name](weight.reshape(32, -1) / scale))
    np.testing.assert_allclose(scores(analysis, name, "g0", normalize=normalize), expected, rtol=1e-9)


def test_normalisation_makes_the_scale_of_a_weight_irrelevant(tmp_path):
    analysis = opened(convnet(), tmp_path)
    before = scores(analysis, "l2", "g1", normalize=True)
    value = analysis.axis_graph.model.graph.initializers["conv1.weight"]
    from onnxprune.model import edit

    edit.set_array(value, value.const_value.numpy() * np.float32(64))
    np.testing.assert_allclose(scores(analysis, "l2", "g1", normalize=True), before, rtol=1e-12)
    assert np.square(before).sum() == pytest.approx(1)


def test_linear_layers_of_both_orders(tmp_path):
    """Gemm with transB has units in its rows, MatMul in its columns."""
    net = Net()
    x = net.op("Relu", net.linear(net.data("x", ("n", 6)), "rows", 6, 16), name="relu")
    x = net.op("Relu", net.op("MatMul", x, net.normal((16, 24), "columns"), name="columns"), name="relu1")
    analysis = opened(net.model(net.linear(x, "out", 24, 3)), tmp_path)
    np.testing.assert_allclose(scores(analysis, "l1", "g0"), np.abs(array(analysis, "rows.weight")).sum(1))
    np.testing.assert_allclose(scores(analysis, "l1", "g1"), np.abs(array(analysis, "columns")).sum(0))


def test_heads_take_all_their_rows(tmp_path):
    """A head owns 8 columns each of q, k and v; its score is the norm of all of them per matrix."""
    analysis = opened(attention(width=32, heads=4), tmp_path)
    expected = np.zeros(4)
    for name in ("q", "k", "v"):
        columns = array(analysis, f"{name}.weight").reshape(32, 4, 8)
        expected += np.linalg.norm(columns.transpose(1, 0, 2).reshape(4, -1), axis=1)
    np.testing.assert_allclose(scores(analysis, "l2", "g0"), expected, rtol=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions(tmp_path, groups):
    """Output channels are columns of the weight; with groups every block of rows has columns of its own."""
    net = Net()
    x = net.conv(net.data("image", ("n", 3, 4, 4)), "before", (8, 3, 1, 1))
    weight = net.normal((8, 12 // groups, 2, 2), "up.weight")
    x = net.op("ConvTranspose", x, weight, name="up", strides=[2, 2], kernel_shape=[2, 2], group=groups)
    analysis = opened(net.model(net.head(net.op("Relu", x, name="relu"), 12)), tmp_path)
    group = next(name for name, g in analysis.groups.items() if g.name == "up")
    blocks = np.split(array(analysis, "up.weight"), groups)
    expected = [np.abs(block[:, column]).sum() for block in blocks for column in range(12 // groups)]
    np.testing.assert_allclose(scores(analysis, "l1", group), expected, rtol=1e-12)


def test_grouped_convolutions(tmp_path):
    analysis = opened(grouped(32, 4), tmp_path)
    weight = array(analysis, "grouped.weight")
    np.testing.assert_allclose(scores(analysis, "l2", "g1"), slow_l2(weight.reshape(32, -1)), rtol=1e-12)


def test_consumers_stand_in_where_nothing_produces(tmp_path):
    """The channels of a constant that is added have no weights: the next layer's columns count."""
    net = Net()
    x = net.op("Add", net.data("x", ("n", 1)), net.normal((16,), "offset"), name="spread")
    analysis = opened(net.model(net.linear(x, "out", 16, 3)), tmp_path)
    columns = array(analysis, "out.weight")
    np.testing.assert_allclose(scores(analysis, "l1", "g0"), np.abs(columns).sum(0), rtol=1e-12)


def test_bn_scale(tmp_path):
    analysis = opened(convnet(norm=True), tmp_path)
    gamma = array(analysis, "bn1.weight")
    np.testing.assert_allclose(scores(analysis, "bn-scale", "g1"), np.abs(gamma), rtol=1e-12)
    normed = np.abs(gamma) / np.linalg.norm(gamma)
    np.testing.assert_allclose(scores(analysis, "bn-scale", "g1", normalize=True), normed, rtol=1e-12)
    np.testing.assert_allclose(
        scores(analysis, "l2", "g1"), slow_l2(array(analysis, "conv1.weight").reshape(32, -1)), rtol=1e-12
    )


def test_groups_without_a_batch_norm_stay_whole_under_bn_scale(tmp_path):
    net = Net()
    x = net.conv(net.data("image", ("n", 3, 8, 8)), "a", (16, 3, 3, 3))
    x = net.op("Relu", net.batch_norm(x, "bn", 16), name="relu")
    x = net.op("Relu", net.conv(x, "b", (16, 16, 3, 3)), name="relu1")
    analysis = opened(net.model(net.head(x, 16)), tmp_path)
    scored = score_groups(analysis, Choices(criterion="bn-scale"))
    assert dict(scored.excluded) == {"g1": Reason.NO_SCORE}
    assert [ladder.group.id for ladder in scored.ladders] == ["g0"]


def test_bn_scale_needs_a_batch_norm_somewhere(tmp_path):
    with pytest.raises(UsageError, match="bn-scale reads bn-scale parameters, and no group has any"):
        score_groups(opened(convnet(), tmp_path), Choices(criterion="bn-scale"))


def test_random_is_seeded_and_uniform(tmp_path):
    analysis = opened(residual(), tmp_path)
    first, again, other = (
        {ladder.group.id: ladder.scores for ladder in score_groups(analysis, choices).ladders}
        for choices in (Choices(criterion="random", seed=seed) for seed in (1, 1, 2))
    )
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])
        assert 0 <= first[name].min() < first[name].max() < 1  # groups with more members score no higher


@pytest.mark.parametrize(
    "dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE], ids=lambda dtype: dtype.name
)
@pytest.mark.parametrize("name", ["l1", "l2", "geometric-median", "lamp", "bn-scale"])
def test_weights_of_other_float_types_are_scored(tmp_path, dtype, name):
    """Scores come from the stored values, computed in float64: fp16 weights are never skipped or overflow."""
    model = convnet(norm=True, dtype=dtype)
    model.graph.opset_imports[""] = 22  # the first in which convolutions take bfloat16
    analysis = opened(model, tmp_path)
    found = scores(analysis, name, "g1")
    if name == "bn-scale":
        np.testing.assert_array_equal(found, np.abs(array(analysis, "bn1.weight")))
    else:
        weight = array(analysis, "conv1.weight").reshape(32, -1)
        np.testing.assert_allclose(found, SLOW[name](weight), rtol=1e-12)
    assert np.ptp(found) > 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_weights_are_held_as_float64(dtype):
    member = UnitWeights("weight", np.full((2, 4), 300.0, dtype), 1.0)
    assert member.values.dtype == np.float64
    found = default_criteria()["l2"].score([member], normalize=False, rng=rng())
    np.testing.assert_array_equal(found, [600.0, 600.0])


def test_half_precision_does_not_overflow():
    weights = np.full((2, 4), 300.0, np.float16)
    weights[1] = ml_dtypes.bfloat16(300.0)
    squares = default_criteria()["l2"].function(weights.astype(np.float64), rng())
    np.testing.assert_allclose(squares, [600.0, 600.0])


def test_a_criterion_of_ones_own(tmp_path):
    largest = Criterion("largest", lambda values, _: np.abs(values).max(axis=1))
    table = default_criteria() | {"largest": largest}
    assert isinstance(table, CriterionTable)
    assert "largest" not in default_criteria()
    analysis = opened(convnet(), tmp_path)
    scored = score_groups(analysis, Choices(criterion="largest", scope="uniform"), criteria=table)
    weight = array(analysis, "conv0.weight").reshape(16, -1)
    np.testing.assert_allclose(scored.ladders[0].scores, np.sort(np.abs(weight).max(1)))


def test_a_group_without_the_parameters_has_no_score():
    member = UnitWeights("bias", np.ones((3, 1)), 1.0)
    assert default_criteria()["l2"].score([member], normalize=True, rng=rng()) is None
