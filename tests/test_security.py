"""What SECURITY.md says: every test that it names is there, and what no other file tests."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import spwnet
from spwnet import runs
from spwnet.errors import RunError, SettingsError
from spwnet.gallery import read_gallery
from spwnet.naming import read_classes
from spwnet.presets import make_settings
from tests.conftest import picture

ROOT = Path(__file__).parents[1]


def test_each_threat_has_its_test():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    assert len(named) > 25
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file}::{name}"
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| threat", "| ---"))]
    assert all("test_" in row for row in rows)


def change(path, edit):
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("journal", [False, True])
def test_overwriting_removes_nothing_outside_the_folder(one_step, tmp_path, journal):
    victims = [tmp_path / f"victim{suffix}" for suffix in (".png", ".jpg", ".tif")]
    for victim in victims:
        victim.write_bytes(b"mine")
    out = tmp_path / "out" / "inner"
    spwnet.segment(one_step, [picture(0)], out)
    names = ["../../../victim", str(tmp_path / "victim"), "..", "", "a\0b"]
    entry = {"sha256": "", "areas": {}}
    if journal:
        (out / "images.jsonl").write_text("".join(json.dumps({"name": name, **entry}) + "\n" for name in names))
    else:
        change(out / "segmentation.json", lambda values: values["images"].update(dict.fromkeys(names, entry)))
    spwnet.segment(one_step, [picture(0)], out, resume=True)
    spwnet.segment(one_step, [picture(0)], out, overwrite=True)
    assert all(victim.read_bytes() == b"mine" for victim in victims)
    assert list(json.loads((out / "segmentation.json").read_text())["images"]) == ["image_0000"]


@pytest.mark.parametrize("changes", [{"ch_mul": 4096}, {"n_blocks": 8, "ch_mul": 2048}, {"classes": 65_536}])
def test_a_giant_network_is_refused_before_it_is_made(run, changes, monkeypatch):
    change(run.description, lambda values: values["settings"]["model"].update(changes))
    make, made = runs.make_network, []

    def make_without_memory(*arguments, **keywords):
        assert torch.empty(0).is_meta, "a network of any size is made"
        made.append(make(*arguments, **keywords))
        return made[-1]

    monkeypatch.setattr(runs, "make_network", make_without_memory)
    with pytest.raises(RunError, match=r"weights and run\.json are of different runs"):
        run.load()
    assert [tensor for tensor in made[0].state_dict().values() if not tensor.is_meta] == []


def test_names_of_a_run_lead_nowhere(run, tmp_path):
    """Files of a gallery are numbered; names are only shown."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")

    def rename(values):
        for image in values["images"]:
            image["name"] = f"../../{secret.name}"

    change(run.gallery / "gallery.json", rename)
    change(run.description, rename)
    assert read_gallery(run.gallery).exhibits[0].name == "../../secret.png"
    spwnet.segment(run.load(), [picture(0)], tmp_path / "out")
    page = spwnet.report(run.folder, tmp_path / "report.html").read_text()
    assert "secret" in page
    assert "c2VjcmV0" not in page  # base64 of what is in the file
    assert secret.read_bytes() == b"secret"


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "[" + "a." * 50_000 + "b]\nc = 1", "a = " + "{b = " * 50_000])
def test_deep_nesting_is_refused(tmp_path, run, text):
    (tmp_path / "deep.toml").write_text(text)
    with pytest.raises(SettingsError, match=r"deep\.toml|setting"):
        make_settings("default", tmp_path / "deep.toml")
    with pytest.raises(SettingsError, match=r"deep\.toml"):
        read_classes(tmp_path / "deep.toml")
    for path, read in ((run.description, run.load), (run.gallery / "gallery.json", lambda: read_gallery(run.gallery))):
        path.write_text('{"format": 3, "a": ' + "[" * 200_000)
        with pytest.raises(RunError):
            read()
