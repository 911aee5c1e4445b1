from __future__ import annotations

import json

import numpy as np
import pytest

import spwnet
from spwnet import cli, tuning
from spwnet.errors import OutputError, RunError, SettingsError
from spwnet.images import open_images
from spwnet.presets import make_settings
from tests.conftest import TINY


@pytest.fixture
def quick(monkeypatch):
    """Three variations, all without training; the last is the preset's own."""
    monkeypatch.setattr(tuning, "VARIATIONS", ({}, {"superpixels.size": 40.0}, {"codebook.evidence": "handmade"}))
    return make_settings("instant", overrides=TINY)


def test_the_best_of_the_trials_is_kept(folder, quick, tmp_path):
    seen = []
    model, ranked = spwnet.tune(folder, tmp_path / "t", trials=4, settings=quick, frames=[1, 2], on_trial=seen.append)
    # the third variation is what was given, so the seeds come next
    assert [trial.changes for trial in seen] == [
        {}, {"superpixels.size": 40.0}, {"seed": 1}, {"superpixels.size": 40.0, "seed": 1}
    ]  # fmt: skip
    assert [trial.score for trial in ranked] == sorted((trial.score for trial in seen), reverse=True)
    assert model.info["score"] == ranked[0].score
    assert len(model.info["images"]) == 2
    described = json.loads((tmp_path / "t" / "tuning.json").read_text())
    assert described["best"] == f"trials/{ranked[0].number:02d}"
    assert spwnet.load(tmp_path / "t" / described["best"]).fingerprint == model.fingerprint
    assert [entry["score"] for entry in described["trials"]] == [trial.score for trial in seen]


def test_the_budget_ends_it_and_resuming_goes_on(folder, quick, tmp_path, monkeypatch):
    _, ranked = spwnet.tune(folder, tmp_path / "t", seconds=1e-6, settings=quick)
    assert len(ranked) == 1
    ran = []
    train = tuning.train

    def counted(*arguments, **options):
        model = train(*arguments, **options)
        ran.append(model.info["time"])
        return model

    monkeypatch.setattr(tuning, "train", counted)
    _, ranked = spwnet.tune(folder, tmp_path / "t", trials=2, settings=quick, resume=True)
    assert len(ranked) == 2
    first = json.loads((tmp_path / "t" / "trials" / "00" / "run.json").read_text())
    assert ran[0] == first["time"]
    with pytest.raises(RunError, match="`seed` was 0 and is now 5"):
        spwnet.tune(folder, tmp_path / "t", settings=quick.model_copy(update={"seed": 5}), resume=True)


def test_mistakes_are_told_before_anything_is_written(folder, quick, tmp_path):
    with pytest.raises(SettingsError, match="time budget above 0 seconds, but got 0"):
        spwnet.tune(folder, tmp_path / "t", seconds=0, settings=quick)
    with pytest.raises(SettingsError, match="expected images to tune on, but got a volume"):
        spwnet.tune("scan.h5", tmp_path / "t", settings=quick)
    with pytest.raises(SettingsError, match="expected images to tune on, but got a volume"):
        spwnet.tune(spwnet.open_volume(np.zeros((30, 30, 30), np.uint8)), tmp_path / "t", settings=quick)
    with pytest.raises(SettingsError, match="at least one trial, but got 0"):
        spwnet.tune(folder, tmp_path / "t", trials=0, settings=quick)
    assert not (tmp_path / "t").exists()
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "x").write_text("")
    with pytest.raises(OutputError, match="--overwrite"):
        spwnet.tune(folder, tmp_path / "t", settings=quick)


def test_the_command_shows_the_table(folder, tmp_path, capsys, quick):
    arguments = ["tune", str(folder), "--out", str(tmp_path / "t"), "--trials", "2", "--preset", "instant"]
    arguments += ["--set", "images.scale=1.0", "--set", "superpixels.size=16", "--set", "codebook.finest=4"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "superpixels.size = 40.0" in out
    assert "best: " in out
    rows = [line.split() for line in out.splitlines()[1:3]]
    assert float(rows[0][0]) >= float(rows[1][0])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [{"codebook.evidence": "handmade"}, {"superpixels.size": 12.0}, {"superpixels.size": 32.0},
              {"losses.continuity": 0.3}, {"patches.crop": 256}]),
        ({"codebook.evidence": "handmade"}, [{"superpixels.size": 12.0}, {"superpixels.size": 32.0}]),
        ({"superpixels.method": "none", "codebook.evidence": "handmade"}, []),
        ({"labels.mode": "argmax_of_mean", "superpixels.method": "labels"},
         [{"losses.continuity": 0.3}, {"patches.crop": 256}]),
    ],
)  # fmt: skip
def test_trials_differ(changes, expected):
    found = list(tuning._candidates(make_settings(overrides=changes), 2 * (len(expected) + 1)))
    assert found == [{}, *expected, {"seed": 1}, *({**one, "seed": 1} for one in expected)]


@pytest.mark.parametrize(
    ("side", "changes", "fit"), [(192, {}, True), (193, {}, False), (300, {"images.scale": 0.5}, True)]
)
def test_crops_of_small_images_do_not_differ(side, changes, fit):
    settings = make_settings(overrides=changes)
    source = open_images([np.zeros((10, side), np.uint8)], None)
    assert tuning._all_fit(source, 192, settings) is fit
    found = list(tuning._candidates(settings, 6, no_crops=fit))
    assert ({"patches.crop": 256} in found) is not fit


def test_trials_of_before_that_are_overwritten_are_not_resumed(folder, quick, tmp_path):
    spwnet.tune(folder, tmp_path / "t", trials=2, settings=quick)
    other = quick.model_copy(update={"seed": 5})
    spwnet.tune(folder, tmp_path / "t", trials=1, settings=other, overwrite=True)
    _, ranked = spwnet.tune(folder, tmp_path / "t", trials=2, settings=other, resume=True)
    assert sorted(trial.changes.get("superpixels.size", 0) for trial in ranked) == [0, 40.0]


def test_a_trial_that_was_finished_before_takes_as_long_as_its_training(folder, quick, tmp_path):
    _, (trial,) = spwnet.tune(folder, tmp_path / "t", trials=1, settings=quick)
    description = tmp_path / "t" / "trials" / "00" / "run.json"
    described = json.loads(description.read_text())
    description.write_text(json.dumps({**described, "seconds": 10_000.0}))
    _, ranked = spwnet.tune(folder, tmp_path / "t", seconds=5000, trials=2, settings=quick, resume=True)
    assert [one.number for one in ranked] == [trial.number]
