"""torchvision architectures with random weights as ONNX files, written by either of PyTorch's exporters.

Structure is what pruning tools stumble over, not the values of the weights; so the models are seeded, not
downloaded. BatchNorm statistics are taken from noise and then perturbed, so that signals neither vanish nor
explode on the way and no channel is like another.

    python -m benchmarks.zoo resnet18 vit_b_16 --exporter dynamo --folder build/zoo
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn

from benchmarks.torchvision_shim import import_torchvision

logger = logging.getLogger(__name__)

Exporter = Literal["dynamo", "ts"]
EXPORTERS: tuple[Exporter, ...] = get_args(Exporter)
NAMES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "mobilenet_v2",
    "densenet121",
    "shufflenet_v2_x1_0",
    "googlenet",
    "efficientnet_b0",
    "vit_b_16",
)
INPUT_SHAPE = (3, 224, 224)
DEFAULT_FOLDER = Path("build/zoo")

_OPTIONS: dict[str, dict[str, bool]] = {
    "googlenet": {"aux_logits": False, "init_weights": False, "transform_input": False},
}


@dataclass(frozen=True)
class Exported:
    """One exported model.

    Attributes
    ----------
    path
        The ONNX file; weights inside.
    dynamic_batch
        False where the exporter refused a symbolic batch, and the file is fixed at batch 1.
    """

    path: Path
    dynamic_batch: bool


def build(name: str, seed: int = 0) -> nn.Module:
    """Build a torchvision model with seeded random weights, in eval mode.

    Parameters
    ----------
    name
        One of `NAMES`.
    seed
        Seed of the weights and of the noise that the BatchNorm statistics are taken from. The caller's random
        state is left as it was.

    Returns
    -------
    nn.Module
        Takes float32 ``(N, 3, 224, 224)``, gives ``(N, 1000)`` logits.
    """
    if name not in NAMES:
        raise ValueError(f"unknown model {name!r}: choose from {', '.join(NAMES)}")
    models = import_torchvision().models
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = getattr(models, name)(weights=None, **_OPTIONS.get(name, {}))
        _randomise(model)
    return model.eval()


def export(
    name: str, exporter: Exporter, out_path: str | Path, opset: int | None = None, seed: int = 0
) -> Exported:
    """Export one model, unless `out_path` exists already.

    Parameters
    ----------
    name
        One of `NAMES`.
    exporter
        ``"dynamo"`` (``torch.export``-based) or ``"ts"`` (TorchScript tracing; folds BatchNorm into Conv).
    out_path
        The file to write; its folder is made.
    opset
        Opset version; the exporter's default where None.
    seed
        See `build`.

    Returns
    -------
    Exported
        Where the file is, and whether its batch is symbolic.
    """
    path = Path(out_path)
    if not path.exists():
        export_module(build(name, seed), INPUT_SHAPE, exporter, path, opset)
    return Exported(path, _has_dynamic_batch(path))


def export_module(
    module: nn.Module,
    input_shape: tuple[int, ...],
    exporter: Exporter,
    out_path: Path,
    opset: int | None = None,
) -> None:
    """Export `module` with input ``input`` and output ``logits``: symbolic batch, else batch 1.

    Parameters
    ----------
    module
        A classifier in eval mode.
    input_shape
        Shape of one sample.
    exporter
        See `export`.
    out_path
        The file to write, appearing whole or not at all.
    opset
        See `export`.
    """
    if exporter not in EXPORTERS:
        raise ValueError(f"unknown exporter {exporter!r}: choose from {', '.join(EXPORTERS)}")
    write = _export_dynamo if exporter == "dynamo" else _export_ts
    out_path.parent.mkdir(parents=True, exist_ok=True)
    partial = out_path.with_name(f"{out_path.stem}.{os.getpid()}.partial")
    try:
        with quiet():
            try:
                write(module, torch.zeros(2, *input_shape), partial, opset, True)
            except Exception as error:  # the exporters raise whatever they met inside the model
                logger.warning("%s: no symbolic batch with %s (%s); batch 1", out_path.name, exporter, error)
                write(module, torch.zeros(1, *input_shape), partial, opset, False)
        partial.replace(out_path)
    finally:
        partial.unlink(missing_ok=True)


def fetch(name: str, exporter: Exporter, folder: str | Path = DEFAULT_FOLDER) -> Exported:
    """Give ``folder/NAME.onnx`` (dynamo) or ``folder/NAME_ts.onnx``, exporting it the first time."""
    suffix = "_ts" if exporter == "ts" else ""
    return export(name, exporter, Path(folder) / f"{name}{suffix}.onnx")


def _export_dynamo(module: nn.Module, x: torch.Tensor, path: Path, opset: int | None, dynamic: bool) -> None:
    shapes = ({0: torch.export.Dim("batch", min=1)},) if dynamic else None
    torch.onnx.export(
        module,
        (x,),
        str(path),
        dynamo=True,
        external_data=False,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=shapes,
        opset_version=opset,
    )


def _export_ts(module: nn.Module, x: torch.Tensor, path: Path, opset: int | None, dynamic: bool) -> None:
    torch.onnx.export(
        module,
        (x,),
        str(path),
        dynamo=False,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}} if dynamic else None,
        opset_version=opset,
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what the exporters print, and keep attention in the operators that every runtime knows."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _randomise(model: nn.Module) -> None:
    """Make the norms' parameters and statistics individual, and fill parameters that start at zero."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0.0, 0.1)
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0.0, 0.02)
        if norms:
            _measure_statistics(model, norms)
        for norm in norms:
            norm.running_mean += 0.1 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.7, 1.4)


