"""The page of a run: what it holds, what it does in a browser, and that what is saved there is what is segmented."""

from __future__ import annotations

import base64
import json
import re
import shutil
import tomllib
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import spwnet
from spwnet import classpage
from spwnet.classes import clean
from spwnet.classpage import ClassPage
from spwnet.errors import OutputError, RunError, SettingsError
from spwnet.gallery import read_gallery
from spwnet.naming import ClassMap, read_classes
from spwnet.pointing import from_points
from spwnet.presets import make_settings
from spwnet.runs import Run
from tests.browser import open_browser, open_page
from tests.conftest import SOLID, TINY, phantom, picture

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with losses, of six finest classes and images with odd names; and the folder of the images."""
    place = tmp_path_factory.mktemp("page")
    frames = place / "frames"
    frames.mkdir()
    for number, name in enumerate((EVIL, "frame_02", "frame_03")):
        Image.fromarray(picture(number)).save(frames / f"{name}.png")
    settings = make_settings(overrides={**TINY, "codebook.finest": 6, "labels.classes": 5})
    spwnet.train(frames, place / "run", settings=settings, frames=[1, 3])
    return place / "run", frames


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, to be changed."""
    return shutil.copytree(trained[0], tmp_path / "the run")


@pytest.fixture(scope="module")
def browser():
    with open_browser() as found:
        yield found


def data_of(html):
    """What the page holds for its script."""
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, flags=re.DOTALL)
    return json.loads(text)


def unpacked(packed, shape):
    values = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), f"<u{packed['bytes']}")
    return values.reshape(shape)


def written(run):
    return spwnet.report(run, overwrite=True).read_text(encoding="utf-8")


def test_the_page_holds_the_training_images_with_their_classes(run):
    data = data_of(written(run))
    gallery, model = read_gallery(run / "gallery"), Run(run).load()
    assert [image["name"] for image in data["images"]] == [EVIL, "frame_03"]
    for image, exhibit in zip(data["images"], gallery.exhibits, strict=True):
        shape = (image["height"], image["width"])
        np.testing.assert_array_equal(unpacked(image["labels"], shape), exhibit.labels)
        np.testing.assert_array_equal(unpacked(image["uncertainty"], shape), np.rint(exhibit.uncertainty * 255))
        assert image["picture"].startswith("data:image/")
    assert data["finest"] == 6
    assert data["parents"] == model.codebook.parents.tolist()
    assert data["model"] == model.fingerprint
    assert data["measures"] == gallery.classes
    assert data["classes"] == Run(run).class_map(model).to_json()


def test_names_and_settings_are_escaped(run):
    directory = Run(run)
    name = '</script><script>alert(1)</script>"&'
    directory.save_classes(directory.class_map(directory.load()).change(2, name=name))
    html = written(run)
    assert "alert(1)" in html
    assert EVIL not in html
    assert "<script>alert" not in html
    assert data_of(html)["classes"][2]["name"] == name


def test_many_classes_take_two_bytes():
    packed = classpage._packed(np.array([[0, 256]], np.int32))
    assert packed["bytes"] == 2
    assert unpacked(packed, (1, 2)).tolist() == [[0, 256]]


def test_images_that_are_too_many_are_left_out_and_the_page_says_so(run, monkeypatch):
    assert "left out" not in written(run)
    monkeypatch.setattr(classpage, "MOST_BYTES", 10)
    html = written(run)
    assert len(data_of(html)["images"]) == 1
    assert "1 more training image is left out, to keep this page small." in html


def test_the_citation_is_that_of_the_citation_file():
    text = (Path(__file__).parents[1] / "CITATION.cff").read_text(encoding="utf-8").split("preferred-citation:")[1]
    for part in re.findall(r'(?:family-names|given-names|title|year|name): "?([^"\n]+)"?', text):
        assert part in classpage.CITATION, part


def test_what_the_run_is_stands_on_the_page(run):
    html = written(run)
    assert "Other than the defaults:" in html
    assert "codebook.finest = 6" in html
    assert Run(run).load().fingerprint in html
    assert html.count("<polyline") == 4
    assert ">similarity</th>" in re.sub(r"<svg class=.key.*?</svg> ", "", html, flags=re.DOTALL)


