"""On random graphs: masked == removed, shapes are right, nothing depends on the order of the nodes."""

from __future__ import annotations

import os

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from onnxprune.surgery.keep import kept_positions
from onnxprune.surgery.remove import remove
from onnxprune.testing import check_model, draw_keep
from tests.properties.random_graphs import models

EXAMPLES = int(os.environ.get("ONNXPRUNE_EXAMPLES", "0"))
"""How many random graphs; 0 for the same few every time."""

STEPS = int(os.environ.get("ONNXPRUNE_STEPS", "8"))


def draws(few: int) -> settings:
    return settings(
        max_examples=EXAMPLES or few,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )


@draws(80)
@given(models(STEPS))
def test_masked_is_removed(drawn):
    check_model(drawn.model, seeds=(0, 1), alive=False)


@draws(25)
@given(models(STEPS), st.integers(0, 9))
def test_what_was_cut_can_be_cut_again(drawn, seed):
    """What REFIT leaves behind is understood when the cut model is analysed."""
    checked = check_model(drawn.model, seeds=(), alive=False)
    rng = np.random.default_rng(seed)
    keep = {group.id: draw_keep(group, rng) for group in checked.groups}
    removed = remove(checked.axis_graph, kept_positions({g.id: g for g in checked.groups}, keep))
    check_model(removed, seeds=(0,), alive=False)
