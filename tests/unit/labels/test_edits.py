"""A label space that grows by name and refuses contradictions; classes renamed and merged with their rows."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from crossdet import LabelSpace, UserError, load_detector
from crossdet.errors import LabelError
from crossdet.labels.edits import edited, grown
from crossdet.models.building import build_detector
from crossdet.models.card import Card, Generation, InputSettings, Score, read_card
from crossdet.models.retinanet.settings import RetinaNetSettings
from crossdet.models.weights import save_weights, update_card
from crossdet.runs.relabel import relabel
from crossdet.training.identity import differences


@pytest.fixture
def known() -> LabelSpace:
    return LabelSpace.build(
        {"coco": ["person", "car", "bank", "tie"], "peds": ["pedestrian", "bank"], "aerial": ["ship"]},
        merge={"person": ["coco/person", "peds/pedestrian"]},
        distinct=["bank"],
        drop=["coco/tie"],
        absent={"aerial": ["person"]},
        overlap=[["person", "car"]],
    )


KNOWN = ("person", "car", "coco/bank", "peds/bank", "ship")


def test_growing_keeps_ids_rows_and_rules(known):
    assert known.classes == KNOWN
    space = grown(
        known,
        {"animals": ["zebra", "human"], "coco": ["antenna", "person", "car", "bank", "tie"]},
        merge={"person": ["animals/human"]},
        absent={"aerial": ["zebra"]},
        overlap=[["person", "zebra"]],
    )
    # a class that an old dataset gained comes after all old ones, although its dataset is the first
    assert space.classes == (*KNOWN, "antenna", "zebra")
    assert space.datasets == ("coco", "peds", "aerial", "animals")
    assert space.sources[:3] == (
        {"person": 0, "car": 1, "bank": 2, "tie": -1, "antenna": 5},
        {"pedestrian": 0, "bank": 3},
        {"ship": 4},
    )
    assert space.index("animals", "human") == 0
    assert (space.annotated_array[:3, :5] == known.annotated_array).all()
    assert (space.avoid_array[:3, :5] == known.avoid_array).all()
    assert space.overlap_pairs == {(0, 1), (0, 6)}
    assert space.absent_pairs == {(2, 0), (2, 6)}


@pytest.mark.parametrize("order", [["b", "a"], ["a", "b"]])
def test_old_ids_do_not_depend_on_the_order_of_the_config(known, order):
    given = {"a": ["x"], "b": ["y"]}
    space = grown(known, {name: given[name] for name in order})
    assert space.classes == (*KNOWN, *(given[name][0] for name in order))


def test_growing_by_nothing_changes_nothing(known):
    assert grown(known, {}) == known
    same = grown(known, {"peds": ["pedestrian", "bank"]}, distinct=["bank"], drop=["coco/tie"])
    assert same == known


def test_what_is_labelled_in_part_or_federated_stays_so():
    known = LabelSpace.build(
        {"a": ["car"], "b": ["car2"], "lvis": ["cup"]},
        merge={"car": ["a/car", "b/car2"]},
        not_exhaustive={"b": ["car"]},
        federated=["lvis"],
    )
    space = grown(known, {"lvis": ["cup"], "c": ["plane", "auto"]}, merge={"car": ["c/auto"]},
                  not_exhaustive={"c": ["plane"]}, federated=["lvis"])  # fmt: skip
    assert space.classes == ("car", "cup", "plane")
    assert space.federated == {2}
    assert space.not_exhaustive_pairs == {(1, 0), (3, 2)}
    with pytest.raises(LabelError, match=r"datasets\.lvis: is federated in the weights and not in the config"):
        grown(known, {"lvis": ["cup"]})


def test_growing_twice(known):
    once = grown(known, {"a": ["x"]})
    twice = grown(once, {"b": ["z", "x"]}, merge={"same_names": True})
    assert twice.classes == (*KNOWN, "x", "z")
    assert twice.index("b", "x") == 5


def test_an_old_name_must_be_merged_or_distinct(known):
    with pytest.raises(LabelError, match=r"merge\.car: new/car has the name of this group but is not in it"):
        grown(known, {"new": ["car"]})
    assert grown(known, {"new": ["car"]}, merge={"car": ["new/car"]}).index("new", "car") == 1
    assert grown(known, {"new": ["car"]}, merge={"same_names": True}).index("new", "car") == 1
    assert grown(known, {"new": ["car"]}, distinct=["car"]).classes == (*KNOWN, "new/car")
    # a source name of a merged class counts as well
    with pytest.raises(LabelError, match="peds/pedestrian is in this group but new/pedestrian"):
        grown(known, {"new": ["pedestrian"]})


CONTRADICTIONS = {
    "renamed": (
        {"coco": ["person", "car", "bank", "tie"]},
        {"merge": {"automobile": ["coco/car"]}},
        r"merge\.automobile: the weights know coco/car as 'car', not as 'automobile'; `crossdet labels`",
    ),
    "merged otherwise": (
        {"new": ["walker", "pedestrian"]},
        {"merge": {"walker": ["new/walker", "new/pedestrian"]}},
        r"merge\.walker: new/pedestrian would be 'walker', but the weights know peds/pedestrian as 'person'",
    ),
    "name of a group": (
        {"new": ["walker"]},
        {"merge": {"pedestrian": ["new/walker"]}},
        r"merge\.pedestrian: the weights know peds/pedestrian as 'person'; use that class",
    ),
    "dropped": (
        {"coco": ["person", "car", "bank", "tie"]},
        {"drop": ["coco/car"]},
        r"drop: the weights learnt coco/car as 'car'",
    ),
    "no longer dropped": (
        {"coco": ["person", "car", "bank", "tie"]},
        {"merge": {"tie": ["coco/tie"]}},
        r"merge\.tie: the weights dropped coco/tie",
    ),
    "lost": (
        {"coco": ["person", "bank"]},
        {},
        r"datasets\.coco: the weights know it with class 'car', which its files no longer",
    ),
    "distinct": (
        {"coco": ["person", "car", "bank", "tie"]},
        {"distinct": ["car"]},
        r"distinct: 'car' would be a class of its own, but the weights know coco/car as 'car'",
    ),
    "federated": ({"aerial": ["ship"]}, {"federated": ["aerial"]}, r"datasets\.aerial: is federated"),
    "absent": (
        {"aerial": ["ship", "human"]},
        {"merge": {"person": ["aerial/human"]}},
        r"together with those of the weights: .*\n.*absent\.aerial: \[person\]: but this dataset labels",
    ),
    "absent, by weights": (  # its pictures are not there, whose boxes would say so
        {"new": ["x"]},
        {"absent": {"peds": ["person"]}},
        r"absent\.peds: the weights know this dataset as one that labels 'person', and it is not in the config",
    ),
    "absent, new rule": (
        {"peds": ["pedestrian", "bank"]},
        {"absent": {"peds": ["person"]}},
        r"absent\.peds: \[person\]: but this dataset labels the class",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_contradiction_is_named(known, case):
    datasets, rules, message = CONTRADICTIONS[case]
    with pytest.raises(LabelError, match=message):
        grown(known, datasets, **rules)


def test_all_contradictions_at_once(known):
    with pytest.raises(LabelError, match=r"2 contradiction\(s\)") as error:
        grown(
            known,
            {"coco": ["person", "car", "bank", "tie"]},
            merge={"automobile": ["coco/car"]},
            drop=["coco/person"],
        )
    assert str(error.value).count("\n  - ") == 2


def test_another_meaning_can_be_declared(known):
    """`distinct` says that a name means something else in the new dataset, merged or not."""
    space = grown(known, {"new": ["pedestrian"]}, merge={"toy": ["new/pedestrian"]}, distinct=["pedestrian"])
    assert space.classes == (*KNOWN, "toy")


# ------------------------------------------------------------------------------------ renaming and merging


def test_renaming_keeps_everything_else(known):
    space = edited(known, [("car", "auto"), ("ship", "car")], [])
    assert space.classes == ("person", "auto", "coco/bank", "peds/bank", "car")
    assert space == LabelSpace(**{**vars_of(known), "classes": space.classes})


def vars_of(space: LabelSpace) -> dict:
    return {name: getattr(space, name) for name in LabelSpace.__dataclass_fields__}


def test_names_hold_no_signs_with_a_meaning(known):
    with pytest.raises(UserError, match=r"(?s)'a,b': `,` separates.*'car@90': `@` stands before"):
        edited(known, [("car", "a,b")], [("car@90", ["coco/bank", "peds/bank"])])


def test_all_mistakes_of_an_edit_at_once(known):
    with pytest.raises(UserError) as error:
        edited(
            known,
            [("cat", "dog"), ("car", "ship"), ("person", "")],
            [("all", ["person"]), ("b", ["coco/bank", "coco/bank"])],
        )
    text = str(error.value)
    for part in (
        "unknown class 'cat'",
        "'ship' would be the name of 2 classes",
        "a class needs a name",
        "merge 'all': expected at least two classes, got person",
        "class 'coco/bank' is named 2 times",
        "class 'person' is named 2 times",
    ):
        assert part in text, part


SETTINGS = RetinaNetSettings(backbone="test_efficientnet", channels=16, head_depth=1, freeze_batch_norm=False)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_detector(SETTINGS, 5)
    with torch.no_grad():  # as if it had learnt something
        model.class_subnet.predict.weight.normal_(0, 0.3)
        model.class_subnet.predict.bias.add_(torch.randn(45))
    return model.eval()


def save(path, model, space, **more):
    card = Card(space, SETTINGS, InputSettings(64, 96), {"topk": 100, "nms_iou": 0.5}, **more)
    save_weights(path, model.state_dict(), card)
    return path


def test_relabelled_weights_predict_under_their_new_names(known, model, tmp_path):
    points = {"car": {"threshold": 0.4}, "coco/bank": {"threshold": 0.5}, "peds/bank": {"threshold": 0.2}}
    old = save(tmp_path / "old.safetensors", model, known, operating=points)
    read = {"coco": ["car"], "peds": ["pedestrian", "bank"]}
    score = Score("car", "coco", "coco AP", 0.5)
    update_card(old, generations=(Generation("train", read, list(known.classes), scores=(score,)),))
    before = old.read_bytes()
    new = tmp_path / "new.safetensors"
    relabel(old, new, [("car", "auto")], [("bank", ["coco/bank", "peds/bank"])])
    detector, parent = load_detector(new, "cpu"), load_detector(old, "cpu")
    assert detector.reported == ("person", "auto", "bank", "ship")
    assert detector.classes == ("person", "auto", "coco/bank", "peds/bank", "ship")
    # nothing is known of the merged class; its members keep their thresholds
    assert detector.thresholds == {"auto": 0.4, "coco/bank": 0.5, "peds/bank": 0.2}
    assert detector.thresholds_used(None) == {"person": 0.3, "auto": 0.4, "bank": 0.3, "ship": 0.3}
    picture = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    for there, here in (("car", "auto"), ("ship", "ship")):
        a, b = parent(picture, there, 0.0), detector(picture, here, 0.0)
        assert len(a)
        assert torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.scores, b.scores)
    history = read_card(new).generations
    assert [g.mode for g in history] == ["train", "labels"]
    assert history[1].edits == ("rename car=auto", "merge bank=coco/bank,peds/bank")
    assert history[0].datasets["peds"] == ["pedestrian", "bank"]
    assert history[0].scores == (Score("auto", "coco", "coco AP", 0.5),)  # one line in the plot
    assert old.read_bytes() == before
    assert read_card(new).input == read_card(old).input


def test_command(known, model, tmp_path, command, capsys):
    old = save(tmp_path / "old.safetensors", model, known)
    code, printed = command("labels", old, "--rename", "car=auto", "--merge", "bank=coco/bank,peds/bank")
    assert code == 0
    assert "4 classes: person, auto, bank, ship" in printed
    assert "bank: the best of coco/bank, peds/bank\n" in printed
    assert "no threshold is stored for bank, so predict reports from the default of 0.3 on" in printed
    assert load_detector(tmp_path / "relabelled.safetensors", "cpu").reported[1] == "auto"


def test_the_command_takes_names_with_a_space_at_their_end(model, tmp_path, command):
    known = LabelSpace.build({"a": ["car ", "truck", "bus", "van", "ship"]})
    old = save(tmp_path / "old.safetensors", model, known)
    code, printed = command("labels", old, "--rename", "car =auto", "--merge", "big= truck ,bus")
    assert code == 0, printed
    assert "4 classes: auto, big, van, ship" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to do"),
        (["--rename", "car"], "expected OLD=NEW"),
        (["--merge", "x="], "expected NEW=A,B"),
        (["--rename", "a=b", "-o", "x.pt"], "ends in .safetensors"),
        (["--rename", "nothing=b"], "unknown class 'nothing'"),
    ],
)
def test_mistakes_of_the_command(known, model, tmp_path, monkeypatch, capsys, arguments, message):
    import sys

    from crossdet.commands import main as cli

    old = save(tmp_path / "old.safetensors", model, known)
    monkeypatch.setattr(sys, "argv", ["crossdet", "labels", str(old), *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["old.safetensors"]


def test_the_weights_are_never_overwritten(known, model, tmp_path, command):
    old = save(tmp_path / "old.safetensors", model, known)
    before = old.read_bytes()
    assert command("labels", old, "--rename", "car=auto", "-o", old)[0] == 2
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(old, run / "model.safetensors")
    assert command("labels", run, "--rename", "car=auto", "-o", run / "model.safetensors")[0] == 2
    with pytest.raises(UserError, match="these are the weights themselves"):
        relabel(run, run / "model.safetensors", [("car", "auto")])
    assert command("labels", run, "--rename", "car=auto", "-o", old)[0] == 2  # other weights, neither
    assert old.read_bytes() == (run / "model.safetensors").read_bytes() == before


def test_differences_are_named():
    names = {"a": ["car", "person"], "b": ["face"]}
    one = LabelSpace.build(names, overlap=[["face", "person"]])
    assert differences(one, LabelSpace.from_json(one.to_json())) == []
    reordered = LabelSpace.build({"a": ["person", "car"], "b": ["face"]}, overlap=[["face", "person"]])
    assert differences(one, reordered) == ["classes: car, person, face then, person, car, face now"]
    merged = LabelSpace.build(names, merge={"human": ["a/person"]}, absent={"b": ["car"]}, federated=["a"])
    assert differences(one, merged) == [
        "classes: car, person, face then, car, human, face now",
        "a/person: 'person' then, 'human' now",
        "no longer said: person and face overlap",
        "newly said: car is absent in b",
        "newly said: a is federated",
    ]
    fewer = LabelSpace.build({"a": ["car", "person"]}, drop=["a/person"])
    assert differences(one, fewer)[1:4] == [
        "datasets: a, b then, a now",
        "a/person: 'person' then, dropped now",
        "b/face: 'face' then, not there now",
    ]


def test_rows_of_a_checkpoint_that_mean_nothing_are_not_missed():
    known = LabelSpace.build({"coco": ["person", "unused_1", "car"]})
    assert grown(known, {"coco": ["person", "car", "lamp"]}).classes == ("person", "unused_1", "car", "lamp")


NFC, NFD = "caf\u00e9", "cafe\u0301"


def test_names_of_older_weights_are_composed_when_they_are_read(tmp_path):
    """In weights of a decomposed name the class got a twin, whose objects were its negatives."""
    space = LabelSpace.build({"old": ["cup", NFC]})
    plain = json.loads(space.to_json())
    plain["classes"][1] = NFD
    plain["sources"] = [{"cup": 0, NFD: 1}]
    settings, thresholds = RetinaNetSettings(backbone="test_efficientnet"), {NFD: {"threshold": 0.4}}
    card = Card(LabelSpace.from_json(json.dumps(plain)), settings, InputSettings(64, 96), {}, thresholds)
    read = Card.from_metadata(card.to_metadata())
    assert read.space == space
    assert read.thresholds == {NFC: 0.4}
    assert grown(read.space, {"new": ["dog"]}).classes == ("cup", NFC, "dog")
    assert grown(read.space, {"new": [NFC]}, merge={NFD: [f"new/{NFD}"]}).index("new", NFC) == 1
    assert edited(read.space, [("cup", NFD.upper())], ()).classes == (NFC.upper(), NFC)
    both = Card(LabelSpace.build({"old": [NFC], "more": ["x"]}), settings, InputSettings(64, 96), {})
    twins = both.to_metadata()
    twins["labels"] = twins["labels"].replace('"x"', json.dumps(NFD))
    assert Card.from_metadata(twins).space.classes == (NFC, NFD)  # two that would be one stay two


def with_names(space, classes, sources, **more):
    """The text of a label space with other names, as older weights have it."""
    plain = json.loads(space.to_json())
    return json.dumps({**plain, "classes": classes, "sources": sources, **more})


def test_names_of_older_weights_are_stripped_when_they_are_read():
    """A file's `nut ` is read as `nut` today: an extension of weights that know `nut ` made a twin of it."""
    space = LabelSpace.build({"a": ["bolt", "nut", "cat"], "b": ["cat"]}, distinct=["cat"])
    text = with_names(
        space, ["bolt\r\n", "nut ", "a/ cat", "b/cat"],
        [{"bolt\r\n": 0, "nut ": 1, " cat": 2}, {"cat": 3}],
        folds=[{"name": "steel ", "members": [0, 1], "angles": None, "datasets": None}],
        listed_only=[[1, "nut ", 1]],
    )  # fmt: skip
    settings, operating = RetinaNetSettings(backbone="test_efficientnet"), {"steel ": {"threshold": 0.4}}
    scores = (Score("a/ cat", "a ", "AP", 0.5), Score("steel ", "a ", "AP", None))
    history = (Generation("train", {"a": ["bolt\r\n", "nut ", " cat"]}, ["nut ", "a/ cat"], scores=scores),)
    card = Card(LabelSpace.from_json(text), settings, InputSettings(64, 96), {}, operating, history)
    read = Card.from_metadata(card.to_metadata())
    assert read.space.classes == ("bolt", "nut", "a/cat", "b/cat") == space.classes
    assert read.space.sources == space.sources
    assert read.space.reported == ("steel", "a/cat", "b/cat")
    assert read.space.listed_only == {(1, "nut", 1)}
    assert read.thresholds == {"steel": 0.4}
    (before,) = read.generations
    assert (before.datasets, before.classes) == ({"a": ["bolt", "nut", "cat"]}, ["nut", "a/cat"])
    assert [(s.name, s.dataset) for s in before.scores] == [("a/cat", "a "), ("steel", "a ")]
    assert Card.from_metadata(read.to_metadata()) == read
    plain = Card.from_metadata(replace(card, space=LabelSpace.build({"a": ["nut "]})).to_metadata())
    assert grown(plain.space, {"b": ["nut", "dog"]}, merge={"nut ": ["b/nut "]}).classes == ("nut", "dog")


