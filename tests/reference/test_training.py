from __future__ import annotations

import numpy as np
import torch

from spwnet.graph import build_graph
from spwnet.model import WNet
from spwnet.presets import make_settings
from spwnet.superpixels import superpixels_from_labels
from spwnet.training import TrainingImage, step
from tests.reference.published import load, state_dict

SETTINGS = make_settings(
    overrides={
        "model": {"classes": 4, "ch_mul": 4, "n_blocks": 2, "final_norm": False},
        "losses": {
            "image": 1,
            "cut": 0.5,
            "similarity": 0.1,
            "continuity": 0.2,
            "tau_cut": -1,
            "tau_continuity": 1,
            "target": "own",
        },
        "training.learning_rate": 1e-3,
    }
)
TERMS = {
    "total": "loss",
    "image": "loss_rc_image",
    "cut": "loss_cut",
    "similarity": "loss_sim",
    "continuity": "loss_con",
}


def test_five_steps_equal_published():
    golden = load("train_five_steps.npz")
    image = golden["image"]
    graph = build_graph(superpixels_from_labels(golden["superpixels"], image.shape[:2]), image)
    batch = TrainingImage(
        pixels=torch.from_numpy(image).permute(2, 0, 1)[None],
        channels=3,
        patch_region=((0, 32), (0, 48)),
        graph=graph,
        cut=graph.cut_weights(SETTINGS.losses.tau_cut),
        continuity=graph.continuity_weights(SETTINGS.losses.tau_continuity),
    )
    network = WNet(3, 4, ch_mul=4, n_blocks=2)
    network.load_state_dict(state_dict(golden, "initial/", n_blocks=2))
    optimiser = torch.optim.Adam(network.parameters(), lr=SETTINGS.training.learning_rate)
    rng = np.random.default_rng(0)

    history = [step(network, optimiser, [batch], SETTINGS, rng) for _ in range(5)]

    for ours, published in TERMS.items():
        np.testing.assert_allclose([terms[ours] for terms in history], golden[f"history/{published}"], rtol=1e-4)
    published_final = state_dict(golden, "final/", n_blocks=2)
    for name, value in network.state_dict().items():
        if not undetermined(name):
            expected = published_final[name].numpy()
            np.testing.assert_allclose(value.numpy(), expected, rtol=1e-4, atol=1e-4, err_msg=name)

    # What the undetermined ones leave open has no effect: the two trained networks compute the same.
    published_network = WNet(3, 4, ch_mul=4, n_blocks=2)
    published_network.load_state_dict(published_final)
    with torch.no_grad():
        for ours, theirs in zip(network(batch.pixels), published_network(batch.pixels), strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-4)


def undetermined(name: str) -> bool:
    """Biases that a batch normalisation takes out again, and its running mean, which holds them.

    Their true gradient is zero; Adam divides rounding noise by its own size, so they wander at random.
    """
    in_block = ".down." in name or ".merge." in name
    return in_block and (name.endswith("running_mean") or (".conv" in name and name.endswith(".bias")))


def test_undetermined_biases_have_no_gradient():
    golden = load("train_five_steps.npz")
    network = WNet(3, 4, ch_mul=4, n_blocks=2).double()
    network.load_state_dict(state_dict(golden, "initial/", n_blocks=2))
    image = torch.from_numpy(golden["image"]).double().permute(2, 0, 1)[None]
    features = network.norm(network.encoder(image))
    (features.square().mean() + network.decoder(features.softmax(1)).square().mean()).backward()
    gradients = {name: p.grad.abs().max().item() for name, p in network.named_parameters()}
    zero = {name for name, size in gradients.items() if size < 1e-12}
    assert zero == {name for name in gradients if undetermined(name)}
