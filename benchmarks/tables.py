"""Markdown tables, and what they were made with."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.isolated import version

BASE = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu")
"""Packages that every page depends on."""


def table(header: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are text, the others are aligned to the right."""
    lines = [[str(cell) for cell in row] for row in rows]
    marks = ["---" if i < left else "--:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(header), marks, *lines])


def millions(count: float) -> str:
    """`11.68`."""
    return f"{count / 1e6:,.2f}"


def share(part: float, whole: float) -> str:
    """`53 %`."""
    return f"{part / whole:.0%}".replace("%", " %") if whole else "-"


def seconds(value: float | None) -> str:
    """Seconds with three digits that matter."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def environment(*packages: str) -> dict[str, Any]:
    """Versions of `BASE` and of `packages`, and the kind of machine; no names, paths or dates."""
    versions = {name: version(name) for name in (*BASE, *packages) if version(name)}
    machine = {"machine": platform.machine(), "cores": _cores()}
    return {"versions": {"Python": platform.python_version(), **versions}, **machine}


def environment_line(found: Mapping[str, Any]) -> str:
    """The environment in one sentence."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return f"Made with {versions} on {found['cores']} {found['machine']} cores that other work shared."


def write(folder: Path, name: str, text: str, data: Mapping[str, Any]) -> None:
    """Write `name.md` and `name.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text.rstrip() + "\n", encoding="utf-8")
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
