"""Every writer that names files by what the data say, with names that are paths and other strange ones: all files
lie in the folder, none is written twice, and the readers find them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
import typer
from PIL import Image

import crossdet.evaluation.curves as curves_module
from crossdet.commands.terminal import run_app
from crossdet.data.drawing import write_batch_pictures
from crossdet.data.formats.voc import read_voc, write_voc
from crossdet.data.formats.yolo import write_yolo
from crossdet.data.index import Index, IndexBuilder
from crossdet.errors import RunError, UserError
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.curves import NamedCurve, draw_curves
from crossdet.evaluation.files.voc import read_voc_results, read_voc_truth
from crossdet.evaluation.files.wider_face import read_wider_face_predictions
from crossdet.evaluation.pictures import write_val_pictures
from crossdet.evaluation.precision_recall import Curve
from crossdet.evaluation.protocols import PROTOCOLS
from crossdet.evaluation.protocols.entry import write_predictions
from crossdet.evaluation.splits import Split
from crossdet.files import check_room, spellings, write_atomically, writing
from crossdet.labels.space import LabelSpace
from crossdet.runs.predict import _picture_names
from crossdet.types import Annotations, Batch, Detections

CLASSES = [
    "../../escaped", "..", ".", ".hidden", "a/b", "a\\b", "a:b", "con", "tab\tx", "x" * 400, "Car", "car", "\u00e9",
    "e\u0301", "stop sign",
]  # fmt: skip
DATASETS = ["..", ".", ".hidden", "con", "a\\b", "x" * 400, "Car", "car", "street scenes"]
"""A "/" is refused in the names of datasets."""


@contextmanager
def nothing_outside(folder: Path) -> Iterator[None]:
    """folder: two levels below the test's own, so that `..` leads to where it is seen."""
    above = folder.parents[1]

    def outside() -> set[Path]:
        return {file for file in above.rglob("*") if folder not in (file, *file.parents)}

    folder.mkdir(parents=True)
    before = outside()
    yield
    assert outside() == before


def image_names(root: Path) -> list[str]:
    """Names of images that exist, seen from `root`: relative, absolute and through the folder above."""
    names = [
        "plain.png", "Plain.png", "a b.png", "e/1.png", "E/1.png", "e/1.jpg", "f/e/1.png", "../beside/1.png",
        f"{root.parent}/beside/2.png", ".h/.x.png", "con/nul.png", "t\tb/n\nl.png", "c:d/*?.png",
        f"{'l' * 240}/x.png", f"e/{'m' * 240}.png", "..e/..x..png",
    ]  # fmt: skip
    for number, name in enumerate(names):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (10 * number, 90, 90)).save(file, "PNG")
    return names


def index_of(root: Path, names: list[str], classes: list[str]) -> Index:
    """A box per image, of each class in turn."""
    builder = IndexBuilder(root)
    for number, name in enumerate(names):
        builder.image(name, 30, 40, image_id=number + 1)
        builder.box((1.0, 2, 11 + number, 22), number % len(classes))
    return builder.build(classes)


def as_found(index: Index) -> DetectionArrays:
    """What is labelled, as detections."""
    scores = np.linspace(0.9, 0.5, len(index.boxes))
    return DetectionArrays(np.array(index.boxes, np.float64), scores, index.labels, index.image_of_box())


