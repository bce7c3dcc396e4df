"""What is added to scores or turned in queries and keys: position bias, angles, masks, slopes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.errors import Reason
from onnxprune.testing import check_model
from tests.structures.attention_nets import (
    DEPTH,
    EACH,
    FEED_FORWARD,
    HEADS,
    INNER,
    SEPARATE,
    TOKENS,
    WHOLE,
    WIDTH,
    Net,
    alternatives_are,
    digit,
    rows,
    units_are,
)

BUCKETS, HALF = 7, DEPTH // 2


def checked(model, **options):
    return check_model(model, seeds=(0, 1), **options)


def attention(n, x, change, *others, **options):
    """One block whose scores are changed."""
    q, k, v = n.project(x)
    return n.close(x, n.together(n.attend(q, k, v, change)), INNER, *others, **options)


def bias(n, table):
    return lambda scores: n.op("Add", scores, table, name="bias")


# --- a bias per head -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (1,)])
def test_table(lead):
    """(H, N, N), or (1, H, N, N) as exporters fold it."""
    n = Net()
    x = n.tokens()
    result = checked(attention(n, x, bias(n, n.weight((*lead, HEADS, TOKENS, TOKENS), "table"))))
    units_are(result, {**SEPARATE, f"table[{len(lead)}]": EACH}, FEED_FORWARD)


def relative():
    """Constant indices into a table of relative positions."""
    place = np.arange(TOKENS)
    return np.clip(place[:, None] - place[None], -3, 3) + 3


def gathered(n, x):
    """Swin: table[index.view(-1)].view(N, N, H).permute(2, 0, 1).unsqueeze(0)"""
    taken = n.op("Gather", n.weight((BUCKETS, HEADS), "table"), n.constant(relative().ravel()), axis=0)
    return n.unsqueeze(n.permute(n.reshape(taken, TOKENS, TOKENS, HEADS), 2, 0, 1), 0)


def gathered_rows(n, x):
    """LeViT: table (H, positions), its columns by constant indices."""
    taken = n.op("Gather", n.weight((HEADS, BUCKETS), "table"), n.constant(relative().ravel()), axis=1)
    return n.reshape(taken, HEADS, TOKENS, TOKENS)


@pytest.mark.parametrize(("lookup", "axis"), [(gathered, 1), (gathered_rows, 0)])
def test_gathered_table(lookup, axis):
    n = Net()
    x = n.tokens()
    result = checked(attention(n, x, bias(n, lookup(n, x))))
    units_are(result, {**SEPARATE, f"table[{axis}]": EACH}, FEED_FORWARD)
    # (query, key): keys meet the softmax at once, queries the input of the model at last
    assert result.reason(f"table[{1 - axis}]") is Reason.GRAPH_INPUT


def buckets(n, x):
    """T5: min(|j - i|, 6) from the number of tokens at run time."""
    count = n.pick(n.op("Shape", x), 1, 0)
    place = n.op("Range", n.constant(0), count, n.constant(1))
    distance = n.op("Abs", n.op("Sub", n.unsqueeze(place, 0), n.unsqueeze(place, 1)))
    return n.op("Min", distance, n.constant(BUCKETS - 1))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("tokens", [TOKENS, "tokens"])
def test_embedded_buckets(layers, tokens):
    """T5: one embedding (buckets, H) for all layers ties head h of each of them into one unit."""
    n = Net()
    x = start = n.tokens(tokens=tokens)
    taken = n.op("Gather", n.weight((BUCKETS, HEADS), "table"), buckets(n, start), name="lookup")
    change = bias(n, n.unsqueeze(n.permute(taken, 2, 0, 1), 0))
    units = {"table[1]": EACH}
    for layer in range(layers):
        names = [f"{layer}.{part}" for part in "qkv"]
        q, k, v = (n.apart(n.linear(x, WIDTH, INNER, name), tokens=0) for name in names)
        mixed = n.together(n.attend(q, k, v, change), tokens=0)
        x = n.op("Add", x, n.linear(mixed, INNER, WIDTH, f"{layer}.out"))
        units |= {**rows(names), f"{layer}.out.weight[0]": WHOLE}
    bindings = {"tokens": TOKENS} if tokens == "tokens" else None
    units_are(checked(n.close(x, x, WIDTH, bindings=bindings), bindings=bindings), units, FEED_FORWARD)


# --- slopes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(HEADS, 1, 1), (1, HEADS, 1, 1)])
def test_slopes(shape):
    """ALiBi: slopes times distances, constant."""
    n = Net()
    x = n.tokens()
    count = n.pick(n.op("Shape", x), 1, 0)
    place = n.op("Cast", n.op("Range", n.constant(0), count, n.constant(1)), to=ir.DataType.FLOAT)
    slopes = n.op("Mul", n.weight(shape, "slopes"), place, name="slope")
    result = checked(attention(n, x, bias(n, slopes)))
    units_are(result, {**SEPARATE, f"slopes[{len(shape) - 3}]": EACH}, FEED_FORWARD)


def test_slopes_from_the_mask():
    """BLOOM: (cumsum(mask) - 1) * mask times slopes (H, 1), to (B*H, 1, N); scores of three axes."""
    n = Net()
    x = n.tokens()
    mask = n.op("Cast", n.input("mask", ("batch", TOKENS), ir.DataType.INT64), to=ir.DataType.FLOAT)
    place = n.op("Mul", n.op("Sub", n.op("CumSum", mask, n.constant(-1)), n.number(1)), mask)
    slopes = n.op("Mul", n.weight((HEADS, 1), "slopes"), n.unsqueeze(place, 1), name="slope")
    slopes = n.reshape(slopes, -1, 1, TOKENS)
    q, k, v = (n.reshape(part, -1, TOKENS, DEPTH) for part in n.project(x))
    scores = n.op("Add", slopes, n.op("MatMul", q, n.permute(k, 0, 2, 1)))
    scores = n.reshape(scores, -1, HEADS, TOKENS, TOKENS)
    weights = n.reshape(n.op("Softmax", scores, axis=-1), -1, TOKENS, TOKENS)
    mixed = n.reshape(n.op("MatMul", weights, v), -1, HEADS, TOKENS, DEPTH)
    result = checked(n.close(x, n.together(mixed)))
    units_are(result, {**SEPARATE, "slopes[0]": EACH}, FEED_FORWARD)


# --- angles ----------------------------------------------------------------------------------------------


def angles(n, x):
    """cos and sin (N, D), tables."""
    return n.weight((TOKENS, DEPTH), "cos"), n.weight((TOKENS, DEPTH), "sin")


def half_angles(n, x):
    return n.weight((TOKENS, HALF), "cos"), n.weight((TOKENS, HALF), "sin")


def phases(n, half=HALF):
    """Frequencies (1, half, 1) times position ids (B, 1, N), as (B, N, half)."""
    ids = n.op("Cast", n.input("ids", ("batch", TOKENS), ir.DataType.INT64), to=ir.DataType.FLOAT)
    return n.permute(n.op("MatMul", n.weight((1, half, 1), "frequencies"), n.unsqueeze(ids, 1)), 0, 2, 1)


def computed_angles(n, x, half=HALF):
    """Llama: phases doubled by Concat, Cos and Sin, (B, 1, N, D)."""
    once = phases(n, half)
    twice = n.op("Concat", once, once, axis=-1)
    return n.unsqueeze(n.op("Cos", twice), 1), n.unsqueeze(n.op("Sin", twice), 1)


def computed_angles_of_some(n, x):
    return computed_angles(n, x, (DEPTH - 2) // 2)


def interleaved_angles(n, x):
    """GPT-J: every phase twice in a row, by Expand and Reshape."""
    wide = n.op("Expand", n.unsqueeze(phases(n), 3), n.constant([1, 1, 1, 2]))
    twice = n.reshape(wide, 0, TOKENS, DEPTH)
    return n.unsqueeze(n.op("Cos", twice), 1), n.unsqueeze(n.op("Sin", twice), 1)


def looked_up_halves(n, x):
    """Tables (16, D/2), looked up by position ids and doubled."""
    ids = n.input("ids", ("batch", TOKENS), ir.DataType.INT64)
    tables = n.weight((16, HALF), "cos"), n.weight((16, HALF), "sin")
    once = [n.unsqueeze(n.op("Gather", table, ids), 1) for table in tables]
    return tuple(n.op("Concat", part, part, axis=-1) for part in once)


def looked_up_angles(n, x):
    """The same, looked up by position ids."""
    ids = n.input("ids", ("batch", TOKENS), ir.DataType.INT64)
    tables = n.weight((16, DEPTH), "cos"), n.weight((16, DEPTH), "sin")
    return tuple(n.unsqueeze(n.op("Gather", table, ids), 1) for table in tables)


def rotate_half(n, y, cos, sin):
    """y * cos + concat(-y[D/2:], y[:D/2]) * sin"""
    half = DEPTH // 2
    left, right = n.cut(y, 0, half, 3), n.cut(y, half, 2**63 - 1, 3)
    turned = n.op("Concat", n.op("Neg", right), left, axis=-1)
    return n.op("Add", n.op("Mul", y, cos), n.op("Mul", turned, sin))


def rotate_half_by_split(n, y, cos, sin):
    half = DEPTH // 2
    left, right = n.split(y, half, half, axis=3)
    turned = n.op("Concat", n.op("Neg", right), left, axis=-1)
    return n.op("Add", n.op("Mul", y, cos), n.op("Mul", turned, sin))


def rotate_pairs(n, y, cos, sin):
    """GPT-J: y * cos + stack(-y[1::2], y[::2]) * sin"""
    even, odd = n.cut(y, 0, 2**63 - 1, 3, 2), n.cut(y, 1, 2**63 - 1, 3, 2)
    turned = n.op("Concat", n.unsqueeze(n.op("Neg", odd), 4), n.unsqueeze(even, 4), axis=4)
    turned = n.reshape(turned, 0, HEADS, TOKENS, DEPTH)
    return n.op("Add", n.op("Mul", y, cos), n.op("Mul", turned, sin))


def rotate_reshaped(n, y, cos, sin):
    """The same by Reshape to (..., D/2, 2) and Split."""
    odd_even = n.reshape(y, 0, HEADS, TOKENS, DEPTH // 2, 2)
    even, odd = n.split(odd_even, 1, 1, axis=4)
    turned = n.reshape(n.op("Concat", n.op("Neg", odd), even, axis=4), 0, HEADS, TOKENS, DEPTH)
    return n.op("Add", n.op("Mul", y, cos), n.op("Mul", turned, sin))


def rotate_complex(n, y, cos, sin):
    """Pairs as complex numbers: Reshape to (..., D/2, 2), each part by Gather, stacked, (0, 0, 0, -1)."""
    y = n.reshape(y, 0, HEADS, TOKENS, HALF, 2)
    real, other = n.pick(y, 0, 4), n.pick(y, 1, 4)
    turned = (
        n.op("Sub", n.op("Mul", real, cos), n.op("Mul", other, sin)),
        n.op("Add", n.op("Mul", real, sin), n.op("Mul", other, cos)),
    )
    y = n.op("Concat", *(n.unsqueeze(part, 4) for part in turned), axis=4)
    return n.reshape(y, 0, 0, 0, -1)


def rotate_some(n, y, cos, sin):
    """GPT-NeoX: the first dimensions only, the others pass."""
    some = DEPTH - 2
    head, rest = n.cut(y, 0, some, 3), n.cut(y, some, 2**63 - 1, 3)
    left, right = n.cut(head, 0, some // 2, 3), n.cut(head, some // 2, 2**63 - 1, 3)
    turned = n.op("Concat", n.op("Neg", right), left, axis=-1)
    head = n.op("Add", n.op("Mul", head, cos), n.op("Mul", turned, sin))
    return n.op("Concat", head, rest, axis=-1)


def rotated(rotate, make):
    n = Net()
    x = n.tokens()
    q, k, v = n.project(x)
    turns = make(n, x)
    model = n.close(x, n.together(n.attend(*(rotate(n, part, *turns) for part in (q, k)), v)))
    return checked(model, highs={"ids": 9})


HALVES = np.tile(np.arange(HALF), 2)
PAIRS = np.repeat(np.arange(HALF), 2)
TABLES = ("cos[1]", "sin[1]")
VALUES = {**rows("v", digit(HEADS, DEPTH, of=1)), "proj.weight[0]": digit(HEADS, DEPTH, of=1)}


@pytest.mark.parametrize(
    ("rotate", "make", "pair", "others"),
    [
        (rotate_half, angles, HALVES, dict.fromkeys(TABLES, HALVES)),
        (rotate_half, computed_angles, HALVES, {"frequencies[1]": np.arange(HALF)}),
        (rotate_half, looked_up_angles, HALVES, dict.fromkeys(TABLES, HALVES)),
        (rotate_half, looked_up_halves, HALVES, dict.fromkeys(TABLES, np.arange(HALF))),
        (rotate_half_by_split, computed_angles, HALVES, {"frequencies[1]": np.arange(HALF)}),
        (rotate_pairs, angles, PAIRS, dict.fromkeys(TABLES, PAIRS)),
        (rotate_pairs, interleaved_angles, PAIRS, {"frequencies[1]": np.arange(HALF)}),
        (rotate_reshaped, interleaved_angles, PAIRS, {"frequencies[1]": np.arange(HALF)}),
        (rotate_complex, half_angles, PAIRS, dict.fromkeys(TABLES, np.arange(HALF))),
    ],
)
def test_angles(rotate, make, pair, others):
    """Whole heads; or rotated pairs of dimensions with their angles."""
    result = rotated(rotate, make)
    units_are(result, SEPARATE, FEED_FORWARD)
    alternatives_are(result, {**rows("qk", np.tile(pair, HEADS)), **others}, VALUES)


def test_some_dimensions_are_rotated():
    """Whole heads; or pairs of the rotated dimensions, the others one by one."""
    result = rotated(rotate_some, computed_angles_of_some)
    units_are(result, SEPARATE, FEED_FORWARD)
    turned, still = (np.tile(unit, HEADS) for unit in ([0, 1, 0, 1, -1, -1], [-1, -1, -1, -1, 0, 1]))
    some = {**rows("qk", turned), "frequencies[1]": np.arange(2)}
    alternatives_are(result, some, rows("qk", still), VALUES)


def test_angles_of_the_first_tokens():
    """A cache (1, 1, 16, D), sliced to the number of tokens at run time: its rows stay."""
    n = Net()
    x = n.tokens(tokens="tokens")
    count = n.op("Slice", n.op("Shape", x), n.constant([1]), n.constant([2]))
    tables = n.weight((1, 1, 16, DEPTH), "cos"), n.weight((1, 1, 16, DEPTH), "sin")
    turns = [n.op("Slice", table, n.constant([0]), count, n.constant([2])) for table in tables]
    q, k, v = (n.apart(n.linear(x, WIDTH, INNER, name), tokens=0) for name in "qkv")
    mixed = n.attend(*(rotate_half(n, part, *turns) for part in (q, k)), v)
    bindings = {"tokens": TOKENS}
    result = checked(n.close(x, n.together(mixed, tokens=0), bindings=bindings), bindings=bindings)
    units_are(result, SEPARATE, FEED_FORWARD)
    assert result.reason("cos[2]") is Reason.DYNAMIC
    pairs = {**rows("qk", np.tile(HALVES, HEADS)), **dict.fromkeys(("cos[3]", "sin[3]"), HALVES)}
    alternatives_are(result, pairs, VALUES)
