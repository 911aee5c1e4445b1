"""Every command and snippet of README, CONTRIBUTING and the docs is run, or what it calls is."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import h5py
import numpy as np
import pytest
import tifffile
import zarr
from distributed import LocalCluster
from PIL import Image

from benchmarks import quality
from spwnet import cli, serving
from spwnet.cli import pages
from spwnet.runs import Run
from tests.conftest import picture

ROOT = Path(__file__).parents[1]
SITE = [ROOT / "docs", *(ROOT / "docs" / name for name in ("howto", "reference", "tutorials"))]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for folder in SITE for page in sorted(folder.glob("*.md"))),
]


def blocks(language):
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands():
    return [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines() if line.strip()]


def tomogram(*greys):
    """A body and fibres in a matrix, 8 bit, of these grey values and noise."""
    z, y, x = np.mgrid[:16, :32, :36]
    body = 4 * (z - 8) ** 2 + (y - 16) ** 2 + (x - 14) ** 2 < 11**2
    fibres = (y // 6 + z // 4) % 3 == 0
    values = np.select([body, fibres], greys[:2], greys[2])
    return np.clip(values + np.random.default_rng(1).normal(0, 8, values.shape), 0, 255).astype(np.uint8)


def make_volumes(folder):
    scan = tomogram(180, 120, 60)
    volumes = {
        "scan": scan, "neutron": tomogram(60, 170, 60), "xray": tomogram(180, 70, 60), "cut-out": scan[:, 8:24, 8:28],
        "several": scan,
    }  # fmt: skip
    for name, values in volumes.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            data = file.create_dataset("entry/data/data", data=values)
            data.attrs["element_size_um"] = (2.0, 1.0, 1.0)
            if name == "several":
                file["entry/raw/data"] = values[:8]
    zarr.save_array(str(folder / "scan.zarr"), scan)
    zarr.save_array(str(folder / "colour.zarr"), np.repeat(scan[:4, ..., None], 3, axis=-1))
    tifffile.imwrite(folder / "scan.tif", scan)
    scan.tofile(folder / "scan.raw")
    (folder / "slices").mkdir()
    for number, plane in enumerate(scan):
        tifffile.imwrite(folder / "slices" / f"slice_{number}.tif", plane)


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
    (folder / "points.csv").write_text("image,row,column,name\nframe_01,20,17,disc\nframe_01,2,50,ground\n")
    scribble = np.zeros((40, 52), np.uint8)
    scribble[2, 40:50], scribble[20, 15:20] = 1, 2
    (folder / "scribbles").mkdir()
    Image.fromarray(scribble).save(folder / "scribbles" / "frame_01.png")
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 52, 40, "yuv420p"
        for number in range(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        container.mux(stream.encode(None))
    make_volumes(folder)
    return folder


def test_commands_and_snippets_run_in_their_order(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    viewed = []

    def save_and_leave():
        run = Run("results/run")
        run.save_classes(run.class_map(run.load()))
        viewed.append(run)

    monkeypatch.setattr(pages, "wait_for_ctrl_c", save_and_leave)
    monkeypatch.setattr(serving.webbrowser, "open", lambda url: True)
    ran = 0
    for command in commands():
        words = shlex.split(command)
        if words[0] == "spwnet":
            assert cli.main(words[1:]) == 0, command
            ran += 1
    written = [line for page in PAGES for line in page.read_text(encoding="utf-8").splitlines()]
    assert ran == sum(line.strip().startswith("spwnet ") for line in written) - len(cluster_commands())
    assert viewed
    for snippet in blocks("python"):
        exec(compile(snippet, "snippet", "exec"), {})
    assert (workplace / "merged" / "segmentation.json").exists()
    assert (workplace / "clip" / "segmentation" / "overlay.mp4").exists()
    assert (workplace / "network.ts").exists()
    assert (workplace / "python-labels" / "labels" / "frame_01.png").exists()
    assert (workplace / "phases" / "class_1.stl").exists()
    whole = tifffile.imread(workplace / "first" / "segmentation" / "labels.tif")
    for name in ("resumed", "by-processes"):
        assert np.array_equal(tifffile.imread(workplace / name / "labels.tif"), whole), name


def test_cluster_script_runs(workplace, monkeypatch):
    """The script for SLURM, with workers in this process for jobs."""
    monkeypatch.chdir(workplace)
    script = next(block for block in blocks("text") if "SLURMCluster(" in block)
    asked, ran = [], []

    class Jobs(LocalCluster):
        def __init__(self, *, queue, account, walltime, cores, processes, memory, job_script_prologue):
            assert cores == processes
            super().__init__(n_workers=0, processes=False, protocol="tcp", threads_per_worker=1, dashboard_address=None)

        def scale(self, n=0, *, jobs=None):
            asked.extend([jobs] if jobs else [])
            return super().scale(1 if jobs else n)

    def run(command, original=subprocess.run, **options):
        if command[0] != "spwnet":
            return original(command, **options)
        ran.append(command[0])
        return SimpleNamespace(returncode=cli.main(command[1:]))

    assert cli.main(["train", "scan.h5", "--run", "cluster-run", "--preset", "instant"]) == 0
    monkeypatch.setitem(sys.modules, "dask_jobqueue", SimpleNamespace(SLURMCluster=Jobs))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(
        sys, "argv", ["on_slurm.py", *(str(workplace / n) for n in ("cluster-run", "scan.h5", "slurm"))]
    )
    with pytest.raises(SystemExit) as end:
        exec(compile(script, "on_slurm.py", "exec"), {})
    assert (end.value.code, asked, ran) == (0, [4], ["spwnet"])
    assert (workplace / "slurm" / "labels.tif").exists()


def cluster_commands():
    return [line for block in blocks("text") for line in block.splitlines() if line.startswith("spwnet ")]


def test_commands_that_need_a_cluster_are_understood():
    assert cluster_commands()
    for line in cluster_commands():
        cli.app.parse_args(shlex.split(line)[1:], exit_on_error=False, print_error=False)


def words_of(command):
    """Words of a command without variables in front, such as SPWNET_DATA=…"""
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words


def test_make_targets_exist():
    targets = {word for command in commands() for word in words_of(command)[1:] if words_of(command)[0] == "make"}
    assert {"demo", "test", "check", "panel", "bench", "quality", "docs"} <= targets
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
