"""The command line. The only module that prints; heavy imports happen inside the commands."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from onnxprune import __version__
from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.progress import Bar

_MODEL = click.Path(path_type=Path)
_PROVIDER = click.option(
    "--provider", default="auto", show_default=True, help="auto, cpu, cuda, ... or a full provider name."
)


def data_options(required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options that say which samples to use."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option(
                "--preprocess", help="For images: imagenet, a formula such as x/128-1, or a TOML file."
            ),
            click.option("--samples", type=int, help="Use at most this many samples."),
            click.option(
                "--data",
                required=required,
                help="A .npz, a folder of .npy/.npz samples or of images, or module:name.",
            ),
        ):
            function = option(function)
        return function

    return decorate


def bind_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--bind NAME=N`, repeatable."""
    return click.option(
        "--bind",
        "bind",
        multiple=True,
        metavar="NAME=N",
        help="Size of a symbolic dim, for counting MACs and generating inputs.",
    )(function)


def verbosity(function: Callable[..., Any]) -> Callable[..., Any]:
    """`-q` and `-v`."""
    function = click.option("-v", "--verbose", is_flag=True, help="List everything; log what is done.")(
        function
    )
    return click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")(function)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def cli() -> None:
    """Make trained ONNX models smaller and faster without retraining."""


