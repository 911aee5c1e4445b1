"""Choosing training images, and the memory that images need."""

from __future__ import annotations

import math

import pytest

import spwnet
from spwnet import devices, gathering, images
from spwnet.config import make_settings
from spwnet.errors import SettingsError
from tests.conftest import TINY


def test_images_that_do_not_fit_into_memory_are_refused_before_they_are_read(folder, tmp_path, monkeypatch):
    settings = make_settings(overrides={**TINY, "images.scale": 1.0})
    model = spwnet.train(folder, settings=settings)
    read = []
    original = images._Images.__getitem__
    monkeypatch.setattr(images._Images, "__getitem__", lambda self, k: read.append(k) or original(self, k))
    monkeypatch.setattr(gathering, "available_memory", lambda: 40 * 52 * 700 * 2.0)
    message = r"GiB of memory to train on 0\.0 million working pixels, but there are .* \(at most 0\.82"
    with pytest.raises(SettingsError, match=message):
        spwnet.train(folder, tmp_path / "run", settings=settings, frames="all")
    assert read == []
    assert not (tmp_path / "run").exists()
    spwnet.train(folder, settings=settings, frames=[1, 2])
    monkeypatch.setattr(gathering, "available_memory", lambda: 40 * 52 * 400.0)
    read.clear()
    with pytest.raises(SettingsError, match="GiB of memory to segment"):
        spwnet.segment(model, folder, tmp_path / "out")
    assert read == []
    monkeypatch.setattr(gathering, "available_memory", lambda: 40 * 52 * 460.0)
    assert len(spwnet.segment(model, folder).labels) == 3


def test_of_an_image_scaled_by_itself_the_upper_bound_counts(folder, monkeypatch):
    monkeypatch.setattr(gathering, "available_memory", lambda: 3 * 300_000 * 700.0)
    spwnet.train(folder, settings=make_settings("instant", overrides={**TINY, "images.scale": "auto"}))
    with pytest.raises(SettingsError, match="leave it at 'auto'"):
        spwnet.train(
            folder,
            settings=make_settings("instant", overrides={**TINY, "images.scale": "auto", "images.max_pixels": 310_000}),
        )


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
