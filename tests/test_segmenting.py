from __future__ import annotations

import json
import signal
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
import tifffile
from PIL import Image

import spwnet
from spwnet import results, segmenting, videowriting
from spwnet.classes import palette
from spwnet.config import LabelSettings
from spwnet.errors import InputError, OutputError, SettingsError, Stopped
from spwnet.outputs import overlay
from spwnet.videos import VideoSource
from tests.conftest import picture

TIMES = (0, 1001, 2002, 3003, 5005, 6006, 7007, 8008, 9009, 10010, 11011)
BASE = Fraction(1, 30000)


def scene(k):
    """The disc of `picture`, moving, 41×53 pixels."""
    return np.roll(picture(0, 41, 53), k, axis=1)


def write_video(path, frames=11):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 53, 41, "yuv444p"
        stream.codec_context.time_base = BASE
        for k in range(frames):
            frame = av.VideoFrame.from_ndarray(scene(k), format="rgb24")
            frame.pts, frame.time_base = TIMES[k], BASE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read(path, form="gray"):
    """Frames and times of a video, as the library alone sees them."""
    with av.open(str(path)) as container:
        frames = list(container.decode(container.streams.video[0]))
        return [frame.to_ndarray(format=form) for frame in frames], [frame.pts * frame.time_base for frame in frames]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "disc.mp4")


@pytest.fixture(scope="module")
def model(tmp_path_factory, video):
    from tests.conftest import TINY

    settings = spwnet.make_settings("instant", overrides=TINY | {"codebook.evidence": "handmade"})
    return spwnet.train(video, settings=settings, frames=[0, 5, 10])


@pytest.fixture
def short_parts(monkeypatch):
    for module in (results, videowriting):
        monkeypatch.setattr(module, "PART", 4)


def test_a_video_gives_videos_of_its_size_and_times(model, video, tmp_path):
    result = spwnet.segment(model, video, tmp_path / "out", uncertainty=True)
    plain = spwnet.segment(model, video, uncertainty=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "labels.mp4", "overlay.mp4", "segmentation.json", "uncertainty.mp4"
    ]  # fmt: skip
    labels, times = read(tmp_path / "out" / "labels.mp4")
    assert times == [time * BASE for time in TIMES]
    assert len(labels) == len(plain.labels) == 11
    for found, expected in zip(labels, plain.labels, strict=True):
        np.testing.assert_array_equal(found, expected)
    doubts, _ = read(tmp_path / "out" / "uncertainty.mp4")
    np.testing.assert_allclose(doubts[7] / 255, plain.uncertainty[7], atol=0.003)
    overlays, overlay_times = read(tmp_path / "out" / "overlay.mp4", "rgb24")
    assert overlay_times == times
    assert overlays[0].shape == (42, 54, 3)
    drawn = overlay(VideoSource(video)[4].pixels, labels[4].astype(int), palette(4)).astype(float)
    assert np.abs(overlays[4][:41, :53] - drawn).mean() < 20 < np.abs(overlays[0][:41, :53] - drawn).mean()
    summary = json.loads((tmp_path / "out" / "segmentation.json").read_text())
    assert summary["complete"] is summary["steady"] is True
    assert summary["time_base"] == "1/30000"
    assert [entry["timestamp"] for entry in summary["images"].values()] == list(TIMES)
    assert result.areas["disc_0003"] == {k: int(n) for k, n in enumerate(np.bincount(plain.labels[3].ravel())) if n}
    assert {int(k): n for k, n in summary["images"]["disc_0003"]["areas"].items()} == result.areas["disc_0003"]


def test_label_images_of_a_video_and_chosen_frames(model, video, tmp_path):
    spwnet.segment(model, video, tmp_path / "png", suffix=".png", frames=[2, 4, 5])
    names = [path.name for path in sorted((tmp_path / "png" / "labels").iterdir())]
    assert names == ["disc_0002.png", "disc_0004.png", "disc_0005.png"]
    spwnet.segment(model, video, tmp_path / "few", frames=[2, 4, 5], overlays=False)
    labels, times = read(tmp_path / "few" / "labels.mp4")
    assert times == [TIMES[k] * BASE for k in (2, 4, 5)]
    assert not (tmp_path / "few" / "overlay.mp4").exists()
    np.testing.assert_array_equal(labels[1], np.array(Image.open(tmp_path / "png" / "labels" / "disc_0004.png")))
    with pytest.raises(SettingsError, match="expected frames of a video in their order"):
        spwnet.segment(model, video, tmp_path / "back", frames=[4, 2])


