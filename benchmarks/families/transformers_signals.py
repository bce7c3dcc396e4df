"""Vision, audio and multimodal models of the transformers library."""

from __future__ import annotations

from benchmarks.families.transformers_entry import (
    IMAGE,
    SIZES,
    TEXT,
    TOKENS,
    WAVE,
    Builder,
    Draw,
    entry,
)

_VISION = SIZES | {"image_size": 64, "patch_size": 16}

_STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64]}
_SWIN = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 32,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
_PYRAMID = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [16, 32, 48, 64],
    "num_attention_heads": [1, 2, 3, 4],
    "sr_ratios": [4, 2, 2, 1],
    "decoder_hidden_size": 32,
}
_DETR = {
    "num_queries": 6,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 96,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 16,
        "out_features": ["stage4"],
        **_STAGES,
    },
}
_RT_DETR = {
    "num_queries": 6,
    "d_model": 32,
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [32, 48, 64],
    "encoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "decoder_in_channels": [32, 32, 32],
    "decoder_ffn_dim": 48,
    "decoder_attention_heads": 4,
    "decoder_layers": 2,
    "backbone_config": {
        "model_type": "rt_detr_resnet",
        "layer_type": "basic",
        "embedding_size": 16,
        "out_features": ["stage2", "stage3", "stage4"],
        **_STAGES,
    },
}

