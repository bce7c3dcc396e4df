"""The command line. It prints, together with `onnxprune.commands`; heavy imports happen inside the commands."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from onnxprune import __version__
from onnxprune.collector import THRESHOLDS
from onnxprune.commands.slim import slim
from onnxprune.commands.sparsify import sparsify
from onnxprune.commands.stats import stats
from onnxprune.commands.terminal import LOG, log, name_files, width
from onnxprune.errors import OnnxPruneError
from onnxprune.files import check_formats, default_output, open_checked, write_side_files
from onnxprune.options import (
    FILE,
    attention_option,
    bind_option,
    data_options,
    fold_option,
    inexact_option,
    latency_options,
    loss_option,
    parse_bindings,
    provider_option,
    refit_io_option,
    repair_options,
    rounds_options,
    verbosity,
)
from onnxprune.progress import Bar


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def cli() -> None:
    """Make trained ONNX models smaller and faster without retraining."""


@cli.command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, help="Where to write; MODEL.pruned.onnx by default.")
@click.option("--macs", type=float, help="Keep at most this share of the MACs (0.7 without any target).")
@click.option("--params", type=float, help="Keep at most this share of the parameters.")
@latency_options
@click.option("--ratio", type=float, help="Drop this share of the units.")
@click.option(
    "--criterion",
    default="auto",
    show_default=True,
    help="auto (obs with data, else l2), obs, l1, l2, wanda, fisher, ... or sums of ranks: l2+apoz.",
)
@loss_option
@click.option(
    "--scope",
    type=click.Choice(["global", "learned", "local", "uniform"]),
    help="global: one ranking over all groups (default); local: the same share of every group (default with "
    "--ratio); uniform: NNCF's level per group; learned: LeGR's search on data.",
)
@click.option(
    "--preset", type=click.Choice(["nncf"]), help="nncf: first and strided convolutions stay whole."
)
@rounds_options
@click.option(
    "--round-to",
    type=int,
    help="Widths are multiples of this. Default: 8; 4 where groups are ranked and one is narrower than 64.",
)
@click.option(
    "--ignore", multiple=True, metavar="PATTERN", help="Leave matching layers whole (glob or re:...)."
)
@click.option("--only", multiple=True, metavar="PATTERN", help="Cut matching layers only (glob or re:...).")
@click.option(
    "--mode",
    type=click.Choice(["remove", "mask"]),
    default="remove",
    show_default=True,
    help="Cut channels out, or zero them and keep all shapes.",
)
@click.option("--plan", "plan_file", type=FILE, help="Also write the plan (JSON).")
@click.option("--report", "reports", type=FILE, multiple=True, help="Also write a report: .json or .md.")
@data_options(required=False)
@repair_options
@click.option("--metric", help="top1, ..., agreement or module:function, as for validate.")
@bind_option
@fold_option
@provider_option
@click.option("--seed", type=int, default=0, show_default=True, help="For random numbers.")
@click.option("--best-effort", is_flag=True, help="Where the target is out of reach, take what is reachable.")
@inexact_option
@refit_io_option
@attention_option("auto", "heads", "dims")
@click.option(
    "--slim/--no-slim", default=True, help="First remove what contributes nothing (see `slim`); the default."
)
@click.option("--force", is_flag=True, help="Replace an existing output.")
@verbosity
def prune(
    model: Path,
    output: Path | None,
    plan_file: Path | None,
    reports: tuple[Path, ...],
    bind: tuple[str, ...],
    fold_batchnorm: bool,
    force: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Prune MODEL and write the result beside it.

    Without a target, at most 70 % of the MACs are kept.
    """
    from onnxprune import api

    log(quiet, verbose)
    check_formats(reports)
    bindings = parse_bindings(bind)
    output = output or default_output(model)
    with Bar(quiet) as bar:
        bar.update("loading", 0, 0)
        source = open_checked(model, output, (plan_file, *reports), force=force)
        source = api.folded(source) if fold_batchnorm else source
        pruned = api.prune(source, output, bindings=bindings, force=force, progress=bar.update, **options)
    write_side_files(pruned, plan_file, reports)
    _show(pruned, quiet, verbose, plan_file, reports)


