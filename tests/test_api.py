from __future__ import annotations

import json
import logging
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import spwnet
from spwnet import api
from spwnet.errors import InputError, OutputError, RunError, SettingsError, SpwnetError, Stopped
from spwnet.presets import make_settings
from tests.conftest import TINY, picture


@pytest.fixture(scope="module")
def model():
    return spwnet.train([picture(0), picture(1)], settings=make_settings(overrides=TINY))


def read_labels(folder, suffix=".png"):
    return {path.stem: np.asarray(Image.open(path)) for path in sorted((folder / "labels").glob(f"*{suffix}"))}


def test_train_segment_load_on_arrays_and_files_agree(folder, pictures, tiny, tmp_path):
    model = spwnet.train(pictures, settings=tiny)
    trained = spwnet.train(folder, tmp_path / "run", settings=tiny)
    loaded = spwnet.load(tmp_path / "run")
    assert model.fingerprint == trained.fingerprint == loaded.fingerprint
    in_memory = spwnet.segment(model, pictures)
    written = spwnet.segment(tmp_path / "run", folder, tmp_path / "out")
    assert written.labels == []
    assert written.folder == tmp_path / "out"
    on_disk = read_labels(tmp_path / "out")
    assert list(on_disk) == list(written.names) == ["frame_01", "frame_02", "frame_03"]
    for ours, theirs in zip(in_memory.labels, on_disk.values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_summary_beside_the_labels(model, folder, tmp_path):
    result = spwnet.segment(model, folder, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "segmentation.json").read_text())
    assert summary["complete"] is True
    assert summary["seed"] == 0
    assert summary["settings"]["model"]["classes"] == 4
    assert summary["model"] == model.fingerprint
    assert {"spwnet", "torch", "numpy", "python", "time"} <= set(summary)
    labels = read_labels(tmp_path / "out")
    for name, entry in summary["images"].items():
        areas = entry["areas"]
        values, counts = np.unique(labels[name], return_counts=True)
        assert areas == {str(v): n for v, n in zip(values.tolist(), counts.tolist(), strict=True)}
        assert result.areas[name] == {int(k): n for k, n in areas.items()}
    assert sum(entry["share"] for entry in summary["classes"].values()) == pytest.approx(1)
    assert all(entry["colour"].startswith("#") for entry in summary["classes"].values())
    overlay = np.asarray(Image.open(tmp_path / "out" / "overlays" / "frame_01.jpg"))
    assert overlay.shape == (40, 52, 3)
    assert not (tmp_path / "out" / "images.jsonl").exists()


def test_tiff_labels_without_overlays(model, folder, tmp_path):
    import tifffile

    spwnet.segment(model, folder, tmp_path / "out", suffix=".tif", overlays=False, frames=[2])
    assert not (tmp_path / "out" / "overlays").exists()
    [file] = (tmp_path / "out" / "labels").iterdir()
    np.testing.assert_array_equal(tifffile.imread(file), spwnet.segment(model, folder, frames=[2]).labels[0])


def test_uncertainty_is_returned_or_written(model, folder, tmp_path):
    returned = spwnet.segment(model, folder, uncertainty=True)
    assert [doubt.shape for doubt in returned.uncertainty] == [labels.shape for labels in returned.labels]
    assert all(0 <= doubt.min() < doubt.max() <= 1 for doubt in returned.uncertainty)
    assert spwnet.segment(model, folder).uncertainty == []
    spwnet.segment(model, folder, tmp_path / "seg", uncertainty=True)
    for name, doubt in zip(returned.names, returned.uncertainty, strict=True):
        written = np.asarray(Image.open(tmp_path / "seg" / "uncertainty" / f"{name}.png"))
        np.testing.assert_allclose(written / 255, doubt, atol=1 / 509)
    spwnet.segment(model, folder, tmp_path / "seg", overwrite=True)
    assert not list((tmp_path / "seg" / "uncertainty").iterdir())


