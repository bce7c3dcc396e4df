"""Neural Compressor's configuration of weight pruning, as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from onnxprune.calibrate.checks import did_you_mean
from onnxprune.controllers.options import TRAINING_OPTIONS, Options, one_of
from onnxprune.errors import UsageError
from onnxprune.patterns import REDUCTIONS
from onnxprune.sparsity.select import SCOPES

DECAYS = ("exp", "linear", "cos", "cube")
TYPES = {"Conv": ("Conv", "ConvTranspose"), "Linear": ("Gemm", "MatMul")}
"""Neural Compressor's `pruning_op_types`, as operators."""

PROGRESSIVE = "_progressive"


@dataclass(frozen=True, init=False)
class WeightPruningConfig:
    """Neural Compressor's options of these names, with its defaults.

    Attributes
    ----------
    pruning_configs
        Local configs: dicts of the other options, each for layers of its own. What one leaves out it takes
        from here.
    target_sparsity
        Share of the weights of the layers of a config that is zero in the end.
    pruning_type
        A criterion: magnitude, gradient, snip, snip_momentum, snip_momentum_block, retrain_free, wanda; or a
        pruner: pattern_lock, or one of your own (`register_pruner`).
    pattern
        Such as "4x1", "2:4", "channelx1", "1xchannel", or "mha" (whole attention heads).
    op_names, excluded_op_names
        Regular expressions that match the beginning of the names of layers or weights; no `op_names` are all.
    start_step, end_step, pruning_frequency
        Rounds take place at `start_step`, and every `pruning_frequency` steps up to `end_step`; start = end
        is one shot.
    pruning_scope
        "global" or "local".
    min_sparsity_ratio_per_op, max_sparsity_ratio_per_op
        At least and at most this share of a layer becomes zero.
    sparsity_decay_type
        exp, linear, cos or cube.
    pruning_op_types
        "Conv", "Linear".
    criterion_reduce_type
        mean, sum or max: how the scores of a block become one.
    lock_init_sparsity
        Weights that are zero already stay so, and count.
    backend, low_memory_usage, resume_from_pruned_checkpoint
        Mean nothing here.
    """

    pruning_configs: Sequence[Mapping[str, Any]] = ({},)
    target_sparsity: float = 0.9
    pruning_type: str = "snip_momentum"
    pattern: str = "4x1"
    op_names: Sequence[str] = ()
    excluded_op_names: Sequence[str] = ()
    backend: Any = None
    start_step: int = 0
    end_step: int = 0
    pruning_scope: str = "global"
    pruning_frequency: int = 1
    min_sparsity_ratio_per_op: float = 0.0
    max_sparsity_ratio_per_op: float = 0.98
    sparsity_decay_type: str = "exp"
    pruning_op_types: Sequence[str] = ("Conv", "Linear")
    low_memory_usage: bool = False
    criterion_reduce_type: str = "mean"
    criterion_type: str | None = None
    lock_init_sparsity: bool = False
    resume_from_pruned_checkpoint: bool = False

    def __init__(self, *values: Any, **options: Any) -> None:
        names = [each.name for each in fields(self)]
        if len(values) > len(names):
            raise UsageError(
                f"WeightPruningConfig takes {len(names)} options, and {len(values)} were given",
                "Give them by name.",
            )
        given = {**dict(zip(names, values, strict=False)), **options}
        ignored = {name: value for name, value in options.items() if name in TRAINING_OPTIONS}
        for name in given:
            if name not in names and name not in ignored:
                raise UsageError(
                    f"WeightPruningConfig has no option {name!r}{did_you_mean(name, names)}",
                    f"Known: {', '.join(names)}.",
                )
        for each in fields(self):
            object.__setattr__(self, each.name, given.get(each.name, each.default))
        object.__setattr__(self, "weight_compression", ignored)


@dataclass(frozen=True)
class PrunerConfig:
    """One config, read: what a pruner looks at. Options carry Neural Compressor's names and mean the same.

    Attributes
    ----------
    criterion_type
        Which criterion scores.
    ignored
        Options that mean nothing here, and why.
    """

    target_sparsity: float = 0.9
    pruning_type: str = "snip_momentum"
    pattern: str = "4x1"
    op_names: tuple[str, ...] = ()
    excluded_op_names: tuple[str, ...] = ()
    start_step: int = 0
    end_step: int = 0
    pruning_scope: str = "global"
    pruning_frequency: int = 1
    min_sparsity_ratio_per_op: float = 0.0
    max_sparsity_ratio_per_op: float = 0.98
    sparsity_decay_type: str = "exp"
    pruning_op_types: tuple[str, ...] = ("Conv", "Linear")
    criterion_reduce_type: str = "mean"
    criterion_type: str = "snip_momentum"
    lock_init_sparsity: bool = False
    ignored: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        """An option by its name, as of a dict."""
        return getattr(self, name)

    @property
    def operators(self) -> tuple[str, ...]:
        """ONNX operators that are pruned."""
        return tuple(op for kind in self.pruning_op_types for op in TYPES[kind])


