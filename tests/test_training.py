from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from spwnet import api, training
from spwnet.descriptors import network_input
from spwnet.errors import InputError, RunError, SettingsError, Stopped
from spwnet.graph import build_graph
from spwnet.images import Image
from spwnet.prediction import prepare_image
from spwnet.preparation import measure
from spwnet.presets import make_settings
from spwnet.runs import Run
from spwnet.trained import make_network
from spwnet.training import (
    calibrate,
    check_images,
    cropped,
    fit,
    learning_rate,
    loss_parts,
    set_up_image,
    step,
    together,
)
from tests.conftest import TINY, assert_same_checkpoints, picture

CPU = torch.device("cpu")
ALL_LOSSES = {"image": 0.5, "patches": 1, "cut": 0.3, "similarity": 0.1, "continuity": 0.1}


def loss_terms(*arguments):
    """Losses of the first image, their parts added up."""
    terms = {}
    for part in loss_parts(*arguments):
        for name, value in part.get(0, {}).items():
            terms[name] = terms.get(name, 0) + value
    return [terms]


def settings_with(**overrides):
    return make_settings(overrides={**TINY, **{name.replace("__", "."): value for name, value in overrides.items()}})


def batch_of(settings, images=None):
    images = images or [Image(picture(seed), f"p{seed}", rgb=True) for seed in range(2)]
    normalisation = measure(images, settings.images)
    pairs = [prepare_image(image, settings, normalisation) for image in images]
    graphs = [None if regions is None else build_graph(regions, prepared.unit) for prepared, regions in pairs]
    return [
        set_up_image(network_input(prepared, CPU, settings.model), prepared, graph, settings)
        for (prepared, _), graph in zip(pairs, graphs, strict=True)
    ]


def states_equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("method", ["slic", "none"])
def test_every_loss_on_superpixels_and_between_pixels(method):
    settings = settings_with(losses=ALL_LOSSES, patches__sides=[16, 24], superpixels__method=method)
    network = make_network(settings, 3)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    batch = batch_of(settings)
    history = [step(network, optimiser, batch, settings, np.random.default_rng(n)) for n in range(12)]
    assert set(history[0]) == {*ALL_LOSSES, "total"}
    assert np.isfinite([list(terms.values()) for terms in history]).all()
    assert history[-1]["total"] < history[0]["total"]
    expected = sum(ALL_LOSSES[name] * history[0][name] for name in ALL_LOSSES)
    assert history[0]["total"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_each_loss_can_be_the_only_one(name):
    settings = settings_with(losses=dict.fromkeys(ALL_LOSSES, 0) | {name: 1.0}, patches__sides=[16])
    network = make_network(settings, 3)
    terms = loss_terms(network, batch_of(settings)[:1], settings, np.random.default_rng(0), torch.float32)[0]
    assert list(terms) == [name]
    terms[name].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.encoder.parameters())


def test_images_of_different_sizes_weigh_alike():
    settings = settings_with(model__evidence=False)  # whose jitter would be drawn in another order
    images = [Image(picture(0), "a", rgb=True), Image(picture(1, 33, 70), "b", rgb=True)]
    batch = batch_of(settings, images)
    network = make_network(settings, 3)

    def total(chosen):
        probe = copy.deepcopy(network)
        optimiser = torch.optim.SGD(probe.parameters(), lr=0.0)
        return step(probe, optimiser, chosen, settings, np.random.default_rng(0))["total"]

    assert total(batch) == pytest.approx(total(batch[:1]) + total(batch[1:]), rel=1e-4)


def test_the_seed_decides():
    runs = []
    for seed in (3, 3, 4):
        settings = settings_with(seed=seed, losses__patches=1, patches__sides=[16])
        runs.append(fit(make_network(settings, 3), batch_of(settings), settings).network)
    assert states_equal(runs[0], runs[1])
    assert not states_equal(runs[0], runs[2])


def test_ten_steps_equal_five_and_five_more_bit_for_bit(tmp_path):
    settings = settings_with(training={"epochs": 5, "batches": 2}, losses__patches=1, patches__sides=[16])
    batch = batch_of(settings)
    whole = fit(make_network(settings, 3), batch, settings).network

    run = Run(tmp_path / "run")
    run.create()
    seen = []
    with pytest.raises(Stopped, match="stopped after step 5 of 10; go on by `--resume`"):
        fit(make_network(settings, 3), batch, settings, run=run, on_progress=seen.append,
            should_stop=lambda: len(seen) == 5)  # fmt: skip
    run.log(6, {"total": 1.0})  # a step after the checkpoint, as a killed process would leave it
    resumed = fit(make_network(settings, 3), batch, settings, run=run, resume=True, on_progress=seen.append).network

    assert states_equal(whole, resumed)
    assert [line["step"] for line in run.read_history()] == list(range(1, 11))
    assert [state.done for state in seen] == list(range(1, 11))
    assert seen[-1].seconds_left == 0


