"""A trained network as one file for other programs: from an image in the working size to class probabilities."""

from __future__ import annotations

import copy
import io
import json
import logging
import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from spwnet import outputs, storage
from spwnet.descriptors import FAINT, GROUPS, WIDE, network_input
from spwnet.errors import OutputError, SettingsError
from spwnet.filters import REDUCE_FROM, TRUNCATE, interpolated
from spwnet.model import MOST_DEVIATIONS, SHARPNESS
from spwnet.preparation import LAB_RANGE, Frame, Prepared
from spwnet.runs import load
from spwnet.trained import TrainedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from spwnet.model import WNet

FORMATS = {".onnx": "ONNX", ".pt2": "torch.export", ".ts": "TorchScript"}
"""Format of each suffix."""
NEEDED = ("onnx", "onnxruntime", "onnxscript")
"""Packages that ONNX is written and run by."""
TRACED = (75, 102)
"""Height and width of the image that is followed through the module, if it is for any size."""
COMPARED = ((96, 131), (53, 38))
"""Heights and widths at which a file for any size is compared: other than traced, and odd ones among them."""
MOST_DIFFERENCE = 1e-4
"""Of a probability, at most, between the exported file and prediction."""
LEAST_AGREEMENT = 0.999
"""Share of pixels, at least, whose most probable class is the same."""

TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
"""Linear sRGB to CIE XYZ, as scikit-image has it."""
WHITE = (0.95047, 1.0, 1.08883)
"""D65 for the 2° observer."""


@dataclass(frozen=True)
class ExportReport:
    """What was exported, and how well it agrees with prediction.

    Attributes
    ----------
    path : Path
        The file.
    format : str
        "ONNX", "torch.export" or "TorchScript".
    size : (int, int) or None
        Height and width the file is for; None: any.
    max_difference : float
        Largest difference of a probability.
    agreement : float
        Share of pixels with the same most probable class.
    """

    path: Path
    format: str
    size: tuple[int, int] | None
    max_difference: float
    agreement: float


