"""The site: no page is left out, the reference is whole, and the tutorials are made of what there is."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

import spwnet
from spwnet.cli import app
from spwnet.config import NamedClass
from spwnet.naming import read_classes
from spwnet.presets import PRESETS, setting_names
from spwnet.runs import RUN_FORMAT, Run
from tests.conftest import phantom

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MADE = ("_build", "_generated", "_ext")
PAGES = sorted(
    page for kind in ("md", "rst") for page in DOCS.rglob(f"*.{kind}") if page.relative_to(DOCS).parts[0] not in MADE
)
TUTORIALS = sorted(page for page in (DOCS / "tutorials").glob("*.md") if page.stem != "index")
needs_sphinx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("sphinx", "myst_nb", "furo", "numpydoc", "latex2mathml")),
    reason="needs the extra `docs`, which `make docs` installs",
)


@pytest.fixture(scope="module")
def generators():
    before = [*sys.path]
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        yield importlib.import_module("generators")
    finally:
        sys.path[:] = before


def text_of(page):
    return page.read_text(encoding="utf-8")


def listed(page):
    """Pages that the tables of contents of a page name."""
    found = []
    for block in re.findall(r"```\{toctree\}\n(.*?)```", text_of(page), flags=re.DOTALL):
        entries = [line.strip() for line in block.splitlines() if line.strip() and not line.startswith(":")]
        for entry in entries:
            matches = [one for kind in ("md", "rst") for one in page.parent.glob(f"{entry}.{kind}")]
            assert matches or "*" in entry, f"{page.name}: {entry}"
            found += [one.resolve() for one in matches]
    return found


def test_every_page_is_in_one_table_of_contents():
    found = [target for page in PAGES for target in listed(page)]
    assert sorted(found) == sorted({*PAGES} - {DOCS / "index.md"})


def test_generated_pages_list_every_command_and_setting(generators):
    commands = generators.commands()
    names = [name for name in app if not name.startswith("-")]
    assert re.findall(r"^## spwnet (\S+)$", commands, flags=re.MULTILINE) == names
    for option in ("--fill-holes", "--scheduler", "--label-mode", "--tensorboard"):
        assert f"`{option}" in commands
    settings = generators.settings()
    listed_names = re.findall(r"^`([\w.]+)(?: = [^`]*)?`$", settings, flags=re.MULTILINE)
    assert sorted(listed_names) == sorted(setting_names())
    assert '`superpixels.method = "slic"`\n: SLIC' in settings
    assert 'Also `"labels"`, `"none"`.' in settings
    assert all(f"`{name}`" in generators.presets() for name in PRESETS)
    assert f"| `run.json` | `format` | {RUN_FORMAT} |" in generators.formats()
    assert all(f"`{name}" in generators.named_class() for name in NamedClass.model_fields)


def test_generated_pages_are_written_once(generators, tmp_path):
    generators.write(tmp_path / "made")
    files = sorted((tmp_path / "made").iterdir())
    assert {file.stem for file in files} == set(generators.PAGES)
    times = [file.stat().st_mtime_ns for file in files]
    generators.write(tmp_path / "made")
    assert [file.stat().st_mtime_ns for file in files] == times
    included = re.findall(r"_generated/(\w+)\.md", "".join(map(text_of, PAGES)))
    assert sorted(included) == sorted(generators.PAGES)


def test_reference_has_every_public_name():
    names = re.findall(r"^\.\. (?:auto|py:)\w+:: spwnet\.(\w+)(?:\(\))?$", text_of(DOCS / "reference/api.rst"), re.M)
    assert sorted(names) == sorted(spwnet.__all__)


@pytest.mark.parametrize("page", sorted((DOCS / "reference").glob("*.rst")), ids=lambda page: page.stem)
def test_no_section_of_the_reference_is_empty(page):
    lines = text_of(page).splitlines()
    underlines = [k for k, line in enumerate(lines) if set(line) in ({"="}, {"-"})]
    for here, following in pairwise([*underlines, len(lines) + 1]):
        assert any(lines[here + 1 : following - 1]), lines[here - 1]


def resolved(name):
    """What a dotted name stands for."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise AssertionError(name)


def test_names_in_pages_exist_and_the_method_names_what_the_reference_has():
    for page in PAGES:
        for name in re.findall(r"`(spwnet(?:\.\w+)+)`", text_of(page)):
            resolved(name)
    reference = text_of(DOCS / "reference/parts.rst") + text_of(DOCS / "reference/api.rst")
    for name in re.findall(r"`(spwnet(?:\.\w+)+)`", text_of(DOCS / "method.md")):
        assert name in reference or name.rpartition(".")[0] in reference, name
    for name in re.findall(r"^\.\. auto\w+:: ([\w.]+)", reference, flags=re.MULTILINE):
        resolved(name)


