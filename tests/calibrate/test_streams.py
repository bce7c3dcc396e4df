"""Datasets from Python objects."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest

from onnxprune.calibrate import InputSpec, read_dataset
from onnxprune.errors import DataError, UsageError

X = InputSpec("x", np.dtype(np.float32), ("n", 2))


def feed(value, rows=1, **more):
    return {"x": np.full((rows, 2), value, np.float32), **more}


def values(dataset):
    return [int(batch["x"][0, 0]) for batch in dataset.batches(1)]


class Reader:
    """As onnxruntime.quantization.CalibrationDataReader."""

    def __init__(self, count=3, end=None):
        self._feeds = [feed(index) for index in range(count)]
        self._end = end

    def get_next(self):
        return self._feeds.pop(0) if self._feeds else self._end


@pytest.mark.parametrize("end", [None, {}])
def test_a_calibration_data_reader(end):
    found = read_dataset(Reader(end=end), [X])
    assert (values(found), found.tier, found.labels) == ([0, 1, 2], "real", None)
    assert values(found) == [0, 1, 2], "a dataset can be read again"


def test_a_real_calibration_data_reader():
    quantization = pytest.importorskip("onnxruntime.quantization", exc_type=ImportError)

    class Mine(quantization.CalibrationDataReader):
        def __init__(self):
            self.feeds = iter([feed(4), feed(5)])

        def get_next(self):
            return next(self.feeds, None)

    assert values(read_dataset(Mine, [X])) == [4, 5]
    assert values(read_dataset(Mine(), [X])) == [4, 5]


@pytest.mark.parametrize(
    "data",
    [
        [feed(0), feed(1), feed(2)],
        (feed(index) for index in range(3)),
        lambda: (feed(index) for index in range(3)),
        lambda: Reader(),
        Reader,
    ],
)
def test_iterables_and_callables(data):
    assert values(read_dataset(data, [X])) == [0, 1, 2]


def test_samples_bounds_a_stream_without_end():
    found = read_dataset((feed(index) for index in itertools.count()), [X], samples=5)
    assert values(found) == [0, 1, 2, 3, 4]


def test_feeds_of_several_samples_are_split_and_labels_follow():
    data = [feed(0, 2, labels=[7, 8]), feed(1, 3, labels=[9, 10, 11])]
    found = read_dataset(data, [X], samples=4)
    assert values(found) == [0, 0, 1, 1]
    assert found.labels.tolist() == [7, 8, 9, 10]
    (batch,) = found.batches(9)
    assert batch["x"].shape == (4, 2)


def test_a_single_label_may_be_a_number():
    assert read_dataset([feed(0, labels=3), feed(1, labels=np.int64(4))], [X]).labels.tolist() == [3, 4]


def test_labels_of_any_shape():
    data = [feed(0, 2, labels=np.zeros((2, 3, 4))), feed(1, 1, labels=np.full((1, 3, 4), 0.5))]
    found = read_dataset(data, [X])
    assert (found.labels.shape, found.labels[:, 0, 0].tolist()) == ((3, 3, 4), [0, 0, 0.5])
    with pytest.raises(
        DataError, match=r"feed 1 of list: 'labels' has shape \(1, 5\), but \(2, 3\) in feed 0"
    ):
        read_dataset([feed(0, 2, labels=np.zeros((2, 3))), feed(1, 1, labels=np.zeros((1, 5)))], [X])


def test_casts_are_noted():
    found = read_dataset([{"x": np.ones((1, 2))}], [X])
    assert found.feeds[0]["x"].dtype == np.float32
    assert found.notes == ("input 'x': float64 data is cast to float32",)


def test_feeds_of_a_model_that_cannot_be_stacked_stay_whole():
    fixed = InputSpec("x", np.dtype(np.float32), (2, 2))
    found = read_dataset([feed(0, 2, labels=[1, 2]), feed(1, 2, labels=[3, 4])], [fixed])
    assert (len(found), found.rows, found.labels.tolist()) == (2, 2, [1, 2, 3, 4])


def raising():
    yield feed(0)
    raise KeyError("lost")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "list yields no feed"),
        (Reader(0), "Reader yields no feed"),
        (3, "int is a int, which yields no feeds"),
        ([3], "feed 0 of list is a int, not a dict"),
        ([feed(0), {"y": np.ones((1, 2))}], "feed 1 of list: no array for the model's input 'x'"),
        ([feed(0), feed(np.nan)], "feed 1 of list: input 'x' holds NaN"),
        (raising(), "generator failed after 1 feeds: KeyError: 'lost'"),
        (lambda: 1 / 0, "function failed after 0 feeds: ZeroDivisionError"),
        ([feed(0, labels=[1]), feed(0)], "some feeds have 'labels' and some have not"),
        ([feed(0), feed(0, labels=[1])], "some feeds have 'labels' and some have not"),
        ([feed(0, 2, labels=[1])], "'labels' has 1 entries, but there are 2 samples"),
        ([feed(0, 0)], "list yields no feed"),
    ],
)
def test_streams_that_do_not_fit(data, message):
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(data, [X])
    assert caught.value.hint


def test_inputs_with_different_numbers_of_samples():
    inputs = [X, InputSpec("m", np.dtype(np.float32), ("k",))]
    with pytest.raises(DataError, match=r"different numbers of samples \('x': 2, 'm': 3\)"):
        read_dataset([{"x": np.ones((2, 2)), "m": np.ones(3)}], inputs)


def test_a_dataset_passes_through():
    first = read_dataset([feed(index, labels=index) for index in range(6)], [X])
    assert read_dataset(first, [X]) is first
    assert read_dataset(first, [X], samples=2).labels.tolist() == [0, 4]


def test_preprocessing_does_not_go_with_objects():
    with pytest.raises(UsageError, match="preprocessing was given"):
        read_dataset([feed(0)], [X], preprocess="x/255")


# module:name


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_feeds.py").write_text(
        "import numpy as np\n"
        "def feeds():\n    return ({'x': np.full((1, 2), i, np.float32)} for i in range(3))\n"
        "class Holder:\n    arrays = {'x': np.ones((4, 2), np.float32)}\n"
        "number = 3\n"
    )
    (tmp_path / "my_broken.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield
    assert sys.path == path
    sys.modules.pop("my_feeds", None)


@pytest.mark.usefixtures("module")
def test_objects_by_name():
    found = read_dataset("my_feeds:feeds", [X])
    assert (values(found), found.source) == ([0, 1, 2], "my_feeds:feeds")
    assert len(read_dataset("my_feeds:Holder.arrays", [X])) == 4


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("my_feeds:feed", UsageError, r"there is no 'feed' \(did you mean 'feeds'\?\)"),
        ("my_fed:feeds", UsageError, "module 'my_fed' .* cannot be imported"),
        ("my_broken:feeds", UsageError, "importing module 'my_broken' .* failed: ZeroDivisionError"),
        ("my_feeds:number", DataError, "my_feeds:number is a int"),
        ("my feeds:feeds", UsageError, "there is no data at"),
    ],
)
def test_names_that_lead_nowhere(spec, error, message):
    with pytest.raises(error, match=message):
        read_dataset(spec, [X])
