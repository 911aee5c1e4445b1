"""What options stand for: text and numbers of the command line become settings, frames and open inputs."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from spwnet.cli.options import NO_BLOCK_OPTIONS, NO_VOLUME_OPTIONS
from spwnet.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from spwnet.cli.options import BlockOptions, VolumeOptions
    from spwnet.config import LabelSettings, Settings


def read_inputs(
    images: Sequence[str], reading: VolumeOptions | None = None, blocks: BlockOptions = NO_BLOCK_OPTIONS
) -> Any:
    """Return what is to be opened: paths of images, or an open volume."""
    paths = images[0] if len(images) == 1 else list(images)
    if reading is None:
        return paths
    from spwnet.volumes import is_volume, join_channels, open_volume

    files = [paths] if images else []
    files += reading.channel or []
    if not files:
        raise SettingsError("expected images or a volume, but got none; name files, or channels by --channel")
    if not (reading.volume or any(is_volume(one) for entry in files for one in _listed(entry))):
        # What of these options images have, too.
        given = set(_given(reading, NO_VOLUME_OPTIONS)) - {"channel", "axes"} | set(_given(blocks, NO_BLOCK_OPTIONS))
        if given:
            raise SettingsError(f"expected --{min(given)} with a volume, but got images; add --volume if they are one")
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


def _given(options: VolumeOptions | BlockOptions, defaults: VolumeOptions | BlockOptions) -> list[str]:
    """Return the names of the options that are other than by default."""
    names = (field.name for field in fields(options))
    return [name for name in names if getattr(options, name) != getattr(defaults, name)]


def _listed(entry: Any) -> list[Any]:
    return entry if isinstance(entry, list) else [entry]


def is_open_volume(source: Any) -> bool:
    """Whether `read_inputs` gave a volume."""
    from spwnet.volumes import Volume

    return isinstance(source, Volume)


def read_block_options(blocks: BlockOptions) -> dict[str, Any]:
    """Return how a volume is worked on, as `segment_volume` takes it."""
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


def read_classes_option(text: str | None, merge: list[str] | None) -> tuple[int | None, str | None]:
    """Return a number of classes, or a file of classes by name."""
    if text is None:
        return None, None
    try:
        return int(text), None
    except ValueError:
        if merge:
            raise SettingsError(
                "expected either a file of classes by name or --merge, but got both; merge in the file"
            ) from None
        return None, text


def read_names(text: str | None) -> list[int | str]:
    """Read "0,1,ground"."""
    found: list[int | str] = []
    for part in (text or "").split(","):
        name = part.strip()
        found += [int(name) if name.isdecimal() else name] if name else []
    return found


def read_suffix(name: str | None) -> str | None:
    """Return the suffix of the files that a format is written to."""
    return {None: None, "video": ".mp4"}.get(name, f".{name}")


def read_frames(text: str | None) -> list[int] | str | None:
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
            stop, step = rest if len(rest) == 2 else (*(rest or [first]), 1)
            found = range(first, stop + (1 if step > 0 else -1), step)
            if not found:
                raise SettingsError(f"expected at least one frame, but {part!r} holds none")
            numbers += found
    except (ValueError, TypeError) as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(f'expected frames like "10,123,270", "1:400:20" or "all", but got {text!r}') from None
    return numbers


def read_settings(
    preset: str = "default",
    file: Path | None = None,
    sets: list[str] | None = None,
    classes: int | None = None,
    scale: str | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    superpixels: str | None = None,
) -> Settings:
    """Settings of training: a preset, then a file, single settings and flags over them."""
    from spwnet.presets import make_settings

    values = dict(_assignment(text) for text in sets or ())
    flags = {
        "images.scale": scale, "training.epochs": epochs, "seed": seed,
        "superpixels.labels": superpixels, "superpixels.method": "labels" if superpixels else None,
    }  # fmt: skip
    values |= {name: value for name, value in flags.items() if value is not None}
    size = values.get("images.scale")
    if isinstance(size, str) and "/" not in size and size != "auto":
        values["images.scale"] = _value(size)
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


def _ids(text: str) -> list[int]:
    """Read "0,1,3"."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise SettingsError(f'expected class ids like "0,1,3" for --merge, but got {text!r}')
    return [int(part) for part in parts]


def read_label_settings(
    settings: Settings,
    file: Path | None,
    sets: list[str] | None,
    merge: list[str] | None,
    flags: dict[str, Any],
) -> LabelSettings:
    """Settings of labelling and cleaning: the run's, then a file, single settings and flags over them."""
    from spwnet.presets import flat, merged, nested, parse_settings, read_toml

    groups = None if merge is None else [_ids(group) for group in merge]
    flags = {**flags, "merge": groups}
    values = merged(read_toml(file) if file else {}, nested(dict(_assignment(text) for text in sets or ())))
    values = merged(values, {"labels": {name: value for name, value in flags.items() if value is not None}})
    other = [name for name in flat(values) if not name.startswith("labels.") and name != "labels"]
    if other:
        raise SettingsError(
            f"expected settings under `labels` alone, because the network is trained already, but got '{other[0]}'"
        )
    mode = values.get("labels", {}).get("mode", settings.labels.mode)
    if mode != settings.labels.mode and mode != "codebook":
        # The number of classes that the run has by codebook means nothing to another mode.
        values = merged({"labels": {"classes": "auto"}}, values)
    return parse_settings(merged(settings.model_dump(), values)).labels
