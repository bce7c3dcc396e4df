"""Movement in stages, against the same written out in numpy; whole units; what contradicts itself."""

from __future__ import annotations

import numpy as np
import pytest
from learned_nets import loss_and_gradients, opened, samples, two_layers
from small_nets import MODELS, save

import onnxprune
from onnxprune.criteria import UnitGradients, default_criteria
from onnxprune.errors import UsageError
from onnxprune.patterns import parse_pattern
from onnxprune.sparsity.choices import Sparsity
from onnxprune.sparsity.movement import LOWEST, accumulate, learn_movement, rising
from onnxprune.sparsity.structure import resolve

VIT, CALIBRATION = MODELS / "digits_vit.onnx", MODELS / "digits_calib.npz"


def logistic(z):
    return 1 / (1 + np.exp(-z))


def blocks_of(matrix, rows):
    """Sums over blocks of `rows` x 1."""
    return matrix.reshape(-1, rows, matrix.shape[1]).sum(axis=1)


def slow(data, sparsity, rows):
    """All rounds: importance of `rows` x 1 blocks of both layers, masks and thresholds."""
    graph = two_layers().graph
    weights = {name: graph.initializers[name].const_value.numpy().astype(np.float64) for name in ("A", "B")}
    matrices = {"A": weights["A"], "B": 2 * weights["B"].T}
    importance = {name: np.zeros((len(w) // rows, w.shape[1])) for name, w in matrices.items()}
    masks = {name: np.ones_like(w) for name, w in matrices.items()}
    rounds, lam, final = sparsity.rounds, sparsity.regularization, sparsity.threshold
    warm, thresholds, start = -(-rounds // 3), [], None
    for number in range(rounds + 1):
        if number == warm:
            start = np.quantile(np.concatenate([i.ravel() for i in importance.values()]), LOWEST)
        p = (number - warm + 1) / (rounds - warm + 1)
        low = min(start, final) if number >= warm else None
        threshold = -np.inf if number < warm else final - (final - low) * (1 - p) ** 3
        thresholds.append(threshold)
        masks = {name: np.repeat(i > threshold, rows, axis=0) for name, i in importance.items()}
        if number == rounds:
            break
        order = np.random.default_rng([0, number]).permutation(len(data["x"]))
        for begin in range(0, len(order), 8):
            mine = order[begin : begin + 8]
            a, b = matrices["A"] * masks["A"], (matrices["B"] * masks["B"]).T / 2
            x, labels = data["x"][mine].astype(np.float64), data["labels"][mine].astype(np.float64)
            _, gradients = loss_and_gradients(a, b, x, labels)
            for name, g in gradients.items():
                i = importance[name]
                decay = lam * 0.5 * rows * logistic(i) * (1 - logistic(i)) / i.size
                importance[name] = i - blocks_of(matrices[name] * g, rows) - decay
    return importance, masks, thresholds


@pytest.mark.parametrize(
    ("rounds", "lam", "threshold", "rows"),
    [(1, 0.0, 0.0, 1), (5, 0.0, 0.02, 1), (4, 0.5, -0.01, 2), (6, 0.1, -0.1, 4)],
)
def test_all_stages_against_numpy(tmp_path, rounds, lam, threshold, rows):
    data = samples()
    _, layers, differentiation = opened(tmp_path, data)
    pattern = f"{rows}x1" if rows > 1 else "element"
    asked = Sparsity(
        pattern=pattern, criterion="movement", rounds=rounds, threshold=threshold, regularization=lam
    )
    none = {layer.name: np.zeros(layer.grid.shape, bool) for layer in layers}
    found = learn_movement(layers, parse_pattern(pattern), differentiation, asked, "global", none)
    importance, masks, thresholds = slow(data, asked, rows)
    np.testing.assert_allclose(found.thresholds, thresholds, rtol=1e-4, atol=1e-6)
    for name, values in importance.items():
        expected = np.repeat(values, rows, axis=0)
        np.testing.assert_allclose(found.importance[name], expected, rtol=1e-3, atol=1e-5)
        sure = np.abs(expected - threshold) > 1e-4
        np.testing.assert_array_equal(found.zeros[name][sure], (masks[name] == 0)[sure])
    assert any(flags.any() and not flags.all() for flags in found.zeros.values())
    assert found.statistics == {"importance_threshold": threshold, "importance_regularization_factor": lam}


def test_regularisation_is_the_gradient_of_its_formula():
    importance, size, lam = np.random.default_rng(0).standard_normal(9), 4, 0.7
    found = importance - accumulate(importance, np.zeros(9), lam, size)
    for i in range(9):
        ends = [
            lam * 0.5 * size * logistic(importance + sign * 1e-5 * np.eye(9)[i]).mean() for sign in (1, -1)
        ]
        assert found[i] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


def test_the_threshold_rises_with_power_3():
    curve = [rising(p, -1.0, 0.5) for p in np.linspace(0, 1, 5)]
    np.testing.assert_allclose(curve, [0.5 - 1.5 * (1 - p) ** 3 for p in np.linspace(0, 1, 5)])


def test_a_level_is_met_exactly_in_rounds(tmp_path):
    data = samples()
    path = save(two_layers(), tmp_path / "net.onnx")
    made = onnxprune.sparsify(
        path, sparsity=0.375, criterion="movement", rounds=4, solver="mask", data=data, metric="mse"
    )
    assert made.report.zeros == int(0.375 * 80)
    assert made.report.learned["importance_threshold"] == pytest.approx(
        made.report.learned["importance_threshold"]
    )
    again = onnxprune.sparsify(
        path, sparsity=0.375, criterion="movement", rounds=4, solver="mask", data=data, metric="mse"
    )
    for name, flags in made.zeros.items():
        np.testing.assert_array_equal(flags, again.zeros[name])


def test_a_threshold_decides_how_many_go(tmp_path):
    path = save(two_layers(), tmp_path / "net.onnx")
    levels = [
        onnxprune.sparsify(
            path, threshold=t, criterion="movement", rounds=3, solver="mask", data=samples(), metric="mse"
        )
        for t in (-1e6, 0.0, 1e6)
    ]
    assert [made.report.achieved for made in levels][::2] == [0.0, 1.0]
    assert 0.2 < levels[1].report.achieved < 0.8
    report = levels[1].report
    assert report.to_dict()["requested"] is None
    assert "importance above 0, else zeros" in onnxprune.report.sparsity.render(report)


def test_units_survive_with_any_of_their_weights(tmp_path):
    """Hidden unit 2 has lost all in both layers, unit 5 in one of them, unit 6 all but one weight."""
    analysis, layers, _ = opened(tmp_path, samples())
    zeros = {layer.name: np.random.default_rng(0).random(layer.grid.shape) < 0.5 for layer in layers}
    a, b = zeros["A"], zeros["B"]  # (hidden, inputs), (outputs, hidden)
    a[:, 0] = b[0, :] = False
    a[2], b[:, 2] = True, True
    a[5] = True
    a[6], b[:, 6], b[3, 6] = True, True, False
    resolved, gone = resolve(analysis, layers, zeros)
    (flags,) = gone.values()
    np.testing.assert_array_equal(flags, np.arange(8) == 2)
    expected = np.zeros((8, 6), bool)
    expected[2] = True
    np.testing.assert_array_equal(resolved["A"], expected)
    np.testing.assert_array_equal(resolved["B"], np.broadcast_to(np.arange(8) == 2, (4, 8)))


def test_units_with_weights_elsewhere_survive(tmp_path):
    analysis, layers, _ = opened(tmp_path, samples())
    zeros = {layers[0].name: np.ones(layers[0].grid.shape, bool)}
    resolved, gone = resolve(analysis, layers[:1], zeros)
    assert not any(flags.any() for flags in gone.values())
    assert not resolved["A"].any()


def test_whole_heads_and_channels_of_a_transformer():
    made = onnxprune.sparsify(
        VIT,
        threshold=0.0,
        criterion="movement",
        pattern="1xchannel",
        rounds=2,
        structured=True,
        only=["*MatMul*"],
        solver="mask",
        data=CALIBRATION,
    )
    groups = onnxprune.analyze(VIT).groups
    heads = [group for group in groups.values() if group.width == 48]
    for group in heads:
        for use in (*group.sources, *group.sinks):
            flags = made.zeros.get(str(use.axis.value.name))
            if flags is None:
                continue
            by_position = np.moveaxis(flags, use.axis.dim, 0).reshape(len(use.unit), -1)
            lost = [by_position[use.unit == unit].all() for unit in range(group.units)]
            assert lost == [by_position[use.unit == unit].any() for unit in range(group.units)]
    assert any("units" in note or "no unit" in note for note in made.report.warnings)


def test_units_by_hand(tmp_path):
    """`-sum w dL/dw` and `S <- 0.9 S + abs(sum w dL_b/dw)` of hidden units, whose weights are the rows of A."""
    data = samples()
    analysis, _, differentiation = opened(tmp_path, data)
    (group,) = analysis.groups.values()
    (found,) = differentiation.weights([group])[group.id]
    graph = two_layers().graph
    a, b = (graph.initializers[name].const_value.numpy().astype(np.float64) for name in ("A", "B"))
    change = []
    for begin in range(0, 40, 8):
        x, labels = (data[key][begin : begin + 8].astype(np.float64) for key in ("x", "labels"))
        gradient = loss_and_gradients(a, b, x, labels)[1]["A"] * labels.size  # summed, not averaged
        change.append((a * gradient).sum(axis=1))
    np.testing.assert_allclose(found.change.T, change, rtol=1e-3, atol=1e-4)
    momentum = np.zeros(8)
    for each in change:
        momentum = 0.9 * momentum + np.abs(each)
    expected = {"movement": -np.sum(change, axis=0), "snip_momentum_block": momentum}
    path = save(two_layers(), tmp_path / "net.onnx")
    for name, scores in expected.items():
        criterion = default_criteria()[name]
        mine = criterion.score(
            [], normalize=True, rng=np.random.default_rng(0), gradients=UnitGradients(None, [found])
        )
        np.testing.assert_allclose(mine, scores, rtol=1e-3, atol=1e-3)
        pruned = onnxprune.prune(
            path, ratio=0.5, criterion=name, data=data, round_to=1, compensate="none", metric="mse"
        )
        (keep,) = pruned.plan.keep.values()
        assert keep.sum() == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "snip", "threshold": 0.0}, "--threshold belongs to the criterion movement"),
        ({"criterion": "snip", "structured": True}, "--structured belongs to"),
        ({"criterion": "movement", "regularization": -1.0}, "negative or not finite"),
        ({"criterion": "movement", "threshold": float("nan")}, "is not finite"),
        (
            {"criterion": "movement", "threshold": 0.0, "pattern": "2:4"},
            "N:M and shares per layer do not hold",
        ),
        ({"criterion": "movement", "threshold": 0.0, "max_ratio": 0.9}, "shares per layer do not hold"),
        ({"criterion": "movement", "structured": True, "pattern": "head"}, "does not go with --pattern head"),
        ({"criterion": "movement", "threshold": 0.0, "sparsity": 0.5}, "contradict each other"),
        ({"criterion": "movement"}, "needs --data"),
    ],
)
def test_what_contradicts_itself(options, message):
    with pytest.raises(UsageError, match=message):
        onnxprune.sparsify(VIT, **options)