def _measure_statistics(model: nn.Module, norms: list[nn.BatchNorm2d]) -> None:
    model.eval()  # dropout and stochastic depth off; only the norms learn
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    model(torch.randn(8, *INPUT_SHAPE))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


def _has_dynamic_batch(path: Path) -> bool:
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return bool(graph.input[0].type.tensor_type.shape.dim[0].dim_param)


def compare(exported: Exported, model: nn.Module) -> tuple[float, float]:
    """Run the file in onnxruntime and the module in PyTorch on the same noise.

    Returns
    -------
    tuple of float
        Largest absolute difference and largest absolute logit.
    """
    import onnxruntime

    batch = 3 if exported.dynamic_batch else 1
    x = torch.randn(batch, *INPUT_SHAPE, generator=torch.Generator().manual_seed(1))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(exported.path), options, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected = model(x)
    return float((torch.from_numpy(got) - expected).abs().max()), float(expected.abs().max())


def main(arguments: list[str] | None = None, echo: Callable[[str], object] = print) -> int:
    """Export the named models and say how each came out."""
    parser = argparse.ArgumentParser(prog="benchmarks.zoo", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(NAMES)}")
    parser.add_argument("--exporter", choices=[*EXPORTERS, "both"], default="both")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--check", action="store_true", help="compare onnxruntime with PyTorch")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - set(NAMES)):
        parser.error(f"unknown model: {', '.join(unknown)}")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    failures = 0
    for name in options.names or NAMES:
        for exporter in EXPORTERS if options.exporter == "both" else (options.exporter,):
            started = time.perf_counter()
            try:
                exported = fetch(name, exporter, options.folder)
            except Exception as error:  # one model that does not export must not hide the others
                echo(f"{name:20} {exporter:6} failed: {type(error).__name__}: {error}")
                failures += 1
                continue
            seconds, megabytes = time.perf_counter() - started, exported.path.stat().st_size / 1e6
            batch = "symbolic" if exported.dynamic_batch else "1"
            line = f"{name:20} {exporter:6} {megabytes:8.1f} MB  batch {batch:8} {seconds:6.1f} s"
            if options.check:
                difference, largest = compare(exported, build(name))
                line += f"  max diff {difference:.1e} of {largest:.2f}"
            echo(line)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
