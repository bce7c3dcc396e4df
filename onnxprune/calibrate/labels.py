"""Labels that stand beside the samples: a file of labels, or class folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxprune.calibrate.dataset import Array
from onnxprune.errors import DataError

LABEL_FILES = ("labels.txt", "labels.csv")
_HEADERS = frozenset({"file", "filename", "file_name", "image", "name", "path", "sample"})
_INTEGER = re.compile(r"[+-]?\d+")


@dataclass(frozen=True, eq=False)
class LabelTable:
    """The lines ``filename,label`` of one file.

    Parameters
    ----------
    path
        The file of labels.
    lines
        Line number, file name relative to the folder of `path`, label as written.
    """

    path: Path
    lines: tuple[tuple[int, str, str], ...]

    def match(self, paths: Sequence[Path]) -> tuple[list[Path], Array, tuple[str, ...]]:
        """Find the sample that each line names.

        Parameters
        ----------
        paths
            The samples below the folder of the table.

        Returns
        -------
        tuple
            The samples that are listed (in the order of the lines), an int64 label for each, notes.

        Raises
        ------
        DataError
            If a line names a file that is missing or listed already.
        """
        known = {path.relative_to(self.path.parent).as_posix(): path for path in paths}
        chosen: dict[str, Path] = {}
        for line, name, _ in self.lines:
            key = Path(name).as_posix()
            if key not in known:
                raise DataError(
                    f"{self.path}, line {line}: there is no sample {name!r} in {self.path.parent}",
                    "Write file names relative to that folder.",
                )
            if key in chosen:
                raise DataError(
                    f"{self.path}, line {line}: {name!r} is listed twice", "Keep one line per sample."
                )
            chosen[key] = known[key]
        labels, notes = class_indices([label for _, _, label in self.lines], str(self.path))
        if len(chosen) < len(paths):
            notes += (f"{len(paths) - len(chosen)} samples are not listed in {self.path} and are left out",)
        return list(chosen.values()), labels, notes


def read_label_file(folder: Path) -> LabelTable | None:
    """Read ``labels.txt`` or ``labels.csv`` of a folder: one ``filename,label`` per line.

    In the .txt file white space may separate the two as well. Blank lines, lines that start with ``#`` and
    a header such as ``filename,label`` are skipped.

    Raises
    ------
    DataError
        If both files exist, a line has not two fields, or there is no line at all.
    """
    found = [folder / name for name in LABEL_FILES if (folder / name).is_file()]
    if not found:
        return None
    if len(found) > 1:
        raise DataError(f"{folder} has both {' and '.join(LABEL_FILES)}", "Keep one of them.")
    path = found[0]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "Write it as UTF-8 text.") from error
    lines: list[tuple[int, str, str]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, label = _split(line, path, number)
        if not lines and name.lower() in _HEADERS:
            continue
        lines.append((number, name, label))
    if not lines:
        raise DataError(f"{path} lists no samples", "Write one 'filename,label' per line.")
    return LabelTable(path, tuple(lines))


def class_indices(names: Sequence[str], source: str) -> tuple[Array, tuple[str, ...]]:
    """Turn the class of each sample, as written, into an index.

    Integers are taken as they are. Names are numbered in sorted order, as image-folder loaders commonly do;
    a note says so, because the model's own order of classes cannot be known.

    Returns
    -------
    tuple
        One int64 label per name, notes.

    Raises
    ------
    DataError
        If some are integers and some are not.
    """
    integers = [bool(_INTEGER.fullmatch(name)) for name in names]
    if all(integers):
        return np.array([int(name) for name in names], dtype=np.int64), ()
    if any(integers):
        word, number = names[integers.index(False)], names[integers.index(True)]
        raise DataError(
            f"{source}: classes are both indices ({number!r}) and names ({word!r})",
            "Name every class by its index among the model's outputs, or none.",
        )
    order = sorted(set(names))
    indices = {name: index for index, name in enumerate(order)}
    last = len(order) - 1
    note = f"{source}: classes are numbered by sorted name, {order[0]!r} is 0, {order[-1]!r} is {last}"
    return np.array([indices[name] for name in names], dtype=np.int64), (note,)


def _split(line: str, path: Path, number: int) -> tuple[str, str]:
    if "," in line:
        name, _, label = line.rpartition(",")
    elif path.suffix == ".txt" and len(line.split()) > 1:
        name, label = line.rsplit(maxsplit=1)
    else:
        name, label = line, ""
    name, label = name.strip().strip('"'), label.strip().strip('"')
    if not name or not label:
        raise DataError(
            f"{path}, line {number}: {line.strip()!r} is not 'filename,label'", "Write both, with a comma."
        )
    return name, label
