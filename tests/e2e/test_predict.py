"""A trained detector in use: from Python, on files, scored on every dataset."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from torchvision.ops import box_iou
from worlds import picture

from crossdet import UserError, load_detector, predict
from crossdet.errors import LabelError
from crossdet.inference import find_images
from crossdet.runs.asked import Asked
from crossdet.runs.predict import predict_to_folder
from crossdet.types import Detections

SCORE = 0.2


@pytest.fixture(scope="module")
def detector(trained):
    return load_detector(trained.folder)


def assert_same(a: Detections, b: Detections, exactly: bool = True) -> None:
    assert a.names == b.names
    if exactly:
        assert torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.scores, b.scores)
    else:
        torch.testing.assert_close(a.boxes, b.boxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(a.scores, b.scores, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------- from Python


def test_an_image_may_be_a_path_a_pil_image_an_array_or_a_tensor(world, detector):
    path = picture(world)
    found = detector(path, score_threshold=SCORE)
    assert len(found)
    image = Image.open(path)
    array = np.asarray(image)
    for given in (str(path), image, array, torch.from_numpy(array.copy()).permute(2, 0, 1)):
        assert_same(detector(given, score_threshold=SCORE), found)


def test_what_is_no_picture_is_refused(detector, tmp_path):
    for wrong in (
        np.zeros((4, 4)),
        np.zeros((4, 4, 3)),
        torch.zeros(4, 4, 3, dtype=torch.uint8),
        torch.zeros(3, 4, 4),
    ):
        with pytest.raises(UserError, match=r"expected \[.*\] uint8 RGB, got"):
            detector(wrong)
    with pytest.raises(UserError, match=r"gone\.png"):
        detector(tmp_path / "gone.png")


def test_both_classes_are_found_where_they_are(world, detector):
    """Boxes are in pixels of the picture (which is resized from 64x48), names are the classes'."""
    for name, index in (("car", world.cars["val"]), ("face", world.faces["val"])):
        hits = 0
        for row in range(len(index)):
            found = detector(index.path(row), score_threshold=SCORE)
            assert found.names is not None
            boxes = found.boxes[[n == name for n in found.names]]
            truth = torch.from_numpy(np.array(index.boxes[index.rows(row)]))
            hits += bool(len(boxes) and box_iou(boxes, truth).max() > 0.5)
            assert bool((found.boxes >= 0).all())
            assert bool((found.boxes <= torch.tensor([64, 48, 64, 48])).all())
            assert bool((found.scores[:-1] >= found.scores[1:]).all())
            assert bool((found.scores > SCORE).all())
        assert hits >= 4, name


def test_boxes_follow_the_size_of_the_picture(world, detector):
    """The same picture three times as large is resized to the same input, so its boxes are three times as large."""
    small = Image.open(picture(world))
    large = small.resize((small.width * 3, small.height * 3), Image.Resampling.NEAREST)
    a, b = (detector(image, score_threshold=0.3, max_detections=2) for image in (small, large))
    assert len(a)
    assert a.names == b.names
    torch.testing.assert_close(a.boxes * 3, b.boxes, rtol=0, atol=6)
    assert float(b.boxes.max()) > 64


def test_only_the_wanted_classes(world, detector):
    both = detector(picture(world), score_threshold=0.01)
    assert set(both.names) == {"car", "face"}
    cars = detector(picture(world), ["car"], score_threshold=0.01)
    assert set(cars.names) == {"car"}
    assert set(cars.labels.tolist()) == {detector.space.id_of("car")}
    assert len(detector(picture(world), ["car"], score_threshold=0.01, max_detections=1)) == 1
    with pytest.raises(LabelError, match="lorry"):
        detector(picture(world), ["lorry"])


def test_a_batch_gives_what_single_calls_give(world, detector):
    paths = [picture(world, row) for row in range(3)]
    for found, path in zip(detector.batch(paths, score_threshold=SCORE), paths, strict=True):
        assert_same(found, detector(path, score_threshold=SCORE), exactly=False)
    listed = predict(detector, paths, score_threshold=SCORE)
    assert [len(found) for found in listed] == [len(detector(path, score_threshold=SCORE)) for path in paths]


