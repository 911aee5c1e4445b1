"""Every benchmark on tiny inputs, sets in the layout of the real ones, and that faults are noticed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import spwnet
from benchmarks import __main__ as names_of
from benchmarks import (
    baselines,
    bimodal,
    cheetah,
    data,
    endurance,
    fuzz,
    mutation,
    ours,
    published,
    quality,
    quality_report,
    regions,
    scores,
    speed,
    torture,
    video,
    volumes,
)
from spwnet.errors import OutputError
from spwnet.naming import ClassMap
from spwnet.presets import make_settings
from spwnet.videos import VideoSource


def scene(position, *, rgb=True, height=36, width=48):
    """A bright square that moves over a dark ground, and its truth: 1 ground, 2 square."""
    rng = np.random.default_rng(position)
    truth = np.ones((height, width), np.uint8)
    truth[8:24, 4 + 2 * position : 22 + 2 * position] = 2
    colours = np.array([[0, 0, 0], [40, 60, 50], [220, 180, 90]])[truth]
    image = np.clip(colours + rng.normal(0, 3, colours.shape), 0, 255).astype(np.uint8)
    return (image if rgb else image[..., 0]), truth


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data folder with a video and a volume."""
    video = tmp_path / "data" / "video" / "ice"
    for name in ("images", "labels"):
        (video / name).mkdir(parents=True)
    scenes = [scene(k) for k in range(7)]
    for number, (image, truth) in enumerate(scenes, start=1):
        truth[:2] = 0
        Image.fromarray(image).save(video / "images" / f"{number:05d}.png")
        Image.fromarray(truth).save(video / "labels" / f"{number:05d}.png")
    volume = tmp_path / "data" / "volumes" / "puma_weave"
    volume.mkdir(parents=True)
    slices = [scene(k, rgb=False) for k in range(8)]
    tifffile.imwrite(volume / "image.tif", np.stack([image for image, _ in slices]), metadata={"axes": "ZYX"})
    tifffile.imwrite(volume / "labels.tif", np.stack([truth for _, truth in slices]), metadata={"axes": "ZYX"})
    monkeypatch.setenv("SPWNET_DATA", str(tmp_path / "data"))
    return tmp_path


TINY_OPTIONS = [
    "--set=images.scale=1.0", "--set=model.ch_mul=4", "--set=model.n_blocks=2", "--set=superpixels.size=16",
    "--set=training.epochs=1", "--set=training.batches=1",
]  # fmt: skip


def run(root, *arguments, out="out"):
    return quality.main(["--seeds", "0", "--out", str(root / out), *TINY_OPTIONS, *arguments])


def found(root, out="out"):
    return json.loads((root / out / "results.json").read_text())["records"]


def test_protocol_frames(root):
    video = data.load("video/ice", data.folder("video/ice"))
    assert video.training == (1, 3, 5, 7)
    assert video.scored() == [2, 4, 6]
    assert video.scored(2) == [2, 6]
    volume = data.load("volumes/puma_weave", data.folder("volumes/puma_weave"))
    assert volume.training == (1, 3, 4, 6)
    assert volume.ignore == (255,)


def test_the_cheetah_is_compared_where_its_labels_are(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "published_labels").mkdir()
    for number in (*data.CHEETAH_TRAINING, 30):
        image, truth = (
            np.pad(part, [(0, 0), (12, 0)] + [(0, 0)] * (part.ndim - 2), "edge")
            for part in scene(3, height=100, width=130)
        )
        Image.fromarray(image).save(tmp_path / "images" / f"{number:04d}.png")
        if number != 123:
            Image.fromarray(truth[10:, 22:][1::3, 1::3] - 1).save(tmp_path / "published_labels" / f"{number:04d}.png")
    cheetah = data.load("cheetah", tmp_path)
    assert cheetah.scored() == [30]
    truths = dict.fromkeys(cheetah.images.numbers, truth)
    named = scores.name_and_score(cheetah, truths)
    assert named.mean == 1
    assert named.names == {1: 0, 2: 1}
    described = baselines.describe(cheetah, [30])
    assert described.frames[123].labels.shape == (30, 40)
    labels, _ = baselines.cluster(described, ["colour"], 8, 0)
    assert scores.name_and_score(cheetah, labels).mean > 0.7


