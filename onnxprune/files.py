"""The files of a run of the command line: which may be written, and writing those beside the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from onnxprune.errors import UsageError

if TYPE_CHECKING:
    from onnxprune.model.io import LoadedModel
    from onnxprune.pruning import Pruned

T = TypeVar("T")


def default_output(model: Path) -> Path:
    """`model.pruned.onnx` beside `model.onnx`."""
    return model.with_name(f"{model.stem}.pruned.onnx")


def open_checked(
    model: Path,
    output: Path | None,
    beside: Sequence[Path | None],
    *,
    force: bool,
    others: Sequence[Path] = (),
) -> LoadedModel:
    """Load a model; refuse, before any work is done, what could not be written after it.

    Parameters
    ----------
    model
        Path of the .onnx file.
    output, beside
        The model, and the plan and reports, that will be written; None: it will not.
    force
        Whether existing files may be replaced.
    others
        Files that must not be written over, besides the model and its data.

    Raises
    ------
    UsageError
        A file exists (without `force`), is an input, is named twice, or cannot be written.
    ModelError
        The file is no usable model.
    """
    from onnxprune.model import io
    from onnxprune.model.write import data_path

    files = [file for file in beside if file is not None]
    taken: set[Path] = set()
    for file in (output, None if output is None else data_path(output), *files):
        if file is not None and file.resolve() in taken:
            raise UsageError(f"{file} would be written twice", "Give every output a name of its own.")
        taken |= set() if file is None else {file.resolve()}
    for file in (output, *files) if model.exists() else ():
        if file is not None:
            io.check_writable(file, force=force, sources=(model, *others))
    source = io.load(model)
    for file in files:
        io.check_writable(file, force=force, sources=(source.path, *source.data_files, *others))
    return source


def check_formats(reports: tuple[Path, ...]) -> None:
    """Refuse reports of unknown formats."""
    for report in reports:
        if report.suffix not in (".json", ".md"):
            raise UsageError(
                f"--report {report} has no known format", "Use a name that ends in .json or .md."
            )


def write_side_files(pruned: Pruned, plan: Path | None, reports: tuple[Path, ...]) -> None:
    """Write the plan and the reports of a pruned model that was written.

    Raises
    ------
    UsageError
        As of `write_reports`.
    """
    from onnxprune.report import json as as_json
    from onnxprune.report import markdown

    if plan is not None:
        with _beside(pruned.path):
            pruned.plan.save(plan)
    write_reports(pruned.path, pruned.report, reports, as_json.render, markdown.render)


def write_reports(
    model: Path | None,
    report: T,
    files: Sequence[Path],
    as_json: Callable[[T], str],
    as_markdown: Callable[[T], str],
) -> None:
    """Write the reports of a model that was written, each in the format that its name ends in.

    Raises
    ------
    UsageError
        One of them cannot be written; the message says that the model is there all the same.
    """
    from onnxprune.model.io import write_text

    with _beside(model):
        for file in files:
            write_text(file, (as_json if file.suffix == ".json" else as_markdown)(report))


@contextmanager
def _beside(model: Path | None) -> Iterator[None]:
    """Say of a file that cannot be written that the model beside it is complete."""
    try:
        yield
    except UsageError as error:
        raise UsageError(error.what, f"The model is complete in {model}; this file is missing.") from error
