"""Whole models: the zeros that were asked for, in the places that the definition says, and weights that make
up."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_nets import Net, attention, convnet, feeds, grouped, residual, save

import onnxprune
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.errors import UsageError
from onnxprune.model.io import load
from onnxprune.report.sparsity import render, render_json, render_markdown


def weights(path) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in load(path).ir.graph.initializers.items()}


def outputs(path, feed) -> np.ndarray:
    return next(iter(run(open_session(load(path).ir, threads=1), feed).values()))


def magnitude_by_hand(arrays: dict[str, np.ndarray], level: float, *, normed: bool) -> dict[str, np.ndarray]:
    """One sort over all layers, in their order, of |w| or |w| / ||W||."""
    scores = {
        name: np.abs(array.astype(np.float64)) / (np.linalg.norm(array.astype(np.float64)) if normed else 1.0)
        for name, array in arrays.items()
    }
    flat = np.concatenate([score.ravel() for score in scores.values()])
    limit = np.sort(flat)[int(level * len(flat))]
    return {name: score < limit for name, score in scores.items()}


@pytest.fixture
def net(tmp_path):
    return save(convnet(), tmp_path / "net.onnx")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, **feeds(60))
    return path


@pytest.mark.parametrize("criterion, normed", [("magnitude", False), ("normed_abs", True)])
def test_a_global_magnitude_ranking_is_one_sort_of_all_weights(net, tmp_path, criterion, normed):
    out = tmp_path / "out.onnx"
    made = onnxprune.sparsify(net, out, sparsity=0.6, criterion=criterion)
    before, after = weights(net), weights(out)
    handled = {layer.weight: before[layer.weight] for layer in made.report.layers}
    expected = magnitude_by_hand(handled, 0.6, normed=normed)
    for name, array in before.items():
        zeros = expected.get(name, np.zeros(array.shape, bool))
        assert ((after[name] == 0) == (zeros | (array == 0))).all(), name
        assert (after[name][~zeros] == array[~zeros]).all()
        if name in handled:
            assert (made.zeros[name] == zeros).all()
    assert made.report.zeros == int(0.6 * made.report.size)


def test_level_0_changes_nothing_and_says_so(net, tmp_path):
    out = tmp_path / "out.onnx"
    made = onnxprune.sparsify(net, out, sparsity=0.0)
    assert made.report.zeros == 0
    assert all((weights(net)[name] == array).all() for name, array in weights(out).items())
    assert any("level of 0" in line for line in made.report.warnings)


@pytest.mark.parametrize("pattern", ["element", "4x1", "1x4", "2:4", "channelx1", "1xchannel"])
@pytest.mark.parametrize("solver", ["mask", "sparsegpt", "obc"])
def test_every_solver_keeps_to_every_pattern(net, data, tmp_path, pattern, solver):
    out = tmp_path / "out.onnx"
    criterion = "auto"
    made = onnxprune.sparsify(
        net, out, sparsity=0.5, pattern=pattern, solver=solver, criterion=criterion, data=data, scope="local"
    )
    from onnxprune.patterns import Grid, parse_pattern

    shape = parse_pattern(pattern)
    for layer in made.report.layers:
        array = weights(out)[layer.weight]
        if array.ndim == 4:
            matrix = array.transpose(0, 2, 3, 1).reshape(len(array), -1)
            grid = Grid(len(array), array.shape[1], array.shape[2] * array.shape[3])
        else:
            matrix, grid = array, Grid(*array.shape)
        zeros = matrix == 0
        blocks = shape.reduce(zeros.astype(float), grid, np.sum)
        if pattern == "2:4":
            assert (zeros.reshape(grid.outputs, -1, 4).sum(axis=2) == 2).all()
        else:
            assert set(np.unique(blocks)) <= {0.0, float(shape.goes(grid))}
        assert layer.zeros == int(0.5 * layer.size) // shape.goes(grid) * shape.goes(grid)


def test_solvers_make_up_for_zeros(net, data, tmp_path):
    """On samples that nothing was fitted on: obc and sparsegpt are closer to the original than zeros
    alone."""
    feed = {key: array for key, array in feeds(40, seed=9).items() if key != "labels"}
    whole = outputs(net, feed)
    errors = {}
    for solver in ("mask", "sparsegpt", "obc"):
        out = tmp_path / f"{solver}.onnx"
        onnxprune.sparsify(net, out, sparsity=0.7, solver=solver, data=data, test=data)
        errors[solver] = float(np.square(outputs(out, feed) - whole).mean())
    assert errors["obc"] < 0.5 * errors["mask"] and errors["sparsegpt"] < 0.5 * errors["mask"]


@pytest.mark.parametrize(
    "model", [residual(), grouped(), attention()], ids=["residual", "grouped", "attention"]
)
def test_other_structures(model, data, tmp_path):
    net = save(model, tmp_path / "net.onnx")
    inputs = {value.name: value for value in load(net).ir.graph.inputs}
    rng = np.random.default_rng(0)
    samples = [
        {n: rng.standard_normal([1, *v.shape[1:]]).astype(np.float32) for n, v in inputs.items()}
        for _ in range(40)
    ]
    made = onnxprune.sparsify(net, tmp_path / "out.onnx", sparsity=0.5, data=samples)
    assert made.report.achieved == pytest.approx(0.5, abs=0.02)
    assert {layer.kind for layer in made.report.layers} & {"weights"}
    better = [layer for layer in made.report.layers if layer.kind != "mask"]
    assert all(layer.after < layer.before for layer in better)


def test_criteria_that_look_at_data(net, data, tmp_path):
    for criterion in (
        "wanda",
        "gradient",
        "snip",
        "snip_momentum",
        "snip_momentum_block",
        "taylor",
        "fisher",
        "movement",
    ):
        made = onnxprune.sparsify(
            net, None, sparsity=0.5, criterion=criterion, solver="mask", data=data, pattern="4x1"
        )
        assert made.report.achieved == pytest.approx(0.5, abs=0.05), criterion


def test_wanda_is_its_formula(net, data, tmp_path):
    """|W_ij| times the root mean square of input j, each output for itself; the first layer sees the data."""
    out = tmp_path / "out.onnx"
    made = onnxprune.sparsify(net, out, sparsity=0.5, criterion="wanda", solver="mask", data=data, test=data)
    first = made.report.layers[0].weight
    array = weights(net)[first].astype(np.float64)
    x = feeds(60)["image"].astype(np.float64)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    kh, kw = array.shape[2:]
    h, w = x.shape[2:]
    rms = np.empty(array.shape[1:])
    for i in range(kh):
        for j in range(kw):
            rms[:, i, j] = np.sqrt(np.square(padded[:, :, i : i + h, j : j + w]).mean(axis=(0, 2, 3)))
    scores = (np.abs(array) * rms).transpose(0, 2, 3, 1).reshape(len(array), -1)
    zeros = (weights(out)[first] == 0).transpose(0, 2, 3, 1).reshape(len(array), -1)
    count = int(0.5 * scores.shape[1])
    for row, flags in zip(scores, zeros, strict=True):
        assert flags.sum() == count
        assert row[flags].max() <= row[~flags].min() * (1 + 1e-3)  # positions are drawn, sums are float32


def test_zeros_that_are_there_are_kept_and_counted(net, tmp_path):
    half, out = tmp_path / "half.onnx", tmp_path / "out.onnx"
    onnxprune.sparsify(net, half, sparsity=0.5)
    locked = onnxprune.sparsify(half, out, sparsity=0.3, lock=True, criterion="magnitude")
    assert locked.report.achieved == pytest.approx(0.5, abs=1e-3)
    assert any("stay zero, and count" in line for line in locked.report.warnings)
    const = onnxprune.sparsify(half, None, criterion="const")
    assert const.report.zeros == locked.report.zeros
    more = onnxprune.sparsify(half, None, sparsity=0.7, lock=True)
    for name, flags in locked.zeros.items():
        assert more.zeros[name][flags].all()


def test_rounds_reach_the_level_and_keep_what_is_gone(net, data):
    once = onnxprune.sparsify(net, None, sparsity=0.8, criterion="snip_momentum", solver="mask", data=data)
    rounds = onnxprune.sparsify(
        net,
        None,
        sparsity=0.8,
        criterion="snip_momentum",
        solver="mask",
        data=data,
        rounds=3,
        schedule="cube",
    )
    assert rounds.report.rounds == pytest.approx((0.8 / 27, 0.8 * 8 / 27, 0.8))
    assert rounds.report.zeros == once.report.zeros == int(0.8 * once.report.size)
    solved = onnxprune.sparsify(net, None, sparsity=0.8, data=data, rounds=2)
    assert solved.report.zeros == once.report.zeros


def test_shares_of_layers_are_kept(net):
    made = onnxprune.sparsify(net, None, sparsity=0.6, min_ratio=0.5, max_ratio=0.7)
    for layer in made.report.layers:
        assert 0.5 - 1 / layer.size <= layer.level <= 0.7
    assert made.report.zeros == int(0.6 * made.report.size)


def test_only_and_ignore(net):
    names = [layer.name for layer in onnxprune.sparsify(net, None).report.layers]
    some = onnxprune.sparsify(net, None, ignore=[names[0]])
    assert [layer.name for layer in some.report.layers] == names[1:]
    assert "--ignore" in some.report.left[names[0]]
    one = onnxprune.sparsify(net, None, only=[names[1]])
    assert [layer.name for layer in one.report.layers] == [names[1]]
    assert one.report.achieved == pytest.approx(0.5, abs=1e-2)
    with pytest.raises(UsageError, match="matches no node or initializer"):
        onnxprune.sparsify(net, None, ignore=["nothing*"])


def test_sparse_storage_saves_bytes_and_reads_back(net, tmp_path):
    dense, sparse = tmp_path / "dense.onnx", tmp_path / "sparse.onnx"
    onnxprune.sparsify(net, dense, sparsity=0.9)
    made = onnxprune.sparsify(net, sparse, sparsity=0.9, storage="sparse")
    proto = onnx.load(sparse)
    onnx.checker.check_model(proto)
    stored = {tensor.values.name for tensor in proto.graph.sparse_initializer}
    assert stored and sparse.stat().st_size < 0.7 * dense.stat().st_size
    assert made.report.bytes_after == sparse.stat().st_size
    assert all((weights(dense)[name] == array).all() for name, array in weights(sparse).items())
    feed = {key: array for key, array in feeds(4).items() if key != "labels"}
    import onnxruntime

    theirs = onnxruntime.InferenceSession(str(sparse), providers=["CPUExecutionProvider"]).run(None, feed)[0]
    assert np.array_equal(theirs, outputs(dense, feed))
    few = onnxprune.sparsify(net, tmp_path / "few.onnx", sparsity=0.3, storage="sparse")
    assert any("no weight is stored sparse" in line for line in few.report.warnings)
    assert not onnx.load(tmp_path / "few.onnx").graph.sparse_initializer


def test_the_same_call_gives_the_same_bytes(net, data, tmp_path):
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for file in files:
        onnxprune.sparsify(net, file, sparsity=0.7, data=data)
    first, second = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    assert first == second


def test_half_precision(tmp_path, data):
    model = convnet()
    for value in model.graph.initializers.values():
        if value.const_value.dtype == ir.DataType.FLOAT:
            array = value.const_value.numpy().astype(np.float16)
            value.const_value = ir.tensor(array, name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT16)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.type = ir.TensorType(ir.DataType.FLOAT16)
    for node in model.graph:
        for value in node.outputs:
            value.type = None
    net = save(model, tmp_path / "half.onnx")
    samples = [{"image": array[None].astype(np.float16)} for array in feeds(40)["image"]]
    made = onnxprune.sparsify(net, tmp_path / "out.onnx", sparsity=0.5, data=samples)
    assert made.report.achieved == pytest.approx(0.5, abs=0.01)
    assert weights(tmp_path / "out.onnx")[made.report.layers[0].weight].dtype == np.float16


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sparsity": 1.0}, "not in \\[0, 1\\)"),
        ({"sparsity": -0.1}, "not in \\[0, 1\\)"),
        ({"sparsity": 0.6, "pattern": "2:4"}, "above what the pattern 2:4 can reach"),
        ({"pattern": "3"}, "there is no pattern"),
        ({"criterion": "magnitud"}, "did you mean 'magnitude'"),
        ({"criterion": "wanda"}, "needs --data"),
        ({"solver": "obc"}, "needs --data"),
        ({"scope": "row", "pattern": "4x1"}, "--scope row"),
        ({"min_ratio": 0.6}, "not between"),
        ({"rounds": 0}, "not positive"),
        ({"schedule": "square"}, "there is no schedule"),
        ({"storage": "zip"}, "there is no storage"),
        ({"criterion": "const", "sparsity": 0.5}, "adds no zeros"),
        ({"criterion": "saliency", "solver": "mask"}, "that of a solver"),
        ({"criterion": "snip_momentum_block", "pattern": "2:4"}, "one score per block"),
        ({"pattern": "64x64"}, "no layer can get zeros"),
        ({"loss": "outputs"}, "reads none"),
    ],
)
def test_what_means_nothing_is_refused(net, options, message):
    with pytest.raises(UsageError, match=message):
        onnxprune.sparsify(net, None, **options)


def test_the_report_says_what_was_asked_what_came_out_and_what_it_buys(net, data, tmp_path):
    report = onnxprune.sparsify(net, None, pattern="2:4", data=data, test=data).report
    text = render(report, verbose=True)
    assert "requested 50.0% zeros" in text and "achieved 50.0%" in text
    assert "TensorRT" in text and "not faster there" in text
    assert all(layer.name in text for layer in report.layers)
    assert all(name in text and why in text for name, why in report.left.items())
    assert '"schema": "onnxprune-sparsity/1"' in render_json(report)
    assert "## Layers" in render_markdown(report)
    element = onnxprune.sparsify(net, None).report
    assert "no kernels that skip them" in element.buys and "67%" in element.buys


def test_a_layer_whose_extents_are_not_known_is_left_dense(tmp_path):
    """How many positions NonZero finds depends on the input: rows of such a layer cannot be drawn."""
    net = Net()
    x = net.data("x", ("n", 8))
    hidden = net.op("Relu", net.op("MatMul", x, net.normal((8, 8), "first", 0.5), name="first"))
    found = net.op("Transpose", net.op("NonZero", hidden), perm=[1, 0])
    rows = net.op("Cast", found, to=ir.DataType.FLOAT)
    net_out = net.ops("MatMul", rows, net.normal((2, 4), "second", 0.5), outputs=["out"], name="second")[0]
    path = save(net.model(net_out), tmp_path / "net.onnx")
    samples = [{"x": np.random.default_rng(n).standard_normal((1, 8)).astype(np.float32)} for n in range(20)]
    made = onnxprune.sparsify(path, None, sparsity=0.5, data=samples, test=samples[:1])
    assert [layer.weight for layer in made.report.layers] == ["first"]
    assert len(made.report.left) == 1 and "shape" in next(iter(made.report.left.values()))
    assert len(onnxprune.sparsify(path, None, sparsity=0.5).report.layers) == 2
