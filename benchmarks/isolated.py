"""Run one step of a benchmark in a process of its own: time limit, peak memory, and failure as a value.

Results are kept under `build/bench`, so that a run that was interrupted goes on where it stopped. What a
result depends on (arguments, versions, the package's source) is part of its key: stale results are not found
again.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

LIMIT = 240.0
"""Seconds that a step of the coverage benchmark may take."""

MODULE_LIMIT = 90.0
"""Seconds for Torch-Pruning, which either takes a few of them or does not come back."""

MEMORY = 12 << 30
"""Bytes that a step may allocate; one that wants more fails, and the machine stays usable."""
CACHE = Path("build/bench/cache")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Outcome:
    """What a step returned, or why it did not.

    Attributes
    ----------
    value
        What the function returned; empty after a failure.
    failure
        The reason in one line; empty after a success.
    seconds
        Wall time of the whole process, imports included.
    """

    value: dict[str, Any] = field(default_factory=dict)
    failure: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether there is a value."""
        return not self.failure


def call(
    function: str,
    arguments: Mapping[str, Any],
    *,
    limit: float = 600.0,
    depends: Mapping[str, str] | None = None,
    fresh: bool = False,
) -> Outcome:
    """Call `module:function` with keyword arguments in a new process.

    Parameters
    ----------
    function
        Gives a dict that JSON can hold.
    arguments
        Must be JSON.
    limit
        Seconds after which the process and its children are killed.
    depends
        What else the result depends on, for the key under which it is kept.
    fresh
        Run even where a result is kept.
    """
    kept = _place(function, arguments, depends)
    if kept.exists() and not fresh:
        return Outcome(**json.loads(kept.read_text(encoding="utf-8")))
    outcome = _run(function, arguments, limit)
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    partial.replace(kept)
    return outcome


def known(
    function: str, arguments: Mapping[str, Any], depends: Mapping[str, str] | None = None
) -> Outcome | None:
    """What an earlier `call` gave; None where there was none."""
    kept = _place(function, arguments, depends)
    return Outcome(**json.loads(kept.read_text(encoding="utf-8"))) if kept.exists() else None


def _place(function: str, arguments: Mapping[str, Any], depends: Mapping[str, str] | None) -> Path:
    key = json.dumps([function, arguments, dict(depends or {})], sort_keys=True)
    return CACHE / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def _run(function: str, arguments: Mapping[str, Any], limit: float) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.isolated", function, json.dumps(arguments), str(result)]
        inherited = os.environ.get("PYTHONPATH", "")
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path.cwd(),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), inherited]))},
            start_new_session=True,
        )
        try:
            _, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return Outcome(failure=f"not done within {limit:g} s", seconds=limit)
        seconds = time.perf_counter() - started
        if result.exists():
            return Outcome(**json.loads(result.read_text(encoding="utf-8")), seconds=seconds)
        last = (errors.strip().splitlines() or ["no message"])[-1]
        ended = signal.Signals(-process.returncode).name if process.returncode < 0 else process.returncode
        return Outcome(failure=f"the process ended with {ended}: {last}"[:300], seconds=seconds)


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    try:  # not getrusage: its figure is inherited from the process that started this one
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    if resource is None:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


@functools.cache
def source_digest() -> str:
    """Hash of onnxprune's source."""
    import onnxprune

    digest = hashlib.sha256()
    for file in sorted(Path(onnxprune.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def version(package: str) -> str:
    """Installed version of a package; empty where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def file_digest(path: Path) -> str:
    """Hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def main() -> None:
    """Be the process that `call` started."""
    parser = argparse.ArgumentParser(prog="benchmarks.isolated")
    parser.add_argument("function", help="module:name")
    parser.add_argument("arguments", type=json.loads)
    parser.add_argument("result", type=Path)
    options = parser.parse_args()
    module, _, name = options.function.partition(":")
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    outcome: dict[str, Any] = {}
    try:
        outcome["value"] = getattr(importlib.import_module(module), name)(**options.arguments)
    except Exception as error:  # a failure is a result, told with its reason
        traceback.print_exc()
        text = " ".join(str(error).split()) or "no message"
        outcome["failure"] = f"{type(error).__name__}: {text}"[:300]
    options.result.write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    main()
