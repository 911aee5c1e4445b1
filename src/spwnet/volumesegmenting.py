"""Segmenting volumes block by block: in this process, in several, or on a cluster."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import operator
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from spwnet import outputs, storage
from spwnet.blocks import tiles
from spwnet.blockstore import BlockStore
from spwnet.classes import clean, legend
from spwnet.devices import available_memory, worker_pool
from spwnet.errors import InputError, OutputError, SettingsError, Stopped
from spwnet.images import fingerprint
from spwnet.packages import optional_package
from spwnet.runs import load
from spwnet.storage import check_space, parse_json
from spwnet.surfaces import mesh
from spwnet.trained import TrainedModel
from spwnet.training import Progress, stoppable
from spwnet.volumereport import orthogonal, summarise, write_results
from spwnet.volumes import SliceSource, open_volume
from spwnet.volumetric import check_slices, grid_of, predict_part
from spwnet.volumewriting import check_suffix, check_target

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from spwnet.blocks import Region
    from spwnet.classes import Legend
    from spwnet.config import LabelSettings
    from spwnet.naming import ClassMap
    from spwnet.volumes import Volume

logger = logging.getLogger(__name__)

BLOCK = 128
"""Working voxels along the side of a block, if nothing else is asked for."""
SLICES = 8
"""Slices in a block where each slice is labelled on its own."""
LEAST_SHARE = 10
"""Times that compressed labels are smaller than plain ones, at best, about."""
CLEANING_BYTES = 60
"""Memory that cleaning takes for a voxel, about."""
MOST_DEATHS = 10
"""Times that blocks whose workers died are given out again before the job is given up."""
CONNECT_SECONDS = 30
"""Time that a Dask scheduler has to answer."""
SUMMARY = "segmentation.json"


@dataclass(frozen=True)
class VolumeSegmentation:
    """The labels of a volume.

    Attributes
    ----------
    path : Path or None
        The label volume, if one was written.
    labels : (D, H, W) array of unsigned int or None
        The labels, if none was written.
    summary : dict
        Voxels, fraction and volume of each class, and fractions along each axis.
    """

    path: Path | None
    labels: NDArray[np.unsignedinteger[Any]] | None
    summary: dict[str, Any]


@storage.claiming("output")
def segment_volume(
    model: TrainedModel | str | Path,
    volume: Volume,
    output: str | Path | None = None,
    *,
    labels: LabelSettings | None = None,
    classes: ClassMap | str | Path | None = None,
    suffix: str = ".tif",
    block: int | Sequence[int] | None = None,
    workers: int | None = None,
    scheduler: str = "threads",
    meshes: Sequence[int] = (),
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> VolumeSegmentation:
    """Segment a volume block by block; the labels do not depend on where blocks are cut.

    Parameters
    ----------
    model : TrainedModel or path
        Trained on a volume, for supervoxels; or on images or slices, which labels each slice along z on its own.
    volume : Volume
        From `open_volume`.
    output : path, optional
        Folder for ``labels`` with the suffix, ``segmentation.json``, ``fractions.csv`` and ``fractions.png`` (of each
        class, in all and slice by slice), and ``slices.png`` (three slices at right angles); without one the labels
        are returned.
    labels : LabelSettings, optional
        Number of classes, merges and cleaning other than the run's own; volumes are cleaned whole, in memory.
    classes : ClassMap or path, optional
        Classes by name, or a file of them, in place of those of `labels`.
    suffix : str
        ".tif", ".zarr" (OME-Zarr), ".h5" or ".nxs" (NeXus), ".npy".
    block : int or three ints, optional
        Voxels along the sides of a block; if not given, about 128 working voxels, or eight whole slices
        where each is labelled on its own: there the first side alone counts.
    workers : int, optional
        Blocks in work at a time; as many as there are processors if not given.
    scheduler : str
        "threads" of this process, "processes" on this machine, or the address of a Dask scheduler, whose workers see
        `output` and the volume under the same paths. The last two need ``spwnet[dask]``.
    meshes : sequence of int
        Classes whose surface is written to ``class_K.stl``.
    device : str
        Where a model from a run directory is loaded to; a `TrainedModel` stays where it is.
    overwrite, resume : bool
        Replace what is in `output`, or make only the blocks that are missing there.
    on_progress : callable
        Called with a `Progress` after each block.

    Returns
    -------
    VolumeSegmentation

    Raises
    ------
    SpwnetError
        For any input, setting or place that cannot be used, before anything is worked out.
    Stopped
        After Ctrl-C; the blocks that are written are complete.
    """
    if not isinstance(model, TrainedModel):
        model = load(model, device=device)
    chosen = model.labels(labels, classes)
    if output is None and scheduler != "threads":
        raise SettingsError(f"expected an output folder for the scheduler {scheduler!r}, but got none; give one")
    check_options(suffix=suffix, block=block, workers=workers, scheduler=scheduler, meshes=meshes)
    n_classes = check_volume_for(model, volume, chosen)
    check_memory(volume.shape, chosen)
    sides = _block_sides(model, volume, block)
    regions = tiles(volume.shape, sides)
    if max(meshes, default=0) >= n_classes:
        raise SettingsError(f"expected classes 0 to {n_classes - 1} for surfaces, but got {max(meshes)}")
    dtype = outputs.label_dtype(n_classes, ".tif")
    count = min(workers or torch.get_num_threads(), len(regions))
    if output is None:
        found = np.empty(volume.shape, dtype)
        everything = range(len(regions))
        blocks = _in_threads(
            model, volume, regions, chosen, everything, count, lambda k, ids: found.__setitem__(regions[k], ids)
        )
        _follow(blocks, len(regions), len(regions), on_progress)
        found = clean(found, chosen)
        summary = summarise(lambda z: found[z], volume.shape, n_classes, volume.spacing, volume.unit)
        return VolumeSegmentation(None, found, summary)

    # Whole, for workers that run elsewhere.
    folder = Path(output).absolute()
    target = folder / f"labels{suffix}"
    storage.check_folder(folder, overwrite=overwrite, resume=resume)
    key = _key(model, volume, chosen, sides)
    described = _described(model, volume, chosen, sides, key)
    before = _finished(folder, target, key) if resume else None
    if before is not None:
        if meshes:
            written = open_volume(target)
            _write_meshes(folder, meshes, before, lambda z: written.read((z, slice(None), slice(None)))[..., 0], volume)
        return VolumeSegmentation(target, None, before)
    storage.prepare_folder(folder, overwrite=overwrite, resume=resume)
    check_target(target, overwrite=overwrite or resume)
    if overwrite:
        BlockStore.remove_any(folder)
        # Of an earlier job, which it would be taken for when this one is resumed.
        (folder / SUMMARY).unlink(missing_ok=True)
    store = BlockStore(folder, regions, dtype, key)
    missing = store.missing()
    plain_bytes = math.prod(volume.shape) * dtype.itemsize
    try:
        # Blocks and all formats but NPY are compressed; how far is not known yet.
        check_space(
            folder, plain_bytes if suffix == ".npy" else plain_bytes // LEAST_SHARE * len(missing) // len(regions)
        )
        if scheduler == "threads" or not missing:
            blocks = _in_threads(model, volume, regions, chosen, missing, count, store.write)
        else:
            blocks = _on_dask(model, volume, store, chosen, missing, count, scheduler)
        _follow(blocks, len(missing), len(regions), on_progress)
    except BaseException:
        if store.n_bytes() == 0:
            # Nothing is done that the next call could go on with, or would be refused for.
            store.remove()
        raise
    check_space(folder, plain_bytes if suffix == ".npy" else store.n_bytes())

    slab: Callable[[slice], NDArray[np.unsignedinteger[Any]]] = store.slab
    if chosen.cleans:
        # Whole, so that it does not depend on where blocks were cut.
        cleaned = clean(store.slab(slice(0, volume.shape[0])), chosen)

        def slab(z: slice) -> NDArray[np.unsignedinteger[Any]]:
            return cleaned[z]

    sections = _Sections(slab, volume.shape, dtype)
    looks = legend(chosen, n_classes)
    provenance = {**described, **outputs.provenance()}
    summary = write_results(
        folder, suffix, volume.shape, dtype, sections.slab, legend=looks, spacing=volume.spacing,
        unit=volume.unit, provenance=provenance,
    )  # fmt: skip
    outputs.write_picture(folder / "slices.png", sections.drawn_over(volume, looks))
    _write_meshes(folder, meshes, summary, slab, volume)
    by_codebook = chosen.mode == "codebook" and model.codebook is not None and not chosen.named
    tree = model.codebook.tree(n_classes) if by_codebook and model.codebook is not None else None
    whole = {"complete": True, "suffix": suffix, "n_classes": n_classes, "tree": tree}
    storage.write_json(folder / SUMMARY, {**provenance, **whole, "summary": summary})
    store.remove()
    return VolumeSegmentation(target, None, summary)


def check_options(
    *,
    suffix: str = ".tif",
    block: int | Sequence[int] | None = None,
    workers: int | None = None,
    scheduler: str = "threads",
    meshes: Sequence[int] = (),
) -> None:
    """Check what can be checked of the options of `segment_volume` before there is a model.

    Raises
    ------
    SettingsError, OutputError
    """
    check_suffix(f"labels{suffix}")
    if block is not None:
        _three_sides(block)
    if workers is not None and (not isinstance(workers, int | np.integer) or workers < 1):
        raise SettingsError(f"expected at least one worker, but got {workers!r}")
    wrong = [k for k in meshes if not isinstance(k, int | np.integer) or k < 0]
    if wrong:
        raise SettingsError(f"expected classes from 0 for surfaces, but got {wrong[0]!r}; give their numbers")
    if scheduler == "threads":
        return
    optional_package("distributed", "for worker processes", "dask", SettingsError, otherwise="use 'threads'")
    if scheduler != "processes" and ":" not in scheduler:
        raise SettingsError(
            f"expected a Dask scheduler at {scheduler!r}, but: this is no address such as 'tcp://host:8786'; check the "
            "address, or use 'threads' or 'processes'"
        )


def _three_sides(block: int | Sequence[int]) -> list[int]:
    """Return the sides of a block, of which one or three are given."""
    try:
        sides = [operator.index(side) for side in (block if isinstance(block, Iterable) else [block] * 3)]
    except TypeError:
        sides = []
    if len(sides) != 3 or min(sides) < 1:
        raise SettingsError(
            f"expected a block of one or three sides of at least 1 voxel, but got {block!r}; give whole numbers"
        )
    return sides


def check_memory(shape: Sequence[int], labels: LabelSettings) -> None:
    """Check that a volume that is to be cleaned, which is done to the whole of it, fits into memory.

    Raises
    ------
    SettingsError
    """
    needed, there = math.prod(shape) * CLEANING_BYTES, available_memory()
    if labels.cleans and needed > there:
        raise SettingsError(
            f"expected memory of about {needed / 2**30:.0f} GiB to clean labels of {'×'.join(map(str, shape))} voxels, "
            f"all of which are looked at together, but there are {there / 2**30:.0f} GiB; leave the cleaning out"
        )


def check_volume_for(model: TrainedModel, volume: Volume, labels: LabelSettings) -> int:
    """Check that a model can label a volume; return the number of classes.

    Raises
    ------
    InputError, SettingsError
    """
    if volume.channels != model.info["channels"]:
        raise InputError(
            f"expected a volume of {model.info['channels']} channels as in training, but '{volume.name}' has "
            f"{volume.channels}; segment volumes of the same kind"
        )
    check_slices(volume, [0])
    if model.solid:
        grid_of(volume, model.settings.model_copy(update={"labels": labels}))
    elif model.settings.superpixels.method == "labels":
        raise SettingsError(
            "expected a model that makes its superpixels for a volume, but this one takes the user's; segment the "
            "slices as images"
        )
    model.members(labels)
    return model.n_classes(labels)


def _block_sides(model: TrainedModel, volume: Volume, block: int | Sequence[int] | None) -> list[int]:
    """Stored voxels along the sides of a block: as asked for, or about `BLOCK` working voxels, evenly divided."""
    if not model.solid:
        # Slices are labelled whole: a part of one would take the time and the memory of all of it.
        depth = SLICES if block is None else _three_sides(block)[0]
        return [min(depth, volume.shape[0]), *volume.shape[1:]]
    grid = grid_of(volume, model.settings)
    steps = [b * c for b, c in zip(grid.bins, grid.cells, strict=True)]
    if block is not None:
        sides = _three_sides(block)
    else:
        parts = [max(1, round(n / BLOCK)) for n in grid.working]
        sides = [math.ceil(n / count) for n, count in zip(volume.shape, parts, strict=True)]
    # Blocks are cut between working voxels, each of which is labelled as one.
    return [min(n, -(-side // step) * step) for n, side, step in zip(volume.shape, sides, steps, strict=True)]


def _key(model: TrainedModel, volume: Volume, labels: LabelSettings, sides: Sequence[int]) -> str:
    """Identity of a job: model, labels, blocks, and the volume by its size and its middle slice."""
    middle = fingerprint(SliceSource(volume)[volume.shape[0] // 2])
    place = [volume.shape, volume.spacing, volume.unit]
    parts = [model.fingerprint, labels.model_dump(mode="json"), *place, list(sides), middle]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _described(
    model: TrainedModel, volume: Volume, labels: LabelSettings, sides: Sequence[int], key: str
) -> dict[str, Any]:
    return {
        "job": key,
        "volume": {
            "origin": volume.origin, "shape": volume.shape, "spacing": volume.spacing, "unit": volume.unit,
        },
        "block": list(sides),
        "model": model.fingerprint,
        "seed": model.settings.seed,
        "labels": labels.model_dump(mode="json"),
        "settings": model.settings.model_dump(mode="json"),
    }  # fmt: skip


def _finished(folder: Path, target: Path, key: str) -> dict[str, Any] | None:
    """Summary of a job that is finished, if it is this one."""
    try:
        before = parse_json((folder / SUMMARY).read_text(encoding="utf-8"))
        same = before["job"] == key
        summary: dict[str, Any] = before["summary"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if not same:
        raise OutputError(
            f"expected the job in {folder} to be of this model, volume and settings to go on with it, but it is of "
            "others; use `--overwrite` or another folder"
        )
    return summary if target.exists() else None


def _follow(blocks: Generator[int], missing: int, total: int, on_progress: Callable[[Progress], None]) -> None:
    """Go through blocks as they are done, telling how far the work is, until Ctrl-C."""
    start = time.monotonic()
    # Closed, or threads and workers would go on after Ctrl-C for as long as somebody holds the error.
    with stoppable() as should_stop, closing(blocks):
        for done, _ in enumerate(blocks, start=1):
            left = (time.monotonic() - start) / done * (missing - done)
            on_progress(Progress("segment", total - missing + done, total, left, {}))
            if done < missing and should_stop():
                raise Stopped(
                    f"stopped after {total - missing + done} of {total} blocks; go on by `--resume` (in Python "
                    "`resume=True`)"
                )


def _in_threads(
    model: TrainedModel,
    volume: Volume,
    regions: Sequence[Region],
    labels: LabelSettings,
    missing: Sequence[int],
    workers: int,
    write: Callable[[int, NDArray[np.int32]], None],
) -> Generator[int]:
    """Label blocks in threads of this process, each with one thread of torch; yield those that are done."""

    def work(k: int) -> int:
        write(k, predict_part(model, volume, regions[k], labels))
        return k

    with worker_pool(workers) as pool:
        waiting = {pool.submit(work, k) for k in missing[:workers]}
        rest = deque(missing[workers:])
        while waiting:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for one in finished:
                if rest:
                    waiting.add(pool.submit(work, rest.popleft()))
                yield one.result()


def _on_dask(
    model: TrainedModel,
    volume: Volume,
    store: BlockStore,
    labels: LabelSettings,
    missing: Sequence[int],
    workers: int,
    scheduler: str,
) -> Generator[int]:
    """Label blocks on Dask's workers, which write them; yield those that are done."""
    from asyncio import CancelledError
    from concurrent.futures import CancelledError as FutureCancelled

    with _client(scheduler, workers) as client, _while_connected(scheduler):
        from distributed import as_completed
        from distributed.scheduler import KilledWorker

        for attempt in range(MOST_DEATHS):
            if not client.scheduler_info()["workers"]:
                # Those of a cluster may be queued for hours.
                logger.warning("waiting for workers")
                client.wait_for_workers(1)
            # Once for each worker, and anew if those died that had it.
            shared = client.scatter((model, volume, store, labels), broadcast=True, hash=False)
            futures = client.map(_make_block, missing, shared=shared, pure=False)
            told = set()
            try:
                for future in as_completed(futures):
                    k = future.result()
                    told.add(k)
                    yield k
            except (KilledWorker, CancelledError, FutureCancelled) as error:
                logger.warning("workers died (%d of %d times): %s; going on", attempt + 1, MOST_DEATHS, error)
            finally:
                client.cancel(futures)
            left = store.missing()
            # Written by workers that died before they could tell.
            yield from [k for k in missing if k not in told and k not in left]
            missing = left
            if not missing:
                return
    raise OutputError(
        f"expected workers that live, but they died {MOST_DEATHS} times; give them more memory, or use smaller blocks, "
        "and go on by `--resume`"
    )


