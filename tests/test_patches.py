from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spwnet.config import PatchSettings
from spwnet.errors import SettingsError
from spwnet.patches import check_schedule, make_schedule, patch_region, sample_patches


def test_generated_schedules_are_the_published_ones():
    assert make_schedule(PatchSettings(sides=(64, 96))) == [(64, 64, 9), (64, 96, 6), (96, 64, 6), (96, 96, 4)]
    counts = [count for _, _, count in make_schedule(PatchSettings(sides=(64, 128)))]
    assert counts == [16, 8, 8, 4]


def test_sides_more_than_a_factor_of_two_apart_are_not_paired():
    schedule = make_schedule(PatchSettings(sides=(16, 64), budget=256))
    assert schedule == [(16, 16, 1), (64, 64, 1)]


def test_explicit_and_empty_schedules():
    assert make_schedule(PatchSettings(schedule=((8, 9, 2),))) == [(8, 9, 2)]
    assert make_schedule(PatchSettings()) == []


def test_region_is_a_slice_of_the_image():
    assert patch_region((352, 624), PatchSettings(rows=(None, -50), columns=(100, None))) == ((0, 302), (100, 624))


def turned(patch):
    return [np.rot90(f, k) for f in (patch, patch[:, ::-1]) for k in range(4)]


@given(
    st.integers(2, 6), st.integers(2, 6), st.integers(0, 5), st.integers(0, 5), st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=60)
def test_patches_are_turned_and_flipped_windows_of_the_region(h, w, more_rows, more_columns, seed):
    region = ((1, 1 + h + more_rows), (2, 2 + w + more_columns))
    image = np.arange(20 * 20.0).reshape(20, 20)
    patches = sample_patches(torch.from_numpy(image)[None], h, w, 5, np.random.default_rng(seed), region)
    assert patches.shape == (5, 1, h, w)
    inside = image[slice(*region[0]), slice(*region[1])]
    windows = [
        inside[y : y + a, x : x + b]
        for a, b in {(h, w), (w, h)}
        for y in range(inside.shape[0] - a + 1)
        for x in range(inside.shape[1] - b + 1)
    ]
    for patch in patches[:, 0].numpy():
        assert any(np.array_equal(patch, t) for window in windows for t in turned(window))


def test_all_eight_orientations_come_up_and_the_seed_decides():
    image = torch.arange(4.0).reshape(1, 2, 2)
    draw = [sample_patches(image, 2, 2, 60, np.random.default_rng(seed), ((0, 2), (0, 2))) for seed in (1, 1, 2)]
    assert len({tuple(patch.flatten().tolist()) for patch in draw[0]}) == 8
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


@pytest.mark.parametrize("shape", [(40, 100), (100, 40)])
def test_a_patch_that_does_not_fit_is_an_error(shape):
    with pytest.raises(
        SettingsError, match=r"a patch of (64×32|32×64) is larger than the \d+×\d+ working pixels of 'photo'"
    ):
        check_schedule(PatchSettings(sides=(32, 64)), shape, "photo")
    check_schedule(PatchSettings(sides=(32, 40)), shape, "photo")
    with pytest.raises(SettingsError, match="larger than the 0×"):
        check_schedule(PatchSettings(sides=(32,), rows=(90, 10)), (100, 100), "photo")


def test_a_region_without_a_whole_cell_is_refused():
    settings = PatchSettings(schedule=((2, 2, 8),), rows=(1, 3))
    check_schedule(settings, (40, 40), "a")
    with pytest.raises(SettingsError, match=r"at least 4 pixels a side \(`model.reduction`\), but that of 'a' is 2×40"):
        check_schedule(settings, (40, 40), "a", reduction=4)
    check_schedule(PatchSettings(schedule=((2, 2, 8),), rows=(3, 5)), (40, 40), "a", reduction=4)
