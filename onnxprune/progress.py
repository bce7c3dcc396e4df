"""A progress line for work that takes longer than two seconds; silent where the output is no terminal."""

from __future__ import annotations

import logging
import shutil
import sys
import threading
import time
from types import TracebackType
from typing import TextIO

PATIENCE = 2.0
"""Seconds of work before anything is shown."""

_TICK = 0.2
_WIDTH = 28
_ERASE = "\r\x1b[K"


class Bar:
    """Draws the stage, the seconds it has taken and, where the total is known, a bar.

    A thread redraws it, so that it moves while a long step runs. What is logged meanwhile stands on lines of
    its own.

    Parameters
    ----------
    quiet
        Never draw.
    stream
        Where to draw, if it is a terminal; standard error by default.
    patience
        Seconds of work before anything is shown; `PATIENCE` by default.
    """

    def __init__(
        self, quiet: bool = False, stream: TextIO | None = None, patience: float | None = None
    ) -> None:
        self._stream = stream or sys.stderr
        self._active = not quiet and self._stream.isatty()
        self._patience = PATIENCE if patience is None else patience
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._stage, self._done, self._total = "", 0, 0
        self._started = time.monotonic()
        self._drawn = False

    def update(self, stage: str, done: int, total: int) -> None:
        """Say how far the work is: `done` of `total` steps of `stage` (total 0: unknown)."""
        with self._lock:
            self._stage, self._done, self._total = stage, done, total

    def __enter__(self) -> Bar:
        if self._active:
            self._started = time.monotonic()
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
            for handler in logging.getLogger("onnxprune").handlers:
                handler.addFilter(self._make_room)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            for handler in logging.getLogger("onnxprune").handlers:
                handler.removeFilter(self._make_room)
            self._erase()

    def _run(self) -> None:
        self._stop.wait(self._patience)
        while not self._stop.is_set():
            self._draw()
            self._stop.wait(_TICK)

    def _draw(self) -> None:
        with self._lock:
            if not self._stage:
                return
            line = describe(self._stage, self._done, self._total, time.monotonic() - self._started)
            room = shutil.get_terminal_size().columns - 1
            self._stream.write(_ERASE + line[:room])
            self._stream.flush()
            self._drawn = True

    def _erase(self) -> None:
        with self._lock:
            if self._drawn:
                self._stream.write(_ERASE)
                self._stream.flush()
                self._drawn = False

    def _make_room(self, record: logging.LogRecord) -> bool:
        self._erase()
        return True


def describe(stage: str, done: int, total: int, seconds: float) -> str:
    """The progress line.

    Examples
    --------
    >>> describe("scoring", 7, 28, 3.2)
    'scoring [#######.....................] 7/28, 3 s'
    >>> describe("loading", 0, 0, 65)
    'loading, 65 s'
    """
    bar = ""
    if total:
        filled = round(_WIDTH * min(done, total) / total)
        bar = f" [{'#' * filled}{'.' * (_WIDTH - filled)}] {done:,}/{total:,}"
    return f"{stage}{bar}, {seconds:.0f} s"
