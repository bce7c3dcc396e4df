"""Many graphs at once: `python -m tests.fuzz --from 0 --count 2000 --jobs 1`."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Sequence
from statistics import median

import click

from tests.fuzz.check import Outcome, check_seed
from tests.fuzz.minimise import minimise

EVERY = 100
"""Graphs between two lines about how far the run has come."""


def summary(outcomes: Sequence[Outcome], seconds: float) -> str:
    """The figures of a run as text."""
    nodes = sorted(outcome.nodes for outcome in outcomes)
    lost = [outcome for outcome in outcomes if outcome.dropped]
    drawn: Counter[str] = Counter()
    for outcome in outcomes:
        drawn.update({":".join(filter(None, key)): n for key, n in outcome.drawn.items()})
    reasons = Counter(why.split(":")[0].split()[-1] for outcome in outcomes for why in outcome.redraws)
    lines = [
        f"graphs                {len(outcomes)}, seeds {outcomes[0].seed} to {outcomes[-1].seed}, {seconds:.0f} s",
        f"nodes                 {nodes[0]} / {median(nodes):g} / {nodes[-1]} (min / median / max)",
        f"operators             {len(drawn)}",
        f"with groups           {sum(outcome.groups > 0 for outcome in outcomes)}",
        f"lost something        {len(lost)}",
        f"MACs removed          {median([o.macs for o in lost] or [0]):.1%} (median of those)",
        f"params removed        {median([o.params for o in lost] or [0]):.1%}",
        f"redraws               {sum(len(o.redraws) for o in outcomes)} {dict(reasons)}",
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
def main(first: int, count: int, jobs: int, smaller: bool) -> None:
    """Prune random graphs and say what happened; exits with 1 where something failed."""
    start = time.monotonic()
    seeds = range(first, first + count)
    outcomes = []
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for outcome in pool.imap(check_seed, seeds):
            outcomes.append(outcome)
            if len(outcomes) % EVERY == 0:
                click.echo(f"{len(outcomes)} of {count}, {time.monotonic() - start:.0f} s", err=True)
            if outcome.failure:
                click.echo(f"seed {outcome.seed}: {outcome.failure[0]}: {outcome.failure[1][:300]}", err=True)
    click.echo(summary(outcomes, time.monotonic() - start))
    failed = [outcome.seed for outcome in outcomes if outcome.failure]
    for seed in failed if smaller else ():
        click.echo(minimise(seed))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
