"""The command `spwnet`: one function for each command, thin over the API."""

from __future__ import annotations

import json
import logging
import os
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from spwnet import __version__
from spwnet.errors import SettingsError, SpwnetError, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from spwnet.config import LabelSettings, Settings

app = App(
    name="spwnet",
    version=__version__,
    help="Segment images, videos and tomograms with no labels and no pretrained weights.",
)

TUNING = Group("Settings (preset < file < --set < flags)", sort_key=1)
RUNNING = Group("Running", sort_key=2)
VOLUMES = Group("Volumes (HDF5, NeXus, Zarr, NIfTI, MRC and raw always are, others by --volume)", sort_key=3)

Images = Annotated[list[str], Parameter(help="Files, folders or globs of images of one kind.", negative="")]
Frames = Annotated[
    str | None,
    Parameter(
        help='Frame numbers: "10,123,270", "1:400:20", "all", times in a video: "0s,2.5s", or to train on: "auto".',
        group=RUNNING,
    ),
]
Preset = Annotated[str, Parameter(help="default, instant, published-cheetah or published-hanyu.", group=TUNING)]
SettingsFile = Annotated[Path | None, Parameter(name="--settings", help="TOML file of settings.", group=TUNING)]
Sets = Annotated[
    list[str] | None,
    Parameter(
        name="--set", help='One setting, for example "losses.cut=0.5"; `spwnet info --settings` lists all.',
        negative="", group=TUNING,
    ),
]  # fmt: skip
Classes = Annotated[
    int | None,
    Parameter(
        help="Classes to find, `labels.classes` (`model.classes` without codebook).",
        group=TUNING,
    ),
]
Scale = Annotated[str | None, Parameter(help='Working size over input size, "1/3", `images.scale`.', group=TUNING)]
Epochs = Annotated[int | None, Parameter(help="Epochs of training, `training.epochs`.", group=TUNING)]
Seed = Annotated[int | None, Parameter(help="Seed of weights and patches, `seed`.", group=TUNING)]
SuperpixelImages = Annotated[
    str | None,
    Parameter(name="--superpixels", help="Folder or glob of your own superpixel label images.", group=TUNING),
]
Device = Annotated[str, Parameter(help="auto, cpu, cuda or mps.", group=RUNNING)]
Overwrite = Annotated[bool, Parameter(help="Replace what is in the output folder.", negative="", group=RUNNING)]
Resume = Annotated[bool, Parameter(help="Go on with what is in the output folder.", negative="", group=RUNNING)]
Merge = Annotated[
    list[str] | None,
    Parameter(help='Classes that are one, "0,1,3"; may be repeated.', negative="", group=TUNING),
]
FillHoles = Annotated[int | None, Parameter(help="Fill holes of fewer working pixels.", group=TUNING)]
RemoveObjects = Annotated[int | None, Parameter(help="Remove pieces of fewer working pixels.", group=TUNING)]
LabelMode = Annotated[
    Literal["codebook", "argmax_of_mean", "max_count_of_argmax"] | None,
    Parameter(help="How a superpixel gets its label.", group=TUNING),
]
Format = Annotated[
    Literal["png", "tif", "video", "zarr", "h5", "nxs", "npy"] | None,
    Parameter(
        name="--format",
        help="Label images (png, tif), or a lossless label video and an overlay to look at (video); a video gives "
        "videos, other images PNG. Of a volume: tif, zarr (OME-Zarr), h5, nxs (NeXus) or npy; TIFF if not given.",
        group=RUNNING,
    ),
]
Rate = Annotated[float, Parameter(help="Frames a second of videos made of images.", group=RUNNING)]
Steady = Annotated[
    bool | None,
    Parameter(help="What does not change from one image to the next keeps its class; on for videos.", group=TUNING),
]
LabelClasses = Annotated[
    int | None,
    Parameter(help="Classes to tell apart, `labels.classes`: any number up to `codebook.finest`.", group=TUNING),
]
Uncertainty = Annotated[bool, Parameter(help="Write how uncertain each pixel is, too.", negative="", group=RUNNING)]
Overlays = Annotated[bool, Parameter(help="Write pictures with the classes drawn over the images.", group=RUNNING)]
FullOverlays = Annotated[
    bool, Parameter(help="Overlays in the size of the input, however large.", negative="", group=RUNNING)
]


