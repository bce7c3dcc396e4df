"""Many graphs at once: `python -m tests.fuzz --from 0 --count 10000 --jobs 2 --log fuzz.jsonl`."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import click

from tests.fuzz import log
from tests.fuzz.check import Outcome, check_seed
from tests.fuzz.generate import generate
from tests.fuzz.minimise import minimise

Check = Callable[..., Outcome]
Draw = Callable[[int, int], object]
Result = TypeVar("Result")
EVERY = 100
"""Graphs between two lines about how far the run has come."""
MOST = 6
"""Draws of one seed until onnxruntime survives one."""
RENEWED = 1000
"""Graphs after which a process makes room for a new one."""


def run(
    seeds: Sequence[int], jobs: int, check: Check = check_seed, draw: Draw = generate
) -> Iterator[Outcome]:
    """Outcomes as they come; a seed that kills its process has failed, unless drawing its graph does that."""
    left = list(seeds)
    while left:
        done, broken = set(), False
        with _pool(jobs) as pool:
            pending: set[Future[Outcome]] = set()
            coming = iter(left)
            while not broken:
                for seed in _next(coming, 2 * jobs - len(pending)):
                    pending.add(pool.submit(check, seed))
                if not pending:
                    break
                finished, pending = wait(pending, return_when="FIRST_COMPLETED")
                for future in finished:
                    try:
                        outcome = future.result()
                    except BrokenProcessPool:
                        broken = True
                        continue
                    done.add(outcome.seed)
                    yield outcome
        left = [seed for seed in left if seed not in done]
        if broken:  # one of the first in line did it
            suspects, left = left[: 2 * jobs], left[2 * jobs :]
            yield from (_alone(seed, check, draw) for seed in suspects)


def _next(seeds: Iterator[int], count: int) -> Iterable[int]:
    return [seed for _, seed in zip(range(count), seeds, strict=False)]


def _alone(seed: int, check: Check, draw: Draw) -> Outcome:
    """Check a seed in a process of its own; where onnxruntime does not survive the graph as drawn, another draw."""
    try:
        return _apart(check, seed)
    except BrokenProcessPool as error:
        crash = Outcome(seed, failure=("crash", str(error)))
    for after in range(MOST):
        with contextlib.suppress(BrokenProcessPool):
            _apart(draw, seed, after)
            return _apart(partial(check, after=after), seed) if after else crash
    return crash


def _apart(function: Callable[..., Result], *args: object, **kwargs: object) -> Result:
    with _pool(1) as pool:
        return pool.submit(function, *args, **kwargs).result()


def _pool(jobs: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, context, max_tasks_per_child=RENEWED)


def summary(outcomes: Sequence[Outcome], seconds: float) -> str:
    """The figures of a run as text."""
    nodes = sorted(outcome.nodes for outcome in outcomes)
    lost = [outcome for outcome in outcomes if outcome.dropped]
    drawn: Counter[str] = Counter()
    for outcome in outcomes:
        drawn.update({":".join(filter(None, key)): n for key, n in outcome.drawn.items()})
    reasons = Counter(why.split(":")[0].split()[-1] for outcome in outcomes for why in outcome.redraws)
    lines = [
        f"graphs                {len(outcomes)}, seeds {min(o.seed for o in outcomes)} to "
        f"{max(o.seed for o in outcomes)}, {seconds:.0f} s",
        f"nodes                 {nodes[0]} / {median(nodes):g} / {nodes[-1]} (min / median / max)",
        f"operators             {len(drawn)}",
        f"float types           {dict(Counter(o.dtype for o in outcomes))}",
        f"traits                {dict(Counter(trait for o in outcomes for trait in o.traits))}",
        f"with groups           {sum(outcome.groups > 0 for outcome in outcomes)}",
        f"lost something        {len(lost)}",
        f"masks undone by slim  {sum(outcome.compared for outcome in outcomes)}",
        f"MACs removed          {median([o.macs for o in lost] or [0]):.1%} (median of those)",
        f"params removed        {median([o.params for o in lost] or [0]):.1%}",
        f"redraws               {sum(len(o.redraws) for o in outcomes)} {dict(reasons)}",
        f"processor             {sum(o.seconds for o in outcomes) / len(outcomes):.2f} s a graph",
        "drawn                 " + ", ".join(f"{name} {n}" for name, n in sorted(drawn.items())),
    ]
    failures = [outcome for outcome in outcomes if outcome.failure]
    lines.append(f"failures              {len(failures)}")
    lines += [
        f"  seed {o.seed} ({o.nodes} nodes): {o.failure[0]}: {o.failure[1][:400]}"
        for o in failures
        if o.failure
    ]
    return "\n".join(lines)


@click.command()
@click.option("--from", "first", default=0, help="The first seed.")
@click.option("--count", default=200, help="How many seeds.")
@click.option("--jobs", default=1, help="Processes.")
@click.option("--minimise", "smaller", is_flag=True, help="Make the model of every failure small.")
@click.option(
    "--log",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where every seed gets a line. Seeds that have one are not run again, unless they failed.",
)
def main(first: int, count: int, jobs: int, smaller: bool, path: Path | None) -> None:
    """Prune random graphs and say what happened; exits with 1 where something failed."""
    start, revision = time.monotonic(), log.commit()
    known = log.read([path]) if path is not None else {}
    seeds = [s for s in range(first, first + count) if s not in known or known[s]["failure"]]
    outcomes = []
    for outcome in run(seeds, jobs):
        outcomes.append(outcome)
        if path is not None:
            log.append(path, log.record(outcome, revision))
        if len(outcomes) % EVERY == 0:
            click.echo(f"{len(outcomes)} of {len(seeds)}, {time.monotonic() - start:.0f} s", err=True)
        if outcome.failure:
            click.echo(f"seed {outcome.seed}: {outcome.failure[0]}: {outcome.failure[1][:300]}", err=True)
    click.echo(summary(outcomes, time.monotonic() - start) if outcomes else "every seed has a line already")
    failed = [outcome.seed for outcome in outcomes if outcome.failure]
    for seed in failed if smaller else ():
        click.echo(minimise(seed))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