def test_instant_needs_no_network_and_no_training(folder, tiny, tmp_path):
    steps = []
    settings = make_settings("instant", overrides=TINY)
    model = spwnet.train(folder, tmp_path / "run", settings=settings, on_progress=steps.append)
    assert steps == []
    assert model.network is None
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    assert len(list((tmp_path / "run" / "previews").iterdir())) == 1
    again = spwnet.load(tmp_path / "run")
    assert again.fingerprint == model.fingerprint
    for ours, theirs in zip(spwnet.segment(model, folder).labels, spwnet.segment(again, folder).labels, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(SettingsError, match="expected a model with a network to label by 'argmax_of_mean'"):
        spwnet.segment(model, folder, labels=model.settings.labels.model_copy(update={"mode": "argmax_of_mean"}))
    assert spwnet.train(folder, tmp_path / "run", settings=settings, resume=True).fingerprint == model.fingerprint


def test_the_number_of_classes_is_chosen_after_training(pictures):
    settings = make_settings("instant", overrides={**TINY, "codebook.finest": 16, "labels.classes": "auto"})
    model = spwnet.train(pictures, settings=settings)
    labels = model.settings.labels
    assert len(model.info["classes"]) == model.n_classes() == model.codebook.suggested
    assert 2 <= model.codebook.suggested < 16
    finest = spwnet.segment(model, pictures, labels=labels.model_copy(update={"classes": 16})).labels
    assert {len(np.unique(np.stack(finest)))} == {16}
    few = spwnet.segment(model, pictures, labels=labels.model_copy(update={"classes": 3})).labels
    for fine, coarse in zip(finest, few, strict=True):
        for k in range(16):
            assert len(np.unique(coarse[fine == k])) <= 1
        np.testing.assert_array_equal(coarse[fine < 3], fine[fine < 3])
    with pytest.raises(SettingsError, match=r"expected 1 to 16 classes.* but got 17"):
        spwnet.segment(model, pictures, labels=labels.model_copy(update={"classes": 17}))
    with pytest.raises(SettingsError, match=r"expected class ids below 3, .* but got 5"):
        spwnet.segment(model, pictures, labels=labels.model_copy(update={"classes": 3, "merge": ((1, 5),)}))


def test_margin_and_scale_are_undone(pictures):
    settings = make_settings(overrides={**TINY, "images.margin": 5, "images.scale": "1/2", "model.n_blocks": 1})
    model = spwnet.train(pictures, settings=settings)
    [labels] = spwnet.segment(model, pictures[0]).labels
    assert labels.shape == (40, 52)
    np.testing.assert_array_equal(labels[:5, 20], labels[5, 20])
    np.testing.assert_array_equal(labels[20, -5:], labels[20, -6])


def test_class_ids_do_not_depend_on_the_other_images(model):
    frames = [picture(seed) for seed in range(4)]
    together = spwnet.segment(model, frames).labels
    alone = [spwnet.segment(model, frame).labels[0] for frame in frames]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (2, np.uint16), (5, np.float32)])
def test_any_number_of_channels_and_type(channels, dtype):
    images = [(picture(seed, channels=channels).astype(dtype) * 100 if dtype != np.uint8 else
               picture(seed, channels=channels)) for seed in range(2)]  # fmt: skip
    model = spwnet.train(images, settings=make_settings(overrides=TINY))
    assert model.info["channels"] == channels
    assert spwnet.segment(model, images[1]).labels[0].shape == (40, 52)


def test_training_frames_are_spread_unless_named(folder, tiny, caplog):
    few = tiny.model_copy(update={"training": tiny.training.model_copy(update={"images": 2})})
    with caplog.at_level(logging.INFO):
        model = spwnet.train(folder, settings=few)
    assert [image["name"] for image in model.info["images"]] == ["frame_01", "frame_03"]
    assert "training on 2 of 3 images: frame_01, frame_03" in caplog.text
    model = spwnet.train(folder, settings=few, frames=[3, 2])
    assert [image["name"] for image in model.info["images"]] == ["frame_03", "frame_02"]
    one = tiny.model_copy(update={"training": tiny.training.model_copy(update={"images": 1})})
    assert len(spwnet.train(folder, settings=one).info["images"]) == 1
    assert len(spwnet.train(folder, settings=few, frames="all").info["images"]) == 3


