"""Run all benchmarks, one after another: `python -m benchmarks`, which is what `make bench` calls."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable

from benchmarks import (
    coverage,
    criteria,
    fuzz,
    gradients,
    huge,
    latency,
    operators,
    quality,
    readme,
    real,
    scaling,
    solvers,
    sparsity,
    torchvision_table,
)

BENCHMARKS: dict[str, Callable[[list[str]], int]] = {
    "scaling": scaling.main,
    "real": real.main,
    "solvers": solvers.main,
    "torchvision_table": torchvision_table.main,
    "gradients": gradients.main,
    "fuzz": fuzz.main,
    "operators": operators.main,
    "latency": latency.main,
    "coverage": coverage.main,
    "sparsity": sparsity.main,
    "quality": quality.main,
    "criteria": criteria.main,
    "huge": huge.main,
    "readme": readme.main,
}
LONG = ("coverage", "criteria", "gradients", "huge", "latency", "quality", "sparsity")
"""These take long, or want transformers or 8 GB of disk, and run only by name."""


def main(arguments: list[str] | None = None) -> int:
    """Run the named benchmarks, all but the longest by default; one that fails does not hide the others."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=(__doc__ or "").partition(":")[0])
    usual = [name for name in BENCHMARKS if name not in LONG]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {', '.join(usual)}")
    parser.add_argument("--fresh", action="store_true", help="use no results of an earlier run")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - set(BENCHMARKS)):
        parser.error(f"unknown benchmark: {', '.join(unknown)}")
    failed = 0
    for name in options.names or usual:
        print(f"== {name}", flush=True)
        try:
            failed |= BENCHMARKS[name](["--fresh"] if options.fresh else [])
        except Exception:
            traceback.print_exc()
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
