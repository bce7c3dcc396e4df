"""Mixtures of experts: dense and sparse routing, stacked and separate weights, as exporters write them."""

from __future__ import annotations

import numpy as np
import pytest
from block_nets import Blocks, check, pinned, used

EXPERTS, WIDTH, HIDDEN, TOKENS = 4, 8, 10, 6


def router(n, x, name="router"):
    """A softmax over experts for every token."""
    return n.softmax(n.linear(x, EXPERTS, bias=False, name=name), -1)


def stacked_expert(n, x):
    """All experts at once: batched MatMul with weights (experts, in, out)."""
    up = n.op("MatMul", x, n.weight((EXPERTS, WIDTH, HIDDEN), "up.weight"), name="up")
    up = n.op("Relu", n.op("Add", up, n.weight((EXPERTS, 1, HIDDEN), "up.bias"), name="up.add"))
    down = n.op("MatMul", up, n.weight((EXPERTS, HIDDEN, WIDTH), "down.weight"), name="down")
    return n.op("Add", down, n.weight((EXPERTS, 1, WIDTH), "down.bias"), name="down.add")


def start(n):
    return n.linear(n.sequence(5, TOKENS), WIDTH, name="embed")


def finish(n, x, y):
    return n.linear(n.add(x, n.mark(y, WIDTH)), 3, name="head")


@pytest.mark.parametrize("how", ["sum", "matmul", "einsum"])
def test_dense_routing(how):
    """Every expert sees every token; hidden channels are one width for all experts, experts stay."""
    n = Blocks()
    x = start(n)
    share = router(n, x)  # (n, tokens, experts)
    y = stacked_expert(n, n.op("Unsqueeze", x, n.constant([1])))  # (n, experts, tokens, width)
    if how == "sum":
        gate = n.op("Unsqueeze", n.op("Transpose", share, perm=[0, 2, 1]), n.constant([3]))
        y = n.op("ReduceSum", n.op("Mul", y, gate, name="weigh"), n.constant([1]), keepdims=0, name="sum")
    elif how == "matmul":
        gate = n.op("Unsqueeze", share, n.constant([2]))  # (n, tokens, 1, experts)
        y = n.op("MatMul", gate, n.op("Transpose", y, perm=[0, 2, 1, 3]), name="mix")
        y = n.op("Squeeze", y, n.constant([2]))
    else:
        y = n.op("Einsum", share, y, equation="bte,betd->btd", name="mix")
    result = check(n, finish(n, x, y))
    assert used(result) == [
        "embed: 8: embed[1]+bias down[2] down.bias[2] -> router[0] up[1] head[0]",
        "up: 10: up[2] up.bias[2] -> down[1]",
    ]
    assert pinned(result, "up.weight[0]", "router.weight[1]") == ["SOFTMAX", "SOFTMAX"]


def test_experts_by_einsum():
    """btd,edh->beth: the same, with the weights as operands of Einsum."""
    n = Blocks()
    x = start(n)
    up = n.op(
        "Einsum", x, n.weight((EXPERTS, WIDTH, HIDDEN), "up.weight"), equation="btd,edh->beth", name="up"
    )
    down = n.weight((EXPERTS, HIDDEN, WIDTH), "down.weight")
    y = n.op("Einsum", n.op("Relu", up), down, equation="beth,ehd->betd", name="down")
    y = n.op("Einsum", router(n, x), y, equation="bte,betd->btd", name="mix")
    result = check(n, finish(n, x, y))
    assert used(result) == [
        "embed: 8: embed[1]+bias down[2] -> up[1] router[0] head[0]",
        "up: 10: up[2] -> down[1]",
    ]


def test_gated_experts():
    """Mixtral's experts, stacked: gate and up in one weight, cut in halves."""
    n = Blocks()
    x = start(n)
    both = n.op(
        "MatMul",
        n.op("Unsqueeze", x, n.constant([1])),
        n.weight((EXPERTS, WIDTH, 2 * HIDDEN), "gate_up.weight"),
    )
    gate, up = n.split(both, HIDDEN, HIDDEN, axis=-1)
    y = n.op(
        "MatMul", n.mul(n.silu(gate), up), n.weight((EXPERTS, HIDDEN, WIDTH), "down.weight"), name="down"
    )
    y = n.op("Einsum", router(n, x), y, equation="bte,betd->btd", name="mix")
    assert used(check(n, finish(n, x, y))) == [
        "embed: 8: embed[1]+bias down[2] -> gate_up[1] router[0] head[0]",
        "matmul: 10 of 2: gate_up[2] -> down[1]",
    ]


def expert(n, x, number):
    """One expert with its own weights."""
    return n.linear(n.relu(n.linear(x, HIDDEN, name=f"e{number}.up")), WIDTH, name=f"e{number}.down")