def test_user_superpixels(pictures, tmp_path):
    regions = [np.arange(40)[:, None] // 10 * 10 + np.arange(52) // 13 for _ in pictures]
    settings = make_settings(overrides={**TINY, "superpixels.method": "labels"})
    model = spwnet.train(pictures, settings=settings, superpixels=regions)
    assert model.info["images"][0]["superpixels"] == 16
    [labels] = spwnet.segment(model, pictures[0], superpixels=regions[0]).labels
    for i in np.unique(regions[0]):
        assert len(np.unique(labels[regions[0] == i])) == 1
    with pytest.raises(InputError, match="of the same name as each image, but there are none for 'image_0002'"):
        spwnet.train(pictures, settings=settings, superpixels=regions[:2])
    with pytest.raises(InputError, match=r"expected superpixels of the image's shape \(40, 52\), but got \(9, 9\)"):
        spwnet.train(pictures, settings=settings, superpixels=[np.zeros((9, 9), int)] * 3)
    with pytest.raises(InputError, match=r"expected a label image of one channel, but .* has 3"):
        spwnet.train(pictures, settings=settings, superpixels=pictures)
    with pytest.raises(SettingsError, match="because superpixels were given, but it is 'slic'"):
        spwnet.train(pictures, settings=make_settings(overrides=TINY), superpixels=regions)
    with pytest.raises(InputError, match=r"`superpixels.method = 'labels'`, but got none"):
        spwnet.train(pictures, settings=settings)
    for number, region in enumerate(regions):
        Image.fromarray(region.astype(np.uint8)).save(tmp_path / f"r{number}.png")
    by_path = make_settings(overrides={**TINY, "superpixels": {"method": "labels", "labels": str(tmp_path / "r*.png")}})
    with pytest.raises(InputError, match="there are none for 'image_0000'"):
        spwnet.train(pictures, settings=by_path)
    by_order = spwnet.train(pictures, settings=settings, superpixels=str(tmp_path / "r*.png"))
    assert by_order.fingerprint == model.fingerprint
    with pytest.raises(InputError, match="expected one superpixel image for each of 2 images, but got 3"):
        spwnet.train(pictures[:2], settings=settings, superpixels=str(tmp_path / "r*.png"))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([np.full((40, 52, 3), 7, np.uint8)], "constant image"),
        ([np.where(np.arange(40 * 52).reshape(40, 52) == 9, np.nan, 1.0)], "NaN or infinite|not finite|finite"),
        ([picture(0), picture(1, channels=1)], "channels"),
        ([picture(0, 4, 4)], "expected more than 8 working pixels"),
        ("no/such/folder", "no such|there is no"),
        ([], "expected"),
    ],
)
def test_bad_input_is_named_before_training(images, message, tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(api, "fit", lambda *_, **__: pytest.fail("training started"))
    with pytest.raises(SpwnetError, match=message):
        spwnet.train(images, tmp_path / "run", settings=tiny)
    assert not (tmp_path / "run" / "run.json").exists()


def test_bad_files_are_named_before_training(folder, tiny, monkeypatch):
    monkeypatch.setattr(api, "fit", lambda *_, **__: pytest.fail("training started"))
    file = folder / "frame_02.png"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="frame_02"):
        spwnet.train(folder, settings=tiny)
    file.write_text("not a picture")
    with pytest.raises(InputError, match="frame_02"):
        spwnet.train(folder, settings=tiny)


