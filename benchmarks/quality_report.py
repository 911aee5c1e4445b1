"""What a person looks at after the quality benchmark: tables in Markdown, and one sheet of pictures."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks import baselines, ours, scores
from spwnet import outputs, storage
from spwnet.classes import palette
from spwnet.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from benchmarks.data import Set

    Record = dict[str, Any]

BEGIN, END = "<!-- quality: begin -->", "<!-- quality: end -->"
NOTHING = "–"
MANY = str(ours.CLASSES)
OURS = {
    f"SP-WNet, {ours.CLASSES} classes": (ours.FULL, MANY),
    f"SP-WNet, {ours.FEW} classes of the same model": (ours.FULL, str(ours.FEW)),
    f"instant, {ours.CLASSES} classes": (ours.INSTANT, MANY),
}
REGIONS = ("covering", "pri", "vi")
WIDTH = 320
"""Pixels of one picture on the sheet."""
VOID = 7
"""Colour of pixels without a class, or without a truth: black in the palette."""
VOID_LABEL = -1


def markdown(
    records: Sequence[Record], sets: Sequence[Set], parts: Sequence[str], skipped: Sequence[str], most: int | None
) -> str:
    """All tables of the parts, and what is missing from them."""
    seeds = sorted({record["seed"] for record in records if record["kind"] != "regions"})
    lines = [
        f"Mean (least–most) over the seeds {', '.join(map(str, seeds))}. "
        + (f"**Quick: {most} frames of each set are scored.** " if most else "")
        + "; ".join(
            f"{name} {version}" for name, version in outputs.provenance().items() if name not in ("time", "platform")
        )
        + ".",
        "",
    ]
    tables = {
        "naming": lambda: [*_naming(records, sets), "", *_seconds(records, sets)],
        "ablation": lambda: _ablation(records, sets),
        "regions": lambda: _regions(records),
        "uncertainty": lambda: _uncertainty(records, sets),
        "score": lambda: _score(records, sets),
    }
    for part in parts:
        lines += [*tables[part](), ""]
    problems = {
        f"{r['set']}, {r['method']}" + (f", {what}" if what else "") + f": {why}"
        for r in records
        for what, why in r["problems"].items()
    }
    if skipped or problems:
        lines += ["Not measured:", "", *(f"- {line}" for line in [*skipped, *sorted(problems)]), ""]
    return "\n".join(lines)


def around(page: Path) -> tuple[str, str]:
    """Return what is before and after the marks of a page.

    Raises
    ------
    OutputError
        If the page has no such marks.
    """
    old = page.read_text(encoding="utf-8")
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise OutputError(f"expected the marks {BEGIN} and {END} in {page}; write them where the tables belong")
    return before, after


def insert(page: Path, text: str) -> None:
    """Put the tables between the marks of a page; raises as `around`."""
    before, after = around(page)
    storage.atomic_write(page, f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}".encode())


def short(record: Record) -> str:
    """One line of a record, for whoever watches."""
    if "regions" in record:
        return ", ".join(f"{name} {value:.3f}" for name, value in _flat(record["regions"]).items())
    said = [f"{classes} classes {result['mean']:.3f}" for classes, result in record.get("results", {}).items()]
    said += [f"{record['train']:.1f} + {record['segment']:.1f} s"] if said else []
    return ", ".join([*said, *record["problems"].values()])


def spread(values: Sequence[float]) -> str:
    """Mean, and least and most of several."""
    if not values:
        return NOTHING
    if len(values) == 1:
        return _share(values[0])
    return f"{_share(float(np.mean(values)))} ({_share(min(values))}–{_share(max(values))})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _naming(records: Sequence[Record], sets: Sequence[Set]) -> list[str]:
    columns: list[tuple[str, str, int | None]] = []
    for found in sets:
        columns.append((found.name, found.name, None))
        columns += [(name, found.name, label) for label, name in found.names if name == "animal"]
    names = [found.name for found in sets]
    rows, means = [], {}
    wide = _best(records, names)
    for title, record_of in methods().items():
        cells = [_values(records, name, *record_of, label) for _, name, label in columns]
        rows.append([title, *map(spread, cells), _overall(records, names, record_of)])
        means[title] = [float(np.mean(cell)) if cell else None for cell in cells]
    first = next(iter(OURS))
    gains, whole = [], []
    for (_, name, label), mean in zip(columns, means[first], strict=True):
        best = _values(records, name, wide[name], MANY, label) if name in wide else []
        gains.append(mean - float(np.mean(best)) if best and mean is not None else None)
        if label is None:
            whole.append(gains[-1])
    overall = None if None in whole or not whole else float(np.mean(whole))
    rows.append([f"{first}, over the best k-means {MANY} of each set", *map(_signed, [*gains, overall])])
    head = ["mean IoU", *(title for title, _, _ in columns), "mean of the sets"]
    return ["### Naming", "", *table(head, rows)]


def _seconds(records: Sequence[Record], sets: Sequence[Set]) -> list[str]:
    def cell(name: str, method: str) -> str:
        kept = [r for r in _of(records, name, method) if "train" in r]
        if not kept:
            return NOTHING
        train, segment = (float(np.mean([r[key] for r in kept])) for key in ("train", "segment"))
        return f"{train:.1f} + {segment:.1f} = {train + segment:.1f}"

    methods = [f"k-means {MANY}, {name}" for name in baselines.KINDS] + [ours.FULL, ours.INSTANT]
    title = {ours.FULL: f"SP-WNet, {MANY} classes", ours.INSTANT: f"instant, {MANY} classes"}
    counts = {f.name: _frame_count(records, f.name) for f in sets}
    head = ["seconds: train + segment = whole", *(f"{name} ({count} images)" for name, count in counts.items())]
    return table(head, ([title.get(m, m), *(cell(f.name, m) for f in sets)] for m in methods))


def _ablation(records: Sequence[Record], sets: Sequence[Set]) -> list[str]:
    names = [found.name for found in sets]
    rows = [
        [
            variant,
            *(spread(_values(records, name, variant, MANY)) for name in names),
            _overall(records, names, (variant, MANY)),
        ]
        for variant in ours.VARIANTS
    ]
    return ["### Ablation", "", *table([f"mean IoU, {MANY} classes", *names, "mean of the sets"], rows)]


def _regions(records: Sequence[Record]) -> list[str]:
    rows, images = [], 0
    for record in records:
        if record["kind"] == "regions" and "regions" in record:
            values = _flat(record["regions"])
            images = int(values.get("images", 0))
            cells = [
                " / ".join(_share(values[key]) if key in values else NOTHING for key in (f"{name}_ods", f"{name}_ois"))
                for name in REGIONS
            ]
            seconds = next((value for key, value in values.items() if key.startswith("seconds")), None)
            rows.append([record["method"], *cells, NOTHING if seconds is None else f"{seconds:.1f}"])
    return [
        f"### Regions, {images} images",
        "",
        *table(["ODS / OIS", "covering", "PRI", "VI (smaller is better)", "seconds an image"], rows),
    ]


def _uncertainty(records: Sequence[Record], sets: Sequence[Set]) -> list[str]:
    rows = []
    for found in sets:
        risks = [r["risk"] for r in _of(records, found.name, ours.FULL) if "risk" in r]
        rows.append([found.name, *(spread([risk[str(share)] for risk in risks]) for share in scores.LEFT_OUT)])
    head = ["share of wrong pixels without the most uncertain", *(f"{share:.0%}" for share in scores.LEFT_OUT)]
    return ["### Uncertainty", "", *table(head, rows)]


def _score(records: Sequence[Record], sets: Sequence[Set]) -> list[str]:
    rows = []
    for found in sets:
        pairs = [
            (record["score"], record["results"][MANY]["mean"])
            for record in records
            if record["kind"] == "ours" and record["set"] == found.name and record.get("score") is not None
        ]
        rank = scores.rank_correlation(*map(list, zip(*pairs, strict=True))) if pairs else None
        rows.append([found.name, str(len(pairs)), _signed(rank)])
    head = ["set", "runs", "Spearman's rank correlation of the label-free score with mean IoU"]
    return ["### Score", "", *table(head, rows)]


def methods() -> dict[str, tuple[str, str]]:
    """Title of each row of the naming table → method of its records, and classes."""
    rows = {
        f"k-means {k}, {name}": (f"k-means {k}, {name}", str(k)) for k in baselines.CLASSES for name in baselines.KINDS
    }
    return rows | OURS


def _best(records: Sequence[Record], names: Sequence[str]) -> dict[str, str]:
    """The baseline of many classes that is best on each set."""
    best = {}
    for name in names:
        values = {m: _values(records, name, m, MANY) for m in (f"k-means {MANY}, {kind}" for kind in baselines.KINDS)}
        means = {method: float(np.mean(found)) for method, found in values.items() if found}
        if means:
            best[name] = max(means, key=means.__getitem__)
    return best


def _of(records: Sequence[Record], name: str, method: str) -> list[Record]:
    return [record for record in records if record["set"] == name and record["method"] == method]


def _values(records: Sequence[Record], name: str, method: str, classes: str, label: int | None = None) -> list[float]:
    """Mean IoU, or that of one class of the truth, of each seed."""
    results = [r["results"][classes] for r in _of(records, name, method) if classes in r.get("results", {})]
    return [result["mean"] if label is None else result["iou"].get(str(label), 0.0) for result in results]


def _overall(records: Sequence[Record], names: Sequence[str], record_of: tuple[str, str]) -> str:
    cells = [_values(records, name, *record_of) for name in names]
    return _share(float(np.mean([np.mean(cell) for cell in cells]))) if cells and all(cells) else NOTHING


def _frame_count(records: Sequence[Record], name: str) -> int:
    segmented = [r["segmented"] for r in _of(records, name, ours.FULL) if "segmented" in r]
    frames = [r["identity"]["frames"] for r in records if r["set"] == name]
    return segmented[0] if segmented else frames[0] if frames else 0


def _share(value: float) -> str:
    return f"{value:.3f}".removeprefix("0") if abs(value) < 1 else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return NOTHING if value is None else f"{'−' if value < 0 else '+'}{_share(abs(value))}"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """{"covering": {"ODS": 1}} and {"covering_ods": 1} alike as {"covering_ods": 1}; numbers only."""
    result: dict[str, float] = {}
    for key, value in values.items():
        name = prefix + key.lower().replace(" ", "_")
        if isinstance(value, dict):
            result |= _flat(value, f"{name}_")
        elif isinstance(value, int | float):
            result[name] = float(value)
    return result


def example_file(folder: Path, name: str, method: str, seed: int) -> Path:
    return folder / (re.sub(r"[^\w-]+", "_", f"{name}--{method}--{seed}") + ".png")


def pictures(
    records: Sequence[Record], sets: Sequence[Set], frames: dict[str, int], examples: Path
) -> NDArray[np.uint8]:
    """One row for each set: input, truth, the best baseline named, our classes, and ours named."""
    best = _best(records, [found.name for found in sets])
    rows = []
    for found in sets:
        number = frames[found.name]
        truth = found.truth_of(number)
        shape = truth.shape
        pixels, rgb = found.frame(number)
        order = sorted({*np.unique(truth).tolist()} - set(found.ignore))
        row = [_titled(_display(pixels[found.window], rgb), found.name), _shown(_coloured(truth, order))]
        for method in (best.get(found.name, ""), ours.FULL):
            record = next((r for r in _of(records, found.name, method) if "results" in r), None)
            file = None if record is None else example_file(examples, found.name, method, record["seed"])
            if record is None or file is None or not file.exists():
                row += [_shown(np.full((*shape, 3), 255, np.uint8))] * (2 if method == ours.FULL else 1)
                continue
            labels = np.asarray(Image.open(file)).astype(np.int64)
            labels = labels if labels.shape == shape else found.on_truth(labels, shape)
            if method == ours.FULL:
                row.append(_shown(palette(int(labels.max()) + 1)[labels]))
            result = record["results"][MANY]
            names = {int(k): value for k, value in result["names"].items()}
            named = np.where(np.isin(truth, found.ignore), VOID_LABEL, scores.apply_names(labels, names))
            picture = _shown(_coloured(named, order))
            row.append(_titled(picture, f"{result['mean']:.3f}"))
        rows.append(row)
    captions = ("input", "truth", "best k-means 32, named", "SP-WNet, classes", "SP-WNet, named")
    return outputs.grid(rows, captions)


def _coloured(labels: NDArray[Any], order: Sequence[int]) -> NDArray[np.uint8]:
    """Colour the truth's classes by their order; all else is void."""
    index = np.full(labels.shape, VOID)
    for k, label in enumerate(order):
        index[labels == label] = k if k < VOID else k + 1
    return palette(len(order) + VOID + 1)[index]


def _display(pixels: NDArray[Any], rgb: bool) -> NDArray[np.uint8]:
    if not rgb or pixels.dtype != np.uint8:
        low, high = np.percentile(pixels, (0.5, 99.5))
        pixels = np.clip((pixels - low) / ((high - low) or 1) * 255, 0, 255).astype(np.uint8)
    picture = pixels if rgb else np.repeat(pixels[..., :1], 3, axis=-1)
    return _shown(picture, Image.Resampling.BILINEAR)


def _shown(picture: NDArray[np.uint8], how: Image.Resampling = Image.Resampling.NEAREST) -> NDArray[np.uint8]:
    height = max(1, round(picture.shape[0] * WIDTH / picture.shape[1]))
    return np.asarray(Image.fromarray(picture).resize((WIDTH, height), how))


def _titled(picture: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    image = Image.fromarray(picture)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    draw.rectangle((0, 0, font.getlength(text) + 8, 18), fill="white")
    draw.text((4, 1), text, fill="black", font=font)
    return np.asarray(image)
