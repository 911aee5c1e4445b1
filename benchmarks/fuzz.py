"""Damaged and absurd files for every reader: none may crash, hang, take gigabytes, or raise what is not said to users.

``SPWNET_READERS`` names the readers, ``SPWNET_INPUTS`` is the number of inputs a reader, ``SPWNET_SEED`` where they
begin. Inputs are valid files with bytes
changed, cut, repeated or moved, and numbers in headers made absurd; what each reads of one depends on its number alone.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import spwnet
from spwnet.errors import SpwnetError, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable

INPUTS = 10_000
SECONDS = 10
"""After which an input counts as a hang."""
MEMORY = 2 * 2**30
"""Bytes in memory at most."""
ADDRESSES = 8 * 2**30
"""Bytes that may be asked for above what is mapped at the start, so that this machine survives a fault."""
SHOWN = 5
"""Faults of a reader that are described."""
ABSURD = (0, 1, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def main() -> None:
    """Print, for each reader, how many inputs it refused, took, and failed on."""
    inputs = int(os.environ.get("SPWNET_INPUTS", INPUTS))
    chosen = os.environ.get("SPWNET_READERS", ",".join(TARGETS)).split(",")
    unknown = [name for name in chosen if name not in TARGETS]
    if unknown:
        raise SystemExit(f"expected readers among {', '.join(TARGETS)} in SPWNET_READERS, but got '{unknown[0]}'")
    print("| reader | inputs | read | refused | crashes | hangs | memory | tracebacks | s |")
    print("| --- " * 9 + "|")
    shown, missing, bad = [], [], 0
    for name in chosen:
        if name in NEEDED and importlib.util.find_spec(NEEDED[name]) is None:
            missing.append(name)
            continue
        start = time.perf_counter()
        counts: Counter[str] = Counter()
        faults = run_target(name, inputs, counts)
        bad += len(faults)
        shown += [(name, fault) for fault in faults[:SHOWN]]
        seconds = time.perf_counter() - start
        row = [counts[kind] for kind in ("read", "refused", "crash", "hang", "memory", "traceback")]
        print(f"| {name} | {inputs} | {' | '.join(map(str, row))} | {seconds:.0f} |", flush=True)
    for name in missing:
        print(f"\nskipped: {name} needs {NEEDED[name]}")
    for name, fault in shown:
        print(f"\n{name}, input {fault['input']}: {fault['kind']}\n{fault.get('text', '')[-1500:]}")
    if bad:
        raise SystemExit(1)


def run_target(name: str, inputs: int, counts: Counter[str]) -> list[dict[str, Any]]:
    """Feed a reader in a process of its own, started again behind an input that ended it."""
    faults = []
    done = int(os.environ.get("SPWNET_SEED", 0))
    last = done + inputs
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "journal"
        while done < last:
            journal.write_text("")
            command = [sys.executable, "-m", "benchmarks.fuzz", name, str(done), str(last), folder]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            records = [json.loads(line) for line in journal.read_text().splitlines()]
            for record in records:
                if record["kind"] != "begun":
                    counts[record["kind"]] += 1
                if record["kind"] in ("memory", "traceback"):
                    faults.append(record)
            if ended.returncode == 0:
                break
            begun = max((record["input"] for record in records if record["kind"] == "begun"), default=None)
            if begun is None:
                raise SystemExit(f"{name} ended before its first input:\n{ended.stderr}")
            done = begun + 1
            if ended.returncode == 3:
                continue
            kind = "hang" if ended.returncode == -signal.SIGALRM else "crash"
            counts[kind] += 1
            faults.append({"input": begun, "kind": f"{kind} ({ended.returncode})", "text": ended.stderr})
    return faults


def work(name: str, first: int, last: int, folder: Path) -> None:
    """Feed inputs to a reader, and note what became of each."""
    make, read = TARGETS[name]
    seeds = folder / "seeds"
    if not seeds.exists():
        seeds.mkdir()
        make(seeds)
    read(seeds, None)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESSES, mapped + ADDRESSES))
    with (folder / "journal").open("a") as journal:

        def note(**record: Any) -> None:
            journal.write(json.dumps(record) + "\n")
            journal.flush()

        for number in range(first, last):
            rng = np.random.default_rng([number, *name.encode()])
            target = folder / "input"
            shutil.rmtree(target, ignore_errors=True)
            damage(seeds, target, rng)
            note(kind="begun", input=number)
            # Ends the process: a signal handler would wait for what hangs in C.
            signal.alarm(SECONDS)
            kind, text = "read", ""
            try:
                with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                    read(target, rng)
            except (SpwnetError, Stopped):
                kind = "refused"
            except BaseException as error:
                kind, text = "traceback", "".join(traceback.format_exception(error))
            signal.alarm(0)
            if most_memory() > MEMORY:
                note(kind="memory", input=number, text=f"resident memory above the limit\n{text}")
                raise SystemExit(3)
            note(kind=kind, input=number, text=text)


def most_memory() -> int:
    """Bytes that were in memory at most; getrusage counts what the parent had before it started this process, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def damage(seeds: Path, target: Path, rng: np.random.Generator) -> None:
    """Copy a folder of valid files, one of them damaged in one to four places."""
    shutil.copytree(seeds, target)
    files = sorted(path for path in target.rglob("*") if path.is_file())
    path = files[rng.integers(len(files))]
    content = bytearray(path.read_bytes())
    for _ in range(min(int(rng.geometric(0.5)), 4)):
        content = bytearray(one_damage(content, rng))
    path.write_bytes(content)
    if rng.random() < 0.02:
        path.unlink()


