"""Which weights of a linear layer to zero, and what the others become, from the second moments of its inputs.

For `y = W x` and `H = E[x x^T]` (or the covariance, where a bias follows the mean), new weights `W'` cost

    sum over rows of (w - w') H (w - w')^T

Arrays in, arrays out. `patterns` says which zeros are wanted, `sparsegpt` finds them column by column, `obc` row by
row, `refit` gives the best weights for a given mask.
"""

from onnxprune.solvers.layer import Solution, layer_error
from onnxprune.solvers.obc import obc
from onnxprune.solvers.patterns import Blocks, Choose, Elements, NOfM, PerRow
from onnxprune.solvers.refit import refit
from onnxprune.solvers.sparsegpt import sparsegpt

__all__ = [
    "Blocks",
    "Choose",
    "Elements",
    "NOfM",
    "PerRow",
    "Solution",
    "layer_error",
    "obc",
    "refit",
    "sparsegpt",
]
