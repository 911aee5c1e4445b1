from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from spwnet.config import SuperpixelSettings
from spwnet.errors import InputError
from spwnet.superpixels import Seeds, lattice_slic, make_superpixels, slic, superpixels_from_labels


@pytest.mark.parametrize(("shape", "channels"), [((40, 60), 3), ((40, 60), 1), ((41, 59), 5), ((12, 20, 24), 2)])
def test_slic_covers_every_pixel_in_any_shape_and_number_of_channels(shape, channels, rng):
    image = rng.random((*shape, channels), dtype=np.float32)
    superpixels = slic(image, 50, rgb=channels == 3 and len(shape) == 2)
    assert superpixels.labels.shape == shape
    assert superpixels.labels.dtype == np.int32
    np.testing.assert_array_equal(np.unique(superpixels.labels), np.arange(superpixels.count))
    assert 10 <= superpixels.count <= 150


def test_slic_follows_a_colour_edge():
    image = np.zeros((40, 40, 3), np.float32)
    image[:, 23:] = 1
    labels = slic(image, 16, sigma=0, rgb=True).labels
    assert not set(labels[:, :23].flat) & set(labels[:, 23:].flat)


def test_compactness_means_the_same_in_a_faint_image(rng):
    """scikit-image stretches each image to its own range; here faint noise must not shape superpixels."""
    noise = rng.random((48, 48, 1), dtype=np.float32)
    faint = slic(0.5 + 0.001 * noise, 36, compactness=10, sigma=0)
    flat = slic(np.full_like(noise, 0.5), 36, compactness=10, sigma=0)
    assert np.mean(faint.labels == flat.labels) > 0.95
    strong = slic(noise, 36, compactness=10, sigma=0)
    assert np.mean(strong.labels == flat.labels) < 0.9


def test_constant_image_and_one_superpixel():
    assert slic(np.full((9, 7, 1), 0.3, np.float32), 1).count == 1


def seeds_of(labels, axes):
    """Which seeds of the whole image the labels of a part are: their places along each axis."""
    present = [seeds.present for seeds in axes]
    places = np.unravel_index(labels.numpy(), [len(some) for some in present])
    return np.stack([some.start + place for some, place in zip(present, places, strict=True)])


@pytest.mark.parametrize(
    ("shape", "counts", "axis"),
    [((90, 20), (30, 5), 0), ((17, 120), (8, 30), 1), ((60, 9, 8), (30, 3, 4), 0), ((8, 80, 7), (1, 20, 7), 1)],
)
@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_a_part_has_the_labels_of_the_whole_as_far_as_it_sees(shape, counts, axis, iterations):
    image = torch.from_numpy(100 * np.random.default_rng(1).random((2, *shape), dtype=np.float32))
    axes = [Seeds(size, count) for size, count in zip(shape, counts, strict=True)]
    whole = seeds_of(lattice_slic(image, axes, 10.0, iterations), axes)
    size, count = shape[axis], counts[axis]
    reach = math.ceil((1.5 + 2 * (iterations - 1)) * size / count)
    differed = 0
    for start in range(0, size, 7):
        seen = slice(max(0, start - reach), min(size, start + 7 + reach))
        assert seen.stop - seen.start < size
        part = [Seeds(size, count, seen.start, seen.stop) if a == axis else one for a, one in enumerate(axes)]
        found = seeds_of(
            lattice_slic(image.narrow(axis + 1, seen.start, seen.stop - seen.start), part, 10.0, iterations), part
        )
        there = whole.take(range(seen.start, seen.stop), axis + 1)
        own = range(start - seen.start, min(start + 7, size) - seen.start)
        np.testing.assert_array_equal(found.take(own, axis + 1), there.take(own, axis + 1))
        differed += int((found != there).sum())
    # Beyond, they are others: what a label depends on is not much nearer than the reach.
    assert differed > 0


@pytest.mark.parametrize(
    ("shape", "counts"),
    [((40, 30), (10, 10)), ((31, 7), (4, 7)), ((5, 40), (1, 9)), ((12, 15, 20), (12, 5, 3)), ((1, 9, 30), (1, 2, 11))],
)
def test_each_pixel_joins_a_seed_around_it(shape, counts):
    image = torch.from_numpy(100 * np.random.default_rng(2).random((1, *shape), dtype=np.float32))
    axes = [Seeds(size, count) for size, count in zip(shape, counts, strict=True)]
    labels = lattice_slic(image, axes, 1.0)
    assert labels.dtype == torch.int32
    places = np.indices(shape)
    strayed = 0
    for along, place, size, count in zip(seeds_of(labels, axes), places, shape, counts, strict=True):
        position = (place + 0.5) * count / size
        away = np.abs(np.clip(position, 0.5, count - 0.5) - (along + 0.5))
        assert (away < 1 + 1e-9).all()
        assert (along >= 0).all()
        assert (along < count).all()
        strayed += int((away > 0.5).sum())
    # Noise sends many to another than the nearest.
    assert strayed > image.numel() / 10


