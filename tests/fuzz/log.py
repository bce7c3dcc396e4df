"""What became of each seed, one line of JSON per seed: a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.fuzz.check import Outcome

ROOT = Path(__file__).parents[2]
Record = dict[str, Any]


def commit() -> str:
    """The commit that is tested; `+` behind it: with changes."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "onnxprune", "tests")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def record(outcome: Outcome, revision: str) -> Record:
    """An outcome as JSON has it."""
    body = asdict(outcome)
    body["drawn"] = {":".join(filter(None, key)): n for key, n in sorted(outcome.drawn.items())}
    body["redraws"] = [why[:80] for why in outcome.redraws]
    for name in ("macs", "params", "seconds"):
        body[name] = round(body[name], 4)
    return {**body, "commit": revision}


def append(path: Path, entry: Record) -> None:
    """Add a line, behind one that may have been cut off."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(entry).encode() + b"\n")


def read(paths: Iterable[Path]) -> dict[int, Record]:
    """The last record of every seed, by seed; a line that was cut off is left out."""
    found: dict[int, Record] = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            found[entry["seed"]] = entry
    return dict(sorted(found.items()))
