"""NNCF's configuration, as it is: a dict or a JSON file.

What NNCF's documents call a `compression` section holds one algorithm or a list of them. Options that only
mean something in training are named as ignored, with the reason; unknown ones are errors.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxprune.calibrate.checks import did_you_mean
from onnxprune.controllers.options import TRAINING, TRAINING_OPTIONS, Options, one_of
from onnxprune.controllers.pruning_schedules import PRUNING_SCHEDULERS, Spans
from onnxprune.errors import UsageError

Config = Mapping[str, Any] | str | os.PathLike[str]

PRUNING, MAGNITUDE, CONST, RB, MOVEMENT = (
    "filter_pruning",
    "magnitude_sparsity",
    "const_sparsity",
    "rb_sparsity",
    "movement_sparsity",
)
ALGORITHMS = (PRUNING, MAGNITUDE, CONST, RB, MOVEMENT)

IMPORTANCES = {"L1": "l1", "L2": "l2", "geometric_median": "geometric-median"}
"""NNCF's `filter_importance`, as criteria of onnxprune."""

RANKINGS = ("unweighted_ranking", "learned_ranking")

BN_SAMPLES = 2000
"""Samples for the adaptation of batch norms."""

_TRAINED = {**TRAINING_OPTIONS, "checkpoint_path": "there is no training to go on with"}
_TOP = {
    "input_info": "the file itself says what the model's inputs are",
    "target_device": "an ONNX file is not made for a device; see --provider",
    "hw_config_type": "an ONNX file is not made for a device; see --provider",
    "hw_config_dir": "an ONNX file is not made for a device; see --provider",
    "log_dir": "onnxprune writes no logs of its own",
    "disable_shape_matching": "ONNX graphs are not matched by shape",
    "maximal_shape_matching": "ONNX graphs are not matched by shape",
    "quantizer_setup_type": "nothing is quantised here",
}
_BODY = ("compression", "accuracy_aware_training", "bn_adapt", *_TOP)


@dataclass(frozen=True)
class AlgorithmConfig:
    """One algorithm of a `compression` section, before its own options are read.

    Attributes
    ----------
    name
        One of `ALGORITHMS`.
    options
        Its section and its `params`, in one: NNCF spells some of them here and some of them there.
    samples
        For the adaptation of batch norms.
    """

    name: str
    options: Options
    samples: int


@dataclass(frozen=True)
class NNCFConfig:
    """A configuration, read.

    Attributes
    ----------
    algorithms
        In the order in which they are applied.
    accuracy_aware
        The section `accuracy_aware_training`; None where there is none.
    ignored
        What means nothing here, and why.
    """

    algorithms: tuple[AlgorithmConfig, ...]
    accuracy_aware: Mapping[str, Any] | None = None
    ignored: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PruningConfig:
    """Options of NNCF's filter pruning, with its defaults.

    Attributes
    ----------
    init, target
        Levels in [0, 1): shares of the filters, or of the FLOPs where `prune_flops`.
    spans
        Of the schedule.
    criterion
        Of onnxprune.
    learned
        LeGR: the ranking over layers is learned.
    trials
        Of the search for it; None: what onnxprune takes.
    """

    init: float = 0.0
    target: float = 0.5
    prune_flops: bool = False
    schedule: str = "exponential"
    spans: Spans = Spans()
    criterion: str = "l2"
    learned: bool = False
    trials: int | None = None
    seed: int | None = None
    all_weights: bool = False
    prune_first_conv: bool = False
    prune_downsample_convs: bool = False
    prune_batch_norms: bool = True
    ignored_scopes: tuple[str, ...] = ()
    target_scopes: tuple[str, ...] = ()
    samples: int = BN_SAMPLES
    ignored: Mapping[str, str] = field(default_factory=dict)

    @property
    def ranks(self) -> bool:
        """Whether one ranking over all groups decides."""
        return self.all_weights or self.learned


def read_config(config: Config) -> NNCFConfig:
    """Read a configuration.

    Parameters
    ----------
    config
        A dict, or the path of a JSON file. What is not an option of NNCF's own at the top (a data set, an
        optimizer) belongs to the user's training script, and is ignored and said so.

    Raises
    ------
    UsageError
        It cannot be read, names no algorithm that is known here, or has an option that nobody knows.
    """
    body = _body(config)
    if "algorithm" in body and "compression" not in body:  # the section alone
        body = {"compression": body}
    ignored: dict[str, str] = {}
    for name in body:
        near = did_you_mean(str(name), [n for n in _BODY if abs(len(n) - len(str(name))) < 3])
        if name in _TOP:
            ignored[name] = _TOP[name]
        elif name not in _BODY and near:
            raise UsageError(f"the config has no option {name!r}{near}", f"Known: {', '.join(_BODY)}.")
        elif name not in _BODY:
            ignored[name] = f"it belongs to a training script: {TRAINING}"
    section = body.get("compression")
    sections = section if isinstance(section, list | tuple) else [section]
    if not section:
        raise UsageError(
            "the config has no compression section",
            'Add "compression": {"algorithm": "filter_pruning", "params": {"pruning_target": 0.5}}.',
        )
    aware = body.get("accuracy_aware_training")
    return NNCFConfig(tuple(_algorithm(each) for each in sections), aware, ignored)


