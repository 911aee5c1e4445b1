from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

import spwnet
from spwnet import cli, exporting, outputs
from spwnet.descriptors import handmade
from spwnet.errors import OutputError, SettingsError
from spwnet.filters import averaged, gaussian
from spwnet.graph import build_graph
from spwnet.images import open_images
from spwnet.prediction import describe, prepare_image
from spwnet.presets import make_settings
from tests.conftest import TINY, picture

PUBLISHED = {"images.normalise": "range", "model": {**TINY["model"], "evidence": False, "reduction": 1}}
SIZE = (46, 61)


def trained(channels=3, run=None, **changes):
    settings = make_settings(overrides={**TINY, **changes})
    return spwnet.train([picture(seed, channels=channels) for seed in range(2)], run, settings=settings)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return trained(run=tmp_path_factory.mktemp("export") / "run")


@pytest.fixture(scope="module")
def grey():
    return trained(1)


@pytest.fixture(scope="module")
def small():
    return trained(1, model={**TINY["model"], "n_blocks": 1})


@pytest.fixture(scope="module")
def published():
    return trained(**PUBLISHED)


def run(path, image):
    """Probabilities that a file gives for (B, C, H, W)."""
    return exporting._READERS[path.suffix](path.read_bytes())(image)


@pytest.mark.parametrize(
    ("which", "suffix", "size"),
    [
        *[(which, ".ts", None) for which in ("colours", "grey", "published")],
        *[("published", suffix, size) for suffix in (".pt2", ".onnx") for size in (None, SIZE)],
        # With evidence, other exports take up to minutes; the test of its parts stands for them.
        ("small", ".pt2", SIZE),
    ],
)
def test_a_file_agrees_with_prediction(which, suffix, size, request, tmp_path):
    model = request.getfixturevalue(which)
    path = tmp_path / f"model{suffix}"
    report = spwnet.export(model, path, size=size)
    assert report == spwnet.ExportReport(path, exporting.FORMATS[suffix], size, report.max_difference, 1.0)
    assert report.max_difference < 5e-5
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    if suffix == ".ts":
        assert ": Device = " not in str(torch.jit.load(path).inlined_graph)
    if suffix == ".pt2":
        assert "device" not in str(torch.export.load(path).graph)
    channels = model.info["channels"]
    if size is None:
        for shape in [(3, 33, 58), (1, 64, 32)]:
            units = np.random.default_rng(0).random((shape[0], *shape[1:], channels), np.float32)
            found = run(path, torch.from_numpy(units).movedim(-1, 1).contiguous())
            for one, unit in zip(found, units, strict=True):
                expected = exporting._predicted(model.network, model, unit)
                np.testing.assert_allclose(one.detach(), expected.detach(), atol=1e-4)
    else:
        assert run(path, torch.rand(2, channels, *size)).shape == (2, 4, *size)
        with pytest.raises(Exception, match=r"(?i)guard|invalid dimensions"):
            run(path, torch.rand(1, channels, size[0] + 1, size[1]))


class Part(torch.nn.Module):
    """One way in which evidence is computed."""

    def __init__(self, colours, compute):
        super().__init__()
        self.classifier, self.compute = exporting.Classifier(colours.network, colours), compute

    def forward(self, image):
        return self.compute(self.classifier, image)


@pytest.mark.parametrize(
    "compute",
    [
        lambda classifier, image: classifier._perceptual(image),
        lambda _, image: exporting._averaged(image, 2),
        lambda _, image: exporting._filtered(image, *(exporting._blur(length, 8, image) for length in image.shape[2:])),
        lambda _, image: torch.cat([exporting._slope(image[:, :1], axis) for axis in (2, 3)], dim=1),
        lambda _, image: exporting._orientation(image),
    ],
    ids=["perceptual", "averaged", "blur", "slope", "orientation"],
)
def test_parts_of_the_evidence_in_onnx_of_any_size(colours, compute):
    part = Part(colours, compute).eval()
    generator = torch.Generator().manual_seed(0)
    with exporting._quiet(), torch.no_grad():
        example = torch.rand(2, 3, *exporting.TRACED, generator=generator)
        read = exporting._read_onnx(exporting._write_onnx(part, example, {}, False))
        for shape in (SIZE, (33, 58)):
            image = torch.rand(1, 3, *shape, generator=generator)
            np.testing.assert_allclose(read(image), part(image), atol=1e-4)


@pytest.mark.parametrize("shape", [(46, 61), (7, 3), (1, 20), (2, 2)])
@pytest.mark.parametrize("reduction", range(1, 9))
def test_evidence_is_that_of_prediction(shape, reduction):
    images = 100 * torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(exporting._averaged(images, reduction), averaged(images, reduction), atol=1e-4)
    for image, found in zip(images, exporting._handmade(images, reduction), strict=True):
        np.testing.assert_allclose(found, handmade(image, reduction), atol=2e-3)


@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 20, 37, 44])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.9, 4.0, 8.0, 16.0, 32.0])
def test_blur_as_a_matrix(length, sigma):
    row = torch.rand(1, 1, length, generator=torch.Generator().manual_seed(0))
    found = exporting._filtered(row[None], exporting._blur(1, sigma, row), exporting._blur(length, sigma, row))
    np.testing.assert_allclose(found[0], gaussian(row, sigma), atol=1e-5)


