"""The published preset on a crop of one frame, every loss on, on superpixels and in dense mode."""

from __future__ import annotations

import math
import time

import numpy as np
from PIL import Image

import spwnet
from benchmarks import data

EVERY_LOSS = {"image": 0.5, "patches": 1.0, "cut": 0.5, "similarity": 0.1, "continuity": 0.1, "tau_continuity": 1.0}
STEPS = 3


def main() -> None:
    source = data.folder("cheetah")
    if source is None:
        print("skipped: no folder 'cheetah' in SPWNET_DATA")
        return
    frame = np.asarray(Image.open(source / "images" / "0010.jpg"))[300:800, 500:1300]
    print("| mode | s a step | losses of the last step |")
    print("| --- | --- | --- |")
    for method in ("slic", "none"):
        settings = spwnet.make_settings(
            "published-cheetah",
            overrides={
                "losses": EVERY_LOSS,
                "superpixels": {"method": method, "count": 3000},
                "training": {"epochs": 1, "batches": STEPS},
            },
        )
        steps: list[spwnet.Progress] = []
        start = time.perf_counter()
        spwnet.train(frame, settings=settings, on_progress=steps.append)
        seconds = (time.perf_counter() - start) / STEPS
        values = steps[-1].values
        if not all(math.isfinite(value) for value in values.values()):
            raise SystemExit(f"not finite: {values}")
        print(f"| {method} | {seconds:.1f} | {', '.join(f'{n} {v:.3f}' for n, v in values.items())} |", flush=True)