def _body(config: Config) -> dict[str, Any]:
    if isinstance(config, Mapping):
        return dict(config)
    if not isinstance(config, str | os.PathLike):
        raise UsageError(f"a config of type {type(config).__name__} is none", "Give a dict or a JSON file.")
    try:
        body = json.loads(Path(config).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the config {config} cannot be read: {error.strerror}", "Check the path.") from None
    except ValueError as error:
        raise UsageError(f"{config} is no JSON: {error}", "NNCF's configs are JSON files.") from None
    if not isinstance(body, dict):
        raise UsageError(f"{config} holds no JSON object", "NNCF's configs are objects.")
    return body


def _algorithm(section: Any) -> AlgorithmConfig:
    if not isinstance(section, Mapping):
        raise UsageError(f"a compression section is {section!r}", 'Give {"algorithm": ..., "params": {...}}.')
    name = section.get("algorithm")
    if name == "quantization":
        raise UsageError(
            "the algorithm quantization is none of onnxprune's",
            "Prune first, then quantise the pruned file with onnxruntime or OpenVINO.",
        )
    name = one_of("algorithm", name, ALGORITHMS)
    params = section.get("params") or {}
    if not isinstance(params, Mapping):
        raise UsageError(f"{name}: params is {params!r}", "It has to be a dict of options.")
    rest = {key: value for key, value in section.items() if key not in ("algorithm", "params", "initializer")}
    twice = sorted(set(rest) & set(params))
    if twice:
        raise UsageError(f"{name}: {twice[0]} is there twice", "Give it in params only.")
    initializer = Options(section.get("initializer"), f"{name}: initializer")
    adaptation = initializer.inner("batchnorm_adaptation")
    samples = adaptation.count("num_bn_adaptation_samples", BN_SAMPLES)
    options = Options({**rest, **params}, name)
    initializer.absorb(adaptation)
    options.absorb(initializer)
    options.ignore(_TRAINED)
    return AlgorithmConfig(name, options, samples)


def section_of(config: Config | None, name: str) -> AlgorithmConfig:
    """The one section of a configuration for a controller: `config` may also be its `params` alone.

    Raises
    ------
    UsageError
        It has several algorithms, or another one.
    """
    if config is None:
        return _algorithm({"algorithm": name})
    body = _body(config)
    if "compression" not in body and "algorithm" not in body:
        if "params" in body:
            return _algorithm({"algorithm": name, **body})
        return _algorithm({"algorithm": name, "params": body})
    found = read_config(body).algorithms
    if len(found) != 1 or found[0].name != name:
        names = ", ".join(each.name for each in found)
        raise UsageError(
            f"this controller is for {name}, and the config asks for {names}",
            "create_compressed_model makes the controllers that go with a config.",
        )
    return found[0]


def pruning_config(section: AlgorithmConfig) -> PruningConfig:
    """Options of filter pruning.

    Raises
    ------
    UsageError
        An option means nothing, contradicts another, or is unknown.
    """
    o = section.options
    flops = o.take("pruning_flops_target")
    if flops is not None and "pruning_target" in o:
        raise UsageError(
            "filter_pruning: pruning_target and pruning_flops_target contradict each other",
            "Give a share of the filters, or one of the FLOPs.",
        )
    target = o.share("pruning_target", 0.5) if flops is None else o.share("pruning_flops_target", 0.5)
    init = o.share("pruning_init", 0.0)
    legr = o.inner("legr_params")
    trials = legr.count("generations", 0, 1) if "generations" in legr else None
    seed = legr.count("random_seed", 0) if "random_seed" in legr else None
    legr.ignore(
        {
            "train_steps": TRAINING,
            "max_pruning": "the ranking is learned at the target itself",
        }
    )
    o.absorb(legr)
    o.ignore(
        {
            "save_ranking_coeffs_path": "the ranking is searched for anew, with the same result",
            "load_ranking_coeffs_path": "the ranking is searched for anew, with the same result",
        }
    )
    found = PruningConfig(
        init=init,
        target=target,
        prune_flops=flops is not None,
        schedule=o.choice("schedule", "exponential", tuple(PRUNING_SCHEDULERS)),
        spans=Spans(o.count("num_init_steps", 0), o.count("pruning_steps", 100, 1)),
        criterion=IMPORTANCES[o.choice("filter_importance", "L2", tuple(IMPORTANCES))],
        learned=o.choice("interlayer_ranking_type", RANKINGS[0], RANKINGS) == RANKINGS[1],
        trials=trials,
        seed=seed,
        all_weights=o.flag("all_weights", False),
        prune_first_conv=o.flag("prune_first_conv", False),
        prune_downsample_convs=o.flag("prune_downsample_convs", False),
        prune_batch_norms=o.flag("prune_batch_norms", True),
        ignored_scopes=o.names("ignored_scopes"),
        target_scopes=o.names("target_scopes"),
        samples=section.samples,
        ignored=o.finish(),
    )
    if found.init > found.target:
        raise UsageError(
            f"filter_pruning: pruning_init {init:g} is above the target {target:g}", "Swap or change them."
        )
    return found


def patterns_of(scopes: tuple[str, ...]) -> tuple[str, ...]:
    """NNCF's scopes as patterns of onnxprune: `{re}` marks a regular expression, all else is a whole name.

    Examples
    --------
    >>> patterns_of(("conv1", "{re}layer[12]"))
    ('re:^conv1$', 're:layer[12]')
    """
    return tuple(
        f"re:{scope[4:]}" if scope.startswith("{re}") else f"re:^{re.escape(scope)}$" for scope in scopes
    )
