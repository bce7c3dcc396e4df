"""Neural Compressor's entry point `prepare_compression`, and a manager with the callbacks that users call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.controllers.controller import save_model
from onnxprune.controllers.inc import Config, read_pruner_configs
from onnxprune.controllers.modules import ModelModules
from onnxprune.controllers.pruner_table import get_pruner
from onnxprune.controllers.pruners import BasePruner
from onnxprune.controllers.registry import ClassTable
from onnxprune.errors import UnsupportedError, UsageError
from onnxprune.job import Job, Opened, open_model
from onnxprune.model import io
from onnxprune.model.finalize import finalize
from onnxprune.patterns.pattern import Bools
from onnxprune.sparsity.given import with_zeros
from onnxprune.sparsity.layers import WeightLayer, find_layers
from onnxprune.threads import few_threads


class Callbacks:
    """Neural Compressor's callbacks: `on_step_begin` is one step of all pruners, the others do nothing.

    They are there so that a loop that was written for training runs as it is: without training its steps are
    rounds.
    """

    def __init__(self, manager: CompressionManager) -> None:
        self._manager = manager

    def on_train_begin(self, dataloader: Any = None) -> None:
        """Nothing: data is given to `prepare_compression`."""

    def on_epoch_begin(self, epoch: int) -> None:
        """Nothing: rounds are counted in steps."""

    def on_step_begin(self, step: int | None = None) -> None:
        """One step of every pruner; numbers are counted, not taken."""
        self._manager.step()

    def on_before_optimizer_step(self) -> None:
        """Nothing: gradients are taken on the calibration samples."""

    def on_after_optimizer_step(self) -> None:
        """Nothing: zeros stay zero."""

    def on_step_end(self) -> None:
        """Nothing."""

    def on_epoch_end(self) -> None:
        """Nothing."""

    def on_before_eval(self) -> None:
        """Nothing: the model has its zeros at all times."""

    def on_after_eval(self) -> None:
        """Nothing."""

    def on_train_end(self) -> None:
        """Nothing."""


class CompressionManager:
    """What `prepare_compression` gives: the pruners of all local configs over one model.

    Attributes
    ----------
    pruners
        One for each local config, each with layers of its own.
    callbacks
        Neural Compressor's.
    skipped
        Layers that no config prunes, with the reason of the last that left it alone.
    """

    def __init__(self, opened: Opened, pruners: Iterable[BasePruner], solver: str, job: Job) -> None:
        self.opened, self.pruners, self.callbacks = opened, tuple(pruners), Callbacks(self)
        self._solver, self._job = solver, job
        names = [name for pruner in self.pruners for name in pruner.masks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(
                f"the layer {twice[0]} is in several local configs", "Give each layer to one, by op_names."
            )
        everything = {name: why for pruner in self.pruners for name, why in pruner.skipped.items()}
        self.skipped = {name: why for name, why in everything.items() if name not in names}

    @property
    def notes(self) -> list[str]:
        """What a user should know about what was done or left out."""
        return list(dict.fromkeys(note for pruner in self.pruners for note in pruner.notes))

    def step(self) -> bool:
        """One step of every pruner; whether a round took place."""
        return any([pruner.step() for pruner in self.pruners])

    def run(self) -> CompressionManager:
        """All steps up to the last `end_step`, from where the pruners are."""
        while any(pruner.global_step <= pruner.end_step for pruner in self.pruners):
            self.step()
        return self

    @property
    def masks(self) -> dict[str, Bools]:
        """By layer, true where a weight stays."""
        return {name: mask for pruner in self.pruners for name, mask in pruner.masks.items()}

    @property
    def model(self) -> ir.Model:
        """The model with the zeros of all pruners, a copy."""
        if len(self.pruners) == 1:
            return self.pruners[0].model
        if any(pruner.of_heads for pruner in self.pruners):
            raise UnsupportedError(
                "heads and weights of one model cannot be pruned together",
                "Save the model without some heads, and prune the weights of that one.",
            )
        order = {op.node: n for n, op in enumerate(self.opened.analysis.axis_graph.ops)}
        pairs = sorted(self._zeros(), key=lambda pair: order[pair[0].consumer.node])
        layers = [layer for layer, _ in pairs]
        zeros = {layer.name: flags for layer, flags in pairs}
        evidence = self.opened.evidence(self._job) if self._solver != "mask" else None
        widest = max(layer.grid.columns for layer in layers)
        with few_threads(widest if evidence is not None else 0):
            solver = self._solver if evidence is not None else "mask"
            model, _ = with_zeros(self.opened.analysis, layers, zeros, solver=solver, evidence=evidence)
        return finalize(model)

    def _zeros(self) -> Iterator[tuple[WeightLayer, Bools]]:
        for pruner in self.pruners:
            modules = pruner._modules
            if isinstance(modules, ModelModules):
                for label, flags in pruner._zeros.items():
                    yield modules.layers[label], flags

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write the model as it is, whole or not at all."""
        return save_model(self.model, path, self.opened.analysis.source, force=force)

    def export(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """As `save`: what Neural Compressor exports is an ONNX file."""
        return self.save(path, force=force)

    def sparsity_ratios(self) -> dict[str, float]:
        """Zeros of the masks, by Neural Compressor's three names.

        elementwise_over_matmul_gemm_conv
            Zeros in pruned layers / weights of all convolutions and linear layers.
        elementwise_over_all
            Zeros in pruned layers / all float initializers.
        blockwise_over_matmul_gemm_conv
            Weights in blocks that are zero as a whole / weights of all convolutions and linear layers.
        """
        analysis = self.opened.analysis
        weights = sum(layer.grid.size for layer in find_layers(analysis.axis_graph).layers)
        zeros = sum(int((~mask).sum()) for mask in self.masks.values())
        whole = 0.0
        for pruner in self.pruners:
            for name, flags in pruner._zeros.items():
                grid = pruner._modules.grids[name]
                shares = pruner.pattern.reduce(flags.astype(np.float64), grid, np.mean)
                whole += grid.size * float((shares == 1).mean())
        return {
            "elementwise_over_matmul_gemm_conv": zeros / weights,
            "elementwise_over_all": zeros / analysis.cost.params,
            "blockwise_over_matmul_gemm_conv": whole / weights,
        }

    def sparsity(self) -> Mapping[str, float]:
        """Zeros that the masks make / weights, by layer."""
        return {name: ratio for pruner in self.pruners for name, ratio in pruner.get_sparsity_ratio().items()}

    def __repr__(self) -> str:
        return f"CompressionManager({', '.join(map(repr, self.pruners))})"


def prepare_compression(
    model: str | os.PathLike[str] | io.LoadedModel,
    confs: Config = None,
    data: Any = None,
    *,
    samples: int | None = None,
    preprocess: Any = None,
    bindings: Mapping[str, int] | None = None,
    provider: str = "auto",
    memory: float | None = None,
    seed: int = 0,
    loss: str = "auto",
    solver: str = "auto",
    pruners: ClassTable | None = None,
    criteria: ClassTable | None = None,
) -> CompressionManager:
    """Neural Compressor's `prepare_compression` for weight pruning of an ONNX model.

    Parameters
    ----------
    model
        Path of an .onnx file, or what `onnxprune.load` returned. Never modified.
    confs
        A dict, `WeightPruningConfig`, Neural Compressor's own object, or a list with one of these.
    data, samples, preprocess, bindings, provider, memory, seed, loss
        As of `onnxprune.sparsify`.
    solver
        As of `BasePruner`.
    pruners, criteria
        Tables; `PRUNERS` and `CRITERIA` by default.

    Returns
    -------
    CompressionManager
        Nothing is zero yet: `run()`, or the callbacks in a loop of one's own.

    Raises
    ------
    UsageError, ModelError
        The config means nothing, a layer is in several local configs, or the model cannot be read.
    """
    if isinstance(confs, list | tuple):
        if len(confs) != 1:
            raise UsageError(
                f"there are {len(confs)} configs, and weight pruning takes one",
                "Give local configs as pruning_configs.",
            )
        confs = confs[0]
    job = Job(
        data=data,
        samples=samples,
        preprocess=preprocess,
        bindings=dict(bindings or {}),
        provider=provider,
        memory=memory,
        seed=seed,
        loss=loss,
        attention="heads",
    )
    configs = read_pruner_configs(confs)
    opened = open_model(model, job, calibrate=data is not None)
    chosen = "mask" if solver == "auto" and data is None else solver
    made = [
        get_pruner(
            each,
            opened,
            data,
            table=pruners,
            criteria=criteria,
            solver=chosen,
            samples=samples,
            bindings=bindings,
            provider=provider,
            memory=memory,
            seed=seed,
            loss=loss,
        )
        for each in configs
    ]
    return CompressionManager(opened, made, chosen, job)


def prepare_pruning(
    model: str | os.PathLike[str] | io.LoadedModel, config: Config = None, data: Any = None, **options: Any
) -> CompressionManager:
    """Neural Compressor's newer name for `prepare_compression`; no optimizer is taken."""
    return prepare_compression(model, config, data, **options)
