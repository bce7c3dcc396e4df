"""Train the small models of this folder on scikit-learn's digits; export them with both PyTorch exporters.

    python models/train.py [resnet] [vit]

Writes ``digits_NAME.onnx`` (``torch.export``-based exporter), ``digits_NAME_ts.onnx`` (TorchScript exporter,
the same weights), and the data: ``digits_calib.npz``, ``digits_test.npz``. Prints test accuracies, measured
with onnxruntime.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

FOLDER = Path(__file__).parent
SEED = 0
TEST_IMAGES = 597
CALIBRATION_IMAGES = 512
MEAN, STD = 0.305, 0.376  # of the pixels, scaled to [0, 1]

Split = tuple[Tensor, Tensor]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: the identity, or a 1x1 projection where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitsResNet(nn.Module):
    """A residual network of three stages on 8 x 8 images."""

    def __init__(self, widths: tuple[int, ...] = (32, 48, 64), blocks: tuple[int, ...] = (2, 2, 1)) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]))
        stages, channels = [], widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for block in range(count):
                stages.append(ResidualBlock(channels, width, 2 if stage and not block else 1))
                channels = width
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem(x)))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, dim))


class TransformerBlock(nn.Module):
    """Attention and an MLP, each behind a LayerNorm and beside an identity."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class DigitsViT(nn.Module):
    """A vision transformer on 8 x 8 images: 16 patches of 2 x 2 and a class token."""

    def __init__(self, dim: int = 64, depth: int = 4, heads: int = 4, hidden: int = 192) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, 2, 2)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 17, dim))
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


def split_digits() -> tuple[Split, Split, Split]:
    """Split the digits into training, calibration and test images.

    The test images are in neither of the others. The calibration images are a part of the training images, as
    they are for a model that somebody else trained.
    """
    digits = load_digits()
    images = ((digits.images / 16 - MEAN) / STD).astype(np.float32)[:, None]
    indices = np.arange(len(images))
    train, test = train_test_split(indices, test_size=TEST_IMAGES, stratify=digits.target, random_state=SEED)
    _, calibration = train_test_split(
        train, test_size=CALIBRATION_IMAGES, stratify=digits.target[train], random_state=SEED
    )
    return tuple(
        (torch.from_numpy(images[part]), torch.from_numpy(digits.target[part]))
        for part in (train, calibration, test)
    )


def augment(images: Tensor) -> Tensor:
    """Move each image by up to a pixel, turn it by up to 10 degrees, scale it by up to 10 %, add noise."""
    count = len(images)
    angle = (torch.rand(count) * 2 - 1) * 0.175
    scale = 1 + (torch.rand(count) * 2 - 1) * 0.1
    shift = (torch.rand(count, 2) * 2 - 1) * 0.25
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack(
        [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    background = -MEAN / STD
    moved = F.grid_sample(images - background, grid, align_corners=False) + background
    return moved + 0.05 * torch.randn_like(moved)


def train(model: nn.Module, data: Split, epochs: int, peak_rate: float, batch: int = 64) -> None:
    """Train `model` in place: AdamW, one cycle of the learning rate, label smoothing."""
    images, labels = data
    steps = len(images) // batch
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak_rate, epochs=epochs, steps_per_epoch=steps, pct_start=0.2
    )
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images))[: steps * batch].view(steps, batch)
        for chosen in order:
            loss = F.cross_entropy(model(augment(images[chosen])), labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def export(model: nn.Module, path: Path, dynamo: bool) -> None:
    """Export with a symbolic batch, everything in one file.

    The TorchScript exporter is told to preserve the mode, because in its inference mode it folds
    BatchNormalization into the convolutions; so one of the files has the nodes.
    """
    x = torch.zeros(2, 1, 8, 8)
    names = {"input_names": ["input"], "output_names": ["logits"]}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("batch", min=1)},)
            torch.onnx.export(
                model, (x,), str(path), dynamo=True, external_data=False, dynamic_shapes=shapes, **names
            )
        else:
            torch.onnx.export(
                model,
                (x,),
                str(path),
                dynamo=False,
                dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
                training=torch.onnx.TrainingMode.PRESERVE,
                **names,
            )
    strip(path)


def strip(path: Path) -> None:
    """Remove metadata and doc strings: stack traces in them carry file paths of the machine that exported."""
    model = onnx.load(path)
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in (model, graph, *graph.node, *values, *model.functions):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def accuracy(path: Path, data: Split) -> float:
    """Share of images that the exported model puts into the right class."""
    images, labels = data
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": images.numpy()})
    return float((logits.argmax(1) == labels.numpy()).mean())


RECIPES = {
    "resnet": (DigitsResNet, {"epochs": 60, "peak_rate": 4e-3}),
    "vit": (DigitsViT, {"epochs": 150, "peak_rate": 2e-3}),
}


def main() -> None:
    """Train the named models, export them, write the data."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "names", nargs="*", default=list(RECIPES), metavar="NAME", help="resnet, vit; default: both"
    )
    names = parser.parse_args().names
    if unknown := sorted(set(names) - set(RECIPES)):
        parser.error(f"unknown model: {', '.join(unknown)}")
    torch.set_num_threads(1)
    training, calibration, test = split_digits()
    for part, (images, labels) in {"calib": calibration, "test": test}.items():
        np.savez_compressed(FOLDER / f"digits_{part}.npz", input=images.numpy(), labels=labels.numpy())
    for name in names:
        make, recipe = RECIPES[name]
        torch.manual_seed(SEED)
        model = make()
        train(model, training, **recipe)
        for dynamo in (True, False):
            path = FOLDER / f"digits_{name}{'' if dynamo else '_ts'}.onnx"
            export(model, path, dynamo)
            size = path.stat().st_size
            print(f"{path.name:22} {size / 1e3:7.0f} kB  top-1 {accuracy(path, test):.2%} of {TEST_IMAGES}")


if __name__ == "__main__":
    main()
