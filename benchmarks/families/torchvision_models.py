"""torchvision's architectures: classification, segmentation, detection, video, optical flow.

Images are small, because structure is the subject; weights are random. Of the detectors, everything up to
the boxes and scores that post-processing takes is exported; two come whole, with their NonMaxSuppression.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import library as operators
from torch import nn

from benchmarks.families import Sample
from benchmarks.families.randomise import randomise
from benchmarks.families.statistics import settle_statistics
from benchmarks.torchvision_shim import import_torchvision

torchvision = import_torchvision()
models = torchvision.models

_BATCH = {0: "batch"}
_WHOLE: dict[str, Any] = {"weights": None, "weights_backbone": None}


class Outputs(nn.Module):
    """Gives the tensors of what `module` returns as a flat tuple."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the module."""
        return tuple(_tensors(self.module(*inputs)))


class Detector(nn.Module):
    """Backbone and heads of a single-stage detector, without anchors and post-processing."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Give the raw predictions."""
        features = self.backbone(x)
        features = list(features.values()) if isinstance(features, dict) else [features]
        return tuple(_tensors(self.head(features)))


class Whole(nn.Module):
    """A detector from one image to its boxes."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Give boxes, scores and labels of the first image."""
        return tuple(_tensors(self.detector([x[0]])))


