"""Videos as sources of images: an index of all packets, and frames that are decoded as they are asked for."""

from __future__ import annotations

import logging
import re
import weakref
import zlib
from array import array
from bisect import bisect_right
from collections import OrderedDict, deque
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.errors import InputError
from spwnet.sources import MOST_PIXELS, Image, numbered

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer
    from av.video.format import VideoFormat
    from av.video.reformatter import VideoReformatter
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

KEPT = 8
"""Decoded frames that are kept, because threads ask for them not quite in order."""

# Otherwise libav would follow playlists and scripts to other files.
_OPTIONS = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi", "protocol_whitelist": "file"}
_NO_TIME = -(2**63)
_KEY, _HIDDEN, _DAMAGED = 1, 2, 4
_COPY = "copy it again from where it was recorded"
# FFV1 goes through the bits of a byte from the first to the last, zlib from the last to the first.
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


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
            _check_installed()
            from av.video.reformatter import VideoReformatter

            self._reformatter = VideoReformatter()
            self._index = _Index(self.path)
            self._decoder: _Decoder | None = _Decoder(self.path, self._index)
            first = self._decoder.first()
            if first is None:
                raise InputError(f"expected frames, but none of {len(self._index.timestamps)} can be decoded; {_COPY}")
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
        except Exception as error:
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
            raise InputError(f"expected a whole frame, but it is damaged or missing; leave it out, or {_COPY}")
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
            self._decoder = _Decoder(self.path, index)
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
            self._decoder = _Decoder(self.path, self._index)

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


