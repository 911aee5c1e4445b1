"""What the tests of the napari plugin share: a viewer without a window, and the plugin as npe2 knows it."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np

# Nothing of the user's own settings, and nothing written there.
os.environ.setdefault("NAPARI_CONFIG", "")

MANIFEST = Path(__file__).parents[1] / "src" / "spwnet" / "napari" / "napari.yaml"


def register():
    """Let npe2 know napari's own readers and writers and this plugin, installed or not; return its manager."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from npe2 import PluginManager, PluginManifest

        manager = PluginManager.instance()
        manager.discover()
        if "spwnet" not in {manifest.name for manifest in manager.iter_manifests()}:
            manager.register(PluginManifest.from_file(MANIFEST))
    return manager


def click(layer, place, *, moved=0, dims_displayed=(-2, -1)):
    """Press and release the mouse on a layer at a place of its data, as napari tells its callbacks."""
    event = SimpleNamespace(
        type="mouse_press",
        pos=np.zeros(2),
        position=tuple(layer.data_to_world(place)),
        view_direction=None,
        dims_displayed=[axis % layer.ndim for axis in dims_displayed],
    )
    running = [callback(layer, event) for callback in layer.mouse_drag_callbacks]
    for one in running:
        next(one)
    event.type, event.pos = "mouse_move", np.full(2, moved)
    for one in running:
        next(one)
    event.type = "mouse_release"
    for one in running:
        next(one, None)
