"""Filter pruning with NNCF's names and rules, on an ONNX model and without training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.controllers.batchnorm import adapt_batchnorm, first_batches, norms_of
from onnxprune.controllers.controller import CompressionController, Cut, Source
from onnxprune.controllers.layers import (
    FilterLayer,
    find_layer,
    pruned_statistics,
)
from onnxprune.controllers.masks import bake_masks
from onnxprune.controllers.nncf import (
    PRUNING,
    Config,
    PruningConfig,
    pruning_config,
    section_of,
)
from onnxprune.controllers.pruning_groups import find_pruning_groups
from onnxprune.controllers.pruning_schedules import PRUNING_SCHEDULERS
from onnxprune.errors import UsageError
from onnxprune.graph.axes import Bools
from onnxprune.job import Job
from onnxprune.model import io
from onnxprune.pruning import build
from onnxprune.report.statistics import FilterPruningStatistics, PrunedModelTheoreticalBorderline
from onnxprune.surgery.keep import kept_positions, slice_array
from onnxprune.threads import few_threads

Array = np.ndarray[Any, Any]


class FilterPruningController(CompressionController):
    """NNCF's handle on filter pruning.

    It holds masks over filters. The model that goes with them has the original's shapes and zeros where
    filters were looked at; `strip` cuts the filters out. Where NNCF trains, the layers behind are refitted on
    `data`, once, when the model is asked for (`compensate`).

    Parameters
    ----------
    model
        Path of an .onnx file, or what `onnxprune.load` returned. Never modified.
    config
        NNCF's config, a dict or a JSON file: with a `compression` section for filter_pruning, or its `params`
        alone.
    data, samples, preprocess, bindings, provider, memory, seed, progress
        As of `onnxprune.prune`. Data is needed for `loss`, `learned_ranking` and batch norm adaptation.
    compensate
        As of `onnxprune.prune`; "none" leaves weights as NNCF's masks do.

    Attributes
    ----------
    groups
        Groups that may be pruned, by NNCF's kind of id (a number).
    not_pruned
        Why other layers are not pruned, by name.
    keep
        Kept units, by id of a group that loses some.
    prune_flops, pruning_init
        NNCF's options of these names.

    Raises
    ------
    UsageError, TargetError, ModelError
        Options or scopes that mean nothing, a level that cannot be reached, a model that cannot be read.
    """

    name = PRUNING

    def __init__(
        self,
        model: Source,
        config: Config | None = None,
        data: Any = None,
        *,
        samples: int | None = None,
        preprocess: Any = None,
        bindings: Mapping[str, int] | None = None,
        provider: str = "auto",
        memory: float | None = None,
        seed: int = 0,
        compensate: str = "auto",
        progress: Any = None,
    ) -> None:
        job = Job(
            mode="mask",
            data=data,
            samples=samples,
            preprocess=preprocess,
            bindings=dict(bindings or {}),
            provider=provider,
            memory=memory,
            seed=seed,
            compensate=compensate,
            attention="heads",
            progress=progress,
        )
        self._setup(model, pruning_config(section_of(config, PRUNING)), job)

    @classmethod
    def of(cls, model: Source, config: PruningConfig, job: Job) -> FilterPruningController:
        """The controller of options that were read already."""
        made = cls.__new__(cls)
        made._setup(model, config, job)
        return made

    def _setup(self, model: Source, config: PruningConfig, job: Job) -> None:
        job = replace(job, mode="mask", attention="heads")
        CompressionController.__init__(self, model, job, config.ignored)
        self.config = config
        self.prune_flops, self.pruning_init = config.prune_flops, config.init
        self._target, self._asked = config.target, 0.0
        self._by_group: dict[str, float] | None = None
        self._adapts = False
        self.keep: Mapping[str, Bools] = {}
        self._find_groups()
        schedule = PRUNING_SCHEDULERS[config.schedule]
        self._scheduler = schedule(self, config.init, config.target, config.spans)
        self.set_pruning_level(config.init)

    def _find_groups(self) -> None:
        """Which groups there are, and in which order their filters go."""
        seed = self.job.seed if self.config.seed is None else self.config.seed
        found = find_pruning_groups(self.opened.analysis, self.config, seed, self._seen)
        self.groups, self.not_pruned = found.groups, found.not_pruned
        self._layers, self._ladders = found.layers, found.ladders
        if not self.groups:
            self.note("no layer may be pruned: controller.not_pruned says why")

    # -- levels ----------------------------------------------------------------------------------------------

    @property
    def pruning_level(self) -> float:
        """Share of the filters of all groups that may be pruned that is gone: reached, not asked for."""
        gone = sum(int((~flags).sum()) for flags in self.keep.values())
        return gone / self._ladders.units if self._ladders.units else 0.0

    @property
    def current_groupwise_pruning_level(self) -> dict[int, float]:
        """Share of the filters that is gone, by group id."""
        return {number: self._gone(group.id) for number, group in self.groups.items()}

    def _gone(self, name: str) -> float:
        flags = self.keep.get(name)
        return 0.0 if flags is None else int((~flags).sum()) / len(flags)

    @property
    def level(self) -> float:
        """`compression_rate`."""
        return self.compression_rate

    @property
    def requested(self) -> float:
        """What was asked for last; of levels per group, what was reached."""
        return self._asked if self._by_group is None else self.compression_rate

    @property
    def compression_rate(self) -> float:
        """1 - FLOPs that are left / all FLOPs where `prune_flops`, else the pruning level."""
        if not self.prune_flops:
            return self.pruning_level
        costs = self.opened.analysis.costs
        return 1 - costs.cost(self.keep).macs / costs.full.macs if costs.full.macs else 0.0

    @property
    def maximal_compression_rate(self) -> float:
        """1 - the fewest FLOPs that may be left / all FLOPs where `prune_flops`, else 1."""
        if not self.prune_flops:
            return 1.0
        border = self.theoretical_borderline
        return 1 - border.min_possible_flops / border.total_flops if border.total_flops else 0.0

    def set_level(self, level: float) -> None:
        """`set_pruning_level`, for the scheduler: nothing where the controller is frozen."""
        if not self.frozen:
            self.set_pruning_level(level)

    def set_pruning_level(
        self, pruning_level: float | Mapping[Any, float], run_batchnorm_adaptation: bool = False
    ) -> None:
        """Choose anew which filters go; masks do not add up from call to call, so levels may go down again.

        Parameters
        ----------
        pruning_level
            A level in [0, 1): a share of the filters, or of the FLOPs where `prune_flops`. Or one for each
            group: a dict with exactly the ids of `groups`.
        run_batchnorm_adaptation
            Let the model's batch norms fit what they see then; where they are folded, every channel is scaled
            and shifted to do the same. Needs data.

        Raises
        ------
        UsageError
            The level is out of range, or the dict has other ids.
        TargetError
            The level cannot be reached; says what can. The controller stays as it is.
        """
        if isinstance(pruning_level, Mapping):
            levels = self._checked(pruning_level)
            keep, asked, by_group = self._ladders.by_group(levels), self._asked, levels
        else:
            asked, by_group = _in_range(pruning_level), None
            keep = self._ladders.by_flops(asked) if self.prune_flops else self._ladders.by_level(asked)
        self.keep, self._asked, self._by_group = keep, asked, by_group
        self._adapts = self._can_adapt() if run_batchnorm_adaptation else False
        self._changed()

    def _checked(self, levels: Mapping[Any, float]) -> dict[str, float]:
        names = {str(key) if str(key).startswith("g") else f"g{key}": value for key, value in levels.items()}
        known = {group.id: number for number, group in self.groups.items()}
        unknown, missing = [n for n in names if n not in known], [n for n in known if n not in names]
        if unknown or missing:
            what = f"names group {unknown[0]}" if unknown else f"lacks group {known[missing[0]]}"
            ids = ", ".join(map(str, self.groups))
            raise UsageError(
                f"the dict of pruning levels {what}", f"It needs exactly the ids of controller.groups: {ids}."
            )
        return {name: _in_range(value) for name, value in names.items()}

    def get_state(self) -> dict[str, Any]:
        """With the levels of groups, where these were set."""
        levels = None if self._by_group is None else dict(self._by_group)
        return {**super().get_state(), "groups": levels}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where `get_state` was asked."""
        super().load_state({name: value for name, value in state.items() if name != "groups"})
        if state.get("groups") is not None:
            self.set_pruning_level(state["groups"])

    def _can_adapt(self) -> bool:
        if self.job.data is None:
            self.note("batch norms were not adapted, although asked for: that needs data")
        elif self.job.compensate != "none":
            self.note(
                f"batch norms were not adapted apart: the repair (compensate={self.job.compensate}) refits the "
                "layers themselves, norms included"
            )
        elif not self.config.samples:
            self.note("batch norms were not adapted: num_bn_adaptation_samples is 0")
        else:
            return True
        return False

    # -- masks and figures -----------------------------------------------------------------------------------

    def get_mask(self, layer: object) -> Bools:
        """One flag per filter of a convolution or linear layer: whether it stays.

        Parameters
        ----------
        layer
            Name of the node or of its weight, or the node.
        """
        found: FilterLayer = find_layer(self._layers, layer)
        return found.mask(self._kept())

    def statistics(self, quickly_collected_only: bool = False) -> FilterPruningStatistics:
        """What is left of the model, as NNCF counts. All of it is quick, so the flag changes nothing."""
        model = pruned_statistics(self.opened.analysis, self._layers, self.keep, self._kept())
        return FilterPruningStatistics(model, self.compression_rate, self._target, self.prune_flops)

    @property
    def theoretical_borderline(self) -> PrunedModelTheoreticalBorderline:
        """How far pruning can go at most."""
        analysis = self.opened.analysis
        most = self._ladders.at_most()
        kept = kept_positions(analysis.groups, most)
        found = pruned_statistics(analysis, self._layers, most, kept)
        return PrunedModelTheoreticalBorderline(
            num_pruned_layers=sum(each.group in most for each in self._layers),
            num_prunable_layers=len(self._layers),
            min_possible_flops=found.current_flops,
            min_possible_params=found.current_params,
            total_flops=found.full_flops,
            total_params=found.full_params,
        )

    def _kept(self) -> Any:
        return kept_positions(self.opened.analysis.groups, self.keep)

    # -- models ----------------------------------------------------------------------------------------------

    def _built(self) -> ir.Model:
        return self._made("mask")

    def _exported(self) -> ir.Model:
        kinds = {"weight", "bias"} | ({"bn-scale", "mean"} if self.config.prune_batch_norms else set())
        return bake_masks(self.opened.analysis, self.keep, self._built(), kinds)

    def _removed(self) -> ir.Model:
        self._prove()
        return self._made("remove")

    def _made(self, mode: str) -> ir.Model:
        evidence = self._seen() if self.keep else None
        folded = self._adapts and not norms_of(self.source.ir)
        job = replace(self.job, mode=mode, compensate="rescale" if folded else self.job.compensate)
        with few_threads(evidence.largest if evidence is not None else 0):
            model, _ = build(self.opened.analysis, self.keep, job, evidence)
            if self._adapts and not folded and evidence is not None:
                batches = first_batches(evidence.batches, self.config.samples)
                adapt_batchnorm(model, batches, self.job.provider, self.job.budget)
        return model

    def _prove(self) -> None:
        """Show that masked == removed; groups for which that does not hold stay whole, and it is said."""
        if not self.keep:
            return
        accepted, soundness = self.opened.prover(self.job).prove(self.keep)
        for name, why in soundness.why.items():
            self.note(f"{name} stays whole because masked != removed: {why}")
        if soundness.rejected_groups:
            self.keep = accepted
            self._changed()

    def cut(self, name: str, array: Array) -> Array:
        """What strip leaves of an array of an initializer's shape."""
        graph, kept = self.opened.analysis.axis_graph, self._kept()
        mine = [axis for axis in kept if axis.value.name == name]
        blocked = {axis.dim: graph.blocked[axis] for axis in mine if axis in graph.blocked}
        return slice_array(array, {axis.dim: kept[axis] for axis in mine}, blocked)

    def rebase(self, source: io.LoadedModel, cut: Cut | None = None) -> None:
        """Start from another form of the same model; filters are ranked anew."""
        super().rebase(source, cut)
        self._find_groups()
        self.set_pruning_level(self._asked if self._by_group is None else self._by_group)

    def __repr__(self) -> str:
        return (
            f"FilterPruningController({str(self.source.path)!r}: level {self.pruning_level:.3f}, "
            f"{len(self.groups)} groups, {self.compression_stage().name})"
        )


def _in_range(level: Any) -> float:
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 <= level < 1:
        raise UsageError(
            f"a pruning level of {level!r} is not in [0, 1)", "0.4 means that 40 % of the filters go."
        )
    return float(level)
