"""Reading videos: every container, order of frames, pixel format and time, and every way in which one can be broken."""

from __future__ import annotations

import io
import logging
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spwnet.videodecoding
import spwnet.videos
from spwnet.errors import InputError
from spwnet.images import ImageSource, check_same_channels, fingerprint, open_images
from spwnet.videos import KEPT, VideoSource, frame_at

if TYPE_CHECKING:
    from pathlib import Path

HEIGHT, WIDTH = 48, 64


def numbered(number: int) -> np.ndarray:
    """A frame of which the number can be read after lossy coding: its 8 bits above, something that moves below."""
    grey = np.zeros((HEIGHT, WIDTH), np.uint8)
    for bit in range(8):
        grey[:24, 8 * bit : 8 * bit + 8] = 235 if number >> bit & 1 else 20
    y, x = np.mgrid[:24, :WIDTH]
    grey[24:] = 60 + (5 * x + 3 * y + 7 * number) % 130
    return np.stack([grey, grey, grey], axis=-1)


def number_in(pixels: np.ndarray) -> int:
    level = 65535 if pixels.dtype == np.uint16 else 255
    return sum(int(pixels[4:20, 8 * bit + 2 : 8 * bit + 6].mean() > level / 2) << bit for bit in range(8))


def noise(*shape: int, dtype: str = "uint8", most: int | None = None) -> np.ndarray:
    return np.random.default_rng(0).integers(0, most or np.iinfo(dtype).max, shape, dtype, endpoint=True)


def write(
    path: Path,
    arrays,
    codec: str = "ffv1",
    stored: str = "gray",
    given: str = "gray",
    *,
    times=None,
    base: Fraction = Fraction(1, 25),
    container: dict | None = None,
    context: dict | None = None,
    rotation: tuple | None = None,
    **options: str,
) -> Path:
    """Write arrays or frames as a video."""
    with av.open(str(path), "w", options=container or {}) as video:
        stream = video.add_stream(codec, rate=25, options=options)
        stream.pix_fmt = stored
        stream.codec_context.time_base = base
        for name, value in (context or {}).items():
            setattr(stream.codec_context, name, value)
        if rotation is not None:
            stream.set_display_rotation(*rotation)
        for k, array in enumerate(arrays):
            frame = array if isinstance(array, av.VideoFrame) else av.VideoFrame.from_ndarray(array, format=given)
            if k == 0:
                stream.height, stream.width = frame.height, frame.width
            frame = frame.reformat(format=stored) if frame.format.name != stored else frame
            frame.pts, frame.time_base = k if times is None else times[k], base
            video.mux(stream.encode(frame))
        video.mux(stream.encode(None))
    return path


def film(path: Path, codec: str, stored: str = "yuv420p", count: int = 34, **options) -> Path:
    """Write numbered pictures with a lossy codec."""
    if codec == "libx265":
        options.setdefault("x265-params", "log-level=none")
    return write(path, map(numbered, range(count)), codec, stored, "rgb24", **options)


X264 = {"bf": "3", "b_strategy": "0", "g": "10", "preset": "veryfast", "qp": "20"}
KINDS = {
    "b-frames.mp4": ("libx264", X264 | {"x264-params": "b-pyramid=normal"}),
    "fragments.mp4": ("libx264", X264 | {"container": {"movflags": "frag_keyframe+empty_moov"}}),
    "open.mov": ("libx264", X264 | {"x264-params": "open-gop=1"}),
    "refresh.m4v": ("libx264", {"g": "12", "bf": "0", "x264-params": "intra-refresh=1", "preset": "veryfast"}),
    "b-frames.mkv": ("libx264", X264),
    "no-cues.MKV": ("libx264", X264 | {"container": {"live": "1"}}),
    "hevc.mp4": ("libx265", {"g": "10", "preset": "ultrafast"}),
    "b-frames.AVI": ("mpeg4", {"bf": "2", "g": "9", "b_strategy": "0", "qscale": "2"}),
    "short.avi": ("mpeg4", {"bf": "2", "g": "2", "b_strategy": "0"}),
    "plain.avi": ("mpeg4", {"g": "9"}),
    "order.avi": ("libx264", X264 | {"x264-params": "b-pyramid=normal"}),
    "vp9.webm": ("libvpx-vp9", {"g": "10", "deadline": "realtime", "cpu-used": "8"}),
}


@pytest.fixture(scope="module", params=KINDS)
def filmed(request, tmp_path_factory):
    codec, options = KINDS[request.param]
    return film(tmp_path_factory.mktemp("film") / request.param, codec, **options)


# Frames, order and times


