"""`common_names.yaml`: its names are those of the datasets, and what is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from crossdet.errors import LabelError
from crossdet.labels import common
from crossdet.labels.common import common_names, only_alike, parts_apart, rows_by_name, spelling, with_common_names
from crossdet.labels.edits import edited, grown
from crossdet.labels.space import LabelSpace

LISTS = {file.stem: file.read_text().splitlines() for file in (Path(__file__).parent / "names").glob("*.txt")}
FILE = yaml.safe_load(Path(common.__file__).with_name("common_names.yaml").read_text())


SPELT: dict[str, dict[str, str]] = {}
for title, names in LISTS.items():
    for own in names:
        SPELT.setdefault(spelling(own), {})[title] = own


def spelt(name: str) -> dict[str, str]:
    """List -> its own name with this spelling."""
    return SPELT.get(spelling(name), {})


def test_names_are_those_of_the_datasets():
    assert {title: len(names) for title, names in LISTS.items()} == {
        "coco": 80, "voc": 20, "objects365": 365, "open_images": 601, "lvis": 1203, "wider_face": 1,
        "wider_pedestrian": 2,
    }  # fmt: skip
    for group, names in FILE["same"].items():
        assert len(names) > 1, group
        for title, name in names.items():
            assert name in LISTS[title], (group, title, name)
    for name in FILE["alike"]:
        assert len(spelt(name)) > 1, name
    further = [n for whole, parts in FILE["parts"].items() for n in (whole, *parts)]
    further += [name for a, b, _ in FILE["different"] for name in (a, b)]
    for name in further:
        assert spelt(name), name


def test_a_word_stands_for_one_class_in_every_dataset():
    """Where a group holds a name of one dataset, and another one has the same word, this means the same there."""
    held: dict[str, str] = {}
    for group, names in FILE["same"].items():
        for written in {spelling(name) for name in names.values()}:
            assert held.setdefault(written, group) == group
            for title, own in spelt(written).items():
                assert names.get(title) == own, (group, title, own)
    assert not held.keys() & set(map(spelling, FILE["alike"]))
    assert len(set(FILE["alike"])) == len(FILE["alike"])
    names = common_names()
    for whole, parts in names.parts.items():
        assert whole not in parts
        assert not any(whole in names.parts.get(part, ()) for part in parts)


def test_lists_merge_into_one_another():
    datasets = {title: LISTS[title] for title in ("coco", "voc", "objects365", "open_images", "lvis")}
    space = build(datasets, distinct=["Mouse"])
    for sources in (
        ("coco/tv", "voc/tvmonitor", "objects365/Monitor/TV"),
        ("coco/person", "voc/person", "objects365/Person", "open_images/Person", "lvis/person"),
        ("coco/airplane", "voc/aeroplane", "objects365/Airplane", "open_images/Airplane", "lvis/airplane"),
        ("open_images/Television", "lvis/television_set"),
    ):
        c = space.index(*sources[0].split("/", 1))
        assert tuple(space.sources_of(c)) == sources
        assert space.classes[c] == sources[0].split("/", 1)[1]
    assert len(space.sources_of(space.id_of("mouse"))) == 1
    assert space.index("open_images", "Human face") != space.index("coco", "person")


def build(datasets, merge=None, **rules) -> LabelSpace:
    settled = [*rules.get("distinct", ()), *rules.get("drop", ())]
    return LabelSpace.build(datasets, merge=with_common_names(merge or {}, datasets, settled), **rules)


def test_what_a_config_says_itself_comes_first():
    datasets = {"a": ["tv", "sofa", "walker"], "b": ["tvmonitor", "Couch"], "c": ["Person", "mine"], "d": ["mine"]}
    assert build(datasets).classes == ("tv", "sofa", "walker", "Person", "mine")
    space = build(datasets, {"person": ["a/walker", "c/Person"]}, distinct=["tvmonitor"], drop=["b/Couch"])
    assert space.classes == ("tv", "sofa", "person", "b/tvmonitor", "mine")
    joined = build({**datasets, "e": ["person"]}, {"human": ["a/walker", "c/Person"]})
    assert joined.index("e", "person") == joined.id_of("human")


def test_what_one_dataset_tells_apart_stays_apart():
    space = build({"a": ["sofa", "couch"], "b": ["Couch"]})
    assert space.classes == ("sofa", "couch", "Couch")


def test_a_word_with_two_meanings_is_asked_about():
    assert build({"a": ["mouse"], "b": ["Mouse"]}).classes == ("mouse", "Mouse")
    assert build({"a": ["mouse"], "b": ["mouse"]}).classes == ("mouse",)
    with pytest.raises(LabelError, match="class 'Mouse' is in several datasets"):
        build({"a": ["Mouse"], "b": ["Mouse", "Computer mouse"]})


def test_classes_of_weights_keep_their_names():
    known = LabelSpace.build({"zoo": ["tvmonitor", "sofa", "cat"], "old": ["dog"]}, drop=["old/dog"])
    new = {"mine": ["tv", "couch", "dog"], "yours": ["Dog"]}
    space = grown(known, new, merge=with_common_names({}, new, [], known))
    assert space.classes == ("tvmonitor", "sofa", "cat", "dog")
    assert space.sources_of(0) == ["zoo/tvmonitor", "mine/tv"]
    assert space.sources_of(3) == ["mine/dog", "yours/Dog"]
    merged = edited(known, (), [("thing", ["tvmonitor", "sofa"])])
    assert grown(merged, new, merge=with_common_names({}, new, [], merged)).sources_of(1) == [
        "zoo/sofa",
        "mine/couch",
    ]


def test_likely_names_stand_in_no_list_as_something_else():
    for whole, also in FILE["likely"].items():
        assert spelt(whole), whole
        for name in also:
            assert not spelt(name) or common_names().meaning(name) == common_names().meaning(whole), name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("person", "human"), ("car", "Autos"), ("Hard_Hat", "helmet"), ("gloves", "glove"), ("sun hat", "sunhat"),
        ("pedestrian", "pedestrain"), ("fire extinguisher", "fire extinguishor"), ("forklift", "fork lift"),
    ],
)  # fmt: skip
def test_other_words_and_slips_of_the_same(one, other):
    space = LabelSpace.build({"a": [one, "rest"], "b": [other]})
    assert space.likely_duplicates() == [(f"a/{one}", f"b/{other}")]
    assert LabelSpace.build({"a": [one, other, "rest"]}).likely_duplicates() == []  # one dataset tells them apart


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("candle", "handle"), ("toaster", "coaster"), ("active", "inactive"), ("healthy leaf", "unhealthy leaf"),
        ("class_type_1", "class_type_2"), ("boat", "goat"), ("carrot", "parrot"), ("woman", "human"),
    ],
)  # fmt: skip
def test_names_that_only_look_alike(one, other):
    assert LabelSpace.build({"a": [one], "b": [other]}).likely_duplicates() == []


def test_what_is_left_apart_is_told():
    space = LabelSpace.build({"coco": ["tv", "person"], "oi": ["Television", "Computer monitor", "Human face"]})
    (told,) = parts_apart(space)
    assert "by their names part of 'tv': oi/Computer monitor, oi/Television." in told
    assert "`labels.merge: {tv: [coco/tv, oi/Computer monitor, oi/Television]}`" in told
    assert "`labels.overlap: [[tv, Computer monitor], [tv, Television]]`" in told
    rules = yaml.safe_load("{tv: [coco/tv, oi/Computer monitor, oi/Television]}")
    datasets = {name: list(own) for name, own in zip(space.datasets, space.sources, strict=True)}
    assert parts_apart(LabelSpace.build(datasets, merge=rules)) == []
    pairs = [["tv", "Computer monitor"], ["tv", "Television"]]
    assert parts_apart(LabelSpace.build(datasets, overlap=pairs)) == []
    assert parts_apart(LabelSpace.build({"oi": ["Person", "Man"]})) == []  # one dataset knows what it labels
    assert only_alike(space) == [
        "oi/Human face and coco/person are not taken for the same: a face is a part of its person; where one box "
        "may show both, say `labels.overlap`"
    ]
    mice = LabelSpace.build({"coco": ["mouse", "sofa"], "oi": ["Mouse", "Couch"]})
    assert mice.likely_duplicates() == [("coco/sofa", "oi/Couch")]
    assert "the animal in Open Images" in only_alike(mice)[0]
    assert only_alike(LabelSpace.build({"coco": ["mouse"], "oi": ["Mouse"]}, distinct=["Mouse"])) == []


@pytest.mark.parametrize(
    ("datasets", "rules", "rows"),
    [
        ({"a": ["dog", "crane"]}, {}, {0: 2}),
        ({"a": ["TV"]}, {}, {0: 3}),  # by what it means
        ({"a": ["Person", "person"]}, {}, {0: 0, 1: 1}),  # by its letters, where these are there
        ({"a": ["hound"], "b": ["dog"]}, {"merge": {"pet": ["a/hound", "b/dog"]}}, {0: 2}),  # by a source
        ({"a": ["television", "pedestrian"]}, {}, {0: 3, 1: 0}),  # a part of it
        ({"a": ["unused_4", "N/A"]}, {}, {}),
        ({"a": ["dog", "aeroplane"]}, {}, {0: 2, 1: 6}),
    ],
)
def test_rows_of_a_checkpoint_by_name(datasets, rules, rows):
    names = ["Person", "person", "dog", "tv", "unused_4", "dog ", "airplane"]
    assert rows_by_name(LabelSpace.build(datasets, **rules), names) == rows
