from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import zlib
from threading import Thread, current_thread

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spwnet import blockstore
from spwnet.blockstore import BlockStore
from spwnet.errors import OutputError
from tests.conftest import blocks_of, failing, files_in, label_volume, posix

pytestmark = pytest.mark.usefixtures("_no_waiting_for_the_disk")


def in_pieces(data, count):
    """Compress in so many pieces and one more, each of which makes the whole longer."""
    packer, step = zlib.compressobj(), len(data) // (count + 1) + 1
    pieces = [packer.compress(data[k : k + step]) + packer.flush(zlib.Z_FULL_FLUSH) for k in range(0, len(data), step)]
    return b"".join([*pieces, packer.flush()])


class TestBlockStore:
    shape = (9, 11, 13)

    def store(self, folder, key="job", size=(4, 5, 6), dtype="uint16"):
        return BlockStore(folder, blocks_of(self.shape, size), dtype, key)

    def filled(self, folder):
        store = self.store(folder)
        volume = label_volume(self.shape, "uint16", 60_000)
        for k, region in enumerate(store.regions):
            store.write(k, volume[region])
        return store, volume

    def test_blocks_come_back_in_any_process(self, tmp_path):
        store, volume = self.filled(tmp_path)
        again = self.store(tmp_path)
        assert again.missing() == []
        assert again.shape == self.shape
        for k, region in enumerate(store.regions):
            np.testing.assert_array_equal(again.read(k), volume[region])
        assert again.n_bytes() == sum(path.stat().st_size for path in (tmp_path / "blocks").glob("*.block"))

    @given(
        shape=st.tuples(*[st.integers(1, 9)] * 3),
        size=st.tuples(*[st.integers(1, 9)] * 3),
        dtype=st.sampled_from(["uint8", "uint16", "uint32"]),
        bounds=st.tuples(st.integers(0, 9), st.integers(0, 12)),
    )
    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_slab_is_that_of_the_volume(self, tmp_path, shape, size, dtype, bounds):
        volume = label_volume(shape, dtype, 200)
        store = BlockStore(tmp_path, blocks_of(shape, size), dtype, "job")
        for k, region in enumerate(store.regions):
            store.write(k, volume[region])
        slab = store.slab(slice(*bounds))
        assert slab.dtype == volume.dtype
        np.testing.assert_array_equal(slab, volume[slice(*bounds)])
        store.remove()

    def test_missing_ones_are_named(self, tmp_path):
        store = self.store(tmp_path)
        store.write(2, np.zeros((4, 5, 1), int))
        assert store.missing() == [k for k in range(len(store.regions)) if k != 2]
        with pytest.raises(OutputError, match=r"expected block 0 in .*, but it is not done; resume"):
            store.slab(slice(0, 1))
        with pytest.raises(OutputError, match=r"block 1 .* not done"):
            store.read(1)

    @pytest.mark.parametrize("cut", [0, 5, 40, 300, -1])
    def test_a_damaged_one_is_removed_and_made_again(self, tmp_path, cut):
        store, volume = self.filled(tmp_path)
        path = tmp_path / "blocks" / "00003.block"
        path.write_bytes(path.read_bytes()[:cut])
        assert not store.is_done(3)
        assert not path.exists()
        assert self.store(tmp_path).missing() == [3]
        store.write(3, volume[store.regions[3]])
        np.testing.assert_array_equal(store.slab(slice(None)), volume)

    def test_a_flipped_bit_is_noticed(self, tmp_path):
        store, _ = self.filled(tmp_path)
        path = tmp_path / "blocks" / "00000.block"
        data = bytearray(path.read_bytes())
        data[-9] ^= 4
        path.write_bytes(data)
        with pytest.raises(OutputError, match=r"block 0 .* not done"):
            self.store(tmp_path).slab(slice(0, 2))
        assert store.missing() == [0]

    def test_a_crash_leaves_no_half_block(self, tmp_path, monkeypatch):
        store = self.store(tmp_path)
        monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
        with pytest.raises(OutputError, match=r"the disk is full; free some space"):
            store.write(0, np.zeros((4, 5, 6), int))
        assert files_in(tmp_path) == ["blocks/job.json"]

    @posix
    def test_a_killed_writer_leaves_no_half_block(self, tmp_path):
        code = (
            "import os, sys; import numpy as np; from spwnet.blockstore import BlockStore\n"
            "store = BlockStore(sys.argv[1], [(slice(0, 2), slice(0, 3), slice(0, 4))], 'uint8', 'job')\n"
            "os.fsync = lambda handle: os.kill(os.getpid(), 9)\n"
            "store.write(0, np.zeros((2, 3, 4), int))"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
        assert done.returncode == -9
        assert len(list((tmp_path / "blocks").iterdir())) == 2
        store = BlockStore(tmp_path, [(slice(0, 2), slice(0, 3), slice(0, 4))], "uint8", "job")
        assert store.missing() == [0]
        store.remove()
        assert list(tmp_path.iterdir()) == []

    def test_another_job_is_refused(self, tmp_path):
        self.filled(tmp_path)
        for other in ({"key": "other"}, {"size": (9, 11, 13)}, {"dtype": "uint8"}):
            with pytest.raises(OutputError, match=r"of another job; write to another folder, or use `--overwrite`"):
                self.store(tmp_path, **other)
        BlockStore.remove_any(tmp_path)
        assert self.store(tmp_path, key="other").missing() == list(range(len(blocks_of(self.shape, (4, 5, 6)))))

    def test_a_damaged_one_that_was_replaced_meanwhile_stays(self, tmp_path):
        store, volume = self.filled(tmp_path)
        path = tmp_path / "blocks" / "00003.block"
        path.write_bytes(path.read_bytes()[:-1])
        with path.open("rb") as file:
            self.store(tmp_path).write(3, volume[store.regions[3]])
            assert store._header(3, file) is None
        assert store.missing() == []

    @pytest.mark.parametrize("content", [b"{", b"\xff\xfe{"])
    def test_an_unreadable_job_is_another_one(self, tmp_path, content):
        self.filled(tmp_path)
        (tmp_path / "blocks" / "job.json").write_bytes(content)
        with pytest.raises(OutputError, match="another job"):
            self.store(tmp_path)

    def test_a_block_of_another_job_is_missing(self, tmp_path):
        self.filled(tmp_path / "one")
        store = self.store(tmp_path / "two", key="other")
        shutil.copy(tmp_path / "one/blocks/00001.block", tmp_path / "two/blocks")
        assert 1 in store.missing()
        with pytest.raises(OutputError, match=r"block 1 .* not done"):
            store.read(1)

    def test_many_writers_of_the_same_blocks(self, tmp_path, monkeypatch):
        volume = label_volume(self.shape, "uint16", 60_000)
        # Each writer's blocks are of another length.
        monkeypatch.setattr(blockstore.zlib, "compress", lambda data, _: in_pieces(data, int(current_thread().name)))
        errors = []

        def work(number):
            try:
                store = self.store(tmp_path)
                for k in np.random.default_rng(number).permutation(len(store.regions)).tolist():
                    store.write(k, volume[store.regions[k]])
                    np.testing.assert_array_equal(store.read(k), volume[store.regions[k]])
            except Exception as error:  # whatever it is, the test tells
                errors.append(error)

        threads = [Thread(target=work, args=(number,), name=str(number)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        np.testing.assert_array_equal(self.store(tmp_path).slab(slice(None)), volume)

    def test_a_late_writer_does_no_harm(self, tmp_path, monkeypatch):
        store, volume = self.filled(tmp_path)
        assert store.missing() == []
        path = tmp_path / "blocks" / "00000.block"
        before = path.stat().st_size
        # Of another length, so that whoever remembers where slices are would read nonsense.
        monkeypatch.setattr(blockstore.zlib, "compress", lambda data, _: in_pieces(data, 3))
        self.store(tmp_path).write(0, volume[store.regions[0]])
        assert path.stat().st_size != before
        np.testing.assert_array_equal(store.slab(slice(None)), volume)

    def test_remove_leaves_what_is_not_its_own(self, tmp_path):
        store, _ = self.filled(tmp_path)
        (tmp_path / "blocks" / "thesis.txt").write_text("ten years of work")
        store.remove()
        assert files_in(tmp_path) == ["blocks/thesis.txt"]
        store.remove_any(tmp_path / "nowhere")

    def test_labels_that_do_not_fit(self, tmp_path):
        store = self.store(tmp_path)
        with pytest.raises(
            OutputError, match=r"integers of shape \(4, 5, 6\) for block 0, but got int64 of shape \(4,"
        ):
            store.write(0, np.zeros((4, 5, 5), int))
        with pytest.raises(OutputError, match=r"integers .* but got float64"):
            store.write(0, np.zeros((4, 5, 6)))
        with pytest.raises(OutputError, match="class ids 0 to 65535 in uint16 for block 0, but got 0 to 70000"):
            store.write(0, np.full((4, 5, 6), 70_000) * (np.arange(6) > 0))

    def test_regions_with_gaps(self, tmp_path):
        with pytest.raises(OutputError, match="regions that fill a volume"):
            BlockStore(tmp_path, blocks_of(self.shape, (4, 5, 6))[1:], "uint8", "job")
        with pytest.raises(
            OutputError, match="expected a type for labels, one of uint8, uint16, uint32, but got float32"
        ):
            BlockStore(tmp_path, blocks_of(self.shape, (4, 5, 6)), "float32", "job")
