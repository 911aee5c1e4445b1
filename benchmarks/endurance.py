"""A long run in small: thousands of frames streamed through one process, whose memory and open files must stay flat.

``SPWNET_FRAMES`` is the number of frames.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import spwnet
from benchmarks import video
from benchmarks.torture import pictures

FRAMES = 10_000
WARM = 500
"""Frames after which nothing should grow."""
EVERY = 100
SETTINGS = {"images.scale": 1.0, "model.ch_mul": 8, "training.epochs": 1, "training.images": 2}
MOST_GROWTH = 0.05


def main(frames: int | None = None, warm: int = WARM) -> None:
    """Print memory and open files along the way; end with an error if they grow."""
    try:
        import av  # noqa: F401
        import psutil
    except ImportError as error:
        print(f"skipped: {error}")
        return
    frames = frames or int(os.environ.get("SPWNET_FRAMES", FRAMES))
    first = -(-warm // EVERY) * EVERY
    if frames <= first:
        raise SystemExit(f"expected more than {first} frames in SPWNET_FRAMES, to see what grows, but got {frames}")
    process = psutil.Process()
    seen: list[tuple[int, int, int]] = []

    def sample(progress: spwnet.Progress) -> None:
        if progress.done % EVERY == 0 or progress.done == progress.total:
            seen.append((progress.done, process.memory_info().rss, process.num_fds()))

    with TemporaryDirectory() as scratch:
        swim = Path(scratch) / "swim.mp4"
        shown = pictures(60)
        video.write_video(swim, (shown[k % len(shown)] for k in range(frames)))
        model = spwnet.train(swim, settings=spwnet.make_settings(overrides=SETTINGS))
        start = time.perf_counter()
        spwnet.segment(model, swim, Path(scratch) / "out", on_progress=sample)
        seconds = time.perf_counter() - start
    (_, before, files), *later = [entry for entry in seen if entry[0] >= warm]
    memory, most_files = max(entry[1] for entry in later), max(entry[2] for entry in later)
    growth = memory / before - 1
    print("| frames | s | frames/s | GiB at first | GiB at most later | growth | files open, before and later |")
    print("| --- " * 7 + "|")
    print(
        f"| {frames} | {seconds:.0f} | {frames / seconds:.1f} | {before / 2**30:.3f} (after {warm}) | "
        f"{memory / 2**30:.3f} | {growth:+.1%} | {files}, {most_files} |"
    )
    if growth > MOST_GROWTH or most_files > files + 2:
        raise SystemExit(1)
