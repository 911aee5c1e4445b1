"""Reading images: every format, axis order, number and name, and every way in which a file can be wrong."""

from __future__ import annotations

import io
import logging
import re
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import psutil
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import spwnet.images
import spwnet.stacks
from spwnet.errors import InputError
from spwnet.images import (
    Image,
    ImageSource,
    JoinedImages,
    check_same_channels,
    fingerprint,
    frame_indices,
    image_size,
    label_image,
    open_images,
)
from spwnet.volumes import open_volume
from tests.conftest import noise

if TYPE_CHECKING:
    from pathlib import Path


def save(path: Path, pixels: np.ndarray) -> Path:
    PIL.Image.fromarray(pixels).save(path)
    return path


# Formats


@pytest.mark.parametrize("suffix", ["png", "bmp", "PNG"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_lossless_pictures_come_back_as_they_were(tmp_path, suffix, shape):
    pixels = noise(*shape)
    image = open_images(save(tmp_path / f"a.{suffix}", pixels))[0]
    assert image.pixels.dtype == np.uint8
    assert image.rgb == (len(shape) == 3)
    np.testing.assert_array_equal(image.pixels, pixels.reshape(5, 7, -1))


def test_sixteen_bit_grey_png_keeps_its_bits(tmp_path):
    pixels = noise(4, 6, dtype="uint16")
    image = open_images(save(tmp_path / "a.png", pixels))[0]
    assert image.pixels.dtype == np.uint16
    np.testing.assert_array_equal(image.pixels[..., 0], pixels)


def png_of_16_bits(colour_type: int, channels: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + noise(3 * channels, dtype="uint16").astype(">u2").tobytes() for _ in range(2))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 16, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_colour_png_is_refused_rather_than_reduced(tmp_path, colour_type, channels):
    file = tmp_path / "deep.png"
    file.write_bytes(png_of_16_bits(colour_type, channels))
    with pytest.raises(InputError, match=r"deep\.png.*8 bits a channel.*16; convert it to TIFF"):
        open_images(file)


def test_jpeg_keeps_grey_and_colour_and_applies_orientation(tmp_path):
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:, :12] = 200
    upright = save(tmp_path / "upright.jpg", pixels)
    assert open_images(upright)[0].pixels.shape == (16, 24, 3)
    grey = open_images(save(tmp_path / "grey.jpg", pixels[..., 0]))[0]
    assert (grey.pixels.shape, grey.rgb) == ((16, 24, 1), False)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise
    PIL.Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    source = open_images(tmp_path / "turned.jpg")
    assert image_size(source, 0) == (24, 16)
    turned = source[0].pixels
    assert turned.shape == (24, 16, 3)
    assert turned[:10].min() > 150
    assert turned[14:].max() < 50


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    PIL.Image.fromarray(np.full((8, 8, 3), (200, 30, 30), np.uint8)).convert("CMYK").save(tmp_path / "a.jpg")
    image = open_images(tmp_path / "a.jpg")[0]
    assert image.rgb
    assert np.abs(image.pixels.astype(int) - (200, 30, 30)).max() < 12


@pytest.mark.parametrize("transparency", [None, 1, b"\x00\x80"])
def test_palette_png_becomes_rgb(tmp_path, transparency):
    picture = PIL.Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    image = open_images(tmp_path / "a.png")[0]
    assert image.rgb
    assert image.pixels[0].tolist() == [[10, 20, 30], [40, 50, 60]]
    with pytest.raises(InputError, match="save class ids, not colours, and the ids of an indexed PNG as a grey image"):
        label_image(open_images(tmp_path / "a.png"), 0)


def test_one_bit_png_is_zero_and_one(tmp_path):
    pixels = np.array([[True, False, True]])
    image = open_images(save(tmp_path / "a.png", pixels))[0]
    assert image.pixels.dtype == np.uint8
    assert image.pixels[..., 0].tolist() == [[1, 0, 1]]


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_of_pictures_is_left_out_with_one_warning(tmp_path, caplog, channels):
    pixels = noise(4, 5, channels)
    for k in range(3):
        save(tmp_path / f"a{k}.png", pixels)
    source = open_images(tmp_path)
    assert check_same_channels(source) == channels - 1
    for image in (source[0], source[1], source[2]):
        np.testing.assert_array_equal(image.pixels, pixels[..., :-1])
    assert image.rgb == (channels == 4)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        "the alpha channel is left out, in 'a0' and any other image that has one"
    ]