@Parameter(name="*", group=VOLUMES)
@dataclass(frozen=True)
class VolumeOptions:
    """How files are read as a volume."""

    volume: Annotated[bool, Parameter(help="Read a TIFF, an NPY or a folder of slices as one volume.", negative="")] = (
        False
    )
    channel: Annotated[
        list[str] | None,
        Parameter(
            help="More images or another volume, registered with the first, as channels; may be repeated.", negative=""
        ),
    ] = None
    axes: Annotated[str | None, Parameter(help='Order of the axes as stored, for example "CZYX".')] = None
    dataset: Annotated[str | None, Parameter(help="Path of the dataset in an HDF5 file or a Zarr group.")] = None
    level: Annotated[int, Parameter(help="Resolution of an OME-Zarr, 0 is the finest.")] = 0
    spacing: Annotated[str | None, Parameter(help='Voxel spacing, "z,y,x" or one number.')] = None
    unit: Annotated[str | None, Parameter(help='Unit of the spacing, for example "micrometer".')] = None
    shape: Annotated[str | None, Parameter(help='Shape of raw binary, "z,y,x".')] = None
    dtype: Annotated[str | None, Parameter(help='Type of raw binary, for example "uint16" or ">u2".')] = None
    offset: Annotated[int, Parameter(help="Bytes before the voxels of raw binary.")] = 0


@Parameter(name="*", group=VOLUMES)
@dataclass(frozen=True)
class BlockOptions:
    """How a volume is worked on."""

    block: Annotated[str | None, Parameter(help='Voxels along the sides of a block, one number or "z,y,x".')] = None
    workers: Annotated[int | None, Parameter(help="Blocks in work at a time; one for each processor if not given.")] = (
        None
    )
    scheduler: Annotated[
        str, Parameter(help='"threads", "processes" or the address of a Dask scheduler, "tcp://host:8786".')
    ] = "threads"
    mesh: Annotated[str | None, Parameter(help='Classes whose surface is written as STL, "1,4".')] = None


@app.command
def train(
    images: Images = [],  # noqa: B006
    /,
    *,
    run: Annotated[Path, Parameter(help="Run directory to write.")],
    frames: Frames = None,
    preset: Preset = "default",
    settings_file: SettingsFile = None,
    sets: Sets = None,
    classes: Classes = None,
    scale: Scale = None,
    epochs: Epochs = None,
    seed: Seed = None,
    superpixels: SuperpixelImages = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    resume: Resume = False,
    reading: VolumeOptions = VolumeOptions(),
) -> None:
    """Train a network on one or a few images, or slices of a volume; write it to a run directory."""
    from spwnet import api

    settings = _settings(preset, settings_file, sets, classes, scale, epochs, seed, superpixels)
    with _bar() as on_progress:
        model = api.train(
            _inputs(images, reading), run, settings=settings, frames=_frames(frames), device=device,
            overwrite=overwrite, resume=resume, on_progress=on_progress,
        )  # fmt: skip
    score = f"score {model.info['score']:.3f}, " if "score" in model.info else ""
    _say(f"{len(model.info['classes'])} of {model.n_classes()} classes in use, {score}{model.info['seconds']} s")
    _say(f"run: {run}, previews: {run / 'previews'}")


