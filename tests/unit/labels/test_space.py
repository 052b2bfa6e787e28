"""Label space: merge rules, avoidance, messages."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossdet import LabelSpace
from crossdet.errors import LabelError, UserError
from crossdet.labels.rules import normalised_name, unknown
from crossdet.labels.space import DROPPED, check_class_names


@pytest.fixture
def space() -> LabelSpace:
    return LabelSpace.build(
        datasets={"coco": ["person", "car"], "peds": ["pedestrian"], "faces": ["face"], "aerial": ["ship"]},
        merge={"person": ["coco/person", "peds/pedestrian"]},
        absent={"aerial": ["face"]},
    )


def test_figure_3_of_the_paper():
    """l1..l5 and m1..m3 with l1 = m3: seven labels."""
    space = LabelSpace.build(
        {"l": ["l1", "l2", "l3", "l4", "l5"], "m": ["m1", "m2", "m3"]}, merge={"n2": ["l/l1", "m/m3"]}
    )
    assert space.classes == ("n2", "l2", "l3", "l4", "l5", "m1", "m2")
    assert space.index("l", "l1") == space.index("m", "m3") == 0
    assert len(space.classes) == 7


def test_contract_example(space):
    assert space.classes == ("person", "car", "face", "ship")
    assert space.index("peds", "pedestrian") == space.index("coco", "person") == 0
    expected = [[0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 0, 1], [1, 1, 0, 0]]
    assert torch.equal(space.avoid, torch.tensor(expected, dtype=torch.bool))
    assert torch.equal(space.trusted("faces"), torch.tensor([False, False, True, False]))
    assert torch.equal(space.trusted("aerial"), torch.tensor([False, False, True, True]))
    assert space.annotated.dtype == torch.bool
    assert space.annotated.tolist()[3] == [False, False, False, True]
    assert not space.overlap.any()


def test_tensors_are_copies(space):
    space.avoid.fill_(True)
    assert not space.avoid.all()


def test_json_round_trip():
    space = LabelSpace.build(
        {"a": ["x", "y"], "b": ["x", "z"], "c": ["q"]},
        merge={"same_names": True},
        absent={"c": ["z"]},
        not_exhaustive={"b": ["x"]},
        drop=["a/y"],
        overlap=[["z", "q"]],
        federated=["c"],
    )
    again = LabelSpace.from_json(space.to_json())
    assert again == space
    assert np.array_equal(again.avoid_array, space.avoid_array)


def test_same_names_distinct_and_drop():
    datasets = {"a": ["bank", "car"], "b": ["bank", "car"]}
    space = LabelSpace.build(datasets, merge={"car": ["a/car", "b/car"]}, distinct=["bank"])
    assert space.classes == ("a/bank", "car", "b/bank")
    assert space.likely_duplicates() == []
    assert LabelSpace.build(datasets, merge={"same_names": True}).classes == ("bank", "car")
    dropped = LabelSpace.build(datasets, merge={"same_names": True}, drop={"b": ["bank"]})
    assert dropped.index("b", "bank") == DROPPED
    assert dropped.trusted("b").tolist() == [False, True]  # b's background may show banks


def test_not_exhaustive_is_avoided_but_annotated():
    space = LabelSpace.build(
        {"a": ["car", "truck"], "b": ["car"]},
        merge={"vehicle": ["a/car", "a/truck", "b/car"]},
        not_exhaustive={"b": ["vehicle"]},
    )
    assert space.annotated.tolist() == [[True], [True]]
    assert space.avoid.tolist() == [[False], [True]]
    assert space.partial_merges() == []


def test_partial_merge_is_hinted():
    space = LabelSpace.build(
        {"a": ["car", "truck"], "b": ["car"]}, merge={"vehicle": ["a/car", "a/truck", "b/car"]}
    )
    (hint,) = space.partial_merges()
    assert hint == (
        "'vehicle': b brings only 'car', not 'truck'; if its pictures show them, say "
        "`labels.not_exhaustive: {b: [vehicle]}`"
    )
    synonyms = LabelSpace.build({"a": ["person"], "b": ["human"]}, merge={"person": ["a/person", "b/human"]})
    assert synonyms.partial_merges() == []


def test_a_part_that_is_merged_into_its_whole_is_hinted():
    """One name each: the trucks of b are not labelled, and its background would be a negative for vehicles."""
    datasets, merge = {"a": ["vehicle"], "b": ["car"]}, {"vehicle": ["a/vehicle", "b/car"]}
    space = LabelSpace.build(datasets, merge=merge)
    assert space.trusted("b").tolist() == [True]
    (hint,) = space.partial_merges()
    assert hint == (
        "'vehicle': b brings only 'car', by its name a part of it; if its pictures show others, say "
        "`labels.not_exhaustive: {b: [vehicle]}`"
    )
    answered = LabelSpace.build(datasets, merge=merge, not_exhaustive={"b": ["vehicle"]})
    assert answered.partial_merges() == []
    assert answered.trusted("b").tolist() == [False]


def test_a_merged_name_without_a_box_is_hinted():
    """The trucks that nobody labelled in b would be background of `vehicle`."""
    datasets = {"a": ["vehicle"], "b": ["car", "truck"]}
    rules = {"merge": {"vehicle": ["a/vehicle", "b/car", "b/truck"]}}
    labelled = {"a": {"vehicle"}, "b": {"car"}}
    (hint,) = LabelSpace.build(datasets, **rules).partial_merges(labelled)
    assert hint == (
        "'vehicle': b lists 'truck' and has no box of it; if its pictures show it, say "
        "`labels.not_exhaustive: {b: [vehicle]}`, else drop it"
    )
    answered = LabelSpace.build(datasets, **rules, not_exhaustive={"b": ["vehicle"]})
    assert answered.partial_merges(labelled) == []
    dropped = LabelSpace.build(datasets, merge={"vehicle": ["a/vehicle", "b/car"]}, drop=["b/truck"])
    assert ["by its name a part of it" in hint for hint in dropped.partial_merges(labelled)] == [True]
    assert (
        LabelSpace.build({"b": ["car", "truck"]}, merge={"vehicle": ["b/car", "b/truck"]}).partial_merges(labelled)
        == []
    )


def test_federated_image_trusts_verified_and_present():
    space = LabelSpace.build(
        {"lvis": ["a", "b", "c", "d"], "other": ["e"]}, federated=["lvis"], absent={"lvis": ["e"]}
    )
    assert space.trusted("lvis").tolist() == [False, False, False, False, True]
    row = space.trusted_array("lvis", negatives=[0], present=[1, 2], not_exhaustive=[2, 4])
    assert row.tolist() == [True, True, False, False, True]
    assert space.trusted_array("other", negatives=[0]).tolist() == [False] * 4 + [True]


def test_identical_names_are_an_error():
    with pytest.raises(LabelError, match="several datasets") as error:
        LabelSpace.build({"a": ["car"], "b": ["car"]})
    assert "merge: {car: [a/car, b/car]}" in str(error.value)
    assert isinstance(error.value, ValueError)


def test_a_name_merged_only_in_one_dataset_is_an_error():
    datasets = {"a": ["car", "truck"], "b": ["car"]}
    merge = {"vehicle": ["a/car", "a/truck"]}
    with pytest.raises(LabelError, match="a/car is in this group but b/car, of the same name, is not"):
        LabelSpace.build(datasets, merge=merge)
    assert LabelSpace.build(datasets, merge=merge, distinct=["car"]).classes == ("vehicle", "b/car")


def test_all_mistakes_at_once():
    with pytest.raises(LabelError) as error:
        LabelSpace.build(
            {"a": ["car", "bus"], "b": ["person"]},
            merge={"vehicle": ["a/car", "a/buss"], "big": ["a/car"], "bad": "a/bus"},
            absent={"c": ["vehicle"], "b": ["vehcle"]},
            drop=["b/cat"],
            distinct=["dog"],
            overlap=[["person"], ["person", "fce"]],
        )
    text = str(error.value)
    assert text.startswith("labels: 9 mistake(s)")
    for part in (
        "merge.vehicle: unknown source class 'a/buss'; did you mean 'a/bus'?",
        "merge.big: 'a/car' is already merged into 'vehicle'",
        "merge.bad: 'a/bus' is not a list of source classes 'dataset/name'",
        "drop: unknown source class 'b/cat'",
        "distinct: unknown class 'dog'",
        "absent: unknown dataset 'c'; known: a, b",
        "absent.b: unknown unified class 'vehcle'; did you mean 'vehicle'?",
        "overlap: ['person'] is not a pair of two different unified classes",
        "overlap: unknown unified class 'fce'",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"absent": {"a": ["car"]}}, "absent.a: [car]: but this dataset labels the class"),
        ({"not_exhaustive": {"b": ["car"]}}, "not_exhaustive.b: [car]: this dataset does not label the class"),
        ({"merge": {"person": ["a/car"]}}, "merge.person: b/person has the name of this group but is not in it"),
        ({"merge": {"v": ["a/car"]}, "drop": ["a/car"]}, "'a/car' is also in `drop`"),
        ({"merge": {"same_names": "yes"}}, "merge.same_names: 'yes' is not true or false"),
        ({"drop": ["a/car", "b/person"]}, "drop: no class is left"),
        ({"federated": ["x"]}, "federated: unknown dataset 'x'"),
    ],
)
def test_contradictions(rules, message):
    with pytest.raises(LabelError) as error:
        LabelSpace.build({"a": ["car"], "b": ["person"]}, **rules)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({}, "datasets: none given"),
        ({"a/b": ["x"]}, "must not be empty or hold a '/'"),
        ({"a": []}, "datasets.a: no classes"),
        ({"a": ["x", "x"]}, "datasets.a: class 'x' is listed twice"),
    ],
)
def test_bad_datasets(datasets, message):
    with pytest.raises(LabelError) as error:
        LabelSpace.build(datasets)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("datasets", "messages"),
    [
        (None, ["datasets: none given"]),
        ("car", ["datasets: 'car' is not a map from dataset to class names"]),
        (["a"], ["datasets: ['a'] is not a map from dataset to class names"]),
        ({"a": "car"}, ["datasets.a: 'car' is not a list of class names; write [car]"]),
        ({"a": None}, ["datasets.a: no classes"]),
        ({"a": 5}, ["datasets.a: 5 is not a list of names"]),
        ({"a": ["car", 7]}, ["datasets.a: 7 is not a text"]),
        ({"a": {"car": 0}}, ["datasets.a: {'car': 0} is not a list of names"]),
        ({3: ["car"]}, ["datasets: the key 3 is not a text"]),
    ],
)
def test_datasets_of_the_wrong_kind(datasets, messages):
    with pytest.raises(LabelError) as error:
        LabelSpace.build(datasets)
    assert str(error.value).splitlines()[1:] == [f"  - {message}" for message in messages]


BANKS = {"a": ["bank", "car"], "b": ["bank", "truck"]}


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ({"drop": "a/bank"}, {"drop": ["a/bank"]}),
        ({"drop": {"a": "bank"}}, {"drop": ["a/bank"]}),
        ({"drop": ("a/bank",)}, {"drop": ["a/bank"]}),
        ({"distinct": "bank"}, {"distinct": ["bank"]}),
        ({"distinct": iter(["bank"])}, {"distinct": ["bank"]}),
        ({"distinct": "bank", "absent": {"a": "truck"}}, {"distinct": ["bank"], "absent": {"a": ["truck"]}}),
        (
            {"distinct": ["bank"], "not_exhaustive": {"a": "car"}},
            {"distinct": ["bank"], "not_exhaustive": {"a": ["car"]}},
        ),
        ({"distinct": ["bank"], "federated": "b"}, {"distinct": ["bank"], "federated": ["b"]}),
        (
            {
                "merge": {"same_names": True},
                "drop": None,
                "distinct": None,
                "absent": {"a": None},
                "not_exhaustive": None,
                "overlap": None,
                "federated": None,
            },
            {"merge": {"same_names": True}},
        ),
        ({"merge": None, "absent": None, "drop": {"a": ["bank"], "b": None}}, {"drop": ["a/bank"]}),
    ],
)
def test_one_name_is_a_list_of_one_and_none_is_nothing(one, many):
    assert LabelSpace.build(BANKS, **one) == LabelSpace.build(BANKS, **many)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"overlap": [1]}, "overlap: 1 is not a pair of two different unified classes"),
        ({"overlap": ["car"]}, "overlap: 'car' is not a pair"),
        ({"overlap": "car"}, "overlap: 'car' is not a list of pairs"),
        ({"overlap": 5}, "overlap: 5 is not a list of pairs"),
        ({"overlap": [[1, "car"]]}, "overlap: unknown unified class 1"),
        ({"overlap": [{"car", "truck"}]}, "is not a pair of two different unified classes"),
        ({"absent": ["x"]}, "absent: ['x'] is not a map from dataset to unified classes"),
        ({"absent": {5: ["car"]}}, "absent: the key 5 is not a text"),
        ({"absent": {"b": 5}}, "absent.b: 5 is not a list of names"),
        ({"absent": {"b": [5]}}, "absent.b: 5 is not a text"),
        ({"not_exhaustive": "a"}, "not_exhaustive: 'a' is not a map"),
        ({"distinct": 5}, "distinct: 5 is not a list of names"),
        ({"distinct": [5]}, "distinct: 5 is not a text"),
        ({"drop": 5}, "drop: 5 is not a list of names"),
        ({"drop": {"a": 5}}, "drop.a: 5 is not a list of names"),
        ({"drop": [["a", "bank"]]}, "drop: ['a', 'bank'] is not a text"),
        ({"merge": ["a/bank"]}, "merge: ['a/bank'] is not a map from unified name to source classes"),
        ({"merge": {True: ["a/bank"]}}, "merge: the name True is not a text"),
        ({"merge": {"x": [5]}}, "merge.x: unknown source class 5"),
        ({"merge": {"x": [["a"]]}}, "merge.x: unknown source class ['a']"),
        ({"merge": {"x": {"a": 1}}}, "merge.x: {'a': 1} is not a list of source classes"),
        ({"federated": 5}, "federated: 5 is not a list of names"),
        ({"federated": [True]}, "federated: True is not a text"),
    ],
)
def test_rules_of_the_wrong_kind(rules, message):
    with pytest.raises(LabelError) as error:
        LabelSpace.build(BANKS, **{"merge": {"same_names": True}} | rules)
    assert message in str(error.value)


def test_likely_duplicates():
    space = LabelSpace.build({"a": ["Traffic_Lights", "person"], "b": ["traffic light", "People", "cat"]})
    assert space.likely_duplicates() == [("a/Traffic_Lights", "b/traffic light"), ("a/person", "b/People")]
    merged = LabelSpace.build({"a": ["car", "truck"], "b": ["cars"]}, merge={"vehicle": ["a/car", "a/truck"]})
    assert merged.likely_duplicates() == [("a/car", "b/cars")]
    datasets = {"a": ["person"], "b": ["human"]}
    assert LabelSpace.build(datasets).likely_duplicates() == [("a/person", "b/human")]
    for answer in ({"overlap": [["person", "human"]]}, {"distinct": ["human"]}, {"distinct": ["a/person"]}):
        assert LabelSpace.build(datasets, **answer).likely_duplicates() == []
    three = {"a": ["car"], "b": ["car"], "c": ["cars"]}  # that two are different says nothing of the third
    assert LabelSpace.build(three, distinct=["car"]).likely_duplicates() == [
        ("a/car", "c/cars"),
        ("b/car", "c/cars"),
    ]
    assert LabelSpace.build(three, distinct=["car", "cars"]).likely_duplicates() == []
    alone = LabelSpace.build({"a": ["car", "Car ", "cars", "cat"]})  # in one dataset names that differ are meant
    assert alone.likely_duplicates() == [("a/car", "a/Car ")]


@pytest.mark.parametrize(
    ("name", "folded"),
    [("Cars", "car"), ("bus", "bus"), ("glass", "glass"), ("sandwiches", "sandwich"), ("berries", "berry")],
)
def test_fold(name, folded):
    assert normalised_name(name) == folded


def test_lookups_name_what_is_known(space):
    with pytest.raises(LabelError, match="unknown dataset 'pets'"):
        space.index("pets", "dog")
    with pytest.raises(LabelError, match="'peds' has no class 'person'; it has pedestrian"):
        space.index("peds", "person")
    assert unknown("class", "rbc", ["Platelets", "RBC"]) == "unknown class 'rbc'; did you mean 'RBC'?"
    with pytest.raises(LabelError, match="did you mean 'person'"):
        space.id_of("persn")
    assert space.sources_of(0) == ["coco/person", "peds/pedestrian"]


def test_classes_of_a_split_must_be_known():
    check_class_names("a", ["x", "y"], ["y"], "val.json")
    with pytest.raises(UserError) as error:
        check_class_names("a", ["x"], ["x", "z"], "val.json")
    assert str(error.value) == (
        "val.json: class 'z' is not among the classes of the training split of 'a' (x); add the class to the "
        "training file's categories, or remove it from this split; for voc list all classes under "
        "`datasets.a.classes`"
    )


def test_many_equal_names_are_one_line():
    many = [f"class_{number}" for number in range(12)]
    with pytest.raises(LabelError) as error:
        LabelSpace.build({"a": many, "b": many, "c": ["other"]})
    (line,) = str(error.value).splitlines()[1:]
    assert line.startswith("  - 12 classes are in several of the datasets a, b: class_0, class_1, ")
    assert line.endswith("(`merge: {same_names: true}`), or list those that mean different things under `distinct`")


names = st.lists(st.sampled_from("pqrstuvw"), min_size=1, max_size=5, unique=True)


@given(st.dictionaries(st.sampled_from(["d1", "d2", "d3", "d4"]), names, min_size=1), st.randoms())
def test_permuting_datasets_permutes_rows_and_columns(datasets, random):
    space = LabelSpace.build(datasets, merge={"same_names": True})
    order = list(datasets)
    random.shuffle(order)
    other = LabelSpace.build({name: datasets[name] for name in order}, merge={"same_names": True})
    assert set(other.classes) == set(space.classes)
    rows = [other.datasets.index(name) for name in space.datasets]
    columns = [other.classes.index(name) for name in space.classes]
    assert np.array_equal(other.avoid_array[np.ix_(rows, columns)], space.avoid_array)


def test_a_name_that_a_dataset_lists_and_does_not_label_needs_no_merge():
    """There is no object of it that could be another thing."""
    both = {"yard": ["person", "forklift"], "gate": ["truck", "forklift"]}
    boxes = {"yard": {"person", "forklift"}, "gate": {"truck"}}
    for rule in ("unlabelled", "absent"):
        space = LabelSpace.build(both, labelled=boxes, **{rule: {"gate": ["forklift"]}})
        assert space.classes == ("person", "forklift", "truck")
        assert space.avoid_array[1].tolist() == [True, rule == "unlabelled", False]
        with pytest.raises(LabelError, match="but this dataset labels the class"):
            LabelSpace.build(both, labelled={**boxes, "gate": {"forklift"}}, **{rule: {"gate": ["forklift"]}})
    with pytest.raises(LabelError, match="class 'forklift' is in several datasets"):
        LabelSpace.build(both, labelled=boxes)
    with pytest.raises(LabelError, match="unknown unified class 'yard/forklift'; yard/forklift is 'forklift' here"):
        LabelSpace.build(both, merge={"same_names": True}, overlap=[["yard/forklift", "gate/forklift"]])
