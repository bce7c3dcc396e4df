"""Architectures with seeded random weights, for the coverage benchmark: one module per library.

Each module has `MODELS`, a table from names to functions that build a `Sample`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Sample:
    """A model and inputs that it takes.

    Attributes
    ----------
    module
        In eval mode; takes the tensors of `inputs` in order, gives a tensor or a flat tuple of tensors.
    inputs
        Example inputs by name; batch 2.
    dynamic
        Symbolic dims: input name to ``{dim: symbol}``.
    """

    module: nn.Module
    inputs: dict[str, torch.Tensor]
    dynamic: dict[str, dict[int, str]] = field(default_factory=dict)
