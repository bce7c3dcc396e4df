from __future__ import annotations

import pytest

from onnxprune.calibrate.labels import class_indices, read_label_file
from onnxprune.errors import DataError


def write(folder, text, name="labels.csv"):
    (folder / name).write_text(text, encoding="utf-8")
    return read_label_file(folder)


def test_no_file_is_no_table(tmp_path):
    assert read_label_file(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "filename,label\na.png,3\n\n# note\nsub/b.png,5\n"),
        ("labels.csv", '\ufeff"a.png", 3\r\n"sub/b.png", 5\r\n'),
        ("labels.txt", "a.png 3\nsub/b.png\t5"),
        ("labels.txt", "a.png,3\nsub/b.png,5"),
    ],
)
def test_forms(tmp_path, name, text):
    paths = [tmp_path / "a.png", tmp_path / "sub" / "b.png"]
    chosen, labels, notes = write(tmp_path, text, name).match(paths)
    assert (chosen, labels.tolist(), notes) == (paths, [3, 5], ())


def test_names_with_commas_and_spaces(tmp_path):
    table = write(tmp_path, "a, b.png,3\n")
    assert table.lines == ((1, "a, b.png", "3"),)
    (tmp_path / "labels.csv").unlink()
    assert write(tmp_path, "my cat.png 4\n", "labels.txt").lines == ((1, "my cat.png", "4"),)


def test_class_names_are_numbered_and_noted(tmp_path):
    labels, notes = class_indices(["dog", "cat", "dog"], "here")
    assert labels.tolist() == [1, 0, 1]
    assert notes == ("here: classes are numbered by sorted name, 'cat' is 0, 'dog' is 1",)


def test_indices_are_taken_as_they_are():
    labels, notes = class_indices(["0007", "12"], "here")
    assert (labels.tolist(), notes) == ([7, 12], ())


def test_indices_and_names_do_not_mix():
    with pytest.raises(DataError, match=r"both indices \('7'\) and names \('cat'\)"):
        class_indices(["7", "cat"], "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png\n", r"line 1: 'a.png' is not 'filename,label'"),
        ("a.png,\n", "line 1"),
        ("a.png,1\nb.png\n", "line 2"),
        ("filename,label\n\n", "lists no samples"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path, text)


def test_both_files(tmp_path):
    (tmp_path / "labels.txt").write_text("a.png 1")
    with pytest.raises(DataError, match=r"both labels\.txt and labels\.csv"):
        write(tmp_path, "a.png,1")


def test_text_that_is_no_utf8(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"\xff\xfe\x00a,1")
    with pytest.raises(DataError, match="cannot be read"):
        read_label_file(tmp_path)


def test_lines_that_do_not_match(tmp_path):
    paths = [tmp_path / "a.png"]
    with pytest.raises(DataError, match=r"line 2: there is no sample 'b\.png'"):
        write(tmp_path, "a.png,1\nb.png,1\n").match(paths)
    with pytest.raises(DataError, match=r"line 2: 'a\.png' is listed twice"):
        write(tmp_path, "a.png,1\na.png,1\n").match(paths)
