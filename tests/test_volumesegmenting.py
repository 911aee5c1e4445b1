"""Segmenting volumes block by block: what is written, what is resumed, and workers that die."""

from __future__ import annotations

import csv
import json
import signal
import sys
import threading
import time
from importlib import metadata
from types import SimpleNamespace

import distributed
import h5py
import numpy as np
import psutil
import pytest
import tifffile
import torch
from PIL import Image

import spwnet
from spwnet import join_channels, open_volume, segment_volume, storage, volumesegmenting, volumetric
from spwnet.classes import clean
from spwnet.config import LabelSettings
from spwnet.errors import InputError, OutputError, SettingsError, Stopped
from spwnet.presets import make_settings
from spwnet.volumes import SliceSource
from spwnet.volumesegmenting import check_options
from tests.conftest import SOLID, phantom, posix

SPACING = (2.0, 1.0, 1.0)
BLOCK = 10
"""Of `volume`, 3·3·3 of them."""


@pytest.fixture(scope="module")
def volume():
    return open_volume(phantom(), spacing=SPACING, unit="micrometer")


@pytest.fixture(scope="module")
def expected(solid_model, volume):
    """The labels in one piece."""
    return segment_volume(solid_model, volume, block=40).labels


def labels_of(folder, suffix=".tif"):
    return open_volume(folder / f"labels{suffix}").read((slice(None),) * 3)[..., 0]


def counting(monkeypatch, fail_after=None, error=None):
    """Count the blocks that are labelled; after so many, fail."""
    made = []
    original = volumesegmenting.predict_part

    def predict_part(model, volume, region, labels):
        if fail_after is not None and len(made) == fail_after:
            raise error or RuntimeError("crash")
        made.append(region)
        return original(model, volume, region, labels)

    monkeypatch.setattr(volumesegmenting, "predict_part", predict_part)
    return made


def crash(model, volume, folder, monkeypatch, after=5, **options):
    """A segmentation that is broken off after some blocks."""
    with monkeypatch.context() as patch:
        counting(patch, after)
        with pytest.raises(RuntimeError, match="crash"):
            segment_volume(model, volume, folder, block=BLOCK, workers=1, **options)
    assert len(list((folder / "blocks").glob("*.block"))) == after


# What is written


