from __future__ import annotations

import io
import json
import signal
import zipfile
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import tifffile
from PIL import Image

import spwnet
from spwnet import cli, dividing
from spwnet.errors import InputError, OutputError, SettingsError, Stopped
from spwnet.hierarchy import RegionHierarchy
from spwnet.metrics import adjusted_rand, contingency
from spwnet.storage import claimed
from tests.conftest import TINY

QUICK = spwnet.make_settings(
    overrides={"regions": {"steps": 2, "learned_pixels": 1024}, "training.precision": "float32"}
)
FLAGS = ["--set", "regions.steps=2", "--set", "regions.learned_pixels=1024", "--set", "training.precision=float32"]


def truth(height=60, width=76):
    """Four regions, each in one piece: left, right, a band below, and a disc on the left."""
    y, x = np.mgrid[:height, :width]
    labels = np.where(y > 0.75 * height, 2, x > 0.6 * width).astype(int)
    labels[(y - 0.4 * height) ** 2 + (x - 0.3 * width) ** 2 < (0.22 * height) ** 2] = 3
    return labels


def flat_picture(seed=0, channels=3, **size):
    """Flat regions of clearly different values, with noise."""
    labels, rng = truth(**size), np.random.default_rng(seed)
    values = np.array(
        [[40, 60, 200, 90, 170], [120, 200, 60, 20, 90], [220, 130, 110, 160, 20], [60, 20, 30, 240, 230]]
    )
    values = np.array([[30], [100], [170], [240]]) if channels == 1 else values[:, :channels]
    image = values[labels] + rng.normal(0, 6, (*labels.shape, channels))
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def hierarchy():
    return spwnet.regions(flat_picture(), learned=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for seed in (1, 2):
        Image.fromarray(flat_picture(seed, height=40, width=52)).save(folder / f"image_{seed}.png")
    return folder


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_flat_regions_are_found_in_any_number_of_channels(channels):
    found = spwnet.regions(flat_picture(channels=channels), learned=False)
    labels = found.cut(regions=4)
    assert labels.dtype == np.int32
    assert labels.shape == truth().shape
    assert adjusted_rand(contingency(labels, truth())) > 0.95


def test_a_cut_has_as_many_regions_as_asked_numbered_by_their_first_pixels(hierarchy):
    for count in (1, 2, 3, hierarchy.count):
        labels = hierarchy.cut(regions=count)
        ids, first = np.unique(labels, return_index=True)
        np.testing.assert_array_equal(ids, np.arange(count))
        assert (np.diff(first) > 0).all()
    assert hierarchy.cut(threshold=1).max() == 0
    assert hierarchy.cut(threshold=0).max() + 1 == hierarchy.count


def test_heights_never_fall_and_levels_are_nested(hierarchy):
    assert (np.diff(hierarchy.heights) >= 0).all()
    assert hierarchy.heights.min() >= 0
    assert hierarchy.heights.max() <= 1
    levels = [hierarchy.cut(threshold=t) for t in np.linspace(0, 1, 6)]
    for fine, coarse in pairwise(levels):
        assert np.unique(fine * 10_000 + coarse).size == fine.max() + 1
    for threshold, labels in zip(np.linspace(0, 1, 6), levels, strict=True):
        assert hierarchy.regions_at(threshold) == labels.max() + 1


def test_every_region_is_in_one_piece(hierarchy):
    from scipy.ndimage import label

    labels = hierarchy.cut(regions=4)
    assert [label(labels == k)[1] for k in range(4)] == [1] * 4


def test_boundaries_above_a_threshold_are_those_of_its_cut(hierarchy):
    drawn = hierarchy.boundaries()
    for threshold in (0.2, 0.5, 0.9):
        labels = hierarchy.cut(threshold=threshold)
        border = np.zeros(labels.shape, bool)
        border[:, :-1] |= labels[:, :-1] != labels[:, 1:]
        border[:-1] |= labels[:-1] != labels[1:]
        np.testing.assert_array_equal(drawn > threshold, border)


def test_merges_by_hand():
    """Three leaves in a row: the last two merge first."""
    leaves = np.array([[2, 2, 0, 1]], np.int32)
    tree = RegionHierarchy(
        leaves, np.array([[0, 1], [2, 3]], np.int32), np.array([0.25, 0.75]), np.zeros((3, 3), np.uint8)
    )
    assert tree.cut(regions=2).tolist() == [[0, 0, 1, 1]]
    assert tree.cut(threshold=0.25).tolist() == [[0, 0, 1, 1]]
    assert tree.cut(threshold=0.24).tolist() == [[0, 0, 1, 2]]
    assert tree.boundaries().tolist() == [[0, 0.75, 0.25, 0]]


def test_the_same_seed_gives_the_same_and_the_network_counts():
    image = flat_picture(3, height=40, width=52)
    steps = []
    first = spwnet.regions(image, settings=QUICK, on_progress=steps.append)
    again = spwnet.regions(image, settings=QUICK)
    for name in ("leaves", "merges", "heights", "colours"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert [(state.stage, state.done) for state in steps] == [("train", 1), ("train", 2), ("regions", 1)]
    plain = spwnet.regions(image, settings=QUICK, learned=False)
    np.testing.assert_array_equal(first.leaves, plain.leaves)
    assert not np.array_equal(first.heights, plain.heights)
    other = spwnet.regions(image, settings=QUICK.model_copy(update={"seed": 1}))
    assert not np.array_equal(first.heights, other.heights)


def test_a_trained_network_gives_the_evidence(tmp_path):
    image = flat_picture(4, height=40, width=52)
    values = {**TINY, "training": {**TINY["training"], "epochs": 1}}
    model = spwnet.train(image, tmp_path / "run", settings=spwnet.make_settings(overrides=values))
    found = spwnet.regions(image, model=model)
    assert found.info["learned"] == model.fingerprint
    np.testing.assert_array_equal(found.heights, spwnet.regions(image, model=tmp_path / "run").heights)
    with pytest.raises(InputError, match="expected 3 channels as in the training images"):
        spwnet.regions(image[..., 0], model=model)
    with pytest.raises(SettingsError, match="either a model or `learned=False`"):
        spwnet.regions(image, model=model, learned=False)


def test_a_constant_image_is_one_region():
    found = spwnet.regions(np.full((20, 30, 3), 7, np.uint8))
    assert found.count == 1
    assert found.cut(regions=1).tolist() == np.zeros((20, 30)).tolist()
    assert not found.boundaries().any()


def test_constant_brightness_and_thin_images_are_no_obstacle():
    rng = np.random.default_rng(0)
    grey = np.zeros((16, 40, 3), np.uint8)
    grey[:, :20, 0], grey[:, 20:, 1] = 255, 130
    halves = spwnet.regions(grey, settings=QUICK).cut(regions=2)
    assert halves[8, 5] != halves[8, 35]
    assert spwnet.regions(rng.random((16, 300)), settings=QUICK).leaves.shape == (16, 300)
    with pytest.raises(InputError, match="at least 16×16 pixels"):
        spwnet.regions(grey[:15])
    margin = spwnet.make_settings(overrides={"images.margin": 7})
    with pytest.raises(InputError, match="at least 16×16 pixels, but 'image' has 2×26 as it is worked on"):
        spwnet.regions(grey, settings=margin, learned=False)
    framed = np.full((40, 40), 9, np.uint8)
    framed[:7] = framed[-7:] = 200
    assert spwnet.regions(framed, settings=margin).count == 1
    with pytest.raises(InputError, match=r"more than 16 pixels along one side of 'image' .* 16×16 .*`learned=False`"):
        spwnet.regions(grey[:, 12:28])


def test_channels_that_are_no_colours_are_none_for_the_network(tmp_path, monkeypatch):
    tifffile.imwrite(
        tmp_path / "a.tif", np.moveaxis(flat_picture(), -1, 0), photometric="minisblack", metadata={"axes": "CYX"}
    )
    seen = []
    whole = dividing.train
    monkeypatch.setattr(dividing, "train", lambda source, **given: seen.append(source[0]) or whole(source, **given))
    spwnet.regions(tmp_path / "a.tif", settings=QUICK)
    assert [(image.name, image.rgb) for image in seen] == [("a", False)]


def test_large_images_are_divided_in_a_smaller_size():
    image = np.repeat(np.repeat(flat_picture(height=40, width=52), 2, axis=0), 2, axis=1)
    settings = spwnet.make_settings(overrides={"regions.max_pixels": 40 * 52})
    labels = spwnet.regions(image, settings=settings, learned=False).cut(regions=4)
    expected = np.repeat(np.repeat(truth(40, 52), 2, axis=0), 2, axis=1)
    assert adjusted_rand(contingency(labels, expected)) > 0.9


def test_round_trip(hierarchy, tmp_path):
    hierarchy.save(tmp_path / "tree.npz")
    again = RegionHierarchy.load(tmp_path / "tree.npz")
    for name in ("leaves", "merges", "heights", "colours"):
        ours, theirs = getattr(hierarchy, name), getattr(again, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert again.info == hierarchy.info
    assert {"seed", "regions", "spwnet", "sha256", "learned"} <= set(again.info)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"leaves": np.zeros((4, 4))}, "its leaves are float64"),
        ({"leaves": np.zeros(4, np.int32)}, "shape"),
        ({"leaves": np.array([[0, 2]], np.int32)}, "not numbered 0 to 1"),
        ({"merges": np.zeros((1, 2), np.int32)}, "merges of the shape"),
        ({"merges": np.array([[0, 1], [0, 3]], np.int32)}, "no tree"),
        ({"merges": np.array([[0, 4], [2, 3]], np.int32)}, "no tree"),
        ({"heights": np.array([0.5, 0.25])}, "heights do not rise"),
        ({"heights": np.array([0.5, np.nan])}, "heights do not rise"),
        ({"colours": np.zeros((2, 3), np.uint8)}, "colours of the shape"),
        ({"heights": np.array([object(), 1])}, "readable hierarchy"),
        ({"description": np.frombuffer(b"{", np.uint8)}, "expected a description"),
        ({"description": np.frombuffer(b'{"format": 99}', np.uint8)}, "format 1 or older"),
    ],
)
def test_damaged_content_is_told(change, message, tmp_path):
    good = {
        "leaves": np.array([[0, 1, 2]], np.int32),
        "merges": np.array([[0, 1], [2, 3]], np.int32),
        "heights": np.array([0.25, 0.5]),
        "colours": np.zeros((3, 3), np.uint8),
        "description": np.frombuffer(b'{"format": 1}', np.uint8),
    }
    file = tmp_path / "tree.npz"
    np.savez(file, **good)
    assert RegionHierarchy.load(file).count == 3
    np.savez(file, **{**good, **change})
    with pytest.raises(InputError, match=message):
        RegionHierarchy.load(file)