def test_more_classes_than_fit_the_output(folder, model, tmp_path, monkeypatch):
    many = make_settings(overrides={**TINY, "labels.mode": "argmax_of_mean", "model.classes": 65_536})
    monkeypatch.setattr(api, "open_images", lambda *_: pytest.fail("work started"))
    wide = spwnet.TrainedModel(model.network, many, model.normalisation, model.info, model.codebook)
    with pytest.raises(OutputError, match="jpg"):
        spwnet.segment(wide, folder, tmp_path / "out", suffix=".jpg")
    monkeypatch.setattr(spwnet.TrainedModel, "n_classes", lambda *_: 70_000)
    monkeypatch.setattr(spwnet.TrainedModel, "members", lambda *_: None)
    with pytest.raises(OutputError, match=r"70[,_]?000"):
        spwnet.segment(wide, folder, tmp_path / "out")


def test_label_modes_other_than_the_run_s_own(model, pictures, tmp_path):
    published = model.settings.labels.model_copy(update={"mode": "argmax_of_mean"})
    found = spwnet.segment(model, pictures[0], labels=published).labels[0]
    assert not np.array_equal(found, spwnet.segment(model, pictures[0]).labels[0])
    plain = spwnet.train(pictures, settings=make_settings(overrides={**TINY, "labels.mode": "max_count_of_argmax"}))
    assert plain.codebook is None
    with pytest.raises(SettingsError, match=r"expected a model trained with `labels.mode = 'codebook'`"):
        spwnet.segment(plain, pictures[0], tmp_path / "out", labels=model.settings.labels)
    assert not (tmp_path / "out").exists()


def test_images_of_another_kind_are_refused(model):
    with pytest.raises(InputError, match=r"expected images of 3 channels as in training, but .* has 1"):
        spwnet.segment(model, picture(0, channels=1))


