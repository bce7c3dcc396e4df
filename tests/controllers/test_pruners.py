"""Neural Compressor's pruners and criteria: masks to the last bit, registries, models."""

from __future__ import annotations

import numpy as np
import pytest
from reference import as_rows, as_weight, block_zeros, lowest

from onnxprune.controllers import (
    CRITERIA,
    PRUNERS,
    BasePruner,
    BasicPruner,
    ClassTable,
    GradientCriterion,
    MagnitudeCriterion,
    PatternLockPruner,
    PruningCriterion,
    RetrainFreeCriterion,
    SnipCriterion,
    SnipMomentumBlockCriterion,
    SnipMomentumCriterion,
    get_criterion,
    get_pruner,
    register_criterion,
    register_pruner,
)
from onnxprune.errors import UsageError

SHAPES = {"a": (8, 16), "b": (16, 8, 3, 3), "c": (12, 12, 1, 1)}


def arrays(seed=0, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def batches(count=3, seed=5, shapes=SHAPES):
    return [arrays(seed + n, shapes) for n in range(count)]


def snip_momentum(weights, gradients, alpha=0.9, beta=1.0):
    scores = {name: np.zeros(w.shape) for name, w in weights.items()}
    for batch in gradients:
        for name, w in weights.items():
            product = np.abs(w.astype(np.float64) * batch[name].astype(np.float64))
            scores[name] = alpha * scores[name] + beta * product
    return scores


def total(gradients, name):
    return sum(batch[name].astype(np.float64) for batch in gradients)


SCORES = {
    "magnitude": lambda w, g: {n: np.abs(a.astype(np.float64)) for n, a in w.items()},
    "gradient": lambda w, g: {n: np.abs(total(g, n)) for n in w},
    "snip": lambda w, g: {n: np.abs(a.astype(np.float64) * total(g, n)) for n, a in w.items()},
    "snip_momentum": snip_momentum,
}


@pytest.mark.parametrize("criterion", SCORES)
@pytest.mark.parametrize("pattern", [(4, 1), (1, 1), (1, 4), (2, 4)])
@pytest.mark.parametrize("level", [0.3, 0.5, 0.9])
def test_block_masks(criterion, pattern, level):
    weights, gradients = arrays(), batches()
    n, m = pattern
    pruner = BasePruner({"pruning_type": criterion, "pattern": f"{n}x{m}", "target_sparsity": level}, weights)
    assert pruner.step(gradients)
    scores = {name: as_rows(s) for name, s in SCORES[criterion](weights, gradients).items()}
    expected = block_zeros(scores, pattern, level, most=0.98)
    for name, weight in weights.items():
        mask = ~as_weight(expected[name], weight.shape)
        assert np.array_equal(pruner.masks[name], mask), name
        assert np.array_equal(pruner.modules[name], np.where(mask, weight, 0))
        assert np.allclose(pruner.scores[name], SCORES[criterion](weights, gradients)[name], rtol=1e-12)


@pytest.mark.parametrize(("least", "most"), [(0.0, 0.6), (0.3, 0.7), (0.4, 0.98)])
def test_bounds_per_layer(least, most):
    weights = arrays()
    for name, factor in (("a", 0.01), ("b", 1.0), ("c", 30.0)):
        weights[name] *= factor  # without bounds one layer would lose nearly everything, another nothing
    config = {
        "pruning_type": "magnitude",
        "pattern": "4x1",
        "target_sparsity": 0.5,
        "min_sparsity_ratio_per_op": least,
        "max_sparsity_ratio_per_op": most,
    }
    pruner = BasePruner(config, weights)
    pruner.step()
    scores = {name: as_rows(np.abs(w)) for name, w in weights.items()}
    expected = block_zeros(scores, (4, 1), 0.5, least, most)
    for name, weight in weights.items():
        assert np.array_equal(~pruner.masks[name], as_weight(expected[name], weight.shape)), name
    ratios = pruner.get_sparsity_ratio().values()
    assert min(ratios) >= least
    assert max(ratios) <= most
    assert pruner.max_sparsity_ratio_per_op == most


@pytest.mark.parametrize("n_m", [(2, 4), (1, 4), (3, 8)])
def test_n_in_m(n_m):
    n, m = n_m
    shapes = {"a": (8, 16), "b": (6, 8, 3, 3)}
    weights = arrays(1, shapes)
    pruner = BasePruner(
        {"pruning_type": "magnitude", "pattern": f"{n}:{m}", "target_sparsity": n / m}, weights
    )
    pruner.step()
    for name, weight in weights.items():
        rows = as_rows(np.abs(weight)).reshape(len(weight), -1, m)
        rank = np.argsort(np.argsort(rows, axis=2, kind="stable"), axis=2, kind="stable")
        expected = as_weight((rank >= n).reshape(len(weight), -1), weight.shape)
        assert np.array_equal(pruner.masks[name], expected)
    with pytest.raises(UsageError, match="can reach"):
        BasePruner({"pattern": f"{n}:{m}", "target_sparsity": n / m + 0.1}, weights)


def test_a_level_below_n_in_m_leaves_some_tuples_whole():
    weights = arrays(1, {"a": (8, 16)})
    pruner = BasePruner({"pruning_type": "magnitude", "pattern": "2:4", "target_sparsity": 0.25}, weights)
    pruner.step()
    rows = np.abs(weights["a"]).astype(np.float64).reshape(-1, 4)
    scores = np.sort(rows, axis=1)[:, :2].mean(axis=1)
    gone = np.argsort(scores, kind="stable")[: len(rows) // 2]
    zeros = (~pruner.masks["a"]).reshape(-1, 4).sum(axis=1)
    assert np.array_equal(np.flatnonzero(zeros == 2), np.sort(gone))
    assert zeros.sum() == 2 * len(gone)


@pytest.mark.parametrize("pattern", ["channelx1", "1xchannel"])
def test_channels_are_whole(pattern):
    weights = arrays(2)
    pruner = BasePruner({"pruning_type": "magnitude", "pattern": pattern, "target_sparsity": 0.4}, weights)
    pruner.step()
    means, sizes = {}, {}
    for name, weight in weights.items():
        moved = np.moveaxis(np.abs(weight).astype(np.float64), 0 if pattern == "1xchannel" else 1, 0)
        means[name] = moved.reshape(len(moved), -1).mean(axis=1)
        sizes[name] = weight.size // len(moved)
    budget = int(0.4 * sum(w.size for w in weights.values()))
    gone = {name: set() for name in weights}
    for _, _, index, name in sorted(
        (value, number, index, name)
        for number, (name, each) in enumerate(means.items())
        for index, value in enumerate(each)
    ):
        if sizes[name] > budget:
            break
        if (len(gone[name]) + 1) * sizes[name] <= 0.98 * weights[name].size:
            gone[name].add(index)
            budget -= sizes[name]
    for name, weight in weights.items():
        axes = tuple(d for d in range(weight.ndim) if d != (0 if pattern == "1xchannel" else 1))
        whole = pruner.masks[name].all(axis=axes)
        assert np.array_equal(whole, pruner.masks[name].any(axis=axes))  # no tap of a filter by itself
        assert set(np.flatnonzero(~whole)) == gone[name]


def test_local_scope():
    weights = arrays()
    config = {"pruning_type": "magnitude", "pattern": "1x1", "target_sparsity": 0.5, "pruning_scope": "local"}
    pruner = BasePruner(config, weights)
    pruner.step()
    for name, weight in weights.items():
        rows = as_rows(np.abs(weight))
        gone = lowest({name: rows}, rows.size // 2)[name]
        assert np.array_equal(~pruner.masks[name], as_weight(gone, weight.shape))


@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
def test_reductions(reduce):
    weights = arrays(3, {"a": (8, 8)})
    config = {"pruning_type": "magnitude", "pattern": "4x1", "target_sparsity": 0.5}
    pruner = BasePruner({**config, "criterion_reduce_type": reduce}, weights)
    pruner.step()
    apart = np.abs(weights["a"]).astype(np.float64).reshape(2, 4, 8)
    scores = getattr(np, reduce)(apart, axis=1)
    gone = np.zeros(16, bool)
    gone[np.argsort(scores.ravel(), kind="stable")[:8]] = True
    assert np.array_equal(~pruner.masks["a"], gone.reshape(2, 8).repeat(4, axis=0))


def test_rounds():
    weights = arrays()
    config = {
        "pruning_type": "magnitude",
        "pattern": "1x1",
        "target_sparsity": 0.8,
        "start_step": 2,
        "end_step": 6,
        "pruning_frequency": 2,
        "sparsity_decay_type": "linear",
    }
    pruner = BasePruner(config, weights)
    assert pruner.current_sparsity_ratio == 0
    taken, ratios, masks = [], [], []
    for _ in range(9):
        taken.append(pruner.step())
        ratios.append(round(pruner.current_sparsity_ratio, 3))
        masks.append(pruner.masks)
    assert taken == [False, False, True, False, True, False, True, False, False]
    assert ratios == pytest.approx([0, 0, 0, 0, 0.4, 0.4, 0.8, 0.8, 0.8], abs=1e-3)
    assert pruner.global_step == 9
    assert (pruner.start_step, pruner.end_step, pruner.pruning_frequency) == (2, 6, 2)
    assert pruner.target_sparsity_ratio == 0.8
    for before, after in zip(masks, masks[1:], strict=False):
        assert all((after[name] <= before[name]).all() for name in weights)  # what is gone stays gone
    size = sum(w.size for w in weights.values())
    assert sum(int((~mask).sum()) for mask in masks[-1].values()) == int(0.8 * size)


def test_momentum_is_carried_from_round_to_round():
    weights = arrays(0, {"a": (4, 8)})
    gradients = batches(4, 9, {"a": (4, 8)})
    criterion = SnipMomentumCriterion(weights, {"pattern": "1x1"})
    for batch in gradients[:2]:
        criterion.on_before_optimizer_step(batch)
    criterion.on_step_begin()
    for batch in gradients[2:]:
        criterion.on_before_optimizer_step(batch)
    assert np.allclose(criterion.scores["a"], snip_momentum(weights, gradients)["a"], rtol=1e-12)
    faster = SnipMomentumCriterion(weights, {"pattern": "1x1"})
    faster.alpha, faster.beta = 0.5, 2.0
    for batch in gradients:
        faster.on_before_optimizer_step(batch)
    assert np.allclose(faster.scores["a"], snip_momentum(weights, gradients, 0.5, 2.0)["a"], rtol=1e-12)
    for fresh in (GradientCriterion, SnipCriterion):
        one = fresh(weights, {"pattern": "1x1"})
        one.on_before_optimizer_step(gradients[0])
        one.on_step_begin()
        one.on_before_optimizer_step(gradients[1])
        expected = np.abs(gradients[1]["a"].astype(np.float64))
        if fresh is SnipCriterion:
            expected = np.abs(weights["a"].astype(np.float64) * gradients[1]["a"].astype(np.float64))
        assert np.allclose(one.scores["a"], expected, rtol=1e-12)


@pytest.mark.parametrize("kind", [SnipMomentumBlockCriterion, RetrainFreeCriterion])
def test_criteria_of_blocks(kind):
    shapes = {"a": (8, 4), "b": (4, 4, 3, 3)}
    weights, gradients = arrays(0, shapes), batches(3, 7, shapes)
    criterion = kind(weights, {"pattern": "4x1"})
    for batch in gradients:
        criterion.on_before_optimizer_step(batch)
    for name, weight in weights.items():
        state = 0.0
        for batch in gradients:
            product = as_rows(weight) * as_rows(batch[name])
            mask = product.reshape(len(product) // 4, 4, -1).sum(axis=1)  # dL/dm, one m per block
            state = state + mask**2 if kind is RetrainFreeCriterion else 0.9 * state + np.abs(mask)
        expected = as_weight(state.repeat(4, axis=0), weight.shape)
        assert np.allclose(criterion.scores[name], expected, rtol=1e-9)
        if kind is RetrainFreeCriterion:
            kept = np.sum(np.square(criterion.collected_grads[name]), axis=0)
            assert np.allclose(kept, state, rtol=1e-9)


def test_block_criteria_need_blocks():
    with pytest.raises(UsageError, match="per block"):
        BasePruner(
            {"pruning_type": "snip_momentum_block", "pattern": "2:4", "target_sparsity": 0.5}, arrays()
        )


def test_layers_that_the_pattern_does_not_divide_are_named():
    weights = {**arrays(), "odd": np.ones((6, 5), np.float32)}
    pruner = BasePruner({"pruning_type": "magnitude", "pattern": "4x1", "target_sparsity": 0.5}, weights)
    assert "6 outputs" in pruner.skipped["odd"]
    assert set(pruner.masks) == set(SHAPES)
    assert set(pruner.modules) == set(SHAPES)
    with pytest.raises(UsageError, match="none of the weights"):
        BasePruner({"pattern": "64x1"}, weights)


def test_arrays_are_never_modified():
    weights = arrays()
    before = {name: array.copy() for name, array in weights.items()}
    BasePruner({"pruning_type": "magnitude", "target_sparsity": 0.5}, weights).step()
    assert all(np.array_equal(weights[name], before[name]) for name in weights)


def test_arrays_have_no_gradients_of_their_own():
    with pytest.raises(UsageError, match="no gradients"):
        BasePruner({"pruning_type": "snip"}, arrays()).step()
    with pytest.raises(UsageError, match="no inputs"):
        BasePruner({"pruning_type": "wanda"}, arrays()).step()
    with pytest.raises(UsageError, match="shape"):
        BasePruner({"pruning_type": "snip"}, arrays()).step([{**arrays(), "a": np.ones((2, 2))}])
    with pytest.raises(UsageError, match="not a model"):
        BasePruner({"pruning_type": "magnitude"}, arrays()).model  # noqa: B018
    with pytest.raises(UsageError, match="float arrays"):
        BasePruner({"pruning_type": "magnitude"}, {"x": np.ones(4, np.float32)})


def test_locked_zeros_stay_and_count():
    weights = arrays(0, {"a": (8, 8)})
    weights["a"][:, ::2] = 0
    config = {"pruning_type": "magnitude", "pattern": "1x1", "target_sparsity": 0.75}
    pruner = BasePruner({**config, "lock_init_sparsity": True}, weights)
    assert pruner.current_sparsity_ratio == 0.5
    pruner.step()
    assert pruner.current_sparsity_ratio == 0.75
    assert not pruner.masks["a"][:, ::2].any()
    locked = get_pruner({**config, "pruning_type": "pattern_lock"}, weights)
    assert isinstance(locked, PatternLockPruner)
    locked.step()
    assert np.array_equal(locked.masks["a"], weights["a"] != 0)


def test_registries():
    mine = ClassTable("criterion", dict(CRITERIA))

    @register_criterion("negative", mine)
    class Negative(PruningCriterion):
        """The most negative weights go."""

        def on_step_begin(self):
            self.scores = {name: array for name, array in self.modules.weights().items()}

    assert Negative.__name__ == "Negative"
    assert "negative" not in CRITERIA
    weights = arrays(0, {"a": (8, 8)})
    config = {"pruning_type": "negative", "pattern": "1x1", "target_sparsity": 0.25}
    assert isinstance(get_criterion(config, weights, mine), Negative)
    pruner = get_pruner(config, weights, criteria=mine)
    pruner.step()
    gone = lowest({"a": weights["a"].astype(np.float64)}, 16)["a"]
    assert np.array_equal(~pruner.masks["a"], gone)
    with pytest.raises(UsageError, match="there is a criterion 'snip' already"):
        register_criterion("snip", mine)(Negative)

    pruners = ClassTable("pruner", dict(PRUNERS))

    @register_pruner("twice", pruners)
    class Twice(BasePruner):
        """Steps twice as far."""

    assert isinstance(
        get_pruner(
            {**config, "pruning_type": "twice", "criterion_type": "magnitude"}, weights, table=pruners
        ),
        Twice,
    )
    assert isinstance(get_pruner({"pruning_type": "magnitude"}, weights), BasicPruner)
    with pytest.raises(UsageError, match="did you mean 'snip_momentum'"):
        get_pruner({"pruning_type": "snip_momentun"}, weights)
    with pytest.raises(UsageError, match="did you mean 'magnitude'"):
        get_criterion({"criterion_type": "magnitud"}, weights)
    assert isinstance(get_criterion({"criterion_type": "magnitude"}, weights), MagnitudeCriterion)
    merged = mine | {"other": Negative}
    assert "other" in merged
    assert "other" not in mine


def test_the_decorator_without_a_table_uses_the_default_one():
    @register_pruner("test-only")
    class Mine(BasePruner):
        """Nothing."""

    try:
        assert PRUNERS["test-only"] is Mine
    finally:
        del PRUNERS._classes["test-only"]


def test_a_criterion_without_scores_is_an_error():
    table = ClassTable("criterion", {"empty": PruningCriterion})
    with pytest.raises(UsageError, match="no scores of 'a'"):
        BasePruner({"pruning_type": "empty", "criterion_type": "empty"}, arrays(), criteria=table).step()
