from __future__ import annotations

import copy

import numpy as np
import pytest

import spwnet
from spwnet.blocks import make_grid
from spwnet.classes import clean
from spwnet.errors import InputError, SettingsError
from spwnet.lazylabels import SLAB, LazyLabels, PlaneArray
from spwnet.presets import make_settings
from tests.conftest import TINY, phantom, picture


class Counted:
    """A stack of pictures as an array that counts what is read."""

    def __init__(self, count=4):
        self.pictures = np.stack([picture(k) for k in range(count)])
        self.shape, self.dtype = self.pictures.shape, self.pictures.dtype
        self.read = []

    def __getitem__(self, key):
        self.read.append(key)
        return self.pictures[key]


@pytest.fixture(scope="module")
def model():
    settings = make_settings(overrides={**TINY, "images.scale": 0.5, "superpixels.size": 6})
    return spwnet.train([picture(0), picture(1)], settings=settings)


@pytest.fixture
def named(model):
    return model.class_map(4).merge([0, 1], name="ground").change(2, fill_holes=30, remove_objects=12)


def test_equal_to_segment(model, named):
    pictures = [picture(k) for k in range(3)]
    found = LazyLabels(model, np.stack(pictures), classes=named)
    assert np.array_equal(found, spwnet.segment(model, pictures, classes=named).labels)
    assert np.array_equal(found.with_classes(None), spwnet.segment(model, pictures).labels)
    assert found.shape == (3, 40, 52)
    assert found.dtype == np.uint8


def test_one_image_is_read_for_one_that_is_looked_at(model, named):
    stack = Counted()
    found = LazyLabels(model, stack)
    stack.read.clear()
    first = found[2]
    assert len(stack.read) == 1
    assert [found.is_ready(k) for k in range(4)] == [False, False, True, False]
    assert np.array_equal(found[2, 5:9, 7], first[5:9, 7])
    assert found.with_classes(named).plane(2).shape == first.shape
    assert len(stack.read) == 1, "other classes are a lookup"
    assert not found.complete


def test_all_at_once_with_progress_and_an_end_by_what_it_raises(model):
    stack, told = Counted(), []

    class Enough(Exception):
        pass

    def stop(progress):
        told.append((progress.done, progress.total))
        if progress.done == 2:
            raise Enough

    found = LazyLabels(model, stack)
    with pytest.raises(Enough):
        found.compute(stop)
    assert found.is_ready(1)
    found.compute(lambda progress: told.append((progress.done, progress.total)))
    assert found.complete
    assert told[:2] == [(1, 4), (2, 4)]
    assert told[-1] == (4, 4)
    stack.read.clear()
    assert np.asarray(found).shape == (4, 40, 52)
    assert stack.read == []
    assert found.compute() is found


def test_what_is_kept_is_bounded(model):
    stack = Counted()
    found = LazyLabels(model, stack, most_bytes=2 * 20 * 26)
    for k in range(4):
        found.plane(k)
    assert [found.is_ready(k) for k in range(4)] == [False, False, True, True]
    with pytest.raises(SettingsError, match="expected finest classes of at most"):
        found.compute()


def test_indexing_as_numpy(model):
    found = LazyLabels(model, Counted())
    whole = np.asarray(found)
    for key in (0, -1, (slice(1, 3), 4), (..., 7), (slice(None), slice(2, 9, 2), slice(None, None, -1)),
                (2, 3, 4), slice(0, 0), (np.array([2, 0]),), (1, ..., slice(3))):  # fmt: skip
        assert np.array_equal(found[key], whole[key]), key
        assert np.shape(found[key]) == whole[key].shape, key
    assert len(found) == 4
    assert np.asarray(found, np.int64).dtype == np.int64
    with pytest.raises(IndexError, match="at most 3"):
        found[0, 0, 0, 0]
    with pytest.raises(IndexError):
        found[4]
    with pytest.raises(ValueError, match="allowed to make an array"):
        np.array(found, copy=False)
    assert isinstance(found, PlaneArray)


