"""Chains of layers of which random stretches are put into If, Loop and Scan, inside each other, too."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxprune
from onnxprune.allocate.cost import inner_values
from onnxprune.graph.build import build_axis_graph
from onnxprune.graph.groups import partition
from onnxprune.model.normalize import normalize
from onnxprune.model.shapes import infer_shapes
from onnxprune.rules import default_rules
from onnxprune.testing import check_model
from tests.structures.control_nets import network

ROWS = 3


class Chain:
    """Draws a chain as text in onnx's format."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.shapes, self.count = {}, 0

    def name(self, stem):
        self.count += 1
        return f"{stem}{self.count}"

    def width(self):
        return int(self.rng.integers(2, 7))

    def model(self):
        lines, value, width = self.stretch("x", 6, depth=0, graph="main", length=3)
        last = self.weight("main", width, 3)
        flags = ", ".join(f"bool flag{n}" for n in range(3))
        body = "\n".join([*lines, f"y = MatMul ({value}, {last})"])
        text = f"main (float[{ROWS}, 6] x, {flags}) => (float[{ROWS}, 3] y) {{\n{body}\n}}"
        return network(text, self.shapes, seed=self.count)

    def weight(self, graph, rows, columns):
        where = graph if graph != "main" and self.rng.random() < 0.7 else None
        name = self.name("w")
        self.shapes[name if where is None else f"{where}:{name}"] = (rows, columns)
        return name

    def stretch(self, value, width, depth, graph, length=None):
        """Lines that go on from a value, what they make, and how wide that is."""
        lines = []
        for _ in range(length or int(self.rng.integers(1, 3))):
            kinds = ["dense", "act", "skip"] + (["if", "loop", "scan"] if depth < 3 else [])
            if depth == 0:
                kinds = ["if", "loop", "scan"]
                more, value, width = self.dense_(value, width, depth, graph)
                lines += more
            kind = str(self.rng.choice(kinds))
            more, value, width = getattr(self, f"{kind}_")(value, width, depth, graph)
            lines += more
        return lines, value, width

    def dense_(self, value, width, depth, graph):
        made, out = self.name("v"), self.width()
        return [f"{made} = MatMul ({value}, {self.weight(graph, width, out)})"], made, out

    def act_(self, value, width, depth, graph):
        made = self.name("v")
        return [f"{made} = {self.rng.choice(['Relu', 'Tanh', 'Sigmoid', 'Neg'])} ({value})"], made, width

    def skip_(self, value, width, depth, graph):
        """A detour through another width, added."""
        up, down, total, wide = self.name("v"), self.name("v"), self.name("v"), self.width()
        lines = [
            f"{up} = MatMul ({value}, {self.weight(graph, width, wide)})",
            f"{down} = MatMul ({up}, {self.weight(graph, wide, width)})",
            f"{total} = Add ({value}, {down})",
        ]
        return lines, total, width

    def if_(self, value, width, depth, graph):
        made, out, flag = self.name("v"), self.width(), int(self.rng.integers(3))
        branches = []
        for kind in ("then", "else"):
            name = self.name("g")
            inner, last, now = self.stretch(value, width, depth + 1, name)
            end = self.name("v")
            if now != out or last == value:
                inner.append(f"{end} = MatMul ({last}, {self.weight(name, now, out)})")
            else:
                inner.append(f"{end} = Identity ({last})")
            lines = "\n".join(inner)
            branches.append(f"{kind}_branch = {name} () => (float[{ROWS}, {out}] {end}) {{\n{lines}\n}}")
        return [f"{made} = If (flag{flag}) <{', '.join(branches)}>"], made, out

    def loop_(self, value, width, depth, graph):
        """Carries a state of the same width and, sometimes, reads what came before again."""
        made, name, state, count = self.name("v"), self.name("g"), self.name("s"), self.name("n")
        inner, last, now = self.stretch(state, width, depth + 1, name)
        back, end, still, on, i = (self.name(stem) for stem in ("v", "v", "c", "c", "i"))
        inner.append(f"{back} = MatMul ({last}, {self.weight(name, now, width)})")
        inner.append(f"{end} = Add ({back}, {value if self.rng.random() < 0.5 else state})")
        inner.append(f"{still} = Identity ({on})")
        lines = "\n".join(inner)
        head = f"{name} (int64 {i}, bool {on}, float[{ROWS}, {width}] {state})"
        body = f"{head} => (bool {still}, float[{ROWS}, {width}] {end}) {{\n{lines}\n}}"
        start = f"{count} = Constant <value_int = {int(self.rng.integers(1, 3))}> ()"
        return [start, f'{made} = Loop ({count}, "", {value}) <body = {body}>'], made, width

    def scan_(self, value, width, depth, graph):
        """Goes along the rows; the state is a row of another width."""
        name, state, row = self.name("g"), self.name("s"), self.name("r")
        wide = self.width()
        zero, last_state, rows = self.name("z"), self.name("v"), self.name("v")
        a, b, c, new, out = (self.name("v") for _ in range(5))
        lines = "\n".join(
            [
                f"{a} = MatMul ({row}, {self.weight(name, width, wide)})",
                f"{b} = MatMul ({state}, {self.weight(name, wide, wide)})",
                f"{c} = Add ({a}, {b})",
                f"{new} = Tanh ({c})",
                f"{out} = Identity ({new})",
            ]
        )
        head = f"{name} (float[{wide}] {state}, float[{width}] {row}) => (float[{wide}] {new}, float[{wide}] {out})"
        numbers = ", ".join(["0.0"] * wide)
        return (
            [
                f"{zero} = Constant <value_floats = [{numbers}]> ()",
                f"{last_state}, {rows} = Scan <num_scan_inputs = 1, "
                f"body = {head} {{\n{lines}\n}}> ({zero}, {value})",
            ],
            rows,
            wide,
        )


@pytest.mark.parametrize("seed", range(12))
def test_random_control_flow(seed):
    """Masked == removed for every group and all of them, on inputs that take any branches."""
    checked = check_model(Chain(seed).model(), seeds=(0,), alive=False)
    assert checked.groups


def test_bodies_are_reached():
    """Most of these models lose units of weights that only bodies read."""
    reached = 0
    for seed in range(12):
        model = normalize(Chain(seed).model())
        graph = build_axis_graph(model, infer_shapes(model), default_rules())
        inner = inner_values(graph)
        reached += any(use.axis.value in inner for group in partition(graph).groups for use in group.axes)
    assert reached >= 10


@pytest.mark.parametrize("seed", [1, 3, 8])
def test_layers_in_bodies_are_repaired(tmp_path, seed):
    """No layer is worse on held-out samples than without its repair, and most of those in bodies are better."""
    path = tmp_path / "net.onnx"
    onnx.save(ir.to_proto(Chain(seed).model()), path)
    rng = np.random.default_rng(seed)
    flags = rng.integers(0, 2, (60, 3)).astype(bool)
    data = [
        {"x": rng.standard_normal((ROWS, 6)).astype(np.float32), **{f"flag{n}": row[n] for n in range(3)}}
        for row in flags
    ]
    report = onnxprune.prune(path, ratio=0.4, round_to=1, data=data, best_effort=True).report
    inside = [layer for layer in report.repairs if not layer.name.startswith("main") and not layer.why]
    assert all(layer.after <= layer.before * (1 + 1e-4) + 1e-6 for layer in report.repairs if not layer.why)
    assert sum(layer.kind != "none" for layer in inside) > max(2, len(inside) // 2)
