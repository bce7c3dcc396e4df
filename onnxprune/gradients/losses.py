"""Losses as nodes behind a model's outputs.

Each is a sum over samples, so that the gradient of a sample's own masks is that of its own loss; `mean`
divides by the number of samples. Logits are taken before a final Softmax, and LogSoftmax is what is
differentiated, so that no gradient is lost where a probability rounds to 0 or 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from onnxprune.errors import UsageError
from onnxprune.gradients.scope import Scope
from onnxprune.rules.expr import Expr


class Loss(Protocol):
    """Adds nodes to a graph that make a scalar of its outputs."""

    def add(self, scope: Scope) -> Expr:
        """Add them; the scalar."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with integer labels.

    Attributes
    ----------
    output
        Name of the output that holds logits or, behind a Softmax, probabilities; the first by default.
    labels
        Name of the input that is added: the logits' shape without the axis of classes, int64.
    axis
        The axis of classes.
    ignore
        A label that does not count; it need not be a class.
    mean
        Divide by the number of samples.
    """

    output: str | None = None
    labels: str = "labels"
    axis: int = -1
    ignore: int | None = None
    mean: bool = False

    def add(self, scope: Scope) -> Expr:
        """Add the loss's nodes."""
        logits = scope.logits(self.output, self.axis)
        rank = scope.rank(logits)
        axis = self.axis % rank
        labels = scope.like(self.labels, ir.DataType.INT64, logits, skip=axis)
        log_p = logits.op("LogSoftmax", axis=axis)
        return scope.total(-_picked(log_p, labels, axis, self.ignore), self.mean)


def _picked(log_p: Expr, labels: Expr, axis: int, ignore: int | None) -> Expr:
    """The labels' log-probabilities, with the axis of classes kept; 0 where a label is ignored."""
    constant = log_p.builder.constant
    index = labels.unsqueeze(axis)
    if ignore is None:
        return log_p.op("GatherElements", index, axis=axis)
    counts = index.op("Equal", constant(np.int64(ignore))).op("Not")
    safe = counts.op("Where", index, constant(np.int64(0)))
    return log_p.op("GatherElements", safe, axis=axis).where(counts)


@dataclass(frozen=True)
class SoftCrossEntropy:
    """Cross-entropy against probabilities.

    Attributes
    ----------
    output, axis, mean
        As of `CrossEntropy`.
    targets
        Name of the input that is added: probabilities of the logits' shape.
    """

    output: str | None = None
    targets: str = "targets"
    axis: int = -1
    mean: bool = False

    def add(self, scope: Scope) -> Expr:
        """Add the loss's nodes."""
        logits = scope.logits(self.output, self.axis)
        targets = scope.like(self.targets, ir.DataType.FLOAT, logits)
        return scope.total(-(targets * logits.op("LogSoftmax", axis=self.axis)), self.mean)


@dataclass(frozen=True)
class Distillation:
    """Kullback-Leibler divergence from a teacher's distribution to the model's.

    Attributes
    ----------
    output, axis, mean
        As of `CrossEntropy`.
    teacher
        Name of the input that is added: the teacher's logits, of the model's logits' shape.
    temperature
        Divides both logits; the loss is multiplied by its square (arXiv:1503.02531).
    """

    output: str | None = None
    teacher: str = "teacher"
    axis: int = -1
    temperature: float = 1.0
    mean: bool = False

    def add(self, scope: Scope) -> Expr:
        """Add the loss's nodes."""
        logits = scope.logits(self.output, self.axis)
        teacher = scope.like(self.teacher, ir.DataType.FLOAT, logits)
        if self.temperature != 1.0:
            logits, teacher = logits / self.temperature, teacher / self.temperature
        log_p, log_q = (x.op("LogSoftmax", axis=self.axis) for x in (logits, teacher))
        total = scope.total(log_q.op("Exp") * (log_q - log_p), self.mean)
        return total if self.temperature == 1.0 else total * self.temperature**2


