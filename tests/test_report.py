from __future__ import annotations

import numpy as np
import pytest
import torch

from spwnet.classes import palette
from spwnet.config import make_settings
from spwnet.descriptors import network_input
from spwnet.filters import interpolated
from spwnet.images import Image
from spwnet.prediction import prepare_image
from spwnet.preparation import measure
from spwnet.report import preview, reconstruct
from spwnet.runs import TrainedModel, make_network
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
    one = preview([unit], [unit], [labels], palette(3))
    many = preview([unit] * 4, [unit] * 4, [labels] * 4, palette(3))
    untrained = preview([unit], None, [labels], palette(3))
    assert one.shape[1] == many.shape[1] > 3 * 52
    assert 3 * 52 > untrained.shape[1] > 2 * 52
    assert 40 * 5 + 100 > many.shape[0] > 40 * 4