def one_damage(content: bytearray, rng: np.random.Generator) -> bytes:
    size = len(content)
    if not size:
        return bytes(rng.integers(0, 256, 16, np.uint8))
    # Headers are at the front, mostly, and say most.
    place = int(rng.integers(min(size, 512))) if rng.random() < 0.6 else int(rng.integers(size))
    kind = rng.integers(8)
    if kind == 0:
        content[place] = int(rng.integers(256))
    elif kind == 1:
        content[place] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        value, width = ABSURD[rng.integers(len(ABSURD))], int(rng.choice([1, 2, 4, 8]))
        order = "little" if rng.random() < 0.5 else "big"
        content[place : place + width] = (value % 256**width).to_bytes(width, order)
    elif kind == 3:
        del content[place:]
    elif kind == 4:
        del content[place : place + int(rng.integers(1, 64))]
    elif kind == 5:
        length = int(rng.integers(1, 64))
        content[place:place] = content[place : place + length] * int(rng.integers(1, 5))
    elif kind == 6:
        other, length = int(rng.integers(size)), int(rng.integers(1, 64))
        content[place : place + length] = content[other : other + length]
    else:
        return number_damage(bytes(content), rng)
    return bytes(content)


def number_damage(content: bytes, rng: np.random.Generator) -> bytes:
    """Replace a number, a string or a bracket of a text by another, as JSON and TOML have them."""
    import re

    found = list(re.finditer(rb"-?\d+\.?\d*|\"[^\"]*\"|[\[\]{}]|true|false|null", content[:200_000]))
    if not found:
        return content
    match = found[rng.integers(len(found))]
    choices = (
        b"-1", b"0", b"1e999", b"NaN", b"null", b"true", b'""', b"[]", b"{}", b"99999999999999999999",
        b"-9223372036854775809", b'"\\u0000"', b'"../../../etc/passwd"', b"[" * 5000, b'{"a":' * 3000,
    )  # fmt: skip
    return content[: match.start()] + choices[rng.integers(len(choices))] + content[match.end() :]


# What is read


def picture(size: tuple[int, int] = (24, 32), channels: int = 3) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 255, (*size, channels), np.uint8)
    values[6:18, 8:24] //= 4
    return values


def make_images(folder: Path) -> None:
    import tifffile
    from PIL import Image

    colour = picture()
    for suffix in ("png", "jpg", "bmp"):
        Image.fromarray(colour).save(folder / f"a.{suffix}")
    tifffile.imwrite(folder / "b.tif", colour, compression="zlib")
    tifffile.imwrite(folder / "c.tif", colour[..., :1].transpose(2, 0, 1).astype(np.float32))
    np.save(folder / "d.npy", colour)


def read_images(folder: Path, rng: np.random.Generator | None) -> None:
    from spwnet.images import open_images

    one_by_one(sorted(folder.iterdir()), lambda path: list(open_images(path)))


def one_by_one(paths: list[Path], read: Callable[[Path], Any]) -> None:
    """Read every file; refused if one is."""
    refused: SpwnetError | None = None
    for path in paths:
        try:
            read(path)
        except SpwnetError as error:
            refused = error
    if refused is not None:
        raise refused


