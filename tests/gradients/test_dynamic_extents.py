"""Heights, widths and lengths that are known at run time only: the tables' cases with these axes symbolic."""

from __future__ import annotations

import pytest
import test_vjp_conv
import test_vjp_more
import test_vjp_movement
import test_vjp_normalization
from vjp_cases import check

from onnxprune.errors import GradientError

IMAGES = ("Conv", "Pool", "Normalization", "Resize", "LRN", "DepthToSpace", "SpaceToDepth", "Pad")
SEQUENCES = ("Reduce", "Slice", "Transpose", "CumSum", "Softmax", "Gather", "Tile", "Trilu")


def at_run_time(case) -> bool:
    """Whether all that the gradient needs can be found at run time."""
    auto = case.attributes.get("auto_pad", "").startswith("SAME") and "strides" in case.attributes
    if case.op_type == "ConvTranspose":
        return not auto and "output_shape" not in case.attributes
    both = case.attributes.get("ceil_mode") and case.attributes.get("count_include_pad")
    return not (auto and case.op_type == "Conv") and not both


def cases():
    for table in (test_vjp_conv, test_vjp_more, test_vjp_movement, test_vjp_normalization):
        for case in [*table.CASES, *getattr(table, "POOLS", [])]:
            of_images = any(part in case.op_type for part in IMAGES) and len(case.inputs[0].shape) > 2
            if case.dynamic and (of_images or case.op_type.startswith(SEQUENCES)):
                yield case


CASES = list(cases())


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("case", list(filter(at_run_time, CASES)), ids=lambda case: case.id)
def test_vjp(case):
    check(case, dynamic=True, every=True)


@pytest.mark.parametrize("case", [case for case in CASES if not at_run_time(case)], ids=lambda case: case.id)
def test_what_needs_fixed_extents_is_refused(case):
    with pytest.raises(GradientError, match="fixed|depend on the input"):
        check(case, dynamic=True, every=True)
