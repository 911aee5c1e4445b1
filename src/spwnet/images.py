"""Images from files, folders, stacks, videos and arrays: sources of them, and what they have in common."""

from __future__ import annotations

import glob
import hashlib
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.errors import InputError
from spwnet.sources import Image as Image
from spwnet.sources import ImageSource as ImageSource
from spwnet.sources import numbered
from spwnet.stacks import (
    PICTURES,
    TIFFS,
    Stack,
    is_array,
    open_array,
    open_stack,
    plain_pixels,
    readable_image,
    single_image,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

SUFFIXES = (*PICTURES, *TIFFS, ".npy")
VIDEOS = (".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm")


class _Images:
    """The implementation of `ImageSource`: `locate` gives the stack and the frame in it at a position."""

    def __init__(
        self,
        names: Sequence[str],
        numbers: Sequence[int],
        locate: Callable[[int], tuple[Stack, int]],
        paths: Sequence[Path] = (),
    ) -> None:
        self.names, self.numbers = tuple(names), tuple(numbers)
        self._locate = locate
        self._where = tuple(map(str, paths)) or self.names
        self._warned = False

    def __len__(self) -> int:
        return len(self.names)

    def channels(self, position: int) -> int:
        """Count the channels of an image without reading its pixels."""
        with readable_image(self._where[position]):
            return self._locate(position)[0].channels

    def size(self, position: int) -> tuple[int, int]:
        """Height and width of an image without reading its pixels."""
        with readable_image(self._where[position]):
            stack = self._locate(position)[0]
        height, width = (stack.shape[stack.axes.index(axis)] for axis in "YX")
        return height, width

    def __getitem__(self, position: int) -> Image:
        name = self.names[position]
        with readable_image(self._where[position]):
            stack, frame = self._locate(position)
            pixels = plain_pixels(stack.read(frame))
        if stack.kept is not None and not self._warned:
            self._warned = True
            logger.warning("the alpha channel is left out, in '%s' and any other image that has one", name)
        return Image(pixels, name, stack.coloured and stack.channels == 3)


def open_images(images: Any, axes: str | None = None) -> ImageSource:
    """Open images without reading their pixels.

    Parameters
    ----------
    images : path, array, sequence of either, or ImageSource
        A path is a file, a folder, or a glob pattern such as ``"scan/**/*.tif"``; folders and patterns give their
        files in natural order (frame2 before frame10), a list in its own. PNG, JPEG, BMP, TIFF and NPY are read.
        One TIFF or NPY file, or one array, may hold many images; in a list each entry is one image. An array is NumPy,
        or anything with shape, dtype and indexing, such as Dask and Zarr, of which one image is read at a time. A video
        (MP4, M4V, MOV, MKV, WebM, AVI) is opened alone, and gives a `spwnet.videos.VideoSource`; that needs
        ``spwnet[video]``.
    axes : str, optional
        Names of the axes of arrays, NPY and TIFF, for example "YXC", "CYX" or "TZCYX": Y, X, channels C, and frames
        along any other. If not given, they are read from the TIFF; else two dimensions are YX, four TYXC, and three
        YXC if the last is at most 16 and smaller than both others, or TYX.

    Raises
    ------
    InputError
        If there is nothing there, or nothing that can be read.
    """
    if isinstance(images, str | Path):
        images = [images]
    elif isinstance(images, ImageSource):
        return images
    elif is_array(images):
        return _frames_of(open_array(images, axes), "image")
    if not isinstance(images, list | tuple) or not images:
        raise InputError(
            f"expected a path, an array or a list of these, but got {type(images).__name__} {str(images)[:60]!r}"
        )
    if all(is_array(entry) for entry in images):
        stacks = [open_array(entry, axes) for entry in images]
        return _Images(numbered("image", len(stacks)), range(len(stacks)), lambda k: (single_image(stacks[k]), 0))
    if not all(isinstance(entry, str | Path) for entry in images):
        raise InputError("expected a list of paths or a list of arrays, but got a list of other or mixed things")
    paths = [path for entry in images for path in find_paths(entry)]
    videos = [path for path in paths if path.suffix.lower() in VIDEOS]
    if videos and len(paths) > 1:
        raise InputError(f"expected one video alone, but got {videos[0]} among {len(paths)} files; open it by itself")
    if videos:
        from spwnet.videos import VideoSource

        return VideoSource(videos[0])
    if len(paths) == 1:
        with readable_image(str(paths[0])):
            stack = open_stack(paths[0], axes)
        return _frames_of(stack, paths[0].stem, paths)
    numbers: list[Any] = [_last_integer(path) for path in paths]
    if None in numbers or len(set(numbers)) < len(numbers):
        logger.info("frames are numbered from 0, because the files' names do not end in numbers of their own")
        numbers = list(range(len(paths)))
    return _Images(_unique_names(paths), numbers, lambda k: (single_image(open_stack(paths[k], axes)), 0), paths)


class JoinedImages:
    """Several registered sources as one of more channels, in the order given; an `ImageSource`.

    Parameters
    ----------
    sources : sequence of ImageSource
        Of as many images each, of the same size in pixels; the first gives names and numbers.

    Raises
    ------
    InputError
        If they differ in number; on reading, if two images differ in size.
    """

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self._sources = tuple(sources)
        first = self._sources[0]
        for other in self._sources[1:]:
            if len(other) != len(first):
                raise InputError(
                    f"expected as many images in each channel, but '{first.names[0]}' … are {len(first)} and "
                    f"'{other.names[0]}' … are {len(other)}; give one image of each kind for every place"
                )
            odd = next((k for k, (a, b) in enumerate(zip(first.numbers, other.numbers, strict=True)) if a != b), None)
            if odd is not None and len(first) > 1:
                logger.warning(
                    "images are joined in their order, but '%s' and '%s' have different numbers: check that they "
                    "belong together", first.names[odd], other.names[odd]
                )  # fmt: skip
        self.names, self.numbers = first.names, first.numbers

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: int) -> Image:
        images = [source[position] for source in self._sources]
        for image in images[1:]:
            if image.pixels.shape[:2] != images[0].pixels.shape[:2]:
                ours, theirs = (f"{one.pixels.shape[0]}×{one.pixels.shape[1]}" for one in (images[0], image))
                raise InputError(
                    f"expected channels of one size, but '{images[0].name}' has {ours} and '{image.name}' {theirs} "
                    "pixels; register them and cut them to what they have in common first"
                )
        dtype = np.result_type(*(image.pixels.dtype for image in images))
        pixels = np.concatenate([image.pixels.astype(dtype, copy=False) for image in images], axis=-1)
        return Image(pixels, self.names[position], rgb=False)

    def size(self, position: int) -> tuple[int, int]:
        """Height and width of an image, if possible without reading its pixels."""
        return image_size(self._sources[0], position)

    def channels(self, position: int) -> int:
        """Count the channels of an image."""
        counts = [getattr(source, "channels", None) for source in self._sources]
        return sum(
            count(position) if callable(count) else source[position].pixels.shape[-1]
            for count, source in zip(counts, self._sources, strict=True)
        )


