"""A model in pieces gives what the whole one gives, and the proof in pieces catches what the other one does."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from test_soundness import (  # noqa: F401 - collected again: here every node is a piece of its own
    test_a_dead_output_proves_nothing_so_inner_results_are_compared,
    test_a_missing_tie_is_caught,
    test_a_rule_that_ties_the_wrong_positions,
    test_a_wrong_refit,
    test_an_output_that_is_almost_zero_is_told_from_a_wrong_one,
    test_other_float_types_from_end_to_end,
    test_several_guilty_groups,
)

import onnxprune
from onnxprune.errors import UsageError
from onnxprune.evaluate import pieces
from onnxprune.evaluate.pieces import InPieces, Whole, open_runner, piece_ends
from onnxprune.testing import ModelBuilder


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Every model is huge, every node with a weight a piece."""
    monkeypatch.setattr(pieces, "WHOLE", -1)
    monkeypatch.setattr(pieces, "PIECE", 1)


def mlp(layers: int = 4) -> ir.Model:
    b = ModelBuilder(opset=18)
    x = b.input("x", ("n", 8))
    first = y = b.op("Relu", b.op("MatMul", x, b.weight((8, 16), "w0"), name="first"))
    for number in range(1, layers):
        y = b.op("Tanh", b.op("MatMul", y, b.weight((16, 16), f"w{number}", low=-0.3, high=0.3)))
    table = b.weight((3,), "table")
    return b.model(b.op("Add", y, first), first, x, table)


def feeds(count: int = 3) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((2, 8)).astype(np.float32)} for _ in range(count)]


def test_pieces_give_the_outputs_of_the_whole():
    model, given = mlp(), feeds()
    runner, whole = open_runner(model), Whole(model, "cpu")
    assert isinstance(runner, InPieces)
    assert runner.outputs == whole.outputs
    found: list[dict[str, np.ndarray]] = [{} for _ in given]
    bits = list(runner.results(given))
    for bit in bits:
        for number, part in bit:
            assert not found[number].keys() & part.keys()
            found[number].update(part)
    assert len(bits) == len(piece_ends(model)) + 2  # the last piece, and the outputs that no node makes
    for feed, got in zip(given, found, strict=True):
        expected = whole.run(feed)
        assert got.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_allclose(got[name], array, rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(runner.run(feed)[name], array, rtol=1e-6, atol=1e-7)


def test_a_piece_holds_its_own_weights_only(monkeypatch):
    opened: list[set[str]] = []
    session = pieces.Piecewise.advance.__globals__["open_session"]

    def watched(model, *args, **kwargs):
        opened.append({name for name in model.graph.initializers if name.startswith("w")})
        return session(model, *args, **kwargs)

    monkeypatch.setitem(pieces.Piecewise.advance.__globals__, "open_session", watched)
    list(open_runner(mlp()).results(feeds()))
    assert opened == [{"w0"}, {"w1"}, {"w2"}, {"w3"}]


def test_results_do_not_keep_the_session_alive():
    for bit in open_runner(mlp()).results(feeds(1)):
        for _, part in bit:
            assert all(
                array.base is None or array.flags.owndata or name == "x" for name, array in part.items()
            )


def test_a_weight_that_is_used_twice_counts_in_both_pieces():
    b = ModelBuilder(opset=18)
    shared = b.weight((8, 8), "shared")
    y = b.op("MatMul", b.op("MatMul", b.input("x", ("n", 8)), shared), b.weight((8, 8), "other"))
    model = b.model(b.op("MatMul", y, shared))
    assert len(piece_ends(model)) == 2
    expected, got = Whole(model, "cpu").run(feeds()[0]), open_runner(model).run(feeds()[0])
    np.testing.assert_allclose(got[model.graph.outputs[0].name], next(iter(expected.values())), rtol=1e-5)


def test_no_piece_ends_inside_a_sequence():
    b = ModelBuilder(opset=18)
    y = b.op("MatMul", b.input("x", ("n", 8)), b.weight((8, 8), "a"))
    parts = b.op("SplitToSequence", y, axis=1, name="split")
    y = b.op("SequenceAt", parts, b.constant(0))
    last = b.op("SequenceAt", parts, b.constant(1))
    z = b.op("MatMul", last, b.weight((1, 8), "b"))
    model = b.model(b.op("MatMul", b.op("Mul", z, y), b.weight((8, 4), "c")))
    parts.type = ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))
    product = model.graph.outputs[0].producer().inputs[0]
    assert piece_ends(model) == (last.name, product.name)
    (expected,) = Whole(model, "cpu").run(feeds()[0]).values()
    (got,) = open_runner(model).run(feeds()[0]).values()
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_small_models_are_run_as_a_whole(monkeypatch):
    monkeypatch.setattr(pieces, "WHOLE", 1 << 20)
    assert piece_ends(mlp()) == ()
    assert isinstance(open_runner(mlp()), Whole)


def test_an_output_that_is_missing():
    with pytest.raises(UsageError, match="no output 'tabel' .did you mean 'table'"):
        open_runner(mlp()).run(feeds()[0], ["tabel"])


def test_measured_in_pieces_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    ir.save(mlp(), path)
    data = {"x": np.random.default_rng(1).standard_normal((40, 8)).astype(np.float32)}
    options = {"data": data, "ratio": 0.5, "round_to": 1, "compensate": "none", "criterion": "l2"}
    in_pieces = onnxprune.prune(path, **options).report
    monkeypatch.setattr(pieces, "WHOLE", 1 << 20)
    whole = onnxprune.prune(path, **options).report
    assert in_pieces.soundness.checked and in_pieces.soundness.inner == whole.soundness.inner > 0
    assert in_pieces.soundness.max_abs_output == pytest.approx(whole.soundness.max_abs_output, rel=1e-5)
    assert in_pieces.fidelity.main.cosine == pytest.approx(whole.fidelity.main.cosine, rel=1e-6)
    assert in_pieces.fidelity.main.cosine < 0.999
