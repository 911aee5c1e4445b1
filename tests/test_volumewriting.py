from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spwnet import volumewriting
from spwnet.blockstore import BlockStore
from spwnet.classes import Legend, palette
from spwnet.errors import OutputError
from spwnet.storage import check_space
from spwnet.units import unit_symbol
from spwnet.volumes import open_volume
from spwnet.volumewriting import SUFFIXES, check_target, write_volume
from tests.conftest import blocks_of, files_in, label_volume

pytestmark = pytest.mark.usefixtures("_no_waiting_for_the_disk")

DTYPES = ["uint8", "uint16", "uint32"]
PROVENANCE = {"spwnet": "9.9", "time": "2026-01-02T03:04:05+00:00", "settings": {"größe": 3, "scale": 0.5}}


def write(path, volume, **options):
    options = {"n_classes": int(volume.max()) + 1, **options}
    write_volume(path, volume.shape, volume.dtype, lambda z: volume[z], **options)


def read(path):
    """Return labels, spacing and unit of a file by whoever reads that format."""
    suffix = Path(path).suffix
    if suffix == ".npy":
        return np.load(path), None, None
    if suffix in (".tif", ".tiff"):
        return read_tiff(path)
    if suffix == ".zarr":
        return read_zarr(path)
    import h5py

    with h5py.File(path) as file:
        data = file["entry/data"]
        steps = tuple(data[axis][1] - data[axis][0] if len(data[axis]) > 1 else None for axis in "zyx")
        return data["labels"][()], steps, data["z"].attrs["units"]


def read_tiff(path):
    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        array = series.asarray(squeeze=False)
        assert series.get_axes(squeeze=False) == "TZCYXS"
        array = array.reshape(array.shape[1], *array.shape[3:5])
        if tiff.is_imagej:
            spacing = tiff.imagej_metadata.get("spacing")
            if spacing is None:
                return array, None, None
            x, y = tiff.pages[0].resolution
            return array, (spacing, 1 / y, 1 / x), tiff.imagej_metadata.get("unit")
        pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
        if "PhysicalSizeZ" not in pixels:
            return array, None, None
        return array, tuple(pixels[f"PhysicalSize{axis}"] for axis in "ZYX"), pixels["PhysicalSizeZUnit"]


def read_zarr(path, folder="labels/classes"):
    import zarr

    group = zarr.open_group(str(path / folder), mode="r")
    attributes = group.attrs.asdict()
    image = attributes.get("ome", attributes)["multiscales"][0]
    assert [axis["name"] for axis in image["axes"]] == ["z", "y", "x"]
    scale = image["datasets"][0]["coordinateTransformations"][0]["scale"]
    return group[image["datasets"][0]["path"]][...], tuple(scale), image["axes"][0].get("unit")