def frame_indices(source: ImageSource, frames: Sequence[int | str] | str) -> list[int]:
    """Positions of images by their frame numbers, in the order given; "all" gives every one.

    In a video, "2.5s" is the frame that is shown two and a half seconds after the first one.

    Raises
    ------
    InputError
        For a number that no image has, a time outside the video, or none at all.
    """
    if isinstance(frames, str):
        if frames != "all":
            raise InputError(f"expected frame numbers or 'all', but got {frames!r}")
        return list(range(len(source)))
    if not isinstance(frames, Iterable):
        raise InputError(f"expected a list of frame numbers or 'all', but got {frames!r}; put it into a list")
    wanted = [_frame_number(source, frame) for frame in frames]
    positions = {number: position for position, number in enumerate(source.numbers)}
    missing = [frame for frame in wanted if frame not in positions]
    twice = [frame for frame, count in Counter(wanted).items() if count > 1]
    if twice:
        raise InputError(f"expected each frame once, but got frame {twice[0]} more than once")
    if missing or not wanted:
        raise InputError(
            f"expected frame numbers among the {len(positions)} from {min(positions)} to {max(positions)}, but "
            + (f"there is no frame {missing[0]}" if missing else "got none")
        )
    return [positions[frame] for frame in wanted]


def _frame_number(source: ImageSource, frame: int | str) -> int:
    """Return a frame number as it is, or that of the frame at a time."""
    if not isinstance(frame, str):
        return frame
    from spwnet.videos import VideoSource, frame_at

    if not isinstance(source, VideoSource):
        raise InputError(f"expected frame numbers, because images have no times, but got {frame!r}")
    try:
        if not frame.endswith("s"):
            raise ValueError  # a number written as text is no time
        seconds = float(frame.removesuffix("s"))
    except ValueError:
        raise InputError(f"expected frame numbers or times like '2.5s', but got {frame!r}") from None
    return frame_at(source, seconds)


def check_same_channels(source: ImageSource, indices: Sequence[int] | None = None) -> int:
    """Count the channels, which must be as many in each image; files are read only as far as needed for that.

    Raises
    ------
    InputError
        If two images differ; it names both.
    """
    first: tuple[str, int] | None = None
    for position in range(len(source)) if indices is None else indices:
        channels = getattr(source, "channels", None)
        count = channels(position) if callable(channels) else source[position].pixels.shape[-1]
        first = first or (source.names[position], count)
        if count != first[1]:
            raise InputError(
                f"expected images of as many channels each, but '{first[0]}' has {first[1]} and "
                f"'{source.names[position]}' has {count}; give images of one kind"
            )
    if first is None:
        raise InputError("expected at least one image, but got none")
    return first[1]


