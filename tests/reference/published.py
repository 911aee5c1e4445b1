"""Loads the published implementation's weights into ours."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / name) as archive:
        return {key: archive[key] for key in archive.files}


def our_name(published: str, n_blocks: int) -> str:
    """Published layer name → ours."""
    net, layer, *rest = published.split(".")
    index = int(rest.pop(0)) if rest[0].isdigit() else None
    place = {
        "enc1": "down.0",
        "enc234": f"down.{1 + (index or 0)}",
        "middle": f"down.{n_blocks}",
        "up123": f"up.{index}",
        "up4": f"up.{n_blocks - 1}",
        "dec123": f"merge.{index}",
        "dec4": f"merge.{n_blocks - 1}",
        "final": "final",
    }[layer]
    inner = ".".join(rest)
    inner = re.sub(r"spatial(\d)", r"conv\1.0", inner)
    inner = re.sub(r"depth(\d)", r"conv\1.1", inner)
    inner = re.sub(r"batchnorm(\d)", r"norm\1", inner)
    return f"{ {'UEnc': 'encoder', 'UDec': 'decoder'}[net] }.{place}.{inner}"


def state_dict(archive: dict[str, np.ndarray], prefix: str, n_blocks: int) -> dict[str, torch.Tensor]:
    return {
        our_name(key.removeprefix(prefix), n_blocks): torch.from_numpy(np.array(value))
        for key, value in archive.items()
        if key.startswith(prefix)
    }