@pytest.mark.parametrize("suffix", [".tif", ".zarr", ".h5", ".nxs", ".npy"])
def test_every_format_holds_the_labels_and_their_spacing(solid_model, volume, expected, tmp_path, suffix):
    result = segment_volume(solid_model, volume, tmp_path / "out", suffix=suffix, block=(17, 14, 26))
    assert result.path == tmp_path / "out" / f"labels{suffix}"
    assert result.labels is None
    found = open_volume(result.path)
    np.testing.assert_array_equal(labels_of(tmp_path / "out", suffix), expected)
    assert found.dtype == np.uint8
    if suffix != ".npy":
        assert found.spacing == pytest.approx(SPACING)
        assert found.unit == "micrometer"
    names = ["fractions.csv", "fractions.png", f"labels{suffix}", "segmentation.json", "slices.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_the_summary_says_what_made_the_labels_and_how_much_of_each_there_is(solid_model, volume, expected, tmp_path):
    result = segment_volume(solid_model, volume, tmp_path, block=BLOCK, meshes=[1])
    summary = json.loads((tmp_path / "segmentation.json").read_text())
    assert summary["summary"] == json.loads(json.dumps(result.summary))
    assert summary["settings"] == solid_model.settings.model_dump(mode="json")
    assert summary["model"] == solid_model.fingerprint
    assert summary["seed"] == 0
    assert len(summary["job"]) == 64
    assert summary["block"] == [BLOCK] * 3
    assert summary["volume"]["shape"] == [30, 28, 26]
    assert summary["volume"]["spacing"] == list(SPACING)
    assert summary["spwnet"] == spwnet.__version__
    assert summary["torch"] == metadata.version("torch")
    counts = np.bincount(expected.ravel(), minlength=5)
    classes = {int(k): entry for k, entry in result.summary["classes"].items()}
    for k, n in enumerate(counts):
        if n:
            assert classes[k]["voxels"] == n
            assert classes[k]["fraction"] == pytest.approx(n / expected.size)
            assert classes[k]["volume"] == pytest.approx(n * 2.0)
    with (tmp_path / "fractions.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["axis", "slice", "position", *(f"class_{k}" for k in classes)]
    assert [row[0] for row in rows[1:]] == ["z"] * 30 + ["y"] * 28 + ["x"] * 26
    for z, row in enumerate(rows[1:31]):
        assert float(row[2]) == 2 * z
        shares = [np.mean(expected[z] == k) for k in classes]
        assert [float(share) for share in row[3:]] == pytest.approx(shares, abs=1e-6)
    drawn = np.asarray(Image.open(tmp_path / "slices.png"))
    assert drawn.ndim == 3
    assert drawn.std() > 20
    assert (tmp_path / "class_1.stl").stat().st_size > 84 + 50 * 100
    assert not (tmp_path / "blocks").exists()


def test_progress_counts_the_blocks(solid_model, volume):
    seen = []
    segment_volume(solid_model, volume, block=BLOCK, workers=2, on_progress=seen.append)
    assert [state.done for state in seen] == list(range(1, 28))
    assert {(state.stage, state.total) for state in seen} == {("segment", 27)}
    assert seen[-1].seconds_left == 0


def test_blocks_hold_whole_working_voxels(solid_model, volume, expected, tmp_path):
    settings = make_settings("instant", overrides={**SOLID, "images.scale": 0.5})
    model = spwnet.train(volume, settings=settings)
    one = segment_volume(model, volume).labels
    assert one.shape == volume.shape
    # 1 of the axis z, whose voxels are twice as long, and 2 of the others are one working voxel
    segment_volume(model, volume, tmp_path, block=5)
    np.testing.assert_array_equal(labels_of(tmp_path), one)
    sides = json.loads((tmp_path / "segmentation.json").read_text())["block"]
    assert all(side % step == 0 for side, step in zip(sides, (1, 2, 2), strict=True))
    for y, x in ((0, 0), (1, 0), (0, 1)):
        np.testing.assert_array_equal(one[:, y:28:2, x::2], one[:, ::2, ::2])
    assert (one != expected).any()


def test_blocks_without_being_told(solid_model, volume, tmp_path, monkeypatch):
    monkeypatch.setattr(volumesegmenting, "BLOCK", 15)
    segment_volume(solid_model, volume, tmp_path)
    assert json.loads((tmp_path / "segmentation.json").read_text())["block"] == [15, 14, 14]


def test_fewer_classes_and_merges(solid_model, volume, expected, tmp_path):
    few = segment_volume(solid_model, volume, labels=LabelSettings(classes=3)).labels
    assert set(np.unique(few)) <= {0, 1, 2}
    merged = segment_volume(solid_model, volume, labels=LabelSettings(classes=5, merge=((0, 1),))).labels
    np.testing.assert_array_equal(merged, np.where(expected == 1, 0, expected))


def test_a_model_from_its_folder(volume, expected, solid_model, tmp_path):
    settings = solid_model.settings
    saved = spwnet.train(open_volume(phantom((26, 40, 40))), tmp_path / "run", settings=settings)
    assert saved.fingerprint == solid_model.fingerprint
    np.testing.assert_array_equal(segment_volume(tmp_path / "run", volume).labels, expected)


# Going on


@pytest.mark.parametrize("after", [1, 26])
def test_what_was_broken_off_is_resumed_and_equals_what_was_not(solid_model, volume, tmp_path, monkeypatch, after):
    segment_volume(solid_model, volume, tmp_path / "whole", block=BLOCK)
    crash(solid_model, volume, tmp_path / "out", monkeypatch, after)
    assert not (tmp_path / "out" / "labels.tif").exists()
    made, seen = counting(monkeypatch), []
    segment_volume(solid_model, volume, tmp_path / "out", block=BLOCK, workers=1, resume=True, on_progress=seen.append)
    assert len(made) == 27 - after
    assert [state.done for state in seen] == list(range(after + 1, 28))
    np.testing.assert_array_equal(labels_of(tmp_path / "out"), labels_of(tmp_path / "whole"))
    mine, theirs = (json.loads((tmp_path / name / "segmentation.json").read_text()) for name in ("out", "whole"))
    assert {**mine, "time": ""} == {**theirs, "time": ""}
    assert (tmp_path / "out" / "fractions.csv").read_bytes() == (tmp_path / "whole" / "fractions.csv").read_bytes()
    again = segment_volume(solid_model, volume, tmp_path / "out", block=BLOCK, resume=True,
                           on_progress=lambda _: pytest.fail("done already"))  # fmt: skip
    assert again.summary == mine["summary"]
    assert len(made) == 27 - after


def test_a_damaged_block_is_made_again(solid_model, volume, expected, tmp_path, monkeypatch):
    crash(solid_model, volume, tmp_path, monkeypatch)
    block = tmp_path / "blocks" / "00002.block"
    block.write_bytes(block.read_bytes()[:-3])
    made = counting(monkeypatch)
    segment_volume(solid_model, volume, tmp_path, block=BLOCK, resume=True)
    assert len(made) == 27 - 5 + 1
    np.testing.assert_array_equal(labels_of(tmp_path), expected)


def test_a_job_does_not_go_on_with_another_s_blocks(solid_models, solid_model, volume, tmp_path, monkeypatch):
    crash(solid_model, volume, tmp_path, monkeypatch)
    others = {
        "model": {"model": solid_models["default", 1]},
        "volume": {"volume": open_volume(phantom(seed=1), spacing=SPACING)},
        "spacing": {"volume": open_volume(phantom(), spacing=(1, 1, 1), unit="micrometer")},
        "unit": {"volume": open_volume(phantom(), spacing=SPACING, unit="millimeter")},
        "labels": {"labels": LabelSettings(classes=3)},
        "blocks": {"block": 12},
    }
    made = counting(monkeypatch)
    for changes in others.values():
        arguments = {"model": solid_model, "volume": volume, "block": BLOCK, **changes}
        with pytest.raises(OutputError, match=r"of another job; write to another folder, or use `--overwrite`"):
            segment_volume(output=tmp_path, resume=True, **arguments)
    assert made == []
    segment_volume(solid_model, volume, tmp_path, block=BLOCK, resume=True)
    with pytest.raises(OutputError, match=r"expected the job in .* to be of this model, volume and settings"):
        segment_volume(solid_models["default", 1], volume, tmp_path, block=BLOCK, resume=True)


def test_what_is_there_is_replaced_only_if_asked(solid_models, solid_model, volume, tmp_path, monkeypatch):
    segment_volume(solid_model, volume, tmp_path, block=BLOCK)
    with pytest.raises(OutputError, match="expected an empty or new folder"):
        segment_volume(solid_model, volume, tmp_path, block=BLOCK)
    with pytest.raises(OutputError, match="either overwrite or resume"):
        segment_volume(solid_model, volume, tmp_path, block=BLOCK, overwrite=True, resume=True)
    other = solid_models["default", 1]
    # Broken off, it can be resumed all the same: what is there of the earlier job is not taken for its own.
    crash(other, volume, tmp_path, monkeypatch, overwrite=True)
    segment_volume(other, volume, tmp_path, block=BLOCK, resume=True)
    np.testing.assert_array_equal(labels_of(tmp_path), segment_volume(other, volume).labels)
    assert json.loads((tmp_path / "segmentation.json").read_text())["model"] == other.fingerprint


def test_overwriting_leaves_no_block_of_an_earlier_job(
    solid_models, solid_model, volume, expected, tmp_path, monkeypatch
):
    crash(solid_models["default", 1], volume, tmp_path, monkeypatch)
    segment_volume(solid_model, volume, tmp_path, block=BLOCK, overwrite=True)
    np.testing.assert_array_equal(labels_of(tmp_path), expected)


@pytest.mark.parametrize("workers", [1, 3])
def test_ctrl_c_stops_between_blocks(solid_model, volume, expected, tmp_path, workers):
    def press(state):
        if state.done == 4:
            signal.raise_signal(signal.SIGINT)

    before, threads = (signal.getsignal(signal.SIGINT), torch.get_num_threads()), set(threading.enumerate())
    with pytest.raises(Stopped, match=r"stopped after 4 of 27 blocks; go on by `--resume`") as stopped:
        segment_volume(solid_model, volume, tmp_path, block=BLOCK, workers=workers, on_progress=press)
    # While somebody holds the error, nothing is worked on any more.
    assert stopped.traceback
    working = [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]
    assert not set(working) - threads
    assert (signal.getsignal(signal.SIGINT), torch.get_num_threads()) == before
    done = len(list((tmp_path / "blocks").glob("*.block")))
    assert 4 <= done <= 4 + 2 * workers
    seen = []
    segment_volume(solid_model, volume, tmp_path, block=BLOCK, resume=True, on_progress=seen.append)
    assert len(seen) == 27 - done
    np.testing.assert_array_equal(labels_of(tmp_path), expected)


def test_ctrl_c_in_the_last_block_finishes(solid_model, volume, expected, tmp_path):
    def press(state):
        if state.done == 27:
            signal.raise_signal(signal.SIGINT)

    segment_volume(solid_model, volume, tmp_path, block=BLOCK, on_progress=press)
    np.testing.assert_array_equal(labels_of(tmp_path), expected)


def test_a_chunk_that_cannot_be_read_is_named_and_what_is_done_stays(solid_model, tmp_path):
    values = phantom((140, 12, 12))[..., 0]
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("scan", data=values, chunks=(10, 12, 12), compression="gzip", fletcher32=True)
        place = data.id.get_chunk_info(13).byte_offset
    good = path.read_bytes()
    path.write_bytes(good[: place + 40] + bytes(100) + good[place + 140 :])
    options = {"block": (20, 12, 12), "workers": 1}
    with pytest.raises(InputError, match=r"scan\.h5"):
        segment_volume(solid_model, open_volume(path), tmp_path / "out", **options)
    done = len(list((tmp_path / "out" / "blocks").glob("*.block")))
    assert 2 <= done < 7
    path.write_bytes(good)
    seen = []
    segment_volume(solid_model, open_volume(path), tmp_path / "out", resume=True, on_progress=seen.append, **options)
    assert len(seen) == 7 - done
    np.testing.assert_array_equal(labels_of(tmp_path / "out"), segment_volume(solid_model, open_volume(values)).labels)


def test_values_that_are_not_finite_are_named(solid_model, tmp_path):
    values = phantom((60, 12, 12)).astype(np.float32)
    values[58, 3, 4] = np.nan
    with pytest.raises(InputError, match=r"NaN or infinite, the first at \(58, 3, 4\)"):
        segment_volume(solid_model, open_volume(values), tmp_path / "out", block=20)


# What cannot be used


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"volume": open_volume(phantom(channels=2))}, InputError, r"a volume of 1 channels as in training, .* has 2"),
        ({"labels": LabelSettings(mode="argmax_of_mean")}, SettingsError, r"expected `labels\.mode = 'codebook'`"),
        ({"labels": LabelSettings(classes=9)}, SettingsError, "expected 1 to 6 classes"),
        ({"labels": LabelSettings(classes=3, merge=((0, 4),))}, SettingsError, "expected class ids below 3"),
        ({"block": 0}, SettingsError, "expected a block of one or three sides of at least 1 voxel, but got 0"),
        ({"block": (8, 8)}, SettingsError, r"but got \(8, 8\)"),
        ({"block": (4.5, 8, 8)}, SettingsError, r"but got \(4\.5, 8, 8\); give whole numbers"),
        ({"block": "8"}, SettingsError, "but got '8'"),
        ({"workers": "2"}, SettingsError, "expected at least one worker, but got '2'"),
        ({"meshes": ["1"]}, SettingsError, "expected classes from 0 for surfaces, but got '1'; give"),
        ({"scheduler": "thread"}, SettingsError, "no address such as .* or use 'threads' or 'processes'"),
        ({"suffix": ".png"}, OutputError, r"expected a label volume named \.tif, .* but got 'labels\.png'"),
        ({"meshes": [1, 5]}, SettingsError, "expected classes 0 to 4 for surfaces, but got 5"),
        ({"workers": 0}, SettingsError, "expected at least one worker, but got 0"),
        ({"output": None, "scheduler": "processes"}, SettingsError, "expected an output folder for the"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_work_starts(solid_model, volume, tmp_path, monkeypatch, options, kind, message):
    made = counting(monkeypatch)
    with pytest.raises(kind, match=message):
        segment_volume(**{"model": solid_model, "volume": volume, "output": tmp_path / "out", **options})
    assert made == []
    assert list(tmp_path.iterdir()) == []


def test_options_are_checked_before_there_is_a_model(monkeypatch):
    check_options(block=np.int64(8), workers=np.int64(2), meshes=np.array([1]), scheduler="threads")
    check_options(block=np.array([8, 8, 8]), suffix=".npy")
    pytest.importorskip("distributed")
    check_options(scheduler="processes")
    check_options(scheduler="tcp://host:8786")
    with pytest.raises(SettingsError, match="expected a Dask scheduler at 'thread', but: this is no address"):
        check_options(scheduler="thread")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SettingsError, match=r"pip install 'spwnet\[dask\]'"):
        check_options(scheduler="processes")


