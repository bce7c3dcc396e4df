from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from onnxprune.calibrate.checks import cast_note, check_feed, check_labels, did_you_mean, join_labels, kind
from onnxprune.calibrate.dataset import InputSpec
from onnxprune.errors import DataError


def spec(dtype, *shape, name="x"):
    return InputSpec(name, np.dtype(dtype), shape)


def check(array, *specs, **more):
    specs = specs or (spec(np.float32, "n", 2),)
    return check_feed({"x": array, **more}, specs, "sample 7 of d.npz")


def test_an_array_that_fits_is_not_copied():
    array = np.ones((1, 2), np.float32)
    assert check(array)["x"] is array


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (np.float64, np.float32),
        (np.float16, np.float32),
        (np.float32, np.float16),
        (np.float32, ml_dtypes.bfloat16),
        (np.int32, np.int64),
        (np.int64, np.uint8),
        (np.uint64, np.int32),
    ],
)
def test_casts_within_a_kind(given, wanted):
    array = np.array([[1, 2]], given)
    found = check(array, spec(wanted, 1, 2))["x"]
    assert found.dtype == np.dtype(wanted)
    assert found.astype(np.float64).tolist() == [[1, 2]]
    (note,) = cast_note({"x": array}, [spec(wanted, 1, 2)])
    assert note == f"input 'x': {np.dtype(given).name} data is cast to {np.dtype(wanted).name}"


def test_no_note_without_a_cast():
    assert cast_note({"x": np.ones(2, np.float32)}, [spec(np.float32, 2)]) == ()


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (np.array([[0, 255]], np.uint8), np.float32),
        (np.array([[0.0, 1.0]]), np.int64),
        (np.array([[True, False]]), np.int64),
        (np.array([[0, 1]]), np.bool_),
        (np.array([["a", "b"]]), np.float32),
        (np.array([[1j, 0]]), np.float32),
        (np.array([[1j, 0]]), np.complex128),
    ],
)
def test_kinds_are_never_converted(array, wanted):
    message = rf"sample 7 of d.npz: input 'x' has dtype {array.dtype.name}, expected {np.dtype(wanted).name}"
    with pytest.raises(DataError, match=message):
        check(array, spec(wanted, 1, 2))


def test_raw_pictures_are_told_to_scale():
    with pytest.raises(DataError) as caught:
        check(np.zeros((1, 2), np.uint8))
    assert "Scale the values" in caught.value.hint


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (np.array([[1e300, 0]]), np.float32),
        (np.array([[70000.0, 0]], np.float32), np.float16),
        (np.array([[300, 0]]), np.uint8),
        (np.array([[-1, 0]]), np.uint64),
        (np.array([[2**63, 0]], np.uint64), np.int64),
    ],
)
def test_values_that_the_dtype_cannot_hold(array, wanted):
    with pytest.raises(DataError, match=rf"input 'x' holds {array.dtype.name} values out of"):
        check(array, spec(wanted, 1, 2))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(bad):
    with pytest.raises(DataError, match="sample 7 of d.npz: input 'x' holds NaN or infinity"):
        check(np.array([[0, bad]], np.float32))


@pytest.mark.parametrize("shape", [(2,), (1, 3), (1, 2, 1), ()])
def test_wrong_shapes_say_what_was_expected(shape):
    with pytest.raises(DataError) as caught:
        check(np.zeros(shape, np.float32))
    assert caught.value.what == f"sample 7 of d.npz: input 'x' has shape {shape}, expected float32[n, 2]"


def test_dynamic_axes_take_any_extent():
    assert check(np.zeros((5, 2), np.float32))["x"].shape == (5, 2)


def test_one_symbol_has_one_size():
    specs = [spec(np.float32, "n", "seq"), spec(np.float32, "n", "seq", name="mask")]
    check_feed({"x": np.zeros((1, 4)), "mask": np.zeros((1, 4))}, specs, "here")
    with pytest.raises(DataError, match="axis 'seq' is 4 long in input 'x', but 5 in 'mask'"):
        check_feed({"x": np.zeros((1, 4)), "mask": np.zeros((1, 5))}, specs, "here")


def test_missing_and_unexpected_names():
    with pytest.raises(DataError) as caught:
        check_feed({"inptu": np.zeros((1, 2))}, [spec(np.float32, "n", 2, name="input")], "d.npz")
    assert "no array for the model's input 'input' (did you mean 'inptu'?)" in caught.value.what
    assert "'input' (float32[n, 2])" in caught.value.hint
    with pytest.raises(DataError, match="'more' is not an input of the model"):
        check(np.zeros((1, 2), np.float32), more=np.zeros(1))


def test_what_is_no_array():
    with pytest.raises(DataError, match="'x' cannot be read as an array"):
        check([[1.0], [1.0, 2.0]])


def test_strings_pass():
    array = np.array([["a", "b"]], object)
    assert check(array, spec(object, "n", 2))["x"] is array


def test_labels():
    assert check_labels([1, 2], 2, "d").tolist() == [1, 2]
    found = check_labels(np.array([1.0, 2.0]), 2, "d")
    assert found.dtype == np.int64
    assert check_labels(np.array([0.5, 2.0]), 2, "d").tolist() == [0.5, 2.0]


@pytest.mark.parametrize("shape", [(2, 5), (2, 4, 4), (2, 3, 4, 4)])
def test_labels_of_any_shape(shape):
    maps, targets = np.zeros(shape, np.uint8), np.random.default_rng(0).random(shape, np.float32)
    assert check_labels(maps, 2, "d") is maps
    assert check_labels(targets, 2, "d") is targets


def test_whole_numbers_too_big_for_integers_stay_floats():
    big = np.array([1e30, -1e30])
    assert check_labels(big, 2, "d") is big


def test_labels_of_several_places_are_joined():
    parts = [np.zeros((1, 2, 3)), np.ones((2, 2, 3))]
    assert join_labels(parts, ["a", "b"]).shape == (3, 2, 3)
    with pytest.raises(DataError, match=r"b: 'labels' has shape \(2, 4\), but \(1, 3\) in a"):
        join_labels([np.zeros((1, 3)), np.zeros((2, 4))], ["a", "b"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2, 3], "'labels' has 3 entries, but there are 2 samples"),
        (1, "'labels' has one number"),
        (["cat", "dog"], "'labels' has dtype"),
        ([1.0, np.nan], "NaN"),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    with pytest.raises(DataError, match=message):
        check_labels(np.asarray(labels), 2, "d")


def test_kinds():
    dtypes = [
        np.float16,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        np.uint8,
        ml_dtypes.int4,
        bool,
        object,
        "U3",
    ]
    assert [kind(np.dtype(d)) for d in dtypes] == ["float"] * 3 + ["int"] * 2 + ["bool"] + ["string"] * 2
    assert kind(np.dtype(complex)) == "other"


def test_did_you_mean():
    assert did_you_mean("inptu", ["input", "mask"]) == " (did you mean 'input'?)"
    assert did_you_mean("zzz", ["input"]) == ""
