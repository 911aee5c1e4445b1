from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spwnet import volumereport
from spwnet.classes import palette
from spwnet.errors import OutputError
from spwnet.volumereport import figure, orthogonal, summarise, write_curves

SHAPE = (9, 11, 13)
pytestmark = pytest.mark.usefixtures("_no_waiting_for_the_disk")


def labels(shape=SHAPE, n_classes=5, seed=0):
    return np.random.default_rng(seed).integers(0, n_classes, shape)


def slabs_of(volume):
    return lambda z: volume[z]


class TestSummarise:
    @given(
        shape=st.tuples(*[st.integers(1, 9)] * 3),
        n_classes=st.integers(1, 6),
        seed=st.integers(0, 99),
        voxels=st.integers(1, 900),
    )
    @settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_counts_and_curves(self, monkeypatch, shape, n_classes, seed, voxels):
        monkeypatch.setattr(volumereport, "SLAB_VOXELS", voxels)
        volume = labels(shape, n_classes, seed)
        summary = json.loads(json.dumps(summarise(slabs_of(volume), shape, 10)))
        present = np.unique(volume)
        assert list(summary["classes"]) == [str(k) for k in present]
        for k in present:
            mask = volume == k
            assert summary["classes"][str(k)] == {"voxels": mask.sum(), "fraction": mask.mean()}
            for axis, others in (("z", (1, 2)), ("y", (0, 2)), ("x", (0, 1))):
                np.testing.assert_allclose(summary["along"][axis][str(k)], mask.mean(axis=others))
        assert sum(entry["fraction"] for entry in summary["classes"].values()) == pytest.approx(1)
        for axis in "zyx":
            np.testing.assert_allclose(sum(map(np.array, summary["along"][axis].values())), 1)

    def test_physical_volume(self):
        volume = labels()
        summary = summarise(slabs_of(volume), SHAPE, 5, (2.0, 0.5, 0.25), "micron")
        assert (summary["spacing"], summary["unit"]) == ([2.0, 0.5, 0.25], "µm")
        for entry in summary["classes"].values():
            assert entry["volume"] == pytest.approx(entry["voxels"] / 4)

    def test_other_classes(self):
        with pytest.raises(OutputError, match="expected class ids 0 to 3, but got 0 to 4; give the number of classes"):
            summarise(slabs_of(labels()), SHAPE, 4)
        with pytest.raises(OutputError, match="expected integers of shape"):
            summarise(lambda z: labels((2, 3, 4)), SHAPE, 5)

    @pytest.mark.parametrize("spacing", [None, (2.0, 1.0, 0.1)])
    def test_curves_as_csv(self, tmp_path, spacing):
        summary = summarise(slabs_of(labels()), SHAPE, 5, spacing)
        write_curves(tmp_path / "curves.csv", summary)
        with (tmp_path / "curves.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["axis"] for row in rows] == [*"z" * 9, *"y" * 11, *"x" * 13]
        assert [float(row["position"]) for row in rows[20:]] == pytest.approx(
            [k * (0.1 if spacing else 1) for k in range(13)]
        )
        for axis in "zyx":
            curve = [float(row["class_3"]) for row in rows if row["axis"] == axis]
            np.testing.assert_allclose(curve, summary["along"][axis]["3"], atol=1e-6)


class TestPictures:
    @pytest.mark.parametrize(
        ("shape", "n_classes", "spacing"),
        [(SHAPE, 3, None), ((1, 4, 4), 1, (1e-7, 1, 1)), ((2, 9, 9), 40, (0.3, 1, 1)), ((3000, 2, 2), 2, None)],
    )
    def test_figure(self, shape, n_classes, spacing):
        summary = summarise(slabs_of(labels(shape, n_classes)), shape, n_classes, spacing, "µm")
        picture = figure(summary, palette(n_classes))
        assert picture.shape == (500, 900, 3)
        assert picture.dtype == np.uint8
        drawn = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
        assert tuple(palette(1)[0].tolist()) in drawn or n_classes > 12

    def test_bars_are_as_long_as_fractions(self):
        volume = np.zeros((4, 10, 10), int)
        volume[:, :, 8:] = 1
        picture = figure(summarise(slabs_of(volume), volume.shape, 2), palette(2))
        first, second = ((picture[:, :300] == palette(2)[k]).all(axis=2).sum(axis=1).max() for k in range(2))
        assert second / first == pytest.approx(0.25, abs=0.02)

    def test_bars_have_the_names_of_classes_that_can_be_written(self):
        summary = summarise(slabs_of(labels(SHAPE, 2)), SHAPE, 2)
        plain = figure(summary, palette(2))

        def named(name):
            summary["classes"]["1"]["name"] = name
            return figure(summary, palette(2))

        assert not np.array_equal(named("grain"), plain)
        # Letters that the font has not, and a name that leaves room for the bar.
        np.testing.assert_array_equal(named("Körner"), plain)
        np.testing.assert_array_equal(named("very long " * 20), named("very long " * 30))
        bars = (named("very long " * 20)[:, :300] == palette(2)[1]).all(axis=2)
        assert bars.sum(axis=1).max() > 50

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    def test_orthogonal_keeps_proportions(self, dtype):
        volume = labels((10, 20, 40), 3)
        image = (volume * 80).astype(dtype)
        picture = orthogonal(
            (image[5], image[:, 10], image[:, :, 20]),
            (volume[5], volume[:, 10], volume[:, :, 20]),
            palette(3),
            spacing=(4, 1, 1),
        )
        # 40 + 40 voxels wide, 20 + 40 high; twice beside each other, with gaps and a line of text.
        assert picture.shape[1] == pytest.approx(2 * 480, abs=50)
        assert picture.shape[0] == pytest.approx(360, abs=50)

    def test_a_flat_image_and_a_thin_volume(self):
        volume = labels((1, 300, 5), 2)
        image = np.full(volume.shape, np.nan)
        picture = orthogonal(
            (image[0], image[:, 3], image[:, :, 2]), (volume[0], volume[:, 3], volume[:, :, 2]), palette(2)
        )
        assert picture.ndim == 3

    def test_slices_that_do_not_fit(self):
        volume = labels((3, 4, 5), 2)
        with pytest.raises(OutputError, match="expected slices of shapes"):
            orthogonal([volume[0]] * 3, [volume[0]] * 3, palette(2))


def test_a_name_is_no_formula(tmp_path):
    labels = np.array([[[0, 1, 2]]], np.uint8)
    summary = summarise(lambda z: labels[z], labels.shape, 3)
    for k, name in enumerate(("=1+1", "@sum", "pore, wet")):
        summary["classes"][str(k)]["name"] = name
    write_curves(tmp_path / "curves.csv", summary)
    with (tmp_path / "curves.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["axis", "slice", "position", "'=1+1", "'@sum", "pore, wet"]
