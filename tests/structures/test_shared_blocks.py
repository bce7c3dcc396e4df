"""One weight at several places, several inputs, several outputs."""

from __future__ import annotations

import numpy as np
import pytest
from block_nets import Blocks, check, others, pinned, used


class Twice(Blocks):
    """Layers whose weights are made once and used at several places."""

    def shared_gemm(self, inner, outer, name):
        w, b = self.weight((outer, inner), f"{name}.weight"), self.weight((outer,), f"{name}.bias")
        return lambda x: self.mark(self.op("Gemm", x, w, b, transB=1, name=name), outer)

    def shared_linear(self, inner, outer, name):
        w, b = self.weight((inner, outer), f"{name}.weight"), self.weight((outer,), f"{name}.bias")
        return lambda x: self.mark(self.op("Add", b, self.op("MatMul", x, w, name=name)), outer)

    def rows(self, width, name="x"):
        return self.mark(self.input(name, ("n", width)), width)


def test_a_layer_called_twice():
    """One linear layer at two depths: its inputs and its outputs are one width."""
    n = Twice()
    layer = n.shared_linear(8, 8, "layer")
    x = n.linear(n.sequence(5), 8, name="embed")
    x = n.relu(layer(n.relu(layer(x))))
    result = check(n, n.linear(x, 3, name="head"))
    assert used(result) == ["embed: 8: embed[1]+bias layer[1]+bias+bias/shared_1 -> layer[0] head[0]"]


def test_a_block_called_twice():
    """ALBERT: the same feed-forward block in every layer; the hidden width is a group of its own."""
    n = Twice()
    up, down = n.shared_linear(8, 12, "up"), n.shared_linear(12, 8, "down")
    x = n.linear(n.sequence(5), 8, name="embed")
    for _ in range(3):
        x = n.add(x, down(n.relu(up(x))))
    result = check(n, n.linear(x, 3, name="head"))
    assert used(result) == [
        "embed: 8: embed[1]+bias down[1]+bias+bias/shared_1+bias/shared_2 -> up[0] head[0]",
        "up: 12: up[1]+bias+bias/shared_1+bias/shared_2 -> down[0]",
    ]


def test_a_layer_on_different_widths():
    """A shared layer between branches that are nothing to each other: both inputs are tied by it."""
    n = Twice()
    layer = n.shared_gemm(8, 6, "layer")
    a, b = n.relu(n.gemm(n.rows(4, "a"), 8, name="a")), n.relu(n.gemm(n.rows(5, "b"), 8, name="b"))
    result = check(n, n.gemm(n.relu(layer(a)), 3, name="head_a"), n.gemm(n.relu(layer(b)), 2, name="head_b"))
    assert used(result) == [
        "a_1: 8: a[0]+bias b[0]+bias -> layer[1]",
        "layer: 6: layer[0]+bias+bias/shared_1 -> head_a[1] head_b[1]",
    ]


@pytest.mark.parametrize("how", ["product", "matmul", "all pairs"])
def test_two_towers(how):
    """Users and items: the dimensions of their embeddings meet in a dot product, and go together."""
    n = Twice()
    user = n.gemm(n.relu(n.gemm(n.rows(4, "user"), 10, name="u1")), 6, name="u2")
    item = n.gemm(n.relu(n.gemm(n.rows(5, "item"), 12, name="i1")), 6, name="i2")
    if how == "product":
        score = n.op("ReduceSum", n.mul(user, item), n.constant([1]), keepdims=0, name="dot")
    elif how == "matmul":
        score = n.op(
            "MatMul", n.op("Unsqueeze", user, n.constant([1])), n.op("Unsqueeze", item, n.constant([2]))
        )
    else:
        score = n.op("MatMul", user, n.op("Transpose", item, perm=[1, 0]), name="all")
    result = check(n, score)
    assert used(result) == [
        "u1: 10: u1[0]+bias -> u2[1]",
        "u2: 6: u2[0]+bias i2[0]+bias -> ",
        "i1: 12: i1[0]+bias -> i2[1]",
    ]


def test_cosine_towers():
    """Embeddings of unit length: norms and product sum over the dimensions, zeros add nothing to either."""
    n = Twice()
    units = []
    for name, width in (("user", 4), ("item", 5)):
        x = n.gemm(n.relu(n.gemm(n.rows(width, name), 10, name=f"{name}1")), 6, name=f"{name}2")
        units.append(n.mark(n.op("Div", x, n.op("ReduceL2", x, axes=[1], keepdims=1)), 6))
    result = check(n, n.op("ReduceSum", n.mul(*units), n.constant([1]), keepdims=0, name="dot"))
    assert used(result) == [
        "user1: 10: user1[0]+bias -> user2[1]",
        "user2: 6: user2[0]+bias item2[0]+bias -> ",
        "item1: 10: item1[0]+bias -> item2[1]",
    ]


