from __future__ import annotations

import json
import sys
from base64 import b64decode
from datetime import UTC, datetime
from io import BytesIO

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from spwnet import outputs
from spwnet.errors import OutputError


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)


class TestLabelType:
    @pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
    @pytest.mark.parametrize(("n", "dtype"), [(1, "u1"), (256, "u1"), (257, "u2"), (65_536, "u2")])
    def test_smallest(self, n, dtype, suffix):
        assert outputs.label_dtype(n, suffix) == np.dtype(dtype)

    def test_tiff_holds_more(self):
        assert outputs.label_dtype(65_537, ".tif") == np.uint32
        assert outputs.label_dtype(2**32, ".tif") == np.uint32

    def test_too_many(self):
        with pytest.raises(OutputError, match=r"at most 65,536 classes in a \.png .* got 65,537; write TIFF"):
            outputs.label_dtype(65_537, ".png")
        with pytest.raises(OutputError, match=r"at most 4,294,967,296 classes in a \.tif .* merge some"):
            outputs.label_dtype(2**32 + 1, ".tif")

    def test_unknown_format(self):
        with pytest.raises(OutputError, match=r"label image named \.png, \.tif, \.tiff, but got '\.jpg'"):
            outputs.label_dtype(4, ".jpg")


class TestLabels:
    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    @given(data=st.data())
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_round_trip(self, tmp_path, suffix, data):
        most = 65_536 if suffix == ".png" else 2**32
        n = data.draw(st.integers(1, 300) | st.integers(1, most))
        shape = hnp.array_shapes(min_dims=2, max_dims=2 if suffix == ".png" else 3, max_side=9)
        labels = data.draw(hnp.arrays(np.int64, shape, elements=st.integers(0, n - 1)))
        path = tmp_path / f"labels{suffix}"
        outputs.write_labels(path, labels, n)
        read = np.array(Image.open(path)) if suffix == ".png" else tifffile.imread(path).reshape(labels.shape)
        assert read.dtype == outputs.label_dtype(n, suffix)
        np.testing.assert_array_equal(read, labels)

    @pytest.mark.parametrize("shape", [(3, 20, 30), (20, 30, 3), (4, 20, 30)])
    def test_volume_is_not_taken_for_colour(self, tmp_path, shape):
        labels = np.arange(np.prod(shape)).reshape(shape)
        outputs.write_labels(tmp_path / "x.tif", labels, labels.size)
        with tifffile.TiffFile(tmp_path / "x.tif") as file:
            (series,) = file.series
            assert series.axes == "ZYX"
            assert series.shape == shape
            assert len(file.pages) == shape[0]
            assert file.pages[0].photometric == tifffile.PHOTOMETRIC.MINISBLACK

    def test_tiff_is_compressed_and_opens_elsewhere(self, tmp_path):
        labels = np.zeros((300, 300), np.int32)
        outputs.write_labels(tmp_path / "x.tif", labels, 4)
        assert (tmp_path / "x.tif").stat().st_size < 5000
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / "x.tif")), labels)

    def test_not_contiguous_and_big_endian(self, tmp_path):
        labels = np.arange(600).reshape(20, 30).T.astype(">i4")
        outputs.write_labels(tmp_path / "x.png", labels, 600)
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / "x.png")), labels)

    @pytest.mark.parametrize(
        ("name", "labels", "message"),
        [
            (
                "x.png",
                np.zeros((2, 3, 4), int),
                r"shape \(H, W\); write volumes as TIFF \(\.tif\), but got \(2, 3, 4\)",
            ),
            ("x.tif", np.zeros(4, int), r"shape \(H, W\) or \(D, H, W\), but got \(4,\)"),
            ("x.tif", np.zeros((0, 4), int), r"but got \(0, 4\)"),
            ("x.png", np.full((2, 2), 5), r"class ids 0 to 4 for x\.png, but got 5 to 5"),
            ("x.png", np.full((2, 2), -1), "but got -1 to -1"),
            ("x.tif", np.array([[0.5, 1.7]]), r"expected integers as class ids for x\.tif, but got float64"),
        ],
    )
    def test_what_cannot_be_written(self, tmp_path, name, labels, message):
        with pytest.raises(OutputError, match=message):
            outputs.write_labels(tmp_path / name, labels, 5)
        assert files(tmp_path) == []


