"""Every kind of work killed at random moments, or its reads or writes failing, then gone on with.

It must come out the same, and nothing that was finished may be lost.

``SPWNET_FAULTS`` is the number of faults for each kind of work, ``SPWNET_SEED`` what they are drawn from.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

import spwnet
from benchmarks import video

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

FAULTS = 40
FRAMES = 120
HEIGHT, WIDTH = 96, 160
CHECKPOINT_SECONDS = 0.5
SETTINGS = {
    "images.scale": "1.0",
    "superpixels.size": "16",
    "model.ch_mul": "8",
    "patches.crop": "96",
    "training.epochs": "6",
    "training.batches": "20",
}
KINDS = ("kill", "full", "failing", "short", "kill", "failing")
"""Of faults, in turn: killed at a random moment; files cannot grow beyond a random size; one of the writes, brought to
the disk or renamed, fails as a full disk or a broken one does; an input is cut off at a random moment."""
MOST_CLASSES = 8
"""That classes are cut to before each trial, which cuts them to fewer."""
MOST_LATE = 4
"""Faults that come too late to do anything, over those asked for, at which no more are drawn."""
LIMIT = 600
"""Seconds after which a run counts as hanging."""
START = f"""
import errno, os, resource, signal, sys
import spwnet.training
spwnet.training.CHECKPOINT_SECONDS = {CHECKPOINT_SECONDS}
kind, number = sys.argv[1].split(":")
if kind == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(number), int(number)))
if kind == "failing":
    left = int(number)
    codes = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
    def counting(name):
        original = getattr(os, name)
        def call(*arguments, **options):
            global left
            left -= 1
            if left == 0:
                code = codes[int(number) % len(codes)]
                raise OSError(code, os.strerror(code))
            return original(*arguments, **options)
        setattr(os, name, call)
    for name in ("fsync", "replace", "rename"):
        counting(name)
