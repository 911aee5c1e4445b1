"""A trained model: network, settings, normalisation and codebook, and the classes that it gives."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from spwnet.classes import merge_classes
from spwnet.codebook import Codebook, coarser
from spwnet.config import LabelSettings, Settings
from spwnet.descriptors import Kind, kinds
from spwnet.errors import SettingsError
from spwnet.model import WNet
from spwnet.naming import ClassMap, read_classes

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from spwnet.preparation import Normalisation

CPU = torch.device("cpu")


@dataclass(frozen=True)
class TrainedModel:
    """A trained network with all it takes to segment other images of the kind.

    Attributes
    ----------
    network : WNet or None
        None where labels need none.
    settings : Settings
        The settings it was trained with.
    normalisation : Normalisation
        Statistics of the training images.
    info : dict
        The rest of ``run.json``: training images, provenance, time.
    codebook : Codebook or None
        Class centres, if labels are by codebook.
    device : torch.device
        Where images are segmented; the network is there.
    """

    network: WNet | None
    settings: Settings
    normalisation: Normalisation
    info: dict[str, Any]
    codebook: Codebook | None = None
    device: torch.device = CPU

    @property
    def solid(self) -> bool:
        """Whether it was trained on a volume, for supervoxels."""
        return self.info.get("solid") is True

    @property
    def fingerprint(self) -> str:
        """SHA-256 of weights and class centres: equal for equal models."""
        digest = hashlib.sha256()
        for name, tensor in (self.network.state_dict() if self.network is not None else {}).items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        if self.codebook is not None:
            for array in self.codebook.tensors().values():
                digest.update(array.tobytes())
        return digest.hexdigest()

    def n_classes(self, labels: LabelSettings | None = None) -> int:
        """Return how many classes labels are of, merges apart: ids are below it.

        Parameters
        ----------
        labels : LabelSettings, optional
            The settings' own if not given.

        Raises
        ------
        SettingsError
            If there are not so many.
        """
        labels = labels or self.settings.labels
        if labels.named:
            return max(one.id for one in labels.named) + 1
        if labels.mode != "codebook" or self.codebook is None:
            return self.settings.model.classes
        if labels.classes == "auto":
            return self.codebook.suggested
        # With fewer different superpixels than centres asked for, there are only as many.
        few = labels.classes <= self.settings.codebook.finest
        return min(labels.classes, self.codebook.finest) if few else labels.classes

    def members(self, labels: LabelSettings) -> NDArray[np.int32]:
        """Return the table from the finest classes to those of the settings, merges included."""
        if self.codebook is None and labels.mode == "codebook":
            # In training: what the network tells apart are none of the classes that will be.
            return np.arange(self.settings.model.classes, dtype=np.int32)
        if labels.named:
            return self._named(labels)
        n_classes = self.n_classes(labels)
        table = np.arange(n_classes, dtype=np.int32)
        if labels.mode == "codebook" and self.codebook is not None:
            table = coarser(self.codebook.parents, n_classes)
        named = [k for group in labels.merge for k in group]
        named += [k for rule in labels.reassign for k in (rule.source, rule.to)]
        if max(named, default=0) >= n_classes:
            raise SettingsError(
                f"expected class ids below {n_classes}, the number of classes, but got {max(named)}; "
                "give the number that these ids are of by `labels.classes`"
            )
        merged: NDArray[np.int32] = merge_classes(table[None], labels.merge)[0]
        return merged

    @property
    def n_finest(self) -> int:
        """How many classes there are at most: those that all others are made of."""
        return self.settings.model.classes if self.codebook is None else self.codebook.finest

    def finest_labels(self) -> LabelSettings:
        """Return settings of labels that tell all of the finest classes apart."""
        classes: int | Literal["auto"] = "auto" if self.codebook is None else self.n_finest
        return LabelSettings(mode=self.settings.labels.mode, classes=classes)

    def class_map(self, n_classes: int | None = None) -> ClassMap:
        """Return the classes by name, to be merged and named: cut from the tree at `n_classes`, or of the settings.

        Raises
        ------
        SettingsError
            If there are not so many.
        """
        labels = self.settings.labels
        parents = None if self.codebook is None else self.codebook.parents.tolist()
        if n_classes is None and labels.named:
            return ClassMap(labels.named, self.n_finest, parents and tuple(parents), self.fingerprint)
        found = ClassMap.of_tree(self.n_finest, n_classes or self.n_classes(), parents, self.fingerprint)
        for group in labels.merge if n_classes is None else ():
            found = found.merge(group)
        return found

    def labels(
        self, labels: LabelSettings | None = None, classes: ClassMap | str | Path | None = None
    ) -> LabelSettings:
        """Return the settings of labels: those given, else the run's own, with classes by name on top.

        Raises
        ------
        SettingsError
            If the classes are not of this model, or another number of them is asked for than their mode has.
        """
        labels = labels or self.settings.labels
        if labels != self.settings.labels and labels.mode != "codebook":
            most = self.settings.model.classes
            if labels.classes not in ("auto", most):
                raise SettingsError(
                    f"expected the {most} classes of the network to be labelled by '{labels.mode}', but got "
                    f"{labels.classes}; merge some (`labels.merge`), or use `labels.mode = 'codebook'`"
                )
        if classes is None:
            return labels
        if not isinstance(classes, ClassMap):
            classes = read_classes(classes, self.n_finest, None, self.fingerprint)
        return classes.labels(labels)

    def _named(self, labels: LabelSettings) -> NDArray[np.int32]:
        """Table from the finest classes to those by name."""
        if labels.mode != self.settings.labels.mode:
            raise SettingsError(
                f"expected `labels.mode = '{self.settings.labels.mode}'` for classes by name, which are made of the "
                f"classes of that mode, but got '{labels.mode}'; leave out the mode, or the classes by name"
            )
        members = sorted(k for one in labels.named for k in one.members)
        if members != list(range(self.n_finest)):
            odd = sorted(set(members) ^ set(range(self.n_finest)))[0]
            came = "there is no such class" if odd >= self.n_finest else "it is in none"
            raise SettingsError(
                f"expected each of the {self.n_finest} finest classes in one class by name, but of {odd} {came}; make "
                "the file of classes anew for this run"
            )
        table = np.empty(self.n_finest, np.int32)
        for one in labels.named:
            table[list(one.members)] = one.id
        return table


def make_network(settings: Settings, channels: int, *, solid: bool = False) -> WNet:
    """Build the network of the settings, for images or for supervoxels, with weights that depend on the seed alone."""
    model = settings.model
    evidence = kinds("handmade", channels, 0, solid=solid)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return WNet(
            channels,
            model.classes,
            model.ch_mul,
            settings.volumes.n_blocks if solid else model.n_blocks,
            evidence=sum(kind.size for kind in evidence) if model.evidence else 0,
            final_norm=model.final_norm,
        )


def evidence_kinds(settings: Settings, channels: int, *, solid: bool = False) -> list[Kind]:
    """Return the kinds of evidence of the settings' descriptors, of superpixels or of supervoxels."""
    return kinds(settings.codebook.evidence, channels, settings.model.classes, solid=solid)


def check_labels(settings: Settings) -> None:
    """Check before training that classes that are asked for by their ids can be there after it.

    Raises
    ------
    SettingsError
    """
    labels = settings.labels
    members = {k for one in labels.named for k in one.members}
    missing = sorted(set(range(settings.most_classes)) - members)
    if labels.named and missing:
        raise SettingsError(
            f"expected each of the {settings.most_classes} finest classes in one class of `labels.named`, but class "
            f"{missing[0]} is in none; name classes after training, by `spwnet classes`"
        )
    if labels.mode == "codebook" and labels.classes == "auto" and (labels.merge or labels.reassign):
        which = "merge" if labels.merge else "reassign"
        raise SettingsError(
            f"expected a number of classes by `labels.classes` that the ids in `labels.{which}` are of, but got "
            "'auto', which is known after training alone; give one, or merge after training, by `spwnet classes`"
        )


def most_ids(settings: Settings) -> int:
    """Return what ids of classes will be below, as far as settings tell."""
    labels = settings.labels
    if labels.named:
        return max(one.id for one in labels.named) + 1
    return settings.most_classes if labels.mode != "codebook" or labels.classes == "auto" else labels.classes
