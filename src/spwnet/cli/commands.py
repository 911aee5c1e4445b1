"""The commands of `spwnet`: one function for each, thin over the API."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from spwnet import __version__
from spwnet.cli.naming import classes as name_classes
from spwnet.cli.options import (
    NO_BLOCK_OPTIONS,
    NO_VOLUME_OPTIONS,
    RUNNING,
    BlockOptions,
    Browser,
    Classes,
    Device,
    Epochs,
    FillHoles,
    Format,
    Frames,
    FullOverlays,
    Images,
    LabelClasses,
    LabelMode,
    Merge,
    Overlays,
    Overwrite,
    Preset,
    Rate,
    RemoveObjects,
    Resume,
    Scale,
    Seed,
    Sets,
    SettingsFile,
    Steady,
    SuperpixelImages,
    TensorBoard,
    Uncertainty,
    View,
    VolumeOptions,
)
from spwnet.cli.pages import report as write_report
from spwnet.cli.pages import view as view_run
from spwnet.cli.progress import ProgressBar, say, say_address
from spwnet.cli.reading import (
    is_open_volume,
    read_block_options,
    read_classes_option,
    read_frames,
    read_inputs,
    read_label_settings,
    read_settings,
    read_suffix,
)
from spwnet.errors import SettingsError

logger = logging.getLogger(__name__)

app = App(
    name="spwnet",
    version=__version__,
    help="Segment images, videos and tomograms with no labels and no pretrained weights.",
)

for command in (name_classes, view_run, write_report):
    app.command(command)


@app.command
def train(
    images: Images = (),
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
    view: View = False,
    browser: Browser = True,
    tensorboard: TensorBoard = None,
    reading: VolumeOptions = NO_VOLUME_OPTIONS,
) -> None:
    """Train a network on one or a few images, or slices of a volume; write it to a run directory."""
    from spwnet import api
    from spwnet.watching import watchers

    settings = read_settings(preset, settings_file, sets, classes, scale, epochs, seed, superpixels)
    source = read_inputs(images, reading)
    with (
        watchers(view=view, tensorboard=tensorboard, name=str(run), browser=browser, on_address=say_address) as watch,
        ProgressBar() as on_progress,
    ):
        model = api.train(
            source, run, settings=settings, frames=read_frames(frames), device=device,
            overwrite=overwrite, resume=resume, on_progress=on_progress, watch=watch,
        )  # fmt: skip
    if "kept_at" in model.info:
        say(f"stopped at step {model.info['kept_at']} and kept")
    score = f"score {model.info['score']:.3f}, " if "score" in model.info else ""
    say(f"{len(model.info['classes'])} of {model.n_classes()} classes in use, {score}{model.info['seconds']} s")
    say(f"run: {run}, previews: {run / 'previews'}")


@app.command
def segment(
    run: Annotated[Path, Parameter(help="Run directory of a trained network.")],
    images: Images = (),
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
    reading: VolumeOptions = NO_VOLUME_OPTIONS,
    blocks: BlockOptions = NO_BLOCK_OPTIONS,
) -> None:
    """Segment images, or a volume, with a trained network; a class has the same id everywhere."""
    from spwnet.runs import Run, load
    from spwnet.segmenting import segment as segment_images

    model = load(run, device=device)
    count, file = read_classes_option(classes, merge)
    flags = {
        "mode": label_mode, "classes": count, "steady": steady, "fill_holes": fill_holes,
        "remove_objects": remove_objects,
    }  # fmt: skip
    labels = model.labels(read_label_settings(model.settings, settings_file, sets, merge, flags), file)
    if file is None and Run(run).classes.exists():
        logger.info("%s is not used; --classes %s would", *[Run(run).classes] * 2)
    source = read_inputs(images, reading, blocks)
    if is_open_volume(source):
        from spwnet.config import FRAME_RATE
        from spwnet.volumesegmenting import segment_volume

        refused = {
            "--frames": frames is not None, "--superpixels": superpixels is not None, "--steady": steady is not None,
            "--rate": rate != FRAME_RATE, "--no-overlays": not overlays, "--full-overlays": full_overlays,
            "--uncertainty": uncertainty,
        }  # fmt: skip
        given = [name for name, is_given in refused.items() if is_given]
        if given:
            raise SettingsError(f"expected no {given[0]} with a volume, as it is for images alone; leave it out")
        with ProgressBar() as on_progress:
            found = segment_volume(
                model, source, out, labels=labels, suffix=read_suffix(suffix) or ".tif", device=device,
                overwrite=overwrite, resume=resume, on_progress=on_progress, **read_block_options(blocks),
            )  # fmt: skip
        say(f"{len(found.summary['classes'])} of {model.n_classes(labels)} classes: {found.path}")
        return
    with ProgressBar() as on_progress:
        result = segment_images(
            model, source, out, frames=read_frames(frames), superpixels=superpixels, labels=labels,
            suffix=read_suffix(suffix), rate=rate, overlays="full" if full_overlays else overlays,
            uncertainty=uncertainty, device=device, overwrite=overwrite, resume=resume, on_progress=on_progress,
        )  # fmt: skip
    written = ("labels.mp4", "overlay.mp4") if (out / "labels.mp4").exists() else ("labels", "overlays")
    places = ", ".join(str(out / name) for name in written[: 1 + overlays])
    say(f"{len(result.names)} images, {model.n_classes(labels)} classes: {places}")


@app.command(name="run")
def run_both(
    images: Images = (),
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
    view: View = False,
    browser: Browser = True,
    tensorboard: TensorBoard = None,
    reading: VolumeOptions = NO_VOLUME_OPTIONS,
    blocks: BlockOptions = NO_BLOCK_OPTIONS,
) -> None:
    """Train on a few of the images, or slices of a volume, then segment all of it."""
    from spwnet import api
    from spwnet.segmenting import Segmentation
    from spwnet.watching import watchers

    settings = read_settings(preset, settings_file, sets, classes, scale, epochs, seed, superpixels)
    source = read_inputs(images, reading, blocks)
    with (
        watchers(view=view, tensorboard=tensorboard, name=str(out), browser=browser, on_address=say_address) as watch,
        ProgressBar() as on_progress,
    ):
        model, result = api.run(
            source, out, settings=settings, frames=read_frames(frames), suffix=read_suffix(suffix), rate=rate,
            overlays="full" if full_overlays else overlays, uncertainty=uncertainty, device=device,
            overwrite=overwrite, resume=resume, on_progress=on_progress, watch=watch,
            **(read_block_options(blocks) if is_open_volume(source) else {}),
        )  # fmt: skip
    score = f", score {model.info['score']:.3f}" if "score" in model.info else ""
    say(
        f"trained on {len(model.info['images'])} images in {model.info['seconds']} s, "
        f"{len(model.info['classes'])} of {model.n_classes()} classes in use{score}"
    )
    if isinstance(result, Segmentation):
        say(f"{len(result.names)} images segmented: {result.folder}")
    else:
        say(f"volume segmented: {result.path}")


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
    """Train on images with a few settings and seeds in some time; keep the run that scores best without a truth.

    Of a volume, give some of its slices.
    """
    from spwnet.tuning import tune as try_several

    settings = read_settings(preset, settings_file, sets, classes, scale, epochs, seed, superpixels)
    with ProgressBar() as on_progress:
        _, ranked = try_several(
            read_inputs(images), out, seconds=60 * minutes, trials=trials, settings=settings,
            frames=read_frames(frames), device=device, overwrite=overwrite, resume=resume, on_progress=on_progress,
        )  # fmt: skip
    say("score    classes  seconds  run        other than the settings given")
    for trial in ranked:
        changes = ", ".join(f"{name} = {value}" for name, value in trial.changes.items()) or "–"
        say(f"{trial.score:.4f}  {trial.classes:>7}  {trial.seconds:>7.1f}  trials/{trial.number:02d}  {changes}")
    say(f"best: {out / 'trials' / f'{ranked[0].number:02d}'}")


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
    say(f"{classes} classes: {out / 'labels'}")


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
    say(f"{report.path}: {report.format}, for images of {shape}")
    say(
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

    settings = read_settings(sets=sets)
    with ProgressBar() as on_progress:
        result = run_demo(
            out, name=sample, settings=settings, device=device, overwrite=overwrite, on_progress=on_progress
        )
    say("IoU of each class on the frames that were not trained on:")
    for name, value in result["iou"].items():
        say(f"  {name:<12} {value:.3f}")
    say(f"  {'mean':<12} {result['mean_iou']:.3f}   ({result['seconds']} s)")
    say(f"picture: {result['picture']}")
    say(f"look, merge and name: spwnet view {out / 'run'}")


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
        say(f"{labels.max() + 1} regions: {out / 'labels'}, {out / 'overlays'}")
        return
    assert images is not None
    settings = read_settings(file=settings_file, sets=sets, seed=seed)
    with ProgressBar() as on_progress:
        names = dividing.regions_of_all(
            read_inputs(images), out, model=run, learned=learned, settings=settings, count=count, level=level,
            device=device, overwrite=overwrite, resume=resume, on_progress=on_progress,
        )  # fmt: skip
    say(f"{len(names)} images: {out}, with labels/, overlays/ and boundaries/")


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

    chosen = read_frames(naming)
    if isinstance(chosen, str):
        raise SettingsError(f"expected frame numbers for --naming, but got {naming!r}; some must be left to score")
    result = compare(predicted, truth, naming=chosen, ignore=ignore or ())
    if as_json:
        say(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        if isinstance(value, dict):
            for key, inner in value.items():
                say(f"  {name} {key:<21} {inner:.4f}")
        else:
            say(f"{name:<28} {value:.4f}" if isinstance(value, float) else f"{name:<28} {value}")


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
        say(json.dumps(whole, indent=2, ensure_ascii=False))
    else:
        from spwnet.outputs import provenance

        for name, value in provenance().items():
            say(f"{name:<16} {value}")


def _list_settings() -> None:
    from spwnet.config import Settings
    from spwnet.presets import setting_names

    defaults = Settings().model_dump(mode="json")
    for name, description in setting_names().items():
        value: Any = defaults
        for part in name.split("."):
            value = value[part]
        say(f"{name} = {json.dumps(_readable(value))}")
        say(f"    {description}")


def _readable(value: Any) -> Any:
    """Return a value as settings read it: TOML has no null."""
    if isinstance(value, list):
        return [_readable(one) for one in value]
    return "none" if value is None else value
