"""Time of the weight solvers beside the least that the paper's steps take, and what each solver loses.

    python -m benchmarks.solvers

writes `solvers.md` and `solvers.json` beside this file. Nothing is kept from one run to the next: everything that
is compared is measured in turns, in the same run, on one BLAS thread. Times are CPU seconds of the process, because
other work on the machine only adds to those of the clock.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.tables import environment, environment_line, seconds, table, write
from onnxprune.solvers import Blocks, Elements, NOfM, PerRow, layer_error, obc, refit, sparsegpt

HERE = Path(__file__).parent
SHAPES = ((768, 3072), (3072, 768))
BLOCK = 128
RUNS = 3
TARGET = 2.0
OBC_SHAPES = ((64, 128), (64, 256), (256, 256), (64, 512))
QUALITY = (128, 512)
LEVELS = (0.5, 0.7, 0.9)


def layer(rows: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random weights; second moments of rectified inputs of uneven size, whose spectrum falls by e^6 or so."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((columns, columns)))[0]
    falling = np.exp(-3 * np.arange(columns) / columns)
    x = rng.standard_normal((2 * columns, columns)) * falling @ directions.T
    x = np.maximum(x * np.exp(0.5 * rng.standard_normal(columns)) + 0.1, 0)
    weight = rng.standard_normal((rows, columns)) * np.exp(0.4 * rng.standard_normal((rows, 1)))
    return weight, x.T @ x / len(x)


def timed(function: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    function()
    return time.process_time() - started


def products(weight: np.ndarray, upper: np.ndarray) -> None:
    """The paper's updates of later columns, `W[:, i2:] -= Err @ U[i1:i2, i2:]`, and nothing else."""
    weight = weight.copy()
    for start in range(0, weight.shape[1], BLOCK):
        stop = start + BLOCK
        weight[:, stop:] -= weight[:, start:stop] @ upper[start:stop, stop:]


