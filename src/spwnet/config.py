"""Settings: frozen, validated, versioned. Every default of the program stands here, once; presets are beside."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SETTINGS_VERSION = 1
FRAME_RATE = 25.0
"""Frames a second of videos that are made of images."""


def _fraction(value: object) -> object:
    """Read "1/3" as a number: a third has no exact decimal form to write in TOML."""
    if isinstance(value, str) and "/" in value:
        try:
            return float(Fraction(value.replace(" ", "")))
        except (ValueError, ZeroDivisionError):
            return value
    return value


def _none(value: object) -> object:
    """Read "none", because TOML has no word for it."""
    return None if isinstance(value, str) and value.strip().lower() == "none" else value


Scale = Annotated[float, BeforeValidator(_fraction), Field(gt=0, le=8, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NoneText = BeforeValidator(_none)
End = Annotated[int | None, NoneText]
Span = tuple[End, End]


def _printable(name: str) -> str:
    if not 0 < len(name) <= 80 or not name.isprintable() or name.strip() != name:
        raise ValueError(f"expected a name of 1 to 80 printable characters without spaces around it, but got {name!r}")
    return name


class Section(BaseModel):
    """Settings of one kind: frozen, and refusing what they do not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ImageSettings(Section):
    """How images are read and prepared."""

    margin: int = Field(0, ge=0)
    """Pixels of the input cut off at each border before anything else; they get the nearest class in the end."""
    scale: Scale | Literal["auto"] = "auto"
    """Working size over input size (0.2, "1/3"), or "auto": as large as `max_pixels` allows, at most 1."""
    max_pixels: int = Field(220_000, ge=256)
    """Pixels of a working image at most, when `scale` is "auto"."""
    unsharp_radius: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Gaussian standard deviation of the unsharp mask in working pixels; 0 switches it off."""
    unsharp_amount: Finite = 1.0
    """Strength of the unsharp mask."""
    normalise: Literal["standardise", "range"] = "standardise"
    """Input of the network: zero mean and unit variance per channel, or the range 0…1 as it is."""
    axes: Annotated[str | None, NoneText] = None
    """Order of the axes of arrays and TIFF pages, for example "YXC" or "TYX"; read from the file if not given."""

    @model_validator(mode="after")
    def _axes_known(self) -> ImageSettings:
        axes = self.axes
        if axes is not None and (
            set(axes) - set("TZCYX") or len(set(axes)) != len(axes) or not {"Y", "X"} <= set(axes)
        ):
            raise ValueError(
                f"expected axes made of Y and X and some of T, Z, C, each once, for example 'TYXC', but got {axes!r}"
            )
        return self


class PatchSettings(Section):
    """Random patches drawn from the training images for each mini-batch."""

    crop: Annotated[int | None, NoneText] = Field(192, ge=1)
    """Side, in working pixels, of the random crop of each training image that a step sees; "none": all of it."""

    schedule: Annotated[tuple[tuple[int, int, int], ...] | None, NoneText] = None
    """Explicit list of (height, width, patches per mini-batch)."""
    sides: tuple[int, ...] = ()
    """Side lengths to generate a schedule from: every (height, width) pair within a factor of two."""
    budget: Annotated[int | None, NoneText] = Field(None, ge=1)
    """Pixels of one size in a mini-batch, for a generated schedule; "none": four times the largest side squared."""
    rows: Span = (None, None)
    """Rows of the working image (start, stop) that patches are drawn from, as in a Python slice; "none": its end."""
    columns: Span = (None, None)
    """Columns of the working image that patches are drawn from, as in a Python slice."""

    @model_validator(mode="after")
    def _positive(self) -> PatchSettings:
        if self.schedule is not None and self.sides:
            raise ValueError("expected either `schedule` or `sides`, but got both; drop one")
        for entry in self.schedule or ():
            if min(entry) < 1:
                raise ValueError(f"expected (height, width, count) of at least 1 each, but got {entry}")
        if any(side < 1 for side in self.sides):
            raise ValueError(f"expected sides of at least 1 pixel, but got {self.sides}")
        return self


class SuperpixelSettings(Section):
    """The oversegmentation."""

    method: Literal["slic", "labels", "none"] = "slic"
    """SLIC, label images of the user's, or none (dense mode: every loss and label at the pixels)."""
    size: float = Field(20.0, ge=1, allow_inf_nan=False)
    """Pixels in one superpixel on average, unless `count` is given."""
    count: Annotated[int | None, NoneText] = Field(None, ge=1)
    """Superpixels asked for in one image; SLIC makes about as many, not exactly."""
    compactness: float = Field(10.0, gt=0, allow_inf_nan=False)
    """Weight of position against colour, on the scale of CIELAB (0…100)."""
    sigma: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Gaussian smoothing before SLIC, in working pixels."""
    labels: Annotated[str | None, NoneText] = None
    """Folder, file or glob of label images, paired with the images by name, for `method = "labels"`."""


class ModelSettings(Section):
    """The W-Net: two U-Nets, encoder C → K and decoder K → C."""

    classes: int = Field(32, ge=2, le=65_536)
    """K, the number of classes the encoder can tell apart."""
    ch_mul: int = Field(16, ge=1)
    """Channels of the first block; the width doubles at each of the `n_blocks` poolings."""
    n_blocks: int = Field(3, ge=1, le=8)
    """Poolings of each U-Net."""
    evidence: bool = True
    """Whether the encoder takes the hand-made evidence beside the image: texture at several scales, without having to
    learn it first."""
    reduction: int = Field(2, ge=1, le=8)
    """The network works on means over so many working pixels a side, and sees so many times as far."""
    final_norm: bool = True
    """Batch normalisation without scale and offset on the encoder's output; keeps classes alive."""


