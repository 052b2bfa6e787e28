"""Every dataset judged by its own protocol in a run; its predictions, curves and thresholds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from crossdet import UserError, evaluate, load_config, load_detector, train
from crossdet.config import Config
from crossdet.data.formats.voc import write_voc
from crossdet.data.formats.wider_pedestrian import write_wider_pedestrian
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.curves import read_methods
from crossdet.evaluation.files.wider_face_lists import read_wider_face_truth, write_wider_face_lists
from crossdet.evaluation.protocols import PROTOCOLS
from crossdet.evaluation.protocols.entry import ProtocolLimits, best_per_image, score_split
from crossdet.evaluation.run import EvalSettings
from crossdet.evaluation.splits import Split
from crossdet.inference import DEFAULT_THRESHOLD
from crossdet.models.weights import load_weights, update_card


def face_lists(world, folder, hard=(0, 1, 2, 3, 4)):
    """The four .mat files of the world's faces: easy counts the first one, medium three, hard those given."""
    index = world.faces["val"]
    boxes = np.array(index.boxes, np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    rows = np.arange(len(boxes))
    kept = {"easy": rows < 1, "medium": rows < 3, "hard": np.isin(rows, hard)}
    names = [index.names[row].removesuffix(".png") for row in range(len(index))]
    write_wider_face_lists(folder, names, boxes, index.image_of_box(), kept)
    return folder


@pytest.fixture
def four_protocols(world, tmp_path):
    """A config that has the world's val pictures in all four formats, each with its own protocol."""
    write_voc(world.cars["val"], tmp_path / "voc", "val")
    regions = tmp_path / "ignore.txt"
    write_wider_pedestrian(world.faces["val"], tmp_path / "peds.txt", regions, edition=2019)
    images = str(world.root / "cars")
    return {
        "datasets.faces.protocol": ["wider_face", "coco"],
        "datasets.faces.val.lists": str(face_lists(world, tmp_path / "lists")),
        "datasets.voc": {
            "format": "voc",
            "protocol": "voc",
            "classes": ["car"],
            "val": {"annotations": str(tmp_path / "voc/Annotations"), "images": images, "image_set": "val"},
        },
        "datasets.peds": {
            "format": "wider_pedestrian",
            "edition": 2019,
            "protocol": "wider_pedestrian",
            "val": {
                "annotations": str(tmp_path / "peds.txt"),
                "images": str(world.root / "faces"),
                "ignore": str(regions),
            },
        },
        "labels": {"merge": {"car": ["cars/car", "voc/car"], "face": ["faces/face", "peds/pedestrian"]}},
    }


def test_one_table_in_which_every_dataset_shows_its_own_protocol(world, trained, four_protocols, tmp_path, command):
    config = world.write_config(tmp_path / "four.yaml", four_protocols)
    out = tmp_path / "out"
    code, printed = command("eval", trained.folder, config, "--json", tmp_path / "n.json", "-o", out)
    assert code == 0, printed
    metrics = json.loads((tmp_path / "n.json").read_text())["datasets"]
    shown = {
        ("cars", "coco"): [metrics["cars"]["AP"], metrics["cars"]["AP50"]],
        ("faces", "wider_face"): [metrics["faces"][key] for key in ("easy", "medium", "hard")],
        ("faces", "coco"): [metrics["faces"]["further"]["coco"]["AP"]],
        ("voc", "voc"): [metrics["voc"]["mAP_area"], metrics["voc"]["mAP_11pt"]],
        ("peds", "wider_pedestrian"): [
            metrics["peds"]["challenge"]["AP"],
            *(metrics["peds"]["coco_style"][key] for key in ("AP", "AP50", "AP75")),
        ],
    }
    for (dataset, protocol), values in shown.items():
        (line,) = [ln for ln in printed.splitlines() if ln.split()[:1] == [dataset] and f" {protocol} " in ln]
        for value in values:
            assert f"{100 * value:.1f}" in line.split()
    assert metrics["faces"]["hard"] > 0.3  # the detector finds something, so equal numbers below say something
    assert metrics["voc"]["mAP_area"] > 0.3

    # what `crossdet score` makes of the written predictions
    root, predictions, numbers = world.root, out / "predictions", tmp_path / "score.json"

    def score(*arguments):
        code, text = command("score", *arguments, "--json", numbers)
        assert code == 0, text
        return json.loads(numbers.read_text())

    again = score("coco", root / "cars_val.json", predictions / "cars/results.json")
    for key in ("AP", "AP50", "AR100"):
        assert again[key] == pytest.approx(metrics["cars"][key], abs=1e-9)
    again = score("voc", tmp_path / "voc", predictions / "voc", "--image-set", "val")
    assert again["mAP_area"] == pytest.approx(metrics["voc"]["mAP_area"], abs=1e-9)
    assert again["mAP_11pt"] == pytest.approx(metrics["voc"]["mAP_11pt"], abs=1e-9)
    again = score("wider_face", tmp_path / "lists", predictions / "faces")
    for key in ("easy", "medium", "hard"):
        assert again[key] == pytest.approx(metrics["faces"][key], abs=1e-9)
    submission = predictions / "peds/submission.txt"
    again = score("wider_pedestrian", tmp_path / "peds.txt", submission, "--ignore", tmp_path / "ignore.txt")
    assert again["challenge"]["AP"] == pytest.approx(metrics["peds"]["challenge"]["AP"], abs=1e-9)
    assert again["coco_style"]["AP50"] == pytest.approx(metrics["peds"]["coco_style"]["AP50"], abs=1e-6)

    ((method, curves),) = read_methods(out / "curves/curves.json")
    assert method == trained.folder.name
    ap = {(c.dataset, c.protocol, c.name): c.curve.ap for c in curves}
    assert ap["faces", "wider_face", "hard"] == metrics["faces"]["hard"]
    assert ap["voc", "voc", "car"] == metrics["voc"]["mAP_area"]
    assert len(list((out / "curves").glob("*.png"))) == 5


def test_a_federated_dataset_is_judged_where_its_images_verify_the_class(world, trained, tmp_path, command):
    """Half the pictures label no cars: they say nothing of cars, or say wrongly that they show none."""
    content = json.loads((world.root / "cars_val.json").read_text())
    (car,) = (category["id"] for category in content["categories"])
    hidden = {image["id"] for image in content["images"][::2]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in hidden]
    assert content["annotations"]
    found, out = {}, tmp_path / "out"
    for name, lies in (("silent", []), ("wrong", [car])):
        for image in content["images"]:
            image["neg_category_ids"] = lies if image["id"] in hidden else []
            image["not_exhaustive_category_ids"] = []
        (tmp_path / "lvis.json").write_text(json.dumps(content))
        files = {"images": str(world.root / "cars"), "annotations": str(tmp_path / "lvis.json")}
        dataset = {"format": "coco", "protocol": ["lvis", "coco", "voc"], "val": files}
        labels = {"merge": {"car": ["cars/car", "lvis/car"]}}
        config = {"datasets.lvis": dataset, "datasets.cars.val": None, "datasets.faces.val": None}
        file = world.write_config(tmp_path / "c.yaml", {**config, "labels": labels})
        code, printed = command("eval", trained.folder, file, "--json", tmp_path / "n.json", "-o", out)
        assert code == 0, printed
        metrics = json.loads((tmp_path / "n.json").read_text())
        found[name] = metrics["datasets"]["lvis"], metrics["operating"]["car"]
        line = next(line for line in printed.splitlines() if line.startswith("lvis") and " lvis " in line)
        assert f"{100 * found[name][0]['AP']:.1f}" in line.split()
        results = out / "predictions/lvis/results.json"
        code, text = command("score", "lvis", tmp_path / "lvis.json", results, "--json", tmp_path / "s.json")
        assert code == 0, text
        again = json.loads((tmp_path / "s.json").read_text())
        for key in ("AP", "AP50", "AP75", "AR"):
            assert again[key] == pytest.approx(found[name][0][key], abs=1e-9), key
    (silent, best), (wrong, worse) = found["silent"], found["wrong"]
    assert silent["AP50"] > wrong["AP50"]
    for protocol, number in (("coco", "AP50"), ("voc", "mAP_area")):
        assert silent["further"][protocol][number] > wrong["further"][protocol][number]
    assert best["f1"] > worse["f1"]


def test_the_mean_is_over_the_main_numbers_of_the_first_protocols(world, trained, four_protocols):
    metrics = evaluate(trained.folder, world.config(four_protocols))
    rows = metrics["datasets"]
    faces = [rows["faces"][key] for key in ("easy", "medium", "hard")]
    main = [rows["cars"]["AP"], sum(faces) / 3, rows["voc"]["mAP_area"], rows["peds"]["coco_style"]["AP"]]
    assert metrics["mean"] == pytest.approx(sum(main) / 4)


def test_without_lists_the_valid_faces_are_one_setting_and_the_table_says_so(world, trained, tmp_path, command):
    config = world.write_config(tmp_path / "c.yaml", {"datasets.faces.protocol": "wider_face"})
    code, printed = command("eval", trained.folder, config, "-o", tmp_path, "--json", tmp_path / "n.json")
    assert code == 0
    faces = json.loads((tmp_path / "n.json").read_text())["datasets"]["faces"]
    assert 0.3 < faces["all"] <= 1
    assert faces["faces"] == {"all": 5}
    assert "easy" not in faces
    assert "no `val.lists`" in printed


def test_pictures_missing_from_the_lists_or_from_the_split_are_told(world, trained, tmp_path):
    index = world.faces["val"]
    lists = face_lists(world, tmp_path / "lists")
    some = index.take(np.array([0, 1, 2]))
    nothing = DetectionArrays(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), np.zeros(0, int))
    split = Split(some, np.array([0]), ["face"], lists=read_wider_face_truth(lists))
    result = score_split(PROTOCOLS["wider_face"], split, nothing, 750)
    assert result.notes == ("2 of 5 images of the lists are not in the split; their faces count",)
    assert result.record["hard"] == 0


