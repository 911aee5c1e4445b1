"""The logic of the napari plugin on a viewer's model: no window, no Qt."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tomllib

import dask.array as da
import numpy as np
import pytest
import tifffile

import spwnet
from spwnet import lazylabels
from spwnet.classes import palette
from spwnet.presets import make_settings
from spwnet.errors import InputError, OutputError, RunError, SettingsError, Stopped
from spwnet.previews import Snapshot
from spwnet.training import Progress
from spwnet.units import unit_symbol
from tests.conftest import SOLID, TINY, phantom, picture
from tests.napari_plugin import MANIFEST, click, register

from napari.components import ViewerModel
from napari.layers import Image, Labels

from spwnet.napari.editing import Editing
from spwnet.napari.files import composite, get_reader, read_segmentation, swim, write_labels
from spwnet.napari.inputs import open_layers
from spwnet.napari.jobs import Job
from spwnet.napari.logic import DIMMED, METADATA, Session, picked_layers
from spwnet.napari.reading import chosen_frames, read_names, read_settings


def pictures(count=5):
    return np.stack([picture(k) for k in range(count)])


@pytest.fixture(scope="module")
def model():
    return spwnet.train([picture(0), picture(1)], settings=make_settings("instant", overrides=TINY))


@pytest.fixture
def viewer():
    return ViewerModel()


@pytest.fixture
def session(viewer, model):
    """A session with a model, and five pictures two seconds apart."""
    viewer.add_image(
        pictures(), name="pictures", scale=(2, 0.5, 0.5), translate=(10, 3, 4), axis_labels=("t", "y", "x"),
        units=("s", "um", "um"),
    )  # fmt: skip
    session = Session(viewer)
    session.use(model)
    return session


@pytest.fixture
def result(session, viewer):
    viewer.dims.set_point(0, 14)
    return session.segment(picked_layers(viewer, ["pictures"]))


def fill(session):
    """Work out what is looked at, as the panel does."""
    while missing := session.look():
        session.filling(missing[0]).finish()
    session.refresh()


def press(layer, key):
    {str(one): act for one, act in layer.keymap.items()}[key](layer)


# Layers in


@pytest.mark.parametrize(
    ("shape", "values", "kind", "axes"),
    [
        ((40, 52), {}, "images", "YX"),
        ((40, 52, 3), {"rgb": True}, "images", "YX"),
        ((8, 40, 52), {}, "images", "TYX"),
        ((20, 40, 52), {}, "volume", "ZYX"),
        ((20, 200, 200), {}, "images", "TYX"),
        ((20, 40, 52), {"axis_labels": ("t", "y", "x")}, "images", "TYX"),
        ((20, 200, 200), {"axis_labels": ("z", "y", "x")}, "volume", "ZYX"),
        ((8, 40, 52), {"axis_labels": ("z", "y", "x")}, "images", "ZYX"),
        ((20, 40, 52, 3), {"rgb": True}, "images", "TYX"),
        ((3, 20, 40, 52), {}, "volume", "TZYX"),
        ((20, 3, 40, 52), {"axis_labels": ("Z", "Time", "y", "x")}, "volume", "ZTYX"),
        ((2, 20, 40, 52), {"axis_labels": ("channel", "z", "y", "x")}, "volume", "ZYX"),
        ((2, 40, 52), {"axis_labels": ("c", "y", "x")}, "images", "YX"),
    ],
)
def test_what_layers_are_taken_for(shape, values, kind, axes):
    given = open_layers([Image(np.zeros(shape, np.uint8), **values)])
    assert (given.kind, given.axes) == (kind, axes)
    assert given.shape == tuple(shape[values.get("axis_labels", ("",))[0] in ("c", "channel") :][: len(axes)])


def test_axes_that_only_the_viewer_names(viewer):
    layer = viewer.add_image(np.zeros((20, 40, 52)))
    viewer.dims.axis_labels = ("t", "y", "x")
    assert open_layers([layer]).kind == "volume"
    assert open_layers([layer], viewer=viewer).kind == "images"
    assert open_layers([layer], "volume", viewer).axes == "ZYX"


def test_pixels_of_images_are_read_one_by_one():
    read = []

    def make(block_info=None):
        k = block_info[None]["array-location"][0][0]
        read.append(k)
        return picture(k)[None]

    stack = da.map_blocks(make, chunks=((1,) * 4, 40, 52, 3), dtype=np.uint8, meta=np.empty((0, 0, 0, 0), np.uint8))
    source = open_layers([Image(stack, rgb=True)]).images()
    read.clear()
    assert np.array_equal(source[2].pixels, picture(2))
    assert read == [2]
    assert source[0].rgb
    assert len(source) == 4


def test_levels_colours_and_channels():
    many = Image([pictures(2)[..., 0], pictures(2)[:, ::2, ::2, 0]], multiscale=True)
    assert open_layers([many]).images()[1].pixels.shape == (40, 52, 1)
    alpha = np.dstack([picture(), np.full((40, 52), 9, np.uint8)])
    source = open_layers([Image(alpha, rgb=True)]).images()
    assert np.array_equal(source[0].pixels, picture())
    one, two = (Image(pictures(3)[..., k], name=name) for k, name in enumerate("ab"))
    joined = open_layers([one, two]).images()
    assert np.array_equal(joined[2].pixels, picture(2)[..., :2])
    assert not joined[2].rgb
    first = Image(np.moveaxis(picture(4), -1, 0), axis_labels=("c", "y", "x"))
    found = open_layers([first]).images()
    assert np.array_equal(found[0].pixels, picture(4))
    assert not found[0].rgb


def test_volumes_have_spacing_and_points_in_time():
    values = np.random.default_rng(0).integers(0, 255, (20, 2, 30, 40)).astype(np.uint8)
    layer = Image(
        da.from_array(values), axis_labels=("z", "t", "y", "x"), scale=(2, 5, 1, 1), units=("um", "s", "um", "nm")
    )
    given = open_layers([layer])
    assert (given.times, given.planes, given.split((7, 1))) == ((2,), 20, ((1,), 7))
    assert given.place((1,), 7) == (7, 1)
    volume = given.volume((1,))
    assert np.array_equal(volume.read((slice(3, 5), slice(None), slice(2, 9)))[..., 0], values[3:5, 1, :, 2:9])
    assert volume.spacing == pytest.approx((2000, 1000, 1))
    assert unit_symbol(volume.unit) == "nm"
    plain = open_layers([Image(values[:, 0], scale=(3, 1, 1))], "volume").volume()
    assert (plain.spacing, plain.unit) == ((3, 1, 1), None)
    odd = open_layers([Image(values[:, 0], units=("s", "um", "um"))], "volume").volume()
    assert (odd.spacing, odd.unit) == (None, None)
    both = open_layers([Image(values[:, 0], name=name) for name in "ab"]).volume()
    assert both.channels == 2


def test_layers_that_cannot_be_used():
    with pytest.raises(InputError, match="expected an image layer, but none is chosen"):
        open_layers([])
    with pytest.raises(InputError, match="'marks' is of Labels"):
        open_layers([Labels(np.zeros((4, 5), int), name="marks")])
    with pytest.raises(InputError, match="'a' has 40 × 52 and 'b' 40 × 53"):
        open_layers([Image(np.zeros((40, 52)), name="a"), Image(np.zeros((40, 53)), name="b")])
    with pytest.raises(InputError, match="at least three axes for a volume"):
        open_layers([Image(np.zeros((40, 52)))], "volume")
    with pytest.raises(InputError, match="Split Stack"):
        open_layers([Image(np.zeros((5, 2, 40, 52)), axis_labels=("t", "c", "y", "x"))])


def test_which_images_to_train_on(viewer):
    viewer.add_image(np.zeros((2, 5, 40, 52)), name="many")
    given = picked_layers(viewer, ["many"], "images")
    with pytest.raises(InputError, match="expected the layer 'gone', but there is none of this name any more"):
        picked_layers(viewer, ["many", "gone"])
    viewer.dims.set_point((0, 1), (1, 3))
    assert chosen_frames(" ", given, viewer) is None
    assert chosen_frames("Auto", given, viewer) == "auto"
    assert chosen_frames("current", given, viewer) == [8]
    assert chosen_frames("0, 7-9,8", given, viewer) == [0, 7, 8, 9]
    with pytest.raises(InputError, match="expected numbers from 0 to 9, but got 10"):
        chosen_frames("10", given, viewer)
    with pytest.raises(InputError, match="'0, 4, 10-12'"):
        chosen_frames("some", given, viewer)
    with pytest.raises(InputError, match="the smaller number first, but got '9-7'; write 7-9"):
        chosen_frames("0, 9-7", given, viewer)
    assert chosen_frames("current", picked_layers(viewer, ["many"], "volume"), viewer) == [3]


def test_settings_and_names_in_words():
    assert read_settings("instant", "training.epochs = 3; seed=2").seed == 2
    with pytest.raises(SettingsError, match="expected settings like"):
        read_settings("default", "seed: 2")
    with pytest.raises(SettingsError, match="epochs"):
        read_settings("default", "training.epoch = 2")
    assert read_names(" a b, c,") == ["a b", "c"]
    with pytest.raises(SettingsError, match="got 'a' twice"):
        read_names("a, a")
    with pytest.raises(SettingsError, match="got none"):
        read_names(" ")


# Training


def test_training_tells_how_far_it_is_and_shows_pictures(viewer, tmp_path):
    viewer.add_image(pictures(), rgb=True, name="pictures")
    session = Session(viewer)
    given = picked_layers(viewer, ["pictures"])
    told = []

    def listen(job):
        told.append((yield from job.news()))

    told = list(listen(session.training(given, make_settings(overrides=TINY), [0, 3], run=tmp_path / "run"))) + told
    assert [one.done for one in told if isinstance(one, Progress)] == [1, 2, 3, 4]
    assert any(isinstance(one, Snapshot) for one in told)
    assert [image["name"] for image in told[-1].info["images"]] == ["image_0000", "image_0003"]
    session.open_run(tmp_path / "run")
    assert session.trained().fingerprint == told[-1].fingerprint
    again = session.training(given, make_settings(overrides=TINY), run=tmp_path / "run")
    with pytest.raises(OutputError):
        again.finish()


def test_training_is_stopped_or_kept(viewer):
    viewer.add_image(pictures(), rgb=True, name="pictures")
    session = Session(viewer)
    given = picked_layers(viewer, ["pictures"])
    settings = make_settings(overrides={**TINY, "training.epochs": 500})
    stopped = session.training(given, settings)
    news = stopped.news()
    while not isinstance(next(news), Progress):
        pass
    stopped.stop()
    with pytest.raises(Stopped, match="as it was"):
        list(news)
    kept = session.training(given, settings)
    kept.keep()
    assert kept.finish().info["kept_at"] == 1
    closed = session.training(given, settings)
    news = closed.news()
    while not isinstance(next(news), Progress):
        pass
    news.close()
    closed.close()
    assert not closed._thread.is_alive()


def test_jobs_pass_on_what_goes_wrong():
    def fail(job):
        job.tell(1)
        raise KeyError("odd")

    with pytest.raises(KeyError, match="odd"):
        Job(fail).finish()


# Labels out


def test_a_slice_that_is_looked_at_is_worked_out_and_no_other(session, viewer, result):
    labels, layer = result.labels, result.layer
    assert labels.blank == len(session.editing.classes.classes)
    assert (layer.data[2] == labels.blank).all(), "indexing never waits"
    fill(session)
    assert [labels.is_ready(k) for k in range(5)] == [False, False, True, False, False]
    expected = spwnet.segment(session.model, pictures()).labels
    assert np.array_equal(layer.data[2], expected[2])
    lacking = []
    session._on_missing = lacking.extend
    viewer.dims.set_point(0, 18)
    assert [one.plane for one in lacking] == [(4,)]
    fill(session)
    assert layer.get_value((18, 13, 17), world=True) == expected[4][20, 26]
    session.close()
    lacking.clear()
    layer.visible = False
    viewer.dims.set_point(0, 10)
    assert lacking == []
    assert session.look() == []
    layer.visible = True
    viewer.dims.ndisplay = 3
    assert [(one.plane, one.volumes) for one in session.look()] == [(None, ((),))]
    fill(session)
    assert labels.part(()).complete
    assert np.array_equal(layer.data, expected)


def test_layers_keep_their_place_and_say_what_classes_are(session, result):
    layer, source = result.layer, result.given.layers[0]
    for name in ("scale", "translate", "rotate", "shear"):
        assert np.array_equal(getattr(layer, name), getattr(source, name)), name
    assert (layer.units, layer.axis_labels) == (source.units, source.axis_labels)
    session.editing.select([1])
    session.editing.change(name="disc", colour="#336699")
    assert dict(zip(layer.features["index"], layer.features["name"], strict=True))[1] == "disc"
    assert layer.colormap.map(1) == pytest.approx([0.2, 0.4, 0.6, 1.0])
    assert layer.colormap.map(0)[3] == pytest.approx(DIMMED)
    session.editing.select([])
    assert layer.colormap.map(0)[3] == 1
    assert layer.colormap.map(result.labels.blank)[3] == 0
    assert 'name = "disc"' in layer.metadata[METADATA]["classes"]
    assert not layer.editable
    assert copy.deepcopy(layer.data) is layer.data


def test_from_a_sample_to_classes_by_name_in_a_file(viewer, tmp_path):
    """Sample, training, labels, merging, naming, cleaning, saving."""
    register()
    viewer.open_sample("spwnet", "swim")
    session, layer = Session(viewer), viewer.layers["swim"]
    given = picked_layers(viewer, ["swim"])
    small = {"images.max_pixels": 4000, "training": {"epochs": 1, "batches": 2, "precision": "float32"}}
    settings = make_settings(overrides={**small, "model": {"classes": 8, "ch_mul": 4}, "codebook.finest": 8})
    session.use(session.training(given, settings, [0, 5]).finish())
    result = session.segment(given)
    assert session.segment(picked_layers(viewer, ["swim"])) is result
    fill(session)
    session.editing.cut(5)
    session.editing.select([0, 2])
    session.editing.merge("sea")
    assert session.editing.selected == (0,)
    session.editing.change(smooth=2.0, remove_objects=50, remove_to=1, fill_holes=200)
    assert session.look() == [], "other classes are a lookup"
    current = given.current(viewer)[0]
    expected = spwnet.segment(session.model, given.images(), frames=[current], classes=session.editing.classes)
    assert np.array_equal(result.layer.data[current], expected.labels[0])
    session.segmenting_all(result).finish()
    whole = spwnet.segment(session.model, np.stack(layer.data), classes=session.editing.classes).labels
    assert np.array_equal(result.layer.data, whole)
    path = tmp_path / "found.tif"
    assert result.layer.save(str(path), plugin="spwnet")
    assert np.array_equal(tifffile.imread(path), whole)
    for plugin in ("napari", None):
        assert result.layer.save(str(tmp_path / f"{plugin}.tif"), plugin=plugin)
        assert np.array_equal(tifffile.imread(tmp_path / f"{plugin}.tif"), whole), plugin
    session.load_classes(tmp_path / "found.classes.toml")
    assert session.editing.classes.find("sea").remove_to == 1


def test_merging_and_naming_with_the_mouse(session, result):
    fill(session)
    ids = result.layer.data[2]
    one, two = np.unique(ids)[:2]
    for k in (one, two):
        click(result.layer, (2, *np.argwhere(ids == k)[0]))
    assert session.editing.selected == (one, two)
    click(result.layer, (2, *np.argwhere(ids == two)[0]), moved=30)
    click(result.layer, (2, -50, 0))
    assert session.editing.selected == (one, two), "neither a drag nor a click beside it"
    press(result.layer, "Shift+M")
    assert session.editing.selected == (one,)
    assert (result.layer.data[2][ids == two] == one).all()
    press(result.layer, "Shift+U")
    assert np.array_equal(result.layer.data[2], ids)
    with pytest.raises(SettingsError, match="but 1 is; click on others"):
        press(result.layer, "Shift+M")
    told = []
    session._on_error = told.append
    press(result.layer, "Shift+U")
    assert "to undo, but there is none" in str(told[0])


def test_a_layer_of_an_earlier_model_is_let_go(session, viewer, model, result):
    fill(session)
    session.use(model)
    click(result.layer, (2, 3, 3))
    assert session.editing.selected == ()
    assert session.results == []
    session.editing.select([0, 1])
    press(result.layer, "Shift+M")
    assert len(session.editing.classes.classes) == 4
    session.editing.select([])
    again = session.segment(picked_layers(viewer, ["pictures"]))
    viewer.layers.remove(again.layer)
    assert session.look() == []


def test_other_pixels_are_segmented_anew(session, viewer, result):
    fill(session)
    image = viewer.layers["pictures"]
    given = picked_layers(viewer, ["pictures"])
    assert session.segment(given) is result
    image.data = pictures()[:3, ::-1]
    assert session.look() == []
    again = session.segment(picked_layers(viewer, ["pictures"]))
    assert again.layer is not result.layer
    fill(session)
    assert np.array_equal(again.layer.data[2], spwnet.segment(session.model, image.data, frames=[2]).labels[0])


def test_without_a_model_it_says_what_to_do(viewer):
    session = Session(viewer)
    viewer.add_image(pictures(), rgb=True, name="pictures")
    for act in (session.edited, lambda: session.segment(picked_layers(viewer, ["pictures"]))):
        with pytest.raises(RunError, match="train one, or open a run directory"):
            act()


def test_volumes_in_time(viewer, solid_model):
    volumes = np.stack([phantom((20, 40, 40), seed=k)[..., 0] for k in range(2)])
    viewer.add_image(da.from_array(volumes, chunks=(1, 5, 40, 40)), name="scan", axis_labels=("t", "z", "y", "x"))
    session = Session(viewer)
    given = picked_layers(viewer, ["scan"])
    assert (given.kind, given.times) == ("volume", (2,))
    viewer.dims.set_point((0, 1), (1, 7))
    model = session.training(
        given, make_settings("instant", overrides=SOLID), chosen_frames("current", given, viewer)
    ).finish()
    assert [image["name"] for image in model.info["images"]] == ["volume_z_0007"]
    session.use(solid_model)
    result = session.segment(given)
    fill(session)
    assert result.labels.is_ready(1, 7)
    assert not result.labels.is_ready(0, 7)
    classes = session.editing.classes
    assert np.array_equal(
        result.layer.data[1, 7], spwnet.segment_volume(solid_model, given.volume((1,)), classes=classes).labels[7]
    )
    viewer.dims.ndisplay = 3
    assert [one.volumes for one in session.look()] == [((1,),)]
    fill(session)
    viewer.dims.ndisplay = 2
    session.editing.select([1])
    session.editing.change(remove_objects=200)
    assert [one.volumes for one in session.look()] == [((1,),)], "what is there whole is cleaned whole"
    fill(session)
    cleaned = [
        spwnet.segment_volume(solid_model, given.volume((t,)), classes=session.editing.classes).labels for t in (0, 1)
    ]
    assert np.array_equal(result.layer.data[1, 7], cleaned[1][7])
    assert np.array_equal(result.layer.data, cleaned)


def test_segmenting_into_folders(session, viewer, solid_model, tmp_path):
    given = picked_layers(viewer, ["pictures"])
    folder = session.writing(given, tmp_path / "images", ".png").finish()
    (layer,) = read_segmentation(folder / "segmentation.json")
    assert layer[2] == "labels"
    classes = session.editing.classes
    assert np.array_equal(layer[0], spwnet.segment(session.model, pictures(), classes=classes).labels)
    assert Labels(layer[0], **layer[1]).name == "images"
    stopped = session.writing(given, tmp_path / "stopped", ".png")
    stopped.stop()
    with pytest.raises(Stopped):
        stopped.finish()
    viewer.add_image(phantom((20, 40, 40))[..., 0], name="scan", scale=(2, 1, 1), units=("um",) * 3)
    session.use(solid_model)
    session.editing.cut(4)
    session.editing.select([1])
    session.editing.change(name="fibre", colour="#112233")
    given = picked_layers(viewer, ["scan"], "volume")
    folder = session.writing(given, tmp_path / "scan", ".tif").finish()
    assert get_reader(str(folder)) is None
    (layer,) = get_reader(str(folder / "segmentation.json"))(str(folder / "segmentation.json"))
    shown = Labels(layer[0], **layer[1])
    assert tuple(shown.scale) == (2, 1, 1)
    assert [str(unit) for unit in shown.units] == ["micrometer"] * 3
    assert list(shown.features["name"])[1] == "fibre"
    assert np.array_equal(
        shown.data, spwnet.segment_volume(solid_model, given.volume(), classes=session.editing.classes).labels
    )
    (folder / "segmentation.json").write_text(json.dumps({"suffix": ".tif"}))
    with pytest.raises(InputError, match=r"expected the segmentation\.json"):
        read_segmentation(folder / "segmentation.json")


def test_images_of_two_sizes_are_two_layers(tmp_path, model):
    spwnet.segment(model, [picture(), picture(height=44), picture(1)], tmp_path / "found", suffix=".tif")
    layers = read_segmentation(tmp_path / "found" / "segmentation.json")
    assert [(np.shape(data), values["name"]) for data, values, _ in layers] == [
        ((2, 40, 52), "found 0"),
        ((44, 52), "found 1"),
    ]
    assert layers[0][1]["features"]["name"][0] == "class 0"


# Classes


def test_history_of_classes(model):
    changes = []
    editing = Editing(model.class_map(4), lambda: changes.append(1))
    for act in (editing.undo, editing.redo, editing.merge, editing.split, editing.mark_background, editing.change):
        with pytest.raises(SettingsError, match="expected"):
            act()
    editing.select([0, 3, 77])
    assert editing.selected == (0, 3)
    editing.merge("both")
    assert [one.name for one in editing.classes.classes] == ["both", "class 1", "class 2"]
    editing.split()
    assert len(editing.classes.classes) == 4
    assert editing.selected == (0, 3)
    with pytest.raises(SettingsError, match="one selected class to name"):
        editing.change(name="two")
    with pytest.raises(SettingsError, match="one selected class as background"):
        editing.mark_background()
    editing.toggle(0)
    editing.mark_background()
    assert editing.classes.find(0).background
    editing.mark_background()
    assert not editing.classes.find(0).background
    while editing.can_undo:
        editing.undo()
    assert editing.classes == model.class_map(4)
    editing.redo()
    assert editing.can_redo
    editing.cut(2)
    assert not editing.can_redo
    assert len(editing.classes.classes) == 2
    assert changes


def test_classes_stay_with_their_run(viewer, tmp_path):
    spwnet.train([picture(0), picture(1)], tmp_path / "run", settings=make_settings("instant", overrides=TINY))
    session = Session(viewer)
    session.open_run(tmp_path / "run")
    session.editing.select([0, 1])
    session.editing.merge("ground")
    assert session.save_classes() == tmp_path / "run" / "classes.toml"
    other = Session(viewer)
    other.open_run(tmp_path / "run")
    assert other.editing.classes.find("ground").members == session.editing.classes.find("ground").members
    other.use(other.model)
    with pytest.raises(SettingsError, match="in no run directory"):
        other.save_classes()
    assert other.save_classes(tmp_path / "mine.toml").exists()


def name_by(session, layer, names, given):
    """Name by scribbles as the panel does."""
    session.editing.replace(session.naming(layer, names, given).finish())


def test_what_is_worked_out_is_not_worked_out_again_for_scribbles(session, viewer, result, monkeypatch):
    fill(session)
    given = picked_layers(viewer, ["pictures"])
    scribbles = session.add_scribbles(given, ["ground"])
    scribbles.data[2, 3, 3] = 1
    monkeypatch.setattr(lazylabels, "predict", lambda *_: pytest.fail("worked out again"))
    name_by(session, scribbles, ["ground"], given)
    assert [one.name for one in session.editing.classes.classes] == ["ground"]


def test_scribbles_name_and_merge(session, viewer, result):
    given = result.given
    fill(session)
    scribbles = session.add_scribbles(given, ["ground", "disc"])
    assert list(scribbles.features["name"]) == ["ground", "disc"]
    assert np.array_equal(scribbles.scale, result.layer.scale)
    scribbles.paint((2, 3, 3), 1)
    scribbles.data[0, 20, 17:20] = 2
    name_by(session, scribbles, ["ground", "disc"], picked_layers(viewer, ["pictures"]))
    assert [one.name for one in session.editing.classes.classes] == ["ground", "disc"]
    assert [result.labels.is_ready(k) for k in range(5)] == [True, False, True, False, False]
    assert result.layer.data[0][20, 18] == 1
    assert result.layer.data[2][3, 3] == 0
    with pytest.raises(SettingsError, match="scribbles of 1 to 1, as many as there are names, but got 2"):
        session.naming(scribbles, ["ground"], given)
    with pytest.raises(InputError, match="expected scribbles of shape"):
        session.naming(Labels(np.zeros((3, 3), int)), ["ground"], given)
    with pytest.raises(SettingsError, match="at least one point for a name"):
        session.naming(Labels(np.zeros(given.shape, int)), ["ground"], given).finish()
    viewer.add_image(pictures(2), rgb=True, name="others")
    other = picked_layers(viewer, ["others"])
    marks = np.zeros(other.shape, np.uint8)
    marks[1, 2, 2] = 1
    name_by(session, Labels(marks), ["all"], other)
    assert len(session.editing.classes.classes) == 1


# Files


def test_samples_say_what_their_axes_are():
    for made, shape in ((composite, (8, 240, 320)), (swim, (10, 216, 320))):
        ((data, values, kind),) = made()
        layer = Image(data, **values)
        assert (kind, open_layers([layer]).shape, open_layers([layer]).kind) == ("image", shape, "images")


def test_labels_are_written_with_their_place(tmp_path):
    layer = Labels(np.arange(60).reshape(3, 4, 5) % 7, scale=(2, 1, 1), units=("um",) * 3)
    data, meta, _ = layer.as_layer_data_tuple()
    assert write_labels(str(tmp_path / "a.zarr"), data, meta) == [str(tmp_path / "a.zarr")]
    volume = spwnet.open_volume(tmp_path / "a.zarr")
    assert volume.spacing == (2, 1, 1)
    assert volume.unit == "micrometer"
    assert np.array_equal(volume.read((slice(None),) * 3)[..., 0], data)
    write_labels(str(tmp_path / "b.png"), data[0], {})
    write_labels(str(tmp_path / "c.npy"), data[0], {"scale": (1, 1)})
    assert np.array_equal(np.load(tmp_path / "c.npy")[0], data[0])
    with pytest.raises(OutputError, match="two or three axes, but got 4"):
        write_labels(str(tmp_path / "d.tif"), data[None], meta)
    unlike = Labels(data, scale=(1, 1000, 1000), units=("um", "nm", "nm")).as_layer_data_tuple()
    write_labels(str(tmp_path / "e.zarr"), *unlike[:2])
    volume = spwnet.open_volume(tmp_path / "e.zarr")
    assert volume.spacing == pytest.approx((1000, 1000, 1000))
    assert volume.unit == "nanometer"
    write_labels(str(tmp_path / "f.zarr"), data, {"scale": (1, 1, 1), "units": ("s", "um", "um")})
    assert spwnet.open_volume(tmp_path / "f.zarr").unit is None


def test_what_was_opened_is_saved_again(session, solid_model, tmp_path):
    zarr = pytest.importorskip("zarr")
    scan = spwnet.open_volume(phantom((20, 40, 40)))
    spwnet.segment_volume(solid_model, scan, tmp_path / "scan", suffix=".zarr")
    spwnet.segment(session.model, pictures(), tmp_path / "images")
    lazy = spwnet.LazyLabels(session.model, pictures())
    opened = [read_segmentation(tmp_path / name / "segmentation.json")[0][:2] for name in ("scan", "images")]
    for number, (data, values) in enumerate([*opened, (lazy, {}), (zarr.array(pictures()[..., 0] // 90), {})]):
        layer = Labels(data, **values)
        written = tmp_path / f"{number}.tif"
        write_labels(str(written), *layer.as_layer_data_tuple()[:2])
        assert np.array_equal(tifffile.imread(written), np.asarray(data))


def test_names_of_labels_are_those_of_the_table_as_it_is(tmp_path):
    """A table of cell types: names come again, some are missing, ids are high."""
    pytest.importorskip("zarr")
    data = np.zeros((2, 4, 5), np.uint32)
    data[0, 0, :3] = 1, 2, 70_000
    table = {"index": [1, 2, 3, 4, 70_000, -1, np.nan], "name": ["cell", "cell", "", None, "nucleus", "none", "none"]}
    colours = Labels(data, colormap={0: "black", 1: "#336699", None: "red"}).colormap
    write_labels(str(tmp_path / "a.zarr"), data, {"features": table, "colormap": colours})
    label = json.loads((tmp_path / "a.zarr" / "labels" / "classes" / "zarr.json").read_text())
    looks = label["attributes"]["ome"]["image-label"]
    assert [(one["label-value"], one["name"]) for one in looks["properties"]] == [
        (1, "cell"), (2, "cell"), (70_000, "nucleus"),
    ]  # fmt: skip
    assert len(looks["colors"]) == 65_536
    assert looks["colors"][1]["rgba"] == [0x33, 0x66, 0x99, 255]
    assert looks["colors"][2]["rgba"][:3] == palette(3)[2].tolist()
    write_labels(str(tmp_path / "b.tif"), data, {"features": table})
    assert np.array_equal(tifffile.imread(tmp_path / "b.tif"), data)
    with pytest.raises(OutputError, match="expected labels below 65536 where HDF5 names them, but got 70000"):
        write_labels(str(tmp_path / "c.h5"), data, {"features": table})


@pytest.mark.parametrize("suffix", ["png", "tif", "npy", "zarr"])
def test_numbers_that_labels_cannot_have(tmp_path, suffix):
    data = np.zeros((3, 4), np.int32)
    data[0, :2] = -1, 255
    for values in (data, data[None]):
        with pytest.raises(OutputError, match=r"expected labels of 0 and above, .* would have -1"):
            write_labels(str(tmp_path / f"a.{suffix}"), values, {})


@pytest.mark.parametrize("shape", [(3, 4), (1, 3, 4)])
def test_large_numbers_take_no_tables_of_their_size(tmp_path, shape, monkeypatch):
    made = []
    monkeypatch.setattr("spwnet.napari.files.palette", lambda n: made.append(n) or palette(n))
    data = np.zeros(shape, np.uint32)
    data.flat[0] = 2**32 - 2
    write_labels(str(tmp_path / "a.tif"), data, {"features": {"index": [1], "name": ["cell"]}})
    assert np.array_equal(tifffile.imread(tmp_path / "a.tif").reshape(shape), data)
    assert made in ([], [0])


@pytest.mark.parametrize("solid", [True, False])
def test_a_folder_does_not_choose_what_is_opened(tmp_path, solid):
    summary = {"suffix": "/../../other.h5", "n_classes": 2, "classes": {"0": {}}, "labels": {}}
    if solid:
        summary["volume"] = {}
    (tmp_path / "segmentation.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match=r"its suffix is none of .*\.tif.*: '/\.\./\.\./other\.h5'"):
        read_segmentation(tmp_path / "segmentation.json")


def test_the_manifest_is_valid_and_installed():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "npe2", "validate", str(MANIFEST)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    project = tomllib.loads((MANIFEST.parents[3] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["napari.manifest"] == {"spwnet": "spwnet.napari:napari.yaml"}
    assert not any(
        "qt" in name.lower() or "pyside" in name.lower() for name in project["optional-dependencies"]["napari"]
    )


def test_the_logic_needs_no_qt():
    code = (
        "import sys, spwnet.napari.files, spwnet.napari.logic; "
        "sys.exit(any(name.split('.')[0] in ('PySide6', 'PySide2', 'PyQt6', 'PyQt5') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0