def test_other_files_are_told(hierarchy, tmp_path):
    file = tmp_path / "tree.npz"
    with pytest.raises(InputError, match="there is no such file"):
        RegionHierarchy.load(file)
    np.savez(file, leaves=hierarchy.leaves)
    with pytest.raises(InputError, match="has no 'merges'"):
        RegionHierarchy.load(file)
    np.save(tmp_path / "array.npy", hierarchy.leaves)
    with pytest.raises(InputError, match="got one array"):
        RegionHierarchy.load(tmp_path / "array.npy")
    hierarchy.save(file)
    whole = file.read_bytes()
    for cut in (0, 30, len(whole) // 2, len(whole) - 5):
        file.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="readable hierarchy"):
            RegionHierarchy.load(file)
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes(40) + whole[middle + 40 :])
    with pytest.raises(InputError, match="readable hierarchy"):
        RegionHierarchy.load(file)


def test_hostile_files_are_told(hierarchy, tmp_path):
    file = tmp_path / "tree.npz"
    hierarchy.save(file)
    with np.load(file) as arrays:
        good = dict(arrays)
    np.savez_compressed(file, **{**good, "heights": np.zeros(10_000_000)})
    with pytest.raises(InputError, match=r"expected arrays of one hierarchy in .* bytes beside its leaves"):
        RegionHierarchy.load(file)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i4", "fortran_order": False, "shape": (2**22, 2**22)})
    np.savez(file, **{name: array for name, array in good.items() if name != "leaves"})
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("leaves.npy", header.getvalue())
    with pytest.raises(InputError, match="expected a readable hierarchy"):
        RegionHierarchy.load(file)
    hierarchy.save(file)
    data = bytearray(file.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + place] |= 1  # encrypted
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"expected a readable hierarchy .* encrypted"):
        RegionHierarchy.load(file)


