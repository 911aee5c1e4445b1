from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage.color import rgb2lab

from spwnet import classes
from spwnet.config import LabelSettings
from spwnet.errors import InputError

SMALL_LABELS = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=3, max_side=7), elements=st.integers(0, 3), fill=st.nothing()
)

OKABE_ITO = {
    "black": (0, 0, 0),
    "orange": (230, 159, 0),
    "sky blue": (86, 180, 233),
    "bluish green": (0, 158, 115),
    "yellow": (240, 228, 66),
    "blue": (0, 114, 178),
    "vermillion": (213, 94, 0),
    "reddish purple": (204, 121, 167),
}

# Machado et al. 2009, table 1, severity 1; they apply to linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def as_seen(colours):
    """CIELAB of colours under each vision, (visions, n, 3)."""
    encoded = np.asarray(colours) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    simulated = np.clip(np.einsum("vij,nj->vni", np.array(list(VISIONS.values())), linear), 0, 1)
    return rgb2lab(np.where(simulated <= 0.0031308, simulated * 12.92, 1.055 * simulated ** (1 / 2.4) - 0.055))


def farthest_first(colours, n):
    """Add candidates to `colours`, each the one whose smallest distance to those before is largest."""
    levels = np.arange(0, 256, 17)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    seen = as_seen(candidates)
    usable = (seen[0, :, 0] >= 15) & (seen[0, :, 0] <= 95)  # in CIELAB's lightness: neither black nor white
    candidates, seen = candidates[usable], seen[:, usable]
    chosen = [tuple(colour) for colour in colours]
    nearest = np.linalg.norm(seen[:, :, None] - as_seen(chosen)[:, None], axis=-1).min(axis=(0, 2))
    while len(chosen) < n:
        best = np.round(nearest, 6).argmax()
        chosen.append(tuple(candidates[best]))
        nearest = np.minimum(nearest, np.linalg.norm(seen - seen[:, best : best + 1], axis=-1).min(axis=0))
    return np.array(chosen)


def same_class_pieces(labels):
    """Sizes of all connected pieces, by class: one binary labelling for each class."""
    structure = np.ones((3,) * labels.ndim)
    return [
        (int(k), size)
        for k in np.unique(labels)
        for size in np.bincount(ndimage.label(labels == k, structure)[0].ravel())[1:].tolist()
    ]


def surrounded(labels, smaller_than):
    """Whether any class has a hole of fewer pixels: pixel by pixel, from the definition."""
    structure = np.ones((3,) * labels.ndim)
    for k in np.unique(labels):
        pieces, n = ndimage.label(labels != k, structure)
        for piece in range(1, n + 1):
            where = np.argwhere(pieces == piece)
            ends = [(where[:, a] == 0) | (where[:, a] == labels.shape[a] - 1) for a in range(labels.ndim)]
            closed = [end for end, length in zip(ends, labels.shape, strict=True) if length > 1]
            if len(where) < smaller_than and not np.any(closed):
                return True
    return False


