"""Patterns divide a weight into blocks, and zero exactly those that go."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import UsageError
from onnxprune.patterns import Grid, NofM, parse_pattern

NAMES = ("element", "4x1", "1x4", "2x3", "channelx1", "1xchannel", "2:4", "1:2", "4:8")


def labels(name: str, grid: Grid) -> np.ndarray:
    """The block of every weight, written out place by place."""
    found = np.empty(grid.shape, np.int64)
    for out in range(grid.outputs):
        for column in range(grid.columns):
            channel = column % grid.channels
            if name == "element":
                found[out, column] = 1000 * out + column
            elif name == "channelx1":
                found[out, column] = channel
            elif name == "1xchannel":
                found[out, column] = out
            elif ":" in name:
                found[out, column] = 1000 * out + column // int(name.split(":")[1])
            else:
                rows, columns = map(int, name.split("x"))
                found[out, column] = 1000 * (out // rows) + column // columns
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grid", [Grid(8, 24), Grid(4, 8, 9)])
def test_blocks_are_those_written_out(name, grid):
    rng = np.random.default_rng(0)
    pattern, scores = parse_pattern(name), rng.random(grid.shape)
    assert not pattern.refuses(grid)
    label = labels(name, grid)
    blocks = pattern.reduce(scores, grid, np.sum)
    gone = rng.random(blocks.shape) < 0.4
    zeros = pattern.zeros(gone, scores, grid)
    spread = pattern.spread(np.arange(blocks.size).reshape(blocks.shape), grid)
    kinds = {}
    for key in set(label.ravel()):
        mine = label == key
        numbers = set(spread[mine])
        assert len(numbers) == 1
        number = numbers.pop()
        kinds[key] = number
        flags = zeros[mine]
        if not gone.ravel()[number]:
            assert not flags.any()
        elif isinstance(pattern, NofM):
            least = np.argsort(scores[mine], kind="stable")[: pattern.n]
            assert sorted(np.flatnonzero(flags)) == sorted(least)
        else:
            assert flags.all()
        expected = np.sort(scores[mine])[: pattern.n] if isinstance(pattern, NofM) else scores[mine]
        assert blocks.ravel()[number] == pytest.approx(expected.sum())
    assert len(set(kinds.values())) == blocks.size
    assert zeros.sum() == gone.sum() * pattern.goes(grid)


@pytest.mark.parametrize(
    "name, grid, why",
    [
        ("4x1", Grid(6, 8), "6 outputs are not divisible by 4"),
        ("1x8", Grid(4, 3, 3), "9 inputs are not divisible by 8"),
        ("2:4", Grid(4, 6, 2), "6 input channels are not divisible by 4"),
    ],
)
def test_what_cannot_be_divided_is_refused(name, grid, why):
    assert parse_pattern(name).refuses(grid) == why


def test_tuples_do_not_go_from_one_tap_to_the_next():
    """12 columns are divisible by 4, but a tuple would hold channels of two taps."""
    assert parse_pattern("2:4").refuses(Grid(4, 6, 2))
    assert not parse_pattern("2:4").refuses(Grid(4, 4, 3))


@pytest.mark.parametrize(
    "text", ["", "4", "0x1", "4x0", "2:2", "0:4", "5:4", "channel", "x", "2:4:8", "-1x4"]
)
def test_unknown_patterns_are_errors(text):
    with pytest.raises(UsageError, match="there is no pattern"):
        parse_pattern(text)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.sampled_from(["mean", "sum", "max"]))
def test_equal_scores_take_the_first_of_a_tuple(outputs, tuples, taps, how):
    pattern, grid = parse_pattern("2:4"), Grid(outputs, 4 * tuples, taps)
    zeros = pattern.zeros(np.ones((outputs, tuples * taps), bool), np.zeros(grid.shape), grid)
    assert (zeros.reshape(-1, 4) == [True, True, False, False]).all()
