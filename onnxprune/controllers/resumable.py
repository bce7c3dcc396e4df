"""Schedulers whose place can be kept and taken up again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxprune.errors import UsageError


class Resumable:
    """What has a state of plain attributes."""

    def get_state(self) -> dict[str, Any]:
        """Plain values, by attribute, from which `load_state` goes on."""
        raise NotImplementedError

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where `get_state` was asked; nothing but the scheduler itself is mutated.

        Raises
        ------
        UsageError
            Something is missing.
        """
        for name in self.get_state():
            if name not in state:
                raise UsageError(
                    f"the state of the scheduler has no {name!r}", "Give what get_state returned."
                )
            setattr(self, name, state[name])
