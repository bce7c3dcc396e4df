from __future__ import annotations

import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from small_models import FLOAT, info, model_of, perceptron, run, same_outputs, unprivileged, weights, write

from onnxprune.errors import ModelError, UsageError
from onnxprune.model import edit, io
from onnxprune.model.normalize import normalize


def external(proto, folder, *, name="weights.bin", file="m.onnx", entries=()):
    """Move the initializer W of a perceptron into a data file, with entries as given."""
    tensor = next(t for t in proto.graph.initializer if t.name == "W")
    raw = tensor.raw_data
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\xff" * 8 + raw)
    described = {"location": name, "offset": "8", "length": str(len(raw)), **dict(entries)}
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in described.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    return write(folder / file, proto)


def refused(path, *words, error=ModelError):
    with pytest.raises(error) as caught:
        io.load(path)
    assert type(caught.value) is error and str(path) in caught.value.what and caught.value.hint
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_external_weights_are_mapped(tmp_path):
    inside = perceptron()
    loaded = io.load(external(perceptron(), tmp_path))
    tensor = loaded.ir.graph.initializers["W"].const_value
    assert isinstance(tensor, ir.ExternalTensor) and tensor.raw is None
    assert loaded.data_files == (tmp_path / "weights.bin",)
    assert loaded.bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
    np.testing.assert_array_equal(tensor.numpy(), numpy_helper.to_array(inside.graph.initializer[0]))
    assert tensor.raw is not None


def test_only_the_location_is_needed(tmp_path):
    path = external(perceptron(), tmp_path, entries={"offset": None, "length": None})
    raw = (tmp_path / "weights.bin").read_bytes()[8:]
    (tmp_path / "weights.bin").write_bytes(raw)
    assert io.load(path).ir.graph.initializers["W"].const_value.tobytes() == raw


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "none.bin"}, ["'none.bin'", "is missing"]),
        ({"location": None}, ["without a usable location"]),
        ({"location": "a\0b"}, ["without a usable location"]),
        ({"location": "."}, ["is missing"]),
        ({"location": "x" * 5000}, ["is missing"]),
        ({"location": "/etc/hostname"}, ["outside the model's folder"]),
        ({"location": "C:\\weights.bin"}, ["outside the model's folder"]),
        ({"location": "../weights.bin"}, ["outside the model's folder"]),
        ({"location": "a/../../weights.bin"}, ["outside the model's folder"]),
        ({"location": "../no/such/file"}, ["outside the model's folder"]),
        ({"offset": "9"}, ["needs 48 bytes at offset 9", "has 56 bytes"]),
        ({"offset": "99999999999999999999"}, ["at offset 99999999999999999999"]),
        ({"offset": "9" * 300}, ["no size in bytes"]),
        ({"offset": "-8"}, ["offset", "'-8'", "no size in bytes"]),
        ({"offset": "8.0"}, ["'8.0'"]),
        ({"offset": "eight"}, ["'eight'"]),
        ({"offset": ""}, ["''"]),
        ({"offset": "\u0668"}, ["no size in bytes"]),
        ({"length": "0x30"}, ["length", "'0x30'"]),
        ({"length": "47"}, ["declared length: 47"]),
        ({"length": "49"}, ["declared length: 49"]),
        ({"length": "0"}, ["declared length: 0"]),
    ],
)
def test_bad_entries(tmp_path, entries, words):
    path = external(perceptron(), tmp_path / "model", entries=entries)
    write(tmp_path / "weights.bin", b"\0" * 56)
    refused(path, "'W'", *words)


@pytest.mark.parametrize(("dims", "dtype"), [([2**62, 2**62], FLOAT), ([3, 5], FLOAT), ([3, 4], 11)])
def test_shapes_that_need_more_than_is_there(tmp_path, dims, dtype):
    proto = perceptron()
    proto.graph.initializer[0].dims[:] = dims
    proto.graph.initializer[0].data_type = dtype
    refused(external(proto, tmp_path), "'W'", "needs")