def test_damaged_lines_of_the_history_are_left_out(run):
    history = run / "history.jsonl"
    lines = history.read_text().splitlines()
    history.write_text(
        "\n".join([*lines, '{"total": 1.0}', '{"step": 9, "total": NaN}', '{"step": "x"}', "[1]"]) + "\n"
    )
    damaged = written(run)
    history.write_text("\n".join([*lines, '{"step": 8, "total": 1.7e308}', '{"step": 9, "total": -1.7e308}']) + "\n")
    assert damaged == written(run)
    history.write_text("\n".join(lines) + "\n")
    assert damaged == written(run)


def damage_measures(run, change):
    file = run / "gallery" / "gallery.json"
    found = json.loads(file.read_text())
    change(found["classes"])
    file.write_text(json.dumps(found))


def damage_description(run, change):
    info = json.loads((run / "run.json").read_text())
    change(info)
    (run / "run.json").write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda run: damage_measures(run, lambda classes: classes[0]["means"].append(1.0)), "expected measures of 6"),
        (lambda run: damage_measures(run, lambda classes: classes[0].update(means=None)), "expected measures of 6"),
        (lambda run: damage_measures(run, lambda classes: classes.append(classes[0])), "expected measures of 6"),
        (lambda run: damage_description(run, lambda info: info["images"][0].pop("sha256")), "sha256 of each training"),
        (lambda run: damage_description(run, lambda info: info.pop("images")), "sha256 of each training"),
        (lambda run: (run / "history.jsonl").write_text("no JSON\n{}\n"), "expected the losses .* delete the file"),
    ],
)
def test_what_is_damaged_is_told_before_anything_is_shown(run, damage, told):
    damage(run)
    for show in (spwnet.report, spwnet.view):
        with pytest.raises(RunError, match=told):
            show(run)


def test_reports_that_cannot_be_written(run, tmp_path):
    spwnet.report(run)
    with pytest.raises(OutputError, match=r"but .*report\.html is there already; choose another one, or pass"):
        spwnet.report(run)
    with pytest.raises(OutputError, match=r"expected a report named .html, but got 'report.pdf'; rename it"):
        spwnet.report(run, tmp_path / "report.pdf")
    with pytest.raises(OutputError, match="there is no such folder"):
        spwnet.report(run, tmp_path / "none" / "report.html")
    with pytest.raises(RunError, match="expected a run directory"):
        spwnet.report(tmp_path / "none", tmp_path / "report.html")
    shutil.rmtree(run / "gallery")
    with pytest.raises(RunError, match=r"what the run shows of its training images .* train the run again"):
        spwnet.report(run, overwrite=True)


def test_runs_that_cannot_be_viewed(run):
    with spwnet.view(run) as server:
        port = int(server.url.split(":")[2].split("/")[0])
        with pytest.raises(SettingsError, match=f"expected a free port on this machine, but {port} cannot be had"):
            spwnet.view(run, port=port)
    (run / "classes.toml").write_text("no TOML")
    with pytest.raises(SettingsError, match="expected a readable file of classes"):
        spwnet.view(run)
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**info, "finished": False}))
    with pytest.raises(RunError, match="go on with it by `--resume`"):
        spwnet.view(run)


def test_what_is_posted_is_checked(run):
    routes = ClassPage(run).routes()
    for classes in (None, [], [{"id": 0, "name": "a", "members": [0]}], [{"id": -1}], "text"):
        for path in ("save", "preview"):
            with pytest.raises(SettingsError, match="expected"):
                routes["POST", path]({"classes": classes, "version": ""})
    assert not (run / "classes.toml").exists()