class TestPicture:
    def test_png_is_exact(self, tmp_path, rgb):
        outputs.write_picture(tmp_path / "x.png", rgb[:, ::-1])
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / "x.png")), rgb[:, ::-1])

    @pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
    def test_jpeg_keeps_thin_coloured_lines(self, tmp_path, suffix):
        picture = np.full((64, 64, 3), 128, np.uint8)
        picture[:, 31] = (255, 0, 0)
        outputs.write_picture(tmp_path / f"x{suffix}", picture)
        with Image.open(tmp_path / f"x{suffix}") as image:
            assert image.format == "JPEG"
            assert np.abs(np.array(image)[:, 31].astype(int) - (255, 0, 0)).mean() < 20

    def test_unknown_format(self, tmp_path, rgb):
        with pytest.raises(OutputError, match=r"picture named \.png, \.jpg, \.jpeg, but got 'x\.gif'"):
            outputs.write_picture(tmp_path / "x.gif", rgb)

    def test_a_picture_too_long_for_jpeg(self, tmp_path):
        picture = np.zeros((1, 70_000, 3), np.uint8)
        with pytest.raises(
            OutputError, match=r"at most 65,500 pixels .* but got 1×70,000; leave out `--full-overlays`"
        ):
            outputs.write_picture(tmp_path / "x.jpg", picture)
        assert files(tmp_path) == []
        outputs.write_picture(tmp_path / "x.jpg", picture[:, :65_500])
        outputs.write_picture(tmp_path / "x.png", picture)


class TestOverlay:
    COLOURS = np.array([[0, 100, 200], [255, 0, 0]], np.uint8)

    def test_blend(self):
        display = np.full((4, 5, 3), 100, np.uint8)
        blended = outputs.overlay(display, np.zeros((4, 5), int), self.COLOURS, opacity=0.25)
        assert blended.dtype == np.uint8
        assert (blended == (75, 100, 125)).all()

    @pytest.mark.parametrize("opacity", [0.0, 1.0])
    def test_extremes(self, rgb, opacity):
        labels = np.ones(rgb.shape[:2], np.uint8)
        expected = rgb if opacity == 0 else np.broadcast_to(self.COLOURS[1], rgb.shape)
        np.testing.assert_array_equal(outputs.overlay(rgb, labels, self.COLOURS, opacity), expected)

    def test_boundary_is_one_pixel_wide(self):
        display = np.zeros((7, 8, 3), np.uint8)
        labels = np.zeros((7, 8), int)
        labels[3:, 4:] = 1
        edge = (outputs.overlay(display, labels, self.COLOURS) == 255).all(axis=-1)
        expected = np.zeros((7, 8), bool)
        expected[2, 4:] = expected[3:, 3] = True
        np.testing.assert_array_equal(edge, expected)

    def test_input_is_left_alone(self, rgb):
        before = rgb.copy()
        outputs.overlay(rgb, np.zeros(rgb.shape[:2], int), self.COLOURS)
        np.testing.assert_array_equal(rgb, before)

    def test_shapes_that_do_not_fit(self, rgb):
        with pytest.raises(
            OutputError, match=r"shape \(5, 6, 3\) under labels of shape \(5, 6\), but got \(12, 17, 3\)"
        ):
            outputs.overlay(rgb, np.zeros((5, 6), int), self.COLOURS)

    def test_colours_of_any_memory_layout(self, rgb):
        labels = np.zeros(rgb.shape[:2], int)
        labels[3:] = 1
        plain = outputs.overlay(rgb, labels, self.COLOURS)
        for colours in (np.asfortranarray(self.COLOURS), np.repeat(self.COLOURS, 2, axis=0)[::2]):
            np.testing.assert_array_equal(outputs.overlay(rgb, labels, colours), plain)

    def test_a_label_below_0_has_no_colour(self, rgb):
        labels = np.zeros(rgb.shape[:2], int)
        labels[3, 4] = -1
        with pytest.raises(OutputError, match="a colour for each class, but class -1 has none of 2"):
            outputs.overlay(rgb, labels, self.COLOURS)

    def test_class_without_colour(self, rgb):
        with pytest.raises(OutputError, match="a colour for each class, but class 2 has none of 2"):
            outputs.overlay(rgb, np.full(rgb.shape[:2], 2), self.COLOURS)


