"""Which units form a group, and which constraints hold within it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.errors import Reason
from onnxprune.rules import RuleTable, default_rules
from onnxprune.testing import check_model
from tests.nets import Net, attention


def checked(net, *outputs, **kw):
    return check_model(net.model(*outputs), seeds=(0, 1), **kw)


def sizes(result):
    return {group.name: (group.units, group.block_count) for group in result.groups}


def by_name(result, name):
    (group,) = [group for group in result.groups if group.name == name]
    return group


def grouped(*counts, channels=16):
    """conv -> grouped convolutions one after the other -> classifier."""
    n = Net()
    x = n.relu(n.conv(n.image(), channels, name="stem"))
    for count in counts:
        x = n.relu(n.conv(x, channels, group=count, name=f"g{count}"))
    return n, x


def test_balanced():
    n, x = grouped(4)
    result = checked(n, n.classify(x))
    assert sizes(result) == {"stem": (16, 4), "g4": (16, 4)}
    assert by_name(result, "stem").blocks.tolist() == np.repeat(range(4), 4).tolist()


def test_nested_group_counts():
    """Output of 4 groups into 8 groups: pairs per cell; both constraints hold."""
    n, x = grouped(4, 8)
    assert sizes(checked(n, n.classify(x))) == {"stem": (16, 4), "g4": (16, 8), "g8": (16, 8)}


def test_group_counts_that_do_not_nest():
    """2 groups of 6 into 3 groups of 4: six cells of 2 satisfy both."""
    n, x = grouped(2, 3, channels=12)
    assert sizes(checked(n, n.classify(x))) == {"stem": (12, 2), "g2": (12, 6), "g3": (12, 3)}


def test_cells_do_not_depend_on_the_order_of_nodes():
    """Two producers, one of them behind a permutation, divided into cells that no constraint fixes."""

    def start():
        n = Net()
        x = n.image()
        order = n.constant(np.random.default_rng(0).permutation(12))
        b = n.mark(n.op("Gather", n.conv(x, 12, name="b"), order, axis=1, name="permuted"), 12)
        return n, n.relu(n.add(n.conv(x, 12, name="a"), b))

    n, y = start()
    y = n.conv(n.conv(y, 12, group=2, name="g2"), 12, group=3, name="g3")
    result = check_model(n.model(n.classify(y)), seeds=range(6))
    assert sizes(result) == {"b": (12, 2), "g2": (12, 6), "g3": (12, 3)}
    n, y = start()
    y = n.add(n.conv(y, 12, group=2, name="g2"), n.conv(y, 12, group=3, name="g3"))
    assert sizes(check_model(n.model(n.classify(y)), seeds=range(6))) == {"b": (12, 6), "g2": (12, 6)}


def test_incompatible_group_counts():
    """2 groups of 3 into 3 groups of 2: cells of one unit, nothing to choose."""
    n, x = grouped(2, 3, channels=6)
    result = checked(n, n.classify(x))
    assert sizes(result) == {"stem": (6, 2), "g3": (6, 3)}
    reasons = {rejection.reason for rejection in result.partition.rejected}
    assert reasons == {Reason.INCOMPATIBLE_BLOCKS, Reason.INDIVISIBLE}


def test_whole_groups_where_equal_numbers_leave_no_widths():
    """13 groups of 8 (RegNet): any number of whole groups, or only multiples of 13 channels."""
    n, x = grouped(13, channels=104)
    result = checked(n, n.classify(x))
    assert sizes(result) == {"stem": (13, 1)}
    assert by_name(result, "stem").width == 8
    assert sorted((g.name, g.units) for g in result.partition.alternatives) == [("g13", 104), ("stem", 104)]


def test_equal_numbers_where_they_leave_widths():
    n, x = grouped(4, channels=128)
    result = checked(n, n.classify(x))
    assert sizes(result) == {"stem": (128, 4), "g4": (128, 4)}
    assert [(g.name, g.units, g.width) for g in result.partition.alternatives] == [("stem", 4, 32)]


def test_one_channel_per_block():
    n, x = grouped(8, channels=8)
    assert sizes(checked(n, n.classify(x))) == {"stem": (8, 1)}  # depthwise: blocks are units


def test_a_block_with_pinned_channels():
    """Some channels are an output, too: blocks with different numbers of free channels do not balance."""
    n = Net()
    x = n.relu(n.conv(n.image(), 8, name="stem"))
    shown = n.op("Slice", x, n.constant([0]), n.constant([2]), n.constant([1]), name="shown")
    result = checked(n, n.classify(n.conv(x, 8, group=2, name="grouped")), shown)
    assert "stem" not in sizes(result)
    assert Reason.INCOMPATIBLE_BLOCKS in {rejection.reason for rejection in result.partition.rejected}


def test_units_that_lie_in_some_blocks():
    """Four groups of four; channel 0 is tied to 4 and 8 to 12: those stay, the others balance."""
    n = Net()
    x = n.relu(n.conv(n.image(), 16, name="stem"))
    order = np.arange(16)
    order[[0, 4, 8, 12]] = [4, 0, 12, 8]
    swapped = n.mark(n.op("Gather", x, n.constant(order), axis=1, name="swapped"), 16)
    result = checked(n, n.classify(n.conv(n.add(x, swapped), 16, group=4, name="grouped")))
    (stem,) = [g for g in result.partition.alternatives if g.name == "stem"]  # whole groups reach more
    assert (stem.units, np.bincount(stem.blocks).tolist()) == (12, [3, 3, 3, 3])
    assert by_name(result, "stem").units == 2
    assert np.flatnonzero(stem.sources[0].unit < 0).tolist() == [0, 4, 8, 12]


def test_pinned_channels_in_every_block():
    n = Net()
    x = n.relu(n.conv(n.image(), 12, name="stem"))
    shown = n.op("Gather", x, n.constant([0, 7]), axis=1, name="shown")
    result = checked(n, n.classify(n.conv(x, 12, group=2, name="grouped")), shown)
    stem = by_name(result, "stem")
    assert (stem.units, np.bincount(stem.blocks).tolist()) == (10, [5, 5])


@pytest.mark.parametrize("widths", [(4, 4), (2, 6), (8, 4), (2, 10), (4, 2, 6)])
def test_concatenated_into_groups(widths):
    """Branches of different widths under one constraint: no branch may be emptied."""
    n = Net()
    x = n.image()
    joined = n.concat(*(n.conv(x, width, name=f"branch{i}") for i, width in enumerate(widths)))
    result = checked(n, n.classify(n.conv(joined, 12, group=2, name="grouped")))
    assert sum(group.units for group in result.groups if group.name != "grouped") == sum(widths)


def test_concatenated_with_a_single_channel():
    n = Net()
    x = n.image()
    joined = n.concat(n.conv(x, 7, name="wide"), n.conv(x, 1, name="single"))
    result = checked(n, n.classify(n.conv(n.relu(joined), 6, name="next")))
    assert sizes(result) == {"wide": (7, 1), "next": (6, 1)}


def test_two_constraints_on_parts():
    """A branch goes into 2 groups alone, and together with another into 2 groups."""
    n = Net()
    x = n.image()
    a, b = n.conv(x, 8, name="a"), n.conv(x, 8, name="b")
    alone = n.conv(a, 8, group=2, name="alone")
    both = n.conv(n.concat(a, b), 8, group=2, name="both")
    result = checked(n, n.classify(n.add(alone, both)))
    assert {name for name, _ in sizes(result).items()} >= {"a"}


def test_concat_of_a_value_with_itself():
    n = Net()
    x = n.relu(n.conv(n.image(), 6, name="stem"))
    result = checked(n, n.classify(n.conv(n.concat(x, x), 8, name="next")))
    assert sizes(result) == {"stem": (6, 1), "next": (8, 1)}
    assert by_name(result, "stem").width == 1


def test_sum_of_a_value_with_itself():
    n = Net()
    x = n.conv(n.image(), 6, name="stem")
    assert sizes(checked(n, n.classify(n.mul(n.add(x, x), x)))) == {"stem": (6, 1)}


def test_tied_across_an_axis():
    """y = x[:, :4] + x[:, 4:]: a unit is two channels of the convolution."""
    n = Net()
    x = n.conv(n.image(), 8, name="stem")
    left, right = (n.mark(v, 4) for v in n.ops("Split", x, n.constant([4, 4]), axis=1, outputs=2))
    group = by_name(checked(n, n.classify(n.add(left, right))), "stem")
    assert (group.units, group.width) == (4, 2)


def test_reversed_against_itself():
    """x + x[::-1] by constant indices: pairs, and the middle alone."""
    n = Net()
    x = n.conv(n.image(), 5, name="stem")
    turned = n.mark(n.op("Gather", x, n.constant([4, 3, 2, 1, 0]), axis=1, name="turned"), 5)
    group = by_name(checked(n, n.classify(n.add(x, turned))), "stem")
    assert (group.units, sorted(np.bincount(group.sources[0].unit).tolist())) == (3, [1, 2, 2])


def test_part_of_an_axis_is_an_output():
    n = Net()
    x = n.relu(n.conv(n.image(), 8, name="stem"))
    shown, hidden = (
        n.mark(v, c)
        for v, c in zip(n.ops("Split", x, n.constant([3, 5]), axis=1, outputs=2), (3, 5), strict=True)
    )
    result = checked(n, n.classify(hidden), shown)
    assert sizes(result) == {"stem": (5, 1)}
    assert by_name(result, "stem").sources[0].unit.tolist() == [-1, -1, -1, 0, 1, 2, 3, 4]


def test_gated_linear_unit():
    """SwiGLU: gate and value rows go as one."""
    n = Net()
    x = n.tokens(8)
    both = n.linear(x, 12, name="gate_up")
    gate, up = (n.mark(v, 6) for v in n.ops("Split", both, n.constant([6, 6]), axis=2, outputs=2))
    result = checked(n, n.linear(n.mul(n.mark(n.op("Sigmoid", gate), 6), up), 8, name="down"))
    group = by_name(result, "gate_up")
    assert (group.units, group.width) == (6, 2)


def test_tied_embedding():
    """One table looks tokens up and makes logits: its columns are a unit, its rows stay."""
    n = Net()
    table = n.weight((9, 6), "table")
    ids = n.input("ids", (1, 4), dtype=ir.DataType.INT64)
    x = n.mark(n.op("Gather", table, ids, name="embed"), 6)
    x = n.relu(n.linear(x, 6, name="mix"))
    x = n.mul(x, n.mark(n.op("Gather", table, ids, name="again"), 6))
    logits = n.op("MatMul", x, n.op("Transpose", table, perm=[1, 0], name="turned"), name="logits")
    result = checked(n, logits, highs={"ids": 9})
    assert "table[1]" in result.prunable() and "table[0]" not in result.prunable()


def grouped_query(heads, shared, depth=2, tokens=5):
    """Query heads share key and value heads: Unsqueeze, Expand, Reshape."""
    n = Net()
    x = n.tokens(8, tokens)

    def split(name, count):
        y = n.reshape(n.linear(x, count * depth, name=name), 1, tokens, count, depth)
        return n.transpose(y, 0, 2, 1, 3)

    def repeat(y, name):
        wide = n.op("Unsqueeze", y, n.constant([2]), name=f"{name}.unsqueeze")
        wide = n.op(
            "Expand", wide, n.constant([1, shared, heads // shared, tokens, depth]), name=f"{name}.expand"
        )
        return n.reshape(wide, 1, heads, tokens, depth, name=f"{name}.repeat")

    q, k, v = split("q", heads), repeat(split("k", shared), "k"), repeat(split("v", shared), "v")
    scores = n.op("Softmax", n.op("MatMul", q, n.transpose(k, 0, 1, 3, 2)), axis=-1)
    mixed = n.transpose(n.op("MatMul", scores, v), 0, 2, 1, 3)
    merged = n.reshape(mixed, 1, tokens, heads * depth, channels=heads * depth)
    return checked(n, n.linear(merged, 8, name="proj"))


def test_grouped_query_heads():
    """Whole key heads with all their query heads; or one query head of every key head."""
    result = grouped_query(8, 4)
    every = {(g.units, g.width) for g in (*result.groups, *result.partition.alternatives) if g.name == "q"}
    assert {(4, 4), (2, 8)} <= every


def test_multi_query_heads():
    result = grouped_query(4, 1)
    every = {(g.units, g.width) for g in (*result.groups, *result.partition.alternatives) if g.name == "q"}
    assert every == {(4, 2), (2, 4)}  # query heads; dimensions of query and key heads


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("heads", "depth"), [(4, 3), (2, 5)])
def test_heads_or_dimensions(fused, heads, depth):
    """Whole heads are used, however few they are; their dimensions are listed."""
    n = Net()
    result = checked(n, attention(n, n.tokens(8), fused=fused, heads=heads, depth=depth))
    (group,) = result.groups
    assert group.units == heads
    assert {other.units for other in result.partition.alternatives} == {depth}
    assert {other.alternatives for other in result.partition.alternatives} == {(group.id,)}


def test_flatten_with_spatial_extent():
    n = Net()
    x = n.relu(n.conv(n.image(), 6, stride=2, name="conv"))
    result = checked(n, n.gemm(n.flatten(x, 16), 5, name="fc"))
    group = by_name(result, "conv")
    assert group.units == 6
    assert group.sinks[0].unit.tolist() == np.repeat(range(6), 16).tolist()


def test_flatten_channels_last():
    """Transposed before it is flattened: a unit takes every sixth column."""
    n = Net()
    x = n.transpose(n.relu(n.conv(n.image(), 6, stride=2, name="conv")), 0, 2, 3, 1, channels=6)
    group = by_name(checked(n, n.gemm(n.flatten(x, 16), 5, name="fc")), "conv")
    assert group.sinks[0].unit.tolist() == list(range(6)) * 16


def test_group_shuffle():
    """ShuffleNet v1: grouped convolution, shuffle, grouped convolution."""
    n, x = grouped(3, channels=12)
    x = n.transpose(n.reshape(x, 1, 3, 4, 8, 8), 0, 2, 1, 3, 4)
    x = n.reshape(x, 1, 12, 8, 8, channels=12)
    result = checked(n, n.classify(n.conv(x, 12, group=3, name="after")))
    assert {"stem", "after"} <= set(sizes(result))


def test_unknown_operator_is_a_barrier():
    n = Net()
    x = n.relu(n.conv(n.image(), 6, name="conv"))
    det = n.mark(n.op("Einsum", x, equation="bchw->bchw", name="einsum"), 6)
    rules = RuleTable({key: rule for key, rule in default_rules().items() if key != ("", "Einsum")})
    result = checked(n, n.classify(n.conv(det, 8, name="next")), rules=rules)
    assert sizes(result) == {"next": (8, 1)}
    assert result.reason("conv.weight[0]") is Reason.NO_RULE


def test_graph_outputs_stay():
    n = Net()
    x = n.relu(n.conv(n.image(), 6, name="conv"))
    result = checked(n, n.classify(x), x)
    assert not result.groups
    assert result.reason("conv.weight[0]") is Reason.GRAPH_OUTPUT


def test_dead_branches_do_no_harm():
    n = Net()
    x = n.relu(n.conv(n.image(), 6, name="conv"))
    n.conv(x, 4, name="dead")
    assert "conv" in sizes(checked(n, n.classify(x)))
