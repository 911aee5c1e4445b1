"""Folders held by one job, and files and folders that are either written whole or not at all."""

from __future__ import annotations

import errno
import inspect
import json
import logging
import os
import platform
import shutil
import sys
from contextlib import contextmanager, nullcontext, suppress
from functools import wraps
from pathlib import Path
from time import sleep
from typing import IO, TYPE_CHECKING, Any, ParamSpec, TypeVar
from uuid import uuid4

from spwnet.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)

LOCK = ".spwnet.lock"
"""File that is there while a job writes to a folder."""

_REMEDIES = {
    errno.EACCES: "permission denied; choose another folder or change its permissions",
    errno.EPERM: "permission denied; choose another folder or change its permissions",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.ENOENT: "there is no such folder; create it first",
    errno.ENOTDIR: "a part of this path is a file; choose another path",
    errno.EEXIST: "there is a file of this name; choose another path",
    errno.EISDIR: "there is a folder of this name; choose another path",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


def prepare_folder(folder: str | Path, *, overwrite: bool = False, resume: bool = False) -> Path:
    """Make sure that a folder exists, may be written to, and holds nothing that would be lost.

    Parameters
    ----------
    folder : path
        Created with its parents if it is missing.
    overwrite : bool
        Accept a folder that holds something: files of the same names will be replaced, nothing else is touched.
    resume : bool
        Accept a folder that holds something, because work in it continues.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    OutputError
        If the folder holds something and neither `overwrite` nor `resume` is given, or cannot be created or written.
    """
    path = Path(folder)
    with readable_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        if not (overwrite or resume) and any(entry.name != LOCK for entry in path.iterdir()):
            raise OutputError(
                f"expected an empty or new folder for the results, but {path} holds something already; choose another "
                "one, or pass `overwrite=True` / `--overwrite` to replace files of the same names"
            )
        probe = _temporary(path)
        probe.touch()
        probe.unlink()
    return path


def check_folder(folder: str | Path, *, overwrite: bool = False, resume: bool = False) -> None:
    """Check what `prepare_folder` checks, and leave nothing behind: no folder for work that is then refused.

    Raises
    ------
    OutputError
        As `prepare_folder`, or if both `overwrite` and `resume` are given.
    """
    if overwrite and resume:
        raise OutputError("expected either overwrite or resume, but got both; drop one")
    path = Path(folder)
    missing = [part for part in (path, *path.parents) if not os.path.lexists(part)]
    try:
        prepare_folder(path, overwrite=overwrite, resume=resume)
    finally:
        for part in missing:
            # Another job may have made something there meanwhile.
            with suppress(OSError):
                part.rmdir()


@contextmanager
def claimed(folder: str | Path) -> Iterator[None]:
    """Hold a folder for one job; it is free again when the job ends, in whatever way.

    Parameters
    ----------
    folder : path
        Created with its parents if it is missing, and removed again if the job leaves it empty.

    Raises
    ------
    OutputError
        If another job holds it, in this process or another one, or it cannot be written.
    """
    path = Path(folder)
    missing = [part for part in (path, *path.parents) if not os.path.lexists(part)]
    with readable_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(path):
            _remove_leftovers(path)
            yield
    finally:
        for part in missing:
            with suppress(OSError):
                part.rmdir()


def _remove_leftovers(folder: Path) -> None:
    """Remove what a job that was killed was about to write, also one level down, but where another job is at work."""
    with suppress(OSError):
        places = [entry for entry in folder.iterdir() if entry.is_dir() and not (entry / LOCK).exists()]
        for left in (left for place in (folder, *places) for left in place.glob(".spwnet-*.tmp")):
            left.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = folder / LOCK
    while True:
        with readable_errors(folder):
            file = lock.open("a+b")
        if not _lock(file):
            file.seek(0)
            holder = file.read(200).decode(errors="replace")
            file.close()
            raise OutputError(
                f"expected {folder} for this job alone, but another one writes to it (process {holder}); wait for its "
                "end, or choose another folder"
            )
        # Removed by one that just ended, it would keep nobody out.
        try:
            same = os.path.samestat(os.fstat(file.fileno()), lock.stat())
        except FileNotFoundError:
            same = False
        if same:
            break
        file.close()
    try:
        with readable_errors(folder):
            file.truncate(0)
            file.write(f"{os.getpid()} on {platform.node()}".encode())
            file.flush()
        yield
    finally:
        with suppress(OSError):
            lock.unlink()
        file.close()


def _lock(file: IO[bytes]) -> bool:
    """Lock a file until it is closed or the process ends; return whether nobody else has."""
    try:
        if sys.platform == "win32":
            import msvcrt

            # Beyond the end, where nothing is read or written.
            file.seek(1 << 20)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        logger.warning("%s cannot be locked (%s): do not write to this folder from two jobs", file.name, error.strerror)
    return True


def claiming(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function hold the folder that is its argument `name` while it works, if it is given one."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            folder = signature.bind(*args, **kwargs).arguments.get(name)
            with nullcontext() if folder is None else claimed(folder):
                return function(*args, **kwargs)

        return call

    return decorate


def atomic_write(path: str | Path, data: bytes) -> None:
    """Write a file such that its name never stands for half of it.

    Parameters
    ----------
    path : path
        File to write, in a folder that exists; replaced if there is one.
    data : bytes
        All it shall hold.

    Raises
    ------
    OutputError
        If it cannot be written; what was there before is still there then.
    """
    path = Path(path)
    temporary = _temporary(path.parent)
    with readable_errors(path):
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: str | Path, value: object) -> None:
    """Write JSON for people to read: UTF-8, indented, keys in the order given.

    Raises
    ------
    OutputError
        If `value` holds NaN or infinity, for which JSON has no form, or the file cannot be written.
    """
    atomic_write(path, _json(value, Path(path), indent=2))


def append_line(path: str | Path, record: Mapping[str, object]) -> None:
    """Append a record to a JSON-lines log, in one write.

    Raises
    ------
    OutputError
        If `record` holds NaN or infinity, for which JSON has no form, or the file cannot be written.
    """
    path = Path(path)
    left = memoryview(_json(dict(record), path))
    with readable_errors(path), path.open("ab", buffering=0) as file:
        # A disk that is nearly full takes a part, and tells of the error with the rest.
        while left:
            left = left[file.write(left) :]


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Read what `append_line` wrote; a last line that a crash left half-written is cut off the file.

    Raises
    ------
    OutputError
        If another line cannot be read.
    """
    path = Path(path)
    if not path.exists():
        return []
    records: list[dict[str, Any]] = []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            records.append(dict(parse_json(line)))
        except (ValueError, TypeError) as error:
            if number < len(lines):
                raise OutputError(
                    f"expected one record in each line of {path}, but line {number} is none: {error}; use `--overwrite`"
                ) from error
            lines = lines[:-1]
            atomic_write(path, b"".join(lines))
    if lines and not lines[-1].endswith(b"\n"):
        # Whole but for its end: the next record would go on in the same line.
        atomic_write(path, b"".join([*lines, b"\n"]))
    return records


def parse_json(text: str | bytes) -> Any:
    """Read JSON that may come from strangers.

    Raises
    ------
    ValueError
        If it is none, or nested deeper than can be read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _temporary(folder: Path) -> Path:
    return folder / f".spwnet-{uuid4().hex}.tmp"


@contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a path into an error for people."""
    try:
        yield
    except OSError as error:
        reason = _REMEDIES.get(error.errno or 0, f"{error.strerror or error}; choose another path")
        raise OutputError(f"expected to write {path}, but {reason}") from error


def _json(value: object, path: Path, indent: int | None = None) -> bytes:
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise OutputError(
            f"expected finite numbers for {path.name}, but: {error}; leave out what is not one"
        ) from error
    # Names of files need be no UTF-8: Python's replacement for such bytes, written out, is JSON's own escape of it.
    return text.encode("utf-8", "backslashreplace")


def check_space(path: str | Path, n_bytes: int) -> None:
    """Check that a file of some size finds room where it is to be.

    Parameters
    ----------
    path : path
        File or folder to write, which need not exist.
    n_bytes : int
        Bytes it takes.

    Raises
    ------
    OutputError
        If less is free on its disk.
    """
    folder = next(part for part in (Path(path).absolute(), *Path(path).absolute().parents) if part.exists())
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise OutputError(
            f"expected {n_bytes / 2**30:,.2f} GiB of free space for {path}, but there are {free / 2**30:,.2f} GiB; "
            "free some or choose another disk"
        )


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a name for a file or folder to be made, which takes the place of another when it is whole.

    Parameters
    ----------
    path : path
        What is to be replaced, if there is anything: a folder gives way to a folder, a file to a file.

    Yields
    ------
    Path
        ``.NAME.tmp`` beside it, where nothing is. It is removed if an error comes, and brought to the disk, then
        renamed, otherwise.

    Raises
    ------
    OutputError
        If a folder stands where a file is to be or the other way round, or the operating system refuses; what was
        there before is still there then.
    """
    path = Path(path)
    temporary, old = working_name(path), path.with_name(f".{path.name}.old")
    with readable_errors(path):
        _delete(temporary)
        if os.path.lexists(old) and not os.path.lexists(path):
            # The process ended between the two renamings below.
            old.rename(path)
        try:
            yield temporary
            _flush(temporary)
            if path.exists() and path.is_dir() != temporary.is_dir():
                code = errno.EISDIR if path.is_dir() else errno.EEXIST
                raise OSError(code, os.strerror(code), str(path))
            if path.is_dir():
                _delete(old)
                path.rename(old)
                try:
                    temporary.rename(path)
                except BaseException:
                    old.rename(path)
                    raise
            else:
                temporary.replace(path)
            _delete(old)
        except BaseException:
            # What failed matters more than what is left; threads of Zarr may go on writing there for a moment.
            for _ in range(10):
                folder = temporary.is_dir()
                with suppress(OSError):
                    _delete(temporary)
                if not folder:
                    break
                sleep(0.1)
            raise


def working_name(path: Path) -> Path:
    """Return the name of a file or folder while it is written."""
    return path.with_name(f".{path.name}.tmp")


def _delete(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Bring a file, or all the files in a folder, to the disk: a rename may outlive what was written before it."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("r+b") as handle:
                os.fsync(handle.fileno())