NAMED = LabelSettings(
    named=(
        {"id": 0, "name": "around", "members": [0, 3], "background": True},
        {"id": 2, "name": "grains", "members": [1, 2, 4, 5], "remove_objects": 40, "smooth": 0.8, "colour": "#102030"},
    )
)


@pytest.mark.parametrize("labels", [LabelSettings(classes=5, fill_holes=9, remove_objects=30), NAMED])
def test_a_volume_is_cleaned_as_a_whole(solid_model, volume, tmp_path, labels):
    whole = segment_volume(solid_model, volume, labels=LabelSettings(named=[
        one.model_copy(update={"smooth": 0, "remove_objects": 0}) for one in labels.named
    ], classes=labels.classes)).labels  # fmt: skip
    cleaned = clean(whole, labels)
    assert 0 < (cleaned != whole).mean() < 0.5
    segment_volume(solid_model, volume, tmp_path, labels=labels, block=BLOCK)
    np.testing.assert_array_equal(labels_of(tmp_path), cleaned)
    np.testing.assert_array_equal(segment_volume(solid_model, volume, labels=labels, block=BLOCK).labels, cleaned)


def test_names_and_colours_go_with_the_labels(solid_model, volume, tmp_path):
    found = segment_volume(solid_model, volume, tmp_path, labels=NAMED, suffix=".zarr")
    assert {k: entry["name"] for k, entry in found.summary["classes"].items()} == {"0": "around", "2": "grains"}
    assert (tmp_path / "fractions.csv").read_text().splitlines()[0] == "axis,slice,position,around,grains"
    label = json.loads((tmp_path / "labels.zarr" / "labels" / "classes" / "zarr.json").read_text())
    described = label["attributes"]["ome"]["image-label"]
    assert described["properties"] == [{"label-value": 0, "name": "around"}, {"label-value": 2, "name": "grains"}]
    assert described["colors"][2]["rgba"] == [16, 32, 48, 255]
    assert described["colors"][0]["rgba"][3] == 0
    assert json.loads((tmp_path / "segmentation.json").read_text())["tree"] is None


