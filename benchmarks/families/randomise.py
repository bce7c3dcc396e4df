"""Weights that no two channels share.

Freshly built models are full of equal values: biases of 0, norm weights of 1, state matrices with equal rows.
Exporters store equal tensors once, and a channel that is exactly like its neighbour hides a wrong index. So
everything of that sort is drawn anew.
"""

from __future__ import annotations

import torch
from torch import nn


def randomise(module: nn.Module) -> None:
    """Give norms, biases and constant parameters of `module` distinct random values, in place.

    Norm weights are uniform in 0.5..1.5, biases and running means normal with deviation 0.1, running variances
    uniform in 0.7..1.4, parameters of equal entries normal with deviation 0.1, and matrices of equal rows get
    noise of deviation 0.1 on top. The draws come from torch's global generator.

    Parameters
    ----------
    module
        The model; other parameters and buffers are left as they are.
    """
    seen: set[int] = set()
    with torch.no_grad():
        for owner in module.modules():
            is_norm = "norm" in type(owner).__name__.lower() or isinstance(
                owner, nn.modules.batchnorm._NormBase
            )
            for name, parameter in owner.named_parameters(recurse=False):
                if id(parameter) not in seen and parameter.is_floating_point():
                    seen.add(id(parameter))
                    _redraw(name, parameter, is_norm)
            for name, buffer in owner.named_buffers(recurse=False):
                if name == "running_mean":
                    buffer.normal_(0, 0.1)
                elif name == "running_var":
                    buffer.uniform_(0.7, 1.4)


def _redraw(name: str, parameter: nn.Parameter, is_norm: bool) -> None:
    if "bias" in name and parameter.dim() == 1:
        parameter.normal_(0, 0.1)
    elif is_norm and parameter.dim() <= 1:
        parameter.uniform_(0.5, 1.5)
    elif parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
        if parameter.numel() > 1:
            parameter.normal_(0, 0.1)
    elif parameter.dim() > 1 and len(parameter) > 1 and bool((parameter == parameter[:1]).all()):
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
