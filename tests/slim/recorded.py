"""Every model that the tests of structures build, without running their checks."""

from __future__ import annotations

import importlib
import inspect
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import pytest

from onnxprune.testing import ModelBuilder

STRUCTURES = Path(__file__).parents[1] / "structures"


class Recorded(Exception):
    """Carries the model that was to be checked."""


def _arguments(function) -> list[dict[str, object]]:
    """What pytest would call a test with, from its `parametrize` marks."""
    choices = []
    for mark in getattr(function, "pytestmark", []):
        if mark.name == "parametrize":
            names = (
                [n.strip() for n in mark.args[0].split(",")]
                if isinstance(mark.args[0], str)
                else mark.args[0]
            )
            sets = [v.values if hasattr(v, "values") and not isinstance(v, dict) else v for v in mark.args[1]]
            choices.append([dict(zip(names, v if len(names) > 1 else [v], strict=True)) for v in sets])
    return [{k: v for part in parts for k, v in part.items()} for parts in itertools.product(*choices)]


def cases() -> Iterator[tuple[str, object, dict[str, object]]]:
    """Name, function and arguments of every test of structures that builds its own model."""
    if str(STRUCTURES) not in sys.path:  # their tests import each other as pytest lets them
        sys.path.append(str(STRUCTURES))
    for file in sorted(STRUCTURES.glob("test_*.py")):
        module = importlib.import_module(f"tests.structures.{file.stem}")
        for name, function in vars(module).items():
            if name.startswith("test_") and inspect.isfunction(function):
                for number, arguments in enumerate(_arguments(function)):
                    if set(inspect.signature(function).parameters) <= set(arguments):
                        yield f"{file.stem}-{name}-{number}", function, arguments


def model_of(function, arguments: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> ir.Model | None:
    """The first model that a test builds; None where it builds none."""
    build = ModelBuilder.model

    def record(builder: ModelBuilder, *outputs: ir.Value, **options: object) -> ir.Model:
        raise Recorded(build(builder, *outputs, **options))

    monkeypatch.setattr(ModelBuilder, "model", record)
    try:
        function(**arguments)
    except Recorded as recorded:
        return recorded.args[0]
    except Exception:  # noqa: BLE001 - a test of something else
        return None
    finally:
        monkeypatch.setattr(ModelBuilder, "model", build)
    return None