def test_calibration_takes_the_statistics_of_the_whole_images():
    settings = settings_with()
    batch = batch_of(settings)
    network = make_network(settings, 3)
    calibrate(network, batch, torch.float32)
    first = network.encoder.down[0]
    with torch.no_grad():
        output = first.conv1(network._taken_in(torch.cat([image.pixels for image in batch])))
    assert torch.allclose(first.norm1.running_mean, output.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(first.norm1.running_var, output.var((0, 2, 3)), rtol=1e-4)
    assert first.norm1.momentum == 0.1
    assert not network.training


@pytest.mark.parametrize("count", [4, 5, 6, 9])
def test_each_image_weighs_alike_in_the_calibration(count):
    settings = settings_with()
    batch = batch_of(settings, [Image(picture(seed), f"{seed}", True) for seed in range(count)])
    network = make_network(settings, 3)
    calibrate(network, batch, torch.float32)
    first = network.encoder.down[0]
    with torch.no_grad():
        output = first.conv1(network._taken_in(torch.cat([image.pixels for image in batch])))
    assert torch.allclose(first.norm1.running_mean, output.mean((0, 2, 3)), atol=1e-5)


def test_previews_come_during_training_and_change_nothing(monkeypatch):
    settings = settings_with()
    batch = batch_of(settings)
    plain = fit(make_network(settings, 3), batch, settings).network
    monkeypatch.setattr(training, "PREVIEW_SECONDS", 0.0)
    monkeypatch.setattr(training, "PREVIEW_SHARE", 1e9)
    seen = []
    previewed = fit(make_network(settings, 3), batch, settings, on_preview=seen.append).network
    assert seen == [1, 2, 3]
    assert states_equal(plain, previewed)


def test_to_stop_and_keep_makes_a_step_the_last(tmp_path):
    constant = {"learning_rate": 1e-2, "precision": "float32", "batches": 1, "schedule": "constant"}
    long, short = (settings_with(training={**constant, "epochs": epochs}) for epochs in (5, 3))
    batch = batch_of(long)
    run, seen, previews = Run(tmp_path / "run"), [], []
    run.create()
    kept = fit(make_network(long, 3), batch, long, run=run, on_progress=seen.append, on_preview=previews.append,
               should_keep=lambda: seen[-1].done == 3, should_stop=lambda: seen[-1].done == 3).network  # fmt: skip
    assert [progress.done for progress in seen] == [1, 2, 3]
    assert not kept.training
    assert states_equal(kept, fit(make_network(short, 3), batch, short).network)
    whole = Run(tmp_path / "short")
    whole.create()
    fit(make_network(short, 3), batch, short, run=whole)
    assert_same_checkpoints(run.folder, whole.folder)
    assert run.history.read_bytes() == whole.history.read_bytes()


def test_the_last_step_is_not_asked_whether_it_is_the_last():
    settings, asked = settings_with(), []
    fit(make_network(settings, 3), batch_of(settings), settings, should_keep=lambda: bool(asked.append(1)))
    assert len(asked) == 3


def test_checkpoints_by_the_clock(tmp_path, monkeypatch):
    settings = settings_with()
    run = Run(tmp_path / "run")
    run.create()
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    saved = []
    monkeypatch.setattr(run, "save_checkpoint", lambda network, optimiser, step: saved.append(step))
    fit(make_network(settings, 3), batch_of(settings), settings, run=run)
    assert saved == [2, 4]


def test_a_loss_that_is_not_finite_stops_before_the_step_is_taken():
    settings = settings_with()
    batch = batch_of(settings)
    network = make_network(settings, 3)
    before = copy.deepcopy(network)
    batch[1].pixels[0, 0, 3, 3] = torch.inf
    with pytest.raises(RunError, match=r"expected finite losses, but the loss '\w+' is nan; start again with a lower"):
        fit(network, batch, settings)
    for old, new in zip(before.parameters(), network.parameters(), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("fails", ["loss", "gradient"])
def test_a_step_that_fails_later_is_undone_and_what_was_learned_is_kept(tmp_path, monkeypatch, caplog, fails):
    settings, run = settings_with(), Run(tmp_path / "run")
    run.create()
    original, calls = training.step, []

    def breaking(network, optimiser, images, *rest):
        calls.append(1)
        if len(calls) == 3:
            if fails == "loss":
                images = [replace(images[0], pixels=images[0].pixels * torch.inf), *images[1:]]
            else:
                next(network.parameters()).register_hook(lambda slope: slope * torch.nan)
        return original(network, optimiser, images, *rest)

    monkeypatch.setattr(training, "step", breaking)
    found = fit(make_network(settings, 3), batch_of(settings), settings, run=run)
    assert found.steps == 2
    assert "finite" in found.fault
    assert "step 3 of 4 failed, and what the steps before it gave is kept" in caplog.text
    assert all(torch.isfinite(value).all() for value in found.network.state_dict().values())
    monkeypatch.setattr(training, "step", original)
    calls.clear()
    kept = fit(
        make_network(settings, 3), batch_of(settings), settings,
        should_keep=lambda: bool(calls.append(1)) or len(calls) == 2,
    )  # fmt: skip
    assert kept.steps == 2
    assert states_equal(found.network, kept.network)
    assert run.load_checkpoint(make_network(settings, 3), torch.optim.AdamW(kept.network.parameters())) == 2


@pytest.mark.parametrize("shape", [(3, 8), (4, 4)])
def test_an_image_that_the_network_reduces_to_one_pixel_is_an_error(shape):
    settings = settings_with()
    image = Image(np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8), "dot", rgb=True)
    prepared, _ = prepare_image(image, settings, measure([image], settings.images))
    message = f"expected more than 8 working pixels .* but image 'dot' has {shape[0]}×{shape[1]}"
    with pytest.raises(InputError, match=message):
        check_images([prepared], settings)


def test_a_long_thin_image_is_trained_on():
    settings = settings_with(images__scale=1.0)
    image = np.random.default_rng(0).integers(0, 255, (5, 60, 3), np.uint8)
    labels = api.segment(api.train(image, settings=settings), image).labels
    assert labels[0].shape == (5, 60)


def test_a_crop_that_the_network_reduces_to_one_pixel_is_an_error(pictures):
    with pytest.raises(SettingsError, match=r"expected `patches.crop` above 8, .* but got 8"):
        api.train(pictures, settings=settings_with(patches__crop=8))


def test_a_step_sees_a_part_of_each_image_with_its_part_of_the_graph():
    settings = settings_with(patches__crop=16, model__reduction=1)
    [image] = batch_of(settings, [Image(picture(0), "a", rgb=True)])
    image = replace(image, target=torch.rand(4, 40, 52))
    seen = cropped(image, settings, np.random.default_rng(5))
    assert seen.pixels.shape[2:] == (16, 16)
    places = (image.pixels[0, 0] == seen.pixels[0, 0, 0, 0]).nonzero()
    top, left = next(
        place.tolist() for place in places
        if torch.equal(image.pixels[..., place[0] : place[0] + 16, place[1] : place[1] + 16], seen.pixels)
    )  # fmt: skip
    whole = image.graph.labels.view(40, 52)[top : top + 16, left : left + 16]
    nodes = torch.unique(whole)
    torch.testing.assert_close(nodes[seen.graph.labels].view(16, 16), whole)
    torch.testing.assert_close(seen.target, image.target[:, top : top + 16, left : left + 16])
    assert seen.graph.sizes.sum() == 256
    pairs = {(int(nodes[i]), int(nodes[j])) for i, j in seen.graph.edges.T}
    expected = {(int(i), int(j)) for i, j in image.graph.edges.T if i in nodes and j in nodes}
    assert pairs == expected
    sums = torch.zeros(seen.graph.count).index_add(0, seen.graph.edges[0], seen.continuity)
    torch.testing.assert_close(
        sums[torch.unique(seen.graph.edges[0])], torch.ones(len(torch.unique(seen.graph.edges[0])))
    )


@pytest.mark.parametrize("method", ["slic", "none"])
def test_cells_hold_the_share_of_each_class_in_their_pixels(method):
    settings = settings_with(superpixels__method=method)
    image = Image(picture(0), "a", rgb=True)
    prepared, regions = prepare_image(image, settings, measure([image], settings.images))
    graph = None if regions is None else build_graph(regions, prepared.unit)
    target = np.random.default_rng(0).integers(0, 4, 40 * 52 if graph is None else graph.count)
    pixels = network_input(prepared, CPU, settings.model)
    training = set_up_image(pixels, prepared, graph, settings, target)
    assert training.target.shape == (4, 20, 26)
    assert pixels.shape[2:] == (20, 26)
    classes = (target if graph is None else target[regions.labels.ravel()]).reshape(40, 52)
    counts = np.bincount(classes[6:8, 10:12].ravel(), minlength=4)
    torch.testing.assert_close(training.target[:, 3, 5], torch.from_numpy(counts / 4).float())
    seen = cropped(training, settings_with(patches__crop=16), np.random.default_rng(0))
    assert seen.pixels.shape[2:] == seen.target.shape[1:] == (8, 8)
    if graph is not None:
        # of each cell the superpixel of its first pixel
        nodes = np.unique(regions.labels[::2, ::2])
        np.testing.assert_array_equal(nodes[training.graph.labels.view(20, 26)], regions.labels[::2, ::2])


def test_the_cut_between_pixels_of_a_part_leaves_out_the_rest():
    only = {"cut": 1.0, "image": 0, "similarity": 0, "continuity": 0}
    settings = settings_with(losses=only, superpixels__method="none", patches__crop=16)
    [image] = batch_of(settings, [Image(picture(0), "a", rgb=True)])
    seen = cropped(image, settings, np.random.default_rng(0))
    weights, offsets = seen.cut
    for weight, offset in zip(weights, offsets, strict=True):
        y, x = weight.nonzero().T
        assert ((y + offset[0] < 16) & (x + offset[1] < 16) & (x + offset[1] >= 0)).all()
    terms = loss_terms(make_network(settings, 3), [image], settings, np.random.default_rng(0), torch.float32)[0]
    assert 0 < terms["cut"].item() <= 1


def test_parts_of_one_size_go_through_the_network_together():
    settings = settings_with(patches__crop=24)
    images = [Image(picture(seed), f"p{seed}", rgb=True) for seed in range(3)] + [
        Image(picture(3, 20, 30), "q", rgb=True)
    ]
    batch = batch_of(settings, images)
    assert [len(group) for group in together(batch, 8)] == [3, 1]
    assert [len(group) for group in together(batch, 2)] == [2, 1, 1]
    network = make_network(settings, 3)
    sizes = []
    network.encoder.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))
    step(network, torch.optim.Adam(network.parameters(), 1e-3), batch, settings, np.random.default_rng(0))
    assert [size[0] for size in sizes] == [3, 1]