def image_size(source: ImageSource, position: int) -> tuple[int, int]:
    """Height and width of an image, if possible without reading its pixels."""
    size = getattr(source, "size", None)
    if size is not None:
        height, width = size(position)
        return height, width
    height, width = source[position].pixels.shape[:2]
    return height, width


def label_image(source: ImageSource, index: int) -> NDArray[Any]:
    """Read one image of class ids or superpixels, (H, W).

    Raises
    ------
    InputError
        If it has several channels: colours are no ids.
    """
    image = source[index]
    if image.pixels.shape[-1] != 1:
        raise InputError(
            f"expected a label image of one channel, but '{image.name}' has {image.pixels.shape[-1]}; "
            "save class ids, not colours, and the ids of an indexed PNG as a grey image"
        )
    return image.pixels[..., 0]


def fingerprint(image: Image) -> str:
    """SHA-256 of type, shape and pixels, the same on every machine; neither name nor file format matters."""
    pixels = np.ascontiguousarray(image.pixels, dtype=image.pixels.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{image.pixels.dtype.name} {pixels.shape}".encode())
    digest.update(pixels.data)
    return digest.hexdigest()


def find_paths(entry: str | Path) -> list[Path]:
    """Return the files of a path, at least one: itself, those of a folder, or those that match a pattern."""
    if not str(entry):
        # It would be the current folder.
        raise InputError("expected a path, but got an empty one; check the variable that it comes from")
    path = Path(entry).expanduser()
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES + VIDEOS:
            raise InputError(
                f"expected a file of {', '.join(SUFFIXES + VIDEOS)}, but got {path}; "
                "convert it to PNG or TIFF, or a video to MP4"
            )
        return [path]
    if path.is_dir():
        found = list(path.iterdir())
    elif glob.has_magic(str(path)):
        found = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207 - absolute patterns
    else:
        raise InputError(f"expected a file, folder or pattern, but there is no {path}; check the path")
    files = sorted((f for f in found if f.is_file() and not f.name.startswith(".")), key=_natural)
    known = [file for file in files if file.suffix.lower() in SUFFIXES]
    videos = [] if known else [file for file in files if file.suffix.lower() in VIDEOS]
    if len(videos) > 1:
        raise InputError(
            f"expected images or one video in {path}, but there are {len(videos)} videos; open one video at a time"
        )
    read = VIDEOS if videos else SUFFIXES
    other = [file.name for file in files if file.suffix.lower() not in read]
    if other:
        more = f" and {len(other) - 5} more" if len(other) > 5 else ""
        logger.warning("files in %s that are not images are left out: %s%s", path, ", ".join(other[:5]), more)
    if not known and not videos:
        raise InputError(
            f"expected images ({', '.join(SUFFIXES)}) or a video ({', '.join(VIDEOS)}) in {path}, but there are none"
        )
    return known or videos


def _natural(path: Path) -> list[tuple[list[str | int], str]]:
    return [([int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", s.casefold())], s) for s in path.parts]


def _last_integer(path: Path) -> int | None:
    integers = re.findall(r"[0-9]+", path.stem)
    return int(integers[-1]) if integers else None


def _unique_names(paths: list[Path]) -> list[str]:
    """Stems; those that several files share get folders in front of them, or the suffix or the position behind."""
    names = [path.stem for path in paths]
    full = [path.resolve() for path in paths]

    def proposals(k: int) -> Iterator[str]:
        folders, stem = full[k].parts[1:-1], paths[k].stem
        yield from ("_".join([*folders[-depth:], stem]) for depth in range(1, 9))
        yield f"{stem}_{paths[k].suffix[1:]}"
        yield f"{stem}_{k}"

    groups: dict[str, list[int]] = {}
    for k, name in enumerate(names):
        groups.setdefault(name.casefold(), []).append(k)
    for members in groups.values():
        if len(members) > 1:
            columns = zip(*map(proposals, members), strict=True)
            unique = next(column for column in columns if len(set(map(str.casefold, column))) == len(members))
            for k, name in zip(members, unique, strict=True):
                names[k] = name
    taken: set[str] = set()
    for k in range(len(names)):
        while names[k].casefold() in taken:
            names[k] += f"_{k}"
        taken.add(names[k].casefold())
    return names


def _frames_of(stack: Stack, stem: str, paths: Sequence[Path] = ()) -> _Images:
    """Source of the frames of one stack, from an array or the only file."""
    if not stack.frame_shape:
        numbers = [_last_integer(path) or 0 for path in paths] or [0]
        return _Images([stem], numbers, lambda _: (stack, 0), paths)
    count = math.prod(stack.frame_shape)
    return _Images(numbered(stem, count), range(count), lambda k: (stack, k))