def test_saving_again_what_is_there_is_no_change_of_others(run):
    directory = Run(run)
    save, classes = ClassPage(run).routes()["POST", "save"], directory.load().class_map()
    mine, theirs = (classes.change(0, name=name) for name in ("mine", "theirs"))
    first = save({"classes": mine.to_json(), "version": ""})
    assert save({"classes": mine.to_json(), "version": ""}) == first == {**first, "saved": True}
    directory.save_classes(theirs)
    assert save({"classes": mine.to_json(), "version": first["version"]}) == {"saved": False}
    assert read_classes(run / "classes.toml").classes[0].name == "theirs"


def test_slices_are_cleaned_by_their_stored_voxels(tmp_path):
    settings = make_settings("instant", overrides={**SOLID, "images.scale": "1/2"})
    spwnet.train(spwnet.open_volume(phantom((40, 60, 60))), tmp_path / "run", settings=settings)
    page = ClassPage(tmp_path / "run")
    exhibit = page._exhibits[0]
    assert page._step(exhibit) == 1
    assert page._step(replace(exhibit, labels=exhibit.labels[::3, ::3])) == 3


def test_cleaning_of_thinned_pictures_has_their_scale():
    named = [{"id": 0, "name": "a", "members": [0], "smooth": 3.0, "fill_holes": 10, "remove_objects": 90}]
    settings = ClassMap((), 1).from_json(named).labels()
    assert classpage._thinned(settings, 1) is settings
    [thinned] = classpage._thinned(settings, 3).named
    assert (thinned.smooth, thinned.fill_holes, thinned.remove_objects) == (1.0, 2, 10)


# ---- In a browser -------------------------------------------------------------------------------------------------


def ready(page):
    page.locator("body[data-ready]").wait_for()
    return page


def state(page):
    return page.evaluate("() => { const { images, ...rest } = window.spwnet.state(); return rest; }")


def said(page, text):
    page.locator("#said", has_text=text).wait_for()


def shown_ids(page, index):
    """Class id of each pixel of an image, by the page's own table."""
    return np.array(
        page.evaluate(
            """(index) => {
              const { classes, images } = window.spwnet.state();
              const owners = window.spwnet.model.owners(classes);
              return [...images[index].finest].map((k) => classes[owners[k]].id);
            }""",
            index,
        )
    )


def select(page, *ids):
    for k in ids:
        page.locator("#table tbody tr:not(.detail)", has=page.locator(f"td.id >> text='{k}'")).locator(
            "input"
        ).first.click()


def test_the_report_opens_from_disk_with_no_network(run, browser):
    path = spwnet.report(run)
    assert path.stat().st_size < 10 * 2**20
    assert "http://www.w3.org" not in re.sub(r"http://www\.w3\.org/(1999/xhtml|2000/svg)", "", path.read_text())
    with open_page(browser, path.as_uri(), offline=True, accept_downloads=True) as page:
        ready(page)
        assert page.locator("figure").count() == 2
        assert page.get_by_text(EVIL, exact=True).count() == 2
        page.locator("#slider").fill("4")
        select(page, 0, 2)
        page.locator("#merge").click()
        page.keyboard.type(EVIL)
        page.keyboard.press("Enter")
        page.locator(".more").first.click()
        page.locator("#smooth-0").fill("1.5")
        page.locator("#smooth-0").press("Enter")
        page.locator("#background").click()
        with page.expect_download() as download:
            page.locator("#save").click()
        text = Path(download.value.path()).read_text(encoding="utf-8")
        found = state(page)["classes"]
    classes = Run(run).load().class_map().from_json(found)
    assert text == classes.to_toml()
    assert (classes.classes[0].name, classes.classes[0].smooth, classes.classes[0].background) == (EVIL, 1.5, True)
    assert [one.id for one in classes.classes] == [0, 1, 3]


