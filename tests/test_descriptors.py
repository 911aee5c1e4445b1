from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2lab

from spwnet.descriptors import GROUPS, SOLID, handmade, kinds, solid, solid_reach
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


@pytest.mark.parametrize("reduction", range(1, 9))
def test_every_reduction_has_evidence(reduction):
    maps = handmade(100 * torch.rand(3, 37, 52), reduction)
    assert maps.shape[1:] == (-(-37 // reduction), -(-52 // reduction))
    assert maps.isfinite().all()


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


def solid_of(image, cells=(1, 1, 1), scale=(1.0, 1.0, 1.0)):
    """{name: (C, *cells) array} of (C, d, h, w) in 0…100."""
    image = torch.from_numpy(np.ascontiguousarray(image, np.float32))
    maps = solid(image, gaussian(image, [1 / ratio for ratio in scale]), cells, scale)
    sizes = [kind.size for kind in kinds("handmade", len(image), 0, solid=True)]
    names = [name for members, _ in SOLID.values() for name in members]
    assert len(maps) == sum(sizes)
    return dict(zip(names, (part.numpy() for part in maps.split(sizes)), strict=True))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("shape", "cells"), [((12, 14, 16), (2, 2, 2)), ((7, 9, 5), (1, 2, 3)), ((1, 2, 30), (2, 1, 4))]
)
def test_solid_sizes_agree_with_the_kinds(channels, shape, cells):
    maps = solid_of(100 * np.random.default_rng(0).random((channels, *shape)), cells)
    for name, part in maps.items():
        assert part.shape == (
            3 if name == "grain 4" else channels,
            *(-(-n // c) for n, c in zip(shape, cells, strict=True)),
        )
        assert np.isfinite(part).all()
        assert part.dtype == np.float32
    np.testing.assert_allclose(maps["grain 4"].sum(0), 0, atol=1e-4)


def test_solid_kinds_are_chosen_and_weighed_as_the_others():
    weights = [kind.weight for kind in kinds("handmade", 3, 0, solid=True)]
    assert math.isclose(sum(w * w for w in weights), sum(w * w for _, w in SOLID.values()))
    assert kinds("all", 2, 16, solid=True)[1:] == kinds("handmade", 2, 16, solid=True)
    assert kinds("learned", 2, 16, solid=True) == kinds("all", 2, 16, solid=True)[:1] == kinds("learned", 2, 16)
    assert [kind.size for kind in kinds("colour", 2, 16, solid=True)] == [2]
    grey, colours = (kinds("handmade", channels, 0, solid=True)[0].weight for channels in (1, 3))
    assert math.isclose(grey, math.sqrt(3) * colours)


def test_solid_evidence_is_what_it_says():
    image = 100 * np.random.default_rng(0).random((2, 14, 16, 18))
    maps = solid_of(image)

    def blur(values, sigma):
        return gaussian_filter(values, sigma, axes=(-3, -2, -1), truncate=3, mode="reflect")

    np.testing.assert_allclose(maps["colour"], image, rtol=1e-6)
    np.testing.assert_allclose(maps["smooth 1"], blur(image, 1), atol=1e-3)
    np.testing.assert_allclose(maps["smooth 2"], blur(image, 2), atol=1e-3)
    np.testing.assert_allclose(maps["band 1"], blur(image, 1) - blur(image, 2), atol=1e-3)
    energy = np.log(1 + np.sqrt(blur((image - blur(image, 1)) ** 2, 3)))
    np.testing.assert_allclose(maps["energy 0"], energy, atol=1e-3)
    logs = []
    for axis in range(3):
        squares = np.diff(image[0], axis=axis) ** 2 / 2
        none = [(1, 0) if a == axis else (0, 0) for a in range(3)]
        both = np.pad(squares, none) + np.pad(squares, [pair[::-1] for pair in none])
        logs.append(np.log(1 + gaussian_filter(both, 4, radius=12, mode="reflect")))
    np.testing.assert_allclose(maps["grain 4"], logs - np.mean(logs, axis=0), atol=1e-3)


@pytest.mark.parametrize("cells", [(1, 1, 1), (2, 2, 2)])
def test_grain_tells_along_which_axis_fibres_run(cells):
    rng = np.random.default_rng(0)
    inside = (slice(None), *[slice(8 // c, 24 // c) for c in cells])
    for axis in range(3):
        size = [32, 32, 32]
        size[axis] = 1
        fibres = 50 + 20 * np.broadcast_to(rng.standard_normal(size), (1, 32, 32, 32))
        grain = solid_of(fibres, cells)["grain 4"][inside]
        assert (grain[axis] < -2).all()
        assert all((grain[other] > 1).all() for other in range(3) if other != axis)


def test_noise_has_no_grain():
    noise = 50 + 20 * np.random.default_rng(0).standard_normal((1, 32, 32, 32))
    grain = solid_of(noise)["grain 4"]
    assert np.abs(grain[:, 8:24, 8:24, 8:24]).max() < 0.15
    assert np.abs(grain.mean((1, 2, 3))).max() < 0.03


def test_layers_have_grain_across_them():
    layers = 50 + 20 * np.broadcast_to(np.random.default_rng(0).standard_normal((32, 1, 1)), (1, 32, 32, 32))
    grain = solid_of(layers)["grain 4"][:, 16, 16, 16]
    assert grain[0] > 2
    assert grain[1] == pytest.approx(grain[2])
    assert grain[1] < -1


def test_filters_are_as_wide_in_voxels_that_are_no_cubes():
    """What is smoothed over a coarser axis is smoothed as far, not as many voxels."""
    fine = gaussian_filter(np.random.default_rng(0).standard_normal((64, 32, 32)), 2.0)[None] * 100 + 50
    true = solid_of(fine)
    thinned = solid_of(fine[:, ::2], scale=(2.0, 1.0, 1.0))
    naive = solid_of(fine[:, ::2])
    inner = (slice(None), slice(6, 26), slice(8, 24), slice(8, 24))
    for name in ("smooth 1", "smooth 2", "band 1"):
        error, worse = (np.abs(maps[name] - true[name][:, ::2])[inner].mean() for maps in (thinned, naive))
        assert error < 0.35 * worse


@pytest.mark.parametrize(
    ("cells", "scale"),
    [
        ((1, 1, 1), (1.0, 1.0, 1.0)),
        ((2, 2, 2), (1.0, 1.0, 1.0)),
        ((4, 4, 4), (1.0, 1.0, 1.0)),
        ((8, 8, 8), (1.0, 1.0, 1.0)),
        ((1, 2, 2), (2.5, 1.0, 1.0)),
        ((2, 1, 2), (1.0, 6.0, 1.3)),
        ((3, 1, 2), (1.0, 3.0, 1.5)),
    ],
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_evidence_of_a_part_is_that_of_the_whole_as_far_as_it_sees(cells, scale, axis):
    side, reach = cells[axis], solid_reach(cells, scale)[axis]
    reach = -(-reach // side) * side
    shape = [2 * cells[a] for a in range(3)]
    shape[axis] = 2 * reach + 9 * side
    image = torch.from_numpy(100 * np.random.default_rng(3).random((2, *shape), dtype=np.float32))

    def maps(part):
        return solid(part, gaussian(part, [1 / ratio for ratio in scale]), cells, scale)

    whole = maps(image)
    for start in range(0, shape[axis], side):
        low, high = max(0, start - reach), min(shape[axis], start + side + reach)
        part = maps(image.narrow(axis + 1, low, high - low)).select(axis + 1, (start - low) // side)
        torch.testing.assert_close(part, whole.select(axis + 1, start // side), rtol=0, atol=0)
    # Half as far is not enough, where that is more than what the smoothing of the smallest values takes.
    if reach // 3 // side > 1:
        low = shape[axis] // 2 // side * side - reach // 3 // side * side
        part = maps(image.narrow(axis + 1, low, shape[axis] - low)).select(axis + 1, reach // 3 // side)
        assert not torch.equal(part, whole.select(axis + 1, shape[axis] // 2 // side))
