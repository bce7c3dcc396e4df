"""BatchNorm statistics from noise, so that signals neither vanish nor explode in deep random networks."""

from __future__ import annotations

import torch
from torch import nn

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def settle_statistics(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Take every BatchNorm's statistics from one pass over `inputs`, then perturb them a little.

    Parameters
    ----------
    module
        Mutated; in eval mode again at the end.
    inputs
        A batch of at least 2.
    """
    norms = [(norm, norm.momentum) for norm in module.modules() if isinstance(norm, _NORMS)]
    module.eval()  # dropout and stochastic depth off; only the norms learn
    if not norms:
        return
    for norm, _ in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        module(*inputs)
        for norm, momentum in norms:
            norm.eval()
            norm.momentum = momentum
            norm.running_mean += 0.1 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.7, 1.4)
