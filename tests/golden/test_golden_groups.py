"""The groups of canonical models, as text. `ONNXPRUNE_GOLDEN=write pytest tests/golden` writes them anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onnxprune.testing import check_model
from tests.nets import CANONICAL

FOLDER = Path(__file__).parent


def text_of(checked) -> str:
    """One line per group: id, name, units, blocks, sources -> sinks; then what is rejected."""
    lines = []
    for title, groups in (("", checked.partition.groups), ("alternatives:", checked.partition.alternatives)):
        if title and groups:
            lines.append(title)
        lines += [line(group) for group in groups]
    for rejection in checked.partition.rejected:
        lines.append(
            f"rejected: {rejection.reason.name} {' '.join(sorted(axis.name for axis in rejection.axes))}"
        )
    return "\n".join(lines) + "\n"


def line(group) -> str:
    blocks = "" if group.blocks is None else f" in {group.block_count} blocks"
    width = "" if group.width == 1 else f" of {group.width}"
    sources, sinks = (" ".join(use.axis.name for use in uses) for uses in (group.sources, group.sinks))
    others = f" (or {' '.join(group.alternatives)})" if group.alternatives else ""
    return f"{group.id} {group.name}: {group.units} units{width}{blocks}: {sources} -> {sinks}{others}"


@pytest.mark.parametrize("name", CANONICAL)
def test_groups(name):
    text = text_of(check_model(CANONICAL[name](), seeds=(0, 1)))
    file = FOLDER / f"{name}.txt"
    if os.environ.get("ONNXPRUNE_GOLDEN") == "write":
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


def test_no_file_without_a_model():
    assert {file.stem for file in FOLDER.glob("*.txt")} == set(CANONICAL)
