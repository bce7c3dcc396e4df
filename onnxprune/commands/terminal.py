"""What all commands need of the terminal."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from onnxprune.errors import UsageError

LOG = logging.getLogger("onnxprune")


def width() -> int | None:
    """Columns of the terminal; None where the output is none."""
    return max(shutil.get_terminal_size().columns, 60) if sys.stdout.isatty() else None


def log(quiet: bool, verbose: bool) -> None:
    """Send the project's log to standard error, at the level that `-q` and `-v` ask for.

    Raises
    ------
    UsageError
        Both are given.
    """
    if quiet and verbose:
        raise UsageError("-q and -v contradict each other", "Give one.")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    LOG.handlers[:] = [handler]
    LOG.setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)


def name_files(files: Iterable[tuple[str, Path | None]]) -> None:
    """Say what was written where, after an empty line."""
    click.echo()
    for what, file in files:
        if file is not None:
            click.echo(f"{what} written to {file}")