def test_the_basics_of_access(run, browser):
    with open_page(browser, spwnet.report(run).as_uri(), viewport={"width": 360, "height": 700}) as page:
        ready(page)
        page.locator(".more").first.click()
        page.locator("#points").click()
        found = page.evaluate(
            """() => ({
              lang: document.documentElement.lang,
              levels: [...document.querySelectorAll("h1, h2, h3")].map((heading) => Number(heading.tagName[1])),
              images: [...document.querySelectorAll("img")].map((image) => image.alt),
              nameless: [...document.querySelectorAll("input, select, button")]
                .filter((one) => !one.labels?.length && !one.getAttribute("aria-label") && !one.textContent.trim())
                .map((one) => one.outerHTML),
              width: document.documentElement.scrollWidth,
            })"""
        )
        assert found["lang"] == "en"
        assert found["levels"][0] == 1
        assert set(found["levels"][1:]) == {2}
        assert found["images"] == [f"Training image {EVIL}", "Training image frame_03"]
        assert found["nameless"] == []
        assert found["width"] == 360


def test_without_scripts_there_is_a_picture_and_a_table(run, browser):
    with open_page(browser, spwnet.report(run).as_uri(), java_script_enabled=False) as page:
        assert page.locator("noscript img").is_visible()
        assert page.locator("noscript tbody tr").count() == 5
        assert not page.locator("#bar").is_visible()
        assert page.locator("#chart").is_visible()


def random_tree(rng, n):
    return [0, *(int(rng.integers(0, k)) for k in range(1, n))]


def change_at_random(rng, classes):
    """One change as the page and Python are told of it, and what Python makes of it."""
    ids = [one.id for one in classes.classes]
    kind = rng.choice(["merge", "split", "background", "change", "unmark"])
    if kind == "merge":
        group = sorted(int(k) for k in rng.choice(ids, min(len(ids), int(rng.integers(2, 4))), replace=False))
        return ["merge", group], classes.merge(group)
    if kind == "split":
        wide = [one.id for one in classes.classes if len(one.members) > 1]
        k = int(rng.choice(wide)) if wide else ids[0]
        return (["split", k], classes.split(k)) if wide else (["markBackground", None], classes.mark_background(None))
    if kind == "background":
        k = int(rng.choice(ids))
        return ["markBackground", k], classes.mark_background(k)
    if kind == "unmark":
        return ["markBackground", None], classes.mark_background(None)
    k, to = (int(one) for one in rng.choice(ids, 2)) if len(ids) > 1 else (ids[0], ids[0])
    values = {
        "name": f"n{rng.integers(10**9)} “ü\\\"", "smooth": float(rng.choice([0, 2, 0.5, 1e-5])),
        "fill_holes": int(rng.integers(9)), "keep_largest": bool(rng.integers(2)), "remove_to": None if k == to else to,
    }  # fmt: skip
    return ["change", k, values], classes.change(k, **values)


def test_the_page_changes_classes_as_python_does(run, browser):
    with open_page(browser, spwnet.report(run).as_uri()) as page:
        ready(page)
        for seed in range(25):
            rng = np.random.default_rng(seed)
            n = int(rng.integers(2, 14))
            parents = None if seed % 5 == 4 else random_tree(rng, n)
            start = n if parents is None else int(rng.integers(1, n + 1))
            classes = ClassMap.of_tree(n, start, parents, "f" * 64 if seed % 2 else None)
            steps, expected = [], [[classes.to_json(), classes.to_toml()]]
            for _ in range(12):
                step, classes = change_at_random(rng, classes)
                steps.append(step)
                expected.append([classes.to_json(), classes.to_toml()])
            colours = [one.colour for one in ClassMap.of_tree(n, n, parents and [0] * n).classes]
            found = page.evaluate(
                """([run, start, steps]) => {
                  const model = window.spwnet.makeModel(run);
                  let classes = model.ofTree(start);
                  const told = [[classes, model.toToml(classes)]];
                  for (const [name, what, ...rest] of steps) {
                    classes = model[name](classes, name === "merge" ? new Set(what) : what, ...rest);
                    told.push([classes, model.toToml(classes)]);
                  }
                  return told;
                }""",
                [{"finest": n, "parents": parents, "palette": colours, "fingerprint": classes.model}, start, steps],
            )
            assert found == expected, seed