@cli.command()
@click.argument("model", type=FILE)
@click.argument("plan", type=FILE)
@click.option("-o", "--output", type=FILE, help="Where to write; MODEL.pruned.onnx by default.")
@click.option("--mode", type=click.Choice(["remove", "mask"]), default="remove", show_default=True)
@click.option("--report", "reports", type=FILE, multiple=True, help="Also write a report: .json or .md.")
@data_options(required=False)
@repair_options
@bind_option
@fold_option
@provider_option
@click.option("--force", is_flag=True, help="Replace an existing output.")
@verbosity
def apply(
    model: Path,
    plan: Path,
    output: Path | None,
    reports: tuple[Path, ...],
    bind: tuple[str, ...],
    fold_batchnorm: bool,
    force: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Replay PLAN, which `prune --plan` wrote, on MODEL."""
    from onnxprune import api

    log(quiet, verbose)
    check_formats(reports)
    bindings = parse_bindings(bind)
    output = output or default_output(model)
    with Bar(quiet) as bar:
        bar.update("loading", 0, 0)
        source = open_checked(model, output, reports, force=force, others=(plan,))
        source = api.folded(source) if fold_batchnorm else source
        pruned = api.apply(
            source, plan, output, bindings=bindings, force=force, progress=bar.update, **options
        )
    write_side_files(pruned, None, reports)
    _show(pruned, quiet, verbose, None, reports)


@cli.command()
@click.argument("model", type=FILE)
@click.option(
    "--json", "json_file", type=FILE, metavar="FILE", help="Write the analysis as JSON; - prints it."
)
@bind_option
@inexact_option
@refit_io_option
@attention_option("heads", "dims")
@click.option("--force", is_flag=True, help="Replace an existing JSON file.")
@verbosity
def analyze(
    model: Path,
    json_file: Path | None,
    bind: tuple[str, ...],
    allow_inexact: bool,
    refit_io: tuple[str, ...],
    attention: str,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Show groups, units, what each costs, and what is blocked and why."""
    from onnxprune import api
    from onnxprune.model.io import write_text
    from onnxprune.report import analysis as reporter

    log(quiet, verbose)
    bindings = parse_bindings(bind)
    with Bar(quiet) as bar:
        to_file = None if json_file == Path("-") else json_file
        bar.update("loading", 0, 0)
        source = open_checked(model, None, (to_file,), force=force)
        bar.update("analysing", 0, 0)
        result = api.analyze(
            source, bindings=bindings, allow_inexact=allow_inexact, refit_io=refit_io, attention=attention
        )
        text = reporter.render_json(result) if json_file is not None else ""
    if to_file is not None:
        write_text(to_file, text)
    elif json_file is not None:
        click.echo(text, nl=False)
    elif not quiet:
        click.echo(reporter.render(result, verbose=verbose, width=width()))
    if to_file is not None and not quiet:
        click.echo(reporter.render(result, verbose=verbose, width=width()))
        click.echo(f"\nanalysis written to {to_file}")


@cli.command()
@click.argument("model", type=FILE)
@click.argument("name")
@bind_option
@inexact_option
@refit_io_option
@attention_option("heads", "dims")
def explain(model: Path, name: str, bind: tuple[str, ...], **axes: Any) -> None:
    """Say why tensor, layer, axis (`tensor[dim]`) or group NAME is coupled or blocked."""
    from onnxprune import api

    log(quiet=False, verbose=False)
    bindings = parse_bindings(bind)
    with Bar() as bar:
        bar.update("analysing", 0, 0)
        analysis = api.analyze(model, bindings=bindings, **axes)
        explanation = api.explain(analysis, name)
    click.echo(str(explanation))


@cli.command()
@click.argument("model", type=FILE)
@data_options(required=True)
@click.option("--against", type=FILE, help="The original, to compare with.")
@click.option(
    "--metric", help="top1 (default), top5, f1, miou, mse, psnr, perplexity, agreement or module:function."
)
@click.option("--output", help="Name of the output that carries the logits; the first by default.")
@provider_option
@verbosity
def validate(
    model: Path,
    data: str,
    samples: int | None,
    preprocess: str | None,
    against: Path | None,
    metric: str | None,
    output: str | None,
    provider: str,
    quiet: bool,
    verbose: bool,
) -> None:
    """Measure the accuracy of MODEL, and how far its outputs are from the original's."""
    from onnxprune import api

    log(quiet, verbose)
    with Bar(quiet) as bar:
        result = api.validate(
            model,
            data,
            against=against,
            metric=metric,
            samples=samples,
            preprocess=preprocess,
            provider=provider,
            output=output,
            progress=bar.update,
        )
    if not quiet:
        click.echo(str(result))


@cli.command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, help="Where to write; MODEL.gradients.onnx by default.")
@data_options(required=False)
@loss_option
@click.option("--wrt", multiple=True, metavar="PATTERN", help="Of which weights or activations; all weights.")
@click.option("--units", is_flag=True, help="Of masks over the units of all groups, per sample.")
@attention_option("heads", "dims")
@bind_option
@provider_option
@click.option("--seed", type=int, default=0, show_default=True, help="For labels and signs that are drawn.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@verbosity
def gradients(
    model: Path, output: Path | None, bind: tuple[str, ...], quiet: bool, verbose: bool, **options: Any
) -> None:
    """Write MODEL with a loss and its gradients behind it, in plain ONNX operators."""
    from onnxprune import api

    log(quiet, verbose)
    bindings = parse_bindings(bind)
    output = output or model.with_name(f"{model.stem}.gradients.onnx")
    with Bar(quiet) as bar:
        made = api.differentiate(model, output, bindings=bindings, progress=bar.update, **options)
    if not quiet:
        click.echo(f"{made}\n\nmodel written to {output}")


cli.add_command(slim)
cli.add_command(sparsify)
cli.add_command(stats)


def _show(pruned: Any, quiet: bool, verbose: bool, plan: Path | None, reports: tuple[Path, ...]) -> None:
    if quiet:
        return
    from onnxprune.report import terminal

    click.echo(terminal.render(pruned.report, verbose=verbose, width=width()))
    name_files([("model", pruned.path), ("plan", plan), *(("report", r) for r in reports)])


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; errors become one message and an exit code, never a traceback.

    Parameters
    ----------
    arguments
        By default those of the process.
    """
    handlers, level = list(LOG.handlers), LOG.level
    try:
        _run(arguments)
    finally:
        LOG.handlers[:] = handlers
        LOG.setLevel(level)


def _run(arguments: Sequence[str] | None) -> NoReturn:
    gc.set_threshold(*THRESHOLDS)
    try:
        code = cli.main(arguments, prog_name="onnxprune", standalone_mode=False)
    except OnnxPruneError as error:
        _fail(f"error: {error}", error.exit_code)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _fail("interrupted: no file was left half-written", 130)
    except click.ClickException as error:
        if error.format_message().startswith("Usage:"):  # no command was given
            _fail(error.format_message(), error.exit_code)
        context = getattr(error, "ctx", None)
        path = "onnxprune" if context is None else context.command_path
        _fail(
            f"error: {error.format_message()}\n`{path} --help` lists commands and options.", error.exit_code
        )
    except MemoryError:
        _fail("error: out of memory\nUse a machine with more memory, or fewer or smaller samples.", 1)
    except Exception as error:  # noqa: BLE001 - the last resort
        LOG.info("", exc_info=True)
        _fail(
            f"error: this should not happen: {type(error).__name__}: {error}\n"
            "It is a bug of onnxprune. Please report it together with what -v prints.",
            1,
        )
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)
