from __future__ import annotations

import numpy as np
import pytest
from skimage.color import rgb2lab

from spwnet.descriptors import handcrafted, kinds
from tests.conftest import picture


@pytest.mark.parametrize(("channels", "rgb"), [(3, True), (3, False), (1, False), (5, False)])
def test_sizes_agree_with_the_kinds(channels, rgb):
    evidence = handcrafted(picture(0, channels=channels).astype(np.float32) / 255, rgb=rgb)
    assert evidence.shape == (40, 52, sum(kind.size for kind in kinds(7, channels)) - 7)
    assert evidence.dtype == np.float32


def test_colour_comes_first():
    unit = picture(0).astype(np.float32) / 255
    np.testing.assert_allclose(handcrafted(unit, rgb=True)[..., :3], rgb2lab(unit), atol=1e-3)
    np.testing.assert_allclose(handcrafted(unit, rgb=False)[..., :3], 100 * unit, atol=1e-3)


def test_contrast_tells_textures_of_equal_mean_apart():
    rng = np.random.default_rng(0)
    unit = np.full((48, 96, 1), 0.5, np.float32)
    unit[:, 48:] += rng.normal(0, 0.1, (48, 48, 1)).astype(np.float32)
    evidence = handcrafted(unit, rgb=False)
    smooth, rough = evidence[10:38, :20].reshape(-1, 5), evidence[10:38, 63:81].reshape(-1, 5)
    assert (rough[:, 2:].mean(0) - smooth[:, 2:].mean(0) > 1).all()
    np.testing.assert_allclose(smooth[:, 2:], 0, atol=0.05)


def test_volumes():
    assert handcrafted(np.random.default_rng(0).random((6, 8, 10, 2), np.float32), rgb=False).shape == (6, 8, 10, 10)