def test_a_truncated_data_file_and_an_empty_one(tmp_path):
    path = external(perceptron(), tmp_path)
    for size in (55, 8, 1, 0):
        os.truncate(tmp_path / "weights.bin", size)
        refused(path, "'weights.bin'", f"has {size} bytes", "copy it again")


def test_links(tmp_path):
    path = external(perceptron(), tmp_path / "model")
    data = tmp_path / "model" / "weights.bin"
    inside = tmp_path / "model" / "elsewhere.bin"
    data.rename(inside)
    data.symlink_to("elsewhere.bin")
    assert io.load(path).data_files == (inside,)
    outside = tmp_path / "outside.bin"
    inside.rename(outside)
    data.unlink()
    data.symlink_to(outside)
    refused(path, "outside the model's folder")
    data.unlink()
    data.symlink_to("weights.bin")
    refused(path, "is missing")
    data.unlink()
    os.link(outside, data)
    refused(path, "several hard links", "Replace it by a copy")


def test_a_folder_of_links_as_download_caches_have_it(tmp_path):
    """Model and data are links into one folder of blobs with other names."""
    path = external(perceptron(), tmp_path / "blobs", name="m.onnx_data")
    path.rename(tmp_path / "blobs" / "0123")
    (tmp_path / "blobs" / "m.onnx_data").rename(tmp_path / "blobs" / "4567")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "m.onnx").symlink_to("../blobs/0123")
    (tmp_path / "snapshot" / "m.onnx_data").symlink_to("../blobs/4567")
    loaded = io.load(tmp_path / "snapshot" / "m.onnx")
    assert loaded.data_files == (tmp_path / "blobs" / "4567",)
    expected = numpy_helper.to_array(perceptron().graph.initializer[0])
    np.testing.assert_array_equal(loaded.ir.graph.initializers["W"].const_value.numpy(), expected)
    io.save(loaded.ir, tmp_path / "out.onnx")
    same_outputs(run(perceptron(), {"x": weights(2, 3)}), run(tmp_path / "out.onnx", {"x": weights(2, 3)}))


def test_a_linked_model_with_its_data_beside_the_real_file(tmp_path, monkeypatch):
    external(perceptron(), tmp_path / "real")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "m.onnx").symlink_to(tmp_path / "real" / "m.onnx")
    monkeypatch.chdir(tmp_path / "here")
    loaded = io.load("m.onnx")
    assert loaded.data_files == (tmp_path / "real" / "weights.bin",)
    monkeypatch.chdir(tmp_path)
    assert loaded.ir.graph.initializers["W"].const_value.numpy().shape == (3, 4)


def test_data_in_a_subfolder_and_with_a_dot(tmp_path):
    (tmp_path / "data").mkdir()
    path = external(perceptron(), tmp_path, name="./data/weights.bin")
    assert io.load(path).data_files == (tmp_path / "data" / "weights.bin",)


def test_strings_cannot_be_external(tmp_path):
    proto = perceptron()
    proto.graph.initializer[0].data_type = onnx.TensorProto.STRING
    refused(external(proto, tmp_path), "'W'", "strings")


def test_data_that_may_not_be_read():
    with unprivileged() as folder:
        path = external(perceptron(), folder)
        (folder / "weights.bin").chmod(0)
        refused(path, "'weights.bin'", "cannot be read", error=UsageError)