TYPES = ["uint8", "uint16", "uint32", "int16", "int32", "float32", "float64"]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"byteorder": ">"}, {"compression": "lzw"}])
def test_tiff_of_every_type(tmp_path, dtype, options):
    if "lzw" in options.values():
        pytest.importorskip("imagecodecs")
    pixels = noise(6, 9, dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    image = open_images(tmp_path / "a.tif")[0]
    assert image.pixels.dtype == np.dtype(dtype)
    assert image.pixels.dtype.isnative
    assert not image.rgb
    np.testing.assert_array_equal(image.pixels[..., 0], pixels)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "rowsperstrip": 4}, {"planarconfig": "separate"}])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_colour_tiff_is_rgb(tmp_path, options, dtype):
    pixels = noise(10, 12, 3, dtype=dtype)
    stored = pixels.transpose(2, 0, 1) if "planarconfig" in options else pixels
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", **options)
    image = open_images(tmp_path / "a.tif")[0]
    assert image.rgb
    np.testing.assert_array_equal(image.pixels, pixels)


@pytest.mark.parametrize(("photometric", "channels"), [("rgb", 4), ("minisblack", 2)])
def test_alpha_of_tiff_is_left_out(tmp_path, caplog, photometric, channels):
    pixels = noise(10, 12, channels)
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric=photometric, extrasamples=["unassalpha"], planarconfig="contig"
    )
    source = open_images(tmp_path / "a.tif")
    np.testing.assert_array_equal(source[0].pixels, pixels[..., :-1])
    assert source[0].rgb == (channels == 4)
    assert check_same_channels(source) == channels - 1
    assert "alpha channel is left out" in caplog.text


def test_other_extra_samples_of_tiff_are_channels(tmp_path):
    pixels = noise(10, 12, 5)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="contig")
    image = open_images(tmp_path / "a.tif")[0]
    assert not image.rgb
    np.testing.assert_array_equal(image.pixels, pixels)


def test_channel_axis_of_three_in_a_tiff_is_not_colour(tmp_path):
    pixels = noise(3, 10, 12, dtype="uint16")
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", metadata={"axes": "CYX"})
    source = open_images(tmp_path / "a.tif")
    assert (len(source), source.names, source[0].rgb) == (1, ("a",), False)
    np.testing.assert_array_equal(source[0].pixels, np.moveaxis(pixels, 0, -1))


def test_palette_tiff_gives_its_values(tmp_path, caplog):
    pixels = noise(10, 12)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="palette", colormap=noise(3, 256, dtype="uint16"))
    np.testing.assert_array_equal(open_images(tmp_path / "a.tif")[0].pixels[..., 0], pixels)
    assert "has a palette; its values are read as stored" in caplog.text


def test_only_the_first_series_of_a_tiff_is_read(tmp_path, caplog):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(noise(10, 12))
        writer.write(noise(7, 9))
    assert open_images(tmp_path / "a.tif")[0].pixels.shape == (10, 12, 1)
    assert "only the first of 2 series" in caplog.text


# Stacks and axes


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
@pytest.mark.parametrize("axes", ["TZYX", "TCYX", "ZCYX"])
def test_leading_axes_of_tiff(tmp_path, options, axes):
    pixels = noise(2, 3, 6, 8, dtype="uint16")
    tifffile.imwrite(tmp_path / "scan.tif", pixels, photometric="minisblack", metadata={"axes": axes}, **options)
    source = open_images(tmp_path / "scan.tif")
    found = [source[k].pixels for k in range(len(source))]
    if "C" in axes:
        np.testing.assert_array_equal(found, pixels.transpose(0, 2, 3, 1))
    else:
        np.testing.assert_array_equal(found, pixels.reshape(6, 6, 8, 1))
    assert source.names[:2] == ("scan_0000", "scan_0001")
    assert source.numbers == tuple(range(len(source)))


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
def test_frames_of_colour_tiff(tmp_path, options):
    pixels = noise(4, 6, 8, 3)
    tifffile.imwrite(tmp_path / "video.tif", pixels, photometric="rgb", **options)
    source = open_images(tmp_path / "video.tif")
    assert all(source[k].rgb for k in range(4))
    np.testing.assert_array_equal(source[3].pixels, pixels[3])


