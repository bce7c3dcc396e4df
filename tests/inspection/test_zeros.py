"""Where zeros lie, against loops over single elements, blocks and runs."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.inspection.zeros import BLOCKS, CHANNELS, ELEMENT, INPUTS, N_M, ORDER, OUTPUTS, count


def naive(matrix, taps, groups):
    """Shares of a (rows, taps * columns) bool matrix, element by element."""
    rows, width = matrix.shape
    columns = width // taps
    per_group = rows // groups
    places = [(r, c) for r in range(rows) for c in range(width) if not matrix[r, c]]
    dead_rows = {r for r in range(rows) if not any(matrix[r])}
    dead_channels = {
        (g, k)
        for g in range(groups)
        for k in range(columns)
        if not any(
            matrix[r, t * columns + k] for r in range(g * per_group, (g + 1) * per_group) for t in range(taps)
        )
    }
    in_rows = [r in dead_rows for r, _ in places]
    in_channels = [(r // per_group, c % columns) in dead_channels for r, c in places]
    shares = {
        OUTPUTS: np.mean(in_rows),
        INPUTS: np.mean(in_channels),
        CHANNELS: np.mean(np.logical_or(in_rows, in_channels)),
    }
    for n, m in ((2, 4), (4, 8), (1, 4)):
        if columns % m == 0:
            runs = [sum(not v for v in matrix[r, c : c + m]) for r in range(rows) for c in range(0, width, m)]
            shares[f"{n}:{m}"] = np.mean([zeros >= n for zeros in runs])
    for h, w in ((16, 1), (8, 1), (4, 1), (1, 16), (1, 8), (1, 4)):
        if rows % h == 0 and width % w == 0:
            inside = [
                not matrix[r // h * h : r // h * h + h, c // w * w : c // w * w + w].any() for r, c in places
            ]
            shares[f"{h}x{w}"] = np.mean(inside)
    return shares, len(places), dead_rows, dead_channels


@pytest.mark.parametrize("density", [0.05, 0.3, 0.9])
@pytest.mark.parametrize(
    ("groups", "rows", "taps", "columns"),
    [(1, 16, 1, 8), (1, 32, 9, 8), (2, 8, 4, 4), (4, 4, 9, 1), (1, 5, 3, 7), (3, 16, 1, 16)],
)
def test_shares(groups, rows, taps, columns, density):
    rng = np.random.default_rng(rows * taps)
    matrix = rng.random((groups * rows, taps * columns)) < density
    matrix[3] = False
    matrix.reshape(groups, rows, taps, columns)[0, :, :, 0] = False
    found = count(matrix.reshape(groups, rows, taps * columns), columns)
    shares, zeros, dead_rows, dead_channels = naive(matrix, taps, groups)
    assert (found.elements, found.zeros) == (matrix.size, zeros)
    assert set(np.flatnonzero(found.filters)) == dead_rows
    assert {(c // columns, c % columns) for c in np.flatnonzero(found.channels)} == dead_channels
    assert set(found.shares) == set(shares)
    for pattern, share in shares.items():
        assert found.shares[pattern] == pytest.approx(share, abs=1e-12), pattern


def pattern_of(matrix, columns=None):
    return count(matrix[None], columns or matrix.shape[1]).patterns


def scattered(shape=(32, 32), seed=0):
    return np.random.default_rng(seed).random(shape) < 0.5


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4)])
def test_n_of_m(n, m):
    rng = np.random.default_rng(1)
    runs = np.ones((32 * 32 // m, m), bool)
    runs[:, :n] = False
    matrix = rng.permuted(runs, axis=1).reshape(32, 32)
    patterns = pattern_of(matrix)
    assert patterns[0] == f"{n}:{m}"
    assert set(patterns) == {"2:4": {"2:4", "4:8", "1:4"}, "4:8": {"4:8"}, "1:4": {"1:4"}}[f"{n}:{m}"]
    matrix[7, :m] = True  # one run is full
    assert f"{n}:{m}" not in pattern_of(matrix)


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks(block):
    height, width = map(int, block.split("x"))
    coarse = scattered((64 // height, 64 // width), seed=3)
    matrix = np.kron(coarse, np.ones((height, width), bool)).astype(bool)
    matrix[0, :] |= ~matrix.any()
    patterns = pattern_of(matrix)
    assert patterns[0] == block
    full = np.argwhere(coarse)[0] * (height, width)
    matrix[tuple(full)] = False  # a zero in a block that stays
    assert block not in pattern_of(matrix)


def test_channels_are_named_before_all_else():
    matrix = np.ones((32, 32), bool)
    matrix[:8] = False
    assert pattern_of(matrix)[0] == OUTPUTS
    matrix[:, 8:16] = False
    assert pattern_of(matrix)[0] == CHANNELS
    matrix[:8] = True
    matrix[:, 8:16] = False
    assert pattern_of(matrix)[0] == INPUTS


@pytest.mark.parametrize("shape", [(1, 0, 6), (1, 4, 0), (0, 3, 3)])
def test_weights_without_elements(shape):
    found = count(np.zeros(shape, bool), shape[2])
    assert (found.elements, found.zeros, found.patterns) == (0, 0, ())


def test_scattered_zeros_and_none():
    assert pattern_of(scattered()) == (ELEMENT,)
    assert pattern_of(np.ones((8, 8), bool)) == ()
    assert count(np.ones((1, 8, 8), bool), 8).shares == {}
    everything = pattern_of(np.zeros((16, 16), bool))
    assert everything[0] == OUTPUTS
    assert set(everything) == set(ORDER) - {ELEMENT}


def test_patterns_that_do_not_divide_a_weight_are_not_considered():
    shares = count(scattered((10, 6))[None], 6).shares
    assert not set(shares) & {*N_M, *BLOCKS}
    shares = count(scattered((8, 6 * 2))[None], 6).shares  # 2 taps of 6 channels: runs would cross taps
    assert "2:4" not in shares
    assert "1x4" in shares
