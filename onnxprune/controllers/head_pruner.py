"""Whole attention heads as a pruner: Neural Compressor's pattern mha."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnxprune.controllers.criteria import TABLE
from onnxprune.controllers.inc import Config, read_pruner_config
from onnxprune.controllers.modules import ModelModules, choose_layers
from onnxprune.controllers.pruners import BasePruner, Source
from onnxprune.errors import UsageError
from onnxprune.job import Opened
from onnxprune.patterns import Element
from onnxprune.patterns.pattern import Bools
from onnxprune.sparsity.choices import Sparsity
from onnxprune.sparsity.heads import Heads, find_heads, make_heads_sparse


class HeadPruner(BasePruner):
    """Takes whole attention heads of a model, by the mean of a criterion's scores over Q, K, V and O.

    Scores are taken at the original weights in every round, and heads that go are zeroed where they are made
    and where they are looked at; nothing makes up for them. `onnxprune.prune(model, ..., attention="heads")`
    removes heads instead, and refits the layers behind.

    Attributes
    ----------
    head_masks
        By the name of an attention's group, true for every head that stays.
    scores
        Empty: they are heads', not weights'.
    """

    of_heads = True
    _heads: Sequence[Heads] = ()

    def __init__(self, config: Config, modules: Source, data: Any = None, **options: Any) -> None:
        if isinstance(modules, Mapping):
            raise UsageError("heads are found in a graph, and the pruner was given arrays", "Give a model.")
        if options.get("solver", "mask") in ("sparsegpt", "obc"):
            raise UsageError("nothing makes up for heads that go", "Leave the solver out.")
        self.head_masks: dict[str, Bools] = {}
        options["solver"] = "mask"
        super().__init__(replace(read_pruner_config(config), pattern="head"), modules, data, **options)

    def _of_model(self, opened: Opened, solver: str) -> ModelModules:
        chosen = choose_layers(opened, self.config, Element())
        self._heads, layers, skipped = find_heads(opened.analysis, chosen.layers, chosen.skipped)
        self.head_masks = {each.group.name: np.ones(each.group.units, bool) for each in self._heads}
        return ModelModules(opened, self._job, layers, skipped, "mask")

    def _collect(self, gradients: Any) -> None:
        if gradients is not None:
            raise UsageError("a model takes gradients on its own samples", "Leave the gradients out.")

    def on_step_begin(self, local_step: int) -> None:
        """Nothing: scores are taken when heads are chosen."""

    def update_masks(self) -> None:
        """Zero the heads that the schedule and the criterion say."""
        modules, level = self._modules, self.scheduler.step()
        if not isinstance(modules, ModelModules):
            raise ValueError("heads are those of a model")
        asked = Sparsity(
            level=level,
            pattern="head",
            criterion=self.config.criterion_type,
            scope=self.config.pruning_scope,
            solver="mask",
            reduce=self.config.criterion_reduce_type,
            min_ratio=min(self.config.min_sparsity_ratio_per_op, level),
            max_ratio=self.max_sparsity_ratio_per_op,
            lock=self.config.lock_init_sparsity,
            criteria=TABLE,
        )
        settled = asked.settled(self._job.data is not None)
        evidence = modules.evidence if settled.reads else None
        layers = list(modules.layers.values())
        outcome = make_heads_sparse(modules.opened.analysis, self._heads, layers, asked, settled, evidence)
        modules.adopt(outcome.model)
        labels = {layer.name: label for label, layer in modules.layers.items()}
        self._zeros = {labels[name]: flags for name, flags in outcome.zeros.items()}
        for name, (gone, units) in outcome.heads.items():
            self.head_masks[name] = ~np.isin(np.arange(units), gone)
