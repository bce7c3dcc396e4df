"""How a picture becomes a tensor: resize and crop, scale, mean and std, order of axes and channels."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from onnxprune.calibrate.checks import kind
from onnxprune.calibrate.dataset import Array, InputSpec, bound_extent
from onnxprune.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

Layout: TypeAlias = Literal["NCHW", "NHWC"]
Channels: TypeAlias = Literal["RGB", "BGR", "GRAY"]

CHOICES = (
    "imagenet; a formula of the 8-bit value x such as x/255, x/128-1 or (x-127)/128; "
    "or a TOML file with size, resize, crop, mean, std, scale, layout, channels, dtype"
)
"""What ``--preprocess`` takes, for messages."""


@dataclass(frozen=True)
class Preprocess:
    """Recipe from an 8-bit picture to one sample: ``(x * scale - mean) / std`` after resizing and cropping.

    Parameters
    ----------
    size
        Height and width of the result in pixels; by default those of the model's input.
    resize
        ``cover`` (default): keep the aspect ratio and cover ``size / crop``. An integer: the short side
        gets that many pixels. ``stretch``: exactly ``size / crop``, whatever the aspect ratio. The centre
        is cut out afterwards.
    crop
        Share of the height and width that the central cut keeps, in (0, 1]; 1 with an integer `resize`.
    mean, std
        One number, or one per channel in the order of `channels`; in the units of ``x * scale``.
    scale
        Factor for the 8-bit value, before `mean` and `std`.
    layout
        Order of the axes; by default the one in which the model's input has 1 or 3 channels.
    channels
        Order of the channels; by default RGB, or GRAY where the model's input has one channel.
    dtype
        Name of the element type of the result; by default that of the model's input.
    """

    size: tuple[int, int] | None = None
    resize: int | Literal["cover", "stretch"] = "cover"
    crop: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1.0
    layout: Layout | None = None
    channels: Channels | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise UsageError(
                f"preprocessing: crop is {self.crop}", "Give the share to keep, above 0 and at most 1."
            )
        if isinstance(self.resize, int) and self.crop != 1:
            raise UsageError(
                f"preprocessing: resize {self.resize} and crop {self.crop} contradict each other",
                "Give the short side with resize, or the share with crop, not both.",
            )
        if 0.0 in self.std or not all(map(math.isfinite, (*self.mean, *self.std, self.scale))):
            raise UsageError(
                f"preprocessing: scale {self.scale}, mean {self.mean}, std {self.std} give no finite values",
                "Give finite numbers and a std that is not 0.",
            )

    @classmethod
    def parse(cls, spec: str | os.PathLike[str]) -> Preprocess:
        """Read what ``--preprocess`` takes: a preset, a formula of x, or the path of a TOML file.

        Raises
        ------
        UsageError
            If it is none of these, or the file does not exist, is no TOML, or has an unknown or wrong entry.

        Examples
        --------
        >>> Preprocess.parse("x/128-1").scale == 1 / 128
        True
        """
        from onnxprune.calibrate.recipe import parse_formula, read_recipe

        if not isinstance(spec, str) or spec.lower().endswith(".toml"):
            return read_recipe(Path(spec))
        text = spec.strip()
        if text.lower() in PRESETS:
            return PRESETS[text.lower()]
        slope, offset = parse_formula(text)
        return cls(scale=slope, mean=(-offset,))

    def resolve(self, spec: InputSpec, bindings: Mapping[str, int]) -> Preprocess:
        """Fill what was left open from the model's input.

        Returns
        -------
        Preprocess
            With size, layout, channels and dtype set.

        Raises
        ------
        UsageError
            If the input is not a batch of pictures, its size is not known, or the recipe does not fit it.
        """
        if len(spec.shape) != 4:
            raise UsageError(
                f"the model's input {spec.name!r} ({spec}) is no batch of pictures",
                "Give its data as .npz; a folder of pictures needs an input of 4 axes.",
            )
        layout = self.layout or _guess_layout(spec)
        rows, columns, depth = (2, 3, 1) if layout == "NCHW" else (1, 2, 3)
        channels = self.channels or ("GRAY" if spec.shape[depth] == 1 else "RGB")
        size = self.size or _size_of(spec, (rows, columns), bindings)
        count = 1 if channels == "GRAY" else 3
        if isinstance(spec.shape[depth], int) and spec.shape[depth] != count:
            raise UsageError(
                f"preprocessing gives {count} channels ({channels}, {layout}), but the model's input "
                f"{spec.name!r} ({spec}) has {spec.shape[depth]}",
                "Set layout and channels in a TOML file, or give the data as .npz.",
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, count):
                raise UsageError(
                    f"preprocessing: {name} has {len(values)} values for {count} channels ({channels})",
                    "Give one value, or one per channel.",
                )
        if isinstance(self.resize, int) and self.resize < max(size):
            raise UsageError(
                f"preprocessing: a short side of {self.resize} pixels does not cover {size[0]} x {size[1]}",
                "Give a larger resize.",
            )
        return replace(self, size=size, layout=layout, channels=channels, dtype=self.dtype or spec.dtype.name)

    def apply(self, picture: Image) -> Array:
        """Turn one picture into one sample.

        Parameters
        ----------
        picture
            Any mode; converted to `channels`. The recipe must be resolved.

        Returns
        -------
        numpy.ndarray
            Shape ``(1, C, H, W)`` or ``(1, H, W, C)``, dtype `dtype`. Integer dtypes are rounded and clipped.

        Raises
        ------
        UsageError
            If the recipe was not resolved.
        """
        if self.size is None or self.dtype is None:
            raise UsageError("preprocessing was not resolved against a model input", "Call resolve() first.")
        picture = picture.convert("L" if self.channels == "GRAY" else "RGB")
        values: Array = np.asarray(self._place(picture, self.size), dtype=np.float32)
        values = values[:, :, None] if values.ndim == 2 else values
        if self.channels == "BGR":
            values = values[:, :, ::-1]
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        values = (values * np.float32(self.scale) - mean) / std
        if self.layout != "NHWC":
            values = values.transpose(2, 0, 1)
        return _as_dtype(np.ascontiguousarray(values[None]), self.dtype)

    def _place(self, picture: Image, size: tuple[int, int]) -> Image:
        """Resize, then cut out the centre."""
        from PIL import Image as pil

        height, width = size
        target = _resized(picture.height, picture.width, size, self.resize, self.crop)
        if target != (picture.height, picture.width):
            picture = picture.resize((target[1], target[0]), pil.Resampling.BILINEAR)
        top, left = round((target[0] - height) / 2), round((target[1] - width) / 2)
        return picture.crop((left, top, left + width, top + height))


PRESETS: Mapping[str, Preprocess] = {
    "imagenet": Preprocess(
        crop=0.875, scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), channels="RGB"
    )
}
"""Recipes by name. ``imagenet``: short side 256 for a size of 224, central cut, usual mean and std."""


def _resized(
    height: int, width: int, size: tuple[int, int], resize: int | str, crop: float
) -> tuple[int, int]:
    """Return height and width after resizing, at least `size`."""
    if resize == "stretch":
        return max(size[0], round(size[0] / crop)), max(size[1], round(size[1] / crop))
    if isinstance(resize, int):
        factor = resize / min(height, width)
    else:
        factor = max(round(size[0] / crop) / height, round(size[1] / crop) / width)
    return max(size[0], int(height * factor + 1e-6)), max(size[1], int(width * factor + 1e-6))


def _guess_layout(spec: InputSpec) -> Layout:
    return "NHWC" if spec.shape[3] in (1, 3) and spec.shape[1] not in (1, 3) else "NCHW"


def _size_of(spec: InputSpec, axes: tuple[int, int], bindings: Mapping[str, int]) -> tuple[int, int]:
    height, width = (bound_extent(spec, axis, bindings) for axis in axes)
    if height is None or width is None:
        raise UsageError(
            f"the size of pictures for input {spec.name!r} ({spec}) is not known",
            "Set size in a TOML file, or bind its axes with --bind NAME=N.",
        )
    return height, width


def _as_dtype(values: Array, name: str) -> Array:
    if name == "bfloat16":
        import ml_dtypes

        return values.astype(ml_dtypes.bfloat16)
    dtype = np.dtype(name)
    if kind(dtype) == "int":
        limits = np.iinfo(dtype)
        return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
    return values.astype(dtype)
