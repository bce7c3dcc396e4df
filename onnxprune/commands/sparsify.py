"""`onnxprune sparsify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.commands.terminal import log, name_files, width
from onnxprune.files import check_formats, open_checked, write_reports
from onnxprune.options import (
    FILE,
    bind_option,
    data_options,
    fold_option,
    loss_option,
    parse_bindings,
    provider_option,
    verbosity,
)
from onnxprune.progress import Bar


@click.command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, help="Where to write; MODEL.sparse.onnx by default.")
@click.option(
    "--sparsity", type=float, help="Share of the handled weights that becomes zero; 0.5 by default."
)
@click.option(
    "--pattern",
    default="element",
    show_default=True,
    help="element, N:M (N zeros in each M inputs, 2:4), blocks (4x1, 1x8), channelx1, 1xchannel or head.",
)
@click.option(
    "--criterion",
    default="auto",
    show_default=True,
    help="auto (the solver's own, or normed_abs), saliency, magnitude, wanda, snip, movement, rb, const, ...",
)
@click.option(
    "--scope",
    type=click.Choice(["global", "local", "row"]),
    help="global: one ranking of all layers; local: the same share of every layer; row: of every output. "
    "Default: what goes with the criterion.",
)
@click.option(
    "--solver",
    type=click.Choice(["auto", "mask", "sparsegpt", "obc"]),
    default="auto",
    show_default=True,
    help="What becomes of the other weights; auto: with data obc, in wide layers sparsegpt; else mask (nothing).",
)
@click.option("--reduce", type=click.Choice(["mean", "sum", "max"]), default="mean", help="Score of a block.")
@click.option("--min-ratio", type=float, default=0.0, help="At least this share of every layer becomes zero.")
@click.option("--max-ratio", type=float, default=1.0, help="At most this share of every layer becomes zero.")
@click.option("--rounds", type=int, default=1, show_default=True, help="Steps in which the level is reached.")
@click.option(
    "--schedule", default="cube", show_default=True, help="How far each goes: oneshot, linear, cube, ..."
)
@click.option(
    "--threshold", type=float, help="movement: weights of at most this importance go, instead of --sparsity."
)
@click.option("--regularization", type=float, default=0.0, help="movement: factor that lowers importance.")
@click.option("--structured", is_flag=True, help="movement: channels and heads go as a whole, or come back.")
@click.option("--lock", is_flag=True, help="Weights that are zero already stay zero, and count.")
@click.option(
    "--ignore", multiple=True, metavar="PATTERN", help="Leave matching layers dense (glob or re:...)."
)
@click.option(
    "--only", multiple=True, metavar="PATTERN", help="Handle matching layers only (glob or re:...)."
)
@click.option(
    "--storage",
    type=click.Choice(["dense", "sparse"]),
    default="dense",
    show_default=True,
    help="sparse: sparse_initializer where that saves bytes.",
)
@click.option("--report", "reports", type=FILE, multiple=True, help="Also write a report: .json or .md.")
@data_options(required=False)
@click.option("--test", help="Other samples to measure on; else some of --data are held back.")
@click.option("--memory", type=float, help="GiB for statistics; 40 % of what is free, at most 8.")
@click.option("--metric", help="top1, ..., agreement or module:function, as for validate.")
@loss_option
@bind_option
@fold_option
@provider_option
@click.option("--seed", type=int, default=0, show_default=True, help="For random numbers.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@verbosity
def sparsify(
    model: Path,
    output: Path | None,
    reports: tuple[Path, ...],
    bind: tuple[str, ...],
    fold_batchnorm: bool,
    force: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Make weights of MODEL zero, in place, and let the others make up for them.

    The shapes stay as they are: what a pattern buys at run time is said at the end.
    """
    from onnxprune import api
    from onnxprune.report import sparsity as reporter

    log(quiet, verbose)
    check_formats(reports)
    bindings = parse_bindings(bind)
    output = output or model.with_name(f"{model.stem}.sparse.onnx")
    with Bar(quiet) as bar:
        bar.update("loading", 0, 0)
        source = open_checked(model, output, reports, force=force)
        source = api.folded(source) if fold_batchnorm else source
        made = api.sparsify(source, output, bindings=bindings, force=force, progress=bar.update, **options)
    write_reports(made.path, made.report, reports, reporter.render_json, reporter.render_markdown)
    if not quiet:
        click.echo(reporter.render(made.report, verbose=verbose, width=width()))
        name_files([("model", made.path), *(("report", report) for report in reports)])