def race(rows: int, columns: int) -> dict[str, Any]:
    """SparseGPT beside the plain steps, in turns: medians of seconds and of ratios."""
    weight, hessian = layer(rows, columns)
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(columns)
    inverse = np.linalg.inv(hessian)
    half = weight.size // 2
    mask = np.square(weight) * np.diag(hessian) < 0.3
    patterns = {
        "half of all elements": Elements(half),
        "half of all elements, the cheapest": Elements(half, even=False),
        "half of each row": PerRow(columns // 2),
        "2 of 4": NOfM(2, 4),
        "half of all 4 x 4 blocks": Blocks(half // 16, (4, 4)),
        "a given mask": mask,
    }
    steps: dict[str, Callable[[], Any]] = {
        "factor": lambda: np.linalg.cholesky(hessian),
        "inverse": lambda: np.linalg.inv(hessian),
        "factor of the inverse": lambda: np.linalg.cholesky(inverse),
        "products": lambda: products(weight, hessian),
    }
    runs: list[dict[str, float]] = []
    for _ in range(RUNS):
        took = {name: timed(step) for name, step in steps.items()}
        took |= {
            name: timed(lambda what=what: sparsegpt(weight, hessian, what)) for name, what in patterns.items()
        }
        runs.append(took)
    rows_of = {}
    for name in patterns:
        plain = [run[name] / sum(run[step] for step in steps) for run in runs]
        least = [run[name] / (run["factor"] + run["products"]) for run in runs]
        rows_of[name] = {
            "seconds": median(run[name] for run in runs),
            "of four steps": median(plain),
            "of two steps": median(least),
        }
        print(f"{rows} x {columns} {name:36} {median(plain):.2f} {median(least):.2f}", flush=True)
    return {
        "rows": rows,
        "columns": columns,
        "steps": {name: median(run[name] for run in runs) for name in steps},
        "patterns": rows_of,
    }


def flops(rows: int, columns: int) -> dict[str, float]:
    """Floating-point operations of the plain steps."""
    blocks = range(BLOCK, columns, BLOCK)
    return {
        "factor": columns**3 / 3,
        "inverse": 2 * columns**3,
        "factor of the inverse": columns**3 / 3,
        "products": float(sum(2 * rows * BLOCK * (columns - stop) for stop in blocks)),
    }


def surgery() -> list[dict[str, Any]]:
    """Seconds of `obc`."""
    found = []
    for rows, columns in OBC_SHAPES:
        weight, hessian = layer(rows, columns)
        half = weight.size // 2
        patterns = {
            "elements": Elements(half),
            "rows": PerRow(columns // 2),
            "2 of 4": NOfM(2, 4),
            "1 x 4 blocks": Blocks(half // 4, (1, 4)),
        }
        took = {name: timed(partial(obc, weight, hessian, what)) for name, what in patterns.items()}
        found.append({"rows": rows, "columns": columns, "seconds": took})
        print(f"obc {rows} x {columns}", {name: round(value, 2) for name, value in took.items()}, flush=True)
    return found


def losses() -> list[dict[str, Any]]:
    """Errors of several ways to the same number of zeros, as shares of the layer's output energy."""
    weight, hessian = layer(*QUALITY, seed=1)
    energy = layer_error(weight, np.zeros_like(weight), hessian)
    found = []
    for level in LEVELS:
        zeros = int(level * weight.size)
        order = np.argsort(np.abs(weight) * np.sqrt(np.diag(hessian)), axis=None, kind="stable")
        mask = np.zeros(weight.size, bool)
        mask[order[:zeros]] = True
        mask = mask.reshape(weight.shape)
        even = sparsegpt(weight, hessian, Elements(zeros))
        cheap = sparsegpt(weight, hessian, Elements(zeros, even=False), block=32)
        surgical = obc(weight, hessian, Elements(zeros))
        errors = {
            "size times input, no update": layer_error(weight, np.where(mask, 0, weight), hessian),
            "the same mask, refitted": refit(weight, mask, hessian).error,
            "SparseGPT": even.error,
            "SparseGPT, refitted": refit(weight, even.mask, hessian).error,
            "SparseGPT, `even=False`, `block=32`": cheap.error,
            "the same, refitted": refit(weight, cheap.mask, hessian).error,
            "OBC": surgical.error,
        }
        found.append({"level": level, "errors": {name: error / energy for name, error in errors.items()}})
    return found


def page(data: dict[str, Any]) -> str:
    """The Markdown page."""
    parts = [
        "# The weight solvers",
        "SparseGPT in pure numpy, float64, one BLAS thread, layers of random weights and correlated inputs. CPU "
        f"seconds, medians of {RUNS} runs in which everything in a table took turns; ratios are medians of the "
        "ratios of each run. Damping, checks of the input and the error that is reported are part of the time.",
    ]
    for race_ in data["sparsegpt"]:
        rows, columns = race_["rows"], race_["columns"]
        counts = flops(rows, columns)
        lines = [
            (name, f"{counts[name] / 1e9:.2f}", seconds(took), f"{counts[name] / took / 1e9:.0f}")
            for name, took in race_["steps"].items()
        ]
        parts += [
            f"## {rows} outputs, {columns} inputs",
            "What the paper's algorithm cannot do without, as plain numpy calls: Cholesky factor, inverse, "
            "Cholesky factor of the inverse (d^3/3 + 2 d^3 + d^3/3 operations for d inputs), and the products that "
            f"update later columns after every {BLOCK} (together about outputs x d^2).",
            table(["step", "10^9 operations", "seconds", "10^9 per second"], lines),
            "SparseGPT as a multiple of all four steps, which is to be at most "
            f"{TARGET:g}, and of only the first and the last, because this implementation needs no inverse.",
            table(
                ["zeros", "seconds", "of all four", "of factor and products"],
                [
                    (
                        name,
                        seconds(row["seconds"]),
                        f"{row['of four steps']:.2f}",
                        f"{row['of two steps']:.2f}",
                    )
                    for name, row in race_["patterns"].items()
                ],
            ),
        ]
    names = list(data["obc"][0]["seconds"])
    parts += [
        "## OBC",
        "Half of all weights, CPU seconds. Time grows with the number of rows and with the cube of the number of "
        "columns; what compares rows (elements, blocks) tries all weights of every row, the others only those that "
        "go.",
        table(
            ["rows x columns", *names],
            [
                (f"{row['rows']} x {row['columns']}", *(seconds(row["seconds"][name]) for name in names))
                for row in data["obc"]
            ],
        ),
        "## What is lost",
        f"One layer of {QUALITY[0]} outputs and {QUALITY[1]} inputs, any elements, dampening 0.01: the error as a "
        "share of the layer's output energy.",
        table(
            ["zeros", *(f"{row['level']:.0%}".replace("%", " %") for row in data["losses"])],
            [
                (name, *(f"{row['errors'][name]:.4f}" for row in data["losses"]))
                for name in data["losses"][0]["errors"]
            ],
        ),
        environment_line(data["environment"]),
    ]
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write the page; 1 where the target is missed."""
    parser = argparse.ArgumentParser(prog="benchmarks.solvers", description=(__doc__ or "").partition(":")[0])
    parser.add_argument(
        "--fresh", action="store_true", help="nothing is ever kept; for `python -m benchmarks`"
    )
    parser.parse_args(arguments)
    with threadpool_limits(1, user_api="blas"):
        data: dict[str, Any] = {
            "sparsegpt": [race(*shape) for shape in SHAPES],
            "obc": surgery(),
            "losses": losses(),
            "environment": environment(),
        }
    write(HERE, "solvers", page(data), data)
    ratios = [row["of four steps"] for found in data["sparsegpt"] for row in found["patterns"].values()]
    return int(max(ratios) > TARGET)


if __name__ == "__main__":
    raise SystemExit(main())