class TestPalette:
    def test_first_eight_are_okabe_and_ito(self):
        assert set(map(tuple, classes.palette(8).tolist())) == set(OKABE_ITO.values())
        assert tuple(classes.palette(1)[0]) == OKABE_ITO["blue"]

    def test_selection_reproduces_the_table(self):
        np.testing.assert_array_equal(farthest_first(classes.palette(8), 64), classes.palette(64))

    # Measured: 16.05 (sky blue and bluish green under tritanopia) from the eight, 23.3 from those added up to 16.
    @pytest.mark.parametrize(
        ("vision", "eight", "added"),
        [("normal", 26, 24), ("protanopia", 20, 23), ("deuteranopia", 17, 24), ("tritanopia", 16, 23)],
    )
    def test_colours_stay_apart_for_every_vision(self, vision, eight, added):
        seen = as_seen(classes.palette(16))[list(VISIONS).index(vision)]
        apart = np.linalg.norm(seen[:, None] - seen, axis=-1)
        for i, j in combinations(range(16), 2):
            assert apart[i, j] > (eight if j < 8 else added)

    def test_64_colours_are_above_the_just_noticeable(self):
        seen = as_seen(classes.palette(64))
        apart = np.linalg.norm(seen[:, :, None] - seen[:, None], axis=-1) + 100 * np.eye(64)
        assert apart.min() > 8

    def test_neighbours_in_number_contrast(self):
        steps = np.linalg.norm(np.diff(as_seen(classes.palette(8)), axis=1), axis=-1)
        assert steps.min() > 36

    @given(st.integers(0, 400), st.integers(0, 400))
    def test_colour_does_not_depend_on_the_number_of_classes(self, n, m):
        fewer = min(n, m)
        np.testing.assert_array_equal(classes.palette(n)[:fewer], classes.palette(m)[:fewer])

    def test_any_number(self):
        colours = classes.palette(65_536)
        assert colours.shape == (65_536, 3)
        assert colours.dtype == np.uint8
        assert classes.palette(0).shape == (0, 3)
        # The same entry in later turns: lighter, then darker.
        lightness = rgb2lab(colours[[0, 64, 128]][None] / 255)[0, :, 0]
        assert lightness[1] > lightness[0] > lightness[2]


class TestMerge:
    def test_groups_take_their_smallest_id(self):
        labels = np.array([[0, 1, 2, 3], [4, 5, 6, 7]], np.int32)
        merged = classes.merge_classes(labels, [(3, 0, 1), (6, 5)])
        np.testing.assert_array_equal(merged, [[0, 0, 2, 0], [4, 5, 5, 7]])
        assert merged.dtype == np.int32

    def test_classes_that_do_not_occur_and_empty_groups(self):
        labels = np.array([[0, 2]], np.uint8)
        np.testing.assert_array_equal(classes.merge_classes(labels, [(1, 30), (), (2, 1000)]), labels)


class TestHoles:
    def hole(self):
        labels = np.full((9, 11), 1)
        labels[2:5, 2:4] = 0  # 6 pixels
        labels[6:8, 6:10] = 2  # 8 pixels
        labels[3, 9] = 2
        labels[0, 5] = 2  # at the border
        return labels

    def test_size_limit_is_exclusive(self):
        labels = self.hole()
        expected = labels.copy()
        expected[3, 9] = 1
        np.testing.assert_array_equal(classes.fill_holes(labels, 6), expected)
        expected[2:5, 2:4] = 1
        np.testing.assert_array_equal(classes.fill_holes(labels, 7), expected)
        expected[6:8, 6:10] = 1
        np.testing.assert_array_equal(classes.fill_holes(labels, 1000), expected)

    @pytest.mark.parametrize("limit", [0, 1, 5])
    def test_nothing_small_enough(self, limit):
        labels = np.repeat([[0, 1, 2]], 4, axis=0).repeat(3, axis=1)
        np.testing.assert_array_equal(classes.fill_holes(labels, limit), labels)

    def test_hole_of_several_classes(self):
        labels = np.full((7, 7), 5)
        labels[2:4, 2:5] = 1
        labels[4, 3] = 3
        assert (classes.fill_holes(labels, 8) == 5).all()

    def test_touching_a_second_class_is_no_hole(self):
        labels = np.full((7, 8), 0)
        labels[:, 4:] = 1
        labels[3, 3] = 2
        np.testing.assert_array_equal(classes.fill_holes(labels, 5), labels)

    def test_touching_a_second_class_at_a_corner_is_no_hole(self):
        labels = np.full((6, 6), 0)
        labels[:2, :2] = 1
        labels[2, 2] = 2
        np.testing.assert_array_equal(classes.fill_holes(labels, 4), labels)

    def test_nested_holes_take_the_outermost_class_that_encloses_few_enough(self):
        labels = np.full((11, 11), 2)
        labels[2:9, 2:9] = 1
        labels[4:7, 4:7] = 0
        assert (classes.fill_holes(labels, 50) == 2).all()
        inner = labels.copy()
        inner[4:7, 4:7] = 1
        np.testing.assert_array_equal(classes.fill_holes(labels, 49), inner)

    def test_filling_may_close_another_hole(self):
        # The ring of class 0 is a hole of class 1 only once the piece of class 1 inside it is filled.
        labels = np.full((9, 9), 1)
        labels[2:7, 2:7] = 0
        labels[3, 3], labels[3, 4] = 2, 1
        assert (classes.fill_holes(labels, 26) == 1).all()

    def test_volume(self):
        labels = np.full((5, 6, 7), 3)
        labels[2, 2:4, 2:4] = 1
        labels[0, 3, 3] = 1
        filled = classes.fill_holes(labels, 5)
        assert (filled[2] == 3).all()
        assert filled[0, 3, 3] == 1

    def test_volume_of_one_slice_is_as_the_image(self):
        labels = self.hole()
        np.testing.assert_array_equal(classes.fill_holes(labels[None], 8)[0], classes.fill_holes(labels, 8))

    @given(SMALL_LABELS, st.integers(0, 12))
    def test_none_is_left_and_nothing_new_appears(self, labels, smaller_than):
        filled = classes.fill_holes(labels, smaller_than)
        assert filled.dtype == labels.dtype
        assert not surrounded(filled, smaller_than)
        if not surrounded(labels, smaller_than):
            np.testing.assert_array_equal(filled, labels)


