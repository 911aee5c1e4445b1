"""What was written before is read today: see `tests/data` and the section on versions in CONTRIBUTING.md."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import spwnet
from spwnet import config, gallery, naming, presets
from spwnet.errors import RunError, SettingsError
from spwnet.presets import make_settings
from spwnet.runs import RUN_FORMAT, Run
from tests.conftest import SOLID, TINY, phantom, picture

DATA = Path(__file__).parent / "data"
RUNS = DATA / f"run_format_{RUN_FORMAT}"
SETTINGS = DATA / f"settings_format_{config.SETTINGS_VERSION}.toml"


@pytest.fixture
def run(tmp_path):
    """A run on images, written when its format was new."""
    return Run(shutil.copytree(RUNS / "images", tmp_path / "run"))


def agree(found, recorded):
    """The same labels, but for single pixels: processors round differently."""
    assert found.shape == recorded.shape
    assert np.mean(found == recorded) >= 0.999


def test_a_run_on_images_gives_the_labels_recorded(run):
    model, image = spwnet.load(run.folder), np.asarray(Image.open(RUNS / "images.png"))
    agree(spwnet.segment(model, image).labels[0], np.asarray(Image.open(RUNS / "images_labels.png")))
    named = spwnet.segment(model, image, classes=run.classes).labels[0]
    agree(named, np.asarray(Image.open(RUNS / "images_named.png")))


def test_a_run_on_a_volume_gives_the_labels_recorded():
    model, volume = spwnet.load(RUNS / "volume"), spwnet.open_volume(RUNS / "volume.tif")
    assert model.solid
    agree(spwnet.segment_volume(model, volume).labels, tifffile.imread(RUNS / "volume_labels.tif"))


def test_the_rest_of_a_run_is_read(run):
    assert [one["step"] for one in run.read_history()] == list(range(1, len(run.read_history()) + 1))
    classes = run.class_map(spwnet.load(run.folder))
    assert [one.name for one in classes.classes] == ["ground", "disc"]
    assert run.undo_classes()
    assert len(run.class_map(spwnet.load(run.folder)).classes) > 2
    shown = gallery.read_gallery(run.gallery)
    assert (len(shown.exhibits), len(shown.classes)) == (1, 4)


def test_a_run_from_before_there_were_galleries(run):
    """The folder came without a new format: it is only to be looked at."""
    shutil.rmtree(run.gallery)
    image = np.asarray(Image.open(RUNS / "images.png"))
    assert spwnet.segment(run.folder, image).labels[0].shape == image.shape[:2]
    with pytest.raises(RunError, match="there is none; train the run again"):
        gallery.read_gallery(run.gallery)


def test_a_file_of_settings_is_read_with_all_that_it_says():
    told = presets.flat(tomllib.loads(SETTINGS.read_text(encoding="utf-8")))
    read = presets.flat(make_settings(file=SETTINGS).model_dump(mode="json"))
    assert {name: read[name] for name in told} == told


@pytest.mark.parametrize("number", [RUN_FORMAT + 1, RUN_FORMAT - 1])
def test_runs_of_other_formats_say_what_to_do(run, number):
    remedy = "update spwnet to read it" if number > RUN_FORMAT else "train the run again"
    run.description.write_text(json.dumps({"format": number, "settings": {"unheard": 1}}))
    with pytest.raises(RunError, match=f"a run of format {RUN_FORMAT} at .* but got format {number}; {remedy}"):
        run.load()


def test_newer_formats_are_named_before_anything_else_in_them(run, tmp_path):
    settings = tmp_path / "settings.toml"
    settings.write_text(f"version = {config.SETTINGS_VERSION + 1}\n[unheard]\nof = 1\n")
    with pytest.raises(SettingsError, match=r"^expected settings of format .* or older, but got format .*; update"):
        make_settings(file=settings)
    (run.gallery / "gallery.json").write_text(json.dumps({"format": gallery.FORMAT + 1}))
    with pytest.raises(RunError, match=r"expected a gallery of format .* update spwnet"):
        gallery.read_gallery(run.gallery)
    run.classes.write_text(f"version = {naming.FORMAT + 1}\n")
    with pytest.raises(SettingsError, match=r"expected a file of classes of format .* update spwnet"):
        naming.read_classes(run.classes)


def write():
    """Write what the tests of this format compare with, once: a format that was released never changes."""
    torch.set_num_threads(1)
    RUNS.mkdir(parents=True)
    image, scan = picture(0), phantom((14, 24, 24))
    Image.fromarray(image).save(RUNS / "images.png")
    tifffile.imwrite(RUNS / "volume.tif", scan[..., 0], compression="zlib")
    model = spwnet.train(RUNS / "images.png", RUNS / "images", settings=make_settings(overrides=TINY))
    Image.fromarray(spwnet.segment(model, image).labels[0].astype(np.uint8)).save(RUNS / "images_labels.png")
    run = Run(RUNS / "images")
    run.checkpoint.unlink()
    found = model.class_map()
    run.save_classes(found)
    run.save_classes(found.merge([1, 2, 3]).change(0, name="ground").change(1, name="disc"))
    named = spwnet.segment(model, image, classes=run.classes).labels[0]
    Image.fromarray(named.astype(np.uint8)).save(RUNS / "images_named.png")
    volume = spwnet.open_volume(scan)
    solid = spwnet.train(volume, RUNS / "volume", settings=make_settings(overrides=SOLID))
    (RUNS / "volume" / "checkpoint.safetensors").unlink()
    labels = spwnet.segment_volume(solid, volume).labels
    tifffile.imwrite(RUNS / "volume_labels.tif", labels.astype(np.uint8), compression="zlib")


if __name__ == "__main__":
    write()
