"""Reading a :class:`~onnxprune.calibrate.preprocess.Preprocess` from a formula or a TOML file, strictly."""

from __future__ import annotations

import ast
import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onnxprune.calibrate.checks import did_you_mean
from onnxprune.calibrate.preprocess import CHOICES, PRESETS, Preprocess
from onnxprune.errors import UsageError

_LONGEST = 200
_DTYPES = ("float32", "float16", "float64", "bfloat16", "uint8", "int8", "int32", "int64")


def parse_formula(text: str) -> tuple[float, float]:
    """Read a linear formula of x made of numbers, ``+ - * /`` and parentheses.

    Returns
    -------
    tuple of float
        Slope and offset: the formula is ``slope * x + offset``.

    Raises
    ------
    UsageError
        If it is no such formula, or does not depend on x.

    Examples
    --------
    >>> parse_formula("(x-127)/128")
    (0.0078125, -0.9921875)
    """
    try:
        if len(text) > _LONGEST:
            raise _NotLinear("it is too long")
        slope, offset = _linear(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, _NotLinear) as error:
        reason = error.args[0] if isinstance(error, _NotLinear) else "it is no arithmetic"
        raise _no_recipe(text, reason) from error
    if slope == 0:
        raise _no_recipe(text, "it does not depend on x")
    return slope, offset


def read_recipe(path: Path) -> Preprocess:
    """Read a TOML file whose keys are the fields of :class:`Preprocess`.

    ``size`` may be one number or ``[height, width]``; ``mean`` and ``std`` one number or a list; numbers
    may be written as strings such as ``"1/255"``.

    Raises
    ------
    UsageError
        If the file cannot be read, is no TOML, or has an unknown key or a value of the wrong kind.
    """
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", f"--preprocess takes {CHOICES}."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} is no TOML file: {error}", "Write lines such as: mean = [0.5, 0.5, 0.5]"
        ) from error
    names = [field.name for field in dataclasses.fields(Preprocess)]
    values: dict[str, Any] = {}
    for key, value in entries.items():
        if key not in names:
            raise UsageError(
                f"{path}: unknown key {key!r}{did_you_mean(key, names)}", f"Known: {', '.join(names)}."
            )
        try:
            values[key] = _READERS[key](value)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{path}: {key} = {value!r} is not {error}", "Correct the entry.") from error
    return Preprocess(**values)


class _NotLinear(Exception):
    """The formula is not of the form a * x + b; the argument says why."""


def _linear(node: ast.expr) -> tuple[float, float]:
    """Evaluate an expression as (slope, offset)."""
    match node:
        case ast.Name(id="x" | "X"):
            return 1.0, 0.0
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return 0.0, float(number)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            slope, offset = _linear(inner)
            return -slope, -offset
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _linear(inner)
        case ast.BinOp(left=left, op=operator, right=right):
            return _combine(operator, _linear(left), _linear(right))
    raise _NotLinear(f"{ast.unparse(node)!r} is not understood")


def _combine(
    operator: ast.operator, left: tuple[float, float], right: tuple[float, float]
) -> tuple[float, float]:
    (a, b), (c, d) = left, right
    match operator:
        case ast.Add():
            return a + c, b + d
        case ast.Sub():
            return a - c, b - d
        case ast.Mult() if a == 0 or c == 0:
            return a * d + b * c, b * d
        case ast.Div() if c == 0:
            return a / d, b / d
    raise _NotLinear("only + - * / by numbers are understood")


def _no_recipe(text: str, reason: str) -> UsageError:
    return UsageError(
        f"preprocessing {text!r} is not understood{did_you_mean(text.lower(), PRESETS)}: {reason}",
        f"--preprocess takes {CHOICES}.",
    )


def _number(value: Any) -> float:
    if isinstance(value, str):
        try:
            slope, offset = _linear(ast.parse(value, mode="eval").body)
        except (SyntaxError, ZeroDivisionError, OverflowError, _NotLinear) as error:
            raise ValueError("a number") from error
        if slope == 0:
            return offset
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("a number")
    return float(value)


def _numbers(value: Any) -> tuple[float, ...]:
    values = tuple(map(_number, value)) if isinstance(value, list) else (_number(value),)
    if not values:
        raise ValueError("a number or a list of numbers")
    return values


def _pixels(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise TypeError("a whole number of pixels, at least 1")
    return value


def _size(value: Any) -> tuple[int, int]:
    if isinstance(value, list) and len(value) == 2:
        return _pixels(value[0]), _pixels(value[1])
    if isinstance(value, list):
        raise ValueError("a number of pixels or [height, width]")
    return _pixels(value), _pixels(value)


def _resize(value: Any) -> int | str:
    return value if value in ("cover", "stretch") else _pixels(value)


def _one_of(*known: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in known:
            raise ValueError(f"one of {', '.join(known)}")
        return str(value)

    return read


def _dtype(value: Any) -> str:
    if value not in _DTYPES:
        raise ValueError(f"one of {', '.join(_DTYPES)}")
    return str(value)


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "size": _size,
    "resize": _resize,
    "crop": _number,
    "mean": _numbers,
    "std": _numbers,
    "scale": _number,
    "layout": _one_of("NCHW", "NHWC"),
    "channels": _one_of("RGB", "BGR", "GRAY"),
    "dtype": _dtype,
}
