"""How the tables of this folder are written: one line per variant of an operator."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from onnxprune.errors import Reason
from onnxprune.testing import check_rule


@dataclass(frozen=True)
class Case:
    op_type: str
    inputs: tuple[Any, ...]
    expect: frozenset[str]
    attributes: dict[str, Any]
    opset: int
    groups: int | None = None
    pinned: dict[str, Reason] = field(default_factory=dict)
    outputs: Any = 1
    note: str = ""
    checker: bool = True
    domain: str = ""

    def check(self) -> None:
        check_rule(
            self.op_type,
            inputs=self.inputs,
            attributes=self.attributes,
            outputs=self.outputs,
            domain=self.domain,
            opset=self.opset,
            expect=self.expect,
            groups=self.groups,
            pinned=self.pinned,
            checker=self.checker,
            seeds=(0, 1),
        )


def case(
    op_type: str,
    *inputs: Any,
    expect: str,
    opset: int = 18,
    groups: int | None = None,
    pinned: dict[str, Reason] | None = None,
    outputs: Any = 1,
    note: str = "",
    checker: bool = True,
    domain: str = "",
    **attributes: Any,
) -> Case:
    """`expect` lists axes as `x0[0,1] y0[1]`: dims 0 and 1 of input 0, dim 1 of output 0."""
    return Case(
        op_type, inputs, axes(expect), attributes, opset, groups, pinned or {}, outputs, note, checker, domain
    )


def axes(text: str) -> frozenset[str]:
    """The axes that a text like `x0[0,1] y0[1]` names."""
    names = set()
    for word in text.split():
        found = re.fullmatch(r"([\w/]+)\[([\d,]+)\]", word)
        assert found, word
        names |= {f"{found[1]}[{dim}]" for dim in found[2].split(",")}
    return frozenset(names)


def identify(case: Case) -> str:
    return "-".join(str(part) for part in (case.domain, case.op_type, case.opset, case.note) if part)
