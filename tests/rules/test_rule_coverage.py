"""Every rule of the table is checked by at least one line of a table of this folder."""

from __future__ import annotations

import importlib
from pathlib import Path

from onnxprune.rules import builtin_rules

BODIES = {("", "If"), ("", "Loop"), ("", "Scan")}
"""Their rules speak about bodies, which no line of a table holds: see tests/structures/test_control_flow.py."""


def test_every_rule_is_covered():
    covered = set()
    for file in sorted(Path(__file__).parent.glob("test_*_rules.py")):
        covered |= {(case.domain, case.op_type) for case in importlib.import_module(file.stem).CASES}
    assert set(builtin_rules()) - covered == BODIES
    assert covered - set(builtin_rules()) == set()