def test_bombs_are_refused_by_their_sizes(hierarchy, tmp_path, monkeypatch):
    hierarchy.save(tmp_path / "tree.npz")
    monkeypatch.setattr("spwnet.hierarchy.MOST_PIXELS", 100)
    with pytest.raises(InputError, match="expected leaves of at most 100 pixels"):
        RegionHierarchy.load(tmp_path / "tree.npz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "but got neither"),
        ({"regions": 2, "threshold": 0.5}, "but got both"),
        ({"regions": 0}, "expected 1 to"),
        ({"regions": 10**6}, "expected 1 to"),
        ({"threshold": 1.5}, "threshold of 0 to 1"),
        ({"threshold": float("nan")}, "threshold of 0 to 1"),
    ],
)
def test_impossible_levels_are_told(hierarchy, arguments, message):
    with pytest.raises(SettingsError, match=message):
        hierarchy.cut(**arguments)


def test_several_images_are_for_another_function(files):
    with pytest.raises(InputError, match="expected one image, but got 2"):
        spwnet.regions(files)
    with pytest.raises(SettingsError, match="but got both"):
        spwnet.regions(files / "image_1.png", count=2, level=0.5)


def command(capsys, *arguments, status=0):
    assert cli.main([str(a) for a in arguments]) == status
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return " ".join(printed.err.split()) if status else printed.out