def test_siamese_difference():
    """The same encoder on two inputs, their absolute difference."""
    n = Twice()
    first, second = n.shared_gemm(5, 10, "enc1"), n.shared_gemm(10, 6, "enc2")
    a, b = (second(n.relu(first(n.rows(5, name)))) for name in ("a", "b"))
    result = check(n, n.gemm(n.like("Abs", n.like("Sub", a, b)), 1, name="head"))
    assert used(result) == [
        "enc1: 10: enc1[0]+bias+bias/shared_1 -> enc2[1]",
        "enc2: 6: enc2[0]+bias+bias/shared_1 -> head[1]",
    ]


@pytest.mark.parametrize("shown", [True, False])
def test_autoencoder(shown):
    """The latent code is an output, or only passed on."""
    n = Twice()
    x = n.rows(9)
    code = n.gemm(n.relu(n.gemm(x, 12, name="enc1")), 6, name="enc2")
    back = n.gemm(n.relu(n.gemm(code, 10, name="dec1")), 9, name="dec2")
    result = check(n, *([back, code] if shown else [back]))
    if shown:
        assert used(result) == [
            "enc1: 12: enc1[0]+bias -> enc2[1]",
            "dec1: 10: dec1[0]+bias -> dec2[1]",
        ]
        assert pinned(result, "enc2.weight[0]", "dec1.weight[1]") == ["GRAPH_OUTPUT", "GRAPH_OUTPUT"]
    else:
        assert used(result) == [
            "enc1: 12: enc1[0]+bias -> enc2[1]",
            "enc2: 6: enc2[0]+bias -> dec1[1]",
            "dec1: 10: dec1[0]+bias -> dec2[1]",
        ]


def test_tied_autoencoder():
    """The decoder is the encoder's weight, transposed: hidden units are its rows on both sides."""
    n = Twice()
    w = n.weight((6, 9), "w")
    code = n.op("Relu", n.op("Gemm", n.rows(9), w, n.weight((6,), "enc.bias"), transB=1, name="enc"))
    result = check(n, n.op("Gemm", code, w, n.weight((9,), "dec.bias"), name="dec"))
    assert used(result) == ["enc: 6: enc.bias[0] -> w[0]"]
    assert pinned(result, "w[1]") == ["GRAPH_INPUT"]


def test_variational_code():
    """Mean and spread of a code in two halves of one layer; they stay, as the noise for them is an input."""
    n = Twice()
    both = n.gemm(n.relu(n.gemm(n.rows(9), 12, name="enc1")), 12, name="enc2")
    mean, spread = n.split(both, 6, 6)
    spread = n.like("Exp", n.like("Mul", spread, n.scalar(0.5)))
    noise = n.rows(6, "noise")
    code = n.add(mean, n.mul(spread, noise))
    result = check(n, n.gemm(n.relu(n.gemm(code, 10, name="dec1")), 9, name="dec2"))
    assert used(result) == [
        "enc1: 12: enc1[0]+bias -> enc2[1]",
        "dec1: 10: dec1[0]+bias -> dec2[1]",
    ]


def test_factorisation_machine():
    """Second-order terms by sums over fields and then over dimensions: either can be cut."""
    n = Twice()
    fields = n.reshape(n.gemm(n.rows(5), 24, name="embed"), 0, 4, 6, channels=6, name="fields")
    total = n.op("ReduceSum", fields, n.constant([1]), keepdims=0, name="total")
    squares = n.op("ReduceSum", n.op("Mul", fields, fields), n.constant([1]), keepdims=0, name="squares")
    pairs = n.op("Sub", n.op("Mul", total, total), squares)
    result = check(n, n.op("ReduceSum", pairs, n.constant([1]), keepdims=1, name="out"))
    assert used(result) == ["embed: 6 of 4: embed[0]+bias -> "]
    assert others(result) == ["embed: 4 of 6: embed[0]+bias -> "]


def test_cross_network():
    """DCN: x0 * (W x + b) + x, again and again, beside a deep part: one stream of inputs."""
    n = Twice()
    x0 = x = n.gemm(n.rows(5), 8, name="embed")
    for i in range(2):
        x = n.add(n.mul(x0, n.gemm(x, 8, name=f"cross{i}")), x)
    deep = n.relu(n.gemm(x0, 10, name="deep"))
    result = check(n, n.gemm(n.concat(x, deep), 1, name="head"))
    assert used(result) == [
        "embed: 8: embed[0]+bias cross0[0]+bias cross1[0]+bias -> cross0[1] cross1[1] deep[1] head[1]",
        "deep: 10: deep[0]+bias -> head[1]",
    ]


def test_pairs_of_features():
    """DLRM: dot products of all pairs of embeddings; the dimensions of all tables are one width."""
    n = Twice()
    rows = [n.unsqueeze(n.gemm(n.rows(4, f"x{i}"), 6, name=f"table{i}"), 1) for i in range(3)]
    stacked = n.op("Concat", *rows, axis=1, name="stack")
    pairs = n.op("MatMul", stacked, n.op("Transpose", stacked, perm=[0, 2, 1]), name="pairs")
    flat = n.mark(n.op("Reshape", pairs, n.constant([0, 9]), name="flat"), 9)
    upper = n.gather(flat, [1, 2, 5], 1, name="upper")
    result = check(n, n.gemm(n.relu(n.gemm(upper, 7, name="top1")), 1, name="top2"))
    assert used(result) == [
        "table0: 6: table0[0]+bias table1[0]+bias table2[0]+bias -> ",
        "top1: 7: top1[0]+bias -> top2[1]",
    ]


