"""Classes by name: what changes them, the file that keeps them, and points that name them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spwnet import pointing
from spwnet.codebook import coarser
from spwnet.config import LabelSettings, NamedClass
from spwnet.errors import InputError, SettingsError
from spwnet.gallery import make_gallery
from spwnet.naming import ClassMap, read_classes
from spwnet.pointing import from_points, points_of_scribbles, read_points

PARENTS = [0, 0, 1, 0, 2, 1]
"""0 – 1, then 2 off 1, 3 off 0, 4 off 2, 5 off 1."""
MODEL = "ab" * 32


@pytest.fixture
def three():
    """{0, 3}, {1, 5}, {2, 4}."""
    return ClassMap.of_tree(6, 3, PARENTS, MODEL)


def members(classes):
    return {one.id: set(one.members) for one in classes.classes}


@pytest.mark.parametrize("n", range(1, 7))
def test_classes_of_a_tree(n):
    classes = ClassMap.of_tree(6, n, PARENTS)
    np.testing.assert_array_equal(classes.table(), coarser(np.array(PARENTS), n))
    assert [one.name for one in classes.classes] == [f"class {k}" for k in range(n)]
    assert classes.classes[0].colour == "#0072b2"


def test_without_a_tree_there_are_the_finest_classes_alone():
    assert members(ClassMap.of_tree(3, 3)) == {0: {0}, 1: {1}, 2: {2}}
    with pytest.raises(SettingsError, match="expected 3 classes, because there is no tree to merge them along, but"):
        ClassMap.of_tree(3, 2)


def test_merging(three):
    one = three.merge([2, "class 0"], name="ground", colour="#010203")
    assert members(one) == {0: {0, 2, 3, 4}, 1: {1, 5}}
    assert (one.classes[0].name, one.classes[0].colour) == ("ground", "#010203")
    assert members(three) == {0: {0, 3}, 1: {1, 5}, 2: {2, 4}}
    # a name that somebody gave goes with the merged class, whatever the ids
    again = three.change(2, name="sky", colour="#040506").merge([1, 2])
    assert members(again) == {0: {0, 3}, 1: {1, 2, 4, 5}}
    assert (again.classes[1].name, again.classes[1].colour) == ("sky", "#040506")
    assert three.merge([1]) == three


def test_splitting_goes_along_the_tree(three):
    ground = three.merge([0, 1, 2], name="ground")
    halves = ground.split("ground")
    assert members(halves) == {0: {0, 3}, 1: {1, 2, 4, 5}}
    assert [one.name for one in halves.classes] == ["ground", "class 1"]
    quarters = halves.split(1)
    assert members(quarters) == {0: {0, 3}, 1: {1, 5}, 2: {2, 4}}
    finest = quarters.split(0).split(1).split(2)
    assert members(finest) == {k: {k} for k in range(6)}
    with pytest.raises(SettingsError, match="'class 5' is one of them; train with a higher"):
        finest.split(5)
    assert members(ClassMap.of_tree(3, 3).merge([0, 1, 2]).split(0)) == {0: {0}, 1: {1}, 2: {2}}


def test_an_id_that_is_taken_is_given_to_no_other(three):
    swapped = three.mark_background(2)
    assert members(swapped) == {0: {2, 4}, 1: {1, 5}, 2: {0, 3}}
    both = swapped.split(2)
    assert members(both) == {0: {2, 4}, 1: {1, 5}, 2: {0}, 3: {3}}
    assert len({one.name for one in both.classes}) == 4


def test_the_background_is_class_0(three):
    marked = three.change(1, remove_to=2).mark_background(2)
    assert [(one.id, one.name, one.background) for one in marked.classes] == [
        (0, "background", True), (1, "class 1", False), (2, "class 2", False),
    ]  # fmt: skip
    assert marked.find(1).remove_to == 0
    # what is no longer the background is called by its number again
    assert [one.name for one in marked.mark_background(1).classes] == ["background", "class 1", "class 2"]
    assert [one.name for one in marked.mark_background(None).classes] == ["class 0", "class 1", "class 2"]
    named = three.change(0, name="air").mark_background("air")
    assert (named.classes[0].name, named.classes[0].background) == ("air", True)
    moved = named.mark_background(1)
    assert [one.background for one in moved.classes] == [True, False, False]
    assert not any(one.background for one in moved.mark_background(None).classes)


def test_small_pieces_go_where_their_class_went(three):
    rule = three.change(1, remove_to=2, remove_objects=9)
    assert rule.merge([0, 2]).find(1).remove_to == 0
    assert rule.merge([1, 2]).find(1).remove_to is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.find("clas 1"), r"expected one of the classes 0 \(class 0\), .* but got 'clas 1'. Did you mean"),
        (lambda m: m.find(7), "but got 7"),
        (lambda m: m.merge([]), "expected at least one class to merge"),
        (lambda m: m.merge([0, 1], name="class 2"), "expected each name once in the classes, but got 'class 2' twice"),
        (lambda m: m.change(0, colour="red"), "'colour': string should match pattern"),
        (lambda m: m.change(0, name=" x"), "printable characters without spaces around it, but got ' x'"),
        (lambda m: m.change(0, name="a\nb"), "printable"),
        (lambda m: m.change(0, name="x" * 81), "1 to 80"),
        (lambda m: m.change(0, fill_holes=-1), "'fill_holes': input should be greater than or equal to 0"),
        (lambda m: m.change(0, smooth=float("nan")), "'smooth': input should be a finite number"),
        (lambda m: m.change(0, remove_to=0), "expected another class that small pieces of 'class 0' become, but got 0"),
        (lambda m: m.change(0, remove_to=9), "take one of 1, 2"),
        (lambda m: m.change(0, members=[1]), "expected one of name, colour, .* but got 'members'"),
        (lambda m: m.from_json([]), "expected a list of 1 to 6 classes, but got"),
        (lambda m: m.from_json({"a": 1}), "expected a list"),
        (lambda m: m.from_json([{"id": 0, "name": "a", "members": [0, 1]}]), "classes in one class, but class 2"),
        (lambda m: m.from_json([{"id": 0, "name": "a", "members": list(range(7))}]), "there is no class 6"),
        (lambda m: m.from_json([{"id": 0, "name": "a", "members": [0] * 6}]), "each member once"),
        (lambda m: m.from_json([{"id": 0, "name": "a", "members": list(range(6)), "x": 1}]), "'x': extra inputs"),
        (lambda m: m.from_json([{"id": 1, "name": "a", "members": list(range(6)), "background": True}]),
         "expected the background to be class 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_done(three, change, message):
    with pytest.raises(SettingsError, match=message):
        change(three)


def test_settings_of_labels(three):
    named = three.merge([0, 1], name="ground").labels(LabelSettings(merge=((0, 1),), fill_holes=5, classes=4))
    assert named.named[0].name == "ground"
    assert (named.merge, named.classes, named.fill_holes) == ((), "auto", 5)
    with pytest.raises(ValueError, match="expected either classes by name or"):
        LabelSettings(named=named.named, classes=3)


names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=20)


@given(
    st.lists(st.sampled_from(["merge", "split", "background", "change"]), max_size=8), st.data()
)  # fmt: skip
def test_any_changes_survive_the_file(tmp_path_factory, steps, data):
    classes = ClassMap.of_tree(6, 4, PARENTS, MODEL)
    for step in steps:
        ids = [one.id for one in classes.classes]
        try:
            if step == "merge":
                classes = classes.merge(data.draw(st.lists(st.sampled_from(ids), min_size=1, max_size=3)))
            elif step == "split":
                classes = classes.split(data.draw(st.sampled_from(ids)))
            elif step == "background":
                classes = classes.mark_background(data.draw(st.sampled_from([*ids, None])))
            else:
                values = {"name": data.draw(names), "smooth": data.draw(st.floats(0, 100)), "keep_largest": True}
                classes = classes.change(data.draw(st.sampled_from(ids)), **values)
        except SettingsError:
            continue
        assert sorted(k for one in classes.classes for k in one.members) == list(range(6))
        assert [one.id for one in classes.classes] == sorted({one.id for one in classes.classes})
    path = classes.save(tmp_path_factory.mktemp("classes") / "classes.toml")
    assert read_classes(path, 6, PARENTS, MODEL) == classes
    assert classes.from_json(classes.to_json()) == classes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "with `version`, `finest` and \\[\\[classes\\]\\]"),
        ("version = 1\nfinest = 6\nclasses = []", "one of them is missing"),
        ("version = 9\nfinest = 6\n[[classes]]\nid = 0", "got format 9; update spwnet"),
        ("version = 1\nfinest = 5\n[[classes]]\nid = 0", "expected classes made of 6 finest classes at .*, but got 5"),
        ('version = 1\nfinest = 6\nmodel = "cd"\n[[classes]]\nid = 0', "but they were made for another one"),
        ("version = 1\nfinest = 6\n[[classes]]\nid = 0", "classes.toml: expected a class, but 'name': field required"),
        ("version =", "expected a readable file of classes"),
        ("a = " + "[" * 3000, "expected a readable file of classes"),
        ("#" * 2**22 + "####", "it is larger than 4 MiB"),
    ],
)  # fmt: skip
def test_files_that_are_none(tmp_path, text, message):
    path = tmp_path / "classes.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_classes(path, 6, PARENTS, MODEL)
    with pytest.raises(SettingsError, match=r"but there is none; make one by `spwnet view RUN`"):
        read_classes(tmp_path / "other.toml")


LABELS = [np.array([[0, 1, 2], [3, 4, 5]]), np.array([[5, 5]])]


def test_points_name_classes_and_their_relatives():
    found = from_points(ClassMap.of_tree(6, 6, PARENTS, MODEL), LABELS, {"a": [(0, 0, 0)], "b": [(0, 0, 1), (0, 1, 1)]})
    # 3 is off 0, which is a; 5 off 1, 2 and 4 off 1
    assert [(one.id, one.name, set(one.members)) for one in found.classes] == [
        (0, "a", {0, 3}), (1, "b", {1, 2, 4, 5})
    ]  # fmt: skip
    assert found.model == MODEL


def test_most_points_win_and_volumes_have_slices():
    classes = ClassMap.of_tree(2, 2, [0, 0])
    volume = [np.array([[[0, 1]], [[1, 1]]])]
    found = from_points(classes, volume, {"a": [(0, 0, 0, 0), (0, 0, 0, 1)], "b": [(0, 1, 0, 0), (0, 1, 0, 1)]})
    assert members(found) == {0: {0}, 1: {1}}
    plain = ClassMap.of_tree(3, 3)
    one = from_points(plain, [np.array([[0, 1, 2]])], {"a": [(0, 0, 0)], "b": [(0, 0, 1)]})
    assert members(one) == {0: {0, 2}, 1: {1}}


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ({}, "expected at least one point for a name, but got none"),
        ({"a": [(0, 2, 0)]}, r"expected points of 'a' within the 2 images, but got \(0, 2, 0\)"),
        ({"a": [(0, -1, 0)]}, "within the 2 images"),
        ({"a": [(2, 0, 0)]}, "within the 2 images"),
        ({"a": [(0, 0)]}, "within the 2 images"),
        (
            {"a": [(0, 0, 0), (1, 0, 0)], "b": [(0, 0, 0)]},
            "expected places of 'b' that no other name has more points in",
        ),
    ],
)
def test_points_that_name_nothing(points, message):
    with pytest.raises(SettingsError, match=message):
        from_points(ClassMap.of_tree(6, 6, PARENTS), LABELS, points)


@pytest.fixture
def gallery():
    """Two pictures of 2×3, that show rows 10…13 and columns 0…5 of images of 20×6."""
    labels = [np.array([[0, 1, 2], [3, 4, 5]], np.int32)] * 2
    pictures = [np.zeros((2, 3, 3), np.uint8)] * 2
    values = [np.zeros((2, 3, 1))] * 2
    return make_gallery(["first", "second"], pictures, labels, values, None, [((10, 14), (0, 6))] * 2, 6)


def test_a_table_of_points(tmp_path, gallery):
    path = tmp_path / "points.csv"
    path.write_text(
        "\ufeffimage,row,column,name\nfirst,10,0,air\n1,13,5,sand, wet\nsecond,12,2,air\n", encoding="utf-8"
    )
    assert read_points(path, gallery) == {"air": [(0, 0, 0), (1, 1, 1)], "sand": [(1, 1, 2)]}
    for text, kind, message in (
        ("image,row,column,name\nthird,10,0,air", SettingsError, "expected one of the training images first, second"),
        ("image,row,column,name\n2,10,0,air", SettingsError, "in line 2 of .*points.csv, but got '2'"),
        ("image,row,column,name\nfirst,9,0,air", InputError, "expected places in rows 10 to 13 and columns 0 to 5"),
        ("image,row,column,name\nfirst,x,0,air", SettingsError, "with the columns image, row, column and name, but"),
        ("image,row,column\nfirst,10,0", SettingsError, "with the columns"),
        ("image,row,column,name\nfirst", SettingsError, "with the columns"),
    ):
        path.write_text(text)
        with pytest.raises(kind, match=message):
            read_points(path, gallery)
    with pytest.raises(SettingsError, match="expected a table of points"):
        read_points(tmp_path / "none.csv", gallery)


def test_scribbles_in_the_size_of_the_image_or_of_the_picture(gallery):
    stored = np.zeros((20, 6), np.uint8)
    stored[9:12, 0] = 1
    stored[13, 5] = 2
    small = np.array([[0, 2, 0], [0, 0, 0]])
    found = points_of_scribbles({"first": stored, "second": small}, gallery, ["air", "sand"])
    assert found == {"air": [(0, 0, 0), (0, 0, 0)], "sand": [(0, 1, 2), (1, 0, 1)]}
    assert list(points_of_scribbles({"first": stored}, gallery)) == ["class 1", "class 2"]
    for marked, names, message in (
        ({"third": stored}, (), "expected scribbles on the training images first, second, but got 'third'"),
        ({"first": stored[:5]}, (), "expected scribbles on 'first' in its size"),
        ({"first": stored[None]}, (), "expected scribbles on 'first' in its size"),
        ({"first": -stored.astype(int)}, (), "expected scribbles of 0 .not marked., 1, 2 and so on, but got -2"),
        (
            {"first": -stored.astype(int)},
            ("a", "b"),
            "expected scribbles of 0 .not marked., 1, 2 and so on, but got -2",
        ),
        ({"first": stored}, ("a",), "expected scribbles of 1 to 1, as many as there are names, but got 2"),
    ):
        with pytest.raises(SettingsError, match=message):
            points_of_scribbles(marked, gallery, names)
    exhibits = tuple(replace(one, stored=(20, 6)) for one in gallery.exhibits)
    known = replace(gallery, exhibits=exhibits)
    assert points_of_scribbles({"first": stored, "second": small}, known, ["air", "sand"]) == found
    with pytest.raises(SettingsError, match="expected scribbles on 'first' in its size"):
        points_of_scribbles({"first": np.pad(stored, 1)}, known)


def test_what_a_class_is():
    with pytest.raises(ValueError, match="at least 1 item"):
        NamedClass(id=0, name="a", members=())
    assert not NamedClass(id=0, name="a", members=(0,)).cleans
    assert NamedClass(id=0, name="a", members=(0,), keep_largest=True).cleans


def test_what_merging_gives_is_checked_as_what_changing_gives(three):
    with pytest.raises(SettingsError, match="'colour': string should match pattern"):
        three.merge([0, 1], colour="red")
    with pytest.raises(SettingsError, match="'name': expected a name of 1 to 80 printable characters"):
        three.merge([0, 1], name="a\nb")
    odd = replace(three, classes=(three.classes[0].model_copy(update={"colour": "red"}), *three.classes[1:]))
    with pytest.raises(SettingsError, match="'colour': string should match pattern"):
        odd.labels()


def test_trees_of_all_shapes_split_and_inherit_as_their_tables_say():
    """Against the tables of the tree at each number of classes, one by one."""
    rng = np.random.default_rng(0)
    for n in rng.integers(2, 12, 60).tolist():
        parents = [0, *(int(rng.integers(0, k)) for k in range(1, n))]
        owner = np.where(rng.random(n) < 0.4, rng.integers(0, 3, n), -1)
        owner[rng.integers(0, n)] = 0
        expected = owner.copy()
        for count in range(n - 1, 0, -1):
            table = coarser(np.array(parents), count)
            for k in np.flatnonzero(expected < 0):
                relatives = owner[(owner >= 0) & (table == table[k])]
                if len(relatives):
                    expected[k] = np.bincount(relatives).argmax()
        np.testing.assert_array_equal(pointing._inherited(owner, parents), expected)
        group = np.flatnonzero(rng.random(n) < 0.6).tolist() or [0]
        if len(group) > 1:
            merged = ClassMap.of_tree(n, n, parents).merge(group)
            tops = next(found for count in range(2, n + 1)
                        if len(np.unique(found := coarser(np.array(parents), count)[group])) > 1)  # fmt: skip
            wanted = sorted(np.array(group)[tops == k].tolist() for k in np.unique(tops))
            after = merged.split(merged.find(group[0]).id)
            assert all(any(list(one.members) == part for one in after.classes) for part in wanted)


def test_thousands_of_classes_inherit_and_are_checked_at_once():
    n = 4096
    classes = ClassMap.of_tree(n, n, [0, *range(n - 1)])
    labels = [np.arange(n, dtype=np.int32).reshape(64, 64)]
    found = from_points(classes, labels, {"a": [(0, 0, 0)], "b": [(0, 63, 63)]})
    assert [len(one.members) for one in found.classes] == [1, n - 1]
    values = ClassMap.of_tree(65_536, 65_536).to_json()
    assert len(ClassMap((), 65_536).from_json(values).classes) == 65_536


@pytest.mark.parametrize("model", ['x"y', 3, ""])
def test_a_fingerprint_that_is_none(three, tmp_path, model):
    path = tmp_path / "classes.toml"
    path.write_text(three.to_toml().replace(f'"{MODEL}"', json.dumps(model)))
    with pytest.raises(SettingsError, match="expected the fingerprint of a model in hexadecimal digits"):
        read_classes(path)


def test_a_file_that_windows_saved_is_read(three, tmp_path):
    path = tmp_path / "classes.toml"
    path.write_bytes(b"\xef\xbb\xbf" + three.to_toml().encode())
    assert read_classes(path).classes == three.classes
