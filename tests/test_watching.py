from __future__ import annotations

import json
import logging
import math
import re
import signal
import socket
import sys
import threading
import time
import urllib.request
import webbrowser
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import spwnet
from spwnet import previews, training, watching
from spwnet.errors import OutputError, RunError, SettingsError, Stopped
from spwnet.presets import make_settings
from spwnet.training import Progress
from spwnet.watching import Audience, LivePage, NotebookView, TensorBoardView, Watcher, watchers
from tests.browser import open_browser, open_page
from tests.conftest import TINY, assert_same_checkpoints, picture

EVIL = "<img src=x onerror=alert(1)> & \"co\" 'x'"


class Onlooker(Watcher):
    """Writes down what it is told, and wants to stop and keep after a step if one is given."""

    def __init__(self, keep_at=None):
        self.keep_at = keep_at
        self.heard = []
        self.steps = []
        self.shots = []

    @property
    def keep(self):
        return bool(self.steps) and self.steps[-1] == self.keep_at

    def update(self, progress):
        self.steps.append(progress.done)

    def show(self, snapshot):
        self.shots.append(snapshot)

    def finish(self, ending, message=""):
        self.heard.append((ending, message))

    def close(self):
        self.heard.append("closed")


def settings_with(**changes):
    return make_settings(overrides={**TINY, "training": {**TINY["training"], **changes}})


def shot_of(name="a", step=3, provisional=False, height=40):
    unit = picture(0, height).astype(np.float32) / 255
    labels = np.arange(height * 52).reshape(height, 52) % 3
    return previews.snapshot(step, [name], [unit], [unit], [labels], n_classes=4, provisional=provisional)


def progress_of(done=3, total=10, seconds_left=70.0):
    return Progress("train", done, total, seconds_left, {"image": 0.5 / done, "total": 1.0 / done})


def get(page, path):
    with urllib.request.urlopen(page.url + path, timeout=10) as answer:
        return json.loads(answer.read())