@pytest.mark.parametrize(
    ("classes", "sources", "more"),
    [
        (["nut", "nut "], [{"nut": 0, "nut ": 1}], {}),
        (["nut", " "], [{"nut": 0, " ": 1}], {}),
        (["nut @90", "nut @0"], [{"nut @90": 0, "nut @0": 1}], {"directions": [[0, [0, 90]]]}),
    ],
)
def test_names_that_would_be_one_stay_two(classes, sources, more):
    space = LabelSpace.from_json(with_names(LabelSpace.build({"a": ["x", "y"]}), classes, sources, **more))
    card = Card(space, RetinaNetSettings(backbone="test_efficientnet"), InputSettings(64, 96), {})
    assert Card.from_metadata(card.to_metadata()).space == space


def test_a_name_that_is_said_not_to_be_labelled_needs_no_merge_beside_a_merged_class():
    known = edited(LabelSpace.build({"a": ["car", "truck", "person"]}), (), [("vehicle", ["car", "truck"])])
    boxes = {"new": {"dog"}}
    space = grown(known, {"new": ["person", "dog"]}, unlabelled={"new": ["person"]}, labelled=boxes)
    assert space.classes == ("car", "truck", "person", "dog")
    assert space.avoid_array[1].tolist() == [True, True, True, False]


def test_patterns_of_an_extension_mean_what_is_new():
    known = edited(LabelSpace.build({"a": ["car", "truck"]}), (), [("vehicle", ["car", "truck"])])
    space = grown(known, {"b": ["car", "dog"]}, distinct=["*"], overlap=[["veh*", "*"]])
    assert space.classes == ("car", "truck", "b/car", "b/dog")
    assert space.overlap_pairs == {(0, 1), (0, 2), (1, 2), (0, 3), (1, 3)}
