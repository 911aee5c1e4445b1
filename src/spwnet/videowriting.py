"""Writer of videos in parts of a few frames: a crash loses one part, and a resumed run gives the same file."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from spwnet.errors import OutputError
from spwnet.storage import readable_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from fractions import Fraction

    from av import Packet, VideoFrame, VideoStream
    from numpy.typing import NDArray

PART = 32
"""Frames of the input that a part covers."""
MOST_CLASSES = 65_536
"""Classes in a video of labels, at most: 16 bits."""

# Each frame of labels stands alone, so that players seek exactly; it costs next to no space.
_LABELS = {"level": "3", "g": "1"}
# Frames are stored in the order they are shown, because parts are joined packet by packet.
_OVERLAY = {"preset": "ultrafast", "crf": "20", "bf": "0", "flags": "+bitexact"} | {
    "color_primaries": "bt709",
    "color_trc": "bt709",
    "colorspace": "bt709",
    "color_range": "tv",
}
_FIRST = "first_pts"


@dataclass(frozen=True)
class Track:
    """When the frames of a video are shown, and how large they are.

    Attributes
    ----------
    size : (int, int)
        Height and width in pixels.
    time_base : Fraction
        Seconds in one unit of the timestamps.
    rate : Fraction
        Frames a second, about.
    timestamps : tuple of int
        One for each frame, in units of `time_base`, growing.
    """

    size: tuple[int, int]
    time_base: Fraction
    rate: Fraction
    timestamps: tuple[int, ...]


class VideoParts:
    """A video that is written frame by frame and can be interrupted at any moment.

    Frames gather in memory, encoded, and reach the disk a part at a time: ``FOLDER/parts/labels_000032.nut`` holds what
    there is of the frames 32 … 63 of ``FOLDER/labels.mp4``. A part is written whole or not at all, and by an encoder of
    its own, so that it does not matter in which run that was. `finish` joins the parts without encoding anything again.
    One thread at a time may use it; the others go on while FFmpeg works.

    Parameters
    ----------
    path : path
        Video to write, ``.mp4``, in a folder that exists. What stands there stays until `finish` replaces it.
    kind : {"labels", "overlay"}
        Class ids as they are (FFV1, 8 or 16 bits, grey, lossless), or a picture to look at (H.264, 4:2:0, BT.709).
    size : (int, int)
        Height and width of the frames in pixels. In an overlay, odd ones are made even by repeating the last row or
        column, because players ask for that.
    time_base : Fraction
        Seconds in one unit of the timestamps, as in the input.
    rate : Fraction
        Frames a second, about: the timestamps are what counts, but a video of one frame has its duration from here.
    n_classes : int
        Number of classes there can be, for labels: it decides between 8 and 16 bits.

    Attributes
    ----------
    finished : set of int
        Parts on the disk, from this run and from earlier ones, by the index of the first frame they cover.

    Raises
    ------
    OutputError
        If there are no classes or too many for a video, or the folder of parts cannot be read.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        kind: Literal["labels", "overlay"],
        size: tuple[int, int],
        time_base: Fraction,
        rate: Fraction,
        n_classes: int = 0,
    ) -> None:
        if kind == "labels" and not 1 <= n_classes <= MOST_CLASSES:
            raise OutputError(
                f"expected 1 to {MOST_CLASSES:,} classes in a video of labels, but got {n_classes:,}; "
                "merge some of them first, or write label images in TIFF (.tif) instead"
            )
        self.path = Path(path)
        self.kind = kind
        self.size = size
        self.time_base = time_base
        self.rate = rate
        self.n_classes = n_classes
        self._folder = self.path.parent / "parts"
        self._name = re.compile(rf"{re.escape(self.path.stem)}_(\d{{6,}})\.nut")
        self._encoder: _Encoder | None = None
        self._last: tuple[int, int] | None = None
        with readable_errors(self._folder):
            self.finished = {int(match[1]) for name in self._names() if (match := self._name.fullmatch(name))}

    def write(self, index: int, pts: int, array: NDArray[Any]) -> None:
        """Add a frame; the first one beyond a part closes it.

        Frames of parts that are on the disk already are passed over.

        Parameters
        ----------
        index : int
            Index of the frame in the input, larger than that of the frame before; some may be left out.
        pts : int
            Time at which it is shown, in units of `time_base`, later than that of the frame before; also below 0.
        array : (H, W) int array or (H, W, 3) uint8 array
            Class ids, 0 … n_classes − 1, or an sRGB picture.

        Raises
        ------
        OutputError
            If the frame is of another shape or type, holds other ids, or does not come after the one before; if FFmpeg
            refuses it; or if the part that it closes cannot be written, which the next call tries again.
        """
        self._check(index, pts, array)
        start = index - index % PART
        if self._encoder is not None and self._encoder.start != start:
            self.close_part()
        self._last = (index, pts)
        if start in self.finished:
            return
        with _readable_refusal(self.path):
            if self._encoder is None:
                self._encoder = _Encoder(self, start, pts)
            self._encoder.add(pts, array)

    def close_part(self) -> None:
        """Write the part in work as a finished one: no more of its frames will come.

        Raises
        ------
        OutputError
            If it cannot be written; earlier parts stay, and the next call tries again.
        """
        if self._encoder is None:
            return
        part = self._part(self._encoder.start)
        with _readable_refusal(self.path):
            data = self._encoder.data()
        with readable_errors(part):
            self._folder.mkdir(exist_ok=True)
        with _whole(part) as temporary:
            temporary.write_bytes(data)
        self.finished.add(self._encoder.start)
        self._encoder = None

    def finish(self, *, complete: bool = True) -> int:
        """Join all there is into the video, in place of an earlier one.

        Until the parts are removed, the frames take twice their space on the disk.

        Parameters
        ----------
        complete : bool
            Whether the last frame has come: then the parts are removed, and their folder if nothing else is in it.
            Otherwise the video is valid but shorter, and the parts stay for the run that resumes. The part in work goes
            into the video only: that run makes it again, from its first frame.

        Returns
        -------
        int
            Frames in the video; 0 if there are none and therefore no video.

        Raises
        ------
        OutputError
            If a part cannot be read or the video cannot be written; the parts stay.
        """
        if complete:
            self.close_part()
        parts: dict[int, Path | bytes] = {start: self._part(start) for start in self.finished}
        if self._encoder is not None:
            with _readable_refusal(self.path):
                parts[self._encoder.start] = self._encoder.data()
        if not parts:
            return 0
        in_order = [part for _, part in sorted(parts.items())]
        n_frames = join(in_order, self.path, time_base=self.time_base, rate=self.rate)
        if complete:
            self.remove_parts()
        return n_frames

    def remove_earlier(self) -> None:
        """Remove the video and the parts that an earlier run left under these names, and nothing else.

        Raises
        ------
        OutputError
            If one cannot be removed.
        """
        with readable_errors(self.path):
            self.path.unlink(missing_ok=True)
            _temporary(self.path).unlink(missing_ok=True)
        self.remove_parts()

    def _check(self, index: int, pts: int, array: NDArray[Any]) -> None:
        """Refuse what has no place in this video."""
        labels = self.kind == "labels"
        shape = self.size if labels else (*self.size, 3)
        if array.shape != shape or not (array.dtype.kind in "iu" if labels else array.dtype == np.uint8):
            raise OutputError(
                f"expected {'integers' if labels else 'uint8'} of shape {shape} for each frame of {self.path.name}, "
                f"but frame {index} has {array.dtype} of shape {array.shape}; bring it to the size of the others"
            )
        if labels and (array.min() < 0 or array.max() >= self.n_classes):
            raise OutputError(
                f"expected class ids 0 to {self.n_classes - 1} for {self.path.name}, but frame {index} has "
                f"{array.min()} to {array.max()}; give the number of classes they were made with"
            )
        if self._last is not None and (index <= self._last[0] or pts <= self._last[1]):
            raise OutputError(
                f"expected the frames of {self.path.name} in order, but frame {index} at {pts} came after frame "
                f"{self._last[0]} at {self._last[1]}, in units of {self.time_base} s; leave it out or correct its time"
            )

    def _part(self, start: int) -> Path:
        return self._folder / f"{self.path.stem}_{start:06d}.nut"

    def _names(self) -> list[str]:
        return [path.name for path in self._folder.iterdir()] if self._folder.exists() else []

    def remove_parts(self) -> None:
        """Remove the parts alone, and their folder if nothing else is in it.

        Raises
        ------
        OutputError
            If one cannot be removed.
        """
        with readable_errors(self._folder):
            for name in self._names():
                # One that was killed while writing leaves a temporary file.
                if self._name.fullmatch(name.removeprefix(".").removesuffix(".tmp")):
                    (self._folder / name).unlink(missing_ok=True)
            if self._folder.exists() and not self._names():
                self._folder.rmdir()
        self.finished = set()


