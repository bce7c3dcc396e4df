"""Data that does not fit the model: exit code 2, the message says which sample and which input."""

from __future__ import annotations

import numpy as np
import pytest
from small_nets import feeds


def image(change=None, **options):
    array = feeds(**options)["image"]
    if change is not None:
        change(array)
    return array


def put(value):
    def change(array):
        array[2, 1, 3, 3] = value

    return change


BAD = {
    "wrong-name": ({"picture": image()}, ["'image'", "'picture'"]),
    "another-input": ({"image": image(), "mask": np.zeros(6, np.float32)}, ["'mask' is not an input"]),
    "no-arrays": ({}, ["'image'"]),
    "wrong-channels": ({"image": np.zeros((6, 4, 8, 8), np.float32)}, ["'image'", "4"]),
    "wrong-rank": ({"image": np.zeros((6, 8, 8), np.float32)}, ["'image'", "(6, 8, 8)"]),
    "integers-for-floats": ({"image": np.zeros((6, 3, 8, 8), np.uint8)}, ["uint8", "float32"]),
    "nan": ({"image": image(put(np.nan))}, ["sample 2", "'image'", "NaN"]),
    "infinity": ({"image": image(put(np.inf))}, ["sample 2", "'image'", "inf"]),
    "no-samples": ({"image": np.zeros((0, 3, 8, 8), np.float32)}, ["no samples"]),
    "too-few-labels": ({"image": image(), "labels": np.zeros(5, np.int64)}, ["5", "6"]),
    "labels-of-another-model": ({"image": image(), "labels": np.full(6, 7)}, ["label 7", "4 classes"]),
    "float-labels": ({"image": image(), "labels": np.full(6, 0.5)}, ["labels"]),
    "boxes-for-labels": ({"image": image(), "labels": np.zeros((6, 4), np.int64)}, ["labels"]),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("verb", ["prune", "validate"])
def test_arrays(command, net, case, verb):
    arrays, says = BAD[case]
    np.savez(net.with_name("bad.npz"), **arrays)
    data = net.with_name("bad.npz")
    command.refused(2, verb, net, "--data", data, folder=net.parent, says=["bad.npz", *says])


def test_objects_are_not_unpickled(command, net):
    np.savez(net.with_name("bad.npz"), image=np.array([{"a": 1}], dtype=object))
    data = net.with_name("bad.npz")
    command.refused(2, "prune", net, "--data", data, folder=net.parent, says=["bad.npz", "objects"])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 but no archive", b"text"])
def test_damaged_archives(command, net, content):
    net.with_name("bad.npz").write_bytes(content)
    data = net.with_name("bad.npz")
    command.refused(2, "prune", net, "--data", data, folder=net.parent, says=["bad.npz cannot be read"])


def test_a_python_object_that_fails(command, net, monkeypatch):
    (net.parent / "onnxprune_test_reader.py").write_text("def broken():\n    yield {}['image']\n")
    monkeypatch.syspath_prepend(net.parent)
    command.refused(
        2,
        *("prune", net, "--data", "onnxprune_test_reader:broken"),
        folder=net.parent,
        says=["onnxprune_test_reader:broken failed after 0 feeds", "KeyError"],
    )


def test_labels_are_checked_before_the_work(command, net, monkeypatch):
    """A label that does not fit is found before anything is scored."""
    import onnxprune.pruning

    monkeypatch.setattr(onnxprune.pruning, "choose_units", None)
    np.savez(net.with_name("bad.npz"), image=image(), labels=np.full(6, 7))
    data = net.with_name("bad.npz")
    command.refused(2, "prune", net, "--data", data, folder=net.parent, says=["label 7"])


def test_validate_needs_something_to_measure(command, net):
    np.savez(net.with_name("plain.npz"), image=image())
    data = net.with_name("plain.npz")
    command.refused(2, "validate", net, "--data", data, folder=net.parent, says=["no labels", "--against"])
    says = ["top1 needs labels"]
    command.refused(2, "validate", net, "--data", data, "--metric", "top1", folder=net.parent, says=says)


def test_validate_against_a_model_with_other_inputs(command, net, data):
    from small_nets import attention, save

    other = save(attention(), net.with_name("other.onnx"))
    command.refused(
        2,
        *("validate", net, "--data", data, "--against", other),
        folder=net.parent,
        says=["different inputs", "tokens"],
    )
