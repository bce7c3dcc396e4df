"""`onnxprune slim`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.commands.terminal import log, name_files, width
from onnxprune.files import check_formats, open_checked, write_reports
from onnxprune.options import FILE, bind_option, data_options, parse_bindings, provider_option, verbosity
from onnxprune.progress import Bar


@click.command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, help="Where to write; MODEL.slim.onnx by default.")
@click.option("--report", "reports", type=FILE, multiple=True, help="Also write a report: .json or .md.")
@data_options(required=False)
@bind_option
@provider_option
@click.option("--seed", type=int, default=0, show_default=True, help="For generated inputs.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@verbosity
def slim(
    model: Path,
    output: Path | None,
    reports: tuple[Path, ...],
    bind: tuple[str, ...],
    force: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Remove from MODEL what contributes nothing: channels of zeros, constants and duplicates, dead branches.

    The outputs stay what they were, which is proven on samples or generated inputs.
    """
    from onnxprune import api
    from onnxprune.report import slimmed as reporter

    log(quiet, verbose)
    check_formats(reports)
    bindings = parse_bindings(bind)
    output = output or model.with_name(f"{model.stem}.slim.onnx")
    with Bar(quiet) as bar:
        bar.update("loading", 0, 0)
        source = open_checked(model, output, reports, force=force)
        made = api.slim(source, output, bindings=bindings, force=force, progress=bar.update, **options)
    write_reports(made.path, made.report, reports, reporter.render_json, reporter.render_markdown)
    if not quiet:
        click.echo(reporter.render(made.report, verbose=verbose, width=width()))
        name_files([("model", made.path), *(("report", report) for report in reports)])
