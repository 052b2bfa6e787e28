"""Classes that a dataset lists and has no box of, while others have: nobody's background is trusted unasked."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossdet.check import inspect
from crossdet.config import Config
from crossdet.config.listed_only import listed_only_notes
from crossdet.config.sources import open_sources, union_test_index
from crossdet.data.index import Index, IndexBuilder
from crossdet.errors import LabelError, UserError
from crossdet.labels.edits import edited, grown
from crossdet.labels.space import DROPPED, LabelSpace
from crossdet.runs.building import check_trainable, training_data
from crossdet.runs.evaluate import splits_for_training

BOX = (10, 10, 40, 40)
CLASSES = ("cup", "plate")
SAME = {"same_names": True}


def made(root: Path, boxes: list[int], classes: tuple[str, ...] = CLASSES, seed: int = 0) -> Index:
    """One image per entry of `boxes`, which says the class of its one box."""
    rng = np.random.default_rng(seed)
    builder = IndexBuilder(root)
    root.mkdir(parents=True, exist_ok=True)
    for number, label in enumerate(boxes):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(root / f"{number}.png")
        builder.image(f"{number}.png", 48, 64)
        builder.box(BOX, label, 0)
    return builder.build(classes)


@pytest.fixture
def halves(tmp_path) -> dict[str, Index]:
    """Two datasets with one list of names, each labelling its own class only."""
    return {"a": made(tmp_path / "a", [0, 0]), "b": made(tmp_path / "b", [1, 1, 1], seed=1)}


def configured(datasets: dict, labels: dict | None = None, **train) -> Config:
    sections = {"labels": {"merge": SAME, **(labels or {})}, "train": train}
    return Config.from_dict({"datasets": datasets, "input": {"shorter": 48, "longer": 80}, **sections})


def test_an_unanswered_class_stops_check_and_train(halves):
    config = configured(halves)
    errors = "\n".join(inspect(config).errors)
    for part in (
        "a: plate (boxes in b)",
        "b: cup (boxes in a)",
        "unlabelled: {a: [plate], b: [cup]}",
        "absent: {a: [plate], b: [cup]}",
        "`labels.drop`",
    ):
        assert part in errors
    with pytest.raises(UserError, match="taken for a negative"):
        check_trainable(open_sources(config))


def test_naive_training_on_purpose_is_not_asked(halves):
    config = configured(halves, plain=True)
    assert not inspect(config).errors
    check_trainable(open_sources(config), config.train.plain)


@pytest.mark.parametrize(("rule", "trusted"), [("unlabelled", False), ("absent", True)])
def test_each_answer_means_what_it_says(halves, rule, trusted):
    config = configured(halves, {rule: {"a": ["plate"], "b": ["cup"]}})
    report, sources = inspect(config), open_sources(config)
    assert not report.errors
    assert not report.dropped
    check_trainable(sources)
    data = training_data(config, sources)
    _, of_a = data.annotations(0, 0)
    _, of_b = data.annotations(1, 0)
    assert of_a.tolist() == [True, trusted]
    assert of_b.tolist() == [trusted, True]
    states = {c.name: c.states for c in report.classes}
    assert states["plate"] == {"a": "absent" if trusted else "avoided", "b": "labelled"}


def test_what_is_unlabelled_is_not_judged_there(halves, tmp_path):
    datasets = {
        name: {"train": index, "val": made(tmp_path / f"{name}_val", [label], seed=2 + label)}
        for label, (name, index) in enumerate(halves.items())
    }
    config = configured(datasets, {"unlabelled": {"a": ["plate"], "b": ["cup"]}})
    splits = splits_for_training(open_sources(config))
    assert [splits[name].classes for name in ("a", "b")] == [[0], [1]]


def test_boxes_contradict_both_answers(halves):
    for rule in ("unlabelled", "absent"):
        with pytest.raises(LabelError, match=rf"{rule}\.a: \[cup\]: but this dataset labels the class"):
            open_sources(configured(halves, {rule: {"a": ["cup", "plate"], "b": ["cup"]}}))
    both = {"unlabelled": {"a": ["plate"]}, "absent": {"a": ["plate"], "b": ["cup"]}}
    with pytest.raises(LabelError, match=r"a: \[plate\] is both under `absent`"):
        open_sources(configured(halves, both))


def test_nobody_left_to_label_a_class(tmp_path):
    only = {"a": made(tmp_path / "a", [0])}
    with pytest.raises(LabelError, match="'plate': no dataset is left that labels it"):
        open_sources(configured(only, {"unlabelled": {"a": ["plate"]}}))


@pytest.mark.parametrize(
    "of_a",
    [
        {"classes": ("cup",)},  # not listed: avoided anyway
        {"val": [0, 1]},  # the other split shows that it is labelled
        {"part": "1/2"},  # the pictures that are left out show it
    ],
)
def test_who_is_not_asked(tmp_path, of_a):
    boxes = [0, 1] if "part" in of_a else [0, 0]
    first: dict = {"train": made(tmp_path / "a", boxes, of_a.get("classes", CLASSES))}
    if "val" in of_a:
        first["val"] = made(tmp_path / "v", of_a["val"], seed=3)
    if "part" in of_a:
        first["part"] = of_a["part"]
    others = {"train": made(tmp_path / "b", [0, 1], seed=1)}
    assert not open_sources(configured({"a": first, "b": others})).listed_only


def test_without_boxes_anywhere_there_is_nothing_to_ask(tmp_path):
    datasets = {"a": made(tmp_path / "a", [0]), "b": made(tmp_path / "b", [0], seed=1)}
    assert not open_sources(configured(datasets)).listed_only


def test_classes_per_dataset_are_asked_about_as_one(halves):
    sources = open_sources(configured(halves, {"per_dataset": ["cup", "plate"]}))
    assert [(one.dataset, one.classes) for one in sources.listed_only] == [("a", ("plate",)), ("b", ("cup",))]
    answered = configured(halves, {"per_dataset": ["cup", "plate"], "unlabelled": {"a": ["plate"], "b": ["cup"]}})
    assert not open_sources(answered).listed_only


def test_an_extension_is_asked_about_classes_of_the_weights(tmp_path):
    known = LabelSpace.build({"old": ["plate"]})
    new = {"a": made(tmp_path / "a", [0, 0])}
    sources = open_sources(configured(new), known=known)
    assert sources.listed_only == (("a", ("plate",), ("the weights",)),)
    answered = open_sources(configured(new, {"unlabelled": {"a": ["plate"]}}), known=known)
    assert not answered.listed_only
    assert answered.space.trusted_array("a").tolist() == [False, True]  # plate, cup


def test_a_part_of_what_the_weights_learnt_from_is_not_asked(tmp_path):
    known = LabelSpace.build({"old": ["cup", "plate"]})
    part = {"old": made(tmp_path / "a", [0, 0])}  # the rare class is not among the replayed pictures
    assert not open_sources(configured(part), known=known).listed_only


def test_an_extension_may_repeat_the_answer():
    rules = {"merge": {"cup": ["a/cup", "b/cup"]}, "unlabelled": {"a": ["plate"]}}
    boxes = {"a": {"cup"}, "b": {"cup", "plate"}}
    names = {"a": ["cup", "plate"], "b": ["cup", "plate"]}
    merged = {**rules["merge"], "plate": ["a/plate", "b/plate"]}
    known = LabelSpace.build(names, merge=merged, unlabelled=rules["unlabelled"], labelled=boxes)
    assert known.index("a", "plate") == DROPPED
    assert not known.trusted_array("a")[1]
    again = grown(
        LabelSpace.from_json(known.to_json()),
        {**names, "c": ["bowl"]},
        merge=merged,
        unlabelled=rules["unlabelled"],
        labelled={**boxes, "c": {"bowl"}},
    )
    assert again.classes == ("cup", "plate", "bowl")
    assert again.trusted_array("a").tolist() == [True, False, False]


def test_the_commands_stop_with_status_2(tmp_path, crossdet):
    for name, boxes in (("a", [0]), ("b", [1])):
        made(tmp_path / name, boxes, seed=len(name))
        rows = [{"id": 1, "image_id": 1, "category_id": boxes[0] + 1, "bbox": [10, 10, 30, 30], "area": 900}]
        content = {
            "images": [{"id": 1, "file_name": "0.png", "width": 64, "height": 48}],
            "categories": [{"id": n + 1, "name": text} for n, text in enumerate(CLASSES)],
            "annotations": rows,
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    file = tmp_path / "c.yaml"
    parts = "".join(f"  {n}: {{format: coco, train: {{images: {n}, annotations: {n}.json}}}}\n" for n in ("a", "b"))
    file.write_text(f"datasets:\n{parts}labels: {{merge: {{same_names: true}}}}\n")
    for words in (["check", file], ["train", file, "--output", tmp_path / "run"]):
        done = crossdet(*words)
        assert done.returncode == 2
        assert "unlabelled: {a: [plate], b: [cup]}" in " ".join((done.stdout + done.stderr).split())
    assert not (tmp_path / "run").exists()


def test_members_of_a_merged_class_are_asked_about_one_by_one(tmp_path):
    """Pictures without trucks may be full of cars: they are merged in the weights, and different things."""
    known = edited(LabelSpace.build({"old": ["cup", "plate"]}), [], [("dishes", ["cup", "plate"])])
    new = {"a": made(tmp_path / "a", [0, 0])}  # lists both, labels cups
    assert open_sources(configured(new), known=known).listed_only == (("a", ("plate",), ("the weights",)),)
    answered = open_sources(configured(new, {"unlabelled": {"a": ["plate"]}}), known=known)
    assert not answered.listed_only
    assert answered.space.trusted_array("a").tolist() == [True, False]


def test_the_name_of_a_merged_class_stands_for_its_members(tmp_path):
    known = edited(LabelSpace.build({"old": ["cup", "plate"]}), [], [("dishes", ["cup", "plate"])])
    new = {"a": made(tmp_path / "a", [2], ("cup", "plate", "spoon"))}
    answered = open_sources(configured(new, {"unlabelled": {"a": ["dishes"]}}), known=known)
    assert not answered.listed_only
    assert answered.space.trusted_array("a").tolist() == [False, False, True]


def test_an_old_dataset_is_asked_about_when_another_one_brings_boxes(tmp_path):
    """Trained alone it was no question: nobody had plates. The extension would train its plates as background."""
    known = LabelSpace.build({"a": ["cup", "plate"]})
    datasets = {"a": made(tmp_path / "a", [0, 0]), "b": made(tmp_path / "b", [0, 1], seed=1)}
    assert open_sources(configured(datasets), known=known).listed_only == (("a", ("plate",), ("b",)),)
    answered = open_sources(configured(datasets, {"unlabelled": {"a": ["plate"]}}), known=known)
    assert not answered.listed_only
    assert answered.space.trusted_array("a").tolist() == [True, False]


@pytest.mark.parametrize("rule", ["absent", "unlabelled"])
def test_boxes_that_came_later_contradict_the_weights(tmp_path, rule):
    before = {"a": made(tmp_path / "a", [0]), "b": made(tmp_path / "b", [0, 1], seed=1)}
    known = open_sources(configured(before, {rule: {"a": ["plate"]}})).space
    after = {"a": made(tmp_path / "c", [0, 1]), "b": before["b"]}
    for labels in ({}, {rule: {"a": ["plate"]}}):
        with pytest.raises(LabelError, match="does not label it, but its files have boxes of it now"):
            open_sources(configured(after, labels), known=LabelSpace.from_json(known.to_json()))
    assert not open_sources(configured(before), known=known).listed_only
    again = open_sources(configured(before), known=known).space  # and the next generation still knows it
    assert again.listed_only == known.listed_only == {(0, "plate", 1)}


def test_absent_in_the_weights_and_unlabelled_now():
    names, boxes = {"a": ["cup"], "b": ["plate"]}, {"a": {"cup"}, "b": {"plate"}}
    known = LabelSpace.build(names, absent={"a": ["plate"]})
    with pytest.raises(LabelError, match="the weights know 'plate' as absent from this dataset"):
        grown(known, {**names, "c": ["bowl"]}, unlabelled={"a": ["plate"]}, labelled=boxes)


def test_what_was_not_read_contradicts_nothing(halves, tmp_path):
    """Evaluation opens the val splits; a dataset without one is known by its training files, or not at all."""
    rules = {"unlabelled": {"a": ["plate"]}}
    val = made(tmp_path / "v", [0, 1], seed=5)
    config = configured({"a": halves["a"], "b": {"train": halves["b"], "val": val}}, rules)
    assert open_sources(config, ["val"]).space.avoid_array[0].tolist() == [False, True]
    known = LabelSpace.build({"a": ["cup", "plate"], "b": ["cup", "plate"]}, merge=SAME)
    assert open_sources(config, ["val"], detector=known).val.keys() == {"b"}


def test_a_dataset_for_validation_is_asked_about_too(halves, tmp_path):
    """Its unlabelled plates would count as wrong, and move the stored threshold."""
    whole = made(tmp_path / "w", [0, 1], seed=4)
    config = configured({"w": whole, "q": {"val": halves["a"]}})
    assert [(one.dataset, one.classes) for one in open_sources(config).listed_only] == [("q", ("plate",))]
    # where nothing is trained it is a note
    config = configured({"w": {"val": whole}, "q": {"val": halves["a"]}})
    notes = listed_only_notes(open_sources(config).listed_only)
    assert notes["q"].startswith(
        "lists plate and has no box of it, while w has; what is found of it counts as wrong"
    )
    assert notes["q"].endswith("`labels.unlabelled: {q: [plate]}`")
    report = inspect(config)
    assert f"q {notes['q']}" in report.notes
    assert report.errors == ()


def test_a_merge_with_a_source_that_is_only_listed_is_told(tmp_path):
    datasets = {"a": made(tmp_path / "a", [0]), "b": made(tmp_path / "b", [0, 1], seed=1)}
    merge = {"dishes": ["a/cup", "a/plate", "b/cup", "b/plate"]}
    config = configured(datasets, {"merge": merge})
    warnings = "\n".join(inspect(config).warnings)
    assert "'dishes': a brings only 'cup', not 'plate'" in warnings
    assert "brings only" not in "\n".join(inspect(configured({"b": datasets["b"]})).warnings)


def test_a_merged_class_that_is_only_listed(tmp_path):
    known = edited(LabelSpace.build({"old": ["cup", "plate"]}), [], [("dishes", ["cup", "plate"])])
    new = {"a": made(tmp_path / "a", [1], ("dishes", "spoon"))}
    answered = open_sources(configured(new, {"unlabelled": {"a": ["dishes"]}}), known=known)
    assert answered.space.reported == ("dishes", "spoon")
    assert answered.space.trusted_array("a").tolist() == [False, False, True]


def test_common_names_are_merged_where_a_config_asks_for_them(tmp_path):
    classes = {"a": ("tv", "person"), "b": ("Television", "aeroplane"), "c": ("airplane", "Human face")}
    datasets = {name: made(tmp_path / name, [0, 1], own) for name, own in classes.items()}
    report = inspect(configured(datasets, {"merge": {"same_names": "common"}}))
    assert [c.name for c in report.classes] == ["tv", "person", "Television", "aeroplane", "Human face"]
    assert any("by their names part of 'tv': b/Television" in text for text in report.warnings)
    assert any("c/Human face and a/person are not taken for the same" in text for text in report.notes)
    labels = {"merge": {"same_names": "common"}, "unlabelled": {"a": ["a*"]}}  # of the merged names
    (pattern,) = open_sources(configured(datasets, labels)).patterns
    assert pattern.names == ("aeroplane",)
    apart = inspect(configured(datasets, {"merge": None}))
    assert any("likely the same class, not merged: b/aeroplane and c/airplane" in text for text in apart.warnings)


def test_a_federated_dataset_of_the_weights_stays_so(tmp_path):
    """Without lists in its files it was refused until `federated: true` was said again."""
    known = LabelSpace.build({"a": ["cup", "plate"]}, federated=["a"])
    a = made(tmp_path / "a", [0, 1])
    assert open_sources(configured({"a": a}), known=known).space.federated == {0}
    config = Config.from_dict({"datasets": {"a": {"train": a, "federated": False}}})
    with pytest.raises(LabelError, match="is federated in the weights and not in the config"):
        open_sources(config, known=known)


def test_names_of_an_index_are_read_as_those_of_files(tmp_path):
    """Weights have them so: `cup ` would be no class of theirs."""
    index = made(tmp_path / "a", [0, 1], ("cup ", "cafe\u0301"))
    assert open_sources(configured({"a": {"train": index}})).train["a"].classes == ("cup", "caf\u00e9")
    config = configured({"a": {"train": index, "ignore_classes": [" cafe\u0301"]}})
    assert open_sources(config).train["a"].classes == ("cup",)
    assert union_test_index(index).classes == ("cup", "caf\u00e9")
    twins = made(tmp_path / "b", [0, 1], ("cup ", "cup"))
    assert open_sources(configured({"b": {"train": twins}})).space.classes == ("cup ", "cup")  # two stay two