def test_imagej_hyperstack(tmp_path):
    pixels = noise(2, 3, 4, 6, 8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, metadata={"axes": "TZCYX"})
    source = open_images(tmp_path / "a.tif")
    assert (len(source), check_same_channels(source)) == (6, 4)
    np.testing.assert_array_equal(source[5].pixels, np.moveaxis(pixels[1, 2], 0, -1))


def test_imagej_stack_of_colour_channels(tmp_path):
    pixels = noise(2, 6, 8, 3)
    tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, metadata={"axes": "CYXS"})
    image = open_images(tmp_path / "a.tif")[0]
    assert not image.rgb
    np.testing.assert_array_equal(image.pixels, np.concatenate(list(pixels), axis=-1))


@pytest.mark.parametrize("metadata", [{}, None])
def test_pages_written_one_by_one_are_frames(tmp_path, metadata):
    pixels = noise(4, 6, 8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for page in pixels:
            writer.write(page, contiguous=False, metadata=metadata)
    source = open_images(tmp_path / "a.tif")
    np.testing.assert_array_equal(source[2].pixels[..., 0], pixels[2])


def test_unnamed_tiff_axes_are_guessed_like_those_of_arrays(tmp_path):
    tifffile.imwrite(tmp_path / "channels.tif", noise(20, 30, 5))
    assert open_images(tmp_path / "channels.tif")[0].pixels.shape == (20, 30, 5)
    tifffile.imwrite(tmp_path / "frames.tif", noise(5, 20, 30))
    assert len(open_images(tmp_path / "frames.tif")) == 5


@pytest.mark.parametrize(
    ("shape", "axes", "count", "found", "rgb"),
    [
        ((20, 30), None, 1, (20, 30, 1), False),
        ((20, 30, 3), None, 1, (20, 30, 3), True),
        ((20, 30, 16), None, 1, (20, 30, 16), False),
        ((20, 30, 17), None, 20, (30, 17, 1), False),
        ((4, 4, 4), None, 4, (4, 4, 1), False),
        ((2, 20, 30, 3), None, 2, (20, 30, 3), True),
        ((20, 30, 17), "YXC", 1, (20, 30, 17), False),
        ((3, 20, 30), "CYX", 1, (20, 30, 3), True),
        ((20, 30, 3), "TXY", 20, (3, 30, 1), False),
        ((2, 3, 4, 5, 6), "TZCYX", 6, (5, 6, 4), False),
        ((5, 6, 2), "XYT", 2, (6, 5, 1), False),
    ],
)
@pytest.mark.parametrize("where", ["memory", "npy"])
def test_axes_of_arrays(tmp_path, shape, axes, count, found, rgb, where):
    array = noise(*shape)
    given_images = array
    if where == "npy":
        given_images = tmp_path / "a.npy"
        np.save(given_images, array)
    source = open_images(given_images, axes)
    assert len(source) == count
    assert source[count - 1].pixels.shape == found
    assert source[0].rgb == rgb


def test_axes_put_pixels_where_they_belong():
    array = noise(2, 3, 5, 6, 4)
    source = open_images(array, "TCXYZ")
    for t in range(2):
        for z in range(4):
            np.testing.assert_array_equal(source[4 * t + z].pixels, array[t, :, :, :, z].transpose(2, 1, 0))


def test_a_guess_is_logged(caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    open_images(noise(6, 20, 30))
    assert "(6, 20, 30) without names of its axes is read as TYX" in caplog.text
    tifffile.imwrite(tmp_path / "a.tif", noise(6, 20, 30), metadata={"axes": "ZYX"})
    open_images(tmp_path / "a.tif")
    assert "is read as ZYX" in caplog.text


@given(hnp.arrays(st.sampled_from(TYPES), hnp.array_shapes(min_dims=3, max_dims=3, max_side=6), fill=st.nothing()))
def test_any_array_comes_back(array):
    if not np.isfinite(array).all():
        with pytest.raises(InputError, match="NaN or infinite"):
            open_images(array, "YXC")[0]
        return
    image = open_images(array, "YXC")[0]
    assert image.pixels.dtype == array.dtype
    np.testing.assert_array_equal(image.pixels, array)


def test_arrays_in_a_list_are_one_image_each():
    arrays = [noise(6, 8), noise(5, 9)]
    source = open_images(arrays)
    assert source.names == ("image_0000", "image_0001")
    assert source.numbers == (0, 1)
    np.testing.assert_array_equal(source[1].pixels[..., 0], arrays[1])
    assert open_images(tuple(arrays)).names == source.names
    assert open_images(noise(6, 8)).names == ("image",)
    assert open_images([noise(20, 30)] * 10_001).names[-1] == "image_10000"


def test_an_image_is_a_copy():
    array = noise(6, 8)
    image = open_images(array)[0]
    before = array.copy()
    image.pixels[:] = 0
    np.testing.assert_array_equal(array, before)


def test_booleans_and_foreign_byte_order():
    assert open_images(np.eye(3, dtype=bool))[0].pixels.dtype == np.uint8
    pixels = open_images(np.arange(6, dtype=">i4").reshape(2, 3))[0].pixels
    assert pixels.dtype.isnative
    assert pixels[1, 2, 0] == 5


def test_an_image_source_passes_through():
    source = open_images(noise(6, 8))
    assert isinstance(source, ImageSource)
    assert open_images(source) is source


# Places and names


def test_folder_in_natural_order_without_other_files(tmp_path, caplog):
    for name in ["frame10.png", "frame2.PNG", "Frame1.png", ".hidden.png"]:
        save(tmp_path / name, noise(3, 4))
    for k in range(7):
        (tmp_path / f"notes{k}.txt").write_text("")
    (tmp_path / "folder.png").mkdir()
    source = open_images(str(tmp_path))
    assert source.names == ("Frame1", "frame2", "frame10")
    assert source.numbers == (1, 2, 10)
    warnings = [record.message for record in caplog.records]
    assert len(warnings) == 1
    assert warnings[0].endswith("are left out: notes0.txt, notes1.txt, notes2.txt, notes3.txt, notes4.txt and 2 more")


def test_patterns(tmp_path):
    for folder in ["b", "a"]:
        (tmp_path / folder / "deep").mkdir(parents=True)
        save(tmp_path / folder / f"{folder}1.png", noise(3, 4))
        save(tmp_path / folder / "deep" / f"{folder}2.png", noise(3, 4))
    assert open_images(f"{tmp_path}/*/*.png").names == ("a1", "b1")
    assert open_images(f"{tmp_path}/**/*.png").names == ("a1", "a2", "b1", "b2")
    assert open_images(f"{tmp_path}/[b]/*.png").names == ("b1",)
    assert open_images([tmp_path / "b", tmp_path / "a" / "a1.png"]).names == ("b1", "a1")


def test_a_name_with_brackets_is_a_file(tmp_path):
    assert open_images(save(tmp_path / "a[1].png", noise(3, 4))).names == ("a[1]",)


def test_relative_paths_and_home(tmp_path, monkeypatch):
    save(tmp_path / "a.png", noise(3, 4))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert open_images("*.png").names == open_images("~/a.png").names == ("a",)


@pytest.mark.parametrize(
    ("files", "numbers"),
    [
        (["a_1.png", "a_3.png"], (1, 3)),
        (["run2_007.png", "run2_010.png"], (7, 10)),
        (["a1.png", "b.png"], (0, 1)),
        (["a1.png", "b1.png"], (0, 1)),
        (["a7.png"], (7,)),
        (["a.png"], (0,)),
    ],
)
def test_frame_numbers(tmp_path, files, numbers):
    for file in files:
        save(tmp_path / file, noise(3, 4))
    assert open_images(tmp_path).numbers == numbers


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/x.png", "b/x.png", "b/y.png"], ("a_x", "b_x", "y")),
        (["a/s/x.png", "b/s/x.png"], ("a_s_x", "b_s_x")),
        (["x.png", "x.bmp"], ("x_png", "x_bmp")),
        (["x.png", "X.bmp"], ("x_png", "X_bmp")),
        (["a/x.png", "a/x.bmp", "b/x.png"], ("x_0", "x_1", "x_2")),
        (["a/x.png", "b/x.png", "c/a_x.png"], ("a_x", "b_x", "a_x_2")),
        (["x.png", "x.png"], ("x_0", "x_1")),
    ],
)
def test_names_are_made_unique(tmp_path, files, names):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
        save(tmp_path / file, noise(3, 4))
    assert open_images([tmp_path / file for file in files]).names == names


