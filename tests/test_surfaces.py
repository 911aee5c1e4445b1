from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spwnet import surfaces
from spwnet.errors import OutputError
from spwnet.surfaces import mesh

SHAPE = (9, 11, 13)
pytestmark = pytest.mark.usefixtures("_no_waiting_for_the_disk")


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


class TestMesh:
    @pytest.mark.parametrize("suffix", [".stl", ".ply"])
    def test_a_folder_of_this_name_stays(self, tmp_path, suffix):
        path = tmp_path / f"class_1{suffix}"
        path.mkdir()
        (path / "precious.txt").write_text("ten years of work")
        volume = ball(3, (8, 8, 8))
        with pytest.raises(OutputError, match="there is a folder of this name"):
            mesh(slabs_of(volume), volume.shape, 1, path)
        assert (path / "precious.txt").read_text() == "ten years of work"
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("suffix", [".ply", ".stl"])
    @pytest.mark.parametrize("step", [1, 2, 3])
    @pytest.mark.parametrize("voxels", [1, 26 * 28 * 4 * 5, 10**7])
    def test_a_ball(self, tmp_path, monkeypatch, suffix, step, voxels):
        monkeypatch.setattr(surfaces, "SLAB_VOXELS", voxels)
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
        monkeypatch.setattr(surfaces, "SLAB_VOXELS", 2**24)
        whole, parts = tmp_path / "whole.ply", tmp_path / "parts.ply"
        try:
            counts = mesh(slabs_of(volume), shape, 1, whole, step=step)
        except OutputError:
            assert step > 1 or not volume.any()
            return
        monkeypatch.setattr(surfaces, "SLAB_VOXELS", 4 * depth * shape[1] * shape[2])
        assert mesh(slabs_of(volume), shape, 1, parts, step=step) == counts
        monkeypatch.undo()
        both = [read_surface(path) for path in (whole, parts)]
        for vertices, triangles in both:
            assert is_closed(triangles)
            assert volume_inside(vertices, triangles) > 0
        same = volume_inside(*both[0])
        assert volume_inside(*both[1]) == pytest.approx(same, rel=1e-5)

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
