"""The plugin in a real window: sample, training, labels, merging by clicks, naming, saving. Run under a display."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import tifffile

from tests.napari_plugin import register

register()

import napari
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication


def main(folder, shot):
    viewer = napari.Viewer()
    viewer.window.resize(1400, 900)
    viewer.open_sample("spwnet", "composite")
    _, widget = viewer.window.add_plugin_dock_widget("spwnet", "Segment without labels")
    panel = widget.panel
    panel.more.value = "training.epochs = 2; training.batches = 5"
    panel.frames.value = "0, 4"
    panel.train.native.click()
    wait(lambda: panel.preview.visible)
    wait(lambda: idle(panel))
    (result,) = panel.session.results
    assert result.layer in viewer.layers
    widget.setCurrentIndex(1)
    panel.number.value = 8
    fibre = np.argwhere(result.layer.data[3] == 1)
    chosen = [fibre[len(fibre) // 2]]
    ids = result.layer.data[3]
    other = np.bincount(ids[ids != 1]).argmax()
    chosen.append(np.argwhere(ids == other)[50])
    canvas = viewer.window._qt_viewer.canvas
    for place in chosen:
        world = result.layer.data_to_world((3, *place))
        QTest.mouseClick(
            canvas.native,
            Qt.MouseButton.LeftButton,
            Qt.KeyboardModifier.NoModifier,
            on_canvas(viewer, canvas, world[1:]),
        )
        pause()
    assert set(panel.session.editing.selected) == {1, other}, panel.session.editing.selected
    assert sorted(panel.classes.value) == sorted(panel.session.editing.selected)
    before = panel.session.editing.classes
    panel.merge.native.click()
    merged = panel.session.editing.classes
    for key, expected in ((Qt.Key.Key_U, before), (Qt.Key.Key_R, merged)):
        QTest.keyClick(canvas.native, key, Qt.KeyboardModifier.ShiftModifier)
        pause()
        assert panel.session.editing.classes == expected, key
    panel.name_edit.value = "both"
    panel.name_edit.native.editingFinished.emit()
    panel.smooth.value = 1.0
    panel.deselect.native.click()
    wait(lambda: idle(panel))
    assert panel.session.editing.classes.find("both").smooth == 1
    assert result.layer.save(str(folder / "labels.tif"))
    assert np.array_equal(tifffile.imread(folder / "labels.tif"), np.asarray(result.layer.data))
    panel.file.value = folder / "classes.toml"
    panel.save.native.click()
    assert 'name = "both"' in (folder / "classes.toml").read_text()
    pause()
    viewer.screenshot(str(shot), canvas_only=False, flash=False)
    viewer.close()
    pause()


def on_canvas(viewer, canvas, world):
    """Pixel of the canvas where a row and a column of the world are shown."""
    height, width = canvas.native.height(), canvas.native.width()
    offset = (np.array(world) - np.array(viewer.camera.center[-2:])) * viewer.camera.zoom
    return QPoint(round(width / 2 + offset[1]), round(height / 2 + offset[0]))


def idle(panel):
    return panel._job is None and panel._filled is None


def pause(times=10):
    for _ in range(times):
        QApplication.instance().processEvents()
        time.sleep(0.05)


def wait(until, seconds=300):
    end = time.monotonic() + seconds
    while not until():
        pause(1)
        if time.monotonic() > end:
            raise TimeoutError("the window does nothing any more")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    print("done")