# Errors


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "expected a path, an array or a list of these, but got list"),
        (3, "but got int '3'"),
        (None, "but got NoneType"),
        ([[1, 2]], "a list of paths or a list of arrays"),
        (["a.png", np.zeros((3, 3))], "other or mixed"),
        (np.zeros(3), r"2 to 4 dimensions, but the shape is \(3,\)"),
        (np.zeros((2,) * 5), "name its axes by `axes`"),
        (np.zeros((0, 3)), "at least one pixel"),
        (np.zeros((0, 3, 3)), "at least one pixel"),
        ([np.zeros((3, 0))], "at least one pixel"),
    ],
)
def test_what_is_no_image(images, message):
    with pytest.raises(InputError, match=message):
        open_images(images)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2), complex), "cannot read 'image': expected integers or floats, but got complex128"),
        (np.full((2, 2), None), "but got object"),
        (np.full((2, 2), "a"), "but got <U1"),
        (np.array([[1, np.nan], [np.inf, 0]]), "cannot read 'image': .*2 of 4 are NaN or infinite"),
    ],
)
def test_values_that_cannot_be_used(array, message):
    with pytest.raises(InputError, match=message):
        open_images(array)[0]


@pytest.mark.parametrize("axes", ["YX", "TYXC", "TCX", "YYX"])
def test_axes_that_do_not_fit(tmp_path, axes):
    with pytest.raises(InputError, match=rf"3 axes with Y and X .*\(4, 5, 6\), but got '{axes}'"):
        open_images(noise(4, 5, 6), axes)
    tifffile.imwrite(tmp_path / "a.tif", noise(4, 5, 6), photometric="minisblack")
    with pytest.raises(InputError, match=rf"a\.tif.*3 axes with Y and X .*'{axes}'"):
        open_images(tmp_path / "a.tif", axes)


