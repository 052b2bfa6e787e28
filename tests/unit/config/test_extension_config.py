"""Configs that extend weights: rules that name what only the weights know, `check --extends`, mixed-up files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from crossdet import LabelSpace, load_detector
from crossdet.data.formats.coco import write_coco
from crossdet.data.index import IndexBuilder
from crossdet.models.building import build_detector
from crossdet.models.card import Card, InputSettings
from crossdet.models.retinanet.growth import WEIGHT, by_class
from crossdet.models.retinanet.settings import Anchors, RetinaNetSettings
from crossdet.models.weights import load_weights, save_weights

SETTINGS = RetinaNetSettings(
    backbone="test_efficientnet", channels=16, head_depth=1, anchors=Anchors(scales=(2.0, 3.0), ratios=(0.6, 1.0)),
    freeze_batch_norm=False,
)  # fmt: skip


def draw(root: Path, name: str, classes: tuple[str, ...]) -> dict[str, Any]:
    """Two pictures per split, each with a box of every class; the dataset's section."""
    section: dict[str, Any] = {"format": "coco"}
    for seed, split in enumerate(("train", "val")):
        rng = np.random.default_rng([seed, len(classes), len(name)])
        builder = IndexBuilder(root / name)
        for number in range(2):
            file = root / name / f"{split}{number}.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(file)
            builder.image(file.name, 48, 64, image_id=number + 1)
            for label in range(len(classes)):
                builder.box((10 * label, 5, 10 * label + 20, 30), label)
        write_coco(builder.build(classes), root / f"{name}_{split}.json")
        section[split] = {"images": f"{name}", "annotations": f"{name}_{split}.json"}
    return section


@pytest.fixture
def weights(tmp_path, monkeypatch) -> Path:
    """`first`: untrained weights of `objects` and `people`; the current folder is its parent."""
    monkeypatch.chdir(tmp_path)
    space = LabelSpace.build(
        {"objects": ["car", "person", "dog"], "people": ["human"]},
        merge={"person": ["objects/person", "people/human"]},
        drop=["objects/dog"],
    )
    card = Card(space, SETTINGS, InputSettings(48, 64), {"topk": 50, "nms_iou": 0.5, "max_detections": 9})
    tensors = build_detector(SETTINGS, len(space.classes)).state_dict()
    save_weights(Path("first/model.safetensors"), tensors, card)
    return Path("first")


def write(labels: dict[str, Any], name: str = "more.yaml", **sections: Any) -> Path:
    datasets = {"peds": draw(Path.cwd(), "peds", ("pedestrian", "sign"))}
    values = {
        "datasets": datasets,
        "labels": labels,
        "train": {"epochs": 1, "max_steps": 1, "batch_size": 2, "workers": 0, "lr": 0.001, "accelerator": "cpu"},
        **sections,
    }  # fmt: skip
    Path(name).write_text(yaml.safe_dump(values))
    return Path(name)


OLD = {
    "merge": {"person": ["objects/person", "peds/pedestrian"]},
    "drop": ["objects/dog"],
    "absent": {"people": ["sign"]},
    "overlap": [["sign", "car"]],
}
"""Rules that name datasets and classes of the weights, which the config does not have."""


