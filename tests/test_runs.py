from __future__ import annotations

import json
import time

import numpy as np
import pytest
import safetensors.torch
import torch

import spwnet
from spwnet.config import LabelSettings
from spwnet.errors import OutputError, RunError, SettingsError
from spwnet.runs import RUN_FORMAT, Run
from spwnet.trained import make_network


def edit(run, **changes):
    info = json.loads(run.description.read_text())
    for name, value in changes.items():
        place = info
        *path, key = name.split("__")
        for part in path:
            place = place[part]
        place[key] = value
    run.description.write_text(json.dumps(info))


def test_files_of_a_run(run):
    names = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file()}
    assert names == {
        "run.json", "weights.safetensors", "codebook.safetensors", "history.jsonl", "checkpoint.safetensors",
        "previews/step_000001.png", "gallery/gallery.json", "gallery/00.jpg", "gallery/00_labels.png",
        "gallery/00_uncertainty.png",
    }  # fmt: skip
    info, settings, normalisation = run.read()
    assert info["format"] == RUN_FORMAT
    assert info["finished"] is True
    assert info["channels"] == len(normalisation.mean) == 3
    assert info["spwnet"] == spwnet.__version__
    assert {"torch", "numpy", "python", "platform", "time", "precision", "device", "seconds"} <= set(info)
    assert settings.model.classes == 4
    assert len(run.read_history()) == 1


def test_loading_back_gives_the_same_network(run):
    a, b = run.load(), run.load()
    assert a.fingerprint == b.fingerprint
    with torch.no_grad():
        next(b.network.parameters()).add_(1e-3)
    assert a.fingerprint != b.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format": RUN_FORMAT + 1},
            rf"format {RUN_FORMAT} at .* but got format {RUN_FORMAT + 1}; update spwnet",
        ),
        ({"format": RUN_FORMAT - 1}, "train the run again"),
        ({"format": "x"}, "has no format number"),
        ({"channels": 7}, "expected the number of channels"),
        ({"channels": "3"}, "expected the number of channels"),
        ({"settings__model__classes": 6}, "of shape .* but got .* of different runs"),
        ({"settings__model__n_blocks": 3}, "is missing; weights and run.json are of different runs"),
        ({"settings__model__n_blocks": 1}, "is not part of it; weights and run.json are of different runs"),
        ({"settings__seed": -1}, "expected valid settings in .*'seed'"),
        ({"normalisation__std": [0, 1, 1]}, "expected a positive .std. in each channel"),
        ({"normalisation": 3}, "normalisation"),
    ],
)
def test_a_run_that_does_not_fit(run, changes, message):
    edit(run, **changes)
    with pytest.raises(RunError, match=message):
        run.load()


@pytest.mark.parametrize("key", ["settings", "normalisation", "channels"])
def test_a_part_that_is_missing(run, key):
    info = json.loads(run.description.read_text())
    del info[key]
    run.description.write_text(json.dumps(info))
    with pytest.raises(RunError, match=f"expected '{key}'"):
        run.load()


@pytest.mark.parametrize("content", ["{", "[]", '{"a": ' * 100_000, "\x00"])
def test_a_damaged_description(run, content):
    run.description.write_text(content)
    with pytest.raises(RunError, match=r"expected a (readable|description)"):
        run.load()


def test_no_run_and_no_weights(run, tmp_path):
    with pytest.raises(RunError, match=r"expected a run directory with a run.json at .*; train one first"):
        Run(tmp_path).load()
    edit(run, finished=False)
    with pytest.raises(RunError, match="training did not finish: go on with it by `--resume`"):
        run.load()


def test_damaged_weights(run):
    run.weights.write_bytes(run.weights.read_bytes()[:100])
    with pytest.raises(RunError, match="expected readable weights"):
        run.load()


def test_a_pickle_is_never_loaded(run):
    torch.save(make_network(run.read()[1], 3).state_dict(), run.weights)
    with pytest.raises(RunError, match="expected readable weights"):
        run.load()


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("file", ["weights", "codebook"])
def test_weights_of_another_type_do_not_pass_unseen(run, file, dtype):
    path = getattr(run, file)
    tensors = safetensors.torch.load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.dtype == torch.float32)
    tensors[name] = tensors[name].to(dtype)
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(RunError, match=rf"expected '{name}' as float32.* but got {dtype}".replace("torch.", "")):
        run.load()


def test_weights_of_another_shape(run):
    tensors = safetensors.torch.load_file(run.weights)
    tensors[next(iter(tensors))] = torch.zeros(3, 3)
    safetensors.torch.save_file(tensors, run.weights)
    with pytest.raises(RunError, match="of different runs"):
        run.load()