class TestRoundTrip:
    @given(
        shape=st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 12)),
        dtype=st.sampled_from(DTYPES),
        spacing=st.none() | st.tuples(*[st.floats(1e-9, 1e9)] * 3),
        unit=st.sampled_from([None, "nm", "µm", "micron", "Å", "m"]),
        suffix=st.sampled_from(SUFFIXES),
        slab=st.sampled_from([1, 60, 10**6]),
        seed=st.integers(0, 10),
    )
    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_labels_axes_and_spacing(self, tmp_path, monkeypatch, shape, dtype, spacing, unit, suffix, slab, seed):
        monkeypatch.setattr(volumewriting, "SLAB_BYTES", slab)
        volume = (
            label_volume(shape, dtype, np.iinfo(dtype).max, seed)
            if dtype != "uint32"
            else label_volume(shape, dtype, 300)
        )
        path = tmp_path / f"volume{suffix}"
        write(path, volume, n_classes=70_000 if dtype == "uint16" else 300, spacing=spacing, unit=unit, overwrite=True)
        array, steps, name = read(path)
        assert array.dtype == volume.dtype
        np.testing.assert_array_equal(array, volume)
        if suffix in (".h5", ".hdf5", ".nxs"):
            for step, expected in zip(steps, spacing or (1, 1, 1), strict=True):
                assert step is None or step == pytest.approx(expected, rel=1e-12)
        elif suffix == ".zarr" or (suffix != ".npy" and spacing is not None):
            assert steps == pytest.approx(spacing or (1, 1, 1), rel=1e-6)
        if spacing and suffix != ".npy":
            symbol = unit_symbol(unit)
            names = {None: {"pixel", None}, "µm": {"um", "µm", "micrometer"}, "nm": {"nm", "nanometer"}}
            assert name in names.get(symbol, {"m", "meter", "Å", "angstrom"})

    @given(
        shape=st.tuples(st.sampled_from([1, 63, 65, 150]), st.sampled_from([2, 64, 129]), st.sampled_from([3, 257])),
        depth=st.sampled_from([7, 64]),
        old=st.booleans(),
    )
    @settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_every_level_of_zarr_is_the_thinned_volume(self, tmp_path, monkeypatch, shape, depth, old):
        import zarr

        monkeypatch.setattr(volumewriting._Volume, "chunks", lambda self, side: (min(depth, shape[0]), 128, 128))
        volume = label_volume(shape)
        write(tmp_path / "v.zarr", volume, spacing=(2, 3, 5), overwrite=True, ome_version="0.4" if old else "0.5")
        group = zarr.open_group(str(tmp_path / "v.zarr/labels/classes"), mode="r")
        attributes = group.attrs.asdict()
        datasets = attributes.get("ome", attributes)["multiscales"][0]["datasets"]
        for dataset in datasets:
            z, y, x = np.array(dataset["coordinateTransformations"][0]["scale"], int) // (2, 3, 5)
            np.testing.assert_array_equal(group[dataset["path"]][...], volume[::z, ::y, ::x])
        assert max(group[datasets[-1]["path"]].shape) <= 64
        assert len(datasets) == (1 if max(shape) <= 64 else 2 if max(shape) <= 128 else 3 if max(shape) <= 256 else 4)

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_from_blocks(self, tmp_path, suffix):
        volume = label_volume((70, 30, 40), n_classes=3)
        store = BlockStore(tmp_path, blocks_of(volume.shape, (32, 16, 16)), "uint8", "job")
        for k, region in enumerate(store.regions):
            store.write(k, volume[region])
        write_volume(tmp_path / f"volume{suffix}", store.shape, "uint8", store.slab, n_classes=3)
        np.testing.assert_array_equal(read(tmp_path / f"volume{suffix}")[0], volume)

    def test_slices_are_asked_for_in_order_and_once(self, tmp_path, monkeypatch):
        monkeypatch.setattr(volumewriting, "SLAB_BYTES", 2 * 11 * 13)
        volume = label_volume()
        for suffix in SUFFIXES:
            asked = []
            write_volume(
                tmp_path / f"v{suffix}",
                volume.shape,
                "uint8",
                lambda z, asked=asked: asked.append((z.start, z.stop)) or volume[z],
                n_classes=5,
            )
            assert [start for start, _ in asked[1:]] == [stop for _, stop in asked[:-1]]
            assert (asked[0][0], asked[-1][1]) == (0, 9)
            assert len(asked) > 1 or suffix not in (".tif", ".tiff", ".npy")