def test_the_command_equals_the_api(files, tmp_path, capsys):
    out = tmp_path / "out"
    command(capsys, "regions", files, "--out", out, "--regions", "4", "--seed", "3", *FLAGS)
    settings = QUICK.model_copy(update={"seed": 3})
    for name in ("image_1", "image_2"):
        ours = spwnet.regions(files / f"{name}.png", settings=settings)
        theirs = RegionHierarchy.load(out / f"{name}.npz")
        np.testing.assert_array_equal(ours.leaves, theirs.leaves)
        np.testing.assert_array_equal(ours.heights, theirs.heights)
        labels = np.asarray(Image.open(out / "labels" / f"{name}.png"))
        np.testing.assert_array_equal(labels, ours.cut(regions=4))
        picture = np.asarray(Image.open(out / "boundaries" / f"{name}.png"))
        np.testing.assert_array_equal(picture, np.rint(ours.boundaries() * 255))
        assert np.asarray(Image.open(out / "overlays" / f"{name}.jpg")).shape == (*labels.shape, 3)
    assert "overwrite" in command(capsys, "regions", files, "--out", out, status=1)


def test_recutting_needs_no_image(files, tmp_path, capsys):
    out, again = tmp_path / "out", tmp_path / "again"
    command(capsys, "regions", files / "image_1.png", "--out", out, "--no-learned")
    tree = RegionHierarchy.load(out / "image_1.npz")
    default = np.asarray(Image.open(out / "labels" / "image_1.png"))
    np.testing.assert_array_equal(default, tree.cut(threshold=spwnet.Settings().regions.level))
    printed = command(capsys, "regions", "--from", out / "image_1.npz", "--regions", "3", "--out", again)
    assert printed.startswith("3 regions")
    np.testing.assert_array_equal(np.asarray(Image.open(again / "labels" / "image_1.png")), tree.cut(regions=3))
    assert sorted(p.name for p in again.iterdir()) == ["labels", "overlays"]
    assert "overwrite" in command(capsys, "regions", "--from", out / "image_1.npz", "--out", again, status=1)
    labels = spwnet.recut_regions(tree, again, level=0.5, overwrite=True)
    np.testing.assert_array_equal(np.asarray(Image.open(again / "labels" / "image_1.png")), labels)


def test_resuming_reads_what_is_there_and_draws_another_level(files, tmp_path, monkeypatch):
    spwnet.regions_of_all(files, tmp_path, learned=False, count=2)
    monkeypatch.setattr(dividing, "_divide", lambda *_: pytest.fail("made again"))
    assert spwnet.regions_of_all(files, tmp_path, learned=False, count=3, resume=True) == ("image_1", "image_2")
    assert np.asarray(Image.open(tmp_path / "labels" / "image_2.png")).max() == 2
    with pytest.raises(OutputError, match="its 'learned' differs"):
        spwnet.regions_of_all(files, tmp_path, resume=True)
    settings = spwnet.make_settings(overrides={"seed": 5})
    with pytest.raises(OutputError, match="its 'seed' differs"):
        spwnet.regions_of_all(files, tmp_path, learned=False, settings=settings, resume=True)