DOWNS = " ".join(f"e{i}.down[1]+bias" for i in range(EXPERTS))
UPS = " ".join(f"e{i}.up[0]" for i in range(EXPERTS))
STREAM = [f"embed: 8: embed[1]+bias {DOWNS} -> router[0] {UPS} head[0]"]
HIDDENS = [f"e{i}.up: 10: e{i}.up[1]+bias -> e{i}.down[0]" for i in range(EXPERTS)]


@pytest.mark.parametrize("how", ["split", "gather", "slice"])
def test_separate_experts(how):
    """Every expert is a branch with a hidden width of its own; the router hands out columns."""
    n = Blocks()
    x = start(n)
    share = router(n, x)
    if how == "split":
        gates = n.split(share, *[1] * EXPERTS, axis=2)
    elif how == "gather":
        gates = [n.op("Gather", share, n.constant(np.array([i])), axis=2) for i in range(EXPERTS)]
    else:
        gates = [n.slice(share, i, i + 1, axis=2) for i in range(EXPERTS)]
    y = n.op("Mul", expert(n, x, 0), gates[0])
    for i in range(1, EXPERTS):
        y = n.op("Add", y, n.op("Mul", expert(n, x, i), gates[i]))
    result = check(n, finish(n, x, y))
    assert used(result) == STREAM + HIDDENS
    assert pinned(result, "router.weight[1]") == ["SOFTMAX"]


def top_two(n, share):
    """The two largest shares of every token, scaled to a sum of 1, and whose they are."""
    values, which = n.ops("TopK", share, n.constant([2]), axis=-1, outputs=2, name="topk")
    total = n.op("ReduceSum", values, n.constant([-1]), keepdims=1)
    return n.op("Div", values, total), which


def kept_shares(n, share, how):
    """Shares of the two chosen experts, zero elsewhere: (n, tokens, experts)."""
    values, which = top_two(n, share)
    if how == "scatter":
        zeros = n.op("ConstantOfShape", n.op("Shape", share), name="zeros")
        return n.op("ScatterElements", zeros, which, values, axis=-1, name="scatter")
    if how == "masked":
        least = n.op("ReduceMin", values, axes=[-1], keepdims=1)
        total = n.op("ReduceSum", values, n.constant([-1]), keepdims=1)
        above = n.op("Div", share, total)
        return n.op("Where", n.op("Less", above, least), n.scalar(0), above, name="masked")
    hot = n.op(
        "OneHot", which, n.constant(np.array(EXPERTS)), n.constant(np.float32([0, 1])), axis=-1, name="hot"
    )
    weighed = n.op("Mul", hot, n.op("Unsqueeze", values, n.constant([3])), name="weigh")
    return n.op("ReduceSum", weighed, n.constant([2]), keepdims=0, name="shares")


@pytest.mark.parametrize("how", ["scatter", "masked", "onehot"])
@pytest.mark.parametrize("stacked", [True, False])
def test_top_two_experts_by_masks(how, stacked):
    """All experts run, two count: which two depends on the router, its experts stay."""
    n = Blocks()
    x = start(n)
    share = kept_shares(n, router(n, x), how)
    if stacked:
        y = stacked_expert(n, n.op("Unsqueeze", x, n.constant([1])))
        gate = n.op("Unsqueeze", n.op("Transpose", share, perm=[0, 2, 1]), n.constant([3]))
        y = n.op("ReduceSum", n.op("Mul", y, gate, name="mix"), n.constant([1]), keepdims=0, name="sum")
        result = check(n, finish(n, x, y))
        assert used(result) == [
            "embed: 8: embed[1]+bias down[2] down.bias[2] -> router[0] up[1] head[0]",
            "up: 10: up[2] up.bias[2] -> down[1]",
        ]
    else:
        y = n.op("Mul", expert(n, x, 0), n.gather(share, [0], 2))
        for i in range(1, EXPERTS):
            y = n.op("Add", y, n.op("Mul", expert(n, x, i), n.gather(share, [i], 2)))
        result = check(n, finish(n, x, y))
        assert used(result) == STREAM + HIDDENS


def routed(n, rows, chosen, values, number, how):
    """Rows of the tokens that chose an expert, sent through it and added back where they came from."""
    mine = n.op("Equal", chosen, n.constant(np.array(number)))
    where = n.op("Transpose", n.op("NonZero", mine, name=f"nonzero{number}"), perm=[1, 0])  # (count, 2)
    token = n.op("Slice", where, *(n.constant([v]) for v in (0, 1, 1)))  # (count, 1)
    weights = n.op("Unsqueeze", n.op("GatherND", values, where, name=f"shares{number}"), n.constant([1]))
    if how == "nd":
        taken = n.op("GatherND", rows, token, name=f"take{number}")
    else:
        taken = n.op("Gather", rows, n.op("Squeeze", token, n.constant([1])), axis=0, name=f"take{number}")
    y = n.op("Mul", expert(n, n.mark(taken, WIDTH), number), weights)
    return token, y


