"""Classes merged after training: one class wherever detections are reported, members wherever there is training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from lightning_fabric import Fabric
from PIL import Image
from torchvision.ops import box_iou, nms

from crossdet import Config, LabelSpace, UserError, load_detector
from crossdet.config import load_config
from crossdet.config.sources import Sources
from crossdet.data.formats.coco import write_coco
from crossdet.data.index import Index, IndexBuilder
from crossdet.errors import LabelError
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.protocols import PROTOCOLS
from crossdet.evaluation.protocols.entry import score_split
from crossdet.evaluation.run import EvalSettings, detect, detect_folded, score_dataset
from crossdet.evaluation.splits import Split
from crossdet.inference import Detector
from crossdet.labels.edits import edited, grown, growth
from crossdet.labels.folds import Fold
from crossdet.models.building import build_detector
from crossdet.models.card import Card, InputSettings, read_card
from crossdet.models.retinanet.growth import BIAS, WEIGHT, by_class
from crossdet.models.retinanet.settings import Anchors, RetinaNetSettings
from crossdet.models.weights import load_weights, save_weights
from crossdet.runs import evaluate as evaluating
from crossdet.runs.audit import _detect as detection_of
from crossdet.runs.audit import _settings as settings_of
from crossdet.runs.audit import audited_runs
from crossdet.runs.evaluate import splits_for_training
from crossdet.runs.extend import extend
from crossdet.runs.relabel import relabel
from crossdet.training.pseudo_labels import find
from crossdet.training.teachers import as_teacher

from ..models.detr.made import tiny

SETTINGS = RetinaNetSettings(
    backbone="test_efficientnet", channels=16, head_depth=1, anchors=Anchors(scales=(2.0, 3.0), ratios=(0.6, 1.0)),
    freeze_batch_norm=False,
)  # fmt: skip
SHAPES = 4
CLASSES = ("car", "truck", "dog", "sign")
VEHICLE = [("vehicle", ("car", "truck"))]


@pytest.fixture
def known() -> LabelSpace:
    """`full` labels cars and trucks, `part` cars alone, `dogs` no vehicle at all."""
    return LabelSpace.build(
        {"full": ["car", "truck"], "part": ["auto"], "dogs": ["dog", "sign"]},
        merge={"car": ["full/car", "part/auto"]},
        absent={"dogs": ["truck"]},
        overlap=[["dog", "truck"]],
    )


# ------------------------------------------------------------------------------------------- the label space


def test_members_keep_their_ids_and_what_datasets_are_to_them(known):
    merged = edited(known, [], VEHICLE)
    assert merged.classes == known.classes == CLASSES
    assert merged.folds == (Fold("vehicle", (0, 1)),)
    assert merged.folds[0].is_merge
    assert merged.reported == ("vehicle", "dog", "sign")
    assert np.array_equal(merged.avoid_array, known.avoid_array)
    assert np.array_equal(merged.annotated_array, known.annotated_array)
    # of one class no object is a negative: neither are they of each other
    assert merged.overlap_pairs == known.overlap_pairs | {(0, 1)}
    assert LabelSpace.from_json(merged.to_json()) == merged


def test_merged_classes_are_renamed_and_merged_further(known):
    merged = edited(known, [("sign", "board")], VEHICLE)
    renamed = edited(merged, [("vehicle", "thing"), ("truck", "lorry")], [])
    assert renamed.classes == ("car", "lorry", "dog", "board")
    assert renamed.reported == ("thing", "dog", "board")
    further = edited(renamed, [], [("moving", ("dog", "thing"))])
    assert further.folds == (Fold("moving", (0, 1, 2)),)
    assert further.reported == ("moving", "board")
    assert further.overlap_pairs >= {(0, 1), (0, 2), (1, 2)}
    second = edited(merged, [], [("rest", ("dog", "board"))])
    assert second.folds == (Fold("vehicle", (0, 1)), Fold("rest", (2, 3)))


def test_a_merged_class_may_have_the_name_of_a_member(known):
    merged = edited(known, [], [("car", ("truck", "car"))])
    assert merged.reported == ("car", "dog", "sign")
    assert edited(merged, [("car", "auto")], []).reported == ("auto", "dog", "sign")
    assert edited(merged, [("car", "auto")], []).classes == CLASSES
    assert edited(merged, [], [("x", ("car", "dog"))]).folds == (Fold("x", (0, 1, 2)),)


@pytest.mark.parametrize(
    ("renames", "merges", "message"),
    [
        ([], [("x", ("car", "dog"))], "merge 'x': 'car' is a part of 'vehicle' already"),
        ([("dog", "vehicle")], [], "'vehicle' would be the name of 2 classes"),
        ([("dog", "truck")], [], "'truck' would be the name of 2 classes"),
        ([("vehicle", "dog")], [], "'dog' would be the name of 2 classes"),
        ([("vehicl", "x")], [], "unknown class 'vehicl'; did you mean 'vehicle'"),
    ],
)
def test_mistakes(known, renames, merges, message):
    with pytest.raises(UserError, match=message):
        edited(edited(known, [], VEHICLE), renames, merges)


# ------------------------------------------------------------------------------------------- growing


@pytest.fixture
def merged(known) -> LabelSpace:
    return edited(known, [], VEHICLE)


def test_growing_on_the_members(merged):
    assert grown(merged, {}) == merged
    space = grown(merged, {"new": ["van", "cow"]}, merge={"truck": ["new/van"]})
    assert space.classes == (*CLASSES, "cow")
    assert space.folds == merged.folds
    assert space.trusted_array("new").tolist() == [False, True, False, False, True]  # its cars are not labelled
    assert np.array_equal(space.avoid_array[:3, :4], merged.avoid_array)
    assert growth(merged, space) == ["new classes: cow", "into known classes: truck <- new/van"]


def test_the_merged_name_needs_a_word(merged):
    message = (
        r"class 'vehicle' of new: the weights know it as merged from car, truck. .*"
        r"`merge: \{car: \[new/vehicle\]\}`.*`merge: \{vehicle: \[new/vehicle\]\}`.*`distinct`"
    )
    with pytest.raises(LabelError, match=message):
        grown(merged, {"new": ["vehicle"]})
    assert grown(merged, {"new": ["vehicle"]}, merge={"car": ["new/vehicle"]}).index("new", "vehicle") == 0
    apart = grown(merged, {"new": ["vehicle"]}, distinct=["vehicle"])
    assert (apart.classes[4:], apart.reported[3:]) == (("new/vehicle",), ("new/vehicle",))
    assert apart.folds == merged.folds
    with pytest.raises(LabelError, match="the weights know dogs/dog as 'dog', not as 'vehicle'"):
        grown(merged, {}, merge={"vehicle": ["dogs/dog"]})


def test_objects_that_may_be_any_member_become_a_further_one(merged):
    """Nothing of it is a negative for the members, nor theirs for it, and no background without its labels."""
    for rules in ({"merge": {"vehicle": ["new/vehicle"]}}, {"merge": {"same_names": True}}):
        space = grown(merged, {"new": ["vehicle"]}, **rules)
        assert space.classes == (*CLASSES, "vehicle")
        assert space.folds == (Fold("vehicle", (0, 1, 4)),)
        assert space.reported == ("vehicle", "dog", "sign")
        assert space.overlap_pairs == {(0, 1), (1, 2), (0, 4), (1, 4)}
        assert space.trusted_array("new").tolist() == [False] * 4 + [True]
        assert not any(space.trusted_array(name)[4] for name in merged.datasets)
        assert growth(merged, space) == ["new classes: vehicle (merged with car, truck)"]
        again = grown(space, {"more": ["vehicle"]}, merge={"vehicle": ["more/vehicle"]})
        assert again.classes == space.classes
        assert LabelSpace.from_json(space.to_json()) == space


def test_rules_may_say_the_merged_name(merged):
    space = grown(
        merged, {"new": ["van", "cow"], "sea": ["ship"]}, merge={"truck": ["new/van"]}, absent={"sea": ["vehicle"]},
        not_exhaustive={"new": ["vehicle"]}, overlap=[["cow", "vehicle"]],
    )  # fmt: skip
    assert {c for row, c in space.absent_pairs if row == space.datasets.index("sea")} == {0, 1}
    assert {c for row, c in space.not_exhaustive_pairs} == {1}  # it labels trucks, and no cars
    assert space.overlap_pairs == merged.overlap_pairs | {(0, 4), (1, 4)}
    with pytest.raises(LabelError, match=r"absent\.full: \[car\]: but this dataset labels the class"):
        grown(merged, {}, absent={"full": "vehicle"})
    # a member of that name is meant where negatives come from it, all of them where they go
    named = edited(merged, [("vehicle", "x")], [])
    named = edited(named, [], [("dog", ("x", "dog"))])
    space = grown(named, {"sea": ["ship"]}, absent={"sea": ["dog"]}, overlap=[["ship", "dog"]])
    assert {c for row, c in space.absent_pairs if row == 3} == {2}
    assert {a for a, b in space.overlap_pairs if b == 4} == {0, 1, 2}


def test_what_is_merged_already_may_be_said_again(merged):
    rules = {"vehicle": ["full/car", "full/truck", "part/auto"]}
    assert grown(merged, {}, merge=rules) == merged
    space = grown(merged, {"new": ["vehicle"]}, merge={"vehicle": [*rules["vehicle"], "new/vehicle"]})
    assert space.folds == (Fold("vehicle", (0, 1, 4)),)


# ------------------------------------------------------------------------------------------- detections


def trained_head(bias: float = -1.0):
    """A network whose background logits lie about `bias`, not at the prior, as after a training."""
    torch.manual_seed(0)
    model = build_detector(SETTINGS, len(CLASSES)).eval()
    with torch.no_grad():
        model.class_subnet.predict.weight.normal_(0, 0.02)
        model.class_subnet.predict.bias.fill_(bias)
    return model


def save(path: Path, model, space: LabelSpace, **more: Any) -> Path:
    card = Card(space, SETTINGS, InputSettings(64, 96), {"topk": 300, "nms_iou": 0.5}, **more)
    save_weights(path, model.state_dict(), card)
    return path


def picture(seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_where_no_member_fires_the_merged_class_does_not(known, tmp_path):
    """Logits of -1 are scores of 0.27, below the threshold. Two such doubts are no detection."""
    old = save(tmp_path / "old.safetensors", trained_head(), known)
    relabel(old, tmp_path / "new.safetensors", [], VEHICLE)
    before, after = load_detector(old, "cpu"), load_detector(tmp_path / "new.safetensors", "cpu")
    assert after.reported == ("vehicle", "dog", "sign")
    assert 0.2 < float(before(picture(0), score_threshold=0.0).scores[0]) < 0.3
    assert len(before(picture(0), ["car", "truck"])) == 0
    assert len(after(picture(0), "vehicle")) == 0
    assert len(after(picture(0))) == 0
    assert torch.equal(load_weights(old)[0][WEIGHT], load_weights(tmp_path / "new.safetensors")[0][WEIGHT])


@given(seed=st.integers(0, 10**6), ids=st.sets(st.integers(0, 3), min_size=2, max_size=4))
@hypothesis_settings(max_examples=25, deadline=None)
def test_the_score_of_a_merged_class_is_the_best_of_its_members(seed, ids):
    """Of each picture what is reported is what NMS among all members' boxes leaves, with their scores."""
    torch.manual_seed(seed)
    model = trained_head()
    with torch.no_grad():
        model.class_subnet.predict.weight.normal_(0, 0.2)
        model.class_subnet.predict.bias.normal_(-1, 1)
    space = LabelSpace.build({"a": CLASSES})
    settings = load_settings()
    merged = edited(space, [], [("m", [CLASSES[c] for c in sorted(ids)])])
    whole, apart = (Detector(model, s, settings, {"topk": 300}) for s in (merged, space))
    members = [CLASSES[c] for c in sorted(ids)]
    found = whole(picture(seed), "m", 0.1, max_detections=40)
    everything = apart(picture(seed), members, 0.1, max_detections=10**6, nms_iou=1.0)
    # NMS among groups moves the boxes apart, which rounds: an IoU of just 0.5 may come out on either side
    kept = [nms(everything.boxes, everything.scores, 0.5 + off)[:40] for off in (0, 1e-4, -1e-4)]
    assert any(
        torch.equal(found.scores, everything.scores[keep]) and torch.equal(found.boxes, everything.boxes[keep])
        for keep in kept
    )
    assert set(found.names or ()) <= {"m"}
    # at every box: the largest of the members' scores there, in any order of NMS
    single = [apart(picture(seed), name, 0.1, max_detections=10**6, nms_iou=1.0) for name in members]
    for box, score in zip(found.boxes, found.scores, strict=True):
        there = [s.scores[(s.boxes == box).all(1)] for s in single]
        # another number of classes at once may round differently
        assert float(score) == pytest.approx(max(float(t.max()) for t in there if len(t)), abs=1e-6)