def test_rules_may_name_what_only_the_weights_know(weights, crossdet):
    """In `extend`, in `check --extends`, and where the extension is scored with its own config."""
    config = write(OLD)
    code, told, errors = crossdet("extend", weights, config, "-o", "second", "--tolerance", 100)
    assert code == 0, errors
    assert "new classes: sign\ninto known classes: person <- peds/pedestrian\n" in told
    space = load_detector("second", "cpu").space
    assert space.classes == ("car", "person", "sign")
    assert space.index("peds", "pedestrian") == 1
    assert (space.overlap_pairs, space.absent_pairs) == ({(0, 2)}, {(1, 2)})
    for file in (config, "second/config.yaml"):
        for command in ("eval", "audit"):
            code, _, errors = crossdet(command, "second", file)
            assert code == 0, errors
    rows = json.loads(Path("second/eval_more.json").read_text())["datasets"]["peds"]["per_class"]
    assert rows.keys() == {"person", "sign"}

    code, told, errors = crossdet("check", config, "--extends", weights, "--json", "r.json", "--pictures", "p")
    assert code == 0, errors
    report = json.loads(Path("r.json").read_text())
    assert report["notes"][:2] == ["new classes: sign", "into known classes: person <- peds/pedestrian"]
    assert any("replay without training images of car:" in text for text in report["warnings"])
    assert report["errors"] == []
    assert list(Path("p").iterdir())


def test_eval_reads_an_old_dataset_as_the_weights_do_unless_the_config_says_otherwise(weights, crossdet):
    people = {"people": draw(Path.cwd(), "people", ("human",))}
    config = write({}, datasets=people)
    assert crossdet("eval", weights, config)[0] == 0
    told = json.loads(Path("first/eval_more.json").read_text())["datasets"]["people"]["per_class"]
    assert told.keys() == {"person"}
    assert "label_rules_apart" not in json.loads(Path("first/eval_more.json").read_text())
    config = write({"merge": {"car": ["people/human"]}}, datasets=people)
    code, printed, _ = crossdet("eval", weights, config)
    assert code == 0
    assert "note: the config contradicts the labels that the weights were trained with, so it is read by" in printed
    record = json.loads(Path("first/eval_more.json").read_text())
    assert record["datasets"]["people"]["per_class"].keys() == {"car"}
    assert "human" in record["label_rules_apart"]
    config = write({"overlap": [["person", "kar"]]}, datasets=people)
    code, _, errors = crossdet("eval", weights, config)
    assert code == 2
    assert "overlap: unknown unified class 'kar'; did you mean 'car'?" in errors


def test_a_test_set_of_its_own_is_read_by_the_names_of_the_classes(weights, crossdet):
    """`person` was merged of two classes and `car` is another dataset's: neither needs to be said again."""
    streets = {"streets": draw(Path.cwd(), "streets", ("person", "car"))}
    code, printed, errors = crossdet("eval", weights, write({}, datasets=streets))
    assert code == 0, errors
    assert "note:" not in printed
    record = json.loads(Path("first/eval_more.json").read_text())
    assert record["datasets"]["streets"]["per_class"].keys() == {"person", "car"}
    assert "label_rules_apart" not in record


def test_slips_are_told_with_what_is_known(weights, crossdet):
    wrong = {"merge": {"person": ["objcts/person", "peds/pedestrian"]}, "absent": {"poeple": ["sign"]}}
    config = write(wrong)
    for arguments in (("extend", weights, config, "-o", "second"), ("check", config, "--extends", weights)):
        code, _, errors = crossdet(*arguments)
        assert code == 2
        assert "did you mean `objects`?" in errors
        assert "did you mean `people`?" in errors
        assert "line " in errors
        assert "--extends" not in errors
    assert not Path("second").exists()
    code, told, errors = crossdet("extend", weights, write({"merge": {"persn": ["peds/pedestrian"]}}), "-o", "x")
    assert code == 0, errors
    assert "new classes: persn <- peds/pedestrian; sign\n" in told


@pytest.mark.parametrize("rule", OLD)
def test_without_weights_such_rules_are_mistakes_that_lead_to_extends(weights, crossdet, rule):
    config = write({rule: OLD[rule]})
    code, _, errors = crossdet("check", config)
    assert code == 2
    assert "`crossdet check CONFIG --extends WEIGHTS`" in errors


