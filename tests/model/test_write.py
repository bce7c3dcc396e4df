from __future__ import annotations

import os
import stat
import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from small_models import (
    listing,
    perceptron,
    run,
    same_outputs,
    save_fails,
    unprivileged,
    weights,
    write,
)

from onnxprune.errors import UsageError
from onnxprune.model import edit, io
from onnxprune.model import write as writing

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


# ------------------------------------------------------------------------------------- what is written


def test_a_model_comes_back_as_it_was(tmp_path, out):
    proto = perceptron(producer_name="p", doc_string="d", model_version=3, domain="some.where")
    helper.set_model_props(proto, {"b": "2", "a": "1"})
    model = loaded(tmp_path, proto)
    size = io.save(model.ir, out / "m.onnx")
    assert listing(out).keys() == {"m.onnx"} and size == (out / "m.onnx").stat().st_size
    assert onnx.load(out / "m.onnx").SerializeToString() == (out / "m.onnx").read_bytes()
    again = onnx.load(out / "m.onnx")
    proto.metadata_props.sort(key=lambda entry: entry.key)
    assert again == proto


def test_the_same_model_gives_the_same_bytes(tmp_path, out):
    script = (
        "import sys; from onnxprune.model import io, normalize, finalize;"
        "io.save(finalize.finalize(normalize.normalize(io.load(sys.argv[1]).ir)), sys.argv[2])"
    )
    path = write(tmp_path / "in.onnx", perceptron(width=30))
    for seed in "0", "1", "2":
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(
            [sys.executable, "-c", script, path, out / f"{seed}.onnx"], check=True, env=environment
        )
    io.save(io.load(path).ir, out / "3.onnx")
    assert len(set(listing(out).values())) == 1


def test_every_element_type_is_written(tmp_path, out):
    values, rng = {}, np.random.default_rng(0)
    for dtype in ir.DataType:
        if dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING):
            continue
        bits = rng.integers(0, 2 ** min(dtype.bitwidth, 8), (5, 3)).astype(np.uint8)
        array = bits.astype(dtype.numpy()) if dtype.bitwidth >= 8 else bits.view(dtype.numpy())
        values[dtype.name] = edit.tensor(array, dtype, dtype.name)
    values["STRING"] = ir.StringTensor([b"a", b"\xff\x00"], shape=ir.Shape([2]), name="STRING")
    model = loaded(tmp_path).ir
    for name, tensor in values.items():
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()))
        value.const_value = tensor
        model.graph.register_initializer(value)
    for external in (False, True):
        path = out / f"{external}.onnx"
        io.save(model, path, external=external)
        again = io.load(path).ir.graph.initializers
        for name, tensor in values.items():
            found = again[name].const_value
            assert found.dtype == tensor.dtype and list(found.shape) == list(tensor.shape)
            if name == "STRING":
                assert found.string_data() == [b"a", b"\xff\x00"]
            else:
                assert found.tobytes() == tensor.tobytes()


def test_saving_does_not_mutate(tmp_path, out):
    shared = ir.Tensor(weights(3, 300), name="its own name")
    model = wide(tmp_path).ir
    for name in ("p", "q"):
        value = ir.Value(name=name, type=ir.TensorType(shared.dtype), shape=ir.Shape([3, 300]))
        value.const_value = shared
        model.graph.initializers[name] = value
    shared.name = "its own name"
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    io.save(model, out / "a.onnx")
    io.save(model, out / "b.onnx", external=True)
    assert {name: value.const_value for name, value in model.graph.initializers.items()} == before
    assert shared.name == "its own name"
    names = [t.name for t in onnx.load(out / "b.onnx").graph.initializer]
    assert names == list(model.graph.initializers) and len(names) == 5


def test_data_in_old_fields_and_tensor_metadata_survive(tmp_path, out):
    proto = perceptron(width=6000)
    array = numpy_helper.to_array(proto.graph.initializer[0])
    proto.graph.initializer[0].CopyFrom(helper.make_tensor("W", 1, array.shape, array.ravel()))
    for tensor in proto.graph.initializer:
        tensor.metadata_props.add(key="k", value="v")
        tensor.doc_string = "d"
    io.save(loaded(tmp_path, proto).ir, out / "m.onnx")
    io.save(io.load(out / "m.onnx").ir, out / "again.onnx", external=True)
    for tensor in onnx.load(out / "again.onnx").graph.initializer:
        assert [(p.key, p.value) for p in tensor.metadata_props] == [("k", "v")] and tensor.doc_string == "d"
    same_outputs(run(proto, FEED), run(out / "again.onnx", FEED))


# --------------------------------------------------------------------------------------- external data


