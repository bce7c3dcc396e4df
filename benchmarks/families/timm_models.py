"""timm's architectures, one or more per family, the smallest variants; deep ones cut down to a few blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.families import Sample
from benchmarks.families.randomise import randomise
from benchmarks.families.statistics import settle_statistics
from benchmarks.torchvision_shim import import_torchvision

import_torchvision()
import timm  # noqa: E402  (torchvision has to come first)

_SIZE = 128
_VIT = {"depth": 3, "img_size": 64}
_NARROW = {"embed_dim": 192, "num_heads": 3, **_VIT}

# name -> (pixels; None: the architecture's own, options of the constructor)
_VARIANTS: dict[str, tuple[int | None, dict[str, Any]]] = {
    "beit_base_patch16_224": (64, _NARROW),
    "halonet_h1": (None, {}),
    "lambda_resnet26t": (None, {}),
    "eca_botnext26ts_256": (None, {}),
    "mobileone_s1": (_SIZE, {}),
    "repvgg_a0": (_SIZE, {}),
    "cait_xxs24_224": (64, _VIT),
    "coat_lite_tiny": (None, {}),
    "convit_tiny": (64, _VIT),
    "convmixer_768_32": (_SIZE, {}),
    "convnext_atto": (_SIZE, {}),
    "convnextv2_atto": (_SIZE, {}),
    "cpubone_nano": (_SIZE, {}),
    "crossvit_tiny_240": (None, {}),
    "csatv2": (None, {}),
    "cs3darknet_focus_s": (_SIZE, {}),
    "cspresnet50": (_SIZE, {}),
    "cspnext_tiny": (_SIZE, {}),
    "davit_tiny": (None, {}),
    "deit_tiny_distilled_patch16_224": (64, _VIT),
    "densenetblur121d": (_SIZE, {}),
    "dla46x_c": (_SIZE, {}),
    "dpn48b": (_SIZE, {}),
    "edgenext_xx_small": (_SIZE, {}),
    "efficientformer_l1": (None, {}),
    "efficientformerv2_s0": (None, {}),
    "efficientnet_b0": (_SIZE, {}),
    "tf_efficientnetv2_b0": (_SIZE, {}),
    "mixnet_s": (_SIZE, {}),
    "efficientvim_m1": (None, {}),
    "efficientvit_b0": (_SIZE, {}),
    "efficientvit_m0": (None, {}),
    "eva02_tiny_patch14_224": (56, {"depth": 3, "img_size": 56}),
    "fasternet_t0": (_SIZE, {}),
    "fastvit_t8": (_SIZE, {}),
    "focalnet_tiny_srf": (_SIZE, {}),
    "gcvit_xxtiny": (None, {}),
    "ghostnet_100": (_SIZE, {}),
    "ghostnetv2_100": (_SIZE, {}),
    "hardcorenas_a": (_SIZE, {}),
    "hgnetv2_b0": (_SIZE, {}),
    "hiera_tiny_224": (None, {}),
    "hrnet_w18_small": (_SIZE, {}),
    "iformer_t": (None, {}),
    "inception_next_atto": (_SIZE, {}),
    "inception_v4": (_SIZE, {}),
    "lcnetv2_small": (_SIZE, {}),
    "levit_128s": (None, {}),
    "lowformer_b0": (_SIZE, {}),
    "mambaout_femto": (_SIZE, {}),
    "coatnet_pico_rw_224": (None, {}),
    "poolformer_s12": (_SIZE, {}),
    "caformer_s18": (_SIZE, {}),
    "mixer_s32_224": (None, {}),
    "gmlp_ti16_224": (None, {}),
    "resmlp_12_224": (None, {}),
    "mobilenetv3_small_050": (_SIZE, {}),
    "lcnet_050": (_SIZE, {}),
    "mobilevit_xxs": (_SIZE, {}),
    "mobilevitv2_050": (_SIZE, {}),
    "mvitv2_tiny": (None, {}),
    "nest_tiny": (None, {}),
    "nextvit_small": (_SIZE, {}),
    "nf_regnet_b0": (_SIZE, {}),
    "nfnet_l0": (_SIZE, {}),
    "pit_ti_224": (None, {}),
    "pvt_v2_b0": (_SIZE, {}),
    "rdnet_tiny": (_SIZE, {}),
    "regnety_002": (_SIZE, {}),
    "regnetz_005": (_SIZE, {}),
    "repghostnet_050": (_SIZE, {}),
    "repvit_m0_9": (_SIZE, {}),
    "res2net50_26w_4s": (_SIZE, {}),
    "resnest14d": (_SIZE, {}),
    "resnet18d": (_SIZE, {}),
    "ecaresnet26t": (_SIZE, {}),
    "resnetv2_50": (_SIZE, {}),
    "rexnet_100": (_SIZE, {}),
    "selecsls42": (_SIZE, {}),
    "legacy_seresnet18": (_SIZE, {}),
    "sequencer2d_s": (None, {"layers": (1, 1, 1, 1)}),
    "shvit_s1": (_SIZE, {}),
    "skresnet18": (_SIZE, {}),
    "starnet_s050": (_SIZE, {}),
    "swiftformer_xs": (None, {}),
    "swin_tiny_patch4_window7_224": (None, {}),
    "swinv2_cr_tiny_224": (None, {}),
    "tiny_vit_5m_224": (None, {}),
    "tnt_s_patch16_224": (None, {"depth": 3}),
    "tresnet_m": (_SIZE, {}),
    "twins_pcpvt_small": (None, {}),
    "twins_svt_small": (None, {}),
    "vgg11_bn": (None, {}),
    "visformer_tiny": (None, {}),
    "vit_tiny_patch16_224": (64, _VIT),
    "vit_relpos_small_patch16_224": (64, _VIT),
    "vit_tiny_r_s16_p8_224": (None, {"depth": 3}),
    "volo_d1_224": (None, {}),
    "ese_vovnet19b_slim_dw": (_SIZE, {}),
    "xception41": (_SIZE, {}),
    "xcit_nano_12_p16_224": (None, {"depth": 3}),
}


def _build(name: str, size: int | None, options: dict[str, Any]) -> Sample:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = timm.create_model(name, pretrained=False, **options).eval()
        pixels = size or int(module.default_cfg["input_size"][-1])
        randomise(module)
        image = torch.randn(2, 3, pixels, pixels)
        settle_statistics(module, (image,))
    return Sample(module, {"input": image}, {"input": {0: "batch"}})


MODELS: dict[str, Callable[[], Sample]] = {
    name: partial(_build, name, size, options) for name, (size, options) in _VARIANTS.items()
}
