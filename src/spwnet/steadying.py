"""Steady labels along a video: what did not change keeps its class, what moves is free."""

from __future__ import annotations

from dataclasses import dataclass, fields
from io import BytesIO
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from spwnet.codebook import agreed, probabilities
from spwnet.errors import OutputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spwnet.codebook import Energies

CARRIED = 8.0
"""Energy by which the classes of the frame before speak for themselves where nothing changed."""
HELD = 12.0
"""Energy by which another class must be better for a pixel that did not change to take it."""
CHANGE = 3.0
"""Difference of colour, in CIELAB, at which a pixel is taken for changed: its weight is exp(-1)."""


@dataclass(frozen=True)
class Before:
    """What is carried from a frame to the next one.

    Attributes
    ----------
    smooth : (h, w, C) float32 array
        Its colours (CIELAB, or 0…100), blurred by a pixel.
    superpixels : (h, w) int32 array
    probabilities : (N, K) float32 array
        Of the finest classes, for each superpixel.
    classes : (h, w) int32 array
        Finest class of each pixel.
    """

    smooth: NDArray[np.float32]
    superpixels: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    classes: NDArray[np.int32]

    def to_bytes(self) -> bytes:
        """Return it as the content of an NPZ file."""
        file = BytesIO()
        np.savez(file, allow_pickle=False, **{field.name: getattr(self, field.name) for field in fields(self)})
        return file.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> Before:
        """Read what `to_bytes` gave.

        Raises
        ------
        OutputError
            If it is something else, or does not fit together.
        """
        try:
            with np.load(BytesIO(data), allow_pickle=False) as file:
                before = Before(**{field.name: file[field.name] for field in fields(Before)})
            shape = before.smooth.shape[:-1]
            fits = before.superpixels.shape == before.classes.shape == shape and before.probabilities.ndim == 2
            count, classes = before.probabilities.shape
            fits = fits and 0 <= before.superpixels.min() <= before.superpixels.max() < count
            fits = fits and 0 <= before.classes.min() <= before.classes.max() < classes
        except (OSError, ValueError, TypeError, LookupError, EOFError, BadZipFile) as error:
            raise OutputError(f"expected what is carried along a video, but: {error}; use `--overwrite`") from error
        if not fits:
            raise OutputError("expected what is carried along a video to fit together, but it does not; overwrite it")
        return before


def steady(
    before: Before | None, smooth: NDArray[np.float32], superpixels: NDArray[np.int32], energies: Energies
) -> tuple[NDArray[np.intp], Before]:
    r"""Label a frame in the light of the one before.

    With weights :math:`w_p = \exp(-|x_p - x'_p|^2 / s^2)` for the colours x of a pixel now and x' before, superpixel i
    takes over what those that lay there had found: :math:`c_i = \gamma \, \mathrm{mean}_{p \in i} \, w_p q'_{i'(p)}` is
    part of the energy on which neighbours agree. A pixel then keeps its class unless that of its superpixel is better
    by more than :math:`h w_p`: superpixels are drawn anew in each frame, and their borders tremble.

    Parameters
    ----------
    before : Before or None
        None for the first frame, or one of another size.
    smooth : (h, w, C) float32 array
        Colours of the frame (CIELAB, or 0…100), blurred by a pixel.
    superpixels : (h, w) int32 array
    energies : Energies
        Of the superpixels.

    Returns
    -------
    nearest : (N,) int array
        Finest class of each superpixel.
    now : Before
        With the finest class of each pixel, for the next frame.
    """
    from scipy.sparse import csr_array

    if before is None or before.smooth.shape != smooth.shape:
        total = agreed(energies)
        nearest = total.argmin(1)
        return nearest, Before(smooth, superpixels, probabilities(total), nearest.astype(np.int32)[superpixels])
    same = np.exp(np.square(smooth - before.smooth).sum(-1) / np.float32(-(CHANGE**2)))
    flat, count = superpixels.ravel(), len(energies.values)
    sizes = np.bincount(flat, minlength=count).astype(np.float32)
    places = (flat, before.superpixels.ravel())
    shares = csr_array((same.ravel() / sizes[flat], places), shape=(count, len(before.probabilities)))
    total = agreed(energies, CARRIED * (shares @ before.probabilities))
    nearest = total.argmin(1)
    lead = total - np.take_along_axis(total, nearest[:, None], 1)
    keeps = lead[superpixels, before.classes] < HELD * same
    classes = np.where(keeps, before.classes, nearest.astype(np.int32)[superpixels])
    return nearest, Before(smooth, superpixels, probabilities(total), classes)


VISIBLE = 2.0
"""Difference of colour, in CIELAB, that is just noticeable."""


def flicker(
    labels: NDArray[Any], labels_before: NDArray[Any], smooth: NDArray[np.float32], smooth_before: NDArray[np.float32]
) -> tuple[int, int]:
    """Count the pixels that did not change, and those of them whose class did.

    Parameters
    ----------
    labels, labels_before : (h, w) int arrays
    smooth, smooth_before : (h, w, C) float32 arrays
        Colours (CIELAB, or 0…100), blurred by a pixel; a pixel changed if they differ by `VISIBLE` or more.

    Returns
    -------
    changed, of : int
        The flicker of a video is the ratio of their sums over all its pairs of frames.
    """
    unchanged = np.square(smooth - smooth_before).sum(-1) < VISIBLE**2
    return int((unchanged & (labels != labels_before)).sum()), int(unchanged.sum())