def test_a_protocol_may_have_more_detections_than_another(world, trained, monkeypatch):
    """One pass over the images with the widest limits, then each protocol takes its own."""
    import crossdet.evaluation.run as run

    decoded, scored = [], []
    detect, score = run.detect, run.score_split

    def spy_detect(model, index, classes, settings, **options):
        decoded.append((settings.max_detections, settings.score_threshold))
        return detect(model, index, classes, settings, **options)

    def spy_score(protocol, split, detections, most):
        scored.append((protocol.name, most, float(detections.scores.min(initial=1.0))))
        return score(protocol, split, detections, most)

    monkeypatch.setattr(run, "detect", spy_detect)
    monkeypatch.setattr(run, "score_split", spy_score)
    evaluate(trained.folder, world.config({"datasets.faces.protocol": ["coco", "wider_face"]}))
    assert decoded == [(100, 0.05), (750, 0.01)]
    assert [(name, most) for name, most, _ in scored] == [("coco", 100), ("coco", 100), ("wider_face", 750)]
    assert scored[1][2] > 0.05 > scored[2][2] > 0.01


def test_the_config_overrides_the_limits_of_a_protocol():
    settings = EvalSettings(64, 96, score_threshold=0.2, max_detections=7)
    assert vars(settings.limits(PROTOCOLS["wider_face"])) == {"max_detections": 7, "score_threshold": 0.2}
    assert settings.limits(PROTOCOLS["coco"]).max_detections == 7
    assert EvalSettings(64, 96).limits(PROTOCOLS["wider_face"]) == ProtocolLimits(750, 0.01)


