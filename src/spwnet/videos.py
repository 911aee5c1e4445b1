"""Videos as sources of images: an index of all packets, and frames that are decoded as they are asked for."""

from __future__ import annotations

import logging
import re
from bisect import bisect_right
from collections import OrderedDict
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.errors import InputError
from spwnet.sources import Image, numbered
from spwnet.videodecoding import COPY_AGAIN, FrameDecoder, PacketIndex, check_installed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from av import VideoFrame
    from av.video.format import VideoFormat
    from av.video.reformatter import VideoReformatter
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

KEPT = 8
"""Decoded frames that are kept, because threads ask for them not quite in order."""


class VideoSource:
    """The frames of the first video stream of a file, upright and in the order in which they are shown.

    Opening reads the file once without decoding it, and finds the times of all frames and the keyframes from which they
    can be reached. Only an AVI file with frames that are stored in another order than shown is decoded for that: AVI
    keeps no times. Frames read in order are decoded once. Memory does not grow with the frames read. Several threads
    may read at once.

    Grey frames have one channel, uint8 or uint16, with the values stored: those of 10 bits reach to 1023. All others
    become RGB by the matrix and range that they declare, or else BT.601 and the limited range: uint8, or uint16 if a
    component has more than 8 bits; white is then about 65300. That is right to 3 of 255 levels, and the same on every
    machine. Transfer functions stay as they are, alpha is left out, pixels count as square, and interlaced frames are
    not taken apart.

    Parameters
    ----------
    path : path
        An MP4, MOV, MKV, WebM or AVI file.

    Attributes
    ----------
    names : tuple of str
        ``STEM_0000``, ``STEM_0001``, …
    numbers : tuple of int
        0 … n − 1.
    timestamps : tuple of int
        When each frame is shown, in units of `time_base`, strictly increasing; the first may be other than 0.
    time_base : Fraction
        Seconds.
    rate : Fraction
        Frames a second on average; 1 if nothing tells.
    shape : (int, int)
        Height and width in pixels.

    Raises
    ------
    InputError
        If PyAV is not installed, or the file is no such video, empty, encrypted, of an unknown codec, too large, or cut
        off such that nothing of it can be read. Indexing raises it for a frame that is damaged, missing, or unlike the
        first one in size or kind; the others can still be read. Those that build on a damaged one come with a warning.
        Damage that the decoder does not notice goes unnoticed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = Lock()
        self._cache: OrderedDict[int, tuple[VideoFrame, bool]] = OrderedDict()
        self._warned = -1
        with self._readable():
            check_installed()
            from av.video.reformatter import VideoReformatter

            self._reformatter = VideoReformatter()
            self._index = PacketIndex(self.path)
            self._decoder: FrameDecoder | None = FrameDecoder(self.path, self._index)
            first = self._decoder.first()
            if first is None:
                raise InputError(
                    f"expected frames, but none of {len(self._index.timestamps)} can be decoded; {COPY_AGAIN}"
                )
            self._kind = _kind(first)
            self._matrix = _display_matrix(first)
            pixels = self._convert(first)
        self.shape: tuple[int, int] = pixels.shape[:2]
        self._channels: int = pixels.shape[2]
        index = self._index
        self.timestamps, self.time_base, self.rate = index.timestamps, index.time_base, index.rate
        self.names = tuple(numbered(self.path.stem, len(self.timestamps)))
        self.numbers = tuple(range(len(self.timestamps)))
        self._report(first)

    def __len__(self) -> int:
        return len(self.names)

    def channels(self, position: int) -> int:
        """Count the channels of a frame without reading its pixels: all have as many."""
        return self._channels

    def size(self, position: int) -> tuple[int, int]:
        """Height and width of a frame in pixels, without reading it: those of all."""
        return self.shape

    def __getitem__(self, position: int) -> Image:
        number = self.numbers[position]
        with self._lock, self._readable(number):
            pixels = self._convert(self._frame(number))
        return Image(pixels, self.names[number], pixels.shape[2] == 3)

    def _report(self, first: VideoFrame) -> None:
        """Warn of what is wrong with the video as a whole."""
        if self._index.cut:
            logger.warning("%d of %d frames of '%s' are cut off", self._index.cut, len(self), self.path)
        if self._index.doubt:
            logger.warning("'%s' may be cut off: %s", self.path, self._index.doubt)
        if any(component.is_alpha for component in first.format.components):
            logger.warning("the alpha channel of '%s' is left out", self.path)
        a, b = np.abs(self._matrix[0]).tolist()
        if min(a, b) > 0.01 * max(a, b):
            logger.warning("'%s' is to be shown askew; it is turned by multiples of 90° alone", self.path)

    @contextmanager
    def _readable(self, number: int | None = None) -> Iterator[None]:
        """Say in each error which frame of which video it is about."""
        where = f"'{self.path}'"
        if number is not None:
            seconds = float((self.timestamps[number] - self.timestamps[0]) * self.time_base)
            where = f"frame {number} of {where}, at {seconds:.3f} s"
        try:
            yield
        except InputError as error:
            raise InputError(f"cannot read {where}: {error}") from error
        except MemoryError:
            raise
        except Exception as error:  # damaged files raise anything
            self._decoder = None  # it may have stopped half-way; the next call opens the file again
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"expected to read {where}, but: {reason}; check that the file is there") from error

    def _convert(self, frame: VideoFrame) -> NDArray[Any]:
        """Return the pixels of a frame that is like the first one as an (H, W, C) array of its own."""
        kind = _kind(frame)
        if kind != self._kind:
            raise InputError(
                f"expected frames of one size and kind, but the first is {_describe(self._kind)}, and this one "
                f"{_describe(kind)}; cut the video where that changes"
            )
        return _upright(_pixels(frame, self._reformatter), self._matrix)

    def _frame(self, number: int) -> VideoFrame:
        packet = int(self._index.packets[number])
        if number not in self._cache and not self._index.damaged[packet]:
            self._decode(packet)
        if self._index.damaged[packet]:
            raise InputError(f"expected a whole frame, but it is damaged or missing; leave it out, or {COPY_AGAIN}")
        frame, traces = self._cache[number]
        keyframe = self._index.keyframe(packet)
        if traces and keyframe != self._warned:
            self._warned = keyframe
            logger.warning(
                "frame %d of '%s' follows a damaged one and may show traces of it, as may all to the next keyframe",
                number,
                self.path,
            )
        return frame

    def _decode(self, packet: int) -> None:
        """Bring the frame of a packet into the cache, or mark it as damaged."""
        index = self._index
        place = int(index.order[packet])
        if self._decoder is None:
            self._decoder = FrameDecoder(self.path, index)
        # What is to come is decoded on; a keyframe further on is nearer.
        if self._decoder.place < place and index.keyframe(packet) <= self._decoder.fed and self._run(place):
            return
        # Frames after a keyframe can build on what was before it.
        for back in (0, 1):
            self._seek(packet, back)
            if self._run(place):
                return
        # Frames come out in order: those passed over never will.
        end = self._decoder.place if self._decoder.place > place else len(index.order)
        index.damaged[(index.order >= place) & (index.order < end)] = True

    def _seek(self, packet: int, back: int) -> None:
        """Go to the keyframe of a packet or one before it; from the start if the container cannot."""
        if self._decoder is None or not self._decoder.seek(self._index.keyframe(packet, back)):
            self._decoder = FrameDecoder(self.path, self._index)

    def _run(self, place: int) -> bool:
        """Decode until a frame comes out that is shown at this place, or a later one, and tell which."""
        decoder, index = self._decoder, self._index
        assert decoder is not None
        while (out := decoder.next()) is not None:
            packet, frame = out
            number = int(index.numbers[packet])
            if frame.is_corrupt:
                index.damaged[packet] = True
                decoder.lost = max(decoder.lost, packet)
            elif number >= 0:
                self._cache[number] = frame, index.keyframe(packet) <= decoder.lost < packet
                if len(self._cache) > KEPT:
                    self._cache.popitem(last=False)
            if decoder.place >= place:
                return decoder.place == place
        return False


def frame_at(source: VideoSource, seconds: float) -> int:
    """Return the number of the frame that is shown at a time.

    Parameters
    ----------
    source : VideoSource
        A video.
    seconds : float
        Time since the first frame, in seconds. A frame counts from a microsecond before its own time, so that rounding
        does not lead to the one before.

    Raises
    ------
    InputError
        If the time is negative, or after the last frame, which lasts as long as one does on average.
    """
    last = float((source.timestamps[-1] - source.timestamps[0]) * source.time_base)
    end = last + float(1 / source.rate)
    if not 0 <= seconds < end:
        raise InputError(
            f"expected a time from 0 to {end:.3f} s in '{source.path}', but got {seconds} s; choose another"
        )
    time = source.timestamps[0] + (Fraction(seconds) + Fraction(1, 10**6)) / source.time_base
    return bisect_right(source.timestamps, time) - 1


def _kind(frame: VideoFrame) -> tuple[int, int, int, str]:
    """Width, height, rotation in degrees, and the format that its pixels are read in."""
    return frame.width, frame.height, frame.rotation, _form(frame.format)


def _describe(kind: tuple[int, int, int, str]) -> str:
    width, height, rotation, form = kind
    return f"{width}×{height} (width×height), {form}" + (f", turned by {rotation}°" if rotation else "")


def _form(form: VideoFormat) -> str:
    """Return the format in which pixels are read that are stored in another."""
    components = [component for component in form.components if not component.is_alpha]
    if not components or re.search(r"f(16|32)(le|be)$", form.name):
        raise InputError(f"expected pixels of up to 16 bits, but their format is {form.name}; convert the video")
    deep = max(component.bits for component in components) > 8
    if len(components) > 1 or form.has_palette:
        return "rgb48le" if deep else "rgb24"
    if deep and re.fullmatch(r"gray\d\d?[lb]e", form.name):
        return form.name
    return "gray16le" if deep else "gray"


def _pixels(frame: VideoFrame, reformatter: VideoReformatter) -> NDArray[Any]:
    from av.video.reformatter import Interpolation

    plain = reformatter.reformat(
        frame,
        format=_form(frame.format),
        # Without these, processors of different kinds round differently.
        interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT,
        threads=1,
    )
    pixels = plain.to_ndarray()
    return pixels.reshape(*pixels.shape[:2], -1)


def _display_matrix(frame: VideoFrame) -> NDArray[np.int32]:
    """Return what becomes of a step to the right (first row) and of one downwards, each as (right, down)."""
    # Only of one frame of a video, because frames that have handed it out are freed late.
    try:
        data: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV gives nothing at all next to data of a kind it does not know, but the rotation.
        cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[round(frame.rotation / 90) % 4]
        return np.array([[cos, -sin], [sin, cos]], np.int32)
    matrix = np.eye(3, dtype=np.int32) if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3)
    return matrix[:2, :2]


def _upright(pixels: NDArray[Any], matrix: NDArray[np.int32]) -> NDArray[Any]:
    """Turn and mirror pixels as a display matrix says, by multiples of 90°; return an array of its own."""
    turns = abs(matrix[0, 1]) > abs(matrix[0, 0])
    if turns:
        pixels = pixels.swapaxes(0, 1)
    (right_from, down_from) = (matrix[1, 0], matrix[0, 1]) if turns else (matrix[0, 0], matrix[1, 1])
    return np.array(pixels[:: -1 if down_from < 0 else 1, :: -1 if right_from < 0 else 1], order="C")
