"""What a video file holds, packet by packet, and the decoding of its frames from any keyframe on."""

from __future__ import annotations

import logging
import re
import weakref
import zlib
from array import array
from collections import deque
from fractions import Fraction
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.errors import InputError
from spwnet.sources import MOST_PIXELS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

# Otherwise libav would follow playlists and scripts to other files.
_OPTIONS = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi", "protocol_whitelist": "file"}

_NO_TIME = -(2**63)

_KEY, _HIDDEN, _DAMAGED = 1, 2, 4

COPY_AGAIN = "copy it again from where it was recorded"
"""What to do about a damaged video."""

# FFV1 goes through the bits of a byte from the first to the last, zlib from the last to the first.
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class PacketIndex:
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
                raise InputError(f"expected frames, but its video stream holds none; {COPY_AGAIN}")
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
        decoder = FrameDecoder(path, self)
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


class FrameDecoder:
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

    def __init__(self, path: Path, index: PacketIndex) -> None:
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


def check_installed() -> None:
    """Refuse to go on without PyAV, and say how to get it."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"expected PyAV, which reads videos, but: {error}; install it by `pip install 'spwnet[video]'`"
        ) from error


def _open(path: Path) -> InputContainer:
    import av

    if path.stat().st_size == 0:
        raise InputError(f"expected a video, but the file is empty; {COPY_AGAIN}")
    try:
        # Without "file:", what stands before a colon in a name is taken for a protocol.
        return av.open(f"file:{path.absolute()}", "r", container_options=_OPTIONS)
    except av.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise InputError(
                "expected a video whose header fits into memory, but it asks for more than there is: it is damaged, "
                f"most likely; {COPY_AGAIN}"
            ) from error
        if isinstance(error, OSError):
            raise
        if _lacks_moov(path):
            raise InputError(
                "expected a complete video, but its table of frames (moov) is missing, so that the recording or copy "
                f"was cut off; {COPY_AGAIN}, or repair it with a tool such as untrunc"
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
