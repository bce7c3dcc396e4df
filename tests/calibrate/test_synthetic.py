from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from onnxprune.calibrate import InputSpec, read_dataset, synthetic, synthetic_dataset
from onnxprune.calibrate.drawing import Drawing
from onnxprune.errors import UsageError


def spec(name, dtype, *shape):
    return InputSpec(name, np.dtype(dtype), shape)


INPUTS = [
    spec("x", np.float32, "n", 3, "seq"),
    spec("ids", np.int64, "n", "seq"),
    spec("mask", np.bool_, "n", None),
]
BINDINGS = {"n": 9, "seq": 50, "mask.1": 4}


def test_shapes_dtypes_and_ranges():
    found = synthetic_dataset(INPUTS, BINDINGS, samples=20, seed=1, int_ranges={"ids": 7})
    assert (len(found), found.tier, found.labels, found.batchable) == (20, "synthetic", None, True)
    (batch,) = found.batches(32)
    assert {name: (array.dtype.name, array.shape) for name, array in batch.items()} == {
        "x": ("float32", (20, 3, 50)),
        "ids": ("int64", (20, 50)),
        "mask": ("bool", (20, 4)),
    }
    assert abs(batch["x"].mean()) < 0.1 and abs(batch["x"].std() - 1) < 0.1
    assert sorted(np.unique(batch["ids"])) == list(range(7))
    assert sorted(np.unique(batch["mask"])) == [False, True]


def test_the_seed_decides_and_samples_differ():
    first, again, other = (
        synthetic_dataset(INPUTS, BINDINGS, samples=count, seed=seed)
        for count, seed in [(3, 1), (5, 1), (3, 2)]
    )
    for index in range(3):
        assert all(
            np.array_equal(first.feeds[index][name], again.feeds[index][name])
            for name in ("x", "ids", "mask")
        )
    assert not np.array_equal(first.feeds[0]["x"], first.feeds[1]["x"])
    assert not np.array_equal(first.feeds[0]["x"], other.feeds[0]["x"])


def test_integers_are_0_and_1_where_nothing_is_said():
    (batch,) = synthetic_dataset([spec("i", np.uint8, "n", 100)], {}, samples=1, seed=0).batches(1)
    assert sorted(np.unique(batch["i"])) == [0, 1]


def test_fixed_and_bound_leading_axes():
    inputs = [
        spec("x", np.float32, "batch", 4),
        spec("state", np.float16, 2, "batch", 8),
        spec("rate", np.int64),
    ]
    (one, _) = synthetic_dataset(inputs, {}, samples=2, seed=0).batches(4)
    assert [array.shape for array in one.values()] == [(1, 4), (2, 1, 8), ()]
    assert isinstance(one["rate"], np.ndarray) and one["rate"].dtype == np.int64
    (one,) = synthetic_dataset(inputs, {"batch": 3}, samples=1, seed=0).batches(1)
    assert [array.shape for array in one.values()] == [(3, 4), (2, 3, 8), ()]


def test_bf16():
    found = synthetic_dataset([spec("x", ml_dtypes.bfloat16, "n", 4)], {}, samples=1, seed=0)
    assert found.feeds[0]["x"].dtype == ml_dtypes.bfloat16


def test_positions_out_of_range_end_an_iteration():
    feeds = synthetic_dataset([spec("x", np.float32, "n")], {}, samples=2, seed=0).feeds
    assert len(list(feeds)) == 2


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ([spec("x", np.float32, "n", "seq")], {}, r"axis 1 of input 'x' .* has no size"),
        ([spec("x", np.float32, "n", None)], {}, r"has no size\nGive one with --bind x\.1=N"),
        ([spec("c", np.complex64, "n")], {}, "no values can be generated"),
        ([spec("i", np.uint8, "n")], {"int_ranges": {"i": 257}}, "cannot take integers from 0 to 256"),
        ([spec("i", np.int64, "n")], {"int_ranges": {"i": 0}}, "cannot take integers"),
        ([spec("x", np.float32, "n")], {"samples": 0}, "0 samples"),
        ([spec("x", np.float32, "n")], {"seed": -1}, "seed -1"),
    ],
)
def test_what_cannot_be_drawn(inputs, options, message):
    with pytest.raises(UsageError, match=message):
        synthetic_dataset(inputs, {}, **({"samples": 1, "seed": 0} | options))


def test_strings_are_words():
    feeds = synthetic_dataset([spec("s", object, "n", 4)], {}, samples=3, seed=0).feeds
    assert feeds[0]["s"].shape == (1, 4) and feeds[0]["s"].dtype == object
    assert all(isinstance(text, str) for feed in feeds for text in feed["s"].ravel())
    assert len({text for feed in feeds for text in feed["s"].ravel()}) > 1


def test_drawings_replace_what_would_be_drawn_and_only_that():
    plain, other = (
        synthetic_dataset(INPUTS[1:], BINDINGS, samples=3, seed=1, int_ranges={"ids": 7}, drawings=drawings)
        for drawings in (None, {"mask": Drawing("ones")})
    )
    for index in range(3):
        np.testing.assert_array_equal(plain.feeds[index]["ids"], other.feeds[index]["ids"])
        assert other.feeds[index]["mask"].all()


def test_what_is_kept_is_what_would_be_drawn_again(monkeypatch):
    kept, drawn = (synthetic_dataset(INPUTS, BINDINGS, samples=4, seed=1) for _ in range(2))
    before = [kept.feeds[index] for index in (2, 0, 2, -2)]
    monkeypatch.setattr(synthetic, "KEPT", 1)
    for index, feed in zip((2, 0, 2, -2), before, strict=True):
        for name, array in drawn.feeds[index].items():
            np.testing.assert_array_equal(array, feed[name])
    assert (sorted(kept.feeds.kept), drawn.feeds.kept) == ([0, 2], {})


@pytest.mark.parametrize(
    ("data", "count"),
    [
        ("synthetic", synthetic.COUNT),
        ("synthetic:1", 1),
        ("synthetic:1000", 1000),
        ("./synthetic", None),
        ("synthetic.npz", None),
        ("folder.synthetic:make", None),
        (Path("synthetic"), None),
        (None, None),
        ({}, None),
    ],
)
def test_the_keyword(data, count):
    assert synthetic.synthetic_count(data) == count


@pytest.mark.parametrize("number", ["", "0", "-4", "many", "1.5", "1e3", " 8", "٣"])
def test_numbers_that_are_none(number):
    with pytest.raises(UsageError, match="is no number of samples to generate"):
        synthetic.synthetic_count(f"synthetic:{number}")


def test_generated_samples_are_no_data_to_read():
    with pytest.raises(UsageError, match="stands for generated samples") as caught:
        read_dataset("synthetic", INPUTS)
    assert "./synthetic" in caught.value.hint


@pytest.mark.parametrize(
    ("drawing", "words"),
    [
        (Drawing(), "noise of mean 0 and deviation 1"),
        (Drawing("picture", channel=1, low=0.0, high=255.0), "pictures from 0 to 255"),
        (
            Drawing("picture", channel=1, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
            "pictures of mean 0.485, 0.456, 0.406 and deviation 0.229, 0.224, 0.225",
        ),
        (
            Drawing("signal", (2,), 1, (1.0,) * 40, (2.0,) * 40),
            "signals of mean 1, 1, 1, ... and deviation 2, 2, 2, ...",
        ),
        (Drawing("integers", count=7), "integers below 7"),
        (Drawing("ones"), "ones"),
    ],
)
def test_drawings_in_words(drawing, words):
    assert str(drawing) == words
