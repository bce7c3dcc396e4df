"""How much memory is free."""

from __future__ import annotations

from pathlib import Path

UNKNOWN = 4 * 2.0**30
"""Taken for free where the system does not say."""


def free_memory() -> float:
    """Bytes that can be allocated without swapping: what Linux calls available, bounded by the cgroup."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return UNKNOWN
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = float(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return available
    return available if limit == "max" else min(available, max(float(limit) - used, 0.0))
