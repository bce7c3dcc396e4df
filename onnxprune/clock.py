"""Where the time goes: seconds per stage, from the calls that report progress."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Passes progress on, and adds up how long each stage took until another one began.

    Parameters
    ----------
    progress
        Called with (stage, steps done, steps in all); None: nobody wants to know.

    Attributes
    ----------
    seconds
        Wall time per stage, in the order in which stages first began.
    """

    def __init__(self, progress: Callable[[str, int, int], None] | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._stage = ""
        self._since = time.perf_counter()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """A stage has got so far."""
        self.stop()
        self._stage = stage
        self.seconds.setdefault(stage, 0.0)
        if self._progress is not None:
            self._progress(stage, done, total)

    def stop(self) -> None:
        """Count the time since the last call for the stage that runs."""
        now = time.perf_counter()
        if self._stage:
            self.seconds[self._stage] += now - self._since
        self._since = now