def test_cielab_is_that_of_scikit_image(colours):
    unit = np.random.default_rng(0).random((20, 30, 3), np.float32)
    unit[:2] *= 0.05
    unit[2], unit[3] = 0, 1
    module = exporting.Classifier(colours.network, colours)
    found = module._perceptual(torch.from_numpy(unit).movedim(-1, 0)[None])[0].movedim(0, -1)
    np.testing.assert_allclose(found, rgb2lab(unit), atol=1e-3)


def test_means_over_superpixels_are_those_of_descriptors(published, tmp_path):
    spwnet.export(published, tmp_path / "model.ts")
    image = open_images([picture(0)])[0]
    prepared, superpixels = prepare_image(image, published.settings, published.normalisation)
    graph = build_graph(superpixels, prepared.unit)
    rows = describe(published.network, prepared, graph, published.settings, "cpu").rows[:, :4]
    maps = run(tmp_path / "model.ts", torch.from_numpy(prepared.unit).movedim(-1, 0)[None].contiguous())
    np.testing.assert_allclose(graph.pool(maps[0].detach()), rows, atol=1e-3)


def test_files_say_what_they_are(published, tmp_path):
    import onnx

    extra = dict.fromkeys(exporting._metadata(published, None), "")
    spwnet.export(published, tmp_path / "a.ts")
    torch.jit.load(tmp_path / "a.ts", _extra_files=(script := dict(extra)))
    spwnet.export(published, tmp_path / "a.pt2", size=SIZE)
    torch.export.load(tmp_path / "a.pt2", extra_files=(program := dict(extra)))
    spwnet.export(published, tmp_path / "a.onnx", size=SIZE)
    proto = onnx.load(tmp_path / "a.onnx", load_external_data=False)
    assert [node.name for node in (*proto.graph.input, *proto.graph.output)] == ["image", "probabilities"]
    for found in (script, program, {entry.key: entry.value for entry in proto.metadata_props}):
        found = {key: value.decode() if isinstance(value, bytes) else value for key, value in found.items()}
        assert found.pop("spwnet") == outputs.provenance()["spwnet"]
        values = {key: json.loads(value) for key, value in found.items()}
        assert make_settings(overrides=values["settings"]) == published.settings
        assert type(published.normalisation).from_json(values["normalisation"]) == published.normalisation
        assert (values["seed"], values["channels"], values["classes"]) == (0, 3, 4)
        assert values["provenance"]["torch"] == outputs.provenance()["torch"]


def test_what_cannot_be_exported_is_told(colours, tmp_path, monkeypatch):
    for name, size, message in [
        ("a.pth", None, r"expected a file named \.onnx, \.pt2, \.ts, but got 'a.pth'"),
        ("a.onnx", (0, 5), "expected a height and a width of at least 1"),
        ("a.ts", (20, 20), "expected no size for TorchScript"),
    ]:
        with pytest.raises(SettingsError, match=message):
            spwnet.export(colours, tmp_path / name, size=size)
    (tmp_path / "a.ts").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"a\.ts exists already.*--overwrite"):
        spwnet.export(colours, tmp_path / "a.ts")
    with monkeypatch.context() as patched:
        patched.setattr(exporting, "MOST_DIFFERENCE", -1.0)
        with pytest.raises(OutputError, match=r"expected a\.ts to agree with prediction.*nothing was written"):
            spwnet.export(colours, tmp_path / "a.ts", overwrite=True)
    assert (tmp_path / "a.ts").read_bytes() == b"mine"
    spwnet.export(colours, tmp_path / "a.ts", overwrite=True)
    monkeypatch.setattr(exporting, "find_spec", lambda name: importlib.util.find_spec(name) if name != "onnx" else None)
    with pytest.raises(SettingsError, match=r"package onnx .*pip install 'spwnet\[deploy\]'"):
        spwnet.export("no run", tmp_path / "a.onnx")
    with monkeypatch.context() as patched:
        patched.setattr(exporting, "find_spec", importlib.util.find_spec)
        patched.setattr(torch, "__version__", "2.8.1+cpu")
        with pytest.raises(SettingsError, match=r"torch 2\.9 or newer to write ONNX, but got 2\.8\.1\+cpu"):
            spwnet.export("no run", tmp_path / "a.onnx")
    with pytest.raises(SettingsError, match="expected a run with a network to export"):
        spwnet.export(trained(**{"codebook": {"evidence": "handmade"}}), tmp_path / "b.ts")
    assert [file.name for file in tmp_path.iterdir()] == ["a.ts"]


def test_the_command(published, tmp_path, capfd):
    trained(run=tmp_path / "run", **PUBLISHED)
    capfd.readouterr()
    assert cli.main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "a.onnx"), "--size", "46,61"]) == 0
    out, err = capfd.readouterr()
    assert "a.onnx: ONNX, for images of 46×61 pixels" in out
    assert "100.00% of the pixels have the same class" in out
    assert err == ""
    assert cli.main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "a.onnx")]) == 1
    assert "--overwrite" in capfd.readouterr().err
    assert cli.main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "b.pt2"), "--size", "46"]) == 1
    assert 'expected a size like "240,320"' in capfd.readouterr().err
