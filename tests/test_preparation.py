"""Preparation: normalisation, scaling and sharpening against plain arithmetic, and the way back of labels."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2lab

from spwnet.config import ImageSettings
from spwnet.errors import InputError, RunError
from spwnet.images import Image
from spwnet.preparation import Frame, Normalisation, measure, perceptual, prepare, restore, to_display, to_unit

PLAIN = ImageSettings(scale=1)
UNIT = Normalisation((0.0,), (1.0,), (0.0,), (1.0,), False, False)


def colour(*shape: int, name: str = "a") -> Image:
    return Image(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8), name, True)


# Normalisation


def test_eight_bit_colours_keep_their_range(rng):
    image = Image(rng.integers(50, 90, (20, 30, 3), dtype=np.uint8), "a", True)
    found = measure([image], PLAIN)
    assert (found.low, found.high) == ((0.0,) * 3, (255.0,) * 3)
    assert found.rgb
    assert found.standardise
    np.testing.assert_allclose(found.mean, (image.pixels / 255).mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(found.std, (image.pixels / 255).std((0, 1)), rtol=1e-5)


def test_float_colours_within_one_keep_their_range(rng):
    image = Image(rng.uniform(0.2, 0.6, (20, 30, 3)), "a", True)
    found = measure([image], PLAIN)
    assert (found.low, found.high) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
def test_other_images_are_stretched_between_percentiles_of_all(dtype, rng):
    images = [
        Image((1000 * rng.normal(m, 1, (40, 30 + k, 2)) % 250).astype(dtype), str(k), False)
        for k, m in enumerate((3, 4))
    ]
    found = measure(images, PLAIN)
    values = np.concatenate([image.pixels.reshape(-1, 2) for image in images])
    np.testing.assert_allclose([found.low, found.high], np.percentile(values, [0.1, 99.9], axis=0), rtol=1e-6)
    units = np.clip((values - np.array(found.low)) / np.subtract(found.high, found.low), 0, 1)
    np.testing.assert_allclose(found.mean, units.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.std, units.std(0), rtol=1e-5)
    assert not found.rgb


def test_float_colours_beyond_one_and_mixed_kinds_are_stretched(rng):
    wide = Image(rng.uniform(0, 2, (20, 30, 3)), "a", True)
    assert measure([wide], PLAIN).high[0] == pytest.approx(2, abs=0.1)
    bytes_too = Image(rng.integers(50, 90, (20, 30, 3), dtype=np.uint8), "b", True)
    mixed = measure([bytes_too, wide], PLAIN)
    assert mixed.rgb
    assert mixed.high[0] < 90
    grey = Image(colour(20, 30).pixels, "b", False)
    assert not measure([colour(20, 30), grey], PLAIN).rgb


def test_deep_colours_share_one_range(rng):
    pixels = rng.integers((1000, 0, 500), (60_000, 9000, 30_000), (40, 40, 3)).astype(np.uint16)
    found = measure([Image(pixels, "a", True)], PLAIN)
    assert len(set(found.low)) == len(set(found.high)) == 1
    assert found.low[0] == np.percentile(pixels[..., 1], 0.1)
    assert found.high[0] == np.percentile(pixels[..., 0], 99.9)


def test_statistics_are_those_of_the_prepared_images():
    settings = ImageSettings(scale=0.5, margin=3, unsharp_radius=2)
    images = [colour(40, 30), colour(50, 60)]
    found = measure(images, settings)
    units = np.concatenate([prepare(image, settings, found).unit.reshape(-1, 3) for image in images])
    np.testing.assert_allclose(found.mean, units.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.std, units.std(0), rtol=1e-5)
    networks = np.concatenate([prepare(image, settings, found).network.reshape(-1, 3) for image in images])
    np.testing.assert_allclose(networks.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(networks.std(0), 1, rtol=1e-4)


def test_margin_does_not_count(rng):
    pixels = np.full((20, 20, 1), 1000.0)
    pixels[5:-5, 5:-5] = rng.random((10, 10, 1))
    assert measure([Image(pixels, "a", False)], ImageSettings(margin=5)).high[0] <= 1


def test_constant_images_are_refused(rng):
    flat = Image(np.full((5, 5, 2), (1, 7), np.uint8), "flat", False)
    with pytest.raises(InputError, match="constant image 'flat'"):
        measure([flat, Image(np.full((6, 5, 2), 3, np.uint8), "b", False)], PLAIN)
    with pytest.raises(InputError, match="constant image 'black'"):
        measure([Image(np.zeros((5, 5, 3), np.uint8), "black", True)], PLAIN)
    assert measure([flat, Image(rng.random((6, 5, 2)), "b", False)], PLAIN).std[0] > 0


def test_a_constant_channel_is_kept_with_a_warning(caplog, rng):
    pixels = np.stack([rng.random((9, 9)), np.full((9, 9), 5.0), np.full((9, 9), -1e20)], axis=-1)
    image = Image(pixels, "a", False)
    found = measure([image], PLAIN)
    assert (found.low[1], found.high[1], found.std[1]) == (5.0, 6.0, 1.0)
    assert found.high[2] > found.low[2]
    assert [r.message for r in caplog.records if r.levelno == logging.WARNING] == [
        "channel 1 is constant (5) in all training images; it tells nothing",
        "channel 2 is constant (-1e+20) in all training images; it tells nothing",
    ]
    assert not prepare(image, PLAIN, found).network[..., 1:].any()


def test_a_nearly_constant_channel_takes_its_whole_range(caplog):
    pixels = np.zeros((100, 100, 1), np.uint16)
    pixels[50, 50] = 9
    found = measure([Image(pixels, "a", False)], PLAIN)
    assert (found.low, found.high) == ((0.0,), (9.0,))
    assert not caplog.records


@pytest.mark.parametrize(("dtype", "fill"), [("float32", 3e38), ("float64", 1.7e308), ("float64", 1e40)])
def test_fill_values_that_no_range_holds_are_refused(dtype, fill):
    pixels = np.random.default_rng(0).random((20, 30, 2)).astype(dtype)
    pixels[:4, :, 1], pixels[4:8, :, 1] = fill, -fill
    with pytest.raises(InputError, match=r"those of channel 1 of 'a' … go from -.* to .*; replace fill values"):
        measure([Image(pixels, "a", False)], ImageSettings())


def test_images_to_measure_must_be_of_one_kind():
    with pytest.raises(InputError, match="at least one image"):
        measure([], PLAIN)
    with pytest.raises(InputError, match=r"expected 3 channels .*'b' has 1"):
        measure([colour(5, 5), Image(np.zeros((5, 5, 1)), "b", False)], PLAIN)
    with pytest.raises(InputError, match=r"expected 1 channels .*'a' has 3"):
        prepare(colour(5, 5), PLAIN, UNIT)


def test_normalisation_survives_json():
    found = measure([colour(9, 9)], PLAIN)
    assert Normalisation.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low": None}, "finite number for each channel in 'low', but got None"),
        ({"low": []}, "in 'low'"),
        ({"low": [0.0, 0.0]}, "in 'high'"),
        ({"mean": [float("nan")]}, "in 'mean'"),
        ({"mean": ["a"]}, "in 'mean'"),
        ({"mean": [True]}, "in 'mean'"),
        ({"low": [-(10**400)]}, "in 'low'"),
        ({"std": [float("inf")]}, "in 'std'"),
        ({"std": [0.0]}, "positive 'std'"),
        ({"high": [0]}, r"'high' above 'low' .* \[0\] and \[0.0\]"),
        ({"rgb": 1}, "true or false as 'rgb' .* got 1"),
        ({"standardise": "yes"}, "true or false as 'standardise'"),
        ({"more": 1}, "normalisation of low, high, mean, std, rgb, standardise, but got .*'more'"),
    ],
)
def test_damaged_normalisation(change, message):
    with pytest.raises(RunError, match=message):
        Normalisation.from_json(UNIT.to_json() | change)


@pytest.mark.parametrize("data", [None, [], "text", {}, 3])
def test_what_is_no_normalisation(data):
    with pytest.raises(RunError, match="expected a normalisation of"):
        Normalisation.from_json(data)


# Preparation


def test_without_scale_the_values_are_exact():
    image = colour(7, 9)
    found = measure([image], PLAIN)
    prepared = prepare(image, PLAIN, found)
    assert prepared.unit.dtype == prepared.network.dtype == np.float32
    np.testing.assert_allclose(prepared.unit, image.pixels / 255, atol=1e-7)
    np.testing.assert_allclose(prepared.network, (prepared.unit - found.mean) / found.std, atol=1e-5)
    assert (prepared.name, prepared.rgb) == ("a", True)
    assert prepared.frame == Frame((7, 9), 0, (7, 9))


def test_range_gives_the_network_the_unit_image():
    image, settings = colour(7, 9), ImageSettings(scale=1, normalise="range")
    found = measure([image], settings)
    assert not found.standardise
    prepared = prepare(image, settings, found)
    np.testing.assert_array_equal(prepared.network, prepared.unit)


def test_values_beyond_the_range_are_clipped():
    pixels = np.array([[[-5.0], [0.25], [7.0]]])
    assert prepare(Image(pixels, "a", False), PLAIN, UNIT).unit.ravel().tolist() == [0, 0.25, 1]


@pytest.mark.parametrize("dtype", ["int64", "uint32", "float64"])
def test_large_values_keep_small_differences(dtype, rng):
    pixels = (2**31 + rng.integers(0, 10, (8, 8, 1))).astype(dtype)
    image = Image(pixels, "a", False)
    unit = prepare(image, PLAIN, measure([image], PLAIN)).unit
    assert len(np.unique(unit)) == len(np.unique(pixels))


def test_the_input_is_left_alone(rng):
    pixels = rng.random((8, 8, 1)).astype(np.float32) + 3
    before = pixels.copy()
    settings = ImageSettings(scale=0.5, margin=1, unsharp_radius=1)
    image = Image(pixels, "a", False)
    prepare(image, settings, measure([image], settings))
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize(
    ("shape", "options", "working"),
    [
        ((1080, 1920), {"scale": 0.2}, (216, 384)),
        ((1080, 1920), {"scale": 1 / 3, "margin": 10}, (353, 633)),
        ((100, 200), {"scale": 2}, (200, 400)),
        ((100, 200), {}, (100, 200)),
        ((1000, 1000), {}, (469, 469)),
        ((400, 900), {"max_pixels": 10_000}, (67, 150)),
        ((10, 10), {"scale": 0.01}, (1, 1)),
        ((11, 12), {"margin": 5}, (1, 2)),
        ((1, 100_000), {"max_pixels": 10_000}, (1, 10_000)),
        ((100_000, 2), {"max_pixels": 10_000}, (10_000, 1)),
    ],
)
def test_working_size(shape, options, working):
    image = Image(np.zeros((*shape, 1)), "a", False)
    prepared = prepare(image, ImageSettings(**options), UNIT)
    assert prepared.unit.shape == (*working, 1)
    assert prepared.frame.working == working


def test_reduction_takes_the_mean_of_what_falls_together(rng):
    pixels = rng.random((60, 80, 2))
    wide = Normalisation((0.0,) * 2, (1.0,) * 2, (0.0,) * 2, (1.0,) * 2, False, False)
    unit = prepare(Image(pixels, "a", False), ImageSettings(scale=0.1), wide).unit
    # a triangle of twice the reduction: white noise of variance 1/12 is averaged over many pixels
    assert unit.std() < 0.06
    np.testing.assert_allclose(unit.mean((0, 1)), pixels.mean((0, 1)), atol=0.02)
    ramp = np.linspace(0, 1, 100)[None, :, None] * np.ones((100, 1, 1))
    small = prepare(Image(ramp, "a", False), ImageSettings(scale=0.1), UNIT).unit[5, 1:-1, 0]
    np.testing.assert_allclose(small, ramp[0, :, 0].reshape(10, 10).mean(1)[1:-1], atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_unsharp_mask_is_that_of_each_channel(channels, rng):
    image = Image(rng.random((30, 40, channels)), "a", False)
    settings = ImageSettings(scale=1, unsharp_radius=2.5, unsharp_amount=1.5)
    ones = (1.0,) * channels
    normalisation = Normalisation((0.0,) * channels, ones, ones, ones, False, False)
    unit = prepare(image, settings, normalisation).unit
    for c in range(channels):
        x = image.pixels[..., c]
        expected = np.clip(x + 1.5 * (x - gaussian_filter(x, 2.5)), 0, 1)
        np.testing.assert_allclose(unit[..., c], expected, atol=1e-6)


def test_unsharp_of_no_amount_changes_nothing(rng):
    image = Image(rng.random((9, 9, 1)), "a", False)
    off = prepare(image, ImageSettings(scale=1, unsharp_radius=3, unsharp_amount=0), UNIT).unit
    np.testing.assert_array_equal(off, prepare(image, PLAIN, UNIT).unit)


def test_margin_that_leaves_nothing():
    image = Image(np.zeros((10, 30, 1)), "small", False)
    with pytest.raises(InputError, match="'small' of 10×30 pixels to be larger than the margins of 5 pixels"):
        prepare(image, ImageSettings(margin=5), UNIT)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float64"])
def test_unit_values_alone(dtype, rng):
    image = Image(rng.integers(0, 99, (8, 9, 2)).astype(dtype), "a", False)
    found = measure([image], PLAIN)
    unit = to_unit(image.pixels, found)
    assert unit.dtype == np.float32
    np.testing.assert_array_equal(unit, prepare(image, PLAIN, found).unit)


@given(st.data(), st.integers(2, 30), st.integers(2, 30), st.floats(0.2, 1.5), st.sampled_from(["u1", "f4"]))
def test_a_patch_has_the_pixels_of_the_whole(data, height, width, scale, dtype):
    """Exactly, on any scale."""
    image = Image(np.random.default_rng(0).integers(0, 99, (height, width, 2)).astype(dtype), "a", False)
    settings = ImageSettings(scale=scale)
    found = measure([image], settings)
    whole = prepare(image, settings, found)
    spans = []
    for n in whole.unit.shape[:2]:
        start = data.draw(st.integers(0, n - 1))
        spans.append(slice(start, data.draw(st.integers(start + 1, n))))
    patch = (spans[0], spans[1])
    part = prepare(image, settings, found, patch)
    np.testing.assert_array_equal(part.unit, whole.unit[patch])
    np.testing.assert_array_equal(part.network, whole.network[patch])
    labels = np.arange(height * width).reshape(height, width)
    np.testing.assert_array_equal(part.frame.to_working(labels), whole.frame.to_working(labels)[patch])
    (top, bottom), (left, right) = part.frame.region
    assert 0 <= top < bottom <= height
    assert 0 <= left < right <= width


# The way back

frames = st.builds(
    lambda height, width, margin, h, w: Frame((height + 2 * margin, width + 2 * margin), margin, (h, w)),
    *(st.integers(1, 40), st.integers(1, 40), st.integers(0, 7), st.integers(1, 60), st.integers(1, 60)),
)


@given(frames)
def test_labels_come_back_in_the_size_of_the_input(frame):
    labels = np.arange(np.prod(frame.working), dtype=np.int32).reshape(frame.working)
    restored = restore(labels, frame)
    assert restored.shape == frame.shape
    assert restored.dtype == np.int32
    margin, cropped = frame.margin, [n - 2 * frame.margin for n in frame.shape]
    h, w = frame.working
    for y in range(frame.shape[0]):
        inside = min(max(y - margin, 0), cropped[0] - 1)
        assert restored[y, margin] // w == int((inside + 0.5) * h / cropped[0] + 1e-9)
    inner = restored[margin : frame.shape[0] - margin, margin : frame.shape[1] - margin]
    np.testing.assert_array_equal(restored, np.pad(inner, margin, mode="edge"))
    assert frame.to_working(restored).shape == frame.working


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 4))
def test_identity_without_scale(height, width, margin):
    labels = np.arange(height * width).reshape(height, width)
    plain = Frame((height, width), 0, (height, width))
    np.testing.assert_array_equal(restore(labels, plain), labels)
    np.testing.assert_array_equal(plain.to_working(labels), labels)
    framed = Frame((height + 2 * margin, width + 2 * margin), margin, (height, width))
    np.testing.assert_array_equal(framed.to_working(restore(labels, framed)), labels)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30), st.integers(1, 30), st.integers(0, 3))
def test_enlarging_and_back_is_the_identity(h, w, more_rows, more_columns, margin):
    frame = Frame((h + more_rows + 2 * margin, w + more_columns + 2 * margin), margin, (h, w))
    labels = np.arange(h * w).reshape(h, w)
    np.testing.assert_array_equal(frame.to_working(restore(labels, frame)), labels)


def test_to_working_takes_the_middle_pixel():
    labels = np.arange(9 * 6).reshape(9, 6)
    np.testing.assert_array_equal(Frame((9, 6), 0, (3, 2)).to_working(labels), labels[1::3, 1::3])
    np.testing.assert_array_equal(Frame((9, 6), 1, (7, 4)).to_working(labels), labels[1:-1, 1:-1])


def test_labels_lie_where_the_image_lay():
    """A bright square, prepared, thresholded and brought back, covers the square."""
    pixels = np.zeros((90, 120, 1))
    pixels[30:60, 42:84] = 1
    settings = ImageSettings(scale=1 / 3, margin=6)
    prepared = prepare(Image(pixels, "a", False), settings, UNIT)
    np.testing.assert_array_equal(restore((prepared.unit[..., 0] > 0.5).astype(np.int32), prepared.frame),
                                  pixels[..., 0])  # fmt: skip


# Pictures


@pytest.mark.parametrize(
    ("values", "shown"),
    [([0.5], [128, 128, 128]), ([0, 1], [0, 255, 0]), ([1, 0.5, 0], [255, 128, 0]), ([1, 0.2, 0, 0.7], [255, 51, 0])],
)
def test_display(values, shown):
    picture = to_display(np.full((2, 3, len(values)), values, np.float32))
    assert picture.dtype == np.uint8
    assert picture.shape == (2, 3, 3)
    assert (picture == shown).all()


def test_display_clips():
    assert to_display(np.array([[[-1.0, 2.0, 0.5]]])).tolist() == [[[0, 255, 128]]]


def test_perceptual_colours_equal_scikit_image():
    levels = np.linspace(0, 1, 18, dtype=np.float32)
    unit = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(18, -1, 3)
    np.testing.assert_allclose(perceptual(unit, rgb=True), rgb2lab(unit), atol=1e-3)
    assert perceptual(unit, rgb=True).dtype == np.float32
    np.testing.assert_allclose(perceptual(unit, rgb=False), 100 * unit, rtol=1e-6)