sys.argv[1:2] = []
from spwnet.cli import main
sys.exit(main())
"""
"""In place of the console script: checkpoints come often enough for a run of seconds, and writes can fail."""


@dataclass(frozen=True)
class Work:
    """A command, the folder it writes, and the files in it that must be the same in the end.

    Attributes
    ----------
    arguments : tuple of str
    inputs : Path
        The file, or the folder of files, that is read.
    flag : str
        That the folder follows.
    files : callable
        Gives the files to compare, by name, of a folder.
    growing : str
        Glob of the files that stay as they are once they are written.
    removed : bool
        Whether they are taken away at the end.
    """

    arguments: tuple[str, ...]
    inputs: Path
    flag: str
    files: Callable[[Path], dict[str, bytes]]
    growing: str = ""
    removed: bool = False


def main(faults: int | None = None, frames: int = FRAMES, settings: dict[str, str] | None = None) -> None:
    """Print what became of each kind of work; end with an error if anything was lost or came out differently."""
    try:
        import av  # noqa: F401
        import h5py  # noqa: F401
    except ImportError as error:
        print(f"skipped: {error}")
        return
    faults = faults or int(os.environ.get("SPWNET_FAULTS", FAULTS))
    seed = int(os.environ.get("SPWNET_SEED", 0))
    bad = 0
    print("| work | uninterrupted, s | killed | full | failing | short | too late | equal | lost | odd ends |")
    print("| --- " * 10 + "|")
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, work in works(folder, frames, SETTINGS | (settings or {})):
            bad += torment(name, work, folder, faults, np.random.default_rng([seed, *name.encode()]))
        bad += torment_classes(folder, faults, np.random.default_rng([seed, 1]))
    print(
        "\nEqual: gone on with to the same bytes. Lost: a finished file that a fault or going on changed or took away. "
        "Odd ends: a failing write that ended otherwise than by a message and status 1, a read by a crash."
    )
    if bad:
        raise SystemExit(1)


def works(folder: Path, frames: int, settings: dict[str, str]) -> Iterator[tuple[str, Work]]:
    """Make the inputs and the run, and yield each kind of work."""
    import h5py

    swim, images, scan = folder / "swim.mp4", folder / "frames", folder / "scan.h5"
    shown = pictures(frames)
    video.write_video(swim, shown)
    images.mkdir()
    for number, image in enumerate(shown[: frames // 2]):
        Image.fromarray(image).save(images / f"frame_{number:03d}.png")
    with h5py.File(scan, "w") as file:
        file["data"] = np.stack([image[..., 0] for image in shown[:48]])
    sets = [f"--set={name}={value}" for name, value in settings.items()]
    trained = ("weights.safetensors", "codebook.safetensors", "gallery/gallery.json")
    yield "training", Work(("train", str(swim), *sets), swim, "--run", lambda run: contents(run, *trained))
    run, solid = folder / "run", folder / "solid"
    finish(["none:0", "train", str(swim), "--preset", "instant", *sets, "--run", str(run)])
    finish(["none:0", "train", str(scan), "--preset", "instant", "--scale", "1", "--run", str(solid)])
    yield "images", Work(("segment", str(run), str(images)), images, "--out", all_labels, "labels/*.png")
    videos = ("labels.mp4", "overlay.mp4")
    yield "a video", Work(("segment", str(run), str(swim)), swim, "--out", lambda out: contents(out, *videos))
    blocks = ("segment", str(solid), str(scan), "--block", "16", "--format", "npy")
    yield (
        "blocks",
        Work(blocks, scan, "--out", lambda out: contents(out, "labels.npy", "fractions.csv"), "blocks/*.block", True),
    )


def contents(folder: Path, *names: str) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def all_labels(folder: Path) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in sorted((folder / "labels").iterdir())}
    summary = json.loads((folder / "segmentation.json").read_text())
    return {**files, "areas": json.dumps(summary["images"], sort_keys=True).encode()}


def torment(name: str, work: Work, folder: Path, faults: int, rng: np.random.Generator) -> int:
    """Do a kind of work with one fault after another; return how many came to a bad end."""
    place = folder / name.replace(" ", "_")
    whole = place.with_name(f"{place.name}_whole")

    def arguments(target: Path) -> list[str]:
        return [*work.arguments, work.flag, str(target)]

    # The shorter of two: the first one may wait for a cold disk, and its moments would come too late.
    twice = place.with_name(f"{place.name}_twice")
    seconds = min(finish(["none:0", *arguments(target)]) for target in (twice, whole))
    expected = work.files(whole)
    if work.files(twice) != expected:
        raise SystemExit(f"{name}: two runs that nothing happened to differ")
    sizes = [path.stat().st_size for path in whole.rglob("*") if path.is_file()]
    counts, late, equal, lost, odd = dict.fromkeys(KINDS, 0), 0, 0, 0, 0
    done = 0
    while done < faults and late < MOST_LATE * faults:
        again = place.with_name(f"{place.name}_{done + late}")
        kind = KINDS[(done + late) % len(KINDS)]
        number = int(rng.integers(1, {"full": max(sizes) + 1, "failing": 60}.get(kind, 2)))
        moment = rng.uniform(0, seconds) if kind in ("kill", "short") else None
        if moment is not None and kind == "short":
            # Training reads at the start alone.
            moment *= rng.random() ** 2
        with shortened(work.inputs, rng) as shorten:
            ended = disturb([f"{kind}:{number}", *arguments(again)], moment, shorten if kind == "short" else kill)
        if ended == 0 and work.files(again) == expected:
            late += 1
            continue
        done += 1
        counts[kind] += 1
        # An image that cannot be read is left out, and the others go on.
        odd += ended not in {"kill": (-9,), "short": (0, 1)}.get(kind, (1,))
        kept = {path: path.read_bytes() for path in again.glob(work.growing)} if work.growing else {}
        finish(["none:0", *arguments(again), "--resume"])
        equal += work.files(again) == expected
        lost += any(is_lost(path, before, removed=work.removed) for path, before in kept.items())
    row = (f"{seconds:.1f}", *counts.values(), late, f"{equal} of {done}", lost, odd)
    print(f"| {name} | {' | '.join(map(str, row))} |", flush=True)
    return done - equal + lost + odd


def is_lost(path: Path, before: bytes, *, removed: bool) -> bool:
    """Whether a finished file was changed, or taken away before its time."""
    return path.read_bytes() != before if path.exists() else not removed


def torment_classes(folder: Path, faults: int, rng: np.random.Generator) -> int:
    """Change the classes of a run with one fault after another: the file is that before or that after."""
    from spwnet.naming import read_classes

    run = folder / "run"
    file = run / "classes.toml"
    change = ["classes", str(run), "cut"]
    seconds = finish(["none:0", *change, str(MOST_CLASSES)])
    kinds = [kind for kind in KINDS if kind != "short"]
    bad, whole, after = 0, 0, 0
    for number in range(faults):
        before, count = read_classes(file), 2 + number % 6
        kind = kinds[number % len(kinds)]
        limit = int(rng.integers(1, {"full": 2000, "failing": 5}.get(kind, 2)))
        disturb([f"{kind}:{limit}", *change, str(count)], rng.uniform(0, seconds) if kind == "kill" else None)
        found = read_classes(file)
        good = found == before or len(found.classes) == count
        whole += good
        after += found != before
        bad += not good
        # So many that every trial has a change to make.
        finish(["none:0", *change, str(MOST_CLASSES)])
    print(
        f"| classes | {seconds:.1f} | {faults} in all | | | {after} | {whole} of {faults} whole | {bad} | |", flush=True
    )
    return bad


def pictures(frames: int) -> list[np.ndarray]:
    """The embedded swim, half as large, forth and back, with noise of each frame's own."""
    swim = [image[: 2 * HEIGHT : 2, : 2 * WIDTH : 2] for image in spwnet.sample("swim").images]
    swim += swim[-2:0:-1]
    noise = np.random.default_rng(0)
    shown = (swim[k % len(swim)] + noise.normal(0, 2, (HEIGHT, WIDTH, 3)) for k in range(frames))
    return [np.clip(image, 0, 255).astype(np.uint8) for image in shown]


