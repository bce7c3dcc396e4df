"""Random graphs of the operators that move, mix and combine channels."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from hypothesis import strategies as st

from onnxprune.model.shapes import infer_shapes
from onnxprune.testing import ModelBuilder


class Walk:
    """Grows a graph of (1, C, 4, 4) images by drawn steps; every value knows its number of channels."""

    def __init__(self, draw, size=4):
        self.draw = draw
        self.b = ModelBuilder(17, seed=draw(st.integers(0, 99)))
        self.size = size
        self.batch = draw(st.sampled_from([1, 1, 2, "batch"]))
        x = self.b.input("x", (self.batch, 3, size, size))
        self.values = [(self.conv(x, 3, 8), 8)]

    # --- helpers ---

    def pick(self):
        """Mostly the newest value."""
        index = self.draw(st.integers(0, min(3, len(self.values) - 1)))
        return self.values[-1 - index]

    def partner(self, channels):
        """Another value with as many channels, or a new one."""
        found = [value for value, c in self.values if c == channels]
        if found and self.draw(st.booleans()):
            return self.draw(st.sampled_from(found))
        value, c = self.pick()
        return self.conv(value, c, channels)

    def conv(self, value, c, channels, group=1, kernel=1):
        weight = self.b.weight((channels, c // group, kernel, kernel), "w")
        bias = [self.b.weight((channels,), "bias")] if self.draw(st.booleans()) else []
        return self.b.op("Conv", value, weight, *bias, group=group, pads=[kernel // 2] * 4)

    def divisor(self, c, least=1):
        return self.draw(st.sampled_from([d for d in range(least, c + 1) if c % d == 0]))

    def shape(self, *middle):
        return self.b.constant([-1 if self.batch == "batch" else self.batch, *middle, self.size, self.size])

    # --- steps ---

    def step_conv(self):
        value, c = self.pick()
        channels = self.draw(st.integers(2, 10))
        return self.conv(value, c, channels, kernel=self.draw(st.sampled_from([1, 3]))), channels

    def step_grouped(self):
        value, c = self.pick()
        group = self.divisor(c)
        channels = group * self.draw(st.integers(1, 3))
        return self.conv(value, c, channels, group=group), channels

    def step_norm(self):
        value, c = self.pick()
        parts = [self.b.weight((c,), "bn", low=0.5, high=1.5) for _ in range(4)]
        return self.b.op("BatchNormalization", value, *parts), c

    def step_group_norm(self):
        value, c = self.pick()
        groups = self.divisor(c)
        ones, zeros = (self.b.constant(np.full(groups, v, np.float32)) for v in (1, 0))
        flat = self.b.op("Reshape", value, self.b.constant([0, groups, -1]))
        normal = self.b.op("InstanceNormalization", flat, ones, zeros)
        return self.b.op("Reshape", normal, self.b.op("Shape", value)), c

    def step_unary(self):
        value, c = self.pick()
        return self.b.op(
            self.draw(st.sampled_from(["Sigmoid", "LeakyRelu", "HardSwish", "Cos", "Softplus"])), value
        ), c

    def step_binary(self):
        value, c = self.pick()
        other = value if self.draw(st.integers(0, 5)) == 0 else self.partner(c)
        return self.b.op(self.draw(st.sampled_from(["Add", "Sub", "Max"])), value, other), c

    def step_gate(self):
        value, c = self.pick()
        hidden = self.draw(st.integers(1, 4))
        gate = self.b.op("LeakyRelu", self.conv(self.b.op("GlobalAveragePool", value), c, hidden))
        return self.b.op("Mul", value, self.b.op("Sigmoid", self.conv(gate, hidden, c))), c

    def step_constant(self):
        value, c = self.pick()
        shape = self.draw(st.sampled_from([(c, 1, 1), (1, c, 1, 1), (1,), (c, self.size, self.size)]))
        return self.b.op(
            self.draw(st.sampled_from(["Add", "Mul"])), value, self.b.weight(shape, "k", low=0.3)
        ), c

    def step_where(self):
        value, c = self.pick()
        mask = np.random.default_rng(c).random((c, 1, 1)) < 0.5
        return self.b.op("Where", self.b.constant(mask), value, self.partner(c)), c

    def step_concat(self):
        parts = [self.pick() for _ in range(self.draw(st.integers(2, 3)))]
        total = sum(c for _, c in parts)
        if total > 24:
            return self.step_conv()
        return self.b.op("Concat", *(value for value, _ in parts), axis=1), total

    def step_split(self):
        value, c = self.pick()
        if c < 2:
            return self.step_conv()
        at = self.draw(st.integers(1, c - 1))
        first, second = self.b.ops("Split", value, self.b.constant([at, c - at]), axis=1, outputs=2)
        self.values.append((first, at))
        return second, c - at

    def step_slice(self):
        value, c = self.pick()
        start = self.draw(st.integers(0, c - 1))
        end = self.draw(st.integers(start + 1, c))
        written = self.draw(st.sampled_from([end, end - c if end < c else 2**31]))
        bounds = (self.b.constant([v]) for v in (start, written, 1))
        return self.b.op("Slice", value, *bounds), end - start

    def step_gather(self):
        value, c = self.pick()
        index = self.draw(st.lists(st.integers(-c, c - 1), min_size=1, max_size=8))
        return self.b.op("Gather", value, self.b.constant(index), axis=1), len(index)

    def step_pad(self):
        value, c = self.pick()
        before, after = self.draw(st.integers(-1, 3)), self.draw(st.integers(0, 3))
        if c + before + after < 1:
            return self.step_conv()
        pads = self.b.constant([0, before, 0, 0, 0, after, 0, 0])
        return self.b.op("Pad", value, pads, self.b.constant(np.float32(0.5))), c + before + after

    def step_shuffle(self):
        value, c = self.pick()
        g = self.divisor(c)
        split = self.b.op("Reshape", value, self.shape(g, c // g))
        if self.draw(st.booleans()):
            split = self.b.op("Sigmoid", split)
        return self.b.op("Reshape", self.b.op("Transpose", split, perm=[0, 2, 1, 3, 4]), self.shape(c)), c

    def step_fold(self):
        """A reduction over one factor of the channels."""
        value, c = self.pick()
        g = self.divisor(c)
        split = self.b.op("Reshape", value, self.shape(g, c // g))
        axis = self.draw(st.sampled_from([1, 2]))
        summed = self.b.op("ReduceSum", split, self.b.constant([axis]), keepdims=0)
        return summed, c // g if axis == 1 else g

    def step_tile(self):
        value, c = self.pick()
        times = self.draw(st.integers(1, 2))
        return (
            (self.b.op("Tile", value, self.b.constant([1, times, 1, 1])), c * times)
            if c < 13
            else self.step_conv()
        )

    def step_spread(self):
        """One channel, expanded to many."""
        value, c = self.pick()
        one = (
            self.conv(value, c, 1)
            if self.draw(st.booleans())
            else self.b.op("ReduceSum", value, self.b.constant([1]))
        )
        channels = self.draw(st.integers(2, 6))
        return self.b.op("Expand", one, self.b.constant([1, channels, 1, 1])), channels

    def step_norm_of_channels(self):
        value, c = self.pick()
        size = self.b.op("ReduceL2", value, axes=[1])
        return self.b.op("Div", value, self.b.op("Add", size, self.b.constant(np.float32(1)))), c

    def step_depth_to_space(self):
        value, c = self.pick()
        if c % 4:
            return self.step_conv()
        wide = self.b.op("DepthToSpace", value, blocksize=2, mode=self.draw(st.sampled_from(["DCR", "CRD"])))
        wide = self.b.op("Sigmoid", wide)
        return self.b.op("SpaceToDepth", wide, blocksize=2), c

    def step_linear(self):
        """Channels last, a matrix product, channels first again."""
        value, c = self.pick()
        last = self.b.op("Transpose", value, perm=[0, 2, 3, 1])
        channels = self.draw(st.integers(2, 8))
        made = self.b.op("MatMul", last, self.b.weight((c, channels), "w"))
        return self.b.op("Transpose", made, perm=[0, 3, 1, 2]), channels

    def step_attention(self):
        """Pixels attend to pixels, in heads."""
        value, c = self.pick()
        heads, depth, pixels = self.draw(st.integers(1, 3)), self.draw(st.integers(1, 3)), self.size**2
        width = heads * depth
        batch = 0 if self.batch == "batch" else self.batch
        parts = []
        if self.draw(st.booleans()):
            fused = self.b.op(
                "Reshape", self.conv(value, c, 3 * width), self.b.constant([batch, 3, heads, depth, pixels])
            )
            fused = self.b.op("Transpose", fused, perm=[1, 0, 2, 4, 3])
            parts = [self.b.op("Gather", fused, self.b.constant(np.array(i)), axis=0) for i in range(3)]
        else:
            for _ in range(3):
                split = self.b.op(
                    "Reshape", self.conv(value, c, width), self.b.constant([batch, heads, depth, pixels])
                )
                parts.append(self.b.op("Transpose", split, perm=[0, 1, 3, 2]))
        q, k, v = parts
        scores = self.b.op("MatMul", q, self.b.op("Transpose", k, perm=[0, 1, 3, 2]))
        mixed = self.b.op("MatMul", self.b.op("Softmax", scores, axis=-1), v)
        turned = self.b.op("Transpose", mixed, perm=[0, 1, 3, 2])
        return self.b.op("Reshape", turned, self.shape(width)), width

    def step_scaled_by_extent(self):
        """A number computed from the extent: it stays what it was."""
        value, c = self.pick()
        extent = self.b.op("Gather", self.b.op("Shape", value), self.b.constant(np.array(1)), axis=0)
        root = self.b.op("Sqrt", self.b.op("Cast", extent, to=1))
        return self.b.op("Div", value, root), c

    def extent(self, value, dim):
        return self.b.op("Gather", self.b.op("Shape", value), self.b.constant([dim]), axis=0)

    def step_computed_shuffle(self):
        """The target of the Reshape is computed from shapes, with the width or the number of parts given."""
        value, c = self.pick()
        g = self.divisor(c)
        parts, width = self.b.constant([g]), self.b.constant([c // g])
        if self.draw(st.booleans()):
            width = self.b.op("Div", self.extent(value, 1), parts)
        elif self.draw(st.booleans()):
            parts = self.b.op("Div", self.extent(value, 1), width)
        rest = [self.extent(value, dim) for dim in (0, 2, 3)]
        target = self.b.op("Concat", rest[0], parts, width, *rest[1:], axis=0)
        split = self.b.op("Transpose", self.b.op("Reshape", value, target), perm=[0, 2, 1, 3, 4])
        return self.b.op("Reshape", split, self.b.op("Shape", value)), c

    def step_halves(self):
        """Two slices with computed bounds."""
        value, c = self.pick()
        if c < 2:
            return self.step_conv()
        middle = self.b.op("Div", self.extent(value, 1), self.b.constant([2]))
        zero, one = self.b.constant([0]), self.b.constant([1])
        first = self.b.op("Slice", value, zero, middle, one)
        second = self.b.op("Slice", value, middle, self.extent(value, 1), one)
        if c % 2 == 0 and self.draw(st.booleans()):
            return self.b.op("Mul", first, self.b.op("Sigmoid", second)), c // 2
        self.values.append((first, c // 2))
        return second, c - c // 2

    def step_transposed(self):
        value, c = self.pick()
        group = self.divisor(c)
        channels = self.draw(st.integers(1, 3))
        weight = self.b.weight((c, channels, 1, 1), "w")
        return self.b.op("ConvTranspose", value, weight, group=group), group * channels

    def step_shared(self):
        """The same weight for two values."""
        value, c = self.pick()
        group = self.divisor(c)
        channels = group * self.draw(st.integers(1, 3))
        weight = self.b.weight((channels, c // group, 1, 1), "w")
        first, second = (self.b.op("Conv", v, weight, group=group) for v in (value, self.partner(c)))
        self.values.append((first, channels))
        return second, channels

    def step_slope(self):
        value, c = self.pick()
        return self.b.op("PRelu", value, self.b.weight((c, 1, 1), "slope")), c

    def finish(self):
        outputs = []
        for value, c in [self.values[-1], *([self.pick()] if self.draw(st.booleans()) else [])]:
            outputs.append(self.conv(value, c, 2))
        if self.draw(st.integers(0, 5)) == 0:
            outputs.append(self.b.op("Identity", self.pick()[0]))
        if self.draw(st.booleans()):
            value, c = self.pick()
            flat = self.b.op("Flatten", value)
            weight = self.b.weight((3, c * self.size**2), "fc")
            outputs.append(self.b.op("Gemm", flat, weight, transB=1))
        return self.b.model(*outputs)


STEPS = sorted(name for name in vars(Walk) if name.startswith("step_"))


class Drawn:
    """A model that prints itself as text when a test fails."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model

    def __repr__(self):
        shapes = infer_shapes(self.model).dims
        lines = []
        for node in self.model.graph:
            given = ", ".join(f"{v.name}{shapes[v]}" for v in node.inputs if v is not None)
            constants = [
                v.const_value.numpy() for v in node.inputs if v is not None and v.const_value is not None
            ]
            known = [a.tolist() for a in constants if a.dtype.kind in "ib" and a.size < 10]
            attributes = {name: attr.value for name, attr in node.attributes.items()}
            lines.append(f"{node.outputs[0].name} = {node.op_type}({given}) {attributes} {known}")
        return "\n".join([*lines, f"-> {[v.name for v in self.model.graph.outputs]}"])


@st.composite
def models(draw, most=8):
    walk = Walk(draw)
    for _ in range(draw(st.integers(1, most))):
        walk.values.append(getattr(walk, draw(st.sampled_from(STEPS)))())
    return Drawn(walk.finish())