def load_settings():
    from crossdet.inference import InputSettings

    return InputSettings(64, 96)


def drawn(root: Path, name: str, classes: tuple[str, ...], count: int = 4) -> Index:
    builder = IndexBuilder(root / name)
    for number in range(count):
        file = root / name / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number + len(name)).permute(1, 2, 0).numpy()).save(file)
        builder.image(file.name, 64, 96, image_id=number + 1)
        for label in range(len(classes)):
            builder.box((15 * label + 5, 5, 15 * label + 35, 40), label)
    return builder.build(classes)


def test_ap_is_that_of_nms_among_the_members(known, tmp_path):
    """Scored as `eval` does, against one NMS over both members' detections in all pictures."""
    torch.manual_seed(1)
    model = trained_head()
    torch.nn.init.normal_(model.class_subnet.predict.weight, std=0.2)
    index, space = drawn(tmp_path, "pictures", ("vehicle",), 8), edited(known, [], VEHICLE)
    settings = EvalSettings(64, 96, score_threshold=0.01, max_detections=100)
    split = Split(index, np.array([0]), space.reported)
    record = score_dataset(model, split, settings, (PROTOCOLS["coco"],), space.folding).record
    found = detect(model, index, [0, 1], replace(settings, nms_iou=1.0, max_detections=10**6)).detections
    rows = []
    for image in range(len(index)):
        mine = np.flatnonzero(found.image_of_box == image)
        boxes, scores = (torch.from_numpy(a[mine]) for a in (found.boxes, found.scores))
        rows.append(mine[nms(boxes, scores, 0.5).numpy()])
    kept = found.take(np.concatenate(rows))
    one = DetectionArrays(kept.boxes, kept.scores, np.zeros_like(kept.labels), kept.image_of_box)
    wanted = score_split(PROTOCOLS["coco"], split, one, 100).record
    assert record["per_class"]["vehicle"]["AP50"] > 0
    for number in ("AP", "AP50"):
        assert record["per_class"]["vehicle"][number] == wanted["per_class"]["vehicle"][number]


