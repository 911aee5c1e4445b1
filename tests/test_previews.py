from __future__ import annotations

import numpy as np
import pytest
import torch

from spwnet.descriptors import network_input
from spwnet.filters import interpolated
from spwnet.images import Image
from spwnet.prediction import prepare_image
from spwnet.preparation import measure
from spwnet.presets import make_settings
from spwnet.previews import preview, reconstruct, snapshot
from spwnet.trained import TrainedModel, make_network
from tests.conftest import TINY, picture


@pytest.mark.parametrize("normalise", ["standardise", "range"])
def test_reconstruction_is_in_the_range_of_the_image(normalise):
    settings = make_settings(overrides={**TINY, "images.normalise": normalise})
    image = Image(picture(0), "a", rgb=True)
    normalisation = measure([image], settings.images)
    prepared, _ = prepare_image(image, settings, normalisation)
    network = make_network(settings, 3).eval()
    model = TrainedModel(network, settings, normalisation, {})
    pixels = network_input(prepared, "cpu", settings.model)
    shown = reconstruct(model, prepared)
    assert shown.shape == prepared.unit.shape
    assert 0 <= shown.min() <= shown.max() <= 1
    with torch.no_grad():
        raw = interpolated(network(pixels)[1][0], settings.model.reduction, (40, 52)).permute(1, 2, 0).numpy()
    if normalise == "standardise":
        raw = raw * np.array(normalisation.std) + np.array(normalisation.mean)
    np.testing.assert_allclose(shown, np.clip(raw, 0, 1), atol=1e-5)


def test_preview_has_a_row_for_each_image_and_a_column_for_what_there_is():
    unit = picture(0).astype(np.float32) / 255
    labels = np.arange(40 * 52).reshape(40, 52) % 3
    names = [f"p{k}" for k in range(6)]
    one = preview(snapshot(1, names, [unit], [unit], [labels], n_classes=3))
    many = preview(snapshot(1, names, [unit] * 6, [unit] * 6, [labels] * 6, n_classes=3))
    untrained = preview(snapshot(1, names, [unit], None, [labels], n_classes=3))
    inputs = preview(snapshot(1, names, [unit]))
    assert one.shape[1] == many.shape[1] > 3 * 52
    assert 3 * 52 > untrained.shape[1] > 2 * 52 > inputs.shape[1]
    assert 40 * 5 + 100 > many.shape[0] > 40 * 4


def test_a_snapshot_counts_each_class_and_draws_it_in_its_colour():
    unit = np.zeros((4, 6, 1), np.float32)
    labels = [np.repeat([[0, 0, 0, 0, 0, 2]], 4, 0), np.full((4, 6), 2)]
    shot = snapshot(7, ["a", "b"], [unit, unit], None, labels, n_classes=5, provisional=True)
    assert (shot.step, shot.provisional) == (7, True)
    assert [(row.name, row.sizes) for row in shot.rows] == [("a", {0: 20, 2: 4}), ("b", {2: 24})]
    assert list(shot.shares) == [2, 0]
    assert shot.shares[2] == pytest.approx(28 / 48)
    assert shot.colours == {0: "#0072b2", 2: "#cc79a7"}
    assert shot.rows[0].input.tolist() == np.zeros((4, 6, 3)).tolist()
    assert (shot.rows[1].labels == shot.rows[1].labels[0, 0]).all()
    assert snapshot(0, ["a"], [unit]).shares == {}