def test_create_refuses_what_is_there_and_overwrite_clears_only_its_own_files(run):
    with pytest.raises(OutputError, match="overwrite"):
        run.create()
    foreign = run.folder / "notes.txt"
    foreign.write_text("mine")
    run.report.write_text("of the earlier model")
    run.create(overwrite=True)
    assert foreign.read_text() == "mine"
    assert not run.weights.exists()
    assert not run.report.exists()
    assert not list(run.previews.iterdir())


def test_a_folder_of_a_run_that_crashed_as_it_began_is_taken(tmp_path):
    (tmp_path / "previews").mkdir()
    run = Run(tmp_path)
    run.create()
    assert run.previews.is_dir()


def checkpoint(run):
    settings = run.read()[1]
    network = make_network(settings, 3)
    optimiser = torch.optim.AdamW(network.parameters())
    return network, optimiser


def test_a_checkpoint_comes_back_with_the_time_that_it_took(run):
    network, optimiser = checkpoint(run)
    run.earlier, run.started = 100.0, time.monotonic() - 50
    run.save_checkpoint(network, optimiser, 1)
    again = Run(run.folder)
    assert again.load_checkpoint(network, optimiser) == 1
    assert 150 <= again.earlier < 200


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({}, {}),
        ({}, {"step": "x"}),
        ({"optimiser.x.exp_avg": torch.zeros(1)}, {"step": "1"}),
        ({"optimiser.0.exp_avg": torch.zeros(1), "optimiser.0.exp_avg_sq": torch.zeros(1)}, {"step": "1"}),
        ({"optimiser.0.step": torch.zeros(1)}, {"step": "1"}),
    ],
)
def test_a_checkpoint_that_is_none_is_told(run, tensors, metadata):
    network, optimiser = checkpoint(run)
    weights = {f"network.{name}": value.contiguous() for name, value in network.state_dict().items()}
    safetensors.torch.save_file(weights | tensors, run.checkpoint, metadata=metadata)
    with pytest.raises(RunError, match=r"expected a checkpoint of this run at .*; start again by `--overwrite`"):
        run.load_checkpoint(network, optimiser)


def test_a_history_without_steps_is_told(run):
    network, optimiser = checkpoint(run)
    run.history.write_text('{"total": 1}\n')
    with pytest.raises(RunError, match="expected a checkpoint of this run"):
        run.load_checkpoint(network, optimiser)


@pytest.mark.parametrize("images", [[{}], [3], 3])
def test_training_images_that_are_none_are_told_on_resuming(run, images):
    from tests.conftest import picture

    edit(run, images=images)
    with pytest.raises(RunError, match=r"expected the training images in .*; start again by `--overwrite`"):
        spwnet.train([picture(0)], run.folder, settings=run.read()[1], resume=True)


def test_undoing_passes_over_what_a_crash_left(run):
    model = run.load()
    before = run.class_map(model)
    after = before.merge([0, 1], name="both")
    run.save_classes(after)
    # Remembered, but not followed by what was to come.
    with run.earlier_classes.open("a") as file:
        file.write(json.dumps({"classes": after.to_toml()}) + "\n")
    assert run.undo_classes()
    assert run.class_map(model) == before
    assert not run.undo_classes()


def test_classes_are_changed_by_one_at_a_time(run):
    from spwnet.storage import claimed

    classes = run.class_map(run.load()).merge([0, 1])
    with claimed(run.folder), pytest.raises(OutputError, match="another one writes to it"):
        run.save_classes(classes)
    run.save_classes(classes)
    assert run.classes.exists()


def test_classes_by_name_are_of_the_mode_of_training(run):
    model = run.load()
    named = model.class_map().labels(LabelSettings(mode="argmax_of_mean"))
    with pytest.raises(SettingsError, match=r"expected `labels.mode = 'codebook'` for classes by name"):
        model.members(named)


def test_a_number_of_classes_is_for_the_codebook_alone(run):
    model = run.load()
    with pytest.raises(SettingsError, match=r"expected the 4 classes of the network .* but got 3; merge some"):
        model.labels(LabelSettings(mode="argmax_of_mean", classes=3))
    assert model.n_classes(model.labels(LabelSettings(mode="argmax_of_mean", classes=4))) == 4


def test_initial_weights_depend_on_the_seed_alone(run):
    settings = run.read()[1]
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    a = make_network(settings, 3).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    b = make_network(settings, 3).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    other = make_network(settings.model_copy(update={"seed": 9}), 3).state_dict()
    assert not all(np.array_equal(a[name], other[name]) for name in a)
