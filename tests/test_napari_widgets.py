"""The panel of the napari plugin: without a window where there is a Qt, and with one where there is a display."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

qtpy = pytest.importorskip("qtpy", reason="needs a Qt binding", exc_type=Exception)
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
QtWidgets = pytest.importorskip("qtpy.QtWidgets", reason="needs a Qt binding", exc_type=Exception)

import spwnet
from spwnet.classes import palette
from spwnet.presets import make_settings
from tests.conftest import TINY, phantom, picture

from napari.components import ViewerModel
from napari.utils.notifications import notification_manager

from spwnet.napari.widgets import TOUCHED, PanelWidget

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def application():
    return QtWidgets.QApplication.instance() or QtWidgets.QApplication([])


@pytest.fixture
def panel(application):
    """The panel on five pictures; a viewer's model has no canvas, which needs a display."""
    viewer = ViewerModel()
    viewer.add_image(np.stack([picture(k) for k in range(5)]), rgb=True, name="pictures")
    widget = PanelWidget(viewer)
    widget.show()
    widget.panel.viewer = viewer
    widget.panel.more.value = "images.scale = 1.0; superpixels.size = 16; codebook.finest = 4; labels.classes = 4"
    widget.panel.preset.value = "instant"
    yield widget.panel
    widget.panel.close()
    widget.deleteLater()
    wait(lambda: idle(widget.panel))


def idle(panel):
    return panel._job is None and panel._filled is None


def wait(until, seconds=60):
    end = time.monotonic() + seconds
    while True:
        QtWidgets.QApplication.instance().processEvents()
        if until():
            return
        assert time.monotonic() < end
        time.sleep(0.02)


def click(button):
    assert button.enabled
    button.native.click()


@pytest.fixture
def messages():
    notification_manager.records.clear()
    return lambda: [str(one.message) for one in notification_manager.records]


@pytest.fixture
def trained(panel):
    click(panel.train)
    wait(lambda: panel.session.results and idle(panel))
    return panel


def test_what_can_be_done_is_offered(panel):
    assert panel.layers.value == ["pictures"]
    assert panel.train.enabled
    for button in (panel.show_classes, panel.segment_all, panel.merge, panel.undo, panel.save, panel.cancel):
        assert not button.enabled
    panel.viewer.add_image(np.zeros((9, 9)), name="more")
    panel.viewer.add_labels(np.zeros((9, 9), int))
    assert list(panel.layers.choices) == ["pictures", "more"]


def test_training_shows_the_classes_where_one_looks(trained):
    (result,) = trained.session.results
    assert result.layer.name == "pictures classes"
    assert result.labels.is_ready(2)
    assert not result.labels.is_ready(4)
    assert list(trained.classes.choices) == [0, 1, 2, 3]
    trained.viewer.dims.set_point(0, 4)
    wait(lambda: result.labels.is_ready(4) and idle(trained))
    click(trained.segment_all)
    wait(lambda: idle(trained))
    assert result.labels.part(()).complete


def test_volumes_whole_have_the_progress_bar(panel, solid_model):
    panel.viewer.add_image(phantom((40, 40, 40))[..., 0], name="scan", axis_labels=("z", "y", "x"))
    panel.layers.value, panel.kind.value = ["scan"], "volume"
    panel.session.use(solid_model)
    click(panel.show_classes)
    wait(lambda: idle(panel))
    (result,) = panel.session.results
    assert not result.labels.part(()).is_worked_out
    panel.viewer.dims.ndisplay = 3
    assert panel.cancel.enabled
    wait(lambda: idle(panel))
    assert result.labels.part(()).complete
    panel.viewer.dims.ndisplay = 2
    panel.classes.value = [1]
    panel.remove_objects.value = 30
    assert not result.labels.part(()).complete
    wait(lambda: idle(panel) and result.labels.part(()).complete)