def test_ctrl_c_keeps_what_is_written(files, tmp_path):
    def press(state):
        if state.stage == "regions":
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped, match="stopped after 1 of 2 images; go on by `--resume`"):
        spwnet.regions_of_all(files, tmp_path, learned=False, on_progress=press)
    assert RegionHierarchy.load(tmp_path / "image_1.npz").count > 1
    spwnet.regions_of_all(files, tmp_path, learned=False, resume=True)
    assert (tmp_path / "image_2.npz").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_the_training_on_an_image_stops_between_images(files, tmp_path):
    def press(state):
        if state.stage == "train" and state.done == state.total:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped, match="stopped after 0 of 2 images; go on by `--resume`"):
        spwnet.regions_of_all(files, tmp_path, settings=QUICK, on_progress=press)
    with pytest.raises(Stopped, match="stopped after 0 of 1 images; without a folder nothing is kept"):
        spwnet.regions(files / "image_1.png", settings=QUICK, on_progress=press)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_job_a_folder(files, hierarchy, tmp_path):
    with claimed(tmp_path / "o"):
        for work in (
            lambda: spwnet.regions(files / "image_1.png", tmp_path / "o", learned=False),
            lambda: spwnet.recut_regions(hierarchy, tmp_path / "o"),
        ):
            with pytest.raises(OutputError, match="another one writes to it"):
                work()


@pytest.mark.parametrize("name", ["../evil", "a/b", "a\\b", "..", "/evil"])
def test_names_stay_in_the_folder(hierarchy, tmp_path, name):
    with pytest.raises(InputError, match="expected a plain name for the files"):
        spwnet.recut_regions(replace(hierarchy, info={"name": name}), tmp_path / "o" / "p", count=2)
    with pytest.raises(InputError, match="expected a plain name for the files"):
        spwnet.recut_regions(hierarchy, tmp_path / "o" / "p", name=name, count=2)
    assert not list(tmp_path.iterdir())


def test_more_regions_than_png_holds_go_to_tiff(tmp_path):
    count = 66_000
    merges = np.stack([np.arange(count - 1) + count - 1, np.arange(1, count)], axis=1).astype(np.int32)
    merges[0] = 0, 1
    leaves = np.arange(count, dtype=np.int32).reshape(264, 250)
    many = RegionHierarchy(leaves, merges, np.linspace(0, 1, count - 1), np.zeros((count, 3), np.uint8))
    spwnet.recut_regions(many, tmp_path, name="a", count=count)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "labels" / "a.tif"), leaves)
    spwnet.recut_regions(many, tmp_path, name="a", count=5, overwrite=True)
    assert [file.name for file in (tmp_path / "labels").iterdir()] == ["a.png"]
    assert len(np.unique(np.asarray(Image.open(tmp_path / "labels" / "a.png")))) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["regions", "--out", "o"], "either images or a hierarchy by --from, but got neither"),
        (["regions", "x.png", "--from", "x.npz", "--out", "o"], "but got both"),
        (["regions", "no.png", "--out", "o"], "no.png"),
        (["regions", "--from", "no.npz", "--out", "o"], "there is no such file"),
        (["regions", "IMAGE", "--out", "o", "--regions", "2", "--level", "0.5"], "a number of regions or a level"),
        (["regions", "IMAGE", "--out", "o", "--regions", "0"], "at least one region"),
        (["regions", "IMAGE", "--out", "o", "--level", "2"], "a level of 0 to 1"),
        (["regions", "IMAGE", "--out", "o", "--run", "nowhere"], "expected a run directory"),
        (["regions", "IMAGE", "--out", "o", "--set", "regions.step=3"], "Did you mean 'regions.steps'"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(arguments, message, files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [str(files / "image_1.png") if a == "IMAGE" else a for a in arguments]
    assert message in command(capsys, *arguments, status=1)
    assert not (tmp_path / "o").exists()


def test_settings_are_kept_in_the_file(files, tmp_path):
    spwnet.regions(files / "image_1.png", tmp_path, learned=False, settings=QUICK)
    info = RegionHierarchy.load(tmp_path / "image_1.npz").info
    assert json.loads(json.dumps(info)) == info
    assert info["regions"]["steps"] == 2
    assert info["learned"] == "none"
