from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spwnet.errors import OutputError
from spwnet.videowriting import PART, VideoParts, join
from tests.conftest import failing, files_in, posix

SIZE = (43, 61)
BASE = Fraction(1, 30000)
RATE = Fraction(30)
KINDS = ["labels", "overlay"]


def frame(kind, index, size=SIZE, n_classes=256):
    rng = np.random.default_rng(index)
    if kind == "labels":
        return rng.integers(0, n_classes, size)
    return rng.integers(0, 256, (*size, 3), dtype=np.uint8)


def parts_of(path, kind="labels", **options):
    return VideoParts(
        path, **{"kind": kind, "size": SIZE, "time_base": BASE, "rate": RATE, "n_classes": 256, **options}
    )


def write(video, indices):
    for index in indices:
        video.write(index, 1001 * index, frame(video.kind, index))
    return video


def read(path):
    """Return frames, their times in seconds, and what the file says about itself."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        said = {"frames": stream.frames, "time_base": stream.time_base, "seconds": stream.duration * stream.time_base}
        frames = list(container.decode(stream))
        return frames, [f.pts * f.time_base for f in frames], said


def keyframes(path):
    with av.open(str(path)) as container:
        return [packet.is_keyframe for packet in container.demux(video=0) if packet.pts is not None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of 70 frames written in one go, for each kind."""
    folder = tmp_path_factory.mktemp("whole")
    for kind in KINDS:
        assert write(parts_of(folder / f"{kind}.mp4", kind), range(70)).finish() == 70
    return {kind: (folder / f"{kind}.mp4").read_bytes() for kind in KINDS}


class TestLabels:
    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        size=st.tuples(st.integers(1, 67), st.integers(2, 67)),
        n_classes=st.sampled_from([1, 2, 256, 257, 65_536]),
        time_base=st.sampled_from([BASE, Fraction(1001, 30000), Fraction(1, 1000), Fraction(1, 90000), Fraction(3, 7)]),
        first=st.integers(-100_000, 2**33),
        # Time to the next frame, and whether it can be read.
        steps=st.lists(st.tuples(st.integers(1, 100_000), st.booleans()), min_size=1, max_size=80),
    )
    def test_ids_and_times_come_back(self, tmp_path, size, n_classes, time_base, first, steps):
        path = tmp_path / "labels.mp4"
        video = parts_of(path, size=size, time_base=time_base, n_classes=n_classes)
        written, pts = [], first
        for index, (step, readable) in enumerate(steps):
            if readable or index == 0:
                written.append((pts, frame("labels", index, size, n_classes)))
                video.write(index, *written[-1])
            pts += step
        assert video.finish() == len(written)
        frames, times, said = read(path)
        shift = max(0, -first)
        assert times == [(pts + shift) * time_base for pts, _ in written]
        for got, (_, ids) in zip(frames, written, strict=True):
            np.testing.assert_array_equal(got.to_ndarray(), ids)
        assert frames[0].format.name == ("gray" if n_classes <= 256 else "gray16le")
        assert said["frames"] == len(written)
        assert files_in(tmp_path) == ["labels.mp4"]

    def test_every_frame_can_be_sought(self, tmp_path):
        write(parts_of(tmp_path / "a.mp4"), range(40)).finish()
        assert keyframes(tmp_path / "a.mp4") == [True] * 40

    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
    def test_any_integers(self, tmp_path, dtype):
        ids = frame("labels", 0, n_classes=100).astype(dtype)
        video = parts_of(tmp_path / "a.mp4")
        video.write(0, 0, ids[:, ::-1])
        video.finish()
        np.testing.assert_array_equal(read(tmp_path / "a.mp4")[0][0].to_ndarray(), ids[:, ::-1])


