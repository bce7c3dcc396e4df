"""On random graphs: masked == removed, shapes are right, nothing depends on the order of the nodes."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, given, settings

from onnxprune.testing import check_model
from tests.properties.random_graphs import models

EXAMPLES = int(os.environ.get("ONNXPRUNE_EXAMPLES", "80"))
SLOW = settings(
    max_examples=EXAMPLES,
    derandomize=EXAMPLES == 80,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
)


@SLOW
@given(models())
def test_masked_is_removed(drawn):
    check_model(drawn.model, seeds=(0, 1), alive=False)
