from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2lab

from spwnet.descriptors import GROUPS, handmade, kinds
from spwnet.filters import gaussian
from spwnet.preparation import perceptual
from tests.conftest import picture


def evidence_of(unit, *, rgb=False):
    """{kind: (C, *spatial) array}."""
    image = torch.from_numpy(np.moveaxis(perceptual(unit.astype(np.float32), rgb=rgb), -1, 0).copy())
    maps = handmade(image)
    names = [name for members, _ in GROUPS.values() for name in members]
    sizes = [kind.size for kind in kinds("handmade", unit.shape[-1], 0, unit.ndim - 1)]
    return dict(zip(names, (part.numpy() for part in maps.split(sizes)), strict=True))


@pytest.mark.parametrize(("channels", "rgb"), [(3, True), (3, False), (1, False), (5, False)])
@pytest.mark.parametrize("shape", [(40, 52), (7, 3), (1, 20), (6, 8, 10)])
def test_sizes_agree_with_the_kinds(channels, rgb, shape):
    unit = np.random.default_rng(0).random((*shape, channels))
    maps = evidence_of(unit, rgb=rgb)
    assert all(part.shape[1:] == shape and part.dtype == np.float32 for part in maps.values())
    assert all(np.isfinite(part).all() for part in maps.values())


def test_groups_keep_their_weight_however_many_kinds_they_have():
    weights = [kind.weight for kind in kinds("handmade", 3, 0)]
    assert math.isclose(sum(w * w for w in weights), sum(w * w for _, w in GROUPS.values()))
    assert kinds("all", 3, 16)[1:] == kinds("handmade", 3, 16)
    assert kinds("learned", 3, 16) == kinds("all", 3, 16)[:1]
    assert [kind.size for kind in kinds("colour", 3, 16)] == [3]


def test_one_grey_value_weighs_as_much_as_it_has_to_say():
    grey, two, colours, many = (kinds("handmade", channels, 0)[0].weight for channels in (1, 2, 3, 9))
    assert colours == many == GROUPS["colour"][1]
    assert math.isclose(grey, math.sqrt(3) * colours)
    assert grey > two > colours


def test_colour_comes_first():
    unit = picture(0) / 255
    np.testing.assert_allclose(np.moveaxis(evidence_of(unit, rgb=True)["colour"], 0, -1), rgb2lab(unit), atol=1e-3)
    np.testing.assert_allclose(np.moveaxis(evidence_of(unit)["colour"], 0, -1), 100 * unit, atol=1e-3)


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


def test_energy_tells_textures_of_equal_mean_apart():
    rng = np.random.default_rng(0)
    unit = np.full((48, 96, 1), 0.5)
    unit[:, 48:] += rng.normal(0, 0.1, (48, 48, 1))
    maps = evidence_of(unit)
    for name in GROUPS["energy"][0][:3]:
        assert maps[name][0, 10:38, 70:].mean() - maps[name][0, 10:38, :20].mean() > 0.5
        np.testing.assert_allclose(maps[name][0, 10:38, :10], 0, atol=0.05)


def test_orientation_tells_stripes_of_two_directions_apart():
    y, x = np.mgrid[:40, :40]
    down, across = (evidence_of(0.5 + 0.4 * np.sin(t)[..., None])["orientation 4"][:, 20, 20] for t in (y, x))
    assert abs(down[0] - across[0]) > 10 * abs(down[1] - across[1])
    rising, falling = (
        evidence_of(0.5 + 0.4 * np.sin(t)[..., None])["orientation 4"][:, 20, 20] for t in (y + x, y - x)
    )
    assert abs(rising[1] - falling[1]) > 10 * abs(rising[0] - falling[0])


def test_local_lightness_does_not_see_slow_shading():
    y, x = np.mgrid[:120, :160]
    blobs = 0.15 * (np.hypot(y % 24 - 12, x % 24 - 12) < 6)
    flat, shaded = (evidence_of((0.3 + blobs + shade)[..., None]) for shade in (0.0, 0.3 * x / 160))
    inner = (0, slice(40, 80), slice(50, 110))
    change = np.abs(flat["local"][inner] - shaded["local"][inner]).mean() / flat["local"][inner].std()
    change_of_colour = np.abs(flat["colour"][inner] - shaded["colour"][inner]).mean() / flat["colour"][inner].std()
    assert change < 0.3 * change_of_colour