def test_volume_equal_to_segment_volume(solid_model):
    volume = spwnet.open_volume(phantom((40, 24, 22)))
    named = solid_model.class_map(4).merge([0, 1]).change(2, remove_objects=60)
    found = LazyLabels(solid_model, volume, classes=named)
    plain = found.with_classes(solid_model.class_map(4))
    depth = SLAB * make_grid((40, 24, 22), None, scale=1.0, max_pixels=10**6, size=8, reduction=2).bins[0]
    plain.plane(3)
    assert [plain.is_ready(k) for k in (0, depth - 1, depth)] == [True, True, False]
    expected = spwnet.segment_volume(solid_model, volume, classes=solid_model.class_map(4)).labels
    assert np.array_equal(plain[3], expected[3])
    told = []
    assert plain.compute(told.append).complete
    assert told
    assert not plain._kept._store.is_ready(0), "what is kept whole is not kept in pieces as well"
    assert np.array_equal(plain, expected)
    assert np.array_equal(found, spwnet.segment_volume(solid_model, volume, classes=named).labels)
    by_plane = found.with_classes(named, by_plane=True)
    assert np.array_equal(by_plane[7], clean(named.table()[found.finest(7)], named.labels()))
    assert not by_plane.complete
    assert np.array_equal(by_plane, found)
    assert np.array_equal(by_plane[7], found[7])
    assert by_plane.complete
    assert copy.deepcopy(found) is found


def test_what_is_kept_is_written_into_by_nobody(model, solid_model):
    volume = spwnet.open_volume(phantom((40, 24, 22)))
    for found in (
        LazyLabels(solid_model, volume),
        LazyLabels(solid_model, volume).compute(),
        LazyLabels(model, Counted()),
    ):
        before = found.finest(1).copy()
        # What is made anew for each who asks may be written into.
        if not found.finest(1).flags.writeable:
            with pytest.raises(ValueError, match="read-only"):
                found.finest(1)[:] = 0
        else:
            found.finest(1)[:] = 0
        assert np.array_equal(found.finest(1), before)
    cleaned = LazyLabels(solid_model, volume, classes=solid_model.class_map(4).change(2, remove_objects=60))
    with pytest.raises(ValueError, match="read-only"):
        cleaned.plane(1)[:] = 0


def test_slices_of_a_volume_one_by_one(model):
    volume = spwnet.open_volume(np.stack([picture(k) for k in range(3)]), axes="ZYXC")
    found = LazyLabels(model, volume)
    assert np.array_equal(found[1], spwnet.segment_volume(model, volume).labels[1])
    assert [found.is_ready(k) for k in range(3)] == [False, True, False]
    with pytest.raises(SettingsError, match="GiB"):
        LazyLabels(model, volume, most_bytes=10).compute()


def test_what_cannot_be_used_is_told_at_once(model, solid_model, named):
    with pytest.raises(InputError, match="expected a volume for this model"):
        LazyLabels(solid_model, [picture()])
    with pytest.raises(InputError, match="expected images of 3 channels"):
        LazyLabels(model, np.zeros((40, 52), np.uint8))
    with pytest.raises(InputError, match="expected a volume of 3 channels"):
        LazyLabels(model, spwnet.open_volume(np.zeros((3, 40, 52), np.uint8)))
    with pytest.raises(SettingsError, match=r"labels\.mode = 'codebook'"):
        LazyLabels(model, [picture()], labels=model.settings.labels.model_copy(update={"mode": "argmax_of_mean"}))
    with pytest.raises(InputError, match="expected images of 40×52 pixels"):
        LazyLabels(model, [picture(), picture(height=44)])[1]
    users = model.settings.superpixels.model_copy(update={"method": "labels"})
    other = spwnet.TrainedModel(
        model.network, model.settings.model_copy(update={"superpixels": users}), model.normalisation, model.info,
        model.codebook,
    )  # fmt: skip
    with pytest.raises(SettingsError, match="makes its superpixels"):
        LazyLabels(other, [picture()])
