"""Runs of many seeds: they go on where they were stopped, survive a crash, and can be summed up."""

from __future__ import annotations

import json
import os
from collections import Counter

import pytest
from click.testing import CliRunner

from benchmarks import fuzz
from tests.fuzz import __main__ as campaign
from tests.fuzz import log
from tests.fuzz.check import Outcome

FATAL, DRAWN_TWICE = 3, 4


def outcome(seed, **more):
    drawn = Counter({("", "Relu"): 2, ("com.microsoft", "Gelu"): 1})
    figures = {"nodes": 10 + seed, "opset": 17, "dtype": "float32", "groups": 1, "dropped": 4, "macs": 0.5}
    return Outcome(seed, **{"drawn": drawn, "digest": f"d{seed}", "seconds": 0.25, **figures, **more})


def draw(seed, after):
    if seed == DRAWN_TWICE and after < 2:
        os._exit(1)


def check(seed, after=0):
    draw(seed, after)
    if seed == FATAL:
        os._exit(1)
    return outcome(seed, redraws=("onnxruntime: crash",) if after else ())


def test_a_crash_costs_one_seed():
    outcomes = {each.seed: each for each in campaign.run(range(6), jobs=2, check=check, draw=draw)}
    assert sorted(outcomes) == list(range(6))
    assert {seed: each.failure[0] for seed, each in outcomes.items() if each.failure} == {FATAL: "crash"}
    assert [seed for seed, each in outcomes.items() if each.redraws] == [DRAWN_TWICE]


def test_a_run_goes_on(tmp_path, monkeypatch):
    path, seen = tmp_path / "log.jsonl", []
    for seed in (0, 1):
        log.append(path, log.record(outcome(seed), "abc"))
    log.append(path, log.record(outcome(2, failure=("prune X", "why")), "abc"))
    path.write_text(path.read_text() + '{"seed": 4, "no', encoding="utf-8")  # it was stopped here

    def run(seeds, jobs):
        seen.extend(seeds)
        return map(outcome, seeds)

    monkeypatch.setattr(campaign, "run", run)
    done = CliRunner().invoke(campaign.main, ["--count", "5", "--log", str(path)])
    assert done.exit_code == 0, done.output
    assert seen == [2, 3, 4]
    again = log.read([path])
    assert list(again) == [0, 1, 2, 3, 4]
    assert again[2]["failure"] is None


def test_sums():
    lines = [log.record(outcome(0), "abc"), log.record(outcome(1, dropped=0), "abc")]
    lines.append(log.record(outcome(2, failure=("slim", "off"), macs=0.7), "def+"))
    lines = [json.loads(json.dumps(line)) for line in lines]
    data = fuzz.summary(lines)
    assert (data["graphs"], data["seeds"], data["cut"], data["macs"]) == (3, [0, 2], 2, 0.6)
    assert data["commits"] == {"abc": 2, "def+": 1}
    assert data["nodes"] == {"all": 33, "least": 10, "median": 11, "most": 12}
    assert data["operators"] == {"Relu": 6, "com.microsoft:Gelu": 3}
    assert data["failures"] == [{"seed": 2, "commit": "def+", "kind": "slim"}]
    other = [*lines[:2], {**lines[2], "digest": "x"}]
    assert fuzz.summary(other)["digest"] != data["digest"]
    page = fuzz.render({**data, "environment": {"versions": {}, "cores": 1, "machine": "m"}}, [])
    assert "| 2 | def+ | slim |" in page and "2 (67 %)" in page


def test_no_lines():
    with pytest.raises(ValueError, match="no lines"):
        fuzz.summary([])