VISION = {
    "vit": entry("ViTForImageClassification", IMAGE, num_labels=5, **_VISION),
    "deit": entry(
        "DeiTForImageClassificationWithTeacher",
        IMAGE,
        outputs=("cls_logits", "distillation_logits"),
        num_labels=5,
        attn_implementation="sdpa",
        **_VISION,
    ),
    "beit": entry(
        "BeitForImageClassification", IMAGE, use_relative_position_bias=True, num_labels=5, **_VISION
    ),
    "dinov2": entry("Dinov2Model", IMAGE, mlp_ratio=2, **_VISION),
    "dinov2_swiglu": entry("Dinov2Model", IMAGE, mlp_ratio=2, use_swiglu_ffn=True, **_VISION),
    "swin": entry("SwinForImageClassification", IMAGE, num_labels=5, **_SWIN),
    "swinv2": entry("Swinv2ForImageClassification", IMAGE, num_labels=5, **_SWIN),
    "segformer": entry("SegformerForSemanticSegmentation", IMAGE, num_labels=5, **_PYRAMID),
    "convnext": entry("ConvNextForImageClassification", IMAGE, num_labels=5, **_STAGES),
    "convnextv2": entry("ConvNextV2ForImageClassification", IMAGE, num_labels=5, **_STAGES),
    "mobilevit": entry(
        "MobileViTForImageClassification",
        IMAGE,
        image_size=64,
        hidden_sizes=[32, 40, 48],
        neck_hidden_sizes=[16, 16, 24, 32, 40, 48, 64],
        num_attention_heads=4,
        num_labels=5,
    ),
    "mobilevitv2": entry(
        "MobileViTV2ForImageClassification", IMAGE, image_size=64, width_multiplier=0.25, num_labels=5
    ),
    "dpt": entry(
        "DPTForSemanticSegmentation",
        IMAGE,
        num_labels=5,
        use_auxiliary_head=False,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 24, 32, 48],
        fusion_hidden_size=32,
        **(_VISION | {"num_hidden_layers": 4}),
    ),
    "yolos": entry(
        "YolosForObjectDetection",
        IMAGE,
        outputs=("logits", "pred_boxes"),
        num_detection_tokens=6,
        num_labels=5,
        **(_VISION | {"image_size": [64, 64]}),
    ),
    "levit": entry(
        "LevitForImageClassification",
        IMAGE,
        image_size=64,
        hidden_sizes=[32, 48, 64],
        num_attention_heads=[2, 3, 4],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
        num_labels=5,
    ),
    "poolformer": entry("PoolFormerForImageClassification", IMAGE, num_labels=5, **_STAGES),
    "pvt": entry(
        "PvtForImageClassification",
        IMAGE,
        image_size=64,
        sequence_reduction_ratios=[4, 2, 2, 1],
        num_labels=5,
        **_PYRAMID,
    ),
    "pvt_v2": entry("PvtV2ForImageClassification", IMAGE, image_size=64, num_labels=5, **_PYRAMID),
    "cvt": entry(
        "CvtForImageClassification",
        IMAGE,
        embed_dim=[16, 32, 64],
        num_heads=[1, 2, 4],
        depth=[1, 2, 3],
        num_labels=5,
    ),
    "focalnet": entry(
        "FocalNetForImageClassification",
        IMAGE,
        image_size=64,
        embed_dim=16,
        num_labels=5,
        use_layerscale=True,
        **_STAGES,
    ),
    "hiera": entry(
        "HieraForImageClassification",
        IMAGE,
        image_size=[64, 64],
        embed_dim=16,
        depths=[1, 1, 1],
        num_heads=[1, 2, 4],
        num_query_pool=2,
        masked_unit_size=[4, 4],
        masked_unit_attention=[True, True, False],
        num_labels=5,
    ),
    "glpn": entry("GLPNForDepthEstimation", IMAGE, **_PYRAMID),
    "regnet": entry(
        "RegNetForImageClassification",
        IMAGE,
        embedding_size=16,
        groups_width=8,
        layer_type="y",
        num_labels=5,
        **_STAGES,
    ),
    "resnet": entry("ResNetForImageClassification", IMAGE, embedding_size=16, num_labels=5, **_STAGES),
    "bit": entry(
        "BitForImageClassification", IMAGE, embedding_size=16, num_groups=8, num_labels=5, **_STAGES
    ),
    "efficientnet": entry(
        "EfficientNetForImageClassification",
        IMAGE,
        width_coefficient=0.25,
        depth_coefficient=0.3,
        hidden_dim=320,
        num_labels=5,
    ),
    "mobilenet_v2": entry("MobileNetV2ForImageClassification", IMAGE, depth_multiplier=0.25, num_labels=5),
    "swiftformer": entry(
        "SwiftFormerForImageClassification",
        IMAGE,
        image_size=64,
        depths=[1, 1, 1, 1],
        embed_dims=[16, 24, 32, 48],
        num_labels=5,
    ),
    "detr": entry("DetrForObjectDetection", IMAGE, outputs=("logits", "pred_boxes"), num_labels=5, **_DETR),
    "rt_detr": entry(
        "RTDetrForObjectDetection", IMAGE, outputs=("logits", "pred_boxes"), num_labels=5, **_RT_DETR
    ),
    "upernet": entry(
        "UperNetForSemanticSegmentation",
        IMAGE,
        hidden_size=32,
        pool_scales=[1, 2],
        use_auxiliary_head=False,
        num_labels=5,
        backbone_config={
            "model_type": "convnext",
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
            **_STAGES,
        },
    ),
    "videomae": entry(
        "VideoMAEForVideoClassification",
        {"pixel_values": Draw((4, 3, 32, 32))},
        num_frames=4,
        num_labels=5,
        **(_VISION | {"image_size": 32}),
    ),
    "vitdet": entry(
        "VitDetModel",
        IMAGE,
        window_block_indices=[0],
        window_size=2,
        use_relative_position_embeddings=True,
        mlp_ratio=2,
        **_VISION,
    ),
}

