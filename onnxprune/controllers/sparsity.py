"""Sparsity with NNCF's names and rules, on an ONNX model and without training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.calibrate.checks import did_you_mean
from onnxprune.controllers.batchnorm import adapt_batchnorm, first_batches, norms_of
from onnxprune.controllers.controller import CompressionController, Cut, Source
from onnxprune.controllers.layers import check_scopes
from onnxprune.controllers.nncf import Config, patterns_of, section_of
from onnxprune.controllers.sparse_config import SparsityConfig, sparsity_config
from onnxprune.errors import UsageError
from onnxprune.job import Job
from onnxprune.model import io
from onnxprune.model.finalize import finalize
from onnxprune.model.origin import twins
from onnxprune.patterns.pattern import Bools
from onnxprune.report.statistics import (
    SparsifiedLayerSummary,
    SparsifiedModelStatistics,
)
from onnxprune.sparsity.choices import SOLVERS
from onnxprune.sparsity.given import RESCALE, with_zeros
from onnxprune.sparsity.layers import WeightLayer, find_layers
from onnxprune.sparsity.select import level_of
from onnxprune.threads import few_threads


class BaseSparsityAlgoController(CompressionController):
    """The base of NNCF's handles on sparsity: masks over single weights of convolutions and linear layers.

    Parameters
    ----------
    model
        Path of an .onnx file, or what `onnxprune.load` returned. Never modified.
    config
        NNCF's config, a dict or a JSON file: with a `compression` section for this algorithm, or its `params`
        alone.
    data, samples, preprocess, bindings, provider, memory, seed, progress
        As of `onnxprune.sparsify`.
    solver
        What makes up for the zeros, where NNCF trains: "mask" (nothing), "sparsegpt", "obc", or "auto": with
        data what `onnxprune.sparsify` takes, else mask. Which weights are zero it does not decide.

    Attributes
    ----------
    zeros
        By the weight's name, flags (outputs, columns) of the weights that are zero.
    not_sparsified
        Why other layers stay as they are, by name.

    Raises
    ------
    UsageError, ModelError
        Options or scopes that mean nothing, a model that cannot be read.
    """

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
        solver: str = "auto",
        progress: Any = None,
    ) -> None:
        job = Job(
            data=data,
            samples=samples,
            preprocess=preprocess,
            bindings=dict(bindings or {}),
            provider=provider,
            memory=memory,
            seed=seed,
            progress=progress,
        )
        self._setup(model, sparsity_config(section_of(config, self.name)), job, solver)

    @classmethod
    def of(
        cls, model: Source, config: SparsityConfig, job: Job, solver: str = "auto"
    ) -> BaseSparsityAlgoController:
        """The controller of options that were read already."""
        made = cls.__new__(cls)
        made._setup(model, config, job, solver)
        return made

    def _setup(self, model: Source, config: SparsityConfig, job: Job, solver: str) -> None:
        if solver not in SOLVERS:
            raise UsageError(f"there is no solver {solver!r}", f"Known: {', '.join(SOLVERS)}.")
        CompressionController.__init__(self, model, job, config.ignored)
        self.config = config
        self._solver = self._settled(solver)
        self._target, self._asked = config.schedule.target, 0.0
        self._adapts = False
        self._zeros: dict[str, Bools] | None = None
        self._find_layers()
        self._begin()

    def _settled(self, solver: str) -> str:
        if solver != "auto" and solver != "mask" and self.job.data is None:
            raise UsageError(
                f"the solver {solver} needs data", "Give data=..., or take solver='mask', which needs none."
            )
        return "mask" if solver == "auto" and self.job.data is None else solver

    def _find_layers(self) -> None:
        ignore, only = patterns_of(self.config.ignored_scopes), patterns_of(self.config.target_scopes)
        graph = self.opened.analysis.axis_graph
        check_scopes(graph, "ignored_scopes", ignore)
        check_scopes(graph, "target_scopes", only)
        found = find_layers(graph, only=only, ignore=ignore)
        if not found.layers:
            whys = "\n".join(f"  {name}: {why}" for name, why in list(found.left.items())[:8])
            raise UsageError(
                "no layer can become sparse", whys or "The model has no layer with a weight of its own."
            )
        self._layers: tuple[WeightLayer, ...] = found.layers
        self.not_sparsified = dict(found.left)
        self._zeros = None

    # -- what kinds say --------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Make the scheduler, and set the first level."""
        self._scheduler = self.config.schedule.make(self)
        self.set_sparsity_level(self.config.schedule.init)

    def _chosen(self) -> dict[str, Bools]:
        """Which weights are zero at the level that is asked for."""
        raise NotImplementedError

    # -- levels ----------------------------------------------------------------------------------------------

    @property
    def zeros(self) -> dict[str, Bools]:
        """Chosen when they are first asked for at a level."""
        if self._zeros is None:
            self._zeros = self._chosen()
        return self._zeros

    @property
    def current_sparsity_level(self) -> float:
        """Zeros that the masks make / weights of the handled layers: reached, not asked for."""
        return level_of(self.zeros)

    @property
    def compression_rate(self) -> float:
        """`current_sparsity_level`."""
        return self.current_sparsity_level

    @property
    def level(self) -> float:
        """`current_sparsity_level`."""
        return self.current_sparsity_level

    @property
    def requested(self) -> float:
        """What was asked for last."""
        return self._asked

    def set_level(self, level: float) -> None:
        """`set_sparsity_level`, for the scheduler: nothing where the controller is frozen."""
        if not self.frozen:
            self.set_sparsity_level(level)

    def set_sparsity_level(
        self, sparsity_level: float, layer: object = None, run_batchnorm_adaptation: bool = False
    ) -> None:
        """Choose anew which weights are zero; levels may go down again.

        Parameters
        ----------
        sparsity_level
            Share of the weights of the handled layers, in [0, 1). Exactly so many weights go, 0 takes none.
        layer
            Name of the node or of its weight: the level is that of this layer alone. In local mode only.
        run_batchnorm_adaptation
            Let the model's batch norms fit what they see then; where they are folded, every channel is scaled
            and shifted to do the same. Needs data.
        """
        if isinstance(sparsity_level, bool) or not isinstance(sparsity_level, int | float):
            raise UsageError(f"a sparsity level of {sparsity_level!r} is no number", "Give one in [0, 1).")
        if not 0 <= sparsity_level < 1:
            raise UsageError(
                f"a sparsity level of {sparsity_level:g} is not in [0, 1)",
                "0.5 makes half of the weights zero.",
            )
        if layer is not None:
            self._set_one(layer, float(sparsity_level))
        else:
            self._set_all(float(sparsity_level))
        self._adapts = self._can_adapt() if run_batchnorm_adaptation else False
        self._changed()

    def _set_all(self, level: float) -> None:
        self._asked, self._zeros = level, None

    def _set_one(self, layer: object, level: float) -> None:
        raise UsageError(
            f"{self.name} has one level for all layers", "Leave the layer out, or take the local mode."
        )

    def _can_adapt(self) -> bool:
        if self.job.data is None:
            self.note("batch norms were not adapted, although asked for: that needs data")
        elif not self.config.samples:
            self.note("batch norms were not adapted: num_bn_adaptation_samples is 0")
        elif not norms_of(self.source.ir) and self._solver != "mask":
            self.note(
                f"folded batch norms were not adapted apart: the solver ({self._solver}) refits the layers"
            )
        else:
            return True
        return False

    # -- masks and figures -----------------------------------------------------------------------------------

    def get_mask(self, layer: object) -> Bools:
        """Flags of the weight's shape: which elements stay.

        Parameters
        ----------
        layer
            Name of the node or of its weight, or the node.
        """
        found = self._layer(layer)
        return ~found.flags(self.zeros[found.name])

    def _layer(self, given: object) -> WeightLayer:
        name = str(given.name if isinstance(given, ir.Node | ir.Value) else given)
        known = {n: layer for layer in reversed(self._layers) for n in (layer.name, layer.label)}
        if name not in known:
            why = self.not_sparsified.get(name)
            raise UsageError(
                f"{name!r} is no layer that is handled{f': {why}' if why else did_you_mean(name, known)}",
                "Give the name of the node, or of its weight.",
            )
        return known[name]

    def _model_statistics(self) -> SparsifiedModelStatistics:
        """Figures of the masks; weights that are zero by themselves count, too."""
        analysis = self.opened.analysis
        graph = analysis.axis_graph
        root = twins(graph.model.graph)
        masked = {layer.name: layer for layer in self._layers}
        total, zeros, rows = 0, 0, []
        for value in graph.parameters:
            name, data = str(value.name), value.const_value
            if data is None or root.get(name, name) != name:
                continue
            layer = masked.get(name)
            gone = (
                int(((layer.matrix() == 0) | self.zeros[name]).sum())
                if layer
                else int((np.asarray(data.numpy()) == 0).sum())
            )
            total, zeros = total + data.size, zeros + gone
            if layer is not None:
                rows.append((layer, gone))
        total = max(total, 1)
        size = sum(layer.grid.size for layer, _ in rows)
        return SparsifiedModelStatistics(
            zeros / total,
            sum(gone for _, gone in rows) / max(size, 1),
            [
                SparsifiedLayerSummary(
                    layer.label, list(layer.shape), gone / layer.grid.size, 100 * layer.grid.size / total
                )
                for layer, gone in rows
            ],
        )

    # -- models ----------------------------------------------------------------------------------------------

    def _built(self) -> ir.Model:
        evidence = self._seen() if self._solver != "mask" or self._adapts else None
        folded = self._adapts and not norms_of(self.source.ir)
        solver = (RESCALE if folded else self._solver) if evidence is not None else "mask"
        widest = max(layer.grid.columns for layer in self._layers)
        with few_threads(widest if evidence is not None else 0):
            model, _ = with_zeros(
                self.opened.analysis, self._layers, self.zeros, solver=solver, evidence=evidence
            )
            if self._adapts and not folded and evidence is not None:
                batches = first_batches(evidence.batches, self.config.samples)
                adapt_batchnorm(model, batches, self.job.provider, self.job.budget)
        return finalize(model)

    def rebase(self, source: io.LoadedModel, cut: Cut | None = None) -> None:
        """Start from another form of the same model, at the same level."""
        super().rebase(source, cut)
        self._find_layers()
        self._set_all(self._asked)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({str(self.source.path)!r}: level {self.current_sparsity_level:.3f}, "
            f"{len(self._layers)} layers, {self.compression_stage().name})"
        )
