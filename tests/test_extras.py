"""What only some users need is an extra: all else works without it, and what does not says which one to install."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from spwnet.runs import RUN_FORMAT
from tests.conftest import picture

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "tests" / "data" / f"run_format_{RUN_FORMAT}"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
CORE = {re.split("[<>=]", one)[0] for one in PROJECT["dependencies"]}
NO_COMMANDS = {"dev", "docs", "napari"}
"""Extras without which there is nothing that could be asked for on the command line."""

COMMANDS = {
    "tiff": ["train jpeg.tif --run new", "train jpeg.tif --volume --run new"],
    "video": ["train clip.mp4 --run new", f"segment {RUNS}/images a.png --format video --out new"],
    "hdf5": ["train scan.h5 --run new", f"segment {RUNS}/volume {RUNS}/volume.tif --volume --format h5 --out new"],
    "zarr": ["train scan.zarr --run new", f"segment {RUNS}/volume {RUNS}/volume.tif --volume --format zarr --out new"],
    "medical": ["train scan.nii.gz --run new", "train scan.mrc --run new"],
    "dask": [f"segment {RUNS}/volume {RUNS}/volume.tif --volume --scheduler processes --out new"],
    "deploy": [f"export {RUNS}/images --out new.onnx"],
    "tensorboard": ["train a.png --run new --tensorboard events"],
}
"""Of each extra, what needs it."""

WITHOUT = [
    "demo --set training={epochs=1,batches=1} --set images.max_pixels=9000 --out demonstration",
    f"segment {RUNS}/images a.png --out labels",
    f"segment {RUNS}/volume {RUNS}/volume.tif --volume --out volume",
    "regions a.png --out pieces --no-learned",
]
"""What needs no extra."""

CORE_ALONE = """
import contextlib, io, json, sys

missing, commands = json.load(sys.stdin)
sys.modules.update(dict.fromkeys(missing))
from spwnet import cli
said = {}
for command in commands:
    with contextlib.redirect_stderr(io.StringIO()) as heard, contextlib.redirect_stdout(io.StringIO()):
        status = cli.main(command.split())
    said[command] = status, " ".join(heard.getvalue().split())
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """{command: (exit status, what it said)} in a Python where no extra is installed."""
    folder = tmp_path_factory.mktemp("core")
    Image.fromarray(picture(0)).save(folder / "a.png")
    page = Image.fromarray(picture(0, channels=1)[..., 0])
    page.save(folder / "jpeg.tif", compression="jpeg", save_all=True, append_images=[page] * 5)
    for name in ("clip.mp4", "scan.h5", "scan.nii.gz", "scan.mrc"):
        (folder / name).write_bytes(b"content")
    (folder / "scan.zarr").mkdir()
    (folder / "scan.zarr" / "zarr.json").write_text("{}")
    names = {re.split("[<>=]", one)[0] for extra, all_ in EXTRAS.items() if extra != "dev" for one in all_} - CORE
    commands = [*WITHOUT, *(one for all_ in COMMANDS.values() for one in all_)]
    given = json.dumps([sorted(names | {"dask", "numcodecs"}), commands])
    done = subprocess.run(
        [sys.executable, "-c", CORE_ALONE], input=given, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_each_extra_has_its_commands_here():
    assert set(EXTRAS) - NO_COMMANDS == set(COMMANDS)


@pytest.mark.parametrize("extra", COMMANDS)
def test_without_an_extra_the_message_names_it(said, extra):
    for command in COMMANDS[extra]:
        status, message = said[command]
        assert status == 1, command
        assert f"`pip install 'spwnet[{extra}]'`" in message, command
        assert "Traceback" not in message


@pytest.mark.parametrize("command", WITHOUT, ids=lambda command: command.split()[0])
def test_what_needs_no_extra_goes_without(said, command):
    assert said[command][0] == 0, said[command][1]


def test_developers_have_every_extra():
    """But what only builds the documentation."""
    for extra in set(EXTRAS) - {"dev", "docs"}:
        assert set(EXTRAS[extra]) <= set(EXTRAS["dev"]), extra


def test_readme_and_contributing_name_every_extra():
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md"))
    named = re.findall(r"(?:spwnet|\.)\[([a-z0-9,]+)\]", text)
    assert {name for names in named for name in names.split(",")} == set(EXTRAS)
