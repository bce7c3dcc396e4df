from __future__ import annotations

import numpy as np
import pytest
from command import Command
from small_nets import convnet, feeds, save


@pytest.fixture
def command(capsys):
    return Command(capsys)


@pytest.fixture
def net(tmp_path):
    """A small convolutional network in a file: groups g0, g1, g2 of 16, 32 and 24 channels."""
    return save(convnet(), tmp_path / "net.onnx")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, **feeds())
    return path