def post(page, path):
    request = urllib.request.Request(page.url + path, b"{}", {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


@pytest.fixture
def live(monkeypatch):
    with LivePage(EVIL) as page:
        yield page
        monkeypatch.setattr(watching, "LINGER_SECONDS", 0.0)


def test_watchers_see_inputs_steps_and_the_end(pictures, tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(training, "PREVIEW_SECONDS", 0.0)
    monkeypatch.setattr(training, "PREVIEW_SHARE", 1e9)
    seen = Onlooker()
    model = spwnet.train(pictures, settings=tiny, watch=[seen])
    assert seen.steps == [1, 2, 3, 4]
    assert seen.heard == [("finished", "")]
    assert [(shot.step, shot.provisional) for shot in seen.shots] == [
        (0, False), (1, True), (2, True), (3, True), (4, False)
    ]  # fmt: skip
    first, *_, last = seen.shots
    assert [row.name for row in first.rows] == ["image_0000", "image_0001", "image_0002"]
    assert first.rows[0].labels is first.rows[0].reconstruction is None
    assert last.rows[0].labels.shape == last.rows[0].reconstruction.shape == last.rows[0].input.shape == (40, 52, 3)
    labels = spwnet.segment(model, pictures).labels
    assert [row.sizes for row in last.rows] == [
        {k: n for k, n in enumerate(np.bincount(found.ravel()).tolist()) if n} for found in labels
    ]
    assert model.fingerprint == spwnet.train(pictures, tmp_path / "run", settings=tiny).fingerprint
    assert "kept_at" not in model.info


def test_watchers_of_what_learns_nothing_see_inputs_and_classes(pictures):
    seen = Onlooker(keep_at=0)
    spwnet.train(pictures, settings=make_settings("instant", overrides=TINY), watch=[seen])
    assert seen.steps == []
    assert [shot.rows[0].labels is None for shot in seen.shots] == [True, False]
    assert seen.heard == [("finished", "")]


def test_stop_and_keep_equals_a_training_whose_steps_end_there(folder, tmp_path):
    constant = {"schedule": "constant", "batches": 1}
    kept = spwnet.train(
        folder, tmp_path / "run", settings=settings_with(epochs=6, **constant), watch=[Onlooker(keep_at=2)]
    )
    short = spwnet.train(folder, tmp_path / "short", settings=settings_with(epochs=2, **constant))
    assert kept.fingerprint == short.fingerprint == spwnet.load(tmp_path / "run").fingerprint
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (info["finished"], info["kept_at"]) == (True, 2)
    assert info["score"] == short.info["score"]
    assert info["classes"] == short.info["classes"]
    for name in ("weights.safetensors", "codebook.safetensors", "history.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "short" / name).read_bytes()
    assert_same_checkpoints(tmp_path / "run", tmp_path / "short")
    assert [path.name for path in (tmp_path / "run" / "previews").iterdir()] == ["step_000002.png"]
    again = spwnet.train(folder, tmp_path / "run", settings=settings_with(epochs=6, **constant), resume=True)
    assert again.fingerprint == kept.fingerprint
    assert again.info["kept_at"] == 2


def test_stop_and_keep_in_a_cycle_of_rates_keeps_the_weights_of_that_step(folder, tmp_path):
    settings = settings_with(epochs=6)
    spwnet.train(folder, tmp_path / "kept", settings=settings, watch=[Onlooker(keep_at=3)])

    def press(state):
        if state.done == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped):
        spwnet.train(folder, tmp_path / "stopped", settings=settings, on_progress=press)
    assert_same_checkpoints(tmp_path / "kept", tmp_path / "stopped")


def test_run_passes_watchers_on(folder, tiny, tmp_path):
    seen = Onlooker(keep_at=2)
    model, segmented = spwnet.run(folder, tmp_path / "out", settings=tiny, watch=[seen])
    assert model.info["kept_at"] == 2
    assert len(segmented.names) == 3
    assert seen.heard == [("finished", "")]


def test_watchers_are_told_how_it_ended(pictures, tiny, monkeypatch):
    def press(state):
        signal.raise_signal(signal.SIGINT)

    seen = Onlooker()
    with pytest.raises(Stopped):
        spwnet.train(pictures, settings=tiny, watch=[seen], on_progress=press)
    [(ending, message)] = seen.heard
    assert ending == "stopped"
    assert message.startswith("stopped after step 1 of 4; without a run directory nothing is kept")
    for error, expected in (
        (RunError("expected finite losses"), ("failed", "expected finite losses")),
        (ZeroDivisionError("a detail"), ("failed", "the program that was training says why")),
    ):

        def fail(state, error=error):
            raise error

        seen = Onlooker()
        with pytest.raises(type(error)):
            spwnet.train(pictures, settings=tiny, watch=[seen], on_progress=fail)
        assert seen.heard == [expected]


@pytest.mark.parametrize("method", ["update", "show", "keep", "finish", "close"])
def test_a_watcher_that_fails_is_left_out_and_training_goes_on(pictures, tiny, caplog, method):
    class Broken(Onlooker):
        def fail(self, *_):
            raise OSError("the disk is full")

    setattr(Broken, method, property(Broken.fail) if method == "keep" else Broken.fail)
    broken, other = Broken(), Onlooker()
    if method == "close":
        broken.show = broken.fail
    model = spwnet.train(pictures, settings=tiny, watch=[broken, other])
    assert model.fingerprint == spwnet.train(pictures, settings=tiny).fingerprint
    assert other.steps == [1, 2, 3, 4]
    assert other.heard == [("finished", "")]
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    expected = ["Broken failed; training goes on without it"]
    assert told == expected + ["Broken could not be closed"] * (method == "close")
    assert "the disk is full" in caplog.text
    assert broken.heard == ([] if method == "close" else ["closed"])


def test_an_interrupt_within_a_watcher_is_no_failure_of_it():
    class Interrupted(Watcher):
        def show(self, snapshot):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Audience([Interrupted()]).show(shot_of())


def test_the_page_says_what_there_is(live):
    state = get(live, "state")
    assert state["name"] == EVIL
    assert (state["total"], state["ending"], state["keeping"], state["pictures"]) == (0, None, False, 0)
    assert get(live, "pictures")["rows"] == []
    for done in (1, 2, 3):
        live.update(progress_of(done))
    live.show(shot_of(EVIL, provisional=True))
    state = get(live, "state")
    assert (state["done"], state["total"], state["seconds_left"], state["pictures"]) == (3, 10, 70.0, 1)
    assert [curve["name"] for curve in state["chart"]["curves"]] == ["total", "image"]
    assert len(state["chart"]["curves"][0]["points"]) == 3
    found = get(live, "pictures")
    assert (found["version"], found["step"], found["provisional"]) == (1, 3, True)
    [row] = found["rows"]
    assert row["name"] == EVIL
    assert [shown["kind"] for shown in row["pictures"]] == ["input", "reconstruction", "classes"]
    assert all(shown["source"].startswith("data:image/png;base64,") for shown in row["pictures"])
    assert [(shown["height"], shown["width"]) for shown in row["pictures"]] == [(40, 52)] * 3
    assert [entry["id"] for entry in found["classes"]] == [0, 1, 2]
    assert sum(entry["share"] for entry in found["classes"]) == pytest.approx(1)
    with urllib.request.urlopen(live.url, timeout=10) as answer:
        html = answer.read().decode()
    assert "onerror=alert" in html
    assert "<img src=x" not in html


def test_pictures_are_made_once_and_only_if_somebody_asks(live, monkeypatch):
    made = []
    monkeypatch.setattr(watching, "data_uri", lambda *_: made.append(1) or "data:,")
    for step in range(5):
        live.show(shot_of(step=step))
    assert made == []
    assert get(live, "pictures")["step"] == get(live, "pictures")["step"] == 4
    assert len(made) == 3


def test_a_picture_that_cannot_be_made_costs_the_page_alone(live, monkeypatch, caplog):
    monkeypatch.setattr(watching, "data_uri", lambda *_: 1 / 0)
    live.show(shot_of())
    with pytest.raises(urllib.error.HTTPError, match="500"):
        get(live, "pictures")
    assert get(live, "state")["pictures"] == 1
    assert "ZeroDivisionError" in caplog.text


def test_the_button_stops_and_keeps(live, pictures, tmp_path):
    def press(state):
        if state.done == 2:
            assert post(live, "stop")["keeping"]

    model = spwnet.train(pictures, settings=settings_with(epochs=50), watch=[live], on_progress=press)
    assert model.info["kept_at"] == 2
    state = get(live, "state")
    assert (state["ending"], state["done"], state["total"]) == ("finished", 2, 100)
    assert get(live, "pictures")["step"] == 2


def test_news_waits_a_little_and_comes_at_once_in_the_end(live, monkeypatch):
    monkeypatch.setattr(watching, "HELD_SECONDS", 0.3)
    start = time.monotonic()
    assert get(live, "news")["ending"] is None
    assert time.monotonic() - start > 0.25
    # Longer than the answer is waited for.
    monkeypatch.setattr(watching, "HELD_SECONDS", 600.0)
    threading.Timer(0.2, live.finish, ("failed", "no")).start()
    state = get(live, "news")
    assert (state["ending"], state["message"]) == ("failed", "no")


def test_closing_waits_for_a_page_that_is_open_and_for_no_other(monkeypatch):
    monkeypatch.setattr(watching, "LINGER_SECONDS", 60.0)
    start = time.monotonic()
    page = LivePage("a")
    page.close()
    page.close()
    page = LivePage("b")
    get(page, "state")
    seen = threading.Event()

    def see():
        seen.set()
        post(page, "seen")

    threading.Timer(0.3, see).start()
    page.close()
    assert seen.is_set()
    page.close()
    assert time.monotonic() - start < 50
    with pytest.raises(OSError, match="refused"):
        get(page, "state")


def test_closing_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(watching, "LINGER_SECONDS", 0.3)
    page = LivePage("a")
    get(page, "state")
    start = time.monotonic()
    page.close()
    assert 0.25 < time.monotonic() - start < 30


def test_readers_that_hang_or_leave_never_stop_training(live, pictures, tiny):
    """Half requests, answers nobody takes, and the server gone altogether."""
    parts = urlsplit(live.url)
    connections = [socket.create_connection((parts.hostname, parts.port)) for _ in range(3)]
    connections[0].sendall(b"GET /")
    connections[1].sendall(f"GET {parts.path}pictures HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    connections[2].sendall(f"GET {parts.path}news HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    connections[2].close()

    def leave(state):
        if state.done == 2:
            live._server.close()

    model = spwnet.train(pictures, settings=tiny, watch=[live], on_progress=leave)
    assert model.fingerprint == spwnet.train(pictures, settings=tiny).fingerprint
    for connection in connections[:2]:
        connection.close()


@pytest.fixture
def notebook():
    """What IPython displays, as (kind of message, data)."""
    from IPython.core.displaypub import CapturingDisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    shell.display_pub = CapturingDisplayPublisher()
    yield shell.display_pub.outputs
    InteractiveShell.clear_instance()


def test_a_notebook_shows_plain_html_that_changes_in_place(notebook, pictures, tiny, monkeypatch):
    monkeypatch.setattr(watching, "NOTEBOOK_SECONDS", 0.0)
    spwnet.train(pictures, settings=tiny, watch=[NotebookView("bones")])
    assert {kind for output in notebook for kind in output["data"]} == {"text/html", "text/plain"}
    places = [output["transient"]["display_id"] for output in notebook]
    assert len(set(places)) == 2
    assert [output["update"] for output in notebook][:2] == [False, False]
    assert all(output["update"] for output in notebook[2:])
    texts = [output["data"]["text/html"] for output in notebook]
    first, last = (texts[n] for n in (0, -1))
    assert "preparing" in first
    assert "bones" in last
    assert "finished" in last
    assert "step 4 of 4" in last
    assert "<svg" in last
    assert last.count("<polyline") == len(re.findall("stroke-width=.2.5", last)) > 2
    [inputs, drawn] = [text for text in texts if "<figure" in text]
    assert inputs.count("<img") == 3
    assert drawn.count("<img") == 9
    assert "class 0" in drawn
    assert "<script" not in "".join(texts)


def test_a_notebook_is_not_flooded_and_names_are_escaped(notebook):
    view = NotebookView(EVIL)
    for done in range(1, 200):
        view.update(progress_of(done, 200))
    view.show(shot_of(EVIL, provisional=True))
    view.finish("failed", EVIL)
    texts = [output["data"]["text/html"] for output in notebook]
    assert len(texts) == 3
    assert "about 1 min 10 s left" in texts[0]
    assert "before those that stay are fitted" in texts[1]
    for text in texts:
        assert "onerror=alert" in text
        assert "<img src=x" not in text


def test_outside_a_notebook_it_says_so_before_training(monkeypatch):
    with pytest.raises(SettingsError, match=r"expected a notebook .* but this is none; .* `LivePage`"):
        NotebookView()
    monkeypatch.setitem(sys.modules, "IPython.core.getipython", None)
    with pytest.raises(SettingsError, match="expected a notebook"):
        NotebookView()


def test_tensorboard_gets_losses_pictures_and_shares(pictures, tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses = []
    with TensorBoardView(tmp_path / "deep" / "events") as view:
        spwnet.train(
            pictures, settings=tiny, watch=[view], on_progress=lambda state: losses.append(state.values["total"])
        )
    events = EventAccumulator(str(tmp_path / "deep" / "events"))
    events.Reload()
    tags = events.Tags()
    assert {"loss/total", "loss/image", "loss/similarity"} <= set(tags["scalars"])
    found = events.Scalars("loss/total")
    assert [event.step for event in found] == [1, 2, 3, 4]
    np.testing.assert_allclose([event.value for event in found], losses, rtol=1e-6)
    assert set(tags["images"]) == {
        f"image_000{n}/{kind}" for n in range(3) for kind in ("input", "reconstruction", "classes")
    }
    assert [event.step for event in events.Images("image_0000/input")] == [0, 4]
    assert (events.Images("image_0000/classes")[0].width, events.Images("image_0000/classes")[0].height) == (52, 40)
    shares = [events.Scalars(tag)[0].value for tag in tags["scalars"] if tag.startswith("share/")]
    assert sum(shares) == pytest.approx(1)


def test_without_tensorboard_it_says_so_before_training(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(
        SettingsError, match=r"expected the package tensorboard .* `pip install 'spwnet\[tensorboard\]'`"
    ):
        TensorBoardView(tmp_path / "events")
    assert not (tmp_path / "events").exists()


def test_tensorboard_in_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="but a part of this path is a file"):
        TensorBoardView(tmp_path / "file" / "events")


def test_the_watchers_of_a_command(monkeypatch, tmp_path):
    opened, told = [], []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    with watchers() as made:
        assert made == []
    with watchers(view=True, browser=False, name="bones", on_address=told.append) as [page]:
        assert told == [page.url]
        assert get(page, "state")["name"] == "bones"
        page.show(shot_of())
        page._asked = -math.inf
    assert opened == []
    with pytest.raises(OSError, match="refused"):
        get(page, "state")
    with watchers(view=True) as [page]:
        assert opened == []
        page.show(shot_of())
        page.show(shot_of())
        assert len(opened) == 1
    with watchers(view=True, tensorboard=tmp_path, browser=False) as made:
        assert [type(one) for one in made] == [TensorBoardView, LivePage]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_watcher_that_cannot_be_closed_hides_no_result(monkeypatch, caplog):
    monkeypatch.setattr(LivePage, "close", lambda self: (self._server.close(), 1 / 0))
    with watchers(view=True, browser=False):
        pass
    assert "LivePage could not be closed" in caplog.text


def in_background(work):
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_browser_watches_a_training_to_its_end(tmp_path):
    """The training waits for the browser, so that neither is too fast for the other."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for seed, name in enumerate(("a<b>bold<", "plain")):
        Image.fromarray(picture(seed, 60, 80)).save(folder / f"{name}.png")
    go, models = threading.Event(), []

    def on_progress(state):
        if state.done == 3:
            go.wait(20)

    def work():
        with page:
            models.append(
                spwnet.train(folder, tmp_path / "run", settings=settings, watch=[page], on_progress=on_progress)
            )

    settings = settings_with(epochs=3)
    page = LivePage(EVIL)
    with open_browser() as browser, open_page(browser, page.url) as tab:
        assert tab.inner_text("h1") == EVIL
        assert tab.inner_text("#state") == "Preparing"
        assert tab.is_disabled("#stop")
        thread = in_background(work)
        tab.wait_for_selector("body[data-state=training]")
        tab.wait_for_selector("#rows img")
        assert tab.locator("#rows h3").all_inner_texts() == ["a<b>bold<", "plain"]
        assert tab.inner_text("#figures").startswith("step 2 of 6 · 33 % · about ")
        assert tab.locator("#chart polyline").count() == len(tab.locator("#legend li").all()) > 2
        go.set()
        tab.wait_for_selector("body[data-state=finished]")
        tab.wait_for_selector("#classes li")
        assert tab.inner_text("#figures") == "step 6 of 6 · 100 %"
        assert tab.get_attribute("#bar", "aria-valuenow") == "100"
        alts = [image.get_attribute("alt") for image in tab.locator("#rows img").all()]
        assert alts[:3] == [
            "Input of a<b>bold<", "Reconstruction of a<b>bold< after step 6", "Classes of a<b>bold< after step 6"
        ]  # fmt: skip
        assert tab.evaluate("[...document.images].every((image) => image.naturalWidth === 80)")
        shares = [float(text.split()[0]) for text in tab.locator("#classes .share").all_inner_texts()]
        assert sum(shares) == pytest.approx(100, abs=0.3)
        assert shares == sorted(shares, reverse=True)
        assert tab.title() == f"Finished · {EVIL} · SP-WNet"
        assert "Finished" in tab.inner_text("#spoken")
        thread.join(20)
        # The server is gone, and the page does not ask any more.
        tab.wait_for_timeout(1200)
        assert tab.get_attribute("body", "data-state") == "finished"
    assert models[0].info["classes"]


def test_a_browser_stops_and_keeps_from_the_keyboard(pictures):
    page, models = LivePage("bones"), []

    def work():
        with page:
            models.append(
                spwnet.train(
                    pictures, settings=settings_with(epochs=5000), watch=[page], on_progress=lambda _: time.sleep(0.02)
                )
            )

    dark = {"viewport": {"width": 360, "height": 780}, "color_scheme": "dark"}
    with open_browser() as browser, open_page(browser, page.url, **dark) as tab:
        thread = in_background(work)
        tab.wait_for_selector("#stop:enabled")
        assert tab.evaluate("document.documentElement.scrollWidth") == 360
        tab.focus("#stop")
        tab.keyboard.press("Enter")
        assert tab.inner_text("#stop") == "Press again to stop and keep"
        tab.keyboard.press("Escape")
        assert tab.inner_text("#stop") == "Stop here and keep"
        tab.keyboard.press("Enter")
        tab.keyboard.press("Tab")
        tab.focus("#stop")
        assert tab.inner_text("#stop") == "Stop here and keep"
        assert not page.keep
        tab.keyboard.press("Enter")
        tab.keyboard.press("Space")
        tab.wait_for_selector("body[data-state=finished]")
        assert tab.inner_text("#figures") == f"stopped at step {page._progress.done} of 10000 and kept"
        thread.join(20)
    assert models[0].info["kept_at"] == page._progress.done < 10_000


def test_a_browser_that_is_closed_never_stops_training(pictures):
    page, models = LivePage("bones"), []
    go = threading.Event()

    def work():
        models.append(
            spwnet.train(pictures, settings=settings_with(epochs=3), watch=[page], on_progress=lambda _: go.wait(20))
        )

    with open_browser() as browser:
        with open_page(browser, page.url) as tab:
            thread = in_background(work)
            tab.wait_for_selector("#rows img")
        go.set()
        thread.join(20)
    assert "kept_at" not in models[0].info
    assert get(page, "state")["done"] == 6
    page._asked = -math.inf
    page.close()


def test_a_browser_says_when_the_connection_is_lost(monkeypatch):
    page = LivePage("bones")
    page.update(progress_of())
    with open_browser() as browser:
        tab = browser.new_page()
        tab.goto(page.url)
        tab.wait_for_selector("body[data-state=training]")
        page._server.close()
        tab.wait_for_selector("body[data-state=lost]")
        assert "If it still runs, training goes on" in tab.inner_text("#message")
        assert tab.is_disabled("#stop")
