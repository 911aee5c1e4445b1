from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spwnet import storage
from spwnet.errors import OutputError
from tests.conftest import failing, files_in, posix


def files(folder):
    return sorted(path.name for path in folder.iterdir())


class TestPrepareFolder:
    def test_creates_parents_and_leaves_nothing_in_it(self, tmp_path):
        folder = storage.prepare_folder(str(tmp_path / "a" / "b"))
        assert folder == tmp_path / "a" / "b"
        assert files(folder) == []
        assert storage.prepare_folder(folder) == folder

    def test_non_empty_is_refused(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("ten years of work")
        with pytest.raises(OutputError, match=r"holds something already.*`overwrite=True` / `--overwrite`"):
            storage.prepare_folder(tmp_path)

    @pytest.mark.parametrize("option", ["overwrite", "resume"])
    def test_nothing_is_ever_deleted(self, tmp_path, option):
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "thesis.txt").write_text("ten years of work")
        storage.prepare_folder(tmp_path, **{option: True})
        assert files(tmp_path) == ["sub"]
        assert (tmp_path / "sub" / "thesis.txt").read_text() == "ten years of work"

    def test_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match=r"write .*file, but there is a file of this name; choose another path"):
            storage.prepare_folder(tmp_path / "file")

    def test_a_check_leaves_what_others_made_meanwhile(self, tmp_path, monkeypatch):
        original = storage.prepare_folder

        def prepare(folder, **options):
            (tmp_path / "new" / "b").mkdir(parents=True)
            return original(folder, **options)

        monkeypatch.setattr(storage, "prepare_folder", prepare)
        storage.check_folder(tmp_path / "new" / "a")
        assert files(tmp_path / "new") == ["b"]

    def test_below_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="a part of this path is a file"):
            storage.prepare_folder(tmp_path / "file" / "sub")

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            (errno.EACCES, "permission denied; choose another folder or change its permissions"),
            (errno.EROFS, "the file system is read-only"),
            (errno.EIO, "Input/output error; choose another path"),
        ],
    )
    def test_unwritable(self, tmp_path, monkeypatch, code, message):
        monkeypatch.setattr(Path, "touch", failing(code))
        with pytest.raises(OutputError, match=message):
            storage.prepare_folder(tmp_path)


class TestAtomicWrite:
    @given(data=st.binary(max_size=2000))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_round_trip_and_replace(self, tmp_path, data):
        storage.atomic_write(str(tmp_path / "x"), data)
        assert (tmp_path / "x").read_bytes() == data
        assert files(tmp_path) == ["x"]

    @pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
    def test_permissions_are_those_of_any_new_file(self, tmp_path):
        (tmp_path / "plain").touch()
        storage.atomic_write(tmp_path / "x", b"")
        assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode

    @pytest.mark.parametrize(
        ("owner", "name", "code", "message"),
        [
            (os, "fsync", errno.ENOSPC, "write .*x, but the disk is full; free some space or choose another folder"),
            (os, "fsync", errno.EDQUOT, "the disk quota is used up"),
            (Path, "open", errno.EACCES, "write .*x, but permission denied"),
            (Path, "replace", errno.EPERM, "write .*x, but permission denied"),
        ],
    )
    def test_failure_keeps_what_was_there(self, tmp_path, monkeypatch, owner, name, code, message):
        (tmp_path / "x").write_bytes(b"before")
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing(code))
            with pytest.raises(OutputError, match=message):
                storage.atomic_write(tmp_path / "x", b"after")
        assert files(tmp_path) == ["x"]
        assert (tmp_path / "x").read_bytes() == b"before"

    def test_interruption_leaves_no_temporary(self, tmp_path, monkeypatch):
        def interrupt(_):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            storage.atomic_write(tmp_path / "x", b"")
        assert files(tmp_path) == []

    def test_missing_folder(self, tmp_path):
        with pytest.raises(OutputError, match="there is no such folder; create it first"):
            storage.atomic_write(tmp_path / "no" / "x", b"")

    def test_folder_of_this_name(self, tmp_path):
        (tmp_path / "x").mkdir()
        with pytest.raises(OutputError, match="there is a folder of this name"):
            storage.atomic_write(tmp_path / "x", b"")
        assert files(tmp_path) == ["x"]