@app.command
def segment(
    run: Annotated[Path, Parameter(help="Run directory of a trained network.")],
    images: Images = [],  # noqa: B006
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder to write labels, overlays and segmentation.json to.")],
    frames: Frames = None,
    classes: LabelClasses = None,
    label_mode: LabelMode = None,
    merge: Merge = None,
    fill_holes: FillHoles = None,
    remove_objects: RemoveObjects = None,
    steady: Steady = None,
    settings_file: SettingsFile = None,
    sets: Sets = None,
    superpixels: SuperpixelImages = None,
    suffix: Format = None,
    rate: Rate = 25.0,
    overlays: Overlays = True,
    full_overlays: FullOverlays = False,
    uncertainty: Uncertainty = False,
    device: Device = "auto",
    overwrite: Overwrite = False,
    resume: Resume = False,
    reading: VolumeOptions = VolumeOptions(),
    blocks: BlockOptions = BlockOptions(),
) -> None:
    """Segment images, or a volume, with a trained network; a class has the same id everywhere."""
    from spwnet.runs import load
    from spwnet.segmenting import segment as segment_images

    model = load(run, device=device)
    flags = {
        "mode": label_mode, "classes": classes, "steady": steady, "fill_holes": fill_holes,
        "remove_objects": remove_objects,
    }  # fmt: skip
    labels = _label_settings(model.settings, settings_file, sets, merge, flags)
    source = _inputs(images, reading)
    if _is_volume(source):
        from spwnet.volumesegmenting import segment_volume

        refused = {
            "--frames": frames, "--superpixels": superpixels, "--steady": steady, "--uncertainty": uncertainty or None,
            "--full-overlays": full_overlays or None,
        }  # fmt: skip
        given = [name for name, value in refused.items() if value is not None]
        if given:
            raise SettingsError(f"expected no {given[0]} with a volume, all of which is segmented; leave it out")
        with _bar() as on_progress:
            found = segment_volume(
                model, source, out, labels=labels, suffix=_suffix(suffix) or ".tif", device=device,
                overwrite=overwrite, resume=resume, on_progress=on_progress, **_block_options(blocks),
            )  # fmt: skip
        _say(f"{len(found.summary['classes'])} of {model.n_classes(labels)} classes: {found.path}")
        return
    with _bar() as on_progress:
        result = segment_images(
            model, source, out, frames=_frames(frames), superpixels=superpixels, labels=labels,
            suffix=_suffix(suffix), rate=rate, overlays="full" if full_overlays else overlays,
            uncertainty=uncertainty, device=device, overwrite=overwrite, resume=resume, on_progress=on_progress,
        )  # fmt: skip
    written = ("labels.mp4", "overlay.mp4") if (out / "labels.mp4").exists() else ("labels", "overlays")
    places = ", ".join(str(out / name) for name in written[: 1 + overlays])
    _say(f"{len(result.names)} images, {model.n_classes(labels)} classes: {places}")


@app.command(name="run")
def run_both(
    images: Images = [],  # noqa: B006
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder to write: run/ and segmentation/.")],
    frames: Annotated[
        str | None,
        Parameter(
            help='Frame numbers or times to train on, or "auto" for a few that differ; all images are segmented.',
            group=RUNNING,
        ),
    ] = None,
    preset: Preset = "default",
    settings_file: SettingsFile = None,
    sets: Sets = None,
    classes: Classes = None,
    scale: Scale = None,
    epochs: Epochs = None,
    seed: Seed = None,
    superpixels: SuperpixelImages = None,
    suffix: Format = None,
    rate: Rate = 25.0,
    overlays: Overlays = True,
    full_overlays: FullOverlays = False,
    uncertainty: Uncertainty = False,
    device: Device = "auto",
    overwrite: Overwrite = False,
    resume: Resume = False,
    reading: VolumeOptions = VolumeOptions(),
    blocks: BlockOptions = BlockOptions(),
) -> None:
    """Train on a few of the images, or slices of a volume, then segment all of it."""
    from spwnet import api
    from spwnet.segmenting import Segmentation

    settings = _settings(preset, settings_file, sets, classes, scale, epochs, seed, superpixels)
    source = _inputs(images, reading)
    with _bar() as on_progress:
        model, result = api.run(
            source, out, settings=settings, frames=_frames(frames), suffix=_suffix(suffix), rate=rate,
            overlays="full" if full_overlays else overlays, uncertainty=uncertainty, device=device,
            overwrite=overwrite, resume=resume, on_progress=on_progress,
            **(_block_options(blocks) if _is_volume(source) else {}),
        )  # fmt: skip
    score = f", score {model.info['score']:.3f}" if "score" in model.info else ""
    _say(
        f"trained on {len(model.info['images'])} images in {model.info['seconds']} s, "
        f"{len(model.info['classes'])} of {model.n_classes()} classes in use{score}"
    )
    if isinstance(result, Segmentation):
        _say(f"{len(result.names)} images segmented: {result.folder}")
    else:
        _say(f"volume segmented: {result.path}")