class TestOverlay:
    @pytest.mark.parametrize("size", [(44, 62), (43, 61), (44, 61), (43, 62), (1, 1)])
    def test_colours_and_size(self, tmp_path, size):
        colours = np.array([(230, 30, 40), (20, 200, 60), (40, 60, 220), (128, 128, 128)], np.uint8)
        video = parts_of(tmp_path / "a.mp4", "overlay", size=size)
        for index, colour in enumerate(colours):
            video.write(index, index, np.tile(colour, (*size, 1)))
        video.finish()
        frames, _, _ = read(tmp_path / "a.mp4")
        for got, colour in zip(frames, colours, strict=True):
            assert (got.format.name, got.height, got.width) == ("yuv420p", size[0] + size[0] % 2, size[1] + size[1] % 2)
            assert (got.colorspace, got.color_range, got.color_primaries, got.color_trc) == (1, 1, 1, 1)
            # The inverse of BT.709 in limited range, by itself.
            y, u, v = (np.array(plane)[0].astype(float) for plane in planes(got))
            y, u, v = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
            red, blue = y + 1.5748 * np.resize(v, y.shape), y + 1.8556 * np.resize(u, y.shape)
            green = (y - 0.2126 * red - 0.0722 * blue) / 0.7152
            assert np.abs(255 * np.stack([red, green, blue], -1) - colour).max() < 6

    def test_odd_sizes_repeat_the_last_row_and_column(self, tmp_path):
        grey = np.full((*SIZE, 3), 60, np.uint8)
        grey[-1] = grey[:, -1] = 200
        video = parts_of(tmp_path / "a.mp4", "overlay")
        video.write(0, 0, grey)
        video.finish()
        luma = planes(read(tmp_path / "a.mp4")[0][0])[0].astype(int)
        light, dark = 16 + 200 * 219 / 255, 16 + 60 * 219 / 255
        assert np.abs(luma[-2:] - light).max() < 8
        assert np.abs(luma[:, -2:] - light).max() < 8
        assert np.abs(luma[:-4, :-4] - dark).max() < 8

    def test_parts_begin_with_a_keyframe(self, tmp_path):
        write(parts_of(tmp_path / "a.mp4", "overlay"), range(70)).finish()
        assert [i for i, key in enumerate(keyframes(tmp_path / "a.mp4")) if key] == [0, 32, 64]


def planes(got):
    return [np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:, : plane.width] for plane in got.planes]