def test_external_data(tmp_path, out):
    model = wide(tmp_path)
    size = io.save(model.ir, out / "m.onnx", external=True)
    assert listing(out).keys() == {"m.onnx", "m.onnx.data"}
    assert size == sum(p.stat().st_size for p in out.iterdir())
    onnx.checker.check_model(str(out / "m.onnx"), full_check=True)
    same_outputs(run(model.path, FEED), run(out / "m.onnx", FEED))
    tensors = onnx.load(out / "m.onnx", load_external_data=False).graph.initializer
    for tensor in tensors:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        assert entries["location"] == "m.onnx.data" and int(entries["offset"]) % 4096 == 0
        assert int(entries["length"]) == 4 * np.prod(tensor.dims)
    again = io.load(out / "m.onnx")
    assert again.data_files == (out / "m.onnx.data",) and again.bytes == size


def test_small_tensors_stay_inside(tmp_path, out):
    proto = perceptron(width=256)
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(128, np.int64), "shape"))
    io.save(loaded(tmp_path, proto).ir, out / "m.onnx", external=True)
    tensors = onnx.load(out / "m.onnx", load_external_data=False).graph.initializer
    assert [t.name for t in tensors if t.data_location == onnx.TensorProto.EXTERNAL] == ["W", "V"]


def test_without_anything_big_there_is_no_data_file(tmp_path, out):
    io.save(loaded(tmp_path).ir, out / "m.onnx", external=True)
    assert listing(out).keys() == {"m.onnx"}


def test_models_above_the_limit_get_external_data(tmp_path, out, monkeypatch):
    model = wide(tmp_path)
    total = sum(v.const_value.nbytes for v in model.ir.graph.initializers.values())
    monkeypatch.setattr(writing, "EXTERNAL_ABOVE", total)
    io.save(model.ir, out / "inside.onnx")
    assert listing(out).keys() == {"inside.onnx"}
    monkeypatch.setattr(writing, "EXTERNAL_ABOVE", total - 1)
    io.save(model.ir, out / "outside.onnx")
    assert listing(out).keys() == {"inside.onnx", "outside.onnx", "outside.onnx.data"}
    same_outputs(run(out / "inside.onnx", FEED), run(out / "outside.onnx", FEED))


def test_external_weights_are_read_into_one_file_where_they_fit(tmp_path, out):
    model = wide(tmp_path)
    io.save(model.ir, tmp_path / "ext.onnx", external=True)
    io.save(io.load(tmp_path / "ext.onnx").ir, out / "m.onnx")
    assert listing(out).keys() == {"m.onnx"}
    io.save(model.ir, out / "direct.onnx")
    assert (out / "m.onnx").read_bytes() == (out / "direct.onnx").read_bytes()


@pytest.mark.parametrize("external", [False, True])
def test_lazy_weights_are_computed_once_and_written(tmp_path, out, external):
    model = wide(tmp_path).ir
    calls = []
    for name, axis in (("W", 1), ("V", 0)):
        value = model.graph.initializers[name]
        array = value.const_value.numpy()
        shape = tuple(300 if d == axis else n for d, n in enumerate(array.shape))
        keep = np.arange(300)

        def make(array=array, keep=keep, axis=axis, name=name):
            calls.append(name)
            return np.take(array, keep, axis)

        edit.set_lazy(value, shape, make)
    bias = model.graph.initializers["b"]
    edit.set_array(bias, bias.const_value.numpy()[:300])
    io.save(model, out / "m.onnx", external=external)
    assert calls == ["W", "V"]
    expected = perceptron(width=400)
    arrays = {t.name: numpy_helper.to_array(t) for t in expected.graph.initializer}
    got = run(out / "m.onnx", FEED)["y"]
    hidden = np.maximum(FEED["x"] @ arrays["W"][:, :300] + arrays["b"][:300], 0)
    np.testing.assert_allclose(got, hidden @ arrays["V"][:300], rtol=1e-5)