def test_steady_is_an_option_that_videos_have_on(model, video, tmp_path):
    frames = np.stack([scene(k // 4) for k in range(11)])
    noisy = np.clip(frames + np.random.default_rng(0).normal(0, 6, frames.shape), 0, 255).astype(np.uint8)
    alone = spwnet.segment(model, list(noisy)).labels
    steadily = spwnet.segment(model, list(noisy), labels=LabelSettings(classes=4, steady=True)).labels
    off = spwnet.segment(model, video, labels=LabelSettings(classes=4, steady=False)).labels
    single = [spwnet.segment(model, video, frames=[k], labels=LabelSettings(classes=4)).labels[0] for k in (0, 6)]
    np.testing.assert_array_equal(off[6], single[1])
    changes = [sum((a != b).mean() for a, b in pairwise(x)) for x in (alone, steadily)]
    assert changes[1] < 0.7 * changes[0]


@pytest.mark.parametrize("stop", [1, 3, 4, 6, 8, 10])
@pytest.mark.parametrize("kind", ["crash", "interrupt"])
@pytest.mark.usefixtures("short_parts")
def test_a_resumed_video_equals_one_that_was_not_stopped(model, video, tmp_path, stop, kind):
    spwnet.segment(model, video, tmp_path / "whole")

    def on_progress(progress):
        if progress.done == stop:
            if kind == "crash":
                raise RuntimeError("crash")
            signal.raise_signal(signal.SIGINT)

    out = tmp_path / "out"
    with pytest.raises(RuntimeError if kind == "crash" else Stopped):
        spwnet.segment(model, video, out, on_progress=on_progress)
    if kind == "interrupt":
        labels, times = read(out / "labels.mp4")
        whole, _ = read(tmp_path / "whole" / "labels.mp4")
        assert times == [time * BASE for time in TIMES[:stop]]
        np.testing.assert_array_equal(labels, whole[:stop])
        assert len(read(out / "overlay.mp4")[0]) == stop
    todo = []
    spwnet.segment(model, video, out, resume=True, on_progress=lambda progress: todo.append(progress.total))
    assert todo[0] == len(TIMES) - stop // 4 * 4
    for name in ("labels.mp4", "overlay.mp4"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    mine, theirs = (json.loads((folder / "segmentation.json").read_text()) for folder in (out, tmp_path / "whole"))
    for summary in (mine, theirs):
        summary.pop("time")
    assert mine == theirs
    assert sorted(path.name for path in out.iterdir()) == ["labels.mp4", "overlay.mp4", "segmentation.json"]
    spwnet.segment(model, video, out, resume=True, on_progress=lambda _: pytest.fail("done already"))


@pytest.mark.usefixtures("short_parts")
def test_steady_label_images_resume_where_something_is_carried(model, tmp_path):
    frames = [np.clip(scene(k // 4) + np.random.default_rng(k).normal(0, 6, (41, 53, 3)), 0, 255) for k in range(11)]
    frames = [frame.astype(np.uint8) for frame in frames]
    labels = LabelSettings(classes=4, steady=True)
    whole = spwnet.segment(model, frames, labels=labels).labels

    def crash(progress):
        if progress.done == 7:
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        spwnet.segment(model, frames, tmp_path / "out", labels=labels, on_progress=crash)
    assert [path.name for path in (tmp_path / "out").glob("carried*")] == ["carried_000004.npz"]
    spwnet.segment(model, frames, tmp_path / "out", labels=labels, resume=True)
    for k, expected in enumerate(whole):
        found = np.array(Image.open(tmp_path / "out" / "labels" / f"image_{k:04d}.png"))
        np.testing.assert_array_equal(found, expected)
    assert not list((tmp_path / "out").glob("carried*"))


def test_steady_labels_go_on_with_the_same_images_in_the_same_order_alone(model, tmp_path):
    frames = [scene(k) for k in range(3)]
    labels = LabelSettings(classes=4, steady=True)
    out = tmp_path / "out"
    spwnet.segment(model, frames, out, labels=labels)
    written = (out / "segmentation.json").read_bytes()
    spwnet.segment(model, frames, out, labels=labels, resume=True, on_progress=lambda _: pytest.fail("done already"))
    with pytest.raises(OutputError, match="its 'frames' differs"):
        spwnet.segment(model, frames, out, labels=labels, frames=[0], resume=True)
    with pytest.raises(OutputError, match="its 'names' differs"):
        spwnet.segment(model, frames, out, labels=labels, frames=[0, 2, 1], resume=True)
    with pytest.raises(OutputError, match="but 'image_0001' is another one or cannot be read"):
        spwnet.segment(model, [frames[0], 255 - frames[1], frames[2]], out, labels=labels, resume=True)
    assert (out / "segmentation.json").read_bytes() == written
    labelled = np.array(Image.open(out / "labels" / "image_0001.png"))
    (out / "labels" / "image_0001.png").unlink()
    spwnet.segment(model, frames, out, labels=labels, resume=True)
    np.testing.assert_array_equal(np.array(Image.open(out / "labels" / "image_0001.png")), labelled)


def test_other_frames_of_a_video_do_not_continue_the_first(model, video, tmp_path):
    for suffix in (".mp4", ".png"):
        out = tmp_path / suffix[1:]
        spwnet.segment(model, video, out, frames=[0, 1, 2], suffix=suffix)
        with pytest.raises(OutputError, match="its 'names' differs"):
            spwnet.segment(model, video, out, frames=[4, 5, 6], suffix=suffix, resume=True)
        assert spwnet.segment(model, video, out, frames=[0, 1, 2], suffix=suffix, resume=True).names[0] == "disc_0000"


@pytest.mark.usefixtures("short_parts")
def test_frames_beyond_the_millionth_are_carried_to_and_other_files_are_not(model, tmp_path):
    frames, labels = [scene(k) for k in range(5)], LabelSettings(classes=4, steady=True)

    def crash(progress):
        if progress.done == 4:
            raise RuntimeError("crash")

    out = tmp_path / "out"
    with pytest.raises(RuntimeError, match="crash"):
        spwnet.segment(model, frames, out, labels=labels, on_progress=crash)
    (out / "carried_abcdef.npz").write_bytes(b"mine")
    (out / "carried_000004.npz").rename(out / "carried_1000000.npz")
    seen = []
    spwnet.segment(model, frames, out, labels=labels, resume=True, on_progress=seen.append)
    assert seen[0].total == 5
    assert [path.name for path in out.glob("carried*")] == ["carried_abcdef.npz"]


@pytest.mark.usefixtures("short_parts")
def test_frames_that_cannot_be_read_are_named_and_left_out(model, video, tmp_path, monkeypatch, caplog):
    original = VideoSource.__getitem__

    def damaged(self, position):
        if position in (3, 4, 5, 6, 7, 9):
            raise InputError(f"cannot read frame {position}")
        return original(self, position)

    monkeypatch.setattr(VideoSource, "__getitem__", damaged)
    result = spwnet.segment(model, video, tmp_path / "out")
    assert len(result.names) == 5
    _, times = read(tmp_path / "out" / "labels.mp4")
    assert times == [TIMES[k] * BASE for k in (0, 1, 2, 8, 10)]
    summary = json.loads((tmp_path / "out" / "segmentation.json").read_text())
    assert summary["unreadable"]["disc_0009"] == "cannot read frame 9"
    assert len(summary["unreadable"]) == 6
    assert "disc_0005 is left out: cannot read frame 5" in caplog.text
    monkeypatch.setattr(segmenting, "MOST_NAMED", 2)
    spwnet.segment(model, video)
    assert "6 of 11 images are left out" in caplog.text


def test_nothing_to_read_is_an_error(model, folder, tmp_path):
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="expected a readable image"):
        spwnet.segment(model, folder, tmp_path / "out")


def test_one_broken_file_among_others_is_left_out(model, folder, tmp_path):
    broken = folder / "frame_02.png"
    broken.write_bytes(broken.read_bytes()[:200])
    result = spwnet.segment(model, folder, tmp_path / "out")
    assert result.names == ("frame_01", "frame_03")
    Image.fromarray(picture(1)).save(broken)
    assert spwnet.segment(model, folder, tmp_path / "out", resume=True).names == ("frame_01", "frame_02", "frame_03")
    assert json.loads((tmp_path / "out" / "segmentation.json").read_text())["unreadable"] == {}


def test_a_stack_of_pages_as_a_video(model, tmp_path):
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([scene(k) for k in range(5)]), photometric="rgb")
    spwnet.segment(model, tmp_path / "pages.tif", tmp_path / "out", suffix=".mp4", rate=12.5)
    labels, times = read(tmp_path / "out" / "labels.mp4")
    assert times == [Fraction(2 * k, 25) for k in range(5)]
    for found, expected in zip(labels, spwnet.segment(model, tmp_path / "pages.tif").labels, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_cannot_become_a_video_is_told_before_work_starts(model, video, tmp_path, monkeypatch):
    monkeypatch.setattr(segmenting, "predict_all", lambda *_, **__: pytest.fail("work started"))
    sizes = [picture(0), picture(0, 44, 52)]
    with pytest.raises(InputError, match=r"expected images of one size for a video, .* 40×52 .* 44×52"):
        spwnet.segment(model, sizes, tmp_path / "out", suffix=".mp4")
    with pytest.raises(SettingsError, match="expected a rate above 0"):
        spwnet.segment(model, sizes[:1], tmp_path / "out", suffix=".mp4", rate=0)
    with pytest.raises(SettingsError, match="expected a rate above"):
        spwnet.segment(model, sizes[:1], tmp_path / "out", suffix=".mp4", rate=0.0001)
    monkeypatch.setattr(videowriting, "MOST_CLASSES", 2)
    with pytest.raises(OutputError, match="expected 1 to 2 classes in a video"):
        spwnet.segment(model, video, tmp_path / "out")


@pytest.mark.usefixtures("short_parts")
def test_another_video_does_not_continue_the_first(model, video, tmp_path):
    def crash(progress):
        if progress.done == 5:
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        spwnet.segment(model, video, tmp_path / "out", on_progress=crash)
    other = write_video(tmp_path / "disc.mp4", 10)
    with pytest.raises(OutputError, match="its 'source' differs"):
        spwnet.segment(model, other, tmp_path / "out", resume=True)
    spwnet.segment(model, other, tmp_path / "out", overwrite=True)
    assert len(read(tmp_path / "out" / "labels.mp4")[0]) == 10
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "labels.mp4", "overlay.mp4", "segmentation.json"
    ]  # fmt: skip


def test_overlays_of_large_videos_are_thinned_unless_asked_for_in_full(model, video, tmp_path, monkeypatch):
    monkeypatch.setattr(segmenting, "MOST_PICTURE_PIXELS", 41 * 53 // 4)
    spwnet.segment(model, video, tmp_path / "thin", frames=[0, 4])
    thin, times = read(tmp_path / "thin" / "overlay.mp4", "rgb24")
    assert times == [0, TIMES[4] * BASE]
    assert thin[0].shape == (14, 18, 3)
    spwnet.segment(model, video, tmp_path / "full", frames=[0, 4], overlays="full")
    assert read(tmp_path / "full" / "overlay.mp4", "rgb24")[0][0].shape == (42, 54, 3)
    assert read(tmp_path / "thin" / "labels.mp4")[0][1].shape == (41, 53)
    with pytest.raises(OutputError, match="its 'overlays' differs"):
        spwnet.segment(model, video, tmp_path / "full", frames=[0, 4], resume=True)


def test_frames_by_time(model, video):
    by_time = spwnet.segment(model, video, frames=["0s", "0.11s", "0.31s"])
    assert by_time.names == ("disc_0000", "disc_0003", "disc_0008")
    with pytest.raises(InputError, match=r"expected a time from 0 to .* but got 9.0 s"):
        spwnet.segment(model, video, frames=["9s"])
    with pytest.raises(InputError, match=r"times like '2\.5s', but got 'xs'"):
        spwnet.segment(model, video, frames=["xs"])
    with pytest.raises(InputError, match="images have no times"):
        spwnet.segment(model, [picture(0)], frames=["1s"])


def test_auto_takes_frames_that_differ(tmp_path, monkeypatch, caplog):
    bright, dark = picture(0, 41, 53), picture(0, 41, 53) // 3
    stripes = np.repeat(np.repeat(np.arange(53) % 6 < 3, 41).reshape(53, 41).T[..., None] * 200, 3, 2).astype(np.uint8)
    frames = [bright] * 14 + [stripes] * 2 + [dark] * 2
    settings = spwnet.make_settings("instant", overrides={"training.images": 3, "labels.classes": 4})
    trained = spwnet.train(frames, settings=settings, frames="auto")
    chosen = [int(image["name"][-4:]) for image in trained.info["images"]]
    assert [k >= 14 for k in chosen] == [False, True, True]
    assert [k >= 16 for k in chosen] == [False, False, True]
    broken = tmp_path / "frames"
    broken.mkdir()
    for k, frame in enumerate(frames):
        Image.fromarray(frame).save(broken / f"f_{k:02d}.png")
    (broken / "f_14.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    (broken / "f_15.png").write_bytes((broken / "f_15.png").read_bytes()[:60])
    monkeypatch.setattr("spwnet.gathering.MOST_CANDIDATES", 18)
    trained = spwnet.train(broken, settings=settings, frames="auto")
    assert {"f_14", "f_15"}.isdisjoint(image["name"] for image in trained.info["images"])
    assert "f_15 is no candidate" in caplog.text