def test_prototypes():
    """Distances to constant prototypes: the dimensions of embeddings and prototypes are summed over."""
    n = Twice()
    x = n.gemm(n.relu(n.gemm(n.rows(5), 10, name="fc1")), 6, name="embed")
    away = n.op("Sub", n.op("Unsqueeze", x, n.constant([1])), n.weight((4, 6), "prototypes"), name="away")
    distance = n.op("ReduceSum", n.op("Mul", away, away), n.constant([2]), keepdims=0, name="distance")
    assert used(check(n, n.op("Neg", distance))) == [
        "fc1: 10: fc1[0]+bias -> embed[1]",
        "embed: 6: embed[0]+bias prototypes[1] -> ",
    ]


def test_capsules():
    """Votes of lower capsules for upper ones, summed: dimensions are cut, or whole lower capsules."""
    n = Twice()
    u = n.reshape(n.gemm(n.rows(5), 24, name="lower"), 0, 6, 1, 1, 4, name="capsules")
    votes = n.op("MatMul", u, n.weight((6, 3, 4, 5), "votes.weight"), name="votes")  # (n, 6, 3, 1, 5)
    upper = n.op("ReduceSum", votes, n.constant([1, 3]), keepdims=0, name="upper")
    result = check(
        n, n.op("ReduceSum", n.op("Mul", upper, upper), n.constant([2]), keepdims=0, name="length")
    )
    assert used(result) == [
        "lower: 4 of 6: lower[0]+bias -> votes[2]",
        "votes: 5: votes[3] -> ",
    ]
    assert others(result) == ["lower: 6 of 4: lower[0]+bias votes[0] -> "]


def test_graph_convolution():
    """A'XW twice: the adjacency is an input, features are units, nodes stay."""
    n = Twice()
    adjacency = n.input("adjacency", ("n", 6, 6))
    x = n.linear(n.sequence(5), 8, bias=False, name="w1")
    x = n.relu(n.mark(n.op("MatMul", adjacency, x, name="spread1"), 8))
    x = n.op("MatMul", adjacency, n.linear(x, 3, bias=False, name="w2"), name="spread2")
    assert used(check(n, x)) == ["w1: 8: w1[1] -> w2[0]"]


def test_point_cloud():
    """PointNet: a shared layer on every point, maximum over points, joined to each point again."""
    n = Twice()
    x = n.relu(n.linear(n.sequence(3), 8, name="point"))
    peak = n.op("ReduceMax", n.relu(n.linear(x, 12, name="wide")), axes=[1], keepdims=1, name="peak")
    shape = n.op("Concat", n.op("Shape", x, end=2), n.constant([12]), axis=0)
    everywhere = n.mark(n.op("Expand", peak, shape, name="everywhere"), 12)
    result = check(n, n.linear(n.concat(x, everywhere, axis=2), 4, name="label"))
    assert used(result) == [
        "point: 8: point[1]+bias -> wide[0] label[0]",
        "wide: 12: wide[1]+bias -> label[0]",
    ]


def test_stacked_hourglass():
    """Heat maps are an output and are fed back into the stream."""
    n = Blocks()
    x = n.stem(8)
    shown = []
    for i in range(2):
        y = n.relu(n.conv(n.resize(n.relu(n.conv(x, 10, stride=2, name=f"h{i}.down"))), 8, name=f"h{i}.up"))
        heat = n.conv(y, 3, 1, name=f"h{i}.heat")
        shown.append(heat)
        x = n.add(n.add(x, n.conv(y, 8, 1, name=f"h{i}.merge")), n.conv(heat, 8, 1, name=f"h{i}.back"))
    assert used(check(n, *shown)) == [
        "stem: 8: stem[0]+bias h0.merge[0]+bias h0.back[0]+bias -> h0.down[1] h1.down[1]",
        "h0.down: 10: h0.down[0]+bias -> h0.up[1]",
        "h0.up: 8: h0.up[0]+bias -> h0.heat[1] h0.merge[1]",
        "h1.down: 10: h1.down[0]+bias -> h1.up[1]",
        "h1.up: 8: h1.up[0]+bias -> h1.heat[1]",
    ]


def test_constant_class_token_with_positions():
    """Learnt parameters that are added, multiplied and concatenated are cut with what they meet."""
    n = Blocks()
    x = n.like("Add", n.linear(n.sequence(5), 8, name="embed"), n.weight((1, 6, 8), "positions"))
    x = n.like("Mul", x, n.constant(np.float32(n.rng.uniform(0.5, 1, (8,))), "scale"))
    assert used(check(n, n.linear(x, 3, name="head"))) == [
        "embed: 8: embed[1]+bias positions[2] scale[0] -> head[0]"
    ]
