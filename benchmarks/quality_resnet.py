"""The CIFAR ResNets of akamaster/pytorch_resnet_cifar10 as PyTorch modules, with the weights of an ONNX file.

BatchNorm is folded in the files, so every convolution has a bias. The shortcut between stages is option A of the
ResNet paper: every second row and column, and zeros for the channels that are new.
"""

from __future__ import annotations

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

STAGES = ((16, 1), (32, 2), (64, 2))
"""Channels, and stride of the first block."""
LAYERS_OUTSIDE = 1
"""Convolutions before the first block."""


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Keep the batch; rows and columns are divided by the stride."""
        y = self.conv2(functional.relu(self.conv1(x)))
        if self.stride != 1:
            padding = (0, 0, 0, 0, self.padding, self.padding)
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], padding)
        return functional.relu(y + x)


class ResNet(nn.Module):
    """Three stages of equally many blocks, and a linear classifier."""

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        width = STAGES[0][0]
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1)
        made = []
        for channels, stride in STAGES:
            for number in range(blocks):
                made.append(Block(width, channels, 1 if number else stride))
                width = channels
        self.blocks = nn.Sequential(*made)
        self.linear = nn.Linear(width, classes)

    @property
    def ends(self) -> list[nn.Conv2d]:
        """The last convolution of every block, which adds to the residual stream."""
        return [block.conv2 for block in self.blocks if isinstance(block, Block)]

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, rows, columns) -> (batch, classes)."""
        x = self.blocks(functional.relu(self.conv1(x)))
        return self.linear(functional.avg_pool2d(x, x.shape[3]).flatten(1))  # type: ignore[no-any-return]


def resnet_of(model: str) -> ResNet:
    """The module behind a file, in eval mode.

    Raises
    ------
    ValueError
        The file's layers are not those of such a network.
    """
    graph = onnx.load(model).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    layers = [[arrays[name] for name in n.input[1:]] for n in graph.node if n.op_type in ("Conv", "Gemm")]
    convolutions = len(layers) - 1 - LAYERS_OUTSIDE
    if convolutions < 1 or convolutions % (2 * len(STAGES)):
        raise ValueError(f"{len(layers)} layers are not those of a CIFAR ResNet")
    module = ResNet(convolutions // (2 * len(STAGES)), len(layers[-1][0])).eval()
    places = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    places.sort(key=lambda m: isinstance(m, nn.Linear))
    for place, (weight, bias) in zip(places, layers, strict=True):
        if place.bias is None or place.weight.shape != weight.shape or place.bias.shape != bias.shape:
            raise ValueError(
                f"a weight of shape {weight.shape} where {tuple(place.weight.shape)} is expected"
            )
        with torch.no_grad():
            place.weight.copy_(torch.tensor(weight))
            place.bias.copy_(torch.tensor(bias))
    return module