def test_a_merged_teacher_teaches_the_merged_class(known, tmp_path):
    old = save(tmp_path / "old.safetensors", trained_head(0.0), known)
    relabel(old, tmp_path / "new.safetensors", [], VEHICLE)
    space = LabelSpace.build({"a": ["sign", "vehicle"], "b": ["x"]})
    teacher = as_teacher("t", load_detector(tmp_path / "new.safetensors", "cpu"), space, EvalSettings(64, 96))
    assert teacher.own_ids == {0: 2, 1: 0}
    index = drawn(tmp_path, "pictures", ("x",), 1)
    found = find(Fabric(accelerator="cpu"), teacher, index, {1: 0.1}).detections
    assert set(found.labels.tolist()) == {1}
    boxes = torch.from_numpy(found.boxes)
    assert float(box_iou(boxes, boxes).fill_diagonal_(0).max()) <= 0.5
    assert len(boxes) > 3


def test_a_merged_class_takes_one_place_of_a_network_that_suppresses_nothing(known):
    """Every query finds car and truck at once; members that are cut before they are folded cost other objects."""
    network = tiny("rtdetr v2", len(CLASSES)).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith(("class_embed", "model.enc_score_head", "model.decoder.class_embed")):
                parameter[1] = parameter[0]
    detector = Detector(network, edited(known, [], VEHICLE), InputSettings(64, 64), {})
    picture = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    everything = detector(picture, ["vehicle"], 0.0, max_detections=1000)
    few = detector(picture, ["vehicle"], 0.0, max_detections=3)
    assert (len(few), len(everything) > 3) == (3, True)
    assert torch.equal(few.boxes, everything.boxes[:3])


