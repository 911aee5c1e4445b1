from __future__ import annotations

import pytest
import torch

from spwnet.model import WNet


@pytest.mark.parametrize(("ndim", "shape"), [(2, (37, 50)), (2, (16, 16)), (2, (3, 30)), (3, (9, 14, 11))])
@pytest.mark.parametrize("channels", [1, 4])
def test_any_size_any_channels_in_2d_and_3d(ndim, shape, channels):
    network = WNet(channels, 5, ch_mul=4, n_blocks=2, ndim=ndim, final_norm=True).eval()
    x = torch.randn(2, channels, *shape)
    features, reconstruction = network(x)
    assert features.shape == (2, 5, *shape)
    assert reconstruction.shape == x.shape
    assert torch.equal(network.encode(x), features)


def test_padding_repeats_the_border_and_changes_no_size_that_fits():
    network = WNet(1, 2, ch_mul=2, n_blocks=2)
    x = torch.arange(15.0).reshape(1, 1, 3, 5)
    padded = network._taken_in(x)
    assert padded.shape == (1, 1, 4, 8)
    assert torch.equal(padded[..., 3, :5], x[..., 2, :])
    assert torch.equal(padded[..., :3, 7], x[..., :, 4])
    fits = torch.zeros(1, 1, 4, 8)
    assert network._taken_in(fits) is fits


@pytest.mark.parametrize("n_blocks", [1, 2, 3])
def test_middle_width_and_separable_inner_blocks(n_blocks):
    encoder = WNet(3, 4, ch_mul=4, n_blocks=n_blocks).encoder
    assert encoder.down[-1].norm2.num_features == 4 * 2**n_blocks
    separable = [isinstance(block.conv1, torch.nn.Sequential) for block in (*encoder.down, *encoder.merge)]
    assert separable == [False] + [True] * (2 * n_blocks - 1) + [False]
    assert len(encoder.up) == n_blocks


def test_final_norm_standardises_features_in_training():
    network = WNet(1, 3, ch_mul=4, n_blocks=1, final_norm=True).train()
    features, _ = network(torch.randn(2, 1, 16, 16))
    assert torch.allclose(features.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(features.var((0, 2, 3), unbiased=False), torch.ones(3), atol=1e-2)
    assert not any(parameter.requires_grad for parameter in network.norm.parameters())


def test_every_parameter_gets_a_gradient():
    network = WNet(2, 3, ch_mul=2, n_blocks=2)
    features, reconstruction = network(torch.randn(1, 2, 20, 24))
    (features.square().sum() + reconstruction.square().sum()).backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(("ndim", "shape"), [(2, (37, 50)), (2, (3, 30)), (3, (9, 14, 11))])
def test_with_evidence_gives_out_the_size_that_came_in(ndim, shape):
    network = WNet(2, 5, ch_mul=4, n_blocks=2, evidence=3, ndim=ndim, final_norm=True).eval()
    x = torch.randn(1, 5, *shape)
    features, reconstruction = network(x)
    assert features.shape == (1, 5, *shape)
    assert reconstruction.shape == (1, 2, *shape)
    probabilities = network.classify(x)
    assert probabilities.shape == features.shape
    torch.testing.assert_close(probabilities.sum(1), torch.ones(1, *shape))
    torch.testing.assert_close(network.classify(x), torch.softmax(2 * network.encode(x), 1))


def test_evidence_is_scaled_by_what_it_is_over_all_images():
    network = WNet(1, 2, ch_mul=2, n_blocks=1, evidence=2)
    images = [torch.randn(1, 3, 20, 30) * 5 + shift for shift in (0.0, 40.0)]
    network.scale_evidence(images)
    pixels = torch.cat([image[:, 1:].flatten(2) for image in images], 2)[0]
    torch.testing.assert_close(network.evidence_mean.flatten(), pixels.mean(1))
    torch.testing.assert_close(network.evidence_std.flatten(), pixels.std(1), rtol=1e-2, atol=0)
    taken = network._taken_in(images[1])
    torch.testing.assert_close(taken[:, :1], images[1][:, :1])
    assert taken[:, 1:].abs().max() <= 5
    assert "evidence_mean" in network.state_dict()
