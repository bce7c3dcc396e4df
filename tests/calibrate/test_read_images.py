"""Datasets from folders of pictures."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from onnxprune.calibrate import InputSpec, read_dataset
from onnxprune.calibrate.images import find_images
from onnxprune.errors import DataError, UsageError

Image = pytest.importorskip("PIL.Image")
SPEC = InputSpec("image", np.dtype(np.float32), ("n", 3, 4, 4))


def draw(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(path)


def values(dataset):
    return [int(feed["image"][0, 0, 0, 0]) for feed in dataset.batches(1)]


def test_class_folders_named_by_index(tmp_path):
    for index, (folder, name) in enumerate([("0003", "a.png"), ("0003", "b.png"), ("12", "a.PNG")]):
        draw(tmp_path / folder / name, index)
    (tmp_path / ".hidden").mkdir()
    draw(tmp_path / ".hidden" / "x.png", 9)
    (tmp_path / "12" / "notes.txt").write_text("no picture")
    found = read_dataset(tmp_path, [SPEC], preprocess="x")
    assert values(found) == [0, 1, 2]
    assert found.labels.tolist() == [3, 3, 12]
    assert (found.tier, found.source, found.notes) == ("real", str(tmp_path), ())
    (batch,) = found.batches(8)
    assert batch["image"].shape == (3, 3, 4, 4)


def test_class_folders_named_by_word_are_noted(tmp_path):
    draw(tmp_path / "dog" / "a.png", 1)
    draw(tmp_path / "cat" / "a.png", 0)
    found = read_dataset(tmp_path, [SPEC], preprocess="x")
    assert found.labels.tolist() == [0, 1]
    assert "classes are numbered by sorted name" in found.notes[0]


def test_a_subset_mixes_the_classes(tmp_path):
    for label in range(3):
        for index in range(6):
            draw(tmp_path / str(label) / f"{index}.png", label)
    found = read_dataset(tmp_path, [SPEC], samples=6, preprocess="x")
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert values(found) == found.labels.tolist()


def test_a_flat_folder_has_no_labels_or_a_file_of_them(tmp_path):
    draw(tmp_path / "a.png", 1)
    draw(tmp_path / "b.png", 2)
    found = read_dataset(tmp_path, [SPEC], preprocess="x")
    assert (values(found), found.labels) == ([1, 2], None)
    (tmp_path / "labels.txt").write_text("b.png 5\na.png 6\n")
    found = read_dataset(tmp_path, [SPEC], preprocess="x")
    assert (values(found), found.labels.tolist()) == ([2, 1], [5, 6])


def test_a_file_of_labels_beats_class_folders(tmp_path):
    draw(tmp_path / "0" / "a.png", 1)
    (tmp_path / "labels.csv").write_text("0/a.png,7\n")
    assert read_dataset(tmp_path, [SPEC], preprocess="x").labels.tolist() == [7]


def test_pictures_are_decoded_one_by_one_when_asked_for(tmp_path):
    draw(tmp_path / "a.png", 1)
    (tmp_path / "b.png").write_bytes(b"broken")
    found = read_dataset(tmp_path, [SPEC], preprocess="x")
    assert found.feeds[0]["image"][0, 0, 0, 0] == 1
    with pytest.raises(DataError, match=r"b\.png cannot be read as a picture"):
        found.feeds[1]
    draw(tmp_path / "b.png", 7)
    assert values(found) == [1, 7]


def test_a_truncated_picture(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"a\.jpg cannot be read as a picture"):
        read_dataset(tmp_path, [SPEC], preprocess="x")


def test_sizes_come_from_bindings(tmp_path):
    draw(tmp_path / "a.png", 1)
    spec = InputSpec("image", SPEC.dtype, ("n", 3, "h", "w"))
    found = read_dataset(tmp_path, [spec], preprocess="x", bindings={"h": 6, "w": 2})
    assert found.feeds[0]["image"].shape == (1, 3, 6, 2)


def test_without_preprocessing_the_choices_are_listed(tmp_path):
    draw(tmp_path / "a.png", 1)
    with pytest.raises(UsageError) as caught:
        read_dataset(tmp_path, [SPEC])
    for word in ("--preprocess", "imagenet", "x/128-1", "TOML"):
        assert word in caught.value.hint


def test_models_and_folders_that_do_not_fit(tmp_path):
    draw(tmp_path / "a.png", 1)
    with pytest.raises(UsageError, match="model has 2 inputs"):
        read_dataset(tmp_path, [SPEC, InputSpec("m", SPEC.dtype, ("n",))], preprocess="x")
    draw(tmp_path / "0" / "b.png", 1)
    with pytest.raises(DataError, match=r"both in class folders and beside them \(a\.png\)"):
        read_dataset(tmp_path, [SPEC], preprocess="x")
    (tmp_path / "a.png").unlink()
    draw(tmp_path / "cat" / "b.png", 1)
    with pytest.raises(DataError, match="both indices"):
        read_dataset(tmp_path, [SPEC], preprocess="x")


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    draw(tmp_path / "a.png", 1)
    for module in [name for name in sys.modules if name == "PIL" or name.startswith("PIL.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError) as caught:
        read_dataset(tmp_path, [SPEC], preprocess="x")
    assert "onnxprune[images]" in caught.value.hint


def test_find_images_is_sorted_and_goes_one_level_deep(tmp_path):
    for name in ("b/2.jpg", "b/1.jpg", "a/3.png", "b/deep/4.png", "c.bmp", "d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)] == [
        *("a/3.png", "b/1.jpg", "b/2.jpg", "c.bmp")
    ]
