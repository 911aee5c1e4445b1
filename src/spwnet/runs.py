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

import safetensors
import safetensors.torch
import torch

from spwnet.classes import palette
from spwnet.codebook import Codebook
from spwnet.config import Settings, parse_settings
from spwnet.descriptors import kinds
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
    import numpy as np
    from numpy.typing import NDArray

    from spwnet.config import LabelSettings

RUN_FORMAT = 1


@dataclass(frozen=True)
class TrainedModel:
    """A trained network with all it takes to segment other images of the kind.

    Attributes
    ----------
    network : WNet
    settings : Settings
        The settings it was trained with.
    normalisation : Normalisation
        Statistics of the training images.
    info : dict
        The rest of ``run.json``: training images, provenance, time.
    codebook : Codebook or None
        Class centres, if labels are by codebook.
    """

    network: WNet
    settings: Settings
    normalisation: Normalisation
    info: dict[str, Any]
    codebook: Codebook | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of weights and class centres: equal for equal models."""
        digest = hashlib.sha256()
        for name, tensor in self.network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        if self.codebook is not None:
            digest.update(self.codebook.centres.tobytes())
        return digest.hexdigest()


def make_network(settings: Settings, channels: int) -> WNet:
    """Build the network of the settings, with initial weights that depend on the seed alone."""
    model = settings.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return WNet(channels, model.classes, model.ch_mul, model.n_blocks, final_norm=model.final_norm)


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
                f"expected a run of format {RUN_FORMAT} or older at {self.folder}, but got format {info['format']}; "
                "update spwnet to read it"
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

    def save_model(self, network: WNet, codebook: Codebook | None) -> None:
        """Write the network's weights and the class centres."""
        if codebook is not None:
            tensors = {name: torch.from_numpy(array) for name, array in codebook.tensors().items()}
            atomic_write(self.codebook, safetensors.torch.save(tensors))
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
        if not self.weights.exists():
            raise RunError(
                f"expected trained weights at {self.weights}, but there are none; "
                "the training did not finish: go on with it by `--resume`"
            )
        tensors, _ = _read_tensors(self.weights)
        with torch.device("meta"):
            expected = make_network(settings, channels)
        _check_weights(expected, tensors, self.weights)
        network = make_network(settings, channels)
        network.load_state_dict(tensors)
        codebook = None
        if settings.labels.mode == "codebook":
            arrays = {name: tensor.numpy() for name, tensor in _read_tensors(self.codebook)[0].items()}
            size = sum(kind.size for kind in kinds(settings.model.ch_mul, channels))
            codebook = Codebook.from_tensors(arrays, size)
        return TrainedModel(network.eval(), settings, normalisation, info, codebook)


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


class Results:
    """The folder of a segmentation: writes labels and overlays as they come, and knows what is written already.

    ::

        FOLDER/
          segmentation.json     settings, versions, seed, classes with their areas and colours, images
          labels/NAME.png       class ids, in the size of the input
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
    overlays : bool
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
            "labels": json.loads(cleaning.model_dump_json()),
        }
        prepare_folder(self.folder, overwrite=overwrite, resume=resume)
        self.done: dict[str, dict[str, Any]] = {}
        if resume and self.summary.exists():
            self._check_same_work(self._read_summary())
            self.done = {name: entry for name, entry in self._written().items() if self._label_file(name).exists()}
        elif overwrite:
            self._remove_earlier()
        write_json(self.summary, {**self.head, "images": self.done})
        prepare_folder(self.folder / "labels", resume=True)
        if overlays:
            prepare_folder(self.folder / "overlays", resume=True)

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

    def write(
        self,
        name: str,
        labels: NDArray[np.int32],
        entry: dict[str, Any],
        picture: NDArray[np.uint8] | None = None,
        stride: int = 1,
    ) -> None:
        """Write one image: labels (H, W), what the summary says of it, and the picture of every `stride`-th pixel."""
        write_labels(self._label_file(name), labels, self.n_classes)
        if picture is not None:
            drawn = overlay(picture, labels[::stride, ::stride], self.colours)
            write_picture(self.folder / "overlays" / f"{name}.jpg", drawn)
        # Last, so that an image in the journal is an image whose files are complete.
        append_line(self.journal, {"name": name, **entry})
        self.done[name] = entry

    def finish(self) -> None:
        """Write the summary of all images."""
        total: dict[int, int] = {}
        for entry in self.done.values():
            for k, n in entry["areas"].items():
                total[int(k)] = total.get(int(k), 0) + n
        pixels = sum(total.values())
        write_json(
            self.summary,
            {
                **self.head,
                "complete": True,
                **provenance(),
                "seed": self.model.settings.seed,
                "settings": self.model.settings.model_dump(mode="json"),
                "classes": {
                    k: {"pixels": total[k], "share": total[k] / pixels, "colour": "#" + bytes(self.colours[k]).hex()}
                    for k in sorted(total)
                },
                "images": self.done,
            },
        )
        self.journal.unlink(missing_ok=True)
