"""Working voxels of a volume, and the parts it is cut into."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spwnet.blocks import make_grid, tiles, widened, within
from spwnet.errors import SettingsError

SIDES = st.tuples(*[st.integers(1, 40)] * 3)


def grid_of(shape=(40, 50, 60), spacing=None, scale=1.0, max_pixels=220_000, size=20.0, reduction=2):
    return make_grid(shape, spacing, scale=scale, max_pixels=max_pixels, size=size, reduction=reduction)


def test_cubes_stay_cubes():
    grid = grid_of()
    assert grid.bins == (1, 1, 1)
    assert grid.working == grid.shape == (40, 50, 60)
    assert grid.scale == (1, 1, 1)
    assert grid.cells == (2, 2, 2)
    assert math.prod(grid.working) / math.prod(grid.seeds) == pytest.approx(20, rel=0.1)


@pytest.mark.parametrize(
    ("spacing", "scale", "bins", "lengths", "cells"),
    [
        ((2, 1, 1), 1.0, (1, 1, 1), (2, 1, 1), (1, 2, 2)),
        ((2, 1, 1), 0.5, (1, 2, 2), (1, 1, 1), (2, 2, 2)),
        ((1, 3, 1.5), "1/3", (3, 1, 2), (1, 1, 1), (2, 2, 2)),
        ((5, 1, 1), 0.5, (1, 2, 2), (2.5, 1, 1), (1, 2, 2)),
        ((1, 1, 1), 1 / 3, (3, 3, 3), (1, 1, 1), (2, 2, 2)),
        ((0.04, 0.02, 0.02), 0.25, (2, 4, 4), (1, 1, 1), (2, 2, 2)),
    ],
)
def test_bins_bring_voxels_as_near_to_cubes_as_whole_numbers_can(spacing, scale, bins, lengths, cells):
    grid = grid_of(spacing=spacing, scale=1 / 3 if scale == "1/3" else scale)
    assert grid.bins == bins
    assert grid.scale == pytest.approx(lengths)
    assert grid.cells == cells
    assert grid.working == tuple(-(-n // b) for n, b in zip((40, 50, 60), bins, strict=True))


def test_seeds_are_equally_far_apart_in_all_directions():
    grid = grid_of((60, 240, 240), (4, 1, 1), size=64)
    distances = [n / k * length for n, k, length in zip(grid.working, grid.seeds, grid.scale, strict=True)]
    assert max(distances) / min(distances) < 1.1
    assert math.prod(grid.working) / math.prod(grid.seeds) == pytest.approx(64, rel=0.1)
    # never closer than voxels
    assert grid_of((60, 60, 60), (50, 1, 1), size=8).seeds[0] == 60
    assert grid_of((1, 60, 60)).seeds[0] == 1


def test_only_the_ratio_of_spacings_counts():
    assert grid_of(spacing=(4, 2, 2)) == grid_of(spacing=(2, 1, 1)) != grid_of(spacing=None)
    assert grid_of(spacing=(3, 3, 3)) == grid_of(spacing=None)


def test_auto_scale_keeps_a_slice_to_so_many_voxels():
    assert grid_of((40, 400, 500), scale="auto", max_pixels=220_000).bins == (1, 1, 1)
    large = grid_of((40, 1000, 1200), scale="auto", max_pixels=50_000)
    assert large.bins == (5, 5, 5)
    assert math.prod(large.working[1:]) == pytest.approx(50_000, rel=0.1)


@pytest.mark.parametrize("scale", [0.4, 0.7, 2.0, 1.5])
def test_a_scale_of_no_whole_number_of_voxels_is_refused(scale):
    with pytest.raises(SettingsError, match=rf"`images.scale` of a volume to be 1, 1/2, 1/3 .* but got {scale:g}"):
        grid_of(scale=scale)
    if scale == 0.4:
        with pytest.raises(SettingsError, match=r"use 1/2 or 1/3$"):
            grid_of(scale=scale)


def test_a_rounded_third_is_a_third():
    assert grid_of(scale=0.333).bins == (3, 3, 3)


def test_distances_between_seeds_in_voxels():
    grid = grid_of((40, 50, 60), size=27)
    assert grid.seeds == (13, 17, 20)
    assert grid.seeds_to_voxels(2) == (7, 6, 6)


@given(SIDES, SIDES)
def test_each_voxel_is_in_exactly_one_tile(shape, block):
    counts = np.zeros(shape, int)
    for region in tiles(shape, block):
        assert all(part.stop - part.start <= side for part, side in zip(region, block, strict=True))
        counts[region] += 1
    assert (counts == 1).all()


@given(st.data())
def test_a_widened_region_holds_the_halo_and_begins_and_ends_where_it_may(data):
    shape = data.draw(SIDES)
    region = data.draw(st.sampled_from(tiles(shape, data.draw(SIDES))))
    halo, align = data.draw(st.tuples(*[st.integers(0, 9)] * 3)), data.draw(st.tuples(*[st.integers(1, 8)] * 3))
    for inner, outer, h, n, a in zip(region, widened(region, halo, shape, align), halo, shape, align, strict=True):
        assert outer.start % a == 0
        assert outer.stop % a == 0 or outer.stop == n
        assert max(0, inner.start - h) - a < outer.start <= max(0, inner.start - h)
        assert min(n, inner.stop + h) <= outer.stop <= min(n, inner.stop + h + a - 1)


@given(st.data())
def test_a_part_of_a_part(data):
    shape = data.draw(SIDES)
    places = np.arange(math.prod(shape)).reshape(shape)
    inner = data.draw(st.sampled_from(tiles(shape, data.draw(SIDES))))
    outer = widened(inner, data.draw(SIDES), shape)
    np.testing.assert_array_equal(places[outer][within(inner, outer)], places[inner])


@given(SIDES, st.tuples(*[st.integers(1, 4)] * 3), SIDES)
@settings(max_examples=40)
def test_working_regions_divide_the_stored_voxels(shape, bins, block):
    spacing = tuple(12 / b for b in bins)
    grid = grid_of(shape, spacing, scale=1 / max(bins))
    counts = np.zeros(shape, int)
    for region in tiles(grid.working, block):
        counts[grid.stored(region)] += 1
    assert (counts == 1).all()


def test_axes_are_not_mixed_up():
    grid = make_grid((40, 60, 90), (1.0, 2.0, 4.0), scale=1.0, max_pixels=10**6, size=64.0, reduction=4)
    assert grid.bins == (1, 1, 1)
    assert grid.scale == (1.0, 2.0, 4.0)
    assert grid.cells == (4, 2, 1)
    side = (64 * 1 * 2 * 4) ** (1 / 3)
    assert grid.seeds == (round(40 / side), round(60 / (side / 2)), round(90 / (side / 4)))


def test_a_region_is_widened_to_no_multiples_if_none_are_told():
    region = (slice(3, 5), slice(4, 6), slice(5, 8))
    assert widened(region, (1, 1, 1), (9, 9, 9)) == (slice(2, 6), slice(3, 7), slice(4, 9))