class TestJson:
    def test_readable_and_in_order(self, tmp_path):
        storage.write_json(tmp_path / "x.json", {"b": [1, 0.1], "a": "Käfer"})
        text = (tmp_path / "x.json").read_text(encoding="utf-8")
        assert text == '{\n  "b": [\n    1,\n    0.1\n  ],\n  "a": "Käfer"\n}\n'

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_not_finite(self, tmp_path, bad):
        with pytest.raises(OutputError, match=r"finite numbers for x\.json"):
            storage.write_json(tmp_path / "x.json", {"loss": bad})
        with pytest.raises(OutputError, match=r"finite numbers for x\.jsonl"):
            storage.append_line(tmp_path / "x.jsonl", {"loss": bad})
        assert files(tmp_path) == []

    def test_lines(self, tmp_path):
        log = tmp_path / "log.jsonl"
        records = [{"step": 1, "loss": 0.5}, {"step": 2, "note": "Käfer\nzwei"}]
        for record in records:
            storage.append_line(log, record)
        assert [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] == records

    def test_lines_that_are_nested_too_deeply(self, tmp_path):
        log = tmp_path / "log.jsonl"
        log.write_text('{"a": ' * 5000 + "\n{}\n")
        with pytest.raises(OutputError, match="line 1 is none: it is nested too deeply"):
            storage.read_lines(log)

    def test_names_that_are_no_utf8(self, tmp_path):
        name = os.fsdecode(b"\xffscan")
        storage.write_json(tmp_path / "x.json", {"origin": name})
        storage.append_line(tmp_path / "log.jsonl", {"origin": name})
        assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"origin": name}
        assert storage.read_lines(tmp_path / "log.jsonl") == [{"origin": name}]

    def test_a_last_line_without_its_end(self, tmp_path):
        log = tmp_path / "log.jsonl"
        log.write_bytes(b'{"a": 1}\n{"a": 2}')
        assert storage.read_lines(log) == [{"a": 1}, {"a": 2}]
        storage.append_line(log, {"a": 3})
        assert storage.read_lines(log) == [{"a": 1}, {"a": 2}, {"a": 3}]
        with log.open("ab") as file:
            file.write(b'{"a": ')
        assert storage.read_lines(log) == [{"a": 1}, {"a": 2}, {"a": 3}]
        assert log.read_bytes().endswith(b'{"a": 3}\n')

    def test_a_line_of_which_the_disk_takes_a_part_at_a_time(self, tmp_path, monkeypatch):
        class Piecewise:
            def __init__(self, file):
                self.file = file

            def __enter__(self):
                return self

            def __exit__(self, *error):
                self.file.close()

            def write(self, data):
                return self.file.write(data[:3])

        original = Path.open
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", lambda path, *args, **options: Piecewise(original(path, *args, **options)))
            storage.append_line(tmp_path / "log.jsonl", {"step": 1})
        assert (tmp_path / "log.jsonl").read_bytes() == b'{"step": 1}\n'

    def test_lines_below_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="a part of this path is a file"):
            storage.append_line(tmp_path / "file" / "log.jsonl", {})


HOLDER = """
import sys, time
from spwnet.storage import claimed
with claimed(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_job(tmp_path):
    folder = tmp_path / "new" / "out"
    with storage.claimed(folder):
        with (
            pytest.raises(
                OutputError, match=rf"for this job alone, but another one writes to it \(process {os.getpid()}"
            ),
            storage.claimed(folder),
        ):
            pass
        storage.prepare_folder(folder)  # the lock alone is nothing that could be lost
        with storage.claimed(tmp_path / "new" / "other"):
            (folder / "kept.txt").write_text("x")
    assert files_in(tmp_path) == ["new/out/kept.txt"]
    assert not (tmp_path / "new" / "other").exists()
    with storage.claimed(folder):
        pass


def test_a_folder_is_free_when_its_job_is_killed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(OutputError, match=f"process {process.pid} on"), storage.claimed(tmp_path):
        pass
    process.kill()
    process.communicate()
    assert files_in(tmp_path) == [storage.LOCK]
    with storage.claimed(tmp_path):
        pass
    assert files_in(tmp_path) == []


def test_what_a_killed_job_was_writing_is_removed_by_the_next(tmp_path):
    for folder in (".", "labels", "run", "labels/deep"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / ".spwnet-0123.tmp").write_text("half")
    (tmp_path / "labels" / "a.png").write_text("whole")
    with storage.claimed(tmp_path / "run"):
        (tmp_path / "run" / ".spwnet-4567.tmp").write_text("half of another job")
        with storage.claimed(tmp_path):
            pass
        assert (tmp_path / "run" / ".spwnet-4567.tmp").exists()
    assert files_in(tmp_path) == ["labels/a.png", "labels/deep/.spwnet-0123.tmp", "run/.spwnet-4567.tmp"]


def test_a_lock_that_was_removed_keeps_nobody_out(tmp_path, monkeypatch):
    """Between opening the file and locking it, its owner may end and remove it."""
    original, gone = storage._lock, []

    def lock(file):
        if not gone:
            gone.append(1)
            (tmp_path / storage.LOCK).unlink()
        return original(file)

    monkeypatch.setattr(storage, "_lock", lock)
    with storage.claimed(tmp_path), pytest.raises(OutputError, match="for this job alone"), storage.claimed(tmp_path):
        pass
    assert gone


def test_a_lock_that_goes_while_it_is_looked_at(tmp_path, monkeypatch):
    original, gone = os.fstat, []

    def fstat(handle):
        if not gone:
            gone.append(1)
            (tmp_path / storage.LOCK).unlink()
        return original(handle)

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "fstat", fstat)
        with storage.claimed(tmp_path):
            assert files(tmp_path) == [storage.LOCK]
    assert gone


def test_a_full_disk_when_a_folder_is_to_be_held(tmp_path, monkeypatch):
    original = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda path, *args, **options: Full(original(path, *args, **options)))
    with pytest.raises(OutputError, match="the disk is full"), storage.claimed(tmp_path):
        pass
    assert files(tmp_path) == []


@posix
def test_where_nothing_can_be_locked_it_is_said(tmp_path, monkeypatch, caplog):
    import fcntl

    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
    with storage.claimed(tmp_path):
        pass
    assert "cannot be locked" in caplog.text


def test_folders_that_functions_write_are_held(tmp_path):
    @storage.claiming("output")
    def work(output=None, *, twice=False):
        if twice:
            work(output)
        return output

    assert work() is None
    assert work(tmp_path / "a") == tmp_path / "a"
    assert not (tmp_path / "a").exists()
    with pytest.raises(OutputError, match="for this job alone"):
        work(output=tmp_path / "a", twice=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="expected to write"):
        work(tmp_path / "file")
