"""The rule of one operator: everything that is known about it, in one value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.model.shapes import Dims, Inferred, Shapes
from onnxprune.rules.classical import EXTENTS
from onnxprune.rules.op import Op

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxprune.graph.axes import Axis
    from onnxprune.graph.relations import Relations
    from onnxprune.rules.backward import Vjp
    from onnxprune.rules.refit import Refit
    from onnxprune.rules.site import Lower

Key = tuple[str, str]
"""(domain, operator type); the default domain is the empty string."""


QUANTIZER = "quantizer"
"""Kind of the scales and zero points of activations: they are no weights, so nothing counts or scores them."""


@dataclass(frozen=True)
class Term:
    """A cost that is proportional to a product of extents: `factor x prod(extent(axis) for axis in axes)`."""

    factor: float
    axes: tuple[Axis, ...]


def nothing_to_refit(op: Op, refit: Refit) -> None:
    """REFIT of operators that carry no extent in attributes or constants."""


def no_macs(op: Op) -> list[Term]:
    """MACS of operators that do not multiply and add."""
    return []


@dataclass(frozen=True)
class Rule:
    """All that is known about one operator.

    Parameters
    ----------
    relate
        RELATE: states ties, contractions and pins of the operator's axes. Axes it does not mention are pinned
        by the builder.
    refit
        REFIT: adapts attributes and constant inputs that carry an extent, after channels were cut out.
    macs
        MACS: multiply-adds as terms over axes.
    weights
        Input slots whose initializer is a weight that criteria score (a filter bank, a projection).
    kinds
        What other parameter slots are: "bias", "scale", ...
    extents
        For operators that onnx has no schema for, or no inference: extents and element type of every output, from
        those of the inputs. Without it, outputs have the shapes that the file declares.
    vjp
        VJP: gradients of the inputs from those of the outputs (see `onnxprune.rules.backward`). Without it,
        criteria that need gradients refuse a model with this operator between the loss and what they score.
    lower
        LOWER: the operator in standard ones (see `onnxprune.rules.site`), through which gradients pass then. It
        goes before `vjp`.
    hands_on
        `relate` is asked even where the shape of an input or output is not known: it speaks about each value for
        itself, as operators with bodies do.
    """

    relate: Callable[[Op, Relations], None]
    refit: Callable[[Op, Refit], None] = nothing_to_refit
    macs: Callable[[Op], list[Term]] = no_macs
    weights: tuple[int, ...] = ()
    kinds: Mapping[int, str] = field(default_factory=dict)
    extents: Callable[[Op], Sequence[Inferred]] | None = None
    vjp: Vjp | None = None
    lower: Lower | None = None
    hands_on: bool = False


class RuleTable(Mapping[Key, Rule]):
    """An immutable table of rules; `table | other` is a new one in which `other` wins.

    Examples
    --------
    >>> from onnxprune.rules import default_rules
    >>> ("", "Conv") in default_rules()
    True
    """

    def __init__(self, rules: Mapping[Key, Rule] | None = None) -> None:
        self._rules = dict(rules or {})

    def __getitem__(self, key: Key) -> Rule:
        return self._rules[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def of(self, node: ir.Node) -> Rule | None:
        """The rule of a node's operator; None where there is none."""
        return self._rules.get((domain_of(node), node.op_type))

    def infer(
        self,
        node: ir.Node,
        version: int,
        dims: Mapping[ir.Value, Dims],
        data: Mapping[ir.Value, np.ndarray[Any, Any]],
    ) -> Sequence[Inferred] | None:
        """What is known of the outputs of a node (see `onnxprune.model.shapes.Custom`), by its rule if any."""
        rule = self.of(node)
        extents = EXTENTS.get((node.domain, node.op_type)) if rule is None else rule.extents
        return None if extents is None else extents(Op(node, Shapes(dims, data), version))

    def __or__(self, other: Mapping[Key, Rule]) -> RuleTable:
        return RuleTable({**self._rules, **other})


def domain_of(node: ir.Node) -> str:
    """The domain of a node's operator; the default one has two names in files and the empty one here."""
    return "" if node.domain == "ai.onnx" else node.domain


def table(rule: Rule, *op_types: str, domain: str = "") -> dict[Key, Rule]:
    """The same rule for several operators."""
    return {(domain, op_type): rule for op_type in op_types}
