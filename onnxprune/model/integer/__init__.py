"""Operators of integer arithmetic said in DequantizeLinear, an operator of floats, QuantizeLinear; and back.

No other room knows integers: `lower_integer` takes QLinearConv, MatMulInteger, MatMulNBits and their like apart
when a model is normalised, `raise_integer` puts together again what it took apart. What they compute stays the
same, up to the rounding of sums.
"""

from onnxprune.model.integer.lift import raise_integer
from onnxprune.model.integer.lower import lower_integer
from onnxprune.model.integer.lstm import rounds_states
from onnxprune.model.integer.notes import left_whole, lowered_operators

__all__ = ["left_whole", "lower_integer", "lowered_operators", "raise_integer", "rounds_states"]
