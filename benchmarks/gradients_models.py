"""The models of the gradients benchmark: how they are built and exported, and their losses on both sides."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxprune.gradients import CrossEntropy, Loss, NextToken, SquaredError

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import nn

    from benchmarks.families import Sample

EXPORTERS = ("dynamo", "ts")
BATCH = 8
_TOKENS, _VOCABULARY = 64, 1000
_SIZES = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "vocab_size": _VOCABULARY,
    "max_position_embeddings": _TOKENS,
    "pad_token_id": 0,
}
_ENDS = {"use_cache": False, "bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True)
class Subject:
    """A model and its loss.

    Attributes
    ----------
    about
        What is small in it.
    family
        Where the architecture is from.
    build
        Makes the module and its inputs.
    loss
        "classes", "next token" or "squares".
    """

    about: str
    family: str
    build: Callable[[], Sample]
    loss: str = "classes"


def _classifier(name: str, size: int, **options: Any) -> Subject:
    def build() -> Sample:
        families = importlib.import_module("benchmarks.families.torchvision_models")
        sample: Sample = families.classifier(name, size, **options)
        return sample

    return Subject(f"{size} px", "torchvision", build)


def _language(name: str, loss: str, **config: Any) -> Subject:
    def build() -> Sample:
        entries = importlib.import_module("benchmarks.families.transformers_entry")
        draws = {
            "input_ids": entries.Draw((_TOKENS,), _VOCABULARY, {1: "sequence"}),
            "attention_mask": entries.Draw((_TOKENS,), axes={1: "sequence"}, kind="mask"),
        }
        sample: Sample = entries.entry(name, draws, **config)()
        return sample

    return Subject(f"{_TOKENS} tokens, width 256, 4 layers", "transformers", build, loss)


def _whisper() -> Sample:
    import torch

    entries = importlib.import_module("benchmarks.families.transformers_entry")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = entries.build_model(
            "WhisperModel",
            {
                "d_model": 256,
                "encoder_layers": 4,
                "encoder_attention_heads": 4,
                "encoder_ffn_dim": 1024,
                "decoder_layers": 1,
                "decoder_attention_heads": 4,
                "vocab_size": _VOCABULARY,
                "num_mel_bins": 80,
                "max_source_positions": _TOKENS,
                "pad_token_id": 0,
                **_ENDS,
            },
        )
        draws = {"input_features": entries.Draw((80, 2 * _TOKENS))}
        sample: Sample = entries.sample(entries.Positional(whole.get_encoder(), draws, ()), draws)
        return sample


SUBJECTS: Mapping[str, Subject] = {
    "resnet18": _classifier("resnet18", 112),
    "mobilenet_v2": _classifier("mobilenet_v2", 112),
    "densenet121": _classifier("densenet121", 96),
    "convnext_tiny": _classifier("convnext_tiny", 96),
    "vit_b_16": _classifier("vit_b_16", 96, image_size=96),
    "swin_t": _classifier("swin_t", 112),
    "bert": _language("BertForSequenceClassification", "classes", num_labels=5, **_SIZES),
    "gpt2": _language(
        "GPT2LMHeadModel",
        "next token",
        **{"vocab_size": _VOCABULARY, "n_positions": _TOKENS, "n_embd": 256, "n_layer": 4, "n_head": 4},
        **_ENDS,
    ),
    "llama": _language("LlamaForCausalLM", "next token", num_key_value_heads=2, **_SIZES, **_ENDS),
    "whisper encoder": Subject(
        f"{2 * _TOKENS} frames, width 256, 4 layers", "transformers", _whisper, "squares"
    ),
}
"""Name -> what is measured."""


@dataclass
class Case:
    """A module with a batch, and its loss on both sides.

    Attributes
    ----------
    module
        In eval mode.
    inputs
        The batch.
    extra
        What the loss adds to the inputs.
    onnx_loss
        For `build_backward`.
    torch_loss
        From the module's output to a scalar.
    """

    module: nn.Module
    inputs: dict[str, torch.Tensor]
    extra: dict[str, torch.Tensor]
    onnx_loss: Loss
    torch_loss: Callable[[torch.Tensor], torch.Tensor]

    @property
    def feed(self) -> dict[str, Any]:
        """All inputs of the graph with gradients."""
        return {name: tensor.numpy() for name, tensor in {**self.inputs, **self.extra}.items()}

    def loss(self) -> torch.Tensor:
        """Run the module on the batch."""
        return self.torch_loss(self.module(*self.inputs.values()))


def draw(sample: Sample, loss: str, batch: int = BATCH, seed: int = 1) -> Case:
    """Draw a batch for a module, and what its loss wants."""
    import torch
    from torch.nn import functional

    generator = torch.Generator().manual_seed(seed)
    inputs = {name: _batch(tensor, batch, generator) for name, tensor in sample.inputs.items()}
    with torch.no_grad():
        output = sample.module(*inputs.values())
    if loss == "classes":
        labels = torch.randint(0, output.shape[-1], (batch,), generator=generator)
        return Case(
            *(sample.module, inputs, {"labels": labels}, CrossEntropy()),
            lambda logits: functional.cross_entropy(logits, labels, reduction="sum"),
        )
    if loss == "next token":
        ids = inputs["input_ids"][:, 1:].reshape(-1)
        return Case(
            *(sample.module, inputs, {}, NextToken()),
            lambda logits: functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids, reduction="sum"),
        )
    teacher = output + 0.1 * torch.randn(output.shape, generator=generator)
    return Case(
        *(sample.module, inputs, {"teacher": teacher}, SquaredError()),
        lambda found: (found - teacher.to(found.dtype)).square().sum(),
    )


def import_libraries(name: str) -> None:
    """Import what a subject needs, and build nothing."""
    importlib.import_module(f"benchmarks.families.{_MODULES[SUBJECTS[name].family]}")


_MODULES = {"torchvision": "torchvision_models", "transformers": "transformers_entry"}


def _batch(example: torch.Tensor, batch: int, generator: torch.Generator) -> torch.Tensor:
    """A batch like an example; of a mask, its rows again."""
    import torch

    shape = (batch, *example.shape[1:])
    if example.is_floating_point():
        return torch.randn(shape, generator=generator)
    if int(example.max()) == 1:
        return example.repeat(batch // len(example), *[1] * (example.dim() - 1))
    return torch.randint(3, _VOCABULARY, shape, generator=generator)


def export(sample: Sample, exporter: str, plain: bool = False) -> ir.Model:
    """Export a module.

    Parameters
    ----------
    sample
        The module with the inputs to trace it with; its leading axes are symbolic.
    exporter
        One of `EXPORTERS`.
    plain
        Nothing is folded, so that every parameter stays an initializer: by default, exporters put BatchNorm
        into convolutions.
    """
    import onnx
    import onnx_ir as ir
    import torch

    from benchmarks.zoo import quiet

    inputs = tuple(sample.inputs.values())
    with quiet():
        if exporter == "dynamo":
            shapes = tuple(
                dict.fromkeys(sample.dynamic.get(name, {}), torch.export.Dim.DYNAMIC)
                for name in sample.inputs
            )
            program = torch.onnx.export(
                *(sample.module, inputs),
                **{"dynamo": True, "optimize": not plain, "verbose": False},
                **{"input_names": list(sample.inputs), "dynamic_shapes": shapes},
            )
            return ir.from_proto(program.model_proto)
        buffer = io.BytesIO()
        modes = torch.onnx.TrainingMode
        torch.onnx.export(
            *(sample.module, inputs, buffer),
            **{"dynamo": False, "opset_version": 17, "input_names": list(sample.inputs)},
            dynamic_axes={name: dict(dims) for name, dims in sample.dynamic.items()},
            do_constant_folding=not plain,
            training=modes.PRESERVE if plain else modes.EVAL,
        )
        return ir.from_proto(onnx.load_from_string(buffer.getvalue()))