# ------------------------------------------------------------------------------------------- commands


@pytest.fixture
def weights(known, tmp_path, monkeypatch) -> Path:
    """`new.safetensors`, merged; `old.safetensors`, from which it was made; the current folder is theirs."""
    monkeypatch.chdir(tmp_path)
    model = trained_head()
    torch.nn.init.normal_(model.class_subnet.predict.weight, std=0.2)
    points = {name: {"threshold": 0.11 + 0.1 * c} for c, name in enumerate(CLASSES)}
    old = save(Path("old.safetensors"), model, known, operating=points)
    relabel(old, Path("new.safetensors"), [], VEHICLE)
    return Path("new.safetensors")


def config_file(name: str, datasets: dict[str, tuple[str, ...]], **sections) -> Path:
    values = {"datasets": {}, "train": {"epochs": 1, "max_steps": 1, "batch_size": 2, "workers": 0, "lr": 0.001,
                                        "accelerator": "cpu"}, **sections}  # fmt: skip
    for dataset, classes in datasets.items():
        write_coco(drawn(Path.cwd(), dataset, classes), Path(f"{dataset}.json"))
        files = {"images": dataset, "annotations": f"{dataset}.json"}
        values["datasets"][dataset] = {"format": "coco", "train": files, "val": files}
    Path(name).write_text(yaml.safe_dump(values))
    return Path(name)