def test_the_page_names_by_points_as_python_does(run, browser):
    with open_page(browser, spwnet.report(run).as_uri()) as page:
        ready(page)
        for seed in range(40):
            rng = np.random.default_rng(seed)
            n = int(rng.integers(2, 14))
            parents = None if seed % 5 == 4 else random_tree(rng, n)
            names = [f"n{k}" for k in range(rng.integers(1, min(n, 4) + 1))]
            places = {name: rng.integers(0, n, rng.integers(1, 4)).tolist() for name in names}
            start = ClassMap.of_tree(n, n, parents)
            points = {name: [(0, 0, k) for k in ks] for name, ks in places.items()}
            try:
                expected = from_points(start, [np.arange(n)[None]], points).to_json()
            except SettingsError:
                expected = None
            colours = [one.colour for one in start.classes]
            found = page.evaluate(
                """([run, points]) => {
                  try { return window.spwnet.makeModel(run).fromPoints(points); } catch { return null; }
                }""",
                [{"finest": n, "parents": parents, "palette": colours, "fingerprint": None}, list(places.items())],
            )
            assert found == expected, seed


def test_classes_merged_and_named_in_the_page_are_segmented(trained, run, browser, tmp_path):
    with spwnet.view(run) as server, open_page(browser, server.url) as page:
        ready(page)
        page.locator("#slider").fill("6")
        said(page, "6 classes, as the tree divides them.")
        select(page, 1, 3, 4)
        page.keyboard.press("m")
        said(page, "3 classes are one now; type its name.")
        page.keyboard.type("disc")
        page.keyboard.press("Enter")
        said(page, "Class 1 is called disc now.")
        select(page, 0)
        page.keyboard.press("s")
        said(page, "Select one class to split.")
        page.keyboard.press("Escape")
        select(page, 5)
        page.keyboard.press("b")
        said(page, "background is the background now")
        page.keyboard.press("Control+z")
        said(page, "Undone: 4 classes now.")
        page.keyboard.press("Control+s")
        said(page, "Saved. To use it: spwnet segment")
        assert page.locator("#save").inner_text() == "Saved"
        shown = [shown_ids(page, index) for index in range(2)]
        page.reload()
        ready(page)
        assert [one["name"] for one in state(page)["classes"]] == ["class 0", "disc", "class 2", "class 5"]
    assert [one.id for one in read_classes(run / "classes.toml").classes] == [0, 1, 2, 5]
    segmented = spwnet.segment(run, trained[1], tmp_path / "out", frames=[1, 3], classes=run / "classes.toml")
    for name, ids in zip(segmented.names, shown, strict=True):
        labels = np.asarray(Image.open(tmp_path / "out" / "labels" / f"{name}.png"))
        np.testing.assert_array_equal(labels.ravel(), ids)


def test_points_in_the_page_name_and_merge(run, browser):
    gallery = read_gallery(run / "gallery")
    bright, dark = ([int(n) for n in np.argwhere(gallery.exhibits[0].labels == k)[5]] for k in (0, 1))
    with spwnet.view(run) as server, open_page(browser, server.url) as page:
        ready(page)
        page.keyboard.press("p")
        for name, (row, column) in {"one": bright, "other": dark}.items():
            page.locator("#pointname").fill(name)
            surface = page.locator(".surface").first
            box = surface.bounding_box()
            height, width = gallery.exhibits[0].labels.shape
            surface.click(
                position={"x": (column + 0.5) * box["width"] / width, "y": (row + 0.5) * box["height"] / height}
            )
        assert page.locator(".pins span").all_inner_texts() == ["one", "other"]
        page.locator("#apply").click()
        said(page, "2 classes by points.")
        found = state(page)["classes"]
        page.locator("#undo").click()
        assert len(state(page)["classes"]) == 5
    points = {"one": [(0, *bright)], "other": [(0, *dark)]}
    classes = Run(run).class_map(Run(run).load())
    assert found == from_points(classes, [one.labels for one in gallery.exhibits], points).to_json()


