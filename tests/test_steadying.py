from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from spwnet.codebook import Energies, agreed
from spwnet.errors import OutputError
from spwnet.steadying import CARRIED, HELD, Before, flicker, steady


def frame(seed=0, shape=(12, 15), block=3):
    """Colours, square superpixels, and energies of 4 classes without ties."""
    rng = np.random.default_rng(seed)
    y, x = (np.arange(n) // block for n in shape)
    superpixels = (y[:, None] * (x[-1] + 1) + x).astype(np.int32)
    count = superpixels.max() + 1
    values = rng.uniform(0, 6, (count, 4)).astype(np.float32)
    return rng.uniform(0, 100, (*shape, 3)).astype(np.float32), superpixels, Energies(values, None)


def test_the_first_frame_stands_alone():
    smooth, superpixels, energies = frame()
    nearest, now = steady(None, smooth, superpixels, energies)
    np.testing.assert_array_equal(nearest, energies.values.argmin(1))
    np.testing.assert_array_equal(now.classes, nearest[superpixels])
    np.testing.assert_allclose(now.probabilities.sum(1), 1, rtol=1e-5)
    other, _, _ = frame(shape=(9, 9))
    again, _ = steady(
        Before(other, np.zeros((9, 9), np.int32), now.probabilities, now.classes), smooth, superpixels, energies
    )
    np.testing.assert_array_equal(again, nearest)


def test_what_changed_is_free():
    smooth, superpixels, energies = frame()
    _, before = steady(None, smooth + 50, superpixels, Energies(energies.values[::-1].copy(), None))
    nearest, now = steady(before, smooth, superpixels, energies)
    np.testing.assert_array_equal(nearest, energies.values.argmin(1))
    np.testing.assert_array_equal(now.classes, nearest[superpixels])


def test_what_did_not_change_keeps_its_class_unless_another_is_far_better():
    smooth, superpixels, _ = frame()
    count = superpixels.max() + 1
    first = np.full((count, 2), 20, np.float32)
    first[:, 0] = 0
    _, before = steady(None, smooth, superpixels, Energies(first, None))
    for lead, kept in ((HELD + CARRIED - 1, True), (HELD + CARRIED + 1, False)):
        second = np.zeros((count, 2), np.float32)
        second[:, 0] = lead
        nearest, now = steady(before, smooth, superpixels, Energies(second, None))
        assert (nearest == 1).all() == (lead > CARRIED)
        assert (now.classes == (0 if kept else 1)).all()


def test_trembling_borders_stay_where_they_were():
    smooth, superpixels, _ = frame(shape=(12, 12))
    values = np.where(np.arange(superpixels.max() + 1)[:, None] % 4 < 2, [0, 9], [9, 0]).astype(np.float32)
    _, before = steady(None, smooth, superpixels, Energies(values, None))
    moved = np.roll(superpixels, 1, axis=1)
    moved[:, 0] = moved[:, 1]
    _, now = steady(before, smooth, moved, Energies(values, None))
    np.testing.assert_array_equal(now.classes, before.classes)
    assert (values.argmin(1)[moved] != before.classes).any()


def test_carried_energy_equals_a_loop():
    smooth, superpixels, energies = frame()
    rng = np.random.default_rng(1)
    _, before = steady(None, smooth, superpixels, energies)
    later = smooth + rng.normal(0, 2, smooth.shape).astype(np.float32)
    moved = np.roll(superpixels, 1, axis=0)
    count = superpixels.max() + 1
    ties = csr_array(np.eye(count, k=1) + np.eye(count, k=-1))
    same = np.exp(-np.square(later - smooth).sum(-1) / 9)
    carried = np.zeros((count, 4))
    for i in range(count):
        places = np.argwhere(moved == i)
        carried[i] = sum(same[y, x] * before.probabilities[superpixels[y, x]] for y, x in places) / len(places)
    second = Energies(energies.values[::-1].copy(), ties)
    expected = agreed(second, (CARRIED * carried).astype(np.float32))
    nearest, now = steady(before, later, moved, second)
    np.testing.assert_array_equal(nearest, expected.argmin(1))
    lead = expected - expected.min(1, keepdims=True)
    for y, x in np.ndindex(moved.shape):
        kept = lead[moved[y, x], before.classes[y, x]] < HELD * same[y, x]
        assert now.classes[y, x] == (before.classes[y, x] if kept else nearest[moved[y, x]])


def test_what_is_carried_survives_being_written():
    smooth, superpixels, energies = frame()
    _, before = steady(None, smooth, superpixels, energies)
    again = Before.from_bytes(before.to_bytes())
    for name in ("smooth", "superpixels", "probabilities", "classes"):
        np.testing.assert_array_equal(getattr(again, name), getattr(before, name))


@pytest.mark.parametrize("damage", ["cut", "text", "superpixels", "classes", "shape"])
def test_damaged_files_are_told(damage):
    smooth, superpixels, energies = frame()
    _, before = steady(None, smooth, superpixels, energies)
    if damage in ("superpixels", "classes"):
        before = Before(**{**vars(before), damage: getattr(before, damage) + 100})
    elif damage == "shape":
        before = Before(**{**vars(before), "classes": before.classes[1:]})
    data = {"cut": before.to_bytes()[:500], "text": b"no such thing"}.get(damage, before.to_bytes())
    with pytest.raises(OutputError, match="expected what is carried along a video"):
        Before.from_bytes(data)


def test_flicker_counts_where_nothing_changed():
    smooth = np.zeros((4, 5, 3), np.float32)
    later = smooth.copy()
    later[0] += 5
    before, labels = np.zeros((4, 5), int), np.zeros((4, 5), int)
    labels[0] = 1
    assert flicker(labels, before, later, smooth) == (0, 15)
    labels[2, 1:3] = 7
    assert flicker(labels, before, later, smooth) == (2, 15)