@dataclass(frozen=True)
class SquaredError:
    """Squared distance to given outputs, summed over positions.

    Attributes
    ----------
    output
        Name of an output; the first by default.
    teacher
        Name of the input that is added, of the output's shape.
    mean
        Divide by the number of samples.
    """

    output: str | None = None
    teacher: str = "teacher"
    mean: bool = False

    def add(self, scope: Scope) -> Expr:
        """Add the loss's nodes."""
        output = scope.output(self.output)
        teacher = scope.like(self.teacher, ir.DataType.FLOAT, output)
        difference = output - teacher
        return scope.total(difference * difference, self.mean)


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Cross-entropy of one logit per sample, or a probability behind a Sigmoid, with labels 0 and 1.

    Attributes
    ----------
    output
        Name of an output; the first by default.
    labels
        Name of the input that is added, of the output's shape, float.
    """

    output: str | None = None
    labels: str = "labels"

    def add(self, scope: Scope) -> Expr:
        """Add the loss's nodes."""
        logit = scope.logit(self.output)
        labels = scope.like(self.labels, ir.DataType.FLOAT, logit)
        return scope.total(logit.op("Softplus") - labels * logit, False)


@dataclass(frozen=True)
class Projection:
    """The scalar product of outputs with given numbers: one row of the Jacobian per run.

    With random signs per sample, squared gradients average to the Gauss-Newton curvature of the squared distance to
    the dense outputs, whose own gradient is zero. Logits are taken before a final Softmax.

    Attributes
    ----------
    outputs
        Names of outputs; all float ones by default.
    prefix
        Inputs `prefix/output` are added, each of the output's shape.
    """

    outputs: tuple[str, ...] = ()
    prefix: str = "signs"

    def add(self, scope: Scope) -> Expr:
        """Add the loss's nodes."""
        parts = []
        for name in self.outputs or scope.float_outputs:
            output = scope.logits(name, -1)
            signs = scope.like(f"{self.prefix}/{name}", ir.DataType.FLOAT, output)
            parts.append(scope.total(signs * output, False))
        if not parts:
            raise UsageError("the model has no float output to differentiate", "Give another loss.")
        return parts[0] if len(parts) == 1 else parts[0].op("Sum", *parts[1:])


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of each position's logits (B, T, V) with the token that follows.

    Attributes
    ----------
    ids
        Name of the input that holds the tokens (B, T); added where the model has none of this name.
    output
        Name of the output that holds the logits; the first by default.
    mask
        Name of an input (B, T) that is added: 0 for tokens that do not count as followers.
    mean
        Divide by the number of samples.
    """

    ids: str = "input_ids"
    output: str | None = None
    mask: str | None = None
    mean: bool = False

    def add(self, scope: Scope) -> Expr:
        """Add the loss's nodes."""
        logits = scope.logits(self.output, -1)
        ids = scope.like(self.ids, ir.DataType.INT64, logits, skip=2)
        follower = ids.slice(1, 1, _END)
        if ids.value.dtype != ir.DataType.INT64:
            follower = follower.op("Cast", to=ir.DataType.INT64)
        log_p = logits.slice(1, 0, -1).op("LogSoftmax", axis=-1)
        picked = _picked(log_p, follower, 2, None).squeeze(2)
        if self.mask is not None:
            picked = picked * scope.like(self.mask, ir.DataType.FLOAT, logits, skip=2).slice(1, 1, _END)
        return scope.total(-picked, self.mean)


_END = (1 << 63) - 1


@dataclass(frozen=True)
class WeightedSum:
    """Several losses, of several outputs or of one.

    Attributes
    ----------
    losses
        Pairs of a weight and a loss.
    """

    losses: tuple[tuple[float, Loss], ...]

    def add(self, scope: Scope) -> Expr:
        """Add the losses' nodes."""
        if not self.losses:
            raise UsageError("a weighted sum of no losses", "Give it at least one pair of weight and loss.")
        parts = [loss.add(scope) * weight for weight, loss in self.losses]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total


@dataclass(frozen=True, eq=False)
class ModelLoss:
    """A loss that is an ONNX model itself.

    Attributes
    ----------
    model
        Its inputs bear the names of the model's outputs or inputs; any others become inputs. Not mutated.
    output
        Name of its output, a scalar; the first by default.
    """

    model: ir.Model
    output: str | None = None

    def add(self, scope: Scope) -> Expr:
        """Add the model's nodes."""
        return scope.merge(self.model, self.output)
