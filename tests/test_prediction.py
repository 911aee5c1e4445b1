from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from spwnet.codebook import Descriptors, coarser, fit_codebook
from spwnet.config import LabelSettings
from spwnet.descriptors import handmade, network_input
from spwnet.errors import InputError
from spwnet.filters import interpolated
from spwnet.graph import build_graph
from spwnet.images import Image, open_images
from spwnet.prediction import describe, predict, predict_all, prepare_image
from spwnet.preparation import measure, perceptual, restore
from spwnet.presets import make_settings
from spwnet.trained import TrainedModel, evidence_kinds, make_network
from tests.conftest import TINY, picture

ARG_MAX = LabelSettings(mode="argmax_of_mean")


def setting(**overrides):
    return make_settings(overrides={**TINY, **overrides})


def graph_of(prepared, superpixels):
    return None if superpixels is None else build_graph(superpixels, prepared.unit)


def ready(settings, *images):
    normalisation = measure(images, settings.images)
    network = make_network(settings, images[0].pixels.shape[-1]).eval() if settings.learns else None
    pairs = [prepare_image(image, settings, normalisation) for image in images]
    return TrainedModel(network, settings, normalisation, {}), pairs


def labelled(settings):
    """One picture, its superpixels, and a model with a codebook fitted on them."""
    model, [(prepared, superpixels)] = ready(settings, Image(picture(0), "a", rgb=True))
    graph = graph_of(prepared, superpixels)
    descriptors = describe(model.network, prepared, graph, settings, "cpu")
    codebook = fit_codebook([descriptors], evidence_kinds(settings, 3), settings.codebook.finest)
    return replace(model, codebook=codebook), prepared, superpixels, graph, descriptors


@pytest.mark.parametrize("shape", [(40, 52), (33, 70), (5, 90)])
@pytest.mark.parametrize("method", ["slic", "none"])
def test_any_size_is_labelled_to_the_last_pixel(shape, method):
    settings = setting(**{"superpixels.method": method})
    model, [(prepared, superpixels)] = ready(settings, Image(picture(0, *shape), "a", rgb=True))
    labels, uncertainty = predict(model, prepared, graph_of(prepared, superpixels), ARG_MAX)
    assert labels.shape == uncertainty.shape == shape
    assert labels.dtype == np.int32
    if superpixels is not None:
        for i in range(superpixels.count):
            assert len(np.unique(labels[superpixels.labels == i])) == 1


def test_dense_labels_are_the_arg_max_of_each_pixel():
    settings = setting(**{"superpixels.method": "none"})
    model, [(prepared, _)] = ready(settings, Image(picture(0), "a", rgb=True))
    with torch.inference_mode():
        cells = model.network.encode(network_input(prepared, "cpu", settings.model))[0]
        features = interpolated(cells, settings.model.reduction, (40, 52))[None]
    expected = features[0].argmax(0).numpy()
    labels, uncertainty = predict(model, prepared, None, ARG_MAX)
    assert np.mean(labels == expected) > 0.999
    best = features[0].softmax(0).sort(0, descending=True).values
    np.testing.assert_allclose(uncertainty, (best[1] / best[0]).numpy(), atol=1e-4)


def test_user_superpixels_in_the_size_of_the_input_or_the_working_size():
    settings = setting(**{"images.scale": 0.5, "images.margin": 4, "superpixels.method": "labels"})
    image = Image(picture(0), "a", rgb=True)
    normalisation = measure([image], settings.images)
    whole = np.arange(40)[:, None] // 8 * 100 + np.arange(52) // 8
    prepared, from_input = prepare_image(image, settings, normalisation, whole)
    assert prepared.unit.shape[:2] == (16, 22)
    assert from_input is not None
    assert from_input.labels.shape == (16, 22)
    _, from_working = prepare_image(image, settings, normalisation, prepared.frame.to_working(whole))
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


def test_an_image_that_cannot_be_prepared_is_told_and_the_others_go_on():
    settings = setting(**{"images.margin": 5})
    images = [picture(0), picture(1)[:8, :8], picture(2)]
    model, *_ = labelled(setting())
    model = replace(model, settings=settings)
    first, error, last = predict_all(model, open_images(images), range(3), settings.labels)
    assert "larger than the margins of 5 pixels" in str(error)
    assert (first.name, last.name) == ("image_0000", "image_0002")

    def superpixels(index):
        raise InputError(f"no superpixels of {index}")

    [error] = predict_all(model, open_images(images), [2], settings.labels, superpixels)
    assert str(error) == "no superpixels of 2"


