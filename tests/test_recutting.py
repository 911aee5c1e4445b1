from __future__ import annotations

import json

import numpy as np
import PIL.Image
import pytest

import spwnet
from spwnet import cli
from spwnet.errors import InputError, OutputError, SettingsError
from spwnet.images import label_image, open_images
from spwnet.presets import make_settings
from tests.conftest import TINY, picture


@pytest.fixture(scope="module")
def model():
    settings = make_settings(overrides={**TINY, "codebook": {"finest": 12, "evidence": "handmade"}})
    return spwnet.train([picture(seed) for seed in range(3)], settings=settings)


@pytest.fixture
def segmented(model, folder, tmp_path):
    labels = model.settings.labels.model_copy(update={"classes": 9})
    spwnet.segment(model, folder, tmp_path / "nine", labels=labels, uncertainty=True)
    return tmp_path / "nine"


def read(folder):
    source = open_images(folder / "labels")
    return {name: label_image(source, i) for i, name in enumerate(source.names)}


def test_recutting_equals_segmenting_again(model, segmented, folder, tmp_path):
    before = {file: file.read_bytes() for file in segmented.rglob("*") if file.is_file()}
    assert spwnet.recut(segmented, tmp_path / "four", classes=4) == tmp_path / "four"
    labels = model.settings.labels.model_copy(update={"classes": 4})
    spwnet.segment(model, folder, tmp_path / "again", labels=labels)
    ours, theirs = read(tmp_path / "four"), read(tmp_path / "again")
    assert list(ours) == list(theirs) == ["frame_01", "frame_02", "frame_03"]
    for name, cut in ours.items():
        np.testing.assert_array_equal(cut, theirs[name])
    one, two = (json.loads((tmp_path / name / "segmentation.json").read_text()) for name in ("four", "again"))
    for key in ("classes", "images", "tree", "labels", "model", "settings", "seed"):
        assert one[key] == two[key], key
    assert {file: file.read_bytes() for file in segmented.rglob("*") if file.is_file()} == before
    # and a cut can be cut again
    spwnet.recut(tmp_path / "four", tmp_path / "two", classes=2)
    assert set(np.unique(np.concatenate([image.ravel() for image in read(tmp_path / "two").values()]))) == {0, 1}


def test_classes_that_are_left_keep_their_ids(segmented, tmp_path):
    before = read(segmented)
    for k in (8, 3, 1):
        spwnet.recut(segmented, tmp_path / str(k), classes=k)
        for name, cut in read(tmp_path / str(k)).items():
            stays = before[name] < k
            np.testing.assert_array_equal(cut[stays], before[name][stays])
            assert cut.max() < k


def test_what_cannot_be_cut_is_told(segmented, tmp_path):
    with pytest.raises(SettingsError, match=r"expected 1 to 9 classes.* but got 10; segment again with more"):
        spwnet.recut(segmented, tmp_path / "x", classes=10)
    with pytest.raises(OutputError, match="another folder than the segmentation itself"):
        spwnet.recut(segmented, segmented, classes=3, overwrite=True)
    with pytest.raises(InputError, match=r"expected a segmentation with a segmentation.json at .* but there is none"):
        spwnet.recut(tmp_path, tmp_path / "x", classes=3)
    file = segmented / "segmentation.json"
    whole = json.loads(file.read_text())
    for changes, message in [
        ({"complete": False}, "expected a complete segmentation"),
        ({"tree": None}, "expected a segmentation with a tree of classes"),
        ({"tree": None}, "but its classes were named, or not found by codebook; segment again"),
        ({"tree": {"parents": [0, 0], "heights": 3}}, "TypeError"),
        ({"tree": {"parents": [0, 0], "heights": [1]}}, "lists of different lengths"),
        ({"labels": 3}, "its labels or images are no tables"),
        ({"images": {"frame_01": 3}}, "its labels or images are no tables"),
        ({"volume": {"spacing": None}, "summary": {"classes": {"0": {}}}}, "KeyError.'unit'"),
        ({"tree": {"parents": [0, 1]}}, "expected a tree of classes"),
        ({"tree": {"parents": [[0]]}}, "expected a tree of classes"),
        ({"images": {"../evil": {"areas": {}}}}, "expected plain names"),
        ({"images": {**whole["images"], "frame_09": {"areas": {}}}}, "expected a label image of 'frame_09'"),
        ({"tree": {"parents": [0, 0], "heights": [1, 1]}}, "expected class ids below 2 in 'frame_01'"),
    ]:
        file.write_text(json.dumps({**whole, **changes}))
        with pytest.raises((InputError, OutputError), match=message):
            spwnet.recut(segmented, tmp_path / "x", classes=1)
        assert not (tmp_path / "x" / "segmentation.json").exists()
    file.write_text("{")
    with pytest.raises(InputError, match="expected a segmentation with a tree"):
        spwnet.recut(segmented, tmp_path / "x", classes=1)