class TestReassign:
    def test_small_pieces_of_one_class(self):
        labels = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [2, 2, 0, 1], [0, 0, 1, 0]])
        changed = classes.reassign_small(labels, source=1, smaller_than=2, to=2)
        np.testing.assert_array_equal(changed, [[1, 1, 0, 2], [0, 0, 0, 0], [2, 2, 0, 1], [0, 0, 1, 0]])

    def test_source_that_does_not_occur(self):
        labels = np.zeros((3, 4), np.uint8)
        np.testing.assert_array_equal(classes.reassign_small(labels, 1, 100, 2), labels)

    def test_type_must_hold_the_new_class(self):
        with pytest.raises(InputError, match="a type that holds class 300, but got uint8"):
            classes.reassign_small(np.zeros((3, 4), np.uint8), 0, 100, 300)


class TestRemoveSmall:
    def test_piece_takes_the_class_it_touches_most(self):
        labels = np.array([[0, 0, 0, 0], [0, 2, 2, 1], [1, 1, 1, 1], [1, 1, 1, 1]])
        removed = classes.remove_small(labels, 3)
        np.testing.assert_array_equal(removed, np.where(labels == 2, 0, labels))  # 3 sides of class 0, 3 of class 1
        labels[1, 0] = 1
        removed = classes.remove_small(labels, 3)
        np.testing.assert_array_equal(removed, np.where(labels == 2, 1, labels))

    def test_border_with_several_pieces_of_one_class_counts_together(self):
        labels = np.array([[1, 1, 3, 2, 2], [1, 1, 3, 2, 2], [4, 4, 3, 4, 4], [1, 1, 3, 2, 2], [1, 1, 3, 2, 2]])
        removed = classes.remove_small(labels, 3)
        # Each 4 shares two sides with a block of four and one with 3.
        np.testing.assert_array_equal(removed[2], [1, 1, 3, 2, 2])
        between = np.array([[2, 2, 2], [5, 0, 5], [5, 3, 5], [5, 3, 5]])
        np.testing.assert_array_equal(classes.remove_small(between, 2)[1], [5, 5, 5])

    def test_corners_are_no_border(self):
        labels = np.array([[1, 1, 2, 2], [1, 1, 2, 2], [2, 2, 0, 1], [2, 2, 1, 1]])
        assert classes.remove_small(labels, 2)[2, 2] == 1

    def test_smallest_first_so_that_specks_join_before_they_vanish(self):
        labels = np.array([[0, 0, 0, 0, 1, 1, 2, 1, 1, 0, 0, 0, 0]])
        np.testing.assert_array_equal(classes.remove_small(labels, 4)[0], [0] * 4 + [1] * 5 + [0] * 4)

    def test_nothing_but_small_pieces(self):
        labels = np.arange(9).reshape(3, 3)
        removed = classes.remove_small(labels, 100)
        assert len(np.unique(removed)) == 1

    @pytest.mark.parametrize("limit", [0, 1])
    def test_off(self, limit):
        labels = np.arange(9).reshape(3, 3)
        np.testing.assert_array_equal(classes.remove_small(labels, limit), labels)

    @given(SMALL_LABELS, st.integers(0, 20))
    def test_no_piece_is_below_the_limit(self, labels, smaller_than):
        before = labels.copy()
        removed = classes.remove_small(labels, smaller_than)
        pieces = same_class_pieces(removed)
        assert removed.dtype == labels.dtype
        assert len(pieces) == 1 or min(size for _, size in pieces) >= smaller_than
        assert set(np.unique(removed)) <= set(np.unique(labels))
        np.testing.assert_array_equal(labels, before)
        np.testing.assert_array_equal(removed, classes.remove_small(labels, smaller_than))
        if min(size for _, size in same_class_pieces(labels)) >= smaller_than:
            np.testing.assert_array_equal(removed, labels)

    @given(SMALL_LABELS)
    def test_first_step_against_a_count_by_hand(self, labels):
        sizes = sorted(size for _, size in same_class_pieces(labels))
        if len(sizes) < 2 or sizes[0] == sizes[1]:
            return
        removed = classes.remove_small(labels, sizes[0] + 1)
        structure = np.ones((3,) * labels.ndim)
        (piece,) = [
            pieces == i
            for k in np.unique(labels)
            for pieces, n in [ndimage.label(labels == k, structure)]
            for i in range(1, n + 1)
            if (pieces == i).sum() == sizes[0]
        ]
        border = dict.fromkeys(np.unique(labels).tolist(), 0)
        for p in np.argwhere(piece):
            for axis, step in product(range(labels.ndim), (-1, 1)):
                q = p.copy()
                q[axis] += step
                if 0 <= q[axis] < labels.shape[axis] and not piece[tuple(q)]:
                    border[int(labels[tuple(q)])] += 1
        expected = labels.copy()
        expected[piece] = max(border, key=lambda k: (border[k], -k))
        np.testing.assert_array_equal(removed, expected)


