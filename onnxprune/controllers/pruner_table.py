"""Which pruner goes with a config: Neural Compressor's registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnxprune.controllers.criteria import CRITERIA
from onnxprune.controllers.head_pruner import HeadPruner
from onnxprune.controllers.inc import Config, read_pruner_config
from onnxprune.controllers.pruners import BasePruner, BasicPruner, PatternLockPruner, Source
from onnxprune.controllers.registry import ClassTable

PRUNERS = ClassTable("pruner", {"basic": BasicPruner, "pattern_lock": PatternLockPruner, "mha": HeadPruner})
"""Pruners by the name that `pruning_type` takes; names of criteria stand for the basic one."""


def register_pruner(name: str, table: ClassTable | None = None) -> Callable[[type], type]:
    """A class decorator that puts a pruner into a table, `PRUNERS` by default, and gives the class back.

    Examples
    --------
    >>> mine = ClassTable("pruner")
    >>> @register_pruner("half", mine)
    ... class Half(BasePruner): ...
    >>> list(mine)
    ['half']
    """
    return (PRUNERS if table is None else table).register(name)


def get_pruner(
    config: Config, modules: Source, data: Any = None, *, table: ClassTable | None = None, **options: Any
) -> BasePruner:
    """The pruner that a config's `pruning_type` names, made for these modules.

    Parameters
    ----------
    config, modules, data, options
        As of `BasePruner`.
    table
        `PRUNERS` by default.

    Raises
    ------
    UsageError
        There is neither a pruner nor a criterion of that name.
    """
    read = read_pruner_config(config)
    pruners = PRUNERS if table is None else table
    criteria = options.get("criteria") or CRITERIA
    if read.pattern == "head":
        found: type = HeadPruner
        if options.get("solver", "auto") == "auto":
            options["solver"] = "mask"  # nothing makes up for heads
    elif read.pruning_type in pruners:
        found = pruners.find(read.pruning_type)
    elif read.pruning_type in criteria:
        found = BasicPruner
    else:
        found = (pruners | criteria).find(read.pruning_type)
    return found(read, modules, data, **options)  # type: ignore[no-any-return]
