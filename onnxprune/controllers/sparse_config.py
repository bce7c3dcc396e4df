"""Options of NNCF's sparsity algorithms, with its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxprune.controllers.nncf import CONST, MAGNITUDE, MOVEMENT, RB, AlgorithmConfig
from onnxprune.controllers.options import TRAINING, Options
from onnxprune.controllers.schedules import (
    SPARSITY_SCHEDULERS,
    Leveled,
    MultiStepSparsityScheduler,
    SparsityScheduler,
)
from onnxprune.errors import UsageError

GLOBAL, LOCAL = MODES = ("global", "local")

_IMPORTANCES = {"normed_abs": "normed_abs", "abs": "magnitude"}
"""NNCF's `weight_importance`, as criteria of onnxprune."""


@dataclass(frozen=True)
class Schedule:
    """How the level grows, before there is a controller that grows.

    Attributes
    ----------
    kind
        A key of `SPARSITY_SCHEDULERS`.
    init, target
        Levels in [0, 1).
    options
        Of the kind, as its scheduler takes them.
    """

    kind: str
    init: float
    target: float
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self, controller: Leveled) -> SparsityScheduler:
        """A scheduler that drives a controller."""
        if self.kind == "multistep":
            return MultiStepSparsityScheduler(controller, **self.options)
        return SPARSITY_SCHEDULERS[self.kind](controller, self.init, self.target, **self.options)


@dataclass(frozen=True)
class SparsityConfig:
    """Options of one sparsity algorithm.

    Attributes
    ----------
    mode
        "global" (one ranking) or "local" (a level per layer).
    criterion
        Of onnxprune.
    options
        Of RB and movement, read by them.
    """

    schedule: Schedule
    mode: str = GLOBAL
    criterion: str = "normed_abs"
    ignored_scopes: tuple[str, ...] = ()
    target_scopes: tuple[str, ...] = ()
    samples: int = 2000
    options: Mapping[str, Any] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)


def sparsity_config(section: AlgorithmConfig) -> SparsityConfig:
    """Options of magnitude, const, RB or movement sparsity.

    Raises
    ------
    UsageError
        An option means nothing, contradicts another, or is unknown.
    """
    o, name = section.options, section.name
    init = o.share("sparsity_init", 0.0)
    mode, criterion, own = GLOBAL, "normed_abs", dict[str, Any]()
    if name == MOVEMENT:
        schedule, own = Schedule("polynomial", 0.0, 0.0), _movement(o)
    elif name == CONST:
        schedule = Schedule("polynomial", 0.0, 0.0)
    else:
        schedule = _schedule(o, name, init)
        mode = o.choice("sparsity_level_setting_mode", GLOBAL, MODES)
    if name == MAGNITUDE:
        criterion = _IMPORTANCES[o.choice("weight_importance", "normed_abs", tuple(_IMPORTANCES))]
        if schedule.kind == "adaptive":
            raise UsageError(
                "magnitude_sparsity: the adaptive schedule waits until training has caught up with the level, and "
                "magnitudes reach every level at once",
                "Take polynomial, exponential or multistep.",
            )
    found = SparsityConfig(
        schedule,
        mode,
        criterion,
        o.names("ignored_scopes"),
        o.names("target_scopes"),
        section.samples,
        own,
        o.finish(),
    )
    if found.schedule.init > found.schedule.target and name not in (CONST, MOVEMENT):
        raise UsageError(
            f"{name}: sparsity_init {init:g} is above the target {found.schedule.target:g}",
            "Swap or change them.",
        )
    return found


def _schedule(o: Options, name: str, init: float) -> Schedule:
    kind = o.choice("schedule", "exponential" if name == RB else "polynomial", tuple(SPARSITY_SCHEDULERS))
    target = o.share("sparsity_target", 0.5)
    freeze = o.count("sparsity_freeze_epoch", 100, 1)
    if kind == "multistep":
        steps, levels = (
            o.numbers("multistep_steps", (90,)),
            o.numbers("multistep_sparsity_levels", (0.1, 0.5)),
        )
        _leave(o, kind, ("sparsity_target_epoch", *_POWERS, *_ADAPTIVE))
        options = {"steps": [int(step) for step in steps], "levels": levels, "freeze_epoch": freeze}
        made = MultiStepSparsityScheduler(None, **options)  # type: ignore[arg-type]
        return Schedule(kind, made.initial_level, made.target_level, options)
    _leave(o, kind, ("multistep_steps", "multistep_sparsity_levels"))
    options = {"target_epoch": o.count("sparsity_target_epoch", 90, 0), "freeze_epoch": freeze}
    if kind == "polynomial":
        options |= {"power": o.number("power", 0.9, 1e-6), "concave": o.flag("concave", True)}
        within, steps_per_epoch = o.flag("update_per_optimizer_step", False), o.count("steps_per_epoch", 1, 1)
        options["steps_per_epoch"] = steps_per_epoch if within else None
        _leave(o, kind, _ADAPTIVE)
    elif kind == "adaptive":
        options |= {
            "decay_step": o.number("step", 0.05, 1e-6, 1.0),
            "eps": o.number("eps", 0.03, 0.0, 1.0),
            "patience": o.count("patience", 1, 1),
        }
        _leave(o, kind, _POWERS)
    else:
        _leave(o, kind, (*_POWERS, *_ADAPTIVE))
    return Schedule(kind, init, target, options)


_POWERS = ("power", "concave", "update_per_optimizer_step", "steps_per_epoch")
_ADAPTIVE = ("step", "eps", "patience")


def _leave(o: Options, kind: str, names: tuple[str, ...]) -> None:
    o.ignore(dict.fromkeys(names, f"the schedule {kind} has no such option"))


def _movement(o: Options) -> dict[str, Any]:
    """Options of movement sparsity, as NNCF spells them."""
    structures = o.take("sparse_structure_by_scopes", [])
    if not isinstance(structures, list | tuple):
        raise UsageError(
            f"movement_sparsity: sparse_structure_by_scopes is {structures!r}", "Give a list of dicts."
        )
    if "schedule" in o:
        o.choice("schedule", "threshold_polynomial_decay", ("threshold_polynomial_decay",))
    found = {
        "warmup_start_epoch": o.count("warmup_start_epoch", 1, 0),
        "warmup_end_epoch": o.count("warmup_end_epoch", 3, 0),
        "importance_regularization_factor": o.number("importance_regularization_factor", 1.0, 0.0),
        "enable_structured_masking": o.flag("enable_structured_masking", True),
        "init_importance_threshold": o.take("init_importance_threshold"),
        "final_importance_threshold": o.number("final_importance_threshold", 0.0),
        "power": o.number("power", 3.0, 1e-6),
        "steps_per_epoch": o.count("steps_per_epoch", 1, 1),
        "structures": tuple(structures),
    }
    if found["warmup_end_epoch"] <= found["warmup_start_epoch"]:
        raise UsageError(
            "movement_sparsity: warmup_end_epoch has to be after warmup_start_epoch", "Swap or change them."
        )
    o.ignore({"lr": TRAINING})
    return found