def test_output_that_exists_is_refused_and_overwritten_only_if_asked(model, folder, tmp_path, tiny):
    out = tmp_path / "out"
    spwnet.segment(model, folder, out)
    with pytest.raises(OutputError, match="overwrite"):
        spwnet.segment(model, folder, out)
    spwnet.segment(model, folder, out, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        spwnet.segment(model, folder, tmp_path / "file" / "out")
    with pytest.raises(OutputError, match="overwrite"):
        spwnet.train(folder, out, settings=tiny)


def test_a_segmentation_that_was_stopped_is_resumed(model, folder, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def press(state):
        if state.done == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped, match="stopped after 2 of 3 images; nothing was kept"):
        spwnet.segment(model, folder, on_progress=press)
    with pytest.raises(Stopped, match="stopped after 2 of 3 images; go on by `--resume`"):
        spwnet.segment(model, folder, out, on_progress=press)
    assert json.loads((out / "segmentation.json").read_text())["complete"] is False
    kept = {path: path.stat().st_mtime_ns for path in (out / "labels").iterdir()}
    assert len(kept) == 2
    seen = []
    result = spwnet.segment(model, folder, out, resume=True, on_progress=seen.append)
    assert [(state.done, state.total) for state in seen] == [(1, 1)]
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert list(result.areas) == ["frame_01", "frame_02", "frame_03"]
    fresh = spwnet.segment(model, folder, tmp_path / "fresh")
    assert result.areas == fresh.areas
    again = spwnet.segment(model, folder, out, resume=True, on_progress=lambda _: pytest.fail("nothing is left"))
    assert again.areas == fresh.areas


def test_resuming_with_other_images_or_without_a_file_does_them_again(model, pictures, tmp_path):
    out = tmp_path / "out"
    spwnet.segment(model, pictures, out)
    changed = [pictures[0], picture(7), pictures[2]]
    (out / "labels" / "image_0002.png").unlink()
    with (out / "images.jsonl").open("w") as journal:
        journal.write('{"name": "half')  # as a full disk leaves it
    seen = []
    result = spwnet.segment(model, changed, out, resume=True, on_progress=seen.append)
    assert seen[-1].total == 2
    assert result.areas == spwnet.segment(model, changed, tmp_path / "fresh").areas
    for name, labels in read_labels(tmp_path / "fresh").items():
        np.testing.assert_array_equal(read_labels(out)[name], labels)


def test_resuming_what_is_finished_changes_no_file(model, folder, tmp_path):
    out = tmp_path / "out"
    spwnet.segment(model, folder, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    spwnet.segment(model, folder, out, resume=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_resuming_where_one_image_is_missing_says_so_until_it_is_there(model, folder, tmp_path):
    out = tmp_path / "out"
    whole = spwnet.segment(model, folder, out)
    (out / "labels" / "frame_02.png").unlink()

    def crash(_):
        assert json.loads((out / "segmentation.json").read_text())["complete"] is False
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        spwnet.segment(model, folder, out, resume=True, on_progress=crash)
    assert spwnet.segment(model, folder, out, resume=True).areas == whole.areas
    assert json.loads((out / "segmentation.json").read_text())["complete"] is True


def test_an_image_that_can_be_read_no_more_is_left_out_on_resuming(model, folder, tmp_path, caplog):
    out = tmp_path / "out"
    spwnet.segment(model, folder, out)
    broken = folder / "frame_02.png"
    broken.write_bytes(broken.read_bytes()[:200])
    spwnet.segment(model, folder, out, resume=True)
    assert "frame_02 is left out" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        ("segmentation.json", "{half"),
        ("segmentation.json", '{"images": [1]}'),
        ("segmentation.json", '{"images": {"a": 1}}'),
        ("segmentation.json", '{"images": {"frame_01": {"sha256": "0"}}}'),
        ("segmentation.json", '{"unreadable": 3}'),
        ("segmentation.json", "[" * 100_000),
        ("images.jsonl", '{"upto": 3}\n'),
        ("images.jsonl", '{"sha256": "0"}\n'),
        ("images.jsonl", "{half\n{}\n"),
        ("images.jsonl", "[" * 100_000 + "\n{}\n"),
    ],
)
def test_what_an_earlier_job_left_damaged_is_refused_or_overwritten(model, folder, tmp_path, caplog, damage):
    out, (name, text) = tmp_path / "out", damage
    spwnet.segment(model, folder, out)
    (out / name).write_text(text)
    with pytest.raises(OutputError, match=rf"{name}|its 'model' differs"):
        spwnet.segment(model, folder, out, resume=True)
    spwnet.segment(model, folder, out, overwrite=True)
    assert "may be left" in caplog.text
    assert json.loads((out / "segmentation.json").read_text())["complete"] is True


def test_overlays_of_images_longer_than_a_jpeg_are_thinned(model, tmp_path, monkeypatch):
    monkeypatch.setattr("spwnet.prediction.MOST_JPEG", 50)
    spwnet.segment(model, [picture(0)], tmp_path / "out", overlays="full")
    with Image.open(tmp_path / "out" / "overlays" / "image_0000.jpg") as drawn:
        assert drawn.size == (26, 20)


def test_overwriting_leaves_no_label_of_the_earlier_model(model, folder, tmp_path):
    out = tmp_path / "out"
    spwnet.segment(model, folder, out)
    (out / "labels" / "mine.txt").write_text("kept")
    spwnet.segment(model, folder, out, frames=[2], suffix=".tif", overwrite=True)
    assert sorted(path.name for path in (out / "labels").iterdir()) == ["frame_02.tif", "mine.txt"]
    assert [path.name for path in (out / "overlays").iterdir()] == ["frame_02.jpg"]


def test_resuming_with_other_frames_keeps_those_done(model, folder, tmp_path):
    out = tmp_path / "out"
    spwnet.segment(model, folder, out, frames=[1])
    spwnet.segment(model, folder, out, frames=[2], resume=True)
    assert list(json.loads((out / "segmentation.json").read_text())["images"]) == ["frame_01", "frame_02"]


def test_resuming_another_segmentation_is_refused(model, folder, tmp_path):
    out = tmp_path / "out"
    spwnet.segment(model, folder, out)
    other = spwnet.train(picture(2), settings=make_settings(overrides={**TINY, "seed": 5}))
    with pytest.raises(OutputError, match="but its 'model' differs"):
        spwnet.segment(other, folder, out, resume=True)
    (out / "segmentation.json").write_text("{")
    with pytest.raises(OutputError, match=r"expected a readable .*segmentation.json"):
        spwnet.segment(model, folder, out, resume=True)


def test_training_that_was_stopped_is_resumed_to_the_same_weights(folder, tiny, tmp_path):
    run = tmp_path / "run"

    def press(state):
        if state.done == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped, match="stopped after step 1 of 4"):
        spwnet.train(folder, run, settings=tiny, on_progress=press)
    with pytest.raises(RunError, match="did not finish"):
        spwnet.load(run)
    with pytest.raises(RunError, match="but `seed` was 0 and is now 3"):
        spwnet.train(folder, run, settings=tiny.model_copy(update={"seed": 3}), resume=True)
    with pytest.raises(RunError, match="but got others"):
        spwnet.train(folder, run, settings=tiny, frames=[1], resume=True)
    resumed = spwnet.train(folder, run, settings=tiny, resume=True)
    assert resumed.fingerprint == spwnet.train(folder, settings=tiny).fingerprint
    finished = spwnet.train(
        folder, run, settings=tiny, resume=True, on_progress=lambda _: pytest.fail("nothing is left")
    )
    assert finished.fingerprint == resumed.fingerprint
    fresh = spwnet.train(folder, tmp_path / "new", settings=tiny, resume=True)
    assert fresh.fingerprint == resumed.fingerprint


