"""Embedded inputs with exact truth, drawn from a seed: no file, no download.

Each sample is a short series of frames and the class of every pixel, known because the scene is made from geometry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]
    Masks = NDArray[np.bool_]

SLICE_SPACING = 5.0
"""Pixels between neighbouring slices of the composite."""

FISH_COLOURS = {
    "stripes": ((0.93, 0.55, 0.20), (0.96, 0.93, 0.85)),
    "spots": ((0.80, 0.68, 0.48), (0.22, 0.17, 0.14)),
    "bands": ((0.85, 0.78, 0.30), (0.15, 0.18, 0.25)),
}
"""Red, green and blue of each pattern's ground and of what is painted on it."""


@dataclass(frozen=True)
class Sample:
    """A series of images with the class of every pixel.

    Attributes
    ----------
    name : str
    images : list of (H, W, C) uint8 arrays
        Frames in order, of one or three channels.
    truth : list of (H, W) uint8 arrays
        Class of each pixel of each frame, an index into `class_names`.
    class_names : tuple of str
    description : str
        What is to be seen, in a sentence.
    """

    name: str
    images: list[NDArray[np.uint8]]
    truth: list[NDArray[np.uint8]]
    class_names: tuple[str, ...]
    description: str


def sample(name: str = "composite", seed: int = 0) -> Sample:
    """Draw an embedded sample; the same seed gives the same pixels.

    Parameters
    ----------
    name : {"composite", "swim"}
        "composite": eight parallel slices through a fibre composite, grey, 240 × 320, classes matrix, fibre, pore and
        inclusion. "swim": ten frames of fish over a sea bed, colour, 216 × 320, classes sea bed, fish and water.
    seed : int
        Other seeds give other scenes of the same kind.

    Returns
    -------
    Sample

    Raises
    ------
    InputError
        If there is no sample of that name.

    Examples
    --------
    >>> sample("swim").images[0].shape
    (216, 320, 3)
    """
    if name not in SAMPLES:
        raise InputError(
            f"expected one of the samples {', '.join(SAMPLES)}, but got {name!r}.{did_you_mean(name, SAMPLES)}"
        )
    return SAMPLES[name](np.random.default_rng(seed))


def _composite(rng: np.random.Generator) -> Sample:
    """Slices through a laminate as X-ray tomography shows it: three plies, filler between them, pores anywhere."""
    from scipy import ndimage

    truth, core = _composite_geometry(rng)
    shape = truth.shape
    grain_of = ndimage.distance_transform_edt(
        rng.random(shape) > 1 / 260, sampling=(SLICE_SPACING, 1, 1), return_distances=False, return_indices=True
    )
    tone = rng.standard_normal(shape, dtype=np.float32)[tuple(grain_of)]
    grey = np.choose(
        truth,
        [
            0.45 + 0.022 * tone + 0.018 * _noise(rng, shape, (0, 1.2, 1.2)),
            0.70 + 0.06 * core + 0.012 * _noise(rng, shape, (0, 2, 2)),
            0.16 + 0.02 * _noise(rng, shape, (0, 4, 4)),
            0.45 + 0.17 * np.tanh(1.5 * _noise(rng, shape, (0.3, 1.4, 1.4))),
        ],
    )
    images = []
    for k, clean in enumerate(grey):
        image = ndimage.gaussian_filter(clean, 0.9)
        # Phase contrast: edges are a little too dark on one side and too bright on the other.
        image += 0.35 * (image - ndimage.gaussian_filter(image, 2.5))
        image = image * _illumination(shape[1:], 0.2 * k) * rng.uniform(0.95, 1.05) + rng.uniform(-0.02, 0.02)
        image += 0.035 * _noise(rng, shape[1:], 0.5)
        images.append(_to_uint8(image[..., None]))
    return Sample(
        "composite",
        images,
        list(truth),
        ("matrix", "fibre", "pore", "inclusion"),
        "Eight slices through a fibre laminate: grainy matrix, bright fibres, dark pores and granular inclusions.",
    )