def test_a_batch_of_different_sizes_gives_what_single_calls_give(world, detector):
    """To the effect of padding: a picture that is alone ends at its border, in a batch it goes on in grey."""
    tall = Image.open(picture(world, 1)).rotate(90, expand=True)
    images = [Image.open(picture(world)), tall]
    for found, image in zip(detector.batch(images, score_threshold=SCORE), images, strict=True):
        alone = detector(image, score_threshold=SCORE)
        assert len(alone)
        assert len(found)
        assert found.names[0] == alone.names[0]
        assert float(box_iou(found.boxes[:1], alone.boxes[:1])) > 0.7
        assert bool((found.boxes <= torch.tensor([*image.size, *image.size])).all())  # not in the padding


def test_loading_by_file_or_folder_and_predict_by_path(world, trained, detector):
    by_file = load_detector(trained.folder / "model.safetensors")
    found = detector(picture(world), score_threshold=SCORE)
    assert_same(by_file(picture(world), score_threshold=SCORE), found)
    (by_name,) = predict(trained.folder, picture(world), score_threshold=SCORE)
    assert_same(by_name, found)
    assert not by_file.model.training


# ------------------------------------------------------------------------------------ crossdet predict


def test_predict_writes_json_coco_results_and_pictures(world, trained, detector, tmp_path, command):
    """A folder, a glob and a file at once; the COCO results load beside their annotation file."""
    inputs = [world.root / "faces" / "0--Parade" / "val_0.png", world.root / "cars" / "val_[01].png"]
    out = tmp_path / "out"
    content = json.loads((world.root / "cars_val.json").read_text())
    for image in content["images"]:
        image["file_name"] = f"cars/{image['file_name']}"
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(content))
    code, printed = command("predict", trained.folder, *inputs, "-o", out, "--score", "0.05", "--coco", truth)
    assert code == 0
    assert "3 images: " in printed
    note = f"not in coco_results.json, {truth} has no image of that name, or several: {inputs[0]}"
    assert note in " ".join(printed.split())
    content = json.loads((out / "predictions.json").read_text())
    assert [Path(entry["file"]).name for entry in content["images"]] == ["val_0.png", "val_0.png", "val_1.png"]
    assert content["classes"] == ["car", "face"]
    for entry in content["images"]:
        assert (entry["width"], entry["height"]) == (64, 48)
        found = detector(entry["file"], score_threshold=0.05)
        assert [d["class"] for d in entry["detections"]] == list(found.names)
        boxes = torch.tensor([d["box_xyxy"] for d in entry["detections"]])
        torch.testing.assert_close(boxes, found.boxes, rtol=1e-4, atol=1e-3)
    assert sorted(path.name for path in (out / "pictures").iterdir()) == ["val_0.jpg", "val_0_2.jpg", "val_1.jpg"]
    with Image.open(out / "pictures" / "val_1.jpg") as drawn:
        assert drawn.size == (64, 48)
        difference = np.asarray(drawn.convert("RGB")).astype(int) - np.asarray(
            Image.open(content["images"][2]["file"])
        )
        assert (np.abs(difference) > 60).sum() > 50  # something was drawn
    coco = COCO(str(truth))
    results = coco.loadRes(str(out / "coco_results.json"))
    cars = [d for e in content["images"][1:] for d in e["detections"] if d["class"] == "car"]
    assert len(results.anns) == len(cars)
    assert {row["category_id"] for row in results.anns.values()} == {3}
    first = next(iter(results.anns.values()))
    x1, y1, x2, y2 = cars[0]["box_xyxy"]
    assert first["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1])


def test_results_with_ids_of_their_own_are_not_scored_by_those_of_another_file(world, trained, tmp_path, crossdet):
    """Without `--coco` the ids are numbers of the call; under those of the truth they would be other pictures."""
    cars = world.root / "cars"
    pictures = [cars / "val_0.png", cars / "val_1.png"]
    truth = json.loads((world.root / "cars_val.json").read_text())
    new_ids = {image["id"]: number for number, image in enumerate(reversed(truth["images"]), 1)}
    for image in truth["images"]:
        image["id"] = new_ids[image["id"]]
    for annotation in truth["annotations"]:
        annotation["image_id"] = new_ids[annotation["image_id"]]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert crossdet("predict", trained.folder, *pictures, "-o", tmp_path, "--score", "0.01").returncode == 0
    rows = json.loads((tmp_path / "coco_results.json").read_text())
    assert {(row["image_id"], row["file_name"]) for row in rows} == {(1, "val_0.png"), (2, "val_1.png")}
    assert {(row["category_id"], row["category_name"]) for row in rows} == {(1, "car"), (2, "face")}
    done = crossdet("score", "coco", tmp_path / "truth.json", tmp_path / "coco_results.json")
    assert done.returncode == 2
    assert "val_0.png has the id 1, and 5 in the ground truth; `crossdet predict --coco" in done.stderr
    code = crossdet(
        "predict", trained.folder, *pictures, "-o", tmp_path, "--score", "0.01", "--coco", tmp_path / "truth.json"
    ).returncode
    assert code == 0
    assert crossdet("score", "coco", tmp_path / "truth.json", tmp_path / "coco_results.json").returncode == 0
    done = crossdet("score", "coco", tmp_path / "truth.json", tmp_path / "coco_results.json", "--json", "-")
    assert "AP50" in done.stdout
    assert isinstance(json.loads(done.stdout), dict)
    assert "AP50" in done.stderr


def test_classes_that_the_file_of_ids_does_not_know_are_told(world, trained, tmp_path, crossdet):
    truth = json.loads((world.root / "cars_val.json").read_text())
    for category in truth["categories"]:
        category["name"] = category["name"].upper()
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    picture_ = world.root / "cars/val_0.png"
    options = ("-o", tmp_path / "out", "--classes", "car", "--score", "0.01", "--coco", tmp_path / "truth.json")
    done = crossdet("predict", trained.folder, picture_, *options)
    assert done.returncode == 0
    assert f"not in coco_results.json, {tmp_path}/truth.json has no category of that name: car" in done.stdout


def test_a_class_under_the_id_of_another_is_not_scored(world, trained, tmp_path, crossdet):
    categories = [{"id": 1, "name": "face"}, {"id": 2, "name": "car"}]
    truth = {"images": [{"id": 1, "file_name": "val_0.png"}], "annotations": [], "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    picture = world.root / "cars" / "val_0.png"
    assert crossdet("predict", trained.folder, picture, "-o", tmp_path, "--score", "0.01").returncode == 0
    done = crossdet("score", "coco", tmp_path / "truth.json", tmp_path / "coco_results.json")
    assert done.returncode == 2
    assert re.search(r"(car has the id 1, and 2|face has the id 2, and 1) in the ground truth", done.stderr)
    # ids that the truth does not have are of the same kind
    truth["images"][0]["id"] = 7000
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    done = crossdet("score", "coco", tmp_path / "truth.json", tmp_path / "coco_results.json")
    assert "val_0.png has the id 1, and 7000 in the ground truth" in done.stderr


def test_an_option_that_is_none_is_as_the_weights_say(world, detector, monkeypatch):
    monkeypatch.setitem(detector.decoding, "agnostic_nms", True)
    given = {"score_threshold": 0.01, "max_detections": 1000}
    found = detector(picture(world), **given)
    none = {"agnostic_nms": None, "nms_iou": None, "topk": None}
    assert_same(detector(picture(world), **given, **none), found)
    assert len(detector(picture(world), **given, agnostic_nms=False)) > len(found)


def test_mistakes_from_python(world, trained, detector):
    with pytest.raises(UserError, match=r"score_threshold: expected a score from 0 to 1, got 50"):
        detector(world.root / "cars" / "val_0.png", score_threshold=50)
    with pytest.raises(UserError, match=r"no image found for .*gone"):
        predict(detector, str(world.root / "gone"))
    assert repr(detector) == f"Detector(2 classes: car, face; {trained.folder}/best.safetensors)"
    assert repr(world.cars["val"]) == f"Index(5 images, 5 boxes, 1 classes: car; {world.root}/cars)"


def test_a_folder_and_a_pattern_from_python(world, detector, monkeypatch):
    """A folder is looked at in batches."""
    passes = []
    find = detector.model.find
    monkeypatch.setattr(detector.model, "find", lambda *given: passes.append(len(given[0])) or find(*given))
    cars = world.root / "cars"
    files = find_images([cars])
    found = predict(detector, str(cars), score_threshold=0.01, max_detections=2)
    assert len(found) == len(files) > 5
    assert all(len(one) <= 2 for one in found)
    assert (sum(passes), max(passes)) == (len(files), 8)
    for file, one in zip(files, found, strict=True):
        assert_same(one, detector(file, score_threshold=0.01, max_detections=2), exactly=False)
    some = predict(detector, [cars / "val_0.png", f"{cars}/val_*.png"], score_threshold=0.01)
    assert len(some) == 1 + len(list(cars.glob("val_*.png")))


def test_a_broken_file_of_many_is_an_error_from_python(world, detector, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.jpg"):
        predict(detector, [world.root / "cars/val_0.png", broken])


def test_pictures_of_an_earlier_call_stay_and_are_told(world, trained, tmp_path, command):
    out, cars = tmp_path / "out", world.root / "cars"
    (out / "pictures").mkdir(parents=True)
    for name in ("mine.jpg", "val_0.jpg", "val_9.jpg", "notes.txt"):
        (out / "pictures" / name).write_text("earlier")
    code, printed = command("predict", trained.folder, cars / "val_0.png", "-o", out)
    assert code == 0
    assert f"note: {out}/pictures/mine.jpg and 1 more lay there before and are not of this call" in printed
    earlier = [path.name for path in sorted((out / "pictures").iterdir()) if path.read_bytes() == b"earlier"]
    assert earlier == ["mine.jpg", "notes.txt", "val_9.jpg"]
    _, printed = command("predict", trained.folder, cars / "val_0.png", "-o", out, "--no-pictures")
    assert f"note: {out}/pictures/mine.jpg and 2 more lay there" in printed
    assert "note" not in command("predict", trained.folder, cars / "val_0.png", "-o", tmp_path / "new")[1]


def test_the_same_call_again_looks_at_the_same_pictures(world, trained, tmp_path, monkeypatch, command):
    """The output lies below what is searched through."""
    for number in (0, 1):
        Image.open(world.root / f"cars/val_{number}.png").save(tmp_path / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    code, printed = command("predict", trained.folder, ".")
    assert (code, "2 images" in printed, "note" in printed) == (0, True, False)
    code, printed = command("predict", trained.folder, ".", "--no-pictures")
    assert (code, "2 images" in printed) == (0, True)
    assert "note: 2 pictures in predictions/pictures are of an earlier call and left out" in printed


def test_no_picture_that_is_read_is_written_over(world, trained, tmp_path, crossdet):
    """The output's `pictures` is where the originals lie."""
    folder = tmp_path / "data/pictures"
    folder.mkdir(parents=True)
    for number in (0, 1):
        Image.open(world.root / f"cars/val_{number}.png").save(folder / f"{number}.jpg")
    before = [path.read_bytes() for path in sorted(folder.iterdir())]
    done = crossdet("predict", trained.folder, folder, "-o", tmp_path / "data")
    assert done.returncode == 2
    assert "0.jpg and 1 more would be written over; give another folder" in " ".join(done.stderr.split())
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == before
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["pictures"]
    assert crossdet("predict", trained.folder, folder, "-o", tmp_path / "data", "--no-pictures").returncode == 0


def test_ctrl_c_keeps_what_was_found(world, trained, tmp_path, monkeypatch):
    """In the middle of a folder."""
    looked: list[int] = []

    def tell(done: int, of: int) -> None:
        looked.append(of)
        if done == 2:
            raise KeyboardInterrupt

    images = [str(world.root / "cars/val_*.png")]
    summary = predict_to_folder(Asked(trained.folder), images, tmp_path, annotations="yolo", tell=tell)
    assert not (tmp_path / "labels").exists()  # those that were not looked at would have no objects
    assert (summary.stopped, summary.images, summary.asked) == (True, 2, looked[0])
    assert summary.asked > 2
    content = json.loads((tmp_path / "predictions.json").read_text())
    assert content["complete"] is False
    assert len(content["images"]) == 2
    assert len(list((tmp_path / "pictures").glob("*.jpg"))) == 2


def test_what_is_found_as_annotations(world, trained, tmp_path, crossdet):
    words = (
        "predict",
        trained.folder,
        world.root / "cars",
        "-o",
        tmp_path,
        "--annotations",
        "yolo",
        "--no-pictures",
    )
    done = crossdet(*words, "--score", 0.05)
    assert "(predictions.json, coco_results.json, labels, data.yaml)" in done.stdout
    images = json.loads((tmp_path / "predictions.json").read_text())["images"]
    assert sum(len(entry["detections"]) for entry in images) > 0
    for entry in images:
        lines = (tmp_path / "labels" / Path(entry["file"]).name).with_suffix(".txt").read_text().splitlines()
        assert len(lines) == len(entry["detections"])
    again = crossdet(*words)
    assert (again.returncode, "labels is there already; give another --output" in again.stderr) == (2, True)


def test_pictures_that_are_full_are_told(world, trained, tmp_path, crossdet):
    words = ("predict", trained.folder, world.root / "cars/val_0.png", "-o", tmp_path, "--score", 0.001)
    done = crossdet(*words, "--max-detections", 1)
    assert "note: images with as many detections as are reported at most (1): 1; see --max-det" in done.stdout
    assert json.loads((tmp_path / "predictions.json").read_text())["max_detections"] == 1
    assert "as many detections" not in crossdet(*words, "--max-detections", 100000).stdout


def test_json_on_standard_output_is_alone_there(world, trained, tmp_path, crossdet):
    done = crossdet("predict", trained.folder, world.root / "cars/val_0.png", "-o", tmp_path, "--json", "-")
    content = json.loads(done.stdout)
    assert content == json.loads((tmp_path / "predictions.json").read_text())
    assert content["images"][0]["picture"] == "pictures/val_0.jpg"
    assert "1 images: " in done.stderr
    assert not Path("-").exists()


def test_videos_in_a_folder_are_told(world, trained, tmp_path, crossdet):
    folder = tmp_path / "mixed"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(world.root / "cars/val_0.png", folder)
    (folder / "deep/film.MP4").write_bytes(b"")
    done = crossdet("predict", trained.folder, folder, "-o", tmp_path / "out")
    assert f"note: not looked at, a video has to be named: {folder}/deep/film.MP4" in done.stdout
    assert json.loads((tmp_path / "out/predictions.json").read_text())["complete"] is True
    with pytest.raises(UserError, match=r"deep \(a video has to be named: .*deep/film\.MP4\)"):
        find_images([folder / "deep"])
    shutil.copy(folder / "val_0.png", folder / "deep")
    assert [file.name for file in find_images([folder / "deep/*"])] == ["val_0.png"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told_with_the_path_and_what_is_kept(world, trained, tmp_path, crossdet):
    """The second picture does not fit."""
    out, cars = tmp_path / "out", world.root / "cars"
    (out / "pictures").mkdir(parents=True)
    (out / "pictures" / "val_1.jpg").symlink_to("/dev/full")
    done = crossdet("predict", trained.folder, cars / "val_[01].png", "-o", out)
    assert done.returncode == 1
    assert done.stderr == (
        f"failed {out}/pictures/val_1.jpg could not be written (No space left on device); what was found in 2 of 2 "
        f"images is in {out}/predictions.json\n"
    )
    with Image.open(out / "pictures" / "val_0.jpg") as kept:
        kept.load()
    content = json.loads((out / "predictions.json").read_text())
    assert [entry.get("picture") for entry in content["images"]] == ["pictures/val_0.jpg", None]
    assert content["complete"] is True


def test_a_full_disk_is_found_before_the_work(world, trained, tmp_path, crossdet, monkeypatch):
    cars, config = world.root / "cars" / "val_0.png", trained.folder / "config.yaml"
    calls = [
        ("predict", trained.folder, cars, "-o", tmp_path / "predict"),
        ("eval", trained.folder, config, "-o", tmp_path / "eval"),
        ("audit", trained.folder, config, "-o", tmp_path / "audit"),
        ("report", trained.folder, "-o", tmp_path / "report.html"),
        ("export", trained.folder, "-o", tmp_path / "export.onnx"),
    ]
    work = [
        ("inference", "predict_files"), ("runs.evaluate", "score_splits"), ("runs.audit", "audited_runs"),
        ("runs.report", "audited_runs"), ("runs.export", "onnx_graph"),
    ]  # fmt: skip
    for module, _ in work:
        importlib.import_module(f"crossdet.{module}")  # before any name is patched that the next one imports
    for module, name in work:
        monkeypatch.setattr(f"crossdet.{module}.{name}", None)  # the work
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    for words in calls:
        done = crossdet(*words)
        assert done.returncode == 1, done.stderr
        folder = words[-1] if words[0] == "predict" else tmp_path
        least = int(done.stderr.rsplit(" ", 1)[1].replace(",", ""))
        told = (
            f"failed {words[-1]} cannot be written: 0 bytes are left in {folder}, and it takes at least {least:,}"
        )
        assert " ".join(done.stderr.split()) == told
        assert least == 1 or words[0] == "export"
    assert 0.9 < least / (trained.folder / "best.safetensors").stat().st_size < 1
    assert [path.name for path in tmp_path.iterdir()] == ["predict"]


def test_predict_without_coco_numbers_images_and_classes(world, trained, tmp_path, command):
    out = tmp_path / "out"
    pattern = world.root / "cars" / "val_*.png"
    assert command("predict", trained.folder, pattern, "-o", out, "--score", "0.05", "--no-pictures")[0] == 0
    assert not (out / "pictures").exists()
    entries = json.loads((out / "predictions.json").read_text())["images"]
    rows = json.loads((out / "coco_results.json").read_text())
    names = ["car", "face"]
    assert [(row["image_id"], names[row["category_id"] - 1], row["score"]) for row in rows] == [
        (number, d["class"], d["score"]) for number, e in enumerate(entries, 1) for d in e["detections"]
    ]


@pytest.mark.parametrize("classes", [" face ,", "f*", "*ace,f??e"])
def test_predict_for_some_classes(world, trained, tmp_path, command, classes):
    out = tmp_path / "out"
    given = ["--classes", classes, "--score", "0.02"]
    assert command("predict", trained.folder, world.root / "cars", "-o", out, *given)[0] == 0
    entries = json.loads((out / "predictions.json").read_text())["images"]
    assert {d["class"] for e in entries for d in e["detections"]} == {"face"}


def test_predict_with_a_score_for_one_class(world, trained, tmp_path, command, crossdet):
    """The other keeps its own; what cannot be is told before anything is written."""
    paths = sorted((world.root / "cars").glob("val_*.png"))
    for score in ("car=1.5", "car=", "0.1,face=x", "van=0.5"):
        done = crossdet("predict", trained.folder, *paths, "-o", tmp_path / "none", "--score", score)
        assert done.returncode == 2
        assert "score" in done.stderr
    for wrong in (("--classes", ""), ("--classes", "van"), ("--coco", tmp_path / "gone.json")):
        assert crossdet("predict", trained.folder, *paths, "-o", tmp_path / "none", *wrong).returncode == 2
    assert not (tmp_path / "none").exists()
    assert command("predict", trained.folder, *paths, "-o", tmp_path, "--score", "0,face=1")[0] == 0
    record = json.loads((tmp_path / "predictions.json").read_text())
    assert record["score_threshold"] == {"*": 0.0, "face": 1.0}
    assert record["thresholds"] == {"car": 0.0, "face": 1.0}
    found = [detection["class"] for image in record["images"] for detection in image["detections"]]
    assert found.count("car") > 5
    assert "face" not in found


def test_predict_reports_and_skips_what_it_cannot_read(world, trained, tmp_path, command):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for row in range(2):
        (folder / f"{row}.png").write_bytes(picture(world, row).read_bytes())
    (folder / "0a.png").write_bytes(picture(world).read_bytes()[:200])
    (folder / "notes.txt").write_text("no image, and not taken for one")
    code, printed = command("predict", trained.folder, folder, "-o", tmp_path / "out")
    assert code == 0
    assert printed.count("skipped") == 1
    assert "0a.png" in printed
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [Path(entry["file"]).name for entry in content["images"]] == ["0.png", "1.png"]
    assert len(content["unreadable"]) == 1
    assert "notes.txt" not in printed


def test_more_pictures_than_one_batch_keep_their_order(world, trained, detector, tmp_path, command):
    code, _ = command("predict", trained.folder, world.root, "-o", tmp_path / "out", "--no-pictures")
    assert code == 0
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert [entry["file"] for entry in entries] == [str(p) for p in sorted(world.root.rglob("*.png"))]
    for entry in entries[::7]:
        best = detector(entry["file"], score_threshold=0.3).scores[:1].tolist()
        assert [d["score"] for d in entry["detections"]][:1] == pytest.approx(best, rel=1e-3)


def test_large_pictures_are_predicted_in_tiles(world, trained, detector, tmp_path, command):
    image = Image.open(picture(world)).resize((160, 120))
    image.save(tmp_path / "large.png")
    given = ("predict", trained.folder, tmp_path / "large.png", "-o", tmp_path / "out", "--score", "0.05")
    code, _ = command(*given, "--tile", "64", "--overlap", "0.3")
    assert code == 0
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert (content["tile"], content["overlap"]) == (64, 0.3)
    found = detector(image, score_threshold=0.05, tile=64, overlap=0.3)
    assert len(found)
    boxes = [d["box_xyxy"] for d in content["images"][0]["detections"]]
    assert boxes == predict(detector, image, score_threshold=0.05, tile=64, overlap=0.3)[0].boxes.tolist()
    assert boxes == found.boxes.tolist()
    with pytest.raises(UserError, match=r"overlap: .*; give tile \(such as 640\), too"):
        predict(detector, image, overlap=0.3)
    assert command(*given, "--overlap", "0.3")[0] == 2
    assert command(*given)[0] == 0
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert content["tile"] is None
    assert content["overlap"] is None


def test_find_images(world, tmp_path, monkeypatch):
    cars = world.root / "cars"
    assert find_images([cars / "val_1.png", cars]) == [
        cars / "val_1.png",
        *[p for p in sorted(cars.glob("*.png")) if p.name != "val_1.png"],
    ]
    monkeypatch.chdir(world.root)
    assert find_images(["cars/val_?.png"]) == [Path("cars") / f"val_{i}.png" for i in range(5)]
    assert len(find_images(["**/train_1.png"])) == 2
    spellings = ["cars/../cars/val_1.png", "cars/val_1.png", cars / "val_1.png"]
    assert find_images(spellings) == [Path(spellings[0])]
    (tmp_path / "other.png").symlink_to(cars / "val_1.png")
    assert len(find_images([tmp_path, *spellings])) == 2  # which may have a row of its own in --coco
    (tmp_path / "._other.png").symlink_to(cars / "val_1.png")  # macOS leaves such files that are no pictures
    for given in (tmp_path, tmp_path / "*.png"):
        assert find_images([given]) == [tmp_path / "other.png"]
    assert find_images([tmp_path / "._other.png"]) == [tmp_path / "._other.png"]
    with pytest.raises(UserError, match=r"no image found for x\.png, y\*"):
        find_images(["x.png", "cars", "y*"])