def test_the_best_of_each_image_are_kept_in_their_order():
    scores = np.array([0.1, 0.9, 0.5, 0.7, 0.6])
    images = np.array([1, 1, 0, 1, 0])
    given = DetectionArrays(np.arange(20.0).reshape(5, 4), scores, np.zeros(5, int), images)
    assert best_per_image(given, 2).scores.tolist() == [0.9, 0.5, 0.7, 0.6]
    assert best_per_image(given, 1).scores.tolist() == [0.9, 0.6]
    assert best_per_image(given, 9).scores.tolist() == scores.tolist()


def test_wider_face_refuses_a_dataset_of_several_classes(world, trained):
    split = Split(world.cars["val"], np.array([0]), ["car"])
    two = Split(two_classes(world), np.array([0, 1]), ["car", "face"])
    nothing = DetectionArrays(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), np.zeros(0, int))
    assert score_split(PROTOCOLS["wider_face"], split, nothing, 750).record["all"] == 0
    with pytest.raises(UserError, match="wider_face judges one class, the dataset labels car, face"):
        score_split(PROTOCOLS["wider_face"], two, nothing, 750)


def two_classes(world):
    return replace(world.cars["val"], classes=("car", "face"), category_ids=np.array([1, 2]))


def test_mistakes_in_lists_and_protocols_are_told_before_anything_runs(world, tmp_path, command):
    config = world.settings()
    config["datasets"]["cars"]["val"]["lists"] = "nowhere"
    config["datasets"]["faces"]["protocol"] = ["coco", "coco"]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="is named twice"):
        load_config(tmp_path / "c.yaml")
    config["datasets"]["faces"]["protocol"] = "wider_face"
    with pytest.raises(UserError, match="lists` belongs to the protocol `wider_face`, got protocol coco"):
        Config.from_dict(config)
    lists = {"datasets.faces.protocol": "wider_face", "datasets.faces.val.lists": str(tmp_path / "gone")}
    path = world.write_config(tmp_path / "d.yaml", lists)
    code, _ = command("check", path)
    assert code == 2
    with pytest.raises(UserError, match=r"datasets\.faces\.val\.lists"):
        train(path, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------ operating thresholds


def test_thresholds_of_best_f1_are_stored_with_the_weights_and_used(world, trained, tmp_path, command):
    points = trained.record["metrics"]["operating"]
    assert set(points) == {"car", "face"}
    detector = load_detector(trained.folder)
    assert detector.thresholds == {name: point["threshold"] for name, point in points.items()}
    assert all(0.05 < t < 1 for t in detector.thresholds.values())
    assert json.loads((trained.folder / "metrics.json").read_text())["epochs"][-1]["metrics"]["operating"]

    image = world.cars["val"].path(0)
    everything = detector(image, score_threshold=0.01)
    wanted = [
        (name, score)
        for name, score in zip(everything.names, everything.scores.tolist(), strict=True)
        if score > detector.thresholds[name]
    ]
    found = detector(image)
    assert list(zip(found.names, found.scores.tolist(), strict=True)) == wanted
    code, _ = command("predict", trained.folder, image, "-o", tmp_path / "out", "--no-pictures")
    assert code == 0
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert content["score_threshold"] is None
    assert content["thresholds"] == pytest.approx(detector.thresholds)
    assert len(content["images"][0]["detections"]) == len(wanted)


def test_a_class_has_its_own_threshold(trained, world):
    detector = load_detector(trained.folder)
    image = world.cars["val"].path(0)
    detector.thresholds = {"car": 1.0}
    assert detector.thresholds_used(None) == {"car": 1.0, "face": DEFAULT_THRESHOLD}
    assert set(detector(image).names) <= {"face"}
    assert "car" in detector(image, score_threshold=0.01).names
    detector.thresholds = {"car": 0.01, "face": 1.0}
    assert set(detector(image, classes=["face"]).names) == set()
    assert set(detector(image).names) == {"car"}


def test_eval_stores_the_thresholds_of_another_evaluation(world, trained, tmp_path, command):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes((trained.folder / "model.safetensors").read_bytes())
    update_card(weights, operating={"car": {"threshold": 0.99}, "face": {"threshold": 0.7}})
    config = world.write_config(tmp_path / "cars.yaml", {"datasets.faces.val": None})
    code, printed = command("eval", weights, config, "--store-thresholds", "--json", tmp_path / "n.json")
    assert code == 0
    assert "1 thresholds stored" in printed
    points = json.loads((tmp_path / "n.json").read_text())["operating"]
    # the config has no faces to judge: their threshold stays
    assert load_detector(weights).thresholds == {"car": points["car"]["threshold"], "face": 0.7}
    assert command("eval", weights, config, "--store-thresholds", "--no-fold")[0] == 2
    before, after = load_weights(trained.folder), load_weights(weights)
    assert all(bool((before[0][name] == tensor).all()) for name, tensor in after[0].items())
    assert replace(after[1], operating=None) == replace(before[1], operating=None)


def test_weights_without_evaluation_have_no_thresholds(world, tmp_path):
    changes = {"train.max_steps": 1, "datasets.cars.val": None, "datasets.faces.val": None}
    train(world.config(changes), output=tmp_path / "run")
    detector = load_detector(tmp_path / "run")
    assert detector.thresholds == {}
    assert set(detector.thresholds_used(None).values()) == {DEFAULT_THRESHOLD}