def _composite_geometry(rng: np.random.Generator) -> tuple[NDArray[np.uint8], Floats]:
    """Classes of a stack of slices, and 1 on the axis of a fibre falling to 0 at its surface."""
    shape = (8, 240, 320)
    z = SLICE_SPACING * (np.arange(8, dtype=np.float32)[:, None, None] - 3.5)
    y, x = np.arange(240, dtype=np.float32)[:, None], np.arange(320, dtype=np.float32)
    rough = _noise(rng, shape, (2, 5, 5))

    def blob(centre: Any, radii: Any, roughness: float) -> Masks:
        squares = (((axis - c) / r) ** 2 for axis, c, r in zip((z, y, x), centre, radii, strict=True))
        inside: Masks = np.sqrt(sum(squares)) + roughness * rough < 1
        return inside

    truth = np.zeros(shape, np.uint8)
    for k in range(10):
        radius, flatness = rng.uniform(18, 30), rng.uniform(0.55, 0.75)
        centre = (rng.uniform(-20, 20), (79, 166)[k % 2] + rng.uniform(-12, 12), 32 * (k + rng.uniform(-0.5, 1.5)))
        truth[blob(centre, (1.8 * radius, flatness * radius, 1.3 * radius), 0.12)] = 3
    for _ in range(24):
        radius, length = rng.uniform(8, 15), rng.uniform(1, 1.6)
        centre = (rng.uniform(-20, 20), rng.uniform(0, 240), rng.uniform(0, 320))
        truth[blob(centre, (3 * radius, 0.7 * radius, length * radius), 0.08)] = 2

    core = np.zeros(shape, np.float32)
    # Fibres of a ply are parallel: they lean by `tilt` pixels along x per pixel of depth and are cut as ellipses.
    for top, bottom, tilt in ((-6, 72, 0.4), (88, 157, -2.2), (174, 246, 0.8)):
        stretch = np.hypot(1, tilt)
        for cy, cx, radius in _packed(rng, top, bottom, stretch):
            rows = slice(max(0, int(cy - radius)), max(0, int(cy + radius) + 2))
            across = ((x - cx - tilt * z) / (radius * stretch)) ** 2
            core[:, rows] = np.maximum(core[:, rows], 1 - across - ((y[rows] - cy) / radius) ** 2)
    truth[core > 0] = 1
    return truth, core


def _packed(rng: np.random.Generator, top: float, bottom: float, stretch: float) -> list[tuple[float, float, float]]:
    """(y, x, radius) of ellipses of a ply that do not touch, by random sequential placing; some are missing."""
    placed: list[tuple[float, float, float]] = []
    for _ in range(1500):
        radius = rng.uniform(6.5, 9.5)
        cy, cx = rng.uniform(top + radius, bottom - radius), rng.uniform(-120, 440)
        if all(((cx - b) / stretch) ** 2 + (cy - a) ** 2 > (radius + r + 1.5) ** 2 for a, b, r in placed):
            placed.append((cy, cx, radius))
    return [fibre for fibre in placed if rng.random() > 0.15]


def _illumination(shape: tuple[int, ...], phase: float) -> Floats:
    """Brighter towards one side, which turns with the phase, and darker in the corners."""
    height, width = shape
    v = ((np.arange(height) - height / 2) / height)[:, None]
    u = (np.arange(width) - width / 2) / width
    light: Floats = 1 + 0.1 * (u * np.cos(phase) + v * np.sin(phase + 1)) - 0.25 * (u**2 + v**2)
    return light


@dataclass(frozen=True)
class _Fish:
    """A fish that swims along x; lengths in pixels, `length` from its middle to its nose, time in frames."""

    length: float
    x: float
    y: float
    speed: float
    phase: float
    pattern: str
    patches: Floats

    def draw(self, y: Floats, x: Floats, time: int) -> tuple[Masks, Floats]:
        """Where the fish is at a time (H, W), and its colour there (H, W, 3)."""
        from scipy import ndimage

        middle = (self.x + self.speed * time + 60) % (x.size + 120) - 60
        height = self.y + 5 * np.sin(0.6 * time + self.phase)
        u = (x - middle) * np.sign(self.speed) / self.length
        v = (y - height) / self.length - 0.06 * np.sin(0.9 * time + self.phase + 2.5 * u) * np.clip(0.3 - u, 0, 1)
        half = 0.4 * np.sqrt(np.clip(1 - u**2, 0, 1)) * (1 + 0.25 * u)
        tail = (u < -0.8) & (u > -1.45) & (np.abs(v) < 0.1 - 0.55 * (u + 0.85))
        fin = (v < 0) & (-v < half + 0.16 * np.clip(1 - ((u + 0.15) / 0.3) ** 2, 0, 1)) & (np.abs(u + 0.1) < 0.35)
        if self.pattern == "stripes":
            share = _step(np.cos(9 * u) - 0.55, 9)
        elif self.pattern == "bands":
            share = _step(np.cos(26 * v + 2 * np.sin(4 * u)) - 0.1, 6)
        else:
            share = _step(ndimage.map_coordinates(self.patches, [30 * v + 24, 30 * u + 48 + 0 * v], order=1) - 0.5, 7)
        ground, ink = (np.array(colour) for colour in FISH_COLOURS[self.pattern])
        share = np.broadcast_to(share, v.shape)[..., None]
        colour = (ground * (1 - share) + ink * share) * (1.08 - 0.55 * np.clip(2 * v + 0.2, 0, 1))[..., None]
        eye = (u - 0.68) ** 2 + (v + 0.08) ** 2 < 0.006
        return (np.abs(v) < half) | tail | fin, np.where(eye[..., None], 0.06, colour)


