"""What a run keeps of its training images: measures of the finest classes, and files that come back."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from spwnet import gallery as module
from spwnet.errors import InputError, RunError
from spwnet.gallery import make_gallery, read_gallery, write_gallery


@pytest.fixture
def shown():
    rng = np.random.default_rng(0)
    labels = [np.zeros((20, 30), np.int32), np.full((10, 12), 3, np.int32)]
    labels[0][5:14, 10:25] = 1
    pictures = [np.repeat(np.repeat(rng.integers(0, 255, (h // 2, w // 2, 3), np.uint8), 2, 0), 2, 1)
                for h, w in ((20, 30), (10, 12))]  # fmt: skip
    values = [np.stack([found * 100.0, np.ones(found.shape)], axis=-1) for found in labels]
    doubts = [found.astype(np.float32) / 4 for found in labels]
    return make_gallery(["a", "b"], pictures, labels, values, doubts, [((0, 40), (0, 60)), ((5, 25), (3, 27))], 5)


def test_measures_of_the_finest_classes(shown):
    assert [entry["pixels"] for entry in shown.classes] == [600 - 9 * 15, 9 * 15, 0, 120, 0]
    assert [entry["means"] for entry in shown.classes] == [[0, 1], [100, 1], None, [300, 1], None]
    assert [entry["uncertainty"] for entry in shown.classes] == [0, 0.25, None, 0.75, None]


def test_the_size_of_a_stored_image_comes_back(shown, tmp_path):
    exhibits = tuple(replace(one, stored=size) for one, size in zip(shown.exhibits, ((40, 60), None), strict=True))
    write_gallery(tmp_path, replace(shown, exhibits=exhibits))
    assert [one.stored for one in read_gallery(tmp_path).exhibits] == [(40, 60), None]


def test_files_of_a_gallery_come_back(shown, tmp_path):
    write_gallery(tmp_path / "gallery", shown)
    again = read_gallery(tmp_path / "gallery")
    assert again.classes == shown.classes
    for before, after in zip(shown.exhibits, again.exhibits, strict=True):
        assert (after.name, after.region) == (before.name, before.region)
        np.testing.assert_array_equal(after.labels, before.labels)
        np.testing.assert_allclose(after.uncertainty, before.uncertainty, atol=0.5 / 255)
        # JPEG at quality 90
        assert np.abs(after.picture.astype(int) - before.picture).mean() < 20


def test_a_gallery_that_says_more_of_its_classes_is_read(shown, tmp_path):
    write_gallery(tmp_path, shown)
    path = tmp_path / "gallery.json"
    path.write_text(json.dumps(first_class(json.loads(path.read_text()), place=[0, 9, 14])))
    assert read_gallery(tmp_path).classes[0]["place"] == [0, 9, 14]


def test_an_image_longer_than_a_jpeg_is_thinned(tmp_path):
    shape = (2, 66_000)
    shown = make_gallery(["line"], [np.zeros((*shape, 3), np.uint8)], [np.zeros(shape, np.int32)],
                         [np.zeros((*shape, 1))], None, [((0, 2), (0, 66_000))], 1)  # fmt: skip
    write_gallery(tmp_path, shown)
    assert read_gallery(tmp_path).exhibits[0].labels.shape == (1, 33_000)


def test_large_images_are_thinned_and_only_a_few_are_kept(monkeypatch):
    monkeypatch.setattr(module, "MOST_PIXELS", 100)
    labels = [np.full((20, 30), k, np.int32) for k in range(12)]
    names = [f"i{k}" for k in range(12)]
    shown = make_gallery(names, [np.zeros((20, 30, 3), np.uint8)] * 12, labels, [np.zeros((20, 30, 1))] * 12, None,
                         [((0, 20), (0, 30))] * 12, 12)  # fmt: skip
    assert len(shown.exhibits) == module.MOST_SHOWN
    assert (shown.exhibits[0].name, shown.exhibits[-1].name) == ("i0", "i11")
    assert shown.exhibits[0].labels.shape == (7, 10)
    assert sum(entry["pixels"] for entry in shown.classes) == 12 * 600


def test_places_of_the_stored_image(shown):
    rows, columns = shown.exhibits[0].locate([0, 39], [1, 59])
    assert rows.tolist() == [0, 19]
    assert columns.tolist() == [0, 29]
    assert [int(one) for one in shown.exhibits[1].locate(24, 3)] == [9, 0]
    with pytest.raises(InputError, match="expected places in rows 5 to 24 and columns 3 to 26 of 'b', but got 27"):
        shown.exhibits[1].locate(5, 27)


def damaged(described, **changes):
    return {**described, **changes}


def first_class(described, **changes):
    first, *rest = described["classes"]
    return {**described, "classes": [{**first, **changes}, *rest]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: None, "expected what the run shows of its training images"),
        (lambda d: "no json", "expected a readable"),
        (lambda d: damaged(d, format=2), "expected a gallery of format 1 .* but got 2; update spwnet"),
        (lambda d: damaged(d, images=[]), "no image"),
        (lambda d: damaged(d, classes=d["classes"][:3]), "classes of 'b' are not among 3"),
        (lambda d: first_class(d, pixels="x"), "measures of class 0 are none"),
        (lambda d: first_class(d, means=[float("nan")]), "measures of class 0"),
        (lambda d: first_class(d, uncertainty="x"), "measures of class 0"),
        (lambda d: damaged(d, classes=[{}] * 5), "pixels"),
        (lambda d: damaged(d, images=[{**d["images"][0], "shape": [3, 3]}]), r"'a' is \(3, 3\), but its files are"),
        (lambda d: damaged(d, images=[{**d["images"][0], "region": [[4, 4], [0, 2]]}]), "shows rows 4 to 4"),
        (lambda d: damaged(d, images=[{**d["images"][0], "region": 3}]), "training images of a run"),
        (lambda d: damaged(d, images=[{**d["images"][0], "stored": [39, 60]}]), "columns to 60 of 39×60 pixels"),
        (lambda d: damaged(d, images=[{**d["images"][0], "stored": 3}]), "training images of a run"),
    ],
)  # fmt: skip
def test_damaged_galleries(shown, tmp_path, change, message):
    write_gallery(tmp_path, shown)
    path = tmp_path / "gallery.json"
    described = change(json.loads(path.read_text()))
    if described is None:
        path.unlink()
    else:
        path.write_text(described if isinstance(described, str) else json.dumps(described))
    with pytest.raises(RunError, match=message):
        read_gallery(tmp_path)


def test_a_picture_that_is_missing(shown, tmp_path):
    write_gallery(tmp_path, shown)
    (tmp_path / "01_labels.png").unlink()
    with pytest.raises(RunError, match="expected the training images of a run"):
        read_gallery(tmp_path)