class TestGrid:
    def test_pictures_stand_where_they_should(self, rgb):
        small, grey = rgb[:5, :6], rgb[..., 0]
        laid = outputs.grid([[rgb, small], [small, grey]], gap=3)
        assert laid.shape == (3 + 12 + 3 + 12 + 3, 3 + 17 + 3 + 17 + 3, 3)
        assert laid.dtype == np.uint8
        np.testing.assert_array_equal(laid[3:15, 3:20], rgb)
        np.testing.assert_array_equal(laid[3:8, 23:29], small)
        np.testing.assert_array_equal(laid[18:23, 3:9], small)
        np.testing.assert_array_equal(laid[18:30, 23:40], np.repeat(grey[..., None], 3, axis=-1))
        assert (laid[8:15, 23:] == 255).all()
        assert (laid[:3] == 255).all()

    def test_captions_stand_above_in_full(self):
        black = np.zeros((10, 10, 3), np.uint8)
        laid = outputs.grid([[black, black]], captions=["a caption wider than the picture", "b"], gap=4, font_size=12)
        assert laid.shape[0] == 4 + 12 + 4 + 10 + 4
        assert laid.shape[1] > 150
        caption = laid[: laid.shape[0] - 14]
        assert (caption < 128).any()
        assert (laid[:, -2:] == 255).all()


def test_provenance_says_what_made_it():
    made = outputs.provenance()
    assert list(made) == ["spwnet", "torch", "numpy", "scikit-image", "python", "platform", "time"]
    assert made["numpy"] == np.__version__
    assert made["python"] == ".".join(map(str, sys.version_info[:3]))
    assert abs((datetime.now(UTC) - datetime.fromisoformat(made["time"])).total_seconds()) < 60
    assert json.loads(json.dumps(made)) == made


class TestCheckedLabels:
    def test_type_and_memory_are_those_asked_for(self):
        found = outputs.checked_labels(np.arange(6).reshape(2, 3).T, (3, 2), outputs.stored_dtype("u2"), 5, "a part")
        assert found.dtype == np.uint16
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, [[0, 3], [1, 4], [2, 5]])

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (np.zeros((2, 3)), r"expected integers of shape \(2, 3\) for a part, but got float64"),
            (np.zeros((3, 2), int), r"expected integers of shape \(2, 3\) for a part, but got int64 of shape \(3, 2\)"),
            (np.full((2, 3), 256), "expected class ids 0 to 255 in uint8 for a part, but got 256 to 256"),
            (np.full((2, 3), -1), "but got -1 to -1"),
        ],
    )
    def test_what_cannot_be_stored(self, labels, message):
        with pytest.raises(OutputError, match=message):
            outputs.checked_labels(labels, (2, 3), np.dtype(np.uint8), 1000, "a part")

    def test_types_that_hold_no_labels(self):
        with pytest.raises(OutputError, match="one of uint8, uint16, uint32, but got int32"):
            outputs.stored_dtype("int32")


def test_a_picture_as_an_address_holds_it_in_a_size_to_show():
    small = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    kind, data = outputs.data_uri(small, 800).split(",")
    assert kind == "data:image/png;base64"
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(b64decode(data)))), small)
    large = np.repeat(np.repeat(small, 40, 0), 40, 1)
    kind, data = outputs.data_uri(large, 800).split(",")
    assert kind == "data:image/jpeg;base64"
    shown = np.asarray(Image.open(BytesIO(b64decode(data))))
    assert shown.shape == (600, 800, 3)
    assert np.abs(shown[10::20, 10::20].astype(int) - small).mean() < 8
    assert outputs.data_uri(np.zeros((1, 5000, 3), np.uint8), 800).startswith("data:image/png")
