"""The package under test: every call of its public API that the quality benchmark makes, and every settings variant."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import spwnet
from spwnet import Settings, TrainedModel, make_settings
from spwnet.images import label_image, open_images
from spwnet.presets import merged, nested

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from benchmarks.data import Set

FULL, INSTANT = "full", "instant"
CLASSES, FEW = 32, 8
"""Classes of the main result, and those chosen from the same model after training."""


@dataclass(frozen=True)
class Variant:
    """A preset with settings of its own over it."""

    overrides: dict[str, Any] = field(default_factory=dict)
    preset: str = "default"


VARIANTS = {
    FULL: Variant(),
    INSTANT: Variant(preset="instant"),
    "colour only": Variant({"codebook.evidence": "colour"}),
    "untrained network": Variant({"training.epochs": 0}),
    "learned evidence alone": Variant({"codebook.evidence": "learned"}),
    "learned evidence alone, untrained": Variant({"codebook.evidence": "learned", "training.epochs": 0}),
    "without patches": Variant({"patches.crop": None}),
    "without graph losses": Variant({"losses": {"cut": 0.0, "similarity": 0.0, "continuity": 0.0}}),
    "without superpixels": Variant({"superpixels.method": "none"}),
}
"""Of the ablation, the whole method first."""


@dataclass(frozen=True)
class Segmented:
    """Classes, and uncertainty in 0…1 if asked for, by frame number; the seconds it took, and for how many images."""

    labels: dict[int, NDArray[Any]]
    uncertainty: dict[int, NDArray[Any]] | None
    seconds: float
    images: int


def settings_of(variant: Variant, seed: int, changes: dict[str, Any] | None = None) -> Settings:
    """Build the settings of a variant, with `changes` over any variant's."""
    layers = ({"labels.classes": CLASSES}, variant.overrides, changes or {}, {"seed": seed})
    return make_settings(variant.preset, overrides=reduce(lambda a, b: merged(a, nested(b)), layers, {}))


def identity(settings: Settings) -> str:
    """Short digest of settings, to tell results of others apart."""
    return hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:12]


def train(data: Set, settings: Settings, device: str = "auto") -> tuple[TrainedModel, float]:
    """Train on the set's training frames; also for presets that have nothing to train. Returns seconds, too."""
    start = time.perf_counter()
    model = spwnet.train(data.images, settings=settings, frames=list(data.training), device=device)
    return model, time.perf_counter() - start


def segment(
    model: TrainedModel, data: Set, frames: Sequence[int], *, classes: int | None = None, uncertainty: bool = False
) -> Segmented:
    """Segment frames, into another number of classes than the settings' if one is given."""
    own = model.settings.labels
    chosen = own if classes is None else own.model_copy(update={"classes": classes})
    start = time.perf_counter()
    result = spwnet.segment(model, data.images, frames=list(frames), labels=chosen, uncertainty=uncertainty)
    seconds = time.perf_counter() - start
    labels = dict(zip(frames, result.labels, strict=True))
    doubt = dict(zip(frames, result.uncertainty, strict=True)) if uncertainty else None
    return Segmented(labels, doubt, seconds, len(frames))


def segment_whole(model: TrainedModel, data: Set, frames: Sequence[int]) -> Segmented:
    """Segment every image of a set into a folder, and return the classes of `frames`: a long video fills the memory."""
    with TemporaryDirectory() as scratch:
        start = time.perf_counter()
        result = spwnet.segment(model, data.images, scratch)
        seconds = time.perf_counter() - start
        written = open_images([Path(scratch) / "labels" / f"{name}.png" for name in result.names])
        position = {number: k for k, number in enumerate(data.images.numbers)}
        labels = {number: label_image(written, position[number]) for number in frames}
    return Segmented(labels, None, seconds, len(result.names))


def score_of(model: TrainedModel) -> float | None:
    """The label-free score of a run, if it has one."""
    score = model.info.get("score")
    return None if score is None else float(score)