class TestTiff:
    def test_imagej_below_four_gigabytes(self, tmp_path):
        volume = label_volume(dtype="uint16")
        write(tmp_path / "v.tif", volume, spacing=(0.5, 0.25, 0.2), unit="um", provenance=PROVENANCE)
        with tifffile.TiffFile(tmp_path / "v.tif") as tiff:
            assert tiff.is_imagej
            assert not tiff.is_bigtiff
            assert tiff.series[0].axes == "ZYX"
            assert len(tiff.pages) == 9
            assert tiff.pages[0].compression.name == "ADOBE_DEFLATE"
            assert tiff.imagej_metadata["slices"] == 9
            assert (tiff.imagej_metadata["min"], tiff.imagej_metadata["max"]) == (0, 4)
            assert json.loads(tiff.imagej_metadata["Info"]) == PROVENANCE

    @pytest.mark.parametrize("large", [False, True])
    def test_ome_otherwise(self, tmp_path, monkeypatch, large):
        if large:
            monkeypatch.setattr(volumewriting, "_CLASSIC_TIFF", 1000)
        volume = label_volume(dtype="uint8" if large else "uint32")
        write(tmp_path / "v.tif", volume, spacing=(0.5, 0.25, 0.2), unit="micron", provenance=PROVENANCE)
        with tifffile.TiffFile(tmp_path / "v.tif") as tiff:
            assert tiff.is_ome
            assert tiff.is_bigtiff == large
            assert tiff.series[0].axes == "ZYX"
            image = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
            assert json.loads(image["Description"]) == PROVENANCE
            assert image["Pixels"]["PhysicalSizeXUnit"] == "µm"
        array, spacing, _ = read(tmp_path / "v.tif")
        np.testing.assert_array_equal(array, volume)
        assert spacing == (0.5, 0.25, 0.2)

    def test_three_slices_are_no_colours(self, tmp_path):
        write(tmp_path / "v.tif", label_volume((3, 4, 4)))
        with tifffile.TiffFile(tmp_path / "v.tif") as tiff:
            assert tiff.series[0].axes == "ZYX"


class TestZarr:
    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    def test_root_labels_and_label_are_valid(self, tmp_path, version):
        import pydantic_zarr
        import zarr
        from ome_zarr_models import open_ome_zarr, v04, v05

        if version == "0.4":
            # Models of this version do not find the names they refer to.
            from ome_zarr_models.v04 import image, image_label
            from ome_zarr_models.v04 import labels as labels_group

            v2 = pydantic_zarr.v2
            names = {"pydantic_zarr": pydantic_zarr, "GroupSpec": v2.GroupSpec, "ArraySpec": v2.ArraySpec}
            for model in (labels_group.Labels, image.Image, image_label.ImageLabel):
                model.model_rebuild(_types_namespace=names)
        path = tmp_path / "v.ome.zarr"
        volume = label_volume((70, 130, 140), n_classes=3)
        write(path, volume, spacing=(2, 1, 1), unit="nm", provenance=PROVENANCE, ome_version=version)
        models = v04 if version == "0.4" else v05
        kinds = {
            "": models.image.Image,
            "labels": models.labels.Labels,
            "labels/classes": models.image_label.ImageLabel,
        }
        for folder, kind in kinds.items():
            opened = open_ome_zarr(zarr.open_group(str(path / folder), mode="r"), version=version)
            assert type(opened) is kind
        attributes = opened.ome_attributes
        colours = palette(3)
        assert [(c.label_value, c.rgba) for c in attributes.image_label.colors] == [
            (k, (*colours[k].tolist(), 255)) for k in range(3)
        ]
        assert attributes.image_label.version == version
        multiscale = attributes.multiscales[0]
        assert [(axis.name, axis.type, axis.unit) for axis in multiscale.axes] == [
            (name, "space", "nanometer") for name in "zyx"
        ]
        assert [d.coordinateTransformations[0].scale for d in multiscale.datasets] == [
            [2, 1, 1],
            [4, 2, 2],
            [4, 4, 4],
        ]
        root = zarr.open_group(str(path), mode="r")
        assert root.metadata.zarr_format == (2 if version == "0.4" else 3)
        assert root.attrs["spwnet"] == PROVENANCE
        # Stored once: the image in the root is made of the arrays of the label.
        np.testing.assert_array_equal(read_zarr(path, "")[0], volume)
        assert sorted(p.name for p in path.iterdir() if p.is_dir()) == ["labels"]

    def test_another_name(self, tmp_path):
        volume = label_volume()
        write(tmp_path / "v.zarr", volume, name="phases")
        np.testing.assert_array_equal(read_zarr(tmp_path / "v.zarr", "labels/phases")[0], volume)
        with pytest.raises(OutputError, match="expected a name of letters"):
            write(tmp_path / "w.zarr", volume, name="a/b")

    def test_chunks(self, tmp_path):
        import zarr

        write(tmp_path / "v.zarr", label_volume((70, 130, 20)))
        array = zarr.open_array(str(tmp_path / "v.zarr/labels/classes/0"), mode="r")
        assert array.chunks == (64, 128, 20)
        assert "blosc" in str(array.compressors[0]).lower()


