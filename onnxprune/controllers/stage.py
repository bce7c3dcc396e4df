"""How far a compression has come, and in which form a model leaves it: NNCF's two enumerations."""

from __future__ import annotations

import enum
import functools

from onnxprune.controllers.options import one_of
from onnxprune.errors import UnsupportedError


@functools.total_ordering
class CompressionStage(enum.Enum):
    """NNCF's `CompressionStage`; stages of several algorithms add up.

    Examples
    --------
    >>> CompressionStage.FULLY_COMPRESSED > CompressionStage.UNCOMPRESSED
    True
    >>> (CompressionStage.FULLY_COMPRESSED + CompressionStage.UNCOMPRESSED).name
    'PARTIALLY_COMPRESSED'
    """

    UNCOMPRESSED = 0
    PARTIALLY_COMPRESSED = 1
    FULLY_COMPRESSED = 2

    def __lt__(self, other: object) -> bool:
        return self.value < other.value if isinstance(other, CompressionStage) else NotImplemented

    def __add__(self, other: CompressionStage) -> CompressionStage:
        return self if self is other else CompressionStage.PARTIALLY_COMPRESSED


class StripFormat(enum.Enum):
    """NNCF's `StripFormat`.

    `NATIVE` is what every controller gives: an ordinary ONNX model, of which pruned filters are really gone.
    `IN_PLACE` keeps all shapes and leaves zeros in the weights. `DQ` is about quantisers, which there are
    none of.
    """

    NATIVE = "native"
    DQ = "dq"
    IN_PLACE = "in_place"

    @property
    def removes(self) -> bool:
        """Whether pruned filters are cut out.

        Raises
        ------
        UnsupportedError
            The format stores quantised weights.
        """
        if self is StripFormat.DQ:
            raise UnsupportedError(
                "StripFormat.DQ stores quantised weights, and onnxprune does not quantise",
                "Take StripFormat.NATIVE.",
            )
        return self is StripFormat.NATIVE


def strip_format(given: StripFormat | str) -> StripFormat:
    """The format that a user means: the member, its name or its value.

    Examples
    --------
    >>> strip_format("native") is StripFormat.NATIVE
    True
    """
    if isinstance(given, StripFormat):
        return given
    return StripFormat(one_of("strip format", str(given).lower(), tuple(f.value for f in StripFormat)))