class _Index:
    """What a video holds: packets in the order of decoding, which is not that in which their frames are shown.

    Attributes
    ----------
    pts, targets, position : (P,) int64 arrays
        Of each packet: when its frame is shown, the time to seek, and bytes from the start of the file.
    damaged : (P,) bool array
        Whether its frame is known to be damaged or missing; more are found while reading.
    order, numbers : (P,) int64 arrays
        Place in the order in which all frames are shown, and frame number, −1 for those that an edit list hides.
    packets : (N,) int64 array
        Packet of each frame number.
    keyframes : int64 array
        Packets from which frames can be decoded.
    readable : int
        Packets before the end of the file.
    checked : bool
        Whether packets have checksums.
    cut : int
        Frames known to lie beyond the end of the file.
    doubt : str
        Why more may be cut off, or "".
    """

    def __init__(self, path: Path) -> None:
        with _open(path) as container:
            stream = _video_stream(container)
            pts, dts, position, flags, self.checked = _read_packets(path, container, stream)
            self.readable = len(pts)
            if not self.readable:
                raise InputError(f"expected frames, but its video stream holds none; {_COPY}")
            self.time_base = _fraction(stream.time_base) or Fraction(1, 1000)
            rate = _fraction(stream.average_rate) or _fraction(stream.guessed_rate)
            lag = pts[0] - dts[0] if _NO_TIME not in (pts[0], dts[0]) else 0
            # The table of an MP4 file, often at its start, also lists frames that lie beyond the end of the file.
            table, is_mp4 = stream.index_entries, "mp4" in container.format.name
            listed = [entry for entry in table if entry.size] if is_mp4 and len(table) > self.readable else []
            for entry in listed[self.readable :]:
                pts.append(entry.timestamp + lag)
                dts.append(entry.timestamp)
                position.append(entry.pos)
                flags.append(_KEY * entry.is_keyframe + _HIDDEN * entry.is_discard + _DAMAGED)
            may_move = stream.codec_context.reorder_depth > 0
            is_avi, said = container.format.name == "avi", stream.frames
            lasts = Fraction(container.duration or 0, 10**6) if "matroska" in container.format.name else Fraction(0)
        count = len(pts)
        self.pts, decoded, kinds = np.array(pts), np.array(dts), np.frombuffer(flags, np.uint8)
        unknown = self.pts == _NO_TIME
        step = max(1, round(1 / (rate * self.time_base))) if rate else 1
        self.pts[unknown] = np.where(decoded == _NO_TIME, step * np.arange(count), decoded + lag)[unknown]
        self.position = np.array(position)
        # AVI is searched by the time of decoding; that of other containers is found from the one of showing.
        self.targets = np.where(is_avi & (decoded != _NO_TIME), decoded, self.pts)
        self.damaged = kinds & _DAMAGED > 0
        self.keyframes = np.flatnonzero(kinds & _KEY)
        hidden = kinds & _HIDDEN > 0
        if hidden.all():
            raise InputError("expected frames to show, but an edit list hides all of them; export the video without it")
        self.cut = int(np.count_nonzero(self.damaged & ~hidden))
        self._arrange(np.argsort(self.pts, kind="stable"), hidden)
        if may_move and (is_avi or unknown.any()) and (np.diff(self.pts) > 0).all():
            self._arrange(self._decoded_order(path), hidden)
        span = (self.timestamps[-1] - self.timestamps[0]) * self.time_base
        self.rate = rate or ((len(self.timestamps) - 1) / span if span else Fraction(1))
        self.doubt = ""
        last = self.timestamps[-1] * self.time_base
        longest = int(np.diff(self.timestamps).max(initial=0)) * self.time_base
        if is_avi and said > decoded.max() + 1:
            self.doubt = f"it speaks of {said} frames, but ends with number {decoded.max()}"
        elif lasts > last + longest + 1:
            self.doubt = f"it speaks of {float(lasts):.1f} s, but its last frame is at {float(last):.1f} s"

    def _arrange(self, packets: NDArray[np.int64], hidden: NDArray[np.bool_]) -> None:
        """Number the frames, given the packets in the order in which they are shown."""
        self.order = np.empty(len(packets), np.int64)
        self.order[packets] = np.arange(len(packets))
        self.packets = packets[~hidden[packets]]
        self.numbers = np.full(len(packets), -1)
        self.numbers[self.packets] = steps = np.arange(len(self.packets))
        times = np.sort(self.pts[self.packets])
        # Where a frame has the time of the one before, the next tick is the nearest that keeps the order.
        self.timestamps = tuple((np.maximum.accumulate(times - steps) + steps).tolist())

    def _decoded_order(self, path: Path) -> NDArray[np.int64]:
        """Decode all packets to see in which order they are shown; one that gives no frame follows the one before."""
        decoder = _Decoder(path, self)
        place = np.full(len(self.pts), -1)
        count = 0
        while (out := decoder.next()) is not None:
            place[out[0]] = count
            count += 1
        for packet in np.flatnonzero(place[1:] < 0) + 1:
            place[packet] = place[packet - 1]
        return np.argsort(place, kind="stable")

    def keyframe(self, packet: int, back: int = 0) -> int:
        """Return the last keyframe before a packet that is shown no later, or one before that; 0 if there is none."""
        found = int(np.searchsorted(self.keyframes, packet, side="right")) - 1
        while found >= 0 and self.order[self.keyframes[found]] > self.order[packet]:
            found -= 1
        return int(self.keyframes[found - back]) if found >= back else 0

    def next_keyframe(self, packet: int) -> int:
        """Return the first keyframe from a packet on; a number beyond all packets if there is none."""
        following = self.keyframes[np.searchsorted(self.keyframes, packet) :]
        return int(following[0]) if len(following) else len(self.order)

    def find(self, packet: Packet[VideoStream]) -> int:
        """Return which packet it is, −1 if that is not clear."""
        found = np.flatnonzero(self.position == (-1 if packet.pos is None else packet.pos))
        if len(found) > 1:
            found = found[self.pts[found] == packet.pts]
        return int(found[0]) if len(found) == 1 else -1


