from __future__ import annotations

import numpy as np
import pytest
import torch

from spwnet import prediction
from spwnet.codebook import fit_codebook
from spwnet.config import make_settings
from spwnet.descriptors import handcrafted, kinds
from spwnet.graph import build_graph
from spwnet.images import Image, open_images
from spwnet.prediction import describe, predict, predict_all, prepare_image
from spwnet.preparation import measure
from spwnet.runs import TrainedModel, make_network
from tests.conftest import TINY, picture


def setting(**overrides):
    return make_settings(overrides={**TINY, **overrides})


def ready(settings, *images):
    normalisation = measure(images, settings.images)
    network = make_network(settings, images[0].pixels.shape[-1]).eval()
    pairs = [prepare_image(image, settings, normalisation) for image in images]
    return TrainedModel(network, settings, normalisation, {}), pairs


@pytest.mark.parametrize("shape", [(40, 52), (33, 70), (5, 90)])
@pytest.mark.parametrize("method", ["slic", "none"])
def test_any_size_is_labelled_to_the_last_pixel(shape, method):
    settings = setting(**{"superpixels.method": method})
    model, [(prepared, superpixels)] = ready(settings, Image(picture(0, *shape), "a", rgb=True))
    labels = predict(model.network, prepared, superpixels, "argmax_of_mean", "float32")
    assert labels.shape == shape
    assert labels.dtype == np.int32
    if superpixels is not None:
        for i in range(superpixels.count):
            assert len(np.unique(labels[superpixels.labels == i])) == 1


def test_dense_labels_are_the_arg_max_of_each_pixel():
    settings = setting(**{"superpixels.method": "none"})
    model, [(prepared, _)] = ready(settings, Image(picture(0), "a", rgb=True))
    with torch.inference_mode():
        features = model.network.encode(torch.from_numpy(prepared.network).permute(2, 0, 1)[None])
    expected = features[0].argmax(0).numpy()
    assert np.mean(predict(model.network, prepared, None, "argmax_of_mean", "float32") == expected) > 0.999


def test_user_superpixels_in_the_size_of_the_input_or_the_working_size():
    settings = setting(**{"images.scale": 0.5, "images.margin": 4, "superpixels.method": "labels"})
    image = Image(picture(0), "a", rgb=True)
    normalisation = measure([image], settings.images)
    whole = np.arange(40)[:, None] // 8 * 100 + np.arange(52) // 8
    prepared, from_input = prepare_image(image, settings, normalisation, whole)
    assert prepared.unit.shape[:2] == (16, 22)
    assert from_input is not None
    assert from_input.labels.shape == (16, 22)
    _, from_working = prepare_image(image, settings, normalisation, prepared.frame.bring(whole))
    assert from_working is not None
    np.testing.assert_array_equal(from_input.labels, from_working.labels)


def test_a_stream_equals_single_images_and_keeps_the_size_of_the_input():
    settings = setting(**{"images.scale": 0.5, "images.margin": 3})
    arrays = [picture(0), picture(1, 33, 70), picture(2)]
    source = open_images(arrays)
    model, _ = ready(settings, *(source[i] for i in range(3)))
    stream = list(predict_all(model, source, [2, 0, 1], settings.labels))
    assert [p.name for p in stream] == [source.names[i] for i in (2, 0, 1)]
    for found, index in zip(stream, (2, 0, 1), strict=True):
        assert found.labels.shape == arrays[index].shape[:2]
        assert found.picture is None
        [alone] = predict_all(model, source, [index], settings.labels)
        np.testing.assert_array_equal(found.labels, alone.labels)
    assert list(predict_all(model, source, [], settings.labels)) == []


def test_pictures_of_large_images_are_thinned(monkeypatch):
    monkeypatch.setattr(prediction, "MOST_PICTURE_PIXELS", 40 * 52 // 4)
    settings = setting()
    source = open_images([picture(0)])
    model, _ = ready(settings, source[0])
    [found] = predict_all(model, source, [0], settings.labels, pictures=True)
    assert found.stride == 2
    np.testing.assert_array_equal(found.picture, picture(0)[::2, ::2])


def test_cleaning_is_applied():
    settings = setting(**{"labels.merge": [[0, 1, 2, 3]]})
    source = open_images([picture(0)])
    model, _ = ready(settings, source[0])
    [found] = predict_all(model, source, [0], settings.labels)
    assert set(np.unique(found.labels)) == {0}


@pytest.mark.parametrize("method", ["slic", "none"])
def test_codebook_labels_are_the_nearest_centres_of_the_descriptors(method):
    settings = setting(**{"superpixels.method": method})
    model, [(prepared, superpixels)] = ready(settings, Image(picture(0), "a", rgb=True))
    descriptors = describe(model.network, prepared, superpixels, "float32")
    assert descriptors.rows.shape == (
        superpixels.count if superpixels else 40 * 52,
        sum(kind.size for kind in kinds(4, 3)),
    )
    codebook = fit_codebook([descriptors], kinds(4, 3), 3)
    labels = predict(model.network, prepared, superpixels, "codebook", "float32", codebook)
    nodes = codebook.assign(descriptors)
    expected = nodes[superpixels.labels] if superpixels else nodes.reshape(40, 52)
    np.testing.assert_array_equal(labels, expected)
    assert set(np.unique(labels)) == {0, 1, 2}


def test_descriptors_are_pooled_evidence():
    settings = setting()
    model, [(prepared, superpixels)] = ready(settings, Image(picture(0), "a", rgb=True))
    assert superpixels is not None
    rows, edges = describe(model.network, prepared, superpixels, "float32")
    evidence = handcrafted(prepared.unit, rgb=True)
    for i in (0, superpixels.count - 1):
        np.testing.assert_allclose(rows[i, 4:], evidence[superpixels.labels == i].mean(0), rtol=1e-3, atol=1e-2)
    np.testing.assert_array_equal(edges, build_graph(superpixels, prepared.unit).edges)
