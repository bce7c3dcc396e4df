"""Writes docs/operators.md: every operator, with its rule or with the reason why it has none.

python -m benchmarks.operators
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.isolated import version
from benchmarks.operators_facts import MICROSOFT, Stated, counts, gradient, known, place, refits, stated
from benchmarks.tables import table
from onnxprune.errors import Reason
from onnxprune.rules import builtin_rules
from onnxprune.rules.barriers import BARRIERS, DOMAINS
from onnxprune.rules.rule import Key

PAGE = Path(__file__).parents[1] / "docs" / "operators.md"
MOST = 6
"""Classes of axes that a line shows."""
HEADER = """\
# Operators

Every operator of the standard and of onnxruntime's own domain, with what its rule states, or with the reason why
it has none. Generated from the rules and from the lines of their tests by `python -m benchmarks.operators`; a
test regenerates the page, and fails where an operator is in neither list.

An operator that stands in no list, of another domain, is a barrier: everything that it touches keeps all
positions, and the rest of the model is pruned. [extending.md](extending.md) says how to write a rule for it.
"""
LEGEND = """\
- **versions**: of the standard, in which the definition changed.
- **ties**: axes whose positions live and die together, by the names of the specification, on the line of the
  tests from which most can go. `*`: not position by position in order, but in parts, blocks or another order.
  **sums over**: a position whose terms are zero can go. **whole**: axes that keep all positions. Other
  attributes and shapes may tie others.
- **refit**: attributes or constants carry an extent, and are written anew after a cut. **MACs**: it multiplies
  and adds.
- **gradient**: *VJP*: passes by a rule of its own; *lowered*: as several standard operators; *zero*: what it
  makes does not depend on floats, or in steps; *none*: criteria with gradients refuse it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; arguments are ignored, so that it runs like the benchmarks."""
    del arguments
    PAGE.write_text(render(), encoding="utf-8")
    print(f"{PAGE} written")
    return 0


def versions_line() -> str:
    """What the lists were made with."""
    own = version("onnxruntime-gpu") or version("onnxruntime")
    return f"Made with onnx {version('onnx')} and onnxruntime {own}."


def unlisted() -> list[Key]:
    """Operators that are neither ruled nor listed as barriers."""
    rules = builtin_rules()
    return [key for key in known() if key not in rules and key not in BARRIERS and key[0] not in DOMAINS]


def render() -> str:
    """The page."""
    rules = builtin_rules()
    parts = [HEADER, versions_line(), "", _summary(), "", "## Operators with a rule", "", LEGEND]
    for domain, title in (("", "### Standard"), (MICROSOFT, f"### {MICROSOFT}")):
        keys = sorted(key for key in rules if key[0] == domain)
        parts += [title, "", _ruled(keys), ""]
    parts += ["## Barriers on purpose", "", _BARRIERS, ""]
    for domain, title in (("", "### Standard"), (MICROSOFT, f"### {MICROSOFT}")):
        parts += [title, "", _barriers(domain), ""]
    parts += ["### Whole domains", "", _domains()]
    return "\n".join(parts).rstrip() + "\n"


_BARRIERS = """\
They keep all positions of what they read and make. The reason in the second column is the one that reports give."""


def _summary() -> str:
    rules, every = builtin_rules(), known()
    rows = []
    for domain in ("", MICROSOFT):
        keys = [key for key in every if key[0] == domain]
        ruled = [key for key in keys if key in rules]
        passed = [key for key in ruled if rules[key].vjp is not None or rules[key].lower is not None]
        rows.append([domain or "standard", len(keys), len(ruled), len(passed), len(keys) - len(ruled)])
    header = ["domain", "operators", "with a rule", "passed by gradients", "barriers on purpose"]
    return table(header, rows)


def _ruled(keys: Sequence[Key]) -> str:
    rules, every = builtin_rules(), known()
    rows = []
    for key in keys:
        rule, schema = rules[key], every.get(key)
        versions = ", ".join(map(str, schema.versions)) if schema and not key[0] else ""
        if schema and schema.deprecated:
            versions += f" (deprecated from {schema.deprecated})"
        what = stated(key)
        told = f"as `{place(rule)}` says" if what is None else _said(what)
        cells = [key[1], versions, told, _mark(refits(rule)), _mark(counts(rule))]
        rows.append([*cells, gradient(key, rule)])
    return table(["operator", "versions", "what its rule states", "refit", "MACs", "gradient"], rows, left=6)


def _mark(holds: bool) -> str:
    return "yes" if holds else ""


def _said(what: Stated) -> str:
    parts = []
    if what.ties:
        parts.append("ties " + _few([f"`{each}`" for each in what.ties]))
    if what.sums:
        parts.append("sums over " + _few([f"`{each}`" for each in what.sums]))
    whole: Mapping[str, tuple[str, ...]] = what.whole or {}
    for reason, axes in whole.items():
        parts.append(f"whole ({_reason(Reason[reason])}): " + _few([f"`{axis}`" for axis in axes]))
    return "; ".join(parts) or "nothing that could be cut"


def _reason(reason: Reason) -> str:
    return reason.name.lower().replace("_", " ")


def _few(entries: Sequence[str]) -> str:
    more = len(entries) - MOST
    return ", ".join(entries[:MOST]) + (f" and {more} more" if more > 0 else "")


def _barriers(domain: str) -> str:
    rules, every = builtin_rules(), known()
    rows: dict[tuple[str, Reason], list[str]] = {}
    for key, entry in BARRIERS.items():
        if key[0] == domain and key in every and key not in rules:
            rows.setdefault(entry, []).append(key[1])
    lines = [[", ".join(sorted(names)), _reason(why), text] for (text, why), names in rows.items()]
    return table(["operators", "reason", "why"], sorted(lines), left=3)


def _domains() -> str:
    numbers = Counter(domain for domain, _ in known())
    rows = [[f"`{domain}`", numbers[domain], why] for domain, why in DOMAINS.items() if numbers[domain]]
    return table(["domain", "operators", "why"], rows, left=3)


if __name__ == "__main__":
    sys.exit(main())