@pytest.mark.parametrize("place", ["constant", "body", "function"])
def test_external_tensors_anywhere(tmp_path, place):
    """Wherever the tensor is, its entries are checked, its data is found and it is saved with the model."""
    array = weights(2, 2)
    (tmp_path / "w.bin").write_bytes(array.tobytes())
    tensor = onnx.TensorProto(name="t", data_type=FLOAT, dims=[2, 2], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    constant = helper.make_node("Constant", [], ["c"], name="const", value=tensor)
    product = helper.make_node("MatMul", ["x", "c"], ["y"])
    inputs, outputs = [info("x", [1, 2])], [info("y")]
    if place == "constant":
        proto = model_of([constant, product], inputs, outputs)
    elif place == "body":
        tensor.name = "c"
        inner = helper.make_graph(
            [helper.make_node("MatMul", ["x", "c"], ["in"])], "b", [], [info("in")], [tensor]
        )
        flag = helper.make_tensor("v", onnx.TensorProto.BOOL, [], [1])
        nodes = [
            helper.make_node("Constant", [], ["flag"], value=flag),
            helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=inner),
        ]
        proto = model_of(nodes, inputs, outputs)
    else:
        function = helper.make_function(
            "m", "F", ["x"], ["y"], [constant, product], [helper.make_opsetid("", 17)]
        )
        proto = model_of(
            [helper.make_node("F", ["x"], ["y"], domain="m")],
            inputs,
            outputs,
            functions=[function],
            domains=["m"],
        )
    path = write(tmp_path / "m.onnx", proto)
    loaded = io.load(path)
    assert loaded.data_files == (tmp_path / "w.bin",)
    feed = {"x": weights(1, 2, seed=1)}
    for number, model in enumerate((loaded.ir, normalize(loaded.ir))):
        io.save(model, tmp_path / f"out{number}.onnx")
        got = run(tmp_path / f"out{number}.onnx", feed)["y"]
        np.testing.assert_allclose(got, feed["x"] @ array, rtol=1e-6)
        assert not any(
            t.data_location
            for t in onnx.load(tmp_path / f"out{number}.onnx", load_external_data=False).graph.initializer
        )
    os.truncate(tmp_path / "w.bin", 3)
    refused(path, "needs 16 bytes", "has 3")


def huge_model(folder, gigabytes=6):
    """A model whose one weight is a hole of several GB."""
    rows = gigabytes * 2**28 // 1024
    with (folder / "huge.bin").open("wb") as file:
        file.truncate(rows * 1024 * 4)
    tensor = onnx.TensorProto(
        name="W", data_type=FLOAT, dims=[rows, 1024], data_location=onnx.TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value="huge.bin")
    node = helper.make_node("Gather", ["W", "x"], ["y"])
    shape = helper.make_node("Identity", ["W"], ["alias"])
    other = helper.make_node("Gather", ["alias", "x"], ["z"])
    inputs = [info("x", [1], onnx.TensorProto.INT64)]
    proto = model_of([node, shape, other], inputs, [info("y"), info("z")], [tensor])
    return write(folder / "huge.onnx", proto)


MEASURE = """
import resource, sys, time
from onnxprune.model import io
from onnxprune.model.normalize import normalize
from onnxprune.model.finalize import finalize
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
loaded = io.load(sys.argv[1])
finalize(normalize(loaded.ir))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.perf_counter() - start, loaded.bytes)
"""


def test_several_gigabytes_are_loaded_without_being_read(tmp_path):
    path = huge_model(tmp_path)
    result = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True)
    kilobytes, seconds, size = result.stdout.split()
    assert int(size) > 6 * 2**30
    assert int(kilobytes) < 50_000
    assert float(seconds) < 5


def test_slicing_is_lazy_and_bit_exact(tmp_path):
    path = external(perceptron(), tmp_path)
    value = io.load(path).ir.graph.initializers["W"]
    tensor = value.const_value
    edit.set_lazy(value, (3, 2), lambda: tensor.numpy()[:, ::2])
    assert tensor.raw is None and list(value.shape) == [3, 2]
    expected = numpy_helper.to_array(perceptron().graph.initializer[0])[:, ::2]
    np.testing.assert_array_equal(value.const_value.numpy(), expected)
    assert value.const_value.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_other_float_types_are_mapped_too(tmp_path, dtype):
    array = weights(4, 3).astype(dtype)
    (tmp_path / "w.bin").write_bytes(array.tobytes())
    kind = ir.DataType.from_numpy(array.dtype).value
    tensor = onnx.TensorProto(name="W", data_type=kind, dims=[4, 3], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    proto = model_of([helper.make_node("Identity", ["W"], ["y"])], [], [info("y", [4, 3], kind)], [tensor])
    loaded = io.load(write(tmp_path / "m.onnx", proto))
    np.testing.assert_array_equal(loaded.ir.graph.initializers["W"].const_value.numpy(), array)
