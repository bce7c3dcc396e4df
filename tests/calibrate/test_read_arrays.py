"""Datasets from .npz and .npy files, folders of them, and mappings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxprune.calibrate import Dataset, InputSpec, read_dataset
from onnxprune.errors import DataError, UsageError

F32 = np.dtype(np.float32)
X = InputSpec("x", F32, ("n", 2))
FIXED = InputSpec("x", F32, (1, 2))


def rows(count, width=2):
    return np.arange(count * width, dtype=np.float32).reshape(count, width)


def save(path: Path, **arrays):
    np.savez(path, **arrays)
    return path


def test_npz_with_labels(tmp_path):
    path = save(tmp_path / "d.npz", x=rows(5), labels=np.arange(5))
    found = read_dataset(path, [X])
    assert isinstance(found, Dataset)
    assert (len(found), found.tier, found.source, found.batchable) == (5, "real", str(path), True)
    assert found.labels.tolist() == [0, 1, 2, 3, 4]
    assert found.notes == ()
    assert found.feeds[3]["x"].tolist() == [[6, 7]]
    (batch,) = read_dataset(str(path), [X]).batches(8)
    assert np.array_equal(batch["x"], rows(5))


def test_arrays_are_sliced_not_copied():
    array = rows(4)
    found = read_dataset({"x": array}, [X])
    assert all(np.shares_memory(found.feeds[index]["x"], array) for index in range(4))


def test_samples_takes_an_even_subset_with_its_labels(tmp_path):
    labels = np.repeat(np.arange(4), 25)
    path = save(tmp_path / "d.npz", x=np.stack([labels, labels], 1).astype(np.float32), labels=labels)
    found = read_dataset(path, [X], samples=8)
    assert len(found) == 8
    assert np.bincount(found.labels).tolist() == [2, 2, 2, 2]
    assert [feed["x"][0, 0] for feed in found.batches(1)] == found.labels.tolist()
    assert "8 of 100 samples are used, evenly spread" in found.notes
    again = read_dataset(path, [X], samples=8)
    assert [feed["x"].tolist() for feed in again.batches(1)] == [
        feed["x"].tolist() for feed in found.batches(1)
    ]


def test_more_samples_than_there_are_is_noted():
    found = read_dataset({"x": rows(3)}, [X], samples=9)
    assert len(found) == 3
    assert "9 samples were asked for, there are 3" in found.notes


def test_wider_floats_are_cast_and_noted():
    found = read_dataset({"x": rows(3).astype(np.float64)}, [X])
    assert found.feeds[0]["x"].dtype == F32
    assert found.notes == ("input 'x': float64 data is cast to float32",)


def test_a_model_input_may_be_called_labels():
    spec = InputSpec("labels", np.dtype(np.int64), ("n",))
    found = read_dataset({"x": rows(3), "labels": np.arange(3)}, [X, spec])
    assert found.labels is None
    assert found.feeds[2]["labels"].tolist() == [2]


def test_a_fixed_batch_of_one():
    found = read_dataset({"x": rows(3), "labels": np.arange(3)}, [FIXED])
    assert (len(found), found.batchable, found.rows) == (3, False, 1)
    assert [feed["x"].tolist() for feed in found.batches(4)] == [[[0, 1]], [[2, 3]], [[4, 5]]]


def test_a_fixed_batch_of_two_takes_two_rows_and_two_labels():
    found = read_dataset({"x": rows(6), "labels": np.arange(6)}, [InputSpec("x", F32, (2, 2))])
    assert (len(found), found.rows) == (3, 2)
    assert [labels.tolist() for labels in found.label_batches(1)] == [[0, 1], [2, 3], [4, 5]]
    one = read_dataset({"x": rows(6), "labels": np.arange(6)}, [InputSpec("x", F32, (2, 2))], samples=1)
    assert one.labels.tolist() == [0, 1]


def test_an_extra_leading_axis_counts_samples_where_batches_cannot_be_stacked():
    inputs = [FIXED, InputSpec("state", F32, (2, "n")), InputSpec("rate", np.dtype(np.int64), ())]
    data = {
        "x": rows(6).reshape(3, 2, 2)[:, :1],
        "state": np.zeros((3, 2, 4), np.float32),
        "rate": np.int64(16),
    }
    found = read_dataset(data, inputs)
    assert len(found) == 3
    assert found.feeds[1]["x"].shape == (1, 2)
    assert found.feeds[2]["state"].shape == (2, 4)
    assert [found.feeds[index]["rate"].tolist() for index in range(3)] == [16, 16, 16]


def test_a_single_sample_without_a_counting_axis():
    inputs = [X, InputSpec("state", F32, (2, "n"))]
    found = read_dataset({"x": rows(1), "state": np.zeros((2, 1), np.float32)}, inputs)
    assert len(found) == 1
    assert found.feeds[0]["state"].shape == (2, 1)


@pytest.mark.parametrize(
    ("arrays", "inputs", "message"),
    [
        ({"y": rows(2)}, [X], "no array for the model's input 'x'"),
        ({"x": rows(2), "z": rows(2)}, [X], "'z' is not an input"),
        ({"x": rows(2, 3)}, [X], r"sample 0 of .*: input 'x' has shape \(1, 3\), expected float32\[n, 2\]"),
        ({"x": rows(2)[None]}, [X], r"input 'x' has shape \(1, 2, 2\), expected float32\[n, 2\]"),
        ({"x": rows(3)}, [InputSpec("x", F32, (2, 2))], r"has shape \(3, 2\), expected float32\[2, 2\]"),
        ({"x": rows(0)}, [X], "holds no samples"),
        ({"x": rows(2), "labels": np.arange(3)}, [X], "'labels' has 3 entries, but there are 2 samples"),
        (
            {"x": rows(2), "m": rows(3)},
            [X, InputSpec("m", F32, ("n", 2))],
            "2 samples for input 'x', but 3 for 'm'",
        ),
        ({"x": rows(2).astype(np.int32)}, [X], "sample 0 of .* has dtype int32, expected float32"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, arrays, inputs, message):
    path = save(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(path, inputs)
    assert str(path) in caught.value.what
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_a_nan_names_its_sample():
    array = rows(50)
    array[37, 1] = np.nan
    with pytest.raises(DataError, match="sample 37 of dict: input 'x' holds NaN"):
        read_dataset({"x": array}, [X])


def test_one_npy_for_one_input(tmp_path):
    np.save(tmp_path / "d.npy", rows(3))
    assert len(read_dataset(tmp_path / "d.npy", [X])) == 3
    with pytest.raises(DataError, match="one array, but the model has 2 inputs"):
        read_dataset(tmp_path / "d.npy", [X, InputSpec("m", F32, ("n",))])


@pytest.mark.parametrize("content", [b"", b"not an archive at all", b"PK\x03\x04 cut short"])
@pytest.mark.parametrize("name", ["d.npz", "d.npy"])
def test_damaged_files(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as arrays"):
        read_dataset(tmp_path / name, [X])


def test_a_truncated_npz(tmp_path):
    path = save(tmp_path / "d.npz", x=np.random.default_rng(0).random((100, 2)))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="cannot be read as arrays"):
        read_dataset(path, [X])


def test_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.array([{"a": 1}], object))
    with pytest.raises(DataError, match="without Python objects|cannot be read"):
        read_dataset(tmp_path / "d.npz", [X])


def test_sources_that_are_none(tmp_path):
    with pytest.raises(UsageError, match="there is no data at"):
        read_dataset(tmp_path / "missing.npz", [X])
    with pytest.raises(UsageError, match="there is no data at nowhere"):
        read_dataset("nowhere", [X])
    (tmp_path / "d.txt").write_text("1,2")
    with pytest.raises(UsageError, match="no form of data"):
        read_dataset(tmp_path / "d.txt", [X])
    with pytest.raises(DataError, match="neither arrays"):
        (tmp_path / "empty").mkdir()
        read_dataset(tmp_path / "empty", [X])
    with pytest.raises(UsageError, match="0 samples"):
        read_dataset({"x": rows(2)}, [X], samples=0)


def test_preprocessing_goes_with_pictures_only(tmp_path):
    path = save(tmp_path / "d.npz", x=rows(2))
    with pytest.raises(UsageError, match=r"preprocessing was given, but .*d\.npz is no folder of pictures"):
        read_dataset(path, [X], preprocess="x/255")
    with pytest.raises(UsageError, match="holds arrays, not pictures"):
        read_dataset(tmp_path, [X], preprocess="x/255")


# Folders with one file per sample.


def test_folder_of_npy_reads_lazily_and_adds_the_batch_axis(tmp_path):
    for index in range(4):
        array = rows(1) + index
        np.save(tmp_path / f"{index}.npy", array if index % 2 else array[0])
    found = read_dataset(tmp_path, [X])
    assert [feed["x"].tolist() for feed in found.batches(1)] == [[[i, i + 1]] for i in range(4)]
    np.save(tmp_path / "3.npy", rows(1) + 100)
    assert found.feeds[3]["x"].tolist() == [[100, 101]]


def test_folder_of_npz_with_labels_inside(tmp_path):
    for index in range(3):
        save(tmp_path / f"{index}.npz", x=rows(1) + index, labels=index + 7)
    found = read_dataset(tmp_path, [X], samples=2)
    assert found.labels.tolist() == [7 + int(feed["x"][0, 0]) for feed in found.batches(1)]
    save(tmp_path / "2.npz", x=rows(1))
    with pytest.raises(DataError, match=r"2\.npz has no 'labels'"):
        read_dataset(tmp_path, [X])


@pytest.mark.parametrize("shape", [(4,), (3, 4), (1, 3, 4)])
def test_labels_of_any_shape(tmp_path, shape):
    labels = np.random.default_rng(0).random((5, *shape), np.float32)
    found = read_dataset(save(tmp_path / "d.npz", x=rows(5), labels=labels), [X])
    assert np.array_equal(found.labels, labels)
    assert [part.shape for part in found.label_batches(2)] == [(2, *shape), (2, *shape), (1, *shape)]
    assert np.array_equal(found.take([3, 0]).labels, labels[[3, 0]])
    chosen = read_dataset(tmp_path / "d.npz", [X], samples=2)
    assert [int(feed["x"][0, 0]) // 2 for feed in chosen.batches(1)] == [
        int(np.flatnonzero((labels == one).reshape(5, -1).all(axis=1))[0]) for one in chosen.labels
    ]


def test_labels_of_any_shape_with_a_fixed_batch_of_two():
    labels = np.arange(6 * 3).reshape(6, 3)
    found = read_dataset({"x": rows(6), "labels": labels}, [InputSpec("x", F32, (2, 2))], samples=2)
    assert [part.tolist() for part in found.label_batches(8)] == [labels[:2].tolist(), labels[4:].tolist()]


@pytest.mark.parametrize("leading", [(), (1,)])
def test_folder_of_npz_with_labels_of_any_shape(tmp_path, leading):
    for index in range(3):
        save(tmp_path / f"{index}.npz", x=rows(1)[0], labels=np.full((*leading, 4, 5), index))
    found = read_dataset(tmp_path, [X])
    assert found.labels.shape == (3, 4, 5)
    assert found.labels[:, 0, 0].tolist() == [0, 1, 2]
    save(tmp_path / "2.npz", x=rows(1), labels=np.zeros((1, 4, 6)))
    with pytest.raises(
        DataError, match=r"2\.npz: 'labels' has shape \(1, 4, 6\), but \(1, 4, 5\) in .*0\.npz"
    ):
        read_dataset(tmp_path, [X])


def test_folder_of_npy_with_a_file_of_labels(tmp_path):
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", rows(1))
    (tmp_path / "labels.csv").write_text("filename,label\nb.npy,4\na.npy,2\n")
    found = read_dataset(tmp_path, [X])
    assert (len(found), found.labels.tolist()) == (2, [4, 2])
    assert any("1 samples are not listed" in note for note in found.notes)


def test_folder_errors(tmp_path):
    np.save(tmp_path / "a.npy", rows(1))
    with pytest.raises(DataError, match="carries no input name, and the model has 2 inputs"):
        read_dataset(tmp_path, [X, InputSpec("m", F32, ("n",))])
    np.save(tmp_path / "b.npy", rows(3))
    found = read_dataset(tmp_path, [X])
    with pytest.raises(DataError, match=r"b\.npy: input 'x' has shape \(3, 2\), but one sample"):
        found.feeds[1]
    np.save(tmp_path / "a.npy", rows(1, 5))
    with pytest.raises(DataError, match=r"a\.npy: input 'x' has shape \(1, 5\)"):
        read_dataset(tmp_path, [X])
    (tmp_path / "p.png").write_bytes(b"")
    with pytest.raises(DataError, match="both arrays and pictures"):
        read_dataset(tmp_path, [X])