MEMORY = """
import resource, sys
import numpy as np, onnx_ir as ir
from onnxprune.model import io
model = io.load(sys.argv[1]).ir
for number in range(16):
    make = lambda n=number: ir.Tensor(np.full((4096, 1024), n, np.float32))
    tensor = ir.LazyTensor(make, ir.DataType.FLOAT, ir.Shape([4096, 1024]), name=f"w{number}")
    model.graph.initializers[f"w{number}"] = ir.Value(name=f"w{number}", const_value=tensor)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(io.save(model, sys.argv[2], external=sys.argv[3] == "external"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("form", ["inside", "external"])
def test_writing_needs_memory_for_one_weight_at_a_time(tmp_path, out, form):
    path = write(tmp_path / "in.onnx", perceptron())
    arguments = [sys.executable, "-c", MEMORY, path, out / "m.onnx", form]
    size, kilobytes = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()
    assert int(size) > 16 * 2**24
    assert int(kilobytes) < 3 * 2**14  # three times one weight; all of them are 16 times one


# ---------------------------------------------------------------------------------- where not to write


def test_an_existing_output_needs_force(tmp_path, out):
    model = wide(tmp_path).ir
    (out / "m.onnx").write_text("mine")
    error = save_fails(model, out / "m.onnx", str(out / "m.onnx"), "exists already", "--force")
    assert error.exit_code == 2
    io.save(model, out / "m.onnx", force=True)
    assert io.load(out / "m.onnx").ir.graph.num_nodes() == 4
    (out / "n.onnx").symlink_to("nowhere")
    save_fails(model, out / "n.onnx", "exists already")
    (out / "o.onnx.data").write_text("mine")
    save_fails(model, out / "o.onnx", str(out / "o.onnx.data"), "exists already", external=True)
    io.save(model, out / "o.onnx")
    assert (out / "o.onnx.data").read_text() == "mine"
    io.save(model, out / "o.onnx", external=True, force=True)
    same_outputs(run(out / "m.onnx", FEED), run(out / "o.onnx", FEED))


def test_the_output_is_the_input(tmp_path, monkeypatch):
    model = wide(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "symbolic.onnx").symlink_to("in.onnx")
    os.link(tmp_path / "in.onnx", tmp_path / "hard.onnx")
    monkeypatch.chdir(tmp_path)
    for name in ("in.onnx", "sub/../in.onnx", "symbolic.onnx", "hard.onnx"):
        for path in (tmp_path / name, type(tmp_path)(name)):
            save_fails(model.ir, path, "input model itself", "another -o", force=True, sources=[model.path])
            with pytest.raises(UsageError, match="input model itself"):
                io.check_writable(path, force=True, sources=["in.onnx"])


def test_data_files_of_the_input_are_never_touched(tmp_path, out):
    """Even where nobody lists them: an output whose data file would be the one that its weights come from."""
    io.save(wide(tmp_path).ir, out / "m.onnx", external=True)
    (out / "m.onnx").rename(out / "source.onnx")
    model = io.load(out / "source.onnx")
    assert model.data_files == (out / "m.onnx.data",)
    save_fails(model.ir, out / "m.onnx", "m.onnx.data", "input model itself", external=True, force=True)
    save_fails(model.ir, out / "m.onnx.data", "input model itself", force=True)
    weight = model.ir.graph.initializers["W"]
    for value in model.ir.graph.initializers.values():
        edit.set_array(value, np.array(value.const_value.numpy()))
    save_fails(
        model.ir, out / "m.onnx", "itself", external=True, force=True, sources=[model.path, *model.data_files]
    )
    io.save(model.ir, out / "m.onnx", sources=[model.path, *model.data_files])
    assert weight.const_value.shape.numpy() == (3, 400)


def test_folders(tmp_path, out):
    model = loaded(tmp_path).ir
    save_fails(model, out, "is a folder", "file name")
    save_fails(model, out / "none" / "m.onnx", "folder", "does not exist", "Create it")
    (out / "m.onnx.data").mkdir()
    save_fails(model, out / "m.onnx", "m.onnx.data is a folder", external=True, force=True)
    (out / "file").write_text("")
    save_fails(model, out / "file" / "m.onnx", "does not exist")
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(UsageError):
            io.save(model, out / name)
    assert listing(out).keys() == {"m.onnx.data", "file"}


def test_a_relative_path_without_a_folder(tmp_path, out, monkeypatch):
    monkeypatch.chdir(out)
    io.save(loaded(tmp_path).ir, "m.onnx")
    assert listing(out).keys() == {"m.onnx"}


def test_a_folder_without_write_permission(tmp_path):
    model = loaded(tmp_path).ir
    with unprivileged(0o555) as folder:
        save_fails(model, folder / "m.onnx", str(folder / "m.onnx"), "Permission denied", "permissions")
        with pytest.raises(UsageError, match="Permission denied"):
            io.check_writable(folder / "m.onnx", force=False)
        with pytest.raises(UsageError, match="Permission denied"):
            io.write_text(folder / "plan.json", "{}")


def test_check_writable_leaves_nothing_behind(out):
    io.check_writable(out / "m.onnx", force=False, external=True)
    assert not listing(out)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path, out, mask):
    model = wide(tmp_path).ir
    old = os.umask(mask)
    try:
        io.save(model, out / "m.onnx", external=True)
        io.write_text(out / "plan.json", "{}")
    finally:
        os.umask(old)
    for path in out.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


# ----------------------------------------------------------------------------------------------- texts


def test_texts(out, monkeypatch):
    io.write_text(out / "plan.json", "größer\n")
    assert listing(out) == {"plan.json": "größer\n".encode()}
    io.write_text(out / "plan.json", "new")
    assert listing(out) == {"plan.json": b"new"}
    with pytest.raises(UsageError, match="cannot be written"):
        io.write_text(out / "none" / "plan.json", "")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        io.write_text(out / "plan.json", "newest")
    assert listing(out) == {"plan.json": b"new"}