def make_video(folder: Path) -> None:
    import av

    with av.open(str(folder / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for _ in range(5):
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture(), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def read_video(folder: Path, rng: np.random.Generator | None) -> None:
    from spwnet.errors import InputError
    from spwnet.images import open_images

    source = open_images(folder / "a.mp4")
    for k in range(min(len(source), 20)):
        with suppress(InputError):
            source[k]


def volume_values() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (6, 8, 10), np.uint8)


def make_tiff(folder: Path) -> None:
    import tifffile

    values = volume_values()
    tifffile.imwrite(folder / "pages.tif", values, photometric="minisblack")
    tifffile.imwrite(folder / "imagej.tif", values, imagej=True, metadata={"axes": "ZYX", "spacing": 2.0, "unit": "um"})
    tifffile.imwrite(
        folder / "ome.ome.tif", values, ome=True, photometric="minisblack", compression="zlib",
        metadata={"axes": "ZYX", "PhysicalSizeX": 1.0, "PhysicalSizeZ": 2.0},
    )  # fmt: skip
    tifffile.imwrite(folder / "big.tif", values, bigtiff=True, tile=(16, 16), photometric="minisblack")


def read_whole_volume(path: Path) -> None:
    from spwnet.volumes import open_volume

    volume = open_volume(path)
    if np.prod(volume.shape, dtype=float) * volume.channels < 1e7:
        volume.read((slice(None),) * 3)
    else:
        volume.read((slice(0, 1), slice(0, 8), slice(0, 8)))


def read_volumes(folder: Path, rng: np.random.Generator | None) -> None:
    one_by_one(sorted(folder.iterdir()), read_whole_volume)


def make_hdf5(folder: Path) -> None:
    import h5py

    with h5py.File(folder / "a.h5", "w") as file:
        file.attrs["default"] = "entry"
        entry = file.create_group("entry")
        entry.attrs.update({"NX_class": "NXentry", "default": "data"})
        data = entry.create_group("data")
        data.attrs.update({"NX_class": "NXdata", "signal": "data", "axes": ["z", "y", "x"]})
        data.create_dataset("data", data=volume_values(), chunks=(3, 8, 10), compression="gzip")
        data["z"] = np.arange(6) * 2.0
        file["again"] = h5py.SoftLink("/entry")
        entry["up"] = h5py.SoftLink("/")


def make_zarr(folder: Path) -> None:
    import zarr

    zarr.save_array(str(folder / "a.zarr"), volume_values(), zarr_format=3)
    zarr.save_array(str(folder / "b.zarr"), volume_values(), zarr_format=2)
    group = zarr.open_group(str(folder / "c.zarr"), mode="w")
    group.create_array("0", data=volume_values(), chunks=(4, 4, 4))
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    scale = [{"type": "scale", "scale": [2.0, 1.0, 1.0]}]
    levels = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}


def make_run(folder: Path) -> None:
    settings = spwnet.make_settings(
        overrides={
            "images.scale": 1.0, "model": {"classes": 4, "ch_mul": 4, "n_blocks": 2}, "training.epochs": 1,
            "training.batches": 1, "codebook.finest": 4, "superpixels.size": 16.0,
        }
    )  # fmt: skip
    spwnet.train([picture()], folder / "run", settings=settings)
    from spwnet.runs import Run

    run = Run(folder / "run")
    run.save_classes(run.class_map(run.load()).merge([0, 1], name="ground"))
    (folder / "run" / "checkpoint.safetensors").unlink()
    shutil.rmtree(folder / "run" / "previews")


def read_run(folder: Path, rng: np.random.Generator | None) -> None:
    from spwnet.gallery import read_gallery
    from spwnet.runs import Run

    run = Run(folder / "run")
    model = run.load()
    run.read_history()
    read_gallery(run.gallery)
    classes = run.class_map(model)
    spwnet.segment(model, [picture()], classes=classes)
    run.undo_classes()


def make_settings_files(folder: Path) -> None:
    (folder / "settings.toml").write_text(
        'version = 1\nseed = 3\n[images]\nscale = "1/3"\nmargin = 2\n[patches]\nsides = [32, 64]\n'
        "[superpixels]\nsize = 20.0\n[losses]\ncut = 0.5\npatches = 0.1\n[labels]\nclasses = 8\nmerge = [[0, 1]]\n"
        "reassign = [{source = 1, smaller_than = 9, to = 0}]\n"
    )
    (folder / "classes.toml").write_text(
        'version = 1\nfinest = 4\n[[classes]]\nid = 0\nname = "ground"\nmembers = [0, 1]\ncolour = "#0072b2"\n'
        '[[classes]]\nid = 2\nname = "sky"\nmembers = [2, 3]\nsmooth = 1.5\nremove_to = 0\n'
    )


def read_settings(folder: Path, rng: np.random.Generator | None) -> None:
    from spwnet.naming import read_classes
    from spwnet.presets import make_settings

    files = {"settings.toml": lambda path: make_settings("default", path), "classes.toml": read_classes}
    one_by_one([folder / name for name in files], lambda path: files[path.name](path))


TARGETS: dict[str, tuple[Callable[[Path], None], Callable[[Path, np.random.Generator | None], None]]] = {
    "images": (make_images, read_images),
    "video": (make_video, read_video),
    "tiff": (make_tiff, read_volumes),
    "hdf5": (make_hdf5, read_volumes),
    "zarr": (make_zarr, read_volumes),
    "run": (make_run, read_run),
    "settings": (make_settings_files, read_settings),
}
NEEDED = {"video": "av", "hdf5": "h5py", "zarr": "zarr"}
"""Packages that readers need and an installation may lack."""


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
