"""Training on slices of a volume."""

from __future__ import annotations

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import spwnet
from spwnet import api, open_volume, segment_volume, training, volumetraining
from spwnet.blocks import within
from spwnet.descriptors import kinds
from spwnet.errors import InputError, OutputError, RunError, SettingsError, Stopped
from spwnet.gallery import read_gallery
from spwnet.presets import make_settings
from spwnet.volumetraining import windows
from spwnet.volumetric import describe_part, grid_of, see
from tests.conftest import SOLID, phantom

CPU = torch.device("cpu")


def settings_with(preset="default", **overrides):
    return make_settings(preset, overrides={**SOLID, **{n.replace("__", "."): v for n, v in overrides.items()}})


@pytest.fixture(scope="module")
def volume():
    return open_volume(phantom((20, 30, 34)), spacing=(1.0, 1.0, 1.0), unit="nanometer")


def test_the_seed_decides(volume):
    models = [spwnet.train(volume, settings=settings_with(seed=seed)) for seed in (3, 3, 4)]
    assert models[0].fingerprint == models[1].fingerprint != models[2].fingerprint
    assert all(model.solid for model in models)


def test_training_that_was_stopped_is_resumed_to_the_same_weights(volume, tmp_path):
    settings = settings_with(training={**SOLID["training"], "epochs": 2})
    whole = spwnet.train(volume, settings=settings)

    def press(state):
        if state.done == 2:
            signal.raise_signal(signal.SIGINT)

    run = tmp_path / "run"
    with pytest.raises(Stopped, match="stopped after step 2 of 4; go on by `--resume`"):
        spwnet.train(volume, run, settings=settings, on_progress=press)
    with pytest.raises(RunError, match="expected a finished run"):
        spwnet.load(run)
    with pytest.raises(RunError, match=r"`seed` was 0 and is now 5"):
        spwnet.train(volume, run, settings=settings.model_copy(update={"seed": 5}), resume=True)
    with pytest.raises(RunError, match="but got others"):
        spwnet.train(open_volume(phantom((20, 30, 34), seed=1)), run, settings=settings, resume=True)
    seen = []
    resumed = spwnet.train(volume, run, settings=settings, resume=True, on_progress=seen.append)
    assert [state.done for state in seen] == [3, 4]
    assert resumed.fingerprint == whole.fingerprint
    assert spwnet.load(run).fingerprint == whole.fingerprint
    again = spwnet.train(volume, run, settings=settings, resume=True, on_progress=lambda _: pytest.fail("done"))
    assert again.fingerprint == whole.fingerprint


@pytest.mark.parametrize("preset", ["instant", "default"])
def test_a_run_is_read_back_as_it_was(volume, tmp_path, preset):
    model = spwnet.train(volume, tmp_path / "run", settings=settings_with(preset))
    loaded = spwnet.load(tmp_path / "run")
    assert loaded.solid
    assert (loaded.network is None) == (preset == "instant")
    assert loaded.fingerprint == model.fingerprint
    assert loaded.settings == model.settings
    np.testing.assert_array_equal(segment_volume(loaded, volume).labels, segment_volume(model, volume).labels)
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["solid"] is info["finished"] is True
    assert info["volume"] == {
        "shape": [20, 30, 34], "spacing": [1, 1, 1], "unit": "nanometer", "origin": volume.origin
    }  # fmt: skip
    assert [image["name"] for image in info["images"]] == ["volume_z_0005", "volume_z_0015"]
    assert sum(info["classes"].values()) == 2 * 2 * 30 * 34
    [preview] = (tmp_path / "run" / "previews").iterdir()
    assert preview.name == ("step_000000.png" if preset == "instant" else "step_000002.png")
    assert np.asarray(Image.open(preview)).std() > 20


