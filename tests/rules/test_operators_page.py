"""docs/operators.md: no operator is forgotten, and the page says what the rules say."""

from __future__ import annotations

import onnx.defs
import pytest

from benchmarks import operators
from benchmarks.operators_facts import known, stated
from onnxprune.errors import Reason
from onnxprune.rules import builtin_rules
from onnxprune.rules.barriers import BARRIERS, DOMAINS, barrier_of

AGAIN = "write docs/operators.md again: python -m benchmarks.operators"


def test_every_operator_is_ruled_or_a_barrier_on_purpose():
    """A new version of onnx or onnxruntime, or a rule that was taken back, shows up here."""
    standard = {(schema.domain, schema.name) for schema in onnx.defs.get_all_schemas_with_history()}
    assert standard < set(known())
    assert operators.unlisted() == [], "write a rule, or a reason in onnxprune/rules/barriers.py"


def test_the_page_is_what_the_rules_say():
    page = operators.PAGE.read_text(encoding="utf-8")
    if operators.versions_line() not in page:
        pytest.skip("the page was made with other versions of onnx or onnxruntime")
    assert page == operators.render(), AGAIN


def test_every_operator_is_on_the_page():
    page = operators.PAGE.read_text(encoding="utf-8")
    if operators.versions_line() not in page:
        pytest.skip("the page was made with other versions of onnx or onnxruntime")
    words = set(page.replace("|", " ").replace(",", " ").split())
    assert {name for domain, name in known() if domain not in DOMAINS} - words == set()


def test_what_a_line_says():
    """A convolution: channels with the weight's columns; what comes in is summed over; windows stay."""
    conv = stated(("", "Conv"))
    assert "W[0]" in next(tie for tie in conv.ties if "Y[1]" in tie) and "B[0]" in " ".join(conv.ties)
    assert conv.sums == ("X[1] W[1]",)
    assert {"X[2]", "Y[2]", "W[2]"} <= set(conv.whole["SPATIAL"])
    assert stated(("", "Softmax")).whole["SOFTMAX"]
    assert any("*" in tie for tie in stated(("", "Concat")).ties)


def test_reasons():
    assert barrier_of(("", "SequenceAt")) is Reason.NO_AXES
    assert barrier_of(("my.domain", "MyOp")) is Reason.NO_RULE
    for text, reason in BARRIERS.values():
        assert isinstance(reason, Reason) and text and not text.endswith(".")


def test_a_rule_goes_before_a_barrier():
    """No line about an operator that has a rule is on the page as a barrier."""
    page = operators.render().partition("## Barriers on purpose")[2]
    names = {name for domain, name in builtin_rules() if not domain}
    standard = page.partition("### com.microsoft")[0]
    listed = {
        word
        for line in standard.splitlines()
        if line.startswith("| ")
        for word in line.split(" | ")[0][2:].split(", ")
    }
    assert not listed & names
