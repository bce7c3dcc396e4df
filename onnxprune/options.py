"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from onnxprune.errors import UsageError

FILE = click.Path(path_type=Path)
"""A path; whether it exists and can be used is checked later, with better words."""


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
                help="A .npz, a folder of .npy/.npz samples or of images, or module:name"
                + ("." if required else "; synthetic[:N] generates samples to calibrate on."),
            ),
        ):
            function = option(function)
        return function

    return decorate


def repair_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say what is learned from the samples."""
    for option in (
        click.option("--memory", type=float, help="GiB for statistics; 40 % of what is free, at most 8."),
        click.option("--test", help="Other samples to measure on; else some of --data are held back."),
        click.option(
            "--compensate",
            type=click.Choice(["auto", "affine", "rescale", "bias", "none"]),
            default="auto",
            show_default=True,
            help="Repair of the remaining weights; auto: with data the best per layer, else none.",
        ),
    ):
        function = option(function)
    return function


def latency_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--latency` and `--threads`."""
    function = click.option(
        "--threads", type=int, help="Threads with which --latency is measured; onnxruntime's default."
    )(function)
    return click.option(
        "--latency", type=float, help="Keep at most this share of the run time, measured on --provider."
    )(function)


def loss_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--loss`."""
    return click.option(
        "--loss",
        type=click.Choice(["auto", "labels", "sampled", "outputs"]),
        default="auto",
        show_default=True,
        help="What is differentiated: by the data's labels, by labels drawn from the model's predictions, or all "
        "outputs; auto: the first that fits.",
    )(function)


def rounds_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--rounds`, `--schedule`, `--max-ratio` and `--min-ratio`."""
    function = click.option(
        "--min-ratio", type=float, default=0.0, help="At least this share of a group goes."
    )(function)
    function = click.option(
        "--max-ratio", type=float, help="At most this share of a group goes (0.9 with --scope global)."
    )(function)
    function = click.option(
        "--schedule", default="linear", show_default=True, help="How far each round goes: oneshot, cube, ..."
    )(function)
    return click.option(
        "--rounds",
        type=int,
        default=1,
        show_default=True,
        help="Measure what each group's cut costs again on the way to the target.",
    )(function)


def bind_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--bind NAME=N`, repeatable."""
    return click.option(
        "--bind",
        "bind",
        multiple=True,
        metavar="NAME=N",
        help="Size of a symbolic dim, for counting MACs and generating inputs.",
    )(function)


def fold_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--fold-batchnorm`."""
    return click.option(
        "--fold-batchnorm",
        is_flag=True,
        help="Fold BatchNormalization nodes into the layers before them; by default they stay.",
    )(function)


def inexact_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--allow-inexact`."""
    return click.option(
        "--allow-inexact",
        is_flag=True,
        help="Also cut what norms average over (the residual width under LayerNorm): their statistics change.",
    )(function)


def refit_io_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--refit-io PATTERN`, repeatable."""
    return click.option(
        "--refit-io",
        multiple=True,
        metavar="PATTERN",
        help="Inputs and outputs that may get smaller, as those of a cache (glob or re:...).",
    )(function)


def attention_option(*values: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--attention`; the first value is the default."""
    return click.option(
        "--attention",
        type=click.Choice(values),
        default=values[0],
        show_default=True,
        help="What goes in attention: whole heads, or dimensions of all heads alike.",
    )


def verbosity(function: Callable[..., Any]) -> Callable[..., Any]:
    """`-q` and `-v`."""
    function = click.option("-v", "--verbose", is_flag=True, help="List everything; log what is done.")(
        function
    )
    return click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")(function)


def provider_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--provider`."""
    return click.option(
        "--provider", default="auto", show_default=True, help="auto, cpu, cuda, ... or a full provider name."
    )(function)


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
