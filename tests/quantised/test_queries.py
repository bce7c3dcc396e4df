"""Queries of quantised attention that are mixed anew: weights, ranges, and what becomes of the file's nodes."""

from __future__ import annotations

import numpy as np
import pytest
from onnxruntime.quantization import QuantFormat, quantize_static

import onnxprune
from onnxprune.calibrate.data import read_dataset
from onnxprune.calibrate.dataset import input_specs
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.choosing.evidence import Evidence
from onnxprune.model.io import load
from onnxprune.repair import sequence
from onnxprune.repair.rows import HELD_OUT
from onnxprune.report.quantised import requantised_line
from tests.quantised.quantised_nets import VARIANTS, Quantised, Samples, arrays, kernels
from tests.repair.query_nets import closed, fused, prune, separate, tokens, without_bias
from tests.repair.test_sequence import error, save
from tests.statistics.test_products import product
from tests.structures.attention_nets import Net

NETS = (separate, fused, without_bias)


def quantised(folder, model, form="QDQ", variant="s8s8 channel"):
    plain, path = save(model, folder), folder / "quantised.onnx"
    reader = Samples(tokens())
    quantize_static(plain, path, reader, quant_format=QuantFormat[form], **VARIANTS[variant])
    return path


def scales_of(path):
    """Scales and zero points of activations that are rounded, by the name of what is rounded."""
    found, graph = {}, load(path).ir.graph
    for node in graph:
        if node.op_type == "QuantizeLinear":
            found[node.inputs[0].name] = tuple(float(v.const_value.numpy()) for v in node.inputs[1:])
    return found


def cut(path, out, **options):
    """Dims of queries and keys go alone; the product's repair."""
    done = prune(path, out, "affine", **options)
    return done, [layer for layer in done.report.repairs if layer.kind == "logits"]


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("build", NETS, ids=lambda build: build.__name__)
def test_dims_that_others_can_replace_cost_little(tmp_path, build, form):
    path, out, bare = quantised(tmp_path, build(), form), tmp_path / "out.onnx", tmp_path / "bare.onnx"
    done, (scores,) = cut(path, out)
    assert scores.lost and scores.after < 0.2 * scores.before
    assert done.report.soundness.checked and done.report.soundness.equal
    assert done.report.quantised.rescaled and "have ranges" in requantised_line(
        done.report.quantised
    ).replace("has a range", "have ranges")
    onnxprune.apply(path, done.plan, bare, compensate="none", data=tokens())
    fresh = tokens(seed=1)
    assert error(path, out, fresh) < 0.25 * error(path, bare, fresh)
    for op_type, count in kernels(path, tmp_path).items():  # a bias that was added is one more QLinearAdd
        if op_type.startswith("QLinear"):
            assert kernels(out, tmp_path)[op_type] >= count


def test_the_error_that_is_reported_is_that_of_the_rounded_logits(tmp_path, monkeypatch):
    """On the batches that were held out, of all pairs of rows: queries and keys are taken as independent.

    A softmax behind them would see no common shift of all keys, but the rounding of the logits does.
    """
    held = []

    def of(product, teacher, batches, rng, make=sequence.Goals.of):
        held.extend(list(batches)[HELD_OUT - 1 :: HELD_OUT])
        return make(product, teacher, batches, rng)

    monkeypatch.setattr(sequence.Goals, "of", of)
    path, out = quantised(tmp_path, separate()), tmp_path / "out.onnx"
    _, (scores,) = cut(path, out)
    (q, k), (q_left, k_left) = (factors(file, held) for file in (path, out))
    wanted, found = (np.einsum("hid,hjd->hij", x, z) for x, z in ((q, k), (q_left, k_left)))
    assert np.square(found - wanted).mean() / np.square(wanted).mean() == pytest.approx(
        scores.after, rel=0.02
    )


def factors(path, feeds):
    """Rows of queries and keys of all samples, (heads, rows, dims), rounded as in the file."""
    model = load(path).ir
    (node,) = (n for n in model.graph if n.name == "scores")
    names = [value.name for value in node.inputs]
    model.graph.outputs[:] = list(node.inputs)
    found = [run(open_session(model), feed) for feed in feeds]
    q, k = (np.concatenate([each[name] for each in found]).astype(np.float64) for name in names)
    q, k = q.transpose(1, 0, 2, 3), k.transpose(1, 0, 3, 2)
    return q.reshape(len(q), -1, q.shape[-1]), k.reshape(len(k), -1, k.shape[-1])