def test_class_files_of_voc_and_their_reader(tmp_path):
    classes = [*CLASSES, f"{tmp_path}/absolute"]
    index = index_of(tmp_path, [f"{i}.png" for i in range(len(classes))], classes)
    split = Split(index, np.arange(len(classes)), classes)
    folder = tmp_path / "in" / "out"
    with nothing_outside(folder):
        write_predictions(PROTOCOLS["voc"], folder, split, as_found(index))
    assert len(list(folder.iterdir())) == len(classes)
    assert {"Car.txt", "stop sign.txt"} <= {file.name for file in folder.iterdir()}

    write_voc(index, tmp_path / "truth", "val")
    files = read_voc_truth(tmp_path / "truth")
    results = read_voc_results(folder, files)
    twin = next(name for name in spellings("e\u0301") if (folder / f"{name}.txt").exists())
    assert (results.missing, results.unknown) == ([], [f"{twin}.txt"])  # read names are composed, so it is no class
    shown = [
        (files.classes[c], files.images[i])
        for c, i in zip(results.detections.labels, results.detections.image_of_box, strict=True)
    ]
    assert sorted(shown) == sorted((name, str(i)) for i, name in enumerate(classes) if name != "e\u0301")

    # a truth that knows some of the classes alone finds theirs, and never another's
    some = replace(files, classes=("car", "e\u0301"))
    found = read_voc_results(folder, some)
    assert [some.classes[c] for c in found.detections.labels] == ["car", "e\u0301"]
    assert [some.images[i] for i in found.detections.image_of_box] == [str(classes.index(n)) for n in some.classes]


def test_files_by_others_are_read_by_the_class_name_itself(tmp_path):
    (tmp_path / "truth").mkdir()
    index = index_of(tmp_path, ["0.png", "1.png"], ["a:b", "car"])
    write_voc(index, tmp_path / "truth", "val")
    (tmp_path / "a:b.txt").write_text("0 0.9 1 2 3 4\n")  # where the file system takes it
    (tmp_path / "comp4_det_test_car.txt").write_text("1 0.8 1 2 3 4\n")
    results = read_voc_results(tmp_path, read_voc_truth(tmp_path / "truth"))
    assert (results.detections.scores.tolist(), results.missing) == ([0.9, 0.8], [])


def test_image_files_of_wider_face_and_their_reader(tmp_path):
    root = tmp_path / "pictures"
    index = index_of(root, image_names(root), ["face"])
    folder = tmp_path / "in" / "out"
    with nothing_outside(folder):
        write_predictions(PROTOCOLS["wider_face"], folder, Split(index, np.array([0]), ["face"]), as_found(index))
    assert len(list(folder.rglob("*.txt"))) == len(index)
    paths = [PurePosixPath(index.names[row]) for row in range(len(index))]
    keys = [f"{path.parent.name}/{path.stem}".lstrip("/") for path in paths]
    once = [row for row, key in enumerate(keys) if keys.count(key) == 1]
    assert len(once) > 10
    found = read_wider_face_predictions(folder, [keys[row] for row in once])
    assert found.missing == []
    assert [round(width) for width in found.detections.boxes[:, 2]] == [10 + row for row in once]


@pytest.mark.parametrize("protocol", ["coco", "wider_pedestrian"])
def test_predictions_in_one_file(tmp_path, protocol):
    root = tmp_path / "pictures"
    index = index_of(root, image_names(root), CLASSES)
    folder = tmp_path / "in" / "out"
    with nothing_outside(folder):
        write_predictions(
            PROTOCOLS[protocol], folder, Split(index, np.arange(len(CLASSES)), CLASSES), as_found(index)
        )
    assert len(list(folder.iterdir())) == 1


def test_xmls_of_voc(tmp_path):
    root = tmp_path / "pictures"
    index = index_of(root, image_names(root), ["car"])
    folder = tmp_path / "in" / "out"
    with nothing_outside(folder):
        write_voc(index, folder, "val")
    assert len(list((folder / "Annotations").iterdir())) == len(index)
    again = read_voc([folder / "Annotations"], [root], [folder / "ImageSets/Main/val.txt"])
    assert len(again) == len(index)
    inside = [row for row in range(len(index)) if not index.names[row].startswith(("/", "../", "t\tb"))]
    assert [again.names[row] for row in inside] == [index.names[row] for row in inside]


def test_labels_of_yolo_are_refused_where_they_would_lie_outside(tmp_path):
    root = tmp_path / "pictures"
    names = image_names(root)
    folder = tmp_path / "in" / "out"
    with nothing_outside(folder):
        for bad in ("../beside/1.png", f"{tmp_path}/beside/2.png", "a/../../1.png", "..\\x.png", ".."):
            with pytest.raises(UserError, match=r"leads out of the folder of images.*move the image below"):
                write_yolo(index_of(root, ["plain.png", bad], ["car"]), folder, "val")
        assert list(folder.iterdir()) == []
        kept = [name for name in names if not name.startswith(("../", "/")) and name != "e/1.jpg"]
        write_yolo(index_of(root, kept, ["car"]), folder, "val")
    assert len(list((folder / "labels").rglob("*.txt"))) == len(kept)


