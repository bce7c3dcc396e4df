"""Blocks of streaming speech enhancement (GTCRN): windows by tables, stacked shuffles, caches."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from block_nets import Blocks, check, others, pinned, used

import onnxprune

BANDS = 5


def stacked(n, x, y):
    """Interleave two tensors of as many channels: stack, swap, flatten."""
    c = n.extents[x]
    both = n.op("Concat", n.unsqueeze(x, 1), n.unsqueeze(y, 1), axis=1, name="stack")
    swapped = n.op("Transpose", both, perm=[0, 2, 1, 3, 4], name="swap")
    return n.mark(n.op("Reshape", swapped, n.constant([0, 2 * c, 8, 8]), name="flatten"), 2 * c)


def windowed(n, x, table):
    """Every band beside its neighbours: `unfold` along the last axis, as a Gather by a table (3, bands)."""
    c = n.extents[x]
    padded = n.op("Pad", x, n.constant([0, 0, 0, 1, 0, 0, 0, 1]), name="pad")
    bands = n.op("Gather", padded, table, axis=3, name="unfold")
    bands = n.op("Transpose", bands, perm=[0, 1, 3, 2, 4])
    return n.mark(n.op("Reshape", bands, n.constant([0, 3 * c, 8, 8]), name="taps"), 3 * c)


def windows(n):
    return n.constant(np.arange(3)[:, None] + np.arange(8), "windows")


def centred(n, x):
    """What a LayerNorm begins with, in parts."""
    return n.like("Sub", x, n.mean(x, 1))


def test_stacked_shuffle():
    """Of a pair of stacked channels both go, or none; how many are stacked is no matter of channels."""
    n = Blocks()
    left, right = n.split(n.stem(12), 6, 6)
    result = check(n, n.classify(stacked(n, n.conv(left, 6, name="mix"), right)))
    assert used(result) == ["stem: 6: stem[0]+bias -> mix[1]", "stem: 6: stem[0]+bias mix[0]+bias -> fc[1]"]
    assert pinned(result, "stack_out[1]") == ["STACKED"]


def test_windows_by_a_table():
    """Channels, or one of the three neighbours of every band; the bands themselves are picked by their numbers."""
    n = Blocks()
    x = windowed(n, n.stem(6), windows(n))
    result = check(n, n.classify(n.relu(n.conv(x, 7, 1, name="point"))))
    assert used(result) == ["stem: 6: stem[0]+bias -> point[1]", "point: 7: point[0]+bias -> fc[1]"]
    assert others(result) == ["point: 3 of 6:  -> point[1]"]
    assert pinned(result, "pad_out[3]") == ["PICKED"]


def test_a_table_that_two_layers_share():
    """Each has its own neighbours to lose."""
    n = Blocks()
    table = windows(n)
    x = centred(n, n.stem(6))
    x = centred(n, n.conv(windowed(n, x, table), 6, 1, name="first"))
    result = check(n, n.classify(n.conv(windowed(n, x, table), 7, 1, name="second")))
    assert used(result) == [
        "first: 3 of 6:  -> first[1]",
        "second: 3 of 6:  -> second[1]",
        "second: 7: second[0]+bias -> fc[1]",
    ]


def test_a_trunk_that_keeps_its_channels():
    """The mean holds them, through sum and shuffle; what is in front of the Reshapes goes all the same."""
    n = Blocks()
    trunk = n.conv(n.stem(8), 8, group=2, name="down")
    left, right = n.split(trunk, 4, 4)
    inner = n.conv(windowed(n, left, windows(n)), 6, 1, name="point")
    shuffled = stacked(n, n.conv(inner, 4, 1, name="back"), right)
    result = check(n, n.classify(centred(n, n.add(shuffled, trunk))))
    assert used(result) == [
        "stem: 8 in 2 blocks: stem[0]+bias -> down[1]",
        "point: 3 of 4:  -> point[1]",
        "point: 6: point[0]+bias -> back[1]",
    ]
    assert pinned(result, "down.weight[0]", "back.weight[0]") == ["REDUCED"] * 2


# --- caches ----------------------------------------------------------------------------------------------

FRAMES, WIDTH = 6, 8


def streaming():
    """Two causal depthwise convolutions with a frame at a time; each has its frames in one cache."""
    n = Blocks()
    cache = n.input("cache", (1, WIDTH, FRAMES, BANDS))
    x = n.mark(n.input("x", (1, 3, 1, BANDS)), 3)
    for layer, (start, stop) in enumerate(((0, 2), (2, 6))):
        y = n.relu(n.conv(x, WIDTH, 1, name=f"in{layer}"))
        past = n.slice(n.mark(cache, WIDTH), start, stop, 2)
        frames = n.concat(n.mark(past, WIDTH), y, axis=2, name=f"frames{layer}")
        new = n.slice(frames, 1, 2**31, 2)
        grid = np.meshgrid([0], range(WIDTH), range(start, stop), range(BANDS), indexing="ij")
        name = ("put", "new")[layer]
        cache = n.op("ScatterND", cache, n.constant(np.stack(grid, -1), "places"), new, name=name)
        w = n.weight((WIDTH, 1, stop - start + 1, 1), f"deep{layer}.weight")
        y = n.mark(n.op("Conv", frames, w, group=WIDTH, name=f"deep{layer}"), WIDTH)
        x = n.conv(n.relu(y), 3, 1, name=f"out{layer}")
    return n.model(x, cache)


def test_a_cache_keeps_its_channels(tmp_path):
    path = tmp_path / "stream.onnx"
    ir.save(streaming(), path)
    analysis = onnxprune.analyze(path)
    assert [group.name for group in analysis.groups.values()] == ["out0"]
    reasons = {name: blocked.reason.name for blocked in analysis.blocked for name in blocked.layers}
    assert reasons["in0"] == reasons["deep0"] == "GRAPH_INPUT"
    assert reasons["in1"] == reasons["deep1"] == "GRAPH_OUTPUT"


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_a_cache_shrinks_with_its_channels(tmp_path, ratio):
    """Frame by frame, each with the cache that the last one left."""
    path, out, masked = (tmp_path / f"{name}.onnx" for name in ("stream", "cut", "masked"))
    ir.save(streaming(), path)
    done = onnxprune.prune(path, out, ratio=ratio, round_to=1, refit_io=("cache", "new_out"))
    kept = done.plan.initializers["in0.weight"][0]
    assert done.plan.initializers["deep1.weight"][0] == kept
    assert 0 < len(kept) < WIDTH
    shapes = {io.name: (io.before[1], io.after[1]) for io in done.report.refitted}
    assert shapes == dict.fromkeys(("cache", "new_out"), (WIDTH, len(kept)))
    onnx.checker.check_model(str(out), full_check=True)
    onnxprune.apply(path, done.plan, masked, mode="mask")
    rng = np.random.default_rng(2)
    whole, small = (
        onnxruntime.InferenceSession(p, providers=["CPUExecutionProvider"]) for p in (masked, out)
    )
    states = [np.zeros((1, channels, FRAMES, BANDS), np.float32) for channels in (WIDTH, len(kept))]
    for _ in range(8):
        x = rng.standard_normal((1, 3, 1, BANDS)).astype(np.float32)
        (y, states[0]), (got, states[1]) = (
            session.run(None, {"x": x, "cache": state})
            for session, state in zip((whole, small), states, strict=True)
        )
        np.testing.assert_allclose(got, y, rtol=0, atol=1e-5)
        np.testing.assert_allclose(states[1], states[0][:, kept], rtol=0, atol=1e-5)
        assert np.abs(y).max() > 0.01