def check_installed() -> None:
    """Check that videos can be written, before anything long starts.

    Raises
    ------
    OutputError
        If PyAV is not there.
    """
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise OutputError(
            f"expected PyAV, which writes videos, but: {error}; install it by `pip install 'spwnet[video]'`, or write "
            "label images (.png or .tif)"
        ) from error


def join(parts: Iterable[Path | bytes], target: str | Path, *, time_base: Fraction, rate: Fraction) -> int:
    """Join parts into one MP4 file, packet by packet, such that its name never stands for half of it.

    Frames keep their timestamps exactly, also where the first one is later than 0. MP4 hides frames before 0: if the
    first one is, all move by as much as brings it to 0. The last frame lasts as long as the one before it.

    Parameters
    ----------
    parts : iterable of path or bytes
        Files that `VideoParts` wrote, or what they would hold, in order, at least one. One at a time is in memory.
    target : path
        File to write; replaced if there is one. The same parts give the same bytes.
    time_base : Fraction
        Seconds in one unit of the timestamps, as the parts were made with.
    rate : Fraction
        Frames a second, from which a single frame has its duration.

    Returns
    -------
    int
        Frames in the file.

    Raises
    ------
    OutputError
        If a part cannot be read, is unlike the first one or does not come after the one before, or if the file cannot
        be written; what was there before is still there then.
    """
    import av

    target = Path(target)
    # MP4 counts the first timestamp in units of the whole file, by default milliseconds, and would round it.
    scale = str(time_base.denominator)
    options = {"fflags": "+bitexact", "movie_timescale": scale, "video_track_timescale": scale}
    packets = _packets(parts, time_base)
    begin = next(packets, None)
    if begin is None:
        raise OutputError(f"expected at least one frame for {target}, but got none; write one first")
    stream, waiting, pts = begin
    shift = max(0, -pts)
    duration = max(1, round(1 / (rate * time_base)))
    n_frames = 1
    with (
        _whole(target) as temporary,
        _readable_refusal(target),
        av.open(temporary, "w", format="mp4", options=options) as video,
    ):
        track = video.add_stream_from_template(stream)
        for _, packet, later in packets:
            duration = later - pts
            video.mux(_placed(waiting, track, time_base, pts + shift, duration))
            waiting, pts = packet, later
            n_frames += 1
        video.mux(_placed(waiting, track, time_base, pts + shift, duration))
    return n_frames