def test_predict_and_thresholds(weights):
    detector, old = load_detector(weights, "cpu"), load_detector("old.safetensors", "cpu")
    assert detector.thresholds_used(None) == pytest.approx({"vehicle": 0.3, "dog": 0.31, "sign": 0.41})
    apart = load_detector(weights, "cpu", fold=False)
    assert apart.thresholds_used(None) == old.thresholds_used(None)
    found, theirs = detector(picture(3), score_threshold=0.2), old(picture(3), score_threshold=0.2)
    assert {"vehicle"} < set(found.names or ()) <= {"vehicle", "dog", "sign"}
    assert torch.equal(apart(picture(3), score_threshold=0.2).scores, theirs.scores)
    one = detector(picture(3), "truck", 0.2)
    assert set(one.names or ()) == {"vehicle"}
    assert torch.equal(one.scores, old(picture(3), "truck", 0.2).scores)
    with pytest.raises(UserError, match="unknown class 'vehicl'; did you mean 'vehicle'"):
        detector(picture(3), "vehicl")
    assert read_card(weights).generations[-1].edits == ("merge vehicle=car,truck",)


def test_the_threshold_of_a_merged_class_is_stored_and_shown(weights, crossdet):
    """Whether a dataset knows the members or the merged class; and what becomes of it by another edit."""
    assert "car, truck are reported as vehicle (no threshold stored)" in crossdet("check", weights).stdout
    config = config_file("eval.yaml", {"full": ("car", "truck"), "other": ("vehicle",)},
                         labels={"merge": {"vehicle": ["other/vehicle"]}})  # fmt: skip
    code, _, errors = crossdet("eval", weights, config, "--store-thresholds", "-o", "out", "--json", "e.json")
    assert code == 0, errors
    metrics = json.loads(Path("e.json").read_text())
    assert metrics["operating"].keys() == {"vehicle"}
    for name in ("full", "other"):
        assert list(metrics["datasets"][name]["per_class"]) == ["vehicle"]
    assert metrics["datasets"]["full"]["per_class"]["vehicle"]["boxes"] == 8
    stored = metrics["operating"]["vehicle"]["threshold"]
    assert load_detector(weights, "cpu").thresholds_used(None)["vehicle"] == stored
    assert f"reported as vehicle (threshold {stored:.3f})" in crossdet("check", weights).stdout
    crossdet("check", weights, "--json", "known.json")
    assert json.loads(Path("known.json").read_text())["merged"] == {"vehicle": ["car", "truck"]}
    assert crossdet("labels", weights, "--rename", "vehicle=thing", "-o", "again.safetensors")[0] == 0
    assert load_detector("again.safetensors", "cpu").thresholds["thing"] == stored
    assert crossdet("labels", "again.safetensors", "--merge", "all=dog,thing", "-o", "all.safetensors")[0] == 0
    assert load_detector("all.safetensors", "cpu").reported == ("all", "sign")
    assert "thing" not in load_detector("all.safetensors", "cpu").thresholds
    # of the name of a member the member's threshold would be taken for that of the merged class
    relabel(Path("old.safetensors"), Path("car.safetensors"), [], [("car", ("car", "truck"))])
    assert load_detector("car.safetensors", "cpu").thresholds_used(None)["car"] == 0.3