@pytest.mark.parametrize("kind", KINDS)
class TestTimes:
    @pytest.mark.parametrize("denominator", [25, 1000, 12800, 30000, 90000, 10**9, 2**31 - 1])
    @pytest.mark.parametrize("first", [1, 2**33 + 1])
    def test_exact(self, tmp_path, kind, denominator, first):
        base = Fraction(1, denominator)
        pts = [first + i + i % 3 // 2 for i in range(0, 3 * (PART + 3), 3)]
        video = parts_of(tmp_path / "a.mp4", kind, time_base=base)
        for index, at in enumerate(pts):
            video.write(index, at, frame(kind, index))
        video.finish()
        _, times, said = read(tmp_path / "a.mp4")
        assert times == [at * base for at in pts]
        assert said["time_base"] == base
        assert said["frames"] == len(pts)

    def test_variable_rate_and_the_last_duration(self, tmp_path, kind):
        pts = [0, 1001, 1002, 500_000, 500_333]
        video = parts_of(tmp_path / "a.mp4", kind)
        for index, at in enumerate(pts):
            video.write(index, at, frame(kind, index))
        video.finish()
        _, times, said = read(tmp_path / "a.mp4")
        assert times == [at * BASE for at in pts]
        assert said["seconds"] == (500_333 + 333) * BASE

    def test_one_frame_lasts_a_frame_of_the_rate(self, tmp_path, kind):
        video = parts_of(tmp_path / "a.mp4", kind)
        video.write(3, 3003, frame(kind, 3))
        assert video.finish() == 1
        _, times, said = read(tmp_path / "a.mp4")
        assert (times, said["seconds"], said["frames"]) == ([3003 * BASE], 1000 * BASE, 1)

    def test_before_0_all_move_together(self, tmp_path, kind):
        video = parts_of(tmp_path / "a.mp4", kind)
        for index in range(40):
            video.write(index, 1001 * index - 2500, frame(kind, index))
        assert video.finish() == 40
        assert read(tmp_path / "a.mp4")[1] == [1001 * index * BASE for index in range(40)]


@pytest.mark.parametrize("kind", KINDS)
class TestInterrupted:
    @pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 64, 65, 70])
    def test_left_and_resumed_gives_the_same_bytes(self, tmp_path, kind, n, whole):
        path = tmp_path / f"{kind}.mp4"
        write(parts_of(path, kind), range(n))
        again = parts_of(path, kind)
        # A frame beyond a part closes it, so the one before the last may be whole and yet unwritten.
        done = max(0, (n - 1) // PART)
        assert again.finished == {PART * part for part in range(done)}
        assert not path.exists()
        assert write(again, range(PART * done, 70)).finish() == 70
        assert path.read_bytes() == whole[kind]
        assert files_in(tmp_path) == [path.name]
        assert not (tmp_path / "parts").exists()

    @pytest.mark.parametrize("n", [1, 31, 32, 33, 64, 70])
    def test_stopped_video_is_valid_and_shorter(self, tmp_path, kind, n, whole):
        path = tmp_path / f"{kind}.mp4"
        stopped = write(parts_of(path, kind), range(n))
        assert stopped.finish(complete=False) == n
        frames, times, said = read(path)
        assert times == [1001 * index * BASE for index in range(n)]
        assert (len(frames), said["frames"]) == (n, n)
        if kind == "labels":
            for index, got in enumerate(frames):
                np.testing.assert_array_equal(got.to_ndarray(), frame(kind, index))
        done = (n - 1) // PART
        assert files_in(tmp_path) == [path.name] + [f"parts/{kind}_{PART * part:06d}.nut" for part in range(done)]
        again = parts_of(path, kind)
        assert write(again, range(PART * done, 70)).finish() == 70
        assert path.read_bytes() == whole[kind]
        assert files_in(tmp_path) == [path.name]

    def test_frames_of_finished_parts_are_passed_over(self, tmp_path, kind, whole):
        path = tmp_path / f"{kind}.mp4"
        write(parts_of(path, kind), range(40))
        before = (tmp_path / "parts" / f"{kind}_000000.nut").stat().st_mtime_ns
        again = write(parts_of(path, kind), range(40))
        assert (tmp_path / "parts" / f"{kind}_000000.nut").stat().st_mtime_ns == before
        write(again, range(40, 70)).finish()
        assert path.read_bytes() == whole[kind]

    def test_a_part_that_is_gone_is_made_again(self, tmp_path, kind, whole):
        path = tmp_path / f"{kind}.mp4"
        write(parts_of(path, kind), range(70)).close_part()
        (tmp_path / "parts" / f"{kind}_000032.nut").unlink()
        again = parts_of(path, kind)
        assert again.finished == {0, 64}
        assert write(again, range(32, 70)).finish() == 70
        assert path.read_bytes() == whole[kind]

    @posix
    @pytest.mark.parametrize(("call", "left"), [(2, ".{}_000032.nut.tmp"), (4, ".{}.mp4.tmp")])
    def test_killed_while_writing(self, tmp_path, kind, call, left, whole):
        path = tmp_path / f"{kind}.mp4"
        script = (
            "import os, signal, sys\n"
            "from pathlib import Path\n"
            "from tests.test_videowriting import parts_of, write\n"
            "calls = []\n"
            "def fsync(number, real=os.fsync):\n"
            "    calls.append(number)\n"
            f"    os.kill(os.getpid(), signal.SIGKILL) if len(calls) == {call} else real(number)\n"
            "os.fsync = fsync\n"
            "write(parts_of(Path(sys.argv[1]), sys.argv[2]), range(70)).finish()\n"
        )
        killed = subprocess.run([sys.executable, "-c", script, str(path), kind], cwd=Path(__file__).parents[1])
        assert killed.returncode == -signal.SIGKILL
        assert any(name.endswith(left.format(kind)) for name in files_in(tmp_path))
        assert not path.exists()
        again = parts_of(path, kind)
        assert again.finished == {PART * part for part in range(call - 1)}
        assert write(again, range(70)).finish() == 70
        assert path.read_bytes() == whole[kind]
        assert files_in(tmp_path) == [path.name]


class TestMissing:
    @pytest.mark.parametrize(
        "indices",
        [[*range(30), *range(100, 140)], [64], [0, 33, 66, 69], [5, 31, 32, 96, 1_000_000]],
        ids=["parts in the middle", "all but one", "one a part", "far apart"],
    )
    @pytest.mark.parametrize("kind", KINDS)
    def test_frames_and_whole_parts(self, tmp_path, kind, indices):
        path = tmp_path / f"{kind}.mp4"
        video = write(parts_of(path, kind), indices)
        video.close_part()
        assert video.finished == parts_of(path, kind).finished == {index - index % PART for index in indices}
        assert video.finish() == len(indices)
        assert read(path)[1] == [1001 * index * BASE for index in indices]
        assert files_in(tmp_path) == [path.name]

    @pytest.mark.parametrize("complete", [True, False])
    def test_all(self, tmp_path, complete):
        assert parts_of(tmp_path / "a.mp4").finish(complete=complete) == 0
        assert list(tmp_path.iterdir()) == []


class TestNeighbours:
    def test_two_videos_share_the_folder(self, tmp_path, whole):
        videos = {kind: parts_of(tmp_path / f"{kind}.mp4", kind) for kind in KINDS}
        for index in range(70):
            for kind, video in videos.items():
                video.write(index, 1001 * index, frame(kind, index))
        videos["labels"].finish()
        assert files_in(tmp_path) == ["labels.mp4", "parts/overlay_000000.nut", "parts/overlay_000032.nut"]
        videos["overlay"].finish()
        assert files_in(tmp_path) == ["labels.mp4", "overlay.mp4"]
        assert {kind: (tmp_path / f"{kind}.mp4").read_bytes() for kind in KINDS} == whole

    def test_parts_of_other_names_are_not_ours(self, tmp_path):
        write(parts_of(tmp_path / "a_000000.mp4"), range(33))
        write(parts_of(tmp_path / "axb.mp4"), range(33))
        assert parts_of(tmp_path / "a.mp4").finished == set()
        assert parts_of(tmp_path / "a.b.mp4").finished == set()
        (tmp_path / "parts" / "notes.txt").write_text("mine")
        write(parts_of(tmp_path / "a.b.mp4"), range(33)).finish()
        assert files_in(tmp_path) == ["a.b.mp4", "parts/a_000000_000000.nut", "parts/axb_000000.nut", "parts/notes.txt"]

    def test_remove_earlier(self, tmp_path):
        for name in ("labels.mp4", ".labels.mp4.tmp", "overlay.mp4", "labels.json"):
            (tmp_path / name).write_text("earlier")
        (tmp_path / "parts").mkdir()
        for name in ("labels_000000.nut", ".labels_000032.nut.tmp", "overlay_000000.nut", "labels_notes.txt"):
            (tmp_path / "parts" / name).write_text("earlier")
        video = parts_of(tmp_path / "labels.mp4")
        assert video.finished == {0}
        video.remove_earlier()
        assert video.finished == set()
        assert files_in(tmp_path) == [
            "labels.json",
            "overlay.mp4",
            "parts/labels_notes.txt",
            "parts/overlay_000000.nut",
        ]
        parts_of(tmp_path / "new.mp4").remove_earlier()

    def test_a_time_for_a_name(self, tmp_path, monkeypatch, whole):
        monkeypatch.chdir(tmp_path)
        write(parts_of("12:30 %d.mp4"), range(70)).finish()
        assert (tmp_path / "12:30 %d.mp4").read_bytes() == whole["labels"]


class TestJoin:
    @pytest.fixture
    def parts(self, tmp_path):
        video = write(parts_of(tmp_path / "a.mp4"), range(40))
        video.close_part()
        return sorted((tmp_path / "parts").iterdir())

    def test_same_bytes_each_time(self, tmp_path, parts):
        for name in ("b.mp4", "c.mp4"):
            assert join(parts, tmp_path / name, time_base=BASE, rate=RATE) == 40
        assert (tmp_path / "b.mp4").read_bytes() == (tmp_path / "c.mp4").read_bytes()
        assert b"Lavf" not in (tmp_path / "b.mp4").read_bytes(), "another version of FFmpeg would write another file"
        data = [part.read_bytes() for part in parts]
        assert join(data, str(tmp_path / "d.mp4"), time_base=BASE, rate=RATE) == 40
        assert (tmp_path / "b.mp4").read_bytes() == (tmp_path / "d.mp4").read_bytes()

    def refused(self, parts, target, message):
        target.write_text("earlier")
        before = files_in(target.parent)
        with pytest.raises(OutputError, match=message):
            join(parts, target, time_base=BASE, rate=RATE)
        assert target.read_text() == "earlier"
        assert files_in(target.parent) == before

    def test_nothing(self, tmp_path):
        self.refused([], tmp_path / "b.mp4", "expected at least one frame for .*b.mp4, but got none")

    def test_damaged(self, tmp_path, parts, capfd):
        parts[1].write_bytes(b"no video")
        self.refused(
            parts, tmp_path / "b.mp4", r"read .*a_000032.nut, but it failed: Invalid data.*; remove it and res"
        )
        assert capfd.readouterr() == ("", "")

    def test_vanished(self, tmp_path, parts):
        parts[1].unlink()
        self.refused(
            parts, tmp_path / "b.mp4", r"read .*a_000032.nut, but it failed: No such file.*; remove it and res"
        )

    @pytest.mark.parametrize("options", [{"size": (43, 62)}, {"n_classes": 257}, {"kind": "overlay"}])
    def test_unlike(self, tmp_path, parts, options):
        video = parts_of(tmp_path / "other.mp4", **options)
        video.write(40, 50_000, frame(video.kind, 40, video.size))
        video.close_part()
        other = tmp_path / "parts" / "other_000032.nut"
        self.refused(
            [*parts, other], tmp_path / "b.mp4", r"other_000032.nut to be like the parts before.*`--overwrite`"
        )

    def test_out_of_order(self, tmp_path, parts):
        message = (
            r"a_000000.nut to come after the part before, but it has a frame at 0 after one at 39039.*`--overwrite`"
        )
        self.refused(parts[::-1], tmp_path / "b.mp4", message)

    def test_times_that_mp4_has_no_room_for(self, tmp_path, capfd):
        video = parts_of(tmp_path / "b.mp4")
        for index, pts in enumerate([0, 1, 2**40]):
            video.write(index, pts, frame("labels", index))
        with pytest.raises(
            OutputError, match=r"expected FFmpeg to write .*b.mp4, but it refused: .*; write images inst"
        ):
            video.finish()
        assert files_in(tmp_path) == ["parts/b_000000.nut"]
        assert capfd.readouterr() == ("", "")


class TestRefused:
    @pytest.mark.parametrize("n_classes", [0, 65_537])
    def test_number_of_classes(self, tmp_path, n_classes):
        with pytest.raises(
            OutputError, match=rf"expected 1 to 65,536 classes .*, but got {n_classes:,}; merge .* TIFF"
        ):
            parts_of(tmp_path / "a.mp4", n_classes=n_classes)

    @pytest.mark.parametrize(
        ("kind", "array"),
        [
            ("labels", np.zeros((61, 43), int)),
            ("labels", np.zeros((*SIZE, 1), int)),
            ("labels", np.zeros(SIZE)),
            ("labels", np.zeros(SIZE, bool)),
            ("overlay", np.zeros(SIZE, np.uint8)),
            ("overlay", np.zeros((44, 61, 3), np.uint8)),
            ("overlay", np.zeros((*SIZE, 3), np.uint16)),
        ],
    )
    def test_another_picture(self, tmp_path, kind, array):
        with pytest.raises(OutputError, match=r"frame 7 has .*; bring it to the size of the others"):
            parts_of(tmp_path / "a.mp4", kind).write(7, 0, array)

    @pytest.mark.parametrize("wrong", [-1, 9])
    def test_other_ids(self, tmp_path, wrong):
        ids = np.zeros(SIZE, int)
        ids[3, 4] = wrong
        with pytest.raises(
            OutputError, match=r"expected class ids 0 to 8 for a.mp4, but frame 0 has .*; give the number"
        ):
            parts_of(tmp_path / "a.mp4", n_classes=9).write(0, 0, ids)

    @pytest.mark.parametrize(("index", "pts"), [(5, 101), (4, 101), (6, 100), (6, 99)])
    def test_order(self, tmp_path, index, pts):
        video = parts_of(tmp_path / "a.mp4")
        video.write(5, 100, frame("labels", 5))
        with pytest.raises(
            OutputError, match=rf"frame {index} at {pts} came after frame 5 at 100, in units of 1/30000 s"
        ):
            video.write(index, pts, frame("labels", 6))
        video.write(6, 101, frame("labels", 6))
        assert video.finish() == 2

    @pytest.mark.parametrize(("kind", "size"), [("overlay", (2, 20_000)), ("labels", (9, 1))])
    def test_a_size_that_ffmpeg_cannot_encode(self, tmp_path, capfd, kind, size):
        video = parts_of(tmp_path / "a.mp4", kind, size=size)
        with pytest.raises(
            OutputError, match=r"expected FFmpeg to write .*a.mp4, but it refused: .*; write images instead"
        ):
            video.write(0, 0, frame(kind, 0, size))
        assert capfd.readouterr() == ("", "")
        assert files_in(tmp_path) == []


class TestDisk:
    def test_full_at_a_part_and_tried_again(self, tmp_path, monkeypatch, whole):
        path = tmp_path / "labels.mp4"
        video = write(parts_of(path), range(64))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing(errno.ENOSPC))
            with pytest.raises(OutputError, match=r"write .*labels_000032.nut, but the disk is full; free some space"):
                write(video, [64])
        assert files_in(tmp_path) == ["parts/labels_000000.nut"]
        assert write(video, range(64, 70)).finish() == 70
        assert path.read_bytes() == whole["labels"]

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
    @pytest.mark.parametrize("kind", KINDS)
    def test_full_while_ffmpeg_writes(self, tmp_path, kind, capfd, whole):
        path = tmp_path / f"{kind}.mp4"
        path.write_text("earlier")
        video = write(parts_of(path, kind), range(70))
        for complete in (False, True):
            (tmp_path / f".{kind}.mp4.tmp").symlink_to("/dev/full")
            with pytest.raises(OutputError, match=rf"write .*{kind}.mp4, but the disk is full; free some space"):
                video.finish(complete=complete)
            assert path.read_text() == "earlier"
            assert not (tmp_path / f".{kind}.mp4.tmp").is_symlink()
        assert capfd.readouterr() == ("", "")
        assert files_in(tmp_path) == [path.name] + [f"parts/{kind}_{start:06d}.nut" for start in (0, 32, 64)]
        assert video.finish() == 70
        assert path.read_bytes() == whole[kind]

    def test_full_small_disk(self, tmp_path, tmp_path_factory):
        mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(tmp_path)]
        if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("needs a disk of its own")
        try:
            video = write(parts_of(tmp_path / "a.mp4"), range(64))
            video.close_part()
            earlier = files_in(tmp_path)
            assert earlier == ["parts/a_000000.nut", "parts/a_000032.nut"]
            with pytest.raises(OutputError, match=r"a.mp4, but the disk is full"):
                video.finish()
            assert files_in(tmp_path) == earlier
            with pytest.raises(OutputError, match=r"parts/a_000\d\d\d.nut, but the disk is full"):
                write(video, range(64, 256))
            left = [tmp_path / name for name in files_in(tmp_path)]
            assert [f"parts/{part.name}" for part in left[:2]] == earlier
            assert video.finished == {PART * part for part in range(len(left))}
            joined = tmp_path_factory.mktemp("elsewhere") / "a.mp4"
            assert join(left, joined, time_base=BASE, rate=RATE) == PART * len(left)
        finally:
            subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)

    def test_vanished_folder(self, tmp_path):
        (tmp_path / "out").mkdir()
        video = write(parts_of(tmp_path / "out" / "a.mp4"), range(32))
        (tmp_path / "out").rmdir()
        with pytest.raises(OutputError, match="there is no such folder; create it first"):
            write(video, [32])
        with pytest.raises(OutputError, match="there is no such folder; create it first"):
            video.finish(complete=False)

    def test_a_file_for_a_folder(self, tmp_path):
        video = write(parts_of(tmp_path / "a.mp4"), range(32))
        (tmp_path / "parts").touch()
        with pytest.raises(OutputError, match=r"parts.*, but there is a file of this name; choose another path"):
            video.close_part()
        with pytest.raises(OutputError, match="parts, but a part of this path is a file"):
            parts_of(tmp_path / "a.mp4")

    def test_no_permission(self, tmp_path, monkeypatch):
        video = write(parts_of(tmp_path / "a.mp4"), range(3))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", failing(errno.EACCES))
            with pytest.raises(OutputError, match=r"a.mp4, but permission denied; choose another folder"):
                video.finish(complete=False)
        assert files_in(tmp_path) == []
        monkeypatch.setattr(Path, "unlink", failing(errno.EACCES))
        with pytest.raises(OutputError, match=r"a.mp4, but permission denied; choose another folder"):
            video.remove_earlier()
