"""Metrics of `prune`: before and after, with and without labels."""

from __future__ import annotations

import numpy as np
import pytest
from small_nets import convnet, feeds, save

import onnxprune
from onnxprune.errors import DataError, UsageError


def unlabelled():
    return {"image": feeds()["image"]}


@pytest.fixture
def net(tmp_path, monkeypatch):
    (tmp_path / "onnxprune_test_shift.py").write_text(
        "def shift(outputs, labels):\n    return abs(outputs - labels).mean()\n\nshift.higher_is_better = False\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return save(convnet(), tmp_path / "net.onnx")


def test_agreement_needs_no_labels(net):
    report = onnxprune.prune(net, macs=0.6, data=unlabelled(), metric="agreement").report
    assert (report.metric.before.value, report.metric.before.samples) == (1.0, 6)
    assert report.metric.after.value == report.fidelity.main.top1_agreement
    assert not any("no labels" in line for line in report.warnings)


def test_a_function_of_ones_own(net):
    data = feeds() | {"labels": np.full((6, 4), 0.25)}
    report = onnxprune.prune(net, macs=0.6, data=data, metric="onnxprune_test_shift:shift").report
    assert report.metric.before.name == report.metric.after.name == "onnxprune_test_shift:shift"
    assert not report.metric.after.higher_is_better
    with pytest.raises(UsageError, match="no 'shaft'"):
        onnxprune.prune(net, macs=0.6, data=data, metric="onnxprune_test_shift:shaft")


def test_target_arrays(net):
    data = feeds() | {"labels": np.full((6, 4), 0.25)}
    report = onnxprune.prune(net, macs=0.6, data=data, metric="mse").report
    assert report.metric.before.value != report.metric.after.value
    with pytest.raises(DataError, match="are no class indices") as caught:
        onnxprune.prune(net, macs=0.6, data=data)
    assert "--metric" in caught.value.hint


def test_a_first_sample_whose_score_does_not_exist(net):
    """Its targets are constant, so there is no peak; those of all samples are not."""
    labels = np.repeat(np.arange(6.0)[:, None], 4, axis=1)
    report = onnxprune.prune(net, macs=0.6, data=feeds() | {"labels": labels}, metric="psnr").report
    assert report.metric.after.unit == "dB"


def test_without_labels_a_metric_of_labels_is_left_out(net):
    report = onnxprune.prune(net, macs=0.6, data=unlabelled(), metric="f1").report
    assert report.metric is None
    assert any("no labels" in line for line in report.warnings)
