"""`crossdet audit` on a trained detector: every picture of the tiny world shows a car and a face, half labelled."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from crossdet import Config, UserError, train
from crossdet.data.formats.coco import write_coco
from crossdet.data.index import IndexBuilder
from crossdet.runs.audit import audit_runs
from crossdet.runs.report import report


def union_test(world, file):
    """The cars' validation pictures once more, with another class that the detector does not know."""
    index = world.cars["val"]
    builder = IndexBuilder(index.root)
    for row in range(len(index)):
        builder.image(index.names[row], 48, 64, image_id=row + 1)
        builder.box(tuple(index.boxes[index.rows(row)][0].tolist()), 0)
        builder.box((0, 0, 5, 5), 1)
    write_coco(builder.build(["car", "lorry"], [1, 2]), file)
    return {"format": "coco", "images": str(world.root / "cars"), "annotations": str(file)}


def test_the_audit_finds_the_faces_that_nobody_labelled(world, trained, tmp_path, command):
    naive = tmp_path / "naive"
    train(world.config({"train.plain": True, "train.eval_every": 0}), output=naive)
    config = world.write_config(tmp_path / "c.yaml", {"union_test": union_test(world, tmp_path / "u.json")})
    out = tmp_path / "audit"
    code, printed = command("audit", trained.folder, config, "--against", naive, "-o", out)
    assert code == 0, printed
    content = json.loads((out / "audit.json").read_text())
    assert list(content) == ["trained", "naive"]
    aware = {(row["class"], row["dataset"]): row for row in content["trained"]["foreign"]}
    assert set(aware) == {("face", "cars"), ("car", "faces")}
    # five pictures with a face each: the aware detector sees most of them, and calls them probably unlabelled
    face = aware["face", "cars"]
    assert face["images"] == 5
    assert face["on_background"] >= 3
    assert 1 < face["expected_unlabelled"] <= face["on_background"]
    assert {row["class"] for row in content["trained"]["probably_unlabelled"]} == {"face", "car"}
    exported = COCO(str(out / "unlabelled_cars.json"))
    assert len(exported.anns) == face["on_background"]
    page = (out / "audit.html").read_text()
    assert page.count("<img") >= 3
    assert "face" in printed
    assert "naive" in printed

    for name in content:
        summary = " ".join(content[name]["summary"])
        assert summary.startswith("Union test, 5 pictures")
        assert f"{name}: {summary}" in " ".join(printed.split())

    union = content["trained"]["union_test"]
    assert set(union["per_class"]) == {"car"}  # lorry is left out, face is not labelled there
    assert union["per_class"]["car"]["AP50"] > 0.5
    both = [content[name]["union_test"]["AP50"] for name in content]
    assert f">{100 * both[0]:.1f} / {100 * both[1]:.1f}<" in page  # in percent, as everywhere


def test_mistakes_are_told(world, trained, tmp_path, command):
    config = world.write_config(tmp_path / "c.yaml")
    assert command("audit", tmp_path / "gone", config)[0] == 2
    assert command("audit", trained.folder, config, "--split", "test")[0] == 2
    heads = {"datasets.cars": None, "labels": {"merge": {"head": ["faces/face"]}}, "train.max_steps": 1}
    train(world.config(heads), output=tmp_path / "r")
    cars = world.config({**heads, "union_test": union_test(world, tmp_path / "u.json")})
    with pytest.raises(UserError, match="union_test: none of its classes"):
        audit_runs([tmp_path / "r"], cars, tmp_path / "a")
    with pytest.raises(UserError, match="knows other classes"):
        audit_runs([trained.folder, tmp_path / "r"], world.config(), tmp_path / "a")
    no_val = world.config({"datasets.cars.val": None, "datasets.faces.val": None})
    with pytest.raises(UserError, match="no dataset of the config has a `val` split"):
        audit_runs([trained.folder], no_val, tmp_path / "a")


def test_an_index_may_be_the_union_test(world, trained, tmp_path):
    config = world.config().model_copy(update={"union_test": world.cars["val"]})
    content = audit_runs([trained.folder], config, tmp_path)
    assert np.isfinite(content["trained"]["union_test"]["AP50"])


def test_a_class_that_is_listed_without_a_box_is_not_found_by_mistake(world, trained, tmp_path):
    """As exports of one labelling project list all names: each find counted as wrong, and moved the threshold."""
    cars = json.loads((world.root / "cars_val.json").read_text())
    cars["categories"].append({"id": 9, "name": "face"})
    (tmp_path / "lists.json").write_text(json.dumps(cars))
    lists = {
        "format": "coco",
        "val": {"images": str(world.root / "cars"), "annotations": str(tmp_path / "lists.json")},
    }
    faces = {key: value for key, value in world.settings()["datasets"]["faces"].items() if key != "train"}

    def audited(**labels):
        labels = {"merge": {"same_names": True}, **labels}
        config = Config.from_dict({"datasets": {"faces": faces, "lists": lists}, "labels": labels})
        return audit_runs([trained.folder], config, tmp_path / f"audit{len(labels)}")["trained"]

    said, not_said = audited(unlabelled={"lists": ["face"]}), audited()
    assert not_said["foreign"] == said["foreign"]
    assert not_said["home"] == said["home"]
    alone = {"datasets": {"lists": lists}, "labels": {}}
    one = audit_runs([trained.folder], Config.from_dict(alone), tmp_path / "alone")["trained"]
    assert [(row["class"], row["dataset"]) for row in one["foreign"]] == [("face", "lists")]
    told, *summary = not_said["summary"]
    assert told.startswith("lists lists face and has no box of it in these pictures: taken for not labelled there")
    assert summary == said["summary"]


def test_directions_as_classes(world, tmp_path):
    """Of the classes that a dataset lists without a box only those count that it did not teach, by their names
    without directions."""
    turned = {"datasets.cars.directions": [0], "datasets.faces.directions": 4}
    train(world.config({**turned, "train.max_steps": 1}), output=tmp_path / "run")
    report(tmp_path / "run", tmp_path / "report.html")
    cars = json.loads((world.root / "cars_val.json").read_text())
    face = {"id": 9, "name": "face"}
    files = {
        "lists": {**cars, "categories": [*cars["categories"], face]},
        "faces": {**cars, "categories": [face], "annotations": []},
    }
    datasets = {}
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        val = {"images": str(world.root / "cars"), "annotations": str(tmp_path / f"{name}.json")}
        datasets[name] = {"format": "coco", "val": val, "directions": 4, "val_directions": [0, 90]}
    datasets["lists"] |= {"directions": [0], "val_directions": [0]}
    config = Config.from_dict({"datasets": datasets, "labels": {"merge": {"same_names": True}}})
    summary = audit_runs([tmp_path / "run"], config, tmp_path / "audit")["run"]["summary"]
    told = [text for text in summary if "has no box of it" in text]
    assert [text.partition(" and ")[0] for text in told] == ["lists lists face"]
