"""Choosing training images, and the memory that images need."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import spwnet
from spwnet import devices, gathering, images, prediction, segmenting
from spwnet.errors import RunError, SettingsError
from spwnet.gallery import read_gallery
from spwnet.graph import build_graph
from spwnet.images import open_images
from spwnet.presets import make_settings
from spwnet.runs import Run
from tests.conftest import TINY


def memory_is(monkeypatch, n_bytes):
    for module in (gathering, segmenting):
        monkeypatch.setattr(module, "available_memory", lambda: n_bytes)


def test_images_that_do_not_fit_into_memory_are_refused_before_they_are_read(folder, tmp_path, monkeypatch):
    settings = make_settings(overrides={**TINY, "images.scale": 1.0})
    model = spwnet.train(folder, settings=settings)
    read = []
    original = images._Images.__getitem__
    monkeypatch.setattr(images._Images, "__getitem__", lambda self, k: read.append(k) or original(self, k))
    memory_is(monkeypatch, 40 * 52 * 60 * 2.0)
    message = r"GiB of memory to train on 0\.0 million working pixels, but there are .* \(at most 0\.82"
    with pytest.raises(SettingsError, match=message):
        spwnet.train(folder, tmp_path / "run", settings=settings, frames="all")
    assert read == []
    assert not (tmp_path / "run").exists()
    for memory in (40 * 52 * 110.0, 40 * 52 * 400.0):
        # Too little for what is put together, and for the halo of a patch.
        memory_is(monkeypatch, memory)
        read.clear()
        with pytest.raises(SettingsError, match="GiB of memory to segment"):
            spwnet.segment(model, folder, tmp_path / "out")
        assert read == []
    memory_is(monkeypatch, 40 * 52 * 460.0)
    assert len(spwnet.segment(model, folder).labels) == 3


def test_of_an_image_scaled_by_itself_the_upper_bound_counts(folder, monkeypatch):
    memory_is(monkeypatch, 3 * 300_000 * 60.0)
    spwnet.train(folder, settings=make_settings("instant", overrides={**TINY, "images.scale": "auto"}))
    with pytest.raises(SettingsError, match="leave it at 'auto'"):
        spwnet.train(
            folder,
            settings=make_settings("instant", overrides={**TINY, "images.scale": "auto", "images.max_pixels": 310_000}),
        )


@given(st.integers(1, 400), st.integers(1, 400), st.floats(0.01, 2))
def test_patches_lie_within_and_fit(height, width, ratio):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathering, "PATCH_SIDE", 32)
        patches = gathering.patches_of((height, width), ratio)
    if ratio >= 1:
        assert patches == [None]
        return
    covered = np.zeros((height, width), int)
    for rows, columns in patches:
        assert 0 <= rows.start < rows.stop <= height
        assert 0 <= columns.start < columns.stop <= width
        covered[rows, columns] += 1
    assert covered.max() == 1
    fitting = ratio * height * width
    assert covered.sum() <= max(fitting, 1)
    # What there is memory for is used, but for what does not make one more row of patches.
    assert covered.sum() >= min(fitting / 4, 1)


def test_where_images_do_not_fit_patches_of_them_are_trained_on(folder, tmp_path, monkeypatch, caplog):
    settings = make_settings(overrides={**TINY, "model.n_blocks": 1})
    monkeypatch.setattr(gathering, "PATCH_SIDE", 24)
    memory_is(monkeypatch, 40 * 52 * 700 * 1.8)
    run = tmp_path / "run"
    model = spwnet.train(folder, run, settings=settings, frames="all")
    assert "do not fit into 0.0 GiB of memory: training on 6 patches of them" in caplog.text
    images = model.info["images"]
    assert [image["name"] for image in images[:2]] == ["frame_01 (1 of 2)", "frame_01 (2 of 2)"]
    assert [image["patch"] for image in images[:2]] == [[[8, 32], [1, 25]], [[8, 32], [27, 51]]]
    assert [image["working_shape"] for image in images] == 6 * [[24, 24]]
    shown = read_gallery(Run(run).gallery)
    assert [one.region for one in shown.exhibits[:2]] == [((8, 32), (1, 25)), ((8, 32), (27, 51))]
    # What it was trained on stays, whatever memory there is when it goes on.
    description = run / "run.json"
    description.write_text(description.read_text().replace('"finished": true', '"finished": false'))
    memory_is(monkeypatch, 1e12)
    again = spwnet.train(folder, run, settings=settings, frames="all", resume=True)
    assert [image["patch"] for image in again.info["images"]] == [image["patch"] for image in images]
    for damage, message in (
        ("[[8, 99]", "expected patches within 40×52"),
        ("[[8]", "expected the training images in run.json"),
    ):
        text = json.dumps({**json.loads(description.read_text()), "finished": False})
        description.write_text(text.replace("[[8, 32]", damage))
        with pytest.raises(RunError, match=message):
            spwnet.train(folder, run, settings=settings, frames="all", resume=True)
        description.write_text(text)


@pytest.mark.parametrize("memory", [1e12, 40 * 52 * 700 * 1.2])
def test_training_on_images_that_are_the_same_is_resumed(pictures, tmp_path, monkeypatch, memory):
    settings = make_settings(overrides={**TINY, "model.n_blocks": 1})
    monkeypatch.setattr(gathering, "PATCH_SIDE", 24)
    memory_is(monkeypatch, memory)
    twice = [pictures[0], pictures[0]]
    before = spwnet.train(twice, tmp_path / "run", settings=settings, frames="all")
    description = tmp_path / "run" / "run.json"
    description.write_text(description.read_text().replace('"finished": true', '"finished": false'))
    again = spwnet.train(twice, tmp_path / "run", settings=settings, frames="all", resume=True)
    assert again.info["images"] == before.info["images"]
    assert len(before.info["images"]) == (2 if memory > 1e9 else 4)


@pytest.mark.parametrize("overrides", [{}, {"images.scale": 0.7, "images.margin": 2}, {"superpixels.method": "none"}])
def test_where_an_image_does_not_fit_it_is_labelled_in_patches(folder, monkeypatch, caplog, overrides):
    model = spwnet.train(folder, settings=make_settings(overrides={**TINY, **overrides}))
    whole = spwnet.segment(model, folder, uncertainty=True)
    monkeypatch.setattr(prediction, "HALO", 12)
    monkeypatch.setattr(segmenting, "LEAST_SIDE", 32)
    monkeypatch.setattr(segmenting, "memory_ratio", lambda *_, **__: 0.5)
    memory_is(monkeypatch, 2 * 450 * 33**2)
    parts = spwnet.segment(model, folder, uncertainty=True)
    assert "labelling them in patches of 32² working pixels" in caplog.text
    for name, a, b, doubt in zip(parts.names, whole.labels, parts.labels, parts.uncertainty, strict=True):
        assert np.mean(a == b) > 0.8
        assert doubt.shape == b.shape
        assert parts.areas[name] == {k: n for k, n in enumerate(np.bincount(b.ravel()).tolist()) if n}


@pytest.mark.parametrize("count", [None, 30])
def test_patches_that_see_all_are_labelled_as_the_whole(folder, monkeypatch, count):
    settings = make_settings(overrides={**TINY, "superpixels.count": count} if count else TINY)
    model = spwnet.train(folder, settings=settings)
    image = open_images(folder)[0]
    whole = prediction.predict(model, *graphed(model, image), settings.labels)
    monkeypatch.setattr(prediction, "HALO", 64)
    sides = []
    prepare_image = prediction.prepare_image
    monkeypatch.setattr(prediction, "prepare_image", lambda *given: (sides.append(given[-1]), prepare_image(*given))[1])
    parts = prediction.predict_in_patches(model, image, settings.labels, None, (2 * 64 + 16) ** 2)
    assert sides == 12 * [(slice(0, 40), slice(0, 52))]
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(a, b)


def graphed(model, image):
    prepared, superpixels = prediction.prepare_image(image, model.settings, model.normalisation)
    return prepared, build_graph(superpixels, prepared.unit, model.device)


def test_frames_that_are_labelled_in_the_light_of_others_are_not_cut(folder, monkeypatch):
    model = spwnet.train(folder, settings=make_settings(overrides={**TINY, "labels.steady": True}))
    memory_is(monkeypatch, 40 * 52 * 440.0)
    with pytest.raises(SettingsError, match="GiB of memory to segment"):
        spwnet.segment(model, folder)


def test_memory_that_can_be_had(monkeypatch, tmp_path):
    files = {
        "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    1000 kB\n",
        "/sys/fs/cgroup/memory.max": "max\n",
        "/sys/fs/cgroup/memory.current": "5000\n",
    }
    monkeypatch.setattr(devices.Path, "read_text", lambda self: files[str(self)] if str(self) in files else missing())
    assert devices.available_memory() == 1000 * 1024
    files["/sys/fs/cgroup/memory.max"] = "105000\n"
    assert devices.available_memory() == 100_000
    # Files that were read stay in memory until it is needed.
    files["/sys/fs/cgroup/memory.stat"] = "anon 2000\ninactive_file 3000\nactive_file 10\n"
    assert devices.available_memory() == 103_000
    del files["/sys/fs/cgroup/memory.max"]
    assert devices.available_memory() == 1000 * 1024
    files.clear()
    monkeypatch.setattr(devices.os, "sysconf", lambda name: {"SC_PHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}[name])
    assert devices.available_memory() == 40_960
    monkeypatch.delattr(devices.os, "sysconf")
    assert devices.available_memory() == math.inf


def missing():
    raise FileNotFoundError