class TestNexus:
    @pytest.mark.parametrize("suffix", [".h5", ".hdf5", ".nxs"])
    def test_required_fields(self, tmp_path, suffix):
        import h5py

        volume = label_volume()
        write(tmp_path / f"v{suffix}", volume, spacing=(2, 1, 0.5), unit="um", provenance=PROVENANCE)
        with h5py.File(tmp_path / f"v{suffix}") as file:
            assert file.attrs["default"] == "entry"
            entry = file["entry"]
            assert (entry.attrs["NX_class"], entry.attrs["default"]) == ("NXentry", "data")
            assert entry["title"].asstr()[()] == "classes"
            process = entry["process"]
            assert process.attrs["NX_class"] == "NXprocess"
            assert process["program"].asstr()[()] == "spwnet"
            assert process["version"].asstr()[()] == "9.9"
            assert process["date"].asstr()[()] == "2026-01-02T03:04:05+00:00"
            assert process["sequence_index"][()] == 1
            note = process["parameters"]
            assert note.attrs["NX_class"] == "NXnote"
            assert note["type"].asstr()[()] == "application/json"
            assert json.loads(note["data"].asstr()[()]) == PROVENANCE
            data = entry["data"]
            assert (data.attrs["NX_class"], data.attrs["signal"]) == ("NXdata", "labels")
            assert data.attrs["axes"].tolist() == ["z", "y", "x"]
            for number, (axis, size, step) in enumerate(zip("zyx", volume.shape, (2, 1, 0.5), strict=True)):
                assert data.attrs[f"{axis}_indices"] == number
                np.testing.assert_allclose(data[axis][()], np.arange(size) * step)
                assert data[axis].attrs["units"] == "um"
            assert data["labels"].compression == "gzip"
            assert data["labels"].shuffle
            assert data["labels"].chunks == volume.shape

    def test_without_provenance(self, tmp_path):
        import h5py

        write(tmp_path / "v.h5", label_volume())
        with h5py.File(tmp_path / "v.h5") as file:
            assert file["entry/process/date"].asstr()[()].startswith("20")
            assert file["entry/process/version"].asstr()[()]
            assert file["entry/data/z"].attrs["units"] == "pixel"

    def test_names_of_many_classes(self, tmp_path):
        import h5py

        legend = Legend(palette(6000), {5: "grain"})
        write(tmp_path / "v.h5", label_volume(dtype="uint16"), n_classes=6000, legend=legend)
        with h5py.File(tmp_path / "v.h5") as file:
            names = file["entry/data/class_names"].asstr()[()].tolist()
        assert (len(names), names[5], names[7]) == (6000, "grain", "class 7")
        assert open_volume(tmp_path / "v.h5").shape == label_volume().shape

    @pytest.mark.parametrize("shape", [(1, 4, 5), (3, 1, 5), (1, 1, 1)])
    def test_spacing_along_an_axis_of_length_1(self, tmp_path, shape):
        write(tmp_path / "v.nxs", np.zeros(shape, np.uint8), spacing=(2, 1, 0.5), unit="um")
        found = open_volume(tmp_path / "v.nxs")
        assert (found.shape, found.spacing, found.unit) == (shape, (2, 1, 0.5), "micrometer")


