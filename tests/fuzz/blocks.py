"""Steps that are small parts of networks: convolutions, attention, shared layers, embeddings."""

from __future__ import annotations

from tests.fuzz.adapt import adapt, axis_by_axis
from tests.fuzz.moves import like
from tests.fuzz.walk import At, Walk


def image(w: Walk) -> At:
    """A value (batch, channels, height, width)."""
    at = w.pick(lambda at: at.rank == 4 and 1 in at.free and 1 not in at.shape[2:])
    return at or adapt(w, (w.integer(1, 2), w.integer(3, 8), 4, 4))


def rows(w: Walk) -> At:
    """A value (batch, length, width)."""
    at = w.pick(lambda at: at.rank == 3 and at.size <= 400)
    return at or adapt(w, (w.integer(1, 2), w.integer(2, 5), w.integer(4, 8)))


def linear(w: Walk, at: At, columns: int) -> At:
    """A product with weights along the last axis, now and then with a bias."""
    value = w.op("MatMul", at.value, w.matrix(int(at.shape[-1]), columns))
    if w.chance(0.4):
        value = w.op("Add", value, w.weight(columns))
    return At(value, (*at.shape[:-1], columns), 2.5)


def conv(w: Walk, at: At, channels: int, group: int = 1, kernel: int = 1, stride: int = 1) -> At:
    inner = int(at.shape[1]) // group
    limit = round(1.7 / (inner * kernel**2) ** 0.5, 4)
    weight = w.weight(channels, inner, kernel, kernel, low=-limit, high=limit)
    bias = [w.weight(channels)] if w.chance(0.5) else []
    value = w.op(
        *("Conv", at.value, weight, *bias),
        group=group,
        kernel_shape=[kernel] * 2,
        pads=[kernel // 2] * 4,
        strides=[stride] * 2,
    )
    size = [(int(n) + 2 * (kernel // 2) - kernel) // stride + 1 for n in at.shape[2:]]
    return At(value, (at.shape[0], channels, *size), 3.0)


def dense(w: Walk) -> None:
    at = w.pick(lambda at: at.rank > 1 and at.rank - 1 in at.free)
    if at is not None:
        made = linear(w, at, w.columns(int(at.shape[-1]), 10))
        if w.chance(0.5):
            made = At(w.op(w.choose(["Relu", "Tanh", "LeakyRelu"]), made.value), made.shape, made.bound)
        w.values.append(made)


def convolution(w: Walk) -> None:
    at = image(w)
    channels, group = w.integer(2, 10), 1
    if w.chance(0.4):
        group = w.divisor(int(at.shape[1]))
        channels = group * w.integer(1, 3)
    stride = w.choose([1, 1, 2]) if min(int(n) for n in at.shape[2:]) > 2 else 1
    made = conv(w, at, min(channels, 24 // group * group), group, w.choose([1, 3]), stride)
    w.push(made.value, made.shape, made.bound)


def transposed_convolution(w: Walk) -> None:
    at = image(w)
    group = w.divisor(int(at.shape[1]))
    channels = w.integer(1, 3)
    if group * channels <= 24:
        weight = w.weight(int(at.shape[1]), channels, 1, 1, low=-0.7, high=0.7)
        value = w.op("ConvTranspose", at.value, weight, group=group, kernel_shape=[1, 1])
        w.push(value, (at.shape[0], group * channels, *at.shape[2:]), 3.0)


def conv_norm_act(w: Walk) -> None:
    at = image(w)
    made = conv(w, at, w.integer(2, 8), kernel=3)
    c = int(made.shape[1])
    parts = [w.weight(c, low=0.5, high=1.5), w.weight(c), w.weight(c), w.weight(c, low=0.5, high=1.5)]
    value = w.op(w.choose(["Relu", "LeakyRelu"]), w.op("BatchNormalization", made.value, *parts))
    if w.chance(0.5) and made.shape == at.shape:
        value = w.op("Add", value, at.value)
    w.push(value, made.shape, 4.0 + at.bound)


def pool(w: Walk) -> None:
    at = image(w)
    if min(int(n) for n in at.shape[2:]) > 2:
        op_type = w.choose(["MaxPool", "AveragePool"])
        value = w.op(op_type, at.value, kernel_shape=[2, 2], strides=[2, 2])
        w.push(value, (*at.shape[:2], *(int(n) // 2 for n in at.shape[2:])), at.bound)
    else:
        w.push(w.op("GlobalAveragePool", at.value), (*at.shape[:2], 1, 1), at.bound)


def gate(w: Walk) -> None:
    """Squeeze and excitation."""
    at = image(w)
    c, hidden = int(at.shape[1]), w.integer(1, 4)
    small = At(w.op("GlobalAveragePool", at.value), (*at.shape[:2], 1, 1), at.bound)
    inner = conv(w, small, hidden)
    inner = conv(w, At(w.op("LeakyRelu", inner.value), inner.shape), c)
    w.push(w.op("Mul", at.value, w.op("Sigmoid", inner.value)), at.shape, at.bound)


def group_norm(w: Walk) -> None:
    """As exporters write it: a Reshape around an InstanceNormalization."""
    at = image(w)
    groups = w.divisor(int(at.shape[1]))
    scale, shift = w.weight(groups, low=0.5, high=1.5), w.weight(groups)
    flat = w.op("Reshape", at.value, w.ints(0, groups, -1))
    normal = w.op("InstanceNormalization", flat, scale, shift, epsilon=0.1)
    w.push(w.op("Reshape", normal, w.op("Shape", at.value)), at.shape, 3.0)


def blocks_of_pixels(w: Walk) -> None:
    """DepthToSpace and back, with something in between."""
    at = w.pick(lambda at: at.rank == 4 and 1 in at.free and int(at.shape[1]) % 4 == 0)
    if at is not None:
        mode = {"mode": w.choose(["DCR", "CRD"])} if w.opset >= 11 else {}
        wide = w.op("Sigmoid", w.op("DepthToSpace", at.value, blocksize=2, **mode))
        w.push(w.op("SpaceToDepth", wide, blocksize=2), at.shape, 1.0)


def heads(w: Walk, at: At, count: int, depth: int) -> At:
    """(batch, length, count x depth) as (batch, count, length, depth)."""
    length = int(at.shape[1])
    shape = (at.shape[0], length, count, depth)
    value = w.op("Transpose", w.reshape(at, shape), perm=[0, 2, 1, 3])
    return At(value, (at.shape[0], count, length, depth), at.bound)


def attention(w: Walk) -> None:
    """Self-attention in heads, of separate or packed projections; keys may have fewer heads."""
    at = rows(w)
    count, depth = w.integer(1, 3), w.integer(1, 3)
    width, length = count * depth, int(at.shape[1])
    if w.chance(0.3):
        packed = linear(w, at, 3 * width)
        made = w.given("Split", packed.value, outputs=3, split=[width] * 3, axis=-1 if w.opset >= 11 else 2)
        parts = [At(v, (*at.shape[:2], width), 2.5) for v in made]
    else:
        parts = [linear(w, at, width) for _ in range(3)]
    q, k, v = (heads(w, part, count, depth) for part in parts)
    if w.knows("Einsum") and w.chance(0.3):
        scores = w.op("Einsum", q.value, k.value, equation="bhqd,bhkd->bhqk")
    else:
        scores = w.op("MatMul", q.value, w.op("Transpose", k.value, perm=[0, 1, 3, 2]))
    scores = w.op("Mul", scores, w.number(depth**-0.5))
    mixed = w.op("MatMul", w.op("Softmax", scores, axis=3), v.value)
    turned = At(w.op("Transpose", mixed, perm=[0, 2, 1, 3]), (at.shape[0], length, count, depth))
    merged = At(w.reshape(turned, (at.shape[0], length, width)), (at.shape[0], length, width))
    if w.chance(0.7):
        back = linear(w, merged, int(at.shape[2]))
        w.push(w.op("Add", back.value, at.value), at.shape, 2.5 + at.bound)
    else:
        w.values.append(merged)


def feed_forward(w: Walk) -> None:
    """Two layers and a residual, now and then gated."""
    at = rows(w)
    hidden = w.integer(2, 10)
    inner = linear(w, at, hidden)
    value = w.op(w.choose(["Relu", "Sigmoid"]), inner.value)
    if w.chance(0.4):
        value = w.op("Mul", value, linear(w, at, hidden).value)
    back = linear(w, At(value, inner.shape), int(at.shape[2]))
    w.push(w.op("Add", back.value, at.value), at.shape, 2.5 + at.bound)


def mixer(w: Walk) -> None:
    """A layer along the other axis."""
    at = rows(w)
    turned = At(w.op("Transpose", at.value, perm=[0, 2, 1]), (at.shape[0], at.shape[2], at.shape[1]))
    made = linear(w, turned, w.integer(2, 6))
    w.push(w.op("Transpose", made.value, perm=[0, 2, 1]), (at.shape[0], made.shape[2], at.shape[2]), 2.5)


def product(w: Walk) -> None:
    """A matrix product of two values at hand."""
    at = w.pick(lambda at: at.rank > 1 and at.rank - 1 in at.free)
    if at is None:
        return
    shape = (*at.shape[:-2], at.shape[-1], w.integer(2, 6))
    if at.rank == 2 and isinstance(at.shape[-1], int):
        other = adapt(w, (int(at.shape[1]), int(shape[1])))
    else:
        other = axis_by_axis(w, like(w, at), (*at.shape[:-2], int(shape[-1]), int(at.shape[-1])))
        perm = [*range(at.rank - 2), at.rank - 1, at.rank - 2]
        other = At(w.op("Transpose", other.value, perm=perm), shape, other.bound)
    bound = int(at.shape[-1]) ** 0.5 * at.bound * other.bound
    w.push(w.op("MatMul", at.value, other.value), (*at.shape[:-1], shape[-1]), bound)


def einsum(w: Walk) -> None:
    """An Einsum of one value with weights, or of two values."""
    at = w.pick(lambda at: at.rank in (2, 3, 4) and at.rank - 1 in at.free)
    if at is None or not w.knows("Einsum"):
        return
    letters = "abcd"[: at.rank]
    inner, columns = int(at.shape[-1]), w.integer(2, 6)
    if w.chance(0.5):
        dim = w.choose(at.free)
        result = "".join(letters[d] for d in w.rng.permutation([d for d in range(at.rank) if d != dim]) if d)
        result = f"a{result}z" if dim else f"{result}z"
        weight = w.matrix(int(at.shape[dim]), columns)
        value = w.op("Einsum", at.value, weight, equation=f"{letters},{letters[dim]}z->{result}")
        w.push(value, [columns if c == "z" else at.shape[letters.index(c)] for c in result], 3.0)
    else:
        other = like(w, at)
        what = w.choose(["dot", "outer", "keep"]) if at.rank > 2 else "keep"
        second = f"{letters[:-2]}z{letters[-1]}"
        equation, shape, bound = {
            "dot": (f"{letters},{letters}->{letters[:-1]}", at.shape[:-1], inner),
            "outer": (f"{letters},{second}->{letters[:-1]}z", (*at.shape[:-1], at.shape[-2]), inner),
            "keep": (f"{letters},{letters}->{letters}", at.shape, 1),
        }[what]
        value = w.op("Einsum", at.value, other.value, equation=equation)
        w.push(value, shape, bound * at.bound * other.bound)


def shared(w: Walk) -> None:
    """One layer at two places."""
    at = w.pick(lambda at: at.rank > 1 and at.rank - 1 in at.free)
    if at is None:
        return
    other = like(w, at)
    columns = w.integer(2, 8)
    weight = w.matrix(int(at.shape[-1]), columns)
    for one in (at, other):
        w.push(w.op("MatMul", one.value, weight), (*at.shape[:-1], columns), 2.5)


def tied(w: Walk) -> None:
    """An embedding, and the product with its transpose."""
    entries, width = w.integer(5, 9), w.integer(3, 6)
    table = w.weight(entries, width)
    index = w.ints(*(w.integer(0, entries - 1) for _ in range(3)))
    found = At(w.op("Gather", table, index, axis=0), (3, width), 1.0)
    number = adapt(w, (1, width))
    mixed = At(w.op("Mul", found.value, number.value), (3, width), number.bound)
    made = linear(w, mixed, width)
    w.push(w.op("Gemm", made.value, table, transB=1), (3, entries), 3.0)


def to_image(w: Walk) -> None:
    """Rows as pixels."""
    at = w.pick(lambda at: at.rank == 3 and at.size <= 400)
    if at is not None:
        turned = At(w.op("Transpose", at.value, perm=[0, 2, 1]), (at.shape[0], at.shape[2], at.shape[1]))
        n = int(at.shape[1])
        high = w.divisor(n)
        shape = (at.shape[0], int(at.shape[2]), high, n // high)
        w.push(w.reshape(turned, shape), shape, at.bound)


def to_rows(w: Walk) -> None:
    """Pixels as rows."""
    at = image(w)
    shape = (at.shape[0], at.shape[1], int(at.shape[2]) * int(at.shape[3]))
    flat = w.reshape(at, shape)
    w.push(w.op("Transpose", flat, perm=[0, 2, 1]), (shape[0], shape[2], shape[1]), at.bound)