def test_second_interrupt_stops_at_once_and_threads_are_left_alone():
    with api.stoppable() as should_stop:
        signal.raise_signal(signal.SIGINT)
        assert should_stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    answers = []

    def elsewhere():
        with api.stoppable() as should_stop:
            answers.append(should_stop())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert answers == [False]


def test_a_job_within_another_hears_the_same_interrupt(monkeypatch):
    with api.stoppable() as outer:
        with api.stoppable() as inner:
            signal.raise_signal(signal.SIGINT)
            assert inner()
        assert outer()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # as if a host had installed its handler outside Python
    monkeypatch.setattr(signal, "getsignal", lambda _: None)
    try:
        with api.stoppable():
            pass
        monkeypatch.undo()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_an_interrupt_after_the_last_step_is_heard_without_a_run(tiny):
    def press(state):
        if state.done == state.total:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped, match="stopped after training, which is finished: without a run directory it is not"):
        spwnet.train(picture(0), settings=tiny, on_progress=press)


def test_collapse_is_told(tiny, caplog, monkeypatch):
    spwnet.train(picture(0), settings=tiny)
    assert "collapsed" not in caplog.text
    monkeypatch.setattr(api, "predict", lambda *_: (np.zeros((40, 52), np.int32), None))
    spwnet.train(picture(0), settings=tiny)
    assert "the training collapsed. Try another `seed`" in caplog.text


def test_dead_classes_of_the_network_are_told(tiny, caplog, monkeypatch):
    model = spwnet.train(picture(0), settings=tiny)
    assert 1 <= model.info["network_classes"] <= 4
    assert "are alive" not in caplog.text
    monkeypatch.setattr(api, "FEW_ALIVE", 2.0)
    spwnet.train(picture(0), settings=tiny)
    assert "of the network's 4 classes are alive on the training images" in caplog.text
    assert "spwnet tune" in caplog.text


def save_labels(folder, arrays):
    folder.mkdir()
    for name, array in arrays.items():
        Image.fromarray(array.astype(np.uint8)).save(folder / f"{name}.png")
    return folder