def _tensors(found: Any) -> list[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        return [found]
    parts = found.values() if isinstance(found, dict) else found
    return [tensor for part in parts for tensor in _tensors(part)]


def _sample(build: Callable[[], nn.Module], *shapes: tuple[int, ...], dynamic: bool = True) -> Sample:
    """Build, randomise and settle a module that takes images of these shapes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build().eval()
        randomise(module)
        inputs = {f"input{i or ''}": torch.randn(2, *shape) for i, shape in enumerate(shapes)}
        settle_statistics(module, tuple(inputs.values()))
    return Sample(module, inputs, {name: _BATCH for name in inputs} if dynamic else {})


def classifier(name: str, size: int = 128, **options: Any) -> Sample:
    """Build a classifier for images of `size` pixels."""
    return _sample(lambda: getattr(models, name)(weights=None, **options), (3, size, size))


def _segmenter(name: str) -> Sample:
    build = partial(getattr(models.segmentation, name), **_WHOLE, aux_loss=False)
    return _sample(lambda: Outputs(build()), (3, 96, 96))


def _video(name: str, frames: int, size: int) -> Sample:
    return _sample(lambda: getattr(models.video, name)(weights=None), (3, frames, size, size))


def _small_mvit(name: str) -> Sample:
    """MViT is written for 16 frames of 224 pixels; the constructor behind it takes others."""
    from torchvision.models.video import mvit

    original = mvit._mvit

    def smaller(**options: Any) -> nn.Module:
        return original(**{**options, "spatial_size": (64, 64), "temporal_size": 8})

    with mock.patch.object(mvit, "_mvit", smaller):
        return _video(name, 8, 64)


def _flow(name: str) -> Sample:
    def build() -> nn.Module:
        module = getattr(models.optical_flow, name)(weights=None)
        forward = module.forward
        module.forward = lambda a, b: forward(a, b, num_flow_updates=2)[-1]
        return module

    return _sample(build, (3, 128, 128), (3, 128, 128), dynamic=False)


def _detector(name: str, size: int) -> Sample:
    return _sample(lambda: Detector(getattr(models.detection, name)(**_WHOLE)), (3, size, size))


def _whole_detector(name: str, size: int) -> Sample:
    """One image in, boxes out; statistics stay as drawn, because a batch of one gives none."""
    _give_nms()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Whole(getattr(models.detection, name)(**_WHOLE)).eval()
        randomise(module)
        return Sample(module, {"input": torch.rand(1, 3, size, size)})


def _pyramid(build: Callable[[], nn.Module]) -> Sample:
    return _sample(lambda: Outputs(build()), (3, 96, 96))


def _resnet_fpn() -> nn.Module:
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    return resnet_fpn_backbone(backbone_name="resnet18", weights=None)


def _mobilenet_fpn() -> nn.Module:
    from torchvision.models.detection.backbone_utils import mobilenet_backbone

    return mobilenet_backbone(backbone_name="mobilenet_v3_large", weights=None, fpn=True)


_GIVEN: list[operators.Library] = []


def _give_nms() -> None:
    """Implement NonMaxSuppression where torchvision's compiled operators could not be loaded."""
    if _GIVEN or torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::nms", "CPU"):
        return

    def nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
        order, kept = scores.argsort(descending=True).tolist(), []
        overlap = torchvision.ops.box_iou(boxes, boxes)
        while order:
            best = order.pop(0)
            kept.append(best)
            order = [i for i in order if overlap[best, i] <= threshold]
        return torch.tensor(kept, dtype=torch.int64)

    _GIVEN.append(operators.Library("torchvision", "IMPL", "CPU"))
    _GIVEN[0].impl("nms", nms)


# fmt: off
_CLASSIFIERS = (
    "squeezenet1_0", "squeezenet1_1", "resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2",
    "resnext50_32x4d", "densenet121", "densenet169", "mnasnet0_5", "mnasnet0_75", "mnasnet1_0",
    "mnasnet1_3", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0", "efficientnet_b0", "efficientnet_b1",
    "efficientnet_b2", "efficientnet_b3", "efficientnet_v2_s", "regnet_x_400mf", "regnet_x_800mf",
    "regnet_x_1_6gf", "regnet_y_400mf", "regnet_y_800mf", "regnet_y_1_6gf", "regnet_y_3_2gf",
    "convnext_tiny", "convnext_small", "swin_t", "swin_s", "swin_v2_t",
)
_SEGMENTERS = ("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")

# fmt: on

MODELS: dict[str, Callable[[], Sample]] = {
    **{name: partial(classifier, name) for name in _CLASSIFIERS},
    # 4 pixels do not divide into their 7 x 7 bins
    **{name: partial(classifier, name, 224) for name in ("alexnet", "vgg11", "vgg11_bn")},
    "googlenet": partial(classifier, "googlenet", aux_logits=False, init_weights=False),
    "inception_v3": partial(classifier, "inception_v3", aux_logits=False, init_weights=False),
    "vit_b_16": partial(classifier, "vit_b_16", 64, image_size=64),
    "vit_b_32": partial(classifier, "vit_b_32", image_size=128),
    "maxvit_t": partial(classifier, "maxvit_t", 224),
    **{name: partial(_segmenter, name) for name in _SEGMENTERS},
    **{name: partial(_video, name, 8, 64) for name in ("r3d_18", "mc3_18", "r2plus1d_18")},
    "s3d": partial(_video, "s3d", 16, 224),
    "swin3d_t": partial(_video, "swin3d_t", 8, 64),
    "mvit_v1_b": partial(_small_mvit, "mvit_v1_b"),
    "mvit_v2_s": partial(_small_mvit, "mvit_v2_s"),
    "raft_small": partial(_flow, "raft_small"),
    "raft_large": partial(_flow, "raft_large"),
    "resnet18_fpn": partial(_pyramid, _resnet_fpn),
    "mobilenet_v3_large_fpn": partial(_pyramid, _mobilenet_fpn),
    "retinanet_resnet50_fpn": partial(_detector, "retinanet_resnet50_fpn", 96),
    "retinanet_resnet50_fpn_v2": partial(_detector, "retinanet_resnet50_fpn_v2", 96),
    "fcos_resnet50_fpn": partial(_detector, "fcos_resnet50_fpn", 96),
    "ssd300_vgg16": partial(_detector, "ssd300_vgg16", 300),
    "ssdlite320_mobilenet_v3_large": partial(_detector, "ssdlite320_mobilenet_v3_large", 320),
    "ssdlite320_whole": partial(_whole_detector, "ssdlite320_mobilenet_v3_large", 320),
}

TRANSFORMERS = frozenset(
    {
        "swin_t",
        "swin_s",
        "swin_v2_t",
        "vit_b_16",
        "vit_b_32",
        "maxvit_t",
        "swin3d_t",
        "mvit_v1_b",
        "mvit_v2_s",
    }
)
"""Those that are no CNNs."""
