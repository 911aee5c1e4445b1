"""Labels that are worked out where they are looked at; merging and naming classes is a lookup in what is there."""

from __future__ import annotations

import copy
import math
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from spwnet.classes import clean
from spwnet.devices import worker_pool
from spwnet.errors import InputError, SettingsError, Stopped
from spwnet.graph import build_graph
from spwnet.images import check_same_channels, image_size, open_images
from spwnet.outputs import label_dtype
from spwnet.prediction import MOST_WORKERS, predict, prepare_image
from spwnet.preparation import restore
from spwnet.runs import load
from spwnet.segmenting import check_images_for
from spwnet.trained import TrainedModel
from spwnet.training import Progress, stoppable
from spwnet.volumes import Volume
from spwnet.volumesegmenting import check_memory, check_volume_for, segment_volume
from spwnet.volumetric import grid_of, predict_part

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import DTypeLike, NDArray

    from spwnet.config import LabelSettings
    from spwnet.images import ImageSource
    from spwnet.naming import ClassMap
    from spwnet.preparation import Frame

    Ids = NDArray[np.unsignedinteger[Any]]

MOST_BYTES = 2**31
"""Of finest classes that are kept."""
SLAB = 16
"""Working slices of a volume that are worked out together, for all of them take what lies around them."""


class PlaneArray(ABC):
    """An array of ids that is made plane by plane; a subclass says how one is made.

    NumPy, Dask and napari take it for an array: it has `shape`, `dtype`, indexing by numbers and slices, which makes
    what is asked for, and ``np.asarray``, which makes all.

    Attributes
    ----------
    shape : (..., H, W) tuple of int
    dtype : dtype
    """

    shape: tuple[int, ...]
    dtype: np.dtype[np.unsignedinteger[Any]]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __deepcopy__(self, _: dict[int, Any]) -> PlaneArray:
        # What it gives never changes, and what it keeps is shared.
        return self

    @abstractmethod
    def plane(self, *where: int) -> Ids:
        """Return one plane, (H, W), by its position along each axis before the last two."""

    def __getitem__(self, key: Any) -> Any:
        parts = list(key) if isinstance(key, tuple) else [key]
        if not all(part is Ellipsis or isinstance(part, int | np.integer | slice) for part in parts):
            return np.asarray(self)[key]
        if Ellipsis in parts:
            k = parts.index(Ellipsis)
            parts[k : k + 1] = [slice(None)] * (self.ndim - len(parts) + 1)
        parts += [slice(None)] * (self.ndim - len(parts))
        if len(parts) != self.ndim:
            raise IndexError(f"expected at most {self.ndim} indices, but got {len(parts)}")
        *lead, rows, columns = parts
        chosen = [range(n)[part] for n, part in zip(self.shape[:-2], lead, strict=True)]
        ranges = [one if isinstance(one, range) else range(one, one + 1) for one in chosen]
        tail = np.broadcast_to(np.empty((), self.dtype), self.shape[-2:])[rows, columns].shape
        found = np.empty((*map(len, ranges), *tail), self.dtype)
        if found.size:
            for place in np.ndindex(*map(len, ranges)):
                where = (one[k] for one, k in zip(ranges, place, strict=True))
                found[place] = self.plane(*where)[rows, columns]
        kept = [len(one) for one in chosen if isinstance(one, range)]
        return found.reshape((*kept, *tail))[()]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("expected to be allowed to make an array, because there is none yet; leave out `copy`")
        whole: NDArray[Any] = self[...]
        return whole if dtype is None else whole.astype(dtype, copy=False)


