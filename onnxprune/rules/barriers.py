"""Operators that have no rule on purpose, each with its reason: nothing about them could pass, or nobody needs it.

They stand in the way like any operator without a rule (all that they touch keeps its positions), and the reason is
what people are told. `docs/operators.md` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from onnxprune.errors import Reason
from onnxprune.rules.rule import Key

DOMAINS: Mapping[str, str] = MappingProxyType(
    {
        "ai.onnx.ml": "classical machine learning: trees, support vectors, tables of labels, whose attributes hold "
        "what they learned feature by feature",
        "ai.onnx.preview.training": "optimiser steps of training graphs: weights that are written anew have to "
        "keep their shapes",
        "ai.onnx.preview": "experiments of the standard, whose definitions still change",
        "com.ms.internal.nhwc": "made by onnxruntime while it optimises; no file has them",
        "com.microsoft.nchwc": "made by onnxruntime while it optimises, with channels in blocks",
    }
)
"""Domains of which no operator has a rule, and why."""

_SEQUENCE = "a sequence has no axes, and its tensors may differ in shape"
_OPTIONAL = "an optional value has no axes: whether there is a tensor is only known at run time"
_TEXT = "strings: nothing of them is a channel"
_DECODER = "a whole decoding loop, with its model as a subgraph; the interface of that model is fixed"
_PACKED = (
    "sequences of different lengths lie in one axis, told apart by offsets that are only known at run time"
)
_PAGED = "its keys and values lie in blocks that a table addresses at run time"
_HASHES = "integers that are hashed: nothing of them is a channel"
_QUANTISED = "it calculates on quantised values"
_GPU = "onnxruntime makes it for GPUs when it optimises, and has no kernel for CPUs to prove a cut with"
_VENDOR = "the compiled model of another runtime, which cannot be looked into"
_RARE = "no exporter writes it"

_WHY: Mapping[str, Mapping[str, tuple[str, Reason]]] = {
    "": {
        **dict.fromkeys(
            (
                *("ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase"),
                *("SequenceInsert", "SequenceLength", "SequenceMap", "SplitToSequence"),
            ),
            (_SEQUENCE, Reason.NO_AXES),
        ),
        **dict.fromkeys(
            ("Optional", "OptionalGetElement", "OptionalHasElement"), (_OPTIONAL, Reason.NO_AXES)
        ),
        **dict.fromkeys(
            ("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit"), (_TEXT, Reason.NO_AXES)
        ),
        "TfIdfVectorizer": ("it counts patterns of tokens that its attributes list", Reason.NO_AXES),
        "ImageDecoder": ("its input is a compressed file, its output the image", Reason.NO_AXES),
        "Constant": ("it is read as an initializer; what is left are strings", Reason.NO_AXES),
    },
    "com.microsoft": {
        **dict.fromkeys(
            ("BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch", "BifurcationDetector"),
            (_DECODER, Reason.SUBGRAPH),
        ),
        **dict.fromkeys(
            (
                *("PackedAttention", "PackedMultiHeadAttention", "PackedSparseAttentionIndexer"),
                *("RemovePadding", "RestorePadding", "VarlenCausalConvWithState", "GatedDeltaNet"),
            ),
            (_PACKED, Reason.INDEXED),
        ),
        **dict.fromkeys(
            (
                *("DynamicSparseAttention", "PagedAttention", "SparseAttention", "SparseAttentionIndexer"),
                "SparsePagedAttention",
            ),
            (_PAGED, Reason.INDEXED),
        ),
        **dict.fromkeys(
            ("MurmurHash3", "NGramHashMapping", "NGramRepeatBlock", "VarlenNGramHashMapping"),
            (_HASHES, Reason.NO_AXES),
        ),
        **dict.fromkeys(("Tokenizer", "WordConvEmbedding"), (_TEXT, Reason.NO_AXES)),
        **dict.fromkeys(
            ("DequantizeBFP", "DequantizeWithOrder", "GemmFloat8"), (_QUANTISED, Reason.QUANTIZED)
        ),
        **dict.fromkeys(
            (
                *("BiasDropout", "BiasSoftmax", "BitmaskBiasDropout", "BitmaskDropout", "ComplexMul"),
                *("ComplexMulConj", "DecoderAttention", "DecoderMaskedSelfAttention"),
                *("FusedMatMulActivation", "GatedRelativePositionBias", "GemmFastGelu"),
                *("GemmaRotaryEmbedding", "Irfft", "IsAllFinite", "LongformerAttention"),
                *("RelativePositionBias", "Rfft", "TorchEmbedding"),
            ),
            (_GPU, Reason.NO_RULE),
        ),
        **dict.fromkeys(("EPContext", "Snpe"), (_VENDOR, Reason.NO_RULE)),
        **dict.fromkeys(
            (
                *("ConvTransposeWithDynamicPads", "CropAndResize", "DynamicTimeWarping", "ExpandDims"),
                *("GatherND", "GridSample", "Inverse", "MaxpoolWithMask", "NhwcMaxPool", "Pad", "Range"),
                *("SampleOp", "SparseToDenseMatMul", "Trilu", "UnfoldTensor", "Unique", "CDist", "AttnLSTM"),
            ),
            (f"{_RARE}, or it has long been replaced by a standard operator", Reason.NO_RULE),
        ),
        **dict.fromkeys(
            ("BranchwiseRMSNorm", "EngramGate", "GatedRMSNorm"),
            ("it normalises over the channels that it makes", Reason.NORMALIZED),
        ),
        **dict.fromkeys(
            ("HyperConnectionPostMix", "HyperConnectionPreMix"),
            ("streams of the residual are mixed by all layers alike", Reason.NO_RULE),
        ),
        "DecoderMaskedMultiHeadAttention": (
            "onnxruntime makes it inside of a decoding loop, from MultiHeadAttention",
            Reason.NO_RULE,
        ),
        "MRotaryEmbedding": ("pairs of dims are rotated by angles that all heads share", Reason.ROTATED),
        "MoE": ("experts are chosen at run time; onnxruntime's fused form has no reader yet", Reason.INDEXED),
    },
}

BARRIERS: Mapping[Key, tuple[str, Reason]] = MappingProxyType(
    {(domain, op_type): entry for domain, entries in _WHY.items() for op_type, entry in entries.items()}
)
"""Why an operator has no rule, as a clause about the operator, and the reason that its axes are given."""


def barrier_of(key: Key) -> Reason:
    """The reason that the axes of an operator without a rule are given."""
    return BARRIERS[key][1] if key in BARRIERS else Reason.NO_RULE
