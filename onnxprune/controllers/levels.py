"""From levels of filter pruning to kept units: NNCF's rules over `onnxprune.allocate`.

In uniform mode every group loses `max(n - ceil(n (1 - level) / 8) 8, 0)` of its n filters. In global mode one
ranking of all filters decides, and a group loses at most 90 % of its own. By FLOPs, a uniform level is
bisected to a hundredth and the upper bound taken; in global mode filters go one at a time until less than the
target is left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxprune.allocate.cost import CostModel
from onnxprune.allocate.ladder import Ladder
from onnxprune.allocate.solve import solve
from onnxprune.allocate.target import Target
from onnxprune.errors import TargetError
from onnxprune.graph.axes import Bools

LEVEL_TOLERANCE = 0.01
"""Width at which the bisection of a uniform level ends."""

_SLACK = 1e-9

Keep = Mapping[str, Bools]


@dataclass(frozen=True)
class Groups:
    """The groups that may be pruned, in the order in which their units go.

    Attributes
    ----------
    ladders
        Of those from which anything may go.
    costs
        Of the model.
    units
        Of all groups that may be pruned, narrow ones included: a level is a share of these.
    ranked
        Whether one ranking over all decides.
    """

    ladders: Sequence[Ladder]
    costs: CostModel
    units: int
    ranked: bool

    def by_level(self, level: float) -> dict[str, Bools]:
        """Kept units when a share of the filters goes.

        Raises
        ------
        TargetError
            The global ranking cannot drop so many.
        """
        if level <= 0 or not self.ladders:
            return {}
        if not self.ranked:
            return self._uniform(level)
        count = math.floor(level * self.units + _SLACK)
        if not count:
            return {}
        found = solve(self.ladders, self.costs, Target("ratio", count / self.units), "global", self.units)
        if not found.met:
            raise TargetError(
                f"a pruning level of {level:g} is out of reach: at most {_down(found.reachable):.3f} of the "
                "filters can go, as every group keeps a tenth of its own",
                "Set a lower level, or let other layers be pruned.",
            )
        return dict(found.keep)

    def by_flops(self, level: float) -> dict[str, Bools]:
        """Kept units when a share of the FLOPs goes.

        Raises
        ------
        TargetError
            Not so many can go.
        """
        if level <= 0:
            return {}
        limit = self.costs.full.macs * (1 - level)
        if not self.ranked:
            return self._bisected(level, limit)
        allowed = max(math.ceil(limit - _SLACK) - 1, 0)  # NNCF goes on until less than the target is left
        full = self.costs.full.macs
        if allowed and self.ladders:
            found = solve(self.ladders, self.costs, Target("macs", allowed / full), "global", self.units)
            if found.met:
                return dict(found.keep)
        raise self._unreachable(level)

    def by_group(self, levels: Mapping[str, float]) -> dict[str, Bools]:
        """Kept units when every group has a level of its own."""
        keep = {}
        for ladder in self.ladders:
            gone = ladder.settle(math.floor(levels[ladder.group.id] * ladder.height + _SLACK))
            if gone:
                keep[ladder.group.id] = ladder.keep(gone)
        return keep

    def at_most(self) -> dict[str, Bools]:
        """Kept units when as much goes as may."""
        return {ladder.group.id: ladder.keep(ladder.most) for ladder in self.ladders}

    def _uniform(self, level: float) -> dict[str, Bools]:
        return self.by_group(dict.fromkeys((ladder.group.id for ladder in self.ladders), level))

    def _bisected(self, level: float, limit: float) -> dict[str, Bools]:
        left, right = 0.0, 1.0
        while right - left > LEVEL_TOLERANCE:
            middle = (left + right) / 2
            if self.costs.cost(self._uniform(middle)).macs < limit:
                right = middle
            else:
                left = middle
        keep = self._uniform(right)
        if not self.costs.cost(keep).macs < limit:
            raise self._unreachable(level)
        return keep

    def _unreachable(self, level: float) -> TargetError:
        full = self.costs.full.macs
        most = 1 - self.costs.cost(self.at_most()).macs / full if full else 0.0
        return TargetError(
            f"a pruning level of {level:g} of the FLOPs is out of reach: at most {_down(most):.3f} of them can go",
            "Set a lower level, let other layers be pruned (prune_first_conv, prune_downsample_convs), or set "
            "all_weights for one ranking over all layers.",
        )


def _down(share: float) -> float:
    """Rounded to what can be asked for."""
    return math.floor(1000 * share) / 1000
