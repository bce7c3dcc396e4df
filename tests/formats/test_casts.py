"""Mixed precision: weights behind a Cast are weights, and are stored behind that Cast again."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from small_nets import Net, save

import onnxprune
from onnxprune.model.finalize import finalize
from onnxprune.model.normalize import normalize

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def mixed(path, stored: ir.DataType, used: ir.DataType, *, transposed: bool = False):
    """Two products of 32 hidden units computed in `used`, with weights in `stored` and a norm in float32."""
    net = Net()
    x = net.data("x", ("n", 12))

    def weight(name: str, shape: tuple[int, ...]) -> ir.Value:
        array = (net.rng.standard_normal(shape) / np.sqrt(shape[0])).astype(stored.numpy())
        if not transposed:
            return net.op("Cast", net.constant(array, name), name=f"{name}.cast", to=int(used))
        held = net.constant(np.ascontiguousarray(array.T), name)
        return net.op("Transpose", net.op("Cast", held, name=f"{name}.cast", to=int(used)), perm=[1, 0])

    def cast(value: ir.Value, to: ir.DataType) -> ir.Value:
        return net.op("Cast", value, to=int(to)) if used != FLOAT else value

    hidden = net.op("MatMul", cast(x, used), weight("up", (12, 32)), name="up_product")
    hidden = cast(net.op("Sigmoid", cast(hidden, FLOAT), name="act"), used)
    y = cast(net.op("MatMul", hidden, weight("down", (32, 12)), name="down_product"), FLOAT)
    scale, shift = net.normal((12,), "norm.scale"), net.normal((12,), "norm.bias")
    y = net.ops("LayerNormalization", y, scale, shift, outputs=["y"], axis=-1, name="norm")[0]
    return save(net.model(y), path)


def samples(count: int = 80) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((4, 12))
    return [{"x": (rng.standard_normal((1, 4)) @ base).astype(np.float32)} for _ in range(count)]


def arrays(path) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in ir.load(path).graph.initializers.items()}


def casts_of_weights(path) -> dict[str, int]:
    graph = onnx.load(path).graph
    names = {tensor.name for tensor in graph.initializer}
    return {n.input[0]: n.attribute[0].i for n in graph.node if n.op_type == "Cast" and n.input[0] in names}


PAIRS = pytest.mark.parametrize("stored, used", [(HALF, FLOAT), (FLOAT, HALF), (ir.DataType.DOUBLE, FLOAT)])


@PAIRS
def test_normalising_and_back_gives_the_same_file(tmp_path, stored, used):
    path = mixed(tmp_path / "net.onnx", stored, used)
    model = ir.load(path)
    inner = normalize(model)
    assert {str(v.name): v.dtype for v in inner.graph.initializers.values() if v.name in ("up", "down")} == {
        "up": used,
        "down": used,
    }
    assert not any(node.name in ("up.cast", "down.cast") for node in inner.graph)
    ir.save(finalize(inner), tmp_path / "back.onnx")
    before, after = arrays(path), arrays(tmp_path / "back.onnx")
    assert list(before) == list(after)
    for name, array in before.items():
        assert array.dtype == after[name].dtype and array.tobytes() == after[name].tobytes()
    assert casts_of_weights(path) == casts_of_weights(tmp_path / "back.onnx") == {"up": used, "down": used}
    first, second = (
        {n.name: list(n.output) for n in onnx.load(p).graph.node} for p in (path, tmp_path / "back.onnx")
    )
    assert first == second


@PAIRS
@pytest.mark.parametrize("mode", ["remove", "mask"])
def test_kept_weights_keep_every_bit_of_what_is_stored(tmp_path, stored, used, mode):
    path = mixed(tmp_path / "net.onnx", stored, used)
    made = onnxprune.prune(path, tmp_path / "out.onnx", ratio=0.5, criterion="l2", mode=mode)
    (flags,) = made.plan.keep.values()
    before, after = arrays(path), arrays(tmp_path / "out.onnx")
    assert casts_of_weights(tmp_path / "out.onnx") == {"up": used, "down": used}
    if mode == "remove":
        assert np.array_equal(after["up"], before["up"][:, flags])
        assert np.array_equal(after["down"], before["down"][flags])
    else:
        assert np.array_equal(after["down"][flags], before["down"][flags]) and not after["down"][~flags].any()
    assert after["down"].dtype == before["down"].dtype
    norms = np.linalg.norm(before["up"].astype(used.numpy()).astype(np.float64), axis=0)
    assert set(np.flatnonzero(flags)) == set(np.argsort(norms)[16:])  # the file's weights were scored


@PAIRS
@pytest.mark.parametrize("transposed", [False, True])
def test_repair_writes_the_stored_weight(tmp_path, stored, used, transposed):
    path = mixed(tmp_path / "net.onnx", stored, used, transposed=transposed)
    plain = onnxprune.prune(
        path, tmp_path / "plain.onnx", ratio=0.5, criterion="l2", data=samples(), compensate="none"
    ).report
    made = onnxprune.prune(path, tmp_path / "out.onnx", ratio=0.5, criterion="l2", data=samples()).report
    assert [layer.kind for layer in made.repairs] == ["affine"] and made.repairs[0].after < 0.05
    assert made.fidelity.outputs[0].sqnr_db > plain.fidelity.outputs[0].sqnr_db + 6
    kinds = {name: array.dtype for name, array in arrays(tmp_path / "out.onnx").items()}
    weights = [kind for name, kind in kinds.items() if kind == stored.numpy() and "norm" not in name]
    assert len(weights) >= 2 and len(casts_of_weights(tmp_path / "out.onnx")) >= 2
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, samples(1)[0])[0].shape == (1, 12)


def test_a_weight_that_is_also_used_as_it_is_stays_behind_its_cast(tmp_path):
    net = Net()
    x = net.data("x", ("n", 8))
    weight = net.constant(net.rng.standard_normal((8, 8)).astype(np.float16), "shared")
    wide = net.op("MatMul", x, net.op("Cast", weight, to=1))
    half = net.op("MatMul", net.op("Cast", x, to=10), weight)
    y = net.ops("Add", wide, net.op("Cast", half, to=1), outputs=["y"])[0]
    path = save(net.model(y), tmp_path / "net.onnx")
    inner = normalize(ir.load(path))
    assert inner.graph.initializers["shared"].dtype == HALF
    assert sum(node.op_type == "Cast" for node in inner.graph) == 3
    onnxprune.prune(path, tmp_path / "out.onnx", ratio=0.5, criterion="l2", best_effort=True)


def test_sparse_weights_behind_a_cast(tmp_path):
    path = mixed(tmp_path / "net.onnx", HALF, FLOAT)
    made = onnxprune.sparsify(path, tmp_path / "out.onnx", sparsity=0.5, data=samples())
    after = arrays(tmp_path / "out.onnx")
    assert made.report.achieved == pytest.approx(0.5, abs=0.01)
    weights = [after[name] for name in ("up", "down")]
    assert all(array.dtype == np.float16 for array in weights)
    assert sum(int((array == 0).sum()) for array in weights) / 768 == pytest.approx(0.5, abs=0.01)


def test_queries_and_keys_are_followed_through_casts(tmp_path):
    """Products of queries and keys in float32 behind projections in float16: their dims go and are refitted."""
    net = Net(HALF)
    x = net.input("x", ("n", 6, 16))
    h = net.op("Cast", x, to=10)

    def project(name: str, perm: list[int]) -> ir.Value:
        made = net.op("MatMul", h, net.normal((16, 16), f"{name}.weight", 0.25), name=name)
        apart = net.op("Reshape", made, net.constant(np.array([0, 6, 2, 8]), f"{name}.shape"))
        return net.op("Cast", net.op("Transpose", apart, perm=perm), to=1)

    q, k, v = project("q", [0, 2, 1, 3]), project("k", [0, 2, 3, 1]), project("v", [0, 2, 1, 3])
    shares = net.op("Softmax", net.op("MatMul", q, k, name="scores"), axis=-1)
    mixed_ = net.op("Transpose", net.op("MatMul", shares, v, name="mix"), perm=[0, 2, 1, 3])
    joined = net.op("Reshape", mixed_, net.constant(np.array([0, 6, 16]), "join.shape"))
    out = net.op(
        "MatMul", net.op("Cast", joined, to=10), net.normal((16, 16), "out.weight", 0.25), name="out"
    )
    y = net.ops("Cast", out, outputs=["y"], to=1)[0]
    path = save(net.model(y), tmp_path / "net.onnx")
    rng = np.random.default_rng(0)
    data = [{"x": rng.standard_normal((1, 6, 16)).astype(np.float32)} for _ in range(60)]
    report = onnxprune.prune(
        path, tmp_path / "cut.onnx", macs=0.8, criterion="obs", round_to=1, data=data
    ).report
    kinds = {layer.name: layer.kind for layer in report.repairs}
    assert kinds.get("scores") == "logits", kinds