@pytest.mark.parametrize(("shape", "counts"), [((40, 30), (10, 5)), ((12, 15, 20), (3, 5, 2)), ((6, 6, 8), (6, 1, 4))])
def test_a_constant_image_has_the_regular_lattice(shape, counts):
    axes = [Seeds(size, count) for size, count in zip(shape, counts, strict=True)]
    labels = lattice_slic(torch.full((3, *shape), 40.0), axes, 10.0)
    expected = np.ravel_multi_index(
        [place * count // size for place, size, count in zip(np.indices(shape), shape, counts, strict=True)], counts
    )
    np.testing.assert_array_equal(labels.numpy(), expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_supervoxels_follow_an_edge(axis):
    shape = (20, 24, 28)
    image = torch.zeros((1, *shape))
    image.narrow(axis + 1, 11, shape[axis] - 11).fill_(100)
    labels = lattice_slic(image, [Seeds(20, 5), Seeds(24, 6), Seeds(28, 7)], 10.0)
    dark, bright = labels.narrow(axis, 0, 11), labels.narrow(axis, 11, shape[axis] - 11)
    assert not set(dark.flatten().tolist()) & set(bright.flatten().tolist())


def test_seeds_of_a_part_lie_where_those_of_the_whole_do():
    whole, part = Seeds(50, 12), Seeds(50, 12, 13, 31)
    np.testing.assert_array_equal(part.positions, whole.positions[13:31])
    for ours, theirs in zip(part.near, whole.near, strict=True):
        np.testing.assert_array_equal(ours, theirs[13:31])
    assert list(part.present) == list(range(whole.near[0][13], whole.near[1][30] + 1))
    assert list(whole.present) == list(range(12))


@given(arrays(np.int64, array_shapes(min_dims=2, max_dims=3, max_side=6), elements=st.integers(-5, 1 << 40)))
@settings(max_examples=50)
def test_any_numbering_becomes_0_to_n_with_the_same_regions(labels):
    ours = superpixels_from_labels(labels, labels.shape)
    np.testing.assert_array_equal(np.unique(ours.labels), np.arange(ours.count))
    pairs = np.unique(np.stack([labels.ravel(), ours.labels.ravel().astype(np.int64)]), axis=1)
    assert pairs.shape[1] == ours.count == len(np.unique(labels))


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32"])
def test_ids_over_all_of_a_signed_type_stay_apart(dtype):
    ids = np.linspace(np.iinfo(dtype).min, np.iinfo(dtype).max, 200).astype(dtype).reshape(10, 20)
    assert superpixels_from_labels(ids, ids.shape).count == 200
    wide = np.arange(-20_000, 20_000, dtype=np.int16).reshape(200, 200)
    assert superpixels_from_labels(wide, wide.shape).count == wide.size


@pytest.mark.parametrize(("shape", "count"), [((1, 1000), 50), ((1000, 1), 50), ((2, 60, 60), 112), ((1, 1, 300), 30)])
def test_thin_images_get_about_as_many_as_asked_for(shape, count):
    unit = np.zeros((*shape, 1), np.float32)
    assert count / 1.3 < slic(unit, count).count < count * 1.3


def test_methods(rng):
    image = rng.random((20, 20, 1), dtype=np.float32)
    assert make_superpixels(image, SuperpixelSettings(method="none")) is None
    labels = np.arange(400).reshape(20, 20) // 40
    own = make_superpixels(image, SuperpixelSettings(method="labels"), labels=labels[..., None])
    assert own is not None
    assert own.count == 10
    few = make_superpixels(image, SuperpixelSettings(count=4))
    many = make_superpixels(image, SuperpixelSettings(size=10))
    assert few is not None
    assert many is not None
    assert few.count < many.count


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "expected label images for `superpixels.method = 'labels'`, but got none"),
        (np.zeros((3, 4), int), r"expected superpixels of the image's shape \(20, 20\), but got \(3, 4\)"),
        (np.zeros((20, 20)), "expected superpixels as integers, but got float64"),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    with pytest.raises(InputError, match=message):
        make_superpixels(np.zeros((20, 20, 1), np.float32), SuperpixelSettings(method="labels"), labels=labels)