def export(
    model: TrainedModel | str | Path,
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write a trained network to one file that needs no spwnet: an image in, the probability of each class out.

    It takes (B, C, H, W) float32, as large as the working size of the run and with values 0…1: without the margin,
    scaled and sharpened by ``images``, `low` and `high` of the normalisation having become 0 and 1. The file's metadata
    hold both. It gives (B, K, H, W) float32 of the K classes of the network, not of the codebook. In ONNX they are
    named ``image`` and ``probabilities``. Before it is written, it is compared with prediction in float32.

    It is made and compared on the processor. TorchScript and torch.export name no device: moved to another one, they
    compute there.

    Parameters
    ----------
    model : TrainedModel or path
        What `train` or `load` returned, or a run directory.
    path : path
        File to write, its suffix the format: ``.onnx``, ``.pt2`` (torch.export) or ``.ts`` (TorchScript).
    size : (int, int), optional
        Height and width, if the file shall be for images of that size alone; any if not given. Not in TorchScript.
    overwrite : bool
        Replace a file of that name.

    Returns
    -------
    ExportReport

    Raises
    ------
    SettingsError
        If the suffix or the size is not possible, the run has no network, or a package is missing.
    OutputError
        If the file cannot be written, is there already, or would not agree with prediction.
    """
    target = Path(path)
    _check(target, size, overwrite=overwrite)
    if not isinstance(model, TrainedModel):
        model = load(model, device="cpu")
    if model.network is None:
        raise SettingsError(
            "expected a run with a network to export, but this one was made without training; "
            "train with `codebook.evidence = 'all'`, as the preset default has it"
        )
    if model.solid:
        raise SettingsError(
            "expected a run on images to export, but this one is of a volume, whose network takes evidence of what is "
            "around a slice; export a run on images, or train with `volumes.mode = 'slices'`"
        )
    # A copy on the processor in float32, wherever the model is.
    network = copy.deepcopy(model.network).eval().requires_grad_(False).float().to("cpu")
    module = Classifier(network, model).eval()
    suffix = target.suffix.lower()
    example = torch.from_numpy(np.stack([_texture(size or TRACED, network.channels, seed) for seed in (1, 2)]))
    with _quiet(), torch.no_grad():
        data = _WRITERS[suffix](module, example.movedim(-1, 1).contiguous(), _metadata(model, size), size is not None)
        run = _READERS[suffix](data)
        difference, agreement = _compare(run, network, model, COMPARED if size is None else (size,))
    # Written so that a difference that is no number fails, too.
    if not (difference <= MOST_DIFFERENCE and agreement >= LEAST_AGREEMENT):
        raise OutputError(
            f"expected {target.name} to agree with prediction within {MOST_DIFFERENCE:g} and in "
            f"{LEAST_AGREEMENT:.1%} of the pixels, but got {difference:.2g} and {agreement:.2%}; nothing was written, "
            "try another format or other versions of the packages"
        )
    storage.prepare_folder(target.parent, overwrite=True)
    storage.atomic_write(target, data)
    return ExportReport(target, FORMATS[suffix], size, difference, agreement)


def _check(target: Path, size: tuple[int, int] | None, *, overwrite: bool) -> None:
    """Refuse what would fail in the end."""
    suffix = target.suffix.lower()
    if suffix not in FORMATS:
        raise SettingsError(f"expected a file named {', '.join(FORMATS)}, but got '{target.name}'; rename it")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise SettingsError(f"expected a height and a width of at least 1, but got {size}; correct or drop the size")
    if size is not None and suffix == ".ts":
        raise SettingsError(
            f"expected no size for TorchScript, which takes any, but got {size}; drop it, or use .onnx or .pt2"
        )
    missing = [name for name in NEEDED if find_spec(name) is None]
    if suffix == ".onnx" and missing:
        raise SettingsError(
            f"expected the package {missing[0]} to write ONNX, but it is not installed; "
            "install it by `pip install 'spwnet[deploy]'`"
        )
    # Before, the exporter fixed the size of what it was shown.
    if suffix == ".onnx" and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9):
        raise SettingsError(f"expected torch 2.9 or newer to write ONNX, but got {torch.__version__}; update it")
    if target.exists() and (target.is_dir() or not overwrite):
        raise OutputError(
            f"expected a new file, but {target} exists already; choose another name, or pass `overwrite=True` / "
            "`--overwrite` to replace a file"
        )
    storage.check_folder(target.parent, overwrite=True)


class Classifier(nn.Module):
    """From (B, C, H, W) in 0…1 to (B, K, H, W) probabilities, without a step that depends on the size.

    The same as prediction, which is written for speed on a processor, in places and by sizes that no exporter follows.

    Parameters
    ----------
    network : WNet
        In evaluation mode, on the processor.
    model : TrainedModel
        Its settings and normalisation.
    """

    mean: Tensor
    std: Tensor
    to_xyz: Tensor
    evidence_mean: Tensor
    evidence_std: Tensor

    def __init__(self, network: WNet, model: TrainedModel) -> None:
        super().__init__()
        normalisation = model.normalisation
        # Not the network itself: its decoder is of no use here.
        self.encoder, self.norm = network.encoder, network.norm
        self.multiple, self.reduction = network.multiple, model.settings.model.reduction
        self.rgb, self.evidence = normalisation.rgb, model.settings.model.evidence
        standardise = normalisation.standardise
        mean, std = normalisation.mean if standardise else [0.0], normalisation.std if standardise else [1.0]
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.register_buffer("evidence_mean", network.evidence_mean)
        self.register_buffer("evidence_std", network.evidence_std)
        # White divides once, here.
        self.register_buffer("to_xyz", (torch.tensor(TO_XYZ) / torch.tensor(WHITE)[:, None])[:, :, None, None])

    def forward(self, image: Tensor) -> Tensor:
        """Return the probability of each class at each pixel."""
        x = _averaged((image - self.mean) / self.std, self.reduction)
        if self.evidence:
            evidence = (_handmade(self._perceptual(image), self.reduction) - self.evidence_mean) / self.evidence_std
            x = torch.cat([x, evidence.clamp(-MOST_DEVIATIONS, MOST_DEVIATIONS)], dim=1)
        height, width = x.shape[2:]
        for axis in (2, 3):
            size = x.shape[axis]
            whole = (size + self.multiple - 1) // self.multiple * self.multiple
            x = x.index_select(axis, _places(whole, x).clamp(max=size - 1))
        maps = _cropped((SHARPNESS * self.norm(self.encoder(x))).softmax(1), height, width)
        if self.reduction == 1:
            return maps
        maps = functional.interpolate(maps, scale_factor=self.reduction, mode="bilinear", align_corners=False)
        return _cropped(maps, image.shape[2], image.shape[3])

    def _perceptual(self, image: Tensor) -> Tensor:
        """CIELAB of sRGB, or the range 0…100, as `preparation.perceptual`."""
        if not self.rgb:
            return image * LAB_RANGE
        # Both branches are computed: neither may leave the numbers.
        linear = torch.where(image > 0.04045, ((image.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, image / 12.92)
        xyz = functional.conv2d(linear, self.to_xyz)
        f = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
        x, y, z = f.chunk(3, dim=1)
        return torch.cat([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def _handmade(perceptual: Tensor, reduction: int) -> Tensor:
    """`descriptors.handmade` of (B, C, H, W)."""
    image = _averaged(perceptual, reduction)
    height, width = image.shape[2:]

    @cache
    def blurs(sigma: float) -> tuple[Tensor, Tensor]:
        inner = math.sqrt(max(sigma**2 - (reduction**2 - 1) / 12, 0.0)) / reduction
        return _blur(height, inner, image), _blur(width, inner, image)

    def blur(maps: Tensor, sigma: float) -> Tensor:
        return _filtered(maps, *blurs(sigma))

    def energy(power: Tensor, sigma: float) -> Tensor:
        return torch.log(FAINT + torch.sqrt(blur(power, sigma).clamp(min=0) + 1e-6))

    blurred = {0: image, **{s: blur(image, s) for s in (1, 2, 4, 8, 16)}}
    around = blur(image, WIDE)
    spread = torch.sqrt(blur((image - around).square(), WIDE).clamp(min=0) + 1)
    bands = {a: blurred[a] - blurred[b] for a, b in ((1, 2), (2, 4), (4, 8), (8, 16))}
    finest = _filtered(perceptual, *(_blur(length, 1, perceptual) for length in perceptual.shape[2:]))
    powers = {0: _averaged((perceptual - finest).square(), reduction), **{a: bands[a].square() for a in (1, 2, 4)}}
    down, across = _slope(finest[:, :1], 2), _slope(finest[:, :1], 3)
    slopes = _averaged(torch.cat([down * down, across * across, down * across], dim=1), reduction)
    maps = {
        "colour": image,
        "smooth 2": blurred[2],
        "smooth 4": blurred[4],
        "local": (image - around) / spread,
        "local 4": (blurred[4] - around) / spread,
        **{f"band {a}": band for a, band in bands.items()},
        **{f"energy {a}": energy(power, max(4 * a, 3)) for a, power in powers.items()},
        **{f"orientation {s}": _orientation(blur(slopes, s)) for s in (4, 8)},
    }
    return torch.cat([maps[name] for names, _ in GROUPS.values() for name in names], dim=1)


def _cropped(maps: Tensor, height: int, width: int) -> Tensor:
    # Not by slices: torch.export would then take only sizes that have something cut off.
    return maps.index_select(2, _places(height, maps)).index_select(3, _places(width, maps))


def _filtered(images: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Multiply the columns of (B, C, H, W) by a matrix, and the rows by another."""
    return functional.linear(functional.linear(images, across).mT, down).mT


def _averaged(images: Tensor, reduction: int) -> Tensor:
    """`descriptors.averaged` of (B, C, H, W)."""
    if reduction == 1:
        return images
    height, width = images.shape[2:]
    return _filtered(images, _cells(height, reduction, images), _cells(width, reduction, images))


def _places(count: int, like: Tensor) -> Tensor:
    """0 … count − 1 where another tensor is; of `torch.arange` exporters keep the device it was followed on."""
    return like.new_ones(count, dtype=torch.int64).cumsum(0) - 1


def _floats(values: Tensor, like: Tensor) -> Tensor:
    """Numbers, or 1 where something is true; of `Tensor.float` exporters keep a check of the device."""
    return values * like.new_ones(())


def _cells(length: int, reduction: int, like: Tensor) -> Tensor:
    """Weights of `length` pixels in each cell of `reduction`, (cells, length), where another tensor is."""
    cells = _places((length + reduction - 1) // reduction, like)[:, None]
    inside = _floats(_places(length, like) // reduction == cells, like)
    return inside / inside.sum(1, keepdim=True)


def _blur(length: int, sigma: float, like: Tensor) -> Tensor:
    """Weights of `length` pixels in each blurred one, (length, length): exporters take minutes over what changes size.

    Sizes are tensors where they can be. The matrix of the means has `length` rows, whatever `count` is: rows from
    `count` on are multiplied by 0.
    """
    places, size = _places(length, like), _places(1, like) + length
    if sigma < REDUCE_FROM:
        return _mirrored(_floats(places[:, None] == places, like), size, sigma)
    factor = 2 ** math.floor(math.log2(2 * sigma / REDUCE_FROM))
    # Rounded to the nearest, halves to even, and 1 at least, as by `round`.
    count = ((2 * size + factor - 1 + size // factor % 2) // (2 * factor)).clamp(min=1)
    # Means over what falls together, as by the mode "area".
    wide = places[:, None]
    start, stop = wide * size // count, ((wide + 1) * size + count - 1) // count
    small = _floats((places >= start) & (places < stop), like) / (stop - start)
    small = _mirrored(small, count, sigma / factor)
    # Linearly between centres, as by the mode "bilinear".
    centres = ((wide + 0.5) * count / size - 0.5).clamp(min=0)
    centres = torch.minimum(centres, _floats(count - 1, like))
    return (1 - (centres - places).abs()).clamp(min=0) @ small


def _mirrored(rows: Tensor, count: Tensor, sigma: float) -> Tensor:
    """Blur over the first `count` rows, mirrored at both ends."""
    radius = int(TRUNCATE * sigma + 0.5)
    if radius == 0:
        return rows
    weights = torch.exp(-0.5 * ((_places(2 * radius + 1, rows) - radius) / sigma).square())
    kernel = (weights / weights.sum()).view(1, 1, -1, 1)
    period = (_places(rows.shape[0] + 2 * radius, rows) - radius) % (2 * count)
    padded = rows.index_select(0, torch.minimum(period, 2 * count - 1 - period))
    return functional.conv2d(padded[None, None], kernel)[0, 0]


def _slope(image: Tensor, axis: int) -> Tensor:
    """Central differences; 0 across a border."""
    length = image.shape[axis]
    places = _places(length, image)
    after, before = (places + 1).clamp(max=length - 1), (places - 1).clamp(min=0)
    inside = _floats(after - before == 2, image).view((-1, 1) if axis == 2 else (1, -1))
    return (image.index_select(axis, after) - image.index_select(axis, before)) * (inside / 2)


def _orientation(tensor: Tensor) -> Tensor:
    """Traceless part of the structure tensor (B, 3, H, W) over the root of its trace, (B, 2, H, W)."""
    down, across, both = tensor.chunk(3, dim=1)
    contrast = torch.sqrt((down + across).clamp(min=0) + 1e-3)
    return torch.cat([across - down, 2 * both], dim=1) / contrast


def _metadata(model: TrainedModel, size: tuple[int, int] | None) -> dict[str, str]:
    """What the file says of itself, as texts, of which all but the first are JSON."""
    assert model.network is not None
    provenance = outputs.provenance()
    settings = model.settings.model_dump(mode="json")
    described = {
        "settings": settings,
        "normalisation": model.normalisation.to_json(),
        "seed": model.settings.seed,
        "channels": model.network.channels,
        "classes": model.settings.model.classes,
        "size": size,
        "input": "image (B, C, H, W), float32: working size, 0 and 1 for low and high of the normalisation",
        "output": "probabilities (B, K, H, W), float32",
        "provenance": provenance,
    }
    return {"spwnet": provenance["spwnet"], **{key: json.dumps(value) for key, value in described.items()}}


def _write_onnx(module: nn.Module, example: Tensor, metadata: dict[str, str], fixed: bool) -> bytes:
    import onnx

    names = {0: "batch", 2: "height", 3: "width"}
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        dynamic_shapes=({axis: name for axis, name in names.items() if not (fixed and axis)},),
        input_names=["image"],
        output_names=["probabilities"],
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, metadata)
    data: bytes = proto.SerializeToString()
    return data


def _read_onnx(data: bytes) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(["probabilities"], {"image": image.numpy()})[0])


def _write_program(module: nn.Module, example: Tensor, metadata: dict[str, str], fixed: bool) -> bytes:
    any_size = torch.export.Dim.DYNAMIC
    shapes = {0: any_size} if fixed else {0: any_size, 2: any_size, 3: any_size}
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(module, (example,), dynamic_shapes=(shapes,)), buffer, extra_files=metadata)
    return buffer.getvalue()


def _read_program(data: bytes) -> Callable[[Tensor], Tensor]:
    loaded: Callable[[Tensor], Tensor] = torch.export.load(io.BytesIO(data)).module()
    return loaded


def _write_script(module: nn.Module, example: Tensor, metadata: dict[str, str], _fixed: bool) -> bytes:
    buffer = io.BytesIO()
    traced = torch.jit.trace(module, (example,), check_trace=False)  # type: ignore[no-untyped-call]
    torch.jit.save(traced, buffer, _extra_files=metadata)
    return buffer.getvalue()


def _read_script(data: bytes) -> Callable[[Tensor], Tensor]:
    loaded: Callable[[Tensor], Tensor] = torch.jit.load(io.BytesIO(data))  # type: ignore[no-untyped-call]
    return loaded


_WRITERS = {".onnx": _write_onnx, ".pt2": _write_program, ".ts": _write_script}
_READERS = {".onnx": _read_onnx, ".pt2": _read_program, ".ts": _read_script}


def _compare(
    run: Callable[[Tensor], Tensor], network: WNet, model: TrainedModel, sizes: tuple[tuple[int, int], ...]
) -> tuple[float, float]:
    """Largest difference from prediction, and share of pixels with the same most probable class."""
    differences, same = [], []
    for size in sizes:
        unit = _texture(size, network.channels, 0)
        expected = _predicted(network, model, unit)
        found = run(torch.from_numpy(unit).movedim(-1, 0)[None].contiguous())[0]
        # A result of another shape could still be subtracted.
        assert found.shape == expected.shape, (found.shape, expected.shape)
        differences.append((found - expected).abs().max())
        same.append((found.argmax(0) == expected.argmax(0)).flatten())
    # Not by Python's max, which passes over what is no number.
    return float(torch.stack(differences).max()), float(torch.cat(same).float().mean())


def _predicted(network: WNet, model: TrainedModel, unit: NDArray[np.float32]) -> Tensor:
    """Probabilities (K, H, W) of a working image in 0…1, by what prediction uses."""
    normalisation, settings, shape = model.normalisation, model.settings.model, (unit.shape[0], unit.shape[1])
    mean, std = (np.asarray(values, np.float32) for values in (normalisation.mean, normalisation.std))
    standard = (unit - mean) / std if normalisation.standardise else unit
    prepared = Prepared(unit, standard, Frame(shape, 0, shape), "texture", normalisation.rgb)
    pixels = network_input(prepared, torch.device("cpu"), settings)
    return interpolated(network.classify(pixels)[0], settings.reduction, shape)


def _texture(size: tuple[int, int], channels: int, seed: int) -> NDArray[np.float32]:
    """A random image (H, W, C) in 0…1: patches of several widths, and noise."""
    rng = np.random.default_rng(seed)
    image = np.zeros((*size, channels))
    for width in (1, 4, 16):
        patches = rng.normal(0.5, 0.3, (*[-(-side // width) for side in size], channels))
        image += patches.repeat(width, 0).repeat(width, 1)[: size[0], : size[1]] / 3
    return image.clip(0, 1).astype(np.float32)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what exporters say to their own developers; their errors come through."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