def _make_block(k: int, shared: tuple[TrainedModel, Volume, BlockStore, LabelSettings]) -> int:
    """Label and write one block, on a worker."""
    model, volume, store, labels = shared
    torch.set_num_threads(1)
    if not store.is_done(k):
        with threadpool_limits(1, user_api="blas"):
            store.write(k, predict_part(model, volume, store.regions[k], labels))
    return k


@contextmanager
def _while_connected(scheduler: str) -> Iterator[None]:
    """Say what to do when the scheduler is lost."""
    from distributed.comm.core import CommClosedError

    try:
        yield
    except CommClosedError as error:
        raise OutputError(
            f"expected the Dask scheduler {scheduler!r} to the end, but the connection to it was lost: {error}; start "
            "it again, and go on by `--resume`"
        ) from error


@contextmanager
def _client(scheduler: str, workers: int) -> Iterator[Any]:
    """Connect to Dask: to worker processes of our own, or to a scheduler that runs somewhere."""
    from distributed import Client, LocalCluster

    if scheduler != "processes":
        try:
            client = Client(scheduler, timeout=CONNECT_SECONDS)
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"expected a Dask scheduler at {scheduler!r}, but: {error}; check the address, or use 'threads' or "
                "'processes'"
            ) from error
        with client:
            yield client
        return
    # A port of its own, on this machine alone: without an address it would be 8787, which another job may have.
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _write_meshes(
    folder: Path,
    classes: Sequence[int],
    summary: Mapping[str, Any],
    slab: Callable[[slice], NDArray[Any]],
    volume: Volume,
) -> None:
    """Write the surfaces of classes; those that do not occur are named."""
    for k in classes:
        if str(k) in summary["classes"]:
            mesh(slab, volume.shape, k, folder / f"class_{k}.stl", volume.spacing)
        else:
            logger.warning("no surface of class %d, which does not occur", k)