def test_every_container_gives_its_frames_in_order_and_at_random(filmed):
    source = open_images(filmed)
    assert isinstance(source, VideoSource)
    assert isinstance(source, ImageSource)
    assert (len(source), source.shape, source.rate) == (34, (HEIGHT, WIDTH), 25)
    assert source.names[:2] == (f"{filmed.stem}_0000", f"{filmed.stem}_0001")
    assert source.numbers == tuple(range(34))
    seconds = [(stamp - source.timestamps[0]) * source.time_base for stamp in source.timestamps]
    assert seconds == [Fraction(k, 25) for k in range(34)]
    images = [source[k] for k in range(34)]
    assert [number_in(image.pixels) for image in images] == list(range(34))
    assert {(image.rgb, image.pixels.shape, image.pixels.dtype.name) for image in images} == {
        (True, (HEIGHT, WIDTH, 3), "uint8")
    }
    assert [image.name for image in images] == list(source.names)
    for k in [33, 0, *np.random.default_rng(1).permutation(34), 33]:
        np.testing.assert_array_equal(source[int(k)].pixels, images[k].pixels)
    np.testing.assert_array_equal(open_images(filmed)[17].pixels, images[17].pixels)


def test_frames_read_in_order_are_decoded_once_and_few_are_kept(filmed, monkeypatch):
    feed, calls, most = spwnet.videodecoding.FrameDecoder._feed, [], 0
    monkeypatch.setattr(spwnet.videodecoding.FrameDecoder, "_feed", lambda self: (calls.append(self), feed(self))[1])
    source = VideoSource(filmed)
    for k in range(34):
        for again in (k, k, max(k - 3, 0)):
            source[again]
        most = max(most, len(source._cache))
    assert most == KEPT
    once = calls.count(source._decoder)
    assert once in (34, 35)  # the end is decoded if frames come late
    assert len(calls) - once == (35 if filmed.name == "order.avi" else 0)  # its order has to be found first


@pytest.mark.parametrize("kind", ["b-frames.mp4", "b-frames.mkv", "short.avi", "order.avi", "vp9.webm"])
def test_a_frame_far_away_is_reached_from_its_keyframe(tmp_path, monkeypatch, kind):
    codec, options = KINDS[kind]
    source = VideoSource(film(tmp_path / kind, codec, count=40, **options))
    feed, calls = spwnet.videodecoding.FrameDecoder._feed, []
    monkeypatch.setattr(spwnet.videodecoding.FrameDecoder, "_feed", lambda self: (calls.append(self), feed(self))[1])
    assert number_in(source[31].pixels) == 31
    assert len(calls) < 16
    calls.clear()
    assert number_in(source[21].pixels) == 21
    assert len(calls) < 16


def test_several_threads_read_the_same_frames_as_one(filmed):
    plain = VideoSource(filmed)
    expected = [plain[k].pixels for k in range(34)]
    source, start = VideoSource(filmed), threading.Barrier(4)

    def read(first):
        start.wait(20)
        return [(k, source[k].pixels) for k in range(first, 34, 4)]

    with ThreadPoolExecutor(4) as pool:
        for part in pool.map(read, (1, 0, 3, 2)):
            for k, pixels in part:
                np.testing.assert_array_equal(pixels, expected[k])


def test_positions_count_from_the_end_and_end(tmp_path):
    source = VideoSource(write(tmp_path / "a.mkv", noise(3, 8, 16)))
    np.testing.assert_array_equal(source[-1].pixels, source[2].pixels)
    with pytest.raises(IndexError):
        source[3]


def test_pixels_belong_to_the_caller(tmp_path):
    frames = noise(2, 8, 16)
    source = VideoSource(write(tmp_path / "a.mkv", frames))
    source[0].pixels[:] = 0
    np.testing.assert_array_equal(source[0].pixels[..., 0], frames[0])


@pytest.mark.parametrize(("name", "codec", "stored"), [("a.mkv", "ffv1", "gray"), ("a.mp4", "libx264", "yuv420p")])
def test_frames_at_uneven_times_keep_them(tmp_path, name, codec, stored):
    times = [0, 10, 11, 30, 70, 71, 72, 200, 1000]
    path = film(tmp_path / name, codec, stored, len(times), times=times, base=Fraction(1, 1000))
    source = VideoSource(path)
    assert [stamp * source.time_base for stamp in source.timestamps] == [Fraction(time, 1000) for time in times]
    order = [7, 2, 8, 0, 5, 1, 6, 3, 4]
    assert [number_in(source[k].pixels.repeat(3, -1)) for k in order] == order
    assert [frame_at(source, s) for s in (0, 0.009, 0.01, 0.0705, 0.2, 0.999, 1, 1.01)] == [0, 0, 1, 4, 7, 7, 8, 8]


def test_a_frame_is_found_at_exactly_its_time_and_none_outside(tmp_path):
    path = write(tmp_path / "a.avi", noise(30, 8, 16), times=range(30), base=Fraction(1, 30), context={"framerate": 30})
    source = VideoSource(path)
    assert [frame_at(source, k / 30) for k in range(30)] == list(range(30))
    assert [frame_at(source, float((stamp) * source.time_base)) for stamp in source.timestamps] == list(range(30))
    for seconds in (-0.001, 1.01, float("nan"), float("inf")):
        with pytest.raises(InputError, match=rf"a time from 0 to 1\.000 s in '.*a\.avi', but got {seconds} s; choose"):
            frame_at(source, seconds)


