"""The generated pictures: the same for a seed, boxes that fit what is drawn, partial labels per dataset."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from crossdet.data.formats.coco import read_coco
from crossdet.data.formats.wider_face import read_wider_face
from crossdet.data.formats.wider_pedestrian import read_wider_pedestrian
from crossdet.demo import scene_composition, scenes
from crossdet.demo.scene_drawing import Painter
from crossdet.errors import UserError
from crossdet.types import Flag

MANY = 60


@pytest.fixture(scope="module")
def made() -> dict[str, list[scenes.Scene]]:
    return {look: [scenes.make_scene(look, (3, i)) for i in range(MANY)] for look in scenes.LOOKS}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, int]]]:
    root = tmp_path_factory.mktemp("demo")
    return root, scenes.write_demo_datasets(root, seed=1, train_images=12, val_images=6, union_images=10)


def digest(root: Path) -> dict[str, str]:
    files = sorted(f for f in root.rglob("*") if f.is_file())
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_seed_decides_the_picture() -> None:
    one, again, other = (scenes.make_scene("peds", seed) for seed in ((1, 2), (1, 2), (1, 3)))
    assert one.image.tobytes() == again.image.tobytes()
    assert (one.objects, one.crowds) == (again.objects, again.crowds)
    assert one.image.tobytes() != other.image.tobytes()
    assert scenes.make_scene("faces", (1, 2)).image.tobytes() != one.image.tobytes()


def test_boxes_lie_inside_the_picture(made: dict[str, list[scenes.Scene]]) -> None:
    for scene in (s for of_look in made.values() for s in of_look):
        assert scene.image.size == (208, 160)
        for name, (x1, y1, x2, y2) in [*scene.objects, *(("crowd", box) for box in scene.crowds)]:
            assert 0 <= x1 < x2 <= 208, name
            assert 0 <= y1 < y2 <= 160, name
            assert min(x2 - x1, y2 - y1) >= scene_composition.MIN_SIDE


def test_every_face_lies_in_a_person(made: dict[str, list[scenes.Scene]]) -> None:
    for scene in (s for of_look in made.values() for s in of_look):
        persons = [box for name, box in scene.objects if name == "person"]
        for x1, y1, x2, y2 in (box for name, box in scene.objects if name == "face"):
            assert any(a <= x1 and b <= y1 and c >= x2 and d >= y2 for a, b, c, d in persons)


@pytest.mark.parametrize("look", scenes.LOOKS)
def test_all_classes_in_every_look(look: str, made: dict[str, list[scenes.Scene]]) -> None:
    per_class = {c: sum(name == c for s in made[look] for name, _ in s.objects) for c in scenes.CLASSES}
    assert min(per_class.values()) >= 10, per_class
    assert per_class["face"] < per_class["person"], "some people are seen from behind"
    assert sum(any(name == "person" for name, _ in s.objects) for s in made[look]) > 0.85 * MANY


def test_sizes_suit_a_small_detector(made: dict[str, list[scenes.Scene]]) -> None:
    def heights(wanted: str) -> np.ndarray:
        every = (pair for of_look in made.values() for s in of_look for pair in s.objects)
        return np.array([box[3] - box[1] for name, box in every if name == wanted])

    assert np.percentile(heights("person"), 5) > 40
    assert np.percentile(heights("face"), 10) >= 9
    assert np.percentile(heights("face"), 99) <= 40


def test_looks_differ_in_colour_contrast_and_noise(made: dict[str, list[scenes.Scene]]) -> None:
    pixels = {look: np.stack([np.asarray(s.image, np.float64) for s in made[look]]) for look in scenes.LOOKS}
    red, green, blue = ({look: p[..., channel].mean() for look, p in pixels.items()} for channel in range(3))
    assert red["faces"] > blue["faces"] + 50
    assert blue["peds"] > red["peds"]
    assert green["objects"] > max(red["objects"], blue["objects"]) + 20
    spread = {look: (p.max(axis=3) - p.min(axis=3)).mean() for look, p in pixels.items()}
    assert spread["peds"] < 0.5 * min(spread["faces"], spread["objects"])
    assert len({look for look, of_look in made.items() if any(s.crowds for s in of_look)}) == 1


@pytest.mark.parametrize("name", ["person", "car", "dog", "sign", "crowd"])
@pytest.mark.parametrize("seed", range(4))
def test_boxes_are_tight(name: str, seed: int) -> None:
    """Alone on an empty picture, the box is what was painted (of a sign: the plate, not the pole)."""
    painter = Painter(208, 160)
    nothing = (255, 0, 255)
    painter.image.paste(nothing, (0, 0, *painter.image.size))
    look = replace(scene_composition.LOOK_SETTINGS["objects"], shadow=0, facing=1.0)
    drawn: list[scene_composition._Drawn] = []
    item = scene_composition._Item(name, 104.0, 140.0, 12.0 if name == "crowd" else 80.0)
    scene_composition._draw(painter, Random(seed), item, look, drawn)
    objects, crowds = scene_composition._labels(painter, drawn)
    painted = (np.asarray(painter.image) != nothing).any(axis=2)
    owned = np.asarray(painter.owners) > 0
    if name == "sign":
        assert owned.sum() < painted.sum()
    else:
        assert np.array_equal(owned, painted)
    ys, xs = np.nonzero(owned)
    boxes = dict([*objects, *(("crowd", box) for box in crowds)])
    expected = (xs.min() / 2, ys.min() / 2, (xs.max() + 1) / 2, (ys.max() + 1) / 2)
    assert boxes[name] == pytest.approx(expected, abs=0.5)
    assert ("face" in boxes) == (name == "person")


def test_hidden_objects_are_labelled_nowhere() -> None:
    painter = Painter(208, 160)
    look = replace(scene_composition.LOOK_SETTINGS["objects"], facing=1.0)
    drawn: list[scene_composition._Drawn] = []
    scene_composition._draw(painter, Random(0), scene_composition._Item("person", 100.0, 140.0, 100.0), look, drawn)
    (_, (x1, _, x2, y2)), (_, face) = scene_composition._labels(painter, drawn)[0]
    painter.pixels()
    painter.owner = 0
    painter.box(x1 - 2, face[3], x2 + 2, y2 + 2, (0, 0, 0))
    person, again = scene_composition._labels(painter, drawn)[0]
    assert again == ("face", face)
    assert person[1][3] <= face[3] + 1, "the box shrinks to what can be seen"
    painter.box(x1 - 2, face[1] + 4, x2 + 2, y2, (0, 0, 0))
    assert scene_composition._labels(painter, drawn)[0] == []


# --------------------------------------------------------------------------------------------- on disk


def test_each_dataset_labels_its_own_classes_only(written: tuple[Path, dict[str, dict[str, int]]]) -> None:
    root, summary = written
    faces = read_wider_face(root / "faces/wider_face_train_bbx_gt.txt", root / "faces/images")
    assert (faces.classes, len(faces), not faces.skipped) == (("face",), 12, True)
    assert all("--" in faces.names[i] and faces.path(i).is_file() for i in range(len(faces)))
    peds = read_wider_pedestrian(
        root / "peds/train_annotations.txt",
        root / "peds/images/train",
        root / "peds/pedestrian_ignore_part_train.txt",
        edition=2018,
    )
    assert set(peds.labels[peds.flags == 0]) == {0}
    assert peds.classes[0] == "pedestrian"
    assert all(peds.path(i).is_file() for i in range(len(peds)))
    objects = read_coco(root / "objects/annotations/instances_train.json", root / "objects/images/train")
    assert objects.classes == ("person", "car", "dog", "sign")
    assert objects.category_ids.tolist() == [1, 3, 18, 13]
    for name, index in (("faces/train", faces), ("peds/train", peds), ("objects/train", objects)):
        boxes = sum(count for key, count in summary[name].items() if key != "images")
        assert boxes == (index.flags == 0).sum() > 0


def test_union_test_labels_everything(written: tuple[Path, dict[str, dict[str, int]]]) -> None:
    root, summary = written
    folder = root / "union_test"
    union = read_coco(folder / "annotations/all.json", folder / "images")
    assert union.classes == scenes.CLASSES
    assert len(union) == 30
    assert min(summary["union_test/all"].values()) > 0
    ids: list[int] = []
    for look in scenes.LOOKS:
        part = read_coco(folder / f"annotations/{look}.json", folder / "images")
        assert all(part.names[i].startswith(f"{look}_") and part.path(i).is_file() for i in range(len(part)))
        ids += part.image_ids.tolist()
    assert ids == union.image_ids.tolist()
    assert set(union.flags) <= {0, Flag.CROWD}
    with Image.open(union.path(0)) as image:
        assert image.size == (208, 160)


def test_second_call_changes_nothing_and_other_settings_do(tmp_path: Path) -> None:
    small = {"train_images": 3, "val_images": 2, "union_images": 2}
    summary = scenes.write_demo_datasets(tmp_path, **small)
    before = digest(tmp_path)
    times = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()}
    assert scenes.write_demo_datasets(tmp_path, **small) == summary
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()} == times
    scenes.write_demo_datasets(tmp_path, **small, seed=5)
    assert digest(tmp_path) != before
    scenes.write_demo_datasets(tmp_path, **small)
    assert digest(tmp_path) == before


def test_interrupted_or_damaged_sets_are_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"train_images": 3, "val_images": 2, "union_images": 2}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scenes, "_annotate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scenes.write_demo_datasets(tmp_path, **small)
    monkeypatch.undo()
    scenes.write_demo_datasets(tmp_path, **small)
    good = digest(tmp_path)
    next((tmp_path / "faces").rglob("*.jpg")).unlink()
    (tmp_path / "peds/train_annotations.txt").write_text("img00001.jpg\n")
    scenes.write_demo_datasets(tmp_path, **small)
    assert digest(tmp_path) == good


def test_files_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    counts = {"train_images": 18, "val_images": 2, "union_images": 2}
    for workers in (1, 2):
        scenes.write_demo_datasets(tmp_path / str(workers), **counts, workers=workers)
    assert digest(tmp_path / "1") == digest(tmp_path / "2")


def test_a_folder_of_the_users_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="already holds faces, not written by the demo"):
        scenes.write_demo_datasets(tmp_path, train_images=1, val_images=1, union_images=1)
    assert (tmp_path / "faces" / "mine.txt").exists()


def test_marker_names_its_settings(written: tuple[Path, dict[str, dict[str, int]]]) -> None:
    root, summary = written
    content = json.loads((root / scenes.MARKER).read_text())
    assert content["settings"]["seed"] == 1
    assert content["summary"] == summary