def test_learning_rate_goes_up_and_down_once():
    settings = settings_with(training__epochs=4, training__batches=25)
    rates = [learning_rate(number, settings) for number in range(100)]
    top = int(np.argmax(rates))
    assert 25 < top < 35
    assert rates[top] == pytest.approx(1e-2, rel=1e-2)
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert (np.diff(rates[top:]) < 0).all()
    assert rates[0] == pytest.approx(4e-4)
    assert rates[-1] == pytest.approx(1e-6)
    constant = settings_with(training__schedule="constant")
    assert {learning_rate(number, constant) for number in range(4)} == {1e-2}


def test_given_classes_are_learned():
    """Taught the classes of the hand-made evidence, the network finds them by itself."""
    settings = settings_with(training__epochs=20, training__batches=5)
    model = api.train(picture(0), settings=settings)
    assert model.settings.losses.target == "codebook"
    ours = api.segment(model, picture(0), labels=settings.labels.model_copy(update={"mode": "argmax_of_mean"})).labels[
        0
    ]
    instant = make_settings("instant", overrides=TINY)
    theirs = api.segment(api.train(picture(0), settings=instant), picture(0)).labels[0]
    assert np.mean(ours == theirs) > 0.8


def test_an_image_smaller_than_a_patch_is_an_error(pictures):
    settings = settings_with(losses__patches=1, patches__sides=[64])
    with pytest.raises(SettingsError, match="a patch of 64×64 is larger than the 40×52 working pixels"):
        api.train(pictures, settings=settings)


def test_a_single_patch_that_the_network_reduces_to_one_pixel_is_an_error(pictures):
    settings = settings_with(losses__patches=1, patches__schedule=[[4, 4, 1]])
    with pytest.raises(SettingsError, match="expected more than one patch of 4×4 in a mini-batch"):
        api.train(pictures, settings=settings)


def test_bfloat16_convolutions_leave_losses_in_float32():
    settings = settings_with(losses__cut=1)
    network = make_network(settings, 3)
    terms = loss_terms(network, batch_of(settings)[:1], settings, np.random.default_rng(0), torch.bfloat16)[0]
    assert {term.dtype for term in terms.values()} == {torch.float32}
    exact = loss_terms(network, batch_of(settings)[:1], settings, np.random.default_rng(0), torch.float32)[0]
    for name, term in terms.items():
        assert term.item() == pytest.approx(exact[name].item(), rel=0.05), name
