"""An array as a file holds it, whatever the format: its axes, and what readers say of errors."""

from __future__ import annotations

import itertools
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

from spwnet.errors import InputError
from spwnet.stacks import MOST_CHANNELS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    Steps = Mapping[str, tuple[float, str | None]]
    Take = Callable[[tuple[slice, ...]], NDArray[Any]]

_CODECS = {"imagecodecs": "imagecodecs", "pcodec": "pcodec", "zfpy": "zfpy", "crc32c": "crc32c"}
_QUIET = Lock()


@dataclass(frozen=True, eq=False)
class Stored:
    """An array as a file holds it.

    Attributes
    ----------
    shape : tuple of int
        In the order of the file.
    dtype : dtype
        Of what `take` gives, in any byte order.
    take : callable
        Reads a part by slices, one for each axis.
    axes : str or None
        A letter for each axis: Z, Y, X, channels C and S, T or any other; None where nothing names them.
    steps : mapping
        Distance of voxels along an axis, by its letter, and the unit as the file spells it.
    chunks : tuple of int or None
        Shape of the parts that are read whole, in the order of the file.
    kept : int or None
        Channels before the alpha, where there is alpha.
    rgb : bool
        Whether three channels are red, green and blue.
    within : str
        Path of the dataset in the file, empty where the file is one array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    take: Take
    axes: str | None = None
    steps: Steps = field(default_factory=dict)
    chunks: tuple[int, ...] | None = None
    kept: int | None = None
    rgb: bool = False
    within: str = ""


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Turn whatever a reader raises into one error for users."""
    try:
        yield
    except InputError as error:
        raise InputError(f"cannot read '{where}': {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise anything
        remedy = "check that the file is complete, or copy it again from where it was written"
        if "unable to lock" in str(error).lower():
            remedy = "close the program that writes it, or set the environment variable HDF5_USE_FILE_LOCKING=FALSE"
        if type(error).__name__ == "UnknownCodecError":
            package = next((p for word, p in _CODECS.items() if word in str(error)), "numcodecs")
            remedy = f"install the package that has this codec, for example by `pip install {package}`"
        raise InputError(f"expected to read '{where}', but: {reason_of(error)}; {remedy}") from error


@contextmanager
def quiet(message: str) -> Iterator[None]:
    """Leave out warnings that begin like this; one at a time, because filters belong to all threads."""
    with _QUIET, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message)
        yield


def guess_axes(shape: tuple[int, ...]) -> str:
    """Name the axes of an array that nothing names: ZYX, or with channels ZYXC or CZYX.

    Raises
    ------
    InputError
        If the shape does not tell.
    """
    if len(shape) == 3:
        return "ZYX"
    if len(shape) == 4 and shape[0] != shape[-1] and min(shape[0], shape[-1]) <= MOST_CHANNELS:
        return "ZYXC" if shape[-1] < shape[0] else "CZYX"
    if len(shape) < 3:
        raise InputError(
            f"expected a volume, of three dimensions or four with channels, but the shape is {shape}; give several "
            "slices as a folder or a list, or segment it as an image"
        )
    raise InputError(
        f"expected three dimensions, or a first or last axis of at most {MOST_CHANNELS} channels beside them, but the "
        f'shape is {shape}; name its axes by `axes`, for example "CZYX"'
    )


def arrange(block: NDArray[Any], axes: str) -> NDArray[Any]:
    """Return a block as (d, h, w, C); axes other than Z, Y, X, C and S have length 1."""
    order = sorted(range(len(axes)), key=lambda k: "ZYXCS".find(axes[k]))
    depth, height, width = (block.shape[axes.index(axis)] if axis in axes else 1 for axis in "ZYX")
    return block.transpose(order).reshape(depth, height, width, -1)


def by_chunks(take: Take, chunks: tuple[int, ...] | None) -> Take:
    """Let an error of reading name the first chunk that cannot be read."""
    if not chunks:
        return take

    def named(index: tuple[slice, ...]) -> NDArray[Any]:
        try:
            return take(index)
        except MemoryError:
            raise
        except Exception as error:  # damaged chunks raise anything
            spans = [range(part.start // n, (part.stop - 1) // n + 1) for part, n in zip(index, chunks, strict=True)]
            for chunk in itertools.product(*spans):
                try:
                    take(tuple(slice(k * n, (k + 1) * n) for k, n in zip(chunk, chunks, strict=True)))
                except Exception as cause:  # as above
                    raise InputError(
                        f"expected to read chunk {chunk} of shape {tuple(chunks)}, but: {reason_of(cause)}; copy the "
                        "file again, or leave this part out"
                    ) from error
            raise

    return named


def reason_of(error: Exception) -> str:
    """Return the text of an error; that of a KeyError would come in quotation marks."""
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error) or type(error).__name__
