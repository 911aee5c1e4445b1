from __future__ import annotations

import csv
import errno
import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spwnet import volumereport
from spwnet.classes import palette
from spwnet.errors import OutputError
from spwnet.volumereport import figure, mesh, orthogonal, summarise, write_curves

SHAPE = (9, 11, 13)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def labels(shape=SHAPE, n_classes=5, seed=0):
    return np.random.default_rng(seed).integers(0, n_classes, shape)


def slabs_of(volume):
    return lambda z: volume[z]


def ball(radius=9, shape=(24, 26, 28), centre=None):
    """A ball of class 1."""
    centre = centre or [(n - 1) / 2 for n in shape]
    grid = np.ogrid[tuple(map(slice, shape))]
    return (sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) < radius**2).astype(np.uint8)


def read_surface(path):
    """Return vertices and triangles; those of STL made one where they are the same."""
    data = path.read_bytes()
    if path.suffix == ".stl":
        (count,) = np.frombuffer(data[80:84], "<u4")
        kind = [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("n", "<u2")]
        rows = np.frombuffer(data[84:], kind)
        assert len(rows) == count
        corners = rows["corners"].reshape(-1, 3)
        vertices, triangles = np.unique(corners, axis=0, return_inverse=True)
        a, b, c = (rows["corners"][:, k].astype(float) for k in range(3))
        assert (np.einsum("ij,ij->i", np.cross(b - a, c - a), rows["normal"]) > 0).all()
        return vertices.astype(float), triangles.reshape(-1, 3)
    header, body = data.split(b"end_header\n", 1)
    lines = header.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    n_vertices, n_faces = (int(line.split()[2]) for line in lines if line.startswith("element"))
    vertices = np.frombuffer(body[: 12 * n_vertices], "<f4").reshape(-1, 3)
    faces = np.frombuffer(body[12 * n_vertices :], [("n", "u1"), ("vertices", "<i4", 3)])
    assert len(faces) == n_faces
    assert (faces["n"] == 3).all()
    return vertices.astype(float), faces["vertices"]


def volume_inside(vertices, triangles):
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    return np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6


def is_closed(triangles):
    """Whether each edge is in exactly two triangles, once in each direction."""
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    undirected, counts = np.unique(np.sort(edges, axis=1), axis=0, return_counts=True)
    return len(undirected) > 0 and (counts == 2).all() and len(np.unique(edges, axis=0)) == len(edges)


class TestSummarise:
    @given(
        shape=st.tuples(*[st.integers(1, 9)] * 3),
        n_classes=st.integers(1, 6),
        seed=st.integers(0, 99),
        voxels=st.integers(1, 900),
    )
    @settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_counts_and_curves(self, monkeypatch, shape, n_classes, seed, voxels):
        monkeypatch.setattr(volumereport, "_SLAB_VOXELS", voxels)
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


class TestMesh:
    @pytest.mark.parametrize("suffix", [".ply", ".stl"])
    @pytest.mark.parametrize("step", [1, 2, 3])
    @pytest.mark.parametrize("voxels", [1, 26 * 28 * 4 * 5, 10**7])
    def test_a_ball(self, tmp_path, monkeypatch, suffix, step, voxels):
        monkeypatch.setattr(volumereport, "_SLAB_VOXELS", voxels)
        volume = ball()
        path = tmp_path / f"ball{suffix}"
        counts = mesh(slabs_of(volume), volume.shape, 1, path, (1.5, 1.0, 0.5), step=step)
        vertices, triangles = read_surface(path)
        assert (len(vertices), len(triangles)) == (counts["vertices"], counts["triangles"])
        assert volume_inside(vertices, triangles) == pytest.approx(volume.sum() * 0.75, rel=0.05 if step < 3 else 0.1)
        assert is_closed(triangles)
        assert len(vertices) - len(triangles) / 2 == 2  # Euler's number of a ball
        np.testing.assert_allclose(vertices.mean(axis=0), [13.5 * 0.5, 12.5, 11.5 * 1.5], atol=0.3)
        assert [p.name for p in tmp_path.iterdir()] == [path.name]

    @given(
        shape=st.tuples(*[st.integers(1, 9)] * 3),
        seed=st.integers(0, 99),
        share=st.floats(0.05, 0.95),
        step=st.integers(1, 4),
        depth=st.integers(1, 9),
    )
    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_closed_whatever_the_class_and_the_slabs(self, tmp_path, monkeypatch, shape, seed, share, step, depth):
        volume = (np.random.default_rng(seed).random(shape) < share).astype(np.uint8)
        monkeypatch.setattr(volumereport, "_SLAB_VOXELS", 2**24)
        whole, parts = tmp_path / "whole.ply", tmp_path / "parts.ply"
        try:
            counts = mesh(slabs_of(volume), shape, 1, whole, step=step)
        except OutputError:
            assert step > 1 or not volume.any()
            return
        monkeypatch.setattr(volumereport, "_SLAB_VOXELS", 4 * depth * shape[1] * shape[2])
        assert mesh(slabs_of(volume), shape, 1, parts, step=step) == counts
        monkeypatch.undo()
        surfaces = [read_surface(path) for path in (whole, parts)]
        for vertices, triangles in surfaces:
            assert is_closed(triangles)
            assert volume_inside(vertices, triangles) > 0
        same = volume_inside(*surfaces[0])
        assert volume_inside(*surfaces[1]) == pytest.approx(same, rel=1e-5)

    def test_a_class_that_fills_the_volume(self, tmp_path):
        volume = np.full((4, 5, 6), 3)
        mesh(slabs_of(volume), volume.shape, 3, tmp_path / "box.stl")
        vertices, triangles = read_surface(tmp_path / "box.stl")
        assert is_closed(triangles)
        np.testing.assert_allclose(np.ptp(vertices, axis=0), [6, 5, 4])

    def test_refusals_leave_nothing(self, tmp_path, monkeypatch):
        volume = labels()
        for class_id, options, message in (
            (7, {}, "expected a class for the surface s.ply, but there is none of class 7; choose another class$"),
            (1, {"step": 8}, "fills half a cell of 8×8×8 voxels .* another class or a smaller step"),
            (1, {"step": 0}, "expected a step of 1 to 8 voxels, but got 0"),
        ):
            with pytest.raises(OutputError, match=message):
                mesh(slabs_of(volume), SHAPE, class_id, tmp_path / "s.ply", **options)
        with pytest.raises(OutputError, match=r"expected a surface named \.ply, \.stl, but got 's\.obj'; rename it"):
            mesh(slabs_of(volume), SHAPE, 1, tmp_path / "s.obj")

        def full(handle):
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="the disk is full"):
            mesh(slabs_of(volume), SHAPE, 1, tmp_path / "s.stl")
        assert list(tmp_path.iterdir()) == []


def test_a_name_is_no_formula(tmp_path):
    labels = np.array([[[0, 1, 2]]], np.uint8)
    summary = summarise(lambda z: labels[z], labels.shape, 3)
    for k, name in enumerate(("=1+1", "@sum", "pore, wet")):
        summary["classes"][str(k)]["name"] = name
    write_curves(tmp_path / "curves.csv", summary)
    with (tmp_path / "curves.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["axis", "slice", "position", "'=1+1", "'@sum", "pore, wet"]