def test_times_at_which_an_avi_has_no_frame_are_left_out(tmp_path, caplog):
    frames = noise(4, 8, 16)
    source = VideoSource(write(tmp_path / "a.avi", frames, times=[0, 1, 4, 6]))
    assert source.timestamps == (0, 1, 4, 6)
    assert "cut off" not in caplog.text
    for k in (3, 1, 2, 0):
        np.testing.assert_array_equal(source[k].pixels[..., 0], frames[k])


def test_what_is_shown_before_a_keyframe_is_not_taken_from_a_decoder_that_starts_there(tmp_path):
    source = VideoSource(film(tmp_path / "a.avi", "mpeg4", g="5", qscale="2"))
    # As if the container went further back than asked, to a packet from which nothing can be decoded.
    source._index.keyframes = np.array([0, 22])
    assert number_in(source[23].pixels) == 23
    assert set(source._cache) == {22, 23}


def test_packets_that_a_container_leaves_out_do_not_shift_the_others(tmp_path):
    frames = noise(12, 8, 16)
    source = VideoSource(write(tmp_path / "a.mkv", frames, g="1"))
    source[1]
    next(source._decoder._packets)
    for k in (2, 3, 11):
        np.testing.assert_array_equal(source[k].pixels[..., 0], frames[k])


def test_a_container_that_goes_too_far_is_read_from_its_start(tmp_path):
    source = VideoSource(film(tmp_path / "a.avi", "mpeg4", g="5", qscale="2"))
    source._index.targets[:] = 33
    for k in (31, 2, 20):
        assert number_in(source[k].pixels) == k


def test_frames_of_the_same_time_keep_their_order(tmp_path):
    frames = noise(4, 8, 16)
    source = VideoSource(write(tmp_path / "a.mkv", frames, times=[0, 40, 40, 80], base=Fraction(1, 1000)))
    assert source.timestamps == (0, 40, 41, 80)
    for k in (2, 1, 3, 0):
        np.testing.assert_array_equal(source[k].pixels[..., 0], frames[k])


def test_one_frame_is_a_video(tmp_path):
    frame = noise(1, 8, 16)
    source = VideoSource(write(tmp_path / "a.mkv", frame))
    assert (len(source), source.rate) == (1, 25)
    np.testing.assert_array_equal(source[0].pixels[..., 0], frame[0])
    assert frame_at(source, 0.039) == 0


def test_frames_that_an_edit_list_hides_are_none(tmp_path):
    path = film(tmp_path / "a.mp4", "libx264", **X264)
    data = bytearray(path.read_bytes())
    at = data.find(b"elst") + 16
    first = struct.unpack(">i", data[at : at + 4])[0]
    data[at : at + 4] = struct.pack(">i", first + 7 * 512)
    path.write_bytes(data)
    source = VideoSource(path)
    assert len(source) == 27
    assert source.timestamps[0] == 0
    for k in (0, 26, 3, 1):
        assert number_in(source[k].pixels) == k + 7


def with_edits(path: Path, *edits: tuple[int, int]) -> Path:
    """Give the one track of an MP4 file an edit list: duration in ms and first time in 1/12800 s of each part."""
    data = path.read_bytes()
    at = data.find(b"elst") - 4
    size = int.from_bytes(data[at : at + 4], "big")
    parts = b"".join(struct.pack(">IiI", duration, first, 65536) for duration, first in edits)
    box = struct.pack(">I4sII", 16 + len(parts), b"elst", 0, len(edits)) + parts
    for kind in (b"edts", b"trak", b"moov"):
        outer = data.find(kind) - 4
        longer = int.from_bytes(data[outer : outer + 4], "big") + len(box) - size
        data = data[:outer] + longer.to_bytes(4, "big") + data[outer + 4 :]
    path.write_bytes(data[:at] + box + data[at + size :])
    return path


def test_frames_that_an_edit_list_repeats_are_several(tmp_path):
    parts = [(400, 1024 + 512 * first) for first in (10, 15, 20, 20)]
    source = VideoSource(with_edits(film(tmp_path / "a.mp4", "libx264", **X264), *parts))
    shown = [*range(10, 20), *range(15, 25), *range(20, 30), *range(20, 30)]
    assert [number_in(source[k].pixels) for k in range(len(source))] == shown
    for k in (39, 19, 3, 33, 22, 13, 0, 38, 12, 10, 28, 9):
        assert number_in(source[k].pixels) == shown[k]


def test_samples_without_data_are_no_frames(tmp_path, caplog):
    path = film(tmp_path / "a.mp4", "mpeg4", qscale="2", g="5")
    data = bytearray(path.read_bytes())
    at = data.find(b"stsz") + 16 + 4 * 33
    data[at : at + 4] = bytes(4)
    path.write_bytes(data)
    source = VideoSource(path)
    assert good(source) == list(range(33))
    assert caplog.text == ""


