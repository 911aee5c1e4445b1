from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from urllib.request import urlopen

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

import spwnet
from spwnet import api, cli
from spwnet.cli.progress import duration
from spwnet.cli.reading import read_frames
from spwnet.presets import make_settings, setting_names
from tests.conftest import SOLID, TINY, phantom

FLAGS = ["--set", "images.scale=1.0", "--set", "model={classes=4, ch_mul=4, n_blocks=2}", "--classes", "4"]
FLAGS += ["--set", "superpixels.size=16", "--epochs", "2", "--set", "training.batches=2"]
FLAGS += ["--set", "training.precision=float32", "--set", "codebook.finest=4"]

COMMANDS = [name for name in cli.app if not name.startswith("-")]


def fail(capsys, *arguments, status=1):
    """Run a command that must fail; return what a user reads, which is never a traceback."""
    assert cli.main([str(a) for a in arguments]) == status
    error = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in error
    return error


def succeed(capsys, *arguments):
    assert cli.main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def labels_in(folder):
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.iterdir())}


def test_help_needs_no_torch():
    code = "import sys; from spwnet.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert command in done.stdout


def test_as_a_module():
    """Where the scripts of an environment are not on the path."""
    for arguments, status, said in ((["--version"], 0, spwnet.__version__), (["info", "nowhere"], 1, "run.json")):
        command = [sys.executable, "-m", "spwnet", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, said in done.stdout + done.stderr) == (status, True), done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command, capsys):
    assert f"spwnet {command}" in succeed(capsys, command, "--help")


def test_commands_equal_the_api(folder, tmp_path, capsys):
    out = succeed(capsys, "train", folder, "--run", tmp_path / "run", *FLAGS)
    assert "of 4 classes in use" in out
    succeed(capsys, "segment", tmp_path / "run", folder, "--out", tmp_path / "seg", "--frames", "1:3:2")
    model = spwnet.train(folder, settings=make_settings(overrides=TINY))
    assert spwnet.load(tmp_path / "run").fingerprint == model.fingerprint
    written = labels_in(tmp_path / "seg" / "labels")
    assert list(written) == ["frame_01.png", "frame_03.png"]
    for found, expected in zip(written.values(), spwnet.segment(model, folder, frames=[1, 3]).labels, strict=True):
        np.testing.assert_array_equal(found, expected)
    described = json.loads(succeed(capsys, "info", tmp_path / "run"))
    assert described["settings"]["model"]["classes"] == 4
    assert len(described["normalisation"]["mean"]) == 3


def test_run_is_train_and_segment_and_can_go_on(folder, tmp_path, capsys):
    out = tmp_path / "out"
    text = succeed(capsys, "run", folder, "--out", out, "--frames", "1,2", "--no-overlays", "--format", "tif", *FLAGS)
    assert "trained on 2 images" in text
    assert "3 images segmented" in text
    assert sorted(p.name for p in (out / "segmentation" / "labels").iterdir())[0] == "frame_01.tif"
    assert not (out / "segmentation" / "overlays").exists()
    assert "overwrite" in fail(capsys, "run", folder, "--out", out, *FLAGS)
    text = succeed(capsys, "run", folder, "--out", out, "--frames", "1,2", "--no-overlays", "--format", "tif",
                   "--resume", *FLAGS)  # fmt: skip
    assert "3 images segmented" in text


def test_options_of_volumes_are_refused_with_images(folder, tmp_path, capsys):
    succeed(capsys, "train", folder, "--run", tmp_path / "run", *FLAGS)
    arguments = ["segment", tmp_path / "run", folder, "--out", tmp_path / "seg"]
    for flag in (["--mesh", "1"], ["--block", "8"], ["--workers", "2"], ["--scheduler", "tcp://nowhere:1"],
                 ["--level", "2"], ["--offset", "7"]):  # fmt: skip
        assert f"expected {flag[0]} with a volume, but got images" in fail(capsys, *arguments, *flag)
    assert not (tmp_path / "seg").exists()


