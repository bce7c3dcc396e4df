"""Control flow as PyTorch exports it: cond, while_loop and scan by dynamo, scripted modules by TorchScript."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxprune

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


class Cond(torch.nn.Module):
    """Two branches, each a network of its own."""

    def __init__(self):
        super().__init__()
        sizes = {
            "before": (12, 32),
            "a": (32, 24),
            "b": (24, 32),
            "c": (32, 48),
            "d": (48, 32),
            "after": (32, 5),
        }
        for name, size in sizes.items():
            setattr(self, name, torch.nn.Linear(*size))

    def forward(self, x):
        h = torch.relu(self.before(x))
        z = torch.cond(
            x.sum() > 0,
            lambda h: self.b(torch.tanh(self.a(h))),
            lambda h: self.d(torch.sigmoid(self.c(h))),
            (h,),
        )
        return self.after(torch.relu(z))


class While(torch.nn.Module):
    """The same layers three times."""

    def __init__(self):
        super().__init__()
        self.before, self.after = torch.nn.Linear(12, 32), torch.nn.Linear(32, 5)
        self.up, self.down = torch.nn.Linear(32, 48), torch.nn.Linear(48, 32)

    def forward(self, x):
        from torch._higher_order_ops.while_loop import while_loop

        def body(i, h):
            return i + 1, torch.tanh(self.down(torch.relu(self.up(h))))

        _, h = while_loop(lambda i, h: i < 3, body, (torch.tensor(0), torch.relu(self.before(x))))
        return self.after(h)


class Scan(torch.nn.Module):
    """A simple recurrent layer."""

    def __init__(self):
        super().__init__()
        self.up, self.over, self.after = (torch.nn.Linear(*n) for n in ((12, 32), (32, 32), (32, 5)))

    def forward(self, x):
        from torch._higher_order_ops.scan import scan

        def step(h, row):
            new = torch.tanh(self.over(h) + row)
            return new, new.clone()

        _, ys = scan(step, torch.zeros(x.shape[1], 32), self.up(x), dim=0)
        return self.after(ys)


class Scripted(torch.nn.Module):
    """A recurrent layer as a for loop over the sequence, with a layer that only some inputs pass."""

    def __init__(self):
        super().__init__()
        self.up, self.over, self.after = (torch.nn.Linear(*n) for n in ((12, 32), (32, 32), (32, 5)))
        self.extra = torch.nn.Linear(32, 32)

    def forward(self, x):
        h = torch.zeros(x.size(1), 32)
        for i in range(x.size(0)):
            h = torch.tanh(self.over(h) + self.up(x[i]))
        if bool(x.sum() > 0):
            h = torch.relu(self.extra(h))
        return self.after(h)


@pytest.mark.parametrize(
    ("build", "shape", "op_types", "units"),
    [
        (Cond, (4, 12), {"If"}, 32 + 24 + 48 + 32),
        (While, (4, 12), {"Loop"}, 32 + 48),
        (Scan, (6, 4, 12), {"Scan"}, 32),
        (Scripted, (6, 4, 12), {"Loop", "If"}, 32),
    ],
)
def test_exported_control_flow(tmp_path, build, shape, op_types, units):
    torch.manual_seed(0)
    module, path, out = build().eval(), tmp_path / "net.onnx", tmp_path / "out.onnx"
    if build is Scripted:
        module = torch.jit.script(module)
        torch.onnx.export(module, (torch.randn(shape),), path, dynamo=False, opset_version=17)
    else:
        torch.onnx.export(module, (torch.randn(shape),), path, dynamo=True, external_data=False)
    assert op_types <= {node.op_type for node in onnx.load(path).graph.node}
    done = onnxprune.prune(path, out, ratio=0.5, round_to=1)
    assert done.report.target.met and not done.report.soundness.rejected_groups
    assert not done.report.soundness.unforced
    assert sum(group.units for group in done.report.groups) == units
    masked = tmp_path / "masked.onnx"
    onnxprune.apply(path, done.plan, masked, mode="mask")
    rng = np.random.default_rng(0)
    for shift in (-1, 1):  # both branches
        feed = (rng.standard_normal(shape) + shift).astype(np.float32)
        want, got = (_run(file, feed) for file in (masked, out))
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def _run(path, array):
    session = onnxruntime.InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: array})[0]
