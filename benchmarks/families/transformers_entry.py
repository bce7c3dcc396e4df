"""How one small random-weight model of the transformers library is built, with its example inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from torch import nn

from benchmarks.families import Sample
from benchmarks.families.randomise import randomise
from benchmarks.families.statistics import settle_statistics
from benchmarks.torchvision_shim import import_torchvision

BATCH = 2
SETTLING_BATCH = 16  # two images do not make a variance
VOCABULARY = 320
Builder = Callable[[], Sample]


@dataclass(frozen=True)
class Draw:
    """How an example input is drawn: `shape` without the batch; floats, or token ids below `high`.

    `axes` names the dynamic dimensions beside the batch. A ``"mask"`` is of ones with a padded end in its last
    row; ``"boxes"`` have their corners in order.
    """

    shape: tuple[int, ...]
    high: int = 0
    axes: Mapping[int, str] | None = None
    kind: Literal["plain", "mask", "boxes"] = "plain"

    def tensor(self, batch: int = BATCH) -> torch.Tensor:
        """Draw the example from torch's global generator."""
        shape = (batch, *self.shape)
        if self.kind == "mask":
            ones = torch.ones(shape, dtype=torch.int64)
            ones[-1, -3:] = 0
            return ones
        drawn = torch.randint(3, self.high, shape) if self.high else torch.randn(shape)
        return drawn.sort(-1).values if self.kind == "boxes" else drawn


class Positional(nn.Module):
    """A transformers model called with positional tensors, giving tensors only."""

    def __init__(self, model: nn.Module, names: Iterable[str], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)
        self.outputs = outputs

    def forward(
        self, first: torch.Tensor, second: torch.Tensor | None = None, third: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Call the model with its inputs by name."""
        tensors = dict(zip(self.names, (first, second, third), strict=False))
        result = self.model(**tensors)
        if isinstance(result, torch.Tensor):
            return result
        picked = tuple(result[name] for name in self.outputs) or (result[0],)
        return picked[0] if len(picked) == 1 else picked


def sample(module: nn.Module, draws: Mapping[str, Draw]) -> Sample:
    """Give `module` its final weights, and draw its inputs."""
    randomise(module)
    _strengthen(module)
    inputs = {name: draw.tensor() for name, draw in draws.items()}
    dynamic = {name: {0: "batch"} | dict(draw.axes or {}) for name, draw in draws.items()}
    settle_statistics(module, tuple(draw.tensor(SETTLING_BATCH) for draw in draws.values()))
    return Sample(module.eval(), inputs, dynamic)


def _strengthen(module: nn.Module) -> None:
    """Scale weights drawn with a fixed small deviation up to what keeps the size of a signal.

    With the published deviations (0.02 for any width) a small model's output is its last bias.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() < 2 or "embed" in name or "original" in name:  # lookups and weight norms
                continue
            is_experts = parameter.dim() == 3 and "expert" in name
            fan_in = parameter.shape[-1] if is_experts else parameter[0].numel()
            deviation = float(parameter.std())
            if 0 < deviation < 0.5 * fan_in**-0.5:
                parameter *= fan_in**-0.5 / deviation
        for name, buffer in module.named_buffers():
            if name.endswith("codebook.embed"):  # zeros until k-means fills them
                buffer.normal_()


def build_model(name: str, config: dict[str, Any]) -> nn.Module:
    """Build the model class `name` from a configuration that differs from its default by `config`."""
    with contextlib.suppress(ImportError):  # transformers imports torchvision where there is one
        import_torchvision()
    kind = getattr(transformers, name)
    settings = {"attn_implementation": "eager", **deepcopy(config)}
    model: nn.Module = kind(kind.config_class(**settings))
    return model


def entry(name: str, draws: Mapping[str, Draw], *, outputs: tuple[str, ...] = (), **config: Any) -> Builder:
    """Give a builder of model class `name`: its inputs, the outputs kept (the first), its configuration."""

    def build() -> Sample:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = Positional(build_model(name, config), draws, outputs)
            return sample(module, draws)

    return build


TOKENS = {"input_ids": Draw((12,), VOCABULARY, {1: "sequence"})}
MASKED = TOKENS | {"attention_mask": Draw((12,), axes={1: "sequence"}, kind="mask")}
UNROLLED = {"input_ids": Draw((12,), VOCABULARY)}  # for models whose length the exporters freeze
IMAGE = {"pixel_values": Draw((3, 64, 64))}
WAVE = {"input_values": Draw((2000,), axes={1: "samples"})}
TEXT_TO_TEXT = TOKENS | {"decoder_input_ids": Draw((7,), VOCABULARY, {1: "target"})}
SPEECH_TO_TEXT = {
    "input_features": Draw((16, 48)),
    "decoder_input_ids": Draw((7,), VOCABULARY, {1: "target"}),
}

# FFNs four times as wide as the stream, as published; with two layers, heads and patch embeddings weigh too much.
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 256,
}
TEXT = SIZES | {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "pad_token_id": 0}
