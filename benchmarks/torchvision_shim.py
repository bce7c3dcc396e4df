"""Import torchvision beside a PyTorch that its compiled operators were not built for.

``pip install --no-deps torchvision`` next to another PyTorch build leaves torchvision's shared library
unloadable. The models that this project needs use none of the compiled operators, but ``import torchvision``
fails all the same: it registers shape functions for operators that nobody declared. Declaring them,
without an implementation, is enough.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import library as operators

_DECLARED: list[operators.Library] = []  # a Library takes its declarations back when it is collected


def import_torchvision() -> ModuleType:
    """Import torchvision, declaring its compiled operators when they could not be loaded.

    Returns
    -------
    ModuleType
        The ``torchvision`` package. Operators such as ``nms`` raise when called if they had to be declared.

    Raises
    ------
    ImportError
        torchvision is not installed.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _declare_operators()
    return importlib.import_module("torchvision")


def _declare_operators() -> None:
    declared = operators.Library("torchvision", "DEF")
    for name in sorted(_registered_names()):
        if not hasattr(torch.ops.torchvision, name):
            declared.define(f"{name}(Tensor input) -> Tensor")
    _DECLARED.append(declared)


def _registered_names() -> set[str]:
    """Names of the operators that torchvision registers shape functions for, read from its source."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("torchvision is not installed")
    source = (Path(spec.submodule_search_locations[0]) / "_meta_registrations.py").read_text(encoding="utf-8")
    return set(re.findall(r'register_(?:meta|fake)\(\s*"(?:torchvision::)?(\w+)"', source))