class LossSettings(Section):
    """Weights β of the losses (0 switches one off) and their temperatures τ."""

    image: Weight = 0.3
    """β of the reconstruction of the training images, or of the parts of them that a step sees."""
    patches: Weight = 0.0
    """β of the reconstruction of random patches."""
    cut: Weight = 0.0
    """β of the normalised cut."""
    similarity: Weight = 1.0
    """β of the cross-entropy against each superpixel's label."""
    target: Literal["codebook", "own"] = "codebook"
    """Labels of the similarity: classes of the hand-made evidence, which the network learns to see in their
    surroundings; or what the network finds itself, as published, which may collapse."""
    continuity: Weight = 0.1
    """β of the difference between a superpixel and its neighbours."""
    tau_cut: Finite = -1.0
    """τ of the cut's adjacency exp(τ·d), with d the distance of mean colours."""
    tau_continuity: Finite = 0.0
    """τ of the neighbours' weights softmax(τ·d); 0 weighs all neighbours alike."""


class TrainingSettings(Section):
    """The optimisation."""

    images: int = Field(4, ge=1)
    """Training images, spread evenly over those given, unless the call names its frames."""
    epochs: int = Field(10, ge=0)
    """Epochs; previews and checkpoints come at their ends. With 0 the network stays as it is drawn."""
    batches: int = Field(10, ge=1)
    """Mini-batches, and so optimiser steps, in one epoch."""
    learning_rate: float = Field(1e-2, gt=0, allow_inf_nan=False)
    """Learning rate of Adam, the highest of the schedule."""
    schedule: Literal["one-cycle", "constant"] = "one-cycle"
    """Learning rate over the steps: up and down again by half-cosines, or always the same."""
    weight_decay: Weight = 0.01
    """Decay of the weights, decoupled from the gradient."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the convolutions; "auto" takes bfloat16 where the processor has it."""


class CodebookSettings(Section):
    """Class centres, fitted on the training images."""

    evidence: Literal["all", "handmade", "colour", "learned"] = "all"
    """What the codebook describes superpixels by: what the network learned and hand-made colour and texture, one of
    the two, or colour alone. Hand-made evidence and colour need no network and no training."""
    finest: int = Field(32, ge=1, le=4096)
    """Class centres that are fitted in training: the most classes that can be chosen afterwards."""


class Reassign(Section):
    """Pieces of one class that are too small to be it, and the class they are instead."""

    source: int = Field(ge=0)
    """Class whose connected pieces are looked at."""
    smaller_than: int = Field(ge=1)
    """Pieces of fewer pixels than this change their class."""
    to: int = Field(ge=0)
    """The class they become."""


class NamedClass(Section):
    """A class by name: which of the finest classes it is made of, what it looks like, and how it is cleaned."""

    id: int = Field(ge=0, le=65_535)
    """Value of its pixels in label images."""
    name: Annotated[str, AfterValidator(_printable)]
    """What it is called."""
    members: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    """Ids of the finest classes that belong to it."""
    colour: str | None = Field(None, pattern="^#[0-9a-fA-F]{6}$")
    """sRGB colour, "#0072b2"; that of its id in the palette if not given."""
    background: bool = False
    """Whether it is what lies around everything else: class 0, not drawn over pictures."""
    smooth: float = Field(0.0, ge=0, le=100, allow_inf_nan=False)
    """Gaussian standard deviation that its borders are smoothed with, in pixels; 0 is off."""
    fill_holes: int = Field(0, ge=0)
    """Holes in it of fewer pixels than this become part of it; 0 is off."""
    remove_objects: int = Field(0, ge=0)
    """Its connected pieces of fewer pixels than this become another class; 0 is off."""
    remove_to: int | None = Field(None, ge=0)
    """Id of the class that they become; the class that each touches most if not given."""
    keep_largest: bool = False
    """Whether only its largest connected piece stays; the others go where small ones go."""

    @property
    def cleans(self) -> bool:
        """Whether any cleaning is asked for."""
        return bool(self.smooth or self.fill_holes or self.remove_objects or self.keep_largest)


