"""Masks that learn: their formulas, gradients away from the model, and what they lead to."""

from __future__ import annotations

import numpy as np
import pytest
from learned_nets import INPUTS, loss_and_gradients, opened, samples, two_layers
from small_nets import Net, save

import onnxprune
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.criteria.binary import BETAS, START, TOLERANCE, BinaryMasks
from onnxprune.errors import UsageError
from onnxprune.gradients.feeds import as_inputs
from onnxprune.gradients.masks import unit_factors
from onnxprune.model.edit import set_array
from onnxprune.patterns import parse_pattern
from onnxprune.sparsity.rb import learn_logits
from onnxprune.statistics.learning import Learning, learn_masks
from onnxprune.surgery.keep import kept_positions
from onnxprune.surgery.mask import mask

OUT = 5


def logistic(z):
    return 1 / (1 + np.exp(-z))


def test_steps_against_the_formulas_written_out():
    """Draws, the straight-through gradient, the penalty and Adam, mask by mask in float64."""
    sizes, level, rate = np.array([1.0, 4.0, 4.0, 2.0]), 0.4, 0.3
    masks = BinaryMasks(sizes, level, rate, seed=7, ramp=4)
    rng, tasks = np.random.default_rng(7), np.random.default_rng(1)
    s = [np.log(START / (1 - START))] * 4
    mean, square = [0.0] * 4, [0.0] * 4
    for step in range(1, 8):
        u = [float(v) for v in rng.random(4, np.float32)]
        drawn = masks.draw()
        task = tasks.standard_normal(4)
        density = sum(size * logistic(each) for size, each in zip(sizes, s, strict=True)) / sizes.sum()
        for i in range(4):
            p = logistic(s[i] + np.log(u[i] / (1 - u[i])))
            assert drawn[i] == (p > 0.5)
            wanted = (1 - level) ** min(step / 4, 1)
            slope = 2 * (density - wanted) / TOLERANCE**2 * sizes[i] / sizes.sum()
            g = task[i] * p * (1 - p) + slope * logistic(s[i]) * (1 - logistic(s[i]))
            mean[i] = BETAS[0] * mean[i] + (1 - BETAS[0]) * g
            square[i] = BETAS[1] * square[i] + (1 - BETAS[1]) * g * g
            unbiased = mean[i] / (1 - BETAS[0] ** step), square[i] / (1 - BETAS[1] ** step)
            s[i] -= rate * unbiased[0] / np.sqrt(unbiased[1])
        masks.step(task)
        np.testing.assert_allclose(masks.logits, s, rtol=1e-4, atol=1e-4)
    share = sizes / sizes.sum()
    assert masks.mean_sparse_prob == pytest.approx(1 - share @ logistic(np.array(s)), abs=1e-4)
    assert masks.below == pytest.approx(share @ (np.array(s) <= 0), abs=1e-6)


def test_the_penalty_and_its_gradient():
    masks = BinaryMasks(np.array([1.0, 2.0, 5.0]), 0.5, 0.1)
    assert masks.penalty == pytest.approx(((START - 0.5) / 0.05) ** 2, rel=1e-4)
    masks.logits = np.array([0.3, -1.0, 2.0])
    found = masks.penalty_gradient()
    for i in range(3):
        ends = []
        for sign in (1, -1):
            masks.logits[i] += sign * 1e-5
            ends.append(masks.penalty)
            masks.logits[i] -= sign * 1e-5
        assert found[i] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3)


def test_penalty_alone_leads_to_the_level():
    masks = BinaryMasks(np.ones(50), 0.7, 0.2)
    for _ in range(200):
        masks.draw()
        masks.step(np.zeros(50))
    assert masks.mean_sparse_prob == pytest.approx(0.7, abs=0.01)