class _Sections:
    """Gives slabs of labels, and keeps three sections at right angles through the middle as they pass."""

    def __init__(
        self, slab: Callable[[slice], NDArray[np.unsignedinteger[Any]]], shape: Sequence[int], dtype: np.dtype[Any]
    ) -> None:
        self._slab = slab
        self._middle = tuple(n // 2 for n in shape)
        depth, height, width = shape
        self._across = [np.empty(section, dtype) for section in ((height, width), (depth, width), (depth, height))]

    def slab(self, z: slice) -> NDArray[np.unsignedinteger[Any]]:
        ids = self._slab(z)
        middle, y, x = self._middle
        if z.start <= middle < z.stop:
            self._across[0][...] = ids[middle - z.start]
        self._across[1][z], self._across[2][z] = ids[:, y], ids[:, :, x]
        return ids

    def drawn_over(self, volume: Volume, looks: Legend) -> NDArray[np.uint8]:
        """Draw the sections over those of the first channel, once all slabs have passed."""
        images = []
        for axis, k in enumerate(self._middle):
            where = [slice(None)] * 3
            where[axis] = slice(k, k + 1)
            images.append(volume.read((where[0], where[1], where[2]))[..., 0].squeeze(axis))
        return orthogonal(images, self._across, looks.colours, volume.spacing, clear=looks.background)
