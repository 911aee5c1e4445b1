"""The run directory: every file name, what is in each, and reading it back.

::

    RUN/
      run.json                  format, settings, normalisation, images, provenance
      weights.safetensors       the trained network
      codebook.safetensors      class centres, if labels are by codebook
      history.jsonl             one line of losses for each step
      checkpoint.safetensors    network, optimiser and step, to resume from
      previews/                 input, reconstruction and labels during training
      gallery/                  training images with their finest classes, to be looked at without the images
      classes.toml              classes by name, once somebody merged or named some
      classes.jsonl             what they were before, to undo it
      report.html               the page of the run as one file, if it was asked for
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch

from spwnet.codebook import Codebook
from spwnet.devices import memory_format, pick_device
from spwnet.errors import RunError, SettingsError, SpwnetError
from spwnet.naming import ClassMap, read_classes
from spwnet.preparation import Normalisation
from spwnet.presets import parse_settings
from spwnet.storage import LOCK, append_line, atomic_write, claimed, parse_json, prepare_folder, read_lines, write_json
from spwnet.trained import TrainedModel, evidence_kinds, make_network

if TYPE_CHECKING:
    from spwnet.config import Settings
    from spwnet.model import WNet

RUN_FORMAT = 3


MOST_UNDONE = 100
"""Changes of the classes that can be undone."""


class Run:
    """One run directory.

    Parameters
    ----------
    folder : path

    Attributes
    ----------
    earlier : float
        Seconds of training before it was resumed, as the last checkpoint says.
    started : float or None
        When the training that writes checkpoints now began, of the monotonic clock.
    """

    earlier: float = 0.0
    started: float | None = None

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.description = self.folder / "run.json"
        self.weights = self.folder / "weights.safetensors"
        self.codebook = self.folder / "codebook.safetensors"
        self.history = self.folder / "history.jsonl"
        self.checkpoint = self.folder / "checkpoint.safetensors"
        self.previews = self.folder / "previews"
        self.gallery = self.folder / "gallery"
        self.report = self.folder / "report.html"
        self.classes = self.folder / "classes.toml"
        self.earlier_classes = self.folder / "classes.jsonl"

    def create(self, *, overwrite: bool = False) -> None:
        """Make the directory; what an earlier run left in it goes only with `overwrite`.

        Raises
        ------
        OutputError
            If it cannot be written or is not empty.
        """
        there = {entry.name for entry in self.folder.iterdir()} if self.folder.is_dir() else set()
        if there <= {LOCK, self.previews.name}:
            # Left by a crash before there was a run.json; if it holds something, that is told below.
            with suppress(OSError):
                self.previews.rmdir()
        prepare_folder(self.folder, overwrite=overwrite)
        prepare_folder(self.previews, overwrite=overwrite)
        stale = [
            self.description,
            self.weights,
            self.codebook,
            self.history,
            self.checkpoint,
            # Of another model, whose classes mean something else.
            self.classes,
            self.earlier_classes,
            self.report,
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
            If it is missing, damaged, or of another format.
        """
        try:
            info = parse_json(self.description.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(
                f"expected a run directory with a run.json at {self.folder}, but there is none; train one first"
            ) from None
        except (OSError, ValueError) as error:
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

    def class_map(self, model: TrainedModel) -> ClassMap:
        """Return the classes by name: those of ``classes.toml``, or of the tree if there are none yet.

        Raises
        ------
        SettingsError
            If the file is none of this model's.
        """
        start = model.class_map()
        if not self.classes.exists():
            return start
        return read_classes(self.classes, start.n_finest, start.parents, start.model)

    def classes_version(self) -> str:
        """Return what tells one content of ``classes.toml`` from another; nothing if there is no such file."""
        try:
            return hashlib.sha256(self.classes.read_bytes()).hexdigest()
        except FileNotFoundError:
            return ""

    def save_classes(self, classes: ClassMap) -> None:
        """Write ``classes.toml``, and remember what it said before."""
        with claimed(self.folder):
            earlier = read_lines(self.earlier_classes)[1 - MOST_UNDONE :]
            before = self._classes_text()
            if before != classes.to_toml():
                self._write_earlier([*earlier, {"classes": before}])
                classes.save(self.classes)

    def undo_classes(self) -> bool:
        """Bring ``classes.toml`` back to what it was before it was last written; return whether there was such."""
        with claimed(self.folder):
            records, present = read_lines(self.earlier_classes), self._classes_text()
            # A crash may have come between what was remembered and what was to follow it.
            while records and records[-1].get("classes") == present:
                records.pop()
            if not records:
                return False
            *rest, last = records
            if isinstance(last.get("classes"), str):
                atomic_write(self.classes, last["classes"].encode())
            else:
                self.classes.unlink(missing_ok=True)
            self._write_earlier(rest)
            return True

    def _classes_text(self) -> str | None:
        return self.classes.read_text(encoding="utf-8") if self.classes.exists() else None

    def _write_earlier(self, records: list[dict[str, Any]]) -> None:
        atomic_write(self.earlier_classes, "".join(json.dumps(one) + "\n" for one in records).encode())

    def save_checkpoint(self, network: WNet, optimiser: torch.optim.Optimizer, step: int) -> None:
        """Write all that is needed to go on after `step`."""
        tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
        for index, state in optimiser.state_dict()["state"].items():
            tensors.update({f"optimiser.{index}.{name}": value for name, value in state.items()})
        seconds = self.earlier + (0.0 if self.started is None else time.monotonic() - self.started)
        metadata = {"step": str(step), "seconds": f"{seconds:.1f}"}
        atomic_write(self.checkpoint, safetensors.torch.save(_on_cpu(tensors), metadata=metadata))

    def load_checkpoint(self, network: WNet, optimiser: torch.optim.Optimizer) -> int:
        """Bring network and optimiser to the last checkpoint; return its step, or 0 if there is none.

        Raises
        ------
        RunError
            If it is damaged, or not of this network.
        """
        if not self.checkpoint.exists():
            return 0
        try:
            return self._load_checkpoint(network, optimiser)
        except SpwnetError:
            raise
        except (ValueError, TypeError, LookupError, RuntimeError) as error:
            raise RunError(
                f"expected a checkpoint of this run at {self.checkpoint}, but: {error!r}; start again by `--overwrite`"
            ) from error

    def _load_checkpoint(self, network: WNet, optimiser: torch.optim.Optimizer) -> int:
        tensors, metadata = _read_tensors(self.checkpoint)
        step, earlier = int(metadata["step"]), float(metadata.get("seconds", 0))
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
        weights = [weight for group in optimiser.param_groups for weight in group["params"]]
        for number, moments in state.items():
            if any(moments[key].shape != weights[number].shape for key in ("exp_avg", "exp_avg_sq")):
                raise ValueError(f"the optimiser's state {number} is of another shape")
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        self.earlier = earlier
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
        solid = info.get("solid") is True
        network = codebook = None
        if settings.learns:
            tensors, _ = _read_tensors(self.weights)
            with torch.device("meta"):
                expected = make_network(settings, channels, solid=solid)
            _check_weights(expected, tensors, self.weights)
            network = make_network(settings, channels, solid=solid).eval()
            network.load_state_dict(tensors)
        if settings.labels.mode == "codebook":
            centres, _ = _read_tensors(self.codebook)
            _check_codebook_types(centres, self.codebook)
            arrays = {name: tensor.numpy() for name, tensor in centres.items()}
            size = sum(kind.size for kind in evidence_kinds(settings, channels, solid=solid))
            codebook = Codebook.from_tensors(arrays, size)
        return TrainedModel(network, settings, normalisation, info, codebook)


def _on_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise RunError(f"expected readable weights at {path}, but: {error}; train the run again") from error


def _check_weights(network: WNet, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Compare names, shapes and types before anything of their size is allocated."""
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
        # PyTorch would convert them without a word.
        if tensor.dtype != tensors[name].dtype:
            raise RunError(
                f"expected {name!r} as {_type(tensor)} at {path}, but got {_type(tensors[name])}; train the run again"
            )


def _check_codebook_types(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Check the types before tensors become arrays: NumPy lacks some of them."""
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.int32):
            raise RunError(
                f"expected {name!r} as float32 or int32 at {path}, but got {_type(tensor)}; train the run again"
            )


def _type(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _load_weights(network: WNet, tensors: dict[str, torch.Tensor], path: Path) -> None:
    _check_weights(network, tensors, path)
    network.load_state_dict(tensors)


def load(run: str | Path, *, device: str = "auto") -> TrainedModel:
    """Read a trained model from a run directory.

    Parameters
    ----------
    run : path
        Run directory that `train` wrote.
    device : str
        Where its network is to be and images are segmented, whatever it was trained on: "auto", "cpu", "cuda" or "mps".

    Returns
    -------
    TrainedModel

    Raises
    ------
    RunError
        If it is not a finished run, is damaged, or is of another format.
    SettingsError
        If this machine does not have the device.
    """
    model, target = Run(run).load(), pick_device(device)
    if model.network is not None:
        model.network.to(target, memory_format=memory_format(2))  # type: ignore[call-overload]
    return replace(model, device=target)