def test_cleaning_by_flags(folder, tmp_path, capsys):
    succeed(capsys, "train", folder, "--run", tmp_path / "run", *FLAGS)
    succeed(capsys, "segment", tmp_path / "run", folder, "--out", tmp_path / "seg", "--merge", "0,1", "--merge", "2,3",
            "--fill-holes", "9", "--remove-objects", "9", "--label-mode", "max_count_of_argmax")  # fmt: skip
    for labels in labels_in(tmp_path / "seg" / "labels").values():
        assert set(np.unique(labels)) <= {0, 2}
    summary = json.loads((tmp_path / "seg" / "segmentation.json").read_text())
    assert summary["labels"]["merge"] == [[0, 1], [2, 3]]
    error = fail(capsys, "segment", tmp_path / "run", folder, "--out", tmp_path / "x", "--merge", "0,77")
    assert "class ids below 4" in error
    for wrong in ("0,ground", "all", "0s", "0:2", "0,-1", ""):
        error = fail(capsys, "segment", tmp_path / "run", folder, "--out", tmp_path / "x", f"--merge={wrong}")
        assert f'expected class ids like "0,1,3" for --merge, but got {wrong!r}' in error


def test_settings_from_a_file_and_flags_over_it(folder, tmp_path, capsys):
    file = tmp_path / "s.toml"
    file.write_text('seed = 5\n[labels]\nclasses = 9\nmode = "argmax_of_mean"\n')
    succeed(capsys, "train", folder, "--run", tmp_path / "run", "--settings", file, *FLAGS, "--seed", "6",
            "--scale", "3/4")  # fmt: skip
    settings = spwnet.load(tmp_path / "run").settings
    assert (settings.seed, settings.labels.classes, settings.labels.mode) == (6, 9, "argmax_of_mean")
    assert settings.images.scale == 0.75
    assert settings.model.classes == 4


def test_number_of_classes_where_labels_are_not_by_codebook(folder, tmp_path, capsys):
    flags = ["5" if flag == "4" else flag for flag in FLAGS] + ["--set", "labels.mode=argmax_of_mean"]
    assert "of 5 classes in use" in succeed(capsys, "train", folder, "--run", tmp_path / "run", *flags)
    assert spwnet.load(tmp_path / "run").settings.model.classes == 5


def test_reassigning_small_pieces_when_segmenting(folder, tmp_path, capsys):
    succeed(capsys, "train", folder, "--run", tmp_path / "run", *FLAGS)
    rule = "labels.reassign=[{source=1, smaller_than=100000, to=0}]"
    file = tmp_path / "s.toml"
    file.write_text("[labels]\nfill_holes = 3\n")
    succeed(capsys, "segment", tmp_path / "run", folder, "--out", tmp_path / "seg", "--set", rule, "--settings", file)
    assert all(1 not in labels for labels in labels_in(tmp_path / "seg" / "labels").values())
    assert json.loads((tmp_path / "seg" / "segmentation.json").read_text())["labels"]["fill_holes"] == 3
    error = fail(capsys, "segment", tmp_path / "run", folder, "--out", tmp_path / "x", "--set", "model.classes=9")
    assert "expected settings under `labels` alone" in error


def test_user_superpixels(folder, tmp_path, capsys):
    regions = tmp_path / "regions"
    regions.mkdir()
    for number in (1, 2, 3):
        grid = np.arange(40)[:, None] // 10 * 10 + np.arange(52) // 13
        Image.fromarray(grid.astype(np.uint8)).save(regions / f"frame_{number:02d}.png")
    succeed(capsys, "train", folder, "--run", tmp_path / "run", "--superpixels", regions, *FLAGS)
    model = spwnet.load(tmp_path / "run")
    assert model.settings.superpixels.method == "labels"
    assert model.info["images"][0]["superpixels"] == 16


def test_demo(tmp_path, capsys):
    out = succeed(capsys, "demo", "--out", tmp_path / "demo", "--set", "training={epochs=1, batches=2}",
                  "--set", "images.max_pixels=9000")  # fmt: skip
    assert "mean" in out
    assert "demo.png" in out
    result = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert 0 < result["mean_iou"] < 1
    assert len(result["iou"]) == 4
    assert np.asarray(Image.open(tmp_path / "demo" / "demo.png")).std() > 10
    assert "overwrite" in fail(capsys, "demo", "--out", tmp_path / "demo")
    assert "Did you mean 'composite'" in fail(capsys, "demo", "--out", tmp_path / "d2", "--sample", "composit")