class TestClean:
    def test_all_off_changes_nothing(self):
        labels = np.random.default_rng(0).integers(0, 5, (20, 30))
        np.testing.assert_array_equal(classes.clean(labels, LabelSettings()), labels)

    def test_order(self):
        labels = np.zeros((12, 12), np.int32)
        labels[2:6, 2:6] = 1
        labels[3, 3] = 4  # with 1 after the merge, so not a hole
        labels[3, 4] = 2  # a hole in 1
        labels[8:10, 8:10] = 3  # becomes 1
        labels[0, 11] = 2  # a speck at the border
        options = LabelSettings(
            merge=((4, 1),),
            fill_holes=3,
            reassign=({"source": 3, "smaller_than": 5, "to": 1},),
            remove_objects=4,
        )
        expected = np.zeros((12, 12), int)
        expected[2:6, 2:6] = expected[8:10, 8:10] = 1
        cleaned = classes.clean(labels, options)
        np.testing.assert_array_equal(cleaned, expected)
        assert cleaned.dtype == np.int32

    def test_volume(self):
        labels = np.zeros((6, 7, 8), np.uint8)
        labels[2:4, 2:5, 2:5] = 1
        labels[2, 3, 3], labels[5, 6, 7] = 2, 3
        cleaned = classes.clean(labels, LabelSettings(fill_holes=2, remove_objects=2))
        assert classes.areas(cleaned, 4) == [6 * 7 * 8 - 18, 18, 0, 0]

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (np.zeros((4, 5)), "whole numbers as class ids, but got float64"),
            (np.zeros(4, int), r"shape \(H, W\) or \(D, H, W\), none of them 0, but got \(4,\)"),
            (np.zeros((0, 4), int), r"none of them 0, but got \(0, 4\)"),
            (np.full((4, 5), -1), "class ids of at least 0, but got -1"),
        ],
    )
    def test_not_a_label_image(self, labels, message):
        with pytest.raises(InputError, match=message):
            classes.clean(labels, LabelSettings())


