from __future__ import annotations

import math

import numpy as np
import pytest

from onnxprune.errors import DataError
from onnxprune.evaluate.segmentation import mean_iou


def segmented(count=12, classes=4, size=(5, 6), seed=0):
    """Logits, labels and decisions in which images differ in difficulty; some pixels have no label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (count, *size))
    decided = np.where(
        rng.random(labels.shape) < rng.random((count, 1, 1)), labels, rng.integers(0, classes, labels.shape)
    )
    logits = np.moveaxis(np.eye(classes)[decided], -1, 1) + 0.5 * rng.random((count, classes, *size))
    labels[rng.random(labels.shape) < 0.1] = 255
    return logits.astype(np.float32), labels, decided


def iou_by_hand(decided, labels, classes):
    pixels = [(d, t) for d, t in zip(decided.flat, labels.flat, strict=True) if t != 255]
    values = []
    for one in range(classes):
        both = sum(d == one == t for d, t in pixels)
        either = sum(one in (d, t) for d, t in pixels)
        if either:
            values.append(both / either)
    return sum(values) / len(values)


@pytest.mark.parametrize("seed", range(5))
def test_mean_iou(seed):
    outputs, labels, decided = segmented(seed=seed)
    score = mean_iou(outputs, labels).score("miou")
    assert score.value == pytest.approx(iou_by_hand(decided, labels, 4), rel=1e-12)
    assert (score.samples, score.unit) == (12, "share")
    assert 0 <= score.interval[0] < score.value < score.interval[1] <= 1


def test_the_interval_is_what_a_jackknife_over_images_gives():
    outputs, labels, decided = segmented(count=150)
    score = mean_iou(outputs, labels).score("miou")
    left_out = np.array(
        [iou_by_hand(np.delete(decided, i, axis=0), np.delete(labels, i, axis=0), 4) for i in range(150)]
    )
    jackknife = math.sqrt(149 / 150 * np.sum((left_out - left_out.mean()) ** 2))
    low, high = score.interval
    assert (high - low) / 2 == pytest.approx(1.976 * jackknife, rel=0.03)


def test_other_layouts_of_the_same():
    outputs, labels, _ = segmented()
    value = mean_iou(outputs, labels).score("miou").value
    assert mean_iou(outputs, labels[:, None].astype(np.uint8)).score("miou").value == value
    flat = outputs.reshape(12, 4, 30), labels.reshape(12, 30)
    assert mean_iou(*flat).score("miou").value == value


def test_one_channel_is_a_binary_decision():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((6, 1, 4, 4)), rng.integers(0, 2, (6, 4, 4))
    value = mean_iou(logits, labels).score("miou").value
    assert value == pytest.approx(iou_by_hand((logits[:, 0] > 0).astype(int), labels, 2))


def test_classes_that_do_not_occur_do_not_count():
    outputs, labels, decided = segmented()
    wider = np.concatenate([outputs, np.full_like(outputs[:, :3], -9)], axis=1)
    assert mean_iou(wider, labels).score("miou").value == mean_iou(outputs, labels).score("miou").value


def test_equal_maps_have_no_interval():
    _, labels, decided = segmented()
    score = mean_iou(np.moveaxis(np.eye(4)[decided], -1, 1), decided).score("miou")
    assert (score.value, score.interval) == (1, None)
    assert "no spread" in score.note
    one = mean_iou(np.moveaxis(np.eye(4)[decided], -1, 1)[:1], labels[:1]).score("miou")
    assert one.note == "a single image has no spread"


def test_images_without_a_label_change_nothing_but_their_number():
    outputs, labels, _ = segmented()
    whole = mean_iou(outputs, labels)
    empty = mean_iou(outputs[:2], np.full_like(labels[:2], 255))
    assert (whole + empty).score("miou").value == whole.score("miou").value
    with pytest.raises(DataError, match="every pixel is labelled 255"):
        empty.score("miou")


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 3), int), r"shape \(2, 3\), but mIoU needs"),
        (np.zeros((2, 0, 4, 4)), np.zeros((2, 4, 4), int), "but mIoU needs"),
        (np.zeros((2, 3, 4, 4)), np.zeros((3, 4, 4), int), "2 rows for 3 labels"),
        (np.zeros((2, 3, 4, 4)), np.zeros((2, 8, 8), int), r"labels of shape \(2, 8, 8\)"),
        (np.zeros((2, 3, 4, 4)), np.zeros((2, 4, 4)), "dtype float64 are no class maps"),
        (np.zeros((2, 3, 4, 4)), np.full((2, 4, 4), 3), "label 3 is not one of the model's 3 classes"),
        (np.zeros((2, 3, 4, 4)), np.full((2, 4, 4), -1), "label -1 is not"),
        (np.full((2, 3, 4, 4), np.nan), np.zeros((2, 4, 4), int), "holds NaN .first in row 0"),
    ],
)
def test_maps_that_do_not_fit(outputs, labels, message):
    with pytest.raises(DataError, match=message) as caught:
        mean_iou(outputs, labels)
    assert caught.value.hint