def test_evaluate(tmp_path, capsys):
    for kind in ("predicted", "truth"):
        (tmp_path / kind).mkdir()
        for number in range(3):
            labels = np.repeat([[0, 1]], 4, axis=0).repeat(5, axis=1) + (5 if kind == "predicted" else 0)
            Image.fromarray(labels.astype(np.uint8)).save(tmp_path / kind / f"{number}.png")
    arguments = ["evaluate", tmp_path / "predicted", tmp_path / "truth", "--naming", "0", "--ignore", "255"]
    out = succeed(capsys, *arguments)
    assert "adjusted_rand" in out
    assert "mean_iou                     1.0000" in out
    assert "iou 1" in out
    assert json.loads(succeed(capsys, *arguments, "--json"))["mean_iou"] == 1
    for word in ("all", "auto"):
        assert f"expected frame numbers for --naming, but got '{word}'" in fail(capsys, *arguments[:4], word)


def test_info_lists_every_setting_and_the_versions(capsys):
    out = succeed(capsys, "info", "--settings")
    assert all(f"{name} = " in out for name in setting_names())
    assert "spwnet" in succeed(capsys, "info")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "no/such", "--run", "r"], "no/such"),
        (["train", "empty", "--run", "r"], "there are none"),
        (["train", "frames", "--run", "r", "--set", "model.clases=3"], "unknown setting 'model.clases'. Did you mean"),
        (["train", "frames", "--run", "r", "--set", "seed"], 'expected a setting like "losses.cut=0.5", but got'),
        (["train", "frames", "--run", "r", "--preset", "publishd"], "expected one of the presets"),
        (["train", "frames", "--run", "r", "--settings", "no.toml"], "there is no such file"),
        (["train", "frames", "--run", "r", "--frames", "1,x"], 'expected frames like "10,123,270"'),
        (["train", "frames", "--run", "r", "--frames", "5:1"], "expected at least one frame"),
        (["train", "frames", "--run", "r", "--frames", "5:1,3"], "expected at least one frame, but '5:1' holds none"),
        (["train", "frames", "--run", "r", "--frames", "1:3:1:1"], 'expected frames like "10,123,270"'),
        (["tune", "scan.h5", "--out", "o"], "expected images to tune on, but got a volume"),
        (["train", "frames", "--run", "r", "--frames", "99"], "there is no frame 99"),
        (["train", "frames", "--run", "r", "--device", "gpu"], "expected a device of this machine"),
        (["train", "frames", "--run", "frames"], "overwrite"),
        (["train", "frames", "--run", "frames/frame_01.png"], "frame_01.png"),
        (["segment", "frames", "frames", "--out", "o"], "expected a run directory with a run.json"),
        (["info", "empty"], "expected a run directory"),
        (["evaluate", "frames", "no/such"], "no/such"),
    ],
)
def test_mistakes_are_told_without_a_traceback(arguments, message, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert message in fail(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["train", "frames"], "--run"), (["trian"], "train"), (["train", "f", "--run", "r", "--seeed", "3"], "--seed"),
     (["train", "f", "--run", "r", "--seed", "x"], "seed")],
)  # fmt: skip
def test_wrong_flags_are_told(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.out + printed.err


def test_ctrl_c_ends_with_130_and_can_be_resumed(folder, tmp_path, capsys, monkeypatch):
    original = api.fit

    def interrupted(*arguments, on_progress, **keywords):
        def press(state):
            on_progress(state)
            if state.done == 1:
                signal.raise_signal(signal.SIGINT)

        return original(*arguments, on_progress=press, **keywords)

    monkeypatch.setattr(api, "fit", interrupted)
    arguments = ["train", folder, "--run", tmp_path / "run", *FLAGS]
    assert "stopped after step 1 of 4; go on by `--resume`" in fail(capsys, *arguments, status=130)
    monkeypatch.setattr(api, "fit", original)
    succeed(capsys, *arguments, "--resume")
    assert spwnet.load(tmp_path / "run").info["finished"]


def test_memory_and_disk_errors_are_one_line(folder, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(api, "fit", full)
    assert "error: MemoryError" in fail(capsys, "train", folder, "--run", tmp_path / "run", *FLAGS)

    def used_up(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(api, "fit", used_up)
    error = fail(capsys, "train", folder, "--run", tmp_path / "run", *FLAGS, "--overwrite")
    assert "expected more free memory, but it is used up; use a lower `images.scale`" in error

    def broken(*_, **__):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(api, "fit", broken)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        cli.main(["train", str(folder), "--run", str(tmp_path / "run"), *FLAGS, "--overwrite"])


VOLUME_FLAGS = ["--preset", "instant", "--set", "images.scale=1.0", "--set", "volumes.size=8", "--classes", "5"]
VOLUME_FLAGS += ["--set", "codebook.finest=6", "--set", "training.images=2"]


@pytest.fixture
def scans(tmp_path):
    """Two registered volumes as HDF5, one of them with two datasets, and a stack of pages."""
    values = phantom((14, 20, 22), 2)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["entry/data"] = values[..., 0]
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["first"], file["second"] = values[..., 0], values[..., 1]
    tifffile.imwrite(tmp_path / "stack.tif", values[..., 0], photometric="minisblack")
    tifffile.imwrite(tmp_path / "short.tif", values[:9, ..., 1], photometric="minisblack")
    tifffile.imwrite(tmp_path / "other.tif", values[..., 1], photometric="minisblack")
    return tmp_path


def read_volume(path):
    return spwnet.open_volume(path).read((slice(None),) * 3)[..., 0]


def test_volumes_from_the_command_line_equal_the_api(scans, capsys):
    text = succeed(capsys, "train", scans / "scan.h5", "--run", scans / "run", "--spacing", "2,1,1", "--unit", "um",
                   *VOLUME_FLAGS)  # fmt: skip
    assert "of 5 classes in use, " in text
    assert "score" not in text
    volume = spwnet.open_volume(scans / "scan.h5", spacing=(2, 1, 1), unit="um")
    model = spwnet.train(volume, settings=make_settings("instant", overrides=SOLID))
    assert spwnet.load(scans / "run").fingerprint == model.fingerprint
    assert spwnet.load(scans / "run").info["volume"]["spacing"] == [2, 1, 1]

    text = succeed(capsys, "segment", scans / "run", scans / "scan.h5", "--out", scans / "out", "--spacing", "2,1,1",
                   "--unit", "um", "--block", "8", "--workers", "1", "--mesh", "1,0", "--format", "zarr")  # fmt: skip
    assert "of 5 classes: " in text
    assert "labels.zarr" in text
    expected = spwnet.segment_volume(model, volume).labels
    found = spwnet.open_volume(scans / "out" / "labels.zarr")
    np.testing.assert_array_equal(read_volume(scans / "out" / "labels.zarr"), expected)
    assert found.spacing == (2, 1, 1)
    assert found.unit == "micrometer"
    assert (scans / "out" / "class_1.stl").exists()
    assert (scans / "out" / "class_0.stl").exists()
    assert json.loads((scans / "out" / "segmentation.json").read_text())["block"] == [8, 8, 8]

    succeed(capsys, "segment", scans / "run", scans / "scan.h5", "--out", scans / "few", "--classes", "3", "--merge",
            "0,1", "--block", "14x20x22", "--spacing", "2,1,1")  # fmt: skip
    merged = spwnet.config.LabelSettings(classes=3, merge=((0, 1),))
    np.testing.assert_array_equal(
        read_volume(scans / "few" / "labels.tif"), spwnet.segment_volume(model, volume, labels=merged).labels
    )
    assert "score" not in succeed(capsys, "info", scans / "run")


def test_run_of_a_stack_with_another_channel(scans, capsys):
    arguments = ["run", "--volume", scans / "stack.tif", "--channel", scans / "other.tif", "--out", scans / "out"]
    arguments += ["--block", "16", "--format", "h5", *VOLUME_FLAGS]
    text = succeed(capsys, *arguments)
    assert "trained on 2 images" in text
    assert f"volume segmented: {scans / 'out' / 'segmentation' / 'labels.h5'}" in text
    volume = spwnet.open_volume(phantom((14, 20, 22), 2))
    model = spwnet.train(volume, settings=make_settings("instant", overrides=SOLID))
    labels = read_volume(scans / "out" / "segmentation" / "labels.h5")
    np.testing.assert_array_equal(labels, spwnet.segment_volume(model, volume).labels)
    assert "overwrite" in fail(capsys, *arguments)
    assert "volume segmented" in succeed(capsys, *arguments, "--resume")


def test_one_dataset_of_several(scans, capsys):
    error = fail(capsys, "train", scans / "two.h5", "--run", scans / "run", *VOLUME_FLAGS)
    assert "first" in error
    assert "second" in error
    assert not (scans / "run").exists()
    succeed(capsys, "train", scans / "two.h5", "--dataset", "second", "--run", scans / "run", *VOLUME_FLAGS)
    by_path = ["segment", scans / "run", f"{scans / 'two.h5'}:/second", "--out", scans / "out", "--format", "npy"]
    succeed(capsys, *by_path)
    assert np.load(scans / "out" / "labels.npy").shape == (14, 20, 22)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "stack.tif", "--spacing", "2,1,1"],
            "expected --spacing with a volume, but got images; add --volume",
        ),
        (["train", "stack.tif", "--level", "2"], "expected --level with a volume, but got images"),
        (["train", "stack.tif", "--offset", "7"], "expected --offset with a volume, but got images"),
        (["run", "stack.tif", "--mesh", "1"], "expected --mesh with a volume, but got images; add --volume"),
        (["run", "stack.tif", "--block", "8"], "expected --block with a volume, but got images"),
        (["run", "stack.tif", "--workers", "2"], "expected --workers with a volume, but got images"),
        (["run", "stack.tif", "--scheduler", "processes"], "expected --scheduler with a volume, but got images"),
        (["train", "scan.h5", "--spacing", "0,1,1"], "expected a spacing of one or three numbers above 0"),
        (["train", "scan.h5", "--spacing", "1,1"], "expected a spacing of one or three numbers above 0"),
        (["train", "scan.h5", "--spacing", "wide"], "expected numbers like \"1,2,3\" for --spacing, but got 'wide'"),
        (["train", "scan.h5", "--unit", "furlong"], "expected a unit of"),
        (["train", "scan.h5", "--axes", "CZYX"], "expected `axes` to name each of the 3 axes"),
        (["train", "--volume", "stack.tif", "--dataset", "a"], "expected `dataset` only for HDF5 and Zarr"),
        (["train", "--volume", "stack.tif", "--channel", "short.tif"], "expected volumes of one shape as channels"),
        (["train", "no.h5"], "there is no no.h5"),
        (["train", "scan.h5", "--set", "images.scale=0.4"], "`images.scale` of a volume to be 1, 1/2"),
        (["train", "scan.h5", "--superpixels", "frames"], "expected `superpixels.method = 'slic'` for a volume"),
        (["train", "scan.h5", "--frames", "14"], "there is no frame 14"),
        (["run", "scan.h5", "--block", "big"], "for --block, but got 'big'"),
        (["run", "scan.h5", "--block", "0"], "expected a block of one or three sides of at least 1 voxel, but got 0"),
        (["run", "scan.h5", "--workers", "0"], "expected at least one worker"),
        (["run", "scan.h5", "--format", "png"], "expected a label volume named .tif"),
        (["run", "scan.h5", "--mesh", "-1"], "expected classes from 0 for surfaces, but got -1"),
        (["run", "scan.h5", "--uncertainty"], "expected no `uncertainty` with a volume, as it is for images alone"),
        (["run", "scan.h5", "--full-overlays"], "expected no `overlays` with a volume"),
        (["run", "scan.h5", "--rate", "3"], "expected no `rate` with a volume"),
    ],
)
def test_mistakes_with_volumes_are_told_without_a_traceback(scans, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(scans)
    command, *rest = arguments
    assert message in fail(capsys, command, *VOLUME_FLAGS, *rest, "--out" if command == "run" else "--run", "out")
    assert not (scans / "out").exists()


def test_a_model_and_a_volume_that_do_not_fit(scans, folder, capsys):
    succeed(capsys, "train", scans / "scan.h5", "--run", scans / "run", *VOLUME_FLAGS)
    out = ["--out", scans / "out"]
    assert "expected a volume for this model" in fail(capsys, "segment", scans / "run", folder, *out)
    two = ["segment", scans / "run", "--volume", scans / "stack.tif", "--channel", scans / "other.tif"]
    assert "expected a volume of 1 channels" in fail(capsys, *two, *out)
    one = ["segment", scans / "run", scans / "scan.h5"]
    assert "named .tif" in fail(capsys, *one, *out, "--format", "png")
    for flag in (["--frames", "1"], ["--superpixels", "a"], ["--steady"], ["--uncertainty"], ["--rate", "3"],
                 ["--full-overlays"], ["--no-overlays"]):  # fmt: skip
        assert f"expected no {flag[0]} with a volume, as it is for images alone" in fail(capsys, *one, *out, *flag)
    assert not (scans / "out").exists()
    assert "a Dask scheduler at 'thread'" in fail(capsys, *one, "--out", scans / "x", "--scheduler", "thread")


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3600, "60:00")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_training_can_be_watched(folder, tmp_path, capsys):
    shown = ["--view", "--no-browser", "--tensorboard", tmp_path / "board"]
    arguments = ["train", folder, "--run", tmp_path / "run", *FLAGS, *shown]
    assert cli.main([str(a) for a in arguments]) == 0
    address = re.search(r"live view: (http://127\.0\.0\.1:\d+/[\w-]{40,}/)", capsys.readouterr().err)
    assert address is not None
    with pytest.raises(OSError, match="refused"):  # the page goes with the training
        urlopen(address[1], timeout=5)
    assert list((tmp_path / "board").glob("events.out.tfevents*"))
    assert "kept_at" not in json.loads((tmp_path / "run" / "run.json").read_text())
    other = ["run", folder, "--out", tmp_path / "out", *FLAGS, "--tensorboard", tmp_path / "second"]
    succeed(capsys, *other)
    assert list((tmp_path / "second").glob("events.out.tfevents*"))


