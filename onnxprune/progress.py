"""A progress line for work that takes longer than two seconds; silent where the output is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

PATIENCE = 2.0
"""Seconds of work before anything is shown."""

_WIDTH = 28


class Bar:
    """Draws the stage and, where the total is known, a bar.

    Parameters
    ----------
    quiet
        Never draw.
    stream
        Where to draw; only if it is a terminal.
    """

    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._active = not quiet and self._stream.isatty()
        self._started = time.monotonic()
        self._last = 0.0
        self._drawn = False

    def update(self, stage: str, done: int, total: int) -> None:
        """Say how far the work is: `done` of `total` steps of `stage` (total 0: unknown)."""
        now = time.monotonic()
        if not self._active or now - self._started < PATIENCE:
            return
        if now - self._last < 0.1 and done != total:
            return
        self._last = now
        self._drawn = True
        text = stage
        if total:
            filled = round(_WIDTH * done / total)
            text = f"{stage} [{'#' * filled}{'.' * (_WIDTH - filled)}] {done}/{total}"
        self._stream.write(f"\r\x1b[K{text}")
        self._stream.flush()

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
