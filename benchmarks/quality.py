"""Quality on real images: `python -m benchmarks.quality --help`; `SPWNET_DATA` names the folder of the sets.

Every piece of work, one method on one set with one seed, is a record in ``results.json`` as soon as it is done.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks import baselines, data, ours, quality_report, regions_quality, scores
from spwnet import outputs, storage
from spwnet.errors import SpwnetError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from benchmarks.data import Set

REGIONS_SET = "bsds_val"
SETS = (
    "video/garden", "video/ice", "video/salesman", "cheetah", "micro/superalloy",
    "volumes/puma_weave", "volumes/sim_electrode_xct", REGIONS_SET,
)  # fmt: skip
PARTS = ("naming", "ablation", "regions", "uncertainty", "score")
QUICK_FRAMES, QUICK_IMAGES = 12, 10
RESULTS, TABLES, PICTURE, EXAMPLES = "results.json", "tables.md", "pictures.jpg", "examples"


class Results:
    """Records in a JSON file that is whole after each of them.

    Attributes
    ----------
    records : list of dict
        All in the file, also those of earlier calls for other sets, seeds or settings.
    asked : list of dict
        Those that this call asked for.
    """

    def __init__(self, folder: Path, *, resume: bool) -> None:
        self.folder, self.path = folder, folder / RESULTS
        if self.path.exists() and not resume:
            raise SystemExit(f"there are results in {folder}; go on with them by --resume, or choose another --out")
        (folder / EXAMPLES).mkdir(parents=True, exist_ok=True)
        self.records: list[dict[str, Any]] = []
        self.asked: list[dict[str, Any]] = []
        if self.path.exists():
            self.records = json.loads(self.path.read_text(encoding="utf-8"))["records"]

    def find(self, **key: Any) -> dict[str, Any] | None:
        return next((r for r in self.records if all(r.get(name) == value for name, value in key.items())), None)

    def once(
        self,
        key: dict[str, Any],
        identity: dict[str, Any],
        work: Callable[[], dict[str, Any]],
        pieces: Sequence[str] = (),
    ) -> None:
        """Do a piece of work, unless there is a record of it: the same identity, no problems, these pieces or more."""
        where = " ".join(str(value) for value in key.values())
        old = self.find(**key)
        if old is not None:
            if old["identity"] == identity and not old["problems"] and set(pieces) <= set(old["pieces"]):
                print(f"{where}: there already", flush=True)
                self.asked.append(old)
                return
            self.records.remove(old)
        record = {**key, "identity": identity, "pieces": list(pieces), "problems": {}}
        try:
            record |= work()
        except SpwnetError as error:
            record["problems"] = {"": str(error)}
        self.records.append(record)
        self.asked.append(record)
        storage.write_json(self.path, {"about": outputs.provenance(), "records": self.records})
        print(f"{where}: {quality_report.short(record)}", flush=True)

    def write_example(self, name: str, method: str, seed: int, labels: NDArray[Any]) -> None:
        """Keep the classes of a set's example frame."""
        file = quality_report.example_file(self.folder / EXAMPLES, name, method, seed)
        Image.fromarray(labels.astype(np.uint16)).save(file)


def run_baselines(results: Results, found: Set, seeds: Sequence[int], most: int | None) -> None:
    """All baselines on one set: superpixels described once, clustered anew for each method and seed."""
    frames = found.scored(most)
    described: list[baselines.Described] = []

    def work(kinds: tuple[str, ...], classes: int, seed: int, method: str) -> dict[str, Any]:
        if not described:
            described.append(baselines.describe(found, frames))
        labels, (fitting, labelling) = baselines.cluster(described[0], kinds, classes, seed)
        results.write_example(found.name, method, seed, labels[example_frame(found, most)])
        ready, rest = described[0].seconds
        return {
            "results": {str(classes): _scored(found, labels)}, "train": ready + fitting, "segment": rest + labelling
        }  # fmt: skip

    for classes in baselines.CLASSES:
        for name, kinds in baselines.KINDS.items():
            method = f"k-means {classes}, {name}"
            for seed in seeds:
                results.once(
                    {"kind": "baseline", "set": found.name, "method": method, "seed": seed},
                    {"frames": len({*frames, *found.training})},
                    lambda kinds=kinds, classes=classes, seed=seed, method=method: work(kinds, classes, seed, method),
                )


def run_ours(
    results: Results, found: Set, variant: str, seed: int, *, most: int | None, parts: Sequence[str],
    whole: bool, device: str, changes: dict[str, Any],
) -> None:  # fmt: skip
    """Train once and measure all that is asked of this model."""
    frames = sorted({*found.scored(most), *found.training})
    main = variant == ours.FULL
    doubt = main and "uncertainty" in parts
    few = main and "naming" in parts

    def work() -> dict[str, Any]:
        settings = ours.settings_of(ours.VARIANTS[variant], seed, changes)
        model, seconds = ours.train(found, settings, device)
        record: dict[str, Any] = {"train": seconds, "results": {}, "problems": {}, "score": ours.score_of(model)}
        segmented = (ours.segment_whole if whole else ours.segment)(model, found, frames)
        record |= {"segment": segmented.seconds, "segmented": segmented.images}
        named = record["results"][str(ours.CLASSES)] = _scored(found, segmented.labels)
        results.write_example(found.name, variant, seed, segmented.labels[example_frame(found, most)])
        names = {int(k): v for k, v in named["names"].items()}
        try:
            if few:
                again = ours.segment(model, found, frames, classes=ours.FEW).labels
                record["results"][str(ours.FEW)] = _scored(found, again)
        except SpwnetError as error:
            record["problems"][f"{ours.FEW} classes"] = str(error)
        if doubt:
            again = ours.segment(model, found, frames, uncertainty=True)
            record["risk"] = scores.risk(found, again.labels, again.uncertainty or {}, names)
        return record

    identity: dict[str, Any] = {"frames": len(frames), "whole": whole}
    pieces = [name for name, asked in (("few", few), ("doubt", doubt)) if asked]
    try:
        identity["settings"] = ours.identity(ours.settings_of(ours.VARIANTS[variant], seed, changes))
    except SpwnetError:
        identity["settings"] = None  # the work says why
    results.once({"kind": "ours", "set": found.name, "method": variant, "seed": seed}, identity, work, pieces)