def test_evaluate_pairs_annotators_and_names_classes(tmp_path):
    truth = np.repeat([[0, 1]], 4, axis=0).repeat(5, axis=1)
    predicted = save_labels(tmp_path / "p", {f"f{i}": truth * 3 + 2 for i in range(3)})
    annotated = save_labels(tmp_path / "t", {f"f{i}_{k}": truth for i in range(3) for k in range(2)})
    result = spwnet.evaluate(predicted, annotated, naming=[0])
    assert result["images"] == 3
    assert result["rand"] == result["covering"] == result["mean_iou"] == 1
    assert result["iou"] == {"0": 1, "1": 1}
    assert result["variation_of_information"] == 0
    with pytest.raises(InputError, match="frame 9 has none"):
        spwnet.evaluate(predicted, annotated, naming=[9])
    with pytest.raises(InputError, match="with others left to score"):
        spwnet.evaluate(predicted, annotated, naming=[0, 1, 2])
    small = save_labels(tmp_path / "s", {"f0": truth[:2]})
    with pytest.raises(InputError, match=r"expected label images of one shape, but 'f0' has \(4, 10\)"):
        spwnet.evaluate(predicted, small)
    with pytest.raises(InputError, match="expected truth images of the same names"):
        spwnet.evaluate(predicted, save_labels(tmp_path / "o", {"x": truth, "y": truth}))
    by_order = spwnet.evaluate([truth, truth], [truth + 1, truth + 1])
    assert by_order["v_measure"] == 1


def test_run_leaves_nothing_behind_when_it_refuses(folder, tiny, tmp_path):
    with pytest.raises(InputError):
        spwnet.run(tmp_path / "nothing", tmp_path / "a" / "out", settings=tiny)
    assert not (tmp_path / "a").exists()
    with pytest.raises(OutputError, match="either overwrite or resume, but got both"):
        spwnet.run(folder, tmp_path / "out", settings=tiny, overwrite=True, resume=True)
    Image.fromarray(picture(0)[..., 0]).save(folder / "frame_09.png")
    with pytest.raises(InputError, match="frame_09"):
        spwnet.run(folder, tmp_path / "out", settings=tiny, frames=[1, 2])
    (folder / "frame_09.png").unlink()
    model, segmented = spwnet.run(folder, tmp_path / "out", settings=tiny, frames=[1, 2])
    assert model.fingerprint == spwnet.load(tmp_path / "out" / "run").fingerprint
    assert segmented.names == ("frame_01", "frame_02", "frame_03")


def test_ctrl_c_in_the_last_step_stops_after_saving(folder, tiny, tmp_path):
    def press(state):
        if state.done == state.total:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped, match="stopped after training, which is finished"):
        spwnet.run(folder, tmp_path / "out", settings=tiny, on_progress=press)
    assert spwnet.load(tmp_path / "out" / "run").info["finished"]
    assert not (tmp_path / "out" / "segmentation").exists()


def test_evaluate_prefers_the_same_name_and_leaves_out_void(tmp_path, caplog):
    truth = np.repeat([[0, 1]], 4, axis=0).repeat(5, axis=1)
    names = {"image": truth, "image_1": truth, "image_2": np.full_like(truth, 255)}
    predicted = save_labels(tmp_path / "p", dict.fromkeys(names, truth))
    result = spwnet.evaluate(predicted, save_labels(tmp_path / "t", names), ignore=[255])
    assert result["images"] == 2
    assert result["rand"] == 1
    assert "'image_2' has no pixel that counts" in caplog.text
    with pytest.raises(InputError, match="every one is to be ignored"):
        spwnet.evaluate([truth], [truth], ignore=[0, 1])


