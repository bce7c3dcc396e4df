"""The public names: that they are what they were, say what they take, and print readably."""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_nets import convnet, feeds, save

import onnxprune

NAMES = {
    *("load", "analyze", "plan", "apply", "prune", "validate", "explain", "read_plan", "differentiate"),
    *("stats", "ModelStatistics", "sparsify", "Sparsified", "SparsityReport"),
    *("slim", "Slimmed", "SlimReport"),
    *("Analysis", "Explanation", "LoadedModel", "Plan", "Pruned", "Report", "Validation"),
    *("Criterion", "CriterionTable", "default_criteria", "Rule", "RuleTable", "default_rules"),
    *("OnnxPruneError", "Reason", "__version__"),
}
FUNCTIONS = sorted(name for name in NAMES if inspect.isfunction(getattr(onnxprune, name)))
CLASSES = sorted(name for name in NAMES if inspect.isclass(getattr(onnxprune, name)))


def test_the_names():
    assert set(onnxprune.__all__) == NAMES
    assert set(dir(onnxprune)) >= NAMES
    assert FUNCTIONS
    with pytest.raises(AttributeError, match="no attribute 'pruner'"):
        onnxprune.pruner  # noqa: B018


def test_star_import():
    space: dict[str, object] = {}
    exec("from onnxprune import *", space)
    assert set(space) >= NAMES


def test_no_module_bears_the_name_of_a_function():
    """Importing a submodule sets an attribute of the package: it would hide the function."""
    modules = {module.name for module in pkgutil.iter_modules(onnxprune.__path__)}
    assert not modules & NAMES


def test_functions_stay_functions_whatever_is_imported():
    script = """
        import importlib, pkgutil, onnxprune
        for module in pkgutil.walk_packages(onnxprune.__path__, "onnxprune."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        assert callable(onnxprune.plan) and callable(onnxprune.apply) and callable(onnxprune.load)
        print("done")
    """
    code = inspect.cleandoc(script)
    env = {"PYTHONPATH": str(Path(onnxprune.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize("name", sorted(NAMES - {"__version__"}))
def test_docstrings(name):
    assert (getattr(onnxprune, name).__doc__ or "").strip()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_document_their_parameters_and_errors(name):
    function = getattr(onnxprune, name)
    text = inspect.getdoc(function) or ""
    parameters = inspect.signature(function).parameters
    if not parameters:
        return
    section = text.split("Parameters\n----------\n")[1].split("\n\n")[0]
    listed = {word for line in section.splitlines() if not line.startswith(" ") for word in line.split(", ")}
    unsaid = {"progress", "rules", "criteria"}
    assert set(parameters) - unsaid <= listed, set(parameters) - listed
    assert listed <= set(parameters), listed - set(parameters)
    assert "Raises\n------" in text


@pytest.mark.parametrize(
    "name", [name for name in CLASSES if dataclasses.is_dataclass(getattr(onnxprune, name))]
)
def test_dataclasses_are_frozen(name):
    assert getattr(onnxprune, name).__dataclass_params__.frozen


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("public")
    path = save(convnet(), folder / "net.onnx")
    model = onnxprune.load(path)
    analysis = onnxprune.analyze(model)
    return {
        "model": model,
        "analysis": analysis,
        "plan": onnxprune.plan(analysis, macs=0.6),
        "pruned": onnxprune.prune(model, folder / "small.onnx", macs=0.6, data=feeds()),
        "folder": folder,
    }


def test_readable_reprs(results):
    path, report = results["model"].path, results["pruned"].report
    texts = {
        "model": f"LoadedModel({str(path)!r}, 9 nodes, {path.stat().st_size:,} bytes)",
        "analysis": f"Analysis({str(path)!r}: 3 groups, 72 units in all, 100% of 765,024 MACs and "
        "100% of 12,124 params reachable)",
        "plan": f"Plan(drops {results['plan'].dropped} of ",
        "pruned": f"Pruned(765,024 -> {report.after.macs:,} MACs, 12,124 -> {report.after.params:,} params, "
        f"{results['folder'] / 'small.onnx'})",
    }
    for name, text in texts.items():
        assert repr(results[name]).startswith(text)
        assert "\n" not in repr(results[name])
    assert repr(report).startswith(f"Report({str(path)!r}: 765,024 -> {report.after.macs:,} MACs")
    assert "macs 0.6 requested, " in repr(report)
    assert repr(results["analysis"].groups["g1"]) == "Group(g1, 'conv1', 32 units)"


def test_errors_are_one_tree():
    from onnxprune import errors

    found = [e for e in vars(errors).values() if inspect.isclass(e) and issubclass(e, Exception)]
    assert len(found) == 9
    assert all(issubclass(error, onnxprune.OnnxPruneError) for error in found)
    codes = {error.__name__: error.exit_code for error in found}
    assert codes == {
        "OnnxPruneError": 1,
        "UsageError": 2,
        "DataError": 2,
        "ModelError": 3,
        "UnsupportedError": 3,
        "GradientError": 3,
        "RangeError": 3,
        "TargetError": 4,
        "SoundnessError": 5,
    }


def test_every_reason_is_a_clause_for_people():
    for reason in onnxprune.Reason:
        assert reason.sentence[0].islower()
        assert not reason.sentence.endswith(".")
        assert len(reason.sentence.split()) >= 4
