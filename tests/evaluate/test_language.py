"""Perplexity."""

from __future__ import annotations

import math

import numpy as np
import pytest

import onnxprune.evaluate.language as language
from onnxprune.errors import DataError
from onnxprune.evaluate.language import perplexity


def text(count=10, tokens=7, vocabulary=11, seed=0):
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((count, tokens, vocabulary)) * 3).astype(np.float32)
    labels = rng.integers(0, vocabulary, (count, tokens))
    labels[rng.random(labels.shape) < 0.2] = -100
    return logits, labels


def losses_by_hand(logits, labels):
    """Per sequence: the losses of the tokens that are predicted, one by one."""
    found = []
    for sequence, tokens in zip(logits.astype(np.float64), labels, strict=True):
        losses = []
        for place in range(len(tokens) - 1):
            if tokens[place + 1] != -100:
                powers = np.exp(sequence[place])
                losses.append(-math.log(powers[tokens[place + 1]] / powers.sum()))
        found.append(losses)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_perplexity(seed):
    logits, labels = text(seed=seed)
    score = perplexity(logits, labels).score("perplexity")
    losses = losses_by_hand(logits, labels)
    assert score.value == pytest.approx(math.exp(np.mean([x for each in losses for x in each])), rel=1e-9)
    assert (score.samples, score.unit) == (10, "")
    assert score.interval[0] < score.value < score.interval[1]


def test_the_interval_is_what_a_jackknife_over_sequences_gives():
    logits, labels = text(count=200)
    losses = losses_by_hand(logits, labels)
    sums, counts = np.array([sum(each) for each in losses]), np.array([len(each) for each in losses])
    left_out = (sums.sum() - sums) / (counts.sum() - counts)
    jackknife = math.sqrt(199 / 200 * np.sum((left_out - left_out.mean()) ** 2))
    low, high = perplexity(logits, labels).score("perplexity").interval
    assert math.log(high / low) / 2 == pytest.approx(1.972 * jackknife, rel=0.03)


def test_the_next_token_is_predicted():
    labels = np.array([[3, 1, 4], [1, 5, 0]])
    sure = np.full((2, 3, 6), -50.0)
    for row, place in np.ndindex(2, 2):
        sure[row, place, labels[row, place + 1]] = 50
    assert perplexity(sure, labels).score("perplexity").value == pytest.approx(1)
    assert perplexity(np.zeros((2, 3, 6)), labels).score("perplexity").value == pytest.approx(6)


def test_big_logits_do_not_overflow():
    labels = np.array([[0, 1], [0, 0]])
    logits = np.zeros((2, 2, 2), np.float32)
    logits[:, 0, 1] = 3e38
    score = perplexity(logits, labels).score("perplexity")
    assert score.value == math.inf and score.interval is None
    assert perplexity(logits[:1], labels[:1]).score("perplexity").value == 1


def test_tokens_that_are_ruled_out():
    logits = np.zeros((1, 2, 4), np.float32)
    logits[:, :, 2:] = -np.inf
    assert perplexity(logits, np.array([[0, 1]])).score("p").value == pytest.approx(2)
    assert perplexity(logits, np.array([[0, 3]])).score("p").value == math.inf


def test_work_in_pieces_changes_nothing(monkeypatch):
    logits, labels = text()
    whole = perplexity(logits, labels)
    monkeypatch.setattr(language, "_ELEMENTS", 23)
    assert perplexity(logits, labels).losses.top == pytest.approx(whole.losses.top, rel=1e-12)
    assert perplexity(logits, labels).losses.bottom == whole.losses.bottom


def test_a_single_sequence_has_no_interval():
    score = perplexity(*text(count=1)).score("perplexity")
    assert score.interval is None
    assert (
        str(score) == f"perplexity {score.value:.4g} (no interval: a single sequence has no spread, 1 sample)"
    )


def test_nothing_to_predict():
    logits, labels = text()
    whole = perplexity(logits, labels)
    for part in (
        perplexity(logits, np.full_like(labels, -100)),
        perplexity(logits[:, :1], labels[:, :1]),
    ):
        with pytest.raises(DataError, match="perplexity has no token to predict"):
            part.score("perplexity")
        assert (whole + part).score("perplexity").value == whole.score("perplexity").value


def broken(value, place=2):
    logits, labels = text()
    labels[:] = 1
    logits[3, place, 5] = value
    return logits, labels


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 3), int), r"shape \(2, 3\) and dtype float64, but perplexity needs"),
        (np.zeros((2, 3, 4), int), np.zeros((2, 3), int), "dtype int64, but perplexity needs logits"),
        (np.zeros((2, 3, 4)), np.zeros((3, 3), int), "2 rows for 3 labels"),
        (np.zeros((2, 3, 4)), np.zeros((2, 2), int), r"labels of shape \(2, 2\)"),
        (np.zeros((2, 3, 4)), np.zeros(2, int), r"labels of shape \(2,\)"),
        (np.zeros((2, 3, 4)), np.zeros((2, 3)), "dtype float64 are no token ids"),
        (np.zeros((2, 3, 4)), np.full((2, 3), 4), "label 4 is not one of the model's 4 tokens"),
        (np.zeros((2, 3, 4)), np.full((2, 3), -1), "label -1 is not"),
        (*broken(np.nan), "NaN or infinity .first in row 3 of the batch, token 2"),
        (*broken(np.inf), "NaN or infinity .first in row 3 of the batch, token 2"),
    ],
)
def test_text_that_does_not_fit(logits, labels, message):
    with pytest.raises(DataError, match=message) as caught:
        perplexity(logits, labels)
    assert caught.value.hint


def test_a_nan_where_nothing_is_predicted_does_not_matter():
    logits, labels = broken(np.nan, place=6)
    assert math.isfinite(perplexity(logits, labels).score("perplexity").value)