class LazyLabels(PlaneArray):
    """The class of each pixel of images, or of each voxel of a volume, worked out where it is asked for.

    It equals what `segment` and `segment_volume` give, but that images are not steadied as frames of a video are. What
    was worked out is kept as finest classes: for other classes, merged, named or cleaned, nothing is worked out again.

    Parameters
    ----------
    model : TrainedModel or path
        What `train` or `load` returned, or a run directory.
    images : path, glob, array, sequence of these, ImageSource or Volume
        Images are of one size. An array, here and in `open_volume`, is NumPy, Dask, Zarr or anything of the kind.
    labels : LabelSettings, optional
        Labelling and cleaning other than the run's own.
    classes : ClassMap or path, optional
        Classes by name, or a file of them, in place of those of `labels`.
    most_bytes : int
        Finest classes that are kept; beyond it the oldest are worked out again where they are looked at.
    device : str
        Where a model from a run directory is loaded to.

    Attributes
    ----------
    shape : (N, H, W)
        Images or slices, and their size in pixels.
    dtype : dtype
        uint8 or uint16, whatever holds the class ids.
    labels : LabelSettings

    Raises
    ------
    SpwnetError
        For any input or setting that cannot be used; where it is indexed, for images that cannot be read.

    Examples
    --------
    >>> sample = spwnet.sample("composite")  # doctest: +SKIP
    >>> found = LazyLabels("run", sample.images)  # doctest: +SKIP
    >>> found[3]  # doctest: +SKIP
    >>> found.with_classes(model.class_map(5))[3]  # doctest: +SKIP
    """

    def __init__(
        self,
        model: TrainedModel | str | Path,
        images: Any,
        *,
        labels: LabelSettings | None = None,
        classes: ClassMap | str | Path | None = None,
        most_bytes: int = MOST_BYTES,
        device: str = "auto",
    ) -> None:
        self.model = model if isinstance(model, TrainedModel) else load(model, device=device)
        chosen = self.model.labels(labels, classes)
        self._kept: _Frames | _Slabs
        if isinstance(images, Volume):
            check_volume_for(self.model, images, chosen)
            self._kept = _Slabs(self.model, images, most_bytes)
        else:
            check_images_for(self.model, chosen)
            self._kept = _Frames(self.model, open_images(images, self.model.settings.images.axes), most_bytes)
        self.shape = self._kept.shape
        self._choose(chosen, by_plane=False)

    def _choose(self, labels: LabelSettings, *, by_plane: bool) -> None:
        mode = self.model.settings.labels.mode
        if labels.mode != mode:
            raise SettingsError(
                f"expected `labels.mode = {mode!r}` as in training, but got {labels.mode!r}; use `segment` for another"
            )
        self.labels, self._by_plane = labels, by_plane
        self._table = self.model.members(labels)
        self.dtype = label_dtype(self.model.n_classes(labels), ".tif")
        self._whole: Ids | None = None

    def with_classes(
        self,
        classes: ClassMap | str | Path | None,
        *,
        labels: LabelSettings | None = None,
        by_plane: bool = False,
    ) -> LazyLabels:
        """Return the same for other classes, by a lookup in what is worked out already.

        Parameters
        ----------
        classes : ClassMap or path, optional
        labels : LabelSettings, optional
            Labelling and cleaning other than the run's own.
        by_plane : bool
            Where a volume that is to be cleaned is indexed, clean each slice by itself until `compute` has cleaned it
            whole; else any slice takes all of it to be worked out. Images are always cleaned one by one.

        Raises
        ------
        SettingsError
            If the classes are not of this model.
        """
        other = copy.copy(self)
        other._choose(self.model.labels(labels, classes), by_plane=by_plane)
        return other

    @property
    def is_volume(self) -> bool:
        """Whether it is of a volume, that is cleaned whole."""
        return isinstance(self._kept, _Slabs)

    @property
    def is_worked_out(self) -> bool:
        """Whether all finest classes are worked out and kept."""
        return self._kept.is_complete()

    @property
    def complete(self) -> bool:
        """Whether everything is worked out, and a volume that is to be cleaned is so."""
        return self.is_worked_out and not (self.is_volume and self.labels.cleans and self._whole is None)

    def is_ready(self, k: int) -> bool:
        """Whether image or slice `k` is worked out and kept."""
        return self._kept.is_ready(self._kept.piece_of(k))

    def finest(self, k: int) -> Ids:
        """Return the finest class of each pixel of image or slice `k`, (H, W); copy it to write into it."""
        return self._kept.finest(k)

    def plane(self, *where: int) -> Ids:
        """Return the class of each pixel of image or slice `k`, (H, W); copy it to write into it."""
        (k,) = where
        if isinstance(self._kept, _Frames):
            return self._kept.labelled(k, self._table, self.labels).astype(self.dtype)
        if self._whole is not None or (self.labels.cleans and not self._by_plane):
            layer: Ids = self._cleaned()[k]
            return layer
        found = self._table[self._kept.finest(k)].astype(self.dtype)
        return clean(found, self.labels) if self.labels.cleans else found

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if self.is_volume and self.labels.cleans:
            self._cleaned()
        return super().__array__(dtype, copy)

    def _cleaned(self) -> Ids:
        if self._whole is None:
            check_memory(self.shape, self.labels)
            self._kept.compute(lambda _: None)
            everything = np.empty(self.shape, self.dtype)
            for k in range(len(self)):
                everything[k] = self._table[self._kept.finest(k)]
            self._whole = _read_only(clean(everything, self.labels))
        whole: Ids = self._whole
        return whole

    def compute(self, on_progress: Callable[[Progress], None] = lambda _: None) -> LazyLabels:
        """Work out everything that is missing.

        Parameters
        ----------
        on_progress : callable
            Called with a `Progress` after each image, or block of a volume. What it raises ends the work.

        Returns
        -------
        LazyLabels
            Itself.

        Raises
        ------
        SettingsError
            If it is more than is kept.
        Stopped
            After Ctrl-C; what was worked out is kept.
        """
        self._kept.compute(on_progress)
        if self.is_volume and self.labels.cleans:
            self._cleaned()
        return self


