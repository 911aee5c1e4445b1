"""Fewer classes in a segmentation that is written already: a lookup in its tree of merges, without the images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet import outputs, storage
from spwnet.classes import Legend, areas, palette
from spwnet.codebook import coarser, is_tree
from spwnet.errors import InputError, OutputError, SettingsError
from spwnet.images import label_image, open_images
from spwnet.results import VIDEOS, class_table, is_plain
from spwnet.segmenting import VIDEO
from spwnet.storage import parse_json
from spwnet.volumereport import write_results
from spwnet.volumes import open_volume

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


@storage.claiming("output")
def recut(
    segmentation: str | Path,
    output: str | Path,
    *,
    classes: int,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Path:
    """Write the labels of a segmentation with fewer classes; those that are left keep their ids.

    Label images become label images, and so do the frames of a label video; a label volume becomes one of its format.
    Names and colours of classes are not taken over.

    Parameters
    ----------
    segmentation : path
        Folder that `segment` wrote.
    output : path
        Folder for ``labels/``, or a label volume, and ``segmentation.json``.
    classes : int
        Number of classes, at most that of the segmentation.
    overwrite : bool
        Replace files of the same names in `output`, and remove what an earlier segmentation wrote there.
    on_progress : callable
        Called with the images done and their number; not for a volume.

    Returns
    -------
    Path
        The folder written.

    Raises
    ------
    InputError
        If `segmentation` is no complete segmentation with a tree of classes.
    SettingsError
        If it has fewer classes.
    OutputError
        If `output` cannot be written or holds something.
    """
    source, target = Path(segmentation), Path(output)
    if target.resolve() == source.resolve():
        raise OutputError(f"expected another folder than the segmentation itself, but got {target}; choose one")
    summary, parents = _read(source)
    if not 1 <= classes <= len(parents):
        raise SettingsError(
            f"expected 1 to {len(parents)} classes, as many as the segmentation in {source} has, but got {classes}; "
            "segment again with more"
        )
    storage.check_folder(target, overwrite=overwrite)
    table, plain = coarser(parents, classes), Legend(palette(classes), {})
    if "volume" in summary:
        return _recut_volume(source, target, summary, table, plain)
    if summary["suffix"] == VIDEO:
        # The frames of a label video, by their order, become label images.
        labels = open_images(source / f"labels{VIDEO}", None)
        position = {name: k for k, name in enumerate(summary["images"])}
        summary["suffix"] = ".png"
    else:
        labels = open_images(source / "labels", None)
        position = {name: k for k, name in enumerate(labels.names)}
    names = [name for name in summary["images"] if position.get(name, len(labels)) < len(labels)]
    if len(names) < len(summary["images"]):
        missing = next(name for name in summary["images"] if name not in names)
        raise InputError(f"expected a label image of '{missing}' in {source / 'labels'}, but there is none")
    storage.prepare_folder(target / "labels", overwrite=True)
    _remove_earlier(target)
    images: dict[str, dict[str, Any]] = {}
    for done, name in enumerate(names, start=1):
        found = label_image(labels, position[name])
        if int(found.max()) >= len(table):
            raise InputError(f"expected class ids below {len(table)} in '{name}', but got {found.max()}; segment again")
        cut = table[found]
        outputs.write_labels(target / "labels" / f"{name}{summary['suffix']}", cut, classes)
        counts = {str(k): n for k, n in enumerate(areas(cut, classes)) if n}
        images[name] = {**summary["images"][name], "areas": counts}
        on_progress(done, len(names))
    tree = {key: values[:classes] for key, values in summary["tree"].items()}
    described = {
        **summary,
        "overlays": False,
        "uncertainty": False,
        "labels": {**summary["labels"], "classes": classes},
        **outputs.provenance(),
        "tree": tree,
        "classes": class_table(images, plain),
        "images": images,
    }
    storage.write_json(target / "segmentation.json", described)
    return target


def _recut_volume(source: Path, target: Path, summary: dict[str, Any], table: NDArray[np.int32], plain: Legend) -> Path:
    """Write a label volume with fewer classes, a few slices at a time."""
    classes = len(plain.colours)
    found = open_volume(source / f"labels{summary['suffix']}")
    dtype = outputs.label_dtype(classes, ".tif")

    def slab(z: slice) -> NDArray[Any]:
        ids = found.read((z, slice(None), slice(None)))[..., 0]
        if int(ids.max(initial=0)) >= len(table):
            raise InputError(f"expected class ids below {len(table)} in {found.origin}, but got {ids.max()}")
        fewer: NDArray[Any] = table[ids].astype(dtype)
        return fewer

    described = summary["volume"]
    spacing, unit = described["spacing"], described["unit"]
    storage.prepare_folder(target, overwrite=True)
    _remove_earlier(target)
    labels = {**summary["labels"], "classes": classes}
    tree = {key: values[:classes] for key, values in summary["tree"].items()}
    provenance = {**summary, "labels": labels, "tree": tree, **outputs.provenance()}
    counted = write_results(
        target, summary["suffix"], found.shape, dtype, slab, legend=plain, spacing=spacing, unit=unit,
        provenance={key: value for key, value in provenance.items() if key != "summary"},
    )  # fmt: skip
    storage.write_json(target / "segmentation.json", {**provenance, "summary": counted})
    return target


def _remove_earlier(folder: Path) -> None:
    """Remove what an earlier segmentation wrote into the folder: its classes mean something else."""
    file = folder / "segmentation.json"
    if not file.exists():
        return
    try:
        names = set(parse_json(file.read_text(encoding="utf-8")).get("images", {}))
    except (ValueError, TypeError, AttributeError):  # it is damaged, and to be replaced
        names = set()
    # First, so that a cut that fails half-way does not pass for a complete one.
    file.unlink()
    for part in ("labels", "overlays", "uncertainty"):
        for old in (folder / part).glob("*"):
            if old.stem in names:
                old.unlink()
    for name in VIDEOS:
        (folder / f"{name}{VIDEO}").unlink(missing_ok=True)


def _read(folder: Path) -> tuple[dict[str, Any], np.ndarray[Any, np.dtype[np.int32]]]:
    """Read and check the summary of a segmentation; return it with the parents of its classes."""
    file = folder / "segmentation.json"
    try:
        summary = parse_json(file.read_text(encoding="utf-8"))
        complete, suffix = summary["complete"], summary["suffix"]
        # None where classes were named, or are those of the network
        described = {"parents": []} if summary["tree"] is None else summary["tree"]
        parents = described["parents"]
        images = dict(summary["summary"]["classes"] if "volume" in summary else summary["images"])
        tree = np.array(parents, np.int32)
        if any(len(values) != len(tree) for values in described.values()):
            raise ValueError("lists of different lengths in its tree")
        if not all(isinstance(one, dict) for one in (summary["labels"], *images.values())):
            raise TypeError("its labels or images are no tables")
        if "volume" in summary:
            _ = summary["volume"]["spacing"], summary["volume"]["unit"]
    except FileNotFoundError:
        raise InputError(f"expected a segmentation with a segmentation.json at {folder}, but there is none") from None
    except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(
            f"expected a segmentation with a tree of classes in {file}, but: {error!r}; segment by codebook first"
        ) from error
    if summary["tree"] is None:
        raise InputError(
            f"expected a segmentation with a tree of classes in {file}, but its classes were named, or not found by "
            "codebook; segment again by codebook, without a file of classes"
        )
    if complete is not True or not images:
        raise InputError(f"expected a complete segmentation at {folder}, but it is not; go on with it by `--resume`")
    suffixes = (".tif", ".zarr", ".h5", ".nxs", ".npy") if "volume" in summary else (".png", ".tif", VIDEO)
    if not is_tree(tree) or suffix not in suffixes:
        raise InputError(f"expected a tree of classes in {file}, but got {parents!r}; segment again")
    odd = [name for name in images if not is_plain(name)]
    if odd:
        raise OutputError(f"expected plain names of images in {file}, but got {odd[0]!r}; segment again")
    return summary, tree
