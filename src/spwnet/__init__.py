"""Segmentation of images, videos and tomograms with no labels and no pretrained weights.

>>> import spwnet
>>> sample = spwnet.sample("composite")
>>> model = spwnet.train(sample.images[:2], settings=spwnet.make_settings(overrides={"training.epochs": 1}))
>>> spwnet.segment(model, sample.images).labels[7].shape
(240, 320)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from spwnet.api import run, train
    from spwnet.classpage import report, view
    from spwnet.config import LabelSettings, Settings
    from spwnet.demonstration import demo
    from spwnet.dividing import recut_regions, regions, regions_of_all
    from spwnet.errors import SpwnetError, Stopped
    from spwnet.evaluation import evaluate
    from spwnet.exporting import ExportReport, export
    from spwnet.hierarchy import RegionHierarchy
    from spwnet.lazylabels import LazyLabels
    from spwnet.presets import PRESETS, make_settings
    from spwnet.recutting import recut
    from spwnet.runs import load
    from spwnet.samples import sample
    from spwnet.segmenting import Segmentation, segment
    from spwnet.trained import TrainedModel
    from spwnet.training import Progress
    from spwnet.tuning import Trial, tune
    from spwnet.volumes import Volume, join_channels, open_volume
    from spwnet.volumesegmenting import VolumeSegmentation, segment_volume
    from spwnet.watching import LivePage, NotebookView, TensorBoardView, Watcher

_HOME = {
    "train": "spwnet.api",
    "segment": "spwnet.segmenting",
    "load": "spwnet.runs",
    "run": "spwnet.api",
    "demo": "spwnet.demonstration",
    "evaluate": "spwnet.evaluation",
    "export": "spwnet.exporting",
    "ExportReport": "spwnet.exporting",
    "regions": "spwnet.dividing",
    "regions_of_all": "spwnet.dividing",
    "recut_regions": "spwnet.dividing",
    "LabelSettings": "spwnet.config",
    "LazyLabels": "spwnet.lazylabels",
    "RegionHierarchy": "spwnet.hierarchy",
    "Segmentation": "spwnet.segmenting",
    "PRESETS": "spwnet.presets",
    "Settings": "spwnet.config",
    "make_settings": "spwnet.presets",
    "SpwnetError": "spwnet.errors",
    "Stopped": "spwnet.errors",
    "TrainedModel": "spwnet.trained",
    "report": "spwnet.classpage",
    "view": "spwnet.classpage",
    "recut": "spwnet.recutting",
    "sample": "spwnet.samples",
    "Progress": "spwnet.training",
    "Trial": "spwnet.tuning",
    "tune": "spwnet.tuning",
    "Volume": "spwnet.volumes",
    "VolumeSegmentation": "spwnet.volumesegmenting",
    "join_channels": "spwnet.volumes",
    "open_volume": "spwnet.volumes",
    "segment_volume": "spwnet.volumesegmenting",
    "LivePage": "spwnet.watching",
    "NotebookView": "spwnet.watching",
    "TensorBoardView": "spwnet.watching",
    "Watcher": "spwnet.watching",
}

__all__ = [
    "PRESETS",
    "ExportReport",
    "LabelSettings",
    "LazyLabels",
    "LivePage",
    "NotebookView",
    "Progress",
    "RegionHierarchy",
    "Segmentation",
    "Settings",
    "SpwnetError",
    "Stopped",
    "TensorBoardView",
    "TrainedModel",
    "Trial",
    "Volume",
    "VolumeSegmentation",
    "Watcher",
    "demo",
    "evaluate",
    "export",
    "join_channels",
    "load",
    "make_settings",
    "open_volume",
    "recut",
    "recut_regions",
    "regions",
    "regions_of_all",
    "report",
    "run",
    "sample",
    "segment",
    "segment_volume",
    "train",
    "tune",
    "view",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import spwnet` loads no torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'spwnet' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