@cli.command()
@click.argument("model", type=_MODEL)
@click.option("-o", "--output", type=_MODEL, help="Where to write; MODEL.pruned.onnx by default.")
@click.option("--macs", type=float, help="Keep at most this share of the MACs (0.7 without any target).")
@click.option("--params", type=float, help="Keep at most this share of the parameters.")
@click.option("--ratio", type=float, help="Drop this share of the units.")
@click.option(
    "--criterion",
    default="l2",
    show_default=True,
    help="l1, l2, geometric-median, bn-scale, random.",
)
@click.option(
    "--scope",
    type=click.Choice(["global", "uniform"]),
    help="One ranking over all groups (default), or the same level for every group.",
)
@click.option(
    "--preset", type=click.Choice(["nncf"]), help="nncf: first and strided convolutions stay whole."
)
@click.option("--round-to", type=int, default=8, show_default=True, help="Widths are multiples of this.")
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
@click.option("--plan", "plan_file", type=_MODEL, help="Also write the plan (JSON).")
@click.option("--report", "reports", type=_MODEL, multiple=True, help="Also write a report: .json or .md.")
@data_options(required=False)
@click.option("--metric", help="Metric for labelled data: top1 (the default), top5.")
@bind_option
@_PROVIDER
@click.option("--seed", type=int, default=0, show_default=True, help="For random numbers.")
@click.option("--best-effort", is_flag=True, help="Where the target is out of reach, take what is reachable.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@verbosity
def prune(
    model: Path,
    output: Path | None,
    macs: float | None,
    params: float | None,
    ratio: float | None,
    criterion: str,
    scope: str | None,
    preset: str | None,
    round_to: int,
    ignore: tuple[str, ...],
    only: tuple[str, ...],
    mode: str,
    plan_file: Path | None,
    reports: tuple[Path, ...],
    data: str | None,
    samples: int | None,
    preprocess: str | None,
    metric: str | None,
    bind: tuple[str, ...],
    provider: str,
    seed: int,
    best_effort: bool,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Prune MODEL and write the result beside it.

    Without a target, at most 70 % of the MACs are kept.
    """
    from onnxprune import api

    _log(quiet, verbose)
    _check_formats(reports)
    bindings = parse_bindings(bind)
    output = output or default_output(model)
    with Bar(quiet) as bar:
        source = _open(model, output, plan_file, reports, force, bar)
        pruned = api.prune(
            source,
            output,
            macs=macs,
            params=params,
            ratio=ratio,
            criterion=criterion,
            scope=scope,
            round_to=round_to,
            ignore=ignore,
            only=only,
            preset=preset,
            mode=mode,
            data=data,
            samples=samples,
            preprocess=preprocess,
            bindings=bindings,
            provider=provider,
            metric=metric,
            seed=seed,
            force=force,
            best_effort=best_effort,
            progress=bar.update,
        )
    _write_side_files(pruned, plan_file, reports)
    _show(pruned, quiet, verbose, plan_file, reports)


@cli.command()
@click.argument("model", type=_MODEL)
@click.argument("plan", type=_MODEL)
@click.option("-o", "--output", type=_MODEL, help="Where to write; MODEL.pruned.onnx by default.")
@click.option("--mode", type=click.Choice(["remove", "mask"]), default="remove", show_default=True)
@click.option("--report", "reports", type=_MODEL, multiple=True, help="Also write a report: .json or .md.")
@data_options(required=False)
@bind_option
@_PROVIDER
@click.option("--force", is_flag=True, help="Replace an existing output.")
@verbosity
def apply(
    model: Path,
    plan: Path,
    output: Path | None,
    mode: str,
    reports: tuple[Path, ...],
    data: str | None,
    samples: int | None,
    preprocess: str | None,
    bind: tuple[str, ...],
    provider: str,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Replay PLAN, which `prune --plan` wrote, on MODEL."""
    from onnxprune import api

    _log(quiet, verbose)
    _check_formats(reports)
    bindings = parse_bindings(bind)
    output = output or default_output(model)
    with Bar(quiet) as bar:
        source = _open(model, output, None, reports, force, bar, plan)
        pruned = api.apply(
            source,
            plan,
            output,
            mode=mode,
            data=data,
            samples=samples,
            preprocess=preprocess,
            bindings=bindings,
            provider=provider,
            force=force,
            progress=bar.update,
        )
    _write_side_files(pruned, None, reports)
    _show(pruned, quiet, verbose, None, reports)


@cli.command()
@click.argument("model", type=_MODEL)
@click.option(
    "--json", "json_file", type=_MODEL, metavar="FILE", help="Write the analysis as JSON; - prints it."
)
@bind_option
@click.option("--force", is_flag=True, help="Replace an existing JSON file.")
@verbosity
def analyze(
    model: Path, json_file: Path | None, bind: tuple[str, ...], force: bool, quiet: bool, verbose: bool
) -> None:
    """Show groups, units, what each costs, and what is blocked and why."""
    from onnxprune import api
    from onnxprune.model.io import write_text
    from onnxprune.report import analysis as reporter

    _log(quiet, verbose)
    bindings = parse_bindings(bind)
    with Bar(quiet) as bar:
        to_file = None if json_file == Path("-") else json_file
        source = _open(model, None, None, () if to_file is None else (to_file,), force, bar)
        bar.update("analysing", 0, 0)
        result = api.analyze(source, bindings=bindings)
        text = reporter.render_json(result) if json_file is not None else ""
    if to_file is not None:
        write_text(to_file, text)
    elif json_file is not None:
        click.echo(text, nl=False)
    elif not quiet:
        click.echo(reporter.render(result, verbose=verbose, width=_width()))
    if to_file is not None and not quiet:
        click.echo(reporter.render(result, verbose=verbose, width=_width()))
        click.echo(f"\nanalysis written to {to_file}")


@cli.command()
@click.argument("model", type=_MODEL)
@click.argument("name")
@bind_option
def explain(model: Path, name: str, bind: tuple[str, ...]) -> None:
    """Say why tensor, layer, axis (`tensor[dim]`) or group NAME is coupled or blocked."""
    from onnxprune import api

    _log(quiet=False, verbose=False)
    bindings = parse_bindings(bind)
    with Bar() as bar:
        bar.update("analysing", 0, 0)
        explanation = api.explain(api.analyze(model, bindings=bindings), name)
    click.echo(str(explanation))


@cli.command()
@click.argument("model", type=_MODEL)
@data_options(required=True)
@click.option("--against", type=_MODEL, help="The original, to compare with.")
@click.option("--metric", help="top1, top5, ...; top1 by default where the data has labels.")
@click.option("--output", help="Name of the output that carries the logits; the first by default.")
@_PROVIDER
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

    _log(quiet, verbose)
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


def default_output(model: Path) -> Path:
    """`model.pruned.onnx` beside `model.onnx`."""
    return model.with_name(f"{model.stem}.pruned.onnx")


def parse_bindings(pairs: tuple[str, ...]) -> dict[str, int]:
    """`("seq=128",)` as `{"seq": 128}`.

    Examples
    --------
    >>> parse_bindings(("batch=1", "seq=128"))
    {'batch': 1, 'seq': 128}
    """
    bindings: dict[str, int] = {}
    for pair in pairs:
        name, equals, size = pair.rpartition("=")
        if not equals or not name or not size.isdecimal() or int(size) < 1:
            raise UsageError(f"--bind {pair!r} is not NAME=N", "Give a positive size, as in --bind seq=128.")
        if bindings.get(name, int(size)) != int(size):
            raise UsageError(f"--bind gives {name!r} two sizes: {bindings[name]} and {size}", "Give one.")
        bindings[name] = int(size)
    return bindings


def _open(
    model: Path,
    output: Path | None,
    plan: Path | None,
    reports: tuple[Path, ...],
    force: bool,
    bar: Bar,
    *others: Path,
) -> Any:
    """Load the model; refuse, before any work is done, what could not be written after it."""
    from onnxprune.model import io
    from onnxprune.model.write import data_path

    files = [file for file in (plan, *reports) if file is not None]
    taken: set[Path] = set()
    for file in (output, None if output is None else data_path(output), *files):
        if file is not None and file.resolve() in taken:
            raise UsageError(f"{file} would be written twice", "Give every output a name of its own.")
        taken |= set() if file is None else {file.resolve()}
    bar.update("loading", 0, 0)
    for file in (output, *files) if model.exists() else ():
        if file is not None:
            io.check_writable(file, force=force, sources=(model, *others))
    source = io.load(model)
    for file in files:
        io.check_writable(file, force=force, sources=(source.path, *source.data_files, *others))
    return source


def _check_formats(reports: tuple[Path, ...]) -> None:
    for report in reports:
        if report.suffix not in (".json", ".md"):
            raise UsageError(
                f"--report {report} has no known format", "Use a name that ends in .json or .md."
            )


def _write_side_files(pruned: Any, plan: Path | None, reports: tuple[Path, ...]) -> None:
    from onnxprune.model.io import write_text
    from onnxprune.report import json as as_json
    from onnxprune.report import markdown

    try:
        if plan is not None:
            pruned.plan.save(plan)
        for report in reports:
            render = as_json.render if report.suffix == ".json" else markdown.render
            write_text(report, render(pruned.report))
    except UsageError as error:
        raise UsageError(
            error.what, f"The model is complete in {pruned.path}; this file is missing."
        ) from error


def _show(pruned: Any, quiet: bool, verbose: bool, plan: Path | None, reports: tuple[Path, ...]) -> None:
    if quiet:
        return
    from onnxprune.report import terminal

    click.echo(terminal.render(pruned.report, verbose=verbose, width=_width()))
    click.echo()
    for what, file in (("model", pruned.path), ("plan", plan), *(("report", r) for r in reports)):
        if file is not None:
            click.echo(f"{what} written to {file}")


def _width() -> int | None:
    """Columns of the terminal; None where the output is none."""
    return max(shutil.get_terminal_size().columns, 60) if sys.stdout.isatty() else None


def _log(quiet: bool, verbose: bool) -> None:
    if quiet and verbose:
        raise UsageError("-q and -v contradict each other", "Give one.")
    level = logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr, force=True)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; errors become one message and an exit code, never a traceback.

    Parameters
    ----------
    arguments
        By default those of the process.
    """
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
    except Exception as error:
        logging.getLogger(__name__).info("", exc_info=True)
        _fail(
            f"error: this should not happen: {type(error).__name__}: {error}\n"
            "It is a bug of onnxprune. Please report it together with what -v prints.",
            1,
        )
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)