def test_gradients_are_those_at_the_weights_that_are_fed(tmp_path):
    """Closed form at weights of which a third is masked; the mean over samples and outputs is differentiated."""
    data = samples()
    _, layers, differentiation = opened(tmp_path, data)
    assert [layer.name for layer in layers] == ["A", "B"]
    rng = np.random.default_rng(0)
    dense = {layer.name: layer.consumer.array.astype(np.float64) for layer in layers}
    fed = {name: w * (rng.random(w.shape) < 0.66) for name, w in dense.items()}
    learning = Learning.of(differentiation, list(fed))
    steps = list(learning.steps(2, lambda: {name: w.astype(np.float32) for name, w in fed.items()}))
    assert len(steps) == 2 * 5
    for number in range(2):
        order = np.random.default_rng([0, number]).permutation(40)
        for batch in range(5):
            mine = order[batch * 8 : batch * 8 + 8]
            x, labels = (data[key][mine].astype(np.float64) for key in ("x", "labels"))
            loss, expected = loss_and_gradients(fed["A"], fed["B"], x, labels)
            value, found = steps[number * 5 + batch]
            assert value == pytest.approx(loss, rel=1e-5)
            for layer in layers:
                gradient = layer.gradient(found[layer.name])
                np.testing.assert_allclose(gradient, expected[layer.name], rtol=1e-3, atol=1e-6)


def test_initializers_that_are_not_there(tmp_path):
    with pytest.raises(UsageError, match="no initializer 'C' to feed"):
        as_inputs(two_layers(), ["C"])


def partly_used(path):
    """Half of the inputs are noise that the labels, the model's own outputs, do not depend on."""
    n = Net(seed=1)
    weight = n.rng.choice([-1.0, 1.0], (OUT, INPUTS)).astype(np.float32)
    weight[:, ::2] *= 1e-3
    y = n.ops("Gemm", n.data("x", ("n", INPUTS)), n.constant(weight, "W"), outputs=["y"], name="fc", transB=1)
    x = np.random.default_rng(2).standard_normal((64, INPUTS)).astype(np.float32)
    return save(n.model(y[0]), path / "partly.onnx"), {"x": x, "labels": x @ weight.T}


def test_weights_that_do_not_matter_go(tmp_path):
    path, data = partly_used(tmp_path)
    made = onnxprune.sparsify(path, sparsity=0.5, criterion="rb", solver="mask", data=data, metric="mse")
    zeros = made.zeros["W"]
    assert zeros[:, ::2].all() and not zeros[:, 1::2].any()
    learned = made.report.learned
    assert learned["mean_sparse_prob"] == pytest.approx(0.5, abs=0.1)
    assert 0 <= learned["inference_level"] <= 1
    assert any("ranks lowest by sigmoid(s)" in note for note in made.report.warnings)


@pytest.mark.parametrize("pattern", ["element", "2x1", "1x3", "channelx1", "1xchannel", "1:2"])
def test_one_mask_per_block(tmp_path, pattern):
    _, layers, differentiation = opened(tmp_path, samples())
    shape = parse_pattern(pattern)
    found = learn_logits(layers[:1], shape, differentiation, 0.5, passes=2)
    logits, grid = found.logits["A"], layers[0].grid
    assert logits.shape == grid.shape
    blocks = {"element": 48, "2x1": 24, "1x3": 16, "channelx1": 6, "1xchannel": 8, "1:2": 48}[pattern]
    assert len(np.unique(logits)) == blocks
    if pattern != "1:2":
        np.testing.assert_array_equal(shape.spread(shape.reduce(logits, grid, np.max), grid), logits)


