"""Statistics of filter pruning; `onnxprune.report.statistics` has them together with those of sparsity.

FLOPs are 2 x MACs. Parameters are the weights of convolutions and linear layers, without biases and norms. Filters
are the output channels of all convolutions and linear layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.report.grid import grid

_GIGA, _MEGA = 1e9, 1e6


def _level(current: float, full: float) -> float:
    return 1 - current / full if full else 0.0


@dataclass(frozen=True)
class PrunedLayerSummary:
    """One layer that lost filters.

    Attributes
    ----------
    name
        Of the layer.
    weight_shape
        Shape of its weight before it lost any.
    mask_shape
        Shape of the mask over its filters.
    filter_pruning_level
        Filters that are gone / filters that there were, 0..1.
    """

    name: str
    weight_shape: Sequence[int]
    mask_shape: Sequence[int]
    filter_pruning_level: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "weight_shape": [int(extent) for extent in self.weight_shape],
            "mask_shape": [int(extent) for extent in self.mask_shape],
            "filter_pruning_level": self.filter_pruning_level,
        }


@dataclass(frozen=True)
class PrunedModelStatistics:
    """What a model had and what is left of it.

    Attributes
    ----------
    full_flops, current_flops
        2 x MACs of one sample.
    full_params, current_params
        Elements of the weights of convolutions and linear layers.
    full_filters, current_filters
        Output channels of all convolutions and linear layers.
    pruned_layers_summary
        Layers that lost filters.
    """

    full_flops: int
    current_flops: int
    full_params: int
    current_params: int
    full_filters: int
    current_filters: int
    pruned_layers_summary: Sequence[PrunedLayerSummary]

    @property
    def flops_pruning_level(self) -> float:
        """1 - current FLOPs / full FLOPs; 0 for a model without any."""
        return _level(self.current_flops, self.full_flops)

    @property
    def params_pruning_level(self) -> float:
        """1 - current parameters / full parameters; 0 for a model without any."""
        return _level(self.current_params, self.full_params)

    @property
    def filter_pruning_level(self) -> float:
        """1 - current filters / full filters; 0 for a model without any."""
        return _level(self.current_filters, self.full_filters)

    def to_str(self) -> str:
        """Two tables: the layers that lost filters, where there are some, and the model."""
        layers = grid(
            ["Layer's name", "Weight's shape", "Mask's shape", "Filter pruning level"],
            [
                [layer.name, layer.weight_shape, layer.mask_shape, layer.filter_pruning_level]
                for layer in self.pruned_layers_summary
            ],
        )
        full, now = self.full_flops / _GIGA, self.current_flops / _GIGA
        params, params_now = self.full_params / _MEGA, self.current_params / _MEGA
        model = grid(
            ["#", "Full", "Current", "Pruning level"],
            [
                ["GFLOPs", full, now, self.flops_pruning_level],
                ["MParams", params, params_now, self.params_pruning_level],
                ["Filters", self.full_filters, self.current_filters, self.filter_pruning_level],
            ],
        )
        head = f"Statistics by pruned layers:\n{layers}\n" if self.pruned_layers_summary else ""
        return (
            f"{head}Statistics of the pruned model:\n{model}\n"
            "Prompt: statistic pruning level = 1 - statistic current / statistic full.\n"
            "FLOPs: 2 x MACs of one sample. Params: weights of convolutions and linear layers only.\n"
            "Filters: output channels of all convolutions and linear layers."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the levels included."""
        return {
            "full_flops": self.full_flops,
            "current_flops": self.current_flops,
            "flops_pruning_level": self.flops_pruning_level,
            "full_params": self.full_params,
            "current_params": self.current_params,
            "params_pruning_level": self.params_pruning_level,
            "full_filters": self.full_filters,
            "current_filters": self.current_filters,
            "filter_pruning_level": self.filter_pruning_level,
            "pruned_layers_summary": [layer.to_dict() for layer in self.pruned_layers_summary],
        }


@dataclass(frozen=True)
class FilterPruningStatistics:
    """What filter pruning did.

    Attributes
    ----------
    model_statistics
        Of the model.
    current_pruning_level, target_pruning_level
        As shares of the FLOPs where `prune_flops`, else of the filters that may be pruned, 0..1.
    prune_flops
        Whether levels are in FLOPs.
    """

    model_statistics: PrunedModelStatistics
    current_pruning_level: float
    target_pruning_level: float
    prune_flops: bool

    def to_str(self) -> str:
        """The model's tables, and current and target level."""
        current, target = ("FLOPs", "FLOPs") if self.prune_flops else ("Filter", "filter")
        algorithm = grid(
            ["Statistic's name", "Value"],
            [
                [f"{current} pruning level in current epoch", self.current_pruning_level],
                [f"Target {target} pruning level", self.target_pruning_level],
            ],
        )
        share = "the model's FLOPs" if self.prune_flops else "the filters of the layers that may be pruned"
        return (
            f"{self.model_statistics.to_str()}\n\n"
            f"Statistics of the filter pruning algorithm:\n{algorithm}\n"
            f"Both levels are shares of {share}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model_statistics": self.model_statistics.to_dict(),
            "current_pruning_level": self.current_pruning_level,
            "target_pruning_level": self.target_pruning_level,
            "prune_flops": self.prune_flops,
        }


@dataclass(frozen=True)
class PrunedModelTheoreticalBorderline:
    """How far filter pruning can go at most.

    Attributes
    ----------
    num_pruned_layers
        Layers that lose filters.
    num_prunable_layers
        Layers of a type that filter pruning knows.
    min_possible_flops, min_possible_params
        What is left at the highest level.
    total_flops, total_params
        What there is: 2 x MACs of one sample, and weights of convolutions and linear layers.
    """

    num_pruned_layers: int
    num_prunable_layers: int
    min_possible_flops: int
    min_possible_params: int
    total_flops: int
    total_params: int

    def to_str(self) -> str:
        """One table."""
        table = grid(
            ["Statistic's name", "Value"],
            [
                [
                    "Pruned layers count / prunable layers count",
                    f"{self.num_pruned_layers} / {self.num_prunable_layers}",
                ],
                [
                    "GFLOPs minimum possible after pruning / total",
                    f"{self.min_possible_flops / _GIGA:.3f} / {self.total_flops / _GIGA:.3f}",
                ],
                [
                    "MParams minimum possible after pruning / total",
                    f"{self.min_possible_params / _MEGA:.3f} / {self.total_params / _MEGA:.3f}",
                ],
            ],
        )
        return (
            f"Theoretical borderline of the filter pruning algorithm\nfor current model:\n{table}\n"
            "FLOPs: 2 x MACs of one sample. Params: weights of convolutions and linear layers only."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "num_pruned_layers": self.num_pruned_layers,
            "num_prunable_layers": self.num_prunable_layers,
            "min_possible_flops": self.min_possible_flops,
            "min_possible_params": self.min_possible_params,
            "total_flops": self.total_flops,
            "total_params": self.total_params,
        }
