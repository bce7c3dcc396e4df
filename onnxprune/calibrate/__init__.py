"""Data for a model and sessions that run it: the only room that knows onnxruntime.

Importing this package is cheap: onnxruntime and Pillow are imported when they are needed.
"""

from __future__ import annotations

from onnxprune.calibrate.data import read_dataset
from onnxprune.calibrate.dataset import Dataset, Feed, InputSpec, input_specs
from onnxprune.calibrate.preprocess import Preprocess
from onnxprune.calibrate.providers import resolve_providers
from onnxprune.calibrate.sessions import open_session, predict, run, stream
from onnxprune.calibrate.synthetic import synthetic_dataset

__all__ = [
    "Dataset",
    "Feed",
    "InputSpec",
    "Preprocess",
    "input_specs",
    "open_session",
    "predict",
    "read_dataset",
    "resolve_providers",
    "run",
    "stream",
    "synthetic_dataset",
]
