"""`onnxprune stats`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxprune.commands import terminal
from onnxprune.files import open_checked
from onnxprune.options import FILE, bind_option, parse_bindings, verbosity
from onnxprune.progress import Bar


@click.command()
@click.argument("model", type=FILE)
@click.option("--against", type=FILE, help="The model it came from, to compare with.")
@click.option(
    "--json", "json_file", type=FILE, metavar="FILE", help="Write the statistics as JSON; - prints it."
)
@bind_option
@click.option("--force", is_flag=True, help="Replace an existing JSON file.")
@verbosity
def stats(
    model: Path,
    against: Path | None,
    json_file: Path | None,
    bind: tuple[str, ...],
    force: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Count the zeros of MODEL, whoever made them: how many, in which pattern, what they are worth."""
    from onnxprune import api
    from onnxprune.model.io import write_text
    from onnxprune.report import stats as reporter

    terminal.log(quiet, verbose)
    bindings = parse_bindings(bind)
    to_file = None if json_file == Path("-") else json_file
    with Bar(quiet) as bar:
        bar.update("loading", 0, 0)
        others = () if against is None else (against,)
        source = open_checked(model, None, (to_file,), force=force, others=others)
        found = api.stats(source, against=against, bindings=bindings, progress=bar.update)
        text = reporter.render_json(found) if json_file is not None else ""
    if to_file is not None:
        write_text(to_file, text)
    elif json_file is not None:
        click.echo(text, nl=False)
        return
    if not quiet:
        click.echo(reporter.render(found, verbose=verbose, width=terminal.width()))
        if to_file is not None:
            click.echo(f"\nstatistics written to {to_file}")