def test_evaluate_tells_who_is_left_without_a_partner(tmp_path, caplog):
    truth = np.arange(12, dtype=np.uint8).reshape(3, 4) // 6
    predicted = save_labels(tmp_path / "p", dict.fromkeys(("a1", "a2", "a3"), truth))
    assert (
        spwnet.evaluate(predicted, save_labels(tmp_path / "t", dict.fromkeys(("a1", "b2", "b3"), truth)))["images"] == 1
    )
    assert "2 of 3 predicted images have no truth, 'a2' first" in caplog.text
    assert "2 of 3 truths are of no predicted image, 'b2' first" in caplog.text
    with caplog.at_level(logging.INFO):
        spwnet.evaluate(predicted, save_labels(tmp_path / "o", dict.fromkeys(("x", "y", "z"), truth)))
    assert "paired by order" in caplog.text


def test_evaluate_names_the_image_that_holds_no_integers(tmp_path):
    truth = np.arange(12, dtype=np.uint8).reshape(3, 4) // 6
    for predicted, true in (([truth, truth / 2], [truth] * 2), ([truth] * 2, [truth, truth / 2])):
        with pytest.raises(InputError, match="expected integer labels in 'image_0001', but got float64"):
            spwnet.evaluate(predicted, true)


def test_names_of_thousands_are_paired_at_once():
    from types import SimpleNamespace

    from spwnet.evaluation import _paired

    ours = SimpleNamespace(names=tuple(f"f_{k}" for k in range(20_000)))
    theirs = SimpleNamespace(names=tuple(f"f_{k}_{a}" for k in range(20_000) for a in range(2)))
    assert _paired(ours, theirs)[-1] == (19_999, [39_998, 39_999])


def test_evaluate_ignores_void(tmp_path):
    truth = np.array([[0, 1, 1, 255]] * 4)
    predicted = np.array([[0, 1, 1, 0]] * 4)
    assert spwnet.evaluate([predicted], [truth], ignore=[255])["covering"] == 1
    assert spwnet.evaluate([predicted], [truth])["covering"] < 1


def test_no_public_name_is_hidden_by_a_module_of_its_name():
    """A module that is imported becomes an attribute of the package, in place of the function of its name."""
    names = {path.stem for path in Path(spwnet.__file__).parent.glob("*.py")}
    assert not names & set(spwnet.__all__)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels.classes": "auto", "labels.merge": [[0, 1]]}, "expected a number of classes by `labels.classes`"),
        (
            {"labels.classes": "auto", "labels.reassign": [{"source": 0, "smaller_than": 9, "to": 1}]},
            "that the ids in `labels.reassign` are of",
        ),
        ({"labels": {"classes": "auto", "named": [{"id": 0, "name": "a", "members": [0, 1]}]}}, "class 2 is in none"),
    ],
)
def test_classes_that_cannot_be_are_refused_before_training(folder, tmp_path, changes, message):
    settings = make_settings(overrides={**TINY, "labels.classes": "auto"} | changes)
    for images in (folder, spwnet.open_volume(np.zeros((30, 30, 30), np.uint8))):
        with pytest.raises(SettingsError, match=message):
            spwnet.train(images, tmp_path / "run", settings=settings, on_progress=lambda _: pytest.fail("trained"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suffix": ".zarr"}, r"expected a label image named .png, .tif, .tiff, but got '\.zarr'"),
        ({"suffix": ".mp4", "rate": 0}, "expected a rate above"),
    ],
)
def test_what_cannot_be_written_is_refused_before_training(folder, tiny, tmp_path, options, message):
    with pytest.raises(SpwnetError, match=message):
        spwnet.run(folder, tmp_path / "out", settings=tiny, on_progress=lambda _: pytest.fail("trained"), **options)
    assert not (tmp_path / "out" / "run").exists()


def test_surfaces_of_classes_that_cannot_be_are_refused_before_training(tmp_path):
    volume = spwnet.open_volume(np.zeros((30, 30, 30), np.uint8))
    for changes, most in (({}, 3), ({"labels.classes": "auto", "codebook.finest": 6}, 5)):
        settings = make_settings(overrides=TINY | changes)
        with pytest.raises(SettingsError, match=f"expected classes 0 to {most} for surfaces, but got 6"):
            spwnet.run(volume, tmp_path / "out", settings=settings, meshes=(1, 6))