def test_check_extends_finds_what_extend_would_refuse(weights, crossdet):
    config = write({"merge": {"auto": ["objects/car"]}}, model={"channels": 256})
    code, _, errors = crossdet("check", config, "--extends", weights)
    assert code == 2
    assert "`model.channels`: 256, but the weights have 16" in errors
    code, _, errors = crossdet("check", write({"merge": {"auto": ["objects/car"]}}), "--extends", weights)
    assert code == 2
    assert "the weights know objects/car as 'car', not as 'auto'" in errors
    dropped = {"merge": {"person": ["peds/pedestrian"]}, "drop": ["peds/sign"]}
    config = write(dropped, extend={"mode": "frozen"})
    code, _, errors = crossdet("check", config, "--extends", weights, "--json", "r.json")
    assert code == 2
    assert "frozen trains new classes only" in json.loads(Path("r.json").read_text())["errors"][0]


def test_arguments_that_check_would_ignore_are_refused(weights, crossdet):
    config = write({})
    code, _, errors = crossdet("check", weights, config)
    assert code == 2
    assert "unexpected argument more.yaml" in errors
    assert "`crossdet check more.yaml --extends first`" in errors
    code, _, errors = crossdet("check", config, "folder")
    assert (code, "unexpected argument folder" in errors) == (2, True)
    code, _, errors = crossdet("check", weights, "--set", "seed=1", "--extends", weights)
    assert (code, "--set, --extends: for a config, but first is no YAML file" in errors) == (2, True)


def test_files_in_the_wrong_place_are_named(weights, crossdet):
    config = write({})
    Path("foo.json").write_text(json.dumps({"datasets": ["x"] * 9}))
    Path("state.pt").write_bytes(b"PK\x03\x04\x00\x00\x08\x08" * 9)
    Path("utf16.yaml").write_bytes("datasets: {}".encode("utf-16"))
    Path("empty").mkdir()
    for file in (
        "hats/train/images/a.jpg",
        "runs/one/pictures/a.jpg",
        "runs/one/config.yaml",
        "runs/one/steps.csv",
    ):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()
    wanted = "expected a .safetensors file or a run directory that holds model.safetensors"
    for arguments, message in (
        (("extend", config, weights), "first is a directory, and the second argument is a config: the weights "
         "come first, then the config, such as `crossdet extend first more.yaml`"),
        (("extend", weights, weights / "model.safetensors"), "model.safetensors is no YAML file"),
        (("eval", config, weights), "such as `crossdet eval first more.yaml`"),
        (("extend", "foo.json", config), f"foo.json is no crossdet weights file; {wanted}"),
        (("labels", config, "--rename", "a=b"), f"more.yaml is no crossdet weights file; {wanted}"),
        (("check", "state.pt"), f"state.pt is no crossdet weights file; {wanted}"),
        (("extend", "empty", config), f"empty holds no model.safetensors; {wanted}"),
        (("check", "empty"), f"empty holds no model.safetensors; {wanted}"),
        (("check", "hats"), "hats is a folder of pictures, no config and no weights; `crossdet new hats` writes"),
        (("check", "runs"), f"runs holds no model.safetensors; {wanted}"),
        (("check", "runs/one"), "a folder without weights; did you mean the config in it, runs/one/config.yaml?"),
        (("check", config, "--extends", "foo.json"), f"foo.json is no crossdet weights file; {wanted}"),
        (("check", "utf16.yaml"), "utf16.yaml: not UTF-8 text: invalid start byte at byte 0"),
        (("train", weights), "first: a directory; expected a YAML config file"),
    ):  # fmt: skip
        code, _, errors = crossdet(*arguments)
        assert code == 2
        assert message in errors


@pytest.mark.parametrize("command", ["train", "eval", "extend", "check"])
def test_a_folder_for_json_is_refused_before_the_work(weights, crossdet, command):
    config = write({"merge": {"person": ["peds/pedestrian"]}})
    first = [] if command in ("train", "check") else [weights]
    where = ["-o", "run"] if command in ("train", "extend") else []
    code, _, errors = crossdet(command, *first, config, *where, "--json", "peds")
    assert code == 2
    assert "--json" in errors
    assert "is a directory" in errors
    assert not Path("run").exists()