def test_several_images_in_one_entry(tmp_path):
    np.save(tmp_path / "a.npy", noise(20, 30, 40))
    save(tmp_path / "b.png", noise(3, 4))
    source = open_images(tmp_path)
    with pytest.raises(InputError, match=r"a\.npy.*one image in each .*\(20, 30, 40\), read as TYX"):
        source[0]
    with pytest.raises(InputError, match="one image in each"):
        open_images([noise(20, 30, 40)])[0]
    assert open_images([noise(20, 30, 40)], "YXC")[0].pixels.shape == (20, 30, 40)


def test_places_with_nothing(tmp_path):
    with pytest.raises(InputError, match=r"there is no .*missing\.png; check the path"):
        open_images(tmp_path / "missing.png")
    with pytest.raises(InputError, match=r"expected images \(\.png.*but there are none"):
        open_images(tmp_path)
    with pytest.raises(InputError, match=r"\*\.png, but there are none"):
        open_images(f"{tmp_path}/*.png")
    (tmp_path / "a.gif").write_bytes(b"")
    with pytest.raises(InputError, match=r"expected a file of \.png.*a\.gif; convert it"):
        open_images(tmp_path / "a.gif")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "npy"])
@pytest.mark.parametrize("content", [b"", b"This is no image, but a text of a few words.\n"])
def test_text_is_no_image(tmp_path, suffix, content):
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"'{re.escape(str(file))}'"):
        open_images(file)


def cut(file: Path, part: float) -> Path:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * part)])
    return file


@pytest.mark.parametrize("part", [0.01, 0.3, 0.7, 0.98])
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "npy"])
def test_truncated_files(tmp_path, suffix, part):
    pixels, file = noise(60, 80, 3), tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(file, pixels)
    elif suffix == "tif":
        tifffile.imwrite(file, pixels, photometric="rgb")
    else:
        save(file, pixels)
    cut(file, part)
    with pytest.raises(InputError, match="expected"):
        open_images(file)[0]


