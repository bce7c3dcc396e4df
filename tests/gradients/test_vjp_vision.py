"""Reading and writing images between positions, transforms, scatters: against onnx's evaluator in float64."""

from __future__ import annotations

import numpy as np
import pytest
from vjp_cases import Moving, case, check


def ints(*numbers):
    return np.array(numbers, np.int64)


IMAGE = (2, 3, 4, 5)
GRID = Moving((2, 3, 4, 2), -1.3, 1.3)
VOLUME, CELLS = (1, 2, 3, 4, 3), Moving((1, 2, 3, 2, 3), -1.2, 1.2)
REGIONS = np.array([[0.3, 0.6, 5.2, 3.1], [1.2, -0.4, 3.3, 5.7], [2.0, 1.0, 2.4, 1.3]], np.float32)
SAMPLES = ints(0, 1, 0)
PICTURE = (2, 1, 5, 6)
COLUMNS = (2, 12, 6)
TAKEN = np.array([True, False, True])
CASES = [
    *(
        case(
            *("GridSample", IMAGE, GRID),
            opset=20,
            mode=mode,
            padding_mode=padding,
            align_corners=aligned,
            symbolic=(0, 1),
            note=f"{mode},{padding},{aligned}",
        )
        for mode in ("linear", "nearest", "cubic")
        for padding in ("zeros", "border", "reflection")
        for aligned in (0, 1)
    ),
    case("GridSample", IMAGE, GRID, opset=16, mode="bilinear", symbolic=(0, 1)),
    case("GridSample", VOLUME, CELLS, opset=20, mode="linear", dynamic=False),
    case("GridSample", VOLUME, CELLS, opset=22, mode="nearest", padding_mode="border", dynamic=False),
    *(
        case(
            *("RoiAlign", PICTURE, REGIONS, SAMPLES),
            output_height=3,
            output_width=2,
            sampling_ratio=ratio,
            spatial_scale=0.9,
            coordinate_transformation_mode=mode,
            opset=16,
            note=f"{mode},{ratio}",
        )
        for ratio in (0, 2)
        for mode in ("half_pixel", "output_half_pixel")
    ),
    case(
        *("DeformConv", (2, 2, 3, 3), (2, 2, 2, 2), Moving((2, 16, 2, 2), -0.8, 0.8), (2,)),
        Moving((2, 8, 2, 2), 0.1, 1.0),
        offset_group=2,
        opset=19,
        symbolic=(0, 2, 4),
    ),
    case(
        *("DeformConv", (1, 4, 4, 3), (4, 2, 1, 2), Moving((1, 4, 3, 3), -1.5, 1.5)),
        group=2,
        strides=[2, 1],
        pads=[1, 0, 0, 2],
        dilations=[1, 2],
        opset=19,
        dynamic=False,
        note="strides",
    ),
    case("AffineGrid", (2, 2, 3), ints(2, 1, 3, 4), opset=20, dynamic=False),
    case("AffineGrid", (2, 2, 3), ints(2, 1, 3, 4), opset=20, align_corners=1, dynamic=False),
    case("AffineGrid", (2, 3, 4), ints(2, 1, 3, 2, 4), opset=20, dynamic=False),
    case("CenterCropPad", (3, 4, 5), ints(3, 7, 2)),
    case("CenterCropPad", (3, 5, 4), ints(2, 7), axes=[1, 2]),
    case("CenterCropPad", (3, 4, 5), ints(6, 3), axes=[2, 0], dynamic=False),
    case("Col2Im", COLUMNS, ints(4, 5), ints(2, 2), pads=[0, 0, 0, 0], strides=[2, 1], dilations=[1, 2]),
    case("Col2Im", (1, 8, 8), ints(4, 5), ints(2, 2), pads=[1, 0, 0, 1], strides=[2, 1], dilations=[1, 2]),
    case("Compress", (3, 4), TAKEN, axis=0, dynamic=False),
    case("Compress", (2, 4), TAKEN, axis=1),
    case("Compress", (3, 2), TAKEN, note="flat", dynamic=False),
    case("CumProd", (2, 4), np.int64(1), opset=26),
    case(
        "CumProd",
        Moving((3, 3), values=[[1, 0, 2], [0, 3, 0], [2, 1.5, -1]]),
        np.int64(1),
        opset=26,
        note="zeros",
    ),
    case("CumProd", (2, 4), np.int64(-1), opset=26, exclusive=1),
    case("CumProd", (3, 2, 2), np.int64(0), opset=26, reverse=1, dynamic=False),
    case("CumProd", (2, 4), np.int64(1), opset=26, reverse=1, exclusive=1),
    *(case("Det", (2, size, size), opset=22) for size in (1, 2, 3, 4)),
    case("Det", (3, 3), opset=11, dynamic=False),
    case("Det", Moving((2, 2), values=[[1, 2], [2, 4]]), opset=22, dynamic=False, note="singular"),
    case("DFT", (2, 5, 1), opset=17, axis=1),
    case("DFT", (2, 5, 2), opset=17, axis=1),
    case("DFT", (2, 5, 1), opset=17, axis=1, onesided=1),
    case("DFT", (2, 6, 1), opset=17, axis=1, onesided=1),
    case("DFT", (2, 4, 3, 2), opset=17, axis=1, inverse=1),
    case("DFT", (2, 4, 3, 2), None, np.int64(2), opset=20, inverse=1),
    case("DFT", (2, 3, 2), None, np.int64(0), opset=20, note="first"),
    case("DFT", (2, 5, 2), np.int64(7), opset=17, axis=1, note="longer"),
    case("DFT", (2, 5, 1), np.int64(3), opset=17, axis=1, onesided=1, note="shorter"),
    case("STFT", (2, 9, 1), np.int64(2), Moving((4,), 0.2, 1.0), np.int64(4), opset=17),
    case("STFT", (2, 9, 1), np.int64(3), None, np.int64(4), opset=17, onesided=0),
    case("STFT", (2, 8, 2), np.int64(2), np.hanning(5).astype(np.float32), opset=17, onesided=0),
    case("GatherND", (2, 3, 4), ints(0, 2, 1, 1).reshape(2, 2, 1), batch_dims=1, dynamic=False),
    case(
        "GatherND",
        (2, 3, 4),
        ints(1, 3, 0, 2, 2, 1).reshape(2, 3, 1),
        batch_dims=2,
        dynamic=False,
        note="two",
    ),
    *(
        case(
            kind,
            Moving(shape, apart=0.1),
            indices,
            Moving(updates, apart=0.07),
            opset=18,
            reduction=how,
            note=how,
        )
        for how in ("max", "min", "mul")
        for kind, shape, indices, updates in (
            ("ScatterElements", (3, 2), ints(0, 1, 1, 2, 1, 2).reshape(3, 2), (3, 2)),
            ("ScatterND", (4, 2), ints(1, 3, 1).reshape(3, 1), (3, 2)),
        )
    ),
    case(
        *("ScatterElements", Moving((1, 3), values=[[2, 0, 3]]), ints(0, 0, 1, 2).reshape(1, 4)),
        Moving((1, 4), values=[[0, 5, 4, 0]]),
        opset=18,
        reduction="mul",
        axis=1,
        note="zeros",
        dynamic=False,
    ),
    *(
        case(
            "TensorScatter", (2, 2, 5, 3), (2, 2, 2, 3), start, opset=24, mode=mode, dynamic=False, note=mode
        )
        for mode, start in (("linear", ints(1, 3)), ("circular", ints(4, 2)), ("linear", None))
    ),
    case("TensorScatter", (2, 5, 3), (2, 2, 3), ints(1, 3), opset=24, axis=1, dynamic=False, note="axis"),
]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_vjp(case, dynamic):
    check(case, dynamic=dynamic and case.dynamic)
