from __future__ import annotations

import logging
import os
import shutil
import signal

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from spwnet import open_volume, train
from spwnet.presets import make_settings
from spwnet.runs import Run

# One busy machine must not fail a property that holds.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# Started in the background by a shell, tests would inherit that Ctrl-C is ignored, and so would what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Benchmarks limit and kill processes by means of POSIX.
collect_ignore = [] if os.name == "posix" else ["test_benchmarks.py"]
posix = pytest.mark.skipif(os.name != "posix", reason="signals, locks and limits of POSIX")

TINY = {
    "images.scale": 1.0,
    "model": {"classes": 4, "ch_mul": 4, "n_blocks": 2},
    "superpixels.size": 16,
    "labels.classes": 4,
    "codebook.finest": 4,
    "training": {"epochs": 2, "batches": 2, "learning_rate": 1e-2, "precision": "float32"},
}


SOLID = {
    "images.scale": 1.0,
    "model": {"classes": 4, "ch_mul": 4},
    "volumes.size": 8,
    "labels.classes": 5,
    "codebook.finest": 6,
    "training": {"images": 2, "epochs": 1, "batches": 2, "precision": "float32"},
}
"""As `TINY`, for volumes."""


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_numbers():
    """PyTorch's random numbers do not depend on the tests before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_logging():
    """What the command line sets up to log by ends with the test."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = [handler for handler in root.handlers if handler in handlers]
    root.setLevel(level)


@pytest.fixture
def tiny():
    """Settings that train in a fraction of a second."""
    return make_settings(overrides=TINY)


@pytest.fixture
def rng():
    """Random numbers, for each test the same in every run."""
    return np.random.default_rng(0)


def noise(*shape, dtype="uint8", seed=0):
    """Values over the whole range of a type, of floats over 0…1."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.random(shape).astype(dtype)
    return rng.integers(0, min(np.iinfo(dtype).max, 2**31), shape, endpoint=True).astype(dtype)


def picture(seed=0, height=40, width=52, channels=3):
    """A bright disc on a dark textured ground, 8 bit."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    disc = (y - height / 2) ** 2 + (x - width / 3 - 2 * seed) ** 2 < (height / 4) ** 2
    image = np.where(disc[..., None], 190, 60) + rng.normal(0, 12, (height, width, channels))
    image[..., 0] += 25 * disc
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture
def pictures():
    return [picture(seed) for seed in range(3)]


@pytest.fixture
def folder(tmp_path, pictures):
    """Frames frame_01.png … frame_03.png."""
    path = tmp_path / "frames"
    path.mkdir()
    for number, image in enumerate(pictures, start=1):
        Image.fromarray(image).save(path / f"frame_{number:02d}.png")
    return path


@pytest.fixture(scope="session")
def one_step(tmp_path_factory):
    """A run of one step on one picture; see `run`."""
    folder = tmp_path_factory.mktemp("one_step") / "run"
    train([picture(0)], folder, settings=make_settings(overrides={**TINY, "training": {"epochs": 1, "batches": 1}}))
    return folder


@pytest.fixture
def run(one_step, tmp_path):
    """A copy of that run, to be changed."""
    return Run(shutil.copytree(one_step, tmp_path / "run"))


def phantom(shape=(30, 28, 26), channels=1, seed=0):
    """Fibres along z in a ground with blobs, and noise, 8 bit, (*shape, C)."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    fibres = np.hypot(y % 12 - 6, x % 12 - 6) < 3.5
    blobs = np.sin(z / 5) + np.sin(y / 4) + np.sin(x / 4.5) > 1.2
    values = np.stack([60 + 80 * fibres + 60 * blobs, 200 - 90 * blobs][:channels], axis=-1)
    return np.clip(values + rng.normal(0, 14, values.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def solid_models():
    """{(preset, channels): model of a phantom}; "instant" learns nothing."""
    return {
        (preset, channels): train(
            open_volume(phantom((26, 40, 40), channels)), settings=make_settings(preset, overrides=SOLID)
        )
        for preset in ("instant", "default")
        for channels in (1, 2)
    }


@pytest.fixture(scope="session")
def solid_model(solid_models):
    return solid_models["instant", 1]


def label_volume(shape=(9, 11, 13), dtype="uint8", n_classes=5, seed=0):
    """Classes at random."""
    return np.random.default_rng(seed).integers(0, n_classes, shape).astype(dtype)


def blocks_of(shape, size):
    """Blocks of some size that fill a volume."""
    cuts = [[slice(k, min(k + step, n)) for k in range(0, n, step)] for n, step in zip(shape, size, strict=True)]
    return [(z, y, x) for z in cuts[0] for y in cuts[1] for x in cuts[2]]


def failing(code):
    """A function that fails as the operating system does."""

    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return fail


def assert_same_checkpoints(*runs):
    """But for the seconds that they took."""
    files = [safe_open(run / "checkpoint.safetensors", framework="np") for run in runs]
    a, b = ({name: file.get_tensor(name).tobytes() for name in file.keys()} for file in files)  # noqa: SIM118
    assert a == b
    a, b = ({**file.metadata(), "seconds": ""} for file in files)
    assert a == b


def files_in(folder):
    """Names of all files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
