"""Videos: frames a second and memory from file to file, whether memory grows with their length, and flicker."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import spwnet
from benchmarks import data, scores, speed
from spwnet.config import LabelSettings, Settings
from spwnet.preparation import prepare
from spwnet.steadying import flicker
from spwnet.videos import VideoSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from benchmarks.data import Set
    from spwnet.trained import TrainedModel

RATE = Fraction(30_000, 1001)
LOOPS = 4
CLASSES = 32
FLICKERING = ("video/garden", "video/ice", "video/salesman")


def main() -> None:
    try:
        import av  # noqa: F401
    except ImportError as error:
        print(f"skipped: {error}")
        return
    seeds = tuple(int(s) for s in os.environ.get("SPWNET_SEEDS", "").split(",") if s) or (0,)
    length()
    print()
    steadiness(seeds)


def length(settings: Settings | None = None, most: int | None = None) -> None:
    """Print speed and memory of the cheetah video, and of the same looped."""
    folder = data.folder("cheetah")
    if folder is None:
        print("skipped: no folder 'cheetah' in SPWNET_DATA")
        return
    cheetah = data.load("cheetah", folder)
    settings = settings or Settings()
    with _scratch() as scratch:
        count = min(most or len(cheetah.images), len(cheetah.images))
        single, looped = scratch / f"cheetah_{count}.mp4", scratch / f"cheetah_{count}x{LOOPS}.mp4"
        if not single.exists():
            write_video(single, (cheetah.images[k].pixels for k in range(count)), crf=17)
        if not looped.exists():
            loop_video(single, looped, LOOPS)
        training = [cheetah.images.numbers.index(number) for number in cheetah.training]
        training = [k for k in training if k < count] or [0]
        with TemporaryDirectory(dir=scratch) as out:
            run = Path(out) / "run"
            seconds, peak = speed.in_child(train_run, single, run, training, settings)
            print(
                f"trained on {len(training)} frames in {seconds:.1f} s, {peak / 2**30:.2f} GiB, "
                f"{torch.get_num_threads()} threads\n"
            )
            print("| video | frames | frames a second | peak memory, GiB | times as in the input | overlay's frames |")
            print("| --- " * 6 + "|")
            found = []
            for name, path in (("single", single), (f"{LOOPS} times", looped)):
                target = Path(out) / path.stem
                frames, seconds, peak = speed.in_child(segment_video, run, path, target)
                found.append((frames / seconds, peak))
                times = "yes" if seconds_of(target / "labels.mp4") == seconds_of(path) else "NO"
                drawn = decoded(target / "overlay.mp4")
                print(
                    f"| {name} | {frames} | {frames / seconds:.2f} | {peak / 2**30:.3f} | {times} "
                    f"| {drawn}{'' if drawn == frames else ' (WRONG)'} |",
                    flush=True,
                )
            (fast, low), (fast_looped, low_looped) = found
            print(f"| ratio | {LOOPS} | {fast_looped / fast:.3f} | {low_looped / low:.3f} | | |")
            print("\nFrom the start of loading the run to the last byte written, labels and overlay.")


@contextmanager
def _scratch() -> Iterator[Path]:
    """Folder of `SPWNET_SCRATCH`, where the videos stay for the next time, or a temporary one."""
    given = os.environ.get("SPWNET_SCRATCH")
    if given:
        Path(given).mkdir(parents=True, exist_ok=True)
        yield Path(given)
        return
    with TemporaryDirectory() as scratch:
        yield Path(scratch)


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], *, crf: int = 17, rate: Fraction = RATE) -> None:
    """Write an H.264 video of RGB frames of one size, under its name only when it is whole."""
    import av

    temporary = path.with_name(f".{path.name}")
    with av.open(temporary, "w", format="mp4") as video:
        stream: Any = video.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": "veryfast"})
        stream.pix_fmt = "yuv420p"
        for k, pixels in enumerate(frames):
            if k == 0:
                stream.height, stream.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = k, 1 / rate
            video.mux(stream.encode(frame))
        video.mux(stream.encode())
    temporary.replace(path)


def loop_video(path: Path, looped: Path, times: int) -> None:
    """Write a video that shows another one several times, packet by packet."""
    import av

    temporary = looped.with_name(f".{looped.name}")
    source = VideoSource(path)
    step = round(1 / (source.rate * source.time_base))
    shift = source.timestamps[-1] - source.timestamps[0] + step
    with av.open(temporary, "w", format="mp4") as video:
        track: Any = None
        for k in range(times):
            with av.open(path) as once:
                stream = once.streams.video[0]
                track = track or video.add_stream_from_template(stream)
                for packet in once.demux(stream):
                    if packet.dts is not None and packet.pts is not None:
                        packet.pts, packet.dts = packet.pts + k * shift, packet.dts + k * shift
                        packet.stream = track
                        video.mux(packet)
    temporary.replace(looped)


def train_run(video: Path, run: Path, frames: list[int], settings: Settings) -> tuple[float, int]:
    start = time.perf_counter()
    spwnet.train(video, run, settings=settings, frames=frames)
    return time.perf_counter() - start, speed.peak_bytes()


def segment_video(run: Path, video: Path, out: Path) -> tuple[int, float, int]:
    start = time.perf_counter()
    result = spwnet.segment(run, video, out)
    return len(result.names), time.perf_counter() - start, speed.peak_bytes()


def seconds_of(path: Path) -> list[Fraction]:
    """When each frame is shown."""
    source = VideoSource(path)
    return [time * source.time_base for time in source.timestamps]


def decoded(path: Path) -> int:
    """Count the frames that come out of a decoder."""
    import av

    with av.open(path) as video:
        return sum(1 for _ in video.decode(video=0))


def steadiness(seeds: tuple[int, ...], settings: Settings | None = None) -> None:
    """Print the score and the flicker of videos labelled frame by frame, and steadily."""
    settings = settings or Settings()
    print("| set | seed | mIoU frame by frame | steady | flicker frame by frame | steady | ratio |")
    print("| --- " * 7 + "|")
    missing = []
    for name in FLICKERING:
        folder = data.folder(name)
        if folder is None:
            missing.append(name)
            continue
        loaded = data.load(name, folder)
        for seed in seeds:
            seeded = settings.model_copy(update={"seed": seed})
            model = spwnet.train(loaded.images, settings=seeded, frames=loaded.training)
            means, shares = zip(*(measure(model, loaded, steady) for steady in (False, True)), strict=True)
            ratio = f"{shares[1] / shares[0]:.2f}" if shares[0] else "–"
            print(
                f"| {name} | {seed} | {means[0]:.3f} | {means[1]:.3f} | {shares[0]:.4%} | {shares[1]:.4%} | {ratio} |",
                flush=True,
            )
    for name in missing:
        print(f"\nskipped: no folder '{name}' in SPWNET_DATA")


def measure(model: TrainedModel, loaded: Set, steady: bool) -> tuple[float, float]:
    """Return mean intersection over union, and the share of unchanged pixels whose class changed."""
    classes = model.settings.labels.classes
    labels = LabelSettings(classes=CLASSES if classes == "auto" else classes, steady=steady)
    found = spwnet.segment(model, loaded.images, labels=labels).labels
    mean = scores.name_and_score(loaded, dict(zip(loaded.images.numbers, found, strict=True))).mean
    changed = of = 0
    before: tuple[NDArray[Any], NDArray[np.float32]] | None = None
    for position, wide in enumerate(found):
        prepared = prepare(loaded.images[position], model.settings.images, model.normalisation)
        now = prepared.frame.to_working(wide), prepared.smooth.movedim(0, -1).numpy()
        if before is not None:
            some, all_of_them = flicker(now[0], before[0], now[1], before[1])
            changed, of = changed + some, of + all_of_them
        before = now
    return mean, changed / max(of, 1)
