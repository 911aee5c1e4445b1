"""Time and memory of each stage of a frame, how both grow with its size, and the least time that convolutions take."""

from __future__ import annotations

import copy
import multiprocessing
import resource
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks import regions
from spwnet import outputs
from spwnet.classes import clean, palette
from spwnet.codebook import fit_codebook
from spwnet.config import Settings
from spwnet.descriptors import network_input
from spwnet.devices import arithmetic, convolution_type, memory_format
from spwnet.filters import interpolated
from spwnet.graph import build_graph
from spwnet.images import open_images
from spwnet.patches import make_schedule
from spwnet.prediction import describe, oversegment
from spwnet.preparation import display, measure, prepare, restore
from spwnet.presets import make_settings
from spwnet.steadying import steady
from spwnet.trained import evidence_kinds, make_network
from spwnet.training import set_up_image, step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spwnet.model import WNet

INPUT = (1080, 1920)
SCALE = 0.3257
"""Working size over input size: 1080×1920 pixels become 352×625, as by default."""
GROWTH = (8, 4, 2, 1)
"""Sides of `INPUT` over those of each size: four times the pixels from one to the next."""
PUBLISHED_SLIC_ITERATIONS = 10
CPU = torch.device("cpu")
CLASSES = 32
BEFORE_FILTERS = 3 + 3
"""Channels of what the network takes that are no filters: those of the image, and its colour in CIELAB."""
SQUARE = 2048
"""Side of the matrices by whose product the arithmetic rate is measured."""
PREDICTION_CELLS = (176, 313)
PUBLISHED_SIZE = (352, 624)
TRAINING_IMAGES = 4
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
BACKWARD = 3
"""Operations of forward and backward over those of forward alone: gradients of inputs and of weights cost as much."""
MIB = 2**20


class Stage(NamedTuple):
    """A stage of the work on one frame; `plain` returns the seconds of the plain way, if there is one."""

    name: str
    ours: Callable[[], Any]
    plain: Callable[[], float] | None = None


