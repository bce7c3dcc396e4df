"""`refit_io`: the cache of a decoder gets smaller with the heads that it holds."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import onnxprune
from onnxprune.errors import UsageError
from onnxprune.report import json as as_json
from onnxprune.report import markdown, terminal
from tests.structures.attention_nets import DEPTH, HEADS
from tests.structures.test_attention_decoders import SIZES, by_expand, cached

CACHE = ("past.*", "present.*")


@pytest.fixture
def decoder(tmp_path):
    path = tmp_path / "decoder.onnx"
    ir.save(cached(), path)
    return path


def feeds(path, count=3):
    rng = np.random.default_rng(5)
    sizes = {"batch": 2, **SIZES}
    inputs = onnx.load(path).graph.input
    shapes = {
        i.name: [sizes.get(d.dim_param, d.dim_value) for d in i.type.tensor_type.shape.dim] for i in inputs
    }
    return [
        {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(count)
    ]


def run(path, feed):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))


def kept_heads(plan):
    """Heads that stay, from the kept rows of the key projection."""
    rows = plan.initializers["k.weight"][1]
    heads = sorted({row // DEPTH for row in rows})
    assert rows == [head * DEPTH + d for head in heads for d in range(DEPTH)]
    return heads


def test_cache_shrinks_with_its_heads(decoder, tmp_path):
    out = tmp_path / "out.onnx"
    done = onnxprune.prune(decoder, out, ratio=0.5, round_to=1, refit_io=CACHE, bindings=SIZES)
    heads = kept_heads(done.plan)
    assert 0 < len(heads) < HEADS
    shapes = {io.name: (io.before[1], io.after[1]) for io in done.report.refitted}
    assert shapes == dict.fromkeys(
        ("past.key", "past.value", "present.key_out", "present.value_out"), (HEADS, len(heads))
    )
    declared = {v.name: v.type.tensor_type.shape.dim[1].dim_value for v in onnx.load(out).graph.input}
    assert declared["past.key"] == declared["past.value"] == len(heads)

    # what a caller sees: the masked model on the whole cache, the cut model on the heads that stay
    masked = tmp_path / "masked.onnx"
    onnxprune.apply(decoder, done.plan, masked, mode="mask", bindings=SIZES)
    for feed in feeds(decoder):
        whole = run(masked, feed)
        small = {name: a[:, heads] if name.startswith("past") else a for name, a in feed.items()}
        for name, got in run(out, small).items():
            expected = whole[name][:, heads] if name.startswith("present") else whole[name]
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_heads_in_groups(tmp_path):
    """Key heads that several query heads share go together with their cache."""
    path = tmp_path / "grouped.onnx"
    ir.save(cached(2, by_expand), path)
    closed, opened = (onnxprune.analyze(path, bindings=SIZES, refit_io=io) for io in ((), CACHE))
    assert opened.coverage.macs > closed.coverage.macs
    done = onnxprune.prune(path, tmp_path / "out.onnx", ratio=0.5, round_to=1, refit_io=CACHE, bindings=SIZES)
    assert done.report.soundness.checked and not done.report.soundness.rejected_groups
    assert all(io.after[1] == 1 for io in done.report.refitted)


def test_fidelity_and_accuracy_feed_the_smaller_cache(decoder, tmp_path):
    data = tmp_path / "data.npz"
    samples = [{name: a[:1] for name, a in feed.items()} for feed in feeds(decoder, 6)]
    arrays = {name: np.concatenate([s[name] for s in samples]) for name in samples[0]}
    np.savez(data, **arrays)
    done = onnxprune.prune(
        decoder, tmp_path / "out.onnx", ratio=0.5, round_to=1, refit_io=CACHE, bindings=SIZES, data=data
    )
    assert done.report.soundness.tier == "real"
    assert done.report.fidelity is not None
    by_name = {output.name: output for output in done.report.fidelity.outputs}
    assert by_name["present.key_out"].cosine == pytest.approx(
        1.0, abs=1e-6
    )  # the heads that stay are unchanged


def test_plan_is_replayed(decoder, tmp_path):
    first, plan, second = (tmp_path / name for name in ("first.onnx", "plan.json", "second.onnx"))
    done = onnxprune.prune(decoder, first, ratio=0.5, round_to=1, refit_io=CACHE, bindings=SIZES)
    done.plan.save(plan)
    assert json.loads(plan.read_text())["refit_io"] == [
        "past.key",
        "past.value",
        "present.key_out",
        "present.value_out",
    ]
    onnxprune.apply(decoder, plan, second, bindings=SIZES)
    assert first.read_bytes() == second.read_bytes()


def test_said_in_every_report(decoder):
    report = onnxprune.prune(decoder, ratio=0.5, round_to=1, refit_io=CACHE, bindings=SIZES).report
    left = report.refitted[0].after[1]
    line = f"input past.key: (batch, {HEADS}, past, {DEPTH}) -> (batch, {left}, past, {DEPTH})"
    assert line in terminal.render(report)
    assert line in markdown.render(report)
    assert as_json.to_dict(report)["refitted_io"][0]["name"] == "past.key"


def test_half_of_a_pair_keeps_its_shape_and_says_so(decoder):
    """The inputs alone do not help: the outputs still hold the heads."""
    report = onnxprune.prune(
        decoder, ratio=0.5, round_to=1, refit_io=("past.*",), bindings=SIZES, best_effort=True
    ).report
    assert all(io.before == io.after for io in report.refitted)
    assert any("--refit-io: past.key, past.value kept their shapes" in line for line in report.warnings)


def test_masking_changes_no_shape(decoder, tmp_path):
    report = onnxprune.prune(
        decoder, tmp_path / "out.onnx", ratio=0.5, refit_io=CACHE, bindings=SIZES, mode="mask", round_to=1
    ).report
    assert all(io.before == io.after for io in report.refitted)
    assert not any("--refit-io" in line for line in report.warnings)


@pytest.mark.parametrize(
    ("pattern", "said"), [("cache*", "matches no input or output"), ("re:(", "no regular")]
)
def test_pattern_that_matches_nothing(decoder, pattern, said):
    with pytest.raises(UsageError, match=said):
        onnxprune.analyze(decoder, refit_io=(pattern,), bindings=SIZES)


def test_opened_feature_input_without_a_layer_behind_it(decoder):
    """An input's own features have no weight that makes them: nothing decides which of them could go."""
    analysis = onnxprune.analyze(decoder, refit_io=("x",), bindings=SIZES)
    assert all("x[" not in axis.axis.name for g in analysis.partition.groups for axis in g.axes)