def test_frames_go_both_ways_and_include_their_stop():
    assert read_frames("10:1:-3,2:4,7") == [10, 7, 4, 1, 2, 3, 4, 7]
    assert read_frames("1:400:200,2.5s") == [1, 201, "2.5s"]


def test_any_character_is_printed_where_the_terminal_has_it_not(monkeypatch):
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, "ascii"))
    assert cli.main(["info", "--settings"]) == 0
    assert b"\\u03b2 of the reconstruction" in stream.getvalue()


def test_nobody_reading_on_is_no_error(monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert cli.main(["info", "--settings"]) == 0
    assert capsys.readouterr().err == ""


def test_settings_are_listed_as_they_are_read(capsys):
    lines = succeed(capsys, "info", "--settings").splitlines()
    assert 'patches.columns = ["none", "none"]' in lines
    assert 'superpixels.count = "none"' in lines
    assert all(" = " in name and text.startswith("    ") for name, text in zip(lines[::2], lines[1::2], strict=True))


def test_a_number_of_classes_is_for_labels_by_codebook(folder, tmp_path, capsys):
    succeed(capsys, "train", folder, "--run", tmp_path / "run", *("3" if flag == "4" else flag for flag in FLAGS))
    arguments = ["segment", tmp_path / "run", folder, "--label-mode", "argmax_of_mean"]
    assert "expected the 4 classes of the network" in fail(capsys, *arguments, "--out", tmp_path / "a", "--classes", 2)
    assert "4 classes" in succeed(capsys, *arguments, "--out", tmp_path / "b")


def test_the_demo_takes_fewer_classes_than_its_truth_has(tmp_path, capsys):
    sets = ["--set", "labels.classes=2", "--set", "codebook.evidence='handmade'", "--set", "images.max_pixels=5000"]
    assert "picture" in succeed(capsys, "demo", "--out", tmp_path / "demo", *sets)
