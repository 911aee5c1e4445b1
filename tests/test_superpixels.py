from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from spwnet.config import SuperpixelSettings
from spwnet.errors import InputError
from spwnet.superpixels import make_superpixels, slic, superpixels_from_labels

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("shape", "channels"), [((40, 60), 3), ((40, 60), 1), ((41, 59), 5), ((12, 20, 24), 2)])
def test_slic_covers_every_pixel_in_any_shape_and_number_of_channels(shape, channels):
    image = RNG.random((*shape, channels), dtype=np.float32)
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


def test_compactness_means_the_same_in_a_faint_image():
    """scikit-image stretches each image to its own range; here faint noise must not shape superpixels."""
    noise = RNG.random((48, 48, 1), dtype=np.float32)
    faint = slic(0.5 + 0.001 * noise, 36, compactness=10, sigma=0)
    flat = slic(np.full_like(noise, 0.5), 36, compactness=10, sigma=0)
    assert np.mean(faint.labels == flat.labels) > 0.95
    strong = slic(noise, 36, compactness=10, sigma=0)
    assert np.mean(strong.labels == flat.labels) < 0.9


def test_constant_image_and_one_superpixel():
    assert slic(np.full((9, 7, 1), 0.3, np.float32), 1).count == 1


@given(arrays(np.int64, array_shapes(min_dims=2, max_dims=3, max_side=6), elements=st.integers(-5, 1 << 40)))
@settings(max_examples=50)
def test_any_numbering_becomes_0_to_n_with_the_same_regions(labels):
    ours = superpixels_from_labels(labels, labels.shape)
    np.testing.assert_array_equal(np.unique(ours.labels), np.arange(ours.count))
    pairs = np.unique(np.stack([labels.ravel(), ours.labels.ravel().astype(np.int64)]), axis=1)
    assert pairs.shape[1] == ours.count == len(np.unique(labels))


def test_methods():
    image = RNG.random((20, 20, 1), dtype=np.float32)
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
