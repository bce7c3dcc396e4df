"""Handles that users of NNCF and Neural Compressor know, over the same functions as `onnxprune prune`.

A controller or pruner holds a level and masks; it asks the pure functions of the other rooms for everything
else, and never modifies the model that it was given. Names, options, defaults and figures are those of the
original tools; what trained there is repaired in closed form here. See docs/migration-nncf.md and
docs/migration-neural-compressor.md.
"""

from __future__ import annotations

from onnxprune.controllers.composite import CompositeCompressionController
from onnxprune.controllers.compression import (
    CompressionManager,
    prepare_compression,
    prepare_pruning,
)
from onnxprune.controllers.controller import CompressedModel, CompressionController, CompressionLoss
from onnxprune.controllers.create import (
    AdaptiveCompressionLoop,
    create_accuracy_aware_training_loop,
    create_compressed_model,
)
from onnxprune.controllers.criteria import (
    CRITERIA,
    GradientCriterion,
    MagnitudeCriterion,
    PruningCriterion,
    RetrainFreeCriterion,
    SnipCriterion,
    SnipMomentumBlockCriterion,
    SnipMomentumCriterion,
    WandaCriterion,
    get_criterion,
    register_criterion,
)
from onnxprune.controllers.filters import FilterPruningController
from onnxprune.controllers.head_pruner import HeadPruner
from onnxprune.controllers.inc import WeightPruningConfig
from onnxprune.controllers.learned import MovementSparsityController, RBSparsityController
from onnxprune.controllers.magnitude import ConstSparsityController, MagnitudeSparsityController
from onnxprune.controllers.pruner_table import PRUNERS, get_pruner, register_pruner
from onnxprune.controllers.pruners import BasePruner, BasicPruner, PatternLockPruner
from onnxprune.controllers.registry import ClassTable
from onnxprune.controllers.sparsity import BaseSparsityAlgoController
from onnxprune.controllers.stage import CompressionStage, StripFormat

__all__ = [
    "CRITERIA",
    "PRUNERS",
    "AdaptiveCompressionLoop",
    "BasePruner",
    "BaseSparsityAlgoController",
    "BasicPruner",
    "ClassTable",
    "CompositeCompressionController",
    "CompressedModel",
    "CompressionController",
    "CompressionLoss",
    "CompressionManager",
    "CompressionStage",
    "ConstSparsityController",
    "FilterPruningController",
    "GradientCriterion",
    "HeadPruner",
    "MagnitudeCriterion",
    "MagnitudeSparsityController",
    "MovementSparsityController",
    "PatternLockPruner",
    "PruningCriterion",
    "RBSparsityController",
    "RetrainFreeCriterion",
    "SnipCriterion",
    "SnipMomentumBlockCriterion",
    "SnipMomentumCriterion",
    "StripFormat",
    "WandaCriterion",
    "WeightPruningConfig",
    "create_accuracy_aware_training_loop",
    "create_compressed_model",
    "get_criterion",
    "get_pruner",
    "prepare_compression",
    "prepare_pruning",
    "register_criterion",
    "register_pruner",
]