def test_cleaning_is_previewed_as_it_will_be(run, browser):
    with spwnet.view(run) as server, open_page(browser, server.url) as page:
        ready(page)
        page.locator(".more").first.click()
        page.locator("#smooth-0").fill("3")
        page.locator("#smooth-0").press("Enter")
        page.locator("#remove_to-0").select_option(label="class 2 (2)")
        page.locator("#keep_largest-0").check()
        said(page, "Cleaning changes")
        page.wait_for_timeout(400)
        said(page, "Cleaning changes")
        found = page.evaluate("() => window.spwnet.state().images.map((image) => [...image.cleaned])")
        classes = Run(run).load().class_map().from_json(state(page)["classes"])
        page.locator("#cleaned").uncheck()
        said(page, "Classes as they are before cleaning.")
    first = classes.classes[0]
    assert (first.smooth, first.remove_to, first.keep_largest) == (3.0, 2, True)
    for exhibit, cleaned in zip(read_gallery(run / "gallery").exhibits, found, strict=True):
        before = classes.table()[exhibit.labels]
        expected = clean(before, classes.labels())
        assert (expected != before).any()
        np.testing.assert_array_equal(np.reshape(cleaned, expected.shape), expected)


def test_a_file_that_was_changed_elsewhere_is_not_overwritten_unasked(run, browser):
    directory = Run(run)
    with spwnet.view(run) as server, open_page(browser, server.url) as page:
        ready(page)
        directory.save_classes(directory.class_map(directory.load()).change(0, name="theirs"))
        select(page, 0)
        page.keyboard.press("n")
        page.keyboard.type("mine")
        page.keyboard.press("Enter")
        for answer, name in (("Keep editing", "theirs"), ("Overwrite it", "mine")):
            page.keyboard.press("Control+s")
            page.get_by_role("button", name=answer).click()
            said(page, "Not saved." if answer == "Keep editing" else "Saved. To use it")
            assert read_classes(run / "classes.toml").classes[0].name == name
        directory.save_classes(directory.class_map(directory.load()).change(0, name="theirs again"))
        select(page, 1, 0)
        page.keyboard.press("m")
        page.keyboard.press("Escape")
        page.locator("#save").click()
        page.get_by_role("button", name="Load it").click()
        page.get_by_label("Name of class 0").and_(page.locator("[aria-label='Name of class 0']")).wait_for()
        ready(page)
        assert state(page)["classes"][0]["name"] == "theirs again"
    assert tomllib.loads((run / "classes.toml").read_text())["classes"][0]["name"] == "theirs again"


def test_saving_twice_at_once_asks_nothing(run, browser):
    with spwnet.view(run) as server, open_page(browser, server.url) as page:
        ready(page)
        select(page, 0)
        page.keyboard.press("n")
        page.keyboard.type("mine")
        page.keyboard.press("Enter")
        page.evaluate(
            """() => {
              const key = new KeyboardEvent("keydown", { key: "s", ctrlKey: true, bubbles: true });
              document.getElementById("save").click();
              document.body.dispatchEvent(key);
              document.getElementById("undo").click();
              document.body.dispatchEvent(key);
            }"""
        )
        page.wait_for_function("() => window.spwnet.state().saved")
        said(page, "Saved. To use it")
        assert page.locator("#asking").is_hidden()
    assert read_classes(run / "classes.toml").classes[0].name == "class 0"


def test_values_that_are_there_already_are_no_change(run, browser):
    with spwnet.view(run) as server, open_page(browser, server.url) as page:
        ready(page)
        page.locator(".more").first.click()
        for value in ("-5", "0.4"):
            page.locator("#fill_holes-0").fill(value)
            page.locator("#fill_holes-0").press("Enter")
            assert page.locator("#fill_holes-0").input_value() == "0"
        page.locator("#remove_to-0").select_option(label="the class each touches most")
        assert page.locator("#undo").is_disabled()
        assert state(page)["saved"]


def test_points_are_asked_for_while_cleaning_is_shown(run, browser):
    with spwnet.view(run) as server, open_page(browser, server.url) as page:
        ready(page)
        page.locator("#cleaned").check()
        said(page, "Cleaning changes")
        page.locator("#points").click()
        page.wait_for_timeout(600)
        said(page, "Type a name, then click a few places")
        page.locator("#cancel").click()
        said(page, "Cleaning changes")