@pytest.mark.parametrize("part", [0.05, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits"])
@pytest.mark.parametrize("metadata", [{}, None])
def test_truncated_stacks(tmp_path, part, compression, metadata):
    if compression in ("lzw", "packbits"):
        pytest.importorskip("imagecodecs")
    pixels = noise(5, 30, 40)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for page in pixels:
            writer.write(page, contiguous=False, compression=compression, metadata=metadata, rowsperstrip=8)
    file = cut(tmp_path / "a.tif", part)

    def read() -> None:
        source = open_images(file)
        assert len(source) == 5
        for k in range(5):
            source[k]

    with pytest.raises(InputError, match="expected"):
        read()


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_pages_read_by_several_threads_are_those_read_by_one(tmp_path, compression):
    pages = np.arange(40, dtype=np.uint8)[:, None, None] * 4 + noise(40, 128, 128) % 4
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for page in pages:
            writer.write(page, compression=compression, contiguous=False, photometric="minisblack")
    for _ in range(4):
        source = open_images(tmp_path / "a.tif")
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda k, source=source: source[k].pixels[..., 0], range(40)))
        np.testing.assert_array_equal(found, pages)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(
    ("shape", "axes"), [((50, 60, 1), None), ((5, 50, 60, 1), None), ((5, 50, 60, 1), "TYXC"), ((5, 1, 50, 60), None)]
)
def test_tiff_with_axes_of_length_one(tmp_path, compression, shape, axes):
    pixels = noise(*shape)
    tifffile.imwrite(tmp_path / "a.tif", pixels, compression=compression, metadata={"axes": axes} if axes else {})
    source = open_images(tmp_path / "a.tif")
    np.testing.assert_array_equal([image.pixels for image in source], pixels.reshape(-1, 50, 60, 1))
    if axes:
        assert open_volume(tmp_path / "a.tif").read((slice(None),) * 3).shape == shape


@pytest.mark.parametrize("missing", [1, 2, 5])
@pytest.mark.parametrize("pages", [1, 3])
def test_tiff_whose_header_is_cut_short(tmp_path, missing, pages):
    # libtiff writes the header behind the pixels, and the bits of each sample at its very end
    first, *others = [PIL.Image.fromarray(noise(30, 40, 3)) for _ in range(pages)]
    first.save(tmp_path / "a.tif", compression="tiff_adobe_deflate", save_all=True, append_images=others)
    data = (tmp_path / "a.tif").read_bytes().rstrip(b"\0") + b"\0"  # without padding; 8 bits are stored as b"\x08\0"
    (tmp_path / "a.tif").write_bytes(data)
    assert open_images(tmp_path / "a.tif")[pages - 1].pixels.shape == (30, 40, 3)
    (tmp_path / "a.tif").write_bytes(data[:-missing])
    with pytest.raises(InputError, match=r"a\.tif.*expected"):
        open_images(tmp_path / "a.tif")


def test_frames_of_channels_written_one_by_one_keep_their_channels(tmp_path, caplog):
    pixels = noise(2, 3, 20, 30)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for frame in pixels:
            writer.write(frame, contiguous=False, photometric="minisblack", metadata={"axes": "CYX"})
    source = open_images(tmp_path / "a.tif")
    assert check_same_channels(source) == 3
    np.testing.assert_array_equal(source[0].pixels, np.moveaxis(pixels[0], 0, -1))
    assert "only the first of 2 series" in caplog.text


def test_truncated_imagej_stack(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(5, 30, 40), imagej=True, metadata={"axes": "ZYX"})
    with pytest.raises(InputError, match="ends before its last page"):
        open_images(cut(tmp_path / "a.tif", 0.6))


def test_tiff_with_a_strip_that_was_never_written(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(32, 40), compression="zlib", rowsperstrip=8)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tiff:
        counts = list(tiff.pages[0].databytecounts)
        tiff.pages[0].tags["StripByteCounts"].overwrite([*counts[:2], 0, counts[3]])
    with pytest.raises(InputError, match="all of page 0, but part of it is missing"):
        open_images(tmp_path / "a.tif")[0]


