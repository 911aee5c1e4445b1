from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spwnet import charting
from spwnet.charting import MOST_POINTS, History


def history_of(values, first=1):
    history = History()
    for step, value in enumerate(values, start=first):
        history.add(step, {"image": value, "total": 2 * value})
    return history


def test_few_steps_are_kept_as_they_are_with_the_sum_of_losses_first():
    points = history_of([5.0, 4.0, 3.5]).points()
    assert list(points) == ["total", "image"]
    assert points["image"] == [(1, 5.0), (2, 4.0), (3, 3.5)]


@given(st.integers(1, 5000))
def test_a_long_history_is_thinned_to_means_and_ends_at_the_last_step(count):
    points = history_of(np.arange(count, dtype=float)).points()["image"]
    assert min(count, MOST_POINTS // 2) <= len(points) <= MOST_POINTS
    steps = [step for step, _ in points]
    assert steps[-1] == count
    assert steps == sorted(set(steps))
    sizes = np.diff([0, *steps])
    assert len(set(sizes[:-1].tolist())) <= 1
    for step, size, (_, value) in zip(steps, sizes, points, strict=True):
        assert value == pytest.approx(np.mean(np.arange(step - size, step)))


def test_a_loss_that_begins_later_is_its_own_mean():
    history = History()
    history.add(1, {"total": 1.0})
    history.add(2, {"total": 1.0, "cut": 0.5})
    assert history.points() == {"total": [(1, 1.0), (2, 1.0)], "cut": [(2, 0.5)]}


def test_the_chart_lies_in_the_unit_square_and_is_plain_json():
    chart = history_of([3.0, 2.5, 2.8, 2.0]).chart()
    assert not chart.log
    for curve in chart.curves:
        assert all(0 <= x <= 1 and 0 < y < 1 for x, y in curve.points)
        assert re.fullmatch("#[0-9a-f]{6}", curve.colour)
    assert len({curve.colour for curve in chart.curves}) == len({curve.dash for curve in chart.curves}) == 2
    assert chart.curves[1].last == 2.0
    assert [text for _, text in chart.x] == ["1", "2", "3", "4"]
    assert [text for _, text in chart.y] == ["2", "3", "4", "5", "6"]
    assert json.loads(json.dumps(chart.to_json()))["curves"][0]["name"] == "total"


def test_values_that_differ_much_are_on_a_logarithmic_scale():
    chart = history_of([100.0, 1.0]).chart()
    assert chart.log
    heights = {text: place for place, text in chart.y}
    assert heights["10"] - heights["1"] == pytest.approx(heights["100"] - heights["10"])
    assert not history_of([100.0, 0.0]).chart().log
    assert not history_of([100.0, -1.0]).chart().log


@given(st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=30), st.integers(1, 10**6))
def test_any_losses_give_a_chart_with_a_few_numbers_along_each_axis(values, first):
    chart = history_of(values, first).chart()
    for place, text in [*chart.x, *chart.y]:
        assert -1e-6 <= place <= 1 + 1e-6
        assert math.isfinite(float(text))
    assert len(chart.x) <= 2 * charting.TICKS + 2
    assert len(chart.y) <= 2 * charting.TICKS + 2
    json.dumps(chart.to_json(), allow_nan=False)


@pytest.mark.parametrize("values", [(1e-320, 1.0), (5e-324, 1.0), (1.0, 1e300), (5e-324, 1e-321)])
def test_losses_at_the_ends_of_what_numbers_hold(values):
    chart = history_of(values).chart()
    assert len(chart.curves) == 2
    assert all(0 <= place <= 1 for place, _ in chart.y)


def test_nothing_gives_an_empty_chart():
    assert History().chart().to_json() == {"curves": [], "x": [], "y": [], "log": False}