def test_files_of_a_run_are_in_the_reference():
    formats = text_of(DOCS / "reference/formats.md")
    for path in vars(Run("x")).values():
        assert path.name == "x" or f"`{path.name}" in formats, path


def test_keys_of_summaries_are_in_the_reference(tiny, pictures, solid_model, tmp_path):
    (section,) = re.findall(
        r"^## Summary of a segmentation\n(.*?)^## ", text_of(DOCS / "reference/formats.md"), re.M | re.S
    )
    named = set(re.findall(r"`([\w-]+)`", section))
    keys = set(re.findall(r"`([\w-]+)`", " ".join(re.findall(r"^\| (`.*?) \|", section, re.M))))
    model = spwnet.train(pictures, settings=tiny)
    spwnet.segment(model, pictures, tmp_path / "images")
    spwnet.segment(model, pictures, tmp_path / "video", suffix=".mp4", classes=model.class_map())
    volume = spwnet.open_volume(phantom(), spacing=1.0, unit="micrometer")
    spwnet.segment_volume(solid_model, volume, tmp_path / "volume", classes=solid_model.class_map())
    images, video, volume = (
        json.loads((tmp_path / kind / "segmentation.json").read_text()) for kind in ("images", "video", "volume")
    )
    assert {*images, *video, *volume} == keys
    parts = [images["tree"], volume["volume"], volume["summary"], volume["summary"]["along"]]
    for entries in (video["classes"], images["images"], video["images"], volume["summary"]["classes"]):
        parts += entries.values()
    assert named >= {key for part in parts for key in part}


OPENING = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "File", "TiffFile", "safe_open", "memmap"}


def opens_files(module):
    """Whether a module calls what opens files."""
    calls = [node.func for node in ast.walk(ast.parse(text_of(module))) if isinstance(node, ast.Call)]
    names = {ast.unparse(call) for call in calls} - {"webbrowser.open", "os.open"}
    return any(name.rpartition(".")[2] in OPENING for name in names)


def test_modules_that_open_files_are_those_that_contributors_are_told():
    package = ROOT / "src" / "spwnet"
    modules = [path.relative_to(package).with_suffix("").parts for path in package.rglob("*.py") if opens_files(path)]
    found = {"volumefiles" if parts[0] == "volumefiles" else ".".join(parts) for parts in modules}
    (told,) = re.findall(r"^Files are opened in .*?\n\n(.*?)\n\n", text_of(ROOT / "CONTRIBUTING.md"), re.M | re.S)
    assert found == set(re.findall(r"`([\w.]+)`", told))


def test_file_of_classes_in_the_reference_can_be_read(tmp_path):
    (block,) = (block for block in re.findall(r"```toml\n(.*?)```", text_of(DOCS / "reference/formats.md"), re.S))
    (tmp_path / "classes.toml").write_text(block)
    assert [one.name for one in read_classes(tmp_path / "classes.toml").classes] == ["ground", "animal"]
    (block,) = re.findall(r"```toml\n(.*?)```", text_of(DOCS / "reference/settings.md"), re.S)
    assert spwnet.make_settings(overrides=tomllib.loads(block)).labels.classes == 8


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_cells_of_tutorials_compile_and_import_what_there_is(page):
    cells = re.findall(r"```\{code-cell\}\n(.*?)```", text_of(page), flags=re.DOTALL)
    assert len(cells) >= 5
    for cell in cells:
        tree = ast.parse(re.sub(r"^:\w+:.*$", "", cell, flags=re.MULTILINE))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("spwnet"):
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert hasattr(module, name.name) or find_spec(f"{node.module}.{name.name}"), name.name


@needs_sphinx
def test_site_builds_without_warnings(tmp_path):
    """All but the cells of the tutorials, which `make docs` runs."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-d", tmp_path / "trees"]
    unexecuted = ["-D", "nb_execution_mode=off", "-D", "suppress_warnings=myst-nb.lexer"]
    done = subprocess.run([*command, *unexecuted, DOCS, tmp_path / "site"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES)
    elsewhere = re.compile(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?:https?:)?//")
    for path in pages:
        assert not elsewhere.search(text_of(path)), path.name
    assert "<math" in text_of(tmp_path / "site" / "method.html")
    assert 'href="reference/parts.html#spwnet.losses.normalised_cut"' in text_of(tmp_path / "site" / "method.html")