def test_missing_codec_names_the_remedy(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", noise(32, 40), compression="zlib")

    def missing(*_, **__):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", missing)
    with pytest.raises(InputError, match=r"requires the 'imagecodecs' package; install .*'spwnet\[tiff\]'`"):
        open_images(tmp_path / "a.tif")[0]


def test_pickles_are_not_read(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[{}]]), allow_pickle=True)
    with pytest.raises(InputError, match=r"a\.npy.*objects"):
        open_images(tmp_path / "a.npy")


def test_large_pictures_are_read_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 50)
    file = save(tmp_path / "a.png", noise(30, 40))
    assert open_images(file)[0].pixels.shape == (30, 40, 1)
    assert PIL.Image.MAX_IMAGE_PIXELS == 50
    monkeypatch.setattr(spwnet.stacks, "MOST_PIXELS", 1000)
    with pytest.raises(InputError, match=r"a\.png.*at most 1,000 pixels, but got 30×40; cut it"):
        open_images(file)


def test_bomb_is_refused_by_its_header(tmp_path):
    buffer = io.BytesIO()
    PIL.Image.new("1", (1, 1)).save(buffer, "png")
    data = bytearray(buffer.getvalue())
    data[16:24] = struct.pack(">II", 100_000, 100_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InputError, match="at most 1,000,000,000 pixels, but got 100000×100000"):
        open_images(tmp_path / "a.png")


def test_channels_count_for_the_limit(monkeypatch):
    monkeypatch.setattr(spwnet.stacks, "MOST_VALUES", 1000)
    assert len(open_images(np.zeros((10, 10, 9)))) == 1
    with pytest.raises(InputError, match="at most 1,000 values, but got 10×12 pixels of 9 channels; leave channels"):
        open_images(np.zeros((10, 12, 9)))


def test_what_the_file_is_not_to_blame_for(tmp_path, monkeypatch):
    def failing(error: Exception) -> None:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(spwnet.images, "plain_pixels", fail)

    source = open_images(save(tmp_path / "a.png", noise(3, 4)))
    failing(MemoryError("no room"))
    with pytest.raises(MemoryError, match="no room"):
        source[0]
    failing(PermissionError(13, "Permission denied"))
    with pytest.raises(InputError, match="Permission denied; check that the file is there and that you may read it"):
        source[0]


# Frames, channels, fingerprints


def test_frame_indices(tmp_path):
    for number in [3, 5, 12]:
        save(tmp_path / f"f{number}.png", noise(3, 4))
    source = open_images(tmp_path)
    assert frame_indices(source, "all") == [0, 1, 2]
    assert frame_indices(source, [12, 3]) == [2, 0]
    assert frame_indices(source, (5,)) == [1]
    with pytest.raises(InputError, match="among the 3 from 3 to 12, but there is no frame 4"):
        frame_indices(source, [3, 4, 99])
    with pytest.raises(InputError, match="but got none"):
        frame_indices(source, [])
    with pytest.raises(InputError, match="frame numbers or 'all', but got 'first'"):
        frame_indices(source, "first")
    with pytest.raises(InputError, match="a list of frame numbers or 'all', but got 3; put it into a list"):
        frame_indices(source, 3)
    with pytest.raises(InputError, match="expected each frame once, but got frame 5 more than once"):
        frame_indices(source, [3, 5, 5])


def test_frames_of_a_long_recording_are_found_at_once():
    class Long(Foreign):
        names = numbers = tuple(range(200_000))

    start = time.monotonic()
    assert frame_indices(Long(), range(200_000)) == list(Long.numbers)
    assert time.monotonic() - start < 5


class Foreign:
    """A source of another make."""

    names, numbers = ("a", "b"), (0, 1)

    def __len__(self) -> int:
        return 2

    def __getitem__(self, position: int) -> Image:
        return Image(np.zeros((2, 2, 1 + position)), self.names[position], False)