def test_teachers_are_looked_at(weights, crossdet):
    """Whether they are there, and whether they know anything that is wanted."""
    two = {"peds": draw(Path.cwd(), "peds", ("pedestrian", "sign")), "cars": draw(Path.cwd(), "cars", ("car",))}
    config = write({}, datasets=two, pseudo={"teachers": ["nothere", "first"]})
    code, _, _ = crossdet("check", config, "--json", "r.json")
    assert code == 2
    report = json.loads(Path("r.json").read_text())
    assert len(report["errors"]) == 1
    assert "nothere does not exist" in report["errors"][0]
    assert any(note.endswith("first knows car") for note in report["notes"])
    assert crossdet("check", config, "--set", "pseudo.teachers=[first]")[0] == 0
    two = {"peds": two["peds"], "dogs": draw(Path.cwd(), "dogs", ("dog",))}
    config = write({}, datasets=two, pseudo={"teachers": ["first"]})
    code, _, _ = crossdet("check", config, "--json", "r.json")
    assert code == 2
    assert "first knows car, person, none of the classes of this training" in Path("r.json").read_text()


def test_a_class_per_dataset_of_one_dataset_is_told(weights, crossdet):
    config = write({"per_dataset": ["sign"]})
    code, _, errors = crossdet("check", config, "--json", "r.json")
    assert code == 0, errors
    warning = "labels.per_dataset: 'sign' is labelled in peds alone, so it only becomes 'sign@peds'"
    assert warning in json.loads(Path("r.json").read_text())["warnings"][0]


def test_a_new_class_begins_as_an_old_one(weights, crossdet):
    config = write(OLD, extend={"init": {"sign": "car"}, "tolerance": None})
    code, _, errors = crossdet("extend", weights, config, "-o", "second", "--set", "train.lr=1e-12")
    assert code == 0, errors
    assert yaml.safe_load(Path("second/config.yaml").read_text())["extend"]["init"] == {"sign": "car"}
    rows = by_class(load_weights(Path("second"))[0][WEIGHT], 2 * 2)
    torch.testing.assert_close(rows[:, 2], rows[:, 0], atol=1e-6, rtol=0)
    assert not torch.allclose(rows[:, 1], rows[:, 0], atol=1e-3, rtol=0)


def test_mistakes_in_what_a_class_begins_as_are_told_at_once(weights, crossdet):
    words = ("labels", weights, "--merge", "thing=car,person", "-o", "merged.safetensors", "--json", "m.json")
    assert crossdet(*words).returncode == 0
    assert json.loads(Path("m.json").read_text())["merged"] == {"thing": ["car", "person"]}
    init = {"signn": "car", "car": "person", "pedestrian": "pedestrian", "sign": "thing", "thing": "kar"}
    config = write({"merge": {}}, extend={"init": init})
    for arguments in (("check", config, "--extends", "merged.safetensors", "--json", "r.json"),
                      ("extend", "merged.safetensors", config, "-o", "second")):  # fmt: skip
        code, _, errors = crossdet(*arguments)
        assert code == 2
        text = errors if "extend" in arguments else json.loads(Path("r.json").read_text())["errors"][0]
        head, *lines = text.removeprefix("error ").splitlines()
        assert head == "extend.init: 6 mistake(s)"
        assert {line.strip(" -") for line in lines} == {
            "unknown new class 'signn'; did you mean 'sign'?",
            "'car' is a class of the weights and keeps its rows; leave it out",
            "'pedestrian' is new itself; a class begins as one of the weights: car, person",
            "'thing' is merged from car, person; say as which of them",
            "'thing' is merged from car, person, which have rows of their own; leave it out",
            "unknown class of the weights 'kar'; did you mean 'car'?",
        }
    assert not Path("second").exists()