def test_baselines_find_what_is_easy(root):
    video = data.load("video/ice", data.folder("video/ice"))
    described = baselines.describe(video, video.scored())
    for kinds in baselines.KINDS.values():
        labels, _ = baselines.cluster(described, kinds, 8, 0)
        assert scores.name_and_score(video, labels).mean > 0.9, kinds


def test_naming_is_frozen_on_the_training_frames(root):
    video = data.load("video/ice", data.folder("video/ice"))
    labels = {number: video.truth_of(number).astype(int) + 5 for number in video.images.numbers}
    assert scores.name_and_score(video, labels).mean == 1
    swapped = {n: np.where(v == 6, 7, 6) if n not in video.training else v for n, v in labels.items()}
    assert scores.name_and_score(video, swapped).mean < 0.1


def test_risk():
    wrong = np.array([True, False, True, False])
    certain = scores.risk_of(wrong, np.array([0.9, 0.1, 0.8, 0.2]), (0.0, 0.25, 0.5))
    assert certain == pytest.approx({"0.0": 0.5, "0.25": 1 / 3, "0.5": 0})
    alike = scores.risk_of(wrong, np.zeros(4), (0.0, 0.5))
    assert alike == pytest.approx({"0.0": 0.5, "0.5": 0.5})


def test_rank_correlation():
    assert scores.rank_correlation([1, 2, 3, 4], [0.1, 0.2, 0.9, 1.0]) == pytest.approx(1)
    assert scores.rank_correlation([1, 2, 3], [0.3, 0.2, 0.1]) == pytest.approx(-1)
    assert scores.rank_correlation([1, 2], [0.1, 0.2]) is None
    assert scores.rank_correlation([1, 1, 1], [0.1, 0.2, 0.3]) is None