Config = Mapping[str, Any] | PrunerConfig | Any


def read_pruner_configs(config: Config) -> tuple[PrunerConfig, ...]:
    """Read a config and its local ones.

    Parameters
    ----------
    config
        A dict, or any object with the options as attributes (Neural Compressor's own among them); None:
        defaults.

    Raises
    ------
    UsageError
        An option means nothing or is unknown.
    """
    if isinstance(config, PrunerConfig):
        return (config,)
    body = _body(config)
    local = body.pop("pruning_configs", None) or [{}]
    if isinstance(local, str | Mapping) or not isinstance(local, Sequence):
        raise UsageError(f"pruning_configs is {local!r}", "Give a list of dicts.")
    return tuple(_read(Options({**body, **_body(each)}, "WeightPruningConfig")) for each in local)


def read_pruner_config(config: Config) -> PrunerConfig:
    """Read a config that has no local ones.

    Raises
    ------
    UsageError
        It has several, or an option means nothing or is unknown.
    """
    found = read_pruner_configs(config)
    if len(found) != 1:
        raise UsageError(
            f"the config has {len(found)} local configs, and a pruner takes one",
            "prepare_compression makes a pruner for each.",
        )
    return found[0]


def _body(config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    if isinstance(config, Mapping):
        return dict(config)
    body = dict(
        getattr(config, "weight_compression", None) or {}
    )  # Neural Compressor keeps most of them there
    for name in (f.name for f in fields(WeightPruningConfig)):
        if hasattr(config, name):
            body[name] = getattr(config, name)
    if not body:
        raise UsageError(
            f"a config of type {type(config).__name__} has no option of Neural Compressor's",
            "Give a dict or a WeightPruningConfig.",
        )
    return body


def _read(o: Options) -> PrunerConfig:
    kind = o.take("pruning_type", "snip_momentum")
    if not isinstance(kind, str):
        raise UsageError(f"WeightPruningConfig: pruning_type is {kind!r}", "Give the name of a criterion.")
    if kind.endswith(PROGRESSIVE):
        kind = kind.removesuffix(PROGRESSIVE)
        o.ignored["pruning_type: progressive"] = (
            "masks that grow between rounds give training time to follow, and nothing is trained here"
        )
    types = o.names("pruning_op_types") or tuple(TYPES)
    for each in types:
        one_of("pruning_op_types", each, tuple(TYPES))
    o.ignore(TRAINING_OPTIONS)
    o.ignore(
        {
            "backend": "ONNX models have no framework",
            "framework": "ONNX models have no framework",
            "resume_from_pruned_checkpoint": "there is no training to go on with",
            "low_memory_usage": "scores take as much memory as the weights at any rate",
            "name": "pruners have no names",
        }
    )
    found = PrunerConfig(
        target_sparsity=o.share("target_sparsity", 0.9),
        pruning_type=kind,
        pattern=_pattern(str(o.take("pattern", "4x1"))),
        op_names=o.names("op_names"),
        excluded_op_names=o.names("excluded_op_names"),
        start_step=o.count("start_step", 0),
        end_step=o.count("end_step", 0),
        pruning_scope=o.choice("pruning_scope", o.take("prune_domain", "global"), SCOPES[:2]),
        pruning_frequency=o.count("pruning_frequency", 1, 1),
        min_sparsity_ratio_per_op=o.share("min_sparsity_ratio_per_op", 0.0),
        max_sparsity_ratio_per_op=o.number("max_sparsity_ratio_per_op", 0.98, 0.0, 1.0),
        sparsity_decay_type=o.choice("sparsity_decay_type", "exp", DECAYS),
        pruning_op_types=types,
        criterion_reduce_type=o.choice("criterion_reduce_type", "mean", tuple(REDUCTIONS)),
        criterion_type=str(o.take("criterion_type", kind)),
        lock_init_sparsity=o.flag("lock_init_sparsity", False),
        ignored=o.finish(),
    )
    if found.end_step < found.start_step:
        raise UsageError(
            f"WeightPruningConfig: end_step {found.end_step} is before start_step {found.start_step}",
            "Make them equal for one shot.",
        )
    if found.min_sparsity_ratio_per_op > found.max_sparsity_ratio_per_op:
        raise UsageError(
            "WeightPruningConfig: min_sparsity_ratio_per_op is above max_sparsity_ratio_per_op",
            "Swap or change them.",
        )
    return found


def _pattern(name: str) -> str:
    """Neural Compressor's name of whole heads is mha."""
    return "head" if name == "mha" else name
