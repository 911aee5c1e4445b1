"""Where the network runs, and in which arithmetic."""

from __future__ import annotations

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from spwnet.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


def pick_device(name: str = "auto") -> torch.device:
    """Return the device to compute on: "auto" takes a CUDA GPU, then an Apple GPU, then the CPU.

    Raises
    ------
    SettingsError
        If the device is unknown or this machine does not have it.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:  # by backend and version
        have = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
        raise SettingsError(
            f"expected a device of this machine ({', '.join(have)}), but got {name!r}, which cannot be used: "
            f"{str(error).partition(chr(10))[0]}; leave it at 'auto'"
        ) from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise SettingsError(f"expected the device 'auto', 'cpu', 'cuda' or 'mps', but got {name!r}")
    return device


def available_memory() -> float:
    """Return how many bytes of memory can be had: those free, within the limit of a container; infinity if unknown."""
    found = math.inf
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = next(1024 * float(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        if limit != "max":
            found = min(found, float(limit) - float(used) + _idle_cache(group / "memory.stat"))
    except (OSError, ValueError, StopIteration):
        # Not Linux, or without control groups: what is there in all is the least that is known.
        if found == math.inf and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            found = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return found


def _idle_cache(stat: Path) -> float:
    """Bytes of files kept in memory that a container counts as used, but gives up where memory is needed."""
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return 0.0
    return sum(float(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def convolution_type(precision: str, device: torch.device) -> torch.dtype:
    """Return the arithmetic of the convolutions: bfloat16 if asked for, or on "auto" where it is fast."""
    if precision == "auto":
        fast = (device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)) or (
            device.type == "cpu"
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
            and torch.ops.mkldnn._is_mkldnn_bf16_supported()
            and _cpu_has_bfloat16()
        )
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def _cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself; older torch cannot tell, and then it is not used."""
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(asked is not None and asked())


def memory_format(ndim: int) -> torch.memory_format:
    """Channels-last, for images of `ndim` spatial dimensions: convolutions are faster on it."""
    return torch.channels_last if ndim == 2 else torch.channels_last_3d


def training_format(ndim: int, dtype: torch.dtype, device: torch.device) -> torch.memory_format:
    """Memory format to train in: a CPU's float32 gradients of weights are slow channels-last."""
    plain = device.type == "cpu" and dtype == torch.float32
    return torch.contiguous_format if plain else memory_format(ndim)


def to_tensor(image: NDArray[np.float32], device: torch.device) -> torch.Tensor:
    """(*spatial, C) array → (1, C, *spatial) tensor, channels last in memory."""
    tensor = torch.from_numpy(np.moveaxis(image, -1, 0)[None].copy())
    return tensor.to(device, memory_format=memory_format(image.ndim - 1))


@contextmanager
def arithmetic(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Run convolutions in `dtype`; everything that is not a convolution stays in float32."""
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        yield


@contextmanager
def worker_pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Share this process's threads of torch among so many workers; what waits when the block ends is not begun."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(max(1, threads // workers),))
    # The threads of NumPy's matrix products would wait for each other by spinning.
    limits = threadpool_limits(1, user_api="blas")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        limits.restore_original_limits()
        torch.set_num_threads(threads)


_lock = threading.Lock()
_depth = 0
_before: tuple[int, bool, bool] = (0, True, False)


@contextmanager
def deterministic() -> Iterator[None]:
    """Make one seed give one result: on GPUs some sums otherwise depend on the order of threads.

    The switches are the process's: the first to enter sets them, the last to leave sets them back.
    """
    global _depth, _before
    with _lock:
        if _depth == 0:
            memory: Any = torch.utils.deterministic
            _before = (
                torch.get_deterministic_debug_mode(),
                memory.fill_uninitialized_memory,
                torch.backends.cudnn.benchmark,
            )
            # Not by `use_deterministic_algorithms`: that imports the compiler, for two seconds.
            torch.set_deterministic_debug_mode("warn")
            # Filling memory that is written next takes a fifth of the time.
            memory.fill_uninitialized_memory = False
            torch.backends.cudnn.benchmark = False
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                torch.set_deterministic_debug_mode(_before[0])
                memory = torch.utils.deterministic
                memory.fill_uninitialized_memory = _before[1]
                torch.backends.cudnn.benchmark = _before[2]