class TestRefusals:
    def test_unknown_suffix(self, tmp_path):
        with pytest.raises(OutputError, match=r"expected a label volume named \.tif, .*, but got 'v\.nii'; rename it"):
            check_target(tmp_path / "v.nii")

    @pytest.mark.parametrize("suffix", [".tif", ".zarr", ".npy"])
    def test_what_exists_stays_unless_it_shall_not(self, tmp_path, suffix):
        path = tmp_path / f"v{suffix}"
        assert check_target(path) == path
        assert list(tmp_path.iterdir()) == []
        write(path, label_volume())
        with pytest.raises(
            OutputError, match=r"there is .*v\.\w+ already; choose another one, or pass `overwrite=True`"
        ):
            write(path, label_volume(seed=1))
        np.testing.assert_array_equal(read(path)[0], label_volume())
        write(path, label_volume(seed=1), overwrite=True)
        np.testing.assert_array_equal(read(path)[0], label_volume(seed=1))
        assert [p.name for p in tmp_path.iterdir()] == [path.name]

    @pytest.mark.parametrize("suffix", [".tif", ".zarr"])
    def test_a_folder_of_something_else_is_never_replaced(self, tmp_path, suffix):
        (tmp_path / f"v{suffix}").mkdir()
        (tmp_path / f"v{suffix}" / "thesis.txt").write_text("ten years of work")
        with pytest.raises(OutputError, match="but it is a folder of something else; choose another name"):
            write(tmp_path / f"v{suffix}", label_volume(), overwrite=True)
        assert files_in(tmp_path) == [f"v{suffix}/thesis.txt"]

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(OutputError, match="there is no such folder; create it first"):
            check_target(tmp_path / "nowhere" / "v.tif")

    @pytest.mark.parametrize(("suffix", "module", "extra"), [(".zarr", "zarr", "zarr"), (".h5", "h5py", "hdf5")])
    def test_missing_package(self, tmp_path, monkeypatch, suffix, module, extra):
        monkeypatch.setitem(sys.modules, module, None)
        message = (
            rf"expected the package {module} to write {suffix}, .*`pip install 'spwnet\[{extra}\]'`, or write TIFF"
        )
        with pytest.raises(OutputError, match=message):
            check_target(tmp_path / f"v{suffix}")

    def test_full_disk_beforehand(self, tmp_path, monkeypatch):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40 - 2**29, 2**29))
        check_space(tmp_path / "not" / "there", 2**29)
        with pytest.raises(
            OutputError, match=r"expected 3\.00 GiB of free space for .*v\.h5, but there are 0\.50 GiB; free"
        ):
            check_space(tmp_path / "v.h5", 3 * 2**30)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40, 0))
        with pytest.raises(OutputError, match="of free space"):
            write(tmp_path / "v.npy", label_volume())
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(sys.platform == "win32", reason="no limits there")
    @pytest.mark.parametrize("suffix", [".tif", ".zarr", ".h5", ".npy"])
    def test_full_disk_on_the_way(self, tmp_path, suffix):
        write(tmp_path / f"v{suffix}", label_volume())
        code = (
            "import resource, signal, sys; import numpy as np; from spwnet.volumewriting import write_volume\n"
            "from spwnet.errors import OutputError\n"
            "v = np.random.default_rng(0).integers(0, 256, (70, 64, 64)).astype('uint8')\n"
            "import zarr, h5py, tifffile\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
            "try: write_volume(sys.argv[1], v.shape, 'uint8', lambda z: v[z], n_classes=256, overwrite=True)\n"
            "except OutputError as error: print(error)"
        )
        path = tmp_path / f"v{suffix}"
        done = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
        assert "File too large" in done.stdout
        assert done.stderr == ""
        np.testing.assert_array_equal(read(path)[0], label_volume())
        assert [p.name for p in tmp_path.iterdir()] == [path.name]

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_an_error_of_the_slabs_leaves_the_earlier_one(self, tmp_path, suffix):
        path = tmp_path / f"v{suffix}"
        write(path, label_volume())

        def broken(z):
            raise OutputError("expected block 7")

        with pytest.raises(OutputError, match="expected block 7"):
            write_volume(path, (9, 11, 13), "uint8", broken, n_classes=5, overwrite=True)
        np.testing.assert_array_equal(read(path)[0], label_volume())
        assert [p.name for p in tmp_path.iterdir()] == [path.name]

    @pytest.mark.parametrize("suffix", [".tif", ".zarr", ".h5"])
    def test_what_a_killed_writer_left_goes_away(self, tmp_path, suffix):
        left = tmp_path / f".v{suffix}.tmp"
        left.mkdir()
        (left / "half").touch()
        write(tmp_path / f"v{suffix}", label_volume())
        assert [p.name for p in tmp_path.iterdir()] == [f"v{suffix}"]

    def test_the_earlier_volume_of_a_writer_that_was_killed_at_its_end(self, tmp_path):
        path, old = tmp_path / "v.zarr", tmp_path / ".v.zarr.old"
        write(path, label_volume())
        path.rename(old)

        def broken(z):
            raise OutputError("expected block 7")

        with pytest.raises(OutputError, match="expected block 7"):
            write_volume(path, (9, 11, 13), "uint8", broken, n_classes=5)
        np.testing.assert_array_equal(read(path)[0], label_volume())
        shutil.copytree(path, old)
        write(path, label_volume(seed=1), overwrite=True)
        np.testing.assert_array_equal(read(path)[0], label_volume(seed=1))
        assert [p.name for p in tmp_path.iterdir()] == ["v.zarr"]

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_an_origin_that_is_no_utf8(self, tmp_path, suffix):
        write(tmp_path / f"v{suffix}", label_volume(), provenance={**PROVENANCE, "origin": os.fsdecode(b"\xffscan")})
        np.testing.assert_array_equal(read(tmp_path / f"v{suffix}")[0], label_volume())

    def test_a_file_that_came_where_a_folder_is_to_be(self, tmp_path):
        def slabs(z):
            (tmp_path / "v.zarr").write_text("ten years of work")
            return label_volume()[z]

        with pytest.raises(OutputError, match="there is a file of this name"):
            write_volume(tmp_path / "v.zarr", (9, 11, 13), "uint8", slabs, n_classes=5)
        assert (tmp_path / "v.zarr").read_text() == "ten years of work"

    def test_a_folder_comes_back_if_the_new_one_cannot_take_its_place(self, tmp_path, monkeypatch):
        path = tmp_path / "v.zarr"
        write(path, label_volume())
        rename = Path.rename

        def failing(self, target):
            if self.name == ".v.zarr.tmp":
                raise OSError(errno.EACCES, "no")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", failing)
        with pytest.raises(OutputError, match="permission denied"):
            write(path, label_volume(seed=1), overwrite=True)
        np.testing.assert_array_equal(read(path)[0], label_volume())
        assert [p.name for p in tmp_path.iterdir()] == ["v.zarr"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"shape": (0, 4, 4)}, r"expected a volume of shape \(D, H, W\), none of them 0"),
            ({"shape": (4, 4)}, r"expected a volume of shape"),
            ({"dtype": "int32"}, "expected a type for labels"),
            ({"spacing": (1, 0, 1)}, "expected a spacing of three numbers above 0"),
            ({"spacing": (1, float("nan"), 1)}, "expected a spacing"),
            ({"spacing": (1, 1, 1), "unit": "furlong"}, "expected a unit of length, one of m, cm, .*'furlong'"),
            ({"n_classes": 4}, "expected class ids 0 to 3 in uint8 for slices 0 to 9, but got 0 to 4"),
            ({"shape": (9, 11, 12)}, r"expected integers of shape \(9, 11, 12\) for slices 0 to 9"),
        ],
    )
    def test_what_makes_no_sense(self, tmp_path, options, message):
        volume = label_volume()
        options = {"shape": volume.shape, "dtype": "uint8", "n_classes": 5, **options}
        with pytest.raises(OutputError, match=message):
            write_volume(tmp_path / "v.tif", slabs=lambda z: volume[z], **options)
        assert list(tmp_path.iterdir()) == []