class LabelSettings(Section):
    """From features to classes, and their cleaning, in this order and in working pixels (of volumes: stored voxels)."""

    mode: Literal["codebook", "argmax_of_mean", "max_count_of_argmax"] = "codebook"
    """A superpixel's label: the nearest of class centres fitted on the training images, the arg max of its mean
    features, or the majority of its pixels' arg max."""
    classes: Annotated[int, Field(ge=1, le=2**24)] | Literal["auto"] = "auto"
    """Classes to tell apart, by the codebook's tree of merges; "auto": the fewest that leave hardly more unexplained
    than the finest do. The other two modes have `model.classes`."""
    named: tuple[NamedClass, ...] = ()
    """Classes by name, each of some of the finest: from a file of classes, in place of `classes` and `merge`."""
    merge: tuple[tuple[int, ...], ...] = ()
    """Groups of classes that are one; each takes the smallest id of its group."""
    steady: bool | Literal["auto"] = "auto"
    """Whether what does not change from one image to the next keeps its class, by codebook alone; "auto": in videos."""
    fill_holes: int = Field(0, ge=0)
    """Holes within a class of fewer pixels than this take the class around them; 0 is off."""
    reassign: tuple[Reassign, ...] = ()
    """Small pieces of one class that become another."""
    remove_objects: int = Field(0, ge=0)
    """Connected pieces of fewer pixels than this take the class they touch most; 0 is off."""

    @property
    def cleans(self) -> bool:
        """Whether any cleaning is asked for."""
        every = self.fill_holes or self.remove_objects or self.reassign
        return bool(every or any(one.cleans for one in self.named))

    @model_validator(mode="after")
    def _disjoint(self) -> LabelSettings:
        check_named(self.named)
        if self.named and (self.merge or self.reassign or self.classes != "auto"):
            raise ValueError(
                "expected either classes by name or `labels.classes`, `labels.merge` and `labels.reassign`, but got "
                "both; drop one"
            )
        members = [k for group in self.merge for k in group]
        if any(k < 0 for k in members):
            raise ValueError(f"expected class ids of at least 0, but got {self.merge}")
        twice = _repeated(members)
        if twice:
            raise ValueError(
                f"expected each class in one group at most, but got class {twice[0]} twice in {self.merge}"
            )
        return self


def _repeated(values: Iterable[Any]) -> list[Any]:
    """Return those that come more than once, in order."""
    return sorted((value for value, count in Counter(values).items() if count > 1), key=str)


def check_named(classes: Sequence[NamedClass]) -> None:
    """Check that classes by name go together.

    Raises
    ------
    ValueError
        If an id, a name or a member is in two of them, there are two backgrounds, the background is not class 0, or
        pieces are to become a class that there is not.
    """
    columns: tuple[tuple[str, list[Any]], ...] = (
        ("id", [one.id for one in classes]),
        ("name", [one.name for one in classes]),
        ("member", [k for one in classes for k in one.members]),
    )
    for what, values in columns:
        twice = _repeated(values)
        if twice:
            raise ValueError(f"expected each {what} once in the classes, but got {twice[0]!r} twice; merge the two")
    ids = {one.id for one in classes}
    for one in classes:
        if one.background and one.id != 0:
            raise ValueError(f"expected the background to be class 0, but '{one.name}' is class {one.id}")
        if one.remove_to is not None and one.remove_to not in ids - {one.id}:
            raise ValueError(
                f"expected another class that small pieces of '{one.name}' become, but got {one.remove_to}; take one "
                f"of {', '.join(map(str, sorted(ids - {one.id})))}"
            )


