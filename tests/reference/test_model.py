from __future__ import annotations

import copy

import numpy as np
import torch

from spwnet.model import WNet
from tests.reference.published import load, state_dict


def test_network_equals_published_in_both_modes():
    golden = load("wnet_forward.npz")
    model = WNet(channels=3, classes=5, ch_mul=4, n_blocks=3)
    state = state_dict(golden, "state/", n_blocks=3)
    model.load_state_dict(state)
    assert sum(p.numel() for p in model.parameters()) == golden["parameters"]

    x = torch.from_numpy(golden["input"])
    evaluated = copy.deepcopy(model).eval()
    with torch.no_grad():
        trained = copy.deepcopy(model).train()(x)
        kept = evaluated(x)
    for mode, outputs in {"train": trained, "eval": kept}.items():
        for part, output in zip(("encoder", "decoder"), outputs, strict=True):
            np.testing.assert_allclose(output.numpy(), golden[f"{mode}_{part}"], rtol=1e-5, atol=1e-5)


def test_network_of_the_published_preset_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = WNet(channels=3, classes=32, ch_mul=64, n_blocks=4)
    assert sum(p.numel() for p in model.parameters()) == 19_242_019
