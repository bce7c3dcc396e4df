from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from vjp_cases import case, check

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.gradients import Projection, build_backward, gradient_name


def ints(*numbers):
    return np.array(numbers, np.int64)


def floats(*numbers):
    return np.array(numbers, np.float32)


IMAGE = (1, 2, 3, 4)
DOUBLE = floats(1, 1, 2, 2)
ODD = floats(1, 1, 1.7, 0.6)
COS, SIN = (
    np.cos(np.arange(6, dtype=np.float32)).reshape(3, 2),
    np.sin(np.arange(6, dtype=np.float32)).reshape(3, 2),
)
PLACES = ints(0, 1, 2, 2, 1, 0).reshape(2, 3)
TRIANGLE = np.tril(np.ones((3, 3), bool))
CASES = [
    case("Einsum", (2, 3), (3, 4), equation="ij,jk->ik"),
    case("Einsum", (2, 3, 4), (2, 5, 4), equation="bic,bjc->bij", symbolic=(0, 1)),
    case("Einsum", (2, 3, 4), (4, 2), equation="...c,cd->...d"),
    case("Einsum", (2, 3, 4), equation="bij->bj"),
    case("Einsum", (2, 3), (3, 4), equation="ij,jk", note="implicit"),
    case("Einsum", (2, 3), (3, 4), (4, 2), equation="ij,jk,kl->il"),
    case("Einsum", (2, 3, 4), equation="bij->bji", note="turned"),
    *(
        case("Resize", IMAGE, None, scales, opset=19, mode=mode, note=f"{mode},{place},{kind}", **more)
        for kind, scales in (("double", DOUBLE), ("odd", ODD))
        for mode, more in (("nearest", {}), ("linear", {}), ("cubic", {"cubic_coeff_a": -0.5}))
        for place in ("half_pixel", "align_corners", "asymmetric")
        for more in [{**more, "coordinate_transformation_mode": place}]
        if (kind, place) != ("odd", "align_corners")  # onnx's evaluator does not round the extents down
    ),
    case("Resize", IMAGE, None, DOUBLE, nearest_mode="floor", coordinate_transformation_mode="asymmetric"),
    *(
        case("Resize", IMAGE, None, None, ints(1, 2, 5, 8), dynamic=False, mode=mode, note=place, **place_of)
        for mode in ("nearest", "linear", "cubic")
        for place in ("align_corners", "pytorch_half_pixel")
        for place_of in [{"coordinate_transformation_mode": place}]
    ),
    *(
        case(
            *("Resize", IMAGE, floats(0, 0, 0.1, 0.2, 1, 1, 1.2, 0.9), None, ints(1, 2, 5, 8)),
            mode=mode,
            coordinate_transformation_mode="tf_crop_and_resize",
            extrapolation_value=3.0,
            note=f"crop,{mode}",
            dynamic=False,
        )
        for mode in ("linear", "nearest")
    ),
    case("Upsample", IMAGE, DOUBLE, opset=9, mode="nearest"),
    case("Resize", IMAGE, None, None, ints(5, 8), mode="linear", axes=[2, 3]),
    case("RotaryEmbedding", (2, 2, 3, 4), COS, SIN, PLACES, opset=23, dynamic=False),
    case("RotaryEmbedding", (2, 2, 3, 4), COS, SIN, PLACES, opset=23, interleaved=1, dynamic=False),
    case("Attention", (2, 2, 3, 4), (2, 2, 3, 4), (2, 2, 3, 5), opset=23, symbolic=(0, 1, 2)),
    case("Attention", (2, 2, 3, 4), (2, 2, 3, 4), (2, 2, 3, 4), opset=23, is_causal=1, symbolic=(0, 1, 2)),
    case(
        "Attention",
        (2, 4, 3, 2),
        (2, 2, 3, 2),
        (2, 2, 3, 2),
        TRIANGLE,
        opset=23,
        scale=0.3,
        symbolic=(0, 1, 2),
    ),
    case(
        "Attention",
        (1, 3, 8),
        (1, 4, 4),
        (1, 4, 4),
        (3, 4),
        opset=23,
        q_num_heads=4,
        kv_num_heads=2,
        dynamic=False,
    ),
    case(
        "Attention",
        (2, 3, 4),
        (2, 3, 4),
        (2, 3, 4),
        opset=23,
        q_num_heads=2,
        kv_num_heads=2,
        softcap=2.0,
        symbolic=(0, 1, 2),
    ),
]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_vjp(case, dynamic):
    check(case, dynamic=dynamic and case.dynamic)


