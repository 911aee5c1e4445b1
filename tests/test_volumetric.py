"""Volumes part by part: labels that do not depend on where parts are cut, and what they are made of."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from spwnet import open_volume, segment_volume, train, volumetric
from spwnet.blocks import tiles, widened, within
from spwnet.errors import SettingsError
from spwnet.graph import build_graph
from spwnet.model import WNet
from spwnet.presets import make_settings
from spwnet.superpixels import Seeds, lattice_slic, relabelled
from spwnet.trained import evidence_kinds
from spwnet.volumetric import (
    describe_part,
    grid_of,
    halo_of,
    lattice_graph,
    network_reach,
    predict_part,
    read_unit,
    see,
)
from tests.conftest import SOLID, phantom

SPACINGS = (None, (2.0, 1.0, 1.0), (1.0, 3.0, 1.0), (1.0, 1.5, 2.5))


def everything(volume):
    return tuple(slice(0, n) for n in volume.shape)


def in_tiles(model, volume, block):
    labels = np.full(volume.shape, -1, np.int32)
    for region in tiles(volume.shape, block):
        labels[region] = predict_part(model, volume, region, model.settings.labels)
    return labels


def changed(model, **overrides):
    """The same model with other settings of how volumes are divided, on which neither weights nor centres depend."""
    values = model.settings.model_dump()
    for name, value in overrides.items():
        section, _, key = name.partition("__")
        values[section][key] = value
    return replace(model, settings=type(model.settings).model_validate(values))


def sees(grid, core, halo):
    """What a part reads, in working voxels."""
    around = widened(core, halo.nodes, grid.working, grid.cells)
    return widened(
        around, [max(pair) for pair in zip(halo.evidence, halo.seeds, strict=True)], grid.working, halo.align
    )


# Blocks equal the whole


@given(data=st.data())
@settings(max_examples=20, phases=(Phase.reuse, Phase.generate))  # looking for a smaller example takes minutes
def test_blocks_equal_the_whole(solid_models, data):
    preset, channels = data.draw(st.sampled_from(sorted(solid_models)))
    model = changed(
        solid_models[preset, channels],
        volumes__size=data.draw(st.sampled_from([1.0, 4.0, 8.0, 20.0]), "size"),
        images__scale=data.draw(st.sampled_from([1.0, 0.5]), "scale"),
        volumes__axis=data.draw(st.sampled_from(["z", "y", "x", "all"]), "axis of slices"),
    )
    spacing = data.draw(st.sampled_from(SPACINGS), "spacing")
    axis = data.draw(st.integers(0, 2), "axis")
    # Thin along the other axes, and along this one longer than what a block of it sees.
    shape = [data.draw(st.integers(1, 26), name) for name in "zyx"]
    shape[axis] = 300
    poolings = model.settings.volumes.n_blocks if preset == "default" else None
    grid = grid_of(open_volume(np.zeros(shape, np.uint8), spacing=spacing), model.settings)
    halo, b = halo_of(grid, poolings, model.settings.volumes.axes), grid.bins[axis]
    far = halo.nodes[axis] + max(halo.evidence[axis], halo.seeds[axis]) + grid.cells[axis] + halo.align[axis]
    side = data.draw(st.integers(5, 30), "side")
    shape[axis] = (far + side + data.draw(st.integers(2, 40), "more")) * b + data.draw(st.integers(0, b - 1), "odd")
    block = [data.draw(st.integers(-(-n // 2), n), f"block along {name}") for n, name in zip(shape, "zyx", strict=True)]
    block = [-(-n // bins) * bins for n, bins in zip(block, grid.bins, strict=True)]
    block[axis] = side * b

    volume = open_volume(phantom(shape, channels, data.draw(st.integers(0, 99), "seed")), spacing=spacing)
    grid = grid_of(volume, model.settings)
    halo = halo_of(grid, poolings, model.settings.volumes.axes)
    first = tiles(grid.working, [n // bins for n, bins in zip(block, grid.bins, strict=True)])[0]
    assert sees(grid, first, halo)[axis].stop < grid.working[axis]
    whole = predict_part(model, volume, everything(volume), model.settings.labels)
    assert whole.shape == volume.shape
    np.testing.assert_array_equal(in_tiles(model, volume, block), whole)


def too_small(*fields):
    """A halo some of whose parts are one voxel."""
    return lambda grid, n_blocks, axes: replace(halo_of(grid, n_blocks, axes), **dict.fromkeys(fields, (1, 1, 1)))


@pytest.mark.parametrize("preset", ["instant", "default"])
def test_with_a_halo_too_small_they_do_not(solid_models, monkeypatch, preset):
    """The test above can fail."""
    model, volume = solid_models[preset, 1], open_volume(phantom((24, 150, 24)))
    whole = predict_part(model, volume, everything(volume), model.settings.labels)
    np.testing.assert_array_equal(in_tiles(model, volume, (24, 10, 24)), whole)
    monkeypatch.setattr(volumetric, "halo_of", too_small("nodes"))
    assert (in_tiles(model, volume, (24, 10, 24)) != whole).any()
    monkeypatch.setattr(volumetric, "halo_of", too_small("nodes", "seeds", "evidence"))
    assert (in_tiles(model, volume, (24, 10, 24)) != whole).mean() > 0.0005


@torch.inference_mode()
def seen_differently(model, volume, core):
    """What of a part is not as in the whole volume, to the last bit: its supervoxels, its evidence, what is learned."""
    grid, learns = grid_of(volume, model.settings), model.network is not None
    part, whole = (
        see(volume, grid, region, model.settings, model.normalisation, learns=learns)
        for region in (core, everything(volume))
    )
    assert any(a.stop - a.start < n for a, n in zip(part.around, grid.working, strict=True))
    cells = (slice(None), *(slice(a.start // c, -(-a.stop // c)) for a, c in zip(part.around, grid.cells, strict=True)))
    odd = set()
    nodes, among = (one.graph.labels.numpy().reshape(one.graph.shape) for one in (part, whole))
    pairs = np.unique(np.stack([nodes.ravel(), among[part.around].ravel()]), axis=1)
    if not pairs.shape[1] == len(np.unique(pairs[0])) == len(np.unique(pairs[1])):
        odd.add("supervoxels")
    if not torch.equal(part.filters, whole.filters[cells]):
        odd.add("evidence")
    if learns:
        found, expected = (
            volumetric._classified(model.network, one, torch.float32, model.device) for one in (part, whole)
        )
        if not torch.equal(found, expected[cells]):
            odd.add("learned")
    return odd


@pytest.mark.parametrize(
    ("spacing", "axis"), [(None, "z"), ((1.0, 1.0, 2.0), "z"), ((3.0, 1.0, 1.0), "y"), (None, "all")]
)
def test_a_part_sees_what_the_whole_does_and_needs_its_halo(solid_models, monkeypatch, spacing, axis):
    # Supervoxels that are large and follow the noise depend on what is far.
    model = changed(solid_models["default", 2], volumes__size=64.0, superpixels__compactness=0.3, volumes__axis=axis)
    volume = open_volume(phantom((20, 17, 260), 2), spacing=spacing)
    core = (slice(0, 20), slice(0, 17), slice(124, 136))
    assert seen_differently(model, volume, core) == set()
    monkeypatch.setattr(volumetric, "halo_of", too_small("seeds"))
    assert seen_differently(model, volume, core) == {"supervoxels"}
    monkeypatch.setattr(volumetric, "halo_of", too_small("seeds", "evidence"))
    assert seen_differently(model, volume, core) == {"supervoxels", "evidence", "learned"}
    monkeypatch.setattr(volumetric, "network_reach", lambda _: 0)
    monkeypatch.setattr(volumetric, "halo_of", halo_of)
    assert seen_differently(model, volume, core) == {"learned"}


@pytest.mark.parametrize("evidence", ["colour", "learned"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_blocks_equal_the_whole_whatever_is_taken_as_evidence(evidence, precision):
    if evidence == "colour" and precision == "bfloat16":
        pytest.skip("nothing is convolved")
    overrides = {**SOLID, "codebook.evidence": evidence, "training": {**SOLID["training"], "precision": precision}}
    volume = open_volume(phantom((14, 150, 20)))
    model = train(volume, settings=make_settings(overrides=overrides))
    whole = predict_part(model, volume, everything(volume), model.settings.labels)
    assert len(np.unique(whole)) > 2
    np.testing.assert_array_equal(in_tiles(model, volume, (14, 34, 9)), whole)


def test_blocks_equal_the_whole_in_colour(tmp_path):
    tifffile.imwrite(tmp_path / "v.tif", phantom((130, 16, 18), 2)[..., [0, 1, 0]], photometric="rgb",
                     metadata={"axes": "ZYXS"})  # fmt: skip
    volume = open_volume(tmp_path / "v.tif")
    assert volume.rgb
    model = train(volume, settings=make_settings("instant", overrides=SOLID))
    assert model.normalisation.rgb
    whole = predict_part(model, volume, everything(volume), model.settings.labels)
    np.testing.assert_array_equal(in_tiles(model, volume, (22, 16, 7)), whole)


@given(
    shape=st.tuples(st.integers(2, 9), st.integers(12, 30), st.integers(12, 30)),
    block=st.tuples(st.integers(1, 9), st.integers(9, 30), st.integers(9, 30)),
    seed=st.integers(0, 99),
)
@settings(max_examples=5)
def test_slices_of_their_own_do_not_depend_on_blocks(slice_model, shape, block, seed):
    volume = open_volume(phantom(shape, 1, seed))
    whole = predict_part(slice_model, volume, everything(volume), slice_model.settings.labels)
    np.testing.assert_array_equal(in_tiles(slice_model, volume, block), whole)
    for z in range(shape[0]):
        one = open_volume(volume.read((slice(z, z + 1), slice(None), slice(None))))
        alone = predict_part(slice_model, one, everything(one), slice_model.settings.labels)
        np.testing.assert_array_equal(whole[z : z + 1], alone)


@pytest.fixture(scope="module")
def slice_model():
    overrides = {**SOLID, "volumes.mode": "slices"}
    model = train(open_volume(phantom((12, 30, 32))), settings=make_settings("instant", overrides=overrides))
    assert not model.solid
    return model


@given(
    block=st.one_of(st.integers(15, 200), st.tuples(st.integers(7, 60), st.integers(9, 40), st.integers(9, 40))),
    workers=st.integers(1, 3),
)
@settings(max_examples=4)
def test_the_labels_of_a_volume_do_not_depend_on_blocks(solid_models, block, workers):
    model, volume = solid_models["default", 1], open_volume(phantom((110, 20, 18)), spacing=(1.0, 2.0, 1.0))
    expected = segment_volume(model, volume).labels
    np.testing.assert_array_equal(segment_volume(model, volume, block=block, workers=workers).labels, expected)


def test_thousands_of_voxels_in_few_slabs(solid_model, monkeypatch):
    volume = open_volume(phantom((30, 21, 23)))
    grid = grid_of(volume, changed(solid_model, images__scale=0.5).settings)
    region = (slice(1, 14), slice(2, 11), slice(0, 12))
    whole = read_unit(volume, grid, region, solid_model.normalisation)
    monkeypatch.setattr(volumetric, "SLAB_VOXELS", 3000)
    assert torch.equal(read_unit(volume, grid, region, solid_model.normalisation), whole)
    low, high = solid_model.normalisation.low[0], solid_model.normalisation.high[0]
    expected = np.clip((volume.read(grid.stored(region))[..., 0] - low) / (high - low), 0, 1)
    # of the last row of 21, and the last column of 23, there is one only
    expected = np.pad(expected, ((0, 0), (0, 1), (0, 1)), mode="edge")
    cells = expected.reshape(13, 2, 9, 2, 12, 2).mean((1, 3, 5))
    np.testing.assert_allclose(whole[0].numpy(), cells, atol=1e-6)


# How far a network sees


@pytest.mark.parametrize("n_blocks", [1, 2, 3])
def test_a_network_sees_no_further_than_is_said_and_nearly_as_far(n_blocks):
    reach, pool = network_reach(n_blocks), 2**n_blocks
    torch.manual_seed(0)
    network = WNet(1, 4, 4, n_blocks, final_norm=True).double().eval()
    length = -(-(2 * reach + 4 * pool) // pool) * pool
    image = torch.randn(1, 1, length, 2 * pool, dtype=torch.float64)
    farthest = 0
    with torch.inference_mode():
        before = network.encode(image)
        for place, change in product(range(length // 2, length // 2 + pool), (-100, 100)):
            other = image.clone()
            other[0, 0, place] += change
            moved = (network.encode(other) != before).any(3).any(1)[0].nonzero().flatten()
            away = (moved - place).abs()
            assert away.max() <= reach
            farthest = max(farthest, int(away.max()))
    assert farthest >= 0.75 * reach


def test_cells_that_are_left_over_are_not_seen_from_further():
    """Sides that do not divide are filled up with copies of the last cell."""
    reach = network_reach(2)
    torch.manual_seed(0)
    network = WNet(1, 4, 4, 2, final_norm=True).double().eval()
    for length in range(60, 64):
        image = torch.randn(1, 1, length, 4, dtype=torch.float64)
        other = image.clone()
        other[0, 0, -1] += 100
        with torch.inference_mode():
            moved = (network.encode(other) != network.encode(image)).any(3).any(1)[0].nonzero().flatten()
        assert 0 < length - 1 - moved.min() <= reach


# The graph of supervoxels


def dense_graph(labels, lattice):
    """{(i, j): faces} of supervoxels whose seeds are next to each other, corners included, both ways."""
    seeds = np.stack(np.unravel_index(labels, lattice))
    ids = relabelled(labels).labels
    faces = {}
    for axis in range(3):
        for here in np.ndindex(labels.shape):
            there = tuple(k + (a == axis) for a, k in enumerate(here))
            if there[axis] == labels.shape[axis]:
                continue
            step = np.abs(seeds[(slice(None), *here)] - seeds[(slice(None), *there)]).max()
            if step == 1:
                for pair in ((ids[here], ids[there]), (ids[there], ids[here])):
                    faces[pair] = faces.get(pair, 0) + 1
    return faces


@pytest.mark.parametrize(
    "lattice", [(6, 5, 4), (12, 3, 3), (9, 1, 1), (9, 1, 4), (8, 2, 1), (3, 1, 14), (1, 3, 9), (1, 1, 1)]
)
def test_supervoxels_are_joined_where_they_touch_and_their_seeds_are_neighbours(lattice):
    shape = tuple(2 * n for n in lattice)
    image = torch.from_numpy(100 * np.random.default_rng(0).random((2, *shape), dtype=np.float32))
    labels = lattice_slic(image, [Seeds(n, k) for n, k in zip(shape, lattice, strict=True)], 0.5).numpy()
    graph = lattice_graph(labels, lattice, image / 100)
    faces = dense_graph(labels, lattice)
    assert [tuple(pair) for pair in graph.edges.T.tolist()] == sorted(faces)
    assert graph.contacts.tolist() == [faces[pair] for pair in sorted(faces)]
    plain = build_graph(relabelled(labels), np.moveaxis(image.numpy() / 100, 0, -1))
    assert torch.equal(graph.labels, plain.labels)
    assert torch.equal(graph.sizes, plain.sizes)
    torch.testing.assert_close(graph.means, plain.means)
    assert set(faces) <= {tuple(pair) for pair in plain.edges.T.tolist()}


def test_far_seeds_of_a_thin_volume_are_not_joined():
    """Noise sends neighbours to seeds two apart, which a lattice of one row or three must not take for another step."""
    for lattice in [(40, 1, 1), (40, 1, 3), (3, 40, 1), (20, 3, 3)]:
        shape = tuple(3 * n for n in lattice)
        image = torch.from_numpy(100 * np.random.default_rng(1).random((1, *shape), dtype=np.float32))
        labels = lattice_slic(image, [Seeds(n, k) for n, k in zip(shape, lattice, strict=True)], 0.1).numpy()
        seeds = np.stack(np.unravel_index(labels, lattice)).reshape(3, -1)
        owner = np.zeros((3, labels.max() + 1), int)
        owner[:, relabelled(labels).labels.ravel()] = seeds
        graph = lattice_graph(labels, lattice, image)
        steps = np.abs(owner[:, graph.edges[0]] - owner[:, graph.edges[1]]).max(0)
        assert steps.max() == 1
        plain = build_graph(relabelled(labels), np.moveaxis(image.numpy(), 0, -1))
        touching = np.abs(owner[:, plain.edges[0]] - owner[:, plain.edges[1]]).max(0)
        assert touching.max() == 2


# Evidence of a part


@pytest.mark.parametrize("preset", ["instant", "default"])
def test_descriptors_are_evidence_averaged_over_supervoxels(solid_models, preset):
    model, volume = solid_models[preset, 2], open_volume(phantom((9, 17, 15), 2))
    grid = grid_of(volume, model.settings)
    part = see(volume, grid, everything(volume), model.settings, model.normalisation, learns=preset == "default")
    with torch.inference_mode():
        described = describe_part(model.network, part, grid, model.settings, model.device)
    kinds = evidence_kinds(model.settings, 2, solid=True)
    assert described.rows.shape == (part.graph.count, sum(kind.size for kind in kinds))
    cells = [np.repeat(np.repeat(np.repeat(one.numpy(), 2, 0), 2, 1), 2, 2)[:9, :17, :15] for one in part.filters]
    evidence = [*part.colour.numpy(), *cells[2:]]
    learned = model.settings.model.classes if preset == "default" else 0
    nodes = part.graph.labels.numpy().reshape(volume.shape)
    for i in (0, part.graph.count // 2, part.graph.count - 1):
        expected = [values[nodes == i].mean() for values in evidence]
        np.testing.assert_allclose(described.rows[i, learned:], expected, rtol=1e-4, atol=1e-3)
    if learned:
        np.testing.assert_allclose(described.rows[:, :learned].sum(1), 1, atol=1e-3)


def test_many_cells_go_through_the_network_a_few_layers_at_a_time(solid_models, monkeypatch):
    model, volume = solid_models["default", 1], open_volume(phantom((20, 30, 30)))
    whole = predict_part(model, volume, everything(volume), model.settings.labels)
    monkeypatch.setattr(volumetric, "BATCH_CELLS", 300)
    np.testing.assert_array_equal(predict_part(model, volume, everything(volume), model.settings.labels), whole)


# Settings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"images.margin": 3}, r"expected `images.margin = 0` for a volume, but got 3; leave it out, or segment"),
        ({"images.unsharp_radius": 2.0}, r"expected `images.unsharp_radius = 0.0` for a volume"),
        ({"superpixels.method": "none"}, r"expected `superpixels.method = 'slic'` for a volume, but got 'none'"),
        ({"labels.mode": "argmax_of_mean"}, r"expected `labels.mode = 'codebook'` for a volume"),
        ({"superpixels.count": 300}, r"by their size, `volumes.size`, but got `superpixels.count = 300`"),
        ({"images.scale": 0.4}, r"`images.scale` of a volume to be 1, 1/2"),
    ],
)
def test_settings_that_are_not_for_volumes(overrides, message):
    volume = open_volume(phantom((6, 20, 20)))
    with pytest.raises(SettingsError, match=message):
        train(volume, settings=make_settings("instant", overrides={**SOLID, **overrides}))


def test_within_a_part_its_own_voxels_are_the_core(solid_model):
    volume = open_volume(phantom((60, 20, 20)))
    grid = grid_of(volume, solid_model.settings)
    core = (slice(20, 30), slice(0, 20), slice(4, 11))
    part = see(volume, grid, core, solid_model.settings, solid_model.normalisation, learns=False)
    assert all(a.start <= c.start < c.stop <= a.stop for a, c in zip(part.around, core, strict=True))
    own = part.colour[(slice(None), *within(core, part.around))]
    unit = read_unit(volume, grid, core, solid_model.normalisation)
    torch.testing.assert_close(own, 100 * unit)
    assert [part.around[a].start % grid.cells[a] for a in range(3)] == [0, 0, 0]


def test_offsets_of_neighbours_are_told_apart():
    """Each of the 124 steps of up to two seeds along the axes is a neighbour just if none is two."""
    for step in product(range(-2, 3), repeat=3):
        lattice = (5, 5, 5)
        labels = np.ravel_multi_index(np.array([[2, 2, 2], [2 + s for s in step]]).T, lattice).astype(np.int32)
        graph = lattice_graph(labels.reshape(1, 1, 2), lattice, torch.zeros((1, 1, 1, 2)))
        assert (graph.edges.numel() > 0) == (max(map(abs, step)) == 1)
