"""Blur and means over cells, with one value for all axes or one for each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from spwnet.filters import averaged, gaussian, reach

SIDES = st.tuples(*[st.integers(1, 9)] * 3)


@given(SIDES, st.tuples(*[st.integers(1, 5)] * 3))
def test_means_over_cells_of_other_sides_along_each_axis(shape, sides):
    image = np.random.default_rng(0).random((2, 1, *shape)).astype(np.float32)
    found = averaged(torch.from_numpy(image), sides).numpy()
    assert found.shape == (2, 1, *(-(-n // s) for n, s in zip(shape, sides, strict=True)))
    for cell in np.ndindex(found.shape[2:]):
        where = tuple(slice(k * s, (k + 1) * s) for k, s in zip(cell, sides, strict=True))
        expected = image[(slice(None), slice(None), *where)].mean((2, 3, 4))
        np.testing.assert_allclose(found[(slice(None), slice(None), *cell)], expected, rtol=1e-5)


def test_one_side_for_all_axes_is_the_same_for_each():
    image = torch.rand((1, 2, 7, 8, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(averaged(image, 3), averaged(image, (3, 3, 3)))
    assert torch.equal(averaged(image, (1, 1, 1)), image)


def test_averaging_leaves_its_input_as_it_was():
    image = torch.ones((1, 1, 6, 6))
    averaged(image, (2, 1))
    assert torch.equal(image, torch.ones((1, 1, 6, 6)))


@pytest.mark.parametrize("shape", [(40, 52), (12, 16, 20)])
@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.5])
def test_gaussian_equals_scipy(shape, sigma):
    image = np.random.default_rng(0).random((2, *shape)).astype(np.float32)
    expected = gaussian_filter(image, (0, *[sigma] * len(shape)), truncate=3, mode="reflect")
    np.testing.assert_allclose(gaussian(torch.from_numpy(image), sigma).numpy(), expected, atol=1e-5)


def test_wide_gaussians_on_a_smaller_image_are_close():
    image = gaussian_filter(np.random.default_rng(0).random((1, 120, 160)).astype(np.float32), (0, 3, 3))
    expected = gaussian_filter(image, (0, 16, 16))
    found = gaussian(torch.from_numpy(image), 16).numpy()
    assert np.abs(found - expected).max() < 0.1 * image.std()


@pytest.mark.parametrize("sigmas", [(1.0, 2.0, 0.5), (0.0, 3.0, 1.0), (5.0, 1.0, 0.1)])
def test_a_width_for_each_axis_equals_scipy(sigmas):
    image = np.random.default_rng(0).random((2, 12, 16, 20)).astype(np.float32)
    expected = gaussian_filter(image, (0, *sigmas), radius=(0, *(reach(sigma) for sigma in sigmas)), mode="reflect")
    np.testing.assert_allclose(gaussian(torch.from_numpy(image), sigmas).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.9, 3.9])
def test_a_gaussian_reaches_as_far_as_it_says(sigma):
    point = torch.zeros((1, 41, 1))
    point[0, 20] = 1
    touched = gaussian(point, [sigma, 0.0])[0, :, 0].nonzero().flatten()
    assert touched.min() == 20 - reach(sigma)
    assert touched.max() == 20 + reach(sigma)
