from __future__ import annotations

import pytest

from spwnet.config import SETTINGS_VERSION, LabelSettings, Settings
from spwnet.errors import SettingsError
from spwnet.presets import PRESETS, make_settings, parse_settings, setting_names


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid_and_survive_json(preset):
    settings = make_settings(preset)
    assert parse_settings(settings.model_dump(mode="json")) == settings


def test_published_cheetah_holds_the_published_settings():
    settings = make_settings("published-cheetah")
    assert (settings.model.classes, settings.model.ch_mul, settings.model.n_blocks, settings.seed) == (32, 64, 4, 84)
    assert settings.patches.schedule == ((64, 64, 9), (64, 96, 6), (96, 64, 6), (96, 96, 4))
    losses = settings.losses
    assert (losses.image, losses.patches, losses.cut, losses.similarity, losses.continuity) == (0.5, 1, 0, 0.1, 0.1)
    assert (settings.training.epochs, settings.training.batches, settings.training.learning_rate) == (15, 8, 1e-3)
    assert settings.superpixels.count == 12_000


def test_what_is_set_over_a_preset_replaces_its_twin():
    settings = make_settings("published-cheetah", overrides={"patches.sides": [32], "superpixels.size": 20})
    assert settings.patches.schedule is None
    assert settings.superpixels.count is None
    assert make_settings("published-cheetah", overrides={"patches.rows": [0, 9]}).patches.schedule is not None


def test_published_hanyu_draws_patches_from_part_of_the_image():
    patches = make_settings("published-hanyu").patches
    assert (patches.rows, patches.columns) == ((None, -50), (100, None))


def test_preset_then_file_then_overrides(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text('seed = 5\n[images]\nscale = "1/5"\n[model]\nclasses = 8\n')
    settings = make_settings("published-cheetah", file, {"model.classes": 4, "losses": {"cut": 0.5}})
    assert settings.seed == 5
    assert settings.images.scale == pytest.approx(0.2)
    assert settings.images.margin == 10
    assert settings.model.classes == 4
    assert settings.model.ch_mul == 64
    assert settings.losses.cut == 0.5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.clases": 3}, r"unknown setting 'model.clases'. Did you mean 'model.classes'\?"),
        ({"modle": {"classes": 3}}, r"unknown setting 'modle'. Did you mean 'model'\?"),
        ({"qqq": 3}, "unknown setting 'qqq'. `spwnet info --settings` lists all"),
        ({"model.classes": 1}, "'model.classes': input should be greater than or equal to 2, but got 1"),
        ({"images.scale": "1/0"}, "'images.scale': .*but got '1/0'"),
        ({"images.scale": 0}, "'images.scale': .*greater than 0"),
        ({"images.scale": float("nan")}, "'images.scale': input should be .*but got nan"),
        ({"images.axes": "YXQ"}, "expected axes made of Y and X .* but got 'YXQ'"),
        ({"losses.patches": 1}, "expected a patch schedule because `losses.patches` is above 0"),
        ({"losses": {"image": 0, "similarity": 0, "continuity": 0}}, "at least one loss weight above 0"),
        ({"losses.cut": -1}, "'losses.cut': input should be greater than or equal to 0, but got -1"),
        ({"patches": {"sides": [64], "schedule": [[1, 1, 1]]}}, "either `schedule` or `sides`, but got both"),
        ({"patches.sides": [0]}, "sides of at least 1 pixel"),
        ({"patches.schedule": [[8, 0, 1]]}, r"\(height, width, count\) of at least 1 each"),
        ({"superpixels.labels": "folder"}, "expected `superpixels.method = 'labels'`"),
        ({"labels.merge": [[0, 1], [1, 2]]}, "class 1 twice"),
        ({"labels.merge": [[-1, 1]]}, "class ids of at least 0"),
        ({"labels.merge": [[0, 32]]}, "class ids below 32 under `labels`, but got 32"),
        ({"labels.reassign": [{"source": 1, "smaller_than": 9, "to": 70}]}, "class ids below 32 .* but got 70"),
        ({"labels.classes": 4, "labels.merge": [[0, 30]]}, "class ids below 4 under `labels`, but got 30"),
        ({"labels.classes": 33}, "at most `codebook.finest = 32` classes, but got 33"),
        ({"version": SETTINGS_VERSION + 1}, "or older, but got format 2; update spwnet"),
        ({"training.epochs": "many"}, "'training.epochs': .* but got 'many'"),
    ],
)
def test_mistakes_are_named(overrides, message):
    with pytest.raises(SettingsError, match=message):
        make_settings(overrides=overrides)


def test_unknown_preset_is_named_with_the_nearest():
    with pytest.raises(SettingsError, match=r"but got 'publishd-hanyu'. Did you mean 'published-hanyu'\?"):
        make_settings("publishd-hanyu")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"seed = ", "expected a readable TOML"), (b"\xff\xfe", "expected a readable TOML"),
     (b"a = " + b"[" * 100_000, "expected a readable TOML")],
)  # fmt: skip
def test_unreadable_file(tmp_path, content, message):
    file = tmp_path / "settings.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        make_settings(file=file)


def test_settings_are_frozen_and_every_one_is_described():
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 3
    names = setting_names()
    assert "losses.tau_continuity" in names
    assert all(description.endswith(".") for description in names.values())
    assert LabelSettings().mode == "codebook"


def test_a_union_is_one_demand_on_a_setting_that_there_is():
    with pytest.raises(SettingsError) as caught:
        make_settings(overrides={"labels.steady": "foo"})
    assert str(caught.value).startswith("setting 'labels.steady': input should be a valid boolean")
    assert str(caught.value).endswith(" or 'auto', but got 'foo'")


def test_what_is_without_a_value_can_be_said_in_text(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text('images.axes = "none"\n[patches]\ncrop = "none"\nbudget = "none"\ncolumns = [100, "none"]\n')
    settings = make_settings(file=file, overrides={"superpixels.count": "None"})
    assert (
        settings.patches.crop is settings.patches.budget is settings.superpixels.count is settings.images.axes is None
    )
    assert settings.patches.columns == (100, None)


def test_a_file_that_windows_saved_is_read(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_bytes(b"\xef\xbb\xbfseed = 3\n")
    assert make_settings(file=file).seed == 3


def test_descriptions_are_one_line():
    assert not any("\n" in description for description in setting_names().values())
