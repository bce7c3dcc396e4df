from __future__ import annotations

import os
import resource

import numpy as np
import pytest
from onnx import helper, numpy_helper
from small_models import (
    info,
    listing,
    model_of,
    perceptron,
    save_fails,
    weights,
    write,
)

from onnxprune.errors import ModelError, UnsupportedError, UsageError
from onnxprune.model import edit, io, serialize

FEED = {"x": weights(5, 3, seed=7)}


def loaded(tmp_path, proto=None, name="in.onnx"):
    return io.load(write(tmp_path / name, proto or perceptron()))


def wide(tmp_path, name="in.onnx"):
    """A model with weights above the size that stays inside the message."""
    return loaded(tmp_path, perceptron(width=400), name)


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def old_output(out, path="m.onnx"):
    """An output of an earlier run, with external data."""
    io.save(wide(out.parent, "old.onnx").ir, out / path, external=True)
    return listing(out)


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("limit", [0, 3000, 6000])
def test_a_full_disk(tmp_path, out, external, limit):
    model = wide(tmp_path).ir
    old_output(out)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for path in (out / "m.onnx", out / "new.onnx"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            save_fails(model, path, str(path), "cannot be written", external=external, force=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_space_left_when_the_file_is_flushed(tmp_path, out, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    model = loaded(tmp_path).ir
    monkeypatch.setattr(os, "fsync", full)
    save_fails(model, out / "m.onnx", "No space left on device", "free space")


@pytest.mark.parametrize("external", [False, True])
def test_ctrl_c_while_a_weight_is_computed(tmp_path, out, external):
    def interrupted():
        raise KeyboardInterrupt

    model = wide(tmp_path).ir
    edit.set_lazy(model.graph.initializers["V"], (400, 2), interrupted)
    before = old_output(out)
    for path in (out / "m.onnx", out / "new.onnx"):
        with pytest.raises(KeyboardInterrupt):
            io.save(model, path, external=external, force=True)
        assert listing(out) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(5, "Input/output error")])
@pytest.mark.parametrize("when", [1, 2])
@pytest.mark.parametrize("links", [True, False])
def test_a_failure_between_the_two_renames(tmp_path, out, monkeypatch, error, when, links):
    """The old model and its data stay a pair."""
    replace, calls = os.replace, []
    before = old_output(out)
    model = wide(tmp_path, "other.onnx").ir
    edit.set_array(model.graph.initializers["W"], weights(3, 400, seed=99))

    def failing(source, target):
        if os.path.dirname(target) == str(out):
            calls.append(target)
            if len(calls) == when:
                raise error
        replace(source, target)

    def no_links(*_, **__):
        raise OSError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(os, "replace", failing)
    for path in (out / "m.onnx", out / "new.onnx"):
        calls.clear()
        with pytest.raises((KeyboardInterrupt, UsageError)):
            io.save(model, path, external=True, force=True)
        assert listing(out) == before


def test_ctrl_c_after_the_last_rename_leaves_the_new_pair(tmp_path, out, monkeypatch):
    replace = os.replace
    old_output(out)
    model = wide(tmp_path, "other.onnx").ir
    edit.set_array(model.graph.initializers["W"], weights(3, 400, seed=99))
    io.save(model, tmp_path / "m.onnx", external=True)
    expected = {name: (tmp_path / name).read_bytes() for name in ("m.onnx", "m.onnx.data")}

    def late(source, target):
        replace(source, target)
        if str(target) == str(out / "m.onnx"):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", late)
    with pytest.raises(KeyboardInterrupt):
        io.save(model, out / "m.onnx", external=True, force=True)
    assert listing(out) == expected


@pytest.mark.parametrize("external", [False, True])
def test_weights_that_vanished_or_were_cut(tmp_path, out, external):
    io.save(wide(tmp_path).ir, tmp_path / "ext.onnx", external=True)
    model = io.load(tmp_path / "ext.onnx").ir
    os.truncate(tmp_path / "ext.onnx.data", 13000)
    save_fails(model, out / "m.onnx", "'V'", "shorter", error=ModelError, external=external)
    (tmp_path / "ext.onnx.data").unlink()
    save_fails(model, out / "m.onnx", "'W'", "No such file", "data file", error=ModelError, external=external)


@pytest.mark.parametrize("external", [False, True])
def test_lazy_weights_whose_source_was_cut(tmp_path, out, external):
    io.save(wide(tmp_path).ir, tmp_path / "ext.onnx", external=True)
    model = io.load(tmp_path / "ext.onnx").ir
    value = model.graph.initializers["V"]
    source = value.const_value
    edit.set_lazy(value, (400, 1), lambda: source.numpy()[:, :1])
    os.truncate(tmp_path / "ext.onnx.data", 13000)
    save_fails(model, out / "m.onnx", "'V'", "cannot be read", error=ModelError, external=external)
    (tmp_path / "ext.onnx.data").unlink()
    save_fails(model, out / "m.onnx", "cannot be read", "No such file", error=ModelError, external=external)


def test_weights_of_another_shape_than_announced(tmp_path, out):
    model = wide(tmp_path).ir
    edit.set_lazy(model.graph.initializers["V"], (400, 2), lambda: np.zeros((2, 400), np.float32))
    save_fails(model, out / "m.onnx", "'V'", "(400, 2)", "(2, 400)", error=RuntimeError)


def test_constants_larger_than_a_message(tmp_path, out, monkeypatch):
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(weights(100), "c"))
    proto = model_of([constant, helper.make_node("Add", ["x", "c"], ["y"])], [info("x", [1])], [info("y")])
    model = loaded(tmp_path, proto).ir
    monkeypatch.setattr(serialize, "MESSAGE_LIMIT", 399)
    save_fails(model, out / "m.onnx", "subgraphs and constants", error=UnsupportedError)
