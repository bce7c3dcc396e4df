"""The anonymous memory of a process and its children while it runs, sampled: pages of mapped files do not count."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.01
"""Seconds between two samples."""


@dataclass(frozen=True)
class Watched:
    """How a command ended.

    Attributes
    ----------
    code, text, errors
        Exit code, standard output and standard error.
    seconds, cpu
        Wall time, and CPU time of the command and its children.
    anonymous, resident
        Peak bytes of RssAnon, and of VmRSS with the pages of mapped files, over all processes together.
    """

    code: int
    text: str
    errors: str
    seconds: float
    cpu: float
    anonymous: int
    resident: int


def watch(command: Sequence[str]) -> Watched:
    """Run a command and sample its memory every `INTERVAL` seconds (Linux only)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        anonymous = resident = 0
        while process.poll() is None:
            sums = [_memory(pid) for pid in _family(process.pid)]
            anonymous = max(anonymous, sum(a for a, _ in sums))
            resident = max(resident, sum(r for _, r in sums))
            time.sleep(INTERVAL)
        text, errors = process.communicate()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Watched(process.returncode, text, errors, time.perf_counter() - started, cpu, anonymous, resident)


def _family(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                yield from _family(int(child))


def _memory(pid: int) -> tuple[int, int]:
    """Bytes of anonymous and of all resident memory; nothing where the process has gone."""
    found = {"RssAnon": 0, "VmRSS": 0}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            if name in found:
                found[name] = int(rest.split()[0]) * 1024
    return found["RssAnon"], found["VmRSS"]