@pytest.mark.parametrize("how", ["nd", "gather"])
def test_top_two_experts_by_rows(how):
    """Tokens are picked per expert and scattered back (index_add of Mixtral and Qwen-MoE)."""
    n = Blocks()
    x = start(n)
    rows = n.reshape(x, -1, WIDTH, channels=WIDTH, name="rows")
    values, chosen = top_two(n, router(n, rows))
    y = n.op("ConstantOfShape", n.op("Shape", rows), name="zeros")
    for i in range(EXPERTS):
        token, part = routed(n, rows, chosen, values, i, how)
        if how == "nd":
            y = n.op("ScatterND", y, token, part, reduction="add", name=f"put{i}")
        else:
            wide = n.op("Expand", token, n.op("Shape", part), name=f"wide{i}")
            y = n.op("ScatterElements", y, wide, part, axis=0, reduction="add", name=f"put{i}")
    y = n.op("Reshape", y, n.op("Shape", x), name="back")
    result = check(n, finish(n, x, y))
    if how == "nd":
        assert used(result) == STREAM + HIDDENS
    else:  # indices expanded to the shape of rows that are counted at run time: their width is not inferred
        assert used(result) == HIDDENS
        assert pinned(result, "embed.weight[1]") == ["UNKNOWN_SHAPE"]


def test_weights_gathered_per_token():
    """Weights of the best expert are looked up for every token: hidden channels go, experts stay."""
    n = Blocks()
    x = start(n)
    rows = n.reshape(x, -1, WIDTH, channels=WIDTH, name="rows")
    best = n.op(
        "ArgMax", n.linear(rows, EXPERTS, bias=False, name="router"), axis=-1, keepdims=0, name="best"
    )
    up = n.op("Gather", n.weight((EXPERTS, WIDTH, HIDDEN), "up.weight"), best, axis=0, name="look_up")
    down = n.op("Gather", n.weight((EXPERTS, HIDDEN, WIDTH), "down.weight"), best, axis=0, name="look_down")
    h = n.op("Relu", n.op("MatMul", n.op("Unsqueeze", rows, n.constant([1])), up, name="up"))
    y = n.op("Squeeze", n.op("MatMul", h, down, name="down"), n.constant([1]))
    y = n.op("Reshape", y, n.op("Shape", x), name="back")
    result = check(n, finish(n, x, y))
    assert used(result) == [
        "embed: 8: embed[1]+bias up[1] down[2] -> router[0] head[0]",
        "look_up: 10: up[2] down[1] -> ",
    ]
    assert pinned(result, "up.weight[0]", "router.weight[1]") == [
        "INDEXED",
        "SELECTED",
    ]


def test_shared_expert():
    """DeepSeek: one expert for all tokens, scaled by a gate of a single column, beside the routed ones."""
    n = Blocks()
    x = start(n)
    y = n.op(
        "Einsum",
        router(n, x),
        stacked_expert(n, n.op("Unsqueeze", x, n.constant([1]))),
        equation="bte,betd->btd",
    )
    gate = n.op("Sigmoid", n.linear(x, 1, bias=False, name="shared_gate"))
    y = n.op("Add", y, n.op("Mul", expert(n, x, 9), gate), name="with_shared")
    assert used(check(n, finish(n, x, y))) == [
        (
            "embed: 8: embed[1]+bias down[2] down.bias[2] e9.down[1]+bias -> router[0] up[1] shared_gate[0] "
            "e9.up[0] head[0]"
        ),
        "up: 10: up[2] up.bias[2] -> down[1]",
        "e9.up: 10: e9.up[1]+bias -> e9.down[0]",
    ]


def test_multi_gate_mixture():
    """MMoE: two tasks mix the same experts by their own softmax."""
    n = Blocks()
    x = n.gemm(n.mark(n.input("x", ("n", 5)), 5), WIDTH, name="embed")
    experts = [n.relu(n.gemm(x, 6, name=f"expert{i}")) for i in range(3)]
    stacked = n.op("Concat", *(n.unsqueeze(e, 1) for e in experts), axis=1, name="stack")
    outputs = []
    for task in range(2):
        share = n.op("Unsqueeze", n.softmax(n.gemm(x, 3, name=f"gate{task}"), -1), n.constant([1]))
        mixed = n.op("Squeeze", n.op("MatMul", share, stacked, name=f"mix{task}"), n.constant([1]))
        outputs.append(n.gemm(n.relu(n.gemm(n.mark(mixed, 6), 7, name=f"tower{task}")), 1, name=f"out{task}"))
    result = check(n, *outputs)
    assert used(result) == [
        "embed: 8: embed[0]+bias -> expert0[1] expert1[1] expert2[1] gate0[1] gate1[1]",
        "expert0: 6: expert0[0]+bias expert1[0]+bias expert2[0]+bias -> tower0[1] tower1[1]",
        "tower0: 7: tower0[0]+bias -> out0[1]",
        "tower1: 7: tower1[0]+bias -> out1[1]",
    ]