class RegionSettings(Section):
    """The hierarchy of regions of one image."""

    max_pixels: int = Field(160_000, ge=256)
    """Pixels of the working image at most; leaves of a larger image have its size, but the detail of this one."""
    learned_pixels: int = Field(40_000, ge=256)
    """Pixels at most of the image that the small network is trained on, if no trained one is given."""
    steps: int = Field(60, ge=1)
    """Optimiser steps of that training."""
    level: float = Field(0.6, ge=0, le=1)
    """Level that is drawn if none is asked for: pieces merge unless they are more likely than this to be two."""


class VolumeSettings(Section):
    """How volumes are segmented."""

    mode: Literal["supervoxels", "slices"] = "supervoxels"
    """Supervoxels with evidence in all directions, or each slice on its own as an image."""
    axis: Literal["z", "y", "x", "all"] = "z"
    """Axis across which slices are trained on and the network looks; "all": each of the three, and the mean of them."""
    size: float = Field(12.0, ge=1, allow_inf_nan=False)
    """Working voxels in one supervoxel on average."""
    n_blocks: int = Field(1, ge=1, le=8)
    """Poolings of the network for volumes: each more than doubles the margin that a block needs."""

    @property
    def axes(self) -> tuple[int, ...]:
        """Positions in z, y, x of the axes that the network looks across."""
        return (0, 1, 2) if self.axis == "all" else ("zyx".index(self.axis),)

    @model_validator(mode="after")
    def _slices_along_z(self) -> VolumeSettings:
        if self.mode == "slices" and self.axis != "z":
            raise ValueError(
                f"expected `volumes.axis = 'z'` where each slice is labelled on its own, but got {self.axis!r}; name "
                "the axes in another order by `--axes`, or use `volumes.mode = 'supervoxels'`"
            )
        return self


class Settings(Section):
    """All settings of a run. `device` and worker counts belong to a call, not to a run."""

    version: int = Field(SETTINGS_VERSION, ge=1)
    """Version of this format."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the initial weights and of the patches."""
    images: ImageSettings = ImageSettings()
    patches: PatchSettings = PatchSettings()
    superpixels: SuperpixelSettings = SuperpixelSettings()
    model: ModelSettings = ModelSettings()
    losses: LossSettings = LossSettings()
    training: TrainingSettings = TrainingSettings()
    codebook: CodebookSettings = CodebookSettings()
    labels: LabelSettings = LabelSettings()
    regions: RegionSettings = RegionSettings()
    volumes: VolumeSettings = VolumeSettings()

    @property
    def most_classes(self) -> int:
        """Classes that labels can be of at most: ids are below it."""
        return self.codebook.finest if self.labels.mode == "codebook" else self.model.classes

    @property
    def learns(self) -> bool:
        """Whether there is a network to train."""
        return self.labels.mode != "codebook" or self.codebook.evidence in ("all", "learned")

    @model_validator(mode="before")
    @classmethod
    def _not_newer(cls, values: Any) -> Any:
        """Say so first: what else is wrong with settings of a newer format means nothing."""
        version = values.get("version") if isinstance(values, dict) else None
        if isinstance(version, int) and version > SETTINGS_VERSION:
            raise ValueError(
                f"expected settings of format {SETTINGS_VERSION} or older, but got format {version}; "
                "update spwnet to read them"
            )
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.losses.patches > 0 and not (self.patches.schedule or self.patches.sides):
            raise ValueError(
                "expected a patch schedule because `losses.patches` is above 0, but got none; "
                "set `patches.sides` (for example [64, 96]) or `patches.schedule`, or `losses.patches = 0`"
            )
        weights = self.losses
        if not any((weights.image, weights.patches, weights.cut, weights.similarity, weights.continuity)):
            raise ValueError("expected at least one loss weight above 0, but all are 0; set one under `losses`")
        if self.superpixels.method != "labels" and self.superpixels.labels is not None:
            raise ValueError(
                "expected `superpixels.method = 'labels'` because `superpixels.labels` names label images, "
                f"but got {self.superpixels.method!r}"
            )
        ids = [k for group in self.labels.merge for k in group]
        ids += [k for entry in self.labels.reassign for k in (entry.source, entry.to)]
        ids += [k for one in self.labels.named for k in one.members]
        classes = self.labels.classes
        most = self.most_classes
        if self.labels.mode == "codebook" and not self.labels.named and classes != "auto":
            most = min(most, classes)
        beyond = [k for k in ids if k >= most]
        if beyond:
            raise ValueError(f"expected class ids below {most} under `labels`, but got {beyond[0]}")
        if self.labels.mode == "codebook" and classes != "auto" and classes > self.codebook.finest:
            raise ValueError(
                f"expected at most `codebook.finest = {self.codebook.finest}` classes, but got {classes}; "
                "raise `codebook.finest` for more"
            )
        return self