@given(st.data())
@settings(max_examples=25)
def test_any_times_and_any_order_of_access(tmp_path_factory, data):
    steps = data.draw(st.lists(st.integers(1, 5000), min_size=1, max_size=14))
    order = data.draw(st.lists(st.integers(0, len(steps) - 1), max_size=20))
    frames, times = noise(len(steps), 6, 10), np.cumsum(steps).tolist()
    path = tmp_path_factory.mktemp("any") / "a.mkv"
    every = str(data.draw(st.integers(1, 5)))
    source = VideoSource(write(path, frames, times=times, base=Fraction(1, 1000), g=every))
    # The muxer may move the first frame to 0.
    assert [stamp - source.timestamps[0] for stamp in source.timestamps] == [time - times[0] for time in times]
    for k in order:
        np.testing.assert_array_equal(source[k].pixels[..., 0], frames[k])


def test_a_name_with_any_character(tmp_path):
    path = write(tmp_path / "a:b %03d?ü 'x'.mkv", noise(2, 8, 16))
    assert open_images([path]).names[1] == "a:b %03d?ü 'x'_0001"


# Pixels


@pytest.mark.parametrize(
    ("stored", "dtype", "most"),
    [("gray", "uint8", 255), ("gray16le", "uint16", 65535), ("gray10le", "uint16", 1023), ("gray12le", "uint16", 4095)],
)
def test_grey_values_are_those_stored(tmp_path, stored, dtype, most):
    frames = noise(3, 43, 61, dtype=dtype, most=most)
    frames[0, 0, 0], frames[0, 0, 1] = 0, most
    source = VideoSource(write(tmp_path / "a.mkv", frames, stored=stored, given=stored))
    for k in range(3):
        image = source[k]
        assert (image.pixels.dtype.name, image.pixels.shape, image.rgb) == (dtype, (43, 61, 1), False)
        np.testing.assert_array_equal(image.pixels[..., 0], frames[k])
    assert check_same_channels(source) == 1


@pytest.mark.parametrize(
    ("stored", "given", "shape"), [("bgra", "rgba", (2, 43, 61, 4)), ("gbrap16le", "rgba64le", (2, 43, 61, 4))]
)
def test_alpha_is_left_out_with_a_warning(tmp_path, caplog, stored, given, shape):
    frames = noise(*shape, dtype="uint16" if "16" in stored else "uint8")
    source = VideoSource(write(tmp_path / "a.mkv", frames, stored=stored, given=given))
    np.testing.assert_array_equal(source[1].pixels, frames[1, ..., :3])
    assert [r.message.split(" of ")[0] for r in caplog.records if r.levelno >= logging.WARNING] == ["the alpha channel"]


def test_grey_with_alpha_is_grey(tmp_path):
    frame = av.VideoFrame(16, 8, "ya8")
    plane = frame.planes[0]
    values = noise(8, 16, 2)
    rows = np.zeros((8, plane.line_size), np.uint8)
    rows[:, :32] = values.reshape(8, 32)
    plane.update(rows.tobytes())
    source = VideoSource(write(tmp_path / "a.mkv", [frame], stored="ya8"))
    np.testing.assert_array_equal(source[0].pixels, values[..., :1])


def test_rgb_of_8_bits_is_exact(tmp_path):
    frames = noise(2, 43, 61, 3)
    source = VideoSource(write(tmp_path / "a.mkv", frames, stored="bgr0", given="rgb24"))
    np.testing.assert_array_equal(source[1].pixels, frames[1])
    assert check_same_channels(source) == 3


@pytest.mark.parametrize(("name", "codec"), [("a.webm", "libvpx-vp9"), ("a.mkv", "ffv1"), ("a.avi", "mpeg4")])
def test_odd_sizes(tmp_path, name, codec):
    y, x = np.mgrid[:43, :61]
    smooth = np.stack([3 * x, 4 * y, 2 * (x + y)], axis=-1).astype(np.uint8)
    options = {"qscale": "1"} if codec == "mpeg4" else {"crf": "5", "b": "0"} if "vp9" in codec else {}
    source = VideoSource(write(tmp_path / name, [smooth] * 3, codec, "yuv420p", "rgb24", **options))
    assert source.shape == (43, 61)
    difference = np.abs(source[2].pixels.astype(int) - smooth)
    assert difference.shape == (43, 61, 3)
    assert difference.mean() < 4


COLOURS = [(0, 0, 0), (255, 255, 255), (200, 30, 40), (20, 180, 60), (30, 40, 210), (128, 128, 128)]


def coded(rgb, red: float, blue: float, full: bool, bits: int = 8) -> tuple[int, int, int]:
    """Y, Cb, Cr of a colour, by the equations of BT.601, BT.709 and BT.2020."""
    r, g, b = (value / 255 for value in rgb)
    y = red * r + (1 - red - blue) * g + blue * b
    cb, cr = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
    scale = 2 ** (bits - 8)
    if full:
        return round(255 * scale * y), round(255 * scale * cb) + 128 * scale, round(255 * scale * cr) + 128 * scale
    return round(scale * (16 + 219 * y)), round(scale * (128 + 224 * cb)), round(scale * (128 + 224 * cr))


