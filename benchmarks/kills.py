"""Training and segmenting a video, killed at random moments and resumed: whether the files come out the same."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

import spwnet
from benchmarks import video

if TYPE_CHECKING:
    from collections.abc import Sequence

KILLS = 10
FRAMES = 240
HEIGHT, WIDTH = 96, 160
SETTINGS = {
    "images.scale": "1.0",
    "superpixels.size": "16",
    "model.ch_mul": "8",
    "patches.crop": "96",
    "training.epochs": "8",
    "training.batches": "20",
}
CHECKPOINT_SECONDS = 0.5
COMMAND = (
    # In place of the console script, which it is otherwise: checkpoints come often enough for a run of seconds.
    f"import sys, spwnet.training; spwnet.training.CHECKPOINT_SECONDS = {CHECKPOINT_SECONDS}; "
    "from spwnet.cli import main; sys.exit(main())"
)
MOST_LATE = 2
"""Moments drawn too late, over the kills asked for, at which no more are drawn."""
LIMIT = 600
"""Seconds after which a run counts as hanging."""
TRAINED = ("weights.safetensors", "codebook.safetensors")
SEGMENTED = ("labels.mp4", "overlay.mp4")


def main(kills: int | None = None, frames: int = FRAMES, settings: dict[str, str] | None = None, seed: int = 0) -> None:
    """Print in how many of the runs that were killed each file is equal, byte by byte, to that of one that was not."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        print(f"skipped: {error}")
        return
    kills = kills or int(os.environ.get("SPWNET_KILLS", KILLS))
    rng = np.random.default_rng(seed)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        swim = folder / "swim.mp4"
        video.write_video(swim, pictures(frames))
        sets = [f"--set={name}={value}" for name, value in (SETTINGS | (settings or {})).items()]
        run, target = folder / "run", folder / "segmentation"
        works = {
            "training": (["train", str(swim), *sets], "--run", run, TRAINED),
            "segmenting": (["segment", str(run), str(swim)], "--out", target, SEGMENTED),
        }
        print(f"{frames} frames of {HEIGHT}×{WIDTH}, checkpoints of training every {CHECKPOINT_SECONDS} s\n")
        print("| work | uninterrupted, s | twice the same | killed and resumed | drawn too late | files equal |")
        print("| --- " * 6 + "|")
        for work, (arguments, flag, whole, files) in works.items():
            twice = folder / f"{work}_twice"
            # The shorter of two: the first one may wait for a cold disk, and its moments would come too late.
            seconds = min(finish([*arguments, flag, str(target)]) for target in (whole, twice))
            killed, late, equal = 0, 0, dict.fromkeys(files, 0)
            while killed < kills and late < MOST_LATE * kills:
                again = folder / f"{work}_{killed + late}"
                if not kill([*arguments, flag, str(again)], rng.uniform(0, seconds)):
                    late += 1
                    continue
                killed += 1
                finish([*arguments, flag, str(again), "--resume"])
                for name in files:
                    equal[name] += same_bytes(again / name, whole / name)
            steady = "yes" if all(same_bytes(twice / name, whole / name) for name in files) else "NO"
            same = ", ".join(f"{name} {n} of {killed}" for name, n in equal.items())
            print(f"| {work} | {seconds:.1f} | {steady} | {killed} | {late} | {same} |", flush=True)
        print(
            "\nMoments are drawn evenly from the uninterrupted time, start-up included; too late: the work was done "
            "already, and another moment is drawn."
        )


def same_bytes(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def pictures(frames: int) -> list[np.ndarray]:
    """The embedded swim, half as large, forth and back, with noise of each frame's own."""
    swim = [image[: 2 * HEIGHT : 2, : 2 * WIDTH : 2] for image in spwnet.sample("swim").images]
    swim += swim[-2:0:-1]
    noise = np.random.default_rng(0)
    shown = (swim[k % len(swim)] + noise.normal(0, 2, (HEIGHT, WIDTH, 3)) for k in range(frames))
    return [np.clip(image, 0, 255).astype(np.uint8) for image in shown]


def command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-c", COMMAND, *arguments]


def finish(arguments: Sequence[str]) -> float:
    """Run to the end, and return how many seconds it took; what it said is shown if it failed."""
    start = time.perf_counter()
    done = subprocess.run(command(arguments), capture_output=True, text=True, timeout=LIMIT, check=False)
    if done.returncode != 0:
        raise SystemExit(f"`spwnet {' '.join(arguments)}` ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start


def kill(arguments: Sequence[str], moment: float) -> bool:
    """Run for so many seconds, then kill -9; whether it was still at work."""
    process = subprocess.Popen(command(arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False