@app.command
def tune(
    images: Images,
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder to write: trials/ and tuning.json.")],
    minutes: Annotated[float, Parameter(help="Time budget.", group=RUNNING)] = 10.0,
    trials: Annotated[int | None, Parameter(help="Trials at most.", group=RUNNING)] = None,
    frames: Frames = None,
    preset: Preset = "default",
    settings_file: SettingsFile = None,
    sets: Sets = None,
    classes: Classes = None,
    scale: Scale = None,
    epochs: Epochs = None,
    seed: Seed = None,
    superpixels: SuperpixelImages = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    resume: Resume = False,
) -> None:
    """Train with a few settings and seeds within a time budget; keep the run that scores best without a truth."""
    from spwnet.tuning import tune as try_several

    settings = _settings(preset, settings_file, sets, classes, scale, epochs, seed, superpixels)
    with _bar() as on_progress:
        _, ranked = try_several(
            _inputs(images), out, seconds=60 * minutes, trials=trials, settings=settings, frames=_frames(frames),
            device=device, overwrite=overwrite, resume=resume, on_progress=on_progress,
        )  # fmt: skip
    _say("score    classes  seconds  run        other than the settings given")
    for trial in ranked:
        changes = ", ".join(f"{name} = {value}" for name, value in trial.changes.items()) or "–"
        _say(f"{trial.score:.4f}  {trial.classes:>7}  {trial.seconds:>7.1f}  trials/{trial.number:02d}  {changes}")
    _say(f"best: {out / 'trials' / f'{ranked[0].number:02d}'}")


@app.command
def recut(
    segmentation: Annotated[Path, Parameter(help="Folder of a segmentation.")],
    /,
    *,
    classes: Annotated[int, Parameter(help="Number of classes, at most that of the segmentation.")],
    out: Annotated[Path, Parameter(help="Folder to write labels and segmentation.json to.")],
    overwrite: Overwrite = False,
) -> None:
    """Write a segmentation with fewer classes, in an instant; those that are left keep their ids."""
    from spwnet.recutting import recut as cut

    cut(segmentation, out, classes=classes, overwrite=overwrite)
    _say(f"{classes} classes: {out / 'labels'}")