def command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-c", START, *arguments]


def finish(arguments: Sequence[str]) -> float:
    """Run to the end, and return how many seconds it took; what it said is shown if it failed."""
    start = time.perf_counter()
    done = subprocess.run(command(arguments), capture_output=True, text=True, timeout=LIMIT, check=False)
    if done.returncode != 0:
        raise SystemExit(f"`spwnet {' '.join(arguments)}` ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()


def disturb(
    arguments: Sequence[str], moment: float | None, act: Callable[[subprocess.Popen[bytes]], None] = kill
) -> int:
    """Run, with something done to it after so many seconds; return how it ended, 0 if nothing came of it."""
    process = subprocess.Popen(command(arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    told = b""
    try:
        _, told = process.communicate(timeout=LIMIT if moment is None else moment)
    except subprocess.TimeoutExpired:
        (act if moment is not None else kill)(process)
        try:
            _, told = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
    return 2 if b"Traceback" in told else process.returncode


@contextmanager
def shortened(inputs: Path, rng: np.random.Generator) -> Iterator[Callable[[object], None]]:
    """Yield what cuts off one of the files that are read; it is whole again afterwards."""
    files = sorted(inputs.iterdir()) if inputs.is_dir() else [inputs]
    file = files[rng.integers(len(files))]
    content, times = file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    size = int(rng.integers(len(content)))
    try:
        yield lambda _: os.truncate(file, size)
    finally:
        file.write_bytes(content)
        os.utime(file, ns=times)
