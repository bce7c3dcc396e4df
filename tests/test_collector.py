"""Garbage collections are rare while graphs are built, and as often as before afterwards."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from onnxprune.collector import THRESHOLDS, rarely_collected


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


def test_thresholds_come_back() -> None:
    @rarely_collected
    def inner() -> tuple[int, ...]:
        return gc.get_threshold()

    @rarely_collected
    def outer() -> list[tuple[int, ...]]:
        return [gc.get_threshold(), inner(), gc.get_threshold()]

    assert outer() == [THRESHOLDS] * 3
    assert gc.get_threshold() == (700, 10, 10)


def test_thresholds_come_back_after_errors() -> None:
    @rarely_collected
    def fails() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        fails()
    assert gc.get_threshold() == (700, 10, 10)


@pytest.mark.parametrize("chosen", [(0, 10, 10), (1_000_000, 10, 10)], ids=["off", "rarer still"])
def test_what_the_caller_chose_is_left(chosen: tuple[int, int, int]) -> None:
    gc.set_threshold(*chosen)
    assert rarely_collected(gc.get_threshold)() == chosen
    assert gc.get_threshold() == chosen


def test_what_is_chosen_inside_stays() -> None:
    rarely_collected(lambda: gc.set_threshold(5000, 11, 12))()
    assert gc.get_threshold() == (5000, 11, 12)
