"""Skips what needs the trained models beside the checkout, where they are missing."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings
from small_nets import REAL

settings.register_profile(
    "onnxprune",
    deadline=None,  # the machine may be busy
    derandomize="HYPOTHESIS_RANDOM" not in os.environ,  # what passed here passes elsewhere
)
settings.load_profile("onnxprune")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not REAL.is_dir():
        for item in items:
            if item.get_closest_marker("real"):
                item.add_marker(pytest.mark.skip(reason="the trained models beside the checkout are missing"))