def test_figures_and_drawn_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(curves_module, "save_figure", lambda figure, file: write_atomically(file, b"a figure"))
    curve = Curve(np.linspace(0, 1, 5), np.linspace(1, 0, 5), 0.5)
    names = [*CLASSES, f"{tmp_path}/absolute"]
    curves = [NamedCurve(name, protocol, "car", curve) for name in names for protocol in ("coco", "../voc")]
    curves.append(NamedCurve("none", "coco", "car", Curve(np.zeros(0), np.zeros(0), math.nan)))
    folder = tmp_path / "in" / "curves"
    with nothing_outside(folder):
        files = draw_curves(folder, [("run", curves)])
    assert len(set(files)) == len(list(folder.iterdir())) == 2 * len(names)

    files = [Path("x") / f"{name}.jpg" for name in (*CLASSES, "CAR")]
    drawn = list(_picture_names(files).values())
    assert len({name.casefold() for name in drawn}) == len(files)
    assert all(Path(name).name == name for name in drawn)


def test_pictures_of_validation_and_of_batches(tmp_path):
    root = tmp_path / "pictures"
    space = LabelSpace.build({name: [f"class {i}"] for i, name in enumerate(DATASETS)})
    images = image_names(root)[:2]
    val = {name: index_of(root, images, [f"class {i}"]) for i, name in enumerate(DATASETS)}
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    folder = tmp_path / "in" / "val"
    with nothing_outside(folder):
        files = write_val_pictures(lambda picture: nothing, space, val, folder)  # type: ignore[arg-type]
    assert len(set(files)) == len(list(folder.iterdir())) == 2 * len(DATASETS)

    many = len(DATASETS)
    empty = Annotations(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.uint8))
    batch = Batch(
        images=torch.zeros(many, 3, 32, 32, dtype=torch.uint8),
        sizes=torch.full((many, 2), 32),
        original_sizes=torch.full((many, 2), 32),
        targets=[empty] * many,
        trusted=torch.ones(many, many, dtype=torch.bool),
        image_ids=torch.arange(many),
        dataset_ids=torch.arange(many),
    )
    folder = tmp_path / "in" / "batch"
    with nothing_outside(folder):
        files = write_batch_pictures([batch], space, DATASETS, folder)
    assert len(set(files)) == len(list(folder.iterdir())) == many


def test_what_the_disk_says_has_a_path_and_what_is_kept(tmp_path):
    with (
        pytest.raises(
            RunError, match=r"^x\.jpg could not be written \(No space left on device\); the rest is kept$"
        ),
        writing(Path("x.jpg"), "the rest is kept"),
    ):
        raise OSError(28, "No space left on device")


def test_room_is_looked_for_where_the_path_begins(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file", tmp_path / "new/deep/file.json"):
        check_room(path, 1000)
    with pytest.raises(RunError, match=r"file/x cannot be written: .*/file is a file$"):
        check_room(tmp_path / "file/x")
    with pytest.raises(
        RunError, match=rf"bytes are left in {tmp_path}, and it takes at least 1,000,000,000,000,000,000"
    ):
        check_room(tmp_path / "new/deep/file.json", 10**18)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(RunError, match=rf"deep/file.json cannot be written: nothing may be written in {tmp_path}$"):
        check_room(tmp_path / "new/deep/file.json")


def test_no_error_of_the_disk_is_a_traceback(capsys, monkeypatch):
    """Wherever a command writes."""

    app = typer.Typer()

    @app.command()
    def command() -> None:
        raise OSError(28, "No space left on device", "[a]/file")

    monkeypatch.setattr(sys, "argv", ["crossdet"])
    with pytest.raises(SystemExit, match="1"):
        run_app(app)
    assert capsys.readouterr().err == "failed [Errno 28] No space left on device: '[a]/file'\n"
