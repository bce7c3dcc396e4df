"""Small random-weight models of the transformers library, one per architecture.

A row of the tables is a model class, the tensors it takes, and what its configuration changes; the sizes are
tiny, the wiring is that of the published models.
"""

from __future__ import annotations

from benchmarks.families.transformers_entry import Builder
from benchmarks.families.transformers_signals import SIGNAL_MODELS
from benchmarks.families.transformers_text import TEXT_MODELS

MODELS: dict[str, Builder] = {**TEXT_MODELS, **SIGNAL_MODELS}