def recurrent(op_type, gates, direction="forward", *, bias=True, states=False, **attributes):
    """T = 3, B = 2, I = 3, H = 2; Y and the last states take part in the loss."""
    d = 2 if direction == "bidirectional" else 1
    lstm = op_type == "LSTM"
    inputs = [(3, 2, 3), (d, gates * 2, 3), (d, gates * 2, 2)]
    inputs += [(d, gates * 4)] if bias else []
    if states:
        inputs += [None, (d, 2, 2), *([(d, 2, 2)] if lstm else [])]
    note = ",".join([direction, *map(str, attributes)])
    return case(
        *(op_type, *inputs),
        **{"opset": 14, "makes": 3 if lstm else 2, "outputs": (0, 1), "hidden_size": 2},
        **{"direction": direction, "note": note, "dynamic": False, **attributes},
    )


RECURRENT = [
    *(recurrent("LSTM", 4, direction) for direction in ("forward", "reverse", "bidirectional")),
    recurrent("LSTM", 4, bias=False),
    recurrent("LSTM", 4, states=True),
    *(
        recurrent("GRU", 3, direction, linear_before_reset=late, states=not late)
        for direction in ("forward", "reverse", "bidirectional")
        for late in (0, 1)
    ),
    recurrent("RNN", 1),
    recurrent("RNN", 1, "bidirectional", states=True),
]


@pytest.mark.parametrize("case", RECURRENT, ids=lambda case: case.id)
def test_vjp_of_recurrent_layers(case):
    check(case, dynamic=False)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("op_type", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_samples_have_the_gradients_of_their_own_length(op_type, gates, direction):
    """Sequences of several lengths together have the gradients of each alone, cut to its length."""
    rng, lengths = np.random.default_rng(0), (4, 2, 3)
    d = 2 if direction == "bidirectional" else 1
    arrays = {
        "x": rng.standard_normal((4, 3, 3)),
        "w": rng.standard_normal((d, gates * 2, 3)),
        "r": rng.standard_normal((d, gates * 2, 2)),
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    signs = {"y": rng.standard_normal((4, d, 3, 2)), "h": rng.standard_normal((d, 3, 2))}
    signs = {name: array.astype(np.float32) for name, array in signs.items()}

    def gradients(feed, given, lengths):
        names = ["x", "w", "r", *(["", "lengths"] if lengths is not None else [])]
        node = helper.make_node(op_type, names, ["y", "h"], hidden_size=2, direction=direction)
        tensors = (
            [onnx.numpy_helper.from_array(ints(*lengths).astype(np.int32), "lengths")] if lengths else []
        )
        info = helper.make_tensor_value_info
        inputs = [info(name, onnx.TensorProto.FLOAT, array.shape) for name, array in feed.items()]
        outputs = [info(name, onnx.TensorProto.FLOAT, array.shape) for name, array in given.items()]
        graph = helper.make_graph([node], "g", inputs, outputs, tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        built = build_backward(ir.from_proto(model), Projection(("y", "h")), list(feed))
        found = run(open_session(built, threads=1), {**feed, **{f"signs/{n}": a for n, a in given.items()}})
        return {name: found[gradient_name(name)] for name in feed}

    together = gradients(arrays, signs, lengths)
    expected = {name: np.zeros_like(array) for name, array in arrays.items()}
    for n, length in enumerate(lengths):
        feed = {**arrays, "x": arrays["x"][:length, n : n + 1]}
        given = {"y": signs["y"][:length, :, n : n + 1], "h": signs["h"][:, n : n + 1]}
        alone = gradients(feed, given, None)
        expected["x"][:length, n : n + 1] = alone["x"]
        for name in ("w", "r"):
            expected[name] += alone[name]
    for name, gradient in expected.items():
        np.testing.assert_allclose(together[name], gradient, rtol=0, atol=1e-5, err_msg=name)
