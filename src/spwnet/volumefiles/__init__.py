"""Volumes as files hold them: a reader for each format, which opens without reading voxels."""

from __future__ import annotations

from spwnet.volumefiles.arrays import open_array
from spwnet.volumefiles.hdf5 import describe_hdf5, open_hdf5
from spwnet.volumefiles.paths import choose_reader, find_slices, is_series, names_volume, refuse_options
from spwnet.volumefiles.stored import Stored, arrange, guess_axes, readable
from spwnet.volumefiles.tiff import open_slices

__all__ = [
    "Stored",
    "arrange",
    "choose_reader",
    "describe_hdf5",
    "find_slices",
    "guess_axes",
    "is_series",
    "names_volume",
    "open_array",
    "open_hdf5",
    "open_slices",
    "readable",
    "refuse_options",
]
