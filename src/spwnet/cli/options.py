"""Options of the commands: what each is called, what it takes and what its help says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

TUNING = Group("Settings (preset < file < --set < flags)", sort_key=1)
RUNNING = Group("Running", sort_key=2)
VOLUMES = Group("Volumes (TIFF, NPY and slices by --volume)", sort_key=3)

Images = Annotated[
    tuple[str, ...],
    Parameter(help="Files, folders or globs of images of one kind.", negative="", show_default=False),
]
Frames = Annotated[
    str | None,
    Parameter(
        help='Frame numbers: "10,123,270", "1:400:20", "all", times in a video: "0s,2.5s", or to train on: "auto".',
        group=RUNNING,
    ),
]
Preset = Annotated[str, Parameter(help="default, instant, published-cheetah or published-hanyu.", group=TUNING)]
SettingsFile = Annotated[Path | None, Parameter(name="--settings", help="TOML file of settings.", group=TUNING)]
Sets = Annotated[
    list[str] | None,
    Parameter(
        name="--set", help='One setting, for example "losses.cut=0.5"; `spwnet info --settings` lists all.',
        negative="", group=TUNING,
    ),
]  # fmt: skip
Classes = Annotated[
    int | None,
    Parameter(
        help="Classes to find, `labels.classes` (`model.classes` without codebook).",
        group=TUNING,
    ),
]
Scale = Annotated[str | None, Parameter(help='Working size over input size, "1/3", `images.scale`.', group=TUNING)]
Epochs = Annotated[int | None, Parameter(help="Epochs of training, `training.epochs`.", group=TUNING)]
Seed = Annotated[int | None, Parameter(help="Seed of weights and patches, `seed`.", group=TUNING)]
SuperpixelImages = Annotated[
    str | None,
    Parameter(name="--superpixels", help="Folder or glob of your own superpixel label images.", group=TUNING),
]
Device = Annotated[str, Parameter(help="auto, cpu, cuda or mps.", group=RUNNING)]
Overwrite = Annotated[bool, Parameter(help="Replace what is in the output folder.", negative="", group=RUNNING)]
Resume = Annotated[bool, Parameter(help="Go on with what is in the output folder.", negative="", group=RUNNING)]
Merge = Annotated[
    list[str] | None,
    Parameter(help='Classes that are one, "0,1,3"; may be repeated.', negative="", group=TUNING),
]
FillHoles = Annotated[
    int | None, Parameter(help="Fill holes of fewer working pixels (of volumes: stored voxels).", group=TUNING)
]
RemoveObjects = Annotated[
    int | None, Parameter(help="Remove pieces of fewer working pixels (of volumes: stored voxels).", group=TUNING)
]
LabelMode = Annotated[
    Literal["codebook", "argmax_of_mean", "max_count_of_argmax"] | None,
    Parameter(help="How a superpixel gets its label.", group=TUNING),
]
Format = Annotated[
    Literal["png", "tif", "video", "zarr", "h5", "nxs", "npy"] | None,
    Parameter(
        name="--format",
        help="Label images (png, tif), or a lossless label video and an overlay to look at (video); a video gives "
        "videos, other images PNG. Of a volume: tif, zarr (OME-Zarr), h5, nxs (NeXus) or npy; TIFF if not given.",
        group=RUNNING,
    ),
]
Rate = Annotated[float, Parameter(help="Frames a second of videos made of images.", group=RUNNING)]
Steady = Annotated[
    bool | None,
    Parameter(help="What does not change from one image to the next keeps its class; on for videos.", group=TUNING),
]
LabelClasses = Annotated[
    str | None,
    Parameter(
        help="Classes to tell apart: any number up to `codebook.finest`, or a file of classes, RUN/classes.toml.",
        group=TUNING,
    ),
]
Uncertainty = Annotated[bool, Parameter(help="Write how uncertain each pixel is, too.", negative="", group=RUNNING)]
Overlays = Annotated[bool, Parameter(help="Write pictures with the classes drawn over the images.", group=RUNNING)]
FullOverlays = Annotated[
    bool, Parameter(help="Overlays in the size of the input, however large.", negative="", group=RUNNING)
]
View = Annotated[
    bool,
    Parameter(
        help="Show the training on a page of this machine, with a button to stop here and keep.", negative="",
        group=RUNNING,
    ),
]  # fmt: skip
Browser = Annotated[bool, Parameter(help="Open that page in the browser, if there is a display.", group=RUNNING)]
TensorBoard = Annotated[
    Path | None,
    Parameter(name="--tensorboard", help="Folder to write losses and pictures for TensorBoard to.", group=RUNNING),
]


@Parameter(name="*", group=VOLUMES)
@dataclass(frozen=True)
class VolumeOptions:
    """How files are read as a volume."""

    volume: Annotated[bool, Parameter(help="Read a TIFF, an NPY or a folder of slices as one volume.", negative="")] = (
        False
    )
    channel: Annotated[
        list[str] | None,
        Parameter(
            help="More images or another volume, registered with the first, as channels; may be repeated.", negative=""
        ),
    ] = None
    axes: Annotated[str | None, Parameter(help='Order of the axes as stored, for example "CZYX".')] = None
    dataset: Annotated[str | None, Parameter(help="Path of the dataset in an HDF5 file or a Zarr group.")] = None
    level: Annotated[int, Parameter(help="Resolution of an OME-Zarr, 0 is the finest.")] = 0
    spacing: Annotated[str | None, Parameter(help='Voxel spacing, "z,y,x" or one number.')] = None
    unit: Annotated[str | None, Parameter(help='Unit of the spacing, for example "micrometer".')] = None
    shape: Annotated[str | None, Parameter(help='Shape of raw binary, "z,y,x".')] = None
    dtype: Annotated[str | None, Parameter(help='Type of raw binary, for example "uint16" or ">u2".')] = None
    offset: Annotated[int, Parameter(help="Bytes before the voxels of raw binary.")] = 0


@Parameter(name="*", group=VOLUMES)
@dataclass(frozen=True)
class BlockOptions:
    """How a volume is worked on."""

    block: Annotated[str | None, Parameter(help='Voxels along the sides of a block, one number or "z,y,x".')] = None
    workers: Annotated[int | None, Parameter(help="Blocks in work at a time; one for each processor if not given.")] = (
        None
    )
    scheduler: Annotated[
        str, Parameter(help='"threads", "processes" or the address of a Dask scheduler, "tcp://host:8786".')
    ] = "threads"
    mesh: Annotated[str | None, Parameter(help='Classes whose surface is written as STL, "1,4".')] = None


NO_VOLUME_OPTIONS = VolumeOptions()
NO_BLOCK_OPTIONS = BlockOptions()
"""What commands take where none of these options is given."""
