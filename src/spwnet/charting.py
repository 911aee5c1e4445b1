"""Curves of the losses over the steps, laid out for whoever draws them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from spwnet.classes import hexadecimal, palette

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_POINTS = 500
"""Points of a curve."""
TICKS = 5
"""About as many numbers along an axis."""
LOG_FROM = 20.0
"""Largest over smallest value from which the scale is logarithmic."""

# Of the first eight colours, in order of contrast on white and on black.
_COLOURS = (0, 1, 6, 2, 4, 5)
_DASHES = ("", "7 4", "2 3", "10 3 2 3", "14 5", "4 2 1 2")


@dataclass(frozen=True)
class Curve:
    """One curve in a field whose corners are (0, 0), bottom left, and (1, 1).

    Attributes
    ----------
    name : str
    colour : str
        "#rrggbb".
    dash : str
        Lengths of lines and gaps, as of SVG; empty for a solid line.
    last : float
        The latest value.
    points : list of (x, y)
    """

    name: str
    colour: str
    dash: str
    last: float
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Curves and the numbers along the axes.

    Attributes
    ----------
    curves : list of Curve
    x, y : list of (position, text)
        Numbers along each axis, at positions in 0…1.
    log : bool
        Whether the values are on a logarithmic scale.
    """

    curves: list[Curve]
    x: list[tuple[float, str]]
    y: list[tuple[float, str]]
    log: bool

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return asdict(self)


class History:
    """The losses of every step, in a few hundred points, however many steps there are: each the mean of a few."""

    def __init__(self) -> None:
        self._each = 1
        self._pieces: list[tuple[int, int, dict[str, float]]] = []
        self._latest: dict[str, float] = {}

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add the losses of one step, later than those before."""
        self._latest = dict(values)
        if self._pieces and self._pieces[-1][1] < self._each:
            self._pieces[-1] = _joined(self._pieces[-1], (step, 1, dict(values)))
        else:
            self._pieces.append((step, 1, dict(values)))
        if len(self._pieces) > MOST_POINTS:
            pairs = zip(self._pieces[::2], self._pieces[1::2], strict=False)
            rest = self._pieces[len(self._pieces) // 2 * 2 :]
            self._pieces = [_joined(*pair) for pair in pairs] + rest
            self._each *= 2

    def points(self) -> dict[str, list[tuple[int, float]]]:
        """Return (step, value) of each curve by its name, the sum of all losses first."""
        names = sorted(self._latest, key=lambda name: name != "total")
        return {
            name: [(step, sums[name] / count) for step, count, sums in self._pieces if name in sums] for name in names
        }

    def chart(self) -> Chart:
        """Lay the curves out."""
        curves = self.points()
        steps = [step for points in curves.values() for step, _ in points]
        values = [value for points in curves.values() for _, value in points]
        if not values:
            return Chart([], [], [], False)
        low, high = min(values), max(values)
        log = low > 0 and high / low >= LOG_FROM
        bottom, top = (math.log10(low), math.log10(high)) if log else (low, high)
        margin = 0.05 * (top - bottom) or 0.5 * abs(top) or 1.0
        bottom, top = bottom - margin, top + margin
        first, last = min(steps), max(max(steps), min(steps) + 1)

        def place(step: int, value: float) -> tuple[float, float]:
            height = ((math.log10(value) if log else value) - bottom) / (top - bottom)
            return round((step - first) / (last - first), 4), round(height, 4)

        colours = palette(max(_COLOURS) + 1)
        laid = [
            Curve(
                name,
                hexadecimal(colours[_COLOURS[index % len(_COLOURS)]]),
                _DASHES[index % len(_DASHES)],
                self._latest[name],
                [place(*point) for point in points],
            )
            for index, (name, points) in enumerate(curves.items())
        ]
        across = [tick for tick in _ticks(first, last) if tick == int(tick)]
        up = _log_ticks(bottom, top) if log else _ticks(bottom, top)
        return Chart(
            laid,
            [((tick - first) / (last - first), f"{tick:.0f}") for tick in across],
            [(((math.log10(tick) if log else tick) - bottom) / (top - bottom), f"{tick:.10g}") for tick in up],
            log,
        )


def _joined(
    one: tuple[int, int, dict[str, float]], other: tuple[int, int, dict[str, float]]
) -> tuple[int, int, dict[str, float]]:
    sums = {name: one[2].get(name, 0.0) + value for name, value in other[2].items()}
    return other[0], one[1] + other[1], {**one[2], **sums}


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two others."""
    raw = (high - low) / TICKS
    size: float = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.999)
    return [step * k for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two others that are given by their logarithms."""
    # Beyond these a power of ten is no number any more.
    decades = range(max(math.floor(low), -300), min(math.ceil(high), 300) + 1)
    fine = [factor * 10.0**k for k in decades for factor in ((1, 2, 5) if high - low < 2 else (1,))]
    inside = [tick for tick in fine if low <= math.log10(tick) <= high]
    return inside[:: max(1, math.ceil(len(inside) / (2 * TICKS)))]
