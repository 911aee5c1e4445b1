from __future__ import annotations

import sys

import numpy as np
import pytest

from spwnet.errors import InputError, OutputError
from spwnet.packages import optional_package


def test_a_package_that_is_there():
    assert optional_package("numpy", "to count", "core", InputError) is np


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError) as error:
        optional_package("h5py", "to read HDF5", "hdf5", InputError)
    assert str(error.value) == (
        "expected the package h5py to read HDF5, but it is not installed; install it by `pip install 'spwnet[hdf5]'`"
    )


def test_a_package_that_cannot_be_imported_says_why(monkeypatch, tmp_path):
    (tmp_path / "broken_package.py").write_text("raise ImportError('no libbroken.so')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OutputError, match=r"but: no libbroken\.so; install .*'`, or write TIFF \(\.tif\)$"):
        optional_package("broken_package", "to write", "hdf5", OutputError, otherwise="write TIFF (.tif)")
