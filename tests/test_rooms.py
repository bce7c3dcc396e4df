"""Each room's imports stay inside the design's boundaries, and rooms hold to the project's manners."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import onnxprune

PACKAGE = Path(onnxprune.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = {
    "onnx": "model",
    "networkx": "graph",
    "onnxruntime": "calibrate",
    "google": "model",
    "PIL": "calibrate",
}
"""Who may import what."""

PROTOBUF = {"load", "save", "to_proto", "from_proto", "from_onnx_text", "serde"}
"""Names of onnx_ir that read or write the serialised form."""


def room(file: Path) -> str:
    parts = file.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def type_checking(module: ast.Module) -> set[ast.AST]:
    """Nodes that only type checkers look at."""
    found: set[ast.AST] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            found.update(inner for part in node.body for inner in ast.walk(part))
    return found


def identify(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


def test_there_is_something_to_look_at():
    assert len(FILES) > 60
    assert set(ROOMS.values()) <= {room(file) for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=identify)
def test_imports(file):
    module = tree(file)
    skipped = type_checking(module)
    for node in ast.walk(module):
        if node in skipped:
            continue
        for name in imported(node):
            top = name.split(".")[0]
            assert ROOMS.get(top, room(file)) == room(file), f"{top} is imported outside {ROOMS.get(top)}/"
            assert top not in ("torch", "tensorflow", "timm", "scipy", "sklearn")


@pytest.mark.parametrize("file", FILES, ids=identify)
def test_only_the_model_room_knows_the_serialised_form(file):
    if room(file) == "model":
        return
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ir":
            assert node.attr not in PROTOBUF, f"ir.{node.attr}"
        for name in imported(node):
            top, _, rest = name.partition(".")
            assert top != "onnx_ir" or rest.split(".")[0] not in PROTOBUF, name


@pytest.mark.parametrize("file", FILES, ids=identify)
def test_only_the_command_line_prints_and_exits(file):
    if identify(file) == "cli.py" or room(file) == "commands":
        return
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("print", "click.echo", "sys.exit", "exit", "input")


@pytest.mark.parametrize("file", FILES, ids=identify)
def test_manners(file):
    """No environment switches, no asserts for user errors, no swallowed exceptions, no files of 500 lines."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("os.environ", "os.getenv"), node.lineno
        if isinstance(node, ast.Assert):
            raise AssertionError(f"assert in line {node.lineno}")
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            empty = all(isinstance(part, ast.Pass | ast.Continue) for part in node.body)
            assert not (broad and empty), f"swallowed in line {node.lineno}"
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 500


def test_rooms_depend_in_one_direction():
    """Kernels know arrays; rules and the graph know nothing of running; nothing below knows reports."""
    forbidden = {
        "criteria": {"rules", "calibrate", "evaluate", "surgery", "report", "allocate"},
        "allocate": {"calibrate", "evaluate", "surgery", "report"},
        "graph": {"criteria", "allocate", "calibrate", "evaluate", "report", "surgery"},
        "rules": {"criteria", "allocate", "calibrate", "evaluate", "report"},
        "model": {"graph", "rules", "criteria", "allocate", "calibrate", "evaluate", "report", "surgery"},
        "surgery": {"criteria", "allocate", "calibrate", "evaluate", "report"},
        "solvers": {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"solvers"},
        "calibrate": {"graph", "rules", "criteria", "allocate", "evaluate", "report", "surgery"},
    }
    for file in FILES:
        module = tree(file)
        skipped = type_checking(module)
        for node in ast.walk(module):
            for name in imported(node) if node not in skipped else []:
                parts = name.split(".")
                if parts[0] == "onnxprune" and len(parts) > 1:
                    assert parts[1] not in forbidden.get(room(file), set()), f"{identify(file)}: {name}"