class TestAreas:
    def test_counts(self):
        assert classes.areas(np.array([[0, 3], [3, 1]], np.uint8), 5) == [1, 1, 0, 2, 0]

    def test_more_classes_than_told(self):
        with pytest.raises(InputError, match="class ids below 3, but the labels hold class 3"):
            classes.areas(np.array([[0, 3]]), 3)


def named(*entries):
    """Settings of classes by name, of one finest class each."""
    return LabelSettings(named=[{"name": f"c{k}", "id": k, "members": [k], **entry} for k, entry in enumerate(entries)])


@given(SMALL_LABELS, st.integers(0, 3), st.integers(1, 12))
def test_one_class_is_cleaned_as_all_are_but_the_others_stay(labels, k, size):
    filled = classes.fill_holes(labels, size, k)
    changed = filled != labels
    assert (filled[changed] == k).all()
    # no hole in k is left, and nothing but holes in k changed
    np.testing.assert_array_equal(classes.fill_holes(filled, size, k), filled)
    removed = classes.remove_small(labels, size, k)
    assert (labels[removed != labels] == k).all()
    pieces, n = ndimage.label(removed == k, structure=np.ones((3,) * labels.ndim))
    if n and (removed != k).any():
        assert np.bincount(pieces.ravel())[1:].min() >= size


@given(SMALL_LABELS, st.integers(0, 3))
def test_only_the_largest_piece_is_kept(labels, k):
    whole = np.ones((3,) * labels.ndim)
    sizes = np.bincount(ndimage.label(labels == k, structure=whole)[0].ravel())[1:]
    kept = classes.keep_largest(labels, k)
    if len(sizes):
        pieces, n = ndimage.label(kept == k, structure=whole)
        assert n == 1
        assert (pieces > 0).sum() == sizes.max()
        # what it was before, the first of those as large
        assert (labels[pieces > 0] == k).all()
    else:
        np.testing.assert_array_equal(kept, labels)
    given_away = classes.keep_largest(labels, k, 9)
    np.testing.assert_array_equal(given_away == k, kept == k)
    assert (given_away[(labels == k) & (kept != k)] == 9).all()


def test_pieces_beside_the_largest_go_to_what_they_touch_most():
    labels = np.array([[0, 0, 1, 2, 2, 1], [0, 0, 1, 2, 2, 1], [0, 0, 1, 2, 2, 2]])
    np.testing.assert_array_equal(classes.keep_largest(labels, 1), [[0, 0, 1, 2, 2, 2]] * 3)


def test_smooth_borders_lose_spikes_and_keep_straight_lines():
    labels = np.zeros((40, 40), np.uint8)
    labels[:, 20:] = 1
    np.testing.assert_array_equal(classes.smooth_borders(labels, 1, 2.0), labels)
    spiked = labels.copy()
    spiked[18, 10:20] = 1
    spiked[5, 20:30] = 2
    smooth = classes.smooth_borders(spiked, 1, 2.0)
    assert (smooth[18, 10:18] == 0).all()
    # what it gains it takes from a class thinner than itself, what it does not own otherwise stays
    assert set(np.unique(smooth[5, 22:30])) == {1}
    np.testing.assert_array_equal(classes.smooth_borders(spiked, 1, 0), spiked)
    np.testing.assert_array_equal(classes.smooth_borders(spiked, 7, 2.0), spiked)
    np.testing.assert_array_equal(classes.smooth_borders(np.ones_like(labels), 1, 2.0), np.ones_like(labels))


@given(SMALL_LABELS, st.integers(0, 3), st.floats(0.3, 3))
def test_smoothing_gives_lost_pixels_to_classes_that_are_there(labels, k, sigma):
    smooth = classes.smooth_borders(labels, k, sigma)
    assert smooth.dtype == labels.dtype
    assert set(np.unique(smooth)) <= set(np.unique(labels))
    changed = smooth != labels
    assert ((smooth[changed] == k) | (labels[changed] == k)).all()