def in_child(function: Callable[..., Any], *arguments: Any, limit: float | None = None) -> Any:
    """Call a function of this package in a process of its own, so that peak memory is its own; None if it takes longer.

    `limit` is in seconds. An error there is an error here.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(there, function, arguments))
    process.start()
    there.close()
    try:
        if not here.poll(limit):
            return None
        answer = here.recv()
        process.join()
    except EOFError:
        raise SystemExit(f"{function.__name__} ended without an answer: it may have run out of memory") from None
    finally:
        process.kill()
        process.join()
        here.close()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _answer(pipe: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        answer = function(*arguments)
    except Exception as error:
        answer = error
    pipe.send(answer)


def peak_bytes() -> int:
    """Peak resident memory of this process since it began, or since `forget_peak`."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not by getrusage alone: in a child it counts the parent that it was forked from.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak() -> int | None:
    """Begin to measure the peak anew, and return the memory resident now; None where Linux does not do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return peak_bytes()


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth blobs with noise, RGB, 8 bit: as `regions.texture`, of any size, its blobs growing with it."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    blobs = np.stack([gaussian_filter(rng.standard_normal((height, width)), height / 30) for _ in range(3)], axis=-1)
    image = blobs / np.abs(blobs).max() * 0.4 + 0.5 + rng.normal(0, 0.02, blobs.shape)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def frame_stages(folder: Path, size: tuple[int, int], *, plainly: bool = True) -> tuple[list[Stage], dict[str, int]]:
    """Set up the stages of one frame of `size` pixels, each on what the one before gave, and say how large it is."""
    from skimage import color, segmentation, transform

    path = folder / "frame.png"
    Image.fromarray(texture(*size)).save(path)
    settings = make_settings(overrides={"images.scale": SCALE, "labels.classes": CLASSES})
    source = open_images(path)
    normalisation = measure([source[0]], settings.images)
    network = make_network(settings, 3)
    predicting = as_predicted(network)
    dtype = convolution_type(settings.training.precision, CPU)

    def read() -> Any:
        prepared = prepare(source[0], settings.images, normalisation)
        return prepared, (prepared.colour, prepared.smooth)

    prepared, (colour, smooth) = read()
    superpixels = oversegment(prepared, settings.superpixels)
    graph = build_graph(superpixels, prepared.unit)
    pixels = network_input(prepared, CPU, settings.model)
    network.scale_evidence([pixels])
    predicting.scale_evidence([pixels])
    height, width = prepared.unit.shape[:2]
    reduction = settings.model.reduction
    nodes = graph.labels.numpy().astype(np.int32).reshape(height, width)

    def classify() -> torch.Tensor:
        with torch.inference_mode(), arithmetic(CPU, dtype):
            return predicting.classify(pixels)[0]

    learned = classify()
    filters = pixels[0, BEFORE_FILTERS:]

    def pool() -> np.ndarray:
        parts = ((learned, reduction), (colour, 1), (filters, reduction))
        return np.concatenate([graph.average(maps, factor) for maps, factor in parts], axis=1)

    descriptors = describe(predicting, prepared, graph, settings, CPU)
    codebook = fit_codebook([descriptors], evidence_kinds(settings, 3), settings.codebook.finest)
    labels = settings.labels

    def assign(before: Any) -> Any:
        seen = smooth.movedim(0, -1).contiguous().numpy()
        return steady(before, seen, nodes, codebook.energies(descriptors))[1]

    before = assign(None)
    classes = clean(before.classes, labels)
    wide = restore(classes, prepared.frame)
    picture = display(source[0], normalisation)
    table = palette(max(codebook.finest, CLASSES))
    drawn = outputs.overlay(picture, wide, table)

    def write() -> None:
        outputs.write_labels(folder / "labels.png", wide, len(table))
        outputs.write_picture(folder / "overlay.jpg", drawn)

    def plain_read() -> Any:
        channels = np.moveaxis(np.asarray(Image.open(path)) / 255.0, -1, 0)
        return color.rgb2lab(np.stack([transform.rescale(c, SCALE, anti_aliasing=True) for c in channels], axis=-1))

    def plain_slic() -> Any:
        return segmentation.slic(
            prepared.unit.astype(np.float64), n_segments=superpixels.count, compactness=10, sigma=1,
            max_num_iter=PUBLISHED_SLIC_ITERATIONS,
        )  # fmt: skip

    plain = network.eval()
    rows = pixels.contiguous()

    def plain_forward() -> Any:
        return plain(rows)

    def plain_pool() -> float:
        return loop_pooling(interpolated(learned, reduction, (height, width)), graph.labels.view(height, width))

    stages = [
        Stage("reading, rescaling, CIELAB", read, lambda: regions.best(plain_read)),
        Stage("superpixels", lambda: oversegment(prepared, settings.superpixels), lambda: regions.best(plain_slic)),
        Stage(
            "graph",
            lambda: build_graph(superpixels, prepared.unit),
            lambda: regions.loop_graph(superpixels.labels, prepared.unit, superpixels.count),
        ),
        Stage("evidence", lambda: network_input(prepared, CPU, settings.model)),
        Stage("network", classify, lambda: regions.best(plain_forward)),
        Stage("pooling", pool, plain_pool),
        Stage("energies and agreement", lambda: assign(before)),
        Stage("restoring", lambda: restore(clean(before.classes, labels), prepared.frame)),
        Stage("overlay", lambda: outputs.overlay(display(source[0], normalisation), wide, table)),
        Stage("writing", write),
    ]
    if not plainly:
        stages = [stage._replace(plain=None) for stage in stages]
    return stages, {"height": height, "width": width, "superpixels": superpixels.count}


def as_predicted(network: WNet) -> WNet:
    """Return a copy of the network as it labels images: in evaluation mode, channels last."""
    return copy.deepcopy(network).eval().to(memory_format=memory_format(2))


@torch.inference_mode()
def loop_pooling(features: torch.Tensor, labels: torch.Tensor) -> float:
    """Mask each superpixel, average, write its label back. Returns seconds for all superpixels."""
    count = int(labels.max()) + 1
    some = max(1, int(count * regions.LOOP_SHARE))
    out = torch.zeros_like(labels)
    start = time.perf_counter()
    for i in range(some):
        mask = labels == i
        out[mask] = features[:, mask].mean(1).argmax()
    return (time.perf_counter() - start) * count / some


def measure_stages(size: tuple[int, int], detailed: bool) -> dict[str, Any]:
    """Seconds of each stage in this process; detailed: memory on top, and seconds of the plain way, too."""
    before = peak_bytes()
    found: list[tuple[str, float, int | None, float | None]] = []
    with TemporaryDirectory() as scratch:
        stages, shape = frame_stages(Path(scratch), size, plainly=detailed)
        for stage in stages:
            seconds = regions.best(stage.ours)
            resident = forget_peak() if detailed else None
            result = stage.ours()
            extra = None if resident is None else peak_bytes() - resident
            del result
            found.append((stage.name, seconds, extra, None if stage.plain is None else stage.plain()))
    return {**shape, "stages": found, "before": before, "peak": peak_bytes(), "threads": torch.get_num_threads()}


def stages(size: tuple[int, int] = INPUT) -> None:
    """Print time and memory of each stage of one frame, over the plain ways."""
    found = in_child(measure_stages, size, True)
    print(
        f"one frame of {size[0]}×{size[1]} pixels, {found['height']}×{found['width']} working pixels, "
        f"{found['superpixels']} superpixels, {found['threads']} threads\n"
    )
    print("| stage | s | share | memory on top, MiB | plain way, s | ratio |")
    print("| --- " * 6 + "|")
    total = sum(seconds for _, seconds, _, _ in found["stages"])
    for name, seconds, extra, plain in found["stages"]:
        memory = "–" if extra is None else f"{extra / MIB:.0f}"
        against = "– | –" if plain is None else f"{plain:.3f} | {plain / seconds:.1f}"
        print(f"| {name} | {seconds:.4f} | {seconds / total:.0%} | {memory} | {against} |")
    print(f"| all | {total:.4f} | 100% | | | |")
    print(
        "\nThe plain ways: each channel rescaled as a whole in double precision; SLIC of "
        f"{PUBLISHED_SLIC_ITERATIONS} iterations; a dilation for each superpixel; encoder and decoder, channels "
        "first, with gradients; a mask for each superpixel. "
        f"Loops ran on {regions.LOOP_SHARE:.0%} of the superpixels; their time is scaled up."
    )


def growth(sizes: tuple[tuple[int, int], ...] = tuple((INPUT[0] // k, INPUT[1] // k) for k in GROWTH)) -> None:
    """Print how time and memory of each stage grow with the size of the frame."""
    found = [in_child(measure_stages, size, False) for size in sizes]
    names = [f"{one['height']}×{one['width']}" for one in found]
    pixels = [one["height"] * one["width"] for one in found]
    print(f"working size of one frame, {found[0]['threads']} threads; each size in a process of its own\n")
    print(f"| stage | {' | '.join(f'{name}, s' for name in names)} | {' | '.join(f'{n}, ns a pixel' for n in names)} |")
    print("| --- " * (1 + 2 * len(names)) + "|")
    table = {row[0]: [one["stages"][k][1] for one in found] for k, row in enumerate(found[0]["stages"])}
    table["all"] = [sum(column) for column in zip(*table.values(), strict=True)]
    for name, seconds in table.items():
        each = [f"{1e9 * s / n:.0f}" for s, n in zip(seconds, pixels, strict=True)]
        print(f"| {name} | {' | '.join(f'{s:.4f}' for s in seconds)} | {' | '.join(each)} |")
    print(f"\n| | {' | '.join(names)} |")
    print("| --- " * (1 + len(names)) + "|")
    print(f"| peak memory, MiB | {' | '.join(format(one['peak'] / MIB, '.0f') for one in found)} |")
    print(f"| of it before the frame | {' | '.join(format(one['before'] / MIB, '.0f') for one in found)} |")
    print(f"| superpixels | {' | '.join(str(one['superpixels']) for one in found)} |")
    print("\nThe peak includes what sets the stages up: a codebook is fitted to the frame.")


@contextmanager
def counted(network: nn.Module) -> Iterator[list[int]]:
    """Gather the floating-point operations of each convolution's forward pass: twice the products added up."""
    operations: list[int] = []

    def count(module: Any, inputs: Any, output: torch.Tensor) -> None:
        # A transposed convolution takes each pixel of its input to a kernel's worth of its output.
        places = inputs[0] if isinstance(module, TRANSPOSED) else output
        other = module.out_channels if isinstance(module, TRANSPOSED) else module.in_channels
        operations.append(2 * places.numel() * (other // module.groups) * int(np.prod(module.kernel_size)))

    kinds = CONVOLUTIONS + TRANSPOSED
    hooks = [module.register_forward_hook(count) for module in network.modules() if isinstance(module, kinds)]
    try:
        yield operations
    finally:
        for hook in hooks:
            hook.remove()


def rate(dtype: torch.dtype = torch.float32, side: int = SQUARE) -> float:
    """Floating-point operations a second of a matrix product, with the threads that torch has now."""
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    with torch.inference_mode():
        return 2 * side**3 / regions.best(lambda: a @ b)


@contextmanager
def profiled() -> Iterator[Callable[[], float]]:
    """Give a function that returns, afterwards, the seconds spent in the kernels of convolutions."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        yield lambda: convolution_seconds(profiler)


def convolution_seconds(profiler: Any) -> float:
    """Add up the own time of all kernels of convolutions, forward and backward."""
    events = profiler.key_averages()
    return (
        sum(e.self_cpu_time_total for e in events if e.key.startswith(("aten::", "mkldnn::")) and "conv" in e.key) / 1e6
    )


FLOOR_HEAD = (
    "| work | GFLOP | GFLOP/s of a matrix product | floor, s | convolutions, s | convolutions over floor |\n"
    + ("| --- " * 6 + "|")
)


def floor_row(name: str, operations: float, per_second: float, seconds: float | None) -> str:
    least = operations / per_second
    measured = "– | –" if seconds is None else f"{seconds:.3f} | {seconds / least:.2f}"
    return f"| {name} | {operations / 1e9:.2f} | {per_second / 1e9:.1f} | {least:.3f} | {measured} |"


def prediction_floor(cells: tuple[int, int], settings: Settings) -> tuple[int, float]:
    """Operations and seconds of the convolutions of one prediction."""
    network = as_predicted(make_network(settings, 3))
    channels = next(m for m in network.modules() if isinstance(m, CONVOLUTIONS)).in_channels
    pixels = torch.randn(1, channels, *cells).contiguous(memory_format=memory_format(2))
    dtype = convolution_type(settings.training.precision, CPU)
    with torch.inference_mode(), arithmetic(CPU, dtype):
        with counted(network) as operations:
            network.classify(pixels)
        return sum(operations), least(lambda: network.classify(pixels))


def step_floor(size: tuple[int, int], settings: Settings) -> tuple[int, float]:
    """Operations and seconds of the convolutions of one step of training on images of `size` working pixels."""
    rng = np.random.default_rng(0)
    batch = []
    for seed in range(TRAINING_IMAGES):
        image = open_images([texture(*size, seed)])[0]
        prepared = prepare(image, settings.images, measure([image], settings.images))
        superpixels = oversegment(prepared, settings.superpixels)
        pixels = network_input(prepared, CPU, settings.model)
        target = rng.integers(settings.model.classes, size=superpixels.count)
        graph = build_graph(superpixels, prepared.unit)
        batch.append(set_up_image(pixels, prepared, graph, settings, target))
    network = make_network(settings, 3).to(memory_format=memory_format(2))
    network.scale_evidence([image.pixels for image in batch])
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.training.learning_rate)
    dtype = convolution_type(settings.training.precision, CPU)
    with counted(network) as operations:
        step(network, optimiser, batch, settings, rng, dtype)
    return BACKWARD * sum(operations), least(lambda: step(network, optimiser, batch, settings, rng, dtype))


def least(function: Callable[[], Any]) -> float:
    """Seconds of the convolutions of a function, the least of a few times."""
    times = []
    for _ in range(regions.REPEATS):
        with profiled() as seconds:
            function()
        times.append(seconds())
    return min(times)


@torch.no_grad()
def published_operations(settings: Settings, size: tuple[int, int], images: int) -> int:
    """Operations of the convolutions of one step with a preset that sees whole images, counted without doing them."""
    with torch.device("meta"):
        network = make_network(settings, 3).train()
    with counted(network) as operations:
        network(torch.empty(1, 3, *size, device="meta"))
        for height, width, count in make_schedule(settings.patches):
            network(torch.empty(count, 3, height, width, device="meta"))
    return BACKWARD * images * sum(operations)


def floor(cells: tuple[int, int] = PREDICTION_CELLS, size: tuple[int, int] = PUBLISHED_SIZE) -> None:
    """Print the operations of the convolutions over the rate of a matrix product, and how far from that they are."""
    default, published = Settings(), make_settings("published-cheetah")
    dtype = convolution_type(default.training.precision, CPU)
    per_second = rate(dtype)
    crop = default.patches.crop
    print(f"{torch.get_num_threads()} threads, {str(dtype).removeprefix('torch.')}\n")
    print(FLOOR_HEAD)
    print(
        floor_row(f"prediction, {cells[0]}×{cells[1]} cells", *_in_order(prediction_floor(cells, default), per_second))
    )
    print(
        floor_row(
            f"step of training, {TRAINING_IMAGES} crops of {crop}²", *_in_order(step_floor(size, default), per_second)
        ),
        flush=True,
    )
    print(
        floor_row(
            f"step of the published preset, {TRAINING_IMAGES} images of {size[0]}×{size[1]}",
            published_operations(published, size, TRAINING_IMAGES),
            rate(),
            None,
        )
    )
    print("\nForward and backward count as three times forward. The published step is measured by `step`.")


def _in_order(found: tuple[int, float], per_second: float) -> tuple[int, float, float]:
    return found[0], per_second, found[1]
