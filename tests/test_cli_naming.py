"""`spwnet classes`: classes merged, named and cleaned in words, and used for what is segmented."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import spwnet
from spwnet import cli
from spwnet.gallery import read_gallery
from spwnet.naming import read_classes
from spwnet.presets import make_settings
from spwnet.runs import Run
from tests.conftest import TINY


@pytest.fixture
def run(folder, tmp_path):
    """A run of six finest classes."""
    settings = make_settings("instant", overrides={**TINY, "codebook.finest": 6, "labels.classes": 4})
    spwnet.train(folder, tmp_path / "run", settings=settings, frames=[1, 3])
    return tmp_path / "run"


def say(capsys, *arguments, status=0):
    """What a command prints, of it all that a person reads."""
    assert cli.main([str(a) for a in arguments]) == status
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.out if status == 0 else " ".join(printed.err.split())


def test_classes_are_shown_before_anything_changes(run, capsys):
    lines = say(capsys, "classes", run).splitlines()
    assert lines[0].split() == ["id", "area", "colour", "finest", "name"]
    assert len(lines) == 5
    assert sum(float(line.split()[1].rstrip("%")) for line in lines[1:]) == pytest.approx(100, abs=0.3)
    assert not (run / "classes.toml").exists()


def test_what_is_named_is_segmented(run, folder, tmp_path, capsys):
    say(capsys, "classes", run, "cut", 5)
    say(capsys, "classes", run, "merge", "0,2,3", "--name", "ground", "--colour", "#102030")
    say(capsys, "classes", run, "background", "ground")
    shown = say(capsys, "classes", run, "change", 1, "--name", "sky", "--fill-holes", 7, "--keep-largest")
    assert "ground (background)" in shown
    assert "sky: fill_holes 7, keep_largest" in shown
    file = run / "classes.toml"
    classes = read_classes(file)
    assert [(one.id, one.name) for one in classes.classes] == [(0, "ground"), (1, "sky"), (4, "class 4")]

    say(capsys, "segment", run, folder, "--out", tmp_path / "plain", "--classes", 6)
    say(capsys, "classes", run, "change", "sky", "--fill-holes", 0, "--no-keep-largest")
    say(capsys, "segment", run, folder, "--out", tmp_path / "named", "--classes", file)
    for path in sorted((tmp_path / "plain" / "labels").iterdir()):
        finest = np.asarray(Image.open(path))
        found = np.asarray(Image.open(tmp_path / "named" / "labels" / path.name))
        np.testing.assert_array_equal(found, classes.table()[finest])
    described = json.loads((tmp_path / "named" / "segmentation.json").read_text())
    assert described["classes"]["0"]["name"] == "ground"
    assert described["classes"]["0"]["colour"] == "#102030"
    assert described["labels"]["named"][1]["name"] == "sky"
    assert described["tree"] is None
    # the background is seen as it is
    overlay = np.asarray(Image.open(tmp_path / "named" / "overlays" / "frame_01.jpg")).astype(int)
    plain = np.asarray(Image.open(folder / "frame_01.png").convert("RGB"))
    labels = np.asarray(Image.open(tmp_path / "named" / "labels" / "frame_01.png"))
    assert np.abs(overlay - plain)[labels == 0].mean() < np.abs(overlay - plain)[labels != 0].mean() / 2


def test_undo_goes_back_step_by_step(run, capsys):
    say(capsys, "classes", run, "merge", "0,1", "--name", "one")
    say(capsys, "classes", run, "split", "one")
    first = (run / "classes.toml").read_text()
    # nothing changes, so there is nothing more to undo
    say(capsys, "classes", run, "change", "one", "--name", "one")
    assert (run / "classes.toml").read_text() == first
    assert say(capsys, "classes", run, "undo").startswith("undone")
    assert [one.name for one in read_classes(run / "classes.toml").classes] == ["one", "class 2", "class 3"]
    say(capsys, "classes", run, "undo")
    assert not (run / "classes.toml").exists()
    assert "to undo, but there is none" in say(capsys, "classes", run, "undo", status=1)
    say(capsys, "classes", run, "cut", 2)
    assert len(say(capsys, "classes", run, "reset").splitlines()) == 6


def test_points_and_scribbles(run, tmp_path, capsys):
    shown = read_gallery(Run(run).gallery)
    first = shown.exhibits[0]
    places = {k: np.argwhere(first.labels == k)[0] for k in np.unique(first.labels)[:2]}
    (top, bottom), (left, right) = first.region
    height, width = first.labels.shape
    marks = np.zeros((bottom, right), np.uint8)
    table = tmp_path / "points.csv"
    lines = ["image,row,column,name"]
    for number, (y, x) in enumerate(places.values(), start=1):
        row = top + -(-int(y) * (bottom - top) // height)
        column = left + -(-int(x) * (right - left) // width)
        lines.append(f"{first.name},{row},{column},name {number}")
        marks[row, column] = number
    table.write_text("\n".join(lines))
    say(capsys, "classes", run, "points", table)
    by_points = read_classes(run / "classes.toml")
    assert [one.name for one in by_points.classes] == ["name 1", "name 2"]
    assert [by_points.table()[k] for k in places] == [0, 1]
    (tmp_path / "scribbles").mkdir()
    Image.fromarray(marks).save(tmp_path / "scribbles" / f"{first.name}.png")
    say(capsys, "classes", run, "reset")
    say(capsys, "classes", run, "scribbles", tmp_path / "scribbles", "--name", "name 1,name 2")
    assert read_classes(run / "classes.toml") == by_points


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["merge"], "expected classes by id or name for 'merge', but got none"),
        (["merge", "0,nine"], "expected one of the classes 0 (class 0)"),
        (["split", "0,1"], "expected one class for 'split', but got '0,1'"),
        (["cut", "many"], "expected a number of classes for 'cut', but got 'many'"),
        (["cut", "9"], "expected 1 to 6 classes"),
        (["change", "0"], "expected something to change"),
        (["change", "0", "--colour", "blue"], "'colour': string should match pattern"),
        (["change", "0", "--remove-to", "sky"], "but got 'sky'"),
        (["split", "0", "--name", "x"], "expected no --name with 'split'"),
        (["points", "none.csv"], "expected a table of points at none.csv"),
        (["points"], "expected a table of points for 'points'"),
    ],
)
def test_what_cannot_be_done_changes_nothing(run, capsys, arguments, message):
    assert message in say(capsys, "classes", run, *arguments, status=1)
    assert not (run / "classes.toml").exists()


def test_classes_of_another_run_are_refused(run, folder, tmp_path, capsys):
    say(capsys, "classes", run, "cut", 3)
    other = tmp_path / "other"
    settings = make_settings("instant", overrides={**TINY, "codebook.finest": 6, "labels.classes": 4, "seed": 5})
    spwnet.train(folder, other, settings=settings, frames=[2])
    out = ["--out", tmp_path / "out", "--classes", run / "classes.toml"]
    assert "but they were made for another one" in say(capsys, "segment", other, folder, *out, status=1)
    assert "expected either a file of classes by name or --merge" in say(
        capsys, "segment", run, folder, *out, "--merge", "0,1", status=1
    )
    assert "expected a file of classes at nowhere, but there is none" in say(
        capsys, "segment", run, folder, *out[:2], "--classes", "nowhere", status=1
    )
    assert not (tmp_path / "out").exists()


def test_classes_that_wait_are_mentioned(run, folder, tmp_path, capsys):
    say(capsys, "classes", run, "cut", 3)
    assert cli.main(["segment", str(run), str(folder), "--out", str(tmp_path / "out")]) == 0
    assert "classes.tomlisnotused" in "".join(capsys.readouterr().err.split())


def test_training_anew_forgets_the_names(run, folder, capsys):
    say(capsys, "classes", run, "cut", 3)
    spwnet.train(folder, run, settings=make_settings("instant", overrides=TINY), frames=[1], overwrite=True)
    assert not (run / "classes.toml").exists()
    assert not (run / "classes.jsonl").exists()


def test_what_is_wrong_is_told_before_anything_is_undone(run, capsys):
    say(capsys, "classes", run, "merge", "0,1", "--name", "both")
    before = (run / "classes.toml").read_text()
    assert "expected no --name with 'undo'" in say(capsys, "classes", run, "undo", "--name", "x", status=1)
    for action in ("show", "undo", "reset"):
        assert f"expected nothing after '{action}', but got '3'" in say(capsys, "classes", run, action, 3, status=1)
    assert (run / "classes.toml").read_text() == before


@pytest.mark.parametrize("arguments", [["cut", "²"], ["merge", "²,1"], ["merge", "0,1", "--colour", "red"]])
def test_what_is_no_number_or_colour_is_told(run, capsys, arguments):
    assert "error: expected" in say(capsys, "classes", run, *arguments, status=1)
    assert not (run / "classes.toml").exists()