def test_a_volume_too_large_to_be_cleaned(solid_model, volume, tmp_path, monkeypatch):
    made = counting(monkeypatch)
    monkeypatch.setattr(volumesegmenting, "CLEANING_BYTES", 2**40)
    with pytest.raises(SettingsError, match=r"expected memory of about \d+ GiB to clean labels of 30×28×26 voxels"):
        segment_volume(solid_model, volume, tmp_path / "out", labels=NAMED)
    assert made == []
    segment_volume(solid_model, volume, tmp_path / "out", block=40)


@pytest.mark.parametrize(("suffix", "least"), [(".npy", 30 * 28 * 26), (".tif", 30 * 28 * 26 // 10)])
def test_too_little_space_is_told_before_work_starts(solid_model, volume, tmp_path, monkeypatch, suffix, least):
    made = counting(monkeypatch)
    options = {"block": BLOCK, "suffix": suffix}
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: SimpleNamespace(free=least - 1))
    with pytest.raises(OutputError, match=r"expected 0\.00 GiB of free space for .*; free some or choose another disk"):
        segment_volume(solid_model, volume, tmp_path / "out", **options)
    assert made == []
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: SimpleNamespace(free=least))
    monkeypatch.setattr(volumesegmenting.BlockStore, "n_bytes", lambda _: least)
    segment_volume(solid_model, volume, tmp_path / "out", **options)
    assert len(made) == 27


def test_too_little_space_for_the_volume_itself_is_told_when_the_blocks_are_made(
    solid_model, volume, tmp_path, monkeypatch
):
    monkeypatch.setattr(volumesegmenting.BlockStore, "n_bytes", lambda _: 2**70)
    with pytest.raises(OutputError, match="of free space for"):
        segment_volume(solid_model, volume, tmp_path, block=BLOCK)
    monkeypatch.undo()
    made = counting(monkeypatch)
    segment_volume(solid_model, volume, tmp_path, block=BLOCK, resume=True)
    assert made == []


def test_nothing_is_left_where_nothing_was_done(solid_model, volume, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        counting(patch, 0)
        with pytest.raises(RuntimeError, match="crash"):
            segment_volume(solid_model, volume, tmp_path / "out", block=BLOCK, workers=1)
    assert list(tmp_path.iterdir()) == []
    segment_volume(solid_model, volume, tmp_path / "out", block=BLOCK)


def test_slices_that_do_not_fit_into_memory_are_told_before_they_are_read(solid_model, volume, monkeypatch):
    monkeypatch.setattr(volumetric, "available_memory", lambda: 2 * 28 * 26.0)
    segment_volume(solid_model, volume, block=40)
    with pytest.raises(InputError, match=r"GiB of memory at least for 4 of the slices of 'volume', but there are 0\.0"):
        spwnet.train(volume, settings=solid_model.settings, frames=[1, 2, 3, 4])
    monkeypatch.setattr(SliceSource, "__getitem__", lambda *_: pytest.fail("read"))
    monkeypatch.setattr(volumetric, "available_memory", lambda: 28 * 26 - 1.0)
    with pytest.raises(InputError, match="for 1 of the slices of 'volume'"):
        segment_volume(solid_model, volume)
    with pytest.raises(InputError, match="for 1 of the slices of 'volume'"):
        spwnet.train(volume, settings=solid_model.settings, frames="auto")


def test_frames_of_a_volume_as_an_array(solid_model, volume):
    model = spwnet.train(volume, settings=solid_model.settings, frames=np.array([3, 9]))
    assert [image["name"] for image in model.info["images"]] == ["volume_z_0003", "volume_z_0009"]
    slices = make_settings("instant", overrides={**SOLID, "volumes.mode": "slices"})
    assert len(spwnet.train(volume, settings=slices, frames=np.array([3, 9])).info["images"]) == 2


# Surfaces


def test_surfaces_of_classes_that_do_not_occur_are_left_out(solid_model, volume, tmp_path, caplog):
    labels = LabelSettings(classes=3, merge=((0, 2),))
    summary = segment_volume(solid_model, volume, tmp_path, block=40, labels=labels, meshes=[1, 2]).summary
    assert "2" not in summary["classes"]
    assert "no surface of class 2, which does not occur" in caplog.text
    assert (tmp_path / "class_1.stl").exists()
    assert not (tmp_path / "class_2.stl").exists()


def test_a_surface_that_cannot_be_written_leaves_the_job_to_be_resumed(solid_model, volume, tmp_path):
    (tmp_path / "class_1.stl").mkdir()
    with pytest.raises(OutputError, match=r"class_1\.stl, but there is a folder of this name"):
        segment_volume(solid_model, volume, tmp_path, block=40, meshes=[1], overwrite=True)
    assert not (tmp_path / "segmentation.json").exists()
    (tmp_path / "class_1.stl").rmdir()
    segment_volume(solid_model, volume, tmp_path, block=40, meshes=[1], resume=True)
    (tmp_path / "class_1.stl").unlink()
    (tmp_path / "class_1.stl").mkdir()
    with pytest.raises(OutputError, match="there is a folder of this name"):
        segment_volume(solid_model, volume, tmp_path, block=40, meshes=[1], resume=True)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_volume_of_one_slice_is_resumed_and_recut(tmp_path, compressed):
    volume = open_volume(
        phantom((1, 28, 26)), spacing=SPACING if compressed else None, unit="mm" if compressed else None
    )
    model = spwnet.train(volume, settings=make_settings("instant", overrides=SOLID))
    first = segment_volume(model, volume, tmp_path / "out")
    with_mesh = segment_volume(
        model, volume, tmp_path / "out", resume=True, meshes=[int(min(first.summary["classes"]))]
    )
    assert with_mesh.summary == json.loads(json.dumps(first.summary))
    spwnet.recut(tmp_path / "out", tmp_path / "two", classes=2)
    assert labels_of(tmp_path / "two").shape == (1, 28, 26)


def test_a_finished_job_that_needs_no_worker_asks_for_none(solid_model, volume, expected, tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    with monkeypatch.context() as patch:
        patch.setattr(volumesegmenting, "write_results", lambda *_, **__: pytest.fail("crash"))
        with pytest.raises(pytest.fail.Exception):
            segment_volume(solid_model, volume, tmp_path, block=BLOCK)
    segment_volume(solid_model, volume, tmp_path, block=BLOCK, resume=True, scheduler="tcp://127.0.0.1:1")
    np.testing.assert_array_equal(labels_of(tmp_path), expected)


# Kinds of volumes and models


def test_channels_of_different_kinds():
    """A volume of counts and one of 0…1 as two channels, in one model."""
    values = phantom(channels=2)
    joined = join_channels([open_volume(values[..., 0].astype(np.uint16) * 100), open_volume(values[..., 1] / 255.0)])
    model = spwnet.train(joined, settings=make_settings("instant", overrides=SOLID))
    assert model.normalisation.high[0] > 10_000 > 1 >= model.normalisation.high[1]
    labels = segment_volume(model, joined, block=BLOCK).labels
    plain = open_volume(values)
    same = spwnet.train(plain, settings=make_settings("instant", overrides=SOLID))
    assert np.mean(labels == segment_volume(same, plain).labels) > 0.99


@pytest.mark.parametrize("mode", ["slices", "images"])
def test_a_model_of_images_labels_a_volume_slice_by_slice(tmp_path, mode, monkeypatch):
    volume = open_volume(phantom((10, 28, 26)))
    settings = make_settings("instant", overrides={**SOLID, "volumes.mode": "slices"})
    training = volume if mode == "slices" else [volume.read((slice(z, z + 1),) + (slice(None),) * 2)[0] for z in (3, 9)]
    model = spwnet.train(training, settings=settings)
    assert not model.solid
    slices = spwnet.segment(model, SliceSource(volume)).labels
    result = segment_volume(model, volume, tmp_path, workers=2)
    np.testing.assert_array_equal(labels_of(tmp_path), np.stack(slices))
    assert json.loads((tmp_path / "segmentation.json").read_text())["block"] == [8, 28, 26]
    assert result.summary["classes"]
    made = counting(monkeypatch)
    # Of each slice all at once, whatever is said of its sides.
    np.testing.assert_array_equal(segment_volume(model, volume, block=(5, 14, 26)).labels, np.stack(slices))
    assert sorted(made) == [(slice(z, z + 5), slice(0, 28), slice(0, 26)) for z in (0, 5)]


def test_a_model_of_a_volume_refuses_images(solid_model, pictures):
    with pytest.raises(InputError, match="expected a volume for this model, which was trained on one, but got images"):
        spwnet.segment(solid_model, [picture[..., 0] for picture in pictures])


# Dask


@posix
def test_worker_processes_equal_threads_though_one_is_killed(solid_model, tmp_path):
    volume = open_volume(phantom((150, 24, 24)))
    segment_volume(solid_model, volume, tmp_path / "threads", block=12)
    killed = []

    def kill(state):
        if not killed and list((tmp_path / "dask" / "blocks").glob("*.block")):
            workers = [
                child for child in psutil.Process().children(recursive=True)
                if any("spawn_main" in part for part in child.cmdline())
            ]  # fmt: skip
            assert len(workers) == 2
            workers[0].send_signal(signal.SIGKILL)
            gone, _ = psutil.wait_procs(workers[:1], timeout=5)
            assert gone
            killed.append(state.done)

    segment_volume(solid_model, volume, tmp_path / "dask", block=12, workers=2, scheduler="processes", on_progress=kill)
    assert killed
    assert killed[0] < 52 - 4  # the rest was made after a worker died
    assert (tmp_path / "dask" / "labels.tif").stat().st_size > 1000
    np.testing.assert_array_equal(labels_of(tmp_path / "dask"), labels_of(tmp_path / "threads"))


def test_a_scheduler_by_its_address(solid_models, volume, tmp_path):
    model = solid_models["default", 1]
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0", protocol="tcp"
    ) as cluster:
        address = cluster.scheduler_address
        assert address.startswith("tcp://")
        segment_volume(model, volume, tmp_path / "out", block=BLOCK, scheduler=address)
    np.testing.assert_array_equal(labels_of(tmp_path / "out"), segment_volume(model, volume).labels)


def test_what_is_lost_with_the_last_worker_is_given_out_again(solid_model, volume, expected, tmp_path, caplog):
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0", protocol="tcp"
    ) as cluster:

        def replace_worker(state):
            seen.append(state.done)
            if len(seen) == 3:
                cluster.sync(cluster.workers[0].close, nanny=False)
                cluster.scale(2)

        seen = []
        segment_volume(
            solid_model, volume, tmp_path, block=BLOCK, scheduler=cluster.scheduler_address, on_progress=replace_worker
        )
    assert "workers died (1 of 10 times)" in caplog.text
    assert seen == list(range(1, 28))
    np.testing.assert_array_equal(labels_of(tmp_path), expected)


def test_workers_that_come_later_are_waited_for(solid_model, volume, expected, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(volumesegmenting, "CONNECT_SECONDS", 1)
    with distributed.LocalCluster(
        n_workers=0, processes=False, dashboard_address="127.0.0.1:0", protocol="tcp"
    ) as cluster:
        timer = threading.Timer(2, cluster.scale, [1])
        timer.start()
        segment_volume(solid_model, volume, tmp_path, block=BLOCK, scheduler=cluster.scheduler_address)
        timer.join()
    assert "waiting for workers" in caplog.text
    np.testing.assert_array_equal(labels_of(tmp_path), expected)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "process", "http://127.0.0.1:1"])