def flat(values, form: str) -> av.VideoFrame:
    frame = av.VideoFrame(WIDTH, HEIGHT, form)
    for plane, value in zip(frame.planes, values, strict=True):
        plane.update(np.full(plane.buffer_size // (2 if "10" in form else 1), value, "<u2" if "10" in form else "u1"))
    return frame


@pytest.mark.parametrize(
    ("space", "red", "blue"), [(1, 0.2126, 0.0722), (6, 0.299, 0.114), (2, 0.299, 0.114), (9, 0.2627, 0.0593)]
)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("form", "bits"), [("yuv420p", 8), ("yuv420p10le", 10)])
def test_colours_are_converted_as_they_are_declared(tmp_path, form, bits, full, space, red, blue):
    context = {"colorspace": space, "color_range": 2 if full else 1}
    frames = [flat(coded(colour, red, blue, full, bits), form) for colour in COLOURS]
    source = VideoSource(write(tmp_path / "a.mkv", frames, stored=form, context=context))
    for k, colour in enumerate(COLOURS):
        pixels = source[k].pixels
        assert pixels.dtype == ("uint8" if bits == 8 else "uint16")
        unit, tolerance = (1, 3) if bits == 8 else (257, 257)
        np.testing.assert_allclose(pixels, np.broadcast_to(colour, pixels.shape) * unit, atol=tolerance)


def test_colours_are_the_same_on_every_machine(tmp_path):
    y, x = np.mgrid[:72, :64]
    frame = av.VideoFrame.from_ndarray(((37 * y * y + 101 * x) % 256).astype(np.uint8), format="yuv420p")
    source = VideoSource(write(tmp_path / "a.mkv", [frame], stored="yuv420p"))
    assert fingerprint(source[0])[:16] == "e2a74ce6e99cdfd1"


def test_frames_without_a_declared_range_are_limited_and_motion_jpeg_is_full(tmp_path):
    values = coded((200, 30, 40), 0.299, 0.114, False)
    pixels = VideoSource(write(tmp_path / "a.mkv", [flat(values, "yuv420p")], stored="yuv420p"))[0].pixels
    np.testing.assert_allclose(pixels, np.broadcast_to((200, 30, 40), pixels.shape), atol=3)
    values = coded((200, 30, 40), 0.299, 0.114, True)
    frame = flat(values, "yuvj420p")
    path = write(tmp_path / "a.avi", [frame], "mjpeg", "yuvj420p", context={"color_range": 2}, qscale="1")
    pixels = VideoSource(path)[0].pixels
    np.testing.assert_allclose(pixels, np.broadcast_to((200, 30, 40), pixels.shape), atol=4)


def test_ten_bits_are_more_than_eight(tmp_path):
    levels = [
        VideoSource(write(tmp_path / "a.mkv", [flat((y, 512, 512), "yuv420p10le")], stored="yuv420p10le"))[0]
        for y in (500, 501, 502)
    ]
    first, second, third = (int(level.pixels[5, 5, 1]) for level in levels)
    assert 50 < second - first < 100
    assert 50 < third - second < 100


def test_floats_are_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mkv", noise(1, 8, 16))
    monkeypatch.setattr(
        spwnet.videos, "_form", lambda form, real=spwnet.videos._form: real(av.VideoFormat("grayf32le"))
    )
    with pytest.raises(InputError, match=r"a\.mkv'.*up to 16 bits, but their format is grayf32le; convert"):
        VideoSource(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_pixels_are_upright(tmp_path, name, degrees, flips):
    frames = [np.roll(numbered(k), 9, axis=0) for k in range(2)]
    options = {"codec": "libx264", "stored": "yuv420p", "given": "rgb24", "qp": "10"}
    plain = VideoSource(write(tmp_path / f"plain_{name}", frames, **options))[1].pixels
    source = VideoSource(write(tmp_path / name, frames, rotation=(degrees, *flips), **options))
    expected = np.rot90(plain, degrees // 90)
    expected = expected[:, ::-1] if flips[0] else expected
    expected = expected[::-1] if flips[1] else expected
    assert source.shape == expected.shape[:2]
    np.testing.assert_array_equal(source[1].pixels, expected)
    assert source[1].pixels.flags.c_contiguous


def test_a_rotation_that_is_no_quarter_turn_is_left_out_with_a_warning(tmp_path, caplog):
    source = VideoSource(write(tmp_path / "a.mkv", noise(2, 8, 16), rotation=(30, False, False)))
    assert source.shape == (8, 16)
    assert "is to be shown askew" in caplog.text


def jpegs(path: Path, pictures, exif: PIL.Image.Exif | None = None) -> Path:
    """Write pictures as Motion JPEG, each as it is."""
    with av.open(str(path), "w") as video:
        stream = video.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        video.start_encoding()
        for k, pixels in enumerate(pictures):
            file = io.BytesIO()
            PIL.Image.fromarray(pixels).save(file, "JPEG", quality=95, **({} if exif is None else {"exif": exif}))
            packet = av.Packet(file.getvalue())
            packet.pts = packet.dts = k
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 25), stream, True
            video.mux(packet)
    return path


def test_jpegs_that_say_how_they_were_held_are_upright(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise
    source = VideoSource(jpegs(tmp_path / "a.avi", map(numbered, range(3)), exif))
    assert source.shape == (WIDTH, HEIGHT)
    assert number_in(np.rot90(source[2].pixels)) == 2


# Damage


def packets_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def damage(path: Path, packet: int, *, whole: bool) -> None:
    """Overwrite the middle of a packet, or all of it but its start."""
    data, wanted = path.read_bytes(), packets_of(path)[packet]
    at = data.find(wanted)
    assert at > 0
    assert data.count(wanted) == 1
    a, b = (at + 4, at + len(wanted)) if whole else (at + len(wanted) // 2, at + len(wanted) // 2 + 8)
    path.write_bytes(data[:a] + bytes(255 - byte for byte in data[a:b]) + data[b:])


def good(source: VideoSource, order=None) -> list[int]:
    """Numbers of the frames that can be read; the others must say so."""
    errors = {}
    for k in range(len(source)) if order is None else order:
        try:
            source[k]
        except InputError as error:
            errors[k] = str(error)
    assert all(text.startswith(f"cannot read frame {k} of '{source.path}', at ") for k, text in errors.items())
    return [k for k in range(len(source)) if k not in errors]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("stored", ["gray", "bgr0"])
def test_a_damaged_frame_of_ffv1_is_told_by_its_checksum(tmp_path, stored, whole, caplog, capfd):
    frames = noise(12, 24, 32) if stored == "gray" else noise(12, 24, 32, 3)
    path = write(
        tmp_path / "a.mkv",
        frames,
        stored=stored,
        given="gray" if stored == "gray" else "rgb24",
        level="3",
        slicecrc="1",
        g="1",
    )
    damage(path, 5, whole=whole)
    source = VideoSource(path)
    assert source[6].name == "a_0006"
    with pytest.raises(
        InputError, match=r"frame 5 of '.*a\.mkv', at 0\.200 s: .* damaged or missing; leave it out, or copy"
    ):
        source[5]
    assert good(source) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    for k in (11, 6, 4):
        np.testing.assert_array_equal(source[k].pixels.squeeze(), frames[k])
    assert "traces" not in caplog.text
    assert capfd.readouterr().err == ""


def test_checksums_of_several_slices(tmp_path):
    path = write(tmp_path / "a.mkv", noise(4, 96, 128), level="3", slicecrc="1", g="1", slices="9")
    packets = packets_of(path)
    assert all(map(spwnet.videodecoding._is_intact, packets))
    for at in (20, len(packets[0]) // 2, len(packets[0]) - 30, len(packets[0]) - 1):
        changed = bytearray(packets[0])
        changed[at] ^= 4
        assert not spwnet.videodecoding._is_intact(bytes(changed))


def test_ffv1_without_checksums_is_read(tmp_path):
    frames = noise(4, 24, 32)
    source = VideoSource(write(tmp_path / "a.mkv", frames, level="1"))
    np.testing.assert_array_equal(source[3].pixels[..., 0], frames[3])


def test_frames_of_ffv1_that_build_on_a_damaged_one_come_with_one_warning(tmp_path, caplog):
    path = write(tmp_path / "a.mkv", noise(18, 24, 32), level="3", slicecrc="1", g="6")
    damage(path, 8, whole=False)
    source = VideoSource(path)
    assert 8 not in good(source)
    traces = [record.getMessage() for record in caplog.records if "traces" in record.getMessage()]
    assert traces == [
        f"frame 9 of '{path}' follows a damaged one and may show traces of it, as may all to the next keyframe"
    ]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("kind", ["b-frames.mp4", "b-frames.mkv", "b-frames.AVI", "order.avi", "vp9.webm", "hevc.mp4"])
@pytest.mark.parametrize("packet", [3, 15])
def test_a_damaged_frame_among_others(tmp_path, kind, whole, packet, caplog, capfd):
    codec, options = KINDS[kind]
    path = film(tmp_path / kind, codec, **options)
    clean = VideoSource(path)
    expected = [clean[k].pixels for k in range(34)]
    damage(path, packet, whole=whole)
    apart = {*range(packet - 6), *range(packet // 10 * 10 + 10, 34)}
    source = VideoSource(path)
    numbers = good(source)
    warned = "may show traces" in caplog.text
    assert apart <= set(numbers)
    for k in apart:
        np.testing.assert_array_equal(source[k].pixels, expected[k])
    backwards = good(VideoSource(path), reversed(range(34)))
    if whole or codec in ("libx264", "mpeg4"):  # other decoders do not notice a few wrong bytes
        assert numbers != list(range(34))
        assert backwards == numbers
        followers = [k for k in numbers if number_in(source[k].pixels) != k or (source[k].pixels != expected[k]).any()]
        # Where a missing frame of this one belongs, nothing tells: others can move by one.
        assert kind == "order.avi" or not followers or warned
    assert capfd.readouterr().err == ""


def test_a_long_gap_is_searched_once(tmp_path, monkeypatch):
    path = film(tmp_path / "a.mp4", "libx265", count=40, g="20", preset="ultrafast", bf="0")
    damage(path, 21, whole=True)
    source = VideoSource(path)
    feed, calls = spwnet.videodecoding.FrameDecoder._feed, []
    monkeypatch.setattr(spwnet.videodecoding.FrameDecoder, "_feed", lambda self: (calls.append(self), feed(self))[1])
    numbers = good(source)
    assert set(range(21)) <= set(numbers)
    assert len(numbers) < 40
    assert len(calls) < 150


def test_reading_goes_on_after_an_error_of_the_disk(tmp_path, monkeypatch):
    source = VideoSource(film(tmp_path / "a.mp4", "libx264", **X264))

    def feed(decoder):
        next(decoder._packets)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(spwnet.videodecoding.FrameDecoder, "_feed", feed)
        with pytest.raises(InputError, match=r"frame 8 of '.*a\.mp4', at 0\.320 s, but: Input/output error; check"):
            source[8]
    assert number_in(source[8].pixels) == 8
    assert good(source) == list(range(34))


def test_a_file_that_vanishes_is_an_error_and_one_that_returns_is_read(tmp_path):
    path = write(tmp_path / "a.mkv", noise(20, 8, 16))
    source = VideoSource(path)
    source._decoder = None
    path.rename(tmp_path / "b.mkv")
    with pytest.raises(InputError, match=r"frame 12 of '.*a\.mkv', at 0\.480 s, but: No such file"):
        source[12]
    (tmp_path / "b.mkv").rename(path)
    assert source[12].name == "a_0012"


def test_frames_beyond_the_end_of_the_file_are_errors_at_their_turn(tmp_path, caplog, capfd):
    path = film(tmp_path / "a.mp4", "libx264", container={"movflags": "faststart"}, **X264)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4])
    source = VideoSource(path)
    assert len(source) == 34
    assert [stamp * source.time_base for stamp in source.timestamps] == [Fraction(k, 25) for k in range(34)]
    numbers = good(source)
    assert 12 < len(numbers) < 30
    assert [number_in(source[k].pixels) for k in numbers] == numbers
    assert f"{34 - len(numbers)} of 34 frames of" in caplog.text
    with pytest.raises(InputError, match=r"frame 33 of .*damaged or missing"):
        source[33]
    assert number_in(source[numbers[-1]].pixels) == numbers[-1]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [("a.avi", "it speaks of 40 frames, but ends with number"), ("a.mkv", "s, but its last frame is at 3.8 s")],
)
def test_other_files_that_are_cut_off_are_doubted(tmp_path, name, said, caplog):
    frames = noise(40, 24, 32)
    path = write(tmp_path / name, frames, times=range(40), base=Fraction(1, 5), context={"framerate": 5}, g="1")
    assert len(VideoSource(path)) == 40
    assert "cut off" not in caplog.text
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    source = VideoSource(path)
    assert 15 < len(source) < 25
    np.testing.assert_array_equal(source[14].pixels[..., 0], frames[14])
    assert said in caplog.text


def test_frames_of_another_size_are_errors(tmp_path):
    small = numbered(3)[:32, :40]
    source = VideoSource(jpegs(tmp_path / "a.avi", [numbered(0), numbered(1), small, numbered(3)]))
    assert number_in(source[1].pixels) == 1
    with pytest.raises(
        InputError, match=r"frame 2 of '.*a\.avi'.*the first is 64×48.*and this one 40×32.*cut the video"
    ):
        source[2]
    assert number_in(source[3].pixels) == 3


def test_frames_of_another_kind_are_errors(tmp_path):
    source = VideoSource(jpegs(tmp_path / "a.avi", [numbered(0), numbered(1)[..., 0], numbered(2)]))
    with pytest.raises(InputError, match=r"the first is 64×48 .*rgb24, and this one 64×48 .*gray; cut"):
        source[1]
    assert number_in(source[2].pixels) == 2


# What cannot be opened


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as video:
        stream = video.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 44100, 0
        video.mux(stream.encode(frame))
        video.mux(stream.encode(None))
    return path


def changed(path: Path, change) -> Path:
    path.write_bytes(change(path.read_bytes()))
    return path


def plain(path: Path, **options) -> Path:
    return film(path, "libx264", count=6, **options)


KEYS = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
    "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
}
UNREADABLE = {
    "sound": (lambda p: sound(p / "a.mp4"), "expected a video stream, but the file holds only audio; give"),
    "empty": (lambda p: changed(plain(p / "a.mp4"), lambda data: b""), "the file is empty; copy"),
    "text": (
        lambda p: changed(plain(p / "a.mp4"), lambda data: b"some text\n" * 99),
        "it is something else or damaged",
    ),
    "subtitles": (
        lambda p: changed(plain(p / "a.mp4"), lambda data: b"1\n00:00:00,000 --> 00:00:10,000\nhello\n\n"),
        "it is something else or damaged; check it in a player, or convert it to MP4",
    ),
    "playlist": (
        lambda p: changed(
            plain(p / "a.mp4"), lambda data: f"ffconcat version 1.0\nfile {plain(p / 'b.mp4')}\n".encode()
        ),
        "it is something else or damaged",
    ),
    "hidden": (
        lambda p: with_edits(plain(p / "a.mp4"), (400, 10**6)),
        "an edit list hides all of them; export the video without it",
    ),
    "no moov": (
        lambda p: changed(plain(p / "a.mp4"), lambda data: data[:-400]),
        r"table of frames \(moov\) is missing",
    ),
    "encrypted": (lambda p: plain(p / "a.mp4", container=KEYS), "but it is encrypted; export it without"),
    "unknown": (lambda p: changed(plain(p / "a.mp4"), lambda d: d.replace(b"avc1", b"zzzz")), r"it is \(zzzz / 0x7A"),
    "unknown avi": (
        lambda p: changed(write(p / "a.avi", noise(2, 8, 16)), lambda d: d.replace(b"FFV1", b"QQQQ")),
        r"a codec that FFmpeg decodes, but it is \(QQQQ / 0x51515151\); convert",
    ),
    "no frames": (lambda p: jpegs(p / "a.avi", []), "its video stream holds none; copy"),
    "all damaged": (
        lambda p: changed(
            plain(p / "a.mp4"),
            lambda d: d.replace(
                d[d.find(b"mdat") + 4 : d.find(b"moov") - 4], b"\0" * (d.find(b"moov") - d.find(b"mdat") - 8)
            ),
        ),
        "none of 6 can be decoded; copy",
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_is_no_readable_video_is_an_error(tmp_path, kind, capfd):
    make, message = UNREADABLE[kind]
    path = make(tmp_path)
    level = av.logging.get_level()
    with pytest.raises(InputError, match=rf"cannot read '.*a\.\w+': .*{message}"):
        open_images(path)
    assert capfd.readouterr().err == ""
    assert av.logging.get_level() == level


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"a\.mp4', but: No such file or directory"):
        VideoSource(tmp_path / "a.mp4")


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = plain(tmp_path / "a.mp4")
    monkeypatch.setattr(spwnet.videodecoding, "MOST_PIXELS", 1000)
    with pytest.raises(InputError, match="at most 1,000 pixels, but they have 48×64; scale"):
        VideoSource(path)


def test_pyav_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    path = plain(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"a\.mp4': expected PyAV.*install it by `pip install 'spwnet\[video\]'`"):
        open_images(path)


# Among other files


def test_one_video_is_opened_at_a_time(tmp_path):
    first, second = plain(tmp_path / "a.mp4"), write(tmp_path / "b.mkv", noise(2, 8, 16))
    PIL.Image.fromarray(noise(8, 16)).save(tmp_path / "c.png")
    for several in ([first, second], [tmp_path / "c.png", first]):
        with pytest.raises(InputError, match=r"one video alone, but got .*a\.mp4 among 2 files; open it by itself"):
            open_images(several)
    (tmp_path / "c.png").unlink()
    for place in (tmp_path, tmp_path / "*.m*"):
        with pytest.raises(InputError, match=r"expected images or one video in .*there are 2 videos; open one video"):
            open_images(place)


def test_images_in_a_folder_come_before_videos(tmp_path, caplog):
    plain(tmp_path / "film.MP4")
    PIL.Image.fromarray(noise(8, 16)).save(tmp_path / "c.png")
    source = open_images(tmp_path)
    assert source.names == ("c",)
    assert "not images are left out: film.MP4" in caplog.text


def test_a_video_alone_in_a_folder_is_read(tmp_path, caplog):
    plain(tmp_path / "film.MP4")
    (tmp_path / "notes.txt").write_text("…")
    for place in (tmp_path, tmp_path / "*.MP4", str(tmp_path / "film.MP4")):
        assert len(open_images(place)) == 6
    assert "film.MP4" not in caplog.text
    assert "left out: notes.txt" in caplog.text


def test_channels_are_counted_without_decoding(tmp_path, monkeypatch):
    source = VideoSource(plain(tmp_path / "a.mp4"))
    monkeypatch.setattr(VideoSource, "__getitem__", None)
    assert check_same_channels(source) == 3
    assert source.channels(5) == 3


def test_the_file_is_closed_with_the_source(tmp_path, monkeypatch):
    source = VideoSource(plain(tmp_path / "a.mp4"))
    source[5]
    container = source._decoder._container
    assert container.input_was_opened
    del source
    assert not container.input_was_opened
