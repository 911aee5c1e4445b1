"""Every command and snippet of README, CONTRIBUTING and the docs is run, or what it calls is."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from benchmarks import quality
from spwnet import cli
from tests.conftest import picture

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language):
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands():
    return [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    for name in ("frames", "more", "truth"):
        (folder / name).mkdir()
        for number in (1, 2, 3):
            image = picture(number)
            if name == "truth":
                image = (image[..., 0] > 128).astype(np.uint8)
            Image.fromarray(image).save(folder / name / f"frame_{number:02d}.png")
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 52, 40, "yuv420p"
        for number in range(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        container.mux(stream.encode(None))
    return folder


def test_commands_and_snippets_run_in_their_order(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    ran = 0
    for command in commands():
        words = shlex.split(command)
        if words[0] == "spwnet":
            assert cli.main(words[1:]) == 0, command
            ran += 1
    assert ran >= 6
    for snippet in blocks("python"):
        exec(compile(snippet, "snippet", "exec"), {})
    assert (workplace / "merged" / "segmentation.json").exists()
    assert (workplace / "clip" / "segmentation" / "overlay.mp4").exists()
    assert (workplace / "network.ts").exists()
    assert (workplace / "python-labels" / "labels" / "frame_01.png").exists()


def words_of(command):
    """Words of a command without variables in front, such as SPWNET_DATA=…"""
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words


def test_make_targets_exist():
    targets = {word for command in commands() for word in words_of(command)[1:] if words_of(command)[0] == "make"}
    assert {"demo", "test", "check", "bench", "quality"} <= targets
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_every_other_command_is_known():
    for command in commands():
        words = words_of(command)
        assert words[0] in {"make", "spwnet", ".venv/bin/python"}, command
        if words[:3] == [".venv/bin/python", "-m", "benchmarks.quality"]:
            quality.parser().parse_args(words[3:])


def test_links_and_pictures_are_there():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