def test_naming_writes_every_row_and_resumes_without_computing(root, capsys, monkeypatch):
    page = root / "page.md"
    page.write_text(f"before\n{quality_report.BEGIN}\nstale figures\n{quality_report.END}\nafter\n")
    arguments = ["--sets", "video/ice", "video/garden", "--parts", "naming"]
    assert run(root, *arguments, "--docs", str(page)) == 0
    assert "video/garden: not in SPWNET_DATA" in capsys.readouterr().out
    text = (root / "out" / "tables.md").read_text()
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    for title in (*quality_report.methods(), *quality_report.OURS):
        assert title in rows
    assert "- video/garden: not in SPWNET_DATA" in text
    assert text.strip() in page.read_text()
    assert page.read_text().startswith("before")
    assert page.read_text().endswith("after\n")
    assert "stale figures" not in page.read_text()
    picture = np.asarray(Image.open(root / "out" / "pictures.jpg"))
    assert picture.ndim == 3
    mean = {r["method"]: r["results"]["32"]["mean"] for r in found(root) if "32" in r.get("results", {})}
    assert mean["k-means 32, colour"] > 0.9
    assert mean["full"] > 0.5

    before = found(root)
    with pytest.raises(SystemExit, match="--resume"):
        run(root, *arguments)

    def refuse(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(baselines, "describe", refuse)
    monkeypatch.setattr(baselines, "cluster", refuse)
    failed = {r["method"] for r in before if r["problems"]}
    train = ours.train
    monkeypatch.setattr(ours, "train", lambda *a: train(*a) if failed else refuse())
    assert run(root, *arguments, "--resume") == 0
    assert [r for r in before if not r["problems"]] == [r for r in found(root) if not r["problems"]]


def test_whole_volume_without_other_parts(root, monkeypatch):
    monkeypatch.setattr(quality, "variants_of", lambda _: [ours.FULL])
    monkeypatch.setattr(baselines, "KINDS", {"colour": ("colour",)})
    assert run(root, "--sets", "volumes/puma_weave", "--parts", "score", "--all-frames", "--quick") == 0
    (record,) = found(root)
    assert record["segmented"] == 8
    assert record["results"]["32"]["mean"] > 0.5
    assert run(root, "--sets", "volumes/puma_weave", "--parts", "naming", "--baselines-only", out="other") == 0
    assert {r["method"] for r in found(root, "other")} == {"k-means 32, colour", "k-means 8, colour"}
    assert "| k-means 32, colour |" in (root / "other" / "tables.md").read_text()


def test_other_settings_are_computed_again(root, monkeypatch):
    arguments = ["--sets", "video/ice", "--parts", "uncertainty"]
    assert run(root, *arguments) == 0
    first = found(root)
    assert [record["method"] for record in first] == [ours.FULL]
    monkeypatch.setattr(ours, "train", lambda *_: pytest.fail("computed again"))
    assert run(root, *arguments, "--resume") == 0
    monkeypatch.undo()
    monkeypatch.setenv("SPWNET_DATA", str(root / "data"))
    assert run(root, *arguments, "--resume", "--set=model.ch_mul=5") == 0
    (second,) = found(root)
    assert second["identity"] != first[0]["identity"]


def test_every_variant_has_a_row_or_a_reason(root):
    assert run(root, "--sets", "video/ice", "--parts", "ablation", "score") == 0
    text = (root / "out" / "tables.md").read_text()
    ablation = text.split("### Ablation")[1].split("###")[0]
    for variant in ours.VARIANTS:
        assert f"| {variant} |" in ablation
    records = {record["method"]: record for record in found(root)}
    assert set(records) == set(ours.VARIANTS)
    for method, record in records.items():
        assert ("32" in record.get("results", {})) != bool(record["problems"]), method
    assert "results" in records["untrained network"]


def test_uncertainty_and_score_tables():
    class Some:
        name, names = "video/ice", ()

    risk = {str(share): 0.3 - share / 2 for share in scores.LEFT_OUT}
    records = [
        {
            "kind": "ours", "set": "video/ice", "method": ours.FULL, "seed": seed, "problems": {},
            "identity": {"frames": 3},
            "risk": risk, "score": float(seed), "results": {"32": {"mean": seed / 10, "iou": {}, "names": {}}},
            "train": 1.0, "segment": 2.0,
        }
        for seed in range(3)
    ]  # fmt: skip
    text = quality_report.markdown(records, [Some()], ["uncertainty", "score"], [], None)
    assert "| video/ice | .300 (.300–.300) | .250 (.250–.250) |" in text
    assert "| video/ice | 3 | +1.000 |" in text


def test_regions_table_takes_nested_and_flat_names():
    nested = {"covering": {"ods": 0.5, "ois": 0.6}, "pri": {"ods": 0.8, "ois": 0.85}, "vi": {"ods": 2.0, "ois": 1.5}}
    flat = {"covering_ods": 0.5, "covering_ois": 0.6, "pri_ods": 0.8, "pri_ois": 0.85, "vi_ods": 2.0, "vi_ois": 1.5}
    for values in (nested, flat):
        record = {"kind": "regions", "set": "bsds_val", "method": "ours", "seed": 0, "problems": {}}
        text = quality_report.markdown([record | {"regions": values | {"seconds": 1.0}}], [], ["regions"], [], None)
        assert "| ours | .500 / .600 | .800 / .850 | 2.000 / 1.500 | 1.0 |" in text


def test_regions_are_another_benchmark(root, monkeypatch):
    asked = []

    def evaluate_set(folder, method, images):
        asked.append((method, images))
        return {"covering_ods": 0.5, "covering_ois": 0.6, "images": len(images), "seconds": 0.1}

    protocol = SimpleNamespace(evaluate_set=evaluate_set, METHODS={"ours": None, "theirs": None})
    monkeypatch.setattr(quality, "regions_quality", protocol)
    (root / "data" / "bsds_val" / "images").mkdir(parents=True)
    for number in range(12):
        (root / "data" / "bsds_val" / "images" / f"{number:02d}.jpg").touch()
    for extra in ([], ["--resume"]):
        assert run(root, "--sets", "bsds_val", "--parts", "regions", "--quick", *extra) == 0
    assert [method for method, _ in asked] == ["ours", "theirs"]
    assert len(asked[0][1]) == 10
    assert "| theirs | .500 / .600 |" in (root / "out" / "tables.md").read_text()


def test_tables_and_pictures_are_of_what_this_call_asked_for(root, monkeypatch):
    monkeypatch.setattr(baselines, "KINDS", {"colour": ("colour",)})
    shown = []
    markdown = quality_report.markdown
    monkeypatch.setattr(quality_report, "markdown", lambda found, *rest: shown.append(found) or markdown(found, *rest))
    arguments = ["--sets", "video/ice", "--parts", "naming", "--baselines-only"]
    assert run(root, *arguments, "--quick") == 0
    assert run(root, *arguments, "--resume", "--seeds", "3", "4") == 0
    assert run(root, *arguments, "--resume", "--seeds", "4") == 0
    seeds = [sorted({record["seed"] for record in records}) for records in shown]
    assert seeds == [[0], [3, 4], [4]]
    assert {record["seed"] for record in found(root)} == {0, 3, 4}
    assert len(list((root / "out" / "examples").glob("*.png"))) == 2 * 3


def test_mistakes_are_said_before_the_work(root, monkeypatch, capsys):
    monkeypatch.setattr(baselines, "describe", lambda *_: pytest.fail("worked"))
    page = root / "page.md"
    page.write_text("no marks")
    with pytest.raises(OutputError, match="marks"):
        run(root, "--sets", "video/ice", "--docs", str(page))
    with pytest.raises(SystemExit):
        run(root, "--sets", "video/ice", "--set", "model.ch_mul")
    assert "expected NAME=VALUE, but got 'model.ch_mul'" in capsys.readouterr().err


def test_no_data_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("SPWNET_DATA", raising=False)
    assert quality.main(["--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    for name in quality.SETS:
        assert f"{name}: not in SPWNET_DATA" in said


def test_a_page_without_marks_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no marks")
    with pytest.raises(OutputError, match="marks"):
        quality_report.insert(page, "text")
    assert page.read_text() == "no marks"


TINY_STEP = {"model.ch_mul": 4, "superpixels.count": 100, "patches.schedule": [[32, 32, 2]]}


@pytest.fixture
def here(monkeypatch):
    """Every measurement once, and in this process."""
    monkeypatch.setattr(regions, "REPEATS", 1)
    monkeypatch.setattr(speed, "in_child", lambda function, *arguments, limit=None: function(*arguments))


def tabled(text):
    """Cells of each line of the tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_operations_of_convolutions_are_counted():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3, padding=1, groups=2),
        torch.nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1),
    )
    with speed.counted(network) as operations:
        network(torch.zeros(2, 4, 10, 12))
    assert operations == [2 * 2 * 8 * 120 * 2 * 9, 2 * 2 * 8 * 120 * 6 * 9]
    with speed.counted(network.to("meta")) as unseen:
        network(torch.zeros(2, 4, 10, 12, device="meta"))
    assert unseen == operations


def test_floor_is_operations_over_rate(here, monkeypatch, capsys):
    assert "| 4.00 | 2.0 | 2.000 | 3.000 | 1.50 |" in speed.floor_row("work", 4e9, 2e9, 3.0)
    monkeypatch.setattr(speed, "SQUARE", 64)
    speed.floor((16, 24), (64, 80))
    rows = tabled(capsys.readouterr().out)
    assert [len(row) for row in rows] == [6] * 5
    assert all(float(row[4]) > 0 for row in rows[2:4])
    preset = make_settings("published-cheetah")
    operations = speed.published_operations(preset, (64, 80), 2)
    assert operations == 2 * speed.published_operations(preset, (64, 80), 1) > 1e9


def test_stages_and_their_growth(here, capsys):
    speed.stages((100, 140))
    rows = tabled(capsys.readouterr().out)
    assert len(rows) == 13
    assert all(float(row[1]) > 0 for row in rows[2:])
    assert sum(row[-1] != "–" for row in rows[2:-1]) == 5
    speed.growth(((60, 80), (120, 160)))
    out = capsys.readouterr().out
    assert "| stage | 20×26, s | 39×52, s | 20×26, ns a pixel | 39×52, ns a pixel |" in out
    assert "| peak memory, MiB |" in out


def test_a_child_answers_fails_or_takes_too_long():
    assert speed.in_child(speed.peak_bytes) > 0
    with pytest.raises(ZeroDivisionError):
        speed.in_child(divmod, 1, 0)
    assert speed.in_child(time.sleep, 60, limit=0.1) is None


def test_a_step_as_published(here, monkeypatch, capsys, tmp_path):
    frames = [scene(k, height=150, width=180)[0] for k in range(2)]
    found = published.measure_step(frames, TINY_STEP, 0)
    assert 0 < found["convolution_seconds"] < found["seconds"]
    assert found["superpixel_seconds"] > 0
    assert found["images"] == 2
    for name in ("images", "published_labels"):
        (tmp_path / "cheetah" / name).mkdir(parents=True)
    for number in data.CHEETAH_TRAINING:
        Image.fromarray(frames[0]).save(tmp_path / "cheetah" / "images" / f"{number:04d}.png")
    Image.fromarray(frames[0][..., 0]).save(tmp_path / "cheetah" / "published_labels" / "0010.png")
    monkeypatch.setenv("SPWNET_DATA", str(tmp_path))
    asked = []

    def measured(*arguments):
        asked.append(arguments)
        return found

    monkeypatch.setattr(published, "measure_step", measured)
    published.step()
    assert [len(row) for row in tabled(capsys.readouterr().out)] == [6] * 6
    assert len(asked[0][0]) == 4
    monkeypatch.setattr(speed, "in_child", lambda *_, limit: None)
    published.step()
    assert "skipped: took longer" in capsys.readouterr().out


def test_videos_are_looped_with_even_times(tmp_path):
    video.write_video(tmp_path / "one.mp4", [scene(k)[0] for k in range(5)])
    video.loop_video(tmp_path / "one.mp4", tmp_path / "more.mp4", 3)
    times = video.seconds_of(tmp_path / "more.mp4")
    assert times == [Fraction(1001, 30_000) * k for k in range(15)]
    assert video.decoded(tmp_path / "more.mp4") == 15
    assert np.array_equal(VideoSource(tmp_path / "more.mp4")[7].pixels, VideoSource(tmp_path / "one.mp4")[2].pixels)


def test_a_video_and_its_loop_are_measured(here, monkeypatch, capsys, tmp_path, tiny):
    for name in ("images", "published_labels"):
        (tmp_path / "cheetah" / name).mkdir(parents=True)
    for k in range(3):
        Image.fromarray(scene(k)[0]).save(tmp_path / "cheetah" / "images" / f"{k + 9:04d}.png")
    Image.fromarray(scene(0)[1]).save(tmp_path / "cheetah" / "published_labels" / "0010.png")
    monkeypatch.setattr(data, "CHEETAH_TRAINING", (10,))
    monkeypatch.setenv("SPWNET_DATA", str(tmp_path))
    monkeypatch.setenv("SPWNET_SCRATCH", str(tmp_path / "scratch"))
    video.length(tiny)
    rows = tabled(capsys.readouterr().out)
    assert [row[1] for row in rows[2:]] == ["3", "12", "4"]
    assert [row[4:] for row in rows[2:4]] == [["yes", "3"], ["yes", "12"]]
    assert (tmp_path / "scratch" / "cheetah_3x4.mp4").exists()


def test_flicker_of_steady_labels_is_no_more(root, capsys, tiny):
    video.steadiness((0,), tiny)
    out = capsys.readouterr().out
    (row,) = tabled(out)[2:]
    assert row[0] == "video/ice"
    assert float(row[5].rstrip("%")) <= float(row[4].rstrip("%"))
    assert "skipped: no folder 'video/garden'" in out


def test_benchmarks_say_what_they_skip(monkeypatch, capsys):
    monkeypatch.delenv("SPWNET_DATA", raising=False)
    for name in ("step", "video", "cheetah", "published"):
        monkeypatch.setattr(sys, "argv", ["benchmarks", name])
        assert names_of.main() == 0
        assert "skipped: no folder 'cheetah'" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["benchmarks", "nothing"])
    assert names_of.main() == 2
    assert "stages, growth, floor" in capsys.readouterr().out


def test_modalities_without_data_and_what_classes_explain(monkeypatch, capsys):
    monkeypatch.delenv("SPWNET_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "bimodal"])
    assert names_of.main() == 0
    assert "skipped: no folder 'bimodal'" in capsys.readouterr().out
    values = np.array([[1.0, 1.0, 3.0, 3.0]], np.float32)
    assert bimodal.explained(values, np.array([[0, 0, 1, 1]])) == 1
    assert bimodal.explained(values, np.array([[0, 1, 0, 1]])) == 0


def test_sizes_without_one_for_the_workers(monkeypatch):
    monkeypatch.setenv("SPWNET_SIZES", "1024")
    with pytest.raises(SystemExit, match="expected a size of 256 or less among SPWNET_SIZES"):
        volumes.main()


def test_the_cheetah_is_measured_in_a_process_of_its_own(here, monkeypatch, tmp_path, capsys):
    for name in ("images", "published_labels"):
        (tmp_path / "cheetah" / name).mkdir(parents=True)
    for k, number in enumerate((*data.CHEETAH_TRAINING, 300)):
        image, truth = (np.kron(part, np.ones((4, 4, 1)[: part.ndim])).astype(np.uint8) for part in scene(k % 3))
        image[:30], truth[:30] = 250, 3
        Image.fromarray(image).save(tmp_path / "cheetah" / "images" / f"{number:04d}.png")
        Image.fromarray(truth[10:, 22:] - 1).save(tmp_path / "cheetah" / "published_labels" / f"{number:04d}.png")
    monkeypatch.setenv("SPWNET_DATA", str(tmp_path))
    asked = []
    monkeypatch.setattr(speed, "in_child", lambda function, *rest: asked.append(function) or function(*rest))
    cheetah.main(make_settings("instant", overrides={"images.scale": 1.0, "labels.classes": 4}), seeds=(0, 1))
    rows = tabled(capsys.readouterr().out)
    assert asked == [cheetah.measure] * 2
    assert [row[0] for row in rows[2:]] == ["0", "1"]
    assert all(float(row[1]) > 0.5 and row[-2] == "5" and float(row[-1]) > 0 for row in rows[2:])


def test_a_phantom_repeats_itself_but_for_noise(tmp_path):
    volumes.phantom(tmp_path / "volume.h5", 128)
    found = spwnet.open_volume(tmp_path / "volume.h5").read((slice(None),) * 3)[..., 0].astype(int)
    assert found.shape == (128, 128, 128)
    period = volumes.TILE
    assert np.abs(found[:16] - found[period : period + 16]).max() < 3000
    assert np.abs(found[:16] - found[16:32]).max() > 3000


def test_readers_that_cannot_be_fed(monkeypatch, capsys):
    monkeypatch.setenv("SPWNET_INPUTS", "3")
    monkeypatch.setenv("SPWNET_READERS", "nonesuch")
    with pytest.raises(SystemExit, match=r"expected readers among images, .*, but got 'nonesuch'"):
        fuzz.main()
    monkeypatch.setenv("SPWNET_READERS", "video,hdf5")
    monkeypatch.setattr(fuzz, "NEEDED", {"video": "no_such_package", "hdf5": "no_such_package"})
    fuzz.main()
    assert "skipped: video needs no_such_package" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"unknown ended before its first input:[\s\S]*KeyError"):
        fuzz.run_target("unknown", 3, fuzz.Counter())


def test_readers_are_fed_damaged_files(monkeypatch, capsys):
    monkeypatch.setenv("SPWNET_INPUTS", "25")
    monkeypatch.setenv("SPWNET_READERS", "settings")
    fuzz.main()
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    read, refused = int(row[3]), int(row[4])
    assert (row[1].strip(), read + refused) == ("settings", 25)
    assert refused > 5


MISBEHAVED = """
import os, sys
from pathlib import Path
import numpy as np
from benchmarks import fuzz

def make(folder):
    (folder.parent / "fed").write_text("0")
    fuzz.make_settings_files(folder)

def read(folder, rng):
    if rng is not None:
        fed = int((folder.parent / "fed").read_text())
        (folder.parent / "fed").write_text(str(fed + 1))
        if fed == 1:
            os.abort()
        if fed == 3:
            raise KeyError("odd")
        if fed == 5:
            np.ones(2**26)

fuzz.TARGETS["bad"] = (make, read)
fuzz.MEMORY, fuzz.SECONDS = 2**29, 100
fuzz.work("bad", int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
"""


def test_every_input_is_counted_once(monkeypatch, tmp_path):
    """Also those before one that ends the process, and each fault."""
    run_process = subprocess.run

    def misbehaved(command, **options):
        return run_process([sys.executable, "-c", MISBEHAVED, *command[4:]], **options)

    monkeypatch.setattr(fuzz.subprocess, "run", misbehaved)
    counts = fuzz.Counter()
    faults = fuzz.run_target("bad", 8, counts)
    assert counts == {"read": 5, "crash": 1, "traceback": 1, "memory": 1}
    assert [fault["input"] for fault in faults] == [1, 3, 5]


def test_what_a_reader_must_not_do_is_noticed(tmp_path):
    """A crash, a traceback and much memory."""
    ended = [
        subprocess.run([sys.executable, "-c", MISBEHAVED, first, "8", str(tmp_path)], capture_output=True, check=False)
        for first in ("0", "2", "6")
    ]
    assert [process.returncode for process in ended] == [-signal.SIGABRT, 3, 0]
    records = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()]
    assert [(one["kind"], one["input"]) for one in records if one["kind"] in ("traceback", "memory")] == [
        ("traceback", 3), ("memory", 5),
    ]  # fmt: skip


STUBBORN = """
import sys, time
from pathlib import Path
kind, number = sys.argv[1].split(":")
out = Path(sys.argv[sys.argv.index("--out") + 1])
(out / "labels").mkdir(parents=True, exist_ok=True)
if kind == "short":
    for _ in range(100):
        time.sleep(0.1)
        if len(Path(sys.argv[-3]).read_bytes()) < 9:
            sys.exit("short")
if kind == "kill":
    time.sleep(5)
if kind != "none":
    (out / "labels" / "a.png").write_text("a")
    sys.exit({1: 0, 2: 2}.get(int(number) % 3, 1))
whole = "--resume" in sys.argv and (out / "labels" / "a.png").exists()
(out / "labels" / "a.png").write_text(50 * ("b" if whole else "a"))
"""


def test_works_that_come_out_differently_are_counted(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torture, "START", STUBBORN)
    scan = tmp_path / "scan.h5"
    scan.write_bytes(b"123456789")
    work = torture.Work(
        ("segment", str(scan)), scan, "--out", lambda out: torture.contents(out / "labels", "a.png"), "labels/*.png"
    )
    bad = torture.torment("images", work, tmp_path, 12, np.random.default_rng(0))
    row = [cell.strip() for cell in capsys.readouterr().out.split("|")[1:-1]]
    assert row[2:6] == ["4", "2", "4", "2"]
    # Killed and short ones had written nothing, the others come out as "b" and change a file that was there.
    assert row[7] == "6 of 12"
    assert row[8] == "6"
    assert bad == 6 + 6 + int(row[9])
    assert scan.read_bytes() == b"123456789"
    monkeypatch.setattr(torture, "START", "import sys; sys.exit('broken')")
    with pytest.raises(SystemExit, match="broken"):
        torture.finish(["none:0", "train"])


def test_files_that_are_lost(tmp_path):
    kept, gone = tmp_path / "kept", tmp_path / "gone"
    kept.write_bytes(b"a")
    for removed in (True, False):
        assert not torture.is_lost(kept, b"a", removed=removed)
        assert torture.is_lost(kept, b"b", removed=removed)
    assert torture.is_lost(gone, b"a", removed=False)
    assert not torture.is_lost(gone, b"a", removed=True)


def test_every_trial_of_classes_has_a_change_to_make(monkeypatch, tmp_path, capsys):
    file = tmp_path / "run" / "classes.toml"
    file.parent.mkdir()

    def cut(arguments, *_):
        ClassMap.of_tree(9, int(arguments[-1]), [0] * 9).save(file)
        return 1.0

    monkeypatch.setattr(torture, "finish", cut)
    monkeypatch.setattr(torture, "disturb", cut)
    assert torture.torment_classes(tmp_path, 12, np.random.default_rng(0)) == 0
    row = [cell.strip() for cell in capsys.readouterr().out.split("|")[1:-1]]
    assert row[5:7] == ["12", "12 of 12 whole"]


@pytest.mark.parametrize(("fault", "status"), [("none:0", 0), ("failing:1", 1), ("failing:3", 1), ("full:10", 1)])
def test_writes_fail_as_a_full_disk_does(tmp_path, fault, status):
    arguments = [fault, "train", str(tmp_path / "a.npy"), "--run", str(tmp_path / "run"), "--preset", "instant"]
    np.save(tmp_path / "a.npy", scene(3, rgb=False))
    assert torture.disturb(arguments, None) == status


def test_memory_and_files_are_watched(monkeypatch, capsys):
    monkeypatch.setattr(endurance, "EVERY", 2)
    monkeypatch.setattr(endurance, "MOST_GROWTH", 10.0)
    endurance.main(12, warm=4)
    row = tabled(capsys.readouterr().out)[-1]
    assert row[0] == "12"
    monkeypatch.setattr(endurance, "MOST_GROWTH", -1.0)
    with pytest.raises(SystemExit):
        endurance.main(12, warm=4)
    with pytest.raises(SystemExit, match=r"expected more than 6 frames in SPWNET_FRAMES, .* but got 6"):
        endurance.main(6, warm=5)


def test_mutants_are_small_faults_outside_of_words():
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import x\n"
        "def f(a: int = 3) -> int:\n"
        "    if a < 1:\n        raise ValueError(f'{a + 1}')\n"
        "    return sum(b for b, _ in zip(a, a, strict=True))\n"
    )
    told = [what for _, what, _ in mutation.mutants(source)]
    assert told == [
        "if a < 1:\n    raise ValueError(f'{a + 1}'): always", "if a < 1:\n    raise ValueError(f'{a + 1}'): never",
        "3: one more", "a < 1: Lt → LtE", "a < 1: Lt → Gt", "1: one more",
    ]  # fmt: skip
    changed = [mutation.ast.unparse(tree) for _, _, tree in mutation.mutants(source)]
    assert "if a <= 1" in changed[3]
    assert "a: int=4" in changed[2]
    assert len(set(changed)) == len(changed)
