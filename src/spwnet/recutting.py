"""Fewer classes in a segmentation that is written already: a lookup in its tree of merges, without the images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet import outputs
from spwnet.classes import areas
from spwnet.codebook import coarser, is_tree
from spwnet.errors import InputError, OutputError, SettingsError
from spwnet.images import label_image, open_images
from spwnet.results import class_table

if TYPE_CHECKING:
    from collections.abc import Callable


def recut(
    segmentation: str | Path,
    output: str | Path,
    *,
    classes: int,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Path:
    """Write the label images of a segmentation with fewer classes; those that are left keep their ids.

    Parameters
    ----------
    segmentation : path
        Folder that `segment` wrote.
    output : path
        Folder for ``labels/`` and ``segmentation.json``.
    classes : int
        Number of classes, at most that of the segmentation.
    overwrite : bool
        Replace files of the same names in `output`.
    on_progress : callable
        Called with the images done and their number.

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
    outputs.check_folder(target, overwrite=overwrite)
    labels = open_images(source / "labels", None)
    names = [name for name in summary["images"] if name in labels.names]
    if len(names) < len(summary["images"]):
        missing = next(name for name in summary["images"] if name not in labels.names)
        raise InputError(f"expected a label image of '{missing}' in {source / 'labels'}, but there is none")
    outputs.prepare_folder(target / "labels", overwrite=True)
    table = coarser(parents, classes)
    images: dict[str, dict[str, Any]] = {}
    for done, name in enumerate(names, start=1):
        found = label_image(labels, labels.names.index(name))
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
        "classes": class_table(images, classes),
        "images": images,
    }
    outputs.write_json(target / "segmentation.json", described)
    return target


def _read(folder: Path) -> tuple[dict[str, Any], np.ndarray[Any, np.dtype[np.int32]]]:
    """Read and check the summary of a segmentation; return it with the parents of its classes."""
    file = folder / "segmentation.json"
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        complete, suffix, parents = summary["complete"], summary["suffix"], summary["tree"]["parents"]
        images = dict(summary["images"])
        tree = np.array(parents, np.int32)
    except FileNotFoundError:
        raise InputError(f"expected a segmentation with a segmentation.json at {folder}, but there is none") from None
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise InputError(
            f"expected a segmentation with a tree of classes in {file}, but: {error!r}; segment by codebook first"
        ) from error
    if complete is not True or not images:
        raise InputError(f"expected a complete segmentation at {folder}, but it is not; go on with it by `--resume`")
    if not is_tree(tree) or suffix not in (".png", ".tif"):
        raise InputError(f"expected a tree of classes in {file}, but got {parents!r}; segment again")
    if any(Path(name).name != name for name in images):
        raise OutputError(f"expected plain names of images in {file}, but got {sorted(images)[0]!r}; segment again")
    return summary, tree