def run_regions(results: Results, folder: Path, most: int | None) -> None:
    """Each method on the regions protocol."""
    images = sorted(file.stem for file in (folder / "images").iterdir())
    if most is not None and most < len(images):
        images = [images[int(i)] for i in np.linspace(0, len(images) - 1, most).round()]
    for method in regions_quality.METHODS:
        results.once(
            {"kind": "regions", "set": REGIONS_SET, "method": method, "seed": 0},
            {"images": images},
            lambda method=method: {"regions": dict(regions_quality.evaluate_set(folder, method, images=images))},
        )


def example_frame(found: Set, most: int | None) -> int:
    """The frame that pictures show: the middle one of those that are scored."""
    frames = found.scored(most)
    return frames[len(frames) // 2]


def variants_of(parts: Sequence[str]) -> list[str]:
    """The settings that the parts need, the main ones first."""
    wanted = []
    if {"naming", "uncertainty", "ablation", "score"} & set(parts):
        wanted.append(ours.FULL)
    if {"naming", "ablation", "score"} & set(parts):
        wanted.append(ours.INSTANT)
    if {"ablation", "score"} & set(parts):
        wanted += [variant for variant in ours.VARIANTS if variant not in wanted]
    return wanted


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser("python -m benchmarks.quality", description=__doc__)
    result.add_argument("--sets", nargs="+", choices=SETS, default=SETS, metavar="SET", help=", ".join(SETS))
    result.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    result.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    result.add_argument("--quick", action="store_true", help=f"score {QUICK_FRAMES} frames of each set")
    result.add_argument("--baselines-only", action="store_true", help="train nothing")
    result.add_argument("--all-frames", action="store_true", help="segment also frames without a truth, for the time")
    result.add_argument("--out", type=Path, default=Path("quality-results"), metavar="FOLDER")
    result.add_argument("--resume", action="store_true", help="go on in FOLDER; what failed there is tried again")
    result.add_argument("--docs", type=Path, metavar="PAGE", help="put the tables between the marks of this page, too")
    result.add_argument("--device", default="auto")
    result.add_argument("--set", dest="changes", action="append", default=[], type=_change, metavar="NAME=VALUE",
                        help="a setting over every variant's, as JSON or text")  # fmt: skip
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    changes = dict(options.changes)
    if options.docs:
        # Before hours of work.
        quality_report.around(options.docs)
    results = Results(options.out, resume=options.resume)
    most = QUICK_FRAMES if options.quick else None
    folders = {name: data.folder(name) for name in options.sets}
    skipped = [f"{name}: not in SPWNET_DATA" for name, folder in folders.items() if folder is None]
    sets = {
        name: data.load(name, folder) for name, folder in folders.items() if folder is not None and name != REGIONS_SET
    }
    if "naming" in options.parts:
        for found in sets.values():
            run_baselines(results, found, options.seeds, most)
    variants = [] if options.baselines_only else variants_of(options.parts)
    for seed in options.seeds:
        for variant in variants:
            for found in sets.values():
                run_ours(
                    results, found, variant, seed, most=most, parts=options.parts, whole=options.all_frames,
                    device=options.device, changes=changes,
                )  # fmt: skip
    if "regions" in options.parts and folders.get(REGIONS_SET) and not options.baselines_only:
        run_regions(results, folders[REGIONS_SET], QUICK_IMAGES if options.quick else None)

    text = quality_report.markdown(results.asked, list(sets.values()), options.parts, skipped, most)
    storage.atomic_write(options.out / TABLES, text.encode())
    if options.docs:
        quality_report.insert(options.docs, text)
    if sets:
        frames = {name: example_frame(found, most) for name, found in sets.items()}
        picture = quality_report.pictures(results.asked, list(sets.values()), frames, options.out / EXAMPLES)
        Image.fromarray(picture).save(options.out / PICTURE, quality=90)
    print(f"\n{text}\n{options.out / TABLES}, {options.out / RESULTS}" + (f", {options.out / PICTURE}" if sets else ""))
    return 0 if results.asked else 1


def _scored(found: Set, labels: dict[int, NDArray[Any]]) -> dict[str, Any]:
    named = scores.name_and_score(found, labels)
    classes = len(np.unique(np.concatenate([np.unique(array) for array in labels.values()])))
    text = {str(label): value for label, value in named.iou.items()}
    return {"mean": named.mean, "iou": text, "names": {str(k): v for k, v in named.names.items()}, "classes": classes}


def _change(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, but got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


if __name__ == "__main__":
    sys.exit(main())
