"""Volumes: every format, order of axes and spacing, every region, and every way in which a file can be wrong."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import os
import pickle
import re
import sys
import tempfile
import threading
from pathlib import Path

import dask.array
import h5py
import mrcfile
import nibabel
import numpy as np
import PIL.Image
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from spwnet.errors import InputError
from spwnet.images import open_images
from spwnet.sources import ImageSource
from spwnet.volumefiles import hdf5
from spwnet.volumes import SliceSource, Volume, is_volume, join_channels, open_volume
from tests.conftest import noise, posix

DTYPES = ["uint8", "int16", "uint16", "int32", "float32", "float64"]


def whole(volume):
    return volume.read((slice(None), slice(None), slice(None)))


def turned(array, axes):
    """The array, which is (z, y, x, C), in another order of axes."""
    array = array.transpose(["ZYXC".index(axis) for axis in axes if axis in "ZYXC"] + [3] * ("C" not in axes))
    return np.ascontiguousarray(array if "C" in axes else array[..., 0])


# Round trips of every format


def write_zarr(path, array, version, **attributes):
    group = zarr.open_group(path, mode="w", zarr_format=version, attributes=attributes)
    chunks = tuple((n + 1) // 2 for n in array.shape)
    group.create_array(
        "0",
        data=array,
        chunks=chunks,
        chunk_key_encoding={"name": "default", "separator": "/"} if version == 3 else None,
    )


def multiscales(axes, scale, unit="micrometer", paths=("0",), **more):
    kinds = {"c": "channel", "t": "time"}
    return {
        "axes": [
            {"name": a, "type": kinds[a]} if a in kinds else {"name": a, "type": "space", "unit": unit} for a in axes
        ],
        "datasets": [
            {"path": path, "coordinateTransformations": [{"type": "scale", "scale": [s * 2**k for s in scale]}]}
            for k, path in enumerate(paths)
        ],
        **more,
    }


def save_hdf5(folder, array, axes):
    with h5py.File(folder / "v.h5", "w") as file:
        chunks = tuple((n + 1) // 2 for n in array.shape)
        file.create_dataset("group/data", data=array, chunks=chunks, compression="gzip")
    return {"entry": folder / "v.h5", "axes": axes}


def save_big_endian_hdf5(folder, array, axes):
    with h5py.File(folder / "v.h5", "w") as file:
        file["data"] = array.astype(array.dtype.newbyteorder(">"))
    return {"entry": f"{folder}/v.h5:/data", "axes": axes}


def save_zarr2(folder, array, axes):
    write_zarr(folder / "v.zarr", array.astype(array.dtype.newbyteorder(">")), 2)
    return {"entry": folder / "v.zarr", "axes": axes}


def save_zarr3(folder, array, axes):
    write_zarr(folder / "v.zarr", array, 3)
    return {"entry": f"{folder}/v.zarr/0", "axes": axes}


def save_zarr_zip(folder, array, axes):
    with zarr.storage.ZipStore(folder / "v.zarr.zip", mode="w") as store:
        zarr.create_array(store, data=array)
    return {"entry": folder / "v.zarr.zip", "axes": axes}


def save_ome_zarr4(folder, array, axes):
    scale = [{"Z": 3.0, "Y": 2.0, "X": 1.0}.get(axis, 1.0) for axis in axes]
    write_zarr(folder / "v.ome.zarr", array, 2, multiscales=[multiscales(axes.lower(), scale)])
    return {"entry": folder / "v.ome.zarr"}


def save_ome_zarr5(folder, array, axes):
    scale = [{"Z": 3.0, "Y": 2.0, "X": 1.0}.get(axis, 1.0) for axis in axes]
    write_zarr(folder / "v.zarr", array, 3, ome={"version": "0.5", "multiscales": [multiscales(axes.lower(), scale)]})
    return {"entry": folder / "v.zarr" / "0"}


def save_npy(folder, array, axes):
    np.save(folder / "v.npy", np.asfortranarray(array))
    return {"entry": folder / "v.npy", "axes": axes}


def save_raw(folder, array, axes):
    dtype = array.dtype.newbyteorder(">")
    (folder / "v.raw").write_bytes(b"head" + array.astype(dtype).tobytes())
    return {"entry": folder / "v.raw", "axes": axes, "shape": array.shape, "dtype": dtype.str, "offset": 4}


def save_tiff(folder, array, axes):
    tifffile.imwrite(folder / "v.tif", array, metadata={"axes": axes}, photometric="minisblack", bigtiff=True)
    return {"entry": folder / "v.tif"}


def save_compressed_tiff(folder, array, axes):
    tifffile.imwrite(
        folder / "v.tif", array, metadata={"axes": axes}, photometric="minisblack", compression="zlib", byteorder=">"
    )
    return {"entry": folder / "v.tif"}


def save_array(folder, array, axes):
    return {"entry": array, "axes": axes}


def save_dask(folder, array, axes):
    return {"entry": dask.array.from_array(array, chunks=2), "axes": axes}


def save_nifti(folder, array, axes):
    image = nibabel.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, folder / "v.nii.gz")
    (folder / "v.nii").write_bytes(gzip.decompress((folder / "v.nii.gz").read_bytes()))
    return {"entry": folder / "v.nii"}


def save_compressed_nifti(folder, array, axes):
    save_nifti(folder, array, axes)
    return {"entry": folder / "v.nii.gz"}


def save_mrc(folder, array, axes):
    with mrcfile.new(folder / "v.rec") as file:
        file.set_data(array)
        file.set_volume()
        file.voxel_size = (1, 2, 3)
    return {"entry": folder / "v.rec"}


ORDERS = ["ZYX", "XYZ", "YZX", "ZYXC", "CZYX", "ZCYX", "XYZC"]
PAGES = ["ZYX", "ZCYX", "CZYX"]
FORMATS = [
    (save_hdf5, ORDERS, DTYPES, None),
    (save_big_endian_hdf5, ORDERS, DTYPES, None),
    (save_zarr2, ORDERS, DTYPES, None),
    (save_zarr3, ORDERS, DTYPES, None),
    (save_zarr_zip, ORDERS, DTYPES, None),
    (save_ome_zarr4, ORDERS, DTYPES, "micrometer"),
    (save_ome_zarr5, ORDERS, DTYPES, "micrometer"),
    (save_npy, ORDERS, DTYPES, None),
    (save_raw, ORDERS, DTYPES, None),
    (save_tiff, PAGES, DTYPES, None),
    (save_compressed_tiff, PAGES, DTYPES, None),
    (save_array, ORDERS, DTYPES, None),
    (save_dask, ORDERS, DTYPES, None),
    (save_nifti, ["XYZ", "XYZC"], ["uint8", "int16", "int32", "float32"], "micrometer"),
    (save_compressed_nifti, ["XYZ", "XYZC"], ["uint8", "int16", "int32", "float32"], "micrometer"),
    (save_mrc, ["ZYX"], ["int16", "uint16", "float32"], "angstrom"),
]


@st.composite
def regions(draw, shape):
    ends = [draw(st.integers(0, n).flatmap(lambda a, n=n: st.tuples(st.just(a), st.integers(a, n)))) for n in shape]
    return tuple(slice(*end) for end in ends)


@pytest.mark.parametrize(("save", "orders", "dtypes", "unit"), FORMATS, ids=lambda part: getattr(part, "__name__", ""))
@given(data=st.data())
@settings(max_examples=12)
def test_every_region_comes_back_as_it_was_saved(save, orders, dtypes, unit, data):
    axes, dtype = data.draw(st.sampled_from(orders)), data.draw(st.sampled_from(dtypes))
    shape = tuple(data.draw(st.integers(2, 7)) for _ in range(3))
    array = noise(*shape, data.draw(st.integers(2, 4)) if "C" in axes else 1, dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        volume = open_volume(**save(Path(folder), turned(array, axes), axes))
        assert (volume.shape, volume.channels, volume.dtype) == (shape, array.shape[3], np.dtype(dtype))
        assert volume.dtype.isnative
        assert volume.name == ("volume" if save in (save_array, save_dask) else "v")
        if unit:
            assert (volume.spacing, volume.unit) == ((3.0, 2.0, 1.0), unit)
        else:
            assert (volume.spacing, volume.unit) == (None, None)
        np.testing.assert_array_equal(whole(volume), array)
        region = data.draw(regions(shape))
        for copy in (volume, pickle.loads(pickle.dumps(volume))):
            part = copy.read(region)
            np.testing.assert_array_equal(part, array[region])
            assert part.dtype.isnative
            assert part.flags.c_contiguous
            assert part.flags.writeable
            assert part.flags.owndata


@pytest.mark.parametrize(
    ("shape", "given", "zyxc"),
    [((5, 20, 30), None, (5, 20, 30, 1)), ((4, 20, 30, 40), None, (20, 30, 40, 4)),
     ((20, 30, 40, 4), None, (20, 30, 40, 4)), ((4, 5, 6), "XYZ", (6, 5, 4, 1)),
     ((1, 4, 5, 6, 2), "tzyxc", (4, 5, 6, 2))],
)  # fmt: skip
def test_axes_without_names_are_told_by_their_lengths_or_given(tmp_path, shape, given, zyxc):
    np.save(tmp_path / "v.npy", np.zeros(shape, "u1"))
    volume = open_volume(tmp_path / "v.npy", axes=given)
    assert (*volume.shape, volume.channels) == zyxc


def test_an_array_of_few_slices_has_its_channels_last():
    assert open_volume(np.zeros((2, 20, 30, 3))).shape == (2, 20, 30)


def test_booleans_are_read_as_zero_and_one(tmp_path):
    array = noise(3, 4, 5) > 99
    np.save(tmp_path / "v.npy", array)
    volume = open_volume(tmp_path / "v.npy")
    assert volume.dtype == np.uint8
    np.testing.assert_array_equal(whole(volume)[..., 0], array.astype(np.uint8))


def test_regions_are_what_numpy_understands():
    array = noise(4, 5, 6)
    volume = open_volume(array)
    np.testing.assert_array_equal(volume.read((slice(-2, None), slice(1), slice(2, 99)))[..., 0], array[-2:, :1, 2:])
    assert volume.read((slice(3, 1), slice(None), slice(None))).shape == (0, 5, 6, 1)
    with pytest.raises(InputError, match="expected three slices without steps, along z, y, x, but got"):
        volume.read((slice(None, None, 2), slice(None), slice(None)))
    whole(volume)[:] = 0
    assert array.any()


def test_several_threads_read_at_once(tmp_path):
    array = noise(16, 20, 20)
    tifffile.imwrite(tmp_path / "v.tif", array, compression="zlib")
    copy = pickle.loads(pickle.dumps(open_volume(tmp_path / "v.tif")))
    bad = []

    def work(k):
        if not (copy.read((slice(k, k + 1), slice(None), slice(None)))[..., 0] == array[k]).all():
            bad.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not bad


def test_objects_of_h5py_and_zarr_are_volumes_and_can_be_pickled(tmp_path):
    array = noise(4, 5, 6)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["d"] = array
        file["d"].attrs["element_size_um"] = (3, 2, 1)
    with h5py.File(tmp_path / "a.h5") as file:
        volume = open_volume(file["d"])
        assert (volume.spacing, volume.unit, volume.name) == ((3, 2, 1), "micrometer", "a")
        copy = pickle.loads(pickle.dumps(volume))
        np.testing.assert_array_equal(whole(volume), whole(copy))
    volume = open_volume(zarr.create_array(tmp_path / "a.zarr", data=array, chunks=(2, 5, 6)))
    assert volume.chunks == (2, 5, 6)
    np.testing.assert_array_equal(whole(pickle.loads(pickle.dumps(volume)))[..., 0], array)


def test_a_volume_that_changed_since_it_was_opened_is_refused(tmp_path):
    np.save(tmp_path / "v.npy", noise(4, 5, 6))
    copy = pickle.loads(pickle.dumps(open_volume(tmp_path / "v.npy")))
    np.save(tmp_path / "v.npy", noise(5, 5, 6))
    with pytest.raises(InputError, match=r"expected shape \(4, 5, 6\) of uint8 as when.*now it is \(5, 5, 6\)"):
        whole(copy)


# Laziness


def test_only_the_chunks_of_a_region_are_read(tmp_path):
    array = noise(8, 6, 6)
    zarr.create_array(tmp_path / "v.zarr", data=array, chunks=(2, 6, 6))
    with h5py.File(tmp_path / "v.h5", "w") as file:
        data = file.create_dataset("d", data=array, chunks=(2, 6, 6), compression="gzip")
        place = data.id.get_chunk_info(3).byte_offset
    (tmp_path / "v.zarr/c/3/0/0").write_bytes(b"junk")
    with (tmp_path / "v.h5").open("r+b") as file:
        file.seek(place)
        file.write(b"junk")
    for path in (tmp_path / "v.zarr", tmp_path / "v.h5"):
        volume = open_volume(path)
        assert volume.chunks == (2, 6, 6)
        np.testing.assert_array_equal(volume.read((slice(1, 6), slice(None), slice(None)))[..., 0], array[1:6])
        with pytest.raises(
            InputError, match=rf"{path.name}.*expected to read chunk \(3, 0, 0\) of shape \(2, 6, 6\), but:"
        ):
            whole(volume)


def test_only_the_pages_of_a_region_are_read(tmp_path):
    array = noise(5, 40, 40)
    tifffile.imwrite(tmp_path / "v.tif", array, compression="zlib")
    with tifffile.TiffFile(tmp_path / "v.tif") as tiff:
        place = tiff.pages[3].dataoffsets[0]
    with (tmp_path / "v.tif").open("r+b") as file:
        file.seek(place)
        file.write(bytes(50))
    volume = open_volume(tmp_path / "v.tif")
    assert volume.chunks == (1, 40, 40)
    np.testing.assert_array_equal(volume.read((slice(0, 3), slice(3, 9), slice(None)))[..., 0], array[:3, 3:9])
    with pytest.raises(InputError, match=r"v\.tif.*expected to decode the page at Z 3, but:"):
        whole(volume)


def test_a_volume_larger_than_memory_opens_and_gives_a_slice(tmp_path):
    shape = (2**14, 2**14, 2**13)
    zarr.create_array(tmp_path / "v.zarr", shape=shape, chunks=(64, 64, 64), dtype="u2", fill_value=7)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("d", shape, "u2", chunks=(64, 64, 64), fillvalue=7)
    with (tmp_path / "v.raw").open("wb") as file:
        file.truncate(2**40)
    for path, value, options in [
        ("v.zarr", 7, {}), ("v.h5", 7, {}), ("v.raw", 0, {"shape": (2**14, 2**13, 2**13), "dtype": "u1"}),
    ]:  # fmt: skip
        volume = open_volume(tmp_path / path, **options)
        assert (volume.read((slice(9, 10), slice(5, 8), slice(4, 7))) == value).all()


# TIFF


def test_spacing_of_tiff_comes_from_imagej_and_ome(tmp_path):
    array = noise(3, 2, 6, 5, dtype="uint16")
    tifffile.imwrite(
        tmp_path / "a.tif", array, imagej=True, resolution=(4, 2),
        metadata={"axes": "ZCYX", "spacing": 3.0, "unit": "micron"},
    )  # fmt: skip
    sizes = {"PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5, "PhysicalSizeZ": 3}
    tifffile.imwrite(tmp_path / "b.ome.tif", array, metadata={"axes": "ZCYX", **sizes})
    a, b = open_volume(tmp_path / "a.tif"), open_volume(tmp_path / "b.ome.tif")
    assert (a.spacing, a.unit) == ((3.0, 0.5, 0.25), "micrometer")
    assert b.spacing == pytest.approx((3000, 500, 250))
    assert (b.unit, b.name) == ("nanometer", "b")
    for volume in (a, b):
        assert (volume.shape, volume.channels) == ((3, 6, 5), 2)
        np.testing.assert_array_equal(whole(volume), array.transpose(0, 2, 3, 1))


def test_an_ome_tiff_of_several_files_is_read_whole_or_not_at_all(tmp_path):
    array = noise(4, 6, 7)
    parts = "".join(
        f'<TiffData FirstZ="{z}" IFD="{z % 2}" PlaneCount="1"><UUID FileName="{z // 2}.ome.tif">'
        f"urn:uuid:{z // 2}</UUID></TiffData>"
        for z in range(4)
    )
    for k in range(2):
        text = (
            f'<OME UUID="urn:uuid:{k}" xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
            '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="7" SizeY="6" SizeZ="4" SizeC="1" '
            f'SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>{parts}</Pixels></Image></OME>'
        )
        with tifffile.TiffWriter(tmp_path / f"{k}.ome.tif") as writer:
            for z in range(2):
                writer.write(array[2 * k + z], description=text if z == 0 else None, metadata=None)
    volume = open_volume(tmp_path / "0.ome.tif")
    np.testing.assert_array_equal(whole(volume)[..., 0], array)
    (tmp_path / "1.ome.tif").unlink()
    with pytest.raises(InputError, match="the other files of this OME-TIFF, but 2 pages are missing; copy them beside"):
        open_volume(tmp_path / "0.ome.tif")


def test_a_stack_of_imagej_that_goes_upwards_has_its_spacing(tmp_path):
    metadata = {"axes": "ZYX", "spacing": -2.0, "unit": "um"}
    tifffile.imwrite(tmp_path / "a.tif", noise(3, 6, 5), imagej=True, resolution=(4, 2), metadata=metadata)
    assert open_volume(tmp_path / "a.tif").spacing == (2.0, 0.5, 0.25)


@pytest.mark.parametrize("unit", ["pixel", None])
def test_imagej_without_calibration_has_no_spacing(tmp_path, unit):
    tifffile.imwrite(
        tmp_path / "a.tif", noise(3, 6, 5), imagej=True, metadata={"axes": "ZYX", **({"unit": unit} if unit else {})}
    )
    assert open_volume(tmp_path / "a.tif").spacing is None


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_pages_without_names_are_slices_however_narrow(tmp_path, compression):
    array = noise(40, 20, 3)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for page in array:
            writer.write(page, metadata=None, compression=compression)
    np.testing.assert_array_equal(whole(open_volume(tmp_path / "a.tif"))[..., 0], array)
    tifffile.imwrite(tmp_path / "b.tif", array, compression=compression, photometric="minisblack")
    np.testing.assert_array_equal(whole(open_volume(tmp_path / "b.tif"))[..., 0], array)


def test_a_page_of_several_slices_is_read_as_one(tmp_path):
    array = noise(20, 32, 32)
    tifffile.imwrite(tmp_path / "a.tif", array, volumetric=True, tile=(16, 16, 16), compression="zlib")
    volume = open_volume(tmp_path / "a.tif")
    assert volume.chunks == (20, 32, 32)
    np.testing.assert_array_equal(volume.read((slice(3, 19), slice(5, 9), slice(7)))[..., 0], array[3:19, 5:9, :7])


def test_compression_without_its_package_names_that(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", noise(3, 9, 9), photometric="minisblack", compression="zlib")
    volume = open_volume(tmp_path / "a.tif")

    def asarray(page):
        raise ValueError("requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", asarray)
    with pytest.raises(
        InputError, match=r"page at Z 0, but: requires the .* install that by `pip install 'spwnet\[tiff\]'`"
    ):
        whole(volume)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_colours_of_pages_are_channels_and_alpha_is_left_out(tmp_path, compression, caplog):
    array = noise(3, 8, 9, 4)
    for stem, pixels in (("rgb", array[..., :3]), ("rgba", array)):
        extra = {"extrasamples": ["unassalpha"]} if stem == "rgba" else {}
        tifffile.imwrite(
            tmp_path / f"{stem}.tif",
            pixels,
            photometric="rgb",
            compression=compression,
            metadata={"axes": "ZYXS"},
            **extra,
        )
        volume = open_volume(tmp_path / f"{stem}.tif")
        assert volume.rgb
        np.testing.assert_array_equal(whole(volume), array[..., :3])
    assert "the alpha channel of" in caplog.text


def test_frames_in_time_are_slices_where_there_are_no_others(tmp_path, caplog):
    array = noise(4, 6, 5)
    tifffile.imwrite(tmp_path / "a.tif", array, imagej=True, metadata={"axes": "TYX"})
    with caplog.at_level(logging.INFO):
        np.testing.assert_array_equal(whole(open_volume(tmp_path / "a.tif"))[..., 0], array)
    assert "along axis T, are taken as slices along z" in caplog.text
    tifffile.imwrite(tmp_path / "b.tif", noise(2, 4, 6, 5), imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(
        InputError, match=r"b\.tif.*expected one point in time, but axis T has length 2.*TZYX.*save each"
    ):
        open_volume(tmp_path / "b.tif")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_tiff_cut_off_is_refused(tmp_path, compression):
    tifffile.imwrite(tmp_path / "a.tif", noise(5, 30, 30), compression=compression)
    whole_file = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole_file[: len(whole_file) // 2])
    with pytest.raises(InputError, match=r"a\.tif"):
        whole(open_volume(tmp_path / "a.tif"))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_alpha_is_that_of_the_axes_of_the_file(tmp_path, compression, caplog):
    array = noise(4, 20, 30, dtype="uint16")
    extra = {"photometric": "rgb", "planarconfig": "separate", "extrasamples": ["unassalpha"]}
    tifffile.imwrite(tmp_path / "a.tif", array, compression=compression, **extra)
    volume = open_volume(tmp_path / "a.tif", axes="ZYX")
    assert (volume.channels, volume.rgb) == (1, False)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume)).read((slice(0, 4),) * 3)[..., 0], array[:, :4, :4])
    assert "alpha" not in caplog.text
    tifffile.imwrite(tmp_path / "b.tif", noise(3, 8, 9, 4), photometric="rgb", metadata={"axes": "ZYXS"})
    again = open_volume(tmp_path / "b.tif", axes="XYZC")
    assert again.channels == 3
    assert whole(again).shape == (9, 8, 3, 3)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("suffix", [".tif", ".ome.tif"])
def test_one_page_is_a_volume_of_one_slice_if_the_file_says_so(tmp_path, compression, suffix):
    array = noise(1, 9, 7)
    path = tmp_path / f"a{suffix}"
    tifffile.imwrite(path, array, imagej=suffix == ".tif", metadata={"axes": "ZYX"}, compression=compression)
    volume = open_volume(path)
    np.testing.assert_array_equal(whole(volume)[..., 0], array)
    np.testing.assert_array_equal(volume.read((slice(0, 1), slice(2, 5), slice(3)))[..., 0], array[:, 2:5, :3])
    assert volume.read((slice(1, 2), slice(None), slice(None))).shape == (0, 9, 7, 1)


# Slices in files of their own


def test_slices_in_a_folder_a_pattern_or_a_list_are_a_volume(tmp_path):
    array = noise(12, 6, 7, dtype="uint16")
    for k, pixels in enumerate(array):
        tifffile.imwrite(tmp_path / f"slice_{k}.tif", pixels)
    for entry in (tmp_path, f"{tmp_path}/slice_*.tif", [tmp_path / f"slice_{k}.tif" for k in range(12)]):
        volume = open_volume(entry, spacing=2, unit="um")
        assert (volume.spacing, volume.unit) == ((2.0, 2.0, 2.0), "micrometer")
        assert (volume.name, volume.chunks) == (tmp_path.name, (1, 6, 7))
        region = slice(3, 11), slice(2, 5), slice(1, 7)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume)).read(region)[..., 0], array[region])
    back = open_volume([tmp_path / f"slice_{k}.tif" for k in (3, 1)], axes="ZYX")
    np.testing.assert_array_equal(whole(back)[..., 0], array[[3, 1]])


def test_slices_have_colours_or_channels(tmp_path):
    array = noise(3, 6, 7, 3)
    for k, pixels in enumerate(array):
        PIL.Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    volume = open_volume(tmp_path)
    assert volume.rgb
    np.testing.assert_array_equal(whole(volume), array)
    for k, pixels in enumerate(array):
        np.save(tmp_path / f"{k}.npy", pixels.transpose(2, 0, 1))
    np.testing.assert_array_equal(whole(open_volume(f"{tmp_path}/*.npy", axes="CYX")), array)


def test_one_tiff_in_a_folder_is_opened_as_it_is(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(4, 6, 7), photometric="minisblack")
    assert open_volume(tmp_path).shape == (4, 6, 7)


@pytest.mark.parametrize(
    ("other", "found"),
    [(noise(6, 8), "6×8 of 1 channel of uint8"), (noise(6, 7, dtype="uint16"), "6×7 of 1 channel of uint16"),
     (noise(6, 7, 3), "6×7 of 3 channels of uint8")],
)  # fmt: skip
def test_a_slice_unlike_the_first_is_named(tmp_path, other, found):
    for k in range(3):
        tifffile.imwrite(
            tmp_path / f"{k}.tif",
            other if k == 2 else noise(6, 7),
            photometric="rgb" if other.ndim == k + 1 == 3 else None,
        )
    volume = open_volume(tmp_path)
    volume.read((slice(0, 2), slice(None), slice(None)))
    with pytest.raises(
        InputError, match=rf"2\.tif.*like the first one, '0\.tif', 6×7 of 1 channel of uint8, but this one is {found}"
    ):
        whole(volume)


def test_lists_of_other_things_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", noise(4, 5, 6))
    (tmp_path / "a.mp4").write_bytes(b"")
    for entry, match in [
        ([], "a list of none"),
        ([noise(3, 4)], "other or mixed things; stack arrays to one"),
        ([tmp_path / "a.npy"] * 2, "expected one image in each of several entries"),
        ([tmp_path / "a.mp4"], r"expected slices as images .* but got .*a\.mp4"),
        ([tmp_path / "b.tif"], r"there is no .*b\.tif"),
    ]:
        with pytest.raises(InputError, match=match):
            open_volume(entry)


# HDF5 and NeXus


@pytest.fixture
def h5(tmp_path):
    """A file to be written; its path is ``h5.filename``."""
    with h5py.File(tmp_path / "scan.nxs", "w") as file:
        yield file


def reopened(file, **options):
    path = file.filename
    file.close()
    return open_volume(path, **options)


def nexus(file, array, **attributes):
    """NXentry with NXdata of which `data` is the signal."""
    entry = file.create_group("entry")
    entry.attrs["NX_class"] = "NXentry"
    data = entry.create_group("data")
    data.attrs["NX_class"] = "NXdata"
    for name, value in attributes.items():
        data.attrs[name] = value
    data["data"] = array
    return data


def test_the_only_volume_is_found_among_other_datasets(h5):
    h5["a/volume"] = noise(4, 5, 6)
    h5["a/dark"] = noise(5, 6)
    h5["a/angles"] = np.arange(4.0)
    h5["a/names"] = np.array([b"x", b"y"])
    h5["empty"] = h5py.Empty("f")
    h5["again"] = h5["a/volume"]
    volume = reopened(h5)
    assert volume.shape == (4, 5, 6)
    assert volume.origin.endswith("scan.nxs:/again")


def test_links_that_are_broken_or_lead_in_circles_are_passed_over(h5):
    h5["a/volume"] = noise(4, 5, 6)
    h5["a/up"] = h5["/"]
    h5["a/self"] = h5py.SoftLink("/a/self")
    h5["a/gone"] = h5py.SoftLink("/nowhere")
    h5["a/file"] = h5py.ExternalLink("nowhere.h5", "/x")
    h5["a/turn"] = h5py.ExternalLink("scan.nxs", "/a/turn")
    path = h5.filename
    assert reopened(h5).origin == f"{path}:/a/volume"
    for name in ("self", "gone", "file", "turn"):
        with pytest.raises(
            InputError, match=rf"expected the dataset /a/{name}, but: .*; there is /a/volume \(4, 5, 6\) of uint8"
        ):
            open_volume(path, dataset=f"/a/{name}")


def test_several_volumes_are_listed_and_one_can_be_named(h5):
    h5["a"], h5["b/c"], h5["d"] = noise(4, 5, 6), noise(3, 5, 6, dtype="uint16"), noise(9)
    path = h5.filename
    with pytest.raises(
        InputError,
        match=r"there are 2 of them; give one by `dataset` / `--dataset`; "
        r"there are /a \(4, 5, 6\) of uint8, /b/c \(3, 5, 6\) of uint16$",
    ):
        reopened(h5)
    for options in ({"entry": f"{path}:/b/c"}, {"entry": f"{path}::b/c"}, {"entry": path, "dataset": "b"}):
        assert open_volume(**options).shape == (3, 5, 6)
    with pytest.raises(InputError, match=r"expected the dataset /e, but: .*there are /a .*, /d \(9,\)"):
        open_volume(path, dataset="e")
    with pytest.raises(InputError, match="got '/a' in the path and 'd'"):
        open_volume(f"{path}:/a", dataset="d")
    with pytest.raises(InputError, match=r"expected a volume, of three dimensions .* the shape is \(9,\)"):
        open_volume(path, dataset="d/")


def test_an_array_of_unclear_axes_is_found_if_there_is_no_other(h5):
    h5["d"], h5["flat"] = noise(20, 2, 3, 2, 1), noise(4, 5)
    path = h5.filename
    assert reopened(h5, axes="ZYXCT").shape == (20, 2, 3)
    with pytest.raises(InputError, match=r"the shape is \(20, 2, 3, 2, 1\); name its axes by `axes`"):
        open_volume(path)


def test_no_volume_at_all_lists_what_there_is(h5):
    for k in range(12):
        h5[f"d{k:02d}"] = noise(4)
    with pytest.raises(InputError, match=r"but there is none.*/d09 \(4,\) of uint8 and 2 more"):
        reopened(h5)


@pytest.mark.parametrize("way", ["default", "entry", "signal", "legacy", "data", "NXtomoproc"])
def test_nexus_tells_which_dataset_it_is_about(h5, way):
    array = noise(4, 5, 6)
    data = nexus(h5, array)
    h5["entry/detector/raw"] = noise(7, 5, 6)
    if way == "default":
        h5.attrs["default"], h5["entry"].attrs["default"], data.attrs["signal"] = "entry", "data", "data"
        h5["entry/other"] = noise(3, 5, 6)
    elif way == "entry":
        h5["entry"].attrs["default"], data.attrs["signal"] = b"data", np.array([b"data"])
    elif way == "signal":
        data.attrs["signal"] = "volume"
        data.move("data", "volume")
    elif way == "legacy":
        data.move("data", "volume")
        data["volume"].attrs["signal"] = 1
    elif way == "NXtomoproc":
        data.attrs["NX_class"] = "NXtomoproc"
    volume = reopened(h5)
    np.testing.assert_array_equal(whole(volume)[..., 0], array)
    assert volume.origin.rpartition("/")[2] in ("data", "volume")


def test_a_default_in_circles_ends(h5):
    h5.attrs["default"] = "/"
    h5["d"] = noise(3, 4, 5)
    assert reopened(h5).shape == (3, 4, 5)


@pytest.mark.parametrize("way", ["axes", "colons", "names"])
def test_spacing_comes_from_the_axes_of_nexus(h5, way):
    data = nexus(h5, noise(4, 5, 6))
    if way == "axes":
        data.attrs["axes"] = ["x", "y", "z"]
    elif way == "colons":
        data["data"].attrs["axes"] = "x:y:z"
    lengths = {"x": 6, "y": 5, "z": 4} if way == "names" else {"x": 4, "y": 5, "z": 6}
    for axis, step in (("x", 0.5), ("y", -2.0), ("z", 3.0)):
        data[axis] = 7 + step * np.arange(lengths[axis] + (axis == "y")).astype("f4")
        data[axis].attrs["units"] = "mm" if axis == "z" else "µm"
    volume = reopened(h5)
    assert volume.spacing == pytest.approx((3000, 2, 0.5))
    assert volume.unit == "micrometer"
    assert volume.shape == ((4, 5, 6) if way == "names" else (6, 5, 4))


def test_places_that_are_not_evenly_spaced_give_no_spacing(h5):
    data = nexus(h5, noise(4, 5, 6), axes=["energy", "y", "x"])
    data["energy"], data["y"], data["x"] = [1.0, 2, 4, 8], np.arange(5), np.arange(6)
    volume = reopened(h5)
    assert (volume.shape, volume.spacing) == ((4, 5, 6), None)


def test_angles_and_pixels_are_not_of_one_unit(h5):
    data = nexus(h5, noise(4, 5, 6), axes=["rotation_angle", "y", "x"])
    for axis, step, unit, size in (("rotation_angle", 0.18, "degree", 4), ("y", 1.0, "px", 5), ("x", 1.0, "px", 6)):
        data[axis] = step * np.arange(size)
        data[axis].attrs["units"] = unit
    path = h5.filename
    assert reopened(h5).spacing is None
    with h5py.File(path, "r+") as file:
        file["entry/data/rotation_angle"].attrs["units"] = "Px "
    assert open_volume(path).spacing == pytest.approx((0.18, 1, 1))


def test_links_are_counted_before_they_are_followed(h5, monkeypatch):
    monkeypatch.setattr("spwnet.volumefiles.hdf5.MOST_NODES", 50)
    opened = []
    child = hdf5._child
    monkeypatch.setattr(hdf5, "_child", lambda group, name: opened.append(name) or child(group, name))
    h5["a"] = noise(4, 5, 6)
    for k in range(200):
        h5[f"link{k}"] = h5["a"]
    with pytest.raises(InputError, match="expected at most 50 datasets, but there are more; give one by `dataset`"):
        reopened(h5)
    assert len(opened) <= 60


def test_axistags_of_another_number_of_axes_say_nothing(h5):
    h5["data"] = noise(4, 5, 6)
    h5["data"].attrs["axistags"] = json.dumps({"axes": [{"key": key} for key in "xyzc"]})
    assert reopened(h5).shape == (4, 5, 6)


def test_ilastik_names_axes_and_spacing(h5):
    array = noise(1, 4, 5, 6, 2)
    h5["exported_data"] = array
    h5["exported_data"].attrs["axistags"] = json.dumps({"axes": [{"key": key} for key in "tzyxc"]})
    h5["exported_data"].attrs["element_size_um"] = [3.0, 2.0, 1.0]
    volume = reopened(h5)
    assert (volume.spacing, volume.unit) == ((3, 2, 1), "micrometer")
    np.testing.assert_array_equal(whole(volume), array[0])


def test_parts_in_other_files_are_read_or_missed(h5, tmp_path):
    array = noise(4, 5, 6)
    for k in range(2):
        with h5py.File(tmp_path / f"part{k}.h5", "w") as file:
            file["d"] = array[2 * k : 2 * k + 2]
    layout = h5py.VirtualLayout((4, 5, 6), "u1")
    for k in range(2):
        layout[2 * k : 2 * k + 2] = h5py.VirtualSource(f"part{k}.h5", "d", (2, 5, 6))
    h5.create_virtual_dataset("v", layout)
    h5["link"] = h5py.ExternalLink("part1.h5", "/d")
    path = h5.filename
    np.testing.assert_array_equal(whole(reopened(h5, dataset="v"))[..., 0], array)
    np.testing.assert_array_equal(whole(open_volume(path, dataset="link"))[..., 0], array[2:])
    with h5py.File(tmp_path / "part1.h5", "w"):
        pass
    with pytest.raises(InputError, match=r"expected d in part1\.h5 as a part of /v, but it is not there"):
        open_volume(path, dataset="v")
    (tmp_path / "part1.h5").unlink()
    with pytest.raises(InputError, match=r"expected the file part1\.h5 that holds a part of the virtual dataset /v"):
        open_volume(path, dataset="v")


def test_a_virtual_dataset_of_its_own_file_is_read(h5):
    array = noise(4, 5, 6)
    h5["raw/d"] = array
    layout = h5py.VirtualLayout((4, 5, 6), "u1")
    layout[:] = h5py.VirtualSource(h5["raw/d"])
    h5.create_virtual_dataset("v", layout)
    np.testing.assert_array_equal(whole(reopened(h5, dataset="v"))[..., 0], array)


def test_compression_by_a_plugin_is_read(h5):
    import hdf5plugin

    array = noise(4, 5, 6)
    h5.create_dataset("d", data=array, chunks=(2, 5, 6), **hdf5plugin.Bitshuffle())
    np.testing.assert_array_equal(whole(reopened(h5))[..., 0], array)


def test_a_filter_that_is_not_installed_is_named(h5, monkeypatch):
    h5.create_dataset("d", data=noise(4, 5, 6), compression="gzip")
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: False)
    with pytest.raises(
        InputError,
        match=r"the filter deflate \(number 1\) that compresses /d.*hdf5plugin by `pip install 'spwnet\[hdf5\]'`",
    ):
        reopened(h5)


def test_types_that_are_no_numbers_are_refused(h5):
    h5["complex"] = np.zeros((4, 5, 6), complex)
    path = h5.filename
    with pytest.raises(InputError, match="expected integers, floats or booleans, but got complex128; convert them"):
        reopened(h5, dataset="complex")
    with pytest.raises(InputError, match=r"there is none.*/complex \(4, 5, 6\) of complex128"):
        open_volume(path)


def test_a_file_that_is_not_hdf5_or_cut_off_is_refused(h5, tmp_path):
    h5["d"] = noise(40, 50, 60)
    path = Path(h5.filename)
    h5.close()
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(
        InputError, match=r"expected to read '.*scan\.nxs', but: .*truncated.*check that the file is complete"
    ):
        open_volume(path)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"scan\.nxs.*signature not found"):
        open_volume(path)


@pytest.mark.parametrize(("name", "what", "extra", "file"), [
    ("h5py", "HDF5", "hdf5", "a.h5"), ("zarr", "Zarr", "zarr", "a.zarr.zip"), ("nibabel", "NIfTI", "medical", "a.nii"),
    ("mrcfile", "MRC", "medical", "a.mrc"),
])  # fmt: skip
def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch, name, what, extra, file):
    (tmp_path / file).write_bytes(b"")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=re.escape(
        f"the package {name} to read {what}, but it is not installed; install it by `pip install 'spwnet[{extra}]'`"
    )):  # fmt: skip
        open_volume(tmp_path / file)


# Zarr


def test_levels_of_ome_zarr_have_their_spacing(tmp_path):
    path = tmp_path / "v.ome.zarr"
    scales = multiscales("tczyx", [1, 1, 3, 2, 2], "nanometer", ("s0", "s1"))
    scales["coordinateTransformations"] = [{"type": "scale", "scale": [1, 1, 10, 10, 10]}]
    group = zarr.open_group(path, mode="w", attributes={"ome": {"version": "0.5", "multiscales": [scales]}})
    fine, coarse = noise(1, 2, 4, 6, 8), noise(1, 2, 2, 3, 4)
    group.create_array("s0", data=fine)
    group.create_array("s1", data=coarse, chunks=(1, 1, 2, 3, 2))
    (path / "notes.txt").write_text("not Zarr")
    volume = open_volume(path)
    assert (volume.name, volume.spacing, volume.unit) == ("v", (30, 20, 20), "nanometer")
    np.testing.assert_array_equal(whole(volume), fine[0].transpose(1, 2, 3, 0))
    for entry, options in [(path, {"level": 1}), (path / "s1", {}), (path, {"dataset": "s1"}), (f"{path}:/s1", {})]:
        volume = open_volume(entry, **options)
        assert (volume.spacing, volume.chunks) == ((60, 40, 40), (2, 3, 2))
        assert volume.origin == f"{path}:/s1"
        np.testing.assert_array_equal(whole(pickle.loads(pickle.dumps(volume))), coarse[0].transpose(1, 2, 3, 0))
    with pytest.raises(InputError, match=r"expected a level among 0 \(1, 2, 4, 6, 8\), 1 \(1, 2, 2, 3, 4\), but got 2"):
        open_volume(path, level=2)
    with pytest.raises(InputError, match="expected a level of 0 or more, but got -1"):
        open_volume(path, level=-1)


def test_time_in_ome_zarr_is_refused(tmp_path):
    write_zarr(tmp_path / "v.zarr", noise(2, 4, 5, 6), 2, multiscales=[multiscales("tzyx", [1, 1, 1, 1])])
    with pytest.raises(InputError, match="expected one point in time, but axis T has length 2"):
        open_volume(tmp_path / "v.zarr")


def test_a_flat_ome_zarr_is_no_volume(tmp_path):
    write_zarr(tmp_path / "v.zarr", noise(2, 40, 50), 2, multiscales=[multiscales("cyx", [1, 1, 1])])
    with pytest.raises(InputError, match=r"expected a volume with axes Z, Y and X, but the shape \(2, 40, 50\) is CYX"):
        open_volume(tmp_path / "v.zarr")


def test_axes_that_the_metadata_names_wrongly_are_refused(tmp_path):
    write_zarr(tmp_path / "v.zarr", noise(2, 40, 50), 2, multiscales=[multiscales("zcyx", [1, 1, 1, 1])])
    with pytest.raises(InputError, match="expected names of the 3 axes in the metadata of OME-Zarr"):
        open_volume(tmp_path / "v.zarr")


@pytest.mark.parametrize("version", [2, 3])
def test_arrays_of_a_plain_group_are_found_or_listed(tmp_path, version):
    path = tmp_path / "v.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=version)
    group.create_array("a/volume", data=noise(4, 5, 6))
    group.create_array("flat", data=noise(4, 5))
    assert open_volume(path).origin == f"{path}:/a/volume"
    group.create_array("other", data=noise(2, 5, 6))
    with pytest.raises(
        InputError, match=r"there are 2 of them.*other \(2, 5, 6\) of uint8, a/volume \(4, 5, 6\) of uint8"
    ):
        open_volume(path)
    assert open_volume(path / "a").shape == (4, 5, 6)
    for entry, options in ((path, {"dataset": "b"}), (path / "b", {})):
        with pytest.raises(InputError, match=r"expected the array 'b', but it is not there; there are flat"):
            open_volume(entry, **options)
    with pytest.raises(InputError, match=r"expected the array 'b', but it is not there; there is / \(4, 5, 6\)"):
        open_volume(zarr.create_array(tmp_path / "array.zarr", data=noise(4, 5, 6)).store.root, dataset="b")


def test_an_array_in_a_zip_file_is_named_in_the_path(tmp_path):
    with zarr.storage.ZipStore(tmp_path / "g.zarr.zip", mode="w") as store:
        group = zarr.open_group(store, mode="w")
        for name, n in (("a", 4), ("b", 3)):
            group.create_array(name, data=noise(n, 5, 6))
    volume = open_volume(f"{tmp_path / 'g.zarr.zip'}:/a")
    assert (volume.shape, volume.origin) == ((4, 5, 6), f"{tmp_path / 'g.zarr.zip'}:/a")
    assert open_volume(volume.origin).shape == (4, 5, 6)


def test_images_of_bioformats_are_found(tmp_path):
    group = zarr.open_group(tmp_path / "v.zarr", mode="w", zarr_format=2, attributes={"bioformats2raw.layout": 3})
    image = group.create_group("0", attributes={"multiscales": [multiscales("zyx", [3, 2, 1], paths=("0", "1"))]})
    image.create_array("0", data=noise(4, 6, 8))
    image.create_array("1", data=noise(2, 3, 4))
    assert open_volume(tmp_path / "v.zarr", level=1).shape == (2, 3, 4)
    other = group.create_group("1", attributes={"multiscales": [multiscales("zyx", [3, 2, 1])]})
    other.create_array("0", data=noise(4, 6, 8))
    with pytest.raises(InputError, match=r"there are 2 of them.*0 \(OME-Zarr\), 1 \(OME-Zarr\)"):
        open_volume(tmp_path / "v.zarr")


def test_a_codec_that_is_not_installed_is_named(tmp_path):
    for version, mark in ((2, ".zarray"), (3, "zarr.json")):
        path = tmp_path / f"v{version}.zarr"
        write_zarr(path, noise(4, 5, 6), version)
        text = (path / "0" / mark).read_text().replace('"blosc"', '"zfpy"').replace('"zstd"', '"zfpy"')
        (path / "0" / mark).write_text(text)
        with pytest.raises(
            InputError, match=r"zfpy.*install the package that has this codec, for example by `pip install"
        ):
            open_volume(path)


def test_a_folder_that_only_looks_like_zarr_is_refused(tmp_path):
    (tmp_path / "v.zarr").mkdir()
    with pytest.raises(InputError, match=r"expected to read '.*v\.zarr', but: No"):
        open_volume(tmp_path / "v.zarr")


# NIfTI and MRC


def test_scaled_nifti_gives_scaled_values(tmp_path):
    image = nibabel.Nifti1Image(noise(4, 5, 6, dtype="int16"), np.eye(4))
    image.header.set_slope_inter(0.5, -10)
    nibabel.save(image, tmp_path / "v.nii.gz")
    volume = open_volume(tmp_path / "v.nii.gz")
    assert volume.dtype == np.float32
    expected = nibabel.load(tmp_path / "v.nii.gz").get_fdata()
    np.testing.assert_allclose(whole(volume)[..., 0], expected.transpose(2, 1, 0), rtol=1e-6)
    assert (volume.spacing, volume.unit, volume.chunks) == ((1, 1, 1), None, (1, 5, 4))


def test_what_a_fourth_axis_of_nifti_is_taken_for_is_said(tmp_path, caplog):
    nibabel.save(nibabel.Nifti1Image(noise(4, 5, 6, 10), np.eye(4)), tmp_path / "v.nii")
    with caplog.at_level(logging.INFO):
        assert open_volume(tmp_path / "v.nii").channels == 10
    assert "of length 10, is taken for channels" in caplog.text


def test_many_points_in_time_are_no_channels(tmp_path):
    nibabel.save(nibabel.Nifti1Image(noise(4, 5, 6, 20), np.eye(4)), tmp_path / "v.nii")
    with pytest.raises(InputError, match="expected one point in time, but axis T has length 20"):
        open_volume(tmp_path / "v.nii")
    assert open_volume(tmp_path / "v.nii", axes="XYZC").channels == 20


def test_nifti_cut_off_is_refused(tmp_path):
    for name in ("v.nii", "v.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(noise(40, 50, 60), np.eye(4)), tmp_path / name)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[:-5000])
        with pytest.raises(InputError, match=re.escape(name)):
            whole(open_volume(tmp_path / name))
    (tmp_path / "v.nii").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"expected to read '.*v\.nii', but:"):
        open_volume(tmp_path / "v.nii")


def test_mrc_says_its_order_of_axes_and_may_lack_a_spacing(tmp_path):
    array = noise(3, 4, 5, dtype="int16")
    with mrcfile.new(tmp_path / "v.mrc") as file:
        file.set_data(array)
        file.header.mapc, file.header.mapr, file.header.maps = 3, 2, 1
        file.voxel_size = 0
    volume = open_volume(tmp_path / "v.mrc")
    assert volume.spacing is None
    np.testing.assert_array_equal(whole(volume)[..., 0], array.transpose(2, 1, 0))


def test_mrc_cut_off_or_flat_or_of_images_in_time_is_refused(tmp_path):
    for data, match in [
        (noise(40, 50, dtype="int16"), r"axes Z, Y and X, but the shape \(40, 50\) is YX"),
        (noise(4, 5, 6, dtype="int16")[:, None].repeat(2, 1), "axis T has length 4"),
    ]:
        with mrcfile.new(tmp_path / "v.mrc", overwrite=True) as file:
            file.set_data(data)
        with pytest.raises(InputError, match=match):
            open_volume(tmp_path / "v.mrc")
    with mrcfile.new(tmp_path / "v.mrc", overwrite=True) as file:
        file.set_data(noise(4, 5, 6, dtype="int16"))
    data = (tmp_path / "v.mrc").read_bytes()
    (tmp_path / "v.mrc").write_bytes(data + b"more")
    assert open_volume(tmp_path / "v.mrc").shape == (4, 5, 6)
    (tmp_path / "v.mrc").write_bytes(data[:-1])
    with pytest.raises(InputError, match=r"expected to read '.*v\.mrc', but:.*check that the file is complete"):
        open_volume(tmp_path / "v.mrc")


# Raw binary and NPY


def test_raw_binary_needs_shape_type_and_a_file_of_that_size(tmp_path):
    path = tmp_path / "v.raw"
    path.write_bytes(bytes(100))
    for options, match in [
        (
            {},
            r"expected `shape` and `dtype` for raw binary.*but `shape` and `dtype` are missing for .*v\.raw; give them",
        ),
        ({"shape": (4, 5, 5)}, "`dtype` is missing"),
        ({"shape": (4, 5, 6), "dtype": "u1"}, "expected 120 bytes for shape .* but the file has 100; check"),
        ({"shape": (4, 5, 5), "dtype": "u1", "offset": 2}, "expected 102 bytes for .* after 2 bytes of header"),
        ({"shape": (4, 5, 5), "dtype": "blue"}, "expected a `dtype` such as .*, but got 'blue'"),
        ({"shape": (4, 5, 0), "dtype": "u1"}, "expected a `shape` of positive integers"),
        ({"shape": 100, "dtype": "u1"}, "expected a `shape` of positive integers"),
        ({"shape": (4, 5, 5.0), "dtype": "u1"}, "expected a `shape` of positive integers"),
        ({"shape": (4, 5, 5), "dtype": "u1", "offset": "2"}, "an `offset` of 0 or more"),
        ({"shape": np.array([4, 5, 6]), "dtype": "u1", "offset": np.int64(0)}, "expected 120 bytes for shape"),
        ({"shape": (10, 10), "dtype": "u1"}, "expected a volume, of three dimensions or four"),
    ]:
        with pytest.raises(InputError, match=match):
            open_volume(path, **options)


@given(data=st.data())
@settings(max_examples=30)
def test_a_damaged_file_gives_an_error_for_users_or_other_values_but_nothing_else(data):
    nifti = [save_nifti, save_compressed_nifti]
    save = data.draw(st.sampled_from([save_hdf5, save_tiff, save_compressed_tiff, save_npy, save_mrc, *nifti]))
    axes = "XYZ" if save in nifti else "ZYX"
    with tempfile.TemporaryDirectory() as folder:
        entry = save(Path(folder), turned(noise(5, 6, 7, 1, dtype="int16"), axes), axes)["entry"]
        content = bytearray(entry.read_bytes())
        for _ in range(data.draw(st.integers(0, 4))):
            content[data.draw(st.integers(0, min(400, len(content) - 1)))] = data.draw(st.integers(0, 255))
        entry.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2, 99]))])
        with contextlib.suppress(InputError):
            open_volume(entry).read((slice(0, 1), slice(0, 2), slice(0, 2)))


def test_npy_of_other_content_is_refused(tmp_path):
    (tmp_path / "v.npy").write_bytes(b"nothing")
    with pytest.raises(InputError, match="expected the content of an NPY file"):
        open_volume(tmp_path / "v.npy")
    np.save(tmp_path / "v.npy", noise(10, 20, 30))
    (tmp_path / "v.npy").write_bytes((tmp_path / "v.npy").read_bytes()[:-10])
    with pytest.raises(InputError, match=r"expected to read '.*v\.npy'"):
        open_volume(tmp_path / "v.npy")


# What is refused whatever the format


@pytest.mark.parametrize(
    ("array", "options", "match"),
    [
        (noise(4, 5), {}, r"expected a volume, of three dimensions .* the shape is \(4, 5\); give several slices"),
        (noise(4, 5, 6), {"axes": "ZYXC"}, 'each of the 3 axes of shape .* once, .* but got "ZYXC"'),
        (noise(4, 5, 6), {"axes": "ZYY"}, 'but got "ZYY"'),
        (noise(4, 5, 6), {"axes": "CYX"}, 'but got "CYX"'),
        (noise(4, 5, 6, 2), {"axes": "ZYXQ"}, 'but got "ZYXQ"'),
        (noise(2, 4, 5, 6), {"axes": "TZYX"}, "expected one point in time"),
        (np.zeros((20, 30, 40, 50), "u1"), {}, r"first or last axis of at most 16 .* name its axes by `axes`"),
        (np.zeros((0, 5, 6), "u1"), {}, r"expected at least one voxel, but the shape is \(0, 5, 6\)"),
        (np.zeros((4, 5, 6), complex), {}, "expected integers, floats or booleans, but got complex128"),
        (np.full((4, 5, 6), "a"), {}, "but got <U1"),
        (np.broadcast_to(np.uint8(0), (2**15,) * 3), {}, r"expected at most 2\*\*44 voxels"),
        (noise(4, 5, 6), {"spacing": 0}, "expected a spacing of one or three numbers above 0, .* but got 0"),
        (noise(4, 5, 6), {"spacing": (1, 2)}, r"but got \(1, 2\)"),
        (noise(4, 5, 6), {"spacing": (1, -1, 1)}, r"but got \(1, -1, 1\)"),
        (noise(4, 5, 6), {"spacing": "wide"}, "but got 'wide'"),
        (noise(4, 5, 6), {"spacing": float("nan")}, "but got nan"),
        (noise(4, 5, 6), {"unit": "nm"}, "expected `spacing` with the unit nanometer"),
        (noise(4, 5, 6), {"spacing": 1, "unit": "milimeter"}, "'milimeter'; choose one. Did you mean 'millimeter'"),
        (noise(4, 5, 6), {"dataset": "x"}, "expected `dataset` only for HDF5 and Zarr, but got it for an array"),
        (noise(4, 5, 6), {"shape": np.array([1, 2, 3])}, "expected `shape` only for raw binary"),
        (noise(4, 5, 6), {"level": np.int64(1)}, "expected `level` only for OME-Zarr"),
        (noise(4, 5, 6), {"level": 1}, "expected `level` only for OME-Zarr"),
        (noise(4, 5, 6), {"offset": 1}, "expected `offset` only for raw binary"),
        (7, {}, "expected a path, an array or a list of paths, but got int"),
    ],
)  # fmt: skip
def test_what_is_no_volume_or_does_not_fit_is_refused(array, options, match):
    with pytest.raises(InputError, match=match):
        open_volume(array, **options)


def test_paths_that_are_no_volumes_are_refused(tmp_path):
    PIL.Image.fromarray(noise(4, 5)).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", noise(20, 30))
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "empty").mkdir()
    for name, options, match in [
        ("a.png", {}, "is one image; give several slices"),
        ("a.tif", {}, r"expected a volume with axes Z, Y and X, but the shape \(20, 30\) is YX"),
        ("a.txt", {}, r"expected a volume of \.tif, .*; convert it to TIFF, HDF5 or Zarr"),
        ("b.h5", {}, r"there is no .*b\.h5; check the path"),
        ("b.h5:/data", {}, r"there is no .*b\.h5; check the path"),
        ("empty", {}, "expected images .* but there are none"),
        ("x" * 5000, {}, r"there is no .*x…; check the path"),
        ("x" * 5000 + ".h5:/data", {}, r"there is no .*x…; check the path"),
        ("a.tif", {"dataset": "x"}, r"expected `dataset` only for HDF5 and Zarr, but got it for a\.tif"),
        ("a.tif", {"shape": (1, 2, 3)}, "expected `shape` only for raw binary"),
        ("a.tif", {"level": 1}, "expected `level` only for OME-Zarr"),
    ]:
        with pytest.raises(InputError, match=match):
            open_volume(tmp_path / name, **options)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named_with_their_region(value):
    array = noise(4, 5, 6, dtype="float32")
    array[2, 3, 4] = value
    volume = open_volume(array)
    volume.read((slice(0, 2), slice(None), slice(None)))
    with pytest.raises(
        InputError, match=r"1 of 60 in z 2:4, y 0:5, x 0:6 are NaN or infinite, the first at \(2, 3, 4\)"
    ):
        volume.read((slice(2, 4), slice(None), slice(None)))


def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", noise(3, 20, 30), photometric="minisblack")
    monkeypatch.chdir(tmp_path)
    for opened in (open_volume, open_images):
        with pytest.raises(InputError, match="expected a path, but got an empty one; check the variable"):
            opened("")


@pytest.mark.parametrize("where", [(0, slice(None), slice(None)), (slice(None),) * 2, (slice(0, 4, 2),) * 3])
def test_regions_are_three_slices(where):
    with pytest.raises(InputError, match="expected three slices without steps, along z, y, x, but got"):
        open_volume(noise(4, 5, 6)).read(where)


def test_a_slice_too_large_for_memory_is_refused_before_it_is_read(tmp_path):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("data", (1, 2**21, 2**21), "u1", chunks=(1, 64, 64))
    source = SliceSource(open_volume(tmp_path / "v.h5"))
    with pytest.raises(InputError, match=r"at most 1,000,000,000 pixels, but those across z of 'v' have 2097152×"):
        source[0]


def test_spacing_and_unit_given_replace_or_convert_those_of_the_file(tmp_path):
    with mrcfile.new(tmp_path / "v.mrc") as file:
        file.set_data(noise(4, 5, 6, dtype="int16"))
        file.voxel_size = (10, 20, 30)
    converted = open_volume(tmp_path / "v.mrc", unit="nm")
    assert converted.spacing == pytest.approx((3, 2, 1))
    assert converted.unit == "nanometer"
    given = open_volume(tmp_path / "v.mrc", spacing=[1, 2, 3])
    assert (given.spacing, given.unit) == ((1.0, 2.0, 3.0), None)
    again = open_volume(given, spacing=4, unit="µm")
    assert (again.spacing, again.unit) == ((4.0, 4.0, 4.0), "micrometer")
    with pytest.raises(
        InputError, match="expected `axes` only for what is not open yet, but got it for an open volume"
    ):
        open_volume(given, axes="ZYX")


def test_spacing_stays_with_the_axes_it_was_stored_for(tmp_path):
    sizes = {"PhysicalSizeX": 1, "PhysicalSizeY": 2, "PhysicalSizeZ": 3}
    tifffile.imwrite(tmp_path / "v.ome.tif", noise(4, 5, 6), metadata={"axes": "ZYX", **sizes})
    volume = open_volume(tmp_path / "v.ome.tif", axes="XYZ")
    assert (volume.shape, volume.spacing) == ((6, 5, 4), (1, 2, 3))


def test_what_can_only_be_a_volume_is_told_by_its_name(tmp_path):
    for name in ("a.h5", "a.NXS:/x", "a.zarr", "a.zarr/0", "b.zarr.zip", "a.nii.gz", "a.mrc", "a.rec", "a.raw"):
        (tmp_path / "a.zarr").mkdir(exist_ok=True)
        assert is_volume(tmp_path / name), name
    for entry in ("a.tif", "a.npy", "a.png", "a.gz", tmp_path, noise(3, 4, 5), 7):
        assert not is_volume(entry)
    zarr.create_array(tmp_path / "plain", data=noise(3, 4, 5))
    assert is_volume(str(tmp_path / "plain"))
    assert is_volume(open_volume(tmp_path / "plain"))


# Channels and slices


@given(data=st.data())
@settings(max_examples=15)
def test_channels_of_several_volumes_are_joined_in_order(data):
    shape = tuple(data.draw(st.integers(1, 5)) for _ in range(3))
    arrays = [
        noise(*shape, data.draw(st.integers(1, 3)), dtype=data.draw(st.sampled_from(DTYPES)), seed=seed)
        for seed in range(data.draw(st.integers(1, 3)))
    ]
    volume = pickle.loads(pickle.dumps(join_channels([open_volume(array, axes="ZYXC") for array in arrays])))
    whole_array = np.concatenate(arrays, axis=-1)
    region = data.draw(regions(shape))
    assert (volume.shape, volume.channels, volume.dtype) == (shape, whole_array.shape[-1], whole_array.dtype)
    np.testing.assert_array_equal(volume.read(region), whole_array[region])


def test_volumes_that_do_not_lie_alike_are_not_joined(tmp_path):
    def saved(name, array, **options):
        np.save(tmp_path / name, array)
        return open_volume(tmp_path / name, **options)

    a = saved("a.npy", noise(4, 5, 6), spacing=1, unit="um")
    with pytest.raises(
        InputError, match=r"a\.npy' has \(4, 5, 6\) and '.*b\.npy' has \(4, 5, 7\) .*register and crop them first"
    ):
        join_channels([a, saved("b.npy", noise(4, 5, 7))])
    with pytest.raises(
        InputError, match=r"a\.npy' has \(1\.0, 1\.0, 1\.0\) micrometer and '.*c\.npy' has \(1\.01, 1\.0, 1\.0\)"
    ):
        join_channels([a, saved("c.npy", noise(4, 5, 6), spacing=(1.01, 1, 1))])
    with pytest.raises(InputError, match="expected at least one volume, but got none"):
        join_channels([])
    joined = join_channels([open_volume(noise(4, 5, 6)), a, saved("d.npy", noise(4, 5, 6), spacing=1000.5, unit="nm")])
    assert (joined.spacing, joined.unit, joined.channels) == ((1, 1, 1), "micrometer", 3)
    assert joined.origin.count(" + ") == 2


@pytest.mark.parametrize(("axis", "along"), [("z", 0), ("y", 1), ("x", 2)])
def test_slices_along_each_axis_are_images(tmp_path, axis, along):
    array = noise(4, 5, 6, 3)
    np.save(tmp_path / "scan.npy", array)
    source = SliceSource(open_volume(tmp_path / "scan.npy"), axis)
    assert isinstance(source, ImageSource)
    assert len(source) == array.shape[along]
    assert source.names[:2] == (f"scan_{axis}_0000", f"scan_{axis}_0001")
    assert source.numbers == tuple(range(array.shape[along]))
    for k in (0, 2, -1):
        image = source[k]
        expected = np.take(array, k, along)
        np.testing.assert_array_equal(image.pixels, expected)
        assert (source.size(k), source.channels(k)) == (expected.shape[:2], 3)
        assert (image.name, image.rgb) == (source.names[k], False)
    with pytest.raises(IndexError):
        source[9]


def test_a_slice_keeps_colours_and_an_axis_of_length_one(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(2, 5, 1, 3), photometric="rgb", metadata={"axes": "ZYXS"})
    image = SliceSource(open_volume(tmp_path / "a.tif"))[0]
    assert image.rgb
    assert image.pixels.shape == (5, 1, 3)
    with pytest.raises(InputError, match="expected an axis of z, y or x, but got 'Z'"):
        SliceSource(open_volume(tmp_path / "a.tif"), "Z")


def test_a_volume_tells_what_it_is():
    assert re.search(r"^Volume\(name='volume', shape=\(4, 5, 6\), channels=1, ", repr(open_volume(noise(4, 5, 6))))
    assert isinstance(open_volume(noise(4, 5, 6)), Volume)


@posix
@pytest.mark.parametrize(
    ("fault", "message"),
    [("while True: pass", "does not come to an end of it"), ("import os; os.abort()", "crashes on it")],
)
def test_a_file_that_hdf5_fails_on_without_a_word(tmp_path, monkeypatch, fault, message):
    """The real ones are found by fuzzing, and depend on the version of the library."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros((3, 4, 5), np.uint8)
    assert open_volume(path).shape == (3, 4, 5)
    monkeypatch.setattr(hdf5, "MOST_SECONDS", 1)
    monkeypatch.setattr(hdf5, "PROBE", hdf5.PROBE[: hdf5.PROBE.index("from spwnet")] + fault)
    with pytest.raises(InputError, match=f"expected a readable HDF5 file, but the HDF5 library {message}"):
        open_volume(path)


@pytest.mark.parametrize("chunks", [None, (1, 8, 8)])
def test_hdf5_that_is_cut_off_while_it_is_read_gives_no_zeros(tmp_path, chunks):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=np.ones((40, 50, 60), np.uint16), chunks=chunks)
    whole = path.read_bytes()
    volume = open_volume(path)
    part = (slice(0, 40), slice(0, 50), slice(0, 60))
    os.truncate(path, len(whole) // 2)
    with pytest.raises(InputError, match=r"cannot read .*a\.h5"):
        volume.read(part)
