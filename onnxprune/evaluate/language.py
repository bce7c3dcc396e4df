"""Perplexity of language models."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxprune.errors import DataError
from onnxprune.evaluate.fit import OTHER_OUTPUT, Array, Ints, check_range, check_rows, class_labels
from onnxprune.evaluate.intervals import Floats, Ratio, student_interval
from onnxprune.evaluate.score import Score

IGNORED = -100
"""Label of tokens that are not to be predicted."""

_ELEMENTS = 1 << 22
"""Logits that are worked on at a time: those of a whole batch are billions."""


@dataclass(frozen=True)
class TokenLosses:
    """Negative log likelihoods in nats, and how many tokens they are of, summed over sequences."""

    losses: Ratio

    def __add__(self, other: TokenLosses, /) -> TokenLosses:
        return TokenLosses(self.losses + other.losses)

    def score(self, name: str) -> Score:
        """Return the exponential of the mean loss per token; every token of all sequences counts the same.

        The interval is that of the mean loss, exponentiated: normal, by the delta method for a ratio with
        sequences (not tokens, which depend on one another) as units, with Student's t.

        Raises
        ------
        DataError
            If there is no token to predict.
        """
        if not self.losses.bottom:
            raise DataError(
                f"{name} has no token to predict: sequences are one token long, or every label is {IGNORED}",
                "Give token ids as labels, of sequences of two tokens or more.",
            )
        mean, sequences = self.losses.value, self.losses.units
        value = _exp(mean)
        centre = mean if math.isfinite(value) else value
        interval, note = student_interval(centre, self.losses.error, sequences, unit="sequence")
        if interval is not None:
            interval = _exp(interval[0]), _exp(interval[1])
        return Score(name, value, interval, sequences, "", note=note)


def perplexity(outputs: Array, labels: Array) -> TokenLosses:
    """Sum up the losses of one batch (see :meth:`TokenLosses.score`).

    The logits at position ``t`` predict the label at ``t + 1``; the first label is never predicted, the last logits
    predict nothing. A label of -100 marks a token that is not to be predicted (padding, a prompt).

    Parameters
    ----------
    outputs
        Logits, ``(sequences, tokens, vocabulary)``.
    labels
        Token ids, ``(sequences, tokens)``: those that went into the model.

    Raises
    ------
    DataError
        For other shapes, for labels that are no token, and for NaN where a token is predicted.
    """
    if outputs.ndim != 3 or outputs.dtype.kind != "f":
        raise DataError(
            f"the output has shape {outputs.shape} and dtype {outputs.dtype.name}, but perplexity needs logits "
            "(sequences, tokens, vocabulary)",
            OTHER_OUTPUT,
        )
    check_rows(outputs, labels)
    shape = outputs.shape[:2]
    hint = f"Give the token ids that go into the model, one integer per token: {shape}."
    tokens = class_labels(labels, shape, "token ids for this output", hint)
    check_range(
        tokens[tokens != IGNORED], outputs.shape[2], "tokens", "Give ids of the model's own tokenizer."
    )
    sums = [_sequence(outputs[row, :-1], tokens[row, 1:], row) for row in range(len(tokens))]
    return TokenLosses(Ratio.of([loss for loss, _ in sums], [count for _, count in sums]))


def _sequence(logits: Array, tokens: Ints, row: int) -> tuple[float, int]:
    """Return the loss of one sequence and how many tokens it is of; `logits` and `tokens` are aligned."""
    counted = np.flatnonzero(tokens != IGNORED)
    step = max(1, _ELEMENTS // max(1, logits.shape[1]))
    loss = 0.0
    for start in range(0, len(counted), step):
        places = counted[start : start + step]
        losses = _losses(logits[places].astype(np.float64), tokens[places])
        if np.isnan(losses).any():
            place = places[np.isnan(losses)][0]
            raise DataError(
                f"the output holds NaN or infinity (first in row {row} of the batch, token {place})",
                "Find out where the model overflows on this sample (float16?), or leave the sample out.",
            )
        loss += float(losses.sum())
    return loss, len(counted)


def _losses(logits: Floats, tokens: Ints) -> Floats:
    """Return ``log sum exp(logits) - logits[token]`` per row; NaN where logits are no numbers."""
    with np.errstate(invalid="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True)
        own = np.take_along_axis(shifted, tokens[:, None], axis=1)[:, 0]
        return np.asarray(np.log(np.exp(shifted).sum(axis=1)) - own)


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))