class _Decoder:
    """An open file, from which frames come out in the order in which they are shown.

    Attributes
    ----------
    fed : int
        Packet that is decoded next.
    place : int
        Place of the frame that came out last.
    lost : int
        Packet that could not be decoded last.
    """

    def __init__(self, path: Path, index: _Index) -> None:
        self._index = index
        self._container = _open(path)
        weakref.finalize(self, self._container.close)
        self._stream = _video_stream(self._container)
        self._begin(0, self._container.demux(self._stream), -1)

    def _begin(self, packet: int, packets: Iterable[Packet[VideoStream]], start: int) -> None:
        self._packets: Iterator[Packet[VideoStream]] = iter(packets)
        self._ready: deque[tuple[int, VideoFrame]] = deque()
        self._ended = False
        self._from = -1 if start < 0 else int(self._index.order[start])
        self.fed, self.place, self.lost = packet, -1, -1

    def first(self) -> VideoFrame | None:
        """Return a frame to see what they are like; it comes out of `next` all the same."""
        while not self._ready and not self._ended:
            self._feed()
        return self._ready[0][1] if self._ready else None

    def next(self) -> tuple[int, VideoFrame] | None:
        """Return the next frame and the packet it is from; None at the end."""
        while True:
            while self._ready:
                packet, frame = self._ready.popleft()
                place = int(self._index.order[packet])
                # What is shown before the keyframe builds on frames that were not decoded.
                if place >= self._from:
                    self.place = place
                    return packet, frame
            if self._ended:
                return None
            self._feed()

    def seek(self, keyframe: int) -> bool:
        """Go to a keyframe, or one before it; tell whether that worked, for only then can frames be read."""
        import av

        try:
            self._container.seek(int(self._index.targets[keyframe]), stream=self._stream)
            packets = self._container.demux(self._stream)
            first = next((packet for packet in packets if packet.size), None)
        except av.FFmpegError:
            return False
        found = -1 if first is None else self._index.find(first)
        start = -1 if found == 0 else self._index.next_keyframe(found)
        if first is None or found < 0 or start > keyframe:
            return False
        self._begin(found, chain([first], packets), start)
        return True

    def _feed(self) -> None:
        """Decode one packet, or what is left at the end."""
        import av

        index, packet, number = self._index, None, self.fed
        if number < index.readable:
            packet = next((packet for packet in self._packets if packet.size), None)
        if packet is None:
            self._ended = True
        else:
            if index.position[number] != (-1 if packet.pos is None else packet.pos):
                number = index.find(packet)
                if number < 0:
                    return
            # Decoders hand the time of a packet on to its frame; its number there tells them apart without fail.
            packet.pts = number
            self.fed = number + 1
            if index.checked and not _is_intact(bytes(packet)):
                index.damaged[number] = True
        try:
            frames = self._stream.decode(packet)
        except MemoryError:
            raise
        except av.FFmpegError:
            frames, self.lost = [], number
        if number < index.readable and index.damaged[number]:
            self.lost = number
        self._ready.extend((frame.pts, frame) for frame in frames if frame.pts is not None)


def _read_packets(
    path: Path, container: InputContainer, stream: VideoStream
) -> tuple[array[int], array[int], array[int], bytearray, bool]:
    """Read times, positions and flags of all packets that are not empty, and see whether there are checksums."""
    import av

    pts, dts, position = array("q"), array("q"), array("q")
    flags = bytearray()
    checked = False
    may_have = stream.codec_context.name == "ffv1"
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            if packet.has_sidedata("encryption_info"):
                raise InputError("expected a video that can be decoded, but it is encrypted; export it without that")
            pts.append(_NO_TIME if packet.pts is None else packet.pts)
            dts.append(_NO_TIME if packet.dts is None else packet.dts)
            position.append(-1 if packet.pos is None else packet.pos)
            flags.append(_KEY * packet.is_keyframe + _HIDDEN * packet.is_discard + _DAMAGED * packet.is_corrupt)
            if may_have and not checked and len(pts) <= 8:
                checked = _is_intact(bytes(packet))
    except av.FFmpegError as error:
        if isinstance(error, OSError | MemoryError) or not pts:
            raise
        logger.warning("'%s' cannot be read beyond packet %d: %s", path, len(pts), error.strerror)
    return pts, dts, position, flags, checked


