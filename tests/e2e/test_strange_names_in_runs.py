"""Names that are paths: nothing is written outside the folder, and `crossdet score` finds what was written."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from crossdet.data.formats.voc import write_voc


def test_classes_named_like_paths_stay_in_the_folder_and_are_found_again(world, trained, tmp_path, command):
    names = {"cars": "../../../../escaped_class", "faces": f"{tmp_path}/hostile/absolute"}
    changes = {"labels": {"merge": {"car": ["cars/car"], "face": ["faces/face"]}}}
    for dataset, name in names.items():
        index = getattr(world, dataset)["val"]
        write_voc(replace(index, classes=(name,)), tmp_path / "data" / dataset, "val")
        changes[f"datasets.voc_{dataset}"] = {
            "format": "voc",
            "protocol": "voc",
            "val": {
                "annotations": str(tmp_path / "data" / dataset / "Annotations"),
                "images": str(world.root / dataset),
                "image_set": "val",
            },
        }
        changes["labels"]["merge"][dataset[:-1]].append(f"voc_{dataset}/{name}")
    config = world.write_config(tmp_path / "strange.yaml", changes)
    out = tmp_path / "deep" / "er" / "still" / "out"
    before = {file for file in tmp_path.rglob("*") if out not in file.parents}
    code, printed = command("eval", trained.folder, config, "--json", tmp_path / "n.json", "-o", out)
    assert code == 0, printed
    after = {file for file in tmp_path.rglob("*") if out not in file.parents}
    assert after - before == {*out.parents[:3], out, tmp_path / "n.json"}
    metrics = json.loads((tmp_path / "n.json").read_text())["datasets"]
    for dataset in names:
        folder = out / "predictions" / f"voc_{dataset}"
        assert len(list(folder.iterdir())) == 1
        numbers = tmp_path / "score.json"
        voc = tmp_path / "data" / dataset
        code, printed = command("score", "voc", voc, folder, "--image-set", "val", "--json", numbers)
        assert code == 0, printed
        assert "without" not in printed
        again, own = json.loads(numbers.read_text()), metrics[f"voc_{dataset}"]
        assert own["mAP_area"] > 0.3  # something is found, so equal numbers say something
        assert again["mAP_area"] == pytest.approx(own["mAP_area"], abs=1e-9)
        assert again["mAP_11pt"] == pytest.approx(own["mAP_11pt"], abs=1e-9)


def test_a_dataset_named_like_the_folder_above_stays_in_the_folder(world, trained, tmp_path, command):
    settings = world.settings()
    datasets = {"..": settings["datasets"]["faces"], "cars": settings["datasets"]["cars"]}
    config = tmp_path / "above.yaml"
    config.write_text(yaml.safe_dump({**settings, "datasets": datasets, "labels": {}}))
    below = {"eval": tmp_path / "e" / "out", "audit": tmp_path / "a" / "out"}
    for name, out in below.items():
        code, printed = command(name, trained.folder, config, "-o", out, "--json", tmp_path / f"{name}.json")
        assert code == 0, printed
        assert [file.name for file in out.parent.iterdir()] == ["out"]
    made = {file.relative_to(below["eval"]).as_posix() for file in below["eval"].rglob("*.*")}
    assert not any(name.startswith("results") for name in made)  # predictions/../results.json
    assert len([name for name in made if name.startswith("predictions/")]) >= 2
    assert len(list(below["audit"].glob("unlabelled_*.json"))) == 2
