"""How the code is laid out, but for the layers, which import-linter keeps."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "spwnet"
MOST_LINES = 500
LONG = {
    "api.py": "training on images and on volumes, which keep, score and show the same by the same helpers",
    "classes.py": "all that is done to label images, on one table of their connected pieces",
    "codebook.py": "fitting, assigning, merging and agreement, in one space of scaled descriptors",
    "napari/logic.py": "one session: what the panel, the keys and the layers have in common",
    "napari/widgets.py": "one panel, all of whose parts follow one another",
    "training.py": "one step of training, and the loop around it that stops, keeps and resumes",
    "volumes.py": "one class and the one way to open it, with every option said and checked in one place",
    "volumesegmenting.py": "one job on threads or workers, and what it must agree with to be resumed",
}
"""Modules that are longer, and why they are one."""


def test_long_modules_have_a_reason():
    lines = {
        path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8").count("\n")
        for path in PACKAGE.rglob("*.py")
    }
    assert {name for name, count in lines.items() if count > MOST_LINES} == set(LONG)
    assert max(lines.values()) < 1.25 * MOST_LINES


def test_each_module_says_what_it_is():
    for path in PACKAGE.rglob("*.py"):
        assert path.read_text(encoding="utf-8").startswith('"""'), path
