"""Very deep decoders of the transformers library, as PyTorch's exporters write them: graphs of other people.

The widths are tiny and the weights random: what counts is the number of nodes. The TorchScript exporter writes a
layer of Llama as some 240 nodes, the one of `torch.export` as 67; the latter takes minutes for 300 layers.

    python -m benchmarks.deep llama ts 20000 build/deep/llama.onnx
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import onnx
import torch

from benchmarks.families.transformers_entry import Positional, build_model
from benchmarks.zoo import EXPORTERS, Exporter, quiet

VOCABULARY = 96
NAMES = ("input_ids", "attention_mask")
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": (
        "LlamaForCausalLM",
        "num_hidden_layers",
        {
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 64,
        },
    ),
    "gpt2": ("GPT2LMHeadModel", "n_layer", {"n_embd": 32, "n_head": 4, "n_positions": 64}),
}
"""Class, the name of its number of layers, and the rest of its configuration."""


def export(kind: str, layers: int, exporter: Exporter, path: Path) -> int:
    """Export one decoder with symbolic batch and length, and count its nodes."""
    name, depth, config = MODELS[kind]
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "use_cache": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Positional(build_model(name, config | tokens | {depth: layers}), NAMES, ("logits",)).eval()
        ids = torch.randint(3, VOCABULARY, (2, 12))
    inputs = (ids, torch.ones_like(ids))
    axes = {0: "batch", 1: "sequence"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with quiet():
        if exporter == "dynamo":
            dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
            torch.onnx.export(
                module,
                inputs,
                str(path),
                dynamo=True,
                external_data=False,
                input_names=list(NAMES),
                output_names=["logits"],
                dynamic_shapes=(dims, dims, None),
            )
        else:
            torch.onnx.export(
                module,
                inputs,
                str(path),
                dynamo=False,
                input_names=list(NAMES),
                output_names=["logits"],
                dynamic_axes=dict.fromkeys((*NAMES, "logits"), axes),
            )
    return len(onnx.load(path, load_external_data=False).graph.node)


def export_nodes(kind: str, exporter: Exporter, nodes: int, path: str) -> dict[str, Any]:
    """Export the shallowest decoder of a kind that has at least `nodes` nodes."""
    with tempfile.TemporaryDirectory() as folder:
        two, three = (export(kind, layers, exporter, Path(folder) / "small.onnx") for layers in (2, 3))
    each = three - two
    layers = 2 + max(-(-(nodes - two) // each), 0)
    return {"layers": layers, "nodes": export(kind, layers, exporter, Path(path))}


def main(arguments: list[str] | None = None) -> int:
    """Export one decoder."""
    parser = argparse.ArgumentParser(prog="benchmarks.deep", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=list(MODELS))
    parser.add_argument("exporter", choices=list(EXPORTERS))
    parser.add_argument("nodes", type=int)
    parser.add_argument("path")
    options = parser.parse_args(arguments)
    made = export_nodes(options.kind, options.exporter, options.nodes, options.path)
    print(f"{options.path}: {made['layers']} layers, {made['nodes']:,} nodes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