def test_a_training_with_pictures_is_stopped_and_kept(panel, messages):
    panel.preset.value = "default"
    panel.more.value = (
        "model.classes = 4; model.ch_mul = 4; images.scale = 1.0; training.epochs = 300; training.batches = 2"
    )
    click(panel.train)
    wait(lambda: panel.preview.visible and panel.bar.value > 1)
    assert "data:image/png" in panel.preview.value
    assert "left, loss" in panel.state.value
    assert not panel.train.enabled
    click(panel.keep)
    wait(lambda: panel.session.model is not None and idle(panel))
    assert "kept_at" in panel.session.model.info
    before = panel.session.model
    click(panel.train)
    wait(lambda: panel.bar.value > 1)
    click(panel.cancel)
    wait(lambda: idle(panel))
    assert panel.session.model is before
    assert messages()[-1].startswith("stopped")
    assert not panel.preview.visible


def test_classes_are_edited_in_the_list(trained, messages):
    session = trained.session
    trained.classes.value = [0, 2]
    assert session.editing.selected == (0, 2)
    click(trained.merge)
    assert trained.number.value == 3
    assert [trained.classes.native.item(k).text() for k in range(3)] == ["0  class 0", "1  class 1", "3  class 3"]
    trained.name_edit.value = "ground"
    trained.name_edit.native.editingFinished.emit()
    assert session.editing.classes.find(0).name == "ground"
    trained.smooth.value, trained.fill_holes.value = 1.5, 40
    assert list(trained.remove_to.choices) == [TOUCHED, 1, 3]
    trained.remove_to.value = 3
    trained.keep_largest.value = True
    one = session.editing.classes.find("ground")
    assert (one.smooth, one.fill_holes, one.remove_to, one.keep_largest) == (1.5, 40, 3, True)
    trained.remove_to.value = TOUCHED
    assert session.editing.classes.find("ground").remove_to is None
    trained.name_edit.value = "class 1"
    trained.name_edit.native.editingFinished.emit()
    assert "expected each name once" in messages()[-1]
    assert trained.name_edit.value == "ground"
    for name in ("3", "what each touches most"):
        trained.classes.value = [1]
        trained.name_edit.value = name
        trained.name_edit.native.editingFinished.emit()
        trained.classes.value = [0]
        trained.remove_to.value = 1
        assert session.editing.classes.find("ground").remove_to == 1
        trained.remove_to.value = TOUCHED
        click(trained.undo), click(trained.undo), click(trained.undo)
    trained.classes.value = [1]
    assert (trained.name_edit.value, trained.smooth.value) == ("class 1", 0)
    click(trained.background)
    assert session.editing.classes.find(0).background
    click(trained.split)
    assert "several of the finest classes to split" in messages()[-1]
    while trained.undo.enabled:
        click(trained.undo)
    assert trained.redo.enabled
    trained.number.value = 2
    assert len(session.editing.classes.classes) == 2
    trained.classes.value = [1]
    click(trained.deselect)
    assert session.editing.selected == ()


def test_runs_folders_and_files(panel, messages, tmp_path):
    spwnet.train([picture(0), picture(1)], tmp_path / "run", settings=make_settings("instant", overrides=TINY))
    click(panel.open)
    assert "expected a run folder to open" in messages()[-1]
    panel.run.value = tmp_path / "run"
    click(panel.open)
    wait(lambda: idle(panel))
    panel.classes.value = [0, 1]
    click(panel.merge)
    click(panel.save)
    assert (tmp_path / "run" / "classes.toml").exists()
    panel.file.value = tmp_path / "classes.toml"
    click(panel.save)
    click(panel.undo)
    click(panel.load)
    assert len(panel.session.editing.classes.classes) == 3
    click(panel.write)
    assert "expected a folder to segment into" in messages()[-1]
    panel.folder.value, panel.suffix.value = tmp_path / "found", ".png"
    click(panel.write)
    wait(lambda: idle(panel))
    assert (tmp_path / "found" / "segmentation.json").exists()
    assert (tmp_path / "found" / "classes.toml").exists()
    click(panel.write)
    wait(lambda: idle(panel))
    assert "found" in messages()[-1]
    count = len(messages())
    panel.overwrite_folder.value = True
    click(panel.write)
    wait(lambda: idle(panel))
    assert messages()[count:] == [f"The labels are in {tmp_path / 'found'}"]
    before = panel.session.model
    click(panel.train)
    wait(lambda: idle(panel))
    assert "--overwrite" in messages()[-1]
    assert panel.session.model is before
    panel.overwrite_run.value = True
    click(panel.train)
    wait(lambda: idle(panel) and panel.session.model is not before)
    assert len(panel.session.model.info["images"]) == 4