def test_only_queries_get_other_ranges_and_copies_of_them_the_same(tmp_path):
    path, out = quantised(tmp_path, separate()), tmp_path / "out.onnx"
    done, _ = cut(path, out)
    before, after = scales_of(path), scales_of(out)
    changed = {name for name in before if before[name] != after[name]}
    assert set(done.report.quantised.rescaled) <= changed
    assert len({after[name] for name in changed - {"q_out"}}) == 1  # the sum, reshaped and transposed
    assert not any(name.startswith(("k", "v")) for name in changed)
    read = {
        node.inputs[0].producer().inputs[0].name: tuple(float(v.const_value.numpy()) for v in node.inputs[1:])
        for node in load(out).ir.graph
        if node.op_type == "DequantizeLinear" and node.inputs[0].producer() is not None
    }
    assert read == {name: after[name] for name in read}


def test_mask_and_remove_are_repaired_alike(tmp_path):
    path = quantised(tmp_path, separate())
    files = {mode: tmp_path / f"{mode}.onnx" for mode in ("remove", "mask")}
    for mode, file in files.items():
        assert cut(path, file, mode=mode)[1]
    assert error(files["mask"], files["remove"], tokens(seed=1)) < 1e-6
    assert scales_of(files["mask"]).items() <= scales_of(files["remove"]).items()


@pytest.mark.parametrize("build", [separate, without_bias], ids=lambda build: build.__name__)
def test_what_did_not_help_is_undone(tmp_path, build, monkeypatch):
    """As if the rounded logits were worse than before: weights and scales are those of a cut without a repair."""
    path, out, bare = quantised(tmp_path, build()), tmp_path / "out.onnx", tmp_path / "bare.onnx"
    monkeypatch.setattr(sequence, "held_error", lambda rows: np.inf)
    done = prune(path, out, "affine")
    (scores,) = (layer for layer in done.report.repairs if layer.name == "scores")
    assert scores.kind == "none" and scores.after == scores.before
    onnxprune.apply(path, done.plan, bare, compensate="none", data=tokens())
    found, plain = arrays(out), arrays(bare)
    names = [name for name in plain if name.startswith("q") and name in found]
    assert any("weight" in name for name in names) and any("scale" in name for name in names)
    for name in names:
        np.testing.assert_array_equal(found[name], plain[name], err_msg=name)
    assert not done.report.quantised.rescaled


def test_a_cut_is_tried_with_a_range_that_fits(tmp_path):
    """Before anything is cut: with the file's scales alone, queries that are mixed anew would be clipped."""
    path = quantised(tmp_path, separate())
    graph = onnxprune.analyze(path)
    evidence = Evidence(graph, read_dataset(tokens(), input_specs(load(path).ir)))
    (found,) = evidence.products
    group = next(g for g in graph.groups.values() if evidence.products_of(g))
    feed = evidence.refitted({group.id: np.arange(group.units) % 3 == 0})
    scales = {name: array for name, array in feed.items() if name in names_of_scales(graph)}
    behind = {node.inputs[1].name for node in found.route.steps if node.op_type == "QuantizeLinear"}
    assert behind <= scales.keys() and not any("k" in name or "v" in name for name in scales)
    initializers = graph.axis_graph.model.graph.initializers
    growth = {float(array / initializers[name].const_value.numpy()) for name, array in scales.items()}
    assert min(growth) > 1 and max(growth) == pytest.approx(min(growth))
    assert len({name for name in feed if name not in scales}) >= 2
    narrow = {name: array for name, array in feed.items() if name not in scales}
    assert evidence.trial.change(feed) < evidence.trial.change(narrow)


def names_of_scales(graph):
    """Of activations, by initializer."""
    return {
        node.inputs[1].name for node in graph.axis_graph.model.graph if node.op_type.endswith("izeLinear")
    }


@pytest.mark.parametrize(("zero", "mixed"), [(0, 1), (128, 0), (255, 1)])
def test_a_range_that_ends_at_zero_may_stand_for_a_relu(tmp_path, zero, mixed):
    """Queries behind it are not mixed; keys are."""
    n = Bits()
    x = n.tokens()
    q, k, v = n.project(x)
    found = product(closed(n, x, n.rounded(q, "q_rounded", zero=zero), k, v), tmp_path)
    assert found.mixed == mixed and not found.turns
    if mixed == 1:
        assert "DequantizeLinear" in found.routes[0]
    else:
        assert found.route.rounded and found.route.layer.label == "q"


class Bits(Net, Quantised):
    """Attention that is rounded in places."""