class _Encoder:
    """The part in work, in memory: what FFmpeg begins to write would stay behind a crash."""

    def __init__(self, video: VideoParts, start: int, first: int) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        self.start = start
        self._first = first
        self._time_base = video.time_base
        self._labels = video.kind == "labels"
        self._file = BytesIO()
        self._container = av.open(self._file, "w", format="nut", options={"fflags": "+bitexact"})
        # NUT keeps times exactly, as Matroska does not, but none before 0: they count from the first one.
        self._container.metadata[_FIRST] = str(first)
        codec: Literal["ffv1", "libx264"] = "ffv1" if self._labels else "libx264"
        options = dict(_LABELS if self._labels else _OVERLAY)
        self._stream = self._container.add_stream(codec, rate=video.rate, options=options)
        height, width = video.size
        self._stream.height = height if self._labels else height + height % 2
        self._stream.width = width if self._labels else width + width % 2
        self._stream.pix_fmt = "yuv420p" if not self._labels else "gray" if video.n_classes <= 256 else "gray16le"
        self._stream.codec_context.time_base = video.time_base
        # x264 gives other bytes with other numbers of threads, and the cores have other frames to work on.
        self._stream.codec_context.thread_count = 1
        self._reformatter = VideoReformatter()
        self._closed = False

    def add(self, pts: int, array: NDArray[Any]) -> None:
        frame = self._ids(array) if self._labels else self._picture(array)
        frame.pts = pts - self._first
        frame.time_base = self._time_base
        self._container.mux(self._stream.encode(frame))

    def data(self) -> bytes:
        """Return the file; no more frames can be added then."""
        if not self._closed:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._closed = True
        return self._file.getvalue()

    def _ids(self, labels: NDArray[Any]) -> VideoFrame:
        from av import VideoFrame

        if self._stream.pix_fmt == "gray":
            return VideoFrame.from_ndarray(labels.astype(np.uint8), format="gray")
        return VideoFrame.from_ndarray(labels.astype(np.uint16), format="gray16le")

    def _picture(self, rgb: NDArray[np.uint8]) -> VideoFrame:
        from av import VideoFrame
        from av.video.reformatter import ColorRange, Colorspace, Interpolation

        height, width = rgb.shape[:2]
        even = np.pad(rgb, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        return self._reformatter.reformat(
            VideoFrame.from_ndarray(even, format="rgb24"),
            format="yuv420p",
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            dst_colorspace=Colorspace.ITU709,
            # To look at: exact rounding would take half as long again.
            interpolation=Interpolation.BILINEAR,
            threads=1,
        )


def _packets(
    parts: Iterable[Path | bytes], time_base: Fraction
) -> Iterator[tuple[VideoStream, Packet[VideoStream], int]]:
    """Yield the packets of parts that were made alike, with their streams and their times, which grow."""
    import av

    form = last = None
    for part in parts:
        name = part if isinstance(part, Path) else "the part in work"
        try:
            file = BytesIO(part.read_bytes() if isinstance(part, Path) else part)
            # One frame tells what they all are like; by default FFmpeg decodes many to find out.
            container = av.open(file, "r", format="nut", options={"probesize": "32"})
            stream = container.streams.video[0]
            first = int(container.metadata[_FIRST])
            packets = [(packet, packet.pts) for packet in container.demux(stream) if packet.pts is not None]
        except (OSError, LookupError, ValueError, av.FFmpegError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OutputError(f"expected to read {name}, but it failed: {reason}; remove it and resume") from error
        with container:
            codec = stream.codec_context
            this = (codec.name, codec.pix_fmt, codec.height, codec.width, codec.extradata)
            if form is not None and this != form:
                raise OutputError(
                    f"expected {name} to be like the parts before, but it is of another size, number of classes or "
                    "version of FFmpeg; start again with `--overwrite`"
                )
            form = this
            for packet, ticks in packets:
                # NUT has units of its own, of which those of the input are multiples.
                pts = first + int(ticks * packet.time_base / time_base)
                if last is not None and pts <= last:
                    raise OutputError(
                        f"expected {name} to come after the part before, but it has a frame at {pts} after one at "
                        f"{last}, in units of {time_base} s; start again with `--overwrite`"
                    )
                last = pts
                yield stream, packet, pts


def _placed(
    packet: Packet[VideoStream], track: VideoStream, time_base: Fraction, pts: int, duration: int
) -> Packet[VideoStream]:
    """Give a packet its place in another file."""
    packet.stream = track
    packet.time_base = time_base
    packet.pts = packet.dts = pts
    packet.duration = duration
    return packet


def _temporary(path: Path) -> Path:
    # Always the same name, so that the next run writes over what a killed one left; absolute, because FFmpeg takes what
    # stands before a colon for a protocol.
    return path.absolute().with_name(f".{path.name}.tmp")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Lend the name of a file that takes the place of `path` once it is whole and on the disk."""
    temporary = _temporary(path)
    with readable_errors(path):
        try:
            yield temporary
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def _readable_refusal(path: Path) -> Iterator[None]:
    """Turn what FFmpeg says about a video into an error for people, except what the operating system told it."""
    import av

    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        reason = f"{error.strerror}; write images instead"
        raise OutputError(f"expected FFmpeg to write {path}, but it refused: {reason}") from error