def test_a_scheduler_that_is_not_there(solid_model, volume, tmp_path, monkeypatch, address):
    monkeypatch.setattr(volumesegmenting, "CONNECT_SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(SettingsError, match=rf"expected a Dask scheduler at '{address}', but: .*; check the address"):
        segment_volume(solid_model, volume, tmp_path, scheduler=address)
    assert time.monotonic() - start < 25
    assert list(tmp_path.iterdir()) == []


def test_a_scheduler_that_is_lost():
    from distributed.comm.core import CommClosedError

    with (
        pytest.raises(OutputError, match="the connection to it was lost: gone; start it again, and go on by"),
        volumesegmenting._while_connected("tcp://127.0.0.1:1"),
    ):
        raise CommClosedError("gone")


def test_what_a_worker_cannot_read_is_no_fault_of_the_scheduler(solid_model, tmp_path):
    values = phantom((40, 12, 12)).astype(np.float32)
    values[3, 3, 4] = np.inf
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0", protocol="tcp"
        ) as cluster,
        pytest.raises(InputError, match=r"NaN or infinite, the first at \(3, 3, 4\)"),
    ):
        segment_volume(solid_model, open_volume(values), tmp_path, block=20, scheduler=cluster.scheduler_address)


def test_without_dask_the_remedy_is_told(solid_model, volume, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SettingsError, match=r"pip install 'spwnet\[dask\]'"):
        segment_volume(solid_model, volume, tmp_path, scheduler="processes")


def test_tiff_of_many_classes(tmp_path):
    """300 classes need 16 bits, of the blocks and of what becomes of them."""
    overrides = {**SOLID, "codebook.finest": 300, "labels.classes": 300, "volumes.size": 4}
    volume = open_volume(phantom())
    model = spwnet.train(volume, settings=make_settings("instant", overrides=overrides))
    segment_volume(model, volume, tmp_path, block=15)
    stored = tifffile.imread(tmp_path / "labels.tif")
    assert stored.dtype == np.uint16
    assert stored.max() > 255
    np.testing.assert_array_equal(stored, segment_volume(model, volume).labels)