def test_a_layer_that_is_renamed_stays_chosen(panel):
    for name in ("neutron", "xray", "other"):
        panel.viewer.add_image(np.zeros((40, 52)), name=name)
    panel.layers.value = ["neutron", "xray"]
    panel.viewer.layers["xray"].name = "x-ray"
    assert panel.layers.value == ["neutron", "x-ray"]
    assert [layer.name for layer in panel.given().layers] == ["neutron", "x-ray"]
    panel.viewer.layers.remove("neutron")
    assert panel.layers.value == ["x-ray"]


def test_a_refused_change_is_taken_back_in_the_panel(trained, messages, monkeypatch):
    assert trained.number.value == 4
    monkeypatch.setattr(trained.session.editing, "cut", lambda n: trained.session.editing.split())
    trained.number.value = 2
    assert "expected selected classes to split" in messages()[-1]
    assert trained.number.value == 4


def test_classes_without_a_colour_of_their_own_have_that_of_the_palette(trained):
    editing = trained.session.editing
    classes = [one.model_copy(update={"colour": None}) for one in editing.classes.classes]
    editing.replace(replace(editing.classes, classes=tuple(classes)))
    for k in range(4):
        shown = trained.classes.native.item(k).icon().pixmap(14, 14).toImage().pixelColor(7, 7)
        assert shown.getRgb()[:3] == tuple(palette(4)[k])


def test_scribbles(trained, messages):
    click(trained.by_scribbles)
    assert "expected names of classes" in messages()[-1]
    trained.names.value = "ground, disc"
    trained.viewer.add_image(np.zeros((40, 52)), name="scribbles of last week")
    trained.layers.value = ["pictures"]
    click(trained.by_scribbles)
    assert "there is none" in messages()[-1]
    truth = trained.viewer.add_labels(np.full((5, 40, 52), 3), name="truth", features={"index": [3], "name": ["bone"]})
    trained.viewer.layers.selection.active = truth
    click(trained.by_scribbles)
    assert "as many as there are names, but got 3" in messages()[-1]
    assert list(truth.features["name"]) == ["bone"]
    click(trained.scribble)
    layer = trained.viewer.layers["scribbles"]
    layer.data[2, :3, :3], layer.data[2, 20, 20] = 1, 2
    trained.viewer.layers.selection.active = trained.session.results[0].layer
    trained.names.value = "ground, circle"
    click(trained.by_scribbles)
    wait(lambda: idle(trained))
    assert [one.name for one in trained.session.editing.classes.classes] == ["ground", "circle"]
    assert list(layer.features["name"]) == ["ground", "circle"]


def test_errors_are_told_in_words(panel, messages):
    panel.frames.value = "77"
    click(panel.train)
    assert "expected numbers from 0 to 4" in messages()[-1]
    panel.frames.value, panel.more.value = "", "training.epochs = many"
    click(panel.train)
    assert "expected settings like" in messages()[-1]
    assert panel.train.enabled


def test_a_real_window(tmp_path):
    """Under a display of its own, because a viewer's canvas needs one."""
    if shutil.which("xvfb-run") is None:
        pytest.skip("needs xvfb-run for a display")
    environment = {name: value for name, value in os.environ.items() if name != "QT_QPA_PLATFORM"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "src")))
    shot = tmp_path / "window.png"
    done = subprocess.run(
        ["xvfb-run", "-a", "-s", "-screen 0 1600x1000x24", sys.executable, "-W", "ignore", "-m", "tests.napari_window",
         str(tmp_path), str(shot)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=550,
    )  # fmt: skip
    assert done.stdout.strip().endswith("done"), done.stdout + done.stderr
    with Picture.open(shot) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    assert min(pixels.shape[:2]) > 600
    middle = pixels[len(pixels) // 4 : -len(pixels) // 4, 400:-400].reshape(-1, 3)
    assert len(np.unique(middle // 16, axis=0)) > 20, "a picture that is blank"
