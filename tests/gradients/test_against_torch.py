"""Small modules as both exporters write them, against torch.autograd: loss and gradients of all parameters."""

from __future__ import annotations

import importlib.util
import io

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.gradients import LOSS, CrossEntropy, NextToken, UnitMask, build_backward, gradient_name

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
from benchmarks.torchvision_shim import import_torchvision  # noqa: E402

nn, F = torch.nn, torch.nn.functional

pytestmark = pytest.mark.torch

TOLERANCE = 1e-4
"""Largest error of a gradient, as a share of its largest entry, in float32."""

CLASSES = 5


class Attention(nn.Module):
    """A block of a ViT, of BERT, or of GPT-2."""

    def __init__(self, width: int = 12, heads: int = 3, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 20), nn.GELU("tanh" if causal else "none"), nn.Linear(20, width)
        )

    def forward(self, x):
        b, t, c = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return x + self.mlp(self.norm2(x))


class Llama(nn.Module):
    """RMSNorm, rotary positions, grouped heads, SwiGLU."""

    def __init__(self, width: int = 16, heads: int = 4, shared: int = 2) -> None:
        super().__init__()
        self.heads, self.shared, self.size = heads, shared, width // heads
        self.scale1, self.scale2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))
        self.q, self.k = nn.Linear(width, width, bias=False), nn.Linear(width, shared * self.size, bias=False)
        self.v, self.o = nn.Linear(width, shared * self.size, bias=False), nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, 24, bias=False), nn.Linear(width, 24, bias=False)
        self.down = nn.Linear(24, width, bias=False)

    def norm(self, x, scale):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * scale

    def turn(self, x):
        angles = torch.arange(x.shape[2])[:, None] / 10 ** (torch.arange(self.size // 2) / self.size)
        cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
        a, b = x[..., : self.size // 2], x[..., self.size // 2 :]
        return x * cos + torch.cat([-b, a], -1) * sin

    def forward(self, x):
        b, t, c = x.shape
        h = self.norm(x, self.scale1)
        q, k, v = (layer(h).view(b, t, -1, self.size).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = self.turn(q), self.turn(k)
        times = self.heads // self.shared
        k, v = (
            y[:, :, None].expand(-1, -1, times, -1, -1).reshape(b, self.heads, t, self.size) for y in (k, v)
        )
        mask = torch.full((t, t), -1e9).triu(1)
        p = ((q @ k.transpose(2, 3)) * self.size**-0.5 + mask).softmax(-1)
        x = x + self.o((p @ v).transpose(1, 2).reshape(b, t, c))
        h = self.norm(x, self.scale2)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Windows(nn.Module):
    """Swin's shift, windows and merging of patches."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.merge = Attention(), nn.Linear(48, 24)

    def forward(self, x):
        b, c, h, w = x.shape
        x = torch.roll(x.permute(0, 2, 3, 1), (-1, -1), (1, 2))
        x = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        x = self.inner(x).view(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.merge(x).mean((1, 2))


class Ends(nn.Module):
    """A module between two layers, with a part that makes a vector of what it gives."""

    def __init__(self, *layers, pool=None) -> None:
        super().__init__()
        self.layers, self.pool = nn.Sequential(*layers), pool

    def forward(self, x):
        h = self.layers(x)
        h = h[0] if isinstance(h, tuple) else h
        return h.mean(dim=self.pool) if self.pool else h


class Excited(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x):
        return x * self.b(F.silu(self.a(F.adaptive_avg_pool2d(x, 1)))).sigmoid()


class Shuffle(nn.Module):
    """ShuffleNet's split, branch and shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Conv2d(4, 4, 3, padding=1, groups=4)

    def forward(self, x):
        a, b = x.chunk(2, 1)
        x = torch.cat([a, self.branch(b)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


IMAGE, WORDS = (3, 8, 8), (6, 12)
MODULES = {
    "conv-bn-relu-pool": (
        lambda: (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        *(IMAGE, 8, (2, 3)),
    ),
    "depthwise-relu6": (
        lambda: (
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Hardswish(),
        ),
        *(IMAGE, 8, (2, 3)),
    ),
    "excited": (lambda: (nn.Conv2d(3, 8, 3, padding=1), Excited(), nn.AvgPool2d(3, 2, 1)), IMAGE, 8, (2, 3)),
    "shuffle": (lambda: (nn.Conv2d(3, 8, 1), Shuffle()), IMAGE, 8, (2, 3)),
    "groups": (
        lambda: (nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Mish(), nn.Conv2d(8, 8, 3, groups=2)),
        *(IMAGE, 8, (2, 3)),
    ),
    "up": (
        lambda: (
            *(nn.Conv2d(3, 8, 3, 2, 1), nn.Upsample(scale_factor=2, mode="bilinear")),
            *(nn.InstanceNorm2d(8, affine=True), nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1)),
        ),
        *(IMAGE, 8, (2, 3)),
    ),
    "transposed": (
        lambda: (nn.ConvTranspose2d(3, 8, 3, 2, 1, 1), nn.PReLU(8), nn.PixelShuffle(2)),
        *(IMAGE, 2, (2, 3)),
    ),
    "sequence": (lambda: (nn.Conv1d(6, 8, 5, 2, 2), nn.LeakyReLU(), nn.AvgPool1d(2)), WORDS, 8, (2,)),
    "vit": (lambda: (Attention(), Attention()), WORDS, 12, (1,)),
    "llama": (lambda: (nn.Linear(12, 16), Llama()), WORDS, 16, (1,)),
    "windows": (lambda: (nn.Conv2d(3, 12, 1), Windows()), IMAGE, 24, None),
    "lstm": (lambda: (nn.LSTM(12, 6, batch_first=True, bidirectional=True),), WORDS, 12, (1,)),
    "gru": (lambda: (nn.GRU(12, 6, batch_first=True),), WORDS, 6, (1,)),
}


def model_of(name: str):
    torch.manual_seed(0)
    layers, shape, width, pool = MODULES[name]
    model = nn.Sequential(Ends(*layers(), pool=pool), nn.Linear(width, CLASSES)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model, torch.randn(3, *shape)


def export(model, x, dynamo: bool, optimize: bool = False) -> ir.Model:
    """Not optimized, so that parameters keep their values, but where what is written is no model to prune."""
    if dynamo:
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.onnx.export(
            model, (x,), dynamo=True, optimize=optimize, dynamic_shapes=shapes, verbose=False
        )
        return ir.from_proto(program.model_proto)
    buffer = io.BytesIO()
    torch.onnx.export(
        *(model, (x,), buffer),
        **{"dynamo": False, "opset_version": 17, "do_constant_folding": False},
        **{"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}},
        training=torch.onnx.TrainingMode.PRESERVE,
    )
    return ir.from_proto(onnx.load_from_string(buffer.getvalue()))


def compare(
    built: ir.Model, feed: dict, loss, parameters: dict, inputs: dict, tolerance: float = TOLERANCE
) -> None:
    found = run(open_session(built, threads=1), feed)
    assert float(found[LOSS]) == pytest.approx(float(loss), rel=1e-4)
    wanted = {**inputs, **parameters}
    gradients = torch.autograd.grad(loss, list(wanted.values()))
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    for name, gradient in zip(wanted, gradients, strict=True):
        scale = max(float(gradient.abs().max()), 1e-3 * largest)
        error = np.abs(found[gradient_name(name)] - gradient.numpy()).max() / scale
        assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True], ids=["script", "dynamo"])
@pytest.mark.parametrize("name", MODULES)
def test_module(name, dynamo):
    model, x = model_of(name)
    exported = export(model, x, dynamo, optimize=name == "shuffle")  # its chunk makes a sequence
    labels = torch.randint(0, CLASSES, (5,))
    x = torch.randn(5, *x.shape[1:], requires_grad=True)
    loss = F.cross_entropy(model(x), labels, reduction="sum")
    parameters = dict(model.named_parameters())
    known = {name: p for name, p in parameters.items() if name in exported.graph.initializers}
    if name not in ("lstm", "gru"):  # their weights are put together to other ones
        assert len(known) > 0.6 * len(parameters)
    given = exported.graph.inputs[0].name
    built = build_backward(exported, CrossEntropy(), [given, *known])
    assert all(not node.domain for node in built.graph)
    compare(built, {given: x.detach().numpy(), "labels": labels.numpy()}, loss, known, {given: x})


VISION = {
    "resnet18": ("torchvision", {}, 64, 2e-5),
    "mobilenet_v2": ("torchvision", {}, 64, 2e-5),
    "vit_tiny_patch16_224": ("timm", {"img_size": 64, "depth": 4}, 64, 2e-5),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", VISION)
def test_whole_model(name):
    """Every parameter, the input, and what masks on the channels of activations get."""
    home, options, size, tolerance = VISION[name]
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("needs torchvision")
    models = import_torchvision().models
    torch.manual_seed(0)
    if home == "timm":
        model = pytest.importorskip("timm").create_model(name, num_classes=CLASSES, **options).eval()
    else:
        model = getattr(models, name)(num_classes=CLASSES).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    exported = export(model, torch.randn(2, 3, size, size), dynamo=False)
    known = {n: p for n, p in model.named_parameters() if n in exported.graph.initializers}
    assert len(known) >= 0.6 * len(list(model.parameters()))
    x, labels = torch.randn(4, 3, size, size, requires_grad=True), torch.randint(0, CLASSES, (4,))
    loss = F.cross_entropy(model(x), labels, reduction="sum")
    built = build_backward(exported, CrossEntropy(), ["x", *known])
    compare(built, {"x": x.detach().numpy(), "labels": labels.numpy()}, loss, known, {"x": x}, tolerance)


@pytest.mark.filterwarnings("ignore")
def test_masks_are_the_gradients_of_factors_per_sample():
    model, _ = model_of("conv-bn-relu-pool")
    x, labels = torch.randn(5, *IMAGE), torch.randint(0, CLASSES, (5,))
    exported = export(model, x, dynamo=False)
    (name,) = [node.outputs[0].name for node in exported.graph if node.op_type == "Relu"]
    built = build_backward(exported, CrossEntropy(), [UnitMask(name, 1, np.arange(8), 8, "m")])
    found = run(open_session(built, threads=1), {"x": x.numpy(), "labels": labels.numpy()})["gradient/m"]
    factors = torch.ones(5, 8, 1, 1, requires_grad=True)
    first, last = model[0].layers[:3], model[0].layers[3]
    loss = F.cross_entropy(model[1](last(first(x) * factors).mean((2, 3))), labels, reduction="sum")
    (expected,) = torch.autograd.grad(loss, [factors])
    np.testing.assert_allclose(found, expected[:, :, 0, 0], atol=TOLERANCE * float(expected.abs().max()))


class Tokens(nn.Module):
    """Embeddings of tokens and positions, causal blocks, logits by the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 12), nn.Embedding(9, 12)
        self.blocks = nn.Sequential(Attention(causal=True), Attention(causal=True))

    def forward(self, ids):
        h = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        return self.blocks(h) @ self.words.weight.T


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True], ids=["script", "dynamo"])
def test_language_model(dynamo):
    torch.manual_seed(0)
    model = Tokens().eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    ids = torch.randint(0, 11, (3, 7))
    exported = export(model, ids, dynamo)
    given = exported.graph.inputs[0].name
    known = {n: p for n, p in model.named_parameters() if n in exported.graph.initializers}
    assert "words.weight" in known
    built = build_backward(exported, NextToken(given), list(known))
    ids = torch.randint(0, 11, (4, 7))
    logits = model(ids)
    loss = F.cross_entropy(logits[:, :-1].reshape(-1, 11), ids[:, 1:].reshape(-1), reduction="sum")
    compare(built, {given: ids.numpy()}, loss, known, {})
