"""STFT as Fourier transforms of its frames, and CumProd as products of what lies before.

Specification: https://onnx.ai/onnx/operators/onnx__STFT.html, https://onnx.ai/onnx/operators/onnx__CumProd.html
"""

from __future__ import annotations

from onnxprune.rules.expr import Expr
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key
from onnxprune.rules.site import Lower, Site
from onnxprune.rules.vjp.signal import transform

_Outputs = list[Expr | None]


def _frames(op: Op, site: Site) -> _Outputs:
    """(B, samples, parts) -> (B, frames, frequencies, parts)."""
    x = site.x()
    if site.rank(op.input(0)) == 2:
        x = x.unsqueeze(-1)
    step = op.ints("frame_step", 1)
    length = op.ints("frame_length", 3)
    width = length[0] if length else site.dims(op.input(2))[0] if op.has(2) else None
    if step is None or width is None:
        raise site.refusal("the length or the step of its frames is not fixed")
    ints = site.builder.ints
    samples = site.extent(op.input(0), 1)
    many: Expr | int
    if isinstance(samples, int):
        many = (samples - width) // step[0] + 1
    else:
        many = (samples - ints(width)) / ints(step[0]) + ints(1)
    starts = site.count_up(many) * ints(step[0])
    frames = x.op("Gather", starts.unsqueeze(-1) + site.count_up(width), axis=1)
    if op.has(2):
        frames = frames * site.x(2).unsqueeze(-1)
    return [transform(frames, 2, site.version, onesided=op.int("onesided", 1))]


def _products(op: Op, site: Site) -> _Outputs:
    """A matrix of what each position multiplies: zeros among them do no harm to gradients."""
    rank = site.rank(op.input(0))
    axes = op.ints("axis", 1)
    if axes is None:
        raise site.refusal("its axis is not fixed")
    axis = axes[0] % rank
    steps = site.count_up(site.extent(op.input(0), axis))
    kind = "Greater" if op.int("reverse", 0) else "Less"
    counted = steps.op(kind if op.int("exclusive", 0) else f"{kind}OrEqual", steps.unsqueeze(-1))
    last = [*(n for n in range(rank) if n != axis), axis]
    x = site.x().transpose(last).unsqueeze(-2)
    factors = counted.op("Where", x, 1.0)
    y = factors.op("ReduceProd", site.builder.ints(-1), keepdims=0)
    return [y.transpose([last.index(n) for n in range(rank)])]


LOWERS: dict[Key, Lower] = {("", "STFT"): _frames, ("", "CumProd"): _products}
