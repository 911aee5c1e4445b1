"""Volumes: seconds and memory as they grow, one worker process against two, and a worker that is killed."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import spwnet
from benchmarks import speed
from spwnet.volumes import open_volume

SIZES = (128, 256)
"""Voxels a side; `SPWNET_SIZES` names others, as 256,1024."""
MOST_FOR_WORKERS = 256
TILE = 96
SPREAD = 2.5
EVERYTHING = (slice(None),) * 3


def phantom(path: Path, size: int, seed: int = 0) -> None:
    """Write a volume of blobs of three grey values with noise, of period `TILE`, as HDF5."""
    import h5py
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.standard_normal((TILE,) * 3), SPREAD, mode="wrap")
    tile = np.digitize(field, np.quantile(field, (0.4, 0.8))) * 9000 + 8000
    wrapped = np.arange(size) % TILE
    with h5py.File(path, "w") as file:
        data = file.create_dataset("entry/data/volume", (size,) * 3, "u2", chunks=(32, min(128, size), min(128, size)))
        for z in range(0, size, 32):
            part = tile[wrapped[z : z + 32]][:, wrapped][:, :, wrapped]
            data[z : z + 32] = (part + rng.integers(-1500, 1500, part.shape)).astype(np.uint16)


def train(path: Path, run: Path, preset: str) -> float:
    volume = open_volume(path)
    start = time.perf_counter()
    spwnet.train(volume, run, settings=spwnet.make_settings(preset))
    return time.perf_counter() - start


def segment(run: Path, path: Path, out: Path, options: dict[str, Any]) -> tuple[float, float, float, float]:
    """Seconds of the clock and of the cores, peak memory in GiB, and seconds from the first block to the last.

    The last is scaled to all blocks: it leaves out the start of workers, and the assembly of the volume.
    """
    start = time.perf_counter()
    moments: list[float] = []
    spwnet.segment_volume(
        run, open_volume(path), out, on_progress=lambda _: moments.append(time.perf_counter()), **options
    )
    used, peak = resource.getrusage(resource.RUSAGE_SELF), speed.peak_bytes() / 2**30
    blocks = (moments[-1] - moments[0]) * len(moments) / max(len(moments) - 1, 1)
    return time.perf_counter() - start, used.ru_utime + used.ru_stime, peak, blocks


def killed(run: Path, path: Path, out: Path, options: dict[str, Any]) -> int:
    """Segment with two worker processes, and kill one as soon as a block is written; returns how many were."""
    import psutil

    deaths: list[int] = []

    def kill() -> None:
        while not deaths:
            if any((out / "blocks").glob("*.block")):
                workers = [
                    p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())
                ]
                if workers:
                    os.kill(workers[0].pid, signal.SIGKILL)
                    deaths.append(workers[0].pid)
            time.sleep(0.05)

    watcher = threading.Thread(target=kill, daemon=True)
    watcher.start()
    spwnet.segment_volume(run, open_volume(path), out, **options)
    watcher.join(1)
    return len(deaths)


def main() -> None:
    try:
        import distributed  # noqa: F401
        import h5py  # noqa: F401
        import psutil  # noqa: F401
    except ImportError as error:
        print(f"skipped: {error}")
        return
    sizes = tuple(int(n) for n in os.environ.get("SPWNET_SIZES", "").split(",") if n) or SIZES
    if min(sizes) > MOST_FOR_WORKERS:
        raise SystemExit(
            f"expected a size of {MOST_FOR_WORKERS} or less among SPWNET_SIZES, for the workers, but got {sizes}"
        )
    with TemporaryDirectory(dir=os.environ.get("SPWNET_SCRATCH")) as scratch:
        folder = Path(scratch)
        files = {size: folder / f"{size}.h5" for size in sizes}
        for size, path in files.items():
            phantom(path, size)
        run = folder / "run"
        print(f"trained on 4 slices in {speed.in_child(train, files[sizes[0]], run, 'default'):.1f} s\n")
        print("| voxels | minutes | core µs a voxel | peak memory, GiB |")
        print("| --- " * 4 + "|")
        for size, path in files.items():
            seconds, cores, peak, _ = speed.in_child(segment, run, path, folder / f"out{size}", {"suffix": ".zarr"})
            print(f"| {size}³ | {seconds / 60:.2f} | {cores / size**3 * 1e6:.2f} | {peak:.2f} |", flush=True)
        size = max(n for n in sizes if n <= MOST_FOR_WORKERS)
        path, options = files[size], {"block": size // 4, "scheduler": "processes"}
        print(f"\n| worker processes, one thread each | s for the blocks of {size}³ |\n| --- | --- |")
        times = []
        for workers in (1, 2):
            out = folder / f"workers{workers}"
            times.append(speed.in_child(segment, run, path, out, {**options, "workers": workers})[3])
            print(f"| {workers} | {times[-1]:.1f} |", flush=True)
        print(f"| ratio | {times[0] / times[1]:.2f} |")
        deaths = speed.in_child(killed, run, path, folder / "killed", {**options, "workers": 2})
        same = [
            open_volume(folder / name / "labels.tif").read(EVERYTHING) for name in ("workers1", "workers2", "killed")
        ]
        equal = all(np.array_equal(same[0], other) for other in same[1:])
        print(f"\n{deaths} of 2 workers killed: labels {'equal' if equal else 'NOT EQUAL'} to those of one worker.")
