"""Trying a few settings and seeds within a time budget, and keeping the run that scores best without a truth."""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spwnet import outputs, storage
from spwnet.api import train
from spwnet.config import Settings
from spwnet.errors import InputError, SettingsError
from spwnet.images import image_size, open_images
from spwnet.presets import flat, merged, nested, parse_settings
from spwnet.runs import Run, load
from spwnet.volumes import is_volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from spwnet.images import ImageSource
    from spwnet.trained import TrainedModel
    from spwnet.training import Progress

logger = logging.getLogger(__name__)

LARGE_CROP = 256
VARIATIONS: tuple[dict[str, Any], ...] = (
    {},
    {"codebook.evidence": "handmade"},
    {"superpixels.size": 12.0},
    {"superpixels.size": 32.0},
    {"losses.continuity": 0.3},
    {"patches.crop": LARGE_CROP},
)
"""Settings that are tried over those given, in this order; then they all come again with the next seed."""


@dataclass(frozen=True)
class Trial:
    """One run of a tuning.

    Attributes
    ----------
    number : int
        From 0, in the order of trying.
    changes : dict
        Settings other than those given, by dotted name.
    score : float
        `label_score` of its labels; higher is better.
    classes : int
        Classes by default.
    seconds : float
        That the training took.
    """

    number: int
    changes: dict[str, Any]
    score: float
    classes: int
    seconds: float


@storage.claiming("output")
def tune(
    images: Any,
    output: str | Path,
    *,
    seconds: float = 600.0,
    trials: int | None = None,
    settings: Settings | None = None,
    frames: Sequence[int | str] | Literal["all", "auto"] | None = None,
    superpixels: Any = None,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> tuple[TrainedModel, list[Trial]]:
    """Train on images, no volume, with a few settings and seeds, and keep the run of the highest score.

    The score needs no truth, see `label_score`. A trial starts only if one as long as the longest so far still fits
    into the time; the first always runs.

    ::

        OUTPUT/
          trials/00, 01 …   the runs
          tuning.json       their settings and scores, and which is the best

    Parameters
    ----------
    images, frames, superpixels, device, overwrite
        As in `train`; of a volume, give slices as images.
    output : path
    seconds : float
        Time budget.
    trials : int, optional
        Number of trials at most.
    settings : Settings, optional
        What the trials vary.
    resume : bool
        Go on with a tuning of the same settings: trials that are finished are kept, their time does not count.
    on_progress : callable
        Called with a `Progress` after each step of a training.
    on_trial : callable
        Called with each `Trial` that is finished.

    Returns
    -------
    TrainedModel
        The best.
    list of Trial
        Best first.

    Raises
    ------
    SpwnetError
        For any input, setting or place that cannot be used.
    Stopped
        After Ctrl-C, with everything kept to go on from.
    """
    settings = settings or Settings()
    if is_volume(images):
        raise SettingsError(
            "expected images to tune on, but got a volume, which has no score; give some of its slices as images, and "
            "train on the volume with the settings that are found"
        )
    if not seconds > 0:
        raise SettingsError(f"expected a time budget above 0 seconds, but got {seconds}")
    if trials is not None and trials < 1:
        raise SettingsError(f"expected at least one trial, but got {trials}")
    folder = Path(output)
    storage.check_folder(folder, overwrite=overwrite, resume=resume)
    source = open_images(images, settings.images.axes)
    storage.prepare_folder(folder / "trials", overwrite=overwrite, resume=True)
    if overwrite:
        # Trials of before, of which there may be more than now.
        for earlier in (folder / "trials").glob("[0-9][0-9]*/run.json"):
            earlier.unlink()
    done: list[Trial] = []
    start, longest = time.monotonic(), 0.0
    given = settings.patches.crop
    no_crops = given is not None and _all_fit(source, min(given, LARGE_CROP), settings)
    for number, changes in enumerate(_candidates(settings, trials, no_crops=no_crops)):
        run = Run(folder / "trials" / f"{number:02d}")
        here = resume and run.description.exists()
        if done and not here and time.monotonic() - start + longest > seconds:
            break
        before = time.monotonic()
        varied = parse_settings(merged(settings.model_dump(), nested(changes)))
        model = train(
            source, run.folder, settings=varied, frames=frames, superpixels=superpixels, device=device,
            overwrite=not here, resume=here, on_progress=on_progress,
        )  # fmt: skip
        # A trial that was finished before is only read.
        longest = max(longest, time.monotonic() - before, model.info["seconds"])
        done.append(Trial(number, changes, model.info["score"], model.n_classes(), model.info["seconds"]))
        on_trial(done[-1])
        _write(folder, settings, done)
    ranked = sorted(done, key=lambda trial: (-trial.score, trial.number))
    return load(folder / "trials" / f"{ranked[0].number:02d}", device=device), ranked


def _all_fit(source: ImageSource, side: int, settings: Settings) -> bool:
    """Whether a crop of some side is the whole of each working image, so that a larger one is the same."""
    scale = 1.0 if settings.images.scale == "auto" else settings.images.scale
    try:
        return all(max(image_size(source, k)) * scale <= side for k in range(len(source)))
    except InputError:
        # One that cannot be read is told where it is trained on.
        return False


def _candidates(settings: Settings, trials: int | None, *, no_crops: bool = False) -> Iterator[dict[str, Any]]:
    """Variations that differ from the settings given and from each other, then the same with the next seeds."""
    given = flat(settings.model_dump())
    varied: list[dict[str, Any]] = [{}]
    for variation in VARIATIONS[1:]:
        if no_crops and "patches.crop" in variation:
            continue
        changes = {name: value for name, value in variation.items() if given[name] != value}
        after = parse_settings(merged(settings.model_dump(), nested(changes)))
        changes = {name: value for name, value in changes.items() if _matters(after, name.partition(".")[0])}
        if changes:
            varied.append(changes)
    numbers = itertools.count() if trials is None else range(trials)
    for number in numbers:
        later, which = divmod(number, len(varied))
        yield varied[which] | ({"seed": settings.seed + later} if later else {})


def _matters(settings: Settings, section: str) -> bool:
    """Whether settings of a section have an effect among the others."""
    if section in ("losses", "patches") and not settings.learns:
        return False
    if section == "superpixels":
        return settings.superpixels.method == "slic"
    return section != "codebook" or settings.labels.mode == "codebook"


def _write(folder: Path, settings: Settings, done: Sequence[Trial]) -> None:
    best = max(done, key=lambda trial: (trial.score, -trial.number))
    described = {
        **outputs.provenance(),
        "settings": settings.model_dump(mode="json"),
        "best": f"trials/{best.number:02d}",
        "trials": [asdict(trial) for trial in done],
    }
    storage.write_json(folder / "tuning.json", described)
