"""The run directory: every file name, what is in each, and reading it back.

::

    RUN/
      run.json                  format, settings, normalisation, images, provenance
      weights.safetensors       the trained network
      codebook.safetensors      class centres, if labels are by codebook
      history.jsonl             one line of losses for each step
      checkpoint.safetensors    network, optimiser and step, to resume from
      previews/                 input, reconstruction and labels during training
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from spwnet.classes import merge_classes, palette
from spwnet.codebook import Codebook, coarser
from spwnet.config import Settings, parse_settings
from spwnet.descriptors import Kind, kinds
from spwnet.errors import OutputError, RunError, SettingsError
from spwnet.model import WNet
from spwnet.outputs import (
    append_line,
    atomic_write,
    overlay,
    prepare_folder,
    provenance,
    read_lines,
    write_json,
    write_labels,
    write_picture,
)
from spwnet.preparation import Normalisation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spwnet.config import LabelSettings

RUN_FORMAT = 3

CPU = torch.device("cpu")


@dataclass(frozen=True)
class TrainedModel:
    """A trained network with all it takes to segment other images of the kind.

    Attributes
    ----------
    network : WNet or None
        None where labels need none.
    settings : Settings
        The settings it was trained with.
    normalisation : Normalisation
        Statistics of the training images.
    info : dict
        The rest of ``run.json``: training images, provenance, time.
    codebook : Codebook or None
        Class centres, if labels are by codebook.
    device : torch.device
        Where images are segmented; the network is there.
    """

    network: WNet | None
    settings: Settings
    normalisation: Normalisation
    info: dict[str, Any]
    codebook: Codebook | None = None
    device: torch.device = CPU

    @property
    def fingerprint(self) -> str:
        """SHA-256 of weights and class centres: equal for equal models."""
        digest = hashlib.sha256()
        for name, tensor in (self.network.state_dict() if self.network is not None else {}).items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        if self.codebook is not None:
            for array in self.codebook.tensors().values():
                digest.update(array.tobytes())
        return digest.hexdigest()

    def n_classes(self, labels: LabelSettings | None = None) -> int:
        """Return how many classes labels are of, merges apart: ids are below it.

        Parameters
        ----------
        labels : LabelSettings, optional
            The settings' own if not given.

        Raises
        ------
        SettingsError
            If there are not so many.
        """
        labels = labels or self.settings.labels
        if labels.mode != "codebook" or self.codebook is None:
            return self.settings.model.classes
        if labels.classes == "auto":
            return self.codebook.suggested
        # With fewer different superpixels than centres asked for, there are only as many.
        few = labels.classes <= self.settings.codebook.finest
        return min(labels.classes, self.codebook.finest) if few else labels.classes

    def members(self, labels: LabelSettings) -> NDArray[np.int32]:
        """Return the table from the finest classes to those of the settings, merges included."""
        n_classes = self.n_classes(labels)
        table = np.arange(n_classes, dtype=np.int32)
        if labels.mode == "codebook" and self.codebook is not None:
            table = coarser(self.codebook.parents, n_classes)
        named = [k for group in labels.merge for k in group]
        named += [k for rule in labels.reassign for k in (rule.source, rule.to)]
        if max(named, default=0) >= n_classes:
            raise SettingsError(
                f"expected class ids below {n_classes}, the number of classes, but got {max(named)}; "
                "give the number that these ids are of by `labels.classes`"
            )
        merged: NDArray[np.int32] = merge_classes(table[None], labels.merge)[0]
        return merged


def make_network(settings: Settings, channels: int) -> WNet:
    """Build the network of the settings, with initial weights that depend on the seed alone."""
    model = settings.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return WNet(
            channels,
            model.classes,
            model.ch_mul,
            model.n_blocks,
            evidence=sum(kind.size for kind in kinds("handmade", channels, 0)) if model.evidence else 0,
            final_norm=model.final_norm,
        )


class Run:
    """One run directory.

    Parameters
    ----------
    folder : path
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.description = self.folder / "run.json"
        self.weights = self.folder / "weights.safetensors"
        self.codebook = self.folder / "codebook.safetensors"
        self.history = self.folder / "history.jsonl"
        self.checkpoint = self.folder / "checkpoint.safetensors"
        self.previews = self.folder / "previews"

    def create(self, *, overwrite: bool = False) -> None:
        """Make the directory; what an earlier run left in it goes only with `overwrite`.

        Raises
        ------
        OutputError
            If it cannot be written or is not empty.
        """
        prepare_folder(self.folder, overwrite=overwrite)
        prepare_folder(self.previews, overwrite=overwrite)
        stale = [
            self.description,
            self.weights,
            self.codebook,
            self.history,
            self.checkpoint,
            *self.previews.glob("step_*.png"),
        ]
        for file in stale:
            file.unlink(missing_ok=True)

    def write(self, info: dict[str, Any], settings: Settings, normalisation: Normalisation) -> None:
        """Write ``run.json``."""
        write_json(
            self.description,
            {
                "format": RUN_FORMAT,
                **info,
                "settings": settings.model_dump(mode="json"),
                "normalisation": normalisation.to_json(),
            },
        )

    def read(self) -> tuple[dict[str, Any], Settings, Normalisation]:
        """Read ``run.json`` into (info, settings, normalisation).

        Raises
        ------
        RunError
            If it is missing, damaged, or of a newer format.
        """
        try:
            info = json.loads(self.description.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(
                f"expected a run directory with a run.json at {self.folder}, but there is none; train one first"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"expected a readable {self.description}, but: {error}") from error
        if not isinstance(info, dict) or not isinstance(info.get("format"), int):
            raise RunError(f"expected a description of a run in {self.description}, but it has no format number")
        if info["format"] > RUN_FORMAT:
            raise RunError(
                f"expected a run of format {RUN_FORMAT} at {self.folder}, but got format {info['format']}; "
                "update spwnet to read it"
            )
        if info["format"] < RUN_FORMAT:
            raise RunError(
                f"expected a run of format {RUN_FORMAT} at {self.folder}, but got format {info['format']}; "
                "train the run again"
            )
        missing = [key for key in ("settings", "normalisation", "channels") if key not in info]
        if missing:
            raise RunError(f"expected {missing[0]!r} in {self.description}, but it is missing; train the run again")
        try:
            settings = parse_settings(info.pop("settings"))
        except SettingsError as error:
            raise RunError(f"expected valid settings in {self.description}, but: {error}") from error
        return info, settings, Normalisation.from_json(info.pop("normalisation"))

    def log(self, step: int, terms: dict[str, float]) -> None:
        """Add one line to the history."""
        append_line(self.history, {"step": step, **terms})

    def read_history(self) -> list[dict[str, float]]:
        """Return the history, one dictionary for each step."""
        return read_lines(self.history)

    def preview(self, step: int) -> Path:
        """Return the file of the preview after a step."""
        return self.previews / f"step_{step:06d}.png"

    def save_model(self, network: WNet | None, codebook: Codebook | None) -> None:
        """Write the network's weights and the class centres, as far as there are any."""
        if codebook is not None:
            tensors = {name: torch.from_numpy(array) for name, array in codebook.tensors().items()}
            atomic_write(self.codebook, safetensors.torch.save(tensors))
        if network is not None:
            atomic_write(self.weights, safetensors.torch.save(_on_cpu(network.state_dict())))

    def save_checkpoint(self, network: WNet, optimiser: torch.optim.Optimizer, step: int) -> None:
        """Write all that is needed to go on after `step`."""
        tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
        for index, state in optimiser.state_dict()["state"].items():
            tensors.update({f"optimiser.{index}.{name}": value for name, value in state.items()})
        atomic_write(self.checkpoint, safetensors.torch.save(_on_cpu(tensors), metadata={"step": str(step)}))

    def load_checkpoint(self, network: WNet, optimiser: torch.optim.Optimizer) -> int:
        """Bring network and optimiser to the last checkpoint; return its step, or 0 if there is none."""
        if not self.checkpoint.exists():
            return 0
        tensors, metadata = _read_tensors(self.checkpoint)
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimiser":
                index, _, key = rest.partition(".")
                state.setdefault(int(index), {})[key] = tensor
        _load_weights(
            network,
            {n.removeprefix("network."): t for n, t in tensors.items() if n.startswith("network.")},
            self.checkpoint,
        )
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        step = int(metadata["step"])
        lines = [line for line in self.read_history() if line["step"] <= step]
        atomic_write(self.history, "".join(json.dumps(line) + "\n" for line in lines).encode())
        return step

    def load(self) -> TrainedModel:
        """Read the trained model back.

        Raises
        ------
        RunError
            If a file is missing or damaged, the run is not finished, or the weights do not match the settings.
        """
        info, settings, normalisation = self.read()
        channels = info["channels"]
        if not isinstance(channels, int) or not 1 <= channels <= 4096 or channels != len(normalisation.low):
            raise RunError(f"expected the number of channels in {self.description}, but got {channels!r}")
        if info.get("finished") is not True:
            raise RunError(
                f"expected a finished run at {self.folder}, but its training did not finish: "
                "go on with it by `--resume`"
            )
        network = codebook = None
        if settings.learns:
            tensors, _ = _read_tensors(self.weights)
            with torch.device("meta"):
                expected = make_network(settings, channels)
            _check_weights(expected, tensors, self.weights)
            network = make_network(settings, channels).eval()
            network.load_state_dict(tensors)
        if settings.labels.mode == "codebook":
            arrays = {name: tensor.numpy() for name, tensor in _read_tensors(self.codebook)[0].items()}
            size = sum(kind.size for kind in evidence_kinds(settings, channels))
            codebook = Codebook.from_tensors(arrays, size)
        return TrainedModel(network, settings, normalisation, info, codebook)


def evidence_kinds(settings: Settings, channels: int) -> list[Kind]:
    """Return the kinds of evidence of the settings' descriptors."""
    return kinds(settings.codebook.evidence, channels, settings.model.classes)


def _on_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise RunError(f"expected readable weights at {path}, but: {error}; train the run again") from error


def _check_weights(network: WNet, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Compare names and shapes before anything of their size is allocated."""
    expected = network.state_dict()
    odd = sorted(set(expected) ^ set(tensors))
    if odd:
        where = "missing" if odd[0] in expected else "not part of it"
        raise RunError(
            f"expected the weights of the network in the settings at {path}, but {odd[0]!r} is {where}; "
            "weights and run.json are of different runs"
        )
    for name, tensor in expected.items():
        if tensor.shape != tensors[name].shape:
            raise RunError(
                f"expected {name!r} of shape {tuple(tensor.shape)} at {path}, but got {tuple(tensors[name].shape)}; "
                "weights and run.json are of different runs"
            )


def _load_weights(network: WNet, tensors: dict[str, torch.Tensor], path: Path) -> None:
    _check_weights(network, tensors, path)
    network.load_state_dict(tensors)


@dataclass(frozen=True)
class Prediction:
    """Labels of one image.

    Attributes
    ----------
    name : str
    labels : (H, W) int32 array
        Class of each pixel, in the size of the input.
    uncertainty : (H, W) float32 array in 0…1, or None if not asked for
        How uncertain each pixel is: 0 is sure.
    picture : (h, w, 3) uint8 array or None
        Every `stride`-th pixel of the input, to draw the classes over.
    stride : int
    sha256 : str
        Fingerprint of the input.
    """

    name: str
    labels: NDArray[np.int32]
    uncertainty: NDArray[np.float32] | None
    picture: NDArray[np.uint8] | None
    stride: int
    sha256: str


class Results:
    """The folder of a segmentation: writes labels and overlays as they come, and knows what is written already.

    ::

        FOLDER/
          segmentation.json     settings, versions, seed, classes with areas and colours, their tree, images
          labels/NAME.png       class ids, in the size of the input
          uncertainty/NAME.png  how uncertain each pixel is, 0 to 255, if asked for
          overlays/NAME.jpg     the classes drawn over the input, which is thinned if it is large
          images.jsonl          the images written so far, while work goes on

    Parameters
    ----------
    folder : path
    model : TrainedModel
    cleaning : LabelSettings
    n_classes : int
        Class ids are below it.
    suffix : str
        Of the label images.
    overlays, uncertainty : bool
        Write these, too.
    overwrite, resume : bool
        What to do with a folder that is not empty.

    Raises
    ------
    OutputError
        If the folder cannot be written, holds something, or holds another segmentation to go on from.
    """

    def __init__(
        self,
        folder: str | Path,
        model: TrainedModel,
        cleaning: LabelSettings,
        *,
        n_classes: int,
        suffix: str,
        overlays: bool,
        uncertainty: bool,
        overwrite: bool,
        resume: bool,
    ) -> None:
        self.folder, self.suffix, self.model = Path(folder), suffix, model
        self.n_classes = n_classes
        self.colours = palette(self.n_classes)
        self.summary, self.journal = self.folder / "segmentation.json", self.folder / "images.jsonl"
        self.head: dict[str, Any] = {
            "complete": False,
            "model": model.fingerprint,
            "suffix": suffix,
            "overlays": overlays,
            "uncertainty": uncertainty,
            "labels": json.loads(cleaning.model_dump_json()),
        }
        self.tree = None
        if cleaning.mode == "codebook" and model.codebook is not None:
            parents, heights = model.codebook.parents[:n_classes], model.codebook.heights[:n_classes]
            self.tree = {"parents": parents.tolist(), "heights": heights.tolist()}
        prepare_folder(self.folder, overwrite=overwrite, resume=resume)
        self.done: dict[str, dict[str, Any]] = {}
        if resume and self.summary.exists():
            self._check_same_work(self._read_summary())
            self.done = {name: entry for name, entry in self._written().items() if self._label_file(name).exists()}
        elif overwrite:
            self._remove_earlier()
        write_json(self.summary, {**self.head, "images": self.done})
        prepare_folder(self.folder / "labels", resume=True)
        for name in ("overlays", "uncertainty"):
            if self.head[name]:
                prepare_folder(self.folder / name, resume=True)

    def _label_file(self, name: str) -> Path:
        return self.folder / "labels" / f"{name}{self.suffix}"

    def _read_summary(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.summary.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise OutputError(
                f"expected a readable {self.summary} to go on from, but: {error}; use `--overwrite`"
            ) from error

    def _written(self) -> dict[str, dict[str, Any]]:
        """Images written so far, {name: {"sha256": of the image, "areas": {class: pixels}}}."""
        entries = dict(self._read_summary().get("images", {}))
        entries |= {entry.pop("name"): entry for entry in read_lines(self.journal)}
        return entries

    def _remove_earlier(self) -> None:
        """Remove what an earlier segmentation wrote: its classes mean something else."""
        if self.summary.exists():
            for name in self._written():
                (self.folder / "overlays" / f"{name}.jpg").unlink(missing_ok=True)
                (self.folder / "uncertainty" / f"{name}.png").unlink(missing_ok=True)
                for suffix in (".png", ".tif", ".tiff"):
                    (self.folder / "labels" / f"{name}{suffix}").unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)

    def _check_same_work(self, before: dict[str, Any]) -> None:
        for key, value in self.head.items():
            if key != "complete" and before.get(key) != value:
                raise OutputError(
                    f"expected the segmentation in {self.folder} to be of the same model and settings, but its "
                    f"'{key}' differs; write to another folder, or use `--overwrite`"
                )

    def write(self, prediction: Prediction, areas: dict[int, int]) -> None:
        """Write one image: labels, uncertainty, overlay, and what the summary says of it."""
        name, labels, stride = prediction.name, prediction.labels, prediction.stride
        write_labels(self._label_file(name), labels, self.n_classes)
        if prediction.uncertainty is not None:
            doubt = np.rint(prediction.uncertainty * 255).astype(np.uint8)
            write_picture(self.folder / "uncertainty" / f"{name}.png", doubt)
        if prediction.picture is not None:
            drawn = overlay(prediction.picture, labels[::stride, ::stride], self.colours)
            write_picture(self.folder / "overlays" / f"{name}.jpg", drawn)
        entry = {"sha256": prediction.sha256, "areas": areas}
        # Last, so that an image in the journal is an image whose files are complete.
        append_line(self.journal, {"name": name, **entry})
        self.done[name] = entry

    def finish(self) -> None:
        """Write the summary of all images."""
        write_json(
            self.summary,
            {
                **self.head,
                "complete": True,
                **provenance(),
                "seed": self.model.settings.seed,
                "settings": self.model.settings.model_dump(mode="json"),
                "tree": self.tree,
                "classes": class_table(self.done, self.n_classes),
                "images": self.done,
            },
        )
        self.journal.unlink(missing_ok=True)


def class_table(images: dict[str, dict[str, Any]], n_classes: int) -> dict[str, dict[str, Any]]:
    """Return pixels, share and colour of each class that occurs, from the areas of the images."""
    total: dict[int, int] = {}
    for entry in images.values():
        for k, n in entry["areas"].items():
            total[int(k)] = total.get(int(k), 0) + n
    pixels = sum(total.values())
    colours = palette(n_classes)
    return {
        str(k): {"pixels": total[k], "share": total[k] / pixels, "colour": "#" + bytes(colours[k]).hex()}
        for k in sorted(total)
    }
