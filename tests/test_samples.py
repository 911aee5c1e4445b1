from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from spwnet.errors import InputError
from spwnet.samples import SAMPLES, sample

SHAPES = {"composite": (8, 240, 320, 1), "swim": (10, 216, 320, 3)}
CLASSES = {"composite": ("matrix", "fibre", "pore", "inclusion"), "swim": ("sea bed", "fish", "water")}
CASES = [(name, seed) for name in SHAPES for seed in (0, 1, 5)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def drawn(request):
    return sample(*request.param)


def grey(image):
    return image.mean(-1)


def test_every_sample_is_tested():
    assert set(SAMPLES) == set(SHAPES)


def test_shapes_types_and_words(drawn):
    n_frames, *shape = SHAPES[drawn.name]
    assert len(drawn.images) == len(drawn.truth) == n_frames
    assert all(image.shape == tuple(shape) and image.dtype == np.uint8 for image in drawn.images)
    assert all(truth.shape == tuple(shape[:2]) and truth.dtype == np.uint8 for truth in drawn.truth)
    assert drawn.class_names == CLASSES[drawn.name]
    assert drawn.description.endswith(".")


def test_every_class_has_a_share_of_every_frame(drawn):
    for truth in drawn.truth:
        shares = np.bincount(truth.ravel()) / truth.size
        assert shares.size == len(drawn.class_names)
        assert shares.min() > 0.03
        assert shares.max() < 0.7


@pytest.mark.parametrize("name", SHAPES)
def test_the_seed_decides(name):
    first, again, other = sample(name, 3), sample(name, 3), sample(name, 4)
    for one, two, three in zip(first.images, again.images, other.images, strict=True):
        np.testing.assert_array_equal(one, two)
        assert np.mean(one != three) > 0.5
    np.testing.assert_array_equal(first.truth, again.truth)
    assert np.mean(np.array(first.truth) != other.truth) > 0.05


def test_frames_follow_one_another(drawn):
    """Neighbouring frames differ, but less than frames far apart: a scene that moves."""
    for k in range(len(drawn.truth) - 1):
        assert 0.005 < np.mean(drawn.truth[k] != drawn.truth[k + 1]) < 0.25
    assert np.mean(drawn.truth[0] != drawn.truth[1]) < np.mean(drawn.truth[0] != drawn.truth[-1])


def test_brightness_spans_the_range_without_clipping(drawn):
    for image in drawn.images:
        low, high = np.percentile(image, (1, 99))
        assert high - low > 90
        assert np.mean((image == 0) | (image == 255)) < 0.01


def test_composite_truth_is_where_the_phases_are():
    drawn = sample("composite")
    for image, truth in zip(drawn.images, drawn.truth, strict=True):
        inside = [ndimage.binary_erosion(truth == k, iterations=2) for k in range(4)]
        matrix, fibre, pore, inclusion = (grey(image)[mask] for mask in inside)
        assert fibre.mean() > matrix.mean() + 40
        assert pore.mean() < matrix.mean() - 40
        # Inclusions are told from the matrix by their grains, not by their mean.
        assert abs(inclusion.mean() - matrix.mean()) < 15
        assert inclusion.std() > 1.8 * matrix.std()


def test_composite_fibres_are_ellipses_that_drift():
    truth = sample("composite").truth
    middle = [slice(100, 145), slice(0, 320)]
    pieces, count = ndimage.label(truth[0][tuple(middle)] == 1)
    boxes = ndimage.find_objects(pieces)
    stretch = [(box[1].stop - box[1].start) / (box[0].stop - box[0].start) for box in boxes]
    assert count >= 5
    assert 1.8 < np.median(stretch) < 3.2
    # The middle ply leans by 2.2 pixels along x for each of the 5 pixels between slices.
    shifts = range(-20, 21)
    one, two = (truth[k][100:145, 20:-20] == 1 for k in (3, 4))
    overlap = [np.sum(one & (truth[4][100:145, 20 + s : 300 + s] == 1)) for s in shifts]
    assert shifts[int(np.argmax(overlap))] == -11
    assert max(overlap) > 0.95 * min(one.sum(), two.sum())


def test_swim_truth_is_where_the_things_are():
    drawn = sample("swim")
    for image, truth in zip(drawn.images, drawn.truth, strict=True):
        bed, fish, water = (image[ndimage.binary_erosion(truth == k, iterations=2)].astype(float) for k in range(3))
        blueness = [pixels[:, 2].mean() - pixels[:, 0].mean() for pixels in (bed, fish, water)]
        assert blueness[2] > 60
        assert max(blueness[:2]) < 0
        # Fish hide: their mean brightness is near the bed's, their patterns are not.
        assert abs(fish.mean() - bed.mean()) < 30
        assert fish.std() > 1.5 * bed.std()
        assert truth[0].tolist().count(0) == 0
        assert truth[-1].tolist().count(2) == 0


def test_unknown_name():
    with pytest.raises(InputError, match=r"samples composite, swim, but got 'compsite'. Did you mean 'composite'\?"):
        sample("compsite")