def test_those_who_watch_see_slices_and_may_stop_and_keep(volume, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "PREVIEW_SECONDS", 0.0)
    monkeypatch.setattr(training, "PREVIEW_SHARE", 1e9)
    settings = settings_with(training={**SOLID["training"], "epochs": 3})

    class Onlooker(spwnet.Watcher):
        keep = False

        def __init__(self):
            self.shots, self.steps, self.ending = [], [], None

        def update(self, progress):
            self.steps.append(progress.done)
            assert progress.values["total"] > 0
            self.keep = progress.done == 3

        def show(self, snapshot):
            self.shots.append(snapshot)

        def finish(self, ending, message=""):
            self.ending = ending

    seen = Onlooker()
    model = spwnet.train(volume, tmp_path / "run", settings=settings, watch=[seen])
    assert seen.ending == "finished"
    assert seen.steps == [1, 2, 3]
    assert [shot.step for shot in seen.shots] == [0, 1, 2, 3]
    assert [shot.provisional for shot in seen.shots] == [False, True, True, False]
    first, between, _, last = seen.shots
    assert [row.name for row in first.rows] == [image["name"] for image in model.info["images"]]
    assert [row.input.shape for row in first.rows] == [(30, 34, 3)] * 2
    assert first.rows[0].labels is first.rows[0].reconstruction is None
    # cells of 2×2 voxels, as the network sees them
    assert between.rows[1].reconstruction.shape == between.rows[1].labels.shape == (15, 17, 3)
    assert sum(between.rows[1].sizes.values()) == 15 * 17
    halved = last.rows[1].input.reshape(15, 2, 17, 2, 3).mean((1, 3))
    assert np.corrcoef(halved.ravel(), between.rows[1].input.ravel())[0, 1] > 0.8
    assert sum(last.rows[1].sizes.values()) == 30 * 34
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (info["finished"], info["kept_at"]) == (True, 3)
    names = sorted(path.name for path in (tmp_path / "run" / "previews").iterdir())
    assert names == ["step_000001.png", "step_000002.png", "step_000003.png"]
    assert segment_volume(spwnet.load(tmp_path / "run"), volume).labels.shape == volume.shape


def test_weights_of_a_volume_are_not_those_of_images(volume, tmp_path):
    """The network takes other evidence, and pools less."""
    spwnet.train(volume, tmp_path / "run", settings=settings_with())
    description = tmp_path / "run" / "run.json"
    info = json.loads(description.read_text())
    description.write_text(json.dumps({**info, "solid": False}))
    with pytest.raises(RunError, match=r"weights and run\.json are of different runs"):
        spwnet.load(tmp_path / "run")


def test_slices_to_train_on(volume, caplog):
    settings = settings_with("instant", training={**SOLID["training"], "images": 3})
    named = [image["name"][-4:] for image in spwnet.train(volume, settings=settings, frames=[4, 11]).info["images"]]
    assert named == ["0004", "0011"]
    spread = [image["name"][-4:] for image in spwnet.train(volume, settings=settings).info["images"]]
    assert spread == ["0003", "0010", "0016"]
    with pytest.raises(InputError, match="there is no frame 20"):
        spwnet.train(volume, settings=settings, frames=[20])
    values = phantom((20, 30, 34))
    values[13:16] //= 4
    varied = open_volume(values)
    auto = spwnet.train(varied, settings=settings.model_copy(update={"seed": 1}), frames="auto").info["images"]
    assert sum(int(image["name"][-4:]) in (13, 14, 15) for image in auto) == 1


def test_a_volume_too_small_for_the_network():
    thin = open_volume(phantom((30, 4, 3)))
    with pytest.raises(
        InputError, match=r"more than 4 working voxels along one side .* but those across z have 4×3; .* 'instant'"
    ):
        spwnet.train(thin, settings=settings_with())
    # one voxel more, or none to learn with, will do
    labels = segment_volume(spwnet.train(thin, settings=settings_with("instant")), thin).labels
    assert labels.shape == (30, 4, 3)
    enough = open_volume(phantom((30, 5, 3)))
    assert segment_volume(spwnet.train(enough, settings=settings_with()), enough).labels.shape == (30, 5, 3)


