"""Strict reading of options that users bring from other tools.

Every option is known, or known to mean nothing here, or an error that names the nearest known one. What means
nothing without training is not dropped in silence: `Options.ignored` says which options these were, and why.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from onnxprune.calibrate.checks import did_you_mean
from onnxprune.errors import UsageError

log = logging.getLogger(__name__)

TRAINING = "nothing is trained here: weights are repaired in closed form on calibration samples"


TRAINING_OPTIONS = {
    name: TRAINING
    for name in (
        *("lr", "base_lr", "learning_rate", "lr_schedule", "optimizer", "weight_decay", "momentum"),
        *("epochs", "num_epochs", "train_epochs", "num_train_epochs", "batch_size", "train_batch_size"),
        *("compression_lr_multiplier", "warmup_steps", "distillation", "loss_weight"),
    )
}
"""Options of training that people write beside those of pruning."""


def one_of(option: str, given: Any, known: Sequence[str]) -> str:
    """`given`, if it is one of the known words.

    Raises
    ------
    UsageError
        It is not; the nearest one is named.
    """
    if given not in known:
        raise UsageError(
            f"there is no {option} {given!r}{did_you_mean(str(given), known)}", f"Known: {', '.join(known)}."
        )
    return str(given)


class Options:
    """A mapping of options that is read piece by piece; what nobody read in the end is an error.

    Parameters
    ----------
    given
        What the user wrote.
    where
        What it belongs to, for messages.

    Attributes
    ----------
    ignored
        Options that mean nothing here, each with the reason.

    Examples
    --------
    >>> options = Options({"pruning_target": 0.5, "lr": 0.1}, "filter_pruning")
    >>> options.share("pruning_target", 0.4)
    0.5
    >>> options.ignore({"lr": "nothing is trained"})
    >>> options.finish()
    {'lr': 'nothing is trained'}
    """

    def __init__(self, given: Mapping[str, Any] | None, where: str) -> None:
        if given is None:
            given = {}
        if not isinstance(given, Mapping):
            raise UsageError(f"{where} is {given!r}", "It has to be a dict of options.")
        self.where = where
        self.ignored: dict[str, str] = {}
        self._given = dict(given)
        self._known: dict[str, None] = {}

    def __contains__(self, name: str) -> bool:
        self._known[name] = None
        return self._given.get(name) is not None

    def take(self, name: str, default: Any = None) -> Any:
        """The option as it is; None counts as left out."""
        self._known[name] = None
        found = self._given.get(name)
        return default if found is None else found

    def number(
        self,
        name: str,
        default: float,
        low: float = -math.inf,
        high: float = math.inf,
        *,
        below: bool = False,
    ) -> float:
        """A number in [low, high], or in [low, high) with `below`."""
        value = self.take(name, default)
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if not numeric or not low <= value <= high or (below and value == high):
            span = f"[{low:g}, {high:g}{')' if below else ']'}"
            raise UsageError(f"{self.where}: {name} is {value!r}", f"Give a number in {span}.")
        return float(value)

    def share(self, name: str, default: float) -> float:
        """A number in [0, 1)."""
        return self.number(name, default, 0.0, 1.0, below=True)

    def count(self, name: str, default: int, least: int = 0) -> int:
        """A whole number that is not below `least`."""
        value = self.take(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UsageError(f"{self.where}: {name} is {value!r}", f"Give a whole number from {least} on.")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or False."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise UsageError(f"{self.where}: {name} is {value!r}", "Give true or false.")
        return value

    def choice(self, name: str, default: str, known: Sequence[str]) -> str:
        """One of the known words."""
        return one_of(f"{self.where}: {name}", self.take(name, default), known)

    def names(self, name: str) -> tuple[str, ...]:
        """A list of texts; a single one is a list of it."""
        value = self.take(name, ())
        value = (value,) if isinstance(value, str) else value
        if not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
            raise UsageError(f"{self.where}: {name} is {value!r}", "Give a list of names.")
        return tuple(value)

    def numbers(self, name: str, default: Sequence[float]) -> tuple[float, ...]:
        """A list of numbers."""
        value = self.take(name, default)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise UsageError(f"{self.where}: {name} is {value!r}", "Give a list of numbers.")
        if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in value):
            raise UsageError(f"{self.where}: {name} is {value!r}", "Give a list of numbers.")
        return tuple(value)

    def inner(self, name: str) -> Options:
        """A mapping inside this one."""
        return Options(self.take(name, {}), f"{self.where}: {name}")

    def absorb(self, inner: Options) -> None:
        """Check that an inner mapping was read whole, and take over what of it means nothing here."""
        self.ignored |= inner.finish()

    def ignore(self, reasons: Mapping[str, str]) -> None:
        """Note the options among these that were given: they mean nothing here, for the reason given."""
        for name, why in reasons.items():
            if name in self and self._given[name] is not False:
                self.ignored[name] = why

    def finish(self) -> dict[str, str]:
        """What was ignored, with the reasons; logged.

        Raises
        ------
        UsageError
            An option was given that nobody knows.
        """
        unknown = [name for name in self._given if name not in self._known]
        if unknown:
            known = sorted(self._known)
            raise UsageError(
                f"{self.where} has no option {unknown[0]!r}{did_you_mean(str(unknown[0]), known)}",
                f"Known: {', '.join(known)}.",
            )
        for name, why in self.ignored.items():
            log.info("%s: %s is ignored: %s", self.where, name, why)
        return dict(self.ignored)