def test_pictures_of_large_images_are_thinned():
    settings = setting()
    source = open_images([picture(0)])
    model, _ = ready(settings, source[0])
    [found] = predict_all(model, source, [0], settings.labels, most_picture_pixels=40 * 52 // 4)
    assert found.stride == 2
    np.testing.assert_array_equal(found.picture, picture(0)[::2, ::2])


def test_cleaning_is_applied():
    settings = setting(**{"labels.merge": [[0, 1, 2, 3]]})
    source = open_images([picture(0)])
    model, _ = ready(settings, source[0])
    [found] = predict_all(model, source, [0], settings.labels)
    assert set(np.unique(found.labels)) == {0}


@pytest.mark.parametrize("evidence", ["all", "handmade", "colour", "learned"])
@pytest.mark.parametrize("method", ["slic", "none"])
def test_codebook_labels_are_the_nearest_centres_of_the_descriptors(method, evidence):
    settings = setting(**{"superpixels.method": method, "codebook.evidence": evidence})
    model, prepared, superpixels, graph, descriptors = labelled(settings)
    assert (model.network is None) == (evidence in ("handmade", "colour"))
    size = sum(kind.size for kind in evidence_kinds(settings, 3))
    assert descriptors.rows.shape == (superpixels.count if superpixels else 40 * 52, size)
    labels, uncertainty = predict(model, prepared, graph, settings.labels)
    nodes, doubt = model.codebook.assign(descriptors, np.arange(4))
    for image, rows in ((labels, nodes), (uncertainty, doubt)):
        np.testing.assert_array_equal(image, rows[superpixels.labels] if superpixels else rows.reshape(40, 52))
    assert set(np.unique(labels)) == {0, 1, 2, 3}


def test_descriptors_are_pooled_evidence():
    model, prepared, superpixels, _, (rows, edges, contacts) = labelled(setting())
    with torch.inference_mode():
        learned = model.network.classify(network_input(prepared, "cpu", model.settings.model))[0]
    image = torch.from_numpy(perceptual(prepared.unit, rgb=True)).permute(2, 0, 1)
    # each value of a cell counts for all its pixels; colours are the pixels' own
    cells = torch.cat([learned, handmade(image, 2)[3:]]).repeat_interleave(2, 1).repeat_interleave(2, 2)
    evidence = torch.cat([cells[:4], image, cells[4:]]).numpy()
    for i in (0, superpixels.count - 1):
        expected = evidence[:, superpixels.labels == i].mean(1)
        np.testing.assert_allclose(rows[i], expected, rtol=1e-3, atol=1e-2)
    graph = build_graph(superpixels, prepared.unit)
    np.testing.assert_array_equal(edges, graph.edges)
    np.testing.assert_array_equal(contacts, graph.contacts)


def test_fewer_classes_are_a_lookup_in_the_tree():
    settings = setting(**{"codebook.finest": 12})
    model, prepared, _, graph, _ = labelled(settings)
    finest, _ = predict(model, prepared, graph, settings.labels.model_copy(update={"classes": 12}))
    assert len(np.unique(finest)) == 12
    for k in (1, 2, 7):
        labels, uncertainty = predict(model, prepared, graph, settings.labels.model_copy(update={"classes": k}))
        np.testing.assert_array_equal(labels, coarser(model.codebook.parents, k)[finest])
        assert 0 < uncertainty.max() <= 1


def test_no_doubt_between_classes_that_are_merged():
    settings = setting()
    model, prepared, _, graph, _ = labelled(settings)
    _, before = predict(model, prepared, graph, settings.labels)
    merged, after = predict(model, prepared, graph, settings.labels.model_copy(update={"merge": ((0, 1, 2),)}))
    assert set(np.unique(merged)) == {0, 3}
    assert (after <= before).all()
    assert after.mean() < before.mean()


def test_uncertainty_comes_in_the_size_of_the_input():
    settings = setting(**{"images.scale": 0.5, "images.margin": 3})
    model, prepared, _, graph, _ = labelled(settings)
    [found] = predict_all(model, open_images([picture(0)]), [0], settings.labels)
    np.testing.assert_array_equal(
        found.uncertainty, restore(predict(model, prepared, graph, settings.labels)[1], prepared.frame)
    )


def test_uncertain_superpixels_are_wrong_more_often():
    """Of two noisy kinds of pixels, leaving out the uncertain leaves fewer errors."""
    rng = np.random.default_rng(0)
    truth = np.arange(4000) // 5 % 2
    rows = (truth[:, None] * 2.0 + rng.normal(0, 1, (4000, 2))).astype(np.float32)
    i = np.arange(3999)
    edges = np.concatenate([[i, i + 1], [i + 1, i]], axis=1)
    descriptors = Descriptors(rows, edges)
    book = fit_codebook([Descriptors(rows)], [(2, 1.0)], 2)
    classes, uncertainty = book.assign(descriptors, np.arange(2))
    wrong = (classes != truth) if np.mean(classes != truth) < 0.5 else (classes == truth)
    order = np.argsort(uncertainty)
    kept = [wrong[order[: int(4000 * share)]].mean() for share in (1, 0.8, 0.5)]
    assert kept[0] > 1.5 * kept[1] > 2 * kept[2]
