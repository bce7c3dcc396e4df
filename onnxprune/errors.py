"""Everything that onnxprune raises on purpose, and every reason it gives for not pruning.

::

    OnnxPruneError                    exit code 1
    ├── UsageError                    2   contradicting options, a pattern that matches nothing, a bad path
    │   └── DataError                 2   calibration or test data that does not fit the model
    ├── ModelError                    3   the file is no usable ONNX model
    │   └── UnsupportedError          3   a valid model that needs something onnxprune cannot do
    │       ├── GradientError         3   an operator between the loss and what is scored has no gradient
    │       └── RangeError            3   a new weight is too large for its type (float16 ends at 65,504)
    ├── TargetError                   4   the target is out of reach; says what is reachable and what blocks
    └── SoundnessError                5   masked != removed and no guilty group could be isolated

Every message says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

import enum


class OnnxPruneError(Exception):
    """Base of all errors raised on purpose.

    Parameters
    ----------
    what
        One sentence: what is wrong and where.
    hint
        What the user can do about it; printed on a line of its own.
    """

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\n{self.hint}" if self.hint else self.what


class UsageError(OnnxPruneError):
    """Options or paths that contradict each other, or that match nothing."""

    exit_code = 2


class DataError(UsageError):
    """Calibration or test data whose names, shapes, dtypes or values do not fit the model."""


class ModelError(OnnxPruneError):
    """The file is missing, damaged, or is not a usable ONNX model."""

    exit_code = 3


class UnsupportedError(ModelError):
    """A valid model that needs something onnxprune cannot do yet."""


class GradientError(UnsupportedError):
    """The loss cannot be differentiated: an operator on the way has no gradient rule."""


class RangeError(UnsupportedError):
    """A new weight is too large for the type in which its file holds it."""


class TargetError(OnnxPruneError):
    """The requested target cannot be reached with what is prunable."""

    exit_code = 4


class SoundnessError(OnnxPruneError):
    """The removed model differs from the masked one, and the cause could not be isolated."""

    exit_code = 5


class Reason(enum.Enum):
    """Why an axis, a group or a position keeps everything. The value is a sentence for people."""

    GRAPH_INPUT = "it is an axis of a graph input, whose shape callers rely on"
    GRAPH_OUTPUT = "it is an axis of a graph output, whose shape callers rely on"
    NO_RULE = "the operator has no rule, so nothing is known about its axes"
    NO_AXES = "the operator reads or makes sequences, optional values or strings, which have no axes"
    NOT_MENTIONED = "the operator's rule does not cover this axis"
    DYNAMIC = "its extent is not fixed (it depends on the input)"
    UNKNOWN_SHAPE = "its shape could not be inferred"
    SPATIAL = "the operator slides a window over this axis"
    SOFTMAX = "softmax normalises over this axis, so removing positions changes the others"
    NORMALIZED = "the operator normalises over this axis, so removing positions changes the others"
    REDUCED = "the operator reduces over this axis in a way that a dropped position would change"
    SELECTED = "the operator's result depends on which position wins (ArgMax, TopK and the like)"
    ORDERED = "positions are combined in order along this axis"
    RECURRENT = "a recurrent layer goes along it (steps, samples or directions)"
    ROTATED = "pairs of dimensions are rotated by angles that all heads, and mostly all layers, share"
    INDEXED = "positions are looked up by values that are only known at run time"
    PICKED = "fixed numbers pick single positions of it, or windows, so each has to stay where it is"
    STACKED = "it is put together from new axes with a single position each, which cannot go"
    RANDOM = "random numbers are drawn for it, and other ones for fewer positions"
    SHAPE_COMPUTED = "the extent is computed in a way that could not be refitted"
    AUXILIARY = "it carries sizes, scales or positions, not data"
    QUANTIZED = "the operator works on quantised values"
    SUBGRAPH = "a node with a body of its own sees it, in a way that says nothing about its axes"
    BODY_EXTENTS = "its extent is not the same in both branches of an If, or in all iterations"
    ITERATIONS = "it has one position per iteration of a Loop or Scan"
    INCOMPATIBLE_BLOCKS = "it is divided into blocks (groups, heads) in two ways that do not fit together"
    INDIVISIBLE = "all positions are tied into one unit, so there is nothing to choose from"
    NO_PARAMETERS = "no parameters would become smaller"
    IGNORED = "it matches an --ignore pattern"
    NOT_SELECTED = "it matches no --only pattern"
    FIRST_CONV = "the preset leaves the first convolution whole"
    DOWNSAMPLE_CONV = "the preset leaves strided convolutions whole"
    NO_SCORE = "the criterion reads a kind of parameter that this group does not have"
    TOO_NARROW = "it has no more channels than --round-to and the minimum keep"
    UNSOUND = "the check found masked != removed with this group, so it is kept whole"
    ALTERNATIVE = "another way of cutting the same axes is used (whole heads or head dimensions)"

    @property
    def sentence(self) -> str:
        """The reason as a clause that completes "not pruned: ..."."""
        return self.value


BY_REQUEST = frozenset({Reason.IGNORED, Reason.NOT_SELECTED, Reason.FIRST_CONV, Reason.DOWNSAMPLE_CONV})
"""Reasons for which the user, or a preset, takes a group out: its units count in no ratio."""