def test_cleaning_by_name_goes_step_by_step():
    labels = np.zeros((12, 12), np.uint8)
    labels[2:10, 2:10] = 1
    labels[5, 5] = 2
    labels[0, 0] = 2
    labels[11, 3:5] = 1
    settings = named({}, {"fill_holes": 4, "keep_largest": True}, {"remove_objects": 2, "remove_to": 0})
    cleaned = classes.clean(labels, settings)
    expected = np.zeros((12, 12), np.uint8)
    expected[2:10, 2:10] = 1
    np.testing.assert_array_equal(cleaned, expected)
    np.testing.assert_array_equal(classes.clean(labels, named({}, {}, {})), labels)
    # of all classes first, then of some
    both = settings.model_copy(update={"remove_objects": 100})
    np.testing.assert_array_equal(classes.clean(labels, both), np.zeros((12, 12)))


def test_colours_as_text():
    assert [classes.hexadecimal(colour) for colour in classes.palette(2)] == ["#0072b2", "#d55e00"]
    assert classes.hexadecimal((0, 10, 255)) == "#000aff"


def test_a_legend_takes_names_and_colours_over_the_palette():
    settings = named({"colour": "#010203", "background": True}, {})
    found = classes.legend(settings, 3)
    np.testing.assert_array_equal(found.colours, [[1, 2, 3], *classes.palette(3)[1:]])
    assert (found.background, found.name(1), found.name(2)) == (0, "c1", "class 2")
    plain = classes.legend(LabelSettings(), 3)
    np.testing.assert_array_equal(plain.colours, classes.palette(3))
    assert (plain.names, plain.background) == ({}, None)


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1)])
def test_a_single_pixel_is_no_hole(shape):
    labels = np.full(shape, 3)
    np.testing.assert_array_equal(classes.fill_holes(labels, 5, 1), labels)


@pytest.mark.parametrize(
    "work",
    [
        lambda labels: classes.merge_classes(labels, []),
        lambda labels: classes.fill_holes(labels, 5),
        lambda labels: classes.remove_small(labels, 5),
        lambda labels: classes.areas(labels, 3),
    ],
)
@pytest.mark.parametrize("unlabelled", [2**24, 2**32 - 1])
def test_ids_as_large_as_no_class_are_refused(work, unlabelled):
    labels = np.array([[0, unlabelled]], np.uint32)
    message = f"expected class ids below 16,777,216, but got {unlabelled}; give unlabelled pixels a class, and number"
    with pytest.raises(InputError, match=message):
        work(labels)
    labels[0, 1] = 2**24 - 1
    np.testing.assert_array_equal(classes.merge_classes(labels, []), labels)


@pytest.mark.parametrize("k", [64, 65, 127, 128, 200, 333, 1000])
def test_colours_beyond_the_palette_are_mixed_with_white_and_black_in_turn(k):
    turn, entry = divmod(k, 64)
    share = 0.2 + 0.5 * ((turn + 1) // 2 * 0.6180339887 % 1)
    end = 255 if turn % 2 else 0
    expected = [round(value * (1 - share) + end * share) for value in classes.palette(64)[entry].tolist()]
    assert classes.palette(k + 1)[k].tolist() == expected


def test_a_piece_that_grew_to_the_limit_stays():
    labels = np.array([[1, 1, 2, 2, 3, 3, 3, 3, 3]])
    assert classes.remove_small(labels, 4).tolist() == [[2, 2, 2, 2, 3, 3, 3, 3, 3]]


def test_contacts_go_over_to_what_a_piece_goes_into():
    """First 1 becomes 2, which then touches 3 and 4 alike."""
    labels = np.array([[4, 4, 4, 4, 1, 2, 2, 3, 3, 3, 3]])
    assert classes.remove_small(labels, 4).tolist() == [[4, 4, 4, 4, 3, 3, 3, 3, 3, 3, 3]]


def test_the_largest_class_of_a_type_can_be_given():
    labels = np.array([[1, 2, 2, 2]], np.uint8)
    assert classes.reassign_small(labels, 1, 2, 255).tolist() == [[255, 2, 2, 2]]
    with pytest.raises(InputError, match="expected labels of a type that holds class 256, but got uint8"):
        classes.reassign_small(labels, 1, 2, 256)
