"""Zeros, constants and duplicates planted into the models of structures: whatever is found, outputs stay.

`slim` compares outputs itself and then leaves constants and duplicates alone. Here that counts as a failure: what
was said to be constant or alike was not.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_nets import save

import onnxprune
from tests.slim.recorded import cases, model_of


def plant(path, seed):
    """Change weights: rows of units become zero, or multiples of others, or are read with zeros."""
    analysis = onnxprune.analyze(path)
    model = analysis.axis_graph.model
    rng = np.random.default_rng(seed)
    arrays = {}
    for group in analysis.partition.groups:
        kinds = rng.choice(["zero", "silent", "copy", "multiple", "unread", ""], 3)
        for kind in kinds:
            one, other = rng.choice(group.units, 2, replace=False)
            factor = np.float32(rng.choice([0.5, 3.0])) if kind == "multiple" else np.float32(1)
            for use in group.sinks if kind == "unread" else group.sources:
                value = use.axis.value
                parameter = analysis.axis_graph.parameters[value]
                blocked = analysis.axis_graph.blocked.get(use.axis)
                if value.const_value is None or blocked is not None:
                    continue
                array = arrays.setdefault(value.name, value.const_value.numpy().copy())
                rows = np.moveaxis(array, use.axis.dim, 0)
                here, there = np.flatnonzero(use.unit == one), np.flatnonzero(use.unit == other)
                zeroed = {"zero": ("weight",), "silent": ("weight", "bias"), "unread": (parameter.kind,)}
                if parameter.kind in zeroed.get(kind, ()):
                    rows[here] = 0
                elif kind in ("copy", "multiple") and len(here) == len(there):
                    rows[here] = rows[there] * (factor if parameter.kind in ("weight", "bias") else 1)
    for name, array in arrays.items():
        model.graph.initializers[name].const_value = ir.Tensor(array, name=name)
    return model


def check(model, folder, seed=0):
    path = save(model, folder / "net.onnx")
    planted = save(plant(path, seed), folder / "planted.onnx")
    made = onnxprune.slim(planted)
    assert not [note for note in made.report.warnings if "would change" in note]
    assert not [left for left in made.report.left if "masked != removed" in left.why]
    return made


@pytest.mark.parametrize("case", list(cases())[2::11], ids=lambda case: case[0])
def test_structures(tmp_path, case, monkeypatch):
    _, function, arguments = case
    model = model_of(function, arguments, monkeypatch)
    if model is None:
        pytest.skip("it builds no model")
    try:
        onnxprune.analyze(save(model, tmp_path / "first.onnx"))
    except onnxprune.OnnxPruneError as error:
        pytest.skip(f"it cannot be analysed without more options: {error}")
    try:
        check(model, tmp_path)
    except onnxprune.OnnxPruneError as error:
        if "no generated input" not in str(error):
            raise
        pytest.skip(str(error))
