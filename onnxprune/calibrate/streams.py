"""Samples from Python objects: calibration data readers, iterables of feeds, callables that return one."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune.calibrate.checks import LABELS, cast_note, check_feed, check_labels, did_you_mean, join_labels
from onnxprune.calibrate.dataset import Array, Dataset, Feed, InputSpec, is_batchable, rows_per_sample
from onnxprune.errors import DataError, UsageError

_IMPORT_SPEC = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_KINDS = "Give a CalibrationDataReader, an iterable of dicts of arrays, or a callable that returns one."


def is_import_spec(text: str) -> bool:
    """Tell whether a text has the form ``module:name``."""
    return _IMPORT_SPEC.fullmatch(text) is not None


def import_object(spec: str) -> Any:
    """Import ``module:name``; the module is looked up in the current folder too.

    Raises
    ------
    UsageError
        If the module cannot be imported or has no such name.
    """
    module_name, _, path = spec.partition(":")
    try:
        with _current_folder_first():
            found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"module {module_name!r} of {spec!r} cannot be imported: {error}",
            "Run from the folder that holds it, or install it.",
        ) from error
    except Exception as error:
        raise UsageError(
            f"importing module {module_name!r} of {spec!r} failed: {_said(error)}", "Repair the module."
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{spec!r}: there is no {part!r}{did_you_mean(part, dir(found))}", _KINDS)
        found = getattr(found, part)
    return found


def read_stream(data: Any, inputs: Sequence[InputSpec], source: str, samples: int | None) -> Dataset:
    """Read a stream of feeds into memory, all of it or the first `samples` samples.

    A feed of a batchable model may hold several samples along the leading axis. A feed may carry ``labels``.

    Parameters
    ----------
    data
        Has ``get_next()`` (None or an empty feed ends it), or is iterable, or is a callable that returns
        one of these.
    inputs
        What the model takes.
    source
        For messages.
    samples
        At most this many; a stream without end needs it.

    Raises
    ------
    DataError
        If the object is none of these, ends without a feed, raises, or yields a feed that does not fit.
    """
    feeds: list[Feed] = []
    labels: list[Array] = []
    notes: tuple[str, ...] = ()
    rows = rows_per_sample(inputs)
    own_labels = LABELS not in {spec.name for spec in inputs}
    for position, given in enumerate(_iterate(data, source)):
        where = f"feed {position} of {source}"
        if not isinstance(given, Mapping):
            raise DataError(f"{where} is a {type(given).__name__}, not a dict of arrays", _KINDS)
        raw = {str(name): value for name, value in given.items() if not (own_labels and name == LABELS)}
        cut = _split(check_feed(raw, inputs, where), inputs, where)
        notes = notes or cast_note(raw, inputs)
        if own_labels and LABELS in given:
            labels.append(check_labels(np.atleast_1d(np.asarray(given[LABELS])), len(cut) * rows, where))
        if labels and len(labels) != position + 1:
            raise DataError(
                f"{where}: some feeds have {LABELS!r} and some have not", "Label all feeds or none."
            )
        feeds += cut
        if samples is not None and len(feeds) >= samples:
            break
    if not feeds:
        raise DataError(
            f"{source} yields no feed", "Give at least one sample; a reader can be read only once."
        )
    count = len(feeds) if samples is None else min(samples, len(feeds))
    places = [f"feed {position} of {source}" for position in range(len(labels))]
    joined = join_labels(labels, places)[: count * rows] if labels else None
    return Dataset(feeds[:count], joined, "real", source, is_batchable(inputs), rows, notes)


def _split(feed: Feed, inputs: Sequence[InputSpec], where: str) -> list[Feed]:
    if not is_batchable(inputs):
        return [feed]
    lengths = {name: len(array) for name, array in feed.items()}
    if len(set(lengths.values())) != 1:
        listing = ", ".join(f"{name!r}: {length}" for name, length in lengths.items())
        raise DataError(
            f"{where}: inputs have different numbers of samples ({listing})",
            "The leading axis of all inputs must agree.",
        )
    return [
        {name: array[index : index + 1] for name, array in feed.items()}
        for index in range(next(iter(lengths.values())))
    ]


def _iterate(data: Any, source: str) -> Iterator[Any]:
    """Yield feeds; whatever the user's code raises becomes a DataError that says so."""
    position = 0
    try:
        if callable(data) and (isinstance(data, type) or not _is_stream(data)):
            data = data()
        if not _is_stream(data):
            raise DataError(f"{source} is a {type(data).__name__}, which yields no feeds", _KINDS)
        for feed in _feeds_of(data):
            yield feed
            position += 1
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{source} failed after {position} feeds: {_said(error)}", "Repair the object."
        ) from error


def _is_stream(data: Any) -> bool:
    return hasattr(data, "get_next") or (isinstance(data, Iterable) and not isinstance(data, str | bytes))


def _feeds_of(data: Any) -> Iterator[Any]:
    if not hasattr(data, "get_next"):
        yield from data
        return
    get_next: Callable[[], Any] = data.get_next
    while feed := get_next():
        yield feed


@contextlib.contextmanager
def _current_folder_first() -> Iterator[None]:
    sys.path.insert(0, "")
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove("")


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