def _swim(rng: np.random.Generator) -> Sample:
    """Fish over a sea bed, seen by a camera that pans slowly."""
    from scipy import ndimage

    n_frames, height, width, pan = 10, 216, 320, 3
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    bed, horizon = _sea_bed(rng, height, width + pan * n_frames)
    caustics = 1 + 0.06 * _noise(rng, (n_frames, height // 2, width // 2), (1.5, 7, 12))
    shade = 1 + 0.035 * _noise(rng, (n_frames, height // 2, width // 2), (3, 25, 40))
    water = np.array([0.3, 0.75, 0.9]) - np.array([0.1, 0.25, 0.22]) * (y / height)[..., None]
    patterns = list(FISH_COLOURS)
    shoal = [
        _Fish(
            length=rng.uniform(26, 40),
            x=width * (column + rng.uniform(0.2, 0.8)) / 6,
            y=height * (0.19, 0.5, 0.75)[k % 3] + rng.uniform(-12, 12),
            speed=rng.choice([-1, 1]) * rng.uniform(3, 8),
            phase=rng.uniform(0, 2 * np.pi),
            pattern=patterns[(k + k // 3) % 3],
            patches=_noise(rng, (48, 96), 2.6),
        )
        for k, column in enumerate(rng.permutation(6))
    ]
    images, truth = [], []
    for t in range(n_frames):
        seen = slice(pan * t, pan * t + width)
        classes = np.where(y > horizon[seen], 0, 2).astype(np.uint8)
        is_water = (classes == 2)[..., None]
        image = np.where(is_water, water * ndimage.zoom(shade[t], 2, order=1)[..., None], bed[:, seen])
        for fish in shoal:
            mask, colour = fish.draw(y, x, t)
            image[mask], classes[mask] = colour[mask], 1
        image *= np.where(is_water, 1, ndimage.zoom(caustics[t], 2, order=1)[..., None]) * rng.uniform(0.97, 1.03)
        image = ndimage.gaussian_filter(image, (0.7, 0.7, 0)) + 0.018 * rng.standard_normal(image.shape)
        images.append(_to_uint8(image))
        truth.append(classes)
    return Sample(
        "swim",
        images,
        truth,
        ("sea bed", "fish", "water"),
        "Ten frames of patterned fish that swim over a sea bed of sand and stones, the camera panning slowly.",
    )


def _sea_bed(rng: np.random.Generator, height: int, width: int) -> tuple[Floats, Floats]:
    """Colours (H, W, 3) of sand and stones, hazier with distance, and the row (W,) where the water begins."""
    shape = (height, width)
    horizon = 0.36 * height + 7 * _noise(rng, (width,), 45) + 1.2 * _noise(rng, (width,), 4)
    near = np.clip((np.arange(height)[:, None] - horizon) / (height - horizon.mean()), 0, 1)
    dirt, specks = _noise(rng, shape, 5), _noise(rng, shape, 0.8)
    ripples = (0.3 + near) * _noise(rng, shape, (1.6, 7))
    sand = 0.62 + 0.05 * ripples + 0.04 * dirt + 0.04 * (0.4 + near) * specks
    rock = 0.36 + 0.05 * specks + 0.05 * dirt
    is_rock = np.clip(4 * _noise(rng, shape, (3.5, 5)) - 4.4, 0, 1)[..., None]
    bed = sand[..., None] * np.array([1, 0.86, 0.62]) * (1 - is_rock) + rock[..., None] * is_rock * np.array(
        [0.95, 0.9, 0.85]
    )
    haze = 0.35 * (1 - near)[..., None]
    return bed * (1 - haze) + np.array([0.3, 0.55, 0.62]) * haze, horizon


def _noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float | tuple[float, ...]) -> Floats:
    """Gaussian noise smooth over `sigma` pixels, of unit variance."""
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap")
    unit: Floats = smooth / smooth.std()
    return unit


def _step(values: Floats, steepness: float) -> Floats:
    """From 0 where negative to 1 where positive."""
    share: Floats = 0.5 + 0.5 * np.tanh(steepness / 2 * values)
    return share


def _to_uint8(image: Floats) -> NDArray[np.uint8]:
    levels: NDArray[np.uint8] = np.clip(255 * image + 0.5, 0, 255).astype(np.uint8)
    return levels


SAMPLES: dict[str, Callable[[np.random.Generator], Sample]] = {"composite": _composite, "swim": _swim}