def test_the_audit_looks_for_the_members_that_are_labelled(weights, tmp_path):
    """Cars are: a truck that is found is not wrong, as in `eval`. Of what is not labelled all is looked for."""
    config = load_config(config_file("cars.yaml", {"a": ("car",)}, eval={"topk": 100_000}), [])
    ((run, detector),) = audited_runs([weights], config, device="cpu")
    (split,) = run.splits
    everything = detection_of(detector, split.index, config)
    cars = detect_folded(detector.model, split.index, [0], settings_of(detector, config), detector.folding, [0])
    audited, all_found = (
        np.bincount(found.labels, minlength=3).tolist() for found in (split.detections, everything)
    )
    assert audited == [len(cars.detections.labels), *all_found[1:]]
    assert 5 < audited[0] < all_found[0]


def test_a_config_that_contradicts_the_weights_is_read_by_itself(weights, crossdet):
    config = config_file("eval.yaml", {"full": ("car", "truck")}, labels={"merge": {"dog": ["full/car"]}})
    code, _, errors = crossdet("eval", weights, config, "--json", "e.json", "-o", "out")
    assert code == 0, errors
    found = json.loads(Path("e.json").read_text())["datasets"]["full"]["per_class"]
    assert found.keys() == {"dog", "vehicle"}


def test_audit_sees_the_merged_class_as_one(weights, crossdet):
    """Against weights with the same classes, whether a dataset labels members or the whole."""
    union = {"format": "coco", "images": "union", "annotations": "union.json"}
    write_coco(drawn(Path.cwd(), "union", ("vehicle", "dog", "truck")), Path("union.json"))
    config = config_file("audit.yaml", {"full": ("car", "truck"), "dogs": ("dog", "sign"), "other": ("vehicle",)},
                         labels={"merge": {"vehicle": ["other/vehicle"]}, "absent": {"dogs": ["vehicle"]}},
                         union_test=union)  # fmt: skip
    relabel(Path("old.safetensors"), Path("same.safetensors"), [], VEHICLE)
    code, _, errors = crossdet("audit", weights, config, "--against", "same.safetensors", "-o", "out")
    assert code == 0, errors
    content = json.loads(Path("out/audit.json").read_text())
    assert content["new"] == content["same"]
    assert content["new"]["home"].keys() == {"vehicle", "dog", "sign"}
    foreign = {(row["class"], row["dataset"]): row for row in content["new"]["foreign"]}
    assert foreign.keys() == {
        ("vehicle", "dogs"), ("dog", "full"), ("sign", "full"), ("dog", "other"), ("sign", "other"),
    }  # fmt: skip
    assert foreign["vehicle", "dogs"]["declared_absent"]
    assert not foreign["dog", "full"]["declared_absent"]
    assert content["new"]["union_test"]["per_class"].keys() == {"vehicle", "dog"}
    assert content["new"]["union_test"]["per_class"]["vehicle"]["boxes"] == 8
    code, _, errors = crossdet("audit", weights, config, "--against", "old.safetensors", "-o", "out")
    assert (code, "audit them one by one" in errors) == (2, True)
    # where only trucks are known to be absent a vehicle may be a car
    config = config_file("audit.yaml", {"dogs": ("dog", "sign")})
    assert crossdet("audit", weights, config, "-o", "out")[0] == 0
    (row,) = json.loads(Path("out/audit.json").read_text())["new"]["foreign"]
    assert (row["class"], row["declared_absent"]) == ("vehicle", False)


