"""How units are chosen: what the options of `prune` say, checked."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.allocate.schedule import find_schedule
from onnxprune.allocate.target import Target
from onnxprune.errors import UsageError
from onnxprune.select import PRESETS

SCOPES = ("global", "learned", "local", "uniform")

RANKED = ("global", "learned")
"""Scopes that rank the units of all groups together."""

ROUND_TO = 8
"""Channels that kernels like to have a multiple of."""

NARROW, ROUND_NARROW_TO = 64, 4
"""Where groups are ranked, those of fewer channels than this lose steps of so many: 8 of 16 are half of a group."""


@dataclass(frozen=True)
class Choices:
    """How units are chosen.

    Parameters
    ----------
    target
        What to reach; by default keep at most 70 % of the MACs.
    criterion
        Name of a criterion.
    scope
        "global": one ranking over all groups. "local": the same share of every group, growing until the target is
        reached. "learned": as global, after an affine map of each group's scores that is learned on data.
        "uniform": as local, but a ratio is NNCF's level, which rounding may leave unreached.
    round_to
        Channels that stay are a multiple of this. None: what `rounding` says for ranked scopes, 8 for the others.
    min_channels
        At least this many channels of a group stay, and never fewer than `round_to`.
    max_ratio, min_ratio
        At most and at least this share of a group's units goes, as in Neural Compressor: what a group may not lose
        is spread over the others. Without a largest share: 0.9 with the global scope, all with the others.
    ignore, only
        Patterns of groups to leave whole, or to cut exclusively.
    preset
        "nncf": leave the first convolution and strided ones whole, uniform scope unless said otherwise.
    seed
        For criteria that draw random numbers.
    rounds, schedule
        In how many rounds measured losses are measured again on the way, and how far each round goes.
    """

    target: Target = Target("macs", 0.7)
    criterion: str = "l2"
    scope: str = "global"
    round_to: int | None = None
    min_channels: int = 1
    max_ratio: float | None = None
    min_ratio: float = 0.0
    ignore: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    preset: str | None = None
    seed: int = 0
    rounds: int = 1
    schedule: str = "linear"

    def __post_init__(self) -> None:
        """Reject values that mean nothing, and settle what was left open."""
        if self.scope not in SCOPES:
            raise UsageError(f"there is no scope {self.scope!r}", f"Known: {', '.join(SCOPES)}.")
        if self.round_to is None and self.scope not in RANKED:
            object.__setattr__(self, "round_to", ROUND_TO)
        if self.round_to is not None and self.round_to < 1:
            raise UsageError(f"--round-to {self.round_to} is not positive", "Use 1 for no rounding.")
        if self.rounds < 1:
            raise UsageError(f"--rounds {self.rounds} is not positive", "Use 1 for everything at once.")
        find_schedule(self.schedule)
        if self.rounds > 1 and self.scope != "global":
            raise UsageError(
                f"--rounds {self.rounds} means nothing with the scope {self.scope}",
                "Rounds measure again what each group's cut costs, which only --scope global looks at.",
            )
        if self.min_channels < 1:
            raise UsageError(
                f"min_channels {self.min_channels} is not positive", "At least one channel stays."
            )
        if self.max_ratio is not None and not 0 < self.max_ratio <= 1:
            raise UsageError(
                f"max_ratio {self.max_ratio:g} is not in (0, 1]", "0.9 keeps a tenth of a group."
            )
        if not 0 <= self.min_ratio < 1:
            raise UsageError(
                f"min_ratio {self.min_ratio:g} is not in [0, 1)", "0.1 cuts a tenth of every group."
            )
        if self.max_ratio is not None and self.min_ratio > self.max_ratio:
            raise UsageError(
                f"min_ratio {self.min_ratio:g} is above max_ratio {self.max_ratio:g}", "Swap or change them."
            )
        if self.preset is not None and self.preset not in PRESETS:
            raise UsageError(f"there is no preset {self.preset!r}", f"Known: {', '.join(PRESETS)}.")

    def rounding(self, channels: int) -> int:
        """Of what the channels that stay are a multiple, in a group that has so many."""
        if self.round_to is not None:
            return self.round_to
        return ROUND_NARROW_TO if channels < NARROW else ROUND_TO

    @property
    def rounded(self) -> str:
        """The same in words, such as "multiples of 8"; empty where nothing is rounded."""
        if self.round_to is not None:
            return f"multiples of {self.round_to}" if self.round_to > 1 else ""
        return f"multiples of {ROUND_TO}, in groups of fewer than {NARROW} channels of {ROUND_NARROW_TO}"