def test_mistakes_are_told_and_change_nothing(run, browser):
    server = spwnet.view(run)
    with open_page(browser, server.url) as page:
        ready(page)
        before = state(page)["classes"]
        name = page.get_by_label("Name of class 1", exact=True)
        name.fill("class 0")
        name.press("Enter")
        said(page, "Another class is called “class 0” already")
        assert name.input_value() == "class 1"
        name.fill(" x")
        name.press("Enter")
        said(page, "Expected a name of 1 to 80 printable characters")
        page.locator("#count").fill("99")
        page.locator("#count").press("Enter")
        said(page, "Expected 1 to 6 classes.")
        page.keyboard.press("Escape")
        page.locator("#points").click()
        page.locator(".surface").first.click()
        said(page, "Type a name first")
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        assert state(page)["classes"] == before
        assert page.locator("#count").input_value() == "5"


def test_names_are_thrown_away_only_if_the_user_says_so(run, browser):
    with open_page(browser, spwnet.report(run).as_uri()) as page:
        ready(page)
        name = page.get_by_label("Name of class 1", exact=True)
        name.fill("disc")
        name.press("Enter")
        page.locator("#slider").fill("3")
        assert "1 name among them" in page.locator("#asking").inner_text()
        page.get_by_role("button", name="Keep the classes").click()
        assert page.locator("#slider").input_value() == "5"
        page.locator("#slider").fill("3")
        page.get_by_role("button", name="Cut anew").click()
        said(page, "3 classes")
        page.locator("#undo").click()
        assert state(page)["classes"][1]["name"] == "disc"
        page.locator("#redo").click()
        assert len(state(page)["classes"]) == 3
        page.locator("#undo").click()
        name.fill("class of pores")
        name.press("Enter")
        select(page, 0)
        page.locator("#background").click()
        page.locator("#slider").fill("3")
        assert "1 name among them" in page.locator("#asking").inner_text()
        page.get_by_role("button", name="Keep the classes").click()


def test_all_of_it_by_the_keyboard(run, browser):
    with open_page(browser, spwnet.report(run).as_uri()) as page:
        ready(page)
        surface = page.locator(".surface").first
        surface.focus()
        surface.press("ArrowRight")
        said(page, "uncertainty")
        surface.press("Enter")
        [one] = state(page)["selected"]
        at = page.evaluate(
            """() => {
              const { at, width, finest } = window.spwnet.state().images[0];
              return finest[at[0] * width + at[1]];
            }"""
        )
        assert at in next(entry for entry in state(page)["classes"] if entry["id"] == one)["members"]
        page.keyboard.press("Escape")
        assert state(page)["selected"] == []
        leaf = page.locator(".tree li button").first
        leaf.focus()
        leaf.press("Enter")
        assert state(page)["selected"] == [0]
        page.locator("#keys summary").click()
        page.locator("#letters").uncheck()
        page.keyboard.press("b")
        assert not any(one["background"] for one in state(page)["classes"])
        page.locator("figure button").first.press("Enter")
        assert page.locator("figure").nth(1).is_hidden()
        page.keyboard.press("ArrowRight")
        page.locator("#next").click()
        assert page.locator("figure").nth(1).is_visible()
        page.keyboard.press("Escape")
        assert page.locator("figure").first.is_visible()


def test_a_report_of_a_volume(browser, tmp_path):
    settings = make_settings("instant", overrides=SOLID)
    spwnet.train(spwnet.open_volume(phantom((26, 40, 40))), tmp_path / "run", settings=settings)
    with open_page(browser, spwnet.report(tmp_path / "run").as_uri(), offline=True) as page:
        ready(page)
        assert page.locator("figure").count() == 2
        assert page.locator("[name=view][value=uncertainty]").is_disabled()
        assert "Of a volume these are slices" in page.locator("body").inner_text()
        assert "there are no losses" in page.locator("body").inner_text()
        page.locator(".more").first.click()
        assert "voxels" in page.locator("#more-0").inner_text()