def test_channels_are_counted_without_reading(tmp_path, monkeypatch):
    save(tmp_path / "a.png", noise(3, 4, 3))
    tifffile.imwrite(tmp_path / "b.tif", noise(3, 20, 30), photometric="minisblack", metadata={"axes": "CYX"})
    np.save(tmp_path / "c.npy", noise(5, 6))
    source = open_images(tmp_path)
    monkeypatch.setattr(spwnet.stacks.Stack, "read", None)
    assert check_same_channels(source, [0, 1]) == 3
    with pytest.raises(InputError, match="'a' has 3 and 'c' has 1; give images of one kind"):
        check_same_channels(source)
    with pytest.raises(InputError, match="'c' has 1 and 'a' has 3"):
        check_same_channels(source, [2, 0])
    with pytest.raises(InputError, match="at least one image"):
        check_same_channels(source, [])


def test_channels_of_a_foreign_source():
    source = open_images(Foreign())
    assert check_same_channels(source, [0]) == 1
    with pytest.raises(InputError, match="'a' has 1 and 'b' has 2"):
        check_same_channels(source)


def test_channels_of_a_damaged_file(tmp_path):
    save(tmp_path / "a.png", noise(3, 4))
    (tmp_path / "b.png").write_text("text")
    with pytest.raises(InputError, match=r"b\.png': expected the content of a PNG, JPEG or BMP file"):
        check_same_channels(open_images(tmp_path))


def test_fingerprint(tmp_path):
    pixels = noise(4, 6, 3)
    image = Image(pixels, "a", True)
    same = open_images(save(tmp_path / "b.png", pixels))[0]
    assert fingerprint(same) == fingerprint(image)
    assert re.fullmatch("[0-9a-f]{64}", fingerprint(image))
    changed = pixels.copy()
    changed[0, 0, 0] ^= 1
    others = [changed, pixels.astype(np.uint16), pixels.reshape(6, 4, 3), pixels.transpose(1, 0, 2), pixels.view("i1")]
    assert len({fingerprint(Image(p, "a", True)) for p in [pixels, *others]}) == 6
    swapped = pixels.astype(">u2")
    assert fingerprint(Image(swapped, "a", True)) == fingerprint(Image(pixels.astype("<u2"), "a", True))
    view = np.concatenate([pixels, pixels], axis=1)[:, ::2]
    assert fingerprint(Image(view, "a", True)) == fingerprint(Image(view.copy(), "a", True))


def test_files_are_closed(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(4, 20, 30), compression="zlib", photometric="minisblack")
    source = open_images(tmp_path / "a.tif")
    source[0]
    assert str(tmp_path / "a.tif") in {file.path for file in psutil.Process().open_files()}
    del source
    assert str(tmp_path / "a.tif") not in {file.path for file in psutil.Process().open_files()}


def test_channels_from_several_files_are_joined(tmp_path, caplog):
    rng = np.random.default_rng(0)
    for kind, dtype in (("neutron", np.uint16), ("xray", np.uint8)):
        (tmp_path / kind).mkdir()
        for number in (1, 2):
            tifffile.imwrite(tmp_path / kind / f"{kind}_{number}.tif", rng.integers(0, 200, (9, 7)).astype(dtype))
    one, other = open_images(tmp_path / "neutron"), open_images(tmp_path / "xray")
    both = JoinedImages([one, other])
    assert isinstance(both, ImageSource)
    assert (both.names, both.numbers, len(both), both.channels(1)) == (("neutron_1", "neutron_2"), (1, 2), 2, 2)
    for k in range(2):
        assert both[k].pixels.dtype == np.uint16
        np.testing.assert_array_equal(both[k].pixels[..., :1], one[k].pixels)
        np.testing.assert_array_equal(both[k].pixels[..., 1:], other[k].pixels)
    with pytest.raises(InputError, match=r"expected as many images in each channel, but .* are 2 and .* are 1; give"):
        JoinedImages([one, open_images(tmp_path / "xray" / "xray_1.tif")])
    assert not caplog.records
    (tmp_path / "xray" / "xray_2.tif").rename(tmp_path / "xray" / "xray_3.tif")
    JoinedImages([one, open_images(tmp_path / "xray")])
    assert "'neutron_2' and 'xray_3' have different numbers: check that they belong together" in caplog.text
    larger = open_images([np.zeros((9, 8)), np.zeros((9, 8))])
    with pytest.raises(InputError, match=r"expected channels of one size, but .* has 9×7 and .* 9×8 pixels; register"):
        JoinedImages([one, larger])[0]