def test_a_seed_gives_one_result(tmp_path):
    _, layers, differentiation = opened(tmp_path, samples())
    _, _, other = opened(tmp_path, samples(), seed=1)
    runs = [
        learn_logits(layers, parse_pattern("element"), each, 0.5, passes=2).logits["A"]
        for each in (differentiation, differentiation, other)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.abs(runs[0] - runs[2]).max() > 0.01
    before = two_layers().graph.initializers["A"].const_value.numpy()
    np.testing.assert_array_equal(layers[0].consumer.array, before)


def chain():
    """Units in the middle, behind an activation with f(0) != 0 and a bias."""
    n = Net(seed=4)
    hidden = n.op("Sigmoid", n.linear(n.data("x", ("n", INPUTS)), "up", INPUTS, 10))
    weight, bias = n.normal((10, 3), "down.weight"), n.normal((3,), "down.bias")
    return n.model(n.ops("Gemm", hidden, weight, bias, outputs=["y"], name="down")[0])


def test_factors_mask_units_as_masking_does(tmp_path):
    data = samples()
    analysis, _, _ = opened(tmp_path, {**data, "labels": data["labels"][:, :3]}, chain())
    (group,) = analysis.groups.values()
    made = unit_factors(analysis.axis_graph, [group])
    (factor,) = made.factors[group.id]
    keep = np.arange(10) % 3 > 0
    feed = {"x": data["x"], factor.name: factor.spread(keep.astype(np.float32))}
    masked = mask(analysis.axis_graph, kept_positions(analysis.groups, {group.id: keep}))
    found = run(open_session(made.model), feed)["y"]
    expected = run(open_session(masked), {"x": data["x"]})["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected - run(open_session(analysis.axis_graph.model), {"x": data["x"]})["y"]).max() > 0.1


def test_gradients_of_factors_are_those_at_the_factors(tmp_path):
    """Written out for `y = W (m * h) + b`, at masks of which some are 0."""
    data = samples()
    data["labels"] = data["labels"][:, :3]
    analysis, _, differentiation = opened(tmp_path, data, chain(), size=40, at_once=40)
    (group,) = analysis.groups.values()
    made = unit_factors(analysis.axis_graph, [group])
    (factor,) = made.factors[group.id]
    weights = {
        str(v.name): v.const_value.numpy().astype(np.float64)
        for v in analysis.axis_graph.model.graph.initializers.values()
    }
    h = logistic(data["x"] @ weights["up.weight"].T + weights["up.bias"])
    m = (np.arange(10) % 2).astype(np.float64)
    error = (m * h) @ weights["down.weight"] + weights["down.bias"] - data["labels"]
    expected = ((2 * error / error.size) @ weights["down.weight"].T * h).sum(axis=0)
    learning = Learning.of(differentiation, [factor.name], model=made.model)
    ((_, found),) = learning.steps(1, lambda: {factor.name: factor.spread(m)})
    position = factor.gather(found[factor.name], group.units)
    np.testing.assert_allclose(position, expected, rtol=1e-4, atol=1e-7)


def test_units_that_do_not_matter_rank_lowest(tmp_path):
    model = chain()
    value = model.graph.initializers["down.weight"]
    array = 2 * np.sign(value.const_value.numpy())
    array[::2] *= 1e-3
    set_array(value, array)
    data = samples(80)
    path = save(model, tmp_path / "m.onnx")
    data["labels"] = run(open_session(onnxprune.analyze(path).axis_graph.model), {"x": data["x"]})["y"]
    analysis, _, differentiation = opened(tmp_path, data, model)
    found = learn_masks(differentiation, analysis.groups.values(), 0.5)
    (logits,) = found.logits.values()
    assert logits[::2].max() < logits[1::2].min()
    again = learn_masks(differentiation, analysis.groups.values(), 0.5)
    np.testing.assert_array_equal(logits, again.logits[next(iter(again.logits))])
    pruned = onnxprune.prune(
        path, ratio=0.5, criterion="rb", data=data, round_to=1, compensate="none", metric="mse"
    )
    (gone,) = pruned.plan.keep.values()
    np.testing.assert_array_equal(~gone, np.arange(10) % 2 == 0)


def test_models_without_labels_learn_from_the_distance_to_their_outputs(tmp_path):
    """`y` is no classifier's: what is lost of the outputs' variance is differentiated, 0 at the model itself."""
    data = {"x": samples()["x"]}
    _, layers, differentiation = opened(tmp_path, data, loss="outputs")
    learning = Learning.of(differentiation, ["A", "B"])
    assert "distance" in learning.loss
    dense = {layer.name: layer.consumer.array for layer in layers}
    assert all(loss < 1e-9 for loss, _ in learning.steps(1, lambda: dense))
    nothing = {name: 0 * array for name, array in dense.items()}
    losses = [loss for loss, _ in learning.steps(1, lambda: nothing)]
    assert np.mean(losses) == pytest.approx(1.0, rel=0.5)