def _read_only(ids: Ids) -> Ids:
    """Keep whoever gets a part of what is kept from writing into it."""
    ids.setflags(write=False)
    return ids


class _Pieces(Protocol):
    """What is worked out together, by its number."""

    def make(self, piece: int) -> tuple[Any, int]:
        """Work out a piece; return it and its bytes."""


class _Store:
    """Pieces that were worked out, the oldest forgotten beyond some size; several threads may ask at once."""

    def __init__(self, count: int, most_bytes: int) -> None:
        self.count, self._most_bytes = count, most_bytes
        self._pieces: OrderedDict[int, tuple[Any, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def is_ready(self, piece: int) -> bool:
        return piece in self._pieces

    def is_complete(self) -> bool:
        return len(self._pieces) == self.count

    def missing(self) -> list[int]:
        with self._lock:
            return [k for k in range(self.count) if k not in self._pieces]

    def get(self, piece: int, maker: _Pieces) -> Any:
        with self._lock:
            if piece in self._pieces:
                self._pieces.move_to_end(piece)
                return self._pieces[piece][0]
        made = maker.make(piece)
        with self._lock:
            self._bytes += made[1] - self._pieces.pop(piece, (None, 0))[1]
            self._pieces[piece] = made
            while self._bytes > self._most_bytes and len(self._pieces) > 1:
                self._bytes -= self._pieces.popitem(last=False)[1][1]
        return made[0]

    def clear(self) -> None:
        with self._lock:
            self._pieces.clear()
            self._bytes = 0

    def check_room(self, n_bytes: int, what: str) -> None:
        if n_bytes > self._most_bytes:
            raise SettingsError(
                f"expected finest classes of at most {self._most_bytes / 2**30:.2g} GiB to be kept, but those of "
                f"{what} take {n_bytes / 2**30:.2g} GiB; segment into a folder, or allow more by `most_bytes`"
            )


class _Frames:
    """Finest classes of images in their working size, which is where they are cleaned."""

    def __init__(self, model: TrainedModel, source: ImageSource, most_bytes: int) -> None:
        channels = check_same_channels(source, [0])
        if channels != model.info["channels"]:
            raise InputError(
                f"expected images of {model.info['channels']} channels as in training, but '{source.names[0]}' has "
                f"{channels}; segment images of the same kind"
            )
        if model.settings.superpixels.method == "labels":
            raise SettingsError(
                "expected a model that makes its superpixels, but this one takes the user's; use `segment`, which is "
                "given them"
            )
        self._model, self._source = model, source
        self._finest = model.finest_labels()
        self._dtype = label_dtype(model.n_finest, ".tif")
        self.shape = (len(source), *image_size(source, 0))
        self._store = _Store(len(source), most_bytes)

    def piece_of(self, k: int) -> int:
        return k

    def is_ready(self, piece: int) -> bool:
        return self._store.is_ready(piece)

    def is_complete(self) -> bool:
        return self._store.is_complete()

    def make(self, piece: int) -> tuple[tuple[Ids, Frame], int]:
        model, image = self._model, self._source[piece]
        if image.pixels.shape[:2] != self.shape[1:]:
            theirs, ours = ("×".join(map(str, size)) for size in (image.pixels.shape[:2], self.shape[1:]))
            raise InputError(f"expected images of {ours} pixels, but '{image.name}' has {theirs}; give those of a size")
        prepared, superpixels = prepare_image(image, model.settings, model.normalisation)
        graph = None if superpixels is None else build_graph(superpixels, prepared.unit, model.device)
        ids = _read_only(predict(model, prepared, graph, self._finest)[0].astype(self._dtype))
        return (ids, prepared.frame), ids.nbytes

    def finest(self, k: int) -> Ids:
        return restore(*self._store.get(k, self))

    def labelled(self, k: int, table: NDArray[np.int32], labels: LabelSettings) -> NDArray[np.int32]:
        ids, frame = self._store.get(k, self)
        return restore(clean(table[ids], labels), frame)

    def compute(self, on_progress: Callable[[Progress], None]) -> None:
        missing = self._store.missing()
        if not missing:
            return
        ids, _ = self._store.get(missing[0], self)
        self._store.check_room(ids.nbytes * len(self._source), f"{len(self._source)} images")
        total, start = len(self._source), time.monotonic()
        workers = max(1, min(torch.get_num_threads(), len(missing), MOST_WORKERS))
        with stoppable() as should_stop, worker_pool(workers) as pool:
            waiting = deque(pool.submit(self._store.get, k, self) for k in missing)
            for done in range(1, len(missing) + 1):
                waiting.popleft().result()
                left = (time.monotonic() - start) / done * (len(missing) - done)
                on_progress(Progress("segment", total - len(missing) + done, total, left, {}))
                if done < len(missing) and should_stop():
                    raise Stopped(f"stopped after {done} of {len(missing)} images; what is there is kept")


class _Slabs:
    """Finest classes of a volume, some slices at a time."""

    def __init__(self, model: TrainedModel, volume: Volume, most_bytes: int) -> None:
        self._model, self._volume = model, volume
        self._finest = model.finest_labels()
        self._dtype = label_dtype(model.n_finest, ".tif")
        self.shape = volume.shape
        self._depth = SLAB * grid_of(volume, model.settings).bins[0] if model.solid else 1
        self._store = _Store(math.ceil(volume.shape[0] / self._depth), most_bytes)
        self._all: Ids | None = None

    def piece_of(self, k: int) -> int:
        return k // self._depth

    def is_ready(self, piece: int) -> bool:
        return self._all is not None or self._store.is_ready(piece)

    def is_complete(self) -> bool:
        return self._all is not None or self._store.is_complete()

    def make(self, piece: int) -> tuple[Ids, int]:
        depth, height, width = self.shape
        z = slice(piece * self._depth, min((piece + 1) * self._depth, depth))
        region = (z, slice(0, height), slice(0, width))
        ids = _read_only(predict_part(self._model, self._volume, region, self._finest).astype(self._dtype))
        return ids, ids.nbytes

    def finest(self, k: int) -> Ids:
        if self._all is not None:
            plane: Ids = self._all[k]
            return plane
        slab: Ids = self._store.get(self.piece_of(k), self)[k % self._depth]
        return slab

    def compute(self, on_progress: Callable[[Progress], None]) -> None:
        if self.is_complete():
            return
        size: Sequence[int] = self.shape
        self._store.check_room(math.prod(size) * self._dtype.itemsize, f"{'×'.join(map(str, size))} voxels")
        # In blocks that are as thick as they are wide: slabs would look at what lies around them again and again.
        found = segment_volume(self._model, self._volume, labels=self._finest, on_progress=on_progress).labels
        assert found is not None
        self._all = _read_only(found)
        # Twice the same would be twice as large as what is allowed.
        self._store.clear()
