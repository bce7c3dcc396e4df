"""Operators that onnx's reference evaluator lacks, gets wrong or rounds to float32: all in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
from onnx.reference.op_run import OpRun

_erf = np.vectorize(math.erf, otypes=[np.float64])


class Erf(OpRun):
    def _run(self, x):
        return (np.asarray(_erf(x)).reshape(np.shape(x)),)


class Gelu(OpRun):
    def _run(self, x, approximate="none"):
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1 + _erf(x / math.sqrt(2))),)


class Mean(OpRun):
    def _run(self, *args):
        total = args[0]
        for other in args[1:]:
            total = total + other
        return (np.asarray(total / len(args)),)


class Cast(OpRun):
    def _run(self, x, to=None, saturate=None, round_mode=None):
        return (x.astype(np.float64),)


class GlobalLpPool(OpRun):
    def _run(self, x, p=2):
        axes = tuple(range(2, x.ndim))
        return ((np.abs(x) ** p).sum(axis=axes, keepdims=True) ** (1 / p),)


class LpNormalization(OpRun):
    def _run(self, x, axis=-1, p=2):
        return (x / (np.abs(x) ** p).sum(axis=axis, keepdims=True) ** (1 / p),)


class LRN(OpRun):
    def _run(self, x, alpha=1e-4, beta=0.75, bias=1.0, size=1):
        square = np.zeros_like(x)
        for channel in range(x.shape[1]):
            low, high = channel - (size - 1) // 2, channel + math.ceil((size - 1) / 2)
            square[:, channel] = (x[:, max(low, 0) : high + 1] ** 2).sum(axis=1)
        return (x / (bias + alpha / size * square) ** beta,)


class MeanVarianceNormalization(OpRun):
    def _run(self, x, axes=(0, 2, 3)):
        mean = x.mean(axis=tuple(axes), keepdims=True)
        return ((x - mean) / np.sqrt(((x - mean) ** 2).mean(axis=tuple(axes), keepdims=True)),)


class SimplifiedLayerNormalization(OpRun):
    def _run(self, x, scale, axis=-1, epsilon=1e-5, stash_type=1):
        axes = tuple(range(axis % x.ndim, x.ndim))
        return (x / np.sqrt((x * x).mean(axis=axes, keepdims=True) + epsilon) * scale,)


def _channels(vector, x):
    return vector.reshape(-1, *[1] * (x.ndim - 2))


class BatchNormalization(OpRun):
    def _run(self, x, scale, bias, mean, variance, epsilon=1e-5, momentum=0.9, training_mode=0, spatial=1):
        if training_mode:
            axes = tuple(axis for axis in range(x.ndim) if axis != 1)
            mean, variance = x.mean(axis=axes), x.var(axis=axes)
        inverse = 1 / np.sqrt(_channels(variance, x) + epsilon)
        y = (x - _channels(mean, x)) * inverse * _channels(scale, x) + _channels(bias, x)
        return (y, mean, variance) if training_mode else (y,)


class GroupNormalization(OpRun):
    def _run(self, x, scale, bias, epsilon=1e-5, num_groups=1, stash_type=1):
        rows = x.reshape(len(x), num_groups, -1)
        variance = rows.var(axis=2, keepdims=True)
        y = ((rows - rows.mean(axis=2, keepdims=True)) / np.sqrt(variance + epsilon)).reshape(x.shape)
        times = x.shape[1] // len(scale)  # before opset 21 one per group
        return (y * _channels(np.repeat(scale, times), x) + _channels(np.repeat(bias, times), x),)


class LegacySoftmax(OpRun):
    op_type = "Softmax"

    def _run(self, x, axis=1):
        rows = x.reshape(int(np.prod(x.shape[:axis])), -1)
        power = np.exp(rows - rows.max(axis=1, keepdims=True))
        return ((power / power.sum(axis=1, keepdims=True)).reshape(x.shape),)


class LegacyLogSoftmax(OpRun):
    op_type = "LogSoftmax"

    def _run(self, x, axis=1):
        rows = x.reshape(int(np.prod(x.shape[:axis])), -1)
        moved = rows - rows.max(axis=1, keepdims=True)
        return ((moved - np.log(np.exp(moved).sum(axis=1, keepdims=True))).reshape(x.shape),)


class ConvTranspose(OpRun):
    def _run(
        self,
        x,
        w,
        bias=None,
        *,
        auto_pad="NOTSET",
        dilations=None,
        group=1,
        kernel_shape=None,
        output_padding=None,
        output_shape=None,
        pads=None,
        strides=None,
    ):
        rank, kernel = x.ndim - 2, w.shape[2:]
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        more, pads = output_padding or [0] * rank, list(pads or [0] * 2 * rank)
        whole = [
            s * (n - 1) + (k - 1) * d + 1
            for s, n, k, d in zip(strides, x.shape[2:], kernel, dilations, strict=True)
        ]
        if auto_pad.startswith("SAME"):
            output_shape = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        if output_shape:
            for axis in range(rank):
                total = whole[axis] + more[axis] - output_shape[axis]
                half = total // 2
                ends = (half, total - half) if auto_pad == "SAME_UPPER" else (total - half, half)
                pads[axis], pads[axis + rank] = ends
        y = np.zeros((len(x), w.shape[1] * group, *(n + m for n, m in zip(whole, more, strict=True))))
        rows = w.shape[0] // group
        for g in range(group):
            part, weight = x[:, g * rows : (g + 1) * rows], w[g * rows : (g + 1) * rows]
            for place in itertools.product(*map(range, kernel)):
                made = np.einsum("nc...,cm->nm...", part, weight[(..., *place)])
                where = tuple(
                    slice(p * d, p * d + s * (n - 1) + 1, s)
                    for p, d, s, n in zip(place, dilations, strides, x.shape[2:], strict=True)
                )
                y[(slice(None), slice(g * w.shape[1], (g + 1) * w.shape[1]), *where)] += made
        inside = tuple(slice(pads[i], y.shape[2 + i] - pads[i + rank]) for i in range(rank))
        y = y[(slice(None), slice(None), *inside)]
        return (y if bias is None else y + _channels(bias, y),)


class AffineGrid(OpRun):
    def _run(self, theta, size, align_corners=0):
        lines = [np.linspace(-1, 1, n) if align_corners else (2 * np.arange(n) + 1) / n - 1 for n in size[2:]]
        grids = np.meshgrid(*lines, indexing="ij")
        places = np.stack([*grids[::-1], np.ones(size[2:])], axis=-1)
        return (np.einsum("nij,...j->n...i", theta, places),)


class DeformConv(OpRun):
    """Each place of the kernel reads at a place of its own: a share of each position of both axes."""

    def _run(
        self,
        x,
        w,
        offset,
        bias=None,
        mask=None,
        *,
        dilations,
        group,
        kernel_shape,
        offset_group,
        pads,
        strides,
    ):
        rows, columns, *kernel = w.shape
        runs, places = offset_group or 1, kernel[0] * kernel[1]
        out = offset.shape[2:]
        moved = offset.reshape(len(x), runs, places, 2, *out)
        shares = []
        for axis in (0, 1):
            step, dilation, pad = (
                given[axis] if given else 1 for given in (strides, dilations, pads or [0, 0])
            )
            inner = np.indices(kernel)[axis].reshape(-1, 1, 1) * dilation
            place = np.indices(out)[axis] * step - pad + inner + moved[:, :, :, axis]
            shares.append(np.maximum(1 - np.abs(place[..., None] - np.arange(x.shape[2 + axis])), 0))
        images = x.reshape(len(x), runs, -1, *x.shape[2:])
        read = np.einsum("nrchw,nrkabh,nrkabw->nrckab", images, *shares, optimize=True)
        if mask is not None:
            read = read * mask.reshape(len(x), runs, 1, places, *out)
        parts = read.reshape(len(x), group or 1, columns, places, *out)
        weight = w.reshape(group or 1, -1, columns, places)
        y = np.einsum("ngckab,gmck->ngmab", parts, weight).reshape(len(x), rows, *out)
        return (y if bias is None else y + _channels(bias, y),)


class GridSample(OpRun):
    """Every place has a share of each position of every axis."""

    def _run(self, x, grid, align_corners=0, mode="linear", padding_mode="zeros"):
        count = x.ndim - 2
        listed = grid.reshape(len(grid), -1, count)[..., ::-1]
        y = x
        for axis in range(count):
            shares = self._shares(listed[..., axis], x.shape[2 + axis], align_corners, mode, padding_mode)
            y = np.einsum("ncph...,nph->ncp..." if axis else "nch...,nph->ncp...", y, shares)
        return (y.reshape(*x.shape[:2], *grid.shape[1:-1]),)

    @staticmethod
    def _shares(g, extent, aligned, mode, padding):
        place = (g + 1) / 2 * (extent - 1) if aligned else ((g + 1) * extent - 1) / 2
        low, high = (0, extent - 1) if aligned else (-0.5, extent - 0.5)

        def settle(at):
            if padding == "reflection":
                at = np.abs((at - low + (high - low)) % (2 * (high - low)) - (high - low)) + low
            return at if padding == "zeros" else np.clip(at, 0, extent - 1)

        h = np.arange(extent)
        if mode in ("linear", "bilinear"):
            return np.maximum(1 - np.abs(settle(place)[..., None] - h), 0)
        if mode == "nearest":
            return (np.rint(settle(place))[..., None] == h).astype(np.float64)
        shares = 0.0
        for step in (-1, 0, 1, 2):
            at = np.floor(place) + step
            d, a = np.abs(place - at), -0.75
            near = (a + 2) * d**3 - (a + 3) * d**2 + 1
            share = np.where(d <= 1, near, a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a)
            shares = shares + share[..., None] * (settle(at)[..., None] == h)
        return shares


_SINCE = [
    *(Erf, Gelu, Mean, Cast, GlobalLpPool, LpNormalization, LRN, MeanVarianceNormalization),
    *(BatchNormalization, GroupNormalization, ConvTranspose, SimplifiedLayerNormalization),
    *(GridSample, AffineGrid, DeformConv),
]


def replacements(opset: int) -> list[type[OpRun]]:
    """What takes the place of the evaluator's own operators."""
    legacy = [type(op.op_type, (op,), {}) for op in (LegacySoftmax, LegacyLogSoftmax) if opset < 13]
    return [*_SINCE, *legacy]