_WAVE = SIZES | {
    "vocab_size": 32,
    "conv_dim": [32, 32, 32],
    "conv_stride": [5, 4, 4],
    "conv_kernel": [10, 8, 4],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_TOWERS = {
    "text_config": TEXT | {"bos_token_id": 1, "eos_token_id": 2, "projection_dim": 48},
    "vision_config": _VISION | {"projection_dim": 48},
    "projection_dim": 48,
}
PAIR = TOKENS | IMAGE
_CONTRAST = ("logits_per_image", "text_embeds", "image_embeds")

_ENCODEC = {
    "num_filters": 8,
    "hidden_size": 32,
    "upsampling_ratios": [4, 2, 2],
    "num_lstm_layers": 1,
    "codebook_size": 32,
    "target_bandwidths": [1.5],
    "sampling_rate": 1600,
}
_DAC = {
    "encoder_hidden_size": 8,
    "downsampling_ratios": [2, 4],
    "upsampling_ratios": [4, 2],
    "decoder_hidden_size": 32,
    "n_codebooks": 2,
    "codebook_size": 32,
    "codebook_dim": 4,
}
AUDIO = {
    "wav2vec2": entry("Wav2Vec2ForCTC", WAVE, **_WAVE),
    "wav2vec2_conformer": entry("Wav2Vec2ConformerForCTC", WAVE, **_WAVE),
    "hubert": entry("HubertForSequenceClassification", WAVE, num_labels=5, classifier_proj_size=32, **_WAVE),
    "wavlm": entry("WavLMModel", WAVE, num_buckets=8, max_bucket_distance=16, **_WAVE),
    "sew": entry("SEWForCTC", {"input_values": Draw((2000,))}, squeeze_factor=2, **_WAVE),
    "unispeech": entry("UniSpeechForCTC", WAVE, num_ctc_classes=32, **_WAVE),
    "ast": entry(
        "ASTForAudioClassification",
        {"input_values": Draw((48, 32))},
        num_mel_bins=32,
        max_length=48,
        patch_size=8,
        time_stride=8,
        frequency_stride=8,
        num_labels=5,
        **SIZES,
    ),
    "clap_audio": entry(
        "ClapAudioModelWithProjection",
        {"input_features": Draw((1, 64, 16))},
        spec_size=64,
        num_mel_bins=16,
        patch_embeds_hidden_size=16,
        hidden_size=32,
        depths=[2, 2],
        num_attention_heads=[2, 4],
        window_size=4,
        num_hidden_layers=2,
        projection_dim=32,
    ),
    "encodec": entry("EncodecModel", {"input_values": Draw((1, 640))}, outputs=("audio_values",), **_ENCODEC),
    "dac": entry("DacModel", {"input_values": Draw((1, 640))}, outputs=("audio_values",), **_DAC),
    "speecht5_hifigan": entry(
        "SpeechT5HifiGan",
        {"spectrogram": Draw((12, 16), axes={1: "frames"})},
        model_in_dim=16,
        upsample_initial_channel=32,
        upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3, 5],
        resblock_dilation_sizes=[[1, 3], [1, 3]],
    ),
}

MULTIMODAL = {
    "clip": entry("CLIPModel", PAIR, outputs=_CONTRAST, **_TOWERS),
    "siglip": entry("SiglipModel", PAIR, outputs=_CONTRAST, **_TOWERS),
    "blip_text_image": entry("BlipForImageTextRetrieval", PAIR, image_text_hidden_size=32, **_TOWERS),
    "owlvit": entry("OwlViTModel", PAIR, outputs=_CONTRAST, **_TOWERS),
    "groupvit": entry(
        "GroupViTModel",
        PAIR,
        outputs=_CONTRAST,
        projection_intermediate_dim=64,
        **(
            _TOWERS
            | {
                "vision_config": _VISION
                | {"depths": [1, 1, 1], "num_group_tokens": [0, 8, 4], "num_output_groups": [0, 8, 4]}
            }
        ),
    ),
    "patchtst": entry(
        "PatchTSTForPrediction",
        {"past_values": Draw((48, 3))},
        context_length=48,
        num_input_channels=3,
        patch_length=8,
        patch_stride=8,
        d_model=32,
        ffn_dim=64,
        num_attention_heads=4,
        num_hidden_layers=2,
        prediction_length=6,
        loss="mse",
        channel_attention=True,
    ),
    "layoutlmv3": entry(
        "LayoutLMv3Model",
        TOKENS | {"bbox": Draw((12, 4), 60, {1: "sequence"}, "boxes")} | IMAGE,
        max_2d_position_embeddings=64,
        input_size=64,
        coordinate_size=11,
        shape_size=10,
        **(TEXT | {"patch_size": 16}),
    ),
}

SIGNAL_MODELS: dict[str, Builder] = {**VISION, **AUDIO, **MULTIMODAL}