def test_a_constant_volume_is_an_error():
    with pytest.raises(InputError, match="expected an image with something in it"):
        spwnet.train(open_volume(np.full((9, 20, 20), 7, np.uint8)), settings=settings_with())


def test_one_slice_is_a_volume():
    flat = open_volume(phantom((1, 30, 30)))
    model = spwnet.train(flat, settings=settings_with())
    assert segment_volume(model, flat).labels.shape == (1, 30, 30)


def test_superpixels_are_not_for_volumes(volume):
    with pytest.raises(SettingsError, match="expected no `superpixels` for a volume"):
        spwnet.train(volume, settings=settings_with(), superpixels=[np.zeros((30, 34), int)])


def test_slices_as_images(volume):
    model = spwnet.train(volume, settings=settings_with("instant", volumes__mode="slices"))
    assert not model.solid
    images = [volume.read((slice(z, z + 1), slice(None), slice(None)))[0, ..., 0] for z in (5, 15)]
    assert spwnet.train(images, settings=model.settings).fingerprint == model.fingerprint


def test_windows_are_layers_of_cells_of_so_many_voxels():
    grid = grid_of(open_volume(np.zeros((40, 300, 400), np.uint8)), settings_with())
    small = windows(grid, [(0, 0), (0, 21), (0, 39)], 30_000, 0)
    assert [part[0] for part in small] == [slice(0, 2), slice(20, 22), slice(38, 40)]
    for _, rows, columns in small:
        assert rows.start % 2 == columns.start % 2 == 0
        assert 0 <= rows.start < rows.stop <= 300
        assert 0 <= columns.start < columns.stop <= 400
        assert 28_000 < (rows.stop - rows.start) * (columns.stop - columns.start) <= 30_000
    assert len({(rows.start, columns.start) for _, rows, columns in small}) == 3
    assert (
        windows(grid, [(0, 0), (0, 21), (0, 39)], 30_000, 0)
        == small
        != windows(grid, [(0, 0), (0, 21), (0, 39)], 30_000, 1)
    )
    assert windows(grid, [(1, 21), (2, 399)], 10**6, 0) == [
        (slice(0, 40), slice(20, 22), slice(0, 400)), (slice(0, 40), slice(0, 300), slice(398, 400)),
    ]  # fmt: skip
    # a little more than is asked for is not worth a window
    assert windows(grid, [(0, 5)], 300 * 400 // 1.4, 0) == [(slice(4, 6), slice(0, 300), slice(0, 400))]


def test_training_in_a_window(volume):
    settings = settings_with(images__max_pixels=400)
    model = spwnet.train(volume, settings=settings)
    assert [image["working_shape"] for image in model.info["images"]] == [[18, 21]] * 2
    assert segment_volume(model, volume).labels.shape == volume.shape


def test_a_step_sees_the_layer_of_cells_of_a_part(volume, solid_models):
    """With the classes' shares in each cell, and the supervoxels cut by the layer."""
    settings = settings_with(model__evidence=True)
    grid = grid_of(volume, settings)
    core = (slice(8, 10), slice(4, 24), slice(6, 30))
    part = see(volume, grid, core, settings, solid_models["default", 1].normalisation, learns=True)
    target = np.random.default_rng(0).integers(0, 4, part.graph.count)
    image = volumetraining._set_up(part, 0, grid, settings, target, CPU)
    evidence = sum(kind.size for kind in kinds("handmade", 1, 0, solid=True))
    assert image.pixels.shape == (1, 1 + evidence, 10, 12)
    assert image.channels == 1
    nodes = part.graph.labels.view(part.graph.shape)[within(core, part.around)].numpy()
    assert image.target.shape == (4, 10, 12)
    shares = np.bincount(target[nodes[:, 4:6, 6:8].ravel()], minlength=4) / 8
    torch.testing.assert_close(image.target[:, 2, 3], torch.from_numpy(shares).float())
    torch.testing.assert_close(image.target.sum(0), torch.ones(10, 12))
    regions = image.graph.labels.view(10, 12).numpy()
    pairs = np.unique(np.stack([regions.ravel(), nodes[0, ::2, ::2].ravel()]), axis=1)
    assert pairs.shape[1] == image.graph.count == len(np.unique(pairs[1]))
    means = volume.read(core)[..., 0].reshape(2, 10, 2, 12, 2).mean((0, 2, 4))
    normalisation = solid_models["default", 1].normalisation
    unit = (means - normalisation.low[0]) / (normalisation.high[0] - normalisation.low[0])
    expected = (unit - normalisation.mean[0]) / normalisation.std[0]
    assert np.corrcoef(image.pixels[0, 0].numpy().ravel(), expected.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("axis", ["y", "x"])
def test_slices_across_another_axis_are_those_of_the_turned_volume(axis):
    """The network, and the classes of each voxel."""
    values = phantom((28, 26, 24))[..., 0]
    order = {"y": [1, 0, 2], "x": [2, 0, 1]}[axis]
    # Without the hand-made evidence, which tells the axes apart.
    plain = {"model__evidence": False, "codebook__evidence": "learned"}
    there = [6, 18]
    one = spwnet.train(open_volume(values), settings=settings_with(volumes__axis=axis, **plain), frames=there)
    assert [image["name"] for image in one.info["images"]] == [f"volume_{axis}_{k:04d}" for k in there]
    turned = open_volume(np.ascontiguousarray(values.transpose(order)))
    other = spwnet.train(turned, settings=settings_with(**plain), frames=there)
    assert [image["sha256"] for image in one.info["images"]] == [image["sha256"] for image in other.info["images"]]
    found = segment_volume(one, open_volume(values)).labels.transpose(order)
    # Sums go in another order, and supervoxels that are as near to a voxel as another have other numbers.
    assert (found == segment_volume(other, turned).labels).mean() > 0.9


def test_all_three_axes_are_shared_out(volume, tmp_path):
    settings = settings_with(volumes__axis="all", training={**SOLID["training"], "images": 4})
    model = spwnet.train(volume, tmp_path / "run", settings=settings)
    names = [image["name"] for image in model.info["images"]]
    assert names == ["volume_z_0005", "volume_z_0015", "volume_y_0015", "volume_x_0017"]
    assert [image["shape"][:2] for image in model.info["images"]] == [[30, 34], [30, 34], [20, 34], [20, 30]]
    shown = read_gallery(tmp_path / "run" / "gallery")
    assert [exhibit.labels.shape for exhibit in shown.exhibits] == [(30, 34), (30, 34), (20, 34), (20, 30)]
    again = spwnet.train(volume, settings=settings, frames=[3])
    assert [image["name"] for image in again.info["images"]] == [f"volume_{axis}_0003" for axis in "zyx"]
    loaded = spwnet.load(tmp_path / "run")
    np.testing.assert_array_equal(segment_volume(loaded, volume, block=12).labels, segment_volume(model, volume).labels)
    with pytest.raises(SettingsError, match=r"expected `volumes\.axis = 'z'` where each slice is labelled on its own"):
        settings_with(volumes__axis="x", volumes__mode="slices")


@torch.inference_mode()
def test_centres_are_fitted_on_what_is_in_the_part(volume, solid_models):
    model = solid_models["default", 1]
    grid = grid_of(volume, model.settings)
    core = (slice(8, 10), slice(4, 14), slice(6, 20))
    part = see(volume, grid, core, model.settings, model.normalisation, learns=True)
    described = describe_part(model.network, part, grid, model.settings, CPU)
    inside = volumetraining._in_core(part, described)
    nodes = np.unique(part.graph.labels.view(part.graph.shape)[within(core, part.around)].numpy())
    assert len(nodes) < part.graph.count
    np.testing.assert_array_equal(inside.rows, described.rows[nodes])
    pairs = {(nodes[i], nodes[j]) for i, j in inside.edges.T}
    assert pairs == {(i, j) for i, j in described.edges.T if i in nodes and j in nodes}
    assert len(inside.contacts) == len(pairs)


def test_classes_of_the_evidence_are_learned(volume):
    """Taught for a while, the network's evidence alone gives about the classes of the hand-made evidence."""
    longer = {**SOLID["training"], "epochs": 8, "batches": 4}
    overrides = {"codebook__evidence": "learned", "model": {"classes": 4, "ch_mul": 8}, "training": longer}
    learned = segment_volume(spwnet.train(volume, settings=settings_with(**overrides)), volume).labels
    by_hand = segment_volume(spwnet.train(volume, settings=settings_with("instant")), volume).labels
    from sklearn.metrics import normalized_mutual_info_score

    assert normalized_mutual_info_score(learned.ravel(), by_hand.ravel()) > 0.3


@pytest.mark.parametrize("losses", [{"target": "own"}, {"similarity": 0.0}, {"continuity": 0.0}, {"cut": 0.5}])
def test_every_loss_works_on_volumes(volume, losses):
    model = spwnet.train(volume, settings=settings_with(losses=losses))
    assert len(model.info["classes"]) > 1


def test_run_is_train_and_segment(volume, tmp_path):
    settings = settings_with("instant")
    model, result = api.run(volume, tmp_path / "out", settings=settings, suffix=".npy", block=16, workers=1, meshes=[0])
    assert model.solid
    assert result.path == tmp_path / "out" / "segmentation" / "labels.npy"
    np.testing.assert_array_equal(np.load(result.path), segment_volume(model, volume).labels)
    assert (tmp_path / "out" / "segmentation" / "class_0.stl").exists()
    again, _ = api.run(volume, tmp_path / "out", settings=settings, suffix=".npy", block=16, resume=True,
                       on_progress=lambda _: pytest.fail("done already"))  # fmt: skip
    assert again.fingerprint == model.fingerprint


def test_run_checks_everything_before_it_trains(volume, tmp_path, monkeypatch):
    monkeypatch.setattr(api, "train", lambda *_, **__: pytest.fail("work started"))
    for options, kind, message in (
        ({"suffix": ".png"}, OutputError, "expected a label volume named"),
        ({"workers": 0}, SettingsError, "expected at least one worker"),
        ({"block": (3, 3)}, SettingsError, "expected a block of one or three sides"),
        ({"meshes": [-1]}, SettingsError, "expected classes from 0"),
        ({"blocks": 3}, TypeError, "blocks"),
        ({"uncertainty": True}, SettingsError, "expected no `uncertainty` with a volume"),
        ({"overlays": "full"}, SettingsError, "expected no `overlays` with a volume"),
        ({"overlays": False}, SettingsError, "expected no `overlays` with a volume"),
        ({"rate": 3}, SettingsError, "expected no `rate` with a volume"),
    ):
        with pytest.raises(kind, match=message):
            api.run(volume, tmp_path / "out", settings=settings_with("instant"), **options)
    with pytest.raises(TypeError, match="run\\(\\) got the argument 'block', which is for volumes alone or unknown"):
        api.run([np.zeros((9, 9), np.uint8)], tmp_path / "out", block=8)
    assert not (tmp_path / "out").exists()


def test_superpixels_of_the_user_s_are_not_for_volumes_as_slices(volume, tmp_path):
    settings = settings_with("instant", superpixels__method="labels", volumes__mode="slices")
    regions = [np.indices((30, 34)).sum(0) // 7 for _ in range(20)]
    model = spwnet.train(volume, settings=settings, superpixels=regions)
    with pytest.raises(SettingsError, match="expected a model that makes its superpixels for a volume"):
        segment_volume(model, volume, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_collapse_is_told(volume, solid_model, caplog):
    api._classes_in_use([np.zeros((2, 4, 4), np.int32)], replace(solid_model))
    assert "only 1 of 5 classes are left on the training images" in caplog.text