@app.command
def export(
    run: Annotated[Path, Parameter(help="Run directory of a trained network.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="File to write: .onnx, .pt2 (torch.export) or .ts (TorchScript).")],
    size: Annotated[
        str | None, Parameter(help='"HEIGHT,WIDTH" if it shall be for images of that size alone; any if not given.')
    ] = None,
    overwrite: Annotated[bool, Parameter(help="Replace a file of that name.", negative="", group=RUNNING)] = False,
) -> None:
    """Write the network to one file for other programs: an image in the working size in, class probabilities out."""
    from spwnet.exporting import export as write

    try:
        fixed = None if size is None else tuple(int(side) for side in size.split(","))
    except ValueError:
        fixed = ()
    if fixed is not None and len(fixed) != 2:
        raise SettingsError(f'expected a size like "240,320", height first, but got {size!r}')
    report = write(run, out, size=fixed, overwrite=overwrite)
    shape = "any size" if report.size is None else "{}×{} pixels".format(*report.size)
    _say(f"{report.path}: {report.format}, for images of {shape}")
    _say(
        f"against prediction: probabilities differ by at most {report.max_difference:.2g}, "
        f"{report.agreement:.2%} of the pixels have the same class"
    )


@app.command
def demo(
    *,
    out: Annotated[Path, Parameter(help="Folder to write.")] = Path("spwnet-demo"),
    sample: Annotated[str, Parameter(help="Embedded input: composite or swim.")] = "composite",
    sets: Sets = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Train on two frames of an embedded input, segment all of them, and score against the truth."""
    from spwnet.demonstration import demo as run_demo

    settings = _settings("default", None, sets, None, None, None, None, None)
    with _bar() as on_progress:
        result = run_demo(
            out, name=sample, settings=settings, device=device, overwrite=overwrite, on_progress=on_progress
        )
    _say("IoU of each class on the frames that were not trained on:")
    for name, value in result["iou"].items():
        _say(f"  {name:<12} {value:.3f}")
    _say(f"  {'mean':<12} {result['mean_iou']:.3f}   ({result['seconds']} s)")
    _say(f"picture: {result['picture']}")


@app.command
def regions(
    images: Annotated[list[str] | None, Parameter(help="Files, folders or globs of images.", negative="")] = None,
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder to write hierarchies, labels, overlays and boundaries to.")],
    count: Annotated[int | None, Parameter(name="--regions", help="Number of regions to draw in each image.")] = None,
    level: Annotated[
        float | None, Parameter(help="Or the level to draw, 0 (leaves) to 1 (all one), `regions.level`.")
    ] = None,
    recut: Annotated[
        Path | None, Parameter(name="--from", help="Cut an existing hierarchy NAME.npz anew, instead of images.")
    ] = None,
    run: Annotated[Path | None, Parameter(help="Run directory of a trained network to take evidence from.")] = None,
    learned: Annotated[
        bool, Parameter(help="Train a small network on each image for evidence; without it only seconds.")
    ] = True,
    settings_file: SettingsFile = None,
    sets: Sets = None,
    seed: Seed = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    resume: Resume = False,
) -> None:
    """Divide each image into a hierarchy of regions, and draw one level of it."""
    from spwnet import dividing

    if (recut is None) == (not images):
        given = "both" if images else "neither"
        raise SettingsError(f"expected either images or a hierarchy by --from, but got {given}")
    if recut is not None:
        labels = dividing.recut_regions(recut, out, count=count, level=level, overwrite=overwrite)
        _say(f"{labels.max() + 1} regions: {out / 'labels'}, {out / 'overlays'}")
        return
    assert images is not None
    settings = _settings("default", settings_file, sets, None, None, None, seed, None)
    with _bar() as on_progress:
        names = dividing.regions_of_all(
            _inputs(images), out, model=run, learned=learned, settings=settings, count=count, level=level,
            device=device, overwrite=overwrite, resume=resume, on_progress=on_progress,
        )  # fmt: skip
    _say(f"{len(names)} images: {out}, with labels/, overlays/ and boundaries/")


@app.command
def evaluate(
    predicted: Annotated[str, Parameter(help="Label images: a file, folder or glob.")],
    truth: Annotated[str, Parameter(help="Truth of the same names (NAME_0, NAME_1 … of several annotators).")],
    /,
    *,
    naming: Annotated[
        str | None, Parameter(help="Frames on which classes are named, for the mean IoU on the others.")
    ] = None,
    ignore: Annotated[list[int] | None, Parameter(help="Truth labels that do not count.", negative="")] = None,
    as_json: Annotated[bool, Parameter(name="--json", help="Print JSON.", negative="")] = False,
) -> None:
    """Compare label images with a truth, by every metric of the field."""
    from spwnet.evaluation import evaluate as compare

    chosen = _frames(naming)
    if isinstance(chosen, str):
        raise SettingsError("expected frame numbers for --naming, but got 'all'; some must be left to score")
    result = compare(predicted, truth, naming=chosen, ignore=ignore or ())
    if as_json:
        _say(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        if isinstance(value, dict):
            for key, inner in value.items():
                _say(f"  {name} {key:<21} {inner:.4f}")
        else:
            _say(f"{name:<28} {value:.4f}" if isinstance(value, float) else f"{name:<28} {value}")


@app.command
def info(
    run: Annotated[Path | None, Parameter(help="Run directory to describe.")] = None,
    /,
    *,
    settings: Annotated[bool, Parameter(help="List every setting with its default.", negative="")] = False,
) -> None:
    """Describe a run, list all settings, or show versions."""
    if settings:
        _list_settings()
    elif run is not None:
        from spwnet.runs import Run

        description, resolved, normalisation = Run(run).read()
        whole = {**description, "settings": resolved.model_dump(mode="json"), "normalisation": normalisation.to_json()}
        _say(json.dumps(whole, indent=2, ensure_ascii=False))
    else:
        from spwnet.outputs import provenance

        for name, value in provenance().items():
            _say(f"{name:<16} {value}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if done, 1 if refused or failed, 130 if stopped (wrong flags exit with 2)."""
    from rich.logging import RichHandler

    # Threads that wait by spinning starve each other when the machine is busy: tenfold slower was seen.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    console = _console()
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", force=True,
        handlers=[RichHandler(console=console, show_time=False, show_path=False, markup=False)],
    )  # fmt: skip
    try:
        app(arguments, result_action="return_value")
    except (Stopped, KeyboardInterrupt) as stop:
        console.print(f"stopped: {stop}" if str(stop) else "stopped", markup=False, style="yellow")
        return 130
    except RuntimeError as error:
        # torch's own way to say that memory is used up, on CPU and GPU
        if "allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        remedy = "use a lower `images.scale`, `images.max_pixels` or `model.ch_mul`"
        console.print(f"error: expected more free memory, but it is used up; {remedy}", markup=False, style="red")
        return 1
    except (SpwnetError, OSError, MemoryError) as error:
        console.print(f"error: {str(error) or type(error).__name__}", markup=False, style="red", soft_wrap=True)
        return 1
    return 0


@cache
def _console() -> Console:
    """One console for log and progress bar: two would write over each other."""
    from rich.console import Console

    return Console(stderr=True)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _inputs(images: list[str], reading: VolumeOptions | None = None) -> Any:
    """Return what is to be opened: paths of images, or an open volume."""
    paths = images[0] if len(images) == 1 else images
    if reading is None:
        return paths
    from spwnet.volumes import is_volume, join_channels, open_volume

    files = [paths] if images else []
    files += reading.channel or []
    if not files:
        raise SettingsError("expected images or a volume, but got none; name files, or channels by --channel")
    if not (reading.volume or any(is_volume(one) for entry in files for one in _listed(entry))):
        names = ("dataset", "spacing", "unit", "shape", "dtype")
        given = [name for name in names if getattr(reading, name) is not None]
        if given:
            raise SettingsError(f"expected --{given[0]} with a volume, but got images; add --volume if they are one")
        if len(files) == 1 and reading.axes is None:
            return files[0]
        from spwnet.images import JoinedImages, open_images

        if len(files) == 1:
            return open_images(files[0], reading.axes)

        return JoinedImages([open_images(entry, reading.axes) for entry in files])
    spacing = _numbers(reading.spacing, float, "spacing")
    options: dict[str, Any] = {
        "axes": reading.axes, "dataset": reading.dataset, "level": reading.level, "unit": reading.unit,
        "spacing": spacing[0] if spacing and len(spacing) == 1 else spacing,
        "shape": _numbers(reading.shape, int, "shape"), "dtype": reading.dtype, "offset": reading.offset,
    }  # fmt: skip
    volumes = [open_volume(entry, **options) for entry in files]
    return volumes[0] if len(volumes) == 1 else join_channels(volumes)


def _listed(entry: Any) -> list[Any]:
    return entry if isinstance(entry, list) else [entry]


def _is_volume(source: Any) -> bool:
    from spwnet.volumes import Volume

    return isinstance(source, Volume)


def _block_options(blocks: BlockOptions) -> dict[str, Any]:
    block = _numbers(blocks.block, int, "block")
    return {
        "block": block[0] if block and len(block) == 1 else block,
        "workers": blocks.workers,
        "scheduler": blocks.scheduler,
        "meshes": _numbers(blocks.mesh, int, "mesh") or (),
    }


def _numbers(text: str | None, kind: type[int] | type[float], name: str) -> list[Any] | None:
    """Read "1,2,3"."""
    if text is None:
        return None
    try:
        return [kind(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        raise SettingsError(f'expected numbers like "1,2,3" for --{name}, but got {text!r}') from None


def _suffix(name: str | None) -> str | None:
    return {None: None, "video": ".mp4"}.get(name, f".{name}")


def _frames(text: str | None) -> list[int] | str | None:
    """Read "10,123,270", "1:400:20" (stop included), "0s,2.5s", "auto" or "all"."""
    if text is None or text in ("all", "auto"):
        return text
    numbers: list[Any] = []
    try:
        for part in text.split(","):
            if part.endswith("s"):
                numbers.append(part)
                continue
            first, *rest = (int(number) for number in part.split(":"))
            numbers += range(first, rest[0] + 1, *rest[1:]) if rest else [first]
    except (ValueError, TypeError):
        raise SettingsError(f'expected frames like "10,123,270", "1:400:20" or "all", but got {text!r}') from None
    if not numbers:
        raise SettingsError(f"expected at least one frame, but {text!r} holds none")
    return numbers


def _settings(
    preset: str,
    file: Path | None,
    sets: list[str] | None,
    classes: int | None,
    scale: str | None,
    epochs: int | None,
    seed: int | None,
    superpixels: str | None,
) -> Settings:
    from spwnet.config import make_settings

    values = dict(_assignment(text) for text in sets or ())
    flags = {
        "images.scale": scale, "training.epochs": epochs, "seed": seed,
        "superpixels.labels": superpixels, "superpixels.method": "labels" if superpixels else None,
    }  # fmt: skip
    values |= {name: value for name, value in flags.items() if value is not None}
    if isinstance(values.get("images.scale"), str) and "/" not in values["images.scale"] != "auto":
        values["images.scale"] = _value(values["images.scale"])
    settings = make_settings(preset, file, values)
    if classes is None:
        return settings
    name = "labels.classes" if settings.labels.mode == "codebook" else "model.classes"
    return make_settings(preset, file, values | {name: classes})


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise SettingsError(f'expected a setting like "losses.cut=0.5", but got {text!r}')
    return name.strip(), _value(value.strip())


def _value(text: str) -> Any:
    """Read a TOML value; anything else is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _label_settings(
    settings: Settings,
    file: Path | None,
    sets: list[str] | None,
    merge: list[str] | None,
    flags: dict[str, Any],
) -> LabelSettings:
    """Settings of labelling and cleaning: the run's, then a file, single settings and flags over them."""
    from spwnet.config import flat, merged, nested, parse_settings, read_toml

    groups = None if merge is None else [_frames(group) for group in merge]
    flags = {**flags, "merge": groups}
    values = merged(read_toml(file) if file else {}, nested(dict(_assignment(text) for text in sets or ())))
    values = merged(values, {"labels": {name: value for name, value in flags.items() if value is not None}})
    other = [name for name in flat(values) if not name.startswith("labels.") and name != "labels"]
    if other:
        raise SettingsError(
            f"expected settings under `labels` alone, because the network is trained already, but got '{other[0]}'"
        )
    return parse_settings(merged(settings.model_dump(), values)).labels


def _list_settings() -> None:
    from spwnet.config import Settings, setting_names

    defaults = Settings().model_dump(mode="json")
    for name, description in setting_names().items():
        value: Any = defaults
        for part in name.split("."):
            value = value[part]
        _say(f"{name} = {json.dumps(value)}")
        _say(f"    {description}")


class _bar:
    """Progress on the terminal: steps or images, losses, and the time left."""

    def __enter__(self) -> Callable[[Any], None]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.progress = Progress(*columns, console=_console())
        self.progress.start()
        self.tasks: dict[str, Any] = {}
        return self.update

    def update(self, state: Any) -> None:
        if state.stage not in self.tasks:
            self.tasks[state.stage] = self.progress.add_task(state.stage, total=state.total, note="")
        losses = " ".join(f"{name} {value:.3f}" for name, value in state.values.items())
        note = f"{_duration(state.seconds_left)} left  {losses}"
        self.progress.update(self.tasks[state.stage], completed=state.done, total=state.total, note=note)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