def test_the_command(segmented, tmp_path, capsys):
    assert cli.main(["recut", str(segmented), "--classes", "3", "--out", str(tmp_path / "three")]) == 0
    assert "3 classes" in capsys.readouterr().out
    assert max(cut.max() for cut in read(tmp_path / "three").values()) == 2
    assert cli.main(["recut", str(segmented), "--classes", "3", "--out", str(tmp_path / "three")]) == 1
    assert "--overwrite" in capsys.readouterr().err
    arguments = ["recut", str(segmented), "--classes", "2", "--out", str(tmp_path / "three"), "--overwrite"]
    assert cli.main(arguments) == 0


def test_a_video_is_cut_to_label_images(model, folder, segmented, tmp_path):
    labels = model.settings.labels.model_copy(update={"classes": 9, "steady": False})
    spwnet.segment(model, folder, tmp_path / "video", labels=labels, suffix=".mp4")
    spwnet.recut(tmp_path / "video", tmp_path / "of video", classes=4)
    spwnet.recut(segmented, tmp_path / "of images", classes=4)
    ours, theirs = read(tmp_path / "of video"), read(tmp_path / "of images")
    assert list(ours) == list(theirs)
    for name, cut in ours.items():
        np.testing.assert_array_equal(cut, theirs[name])


@pytest.mark.parametrize("suffix", [".tif", ".zarr", ".h5", ".npy"])
def test_a_volume_is_cut_slice_by_slice(suffix, tmp_path):
    rng = np.random.default_rng(0)
    volume = spwnet.open_volume(rng.integers(0, 200, (12, 24, 20)).astype(np.uint8), spacing=(2, 1, 1))
    settings = make_settings("instant", overrides={"codebook.finest": 8, "volumes.size": 8})
    solid = spwnet.train(volume, settings=settings)
    found = spwnet.segment_volume(
        solid, volume, tmp_path / "all", labels=settings.labels.model_copy(update={"classes": 8}), suffix=suffix
    )
    spwnet.recut(tmp_path / "all", tmp_path / "three", classes=3)
    dataset = "labels/classes" if suffix == ".zarr" else None
    before, after = (
        spwnet.open_volume(tmp_path / name / f"labels{suffix}", dataset=dataset) for name in ("all", "three")
    )
    everything = (slice(None),) * 3
    table = solid.members(settings.labels.model_copy(update={"classes": 3}))
    np.testing.assert_array_equal(after.read(everything), table[before.read(everything)])
    if suffix != ".npy":
        assert after.spacing == (2, 1, 1)
    described = json.loads((tmp_path / "three" / "segmentation.json").read_text())
    assert set(described["summary"]["classes"]) <= {"0", "1", "2"}
    assert sum(one["voxels"] for one in described["summary"]["classes"].values()) == 12 * 24 * 20
    assert (tmp_path / "three" / "fractions.csv").exists()
    assert found.path is not None
    with pytest.raises(SettingsError, match="expected 1 to 8 classes"):
        spwnet.recut(tmp_path / "all", tmp_path / "more", classes=9)


def test_a_cut_over_an_earlier_one_is_complete_or_says_that_it_is_not(segmented, tmp_path):
    target = tmp_path / "x"
    spwnet.recut(segmented, target, classes=3)
    for part in ("overlays", "uncertainty"):
        (target / part).mkdir()
        (target / part / "frame_01.png").touch()
    (target / "labels" / "frame_09.tif").touch()
    (target / "labels" / "mine.png").touch()
    summary = json.loads((target / "segmentation.json").read_text())
    summary["images"]["frame_09"] = {"areas": {}}
    (target / "segmentation.json").write_text(json.dumps(summary))
    last = segmented / "labels" / "frame_03.png"
    whole = last.read_bytes()
    PIL.Image.fromarray(np.full((40, 52), 200, np.uint8)).save(last)
    with pytest.raises(InputError, match="expected class ids below 9 in 'frame_03'"):
        spwnet.recut(segmented, target, classes=2, overwrite=True)
    assert not (target / "segmentation.json").exists()
    last.write_bytes(whole)
    spwnet.recut(segmented, target, classes=2, overwrite=True)
    found = sorted(str(file.relative_to(target)) for file in target.rglob("*") if file.is_file())
    names = [f"labels/frame_0{k}.png" for k in (1, 2, 3)]
    assert found == [*names, "labels/mine.png", "segmentation.json"]
    (target / "segmentation.json").write_text("[]")
    spwnet.recut(segmented, target, classes=2, overwrite=True)