def _check_installed() -> None:
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"expected PyAV, which reads videos, but: {error}; install it by `pip install 'spwnet[video]'`"
        ) from error


def _open(path: Path) -> InputContainer:
    import av

    if path.stat().st_size == 0:
        raise InputError(f"expected a video, but the file is empty; {_COPY}")
    try:
        # Without "file:", what stands before a colon in a name is taken for a protocol.
        return av.open(f"file:{path.absolute()}", "r", container_options=_OPTIONS)
    except av.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise InputError(
                "expected a video whose header fits into memory, but it asks for more than there is: it is damaged, "
                f"most likely; {_COPY}"
            ) from error
        if isinstance(error, OSError):
            raise
        if _lacks_moov(path):
            raise InputError(
                "expected a complete video, but its table of frames (moov) is missing, so that the recording or copy "
                f"was cut off; {_COPY}, or repair it with a tool such as untrunc"
            ) from error
        raise InputError(
            "expected the content of an MP4, MOV, MKV, WebM or AVI file, but it is something else or damaged; "
            "check it in a player, or convert it to MP4"
        ) from error


def _lacks_moov(path: Path) -> bool:
    """Whether a file has the boxes of MP4 or MOV, but not the one that tells where frames are."""
    boxes: set[bytes] = set()
    whole = path.stat().st_size
    start = 0
    with path.open("rb") as file:
        while len(head := file.read(16)) >= 8:
            size = int.from_bytes(head[:4], "big")
            if size == 1:
                size = int.from_bytes(head[8:], "big")
            if size < 8:
                break
            boxes.add(head[4:8])
            start += size
            if start > whole:
                boxes.discard(b"moov")
            file.seek(start)
    return bool(boxes & {b"ftyp", b"mdat"}) and b"moov" not in boxes


def _video_stream(container: InputContainer) -> VideoStream:
    """Return the first video stream, which can be decoded."""
    from av.stream import Disposition

    covers = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & covers]
    if not streams:
        others = " and ".join(sorted({stream.type for stream in container.streams}))
        holds = f"only {others}" if others else "nothing"
        raise InputError(f"expected a video stream, but the file holds {holds}; give the video itself")
    stream = streams[0]
    codec = stream.codec_context
    if codec is None:
        raise InputError(
            f"expected a codec that FFmpeg decodes, but it is {_unknown_codec(container.name)}; "
            "convert the video to H.264, where it can be played"
        )
    if codec.width * codec.height > MOST_PIXELS:
        raise InputError(
            f"expected frames of at most {MOST_PIXELS:,} pixels, but they have {codec.height}×{codec.width}; "
            "scale the video down, or cut it into parts"
        )
    return stream


def _unknown_codec(name: str) -> str:
    """Return what FFmpeg says about a codec it does not know; only its log has that."""
    import av

    level = av.logging.get_level()
    with av.logging.Capture() as lines:
        av.logging.set_level(av.logging.WARNING)
        try:
            av.open(name, "r", container_options=_OPTIONS).close()
        finally:
            av.logging.set_level(level)
    found = re.search(r"Video: (\w+ \(.{4} / 0x\w+\))", " ".join(line for _, _, line in lines), re.DOTALL)
    return found[1].removeprefix("none ") if found else "unknown"


def _fraction(value: Any) -> Fraction | None:
    return Fraction(value.numerator, value.denominator) if value else None


def _is_intact(packet: bytes) -> bool:
    """Check the checksums of the slices of an FFV1 packet: where one is wrong, FFmpeg puts other pixels and goes on."""
    end = len(packet)
    while end > 0:
        start = end - 8 - int.from_bytes(packet[end - 8 : end - 5], "big")
        # A checksum over data with its own checksum is 0, which zlib inverts.
        if start < 0 or zlib.crc32(packet[start:end].translate(_MIRRORED), 2**32 - 1) != 2**32 - 1:
            return False
        end = start
    return True


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