@pytest.mark.parametrize("mode", ["replay", "distill", "frozen"])
def test_extending(weights, crossdet, mode):
    """Objects of a member, of any of them, and of another class; the merged class is judged before and after."""
    labels = {"merge": {"truck": ["new/van"], "vehicle": ["new/vehicle"]}}
    config = config_file("more.yaml", {"new": ("van", "vehicle", "cow"), "full": ("car", "truck")}, labels=labels)
    code, told, errors = crossdet("check", config, "--extends", weights)
    assert code == 0, errors
    code, told, errors = crossdet("extend", weights, config, "--mode", mode, "-o", mode, "--tolerance", 100,
                                  *(("--set", "extend.pseudo=true") if mode == "distill" else ()))  # fmt: skip
    assert code == 0, errors
    assert "new classes: vehicle (merged with car, truck); cow\n" in told
    assert "into known classes: truck <- new/van\n" in told
    detector = load_detector(mode, "cpu")
    assert detector.classes == (*CLASSES, "vehicle", "cow")
    assert detector.reported == ("vehicle", "dog", "sign", "cow")
    report = json.loads(Path(mode, "forgetting.json").read_text())
    rows = {(row["name"], row["dataset"]): row for row in report["classes"]}
    assert rows.keys() == {("vehicle", "new"), ("cow", "new"), ("vehicle", "full")}
    assert rows["vehicle", "full"]["before"] is not None
    assert rows["cow", "new"]["before"] is None
    assert report["unmeasured"] == ["dog", "sign"]
    assert detector.thresholds.keys() >= {"car", "truck", "dog", "sign"}  # as they were
    before, after = (by_class(load_weights(Path(p))[0][BIAS], SHAPES) for p in ("old.safetensors", mode))
    assert torch.equal(before, after[:, :4]) == (mode == "frozen")
    assert crossdet("eval", mode, f"{mode}/config.yaml")[0] == 0
    assert crossdet("extend", mode, config, "--mode", "replay", "-o", "third", "--tolerance", 100)[0] == 0
    assert load_detector("third", "cpu").space == detector.space


def test_an_extension_never_trains_one_member_on_anothers_objects(weights, tmp_path):
    """A member's row gets no gradient from objects of the other, nor from background without its labels."""
    from crossdet.runs.building import training_batches

    index = drawn(tmp_path, "new", ("van",))
    config = Config.from_dict({
        "datasets": {"new": {"train": index}}, "labels": {"merge": {"truck": ["new/van"]}},
        "input": {"shorter": 64, "longer": 96}, "train": {"batch_size": 2, "workers": 0, "accelerator": "cpu"},
    })  # fmt: skip
    detector = load_detector(weights, "cpu")
    (batch,), sources = training_batches(config, 1, known=detector.space)
    overlap = torch.from_numpy(sources.space.overlap_array)
    model = build_detector(SETTINGS, 4, overlap)
    model.load_state_dict(load_weights(weights)[0])
    sum(model.losses_of(model.features(batch.images), batch).normalised(model.normaliser).values()).backward()
    rows = by_class(model.class_subnet.predict.bias.grad, SHAPES)
    assert not rows[:, 0].any()  # cars: nothing is known of them here
    assert rows[:, 1].any()
    assert rows[:, 3].any()  # signs: a labelled van is none
    with pytest.raises(UserError, match="merged from car, truck"):
        extend(weights, Config.from_dict({"datasets": {"x": {"train": drawn(tmp_path, "x", ("vehicle",))}}}),
               output=tmp_path / "run")  # fmt: skip


def test_weights_merged_by_summed_rows_are_ordinary_ones(tmp_path):
    """Files of earlier versions: the merged class is a row of the head, and their label space knows no fold."""
    space = LabelSpace.build({"full": ["vehicle", "dog", "sign", "x"]})
    data = json.loads(space.to_json())
    assert "folds" not in data
    detector = load_detector(save(tmp_path / "old.safetensors", trained_head(), space), "cpu")
    assert detector.reported == detector.classes == ("vehicle", "dog", "sign", "x")
    assert grown(detector.space, {"n": ["vehicle"]}, merge={"vehicle": ["n/vehicle"]}).classes == space.classes


def test_members_that_a_dataset_does_not_label_are_not_looked_for_there():
    """Trucks that the row of trucks finds in a dataset of cars are not wrong, nobody labelled them."""
    space = LabelSpace.build({"a": ["car"], "b": ["truck"], "c": ["sign"]}, absent={"a": ["sign"]})
    merged = edited(space, [], [("vehicle", ["car", "truck"])])
    empty = IndexBuilder("")
    sources = Sources(
        merged, {}, {name: empty.build(list(merged.sources[row])) for row, name in enumerate("abc")}, {}
    )
    allowed = {name: split.members for name, split in splits_for_training(sources).items()}
    assert allowed == {"a": (0, 2), "b": (1,), "c": (2,)}
    folding = merged.folding
    assert folding is not None
    assert [m for m in folding.members([0]) if m in allowed["a"]] == [0]
    whole = LabelSpace.build({"w": ["vehicle"]})
    assert evaluating._members(whole, "w", merged) == (0, 1)  # a dataset of the whole: all members
